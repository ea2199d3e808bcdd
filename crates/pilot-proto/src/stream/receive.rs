//! What arriving packets do (02 §7, §14 to §16, §27).

use std::time::{Duration, Instant};

use pilot_wire::packet::{Flags, Header};
use pilot_wire::sack;

use super::CloseReason;
use super::assembler::Inserted;
use super::congestion::AckSample;
use super::connection::{Connection, HOLD_BELOW, Phase, RECEIVE_SLACK};
use super::scoreboard::Delivered;
use super::seq::{to_offset, to_wire};
use super::timers::Timer;
use crate::profile::{WINDOW_UNIT, WindowUnit};

/// A pure ACK after this much silence, without news, is a keepalive (02 §27.8, §27.10).
const KEEPALIVE_SILENCE: Duration = Duration::from_secs(2);
/// Repeats of a segment whose acknowledgement is withheld after which it is acknowledged, so that a sender that counts
/// repeats does not give up (07 §7: 8).
const HOLD_REPEATS: u8 = 4;

impl Connection {
    /// A stream packet of this connection has arrived: length, checksum, version, addresses and ports have been checked.
    pub fn handle_segment(&mut self, now: Instant, header: &Header, payload: &[u8]) {
        if self.phase == Phase::Closed {
            return;
        }
        let flags = header.flags;
        if flags.contains(Flags::SYN) {
            if flags.contains(Flags::ACK) {
                self.on_syn_ack(now, header);
            } else {
                self.on_syn(now, header);
            }
        } else if flags.contains(Flags::FIN) {
            self.on_fin(now, header);
        } else if flags.contains(Flags::RST) {
            self.on_reset(header);
        } else if flags.contains(Flags::ACK) {
            self.on_ack(now, header, payload);
        }
    }

    /// Offset behind everything the peer can acknowledge.
    pub(super) fn sent_top(&self) -> u64 {
        self.nxt + u64::from(self.fin.is_some())
    }

    fn on_ack(&mut self, now: Instant, header: &Header, payload: &[u8]) {
        match self.phase {
            Phase::SynSent | Phase::Closed => return,
            Phase::SynReceived => {
                if header.ack != to_wire(self.isn, 0) {
                    self.stats.invalid += 1;
                    return;
                }
                self.establish(now);
            }
            Phase::Open | Phase::TimeWait => {}
        }
        let ack = to_offset(self.isn, self.una, header.ack);
        if ack > self.sent_top() as i64 {
            // Never sent: nothing in this packet can be trusted (02 §29 row 27).
            self.stats.invalid += 1;
            return;
        }
        let blocks = self.sack_blocks(ack, payload);
        let silence = now.saturating_duration_since(self.last_heard);
        let news = ack > self.una as i64;
        let pure = payload.is_empty();
        let quiet = pure && !news && self.board.is_empty() && silence >= KEEPALIVE_SILENCE;
        self.last_heard = now;
        if !(quiet && header.window == 0) {
            self.on_window(header, ack);
        }
        if ack >= 0 {
            self.on_numbers(now, ack as u64, &blocks, pure);
        }
        if pure {
            if quiet && now.saturating_duration_since(self.last_sent) >= KEEPALIVE_SILENCE {
                self.due.keepalive_answer = self.phase == Phase::Open;
            }
            if self.resume_unconfirmed && !news && !self.profile.window_update_wakes {
                // An official sender that probes has not seen the acknowledgement that let it go on.
                self.ack.on_urgent(now);
            }
        } else if blocks.is_none() {
            self.on_data(now, header.seq, payload);
        }
        self.check_done(now);
    }

    /// The blocks, if the payload is a list of ranges and not data.
    ///
    /// A list has exactly the announced length, and its ranges lie between its own acknowledgement number and what we
    /// have sent. Judging them against the *packet's* number rather than our oldest unacknowledged byte matters: a list
    /// overtaken by a newer acknowledgement would otherwise pass for data (refines 02 §27.3).
    fn sack_blocks(&self, ack: i64, payload: &[u8]) -> Option<sack::Blocks> {
        if payload.first() != sack::MAGIC.first() {
            return None;
        }
        let blocks = sack::Blocks::parse_exact(payload)?;
        let nxt = self.nxt as i64;
        let plausible = blocks.as_slice().iter().all(|b| {
            let left = to_offset(self.isn, self.una, b.left);
            let right = to_offset(self.isn, self.una, b.right);
            ack <= left && left < right && right <= nxt
        });
        plausible.then_some(blocks)
    }

