//! Messages from other nodes over port 444.

use pilot_wire::handshake::{Kind, MAX_JUSTIFICATION, Message, Rotation};
use pilot_wire::{base64, signed};

use super::state::{Outgoing, Parked, Purpose, Trust};
use super::{
    ACCEPT_INTERVAL, HookId, MAX_AGE, MAX_HOOKS, MAX_LEAD, MAX_OUTGOING, MAX_PENDING, Moment, NetworkApproval, Notice,
    PeerIdentity, PendingRequest, RELAYED_ANSWER_WINDOW, Refusal, TrustEvent, TrustedNode,
};
use crate::identity::verify;

/// How a request came; its answer goes back the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Via {
    /// Over port 444.
    Direct,
    /// Through the registry.
    Relay,
}

/// Printable characters only, at most as many as newer daemons take (07 §10).
pub(super) fn clean(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_JUSTIFICATION).collect()
}

impl Trust {
    /// One message, read from a stream to port 444.
    ///
    /// `source` is the node the stream came from and `tunnel_key` the key its tunnel has proved; `None` only when the
    /// operator allows tunnels without keys, and then the registry is asked. The caller drops the stream whatever the
    /// outcome; nothing is answered on it.
    ///
    /// # Errors
    /// [`Refusal`]: the message was dropped and nothing changed.
    pub fn handle_message(
        &mut self,
        at: Moment,
        source: u32,
        tunnel_key: Option<[u8; 32]>,
        text: &[u8],
    ) -> Result<Kind, Refusal> {
        let message = Message::parse(text)?;
        if message.node == 0 || message.node == self.node {
            return Err(Refusal::BadNode(message.node));
        }
        if message.node != source {
            return Err(Refusal::SourceMismatch { claimed: message.node, source_node: source });
        }
        // Whole seconds against a finer clock: 300.x seconds are too old (05 §3.3).
        let lead = i128::from(message.timestamp) * 1000 - at.unix.as_millis() as i128;
        if lead > MAX_LEAD.as_millis() as i128 || -lead > MAX_AGE.as_millis() as i128 {
            return Err(Refusal::Clock(i64::try_from(lead / 1000).unwrap_or(i64::MIN)));
        }
        let key: [u8; 32] = base64::decode_array(&message.public_key).ok_or(Refusal::NoKey)?;
        let signature: [u8; 64] = base64::decode_array(&message.signature).ok_or(Refusal::BadSignature)?;
        if tunnel_key.is_some_and(|tunnel| tunnel != key) {
            return Err(Refusal::KeyMismatch);
        }
        if !verify(&key, signed::handshake(message.node, self.node).as_bytes(), &signature) {
            return Err(Refusal::BadSignature);
        }
        self.replay.record(at.now, &message)?;
        let kind = message.kind;
        if tunnel_key.is_none() {
            self.park(at, source, Parked::Message(message, key))?;
            return Ok(kind);
        }
        self.genuine(at, message, key)?;
        Ok(kind)
    }

    /// A message whose key is the node's.
    pub(super) fn genuine(&mut self, at: Moment, message: Message, key: [u8; 32]) -> Result<(), Refusal> {
        let node = message.node;
        match message.kind {
            Kind::Request => {
                let justification = clean(&message.justification);
                self.notice(node, Notice::Received { justification: justification.clone() });
                self.request_received(at, node, Some(key), justification, Via::Direct, None)
            }
            Kind::Accept => self.accept_received(at, node, key),
            Kind::Reject => {
                self.rejection_received(at, node, clean(&message.reason));
                Ok(())
            }
            Kind::Revoke => self.revoke_received(at, node, key),
            Kind::Rotated => self.rotation_received(node, key, &message.reason),
        }
    }

    /// A trusted node has another key from now on: the pinned one has vouched for it (docs/spec/trust.md, K4).
    fn rotation_received(&mut self, node: u32, old: [u8; 32], reason: &str) -> Result<(), Refusal> {
        let rotation = Rotation::parse(reason).ok_or(Refusal::BadSignature)?;
        let text = signed::rotated(node, &base64::encode(&rotation.new_key));
        if !verify(&old, text.as_bytes(), &rotation.by_old)
            || !verify(&rotation.new_key, text.as_bytes(), &rotation.by_new)
        {
            return Err(Refusal::BadSignature);
        }
        let Some(entry) = self.trusted.get_mut(&node) else { return Ok(()) };
        if entry.key != Some(old) {
            return Err(Refusal::KeyMismatch);
        }
        entry.key = Some(rotation.new_key);
        self.emit(TrustEvent::Persist);
        self.emit(TrustEvent::Rotated { node, old, new: rotation.new_key });
        Ok(())
    }

