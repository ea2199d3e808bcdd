//! One function per message, or one arm where a line is enough.

use std::net::SocketAddr;

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use pilot_wire::registry::{
    Answer, LookupOk, PollOk, Register as RegisterRequest, RegisterOk, Request, ResolveHostnameOk, ResolveOk,
    WaitingRequest, WaitingResponse,
};
use pilot_wire::{base64, signed};

use super::networks::policy_of;
use super::{Registry, Session};
use crate::domain::{Proof, Register, Resolved};
use crate::error::{Refusal, SIGNATURE_FAILED, SIGNATURE_REQUIRED};
use crate::limits::cut;
use crate::model::Node;
use crate::rules;

/// What a missing and a wrong signature are called, by message (04 §6).
pub(super) struct Words {
    required: Refusal,
    failed: Refusal,
}

pub(super) const PLAIN: Words = Words { required: SIGNATURE_REQUIRED, failed: SIGNATURE_FAILED };
const ROTATION: Words =
    Words { required: Refusal::SignatureRequired("rotate_key requires a valid signature"), failed: SIGNATURE_FAILED };
const HANDSHAKE: Words = Words {
    required: Refusal::SignatureRequired("handshake request requires signature"),
    failed: Refusal::SignatureFailed("handshake request signature verification failed"),
};
const RESPONSE: Words = Words {
    required: Refusal::SignatureRequired("handshake response requires signature"),
    failed: Refusal::SignatureFailed("handshake response signature verification failed"),
};

fn decode_signature(text: &str) -> Result<[u8; 64], Refusal> {
    base64::decode_array(text).ok_or(Refusal::SignatureEncoding)
}

fn verifies(key: &[u8; 32], text: &str, signature: &[u8; 64]) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(text.as_bytes(), signature).is_ok()
}

fn decode_key(field: &'static str, text: &str) -> Result<[u8; 32], Refusal> {
    let bytes =
        base64::decode(text).ok_or_else(|| Refusal::KeyInvalid { field, reason: "it is not base64".to_owned() })?;
    let size = bytes.len();
    bytes.try_into().map_err(|_| Refusal::KeyInvalid { field, reason: format!("its size is {size} bytes, not 32") })
}

impl Registry {
    /// Verifies a signed request. It is also what makes a provisional registration of this connection good.
    pub(super) async fn authorize(
        &self,
        session: &mut Session,
        node: u32,
        text: &str,
        signature: &str,
        words: &Words,
    ) -> Result<Proof, Refusal> {
        let key = self.store.lookup(node).await?.public_key;
        if signature.is_empty() {
            return Err(words.required.clone());
        }
        if !verifies(&key, text, &decode_signature(signature)?) {
            return Err(words.failed.clone());
        }
        let proof = Proof { node, key, source: session.source().ip() };
        session.prove(node, key);
        self.store.confirm(&proof);
        if let Some(mut cmd) = session.take_provisional(node, &key) {
            cmd.is_proved = true;
            self.store.register(self.now(), cmd).await?;
        }
        Ok(proof)
    }

    /// Where a node is to be reached: its endpoint, or the beacon's for one that asks for that.
    pub(super) fn address_of(&self, session: &Session, node: &Node) -> Result<String, Refusal> {
        if !node.relay_only {
            return node.endpoint.clone().ok_or(Refusal::NoEndpoint(node.id));
        }
        let beacon = self.config.beacon.ok_or(Refusal::NoEndpoint(node.id))?;
        let host = if beacon.ip().is_unspecified() { session.local().ip().to_canonical() } else { beacon.ip() };
        Ok(SocketAddr::new(host, beacon.port()).to_string())
    }

