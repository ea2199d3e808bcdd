//! One end of one stream: its state and the methods an owner calls. What packets and timers do to it is in the sibling
//! files `handshake`, `receive`, `transmit`, `finish` and `timeout`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::addr::SocketAddress;
use pilot_wire::packet::Header;

use super::ack::{AckRules, AckState};
use super::assembler::Assembler;
use super::congestion::{Controller, Cubic};
use super::pacing::Pacer;
use super::rtt::RttEstimator;
use super::scoreboard::Scoreboard;
use super::send_buffer::SendBuffer;
use super::timers::{Timer, Timers};
use super::{CloseReason, ReadError, State, Stats, StreamConfig, StreamEvent, SynVerdict, WriteError};
use crate::profile::{PeerProfile, V1_MAX_SEGMENT, WINDOW_UNIT};

/// Bytes accepted beyond the receive buffer: official senders overshoot by a segment, and one that is held back still
/// sends small ones (02 §27.7).
pub(super) const RECEIVE_SLACK: usize = 64 * 1024;
/// With less room than this a sender that cannot be closed by a window of 0 is held back (02 §27.7).
pub(super) const HOLD_BELOW: usize = 2 * WINDOW_UNIT;
/// A SYN this long after the peer's first packet is still a late duplicate (02 §27.4: 1 to 2 s).
const LATE_SYN: Duration = Duration::from_secs(2);
/// Room that must be free in a full send buffer before the writer is woken, as a divisor of its size.
const WAKE_DIVISOR: usize = 4;

/// The coarse phase; [`State`] adds who has closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    SynSent,
    SynReceived,
    Open,
    TimeWait,
    Closed,
}

/// Our FIN, once sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct OwnFin {
    /// Carries no ACK bit: the form of the official daemons, which ends both directions.
    pub(super) plain: bool,
    pub(super) tries: u32,
    pub(super) acked: bool,
}

/// The peer's FIN.
#[derive(Clone, Copy, Debug)]
pub(super) struct PeerFin {
    /// Where the peer's data ends.
    pub(super) offset: u64,
    /// Without ACK bit.
    pub(super) plain: bool,
}

/// Events not yet polled, one flag each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Events {
    pub(super) connected: bool,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) delivered: bool,
    pub(super) finished: bool,
    pub(super) closed: bool,
}

/// What is to be sent besides data.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Due {
    pub(super) syn: bool,
    pub(super) syn_ack: bool,
    /// RST with this sequence number.
    pub(super) reset: Option<u32>,
    /// Our FIN again.
    pub(super) fin: bool,
    /// FIN|ACK for a FIN of the peer.
    pub(super) fin_answer: bool,
    /// One old byte, which every peer acknowledges.
    pub(super) keepalive: bool,
    /// A pure ACK with a number one too low (02 §27.10).
    pub(super) keepalive_answer: bool,
    /// One repeat or new segment regardless of the congestion window.
    pub(super) forced: bool,
    /// One byte regardless of the peer's window.
    pub(super) window_probe: bool,
    /// A held small write leaves.
    pub(super) small_write: bool,
}

/// One end of one stream. See the [module](super) for how to drive it.
#[derive(Debug)]
pub struct Connection {
    pub(super) cfg: Arc<StreamConfig>,
    pub(super) profile: PeerProfile,
    pub(super) local: SocketAddress,
    pub(super) remote: SocketAddress,
    pub(super) phase: Phase,
    /// Our initial sequence number.
    pub(super) isn: u32,
    /// The peer's; valid once its SYN has arrived.
    pub(super) irs: u32,
    pub(super) due: Due,
    pub(super) events: Events,
    pub(super) timers: Timers,
    pub(super) reason: Option<CloseReason>,
    pub(super) stats: Stats,

    // Handshake.
    pub(super) handshake_pause: Duration,
    pub(super) syns_sent: u32,
    pub(super) syn_sent_at: Instant,
    pub(super) stale_answers: u32,
    pub(super) established_at: Option<Instant>,