    /// Takes the window over, unless the packet is older than the one that set it.
    fn on_window(&mut self, header: &Header, ack: i64) {
        let seq = to_offset(self.irs, self.input.next(), header.seq);
        let (by_seq, by_ack) = self.window_set_by;
        let Ok(ack) = u64::try_from(ack) else { return };
        if ack < by_ack || (ack == by_ack && seq < by_seq) {
            return;
        }
        self.window_set_by = (seq, ack);
        self.peer_window = header.window;
        let edge = ack + u64::from(header.window) * WINDOW_UNIT as u64;
        let opened = match self.profile.window_unit {
            WindowUnit::Bytes => edge > self.nxt,
            WindowUnit::Segments => header.window > 0,
        };
        self.send_edge = self.send_edge.max(edge);
        if opened {
            self.window_probes = 0;
            self.due.window_probe = false;
            self.timers.stop(Timer::Persist);
        }
    }

    /// Acknowledgement number and ranges. `ack` is at most what was sent.
    pub(super) fn on_numbers(&mut self, now: Instant, ack: u64, blocks: &Option<sack::Blocks>, pure: bool) {
        let mut delivered = Delivered::default();
        let min_rtt = self.rtt.minimum();
        let before = self.board.in_flight();
        if ack > self.una {
            let data = ack.min(self.nxt);
            if data > self.una {
                self.board.acknowledge(now, data, min_rtt, &mut delivered);
                self.output.acknowledge(data);
                self.una = data;
                self.rtt.progress();
                self.last_progress = now;
                self.tail_probed = false;
                self.wake_writer();
            }
            if ack > self.nxt
                && let Some(fin) = &mut self.fin
                && !fin.acked
            {
                fin.acked = true;
                self.timers.stop(Timer::FinRetry);
                self.due.fin = false;
            }
        } else if pure && ack == self.una && !self.board.is_empty() {
            self.stats.dup_acks += 1;
        }
        if let Some(blocks) = blocks {
            self.stats.sack_recv += blocks.as_slice().len() as u64;
            for b in blocks.as_slice() {
                let left = to_offset(self.isn, self.una, b.left).max(self.una as i64) as u64;
                let right = to_offset(self.isn, self.una, b.right).max(0) as u64;
                if right > left {
                    self.board.select(now, left, right, min_rtt, &mut delivered);
                }
            }
        }
        if let Some(sample) = delivered.rtt {
            self.rtt.sample(sample);
        }
        if self.in_recovery && self.una >= self.recovery_point {
            self.in_recovery = false;
        }
        if delivered.bytes > 0 && !self.in_recovery {
            let window = self.congestion.window();
            self.congestion.on_ack(&AckSample {
                now,
                bytes: delivered.bytes,
                rtt: self.rtt.smoothed(),
                sample: delivered.rtt,
                window_limited: self.una <= self.window_limited
                    || (self.congestion.in_slow_start() && before.saturating_mul(2) > window),
                in_flight: self.board.in_flight(),
            });
        }
        if delivered.bytes > 0 || self.timers.is_set(Timer::Loss) {
            self.find_losses(now);
        }
        if delivered.bytes > 0 {
            self.restart_timers(now);
        }
    }

    /// Marks what must have been lost and reacts once per window of data.
    pub(super) fn find_losses(&mut self, now: Instant) {
        let losses = self.board.detect(now, self.rtt.loss_basis());
        match losses.next_check {
            Some(at) => self.timers.set(Timer::Loss, at),
            None => self.timers.stop(Timer::Loss),
        }
        if let Some(newest) = losses.newest
            && newest >= self.recovery_tx
        {
            self.congestion.on_loss(now);
            self.in_recovery = true;
            self.recovery_point = self.nxt;
            self.recovery_tx = self.board.next_tx();
            self.due.forced = true;
        }
    }

    /// Retransmission and tail probe timers after something was sent or acknowledged.
    pub(super) fn restart_timers(&mut self, now: Instant) {
        if self.board.is_empty() {
            self.timers.stop(Timer::Rto);
            self.timers.stop(Timer::Tail);
            self.timers.stop(Timer::Loss);
            return;
        }
        let rto = self.rtt.rto();
        self.timers.set(Timer::Rto, now + rto);
        match self.rtt.smoothed() {
            Some(srtt) if !self.tail_probed && !self.in_recovery => {
                let delayed = if self.board.len() == 1 { self.profile.max_ack_delay } else { Duration::ZERO };
                let wait = 2 * srtt + delayed + super::timeout::TAIL_SLACK;
                if wait < rto {
                    self.timers.set(Timer::Tail, now + wait);
                } else {
                    self.timers.stop(Timer::Tail);
                }
            }
            _ => self.timers.stop(Timer::Tail),
        }
    }

