//! Client to registry (04 §9, 07 §9).

use serde_json::Value;

use super::fields::{Builder, Fields};
use super::networks::{Authority, NetworkChange, PolicyField};
use super::{MessageError, parse_body};
use crate::frame::{self, FrameError};
use crate::json;

/// A request. Signatures are base64 texts as received, empty when absent: what is answered depends on the text.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Request {
    /// `register`
    Register(Register),
    /// `rotate_key`, signed with the old key
    RotateKey {
        /// Whose key.
        node: u32,
        /// Base64 of 32 bytes.
        new_public_key: String,
        /// Of [`crate::signed::rotate`].
        signature: String,
    },
    /// `deregister`
    Deregister {
        /// Who leaves.
        node: u32,
        /// Of [`crate::signed::deregister`].
        signature: String,
    },
    /// `heartbeat`
    Heartbeat {
        /// Who lives.
        node: u32,
        /// Of [`crate::signed::heartbeat`].
        signature: String,
    },
    /// `lookup`
    Lookup {
        /// Whom.
        node: u32,
    },
    /// `resolve`
    Resolve {
        /// Whose endpoint.
        node: u32,
        /// Who asks.
        requester: u32,
        /// Of [`crate::signed::resolve`].
        signature: String,
    },
    /// `resolve_hostname`
    ResolveHostname {
        /// Exact name.
        hostname: String,
        /// Who asks; 0 from February clients.
        requester: u32,
    },
    /// `punch`
    Punch {
        /// Who asks.
        requester: u32,
        /// One side.
        node_a: u32,
        /// Other side.
        node_b: u32,
        /// Of [`crate::signed::punch`].
        signature: String,
    },
    /// `set_hostname`
    SetHostname {
        /// Whose.
        node: u32,
        /// Empty clears.
        hostname: String,
        /// Of [`crate::signed::set_hostname`].
        signature: String,
    },
    /// `set_visibility`
    SetVisibility {
        /// Whose.
        node: u32,
        /// Whether everybody gets the endpoint.
        public: bool,
        /// Of [`crate::signed::set_visibility`].
        signature: String,
    },
    /// `set_tags`
    SetTags {
        /// Whose.
        node: u32,
        /// Empty clears.
        tags: Vec<String>,
        /// Of [`crate::signed::set_tags`].
        signature: String,
    },
    /// `set_task_exec`
    SetTaskExec {
        /// Whose.
        node: u32,
        /// On or off.
        enabled: bool,
        /// Of [`crate::signed::set_task_exec`].
        signature: String,
    },
    /// `report_trust`
    ReportTrust {
        /// Who trusts.
        node: u32,
        /// Whom.
        peer: u32,
        /// Of [`crate::signed::report_trust`].
        signature: String,
    },
    /// `revoke_trust`
    RevokeTrust {
        /// Who ends trust.
        node: u32,
        /// In whom.
        peer: u32,
        /// Of [`crate::signed::revoke_trust`].
        signature: String,
    },
    /// `check_trust`; its fields are those of `report_trust` without a signature (07 §9.3 names only the type)
    CheckTrust {
        /// One side.
        node: u32,
        /// Other side.
        peer: u32,
    },
    /// `request_handshake`
    RequestHandshake {
        /// Who asks for trust.
        from: u32,
        /// Whom.
        to: u32,
        /// Why.
        justification: String,
        /// Of [`crate::signed::handshake`].
        signature: String,
    },
    /// `poll_handshakes`
    PollHandshakes {
        /// Whose inboxes.
        node: u32,
        /// Of [`crate::signed::poll_handshakes`].
        signature: String,
    },
    /// `respond_handshake`
    RespondHandshake {
        /// Who answers.
        node: u32,
        /// Who asked.
        peer: u32,
        /// Yes or no.
        accept: bool,
        /// Of [`crate::signed::respond`].
        signature: String,
    },
    /// `update_polo_score`
    UpdatePoloScore {
        /// Whose.
        node: u32,
        /// Must be present.
        delta: Option<i64>,
    },
    /// `set_polo_score`
    SetPoloScore {
        /// Whose.
        node: u32,
        /// Must be present.
        score: Option<i64>,
    },
    /// `get_polo_score`
    GetPoloScore {
        /// Whose.
        node: u32,
    },
    /// `authorize_task_submit`: a worker of release 1.9.1 asks whether it may take a task (docs/spec/registry.md, R29).
    AuthorizeTask {
        /// Who asks.
        caller: u32,
        /// Whose task it is.
        submitter: u32,
        /// Who would do it.
        receiver: u32,
        /// Of [`crate::signed::authorize_task`].
        signature: String,
    },
    /// `list_networks`
    ListNetworks,
    /// `list_nodes`
    ListNodes {
        /// Of which network.
        network: u16,
        /// Needed for network 0 by newer servers.
        admin_token: String,
    },
    /// `join_network`
    JoinNetwork {
        /// Who joins.
        node: u32,
        /// Which.
        network: u16,
        /// May be empty.
        token: String,
        /// Of [`crate::signed::join_network`].
        signature: String,
    },
    /// `leave_network`
    LeaveNetwork {
        /// Who leaves.
        node: u32,
        /// Which.
        network: u16,
        /// Of [`crate::signed::leave_network`].
        signature: String,
    },
    /// `invite_to_network`
    InviteToNetwork {
        /// Who invites.
        inviter: u32,
        /// To which.
        network: u16,
        /// Whom.
        target: u32,
        /// Of [`crate::signed::invite`].
        signature: String,
    },
    /// `poll_invites`
    PollInvites {
        /// Whose.
        node: u32,
        /// Of [`crate::signed::poll_invites`].
        signature: String,
    },
    /// `respond_invite`
    RespondInvite {
        /// Who answers.
        node: u32,
        /// To which.
        network: u16,
        /// Yes or no.
        accept: bool,
        /// Of [`crate::signed::respond_invite`].
        signature: String,
    },
    /// A command that needs a right in the network, or the admin token.
    ChangeNetwork {
        /// Who gives it.
        by: Authority,
        /// What.
        change: NetworkChange,
    },
    /// `get_member_role`
    GetMemberRole {
        /// In which network.
        network: u16,
        /// Whose.
        target: u32,
    },
    /// `get_network_policy`
    GetNetworkPolicy {
        /// Of which network.
        network: u16,
    },
    /// `beacon_register`
    BeaconRegister {
        /// Not 0.
        beacon: u32,
        /// Where daemons find it.
        addr: String,
    },
    /// `beacon_list`
    BeaconList,
    /// `subscribe_replication`
    SubscribeReplication {
        /// Shared secret.
        token: String,
    },
    /// `set_network_policy` with a field that has a value which it cannot have.
    PolicyUnreadable {
        /// Which.
        field: PolicyField,
    },
    /// Any other type, or none; the text is empty when there is none.
    Unknown {
        /// The type as sent.
        kind: String,
    },
}

