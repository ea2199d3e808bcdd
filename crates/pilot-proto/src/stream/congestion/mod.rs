//! How much may be in flight: congestion control behind a trait.

use std::time::{Duration, Instant};

mod cubic;

pub(crate) use cubic::Cubic;

/// What a controller learns from acknowledgements that deliver new bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AckSample {
    /// Now.
    pub(crate) now: Instant,
    /// Bytes reported as received for the first time.
    pub(crate) bytes: u64,
    /// Smoothed round trip, once known.
    pub(crate) rtt: Option<Duration>,
    /// The latest sample, if this acknowledgement gave one.
    pub(crate) sample: Option<Duration>,
    /// The window, not the application or the peer, was what held the sender back.
    pub(crate) window_limited: bool,
    /// Bytes still in flight.
    pub(crate) in_flight: u64,
}

/// A congestion controller. Sizes in bytes.
pub(crate) trait Controller: Send + std::fmt::Debug {
    /// New bytes were delivered outside recovery.
    fn on_ack(&mut self, ack: &AckSample);
    /// Loss, for the first time in this window of data.
    fn on_loss(&mut self, now: Instant);
    /// The retransmission timer ran out.
    fn on_timeout(&mut self, now: Instant);
    /// Nothing was sent for longer than a time-out (RFC 9438 §5.8 asks not to count that time).
    fn on_idle(&mut self, now: Instant, idle: Duration);
    /// The largest payload of a segment changed.
    fn set_segment(&mut self, segment: usize);
    /// The window.
    fn window(&self) -> u64;
    /// Slow-start threshold; `u64::MAX` before the first loss.
    fn threshold(&self) -> u64;
    /// Whether the window doubles each round trip.
    fn in_slow_start(&self) -> bool {
        self.window() < self.threshold()
    }
}