    fn on_data(&mut self, now: Instant, seq: u32, payload: &[u8]) {
        self.stats.segs_recv += 1;
        self.stats.bytes_recv += payload.len() as u64;
        let next = self.input.next();
        let offset = to_offset(self.irs, next, seq);
        let end = offset + payload.len() as i64;
        let gap = !self.input.ahead().is_empty();
        let inserted = match u64::try_from(offset) {
            // A number below the first byte: the peer's keepalive.
            Err(_) => Inserted::Duplicate,
            Ok(_) if self.peer_fin.is_some_and(|fin| end > fin.offset as i64) => {
                self.stats.invalid += 1;
                return;
            }
            Ok(_) if self.phase == Phase::TimeWait => {
                // The peer has not heard our last acknowledgement; its FIN gets the same answer.
                self.respond_to_fin(now, false);
                return;
            }
            Ok(offset) => self.input.insert(offset, payload, RECEIVE_SLACK),
        };
        match inserted {
            Inserted::InOrder => self.on_in_order(now, next, gap),
            Inserted::OutOfOrder => {
                self.ack.on_urgent(now);
                if self.profile.wants_duplicate_acks {
                    self.ack.on_hole(next);
                }
            }
            Inserted::Duplicate => self.on_duplicate(now, offset, end),
            Inserted::Overrun => {
                self.stats.overrun += 1;
                self.ack.on_duplicate(now, self.duplicate_wait());
            }
        }
    }

    /// An official sender cuts its window on empty acknowledgements that say nothing new, so they come late and merged.
    fn duplicate_wait(&self) -> Duration {
        if self.profile.wants_duplicate_acks { self.cfg.ack_delay } else { Duration::ZERO }
    }

    fn on_in_order(&mut self, now: Instant, before: u64, gap: bool) {
        let rules = self.ack_rules();
        self.ack.on_in_order(now, &rules);
        if gap {
            // A gap has closed, wholly or in part: the sender waits to hear it.
            self.ack.on_urgent(now);
        }
        self.resume_unconfirmed = false;
        if let Some(fin) = &mut self.fin {
            // The peer is alive and still sending: do not take it for one that has forgotten us.
            fin.tries = 0;
        }
        if self.detached {
            self.input.discard();
        } else if !self.readable_reported {
            self.readable_reported = true;
            self.events.readable = true;
        }
        if !self.profile.zero_window_closes && self.hold.is_none() && self.input.free() < HOLD_BELOW {
            self.hold = Some(before);
            self.hold_repeats = 0;
        }
        if self.peer_fin.is_some() {
            self.check_peer_end(now);
        }
    }

    fn on_duplicate(&mut self, now: Instant, start: i64, end: i64) {
        if let Some(hold) = self.hold
            && start <= hold as i64
            && end > hold as i64
        {
            self.hold_repeats += 1;
            if self.hold_repeats >= HOLD_REPEATS {
                // Let this one go; the next segment takes its place as long as the slack lasts.
                self.hold_repeats = 0;
                self.hold = None;
            }
            self.ack.on_urgent(now);
            return;
        }
        self.ack.on_duplicate(now, self.duplicate_wait());
    }

    fn on_reset(&mut self, header: &Header) {
        match self.phase {
            Phase::SynSent => {
                // An official RST is all zero; ours names the SYN it refuses.
                if (header.seq == 0 && header.ack == 0) || header.ack == to_wire(self.isn, 0) {
                    self.terminate(CloseReason::Refused, false);
                } else {
                    self.stats.invalid += 1;
                }
            }
            Phase::Closed => {}
            _ => {
                let next = self.input.next();
                let offset = to_offset(self.irs, next, header.seq);
                let edge = self.advertised_edge.max(next + 1) as i64;
                let fits = offset >= next as i64 && offset <= edge;
                let official = !self.profile.reset_has_sequence && header.seq == 0 && header.ack == 0;
                if fits || official {
                    self.abandon(CloseReason::Reset);
                } else {
                    self.stats.invalid += 1;
                }
            }
        }
    }
}