/// `register` (04 §9.1, 07 §9.2). Empty texts are left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Register {
    /// Base64 of 32 bytes; required.
    pub public_key: String,
    /// `host:port` of the tunnel socket.
    pub listen_addr: String,
    /// Owner text or e-mail.
    pub owner: String,
    /// Wanted hostname.
    pub hostname: String,
    /// Program version; absent from February daemons, so its presence means AEAD scheme B (07 rule 6).
    pub version: Option<String>,
    /// Whether peers shall be given the beacon instead of the endpoint.
    pub relay_only: bool,
    /// Of [`crate::signed::register`]; empty from daemons before 1.13.11.
    pub signature: String,
    /// Proof of an external identity.
    pub identity_token: String,
    /// Protocol version offered, 0 when absent.
    pub protocol_version: u32,
}

impl Request {
    /// The type text.
    pub fn kind(&self) -> &str {
        match self {
            Self::Register(_) => "register",
            Self::RotateKey { .. } => "rotate_key",
            Self::Deregister { .. } => "deregister",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Lookup { .. } => "lookup",
            Self::Resolve { .. } => "resolve",
            Self::ResolveHostname { .. } => "resolve_hostname",
            Self::Punch { .. } => "punch",
            Self::SetHostname { .. } => "set_hostname",
            Self::SetVisibility { .. } => "set_visibility",
            Self::SetTags { .. } => "set_tags",
            Self::SetTaskExec { .. } => "set_task_exec",
            Self::ReportTrust { .. } => "report_trust",
            Self::RevokeTrust { .. } => "revoke_trust",
            Self::CheckTrust { .. } => "check_trust",
            Self::RequestHandshake { .. } => "request_handshake",
            Self::PollHandshakes { .. } => "poll_handshakes",
            Self::RespondHandshake { .. } => "respond_handshake",
            Self::UpdatePoloScore { .. } => "update_polo_score",
            Self::SetPoloScore { .. } => "set_polo_score",
            Self::GetPoloScore { .. } => "get_polo_score",
            Self::AuthorizeTask { .. } => "authorize_task_submit",
            Self::ListNetworks => "list_networks",
            Self::ListNodes { .. } => "list_nodes",
            Self::JoinNetwork { .. } => "join_network",
            Self::LeaveNetwork { .. } => "leave_network",
            Self::InviteToNetwork { .. } => "invite_to_network",
            Self::PollInvites { .. } => "poll_invites",
            Self::RespondInvite { .. } => "respond_invite",
            Self::ChangeNetwork { change, .. } => change.kind(),
            Self::GetMemberRole { .. } => "get_member_role",
            Self::GetNetworkPolicy { .. } => "get_network_policy",
            Self::BeaconRegister { .. } => "beacon_register",
            Self::BeaconList => "beacon_list",
            Self::SubscribeReplication { .. } => "subscribe_replication",
            Self::PolicyUnreadable { .. } => "set_network_policy",
            Self::Unknown { kind } => kind,
        }
    }

