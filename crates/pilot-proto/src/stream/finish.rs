//! The end of a stream: FIN in its two forms, who answers whom, TIME_WAIT (02 §20, §27.1, §27.5, §27.6; 07 rule 23).
//!
//! * A **plain FIN** has no ACK bit. It is what official daemons send, and to them it ends both directions at once: they
//!   answer FIN|ACK and hear no more. We send it only when our data is acknowledged, count one received only when the
//!   data before it has arrived, answer with FIN|ACK, and never answer a FIN|ACK with a FIN.
//! * A **FIN|ACK** from an end that has received no FIN closes one direction, is acknowledged by number like a byte, and is
//!   repeated until it is. Only our own daemons send it so.

use std::time::{Duration, Instant};

use pilot_wire::packet::{Flags, Header};

use super::CloseReason;
use super::connection::{Connection, OwnFin, PeerFin, Phase, RECEIVE_SLACK};
use super::seq::{to_offset, to_wire};
use super::timers::Timer;

/// Shortest and longest pause between two answers to FINs of one connection; it doubles, so a storm gets a handful.
const FIN_PAUSE: (Duration, Duration) = (Duration::from_millis(5), Duration::from_secs(1));
/// Longest pause between two transmissions of our FIN.
const FIN_RTO_MAX: Duration = Duration::from_secs(4);

impl Connection {
    /// Our direction is to end.
    pub(super) fn begin_closing(&mut self, now: Instant) {
        if !self.closing {
            self.closing = true;
            self.closing_since = now;
        }
    }

    /// The peer's plain FIN has ended a connection that has no half-close. Decided once: what has been acknowledged one
    /// way cannot be answered the other way when the profile changes.
    pub(super) fn ended_by_peer(&self) -> bool {
        self.ended_whole
    }

    /// Whether our FIN may leave now; otherwise a timer is set for the moment to ask again, if time alone decides.
    fn fin_ready(&mut self, now: Instant) -> bool {
        if !self.closing || self.fin.is_some() {
            return false;
        }
        let dialled = self.syns_sent > 0;
        if let Some(at) = self.established_at.map(|at| at + self.profile.fin_delay)
            && !dialled
            && now < at
        {
            self.timers.set(Timer::FinDelay, at);
            return false;
        }
        let all_sent = self.nxt == self.output.end();
        if self.una == self.output.end() || (self.profile.orders_fin && all_sent) {
            return true;
        }
        if self.profile.orders_fin {
            return false;
        }
        let since = self.closing_since.max(self.last_progress);
        if self.ended_by_peer() {
            // An official peer has stopped listening; one of ours that does not know us yet has not. So the answer waits
            // as long as an orderly peer may (07 rule 23), while our data is repeated.
            let at = since + self.cfg.fin_gap;
            self.truncated = now >= at;
            if !self.truncated {
                self.timers.set(Timer::FinHold, at);
            }
            return self.truncated;
        }
        let at = since + self.cfg.fin_hold;
        if now < at {
            self.timers.set(Timer::FinHold, at);
            return false;
        }
        // A peer that answers and makes no progress may order the FIN; one that is silent could not hear it.
        if all_sent && self.last_heard > since {
            return true;
        }
        self.timers.set(Timer::FinHold, now + self.cfg.fin_hold);
        false
    }

    pub(super) fn transmit_fin(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        if std::mem::take(&mut self.due.fin_answer) {
            self.emit_fin(now, false, out);
            return true;
        }
        if self.phase != Phase::Open {
            return false;
        }
        if self.fin_ready(now) {
            // After the peer's end ours acknowledges it, whoever the peer is.
            let plain = !self.end_reached && !self.profile.half_close;
            // Nothing confirms an answer to an official peer; a repeat of its FIN gets another one.
            let acked = self.ended_by_peer();
            self.fin = Some(OwnFin { plain, tries: 1, acked });
            self.emit_fin(now, plain, out);
            if !acked {
                self.timers.set(Timer::FinRetry, now + self.rtt.rto().min(FIN_RTO_MAX));
            }
            self.check_done(now);
            return true;
        }
        if let (true, Some(fin)) = (std::mem::take(&mut self.due.fin), self.fin) {
            self.emit_fin(now, fin.plain, out);
            return true;
        }
        false
    }

    fn emit_fin(&mut self, now: Instant, plain: bool, out: &mut Vec<u8>) {
        let seq = to_wire(self.isn, self.nxt);
        if plain {
            self.emit(Flags::FIN, seq, 0, 0, out);
        } else {
            let received = self.hold.unwrap_or(self.input.next());
            let ack = to_wire(self.irs, received + u64::from(self.end_reached));
            // A window other than 0 says that everything before the peer's FIN has arrived. Official daemons send 0, and
            // do not look.
            let window = if self.end_reached { self.window_field().max(1) } else { 0 };
            self.emit(Flags::FIN | Flags::ACK, seq, ack, window, out);
            self.ack.on_sent();
        }
        self.last_sent = now;
    }