    /// A request, direct or relayed. `identity` is what a lookup has said, when one was made.
    pub(super) fn request_received(
        &mut self,
        at: Moment,
        node: u32,
        key: Option<[u8; 32]>,
        justification: String,
        via: Via,
        identity: Option<&PeerIdentity>,
    ) -> Result<(), Refusal> {
        let pinned = self.trusted.get(&node).map(|t| t.key);
        let replaces_pin = matches!((pinned, key), (Some(Some(pinned)), Some(key)) if pinned != key);
        if let Some(pinned) = pinned
            && !replaces_pin
        {
            if pinned.is_none()
                && let Some(key) = key
            {
                self.handle_pinned(node, key);
            }
            self.answer_trusted(at, node, via);
            return Ok(());
        }
        // Who asks does not believe to be trusted: it need not be told any more that it is not. A relayed request may be
        // older than the revocation; `handle_poll` compares.
        if via == Via::Direct {
            self.need_not_tell(node);
        }
        if self.outgoing.contains_key(&node) {
            self.establish(at, node, TrustedNode { key, mutual: true, ..TrustedNode::default() })?;
            self.notice(node, Notice::AutoApproved { reason: "mutual" });
            self.answer_accept(at, node, via);
            return Ok(());
        }
        let barred = replaces_pin || self.revoked.get(&node).is_some_and(|r| r.hold || r.until > at.unix.as_secs());
        if !barred {
            let approval = &self.config.approval;
            if key.is_some_and(|key| approval.keys.contains(&key)) {
                return self.approve_automatically(at, node, key, 0, "key_list", via);
            }
            if approval.all {
                return self.approve_automatically(at, node, key, 0, "all", via);
            }
            if approval.networks != NetworkApproval::Never {
                match identity {
                    Some(identity) => {
                        if let Some(network) = self.shared_network(&identity.networks) {
                            return self.approve_automatically(at, node, key, network, "same_network", via);
                        }
                    }
                    // A relayed request was looked up already; a direct one is judged when its lookup is back.
                    None if via == Via::Direct && self.own_networks.iter().any(|n| *n != 0) => {
                        let Some(key) = key else { return Err(Refusal::NoKey) };
                        return self.park(at, node, Parked::Request(key, justification));
                    }
                    None => {}
                }
            }
        }
        self.make_pending(at, node, key, justification)?;
        if !barred && self.config.approval.hook {
            self.ask_hook(node);
        }
        Ok(())
    }

    /// The first of our networks that approves and that the peer is in.
    fn shared_network(&self, theirs: &[u16]) -> Option<u16> {
        let approves = |network: &u16| match &self.config.approval.networks {
            NetworkApproval::Never => false,
            NetworkApproval::Any => true,
            NetworkApproval::Listed(listed) => listed.contains(network),
        };
        self.own_networks.iter().copied().find(|n| *n != 0 && theirs.contains(n) && approves(n))
    }

    fn approve_automatically(
        &mut self,
        at: Moment,
        node: u32,
        key: Option<[u8; 32]>,
        network: u16,
        reason: &'static str,
        via: Via,
    ) -> Result<(), Refusal> {
        self.establish(at, node, TrustedNode { key, network, ..TrustedNode::default() })?;
        self.notice(node, Notice::AutoApproved { reason });
        self.answer_accept(at, node, via);
        Ok(())
    }

    fn answer_accept(&mut self, at: Moment, node: u32, via: Via) {
        match via {
            Via::Direct => {
                // An accept has a fixed length far below the limit.
                let _ = self.send(at, node, Purpose::Accept, "");
                self.accepted_at.insert(node, at.now);
            }
            Via::Relay => self.emit(TrustEvent::RelayRespond { node, accept: true }),
        }
    }

    /// A trusted node asks: it has lost our accept, or its trust. Answering heals both (05 §3.4).
    fn answer_trusted(&mut self, at: Moment, node: u32, via: Via) {
        if self.pending.remove(&node).is_some() {
            self.emit(TrustEvent::Persist);
        }
        let recently =
            self.accepted_at.get(&node).is_some_and(|t| at.now.saturating_duration_since(*t) < ACCEPT_INTERVAL);
        if !recently {
            self.answer_accept(at, node, via);
        }
    }

