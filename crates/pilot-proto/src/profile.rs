//! What a peer can do: one field per rule, learned from the peer, asked by the state machines instead of a version.
//!
//! Nothing known means [`PeerProfile::cautious`]: the rules under which every official daemon, February's included,
//! neither loses data nor dies (specification 02 §27 and 07 §4). A peer that said Hello gets more
//! ([`PeerProfile::ours`], narrowed by what its Hello says).

use std::time::Duration;

/// Segments any official receiver can hold out of order, so the most that may be unacknowledged (07 rule 21).
pub const V1_SEGMENTS_IN_FLIGHT: usize = 128;
/// Largest segment payload toward official peers, in bytes: no IP fragment on a 1,500-byte path (07 rule 21).
pub const V1_MAX_SEGMENT: usize = 1152;
/// Bytes one unit of the window field stands for where the peer accounts bytes. An official sender multiplies by the
/// same number (02 §18), so one advertised value is safe under both readings.
pub const WINDOW_UNIT: usize = 4096;

/// How the peer counts the window it advertises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WindowUnit {
    /// A place for one segment of whatever size (02 §27.8, 07 rule 22).
    Segments,
    /// [`WINDOW_UNIT`] bytes.
    Bytes,
}

/// The capabilities of one peer. Plain data: cheap to copy, compared by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerProfile {
    /// Largest stream payload to send in one packet, bytes. The path may lower it further. Default 1152 (07 rule 21).
    pub max_segment: usize,
    /// Most unacknowledged segments. Default 128 (07 rule 21, 02 §27.2).
    pub segments_in_flight: usize,
    /// How the window the peer advertises is counted. Default segments (02 §27.8).
    pub window_unit: WindowUnit,
    /// A segment once sent is repeated with the same boundaries for ever. Default true (02 §27.2).
    pub fixed_boundaries: bool,
    /// A window of 0 sent to this peer means closed. Otherwise it means unlimited and is never advertised; the peer is
    /// held back by withholding the cumulative acknowledgement. Default false (02 §27.7).
    pub zero_window_closes: bool,
    /// The peer resumes on a pure window update. Otherwise only an advancing acknowledgement wakes it. Default false
    /// (02 §18, §27.7).
    pub window_update_wakes: bool,
    /// Three empty duplicate acknowledgements make the peer repeat a segment at once; without them it waits for its
    /// timer. Default true (02 §27.9).
    pub wants_duplicate_acks: bool,
    /// An acknowledgement that arrives sooner after the data than this can be lost on the peer. Default 1 ms (02 §27.12).
    pub ack_floor: Duration,
    /// Longest time the peer delays an acknowledgement; part of tail probe timing. Default 40 ms (02 §14).
    pub max_ack_delay: Duration,
    /// Each direction ends by itself: an acknowledged FIN closes only the sender's direction. Default false (02 §9).
    pub half_close: bool,
    /// The peer orders a FIN behind missing data. Otherwise our FIN waits until our data is acknowledged, at most
    /// [`crate::stream::StreamConfig::fin_hold`]. Default false (02 §27.6, 07 rule 23).
    pub orders_fin: bool,
    /// No FIN sooner than this after the peer's dial succeeded, or the dial hangs. Default 30 ms (02 §27.5).
    pub fin_delay: Duration,
    /// A RST from this peer carries its sequence number, so one without a number that fits is a forgery. Default false
    /// (02 §5: an official RST is all zero).
    pub reset_has_sequence: bool,
    /// The dialler chooses its initial sequence number at random, so a SYN with another number is a new dial. Default
    /// false (02 §5: official daemons always start at 0).
    pub random_isn: bool,
    /// Report the range that changed last before the lowest ones. An official sender forgets all marks at each advance
    /// and needs the lowest (02 §15). Default false.
    pub recent_sack_first: bool,
}

impl PeerProfile {
    /// Nothing is known about the peer: the rules every official daemon survives.
    pub const fn cautious() -> Self {
        Self {
            max_segment: V1_MAX_SEGMENT,
            segments_in_flight: V1_SEGMENTS_IN_FLIGHT,
            window_unit: WindowUnit::Segments,
            fixed_boundaries: true,
            zero_window_closes: false,
            window_update_wakes: false,
            wants_duplicate_acks: true,
            ack_floor: Duration::from_millis(1),
            max_ack_delay: Duration::from_millis(40),
            half_close: false,
            orders_fin: false,
            fin_delay: Duration::from_millis(30),
            reset_has_sequence: false,
            random_isn: false,
            recent_sack_first: false,
        }
    }

    /// A peer that runs this very implementation.
    pub const fn ours() -> Self {
        Self {
            max_segment: 65_535,
            segments_in_flight: usize::MAX,
            window_unit: WindowUnit::Bytes,
            fixed_boundaries: false,
            zero_window_closes: true,
            window_update_wakes: true,
            wants_duplicate_acks: false,
            ack_floor: Duration::ZERO,
            max_ack_delay: Duration::from_millis(5),
            half_close: true,
            orders_fin: true,
            fin_delay: Duration::ZERO,
            reset_has_sequence: true,
            random_isn: true,
            recent_sack_first: true,
        }
    }
}

impl Default for PeerProfile {
    fn default() -> Self {
        Self::cautious()
    }
}