    pub(super) async fn handle(&self, session: &mut Session, request: Request) -> Result<Answer, Refusal> {
        match request {
            Request::Register(request) => self.register(session, request).await,
            Request::RotateKey { node, new_public_key, signature } => {
                self.rotate_key(session, node, new_public_key, &signature).await
            }
            Request::Deregister { node, signature } => {
                let proof = match self.store.lookup(node).await {
                    // Nothing to take off the network, so nothing to prove.
                    Err(Refusal::NodeNotFound(_)) => None,
                    Err(refusal) => return Err(refusal),
                    Ok(_) => {
                        let text = signed::deregister(node);
                        Some(self.authorize(session, node, &text, &signature, &PLAIN).await?)
                    }
                };
                self.store.deregister(self.now(), node, proof).await?;
                Ok(Answer::Deregister)
            }
            Request::Heartbeat { node, signature } => {
                let proof = self.authorize(session, node, &signed::heartbeat(node), &signature, &PLAIN).await?;
                self.store.heartbeat(self.now(), proof).await?;
                Ok(Answer::Heartbeat { time: self.env.unix().as_secs() })
            }
            Request::Lookup { node } => {
                let node = self.store.lookup(node).await?;
                Ok(self.lookup_answer(session, node))
            }
            Request::Resolve { node, requester, signature } => self.resolve(session, node, requester, &signature).await,
            Request::ResolveHostname { hostname, .. } => {
                let node = self.store.resolve_hostname(&hostname).await?;
                Ok(Answer::ResolveHostname(ResolveHostnameOk { node: node.id, hostname, public: node.public }))
            }
            Request::Punch { requester, node_a, node_b, signature } => {
                self.punch(session, requester, node_a, node_b, &signature).await
            }
            Request::SetHostname { node, hostname, signature } => {
                rules::check_hostname(&hostname).map_err(Refusal::HostnameInvalid)?;
                let proof = self.authorize(session, node, &signed::set_hostname(node), &signature, &PLAIN).await?;
                self.store.set_hostname(self.now(), proof, hostname.clone()).await?;
                Ok(Answer::SetHostname { node, hostname })
            }
            Request::SetVisibility { node, public, signature } => {
                let proof = self.authorize(session, node, &signed::set_visibility(node), &signature, &PLAIN).await?;
                self.store.set_visibility(proof, public).await?;
                Ok(Answer::SetVisibility { node, public })
            }
            Request::SetTags { node, tags, signature } => {
                let tags = rules::check_tags(tags.iter().map(String::as_str)).map_err(Refusal::TagsInvalid)?;
                let proof = self.authorize(session, node, &signed::set_tags(node), &signature, &PLAIN).await?;
                self.store.set_tags(proof, tags.clone()).await?;
                Ok(Answer::SetTags { node, tags })
            }
            Request::SetTaskExec { node, enabled, signature } => {
                let proof = self.authorize(session, node, &signed::set_task_exec(node), &signature, &PLAIN).await?;
                self.store.set_task_exec(proof, enabled).await?;
                Ok(Answer::SetTaskExec { node, enabled })
            }
            Request::ReportTrust { node, peer, signature } => {
                let text = signed::report_trust(node, peer);
                let proof = self.authorize(session, node, &text, &signature, &PLAIN).await?;
                self.store.report_trust(proof, peer).await?;
                Ok(Answer::ReportTrust)
            }
            Request::RevokeTrust { node, peer, signature } => {
                let text = signed::revoke_trust(node, peer);
                let proof = self.authorize(session, node, &text, &signature, &PLAIN).await?;
                self.store.revoke_trust(proof, peer).await?;
                Ok(Answer::RevokeTrust)
            }
            Request::CheckTrust { node, peer } => {
                // The trust graph is shown only to those who are in it; memberships are shown to everybody, and newer
                // official daemons ask on a connection that may have proved nothing yet.
                if !session.has_proved_node(node) && !session.has_proved_node(peer) {
                    if self.store.lookup(node).await?.shares_network(&self.store.lookup(peer).await?) {
                        return Ok(Answer::CheckTrust { trusted: true });
                    }
                    return Err(Refusal::Unproved("check_trust".to_owned()));
                }
                Ok(Answer::CheckTrust { trusted: self.store.check_trust(node, peer).await? })
            }
            Request::RequestHandshake { from, to, justification, signature } => {
                self.request_handshake(session, from, to, justification, &signature).await
            }
            Request::PollHandshakes { node, signature } => self.poll_handshakes(session, node, &signature).await,
            Request::RespondHandshake { node, peer, accept, signature } => {
                self.store.lookup(node).await?;
                self.store.lookup(peer).await?;
                let text = signed::respond(node, peer);
                let proof = self.authorize(session, node, &text, &signature, &RESPONSE).await?;
                self.store.respond_handshake(self.now(), proof, peer, accept).await?;
                self.notify(peer);
                Ok(Answer::RespondHandshake { peer, accept })
            }
            Request::UpdatePoloScore { node, delta } => {
                let delta = delta.ok_or(Refusal::FieldRequired("update_polo_score requires delta field"))?;
                self.may_score(session, "update_polo_score")?;
                let score = self.store.update_polo_score(node, delta).await?;
                Ok(Answer::PoloScore { request: "update_polo_score", node, score })
            }
            Request::SetPoloScore { node, score } => {
                let score = score.ok_or(Refusal::FieldRequired("set_polo_score requires polo_score field"))?;
                self.may_score(session, "set_polo_score")?;
                let score = self.store.set_polo_score(node, score).await?;
                Ok(Answer::PoloScore { request: "set_polo_score", node, score })
            }
            Request::GetPoloScore { node } => {
                let score = self.store.lookup(node).await?.polo_score;
                Ok(Answer::PoloScore { request: "get_polo_score", node, score })
            }
            Request::AuthorizeTask { caller, submitter, receiver, signature } => {
                if caller != receiver {
                    return Err(Refusal::NotParticipant);
                }
                let text = signed::authorize_task(caller, submitter, receiver);
                self.authorize(session, caller, &text, &signature, &PLAIN).await?;
                let (theirs, own) =
                    (self.store.lookup(submitter).await?.polo_score, self.store.lookup(receiver).await?.polo_score);
                let refused = (theirs < own).then(|| format!("polo score too low: submitter={theirs}, receiver={own}"));
                Ok(Answer::AuthorizeTask { refused })
            }
            Request::ListNetworks => self.list_networks().await,
            Request::ListNodes { network, .. } => self.list_nodes(session, network).await,
            Request::GetNetworkPolicy { network } => {
                Ok(Answer::NetworkPolicy(policy_of(self.store.network(network).await?)))
            }
            Request::GetMemberRole { network, target } => {
                let role = self.store.member_role(network, target).await?.as_str();
                Ok(Answer::MemberRole { network, target, role })
            }
            Request::JoinNetwork { node, network, token, signature } => {
                self.join_network(session, node, network, token, &signature).await
            }
            Request::LeaveNetwork { node, network, signature } => {
                let text = signed::leave_network(node, network);
                let proof = self.authorize(session, node, &text, &signature, &PLAIN).await?;
                self.store.leave_network(proof, network).await?;
                Ok(Answer::NetworkLeft { network })
            }
            Request::InviteToNetwork { inviter, network, target, signature } => {
                self.invite(session, (inviter, network, target), &signature).await
            }
            Request::PollInvites { node, signature } => self.poll_invites(session, node, &signature).await,
            Request::RespondInvite { node, network, accept, signature } => {
                self.respond_invite(session, (node, network, accept), &signature).await
            }
            Request::ChangeNetwork { by, change } => self.change_network(session, &by, change).await,
            Request::PolicyUnreadable { field } => Err(Refusal::PolicyInvalid(field.to_string())),
            Request::BeaconRegister { beacon, addr } => self.register_beacon(session, beacon, &addr),
            Request::BeaconList => Ok(self.list_beacons()),
            Request::SubscribeReplication { .. } => Err(Refusal::NoReplication),
            other => Err(Refusal::UnknownType(cut(other.kind(), 64).to_owned())),
        }
    }