    /// Whether sending it twice does no harm, so that it may be sent again after a lost connection. A poll empties the
    /// inbox and a score changes at each delivery.
    pub fn is_idempotent(&self) -> bool {
        !matches!(
            self,
            Self::PollHandshakes { .. }
                | Self::UpdatePoloScore { .. }
                | Self::RequestHandshake { .. }
                | Self::RotateKey { .. }
                | Self::PollInvites { .. }
                | Self::ChangeNetwork { .. }
                | Self::PolicyUnreadable { .. }
                | Self::Unknown { .. }
        )
    }

    /// Reads the body of a frame.
    ///
    /// # Errors
    /// [`MessageError`]: the server closes the connection without an answer.
    pub fn parse(body: &[u8]) -> Result<Self, MessageError> {
        parse_body(body).map(|fields| Self::from_fields(&fields))
    }

    /// Reads the fields of a message; unknown ones are ignored.
    pub fn from_fields(f: &Fields) -> Self {
        let (node, signature) = (f.u32("node_id"), f.string("signature"));
        match f.text("type").unwrap_or_default() {
            "register" => Self::Register(Register {
                public_key: f.string("public_key"),
                listen_addr: f.string("listen_addr"),
                owner: f.string("owner"),
                hostname: f.string("hostname"),
                version: f.optional("version"),
                relay_only: f.bool("relay_only"),
                signature,
                identity_token: f.string("identity_token"),
                protocol_version: f.u32("protocol_version"),
            }),
            "rotate_key" => Self::RotateKey { node, new_public_key: f.string("new_public_key"), signature },
            "deregister" => Self::Deregister { node, signature },
            "heartbeat" => Self::Heartbeat { node, signature },
            "lookup" => Self::Lookup { node },
            "resolve" => Self::Resolve { node, requester: f.u32("requester_id"), signature },
            "resolve_hostname" => {
                Self::ResolveHostname { hostname: f.string("hostname"), requester: f.u32("requester_id") }
            }
            "punch" => Self::Punch {
                requester: f.u32("requester_id"),
                node_a: f.u32("node_a"),
                node_b: f.u32("node_b"),
                signature,
            },
            "set_hostname" => Self::SetHostname { node, hostname: f.string("hostname"), signature },
            "set_visibility" => Self::SetVisibility { node, public: f.bool("public"), signature },
            "set_tags" => Self::SetTags { node, tags: f.strings("tags"), signature },
            "set_task_exec" => Self::SetTaskExec { node, enabled: f.bool("enabled"), signature },
            "report_trust" => Self::ReportTrust { node, peer: f.u32("peer_id"), signature },
            "revoke_trust" => Self::RevokeTrust { node, peer: f.u32("peer_id"), signature },
            "check_trust" => Self::CheckTrust { node, peer: f.u32("peer_id") },
            "request_handshake" => Self::RequestHandshake {
                from: f.u32("from_node_id"),
                to: f.u32("to_node_id"),
                justification: f.string("justification"),
                signature,
            },
            "poll_handshakes" => Self::PollHandshakes { node, signature },
            "respond_handshake" => {
                Self::RespondHandshake { node, peer: f.u32("peer_id"), accept: f.bool("accept"), signature }
            }
            "update_polo_score" => Self::UpdatePoloScore { node, delta: f.i64("delta") },
            "set_polo_score" => Self::SetPoloScore { node, score: f.i64("polo_score") },
            "get_polo_score" => Self::GetPoloScore { node },
            "authorize_task_submit" => Self::AuthorizeTask {
                caller: f.u32("caller_node_id"),
                submitter: f.u32("submitter_node_id"),
                receiver: f.u32("receiver_node_id"),
                signature,
            },
            "list_networks" => Self::ListNetworks,
            "list_nodes" => Self::ListNodes { network: f.u16("network_id"), admin_token: f.string("admin_token") },
            "join_network" => {
                Self::JoinNetwork { node, network: f.u16("network_id"), token: f.string("token"), signature }
            }
            "leave_network" => Self::LeaveNetwork { node, network: f.u16("network_id"), signature },
            "invite_to_network" => Self::InviteToNetwork {
                inviter: f.u32("inviter_id"),
                network: f.u16("network_id"),
                target: f.u32("target_node_id"),
                signature,
            },
            "poll_invites" => Self::PollInvites { node, signature },
            "respond_invite" => {
                Self::RespondInvite { node, network: f.u16("network_id"), accept: f.bool("accept"), signature }
            }
            "get_member_role" => Self::GetMemberRole { network: f.u16("network_id"), target: f.u32("target_node_id") },
            "get_network_policy" => Self::GetNetworkPolicy { network: f.u16("network_id") },
            "beacon_register" => Self::BeaconRegister { beacon: f.u32("beacon_id"), addr: f.string("addr") },
            "beacon_list" => Self::BeaconList,
            "subscribe_replication" => Self::SubscribeReplication { token: f.string("token") },
            other => match NetworkChange::from_fields(other, f) {
                Ok(Some(change)) => Self::ChangeNetwork { by: Authority::from_fields(f), change },
                Err(field) => Self::PolicyUnreadable { field },
                Ok(None) => Self::Unknown { kind: other.to_owned() },
            },
        }
    }