    // Sending.
    pub(super) output: SendBuffer,
    pub(super) board: Scoreboard,
    /// First byte not acknowledged.
    pub(super) una: u64,
    /// First byte not sent.
    pub(super) nxt: u64,
    /// Window field of the peer as received last.
    pub(super) peer_window: u16,
    /// First byte the peer's window does not cover, if it accounts bytes.
    pub(super) send_edge: u64,
    /// Sequence offset and acknowledgement of the packet that set the window.
    pub(super) window_set_by: (i64, u64),
    pub(super) rtt: RttEstimator,
    pub(super) congestion: Box<dyn Controller>,
    pub(super) pacer: Pacer,
    pub(super) in_recovery: bool,
    /// Recovery ends when this is acknowledged.
    pub(super) recovery_point: u64,
    /// Losses of transmissions before this one belong to an event already reacted to.
    pub(super) recovery_tx: u64,
    /// Bytes below this were sent while the congestion window held the sender back.
    pub(super) window_limited: u64,
    /// Largest payload the path carries.
    pub(super) path_limit: usize,
    pub(super) nodelay: bool,
    pub(super) tail_probed: bool,
    pub(super) window_probes: u32,
    /// The writer is to be told once this much fits.
    pub(super) wake_free: Option<usize>,
    /// The owner is to be told once everything below this is acknowledged.
    pub(super) wake_delivered: Option<u64>,
    /// When something was last acknowledged, or sent after everything had been.
    pub(super) last_progress: Instant,
    pub(super) last_heard: Instant,
    pub(super) last_sent: Instant,

    // Receiving.
    pub(super) input: Assembler,
    pub(super) ack: AckState,
    /// The cumulative acknowledgement stays here to hold a sender back (02 §27.7).
    pub(super) hold: Option<u64>,
    /// Times the held segment was repeated.
    pub(super) hold_repeats: u8,
    /// The advancing acknowledgement that ended a hold is not known to have arrived.
    pub(super) resume_unconfirmed: bool,
    /// First byte no window advertised so far covers.
    pub(super) advertised_edge: u64,
    pub(super) readable_reported: bool,

    // Closing.
    /// The application has closed its direction.
    pub(super) app_closed: bool,
    /// The application has gone.
    pub(super) detached: bool,
    /// Our direction is to end: the application closed, or the peer ended a connection without half-close.
    pub(super) closing: bool,
    /// When `closing` was set.
    pub(super) closing_since: Instant,
    pub(super) fin: Option<OwnFin>,
    pub(super) peer_fin: Option<PeerFin>,
    /// Every byte before the peer's FIN is here.
    pub(super) end_reached: bool,
    /// The peer's end has ended our direction, too.
    pub(super) ended_whole: bool,
    /// The peer's end came before ours.
    pub(super) peer_ended_first: bool,
    /// Some bytes of ours may not have arrived although the peer ended.
    pub(super) truncated: bool,
    /// FINs of the peer are answered no sooner than this; the pause doubles.
    pub(super) fin_quiet_until: Option<Instant>,
    pub(super) fin_pause: Duration,
}

impl Connection {
    fn new(
        now: Instant,
        cfg: &Arc<StreamConfig>,
        profile: PeerProfile,
        local: SocketAddress,
        remote: SocketAddress,
        isn: u32,
        phase: Phase,
    ) -> Self {
        let segment = profile.max_segment.min(V1_MAX_SEGMENT);
        let mut timers = Timers::new();
        timers.set(Timer::Handshake, now + cfg.handshake_rto);
        let limit = if phase == Phase::SynSent { cfg.dial_timeout } else { cfg.accept_timeout };
        timers.set(Timer::HandshakeLimit, now + limit);
        Self {
            profile,
            local,
            remote,
            phase,
            // Official SACK comparisons do not wrap; half the space keeps the first 2 GiB clear of it (02 §27.4).
            isn: isn & 0x7FFF_FFFF,
            irs: 0,
            due: Due { syn: phase == Phase::SynSent, syn_ack: phase == Phase::SynReceived, ..Due::default() },
            events: Events::default(),
            timers,
            reason: None,
            stats: Stats::default(),
            handshake_pause: cfg.handshake_rto,
            syns_sent: 0,
            syn_sent_at: now,
            stale_answers: 0,
            established_at: None,
            output: SendBuffer::new(cfg.send_buffer),
            board: Scoreboard::default(),
            una: 0,
            nxt: 0,
            peer_window: 0,
            send_edge: 0,
            window_set_by: (-1, 0),
            rtt: RttEstimator::new(cfg.initial_rto, cfg.min_rto, cfg.max_rto),
            congestion: Box::new(Cubic::new(segment, cfg.max_congestion_window)),
            pacer: Pacer::new(now),
            in_recovery: false,
            recovery_point: 0,
            recovery_tx: 0,
            window_limited: 0,
            path_limit: V1_MAX_SEGMENT,
            nodelay: cfg.nodelay,
            tail_probed: false,
            window_probes: 0,
            wake_free: None,
            wake_delivered: None,
            last_progress: now,
            last_heard: now,
            last_sent: now,
            input: Assembler::new(cfg.receive_buffer),
            ack: AckState::new(cfg.quick_acks),
            hold: None,
            hold_repeats: 0,
            resume_unconfirmed: false,
            advertised_edge: 0,
            readable_reported: false,
            app_closed: false,
            detached: false,
            closing: false,
            closing_since: now,
            fin: None,
            peer_fin: None,
            end_reached: false,
            ended_whole: false,
            peer_ended_first: false,
            truncated: false,
            fin_quiet_until: None,
            fin_pause: Duration::ZERO,
            cfg: cfg.clone(),
        }
    }

