//! Streams: segments in, SYNs, and what applications do with connections.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::packet::{Flags, Header, Packet, protocol};
use rand::RngCore as _;

use super::conns::{Conn, Origin, Tuple};
use super::events::{ConnId, DialFailure, Ended, EndedHow, Event, RefusedReason, UnknownConn};
use super::gate::Proof;
use super::peers::Link;
use super::timers::Owner;
use super::{Endpoint, limits};
use crate::stream::{CloseReason, Connection, ReadError, State, StreamEvent, SynVerdict, WriteError};

/// A RST that could not leave for this long is pointless.
const RST_LIFE: Duration = Duration::from_secs(2);

/// Whether a direction of a connection can end alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HalfClose {
    /// It can.
    Yes,
    /// The peer is an official one: its end is the end of both directions.
    No,
    /// The peer is new and may still say what it can, within a second.
    Unknown,
}

/// The room of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Bytes that can be written now.
    pub writable: usize,
    /// Bytes that can be read now.
    pub readable: usize,
    /// Written bytes the peer has acknowledged.
    pub delivered: u64,
    /// Whether our direction can end alone.
    pub half_close: HalfClose,
}

impl Endpoint {
    /// Takes bytes to send; see [`WriteError`]. An unknown id answers like a connection reset by this side.
    ///
    /// # Errors
    /// [`WriteError::Blocked`] until [`StreamEvent::Writable`].
    pub fn write(&mut self, now: Instant, conn: ConnId, data: &[u8]) -> Result<usize, WriteError> {
        let gone = WriteError::Closed(CloseReason::Local);
        let slot = self.conns.by_id(conn).ok_or(gone)?;
        let written = self.conns.get_mut(slot).ok_or(gone)?.stream.write(now, data);
        self.service_conn(now, slot);
        written
    }

    /// Gives received bytes out; `Ok(0)` is the clean end. An unknown id answers like a connection reset by this side.
    ///
    /// # Errors
    /// [`ReadError::Blocked`] until [`StreamEvent::Readable`].
    pub fn read(&mut self, now: Instant, conn: ConnId, buf: &mut [u8]) -> Result<usize, ReadError> {
        let gone = ReadError::Closed(CloseReason::Local);
        let slot = self.conns.by_id(conn).ok_or(gone)?;
        let read = self.conns.get_mut(slot).ok_or(gone)?.stream.read(now, buf);
        self.service_conn(now, slot);
        read
    }

    fn with_conn(&mut self, now: Instant, conn: ConnId, act: impl FnOnce(&mut Conn)) -> Result<(), UnknownConn> {
        let slot = self.conns.by_id(conn).ok_or(UnknownConn(conn))?;
        act(self.conns.get_mut(slot).ok_or(UnknownConn(conn))?);
        self.service_conn(now, slot);
        Ok(())
    }

