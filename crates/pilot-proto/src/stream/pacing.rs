//! Spreads transmissions over the round trip without breaking batches apart.
//!
//! A token bucket refilled at a little more than one congestion window per round trip. The bucket is never smaller than
//! [`QUANTUM`], and a waiting sender is woken only when a whole quantum is there, so that every wake-up fills one
//! segmentation-offload send.

use std::time::{Duration, Instant};

/// Bytes that leave together: what one UDP send with segmentation offload carries.
pub(super) const QUANTUM: u64 = 64 * 1024;
/// Timers of an event loop are this coarse, so the bucket holds at least this much time at the current rate.
const TIMER_SLACK: Duration = Duration::from_millis(2);
/// Below this round trip spreading is finer than any timer and only costs.
const MIN_RTT: Duration = Duration::from_millis(1);

/// The pacer.
#[derive(Debug)]
pub(super) struct Pacer {
    tokens: u64,
    refilled: Instant,
}

impl Pacer {
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: QUANTUM, refilled: now }
    }

    /// Whether a segment may leave now; otherwise when to ask again.
    ///
    /// `window` is the congestion window; `ramping` says it is still doubling, which needs twice the rate.
    pub(super) fn check(
        &mut self,
        now: Instant,
        rtt: Option<Duration>,
        window: u64,
        ramping: bool,
    ) -> Result<(), Instant> {
        let Some(rtt) = rtt.filter(|rtt| *rtt >= MIN_RTT) else {
            return Ok(());
        };
        // Refilled only when empty: the usual case costs no division.
        if self.tokens > 0 {
            return Ok(());
        }
        // Bytes per second: 2 windows per round trip while doubling, else 1.25.
        let gain = if ramping { 8 } else { 5 };
        let rate = (u128::from(window) * gain * 1_000_000_000 / 4 / rtt.as_nanos()).max(1);
        let capacity = (rate * TIMER_SLACK.as_nanos() / 1_000_000_000).max(u128::from(QUANTUM)) as u64;
        let elapsed = now.saturating_duration_since(self.refilled);
        let earned = rate * elapsed.as_nanos() / 1_000_000_000;
        if earned > 0 {
            self.tokens = (u128::from(self.tokens) + earned).min(u128::from(capacity)) as u64;
            self.refilled = now;
        }
        if self.tokens > 0 {
            return Ok(());
        }
        // A window smaller than the quantum comes in one burst per round trip at most.
        let wanted = QUANTUM.min(window / 4).max(1);
        let wait = u128::from(wanted) * 1_000_000_000 / rate;
        Err(now + Duration::from_nanos(wait as u64).max(Duration::from_micros(100)))
    }

    /// A segment of `len` bytes left.
    pub(super) fn on_sent(&mut self, len: usize) {
        self.tokens = self.tokens.saturating_sub(len as u64);
    }
}
