//! The timers of one connection, in a fixed table.

use std::time::Instant;

/// What a timer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// Repeat SYN or SYN|ACK.
    Handshake,
    /// Give the dial or the half-open connection up.
    HandshakeLimit,
    /// Retransmission time-out.
    Rto,
    /// A segment becomes old enough to be deemed lost.
    Loss,
    /// Tail loss probe.
    Tail,
    /// Zero-window probe.
    Persist,
    /// The pacer allows the next burst.
    Pace,
    /// A held small write leaves.
    Nagle,
    /// Keepalive, idle time-out and shrinking of idle buffers.
    Idle,
    /// The FIN need not wait for acknowledgements any longer.
    FinHold,
    /// The FIN may leave (02 §27.5).
    FinDelay,
    /// Repeat the FIN.
    FinRetry,
    /// Stop waiting for data missing before a FIN.
    FinGap,
    /// The application has gone; stop waiting for the peer.
    Linger,
    /// TIME_WAIT ends.
    TimeWait,
}

/// Number of timers.
const COUNT: usize = Timer::TimeWait as usize + 1;

/// One deadline per timer.
#[derive(Debug)]
pub(super) struct Timers([Option<Instant>; COUNT]);

impl Timers {
    pub(super) fn new() -> Self {
        Self([None; COUNT])
    }

    pub(super) fn set(&mut self, timer: Timer, at: Instant) {
        self.0[timer as usize] = Some(at);
    }

    pub(super) fn stop(&mut self, timer: Timer) {
        self.0[timer as usize] = None;
    }

    pub(super) fn stop_all(&mut self) {
        self.0 = [None; COUNT];
    }

    pub(super) fn get(&self, timer: Timer) -> Option<Instant> {
        self.0[timer as usize]
    }

    pub(super) fn is_set(&self, timer: Timer) -> bool {
        self.0[timer as usize].is_some()
    }

    /// Whether `timer` is due; it is stopped then.
    pub(super) fn expire(&mut self, timer: Timer, now: Instant) -> bool {
        let due = self.0[timer as usize].is_some_and(|at| at <= now);
        if due {
            self.0[timer as usize] = None;
        }
        due
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }
}