    /// Ends our direction: everything written is delivered, then the end.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn close(&mut self, now: Instant, conn: ConnId) -> Result<(), UnknownConn> {
        self.with_conn(now, conn, |c| c.stream.close(now))
    }

    /// Ends both directions at once with RST. A dial in progress fails as cancelled and frees its port.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn reset(&mut self, now: Instant, conn: ConnId) -> Result<(), UnknownConn> {
        let slot = self.conns.by_id(conn).ok_or(UnknownConn(conn))?;
        if self.conns.get(slot).is_some_and(|c| matches!(c.origin, Origin::Dialling(_))) {
            self.fail_dial(now, slot, DialFailure::Cancelled, String::new());
            return Ok(());
        }
        self.with_conn(now, conn, |c| c.stream.reset(now))
    }

    /// The application has gone: nobody will read or write any more. Written bytes are still delivered, then the
    /// connection ends and its id is free. **Every connection is kept until this is called**, except failed dials.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn release(&mut self, now: Instant, conn: ConnId) -> Result<(), UnknownConn> {
        let slot = self.conns.by_id(conn).ok_or(UnknownConn(conn))?;
        if self.conns.get(slot).is_some_and(|c| matches!(c.origin, Origin::Dialling(_))) {
            self.fail_dial(now, slot, DialFailure::Cancelled, String::new());
            return Ok(());
        }
        self.with_conn(now, conn, |c| {
            c.released = true;
            c.stream.detach(now);
        })
    }

    /// The application wants no more of the connection, but to hear how it ends: as [`Endpoint::release`], which still
    /// has to follow.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn detach(&mut self, now: Instant, conn: ConnId) -> Result<(), UnknownConn> {
        self.with_conn(now, conn, |c| c.stream.detach(now))
    }

    /// How much fits into the connection now, and how much has arrived; `None` for an unknown id.
    pub fn flow(&self, conn: ConnId) -> Option<Flow> {
        let conn = self.conns.get(self.conns.by_id(conn)?)?;
        let greets = self.peers.get(conn.peer).and_then(|peer| peer.tunnel()).is_some_and(|tunnel| tunnel.may_greet());
        let half_close = match conn.stream.profile().half_close {
            true => HalfClose::Yes,
            false if greets => HalfClose::Unknown,
            false => HalfClose::No,
        };
        Some(Flow {
            writable: conn.stream.writable(),
            readable: conn.stream.readable(),
            delivered: conn.stream.delivered(),
            half_close,
        })
    }

    /// Asks for [`StreamEvent::Writable`] once `bytes` can be written.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn watch_writable(&mut self, now: Instant, conn: ConnId, bytes: usize) -> Result<(), UnknownConn> {
        self.with_conn(now, conn, |c| c.stream.watch_writable(bytes))
    }

    /// Asks for [`StreamEvent::Delivered`] once the peer has acknowledged `offset` bytes.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn watch_delivered(&mut self, now: Instant, conn: ConnId, offset: u64) -> Result<(), UnknownConn> {
        self.with_conn(now, conn, |c| c.stream.watch_delivered(offset))
    }

    /// Whether small writes leave at once.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn set_nodelay(&mut self, now: Instant, conn: ConnId, nodelay: bool) -> Result<(), UnknownConn> {
        self.with_conn(now, conn, |c| c.stream.set_nodelay(nodelay))
    }

    /// Accepts no more streams on `port`; accepted ones live on. Returns whether it was bound.
    pub fn unbind(&mut self, now: Instant, port: u16) -> bool {
        let half_open: Vec<usize> = self
            .conns
            .iter()
            .filter(|(_, c)| c.tuple.local_port == port && matches!(c.origin, Origin::HalfOpen { .. }))
            .map(|(slot, _)| slot)
            .collect();
        for slot in half_open {
            if let Some(conn) = self.conns.get_mut(slot) {
                conn.stream.reset(now);
            }
            self.service_conn(now, slot);
        }
        self.ports.unbind(port)
    }

    /// A stream packet of a peer.
    pub(super) fn handle_segment(&mut self, now: Instant, slot: usize, packet: &Packet<'_>) {
        let Some(peer) = self.peers.get(slot) else { return };
        let h = &packet.header;
        let tuple = Tuple { node: peer.node, remote_port: h.src.port, local_port: h.dst.port };
        let opens = h.flags.contains(Flags::SYN) && !h.flags.contains(Flags::ACK);
        match self.conns.by_tuple(&tuple) {
            Some(at) => {
                let Some(conn) = self.conns.get_mut(at) else { return };
                if opens && conn.stream.classify_syn(now, h) == SynVerdict::Restart {
                    conn.stream.abandon(CloseReason::PeerRestarted);
                    self.conns.vacate(at);
                    self.service_conn(now, at);
                    self.handle_syn(now, slot, h, tuple);
                    return;
                }
                conn.stream.handle_segment(now, h, packet.payload);
                self.service_conn(now, at);
            }
            None if opens => self.handle_syn(now, slot, h, tuple),
            None => self.handle_stray(now, slot, h, packet.payload),
        }
    }

    /// How a peer has proven who it is; `None` before a frame opened under a key bound to an identity.
    pub(super) fn proof(&self, slot: usize) -> Option<Proof> {
        match &self.peers.get(slot)?.link {
            Link::Tunnel(tunnel) => tunnel.peer_key().map(Proof::Key),
            Link::Plain => Some(Proof::Claimed),
            Link::Own => Some(Proof::Key(self.identity.public_key())),
        }
    }

    fn is_own(&self, slot: usize) -> bool {
        self.peers.get(slot).is_some_and(|p| matches!(p.link, Link::Own))
    }

    /// Whether the peer may reach `port`. A refusal is counted and told.
    pub(super) fn passes_gate(&mut self, now: Instant, slot: usize, packet: &Packet<'_>) -> bool {
        if self.is_own(slot) {
            return true;
        }
        let Some(node) = self.peers.get(slot).map(|p| p.node) else { return false };
        let Some(proof) = self.proof(slot) else { return false };
        let (port, remote_port) = (packet.header.dst.port, packet.header.src.port);
        match self.gate.check(now, node, proof, port) {
            Ok(()) => true,
            // It may share a network with us: the packet waits for the registry's word on that.
            Err(_) if self.ask_membership(now, node, proof, packet) => false,
            Err(reason) => {
                self.counters.refused += 1;
                self.refused(now, node, (port, remote_port), reason);
                false
            }
        }
    }

    fn refused(&mut self, now: Instant, node: u32, (port, remote_port): (u16, u16), reason: RefusedReason) {
        if self.refused_once.pass(now, (node, port)) {
            self.notice(Event::Refused { node, port, remote_port, reason });
        }
    }

    /// A SYN for no connection, in the order of 02 §10 and §29.15: the gate, the port, the sender's own rate, the common
    /// rate, the tables.
    fn handle_syn(&mut self, now: Instant, slot: usize, syn: &Header, tuple: Tuple) {
        let port = syn.dst.port;
        if !self.passes_gate(now, slot, &Packet { header: *syn, payload: &[] }) {
            return;
        }
        let node = tuple.node;
        if !self.ports.is_bound(port) {
            self.send_rst(now, slot, syn, 0);
            return;
        }
        let admitted = self.is_own(slot) || self.proof(slot).is_some_and(|p| self.gate.admits(now, node, p));
        let within = if admitted {
            self.syn_admitted.take(now, node)
        } else {
            self.syn_by_node.take(now, node)
                && self.syn_global.take(now, limits::Rate::of_syns(self.limits.syn_rate))
                && self.conns.half_open < self.limits.half_open
        };
        if !within {
            self.counters.syn_limited += 1;
            self.refused(now, node, (port, tuple.remote_port), RefusedReason::SynLimit);
            return;
        }
        if self.conns.len() >= self.limits.connections
            || self.ports.connections(port) >= self.limits.connections_per_port
        {
            self.counters.syn_limited += 1;
            self.refused(now, node, (port, tuple.remote_port), RefusedReason::ConnectionLimit);
            self.send_rst(now, slot, syn, 0);
            return;
        }
        let isn = self.initial_sequence();
        let segment_limit = self.segment_limit(now, slot);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let (local, remote) = (syn.dst, syn.src);
        let mut stream =
            Connection::accept(now, &Arc::clone(&self.stream_config), peer.profile, local, remote, syn, isn);
        stream.set_segment_limit(segment_limit);
        peer.conns += 1;
        self.ports.connection_opened(port);
        let at = self.conns.insert(|id| Conn {
            id,
            stream,
            peer: slot,
            tuple,
            local,
            remote,
            origin: Origin::HalfOpen { admitted },
            opened: now,
            end_told: false,
            released: false,
            counted: true,
            ready: false,
            armed: None,
        });
        self.service_conn(now, at);
    }

    /// Random, below 2^31: some comparisons of old peers do not wrap (02 §27.4).
    pub(super) fn initial_sequence(&mut self) -> u32 {
        self.rng.next_u32() >> 1
    }

    /// A segment of a connection we do not have. Data and SYN|ACK are answered with RST, so that the peer learns of our
    /// restart or cancelled dial; anything else may be the end of a connection that both sides finished.
    fn handle_stray(&mut self, now: Instant, slot: usize, h: &Header, payload: &[u8]) {
        self.counters.stray_segments += 1;
        if h.flags.contains(Flags::RST) || h.flags.contains(Flags::FIN) {
            return;
        }
        let answers_syn = h.flags.contains(Flags::SYN);
        let known = self.is_own(slot)
            || self
                .peers
                .get(slot)
                .map(|p| p.node)
                .is_some_and(|node| self.proof(slot).is_some_and(|p| self.gate.admits(now, node, p)));
        if answers_syn || (known && !payload.is_empty()) {
            self.send_rst(now, slot, h, h.ack);
        }
    }

    /// RST to a peer past the gate. Official daemons take one without numbers; ours look for the sequence number.
    fn send_rst(&mut self, now: Instant, slot: usize, about: &Header, seq: u32) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if !peer.rst.take(now, limits::RST_PER_NODE) {
            return;
        }
        let mut rst = Header::new(protocol::STREAM, Flags::RST, about.dst, about.src);
        rst.seq = seq;
        rst.ack = about.seq.wrapping_add(1);
        self.send_packet(now, slot, &rst, &[], None, false, RST_LIFE);
    }

    /// After anything happened to a connection: its events, its deadline, its place among those with packets.
    pub(super) fn service_conn(&mut self, now: Instant, slot: usize) {
        while let Some(event) = self.conns.get_mut(slot).and_then(|c| c.stream.poll_event()) {
            self.conn_event(now, slot, event);
        }
        let Some(conn) = self.conns.get_mut(slot) else { return };
        if conn.counted && matches!(conn.stream.state(), State::TimeWait | State::Closed) {
            conn.counted = false;
            if !matches!(conn.origin, Origin::Dialling(_) | Origin::Dialled) {
                self.ports.connection_gone(conn.tuple.local_port);
            }
        }
        if conn.released && conn.stream.is_forgotten() {
            self.remove_conn(slot);
            return;
        }
        let deadline = conn.stream.poll_timeout();
        let (peer, at) = (conn.peer, slot);
        self.timers.arm(Owner::Conn(at), &mut conn.armed, deadline);
        if !conn.ready {
            conn.ready = true;
            if let Some(peer) = self.peers.get_mut(peer) {
                peer.ready_conns.push_back(at);
            }
        }
        self.mark_ready(peer);
    }

    fn conn_event(&mut self, now: Instant, slot: usize, event: StreamEvent) {
        let Some(conn) = self.conns.get_mut(slot) else { return };
        let id = conn.id;
        match (conn.origin, event) {
            (Origin::Dialling(_), StreamEvent::Connected) => {
                conn.origin = Origin::Dialled;
                let peer = conn.peer;
                if let Some(peer) = self.peers.get_mut(peer) {
                    peer.syn_answered = Some(now);
                    peer.dialling.retain(|&s| s != slot);
                }
                self.events.push_back(Event::Stream { conn: id, event });
            }
            (Origin::Dialling(_), StreamEvent::Closed(reason)) => {
                if matches!(reason, CloseReason::Refused | CloseReason::Reset) {
                    self.account_for_end(now, slot, event);
                }
                let failure = match reason {
                    CloseReason::Refused | CloseReason::Reset => DialFailure::Refused,
                    CloseReason::Local | CloseReason::TrustRevoked => DialFailure::Cancelled,
                    _ => self.timed_out_why(slot),
                };
                self.fail_dial(now, slot, failure, String::new());
            }
            (Origin::HalfOpen { .. }, StreamEvent::Connected) => {
                let was = conn.origin;
                conn.origin = Origin::Accepted;
                let (port, remote, local) = (conn.tuple.local_port, conn.remote, conn.local);
                self.conns.leave_half_open(was);
                self.events.push_back(Event::Accepted { conn: id, port, remote, local });
            }
            (Origin::HalfOpen { .. }, StreamEvent::Closed(_)) => conn.released = true,
            (Origin::HalfOpen { .. } | Origin::Dialling(_), _) => {}
            (Origin::Dialled | Origin::Accepted, _) => {
                self.events.push_back(Event::Stream { conn: id, event });
                self.account_for_end(now, slot, event);
            }
        }
    }

    /// Raises the one event that tells of a connection's end: at the peer's orderly end, or when all is over.
    fn account_for_end(&mut self, now: Instant, slot: usize, event: StreamEvent) {
        let Some(conn) = self.conns.get_mut(slot).filter(|conn| !conn.end_told) else { return };
        let peer_first = conn.stream.ended_by_peer_first();
        let how = match event {
            StreamEvent::Finished if peer_first => EndedHow::FinByPeer,
            StreamEvent::Closed(reason) => EndedHow::of(reason, peer_first),
            _ => return,
        };
        conn.end_told = true;
        let ended = Ended {
            conn: conn.id,
            local: conn.local,
            remote: conn.remote,
            how,
            stats: conn.stream.stats(),
            lasted: now.saturating_duration_since(conn.opened),
        };
        self.notice(Event::Ended(Box::new(ended)));
    }

    /// Takes a connection out of every table.
    pub(super) fn remove_conn(&mut self, slot: usize) {
        let Some(mut conn) = self.conns.remove(slot) else { return };
        self.timers.disarm(Owner::Conn(slot), &mut conn.armed);
        self.ended.add(&conn);
        if conn.counted && !matches!(conn.origin, Origin::Dialling(_) | Origin::Dialled) {
            self.ports.connection_gone(conn.tuple.local_port);
        }
        if let Some(peer) = self.peers.get_mut(conn.peer) {
            peer.conns = peer.conns.saturating_sub(1);
            if conn.ready {
                peer.ready_conns.retain(|&s| s != slot);
            }
            peer.dialling.retain(|&s| s != slot);
        }
    }

    /// Resets the connections the peer opened and would not be allowed to open any more, and those we opened to it.
    pub(super) fn reset_disallowed(&mut self, now: Instant, node: u32) {
        let Some(peer) = self.peers.find(node) else { return };
        for slot in self.conns.of_peer(peer) {
            let Some(conn) = self.conns.get_mut(slot) else { continue };
            let port = match conn.origin {
                Origin::Accepted | Origin::HalfOpen { .. } => conn.tuple.local_port,
                // Our own handshake with a node we no longer trust goes on; everything else to it ends.
                Origin::Dialled | Origin::Dialling(_) => conn.tuple.remote_port,
            };
            let allowed = self.proof(peer).is_some_and(|p| self.gate.check(now, node, p, port).is_ok());
            if allowed {
                continue;
            }
            if let Some(conn) = self.conns.get_mut(slot) {
                conn.stream.break_off(now, CloseReason::TrustRevoked);
            }
            self.service_conn(now, slot);
        }
    }
}
