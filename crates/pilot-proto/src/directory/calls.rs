//! Requests: what is sent, signed, for a question or by ourselves.

use pilot_wire::registry::{Authority, Register, Request};
use pilot_wire::{base64, signed};

use super::session::Directory;
use super::{Call, CallId};

/// Who waits for an answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Asker {
    /// The node.
    Call(CallId),
    /// The registration.
    Register,
    /// The heartbeat.
    Heartbeat,
    /// The lookup of ourselves.
    Identify,
    /// The poll for relayed handshakes.
    Poll,
    /// A wanted attribute.
    Attribute(Attribute),
    /// A trust report about this node, or its end.
    Trust(u32, bool),
    /// The rotation of our key.
    Rotation,
    /// The deregistration at the end.
    Goodbye,
    /// Nobody any more: the answer is dropped.
    Nobody,
}

/// What can be wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attribute {
    Hostname,
    Visibility,
    Tags,
}

impl Directory {
    fn sign(&self, text: &str) -> String {
        base64::encode(&self.config.identity.sign(text.as_bytes()))
    }

    pub(super) fn register_request(&self) -> Request {
        let public_key = self.config.identity.public_key_base64();
        let signature = self.sign(&signed::register(&self.listen_addr, &public_key));
        Request::Register(Register {
            public_key,
            listen_addr: self.listen_addr.clone(),
            owner: self.config.owner.clone(),
            version: Some(self.config.version.clone()),
            relay_only: self.config.relay_only,
            signature,
            ..Register::default()
        })
    }

    pub(super) fn heartbeat_request(&self) -> Request {
        Request::Heartbeat { node: self.node, signature: self.sign(&signed::heartbeat(self.node)) }
    }

    pub(super) fn poll_request(&self) -> Request {
        Request::PollHandshakes { node: self.node, signature: self.sign(&signed::poll_handshakes(self.node)) }
    }

    pub(super) fn deregister_request(&self) -> Request {
        Request::Deregister { node: self.node, signature: self.sign(&signed::deregister(self.node)) }
    }

    pub(super) fn trust_request(&self, peer: u32, report: bool) -> Request {
        let node = self.node;
        if report {
            Request::ReportTrust { node, peer, signature: self.sign(&signed::report_trust(node, peer)) }
        } else {
            Request::RevokeTrust { node, peer, signature: self.sign(&signed::revoke_trust(node, peer)) }
        }
    }

    /// The request of a question, made when it is sent, because our id may have changed since it was asked.
    pub(super) fn call_request(&self, call: &Call) -> Request {
        let own = self.node;
        match call.clone() {
            Call::Lookup { node } => Request::Lookup { node },
            Call::Resolve { node } => {
                Request::Resolve { node, requester: own, signature: self.sign(&signed::resolve(own, node)) }
            }
            Call::ResolveHostname { hostname } => Request::ResolveHostname { hostname, requester: own },
            Call::SetHostname { hostname } => {
                Request::SetHostname { node: own, hostname, signature: self.sign(&signed::set_hostname(own)) }
            }
            Call::SetVisibility { public } => {
                Request::SetVisibility { node: own, public, signature: self.sign(&signed::set_visibility(own)) }
            }
            Call::SetTags { tags } => {
                Request::SetTags { node: own, tags, signature: self.sign(&signed::set_tags(own)) }
            }
            Call::SetTaskExec { enabled } => {
                Request::SetTaskExec { node: own, enabled, signature: self.sign(&signed::set_task_exec(own)) }
            }
            Call::GetScore { node } => Request::GetPoloScore { node },
            Call::AddScore { node, delta } => Request::UpdatePoloScore { node, delta: Some(delta) },
            Call::Deregister => self.deregister_request(),
            Call::RequestHandshake { node, justification } => Request::RequestHandshake {
                from: own,
                to: node,
                justification,
                signature: self.sign(&signed::handshake(own, node)),
            },
            Call::RespondHandshake { node, accept } => Request::RespondHandshake {
                node: own,
                peer: node,
                accept,
                signature: self.sign(&signed::respond(own, node)),
            },
            Call::ListNetworks => Request::ListNetworks,
            Call::ListNodes { network } => Request::ListNodes { network, admin_token: String::new() },
            Call::JoinNetwork { network, token } => Request::JoinNetwork {
                node: own,
                network,
                token,
                signature: self.sign(&signed::join_network(own, network)),
            },
            Call::LeaveNetwork { network } => {
                Request::LeaveNetwork { node: own, network, signature: self.sign(&signed::leave_network(own, network)) }
            }
            Call::InviteToNetwork { network, node } => Request::InviteToNetwork {
                inviter: own,
                network,
                target: node,
                signature: self.sign(&signed::invite(own, network, node)),
            },
            Call::PollInvites => Request::PollInvites { node: own, signature: self.sign(&signed::poll_invites(own)) },
            Call::RespondInvite { network, accept } => Request::RespondInvite {
                node: own,
                network,
                accept,
                signature: self.sign(&signed::respond_invite(own, network)),
            },
            Call::NetworkPolicy { network } => Request::GetNetworkPolicy { network },
            Call::MemberRole { network, node } => Request::GetMemberRole { network, target: node },
            Call::ChangeNetwork { change, at } => {
                let signature = self.sign(&signed::network_command(own, &change, at));
                let by = Authority { node: own, timestamp: at, signature, ..Authority::default() };
                Request::ChangeNetwork { by, change }
            }
            Call::BeaconList => Request::BeaconList,
        }
    }
}