    fn make_pending(
        &mut self,
        at: Moment,
        node: u32,
        key: Option<[u8; 32]>,
        justification: String,
    ) -> Result<(), Refusal> {
        let entry = PendingRequest { key, justification, received_at: at.unix.as_secs() };
        let full = self.pending.len() >= MAX_PENDING;
        match self.pending.get_mut(&node) {
            // A repeat that says the same changes nothing on disk.
            Some(old) if (old.key, &old.justification) == (entry.key, &entry.justification) => return Ok(()),
            Some(old) => {
                // A relayed repeat does not know the key; the one we have was proved.
                let key = entry.key.or(old.key);
                *old = PendingRequest { key, ..entry.clone() };
            }
            None if full => return Err(Refusal::TooMany),
            None => {
                self.pending.insert(node, entry.clone());
            }
        }
        self.emit(TrustEvent::Persist);
        self.notice(node, Notice::Pending { justification: entry.justification });
        Ok(())
    }

    fn ask_hook(&mut self, node: u32) {
        let Some(request) = self.pending.get(&node).cloned() else { return };
        if self.hooks.len() >= MAX_HOOKS || self.hooks.values().any(|asked| *asked == node) {
            return;
        }
        let id = HookId(self.new_id());
        self.hooks.insert(id, node);
        self.emit(TrustEvent::AskHook { id, node, key: request.key, justification: request.justification });
    }

    /// The approval command has answered; anything but a clear yes is `false` and leaves the request to a person.
    pub fn handle_hook(&mut self, at: Moment, id: HookId, approve: bool) {
        let Some(node) = self.hooks.remove(&id) else { return };
        let Some(request) = self.pending.get(&node).cloned().filter(|_| approve) else { return };
        if self.establish(at, node, TrustedNode { key: request.key, ..TrustedNode::default() }).is_ok() {
            self.notice(node, Notice::AutoApproved { reason: "hook" });
            self.emit(TrustEvent::RelayRespond { node, accept: true });
            self.answer_accept(at, node, Via::Direct);
        }
    }

    /// A rejection, direct or relayed; of the two the second finds nothing to end, unless we have asked again meanwhile.
    pub(super) fn rejection_received(&mut self, at: Moment, node: u32, reason: String) {
        let Some(request) = self.outgoing.remove(&node) else { return };
        self.forget_old(at);
        if self.rejected.len() >= MAX_OUTGOING {
            self.rejected.pop_first();
        }
        self.rejected.insert(node, request);
        self.emit(TrustEvent::Persist);
        self.notice(node, Notice::RejectedByPeer { reason });
    }

    /// Our request to a node that has rejected it, or one before it, not long ago.
    pub(super) fn rejected_lately(&self, at: Moment, node: u32) -> Option<&Outgoing> {
        let young = |o: &&Outgoing| at.unix.as_secs().saturating_sub(o.requested_at) < RELAYED_ANSWER_WINDOW.as_secs();
        self.rejected.get(&node).filter(young)
    }

    /// Whether an approval answers a request of ours. When we have asked again, a rejection that came since may have been
    /// the answer to the request before: rejections do not say which one they mean, and come by two ways, at times of
    /// their own.
    pub(super) fn awaits_answer(&self, at: Moment, node: u32) -> bool {
        self.outgoing.contains_key(&node) || self.rejected_lately(at, node).is_some_and(|request| request.again)
    }

    fn accept_received(&mut self, at: Moment, node: u32, key: [u8; 32]) -> Result<(), Refusal> {
        if self.awaits_answer(at, node) {
            self.establish(at, node, TrustedNode { key: Some(key), mutual: true, ..TrustedNode::default() })?;
            self.notice(node, Notice::Accepted);
            return Ok(());
        }
        match self.trusted.get(&node).map(|t| t.key) {
            // An approved requester gets a direct and a relayed accept (05 §13): the second says nothing new.
            Some(Some(pinned)) if pinned == key => Ok(()),
            Some(None) => {
                self.handle_pinned(node, key);
                Ok(())
            }
            _ => Err(Refusal::Unsolicited),
        }
    }

    fn revoke_received(&mut self, at: Moment, node: u32, key: [u8; 32]) -> Result<(), Refusal> {
        if let Some(Some(pinned)) = self.trusted.get(&node).map(|t| t.key)
            && pinned != key
        {
            return Err(Refusal::KeyMismatch);
        }
        self.rejected.remove(&node);
        let was_trusted = self.trusted.remove(&node).is_some();
        let known = self.pending.remove(&node).is_some() | self.outgoing.remove(&node).is_some() | was_trusted;
        if !known {
            return Ok(());
        }
        // It ended trust itself, so it need not be told; our own policy waits before it lets it in again.
        self.remember_revoked(at, node, false, false);
        self.emit(TrustEvent::Persist);
        if was_trusted {
            self.emit(TrustEvent::Untrusted { node });
            self.emit(TrustEvent::RevokeTrust { node });
            self.emit(TrustEvent::ForgetPeer { node });
        }
        self.notice(node, Notice::RevokedByPeer);
        Ok(())
    }
}