    /// Dials: a SYN is ready to be polled. `isn` is random; its top bit is ignored.
    pub fn dial(
        now: Instant,
        cfg: &Arc<StreamConfig>,
        profile: PeerProfile,
        local: SocketAddress,
        remote: SocketAddress,
        isn: u32,
    ) -> Self {
        Self::new(now, cfg, profile, local, remote, isn, Phase::SynSent)
    }

    /// Answers a SYN. `local` is the SYN's destination, network included (02 §27.16). The connection is for the
    /// application only from [`StreamEvent::Connected`] on.
    pub fn accept(
        now: Instant,
        cfg: &Arc<StreamConfig>,
        profile: PeerProfile,
        local: SocketAddress,
        remote: SocketAddress,
        syn: &Header,
        isn: u32,
    ) -> Self {
        let mut conn = Self::new(now, cfg, profile, local, remote, isn, Phase::SynReceived);
        conn.irs = syn.seq;
        conn.set_first_window(syn.window);
        conn
    }

    /// Appends as much of `data` to the stream as the send buffer holds and says how much. Zero only for empty `data`.
    /// Bytes written before the handshake is complete are queued.
    ///
    /// # Errors
    /// [`WriteError::Blocked`] when the buffer is full, the others when this direction is over.
    pub fn write(&mut self, _now: Instant, data: &[u8]) -> Result<usize, WriteError> {
        if self.app_closed {
            return Err(WriteError::Finished);
        }
        if let Some(reason) = self.reason {
            return Err(WriteError::Closed(reason));
        }
        if self.closing {
            return Err(WriteError::Closed(CloseReason::Clean));
        }
        let n = self.output.write(data);
        if n == 0 && !data.is_empty() {
            self.wake_free = Some(self.cfg.send_buffer / WAKE_DIVISOR);
            return Err(WriteError::Blocked);
        }
        Ok(n)
    }

    /// Copies received bytes into `buf`. `Ok(0)` is the orderly end of the peer's data (or an empty `buf`).
    ///
    /// # Errors
    /// [`ReadError::Blocked`] when nothing is there yet, [`ReadError::Closed`] after everything that did arrive has been
    /// read from a connection that broke.
    pub fn read(&mut self, now: Instant, buf: &mut [u8]) -> Result<usize, ReadError> {
        if buf.is_empty() {
            return Ok(0);
        }
        let n = self.input.read(buf);
        if n > 0 {
            self.after_read(now);
            return Ok(n);
        }
        self.readable_reported = false;
        if self.end_reached {
            return Ok(0);
        }
        match self.reason {
            None => Err(ReadError::Blocked),
            Some(CloseReason::Clean) => Ok(0),
            Some(reason) => Err(ReadError::Closed(reason)),
        }
    }

    /// Ends our direction in order: everything written is delivered, then the FIN. With a peer that knows no half-close
    /// (02 §9) this ends the other direction too, at what the peer has sent by then.
    pub fn close(&mut self, now: Instant) {
        self.app_closed = true;
        match self.phase {
            // Nothing was written, so nothing has to be delivered.
            Phase::SynSent if self.output.len() == 0 => self.terminate(CloseReason::Local, self.syns_sent > 0),
            Phase::SynSent | Phase::SynReceived | Phase::Open => self.begin_closing(now),
            Phase::TimeWait | Phase::Closed => {}
        }
    }

    /// Breaks the connection off with RST. What was received can still be read.
    pub fn reset(&mut self, now: Instant) {
        self.break_off(now, CloseReason::Local);
    }

    /// As [`Connection::reset`], for a reason of the owner's.
    pub fn break_off(&mut self, _now: Instant, reason: CloseReason) {
        self.app_closed = true;
        if self.reason.is_none() {
            self.terminate(reason, true);
        }
    }

