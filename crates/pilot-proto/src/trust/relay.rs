//! What comes through the registry: relayed requests and answers, and lookups.

use pilot_wire::registry::PollOk;

use super::receive::{Via, clean};
use super::state::{Parked, Trust};
use super::{Moment, Notice, OUTGOING_LIFETIME, PeerIdentity, RELAYED_ANSWER_WINDOW, Refusal, TrustedNode};

/// Seconds by which the registry's clock may be ahead of ours when times of both are compared.
const CLOCKS_APART: u64 = 5;

impl Trust {
    /// The answer to a poll. The registry has checked who sent what, but nothing here is signed by the peer: keys come
    /// from a lookup, and an approval counts only for [`RELAYED_ANSWER_WINDOW`] after our request.
    pub fn handle_poll(&mut self, at: Moment, poll: &PollOk) {
        self.forget_old(at);
        for request in &poll.requests {
            if request.from != 0 && request.from != self.node {
                let justification = clean(&request.justification);
                self.notice(request.from, Notice::Received { justification: justification.clone() });
                let ended = self.revoked.get(&request.from).map_or(0, |revoked| revoked.untold_since);
                if request.timestamp > ended.saturating_add(CLOCKS_APART) {
                    self.need_not_tell(request.from);
                }
                self.park_or_judge(at, request.from, Parked::RelayedRequest(justification));
            }
        }
        for response in &poll.responses {
            let node = response.from;
            if !self.asked_within(at, node, RELAYED_ANSWER_WINDOW.as_secs()) {
                continue;
            }
            if response.accept {
                self.park_or_judge(at, node, Parked::RelayedAccept);
            } else {
                self.rejection_received(at, node, String::new());
            }
        }
    }

    /// Whether we asked this node within so many seconds.
    pub(super) fn asked_within(&self, at: Moment, node: u32, seconds: u64) -> bool {
        debug_assert!(seconds <= OUTGOING_LIFETIME.as_secs());
        let again = || self.rejected_lately(at, node).filter(|request| request.again);
        self.outgoing
            .get(&node)
            .or_else(again)
            .is_some_and(|o| at.unix.as_secs().saturating_sub(o.requested_at) <= seconds)
    }

    /// The poll has emptied the registry's inbox: what cannot wait for a lookup is judged without one, not lost.
    fn park_or_judge(&mut self, at: Moment, node: u32, what: Parked) {
        if self.park(at, node, what.clone()).is_err() {
            // Nobody sent us this over a stream, so there is nobody to tell of a refusal.
            let _ = self.judge(at, node, what, None);
        }
    }

    /// What the registry says about a node ([`TrustEvent::Lookup`]); `None` when it does not say.
    pub fn handle_lookup(&mut self, at: Moment, node: u32, identity: Option<&PeerIdentity>) {
        let mut waiting = Vec::new();
        self.parked.retain(|(parked, _, what)| {
            if *parked == node {
                waiting.push(what.clone());
            }
            *parked != node
        });
        for what in waiting {
            // Refusals of parked messages were not answered when they came, and are not now.
            let _ = self.judge(at, node, what, identity);
        }
    }

    fn judge(&mut self, at: Moment, node: u32, what: Parked, identity: Option<&PeerIdentity>) -> Result<(), Refusal> {
        let known = identity.map(|i| i.key);
        match what {
            Parked::Message(message, key) if known == Some(key) => self.genuine(at, message, key),
            Parked::Message(..) => Err(Refusal::KeyMismatch),
            Parked::Request(key, justification) => {
                // Without an answer there is no shared network: the request waits for a person.
                let nothing = PeerIdentity::default();
                let identity = identity.unwrap_or(&nothing);
                self.request_received(at, node, Some(key), justification, Via::Direct, Some(identity))
            }
            Parked::RelayedRequest(justification) => {
                self.request_received(at, node, known, justification, Via::Relay, identity)
            }
            Parked::RelayedAccept if self.awaits_answer(at, node) => {
                self.establish(at, node, TrustedNode { key: known, mutual: true, ..TrustedNode::default() })?;
                self.notice(node, Notice::Accepted);
                Ok(())
            }
            Parked::RelayedAccept => Err(Refusal::Unsolicited),
        }
    }
}
