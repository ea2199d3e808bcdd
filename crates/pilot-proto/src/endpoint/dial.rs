//! Dialling: getting a session, getting an answer to the SYN, and saying early what is wrong (02 §12, 07 §7, D3).
//!
//! A dial asks for the peer's key and endpoint, for a punch, and begins the key exchange, all at once. The SYN leaves when
//! the session stands. Behind each SYN goes a path probe: a peer that answers probes and not the SYN ignores us, which
//! most likely means that it does not trust us, and the dial ends within seconds instead of after the full time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::SocketAddress;

use super::conns::{Conn, Dial, Origin, Tuple};
use super::events::{ConnId, ConnectError, DialError, DialFailure, DirectoryCode, DirectoryFailure, Event, Tried};
use super::peers::Link;
use super::{Encryption, Endpoint};
use crate::path::PathAction;
use crate::stream::Connection;
use crate::tunnel::Failure;

/// A key exchange may take this long (07 §7).
pub(super) const KEY_WAIT: Duration = Duration::from_secs(10);
/// After this long without a key exchange, a peer may be spoken to in clear if the operator allows it (01 §23).
pub(super) const PLAIN_AFTER: Duration = Duration::from_secs(3);
/// Repeats of the punch request while there is no session (01 rule 17).
pub(super) const PUNCH_AGAIN: Duration = Duration::from_secs(1);
/// SYNs that must have been ignored, each with an answered probe behind it, before the dial is given up as untrusted.
const IGNORED_SYNS: u32 = 3;
/// Time since the first SYN before that: an official peer may be asking its registry about us meanwhile (07 §7).
const IGNORED_FOR: Duration = Duration::from_secs(3);
/// A peer that answered a SYN within this time trusts us; what is missing now is lost or rate-limited (07 §16 item 31).
const TRUST_SHOWN: Duration = Duration::from_secs(60);