    pub(super) fn on_fin(&mut self, now: Instant, header: &Header) {
        let has_ack = header.flags.contains(Flags::ACK);
        match self.phase {
            Phase::SynSent | Phase::Closed => return,
            Phase::SynReceived if has_ack && header.ack == to_wire(self.isn, 0) => self.establish(now),
            Phase::SynReceived => return,
            Phase::Open | Phase::TimeWait => {}
        }
        let next = self.input.next();
        let offset = to_offset(self.irs, next, header.seq);
        let limit = (next + (self.cfg.receive_buffer + RECEIVE_SLACK) as u64) as i64;
        let held = self.input.ahead().as_slice().last().map_or(0, |r| r.1) as i64;
        let known = self.peer_fin.is_some_and(|fin| fin.offset as i64 == offset);
        if !known && (self.peer_fin.is_some() || offset < (next as i64).max(held) || offset > limit) {
            self.stats.invalid += 1;
            return;
        }
        if has_ack {
            let ack = to_offset(self.isn, self.una, header.ack);
            if ack > self.sent_top() as i64 {
                self.stats.invalid += 1;
                return;
            }
            if ack > self.nxt as i64 && self.una < self.nxt && header.window == 0 && !self.profile.orders_fin {
                // An official answer, whose window is 0, comes whether or not the data before our FIN did: it ends the
                // stream, and says nothing of the data.
                self.truncated = true;
                if let Some(fin) = &mut self.fin {
                    fin.acked = true;
                }
                self.timers.stop(Timer::FinRetry);
                self.due.fin = false;
            } else if let Ok(ack) = u64::try_from(ack) {
                self.on_numbers(now, ack, &None, false);
            }
        }
        self.last_heard = now;
        if !known {
            self.peer_fin = Some(PeerFin { offset: offset as u64, plain: !has_ack });
        }
        let was_reached = self.end_reached;
        self.check_peer_end(now);
        if !self.end_reached {
            // Acknowledge up to the gap, and wait.
            self.ack.on_urgent(now);
            if !self.timers.is_set(Timer::FinGap) && (!has_ack || self.fin.is_some_and(|fin| fin.plain)) {
                self.timers.set(Timer::FinGap, now + self.cfg.fin_gap);
            }
        } else if was_reached {
            self.respond_to_fin(now, !has_ack);
        }
        self.check_done(now);
    }

    /// Whether everything before the peer's FIN is here; if so for the first time, the end counts.
    pub(super) fn check_peer_end(&mut self, now: Instant) {
        let Some(fin) = self.peer_fin.filter(|_| !self.end_reached) else { return };
        #[cfg(feature = "planted-bugs")]
        let early = self.planted(super::PlantedBug::FinAcceptedEarly);
        #[cfg(not(feature = "planted-bugs"))]
        let early = false;
        if self.input.next() < fin.offset && !early {
            if self.timers.is_set(Timer::FinGap) {
                // Data still arrives.
                self.timers.set(Timer::FinGap, now + self.cfg.fin_gap);
            }
            return;
        }
        self.end_reached = true;
        self.ended_whole = fin.plain && !self.profile.half_close;
        self.peer_ended_first = self.fin.is_none();
        self.hold = None;
        self.timers.stop(Timer::FinGap);
        self.events.finished = true;
        self.respond_to_fin(now, fin.plain);
    }

    pub(super) fn respond_to_fin(&mut self, now: Instant, plain: bool) {
        if self.ended_by_peer() && self.fin.is_none() {
            // FIN|ACK follows once our own data is through; acknowledgements of it may be just behind the FIN.
            self.closing = true;
            self.closing_since = now;
            return;
        }
        if self.fin_quiet_until.is_some_and(|until| now < until) {
            return;
        }
        self.fin_pause = (self.fin_pause * 2).clamp(FIN_PAUSE.0, FIN_PAUSE.1);
        self.fin_quiet_until = Some(now + self.fin_pause);
        if plain && self.fin.is_some() {
            self.due.fin_answer = true;
            if self.ended_whole
                && let Some(fin) = &mut self.fin
            {
                // Both ends closed at once; any FIN after ours is the end (02 §27.1).
                fin.acked = true;
            }
        } else {
            self.ack.on_urgent(now);
        }
    }

    /// Ends the connection once both directions have ended.
    pub(super) fn check_done(&mut self, now: Instant) {
        if self.reason.is_none() && self.end_reached && self.fin.is_some_and(|fin| fin.acked) {
            self.finish(now);
        }
    }

    /// Both directions are over, or will hear no more.
    pub(super) fn finish(&mut self, now: Instant) {
        let reason = if self.truncated { CloseReason::Truncated } else { CloseReason::Clean };
        self.timers.stop_all();
        self.due.keepalive = false;
        self.output.clear();
        self.board.clear();
        self.reason = Some(reason);
        self.events.closed = true;
        if self.peer_ended_first && self.fin.is_some_and(|fin| fin.acked) && !self.ended_by_peer() {
            // The peer knows that we know: nothing of it can need an answer.
            self.phase = Phase::Closed;
            self.ack.clear();
        } else {
            self.phase = Phase::TimeWait;
            self.timers.set(Timer::TimeWait, now + self.cfg.time_wait);
        }
    }

    /// Our FIN is due for a repeat.
    pub(super) fn on_fin_retry(&mut self, now: Instant) {
        let Some(fin) = self.fin.as_mut().filter(|fin| !fin.acked) else { return };
        let silent = now.saturating_duration_since(self.last_heard.max(self.last_progress));
        if (fin.plain || self.end_reached) && fin.tries >= self.cfg.fin_tries && self.board.is_empty() {
            // All our data is acknowledged and nobody answers: the peer has forgotten the connection (02 §27.1), or has
            // left TIME_WAIT.
            self.finish(now);
            self.phase = Phase::Closed;
            self.timers.stop_all();
            return;
        }
        if silent >= self.cfg.give_up {
            self.terminate(CloseReason::Timeout, true);
            return;
        }
        let pause = (self.rtt.rto() * (1 << fin.tries.min(8))).min(FIN_RTO_MAX);
        fin.tries += 1;
        self.due.fin = true;
        self.timers.set(Timer::FinRetry, now + pause);
    }

    /// Data before the peer's FIN did not come in time.
    pub(super) fn on_fin_gap(&mut self, now: Instant) {
        if self.end_reached || self.reason.is_some() {
            return;
        }
        self.truncated = true;
        self.due.fin_answer = self.fin.is_none();
        self.finish(now);
    }
}
