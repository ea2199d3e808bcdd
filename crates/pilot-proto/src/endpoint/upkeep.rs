//! The life of a peer in the table: making it, serving its tunnel and path, dropping it; and the registry's answers about it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use rand::RngCore as _;

use super::dial::{PUNCH_AGAIN, directory_failure};
use super::events::{DirectoryCode, DirectoryFailure, PeerRecord};
use super::limits::{Bucket, PONG_PER_NODE, RST_PER_NODE, STRANGER_LOOKUPS};
use super::peers::{Link, Lookup, Peer, REAP_AFTER, Waiting};
use super::timers::Owner;
use super::{Encryption, Endpoint, Event, greeting};
use crate::crypto::Scheme;
use crate::path::PeerPath;
use crate::profile::PeerProfile;
use crate::tunnel::{LocalKeys, Tunnel, TunnelEvent};

impl Endpoint {
    /// The expected Ed25519 key of a node, if known: the pinned one, or the registry's.
    ///
    /// A pinned key wins: it makes trusted peers reachable while the registry is down, and a registry that lies cannot
    /// replace it (01 W15).
    pub(super) fn expected_key(&self, node: u32) -> Option<[u8; 32]> {
        let record = || {
            let peer = self.peers.find(node).and_then(|slot| self.peers.get(slot)).and_then(|p| p.record);
            peer.or_else(|| self.lookups.peek(&node).and_then(|l| l.known))
        };
        self.gate.pinned(node).or_else(|| record().map(|r| r.ed25519))
    }

    /// Asks the registry for a node's key, unless it was asked a moment ago. `ours`: for a wish of our own, not on behalf
    /// of a stranger.
    pub(super) fn ask_key(&mut self, now: Instant, node: u32, waiting: Option<Waiting>, ours: bool) {
        if !ours && self.lookups.peek(&node).is_none() && !self.stranger_lookups.take(now, STRANGER_LOOKUPS) {
            self.counters.exchange_limited += 1;
            return;
        }
        let lookup = self.lookups.get_or_insert(node, Lookup::default);
        if lookup.should_ask(now) {
            lookup.asked = Some(now);
            self.events.push_back(Event::NeedKey { node });
        } else if lookup.asked.is_none() {
            // Recently refused: frames of this node are dropped until it may be asked again.
            return;
        }
        if let Some(waiting) = waiting {
            lookup.wait(waiting);
        }
    }

    /// Answers [`Event::NeedKey`].
    pub fn handle_peer_key(&mut self, now: Instant, node: u32, answer: Result<PeerRecord, DirectoryFailure>) {
        let Some(lookup) = self.lookups.get_mut(&node) else { return };
        lookup.asked = None;
        let waiting = std::mem::take(&mut lookup.waiting);
        match answer {
            Ok(record) => {
                lookup.known = Some(record);
                lookup.failed = None;
                if let Some(slot) = self.peers.find(node) {
                    self.set_record(slot, record);
                }
                let expected = self.expected_key(node);
                for what in waiting {
                    match what {
                        Waiting::Auth(via, auth) if expected == Some(auth.ed25519) => {
                            self.accept_auth(now, via, &auth);
                        }
                        Waiting::Auth(..) => self.key_mismatch(now, node),
                        Waiting::Request(via) => self.answer_key_request(now, via, node),
                        Waiting::Stranger(via) => self.greet_stranger(now, via, node),
                    }
                }
            }
            Err(failure) => {
                let text = failure.text.clone();
                let code = failure.code;
                lookup.failed = Some((now, failure));
                let known = self.expected_key(node).is_some();
                if let Some(slot) = self.peers.find(node)
                    && !known
                    && self.peers.get(slot).is_some_and(|p| !p.can_send())
                {
                    self.fail_dials(now, slot, directory_failure(code), &text);
                    if code != DirectoryCode::Unavailable
                        && let Some(peer) = self.peers.get_mut(slot)
                    {
                        peer.out.clear();
                    }
                }
            }
        }
    }

    /// The registry has confirmed its key, and the node uses another.
    fn key_mismatch(&mut self, now: Instant, node: u32) {
        self.counters.exchange_failed += 1;
        if let Some(slot) = self.peers.find(node)
            && self.peers.get(slot).is_some_and(|p| !p.can_send())
        {
            self.fail_dials(now, slot, super::DialFailure::KeyMismatch, "");
        }
    }

