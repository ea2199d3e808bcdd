//! Registry to client (04 §9, 07 §9).

use serde_json::Value;

use super::fields::{Builder, Fields};
use super::networks::{InviteEntry, ListNodesOk, NetworkEntry, NetworkPolicyOk};
use crate::addr::Address;
use crate::frame::{self, FrameError};
use crate::json;

/// An answer of the server. [`Answer::to_value`] gives what is sent; clients read with the `from_fields` of the struct
/// they expect, after [`ErrorAnswer::from_fields`] has found no error.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Answer {
    /// `error`
    Error(ErrorAnswer),
    /// `register_ok`
    Register(RegisterOk),
    /// `rotate_key_ok`
    RotateKey {
        /// Whose.
        node: u32,
        /// The new key as sent.
        public_key: String,
    },
    /// `deregister_ok`
    Deregister,
    /// `heartbeat_ok`
    Heartbeat {
        /// Server clock, Unix seconds.
        time: u64,
    },
    /// `lookup_ok`
    Lookup(LookupOk),
    /// `resolve_ok`
    Resolve(ResolveOk),
    /// `resolve_hostname_ok`
    ResolveHostname(ResolveHostnameOk),
    /// `punch_ok`
    Punch {
        /// One side.
        node_a: u32,
        /// Its endpoint.
        node_a_addr: String,
        /// Other side.
        node_b: u32,
        /// Its endpoint.
        node_b_addr: String,
    },
    /// `set_hostname_ok`
    SetHostname {
        /// Whose.
        node: u32,
        /// The name now held, empty when cleared.
        hostname: String,
    },
    /// `set_visibility_ok`
    SetVisibility {
        /// Whose.
        node: u32,
        /// As set.
        public: bool,
    },
    /// `set_tags_ok`
    SetTags {
        /// Whose.
        node: u32,
        /// As stored; `null` on the wire when empty.
        tags: Vec<String>,
    },
    /// `set_task_exec_ok`
    SetTaskExec {
        /// Whose.
        node: u32,
        /// As set.
        enabled: bool,
    },
    /// `report_trust_ok`
    ReportTrust,
    /// `revoke_trust_ok`
    RevokeTrust,
    /// `check_trust_ok`
    CheckTrust {
        /// Whether both sides trust each other.
        trusted: bool,
    },
    /// `request_handshake_ok`
    RequestHandshake,
    /// `poll_handshakes_ok`
    Poll(PollOk),
    /// `respond_handshake_ok`
    RespondHandshake {
        /// Who had asked.
        peer: u32,
        /// As given.
        accept: bool,
    },
    /// `update_polo_score_ok`, `set_polo_score_ok` or `get_polo_score_ok`
    PoloScore {
        /// Type of the request.
        request: &'static str,
        /// Whose.
        node: u32,
        /// The score.
        score: i64,
    },
    /// `authorize_task_submit_ok`
    AuthorizeTask {
        /// What speaks against it; `None`: the worker may take the task.
        refused: Option<String>,
    },
    /// `list_networks_ok`
    ListNetworks(Vec<NetworkEntry>),
    /// `list_nodes_ok`
    ListNodes(ListNodesOk),
    /// `get_network_policy_ok`
    NetworkPolicy(NetworkPolicyOk),
    /// `set_network_policy_ok`: the policy as it is now.
    PolicySet(NetworkPolicyOk),
    /// `create_network_ok`
    NetworkCreated {
        /// Its id.
        network: u16,
        /// Its name.
        name: String,
        /// Its rule.
        join_rule: String,
        /// Its owner; 0 when it has none.
        owner: u32,
    },
    /// The answer to another [`super::NetworkChange`].
    NetworkChanged {
        /// Type of the request.
        request: &'static str,
        /// Which.
        network: u16,
        /// About whom.
        target: Option<u32>,
        /// The new name.
        name: Option<String>,
        /// The role of the target now.
        role: Option<&'static str>,
    },
    /// `join_network_ok`
    NetworkJoined {
        /// Which.
        network: u16,
        /// Who.
        node: u32,
    },
    /// `leave_network_ok`
    NetworkLeft {
        /// Which.
        network: u16,
    },
    /// `invite_to_network_ok`
    Invited {
        /// By whom.
        inviter: u32,
        /// To which.
        network: u16,
        /// Whom.
        target: u32,
    },
    /// `poll_invites_ok`
    Invites(Vec<InviteEntry>),
    /// `respond_invite_ok`
    InviteAnswered {
        /// Who answered.
        node: u32,
        /// To which.
        network: u16,
        /// As given.
        accept: bool,
    },
    /// `get_member_role_ok`
    MemberRole {
        /// In which.
        network: u16,
        /// Whose.
        target: u32,
        /// `owner`, `admin` or `member`.
        role: &'static str,
    },
    /// `beacon_register_ok`
    BeaconRegister {
        /// As given.
        beacon: u32,
    },
    /// `beacon_list_ok`
    BeaconList(Vec<BeaconEntry>),
}

