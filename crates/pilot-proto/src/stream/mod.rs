//! Reliable streams over packets, without I/O (specification 02 §5 to §20 and §27, 07 §4.3 and §7).
//!
//! [`Connection`] is one end of one stream. Its methods come in four kinds:
//!
//! * **inputs**: [`Connection::handle_segment`], [`Connection::handle_timeout`];
//! * **mutators**: `write`, `read`, `close`, `reset`, `detach`, `set_*`;
//! * **polls**: [`Connection::poll_transmit`] (one packet per call), [`Connection::poll_event`],
//!   [`Connection::poll_timeout`];
//! * **getters**: `state`, `stats`, `is_forgotten`, …
//!
//! After every input or mutator the caller polls events and packets until both are empty and then re-arms its timer.
//! Time is an argument and the initial sequence number is given, so a run is a function of its inputs.

use std::fmt;

mod ack;
mod assembler;
mod config;
pub(crate) mod congestion;
mod connection;
mod finish;
mod handshake;
mod pacing;
mod ranges;
mod receive;
mod ring;
mod rtt;
mod scoreboard;
mod send_buffer;
mod seq;
#[cfg(test)]
mod tests;
mod timeout;
mod timers;
mod transmit;

pub use config::StreamConfig;
pub use connection::Connection;

/// Where a connection is. The names in status output are those of 02 §9.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Dialled; no SYN|ACK yet.
    SynSent,
    /// A SYN was answered; the third packet is missing.
    SynReceived,
    /// Data flows both ways.
    Established,
    /// We closed; the peer has not.
    FinWait,
    /// The peer closed; we have not.
    CloseWait,
    /// Both ends closed; a repeated FIN is still answered.
    TimeWait,
    /// Over.
    Closed,
}

impl State {
    /// The name in status output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN_SENT",
            Self::SynReceived => "SYN_RECV",
            Self::Established => "ESTABLISHED",
            Self::FinWait => "FIN_WAIT",
            Self::CloseWait => "CLOSE_WAIT",
            Self::TimeWait => "TIME_WAIT",
            Self::Closed => "CLOSED",
        }
    }
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CloseReason {
    /// Both ends closed, every byte arrived.
    Clean,
    /// The peer sent RST.
    Reset,
    /// The peer answered our SYN with RST.
    Refused,
    /// We sent RST: the application reset the stream, or left with the peer still sending.
    Local,
    /// The peer fell silent, or made no progress, with data unacknowledged.
    Timeout,
    /// The end came before some bytes did, in either direction.
    Truncated,
    /// Nothing heard, keepalives included, for the idle time-out.
    IdleTimeout,
    /// No answer to our SYN.
    DialTimeout,
    /// The third packet of an incoming connection never came.
    AcceptTimeout,
    /// The peer dialled anew on this port pair: it has restarted (02 §27.4).
    PeerRestarted,
    /// We sent RST because the peer is no longer allowed to have the connection.
    TrustRevoked,
}

impl CloseReason {
    /// Stable identifier for machine-readable output.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::Local => "local",
            Self::Timeout => "timeout",
            Self::Truncated => "truncated",
            Self::IdleTimeout => "idle_timeout",
            Self::DialTimeout => "dial_timeout",
            Self::AcceptTimeout => "accept_timeout",
            Self::PeerRestarted => "peer_restarted",
            Self::TrustRevoked => "trust_revoked",
        }
    }
}

impl fmt::Display for CloseReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "closed",
            Self::Reset => "reset by the peer",
            Self::Refused => "connection refused by the peer",
            Self::Local => "reset by this side",
            Self::Timeout => "the peer stopped answering",
            Self::Truncated => "the peer closed before all data had passed",
            Self::IdleTimeout => "the peer went silent on an idle connection",
            Self::DialTimeout => "the peer did not answer the dial",
            Self::AcceptTimeout => "the dialler never completed the handshake",
            Self::PeerRestarted => "the peer has restarted",
            Self::TrustRevoked => "trust in the peer has ended",
        })
    }
}

/// What [`Connection::poll_event`] reports. Each is an edge: it comes once per change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    /// The handshake is complete. An incoming connection is given to the application now, not before.
    Connected,
    /// `read` has something after it had nothing.
    Readable,
    /// `write` takes bytes again after it said `Blocked`.
    Writable,
    /// What [`Connection::watch_delivered`] asked for has been acknowledged.
    Delivered,
    /// The peer's orderly end has arrived, with every byte before it; `read` answers `Ok(0)` once these are read.
    Finished,
    /// The connection is over. Bytes already received can still be read.
    Closed(CloseReason),
}

