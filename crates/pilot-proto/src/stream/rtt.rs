//! Round-trip time and retransmission time-out (RFC 6298, in the integer arithmetic of 02 §16).

use std::time::Duration;

/// Clock granularity G of the time-out formula (02 §2).
const GRANULARITY_NS: u64 = 10_000_000;

/// The estimator.
#[derive(Debug)]
pub(super) struct RttEstimator {
    /// Nanoseconds; 0 before the first sample.
    srtt: u64,
    rttvar: u64,
    latest: u64,
    min: u64,
    base_rto: Duration,
    /// Doublings since the last advance.
    backoff: u32,
    floor: Duration,
    ceiling: Duration,
}

impl RttEstimator {
    pub(super) fn new(initial: Duration, floor: Duration, ceiling: Duration) -> Self {
        Self { srtt: 0, rttvar: 0, latest: 0, min: u64::MAX, base_rto: initial, backoff: 0, floor, ceiling }
    }

    /// Takes the sample of a segment that was sent once.
    pub(super) fn sample(&mut self, sample: Duration) {
        // A sample below one hour fits by far; the cap keeps the arithmetic from overflowing on absurd clocks.
        let r = sample.as_nanos().min(3_600_000_000_000) as u64;
        self.latest = r;
        self.min = self.min.min(r);
        if self.srtt == 0 {
            self.srtt = r;
            self.rttvar = r / 2;
        } else {
            self.rttvar = self.rttvar * 3 / 4 + self.srtt.abs_diff(r) / 4;
            self.srtt = self.srtt * 7 / 8 + r / 8;
        }
        let rto = Duration::from_nanos(self.srtt + GRANULARITY_NS.max(4 * self.rttvar));
        self.base_rto = rto.clamp(self.floor, self.ceiling);
    }

    /// The time-out, doubled once per time-out in a row.
    pub(super) fn rto(&self) -> Duration {
        self.base_rto.saturating_mul(1 << self.backoff.min(16)).min(self.ceiling)
    }

    pub(super) fn back_off(&mut self) {
        self.backoff = (self.backoff + 1).min(16);
    }

    /// Something new was acknowledged.
    pub(super) fn progress(&mut self) {
        self.backoff = 0;
    }

    /// Smoothed round trip; none before the first sample.
    pub(super) fn smoothed(&self) -> Option<Duration> {
        (self.srtt > 0).then(|| Duration::from_nanos(self.srtt))
    }

    pub(super) fn variation(&self) -> Duration {
        Duration::from_nanos(self.rttvar)
    }

    pub(super) fn minimum(&self) -> Option<Duration> {
        (self.min != u64::MAX).then(|| Duration::from_nanos(self.min))
    }

    /// The larger of the smoothed and the latest sample, for time-based loss detection (RFC 9002 §6.1.2).
    pub(super) fn loss_basis(&self) -> Duration {
        Duration::from_nanos(self.srtt.max(self.latest))
    }
}
