//! Commands of a person or program on this host (05 §3.4, 03 §9).

use pilot_wire::handshake::MAX_JUSTIFICATION;

use super::receive::clean;
use super::state::{Outgoing, Purpose, Trust};
use super::{MAX_OUTGOING, Moment, Notice, Requested, TrustError, TrustEvent, TrustedNode};

impl Trust {
    /// Asks a node for trust. When it has asked us before, trust begins at once, and the request tells it so.
    ///
    /// # Errors
    /// [`TrustError`]: nothing was sent and nothing changed.
    pub fn request(&mut self, at: Moment, node: u32, justification: &str) -> Result<Requested, TrustError> {
        self.check_node(node)?;
        let length = justification.chars().count();
        if length > MAX_JUSTIFICATION {
            return Err(TrustError::JustificationTooLong(length));
        }
        if self.trusted.contains_key(&node) && !self.pending.contains_key(&node) {
            return Ok(Requested::AlreadyTrusted);
        }
        let justification = clean(justification);
        // Composed once before anything changes, so that a message that cannot be sent changes nothing.
        self.compose(at, node, Purpose::Request, &justification)?;
        if !self.outgoing.contains_key(&node) && self.outgoing.len() >= MAX_OUTGOING {
            self.forget_old(at);
            if self.outgoing.len() >= MAX_OUTGOING {
                return Err(TrustError::TooMany { what: "requests without an answer", max: MAX_OUTGOING });
            }
        }
        let waiting = self.pending.get(&node).map(|request| request.key);
        if let Some(key) = waiting {
            self.trust_locally(at, node, TrustedNode { key, mutual: true, ..TrustedNode::default() })?;
            self.notice(node, Notice::AutoApproved { reason: "mutual" });
            self.emit(TrustEvent::RelayRespond { node, accept: true });
        } else {
            // An explicit request ends what a revocation has left behind (07 §10).
            self.need_not_tell(node);
            self.revoked.remove(&node);
            let again = self.outgoing.contains_key(&node) || self.rejected_lately(at, node).is_some();
            self.outgoing.insert(node, Outgoing { requested_at: at.unix.as_secs(), again, ..Outgoing::default() });
            self.emit(TrustEvent::Persist);
        }
        let id = self.send(at, node, Purpose::Request, &justification)?;
        self.emit(TrustEvent::ExpectAnswer);
        Ok(Requested::Sending(id))
    }

    /// Approves a waiting request. Nothing happens when there is none; the official reply is `approved` all the same.
    /// Returns whether there was one.
    ///
    /// # Errors
    /// [`TrustError::TooMany`] when the table of trusted nodes is full.
    pub fn approve(&mut self, at: Moment, node: u32) -> Result<bool, TrustError> {
        let Some(request) = self.pending.get(&node).cloned() else {
            return Ok(false);
        };
        self.trust_locally(at, node, TrustedNode { key: request.key, ..TrustedNode::default() })?;
        self.notice(node, Notice::Approved);
        // The registry opens the way (it tells the peer our endpoint from now on), then the peer is told directly.
        self.emit(TrustEvent::RelayRespond { node, accept: true });
        let _ = self.send(at, node, Purpose::Accept, "");
        self.accepted_at.insert(node, at.now);
        Ok(true)
    }

    /// Rejects a waiting request. Nothing happens when there is none; the official reply is `rejected` all the same.
    /// Returns whether there was one.
    pub fn reject(&mut self, at: Moment, node: u32, reason: &str) -> bool {
        if self.pending.remove(&node).is_none() {
            return false;
        }
        let reason = clean(reason);
        self.emit(TrustEvent::Persist);
        self.notice(node, Notice::Rejected { reason: reason.clone() });
        self.emit(TrustEvent::RelayRespond { node, accept: false });
        // A reason of nothing but escapes might not fit; then the relayed answer says it without.
        let _ = self.send(at, node, Purpose::Reject, &reason);
        true
    }

    /// Ends trust. The gate closes at once; the peer is told before its tunnel goes, and again until it was.
    ///
    /// # Errors
    /// [`TrustError::NotTrusted`] when there was none; a waiting request is dropped all the same.
    pub fn revoke(&mut self, at: Moment, node: u32) -> Result<(), TrustError> {
        self.rejected.remove(&node);
        let asked = self.pending.remove(&node).is_some() | self.outgoing.remove(&node).is_some();
        if self.trusted.remove(&node).is_none() {
            if asked {
                self.emit(TrustEvent::Persist);
            }
            return Err(TrustError::NotTrusted(node));
        }
        self.remember_revoked(at, node, true, true);
        self.emit(TrustEvent::Persist);
        self.emit(TrustEvent::Untrusted { node });
        self.notice(node, Notice::Revoked);
        self.teardown_later(at, node);
        self.tell_revoked(at, node);
        Ok(())
    }

    fn check_node(&self, node: u32) -> Result<(), TrustError> {
        match node {
            _ if self.node == 0 => Err(TrustError::NotRegistered),
            0 => Err(TrustError::NoNode),
            own if own == self.node => Err(TrustError::OwnNode(own)),
            _ => Ok(()),
        }
    }

    fn trust_locally(&mut self, at: Moment, node: u32, entry: TrustedNode) -> Result<(), TrustError> {
        self.establish(at, node, entry)
            .map_err(|_| TrustError::TooMany { what: "trusted nodes", max: super::MAX_TRUSTED })
    }
}