/// Why nothing could be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The send buffer is full; [`StreamEvent::Writable`] follows.
    #[error("the send buffer is full")]
    Blocked,
    /// This side has closed the stream.
    #[error("the stream has been closed for writing")]
    Finished,
    /// The connection is over, or the peer closed a connection that has no half-close.
    #[error("the stream has ended: {0}")]
    Closed(CloseReason),
}

impl WriteError {
    /// Stable identifier for machine-readable output.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Finished => "finished",
            Self::Closed(reason) => reason.code(),
        }
    }
}

/// Why nothing could be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Nothing there yet; [`StreamEvent::Readable`], `Finished` or `Closed` follows.
    #[error("nothing to read yet")]
    Blocked,
    /// The connection ended without an orderly end of the peer's data.
    #[error("the stream has ended: {0}")]
    Closed(CloseReason),
}

impl ReadError {
    /// Stable identifier for machine-readable output.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Closed(reason) => reason.code(),
        }
    }
}

/// A setting of [`StreamConfig`] that cannot work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamConfigError {
    /// A buffer is too small or too large.
    #[error("stream setting {name}: {value} bytes is outside 16 KiB to 256 MiB")]
    Buffer {
        /// Name of the setting.
        name: &'static str,
        /// What it was.
        value: usize,
    },
    /// A duration that must not be zero is.
    #[error("stream setting {name}: must not be zero")]
    Zero {
        /// Name of the setting.
        name: &'static str,
    },
}

impl StreamConfigError {
    /// Stable identifier for machine-readable output.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Buffer { .. } => "stream_buffer_range",
            Self::Zero { .. } => "stream_zero_duration",
        }
    }
}

/// What a SYN for an existing connection means (02 §27.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SynVerdict {
    /// A repeat of the SYN that opened this connection; give it to [`Connection::handle_segment`].
    Repeat,
    /// The peer has restarted: drop this connection and accept a new one from the SYN.
    Restart,
}

/// Numbers of one connection, in the units of the status output (03 §8, `conn_list`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Congestion window, bytes.
    pub cong_win: u64,
    /// Slow-start threshold, bytes; `u64::MAX` before the first loss.
    pub ssthresh: u64,
    /// Bytes sent, not acknowledged, neither reported as received nor deemed lost.
    pub in_flight: u64,
    /// Smoothed round trip, milliseconds, truncated.
    pub srtt_ms: u64,
    /// Its variation, milliseconds, truncated.
    pub rttvar_ms: u64,
    /// Smoothed round trip, microseconds.
    pub srtt_us: u64,
    /// Segments sent and not acknowledged.
    pub unacked: u64,
    /// Ranges received out of order.
    pub ooo_buf: u64,
    /// Window of the peer, bytes: the field last received × 4096.
    pub peer_recv_win: u64,
    /// Window advertised last, bytes.
    pub recv_win: u64,
    /// Whether losses of one event are being repaired.
    pub in_recovery: bool,
    /// Payload bytes sent for the first time.
    pub bytes_sent: u64,
    /// Payload bytes received, duplicates included.
    pub bytes_recv: u64,
    /// Data segments sent for the first time.
    pub segs_sent: u64,
    /// Data segments received, duplicates included.
    pub segs_recv: u64,
    /// Segments repeated after a time-out.
    pub retransmits: u64,
    /// Segments repeated without waiting for a time-out.
    pub fast_retx: u64,
    /// SACK blocks received.
    pub sack_recv: u64,
    /// SACK blocks sent.
    pub sack_sent: u64,
    /// Acknowledgements received that repeat the last number with data outstanding.
    pub dup_acks: u64,
    /// Packets ignored because a number in them cannot be: acknowledgements beyond what was sent, resets and FINs
    /// outside the window.
    pub invalid: u64,
    /// Data segments dropped because they lie beyond what was advertised and the slack.
    pub overrun: u64,
    /// Times the peer forgot what it had reported as received.
    pub reneged: u64,
    /// Bytes written and not yet acknowledged.
    pub send_queue: u64,
    /// Bytes received in order and not yet read.
    pub recv_queue: u64,
}

/// A defect planted on purpose, to prove that the simulation finds its like.
#[cfg(feature = "planted-bugs")]
#[doc(hidden)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlantedBug {
    /// A FIN counts although data before it is missing.
    FinAcceptedEarly,
    /// A lost segment is now and then not repeated.
    RetransmissionForgotten,
    /// The acknowledgement covers a gap.
    AckBeyondReceived,
    /// The peer's window is ignored.
    WindowOverrun,
}
