//! Every tunable number of a stream, declared once.

use std::time::Duration;

use super::StreamConfigError;

/// Settings of streams, shared by all connections of an endpoint.
///
/// The defaults suit one gigabit per second over 30 ms. Worst-case memory of one connection is `send_buffer` +
/// `receive_buffer` + 64 KiB of slack for official senders, each rounded up to a power of two, plus about 2 % for the
/// segment records; an idle one holds a few hundred bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamConfig {
    /// Bytes written but not yet acknowledged, at most. Default 4 MiB. A full buffer makes `write` answer `Blocked`.
    pub send_buffer: usize,
    /// Bytes received but not yet read, gaps included, at most. Default 4 MiB; it is also the largest window.
    pub receive_buffer: usize,
    /// First time-out of a SYN or SYN|ACK; doubles each time. Default 250 ms (07 §7).
    pub handshake_rto: Duration,
    /// Longest pause between two SYNs. Default 8 s (02 §12.1).
    pub handshake_rto_max: Duration,
    /// A dial without an answer fails after this. Default 30 s (02 §12.1: 29 to 39 s).
    pub dial_timeout: Duration,
    /// A half-open incoming connection is forgotten after this. Default 10 s (02 §29 row 14).
    pub accept_timeout: Duration,
    /// Time-out before the first round-trip sample. Default 1 s (RFC 6298 §2.1).
    pub initial_rto: Duration,
    /// Smallest time-out. Default 200 ms (02 §2).
    pub min_rto: Duration,
    /// Largest time-out, backed off or not. Default 10 s (02 §2).
    pub max_rto: Duration,
    /// Nothing at all heard from the peer for this long while data is unacknowledged: given up. Default 60 s (02 §29 row 8).
    pub give_up: Duration,
    /// No progress for this long although the peer answers (its window stays closed): given up. Default 5 min (07 §16
    /// item 34).
    pub stall_limit: Duration,
    /// A pure acknowledgement of in-order data waits this long for data to ride on. Default 5 ms (07 §7).
    pub ack_delay: Duration,
    /// In-order segments acknowledged at once at the start of a connection. Default 32 (07 §7).
    pub quick_acks: u32,
    /// In-order segments after which an acknowledgement is due at once. Default 2 (02 §14).
    pub ack_every: u32,
    /// Whether small writes leave at once. Default true: coalescing costs a round trip per write (02 §29 row 32).
    pub nodelay: bool,
    /// With coalescing on, the longest a small write waits. Default 5 ms (07 §7: at most 40 ms).
    pub nagle_hold: Duration,
    /// First zero-window probe; doubles each time. Default 500 ms (02 §18).
    pub probe_interval: Duration,
    /// Longest pause between zero-window probes. Default 30 s (02 §18).
    pub probe_interval_max: Duration,
    /// Silence after which a keepalive is sent. Default 75 s: longer than the 60 s of the newest official daemon, so that
    /// its own keepalive comes first and each side hears the other (02 §19, 07 §7).
    pub keepalive: Duration,
    /// Pause between repeated keepalives once one stays unanswered. Default 15 s.
    pub keepalive_retry: Duration,
    /// Silence after which the connection is given up. Default 120 s (02 §2).
    pub idle_timeout: Duration,
    /// Longest time our FIN waits for our data to be acknowledged by a peer that does not order it. Default 5 s (07 rule 23).
    pub fin_hold: Duration,
    /// Longest time a FIN ahead of missing data is kept waiting for it. Default 15 s (07 rule 23).
    pub fin_gap: Duration,
    /// FIN transmissions toward a peer that may have forgotten the connection. Default 10, about 27 s (02 §27.1).
    pub fin_tries: u32,
    /// How long a finished connection still answers a repeated FIN. Default 10 s (02 §2); never extended.
    pub time_wait: Duration,
    /// After the application has gone, how long the peer may take to finish. Default 30 s.
    pub linger: Duration,
    /// Largest congestion window in bytes. Default 16 MiB.
    pub max_congestion_window: u64,
    /// Whether transmissions are spread over the round trip. Default true.
    pub pacing: bool,
    /// A defect planted on purpose, to prove that the simulation finds it.
    #[cfg(feature = "planted-bugs")]
    #[doc(hidden)]
    pub planted: Option<super::PlantedBug>,
}

impl Default for StreamConfig {
    fn default() -> Self {
        Self {
            send_buffer: 4 << 20,
            receive_buffer: 4 << 20,
            handshake_rto: Duration::from_millis(250),
            handshake_rto_max: Duration::from_secs(8),
            dial_timeout: Duration::from_secs(30),
            accept_timeout: Duration::from_secs(10),
            initial_rto: Duration::from_secs(1),
            min_rto: Duration::from_millis(200),
            max_rto: Duration::from_secs(10),
            give_up: Duration::from_secs(60),
            stall_limit: Duration::from_secs(300),
            ack_delay: Duration::from_millis(5),
            quick_acks: 32,
            ack_every: 2,
            nodelay: true,
            nagle_hold: Duration::from_millis(5),
            probe_interval: Duration::from_millis(500),
            probe_interval_max: Duration::from_secs(30),
            keepalive: Duration::from_secs(75),
            keepalive_retry: Duration::from_secs(15),
            idle_timeout: Duration::from_secs(120),
            fin_hold: Duration::from_secs(5),
            fin_gap: Duration::from_secs(15),
            fin_tries: 10,
            time_wait: Duration::from_secs(10),
            linger: Duration::from_secs(30),
            max_congestion_window: 16 << 20,
            pacing: true,
            #[cfg(feature = "planted-bugs")]
            planted: None,
        }
    }
}

/// Smallest and largest buffer a stream works with, bytes. The upper end keeps a window unambiguous in 32-bit sequence
/// numbers with room to spare.
const BUFFER_RANGE: std::ops::RangeInclusive<usize> = (16 << 10)..=(256 << 20);

impl StreamConfig {
    /// Checks what cannot be checked by types.
    ///
    /// # Errors
    /// [`StreamConfigError`] names the first setting that is out of range.
    pub fn validate(&self) -> Result<(), StreamConfigError> {
        for (name, value) in [("send_buffer", self.send_buffer), ("receive_buffer", self.receive_buffer)] {
            if !BUFFER_RANGE.contains(&value) {
                return Err(StreamConfigError::Buffer { name, value });
            }
        }
        for (name, value) in [
            ("handshake_rto", self.handshake_rto),
            ("initial_rto", self.initial_rto),
            ("min_rto", self.min_rto),
            ("probe_interval", self.probe_interval),
            ("keepalive_retry", self.keepalive_retry),
        ] {
            if value.is_zero() {
                return Err(StreamConfigError::Zero { name });
            }
        }
        Ok(())
    }
}
