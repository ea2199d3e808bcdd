//! The state, its getters, its timers and what all transitions share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::handshake::{self, HandshakeError, Kind, Message, Rotation};
use pilot_wire::{base64, signed};
use serde_json::{Map, Value};

use super::replay::ReplaySet;
use super::{
    ACCEPT_INTERVAL, HookId, MAX_PARKED, MAX_REVOKED, MAX_TRUSTED, Moment, NOTICE_LIFETIME, NOTICE_REPEAT,
    NOTICE_RETRY, NOTICE_RETRY_MAX, Notice, OUTGOING_LIFETIME, PARK_TIMEOUT, PENDING_LIFETIME, PendingRequest,
    REGISTRY_WAITS, RELAYED_ANSWER_WINDOW, REVOKE_COOLDOWN, Refusal, SendId, TEARDOWN_DELAY, TrustConfig, TrustEvent,
    TrustedNode,
};
use crate::identity::Identity;

/// A request of ours.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outgoing {
    /// Unix seconds of the last request.
    pub(super) requested_at: u64,
    /// Not the first one lately: a rejection may be the answer to one before it.
    pub(super) again: bool,
    /// Fields of the file we do not know.
    pub(super) unknown: Map<String, Value>,
}

/// An ended relation.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Revoked {
    /// Unix seconds until which no automatic approval takes place.
    pub(super) until: u64,
    /// Whether a person here ended it: then no policy ever restores it.
    pub(super) hold: bool,
    /// Unix seconds since which the peer has not been told; 0 when it was, or need not be.
    pub(super) untold_since: u64,
    /// When to tell it again.
    pub(super) next: Option<Instant>,
    /// How often it was tried.
    pub(super) attempts: u32,
    /// When it was last tried.
    pub(super) tried: Option<Instant>,
    /// The message under way that tells it.
    pub(super) sending: Option<SendId>,
    /// Fields of the file we do not know.
    pub(super) unknown: Map<String, Value>,
}

/// Something that waits for a lookup.
#[derive(Clone, Debug)]
pub(super) enum Parked {
    /// A direct message whose key the tunnel did not prove.
    Message(Message, [u8; 32]),
    /// A direct request whose approval depends on networks.
    Request([u8; 32], String),
    /// A relayed request.
    RelayedRequest(String),
    /// A relayed approval.
    RelayedAccept,
}

/// Why a message is sent: what its failure means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A request: relayed when it cannot be sent.
    Request,
    /// An accept: the registry is told when it cannot be sent.
    Accept,
    /// A reject: nothing more can be done.
    Reject,
    /// A revocation: the tunnel goes after it, and it is repeated when it cannot be sent.
    Revoke,
}

/// The trust of one node. See the [module](super).
#[derive(Debug)]
pub struct Trust {
    pub(super) identity: Arc<Identity>,
    pub(super) node: u32,
    pub(super) own_networks: Vec<u16>,
    pub(super) config: TrustConfig,
    pub(super) trusted: BTreeMap<u32, TrustedNode>,
    pub(super) pending: BTreeMap<u32, PendingRequest>,
    pub(super) outgoing: BTreeMap<u32, Outgoing>,
    /// Requests of ours that were rejected lately.
    pub(super) rejected: BTreeMap<u32, Outgoing>,
    pub(super) revoked: BTreeMap<u32, Revoked>,
    /// Unknown fields of the entries of the file, by node, and of the file itself.
    pub(super) unknown_trusted: BTreeMap<u32, Map<String, Value>>,
    pub(super) unknown_pending: BTreeMap<u32, Map<String, Value>>,
    pub(super) unknown: Map<String, Value>,
    pub(super) replay: ReplaySet,
    pub(super) parked: Vec<(u32, Instant, Parked)>,
    pub(super) hooks: BTreeMap<HookId, u32>,
    pub(super) sends: BTreeMap<SendId, (u32, Purpose, String)>,
    /// Tunnels to drop once the revocation has left.
    pub(super) teardown: BTreeMap<u32, Instant>,
    /// When a node was last answered that was trusted already.
    pub(super) accepted_at: BTreeMap<u32, Instant>,
    /// Kind and second of the last message to a node, so that no two are identical.
    pub(super) last_sent: BTreeMap<u32, (Kind, i64)>,
    next_id: u64,
    events: VecDeque<TrustEvent>,
}

