//! What passing time does.

use std::time::{Duration, Instant};

use super::CloseReason;
use super::connection::{Connection, Phase};
use super::timers::Timer;

/// Added to the tail probe time-out, for the coarseness of timers at both ends.
pub(super) const TAIL_SLACK: Duration = Duration::from_millis(2);
/// Longest pause between two SYN|ACKs: a half-open connection lives for seconds only.
const HALF_OPEN_PAUSE: Duration = Duration::from_secs(1);
/// Acknowledgements sent at once after one had to wait for its timer.
const QUICK_AFTER_TIMER: u32 = 4;

impl Connection {
    /// Time has reached [`Connection::poll_timeout`]. Early and repeated calls do no harm.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.ack.is_due(now) {
            self.ack.on_timer(QUICK_AFTER_TIMER);
        }
        if self.timers.next().is_none_or(|at| at > now) {
            return;
        }
        if self.timers.expire(Timer::HandshakeLimit, now) {
            match self.phase {
                Phase::SynSent => return self.terminate(CloseReason::DialTimeout, false),
                Phase::SynReceived => return self.terminate(CloseReason::AcceptTimeout, true),
                _ => {}
            }
        }
        if self.timers.expire(Timer::Handshake, now) {
            self.due.syn |= self.phase == Phase::SynSent;
            self.due.syn_ack |= self.phase == Phase::SynReceived;
            let longest = match self.phase {
                Phase::SynReceived => self.cfg.handshake_rto_max.min(HALF_OPEN_PAUSE),
                _ => self.cfg.handshake_rto_max,
            };
            self.handshake_pause = (self.handshake_pause * 2).min(longest);
            self.timers.set(Timer::Handshake, now + self.handshake_pause);
        }
        if self.timers.expire(Timer::Loss, now) {
            self.find_losses(now);
        }
        if self.timers.expire(Timer::Tail, now) {
            self.on_tail_probe();
        }
        if self.timers.expire(Timer::Rto, now) {
            self.on_rto(now);
        }
        if self.timers.expire(Timer::Persist, now) {
            self.on_persist(now);
        }
        if self.timers.expire(Timer::Nagle, now) {
            self.due.small_write = true;
        }
        // These only wake `poll_transmit`, which looks again.
        self.timers.expire(Timer::Pace, now);
        self.timers.expire(Timer::FinHold, now);
        self.timers.expire(Timer::FinDelay, now);
        if self.timers.expire(Timer::FinRetry, now) {
            self.on_fin_retry(now);
        }
        if self.timers.expire(Timer::FinGap, now) {
            self.on_fin_gap(now);
        }
        if self.timers.expire(Timer::Idle, now) {
            self.on_idle(now);
        }
        if self.timers.expire(Timer::Linger, now) && self.reason.is_none() {
            self.terminate(CloseReason::Local, true);
        }
        if self.timers.expire(Timer::TimeWait, now) {
            self.phase = Phase::Closed;
            self.timers.stop_all();
            self.ack.clear();
        }
    }

    /// Whether the peer has been silent, or progress has stood still, for too long.
    fn gave_up(&mut self, now: Instant) -> bool {
        let silent = now.saturating_duration_since(self.last_heard.max(self.last_progress));
        let stalled = now.saturating_duration_since(self.last_progress);
        let over = silent >= self.cfg.give_up || stalled >= self.cfg.stall_limit;
        if over {
            self.terminate(CloseReason::Timeout, true);
        }
        over
    }

    fn on_rto(&mut self, now: Instant) {
        if self.board.is_empty() || self.gave_up(now) {
            return;
        }
        let places = usize::from(self.peer_window);
        let reneged = self.board.on_timeout();
        self.rtt.back_off();
        self.due.forced = true;
        self.in_recovery = false;
        self.tail_probed = true;
        self.timers.stop(Timer::Tail);
        self.timers.stop(Timer::Loss);
        if reneged {
            self.stats.reneged += 1;
        }
        // Data that waits behind a closed window is no sign of congestion.
        if !(reneged && self.board.len() >= places) {
            self.congestion.on_timeout(now);
        }
        self.recovery_tx = self.board.next_tx();
        self.timers.set(Timer::Rto, now + self.rtt.rto());
    }

    /// Nothing came back for two round trips: one more segment draws the acknowledgement that shows what was lost
    /// (RFC 8985 §7).
    fn on_tail_probe(&mut self) {
        if self.board.is_empty() || self.tail_probed || self.board.has_lost() {
            return;
        }
        self.tail_probed = true;
        let fresh = self.output.end() > self.nxt && self.fin.is_none();
        self.due.forced = fresh || self.board.mark_last_lost();
    }

    fn on_persist(&mut self, now: Instant) {
        if self.board.is_empty() && !self.gave_up(now) {
            self.window_probes += 1;
            self.due.window_probe = true;
        }
    }

    /// Keepalive, idle time-out, and memory of quiet connections.
    fn on_idle(&mut self, now: Instant) {
        if self.phase != Phase::Open {
            return;
        }
        self.input.shrink();
        self.output.shrink();
        self.board.shrink();
        let silent = now.saturating_duration_since(self.last_heard);
        if silent >= self.cfg.idle_timeout {
            self.terminate(CloseReason::IdleTimeout, true);
        } else if silent >= self.cfg.keepalive {
            self.due.keepalive = true;
            self.timers.set(Timer::Idle, now + self.cfg.keepalive_retry);
        } else {
            self.timers.set(Timer::Idle, self.last_heard + self.cfg.keepalive);
        }
    }
}