/// `error`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorAnswer {
    /// Shown to people as `registry: <text>`.
    pub text: String,
    /// Machine-readable reason, from our own servers only.
    pub code: Option<String>,
}

impl ErrorAnswer {
    /// The error in an answer: any answer with a string field `error` is one, whatever its type (04 §5).
    pub fn from_fields(f: &Fields) -> Option<Self> {
        f.text("error").map(|text| Self { text: text.to_owned(), code: f.optional("code") })
    }
}

/// `register_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterOk {
    /// Own id.
    pub node: u32,
    /// Always 0.
    pub network: u16,
    /// The key as sent.
    pub public_key: String,
    /// Set when the wanted hostname was given.
    pub hostname: Option<String>,
    /// Why it was not.
    pub hostname_error: Option<String>,
    /// Where the server saw us, with the port of `listen_addr`.
    pub observed_addr: Option<String>,
    /// 1 from newer servers.
    pub protocol_version: Option<u32>,
}

impl RegisterOk {
    /// `None` without a node id, on which a daemon insists.
    pub fn from_fields(f: &Fields) -> Option<Self> {
        f.number("node_id")?;
        Some(Self {
            node: f.u32("node_id"),
            network: f.u16("network_id"),
            public_key: f.string("public_key"),
            hostname: f.optional("hostname"),
            hostname_error: f.optional("hostname_error"),
            observed_addr: f.optional("observed_addr"),
            protocol_version: f.number("protocol_version").map(super::coerce_u32),
        })
    }
}

/// `lookup_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LookupOk {
    /// Whom.
    pub node: u32,
    /// Memberships; `None` is `null`.
    pub networks: Option<Vec<u16>>,
    /// Base64 of 32 bytes.
    pub public_key: String,
    /// Whether everybody gets the endpoint.
    pub public: bool,
    /// Absent from the newest servers.
    pub polo_score: Option<i64>,
    /// Its name.
    pub hostname: Option<String>,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether it takes tasks.
    pub task_exec: bool,
    /// Its endpoint, public nodes only.
    pub real_addr: Option<String>,
    /// As registered; absent for February daemons, so its presence means AEAD scheme B (07 rule 6).
    pub version: Option<String>,
    /// Whether it is reached through the beacon only.
    pub relay_only: bool,
}

impl LookupOk {
    /// `None` without a public key, on which a daemon insists.
    pub fn from_fields(f: &Fields) -> Option<Self> {
        let numbers =
            |list: &[Value]| list.iter().filter_map(Value::as_f64).map(super::coerce_u16).collect::<Vec<u16>>();
        Some(Self {
            node: f.u32("node_id"),
            networks: f.get("networks").and_then(Value::as_array).map(|list| numbers(list)),
            public_key: f.optional("public_key")?,
            public: f.bool("public"),
            polo_score: f.i64("polo_score"),
            hostname: f.optional("hostname"),
            tags: f.strings("tags"),
            task_exec: f.bool("task_exec"),
            real_addr: f.optional("real_addr"),
            version: f.optional("version"),
            relay_only: f.bool("relay_only"),
        })
    }
}

/// `resolve_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolveOk {
    /// Whose.
    pub node: u32,
    /// `host:port`, not empty.
    pub real_addr: String,
    /// Age of its key in days, from newer servers.
    pub key_age_days: Option<i64>,
    /// Whether the address is the beacon's.
    pub relay_only: bool,
}

impl ResolveOk {
    /// `None` without an address.
    pub fn from_fields(f: &Fields) -> Option<Self> {
        Some(Self {
            node: f.u32("node_id"),
            real_addr: f.optional("real_addr")?,
            key_age_days: f.i64("key_age_days"),
            relay_only: f.bool("relay_only"),
        })
    }
}

/// `resolve_hostname_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResolveHostnameOk {
    /// Who has the name.
    pub node: u32,
    /// The name.
    pub hostname: String,
    /// Whether it is public.
    pub public: bool,
}

impl ResolveHostnameOk {
    /// `None` without a node id.
    pub fn from_fields(f: &Fields) -> Option<Self> {
        f.number("node_id")?;
        Some(Self { node: f.u32("node_id"), hostname: f.string("hostname"), public: f.bool("public") })
    }
}

/// `poll_handshakes_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PollOk {
    /// Requests to this node, oldest first.
    pub requests: Vec<WaitingRequest>,
    /// Answers to requests of this node, oldest first.
    pub responses: Vec<WaitingResponse>,
}

/// A relayed request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitingRequest {
    /// Who asks.
    pub from: u32,
    /// Why.
    pub justification: String,
    /// Unix seconds.
    pub timestamp: u64,
}