impl Trust {
    /// Nobody is trusted. `node` is 0 until registered; [`Trust::set_local_node`] tells it later.
    pub fn new(identity: Arc<Identity>, node: u32, config: TrustConfig) -> Self {
        Self {
            identity,
            node,
            own_networks: Vec::new(),
            config,
            trusted: BTreeMap::new(),
            pending: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            rejected: BTreeMap::new(),
            revoked: BTreeMap::new(),
            unknown_trusted: BTreeMap::new(),
            unknown_pending: BTreeMap::new(),
            unknown: Map::new(),
            replay: ReplaySet::default(),
            parked: Vec::new(),
            hooks: BTreeMap::new(),
            sends: BTreeMap::new(),
            teardown: BTreeMap::new(),
            accepted_at: BTreeMap::new(),
            last_sent: BTreeMap::new(),
            next_id: 1,
            events: VecDeque::new(),
        }
    }

    /// Our id and networks, after each registration.
    pub fn set_local_node(&mut self, node: u32, networks: &[u16]) {
        self.node = node;
        self.own_networks = networks.to_vec();
    }

    /// A rotated identity key signs from now on.
    pub fn set_identity(&mut self, identity: Arc<Identity>) {
        self.identity = identity;
    }

    /// What to tell a trusted node over port 444 when `next` has replaced our key, before [`Trust::set_identity`]: its tunnel
    /// still knows us by the old one (docs/spec/trust.md, K3).
    ///
    /// # Errors
    /// [`HandshakeError`]; such a message is far below the limit.
    pub fn rotation_message(&self, at: Moment, node: u32, next: &Identity) -> Result<Vec<u8>, HandshakeError> {
        let text = signed::rotated(self.node, &next.public_key_base64());
        let rotation = Rotation {
            new_key: next.public_key(),
            by_old: self.identity.sign(text.as_bytes()),
            by_new: next.sign(text.as_bytes()),
        };
        let message = Message {
            kind: Kind::Rotated,
            node: self.node,
            public_key: self.identity.public_key_base64(),
            justification: String::new(),
            signature: base64::encode(&self.identity.sign(signed::handshake(self.node, node).as_bytes())),
            reason: rotation.to_reason(),
            timestamp: at.unix.as_secs() as i64,
        };
        message.emit()
    }

    /// Replaces the approval policy.
    pub fn set_config(&mut self, config: TrustConfig) {
        self.config = config;
    }

    /// The next event; call until `None` after every input.
    pub fn poll_event(&mut self) -> Option<TrustEvent> {
        self.events.pop_front()
    }