    /// The message as JSON, with the fields the official client sends.
    pub fn to_value(&self) -> Value {
        let b = Builder::new(self.kind());
        match self {
            Self::Register(r) => b
                .text("public_key", &r.public_key)
                .text("listen_addr", &r.listen_addr)
                .text("owner", &r.owner)
                .text("hostname", &r.hostname)
                .maybe("version", r.version.clone())
                .flag("relay_only", r.relay_only)
                .text("signature", &r.signature)
                .text("identity_token", &r.identity_token)
                .maybe("protocol_version", (r.protocol_version != 0).then_some(r.protocol_version)),
            Self::RotateKey { node, new_public_key, signature } => {
                b.with("node_id", *node).text("new_public_key", new_public_key).text("signature", signature)
            }
            Self::Deregister { node, signature }
            | Self::Heartbeat { node, signature }
            | Self::PollHandshakes { node, signature } => b.with("node_id", *node).text("signature", signature),
            Self::Lookup { node } | Self::GetPoloScore { node } => b.with("node_id", *node),
            Self::Resolve { node, requester, signature } => {
                b.with("node_id", *node).with("requester_id", *requester).text("signature", signature)
            }
            Self::ResolveHostname { hostname, requester } => {
                b.with("hostname", hostname.as_str()).maybe("requester_id", (*requester != 0).then_some(*requester))
            }
            Self::Punch { requester, node_a, node_b, signature } => b
                .with("requester_id", *requester)
                .with("node_a", *node_a)
                .with("node_b", *node_b)
                .text("signature", signature),
            Self::SetHostname { node, hostname, signature } => {
                b.with("node_id", *node).with("hostname", hostname.as_str()).text("signature", signature)
            }
            Self::SetVisibility { node, public, signature } => {
                b.with("node_id", *node).with("public", *public).text("signature", signature)
            }
            Self::SetTags { node, tags, signature } => {
                b.with("node_id", *node).with("tags", tags.clone()).text("signature", signature)
            }
            Self::SetTaskExec { node, enabled, signature } => {
                b.with("node_id", *node).with("enabled", *enabled).text("signature", signature)
            }
            Self::ReportTrust { node, peer, signature } | Self::RevokeTrust { node, peer, signature } => {
                b.with("node_id", *node).with("peer_id", *peer).text("signature", signature)
            }
            Self::CheckTrust { node, peer } => b.with("node_id", *node).with("peer_id", *peer),
            Self::RequestHandshake { from, to, justification, signature } => b
                .with("from_node_id", *from)
                .with("to_node_id", *to)
                .with("justification", justification.as_str())
                .text("signature", signature),
            Self::RespondHandshake { node, peer, accept, signature } => {
                b.with("node_id", *node).with("peer_id", *peer).with("accept", *accept).text("signature", signature)
            }
            Self::UpdatePoloScore { node, delta } => b.with("node_id", *node).maybe("delta", *delta),
            Self::SetPoloScore { node, score } => b.with("node_id", *node).maybe("polo_score", *score),
            Self::AuthorizeTask { caller, submitter, receiver, signature } => b
                .with("caller_node_id", *caller)
                .with("submitter_node_id", *submitter)
                .with("receiver_node_id", *receiver)
                .text("signature", signature),
            Self::ListNodes { network, admin_token } => b.with("network_id", *network).text("admin_token", admin_token),
            Self::JoinNetwork { node, network, token, signature } => {
                b.with("node_id", *node).with("network_id", *network).text("token", token).text("signature", signature)
            }
            Self::LeaveNetwork { node, network, signature } => {
                b.with("node_id", *node).with("network_id", *network).text("signature", signature)
            }
            Self::InviteToNetwork { inviter, network, target, signature } => b
                .with("inviter_id", *inviter)
                .with("network_id", *network)
                .with("target_node_id", *target)
                .text("signature", signature),
            Self::PollInvites { node, signature } => b.with("node_id", *node).text("signature", signature),
            Self::RespondInvite { node, network, accept, signature } => b
                .with("node_id", *node)
                .with("network_id", *network)
                .with("accept", *accept)
                .text("signature", signature),
            Self::ChangeNetwork { by, change } => change.add_to(by, b),
            Self::GetMemberRole { network, target } => b.with("network_id", *network).with("target_node_id", *target),
            Self::GetNetworkPolicy { network } => b.with("network_id", *network),
            Self::BeaconRegister { beacon, addr } => {
                b.maybe("beacon_id", (*beacon != 0).then_some(*beacon)).text("addr", addr)
            }
            Self::SubscribeReplication { token } => b.text("token", token),
            // As unreadable as it was.
            Self::PolicyUnreadable { field } => b.with(field.name(), true),
            Self::ListNetworks | Self::BeaconList | Self::Unknown { .. } => b,
        }
        .done()
    }

    /// Appends the complete frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when the server would close the connection for it.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        frame::emit_with(out, |out| json::write_value(&self.to_value(), out))
    }
}