/// A relayed answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitingResponse {
    /// Who answers.
    pub from: u32,
    /// Yes or no.
    pub accept: bool,
    /// Unix seconds.
    pub timestamp: u64,
}

/// Unix seconds of a field; anything before 1970 is 0.
fn seconds(f: &Fields, name: &str) -> u64 {
    f.i64(name).and_then(|n| u64::try_from(n).ok()).unwrap_or(0)
}

impl PollOk {
    /// Missing lists count as empty.
    pub fn from_fields(f: &Fields) -> Self {
        Self {
            requests: f
                .objects("requests")
                .map(|r| WaitingRequest {
                    from: r.u32("from_node_id"),
                    justification: r.string("justification"),
                    timestamp: seconds(&r, "timestamp"),
                })
                .collect(),
            responses: f
                .objects("responses")
                .map(|r| WaitingResponse {
                    from: r.u32("from_node_id"),
                    accept: r.bool("accept"),
                    timestamp: seconds(&r, "timestamp"),
                })
                .collect(),
        }
    }
}

/// An element of `beacon_list_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BeaconEntry {
    /// Id.
    pub id: u32,
    /// Where daemons find it.
    pub addr: String,
}

impl BeaconEntry {
    /// The beacons of a `beacon_list_ok`; entries without address are dropped.
    pub fn list_from_fields(f: &Fields) -> Vec<Self> {
        f.objects("beacons")
            .map(|b| Self { id: b.u32("id"), addr: b.string("addr") })
            .filter(|b| !b.addr.is_empty())
            .collect()
    }
}

fn backbone(node: u32) -> String {
    Address::backbone(node).to_string()
}

impl Answer {
    /// An error with text and code.
    pub fn error(text: impl Into<String>, code: Option<&str>) -> Self {
        Self::Error(ErrorAnswer { text: text.into(), code: code.map(str::to_owned) })
    }