    async fn register(&self, session: &mut Session, request: RegisterRequest) -> Result<Answer, Refusal> {
        if request.public_key.is_empty() {
            return Err(Refusal::KeyRequired);
        }
        let (hostname, hostname_error) = match rules::check_hostname(&request.hostname) {
            Ok(()) => (request.hostname, None),
            Err(reason) => (String::new(), Some(reason)),
        };
        let key = decode_key("public_key", &request.public_key)?;
        let is_signed = !request.signature.is_empty();
        if is_signed {
            let text = signed::register(&request.listen_addr, &request.public_key);
            if !verifies(&key, &text, &decode_signature(&request.signature)?) {
                return Err(SIGNATURE_FAILED);
            }
        }
        let source = session.source();
        // Only new identities are counted: a daemon that comes back is never turned away (04 §14).
        if self.store.node_of_key(&key).await?.is_none() && !self.new_nodes.lock().take(source.ip(), self.env.now()) {
            return Err(Refusal::RateLimited(source.ip()));
        }
        let endpoint = rules::endpoint(source, &request.listen_addr, is_signed).map(|addr| addr.to_string());
        let cmd = Register {
            key,
            owner: request.owner,
            hostname,
            endpoint: endpoint.clone(),
            version: request.version.unwrap_or_default(),
            relay_only: request.relay_only,
            source: source.ip(),
            is_proved: is_signed || session.has_proved_key(&key),
        };
        let registration = self.store.register(self.now(), cmd.clone()).await?;
        let node = registration.node;
        if is_signed {
            session.prove(node, key);
        }
        if registration.is_provisional {
            session.postpone(node, cmd);
        } else {
            session.drop_provisional(node);
        }
        Ok(Answer::Register(RegisterOk {
            node,
            network: 0,
            public_key: request.public_key,
            hostname: registration.hostname,
            hostname_error,
            observed_addr: endpoint,
            protocol_version: Some(1),
        }))
    }

    async fn rotate_key(
        &self,
        session: &mut Session,
        node: u32,
        new_public_key: String,
        signature: &str,
    ) -> Result<Answer, Refusal> {
        if signature.is_empty() {
            return Err(ROTATION.required.clone());
        }
        if new_public_key.is_empty() {
            return Err(Refusal::NewKeyRequired);
        }
        let new_key = decode_key("new_public_key", &new_public_key)?;
        let bound = signed::rotate_to(node, &new_public_key);
        let proof = match self.authorize(session, node, &bound, signature, &ROTATION).await {
            // February's form, which does not name the new key.
            Err(Refusal::SignatureFailed(_)) => {
                self.authorize(session, node, &signed::rotate(node), signature, &ROTATION).await?
            }
            other => other?,
        };
        self.store.rotate_key(self.now(), proof, new_key).await?;
        Ok(Answer::RotateKey { node, public_key: new_public_key })
    }