    /// When to call [`Trust::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let parked = self.parked.iter().map(|(_, since, _)| *since + PARK_TIMEOUT);
        let notices = self.revoked.values().filter_map(|r| r.next);
        parked.chain(notices).chain(self.teardown.values().copied()).min()
    }

    /// A timer has fired: judges what waited too long, repeats revocations, drops tunnels, forgets old entries.
    pub fn handle_timeout(&mut self, at: Moment) {
        let due: Vec<u32> = self.teardown.iter().filter(|(_, when)| **when <= at.now).map(|(node, _)| *node).collect();
        for node in due {
            self.tear_down(node);
        }
        let late = |(_, since, _): &(u32, Instant, Parked)| *since + PARK_TIMEOUT <= at.now;
        let mut late_nodes: Vec<u32> = self.parked.iter().filter(|p| late(p)).map(|(node, ..)| *node).collect();
        late_nodes.dedup();
        for node in late_nodes {
            self.handle_lookup(at, node, None);
        }
        let due: Vec<u32> =
            self.revoked.iter().filter(|(_, r)| r.next.is_some_and(|next| next <= at.now)).map(|(n, _)| *n).collect();
        for node in due {
            self.tell_revoked(at, node);
        }
        self.forget_old(at);
    }

    /// Drops entries past their lifetimes.
    pub(super) fn forget_old(&mut self, at: Moment) {
        let unix = at.unix.as_secs();
        let young = |since: u64, lifetime: Duration| unix.saturating_sub(since) < lifetime.as_secs();
        let before = self.pending.len() + self.outgoing.len() + self.revoked.len();
        // An unknown time (0) is not an old one.
        self.pending.retain(|_, p| p.received_at == 0 || young(p.received_at, PENDING_LIFETIME));
        self.outgoing.retain(|_, o| young(o.requested_at, OUTGOING_LIFETIME));
        self.rejected.retain(|_, o| young(o.requested_at, RELAYED_ANSWER_WINDOW));
        self.revoked.retain(|_, r| r.hold || r.untold_since != 0 || r.until > unix);
        self.unknown_pending.retain(|node, _| self.pending.contains_key(node));
        self.unknown_trusted.retain(|node, _| self.trusted.contains_key(node));
        self.accepted_at.retain(|_, when| at.now.saturating_duration_since(*when) < ACCEPT_INTERVAL);
        self.last_sent.retain(|_, (_, second)| *second + 60 > unix as i64);
        if before != self.pending.len() + self.outgoing.len() + self.revoked.len() {
            self.emit(TrustEvent::Persist);
        }
    }

    /// Trusted nodes by id.
    pub fn trusted(&self) -> impl Iterator<Item = (u32, &TrustedNode)> {
        self.trusted.iter().map(|(node, entry)| (*node, entry))
    }

    /// Requests that wait for a decision, by id.
    pub fn pending(&self) -> impl Iterator<Item = (u32, &PendingRequest)> {
        self.pending.iter().map(|(node, entry)| (*node, entry))
    }

    /// The entry of a trusted node.
    pub fn trusted_node(&self, node: u32) -> Option<&TrustedNode> {
        self.trusted.get(&node)
    }

    /// Whether a node is trusted.
    pub fn is_trusted(&self, node: u32) -> bool {
        self.trusted.contains_key(&node)
    }

    /// How many requests wait.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// Messages remembered against replays.
    pub fn replay_entries(&self) -> usize {
        self.replay.len()
    }

    /// Announces every trusted node to the gate; call once after [`Trust::load`].
    pub fn announce(&mut self) {
        let trusted = self.trusted.iter().map(|(node, t)| TrustEvent::Trusted { node: *node, key: t.key });
        self.events.extend(trusted.collect::<Vec<_>>());
    }

    pub(super) fn emit(&mut self, event: TrustEvent) {
        // Several changes within one input need one write: at the place of the first, which holds them all.
        if event != TrustEvent::Persist || self.events.back() != Some(&TrustEvent::Persist) {
            self.events.push_back(event);
        }
    }

    pub(super) fn notice(&mut self, node: u32, notice: Notice) {
        self.emit(TrustEvent::Notice { node, notice });
    }

    pub(super) fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Trust begins. The caller has removed what contradicts it.
    ///
    /// # Errors
    /// [`Refusal::TooMany`] when the table is full.
    pub(super) fn establish(&mut self, at: Moment, node: u32, entry: TrustedNode) -> Result<(), Refusal> {
        if !self.trusted.contains_key(&node) && self.trusted.len() >= MAX_TRUSTED {
            return Err(Refusal::TooMany);
        }
        let key = entry.key;
        self.trusted.insert(node, TrustedNode { approved_at: at.unix.as_secs(), ..entry });
        self.pending.remove(&node);
        self.outgoing.remove(&node);
        self.rejected.remove(&node);
        self.need_not_tell(node);
        self.revoked.remove(&node);
        self.emit(TrustEvent::Persist);
        self.emit(TrustEvent::Trusted { node, key });
        self.emit(TrustEvent::ReportTrust { node });
        Ok(())
    }

    /// Makes a message; `text` is the justification of a request or the reason of a reject.
    ///
    /// # Errors
    /// When the message would not fit one segment.
    pub(super) fn compose(
        &self,
        at: Moment,
        node: u32,
        purpose: Purpose,
        text: &str,
    ) -> Result<(Kind, i64, Vec<u8>), HandshakeError> {
        let (kind, justification, reason) = match purpose {
            Purpose::Request => (Kind::Request, text, ""),
            Purpose::Accept => (Kind::Accept, "", ""),
            Purpose::Reject => (Kind::Reject, "", text),
            Purpose::Revoke => (Kind::Revoke, "", handshake::REVOKE_REASON),
        };
        // Two identical messages are a replay (05 §13.2): a second one within a second is dated one second later,
        // which is well within the clock lead that receivers accept.
        let mut timestamp = at.unix.as_secs() as i64;
        if let Some((last, second)) = self.last_sent.get(&node)
            && *last == kind
            && *second >= timestamp
            && *second < timestamp + 10
        {
            timestamp = second + 1;
        }
        let message = Message {
            kind,
            node: self.node,
            public_key: self.identity.public_key_base64(),
            justification: justification.to_owned(),
            signature: base64::encode(&self.identity.sign(signed::handshake(self.node, node).as_bytes())),
            reason: reason.to_owned(),
            timestamp,
        };
        Ok((kind, timestamp, message.emit()?))
    }

    /// Makes and sends a message.
    ///
    /// # Errors
    /// As [`Trust::compose`].
    pub(super) fn send(
        &mut self,
        at: Moment,
        node: u32,
        purpose: Purpose,
        text: &str,
    ) -> Result<SendId, HandshakeError> {
        let (kind, timestamp, message) = self.compose(at, node, purpose, text)?;
        self.last_sent.insert(node, (kind, timestamp));
        let id = SendId(self.new_id());
        self.sends.insert(id, (node, purpose, text.to_owned()));
        self.emit(TrustEvent::SendDirect { id, node, kind, message });
        Ok(id)
    }

    /// Parks something until the registry has named the node's key. What does not fit is refused.
    pub(super) fn park(&mut self, at: Moment, node: u32, what: Parked) -> Result<(), Refusal> {
        if self.parked.len() >= MAX_PARKED {
            return Err(Refusal::TooMany);
        }
        if !self.parked.iter().any(|(parked, ..)| *parked == node) {
            self.emit(TrustEvent::Lookup { node });
        }
        self.parked.push((node, at.now, what));
        Ok(())
    }

    /// Remembers an ended relation; when there are too many, the one whose pause ends first is forgotten.
    pub(super) fn remember_revoked(&mut self, at: Moment, node: u32, hold: bool, tell: bool) {
        if !self.revoked.contains_key(&node)
            && self.revoked.len() >= MAX_REVOKED
            && let Some(oldest) = self.revoked.iter().min_by_key(|(_, r)| r.until).map(|(node, _)| *node)
        {
            self.revoked.remove(&oldest);
        }
        let unix = at.unix.as_secs();
        let entry = self.revoked.entry(node).or_default();
        entry.until = unix + REVOKE_COOLDOWN.as_secs();
        entry.hold |= hold;
        if tell {
            entry.untold_since = unix.max(1);
        } else {
            entry.untold_since = 0;
        }
        (entry.next, entry.attempts, entry.tried, entry.sending) = (None, 0, None, None);
    }

    /// Sends a revocation (again), unless it was given up.
    pub(super) fn tell_revoked(&mut self, at: Moment, node: u32) {
        let Some(entry) = self.revoked.get_mut(&node).filter(|r| r.untold_since != 0) else {
            return;
        };
        entry.next = None;
        if at.unix.as_secs().saturating_sub(entry.untold_since) >= NOTICE_LIFETIME.as_secs() {
            entry.untold_since = 0;
            self.emit(TrustEvent::Persist);
            return;
        }
        if entry.sending.is_some() {
            return;
        }
        if self.node == 0 {
            // Not registered yet: nothing we sign would count.
            entry.next = Some(at.now + NOTICE_RETRY);
            return;
        }
        entry.attempts += 1;
        entry.tried = Some(at.now);
        // A revoke message has a fixed length far below the limit.
        let sending = self.send(at, node, Purpose::Revoke, "").ok();
        if let Some(entry) = self.revoked.get_mut(&node) {
            entry.sending = sending;
        }
    }

    /// The peer need not be told any more that trust has ended: what has not begun to be sent is not.
    pub(super) fn need_not_tell(&mut self, node: u32) {
        let Some(entry) = self.revoked.get_mut(&node) else { return };
        (entry.untold_since, entry.next) = (0, None);
        let sending = entry.sending.take();
        if let Some(id) = sending {
            self.sends.remove(&id);
            self.emit(TrustEvent::Withdraw { id, node });
        }
        if self.teardown.remove(&node).is_some() {
            // The tunnel is the one over which it asks.
            self.emit(TrustEvent::RevokeTrust { node });
        }
    }

    /// A message of ours was acknowledged by the peer, or could not be delivered.
    pub fn handle_sent(&mut self, at: Moment, id: SendId, delivered: bool) {
        let Some((node, purpose, text)) = self.sends.remove(&id) else {
            return;
        };
        match (purpose, delivered) {
            (Purpose::Request, true) => self.emit(TrustEvent::RequestDone { id, result: Ok(()) }),
            (Purpose::Request, false) => {
                self.sends.insert(id, (node, Purpose::Request, text.clone()));
                self.emit(TrustEvent::RelayRequest { id, node, justification: text });
            }
            (Purpose::Accept, false) if self.trusted.contains_key(&node) => {
                // It was not answered after all: its next request is, at once.
                self.accepted_at.remove(&node);
                self.emit(TrustEvent::RelayRespond { node, accept: true });
            }
            (Purpose::Accept | Purpose::Reject, _) => {}
            (Purpose::Revoke, delivered) => self.revoke_sent(at, node, id, delivered),
        }
    }

    /// Nothing comes of the message of a revocation that another has followed.
    fn revoke_sent(&mut self, at: Moment, node: u32, id: SendId, delivered: bool) {
        let Some(entry) = self.revoked.get_mut(&node).filter(|r| r.sending == Some(id)) else { return };
        entry.sending = None;
        if delivered {
            entry.untold_since = 0;
            entry.next = None;
        } else if entry.untold_since != 0 {
            let pause = NOTICE_RETRY.saturating_mul(1 << entry.attempts.saturating_sub(1).min(16));
            entry.next = Some(at.now + pause.min(NOTICE_RETRY_MAX));
        }
        // Until now the registry had to tell us where the node is, which it does not for one that does not trust us.
        let tell_registry = delivered || entry.attempts == REGISTRY_WAITS;
        self.emit(TrustEvent::Persist);
        if tell_registry {
            self.emit(TrustEvent::RevokeTrust { node });
        }
        self.tear_down(node);
    }

    /// The last message to a revoked node has left, or cannot: the way to it is closed.
    fn tear_down(&mut self, node: u32) {
        if self.teardown.remove(&node).is_some() {
            self.emit(TrustEvent::ForgetPeer { node });
        }
    }

    /// The registry has taken or refused a relayed request.
    pub fn handle_relayed(&mut self, id: SendId, result: Result<(), String>) {
        if self.sends.remove(&id).is_some() {
            self.emit(TrustEvent::RequestDone { id, result });
        }
    }

    /// The gate refused a node: when it has not heard yet that trust has ended, this is the moment to tell it.
    pub fn handle_refused(&mut self, at: Moment, node: u32) {
        let Some(entry) = self.revoked.get(&node).filter(|r| r.untold_since != 0) else {
            return;
        };
        if entry.tried.is_none_or(|tried| at.now.saturating_duration_since(tried) >= NOTICE_REPEAT) {
            self.tell_revoked(at, node);
        }
    }

    /// A trusted node without a pinned key has authenticated for the first time.
    pub fn handle_pinned(&mut self, node: u32, key: [u8; 32]) {
        if let Some(entry) = self.trusted.get_mut(&node)
            && entry.key.is_none()
        {
            entry.key = Some(key);
            self.emit(TrustEvent::Persist);
            self.emit(TrustEvent::Trusted { node, key: Some(key) });
        }
    }

    /// Puts the teardown of a tunnel off until the revocation has left, at most [`TEARDOWN_DELAY`].
    pub(super) fn teardown_later(&mut self, at: Moment, node: u32) {
        self.teardown.insert(node, at.now + TEARDOWN_DELAY);
    }

    /// After loading: revocations that did not reach their peers are tried again soon.
    pub(super) fn schedule_notices(&mut self, at: Moment) {
        for entry in self.revoked.values_mut().filter(|r| r.untold_since != 0) {
            entry.next = Some(at.now + NOTICE_RETRY);
        }
    }
}