    /// The answer as JSON.
    pub fn to_value(&self) -> Value {
        match self {
            Self::Error(e) => Builder::new("error").with("error", e.text.as_str()).maybe("code", e.code.clone()).done(),
            Self::Register(r) => Builder::new("register_ok")
                .with("node_id", r.node)
                .with("network_id", r.network)
                .with("address", Address { network: r.network, node: r.node }.to_string())
                .with("public_key", r.public_key.as_str())
                .maybe("hostname", r.hostname.clone())
                .maybe("hostname_error", r.hostname_error.clone())
                .maybe("observed_addr", r.observed_addr.clone())
                .maybe("protocol_version", r.protocol_version)
                .done(),
            Self::RotateKey { node, public_key } => Builder::new("rotate_key_ok")
                .with("node_id", *node)
                .with("address", backbone(*node))
                .with("public_key", public_key.as_str())
                .done(),
            Self::Deregister => Builder::new("deregister_ok").done(),
            Self::Heartbeat { time } => Builder::new("heartbeat_ok").with("time", *time).done(),
            Self::Lookup(l) => lookup_value(l),
            Self::Resolve(r) => Builder::new("resolve_ok")
                .with("node_id", r.node)
                .with("real_addr", r.real_addr.as_str())
                .maybe("key_age_days", r.key_age_days)
                .flag("relay_only", r.relay_only)
                .done(),
            Self::ResolveHostname(r) => Builder::new("resolve_hostname_ok")
                .with("node_id", r.node)
                .with("address", backbone(r.node))
                .with("hostname", r.hostname.as_str())
                .with("public", r.public)
                .done(),
            Self::Punch { node_a, node_a_addr, node_b, node_b_addr } => Builder::new("punch_ok")
                .with("node_a", *node_a)
                .with("node_a_addr", node_a_addr.as_str())
                .with("node_b", *node_b)
                .with("node_b_addr", node_b_addr.as_str())
                .done(),
            Self::SetHostname { node, hostname } => {
                Builder::new("set_hostname_ok").with("node_id", *node).with("hostname", hostname.as_str()).done()
            }
            Self::SetVisibility { node, public } => Builder::new("set_visibility_ok")
                .with("node_id", *node)
                .with("visibility", if *public { "public" } else { "private" })
                .done(),
            Self::SetTags { node, tags } => Builder::new("set_tags_ok")
                .with("node_id", *node)
                .with("tags", if tags.is_empty() { Value::Null } else { Value::from(tags.clone()) })
                .done(),
            Self::SetTaskExec { node, enabled } => {
                Builder::new("set_task_exec_ok").with("node_id", *node).with("task_exec", *enabled).done()
            }
            Self::ReportTrust => Builder::new("report_trust_ok").done(),
            Self::RevokeTrust => Builder::new("revoke_trust_ok").done(),
            Self::CheckTrust { trusted } => Builder::new("check_trust_ok").with("trusted", *trusted).done(),
            Self::RequestHandshake => Builder::new("request_handshake_ok").with("status", "delivered").done(),
            Self::Poll(p) => poll_value(p),
            Self::RespondHandshake { peer, accept } => {
                Builder::new("respond_handshake_ok").with("peer_id", *peer).with("accept", *accept).done()
            }
            Self::PoloScore { request, node, score } => Builder::new(&format!("{request}_ok"))
                .with("node_id", *node)
                .with("address", backbone(*node))
                .with("polo_score", *score)
                .done(),
            Self::AuthorizeTask { refused } => Builder::new("authorize_task_submit_ok")
                .with("authorized", refused.is_none())
                .maybe("reason", refused.clone())
                .done(),
            Self::ListNetworks(networks) => Builder::new("list_networks_ok")
                .with("networks", networks.iter().map(NetworkEntry::value).collect::<Vec<_>>())
                .done(),
            Self::ListNodes(list) => list.value(),
            Self::NetworkPolicy(policy) => policy.value("get_network_policy_ok"),
            Self::PolicySet(policy) => policy.value("set_network_policy_ok"),
            Self::NetworkCreated { network, name, join_rule, owner } => Builder::new("create_network_ok")
                .with("network_id", *network)
                .with("name", name.as_str())
                .with("join_rule", join_rule.as_str())
                .with("node_id", *owner)
                .maybe("address", (*owner != 0).then(|| Address { network: *network, node: *owner }.to_string()))
                .done(),
            Self::NetworkChanged { request, network, target, name, role } => Builder::new(&format!("{request}_ok"))
                .with("network_id", *network)
                .maybe("target_node_id", *target)
                .maybe("name", name.clone())
                .maybe("role", *role)
                .done(),
            Self::NetworkJoined { network, node } => Builder::new("join_network_ok")
                .with("network_id", *network)
                .with("address", Address { network: *network, node: *node }.to_string())
                .done(),
            Self::NetworkLeft { network } => Builder::new("leave_network_ok").with("network_id", *network).done(),
            Self::Invited { inviter, network, target } => Builder::new("invite_to_network_ok")
                .with("inviter_id", *inviter)
                .with("network_id", *network)
                .with("target_node_id", *target)
                .done(),
            Self::Invites(invites) => Builder::new("poll_invites_ok")
                .with("invites", invites.iter().map(InviteEntry::value).collect::<Vec<_>>())
                .done(),
            Self::InviteAnswered { node, network, accept } => Builder::new("respond_invite_ok")
                .with("node_id", *node)
                .with("network_id", *network)
                .with("accept", *accept)
                .maybe("address", accept.then(|| Address { network: *network, node: *node }.to_string()))
                .done(),
            Self::MemberRole { network, target, role } => Builder::new("get_member_role_ok")
                .with("network_id", *network)
                .with("target_node_id", *target)
                .with("role", *role)
                .done(),
            Self::BeaconRegister { beacon } => Builder::new("beacon_register_ok").with("beacon_id", *beacon).done(),
            Self::BeaconList(beacons) => Builder::new("beacon_list_ok")
                .with(
                    "beacons",
                    beacons
                        .iter()
                        .map(|b| Builder::entry().with("id", b.id).with("addr", b.addr.as_str()).done())
                        .collect::<Vec<_>>(),
                )
                .done(),
        }
    }

    /// Appends the complete frame.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when the client could not read it.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        frame::emit_with(out, |out| json::write_value(&self.to_value(), out))
    }
}

fn lookup_value(l: &LookupOk) -> Value {
    Builder::new("lookup_ok")
        .with("node_id", l.node)
        .with("address", backbone(l.node))
        .with("networks", l.networks.clone().map_or(Value::Null, Value::from))
        .with("public_key", l.public_key.as_str())
        .with("public", l.public)
        .maybe("polo_score", l.polo_score)
        .maybe("hostname", l.hostname.clone())
        .maybe("tags", (!l.tags.is_empty()).then(|| l.tags.clone()))
        .flag("task_exec", l.task_exec)
        .maybe("real_addr", l.real_addr.clone())
        .maybe("version", l.version.clone())
        .flag("relay_only", l.relay_only)
        .done()
}

fn poll_value(p: &PollOk) -> Value {
    let requests: Vec<Value> = p
        .requests
        .iter()
        .map(|r| {
            Builder::entry()
                .with("from_node_id", r.from)
                .with("justification", r.justification.as_str())
                .with("timestamp", r.timestamp)
                .done()
        })
        .collect();
    let responses: Vec<Value> = p
        .responses
        .iter()
        .map(|r| {
            Builder::entry().with("from_node_id", r.from).with("accept", r.accept).with("timestamp", r.timestamp).done()
        })
        .collect();
    Builder::new("poll_handshakes_ok").with("requests", requests).with("responses", responses).done()
}