    async fn resolve(
        &self,
        session: &mut Session,
        target: u32,
        requester: u32,
        signature: &str,
    ) -> Result<Answer, Refusal> {
        let proof =
            self.authorize_requester(session, requester, &signed::resolve(requester, target), signature).await?;
        let node = match self.store.resolve(proof, target).await? {
            Resolved::Shown(node) => node,
            Resolved::Refused(refusal) => return Err(refusal),
        };
        let age = self.now().saturating_sub(node.key_since) / 86_400;
        Ok(Answer::Resolve(ResolveOk {
            node: node.id,
            real_addr: self.address_of(session, &node)?,
            key_age_days: i64::try_from(age).ok(),
            relay_only: node.relay_only,
        }))
    }

    async fn authorize_requester(
        &self,
        session: &mut Session,
        requester: u32,
        text: &str,
        signature: &str,
    ) -> Result<Proof, Refusal> {
        self.authorize(session, requester, text, signature, &PLAIN).await.map_err(|refusal| match refusal {
            Refusal::NodeNotFound(_) => Refusal::RequesterUnknown(requester),
            refusal => refusal,
        })
    }

    async fn punch(
        &self,
        session: &mut Session,
        requester: u32,
        node_a: u32,
        node_b: u32,
        signature: &str,
    ) -> Result<Answer, Refusal> {
        if requester != node_a && requester != node_b {
            return Err(Refusal::NotParticipant);
        }
        let proof = self.authorize_requester(session, requester, &signed::punch(node_a, node_b), signature).await?;
        let (own, other) = self.store.punch(proof, node_a, node_b).await?;
        let other = match other {
            Resolved::Shown(node) => node,
            Resolved::Refused(refusal) => return Err(refusal),
        };
        let own_addr = self.address_of(session, &own)?;
        let other_addr = self.address_of(session, &other)?;
        let (node_a_addr, node_b_addr) =
            if node_a == requester { (own_addr, other_addr) } else { (other_addr, own_addr) };
        Ok(Answer::Punch { node_a, node_a_addr, node_b, node_b_addr })
    }

    async fn request_handshake(
        &self,
        session: &mut Session,
        from: u32,
        to: u32,
        justification: String,
        signature: &str,
    ) -> Result<Answer, Refusal> {
        self.store.lookup(from).await?;
        self.store.lookup(to).await?;
        let proof = self.authorize(session, from, &signed::handshake(from, to), signature, &HANDSHAKE).await?;
        let outcome = self.store.request_handshake(self.now(), proof, to, justification).await;
        if matches!(outcome, Ok(()) | Err(Refusal::AlreadyPending(_))) {
            self.notify(to);
        }
        outcome.map(|()| Answer::RequestHandshake)
    }

    async fn poll_handshakes(&self, session: &mut Session, node: u32, signature: &str) -> Result<Answer, Refusal> {
        let proof = self.authorize(session, node, &signed::poll_handshakes(node), signature, &PLAIN).await?;
        let (requests, responses) = self.store.poll_handshakes(proof).await?;
        Ok(Answer::Poll(PollOk {
            requests: requests
                .into_iter()
                .map(|r| WaitingRequest { from: r.from, justification: r.justification, timestamp: r.at })
                .collect(),
            responses: responses
                .into_iter()
                .map(|r| WaitingResponse { from: r.from, accept: r.accept, timestamp: r.at })
                .collect(),
        }))
    }

    fn may_score(&self, session: &Session, what: &str) -> Result<(), Refusal> {
        if session.has_proved_any() { Ok(()) } else { Err(Refusal::Unproved(what.to_owned())) }
    }

    fn notify(&self, node: u32) {
        if let Some(notifier) = &self.notifier {
            notifier.handshake_waiting(node);
        }
    }

    fn lookup_answer(&self, session: &Session, node: Node) -> Answer {
        Answer::Lookup(LookupOk {
            node: node.id,
            real_addr: if node.public { self.address_of(session, &node).ok() } else { None },
            networks: node.networks,
            public_key: base64::encode(&node.public_key),
            public: node.public,
            polo_score: Some(node.polo_score),
            hostname: Some(node.hostname).filter(|name| !name.is_empty()),
            tags: node.tags,
            task_exec: node.task_exec,
            version: Some(node.version).filter(|version| !version.is_empty()),
            relay_only: node.relay_only,
        })
    }
}