impl Endpoint {
    /// Dials. [`Event::Stream`] with `Connected` or [`Event::DialFailed`] follows; data may be written at once.
    ///
    /// # Errors
    /// [`ConnectError`] when the dial cannot even start.
    pub fn connect(&mut self, now: Instant, dst: SocketAddress) -> Result<ConnId, ConnectError> {
        if self.node == 0 {
            return Err(ConnectError::NotRegistered(dst));
        }
        if dst.addr.node == 0 || dst.addr.is_broadcast() {
            return Err(ConnectError::InvalidAddress(dst));
        }
        if self.conns.len() >= self.limits.connections {
            return Err(ConnectError::TooManyConnections(dst, self.limits.connections));
        }
        let node = dst.addr.node;
        let slot = self.ensure_peer(now, node).ok_or(ConnectError::TooManyPeers(dst, self.limits.peers))?;
        let tuple = |local_port| Tuple { node, remote_port: dst.port, local_port };
        let conns = &self.conns;
        let local_port =
            self.ports.ephemeral(|p| conns.by_tuple(&tuple(p)).is_some()).ok_or(ConnectError::NoPort(dst))?;
        let local = SocketAddress::new(self.source_for(dst.addr), local_port);
        let isn = self.initial_sequence();
        let segment_limit = self.segment_limit(now, slot);
        let Some(peer) = self.peers.get_mut(slot) else { return Err(ConnectError::TooManyPeers(dst, 0)) };
        let mut stream = Connection::dial(now, &Arc::clone(&self.stream_config), peer.profile, local, dst, isn);
        stream.set_segment_limit(segment_limit);
        peer.conns += 1;
        peer.used = Some(now);
        let at = self.conns.insert(|id| Conn {
            id,
            stream,
            peer: slot,
            tuple: tuple(local_port),
            local,
            remote: dst,
            origin: Origin::Dialling(Dial { started: now, first_syn: None, last_syn: None, syns: 0, ignored: 0 }),
            opened: now,
            end_told: false,
            released: false,
            counted: false,
            ready: false,
            armed: None,
        });
        let id = self.conns.get(at).map_or(ConnId(0), |c| c.id);
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.dialling.push(at);
        }
        self.gate.open_reply_window(now, node);
        self.want_session(now, slot);
        self.service_conn(now, at);
        Ok(id)
    }

    /// Begins whatever is missing to speak to a peer.
    pub(super) fn want_session(&mut self, now: Instant, slot: usize) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if matches!(peer.link, Link::Own) {
            return;
        }
        let node = peer.node;
        let secure = match &mut peer.link {
            Link::Tunnel(tunnel) if tunnel.can_seal() => true,
            Link::Tunnel(tunnel) => {
                tunnel.start(now);
                false
            }
            _ => false,
        };
        let needs_key = self.encrypt != Encryption::Off && !secure && self.expected_key(node).is_none();
        if needs_key && !self.need_key(now, slot, node) {
            return;
        }
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if !secure {
            peer.want_since.get_or_insert(now);
        }
        // Nothing proven yet: look for every way at once.
        if peer.path.proven_direct().is_none() && !peer.path.is_relay() {
            self.seek(now, slot);
        }
        self.service_peer(now, slot);
    }

    /// Asks for a key we lack. Where the registry refused it a moment ago the dials of the peer end at once.
    fn need_key(&mut self, now: Instant, slot: usize, node: u32) -> bool {
        self.ask_key(now, node, None, true);
        let failed = self.lookups.peek(&node).filter(|l| l.asked.is_none()).and_then(|l| l.failed.clone());
        match failed {
            Some((_, failure)) => {
                self.fail_dials(now, slot, directory_failure(failure.code), &failure.text);
                false
            }
            None => true,
        }
    }

    /// Asks the registry where the peer is and the beacon for a punch.
    pub(super) fn seek(&mut self, now: Instant, slot: usize) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let node = peer.node;
        if self.beacon.addr().is_some() {
            self.beacon.request_punch(node);
            peer.punched = true;
        }
        if peer.path.wants_resolve(now) {
            self.ask_endpoint(now, slot);
        }
    }

    pub(super) fn ask_endpoint(&mut self, now: Instant, slot: usize) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.path.resolve_asked(now);
        let node = peer.node;
        self.events.push_back(Event::NeedEndpoint { node });
    }

    /// Answers [`Event::NeedEndpoint`]. An empty list means: by relay only.
    pub fn handle_resolved(
        &mut self,
        now: Instant,
        node: u32,
        answer: Result<Vec<std::net::SocketAddr>, DirectoryFailure>,
    ) {
        let Some(slot) = self.peers.find(node) else { return };
        match answer {
            Ok(addrs) => {
                let beacon = self.beacon.addr();
                let Some(peer) = self.peers.get_mut(slot) else { return };
                peer.resolved = true;
                let before = peer.path.direct_targets();
                peer.path.on_resolved(now, &addrs, beacon);
                let new: Vec<_> = peer.path.direct_targets().into_iter().filter(|a| !before.contains(a)).collect();
                self.new_candidates(now, slot, &new);
            }
            Err(failure) => {
                let trusted = self.gate.is_trusted(node);
                let Some(peer) = self.peers.get(slot) else { return };
                let reachable = peer.can_send() || peer.path.last_opened().is_some();
                // A trusted node may be reached by relay even where the registry does not tell its address, and a
                // registry that is down says nothing about the node.
                let by_relay = self.beacon.addr().is_some() && (trusted || failure.code == DirectoryCode::Unavailable);
                let by_direct = !peer.path.direct_targets().is_empty();
                if !reachable && !by_relay && !by_direct {
                    self.fail_dials(now, slot, directory_failure(failure.code), &failure.text);
                }
            }
        }
        self.service_peer(now, slot);
    }

    /// Addresses at which the peer may be: the key exchange under way goes there, too.
    pub(super) fn new_candidates(&mut self, now: Instant, slot: usize, addrs: &[std::net::SocketAddr]) {
        for &addr in addrs {
            let Some(peer) = self.peers.get_mut(slot) else { return };
            peer.path.add_candidate(now, addr);
            let exchanging = peer.tunnel().is_some_and(|t| !t.is_confirmed());
            if exchanging && peer.key_frame.is_empty() {
                // The answer of the registry was quicker than the exchange.
                peer.exchange_direct = true;
            } else if exchanging {
                self.stash.push_back((addr, peer.key_frame.clone()));
            } else if peer.can_send()
                && let Some(seq) = peer.path.probe_punched(now, addr)
            {
                self.send_probe(now, slot, crate::path::Way::Direct(addr), seq, false);
            }
        }
        self.service_peer(now, slot);
    }

    pub(super) fn fail_dials(&mut self, now: Instant, slot: usize, failure: DialFailure, detail: &str) {
        let dialling = match self.peers.get(slot) {
            Some(peer) => peer.dialling.clone(),
            None => return,
        };
        for at in dialling {
            self.fail_dial(now, at, failure, detail.to_owned());
        }
    }

    /// Ends one dial: the application is told, the peer gets RST if it may know the connection, the port is free.
    pub(super) fn fail_dial(&mut self, now: Instant, at: usize, failure: DialFailure, detail: String) {
        let Some(conn) = self.conns.get_mut(at) else { return };
        let Origin::Dialling(dial) = conn.origin else { return };
        let (id, remote, slot) = (conn.id, conn.remote, conn.peer);
        let mut farewell = Vec::new();
        if dial.syns > 0 && failure != DialFailure::Refused {
            conn.stream.reset(now);
            if !conn.stream.poll_transmit(now, &mut farewell) {
                farewell.clear();
            }
        }
        self.remove_conn(at);
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if !farewell.is_empty() && peer.can_send() && peer.out.len() < self.limits.pending_per_peer {
            peer.out.push_back(super::peers::Outgoing {
                packet: farewell,
                way: None,
                asks: false,
                expires: now + Duration::from_secs(1),
            });
        }
        let tried = Tried {
            resolved: peer.resolved,
            direct: peer.path.direct_targets().to_vec(),
            punched: peer.punched,
            relay: peer.via_relay,
            syns: dial.syns,
            last_seen: peer.path.last_opened().map(|t| now.saturating_duration_since(t)),
        };
        self.events.push_back(Event::DialFailed { conn: id, error: DialError { remote, failure, tried, detail } });
        self.mark_ready(slot);
    }

    /// A SYN left. Returns the probe to send behind it.
    pub(super) fn syn_sent(&mut self, now: Instant, at: usize) {
        let Some(conn) = self.conns.get_mut(at) else { return };
        let Origin::Dialling(dial) = &mut conn.origin else { return };
        dial.first_syn.get_or_insert(now);
        dial.last_syn = Some(now);
        dial.syns += 1;
        let slot = conn.peer;
        let beacon = self.beacon.addr().is_some();
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let recent = |t: Instant| now.saturating_duration_since(t) < Duration::from_millis(100);
        if matches!(peer.link, Link::Own) || peer.last_probe.is_some_and(recent) {
            return;
        }
        peer.last_probe = Some(now);
        if let Some((way, seq)) = peer.path.probe_behind_syn(now, beacon) {
            self.send_probe(now, slot, way, seq, true);
        }
    }

    /// A probe sent at `sent` was answered: SYNs that left before it and were not answered were ignored.
    pub(super) fn dial_probe_answered(&mut self, now: Instant, slot: usize, sent: Instant) {
        let Some(peer) = self.peers.get(slot) else { return };
        if peer.dialling.is_empty() || peer.syn_answered.is_some_and(|t| now.saturating_duration_since(t) < TRUST_SHOWN)
        {
            return;
        }
        for at in peer.dialling.clone() {
            let Some(conn) = self.conns.get_mut(at) else { continue };
            let Origin::Dialling(dial) = &mut conn.origin else { continue };
            let (Some(first), Some(last)) = (dial.first_syn, dial.last_syn) else { continue };
            if last > sent || dial.ignored >= dial.syns {
                continue;
            }
            dial.ignored += 1;
            if dial.ignored >= IGNORED_SYNS && now.saturating_duration_since(first) >= IGNORED_FOR {
                self.fail_dial(now, at, DialFailure::UntrustedLikely, String::new());
            }
        }
    }

    /// Why a dial ran out of time, from what the tunnel knows.
    pub(super) fn timed_out_why(&self, at: usize) -> DialFailure {
        let peer = self.conns.get(at).and_then(|c| self.peers.get(c.peer));
        match peer.map(|p| &p.link) {
            Some(Link::Tunnel(tunnel)) if !tunnel.can_seal() => DialFailure::NoAnswer,
            Some(Link::Tunnel(tunnel)) if !tunnel.is_confirmed() => {
                if tunnel.status().stats.unreadable > 0 {
                    DialFailure::Unreadable
                } else {
                    DialFailure::NoAnswer
                }
            }
            _ => DialFailure::TimedOut,
        }
    }

    /// The tunnel says that it does not work.
    pub(super) fn tunnel_failing(&mut self, now: Instant, slot: usize, failure: Failure) {
        match failure {
            Failure::Unreadable { frames } => {
                self.fail_dials(now, slot, DialFailure::Unreadable, &format!("{frames} frames do not open"));
            }
            Failure::NoAnswer { attempts } => {
                // A dial that began a moment ago had no share in that silence.
                let old = |at: &usize| match self.conns.get(*at).map(|c| c.origin) {
                    Some(Origin::Dialling(d)) => now.saturating_duration_since(d.started) >= KEY_WAIT / 2,
                    _ => false,
                };
                let late: Vec<usize> = match self.peers.get(slot) {
                    Some(peer) => peer.dialling.iter().copied().filter(old).collect(),
                    None => return,
                };
                for at in late {
                    self.fail_dial(now, at, DialFailure::NoAnswer, format!("{attempts} key exchanges unanswered"));
                }
                if let Some(peer) = self.peers.get_mut(slot)
                    && !peer.dialling.is_empty()
                    && let Some(tunnel) = peer.tunnel_mut()
                {
                    tunnel.start(now);
                }
            }
        }
    }

    /// What is due for a peer we want to reach and have no session with.
    pub(super) fn pursue(&mut self, now: Instant, slot: usize) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let Some(since) = peer.want_since else { return };
        peer.out.retain(|o| o.expires > now);
        if peer.dialling.is_empty() && peer.out.is_empty() {
            peer.want_since = None;
            return;
        }
        let waited = now.saturating_duration_since(since);
        if self.encrypt == Encryption::AllowPlain && waited >= PLAIN_AFTER && !peer.secure_once && !peer.can_send() {
            peer.link = Link::Plain;
        }
        if peer.can_send() {
            // The exchange is through; the streams' own timers and the path's watch go on from here.
            peer.want_since = None;
            return;
        }
        let late: Vec<usize> = peer
            .dialling
            .iter()
            .copied()
            .filter(|&at| match self.conns.get(at).map(|c| c.origin) {
                Some(Origin::Dialling(d)) => now.saturating_duration_since(d.started) >= KEY_WAIT,
                _ => false,
            })
            .collect();
        let node = peer.node;
        let known = self.encrypt == Encryption::Off || self.expected_key(node).is_some();
        let failure = if known { DialFailure::NoAnswer } else { DialFailure::RegistryUnavailable };
        for at in late {
            self.fail_dial(now, at, failure, String::new());
        }
        if !known && !self.need_key(now, slot, node) {
            return;
        }
        self.seek(now, slot);
    }

    /// Carries out what a path wants.
    pub(super) fn path_actions(&mut self, now: Instant, slot: usize, actions: &[PathAction]) {
        for action in actions {
            match *action {
                PathAction::Probe { way, seq } => self.send_probe(now, slot, way, seq, false),
                PathAction::Punch => {
                    if let Some(peer) = self.peers.get_mut(slot) {
                        peer.punched |= self.beacon.addr().is_some();
                        self.beacon.request_punch(peer.node);
                    }
                }
                PathAction::Resolve => self.ask_endpoint(now, slot),
            }
        }
    }
}

pub(super) fn directory_failure(code: DirectoryCode) -> DialFailure {
    match code {
        DirectoryCode::NotFound => DialFailure::NodeNotFound,
        DirectoryCode::Denied => DialFailure::ResolveDenied,
        DirectoryCode::Unavailable => DialFailure::RegistryUnavailable,
    }
}
