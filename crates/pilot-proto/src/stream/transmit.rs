//! What leaves, in which order (02 §5, §13, §27).

use std::time::Instant;

use pilot_wire::packet::{Flags, Header, finish_checksum, protocol};
use pilot_wire::sack::{Block, Blocks, MAGIC, MAX_BLOCKS};

use super::connection::{Connection, Phase};
use super::seq::to_wire;
use super::timers::Timer;
use crate::profile::{WINDOW_UNIT, WindowUnit};

/// Most segment records per connection, so that a stream of single bytes costs bounded memory (48 bytes each); further
/// small writes coalesce.
const MAX_RECORDS: usize = 16 * 1024;

impl Connection {
    /// Appends exactly one complete packet to `out`, or nothing. `true` means that there may be more.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        if let Some(seq) = self.due.reset.take() {
            self.emit(Flags::RST, seq, 0, 0, out);
            return true;
        }
        match self.phase {
            Phase::Closed => false,
            Phase::SynSent => {
                if !std::mem::take(&mut self.due.syn) {
                    return false;
                }
                if self.syns_sent == 0 {
                    self.syn_sent_at = now;
                }
                self.syns_sent += 1;
                let window = self.window_field();
                self.emit(Flags::SYN, self.isn, 0, window, out);
                true
            }
            Phase::SynReceived => self.transmit_syn_ack(out),
            Phase::Open => self.transmit_open(now, out),
            Phase::TimeWait => self.transmit_fin(now, out) || self.transmit_ack(now, out),
        }
    }

    /// Always with the original numbers (02 §27.4).
    fn transmit_syn_ack(&mut self, out: &mut Vec<u8>) -> bool {
        if !std::mem::take(&mut self.due.syn_ack) {
            return false;
        }
        let window = self.window_field();
        self.emit(Flags::SYN | Flags::ACK, self.isn, to_wire(self.irs, 0), window, out);
        true
    }

    fn transmit_open(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        if self.transmit_syn_ack(out) {
            return true;
        }
        // Ranges cannot ride on data, so they go first.
        let ranges = self.hold.is_some() || !self.input.ahead().is_empty();
        if ranges && self.ack.is_due(now) {
            self.emit_ranges(now, out);
            return true;
        }
        if self.ack.take_duplicate() {
            self.emit_ack(now, 0, out);
            return true;
        }
        (self.board.has_lost() && self.transmit_repeat(now, out))
            || self.transmit_fresh(now, out)
            || self.transmit_fin(now, out)
            || self.transmit_ack(now, out)
            || self.transmit_keepalive(now, out)
    }

    /// Whether the pacer lets a segment go.
    fn paced(&mut self, now: Instant) -> bool {
        if !self.cfg.pacing || self.due.forced {
            return true;
        }
        let ramping = self.congestion.in_slow_start();
        match self.pacer.check(now, self.rtt.smoothed(), self.congestion.window(), ramping) {
            Ok(()) => true,
            Err(at) => {
                self.timers.set(Timer::Pace, at);
                self.window_limited = self.nxt;
                false
            }
        }
    }

    /// Whether the congestion window has room for `len` bytes.
    fn congestion_allows(&mut self, len: usize) -> bool {
        let in_flight = self.board.in_flight();
        if self.due.forced || in_flight == 0 || in_flight + len as u64 <= self.congestion.window() {
            return true;
        }
        self.window_limited = self.nxt;
        false
    }

    /// One lost segment again.
    fn transmit_repeat(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        let Some((offset, len)) = self.board.next_lost() else {
            return false;
        };
        if !self.congestion_allows(len) || !self.paced(now) {
            return false;
        }
        let limit = if self.profile.fixed_boundaries {
            len
        } else if self.looks_like_ranges(offset, len) {
            1
        } else {
            self.segment_limit()
        };
        let len = self.board.on_repeated(now, offset, limit);
        self.due.forced = false;
        if self.in_recovery {
            self.stats.fast_retx += 1;
        } else {
            self.stats.retransmits += 1;
        }
        if !self.timers.is_set(Timer::Rto) {
            self.timers.set(Timer::Rto, now + self.rtt.rto());
        }
        #[cfg(feature = "planted-bugs")]
        if self.planted(super::PlantedBug::RetransmissionForgotten) && offset % 7 == 3 {
            return true;
        }
        self.emit_data(now, offset, len, out);
        true
    }

    /// One segment never sent before.
    fn transmit_fresh(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        let unsent = (self.output.end() - self.nxt) as usize;
        if unsent == 0 || self.fin.is_some() {
            return false;
        }
        let limit = self.segment_limit();
        let window = self.window_room();
        let mut len = unsent.min(limit).min(window);
        if len == 0 {
            if std::mem::take(&mut self.due.window_probe) {
                len = 1;
            } else {
                self.await_window(now);
                return false;
            }
        } else if len < limit && len < unsent && !self.board.is_empty() {
            // The window cuts the segment short; what comes back soon makes it whole (RFC 9293 §3.8.6.2.1).
            return false;
        }
        if len < limit
            && !self.nodelay
            && !self.closing
            && !self.due.small_write
            && len == unsent
            && self.board.has_short(limit)
        {
            if !self.timers.is_set(Timer::Nagle) {
                self.timers.set(Timer::Nagle, now + self.cfg.nagle_hold);
            }
            return false;
        }
        if !self.congestion_allows(len) || !self.paced(now) {
            return false;
        }
        if self.looks_like_ranges(self.nxt, len) {
            len = 1;
        }
        let first = self.board.is_empty();
        if first {
            self.last_progress = now;
            let idle = now.saturating_duration_since(self.last_sent);
            if idle > self.rtt.rto() {
                self.congestion.on_idle(now, idle);
            }
        }
        let offset = self.nxt;
        self.board.on_sent(now, offset, len);
        self.nxt += len as u64;
        self.due.forced = false;
        self.due.small_write &= self.nxt < self.output.end();
        self.timers.stop(Timer::Nagle);
        self.stats.segs_sent += 1;
        self.stats.bytes_sent += len as u64;
        if first || !self.timers.is_set(Timer::Rto) || !self.tail_probed {
            let rto = self.timers.get(Timer::Rto);
            self.restart_timers(now);
            if let (false, Some(rto)) = (first, rto) {
                // Sending more does not put the time-out of what is already under way off (RFC 6298 §5.1).
                self.timers.set(Timer::Rto, rto);
            }
        }
        self.emit_data(now, offset, len, out);
        true
    }

    /// Bytes the peer's window allows beyond what was sent.
    fn window_room(&self) -> usize {
        #[cfg(feature = "planted-bugs")]
        if self.planted(super::PlantedBug::WindowOverrun) {
            return usize::MAX;
        }
        if self.board.len() >= self.profile.segments_in_flight.min(MAX_RECORDS) {
            return 0;
        }
        match self.profile.window_unit {
            WindowUnit::Segments if self.board.len() >= usize::from(self.peer_window) => 0,
            WindowUnit::Segments => usize::MAX,
            WindowUnit::Bytes => self.send_edge.saturating_sub(self.nxt).try_into().unwrap_or(usize::MAX),
        }
    }

    /// The window is closed. With nothing under way only a probe can find out that it has opened.
    fn await_window(&mut self, now: Instant) {
        if !self.board.is_empty() || self.timers.is_set(Timer::Persist) {
            return;
        }
        if self.window_probes == 0 {
            self.last_progress = now;
        }
        let pause = self.cfg.probe_interval * (1 << self.window_probes.min(16));
        self.timers.set(Timer::Persist, now + pause.min(self.cfg.probe_interval_max));
    }

    /// Whether the `len` bytes at `offset` would be taken for a list of ranges; if so, one byte goes alone (02 §27.3).
    fn looks_like_ranges(&self, offset: u64, len: usize) -> bool {
        const LONGEST: usize = 5 + 8 * MAX_BLOCKS;
        let (a, b) = self.output.slices(offset, len.min(LONGEST));
        if a.first() != MAGIC.first() {
            return false;
        }
        let mut head = [0; LONGEST];
        head[..a.len()].copy_from_slice(a);
        head[a.len()..a.len() + b.len()].copy_from_slice(b);
        Blocks::parse_lenient(&head[..a.len() + b.len()]).is_some()
    }

    fn transmit_ack(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        let due = self.ack.is_due(now);
        if due {
            self.emit_ack(now, 0, out);
        }
        due
    }

    fn transmit_keepalive(&mut self, now: Instant, out: &mut Vec<u8>) -> bool {
        if std::mem::take(&mut self.due.keepalive) {
            // One byte below everything acknowledged: every peer drops it and acknowledges.
            let seq = to_wire(self.isn, self.nxt).wrapping_sub(1);
            let start = out.len();
            if self.begin(Flags::ACK, seq, 1, out) {
                out.push(0);
                finish_checksum(&mut out[start..]);
            }
            self.acknowledged(now);
            return true;
        }
        if std::mem::take(&mut self.due.keepalive_answer) {
            // One too low, so that it does not count as a duplicate (02 §27.10).
            self.emit_ack(now, 1, out);
            return true;
        }
        false
    }

    /// The cumulative acknowledgement on the wire.
    pub(super) fn ack_number(&self) -> u32 {
        #[cfg(feature = "planted-bugs")]
        if self.planted(super::PlantedBug::AckBeyondReceived)
            && let Some(range) = self.input.ahead().as_slice().last()
        {
            return to_wire(self.irs, range.1);
        }
        let offset = self.hold.unwrap_or(self.input.next());
        // Without half-close a FIN is acknowledged by FIN|ACK only: the peer repeats it until then.
        let fin = self.end_reached && !self.ended_by_peer();
        to_wire(self.irs, offset + u64::from(fin))
    }

    /// The window to advertise: whole units of the free part of the receive buffer. An official sender takes 0 for
    /// unlimited and never gets it (02 §27.7).
    pub(super) fn window_field(&mut self) -> u16 {
        let units = (self.input.free() / WINDOW_UNIT).min(usize::from(u16::MAX)) as u16;
        let units = if self.profile.zero_window_closes { units } else { units.max(1) };
        let edge = self.hold.unwrap_or(self.input.next()) + u64::from(units) * WINDOW_UNIT as u64;
        self.advertised_edge = self.advertised_edge.max(edge);
        units
    }

    /// A packet that carries the acknowledgement number has left.
    fn acknowledged(&mut self, now: Instant) {
        self.ack.on_sent();
        self.last_sent = now;
    }

    /// Appends the header of a packet with the current acknowledgement and window.
    fn begin(&mut self, flags: Flags, seq: u32, len: usize, out: &mut Vec<u8>) -> bool {
        let mut h = Header::new(protocol::STREAM, flags, self.local, self.remote);
        h.seq = seq;
        h.ack = self.ack_number();
        h.window = self.window_field();
        // Fails only above 65,535 bytes; segments are cut at `segment_limit`, which the profile keeps below.
        h.begin(len, out).is_ok()
    }

    fn emit_data(&mut self, now: Instant, offset: u64, len: usize, out: &mut Vec<u8>) {
        let start = out.len();
        if !self.begin(Flags::ACK, to_wire(self.isn, offset), len, out) {
            return;
        }
        let (a, b) = self.output.slices(offset, len);
        out.extend_from_slice(a);
        out.extend_from_slice(b);
        finish_checksum(&mut out[start..]);
        self.pacer.on_sent(len);
        self.acknowledged(now);
    }

    /// A pure ACK whose number is `below` less than the current one.
    fn emit_ack(&mut self, now: Instant, below: u32, out: &mut Vec<u8>) {
        let ack = self.ack_number().wrapping_sub(below);
        let window = self.window_field();
        self.emit(Flags::ACK, to_wire(self.isn, self.nxt), ack, window, out);
        self.acknowledged(now);
    }

    /// An ACK with the ranges received out of order.
    fn emit_ranges(&mut self, now: Instant, out: &mut Vec<u8>) {
        let mut blocks = [Block::default(); MAX_BLOCKS];
        let mut n = 0;
        let mut add = |(left, right): (u64, u64)| {
            let block = Block { left: to_wire(self.irs, left), right: to_wire(self.irs, right) };
            if n < MAX_BLOCKS && !blocks[..n].contains(&block) {
                blocks[n] = block;
                n += 1;
            }
        };
        if let Some(hold) = self.hold {
            add((hold, self.input.next()));
        }
        if self.profile.recent_sack_first
            && let Some(range) = self.input.recent()
        {
            add(range);
        }
        self.input.ahead().as_slice().iter().take(MAX_BLOCKS).copied().for_each(&mut add);
        self.stats.sack_sent += n as u64;
        let list = Blocks::from_slice(&blocks[..n]);
        let start = out.len();
        if self.begin(Flags::ACK, to_wire(self.isn, self.nxt), 5 + 8 * n, out) {
            list.emit(out);
            finish_checksum(&mut out[start..]);
        }
        self.acknowledged(now);
    }

    /// A packet without payload.
    pub(super) fn emit(&mut self, flags: Flags, seq: u32, ack: u32, window: u16, out: &mut Vec<u8>) {
        let mut h = Header::new(protocol::STREAM, flags, self.local, self.remote);
        (h.seq, h.ack, h.window) = (seq, ack, window);
        let start = out.len();
        if h.begin(0, out).is_ok() {
            finish_checksum(&mut out[start..]);
        }
    }
}