    /// The application has gone: closes in order, throws incoming data away, and resets a peer that has not finished
    /// within [`StreamConfig::linger`]. The connection then goes by itself.
    pub fn detach(&mut self, now: Instant) {
        if self.detached {
            return;
        }
        self.close(now);
        self.detached = true;
        self.input.discard();
        if matches!(self.phase, Phase::SynSent | Phase::SynReceived | Phase::Open) {
            self.timers.set(Timer::Linger, now + self.cfg.linger);
        }
    }

    /// Whether small writes leave at once ([`StreamConfig::nodelay`]). Never blocks the writer either way.
    pub fn set_nodelay(&mut self, nodelay: bool) {
        self.nodelay = nodelay;
    }

    /// What the peer can do has become known, or has changed.
    pub fn set_profile(&mut self, now: Instant, profile: PeerProfile) {
        self.profile = profile;
        if profile.zero_window_closes && self.hold.take().is_some() {
            self.ack.on_urgent(now);
        }
        self.congestion.set_segment(self.segment_limit());
    }

    /// Largest payload the path carries in one packet, bytes; 1152 until told. The profile may be stricter.
    pub fn set_segment_limit(&mut self, limit: usize) {
        let limit = limit.max(1);
        if limit != self.path_limit {
            self.path_limit = limit;
            self.congestion.set_segment(self.segment_limit());
        }
    }

    /// Sends the SYN again now, for an owner that has found another path.
    pub fn retransmit_syn(&mut self, now: Instant) {
        if self.phase == Phase::SynSent {
            self.due.syn = true;
            self.timers.set(Timer::Handshake, now + self.handshake_pause);
        }
    }

    /// What a SYN for this pair of addresses and ports means. Asked before [`Connection::handle_segment`]; on
    /// [`SynVerdict::Restart`] the owner calls [`Connection::abandon`] and accepts anew (02 §27.4).
    pub fn classify_syn(&self, now: Instant, syn: &Header) -> SynVerdict {
        let fresh = self.established_at.is_none_or(|at| now.saturating_duration_since(at) < LATE_SYN);
        let repeat = match self.phase {
            Phase::SynSent => true,
            Phase::Closed => false,
            _ if syn.seq != self.irs => false,
            Phase::SynReceived => true,
            // An official dialler always starts at 0, so only time tells.
            Phase::Open => self.profile.random_isn || fresh,
            Phase::TimeWait => fresh,
        };
        if repeat { SynVerdict::Repeat } else { SynVerdict::Restart }
    }