    fn set_record(&mut self, slot: usize, record: PeerRecord) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.record = Some(record);
        if record.version_known
            && let Some(tunnel) = peer.tunnel_mut()
        {
            tunnel.set_hint(Scheme::B);
        }
    }

    fn new_tunnel(&mut self, now: Instant, node: u32) -> Box<Tunnel> {
        let mut seed = [0; 32];
        self.rng.fill_bytes(&mut seed);
        let unix = self.origin_unix + now.saturating_duration_since(self.origin).as_secs();
        let keys = LocalKeys::new(self.node, Arc::clone(&self.identity), unix);
        Box::new(Tunnel::new(Arc::new(keys), node, &self.tunnel_config, seed))
    }

    /// The slot of a peer, made if missing. When the table is full the peer unused longest gives way; `None` when all
    /// are in use.
    pub(super) fn ensure_peer(&mut self, now: Instant, node: u32) -> Option<usize> {
        if let Some(slot) = self.peers.find(node) {
            return Some(slot);
        }
        if self.peers.len() >= self.limits.peers {
            let idle =
                self.peers.iter().filter(|(_, p)| !p.in_use(now)).min_by_key(|(_, p)| p.touched).map(|(s, _)| s)?;
            self.drop_peer(idle);
        }
        let link = if node == self.node {
            Link::Own
        } else if self.encrypt == Encryption::Off {
            Link::Plain
        } else {
            Link::Tunnel(self.new_tunnel(now, node))
        };
        let first_seq = self.rng.next_u32();
        let profile = if matches!(link, Link::Own) { PeerProfile::ours() } else { PeerProfile::cautious() };
        let slot = self.peers.insert(Peer {
            node,
            link,
            path: PeerPath::new(now, first_seq),
            record: None,
            profile,
            wide: false,
            secure_once: false,
            conns: 0,
            dialling: Vec::new(),
            ready_conns: VecDeque::new(),
            out: VecDeque::new(),
            ready: false,
            armed: None,
            used: None,
            touched: now,
            syn_answered: None,
            resolved: false,
            punched: false,
            via_relay: false,
            last_probe: None,
            rst: Bucket::new(now, RST_PER_NODE),
            pong: Bucket::new(now, PONG_PER_NODE),
            key_frame: Vec::new(),
            exchange_direct: false,
            want_since: None,
            pursued: None,
        });
        if let Some(record) = self.lookups.peek(&node).and_then(|l| l.known) {
            self.set_record(slot, record);
        }
        if let Some(scheme) = self.schemes.peek(&node).copied()
            && let Some(tunnel) = self.peers.get_mut(slot).and_then(|p| p.tunnel_mut())
        {
            tunnel.set_hint(scheme);
        }
        Some(slot)
    }

    /// A peer that was spoken to in clear turns out to encrypt.
    pub(super) fn restore_tunnel(&mut self, now: Instant, slot: usize) {
        if self.encrypt == Encryption::Off {
            return;
        }
        let Some(node) = self.peers.get(slot).map(|p| p.node) else { return };
        let tunnel = self.new_tunnel(now, node);
        if let Some(peer) = self.peers.get_mut(slot) {
            peer.link = Link::Tunnel(tunnel);
        }
    }

    fn drop_peer(&mut self, slot: usize) {
        let Some(mut peer) = self.peers.remove(slot) else { return };
        self.timers.disarm(Owner::Peer(slot), &mut peer.armed);
        if peer.ready {
            self.ready.retain(|&s| s != slot);
        }
        for at in self.conns.of_peer(slot) {
            self.remove_conn(at);
        }
    }

    /// Drops the session, path and connections of a peer (revocation, after the notice left). Applications of its
    /// connections are told that these were reset. Streams of trust messages go on, as strangers' do, and keep the
    /// session: it may be asking again.
    pub fn forget_peer(&mut self, now: Instant, node: u32) {
        let Some(slot) = self.peers.find(node) else { return };
        let about_trust = |conn: &super::conns::Conn| {
            let ports = [conn.stream.local().port, conn.stream.remote().port];
            conn.stream.close_reason().is_none() && ports.contains(&super::HANDSHAKE_PORT)
        };
        let all = self.conns.of_peer(slot);
        let kept: Vec<_> = all.iter().copied().filter(|at| self.conns.get(*at).is_some_and(about_trust)).collect();
        if !kept.is_empty() {
            for at in all.into_iter().filter(|at| !kept.contains(at)) {
                if let Some(conn) = self.conns.get_mut(at) {
                    conn.stream.abandon(crate::stream::CloseReason::TrustRevoked);
                }
                self.service_conn(now, at);
            }
            return;
        }
        self.fail_dials(now, slot, super::DialFailure::UntrustedLikely, "trust was ended while dialling");
        for at in self.conns.of_peer(slot) {
            if let Some(conn) = self.conns.get_mut(at) {
                conn.stream.abandon(crate::stream::CloseReason::TrustRevoked);
            }
            self.service_conn(now, at);
        }
        self.drop_peer(slot);
    }

    /// Puts a peer among those that may have something to send.
    pub(super) fn mark_ready(&mut self, slot: usize) {
        if let Some(peer) = self.peers.get_mut(slot)
            && !peer.ready
        {
            peer.ready = true;
            self.ready.push_back(slot);
        }
    }

    pub(super) fn path_changed(&mut self, now: Instant, slot: usize) {
        let limit = self.segment_limit(now, slot);
        let Some(peer) = self.peers.get(slot) else { return };
        let event =
            Event::PathChanged { node: peer.node, direct: peer.path.proven_direct(), relay: peer.path.is_relay() };
        self.notice(event);
        self.set_segment_limits(slot, limit);
    }

    fn set_segment_limits(&mut self, slot: usize, limit: usize) {
        if self.peers.get(slot).is_none_or(|p| p.conns == 0) {
            return;
        }
        for at in self.conns.of_peer(slot) {
            if let Some(conn) = self.conns.get_mut(at) {
                conn.stream.set_segment_limit(limit);
            }
        }
    }

    /// Largest segment payload on the peer's way.
    pub(super) fn segment_limit(&self, now: Instant, slot: usize) -> usize {
        self.payload_limit(now, slot).min(greeting::WIDE_SEGMENT)
    }

    /// Pins the key of a trusted node that had none.
    pub(super) fn pin_if_new(&mut self, slot: usize) {
        let Some(peer) = self.peers.get(slot) else { return };
        let node = peer.node;
        if let Some(key) = peer.tunnel().and_then(|t| t.peer_key())
            && self.gate.pin(node, key)
        {
            self.events.push_back(Event::Pinned { node, key });
        }
    }

    fn set_profile(&mut self, now: Instant, slot: usize, profile: PeerProfile, wide: bool) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        peer.profile = profile;
        peer.wide = wide;
        let limit = self.segment_limit(now, slot);
        for at in self.conns.of_peer(slot) {
            if let Some(conn) = self.conns.get_mut(at) {
                conn.stream.set_profile(now, profile);
                conn.stream.set_segment_limit(limit);
            }
            self.service_conn(now, at);
        }
    }

    /// Takes the events of a peer's tunnel.
    pub(super) fn tunnel_events(&mut self, now: Instant, slot: usize) {
        while let Some(event) = self.peers.get_mut(slot).and_then(|p| p.tunnel_mut()).and_then(|t| t.poll_event()) {
            let Some(node) = self.peers.get(slot).map(|p| p.node) else { return };
            match &event {
                TunnelEvent::Ready => self.session_ready(now, slot),
                TunnelEvent::Established { .. } => self.pin_if_new(slot),
                TunnelEvent::Rekeyed { .. } => self.pin_if_new(slot),
                TunnelEvent::Scheme(scheme) => self.schemes.insert(node, *scheme),
                TunnelEvent::Failing(failure) => self.tunnel_failing(now, slot, *failure),
                TunnelEvent::Hello(hello) => {
                    self.set_profile(now, slot, greeting::profile_of(hello), greeting::is_wide(hello));
                }
                TunnelEvent::HelloLost => self.set_profile(now, slot, PeerProfile::cautious(), false),
                TunnelEvent::NonceReplay { .. } => {}
            }
            self.notice(Event::Tunnel { node, event });
        }
    }

    /// Packets can be sealed: SYNs whose time passed without a key leave now.
    fn session_ready(&mut self, now: Instant, slot: usize) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        for at in peer.dialling.clone() {
            if let Some(conn) = self.conns.get_mut(at) {
                conn.stream.retransmit_syn(now);
            }
            self.service_conn(now, at);
        }
        self.mark_ready(slot);
    }

    /// After anything happened to a peer: its events, its deadline, its turn to send.
    pub(super) fn service_peer(&mut self, now: Instant, slot: usize) {
        self.tunnel_events(now, slot);
        self.mark_ready(slot);
        self.arm_peer(slot);
    }

    pub(super) fn arm_peer(&mut self, slot: usize) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let pursuit = peer.want_since.map(|_| peer.pursued.unwrap_or(peer.touched) + PUNCH_AGAIN);
        let reap = Some(peer.touched + REAP_AFTER);
        let tunnel = peer.tunnel().and_then(|t| t.poll_timeout());
        let at = [tunnel, peer.path.poll_timeout(), pursuit, reap].into_iter().flatten().min();
        self.timers.arm(Owner::Peer(slot), &mut peer.armed, at);
    }

    pub(super) fn peer_timeout(&mut self, now: Instant, slot: usize) {
        let beacon = self.beacon.addr().is_some();
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let idle = peer.conns == 0 && peer.out.is_empty() && now.saturating_duration_since(peer.touched) >= REAP_AFTER;
        if idle {
            self.drop_peer(slot);
            return;
        }
        if let Some(tunnel) = peer.tunnel_mut() {
            tunnel.handle_timeout(now);
        }
        let in_use = peer.in_use(now);
        let session = peer.can_send();
        if peer.path.poll_timeout().is_some_and(|t| t <= now) && !matches!(peer.link, Link::Own) {
            let mut actions = Vec::new();
            let changed = peer.path.handle_timeout(now, in_use, session, beacon, &mut actions);
            self.path_actions(now, slot, &actions);
            if changed {
                self.path_changed(now, slot);
            }
        }
        let due = self
            .peers
            .get(slot)
            .is_some_and(|p| p.want_since.is_some() && p.pursued.is_none_or(|t| now >= t + PUNCH_AGAIN));
        if due {
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.pursued = Some(now);
            }
            self.pursue(now, slot);
        }
        self.service_peer(now, slot);
    }
}