    /// Ends the connection without a packet, because the peer is known to have forgotten it.
    pub fn abandon(&mut self, reason: CloseReason) {
        if self.reason.is_none() {
            self.terminate(reason, false);
        } else {
            self.phase = Phase::Closed;
            self.timers.stop_all();
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<StreamEvent> {
        let events = &mut self.events;
        for (flag, event) in [
            (&mut events.connected, StreamEvent::Connected),
            (&mut events.readable, StreamEvent::Readable),
            (&mut events.writable, StreamEvent::Writable),
            (&mut events.delivered, StreamEvent::Delivered),
            (&mut events.finished, StreamEvent::Finished),
        ] {
            if std::mem::take(flag) {
                return Some(event);
            }
        }
        if std::mem::take(&mut events.closed) {
            return self.reason.map(StreamEvent::Closed);
        }
        None
    }

    /// When [`Connection::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let ack = if self.phase == Phase::Closed { None } else { self.ack.due() };
        [self.timers.next(), ack].into_iter().flatten().min()
    }

    /// The state.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::SynSent => State::SynSent,
            Phase::SynReceived => State::SynReceived,
            Phase::Open if self.fin.is_some() => State::FinWait,
            Phase::Open if self.end_reached => State::CloseWait,
            Phase::Open => State::Established,
            Phase::TimeWait => State::TimeWait,
            Phase::Closed => State::Closed,
        }
    }

    /// The numbers of the status output.
    pub fn stats(&self) -> Stats {
        let srtt = self.rtt.smoothed().unwrap_or_default();
        Stats {
            cong_win: self.congestion.window(),
            ssthresh: self.congestion.threshold(),
            in_flight: self.board.in_flight(),
            srtt_ms: srtt.as_millis() as u64,
            srtt_us: srtt.as_micros() as u64,
            rttvar_ms: self.rtt.variation().as_millis() as u64,
            unacked: self.board.len() as u64,
            ooo_buf: self.input.ahead().len() as u64,
            peer_recv_win: u64::from(self.peer_window) * WINDOW_UNIT as u64,
            recv_win: self.advertised_edge.saturating_sub(self.input.next()),
            in_recovery: self.in_recovery,
            send_queue: self.output.len() as u64,
            recv_queue: self.input.unread() as u64,
            ..self.stats
        }
    }

    /// Whether the owner may drop the connection from its table: nothing will be sent, nothing is to be read.
    pub fn is_forgotten(&self) -> bool {
        self.phase == Phase::Closed
            && self.due.reset.is_none()
            && !self.events.closed
            && (self.detached || self.input.unread() == 0)
    }

    /// Whether the peer ended its direction before we ended ours. Meaningful from [`StreamEvent::Finished`] on.
    pub fn ended_by_peer_first(&self) -> bool {
        self.peer_ended_first
    }

    /// Why the connection ended, once it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.reason
    }

    /// Our address and port.
    pub fn local(&self) -> SocketAddress {
        self.local
    }

    /// The peer's address and port.
    pub fn remote(&self) -> SocketAddress {
        self.remote
    }

    /// What the peer can do, as known now.
    pub fn profile(&self) -> &PeerProfile {
        &self.profile
    }

    /// Bytes `read` can deliver now.
    pub fn readable(&self) -> usize {
        self.input.unread()
    }

    /// Bytes the peer has acknowledged: its daemon holds them in order.
    pub fn delivered(&self) -> u64 {
        self.una
    }

    /// Asks for [`StreamEvent::Writable`] once `bytes` fit into the send buffer (at once if they do, never if they are more
    /// than it holds). A later call, or a blocked write, replaces the question.
    pub fn watch_writable(&mut self, bytes: usize) {
        self.wake_free = Some(bytes);
        self.wake_writer();
    }

    /// Asks for [`StreamEvent::Delivered`] once [`Connection::delivered`] is at least `offset`. A later call replaces the
    /// question.
    pub fn watch_delivered(&mut self, offset: u64) {
        self.wake_delivered = Some(offset);
        self.wake_writer();
    }

    /// Bytes `write` can take now.
    pub fn writable(&self) -> usize {
        if self.closing || self.reason.is_some() { 0 } else { self.output.free() }
    }

    /// Largest payload of a new segment.
    pub(super) fn segment_limit(&self) -> usize {
        self.profile.max_segment.min(self.path_limit).max(1)
    }

    pub(super) fn ack_rules(&self) -> AckRules {
        AckRules { every: self.cfg.ack_every, delay: self.cfg.ack_delay, floor: self.profile.ack_floor }
    }

    /// Data was acknowledged: wakes a writer that waits for room, and an owner that waits for delivery.
    pub(super) fn wake_writer(&mut self) {
        if self.wake_free.is_some_and(|wanted| self.output.free() >= wanted) {
            self.wake_free = None;
            self.events.writable = true;
        }
        if self.wake_delivered.is_some_and(|offset| self.una >= offset) {
            self.wake_delivered = None;
            self.events.delivered = true;
        }
    }

    /// Reading made room: a held sender may go on, and a sender that listens to updates gets one when it is worth it.
    fn after_read(&mut self, now: Instant) {
        if self.input.unread() == 0 {
            self.readable_reported = false;
        }
        if self.phase != Phase::Open || self.end_reached {
            return;
        }
        let free = self.input.free();
        let good = self.cfg.receive_buffer / 4;
        if self.hold.is_some() {
            if free >= good {
                self.hold = None;
                self.hold_repeats = 0;
                self.resume_unconfirmed = true;
                self.ack.on_urgent(now);
            }
            return;
        }
        if self.profile.window_update_wakes {
            let edge = self.input.next() + free as u64;
            let left = self.advertised_edge.saturating_sub(self.input.next());
            if edge.saturating_sub(self.advertised_edge) >= good as u64 && left < 2 * good as u64 {
                self.ack.on_urgent(now);
            }
        }
    }

    /// The connection is over at once.
    pub(super) fn terminate(&mut self, reason: CloseReason, send_reset: bool) {
        self.phase = Phase::Closed;
        self.timers.stop_all();
        self.due = Due::default();
        if send_reset {
            self.due.reset = Some(super::seq::to_wire(self.isn, self.nxt));
        }
        self.ack.clear();
        self.output.clear();
        self.board.clear();
        if self.reason.is_none() {
            self.reason = Some(reason);
            self.events.closed = true;
        }
    }

    /// A defect planted by a test.
    #[cfg(feature = "planted-bugs")]
    pub(super) fn planted(&self, bug: super::PlantedBug) -> bool {
        self.cfg.planted == Some(bug)
    }
}
