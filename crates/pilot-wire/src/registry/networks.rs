//! The messages of networks (04 §13, 07 §9.3): what an owner or an administrator commands, what is told of members and of
//! invitations.
//!
//! Names of types and fields are those of the official programs from April 2026 on. They prove such a command with the
//! registry's admin token; ours also take the signature of the node that gives it (docs/spec/networks.md, N4).

use serde_json::{Map, Value};

use super::fields::{Builder, Fields};
use crate::addr::Address;
use crate::json;

/// Who commands, and how it is proved: by the admin token, or by a signature over [`crate::signed::network_command`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authority {
    /// Who; 0 when only the token speaks.
    pub node: u32,
    /// Empty when there is none.
    pub admin_token: String,
    /// Unix seconds at which it was signed; 0 when it is not signed.
    pub timestamp: u64,
    /// Base64, empty when there is none.
    pub signature: String,
}

/// A change of a network's policy; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyChange {
    /// Ports on which members reach each other; empty means all.
    pub allowed_ports: Option<Vec<u16>>,
    /// 0 means as many as the registry takes.
    pub max_members: Option<u32>,
    /// Free text.
    pub description: Option<String>,
}

/// A command about a network that needs a right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkChange {
    /// `create_network`
    Create {
        /// As a hostname (04 §10.3).
        name: String,
        /// `open`, `token` or `invite`; empty means open.
        join_rule: String,
        /// Join token, for the rule `token`.
        token: String,
    },
    /// `delete_network`
    Delete {
        /// Which.
        network: u16,
    },
    /// `rename_network`
    Rename {
        /// Which.
        network: u16,
        /// New name.
        name: String,
    },
    /// `kick_member`
    Kick {
        /// Of which.
        network: u16,
        /// Whom.
        target: u32,
    },
    /// `promote_member`
    Promote {
        /// In which.
        network: u16,
        /// Whom.
        target: u32,
    },
    /// `demote_member`
    Demote {
        /// In which.
        network: u16,
        /// Whom.
        target: u32,
    },
    /// `transfer_ownership`
    Transfer {
        /// Of which.
        network: u16,
        /// To whom.
        target: u32,
    },
    /// `set_network_policy`
    SetPolicy {
        /// Of which.
        network: u16,
        /// What changes.
        policy: PolicyChange,
    },
}

impl NetworkChange {
    /// The type text.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Create { .. } => "create_network",
            Self::Delete { .. } => "delete_network",
            Self::Rename { .. } => "rename_network",
            Self::Kick { .. } => "kick_member",
            Self::Promote { .. } => "promote_member",
            Self::Demote { .. } => "demote_member",
            Self::Transfer { .. } => "transfer_ownership",
            Self::SetPolicy { .. } => "set_network_policy",
        }
    }

    /// The network it is about; 0 for one that does not exist yet.
    pub fn network(&self) -> u16 {
        match self {
            Self::Create { .. } => 0,
            Self::Delete { network }
            | Self::Rename { network, .. }
            | Self::Kick { network, .. }
            | Self::Promote { network, .. }
            | Self::Demote { network, .. }
            | Self::Transfer { network, .. }
            | Self::SetPolicy { network, .. } => *network,
        }
    }

    /// The member it is about.
    pub fn target(&self) -> Option<u32> {
        match self {
            Self::Kick { target, .. }
            | Self::Promote { target, .. }
            | Self::Demote { target, .. }
            | Self::Transfer { target, .. } => Some(*target),
            _ => None,
        }
    }

    /// All its fields as one JSON text with sorted keys: what a signature covers.
    pub fn canonical(&self) -> String {
        json::to_string(&Value::Object(self.fields()))
    }

    /// Its own fields, without who commands it.
    fn fields(&self) -> Map<String, Value> {
        let b = Builder::entry();
        let built = match self {
            Self::Create { name, join_rule, token } => {
                b.with("name", name.as_str()).with("join_rule", join_rule.as_str()).with("token", token.as_str())
            }
            Self::Delete { network } => b.with("network_id", *network),
            Self::Rename { network, name } => b.with("network_id", *network).with("name", name.as_str()),
            Self::Kick { network, target }
            | Self::Promote { network, target }
            | Self::Demote { network, target }
            | Self::Transfer { network, target } => b.with("network_id", *network).with("target_node_id", *target),
            Self::SetPolicy { network, policy } => b
                .with("network_id", *network)
                .maybe("allowed_ports", policy.allowed_ports.clone())
                .maybe("max_members", policy.max_members)
                .maybe("description", policy.description.clone()),
        };
        match built.done() {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    /// `None` when the type is no such command.
    pub(super) fn from_fields(kind: &str, f: &Fields) -> Result<Option<Self>, PolicyField> {
        let (network, target) = (f.u16("network_id"), f.u32("target_node_id"));
        Ok(Some(match kind {
            "create_network" => {
                Self::Create { name: f.string("name"), join_rule: f.string("join_rule"), token: f.string("token") }
            }
            "delete_network" => Self::Delete { network },
            "rename_network" => Self::Rename { network, name: f.string("name") },
            "kick_member" => Self::Kick { network, target },
            "promote_member" => Self::Promote { network, target },
            "demote_member" => Self::Demote { network, target },
            "transfer_ownership" => Self::Transfer { network, target },
            "set_network_policy" => Self::SetPolicy { network, policy: PolicyChange::from_fields(f)? },
            _ => return Ok(None),
        }))
    }

    pub(super) fn add_to(&self, by: &Authority, mut builder: Builder) -> Builder {
        for (name, value) in self.fields() {
            builder = builder.with(&name, value);
        }
        builder
            .with("node_id", by.node)
            .text("admin_token", &by.admin_token)
            .maybe("timestamp", (by.timestamp != 0).then_some(by.timestamp))
            .text("signature", &by.signature)
    }
}

impl Authority {
    pub(super) fn from_fields(f: &Fields) -> Self {
        Self {
            node: f.u32("node_id"),
            admin_token: f.string("admin_token"),
            timestamp: f.i64("timestamp").and_then(|at| u64::try_from(at).ok()).unwrap_or(0),
            signature: f.string("signature"),
        }
    }
}

/// A field of a policy that has a value which it cannot have. Unlike other fields (04 §4) such a one does not count as absent:
/// a policy without a list of ports opens all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyField {
    /// No list, or something in it is no port.
    #[error("allowed_ports is a list of ports, 0 to 65535")]
    AllowedPorts,
    /// No number, or one that does not fit.
    #[error("max_members is a whole number from 0 up")]
    MaxMembers,
    /// No text.
    #[error("description is a text")]
    Description,
}

impl PolicyField {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::AllowedPorts => "allowed_ports",
            Self::MaxMembers => "max_members",
            Self::Description => "description",
        }
    }
}

impl PolicyChange {
    /// Whether it names nothing to change.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Fields that are missing, or null, change nothing.
    ///
    /// # Errors
    /// The field with another value than it can have.
    pub fn from_fields(f: &Fields) -> Result<Self, PolicyField> {
        Ok(Self {
            allowed_ports: value(f, "allowed_ports").map(ports).transpose()?,
            max_members: value(f, "max_members").map(max_members).transpose()?,
            description: value(f, "description").map(text).transpose()?,
        })
    }
}

fn value<'a>(f: &'a Fields, name: &str) -> Option<&'a Value> {
    f.get(name).filter(|value| !value.is_null())
}

fn ports(list: &Value) -> Result<Vec<u16>, PolicyField> {
    let port = |value: &Value| value.as_u64().and_then(|port| u16::try_from(port).ok());
    let list = list.as_array().ok_or(PolicyField::AllowedPorts)?;
    list.iter().map(port).collect::<Option<_>>().ok_or(PolicyField::AllowedPorts)
}

fn max_members(value: &Value) -> Result<u32, PolicyField> {
    let max = value.as_u64().and_then(|max| u32::try_from(max).ok());
    max.ok_or(PolicyField::MaxMembers)
}

fn text(value: &Value) -> Result<String, PolicyField> {
    value.as_str().map(str::to_owned).ok_or(PolicyField::Description)
}

/// An element of `list_networks_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkEntry {
    /// Id.
    pub id: u16,
    /// Name.
    pub name: String,
    /// Member count.
    pub members: usize,
    /// `open`, `token` or `invite`.
    pub join_rule: String,
    /// Unix seconds; left out when absent (07 §9.2).
    pub created: Option<u64>,
    /// Left out when absent (07 §9.2).
    pub enterprise: Option<bool>,
}

impl NetworkEntry {
    pub(super) fn value(&self) -> Value {
        Builder::entry()
            .with("id", self.id)
            .with("name", self.name.as_str())
            .with("members", self.members)
            .with("join_rule", self.join_rule.as_str())
            .maybe("created", self.created)
            .maybe("enterprise", self.enterprise)
            .done()
    }
}

/// An element of `list_nodes_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeEntry {
    /// Id.
    pub node: u32,
    /// Its name.
    pub hostname: Option<String>,
    /// Whether it takes tasks.
    pub task_exec: bool,
    /// Its endpoint, public nodes only.
    pub real_addr: Option<String>,
    /// Whether everybody gets its endpoint; left out when absent. Newer releases show it.
    pub public: Option<bool>,
    /// Version of its daemon. Newer releases show it.
    pub version: Option<String>,
    /// `owner`, `admin` or `member`; from our own registries.
    pub role: Option<String>,
}

impl NodeEntry {
    /// `None` without a node id.
    pub fn from_fields(f: &Fields) -> Option<Self> {
        f.number("node_id")?;
        Some(Self {
            node: f.u32("node_id"),
            hostname: f.optional("hostname"),
            task_exec: f.bool("task_exec"),
            real_addr: f.optional("real_addr"),
            public: f.get("public").and_then(Value::as_bool),
            version: f.optional("version"),
            role: f.optional("role"),
        })
    }

    pub(super) fn value(&self, network: u16) -> Value {
        Builder::entry()
            .with("node_id", self.node)
            .with("address", Address { network, node: self.node }.to_string())
            .maybe("hostname", self.hostname.clone())
            .flag("task_exec", self.task_exec)
            .maybe("real_addr", self.real_addr.clone())
            .maybe("public", self.public)
            .maybe("version", self.version.clone())
            .maybe("role", self.role.clone())
            .done()
    }
}

/// `list_nodes_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListNodesOk {
    /// The network asked for, which is in the addresses.
    pub network: u16,
    /// Live members, in order of joining.
    pub nodes: Vec<NodeEntry>,
    /// Members that are away now; from our own registries.
    pub offline: Vec<NodeEntry>,
    /// Whether the answer had no room for all of them.
    pub truncated: bool,
}

impl ListNodesOk {
    /// Missing lists count as empty; `network` is the one asked for, which the answer names only in addresses.
    pub fn from_fields(network: u16, f: &Fields) -> Self {
        let list = |name| f.objects(name).filter_map(|node| NodeEntry::from_fields(&node)).collect();
        Self { network, nodes: list("nodes"), offline: list("offline"), truncated: f.bool("truncated") }
    }

    pub(super) fn value(&self) -> Value {
        let list = |nodes: &[NodeEntry]| nodes.iter().map(|node| node.value(self.network)).collect::<Vec<_>>();
        Builder::new("list_nodes_ok")
            .with("nodes", list(&self.nodes))
            .maybe("offline", (!self.offline.is_empty()).then(|| list(&self.offline)))
            .flag("truncated", self.truncated)
            .done()
    }
}

/// `get_network_policy_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkPolicyOk {
    /// Of which.
    pub network: u16,
    /// Empty means all.
    pub allowed_ports: Vec<u16>,
    /// 0 means any number.
    pub max_members: u32,
    /// Free text.
    pub description: String,
}

impl NetworkPolicyOk {
    /// Missing fields are those of a network without a policy.
    ///
    /// # Errors
    /// The field with another value than it can have.
    pub fn from_fields(f: &Fields) -> Result<Self, PolicyField> {
        let PolicyChange { allowed_ports, max_members, description } = PolicyChange::from_fields(f)?;
        Ok(Self {
            network: f.u16("network_id"),
            allowed_ports: allowed_ports.unwrap_or_default(),
            max_members: max_members.unwrap_or_default(),
            description: description.unwrap_or_default(),
        })
    }

    pub(super) fn value(&self, kind: &str) -> Value {
        Builder::new(kind)
            .with("network_id", self.network)
            .with("allowed_ports", self.allowed_ports.clone())
            .with("max_members", self.max_members)
            .with("description", self.description.as_str())
            .done()
    }
}

/// An element of `poll_invites_ok`
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct InviteEntry {
    /// To which.
    pub network: u16,
    /// By whom.
    pub inviter: u32,
    /// Unix seconds.
    pub timestamp: u64,
    /// Name of the network; from our own registries.
    pub name: String,
}

impl InviteEntry {
    pub(super) fn value(&self) -> Value {
        Builder::entry()
            .with("network_id", self.network)
            .with("inviter_id", self.inviter)
            .with("timestamp", self.timestamp)
            .text("network_name", &self.name)
            .done()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Request;

    #[test]
    fn commands_survive_the_wire_and_their_signed_text_names_every_field() {
        let changes = [
            NetworkChange::Create { name: "lab".into(), join_rule: "token".into(), token: "a:b\"c".into() },
            NetworkChange::Delete { network: 7 },
            NetworkChange::Rename { network: 7, name: "other".into() },
            NetworkChange::Kick { network: 7, target: 2 },
            NetworkChange::Promote { network: 7, target: 2 },
            NetworkChange::Demote { network: 7, target: 2 },
            NetworkChange::Transfer { network: 7, target: 2 },
            NetworkChange::SetPolicy {
                network: 7,
                policy: PolicyChange {
                    allowed_ports: Some(vec![7, 65_535]),
                    max_members: Some(5),
                    description: Some("x".into()),
                },
            },
            NetworkChange::SetPolicy { network: 7, policy: PolicyChange::default() },
        ];
        for change in changes {
            let by = Authority { node: 1, admin_token: "t".into(), timestamp: 1_800_000_000, signature: "s".into() };
            let request = Request::ChangeNetwork { by, change: change.clone() };
            let mut frame = Vec::new();
            request.emit(&mut frame).unwrap();
            assert_eq!(Request::parse(&frame[4..]).unwrap(), request);
        }
        let kick = NetworkChange::Kick { network: 7, target: 2 };
        assert_eq!(
            crate::signed::network_command(1, &kick, 1_800_000_000),
            r#"kick_member:1:1800000000:{"network_id":7,"target_node_id":2}"#
        );
    }

    #[test]
    fn a_policy_with_something_else_than_ports_is_none_and_never_one_that_opens_all() {
        let fields = |text: &str| crate::registry::parse_body(text.as_bytes()).unwrap();
        for list in
            ["[\"http\"]", "[80,-1]", "[70000]", "[0.5]", "[null]", "\"80\"", "80", "{}", "true", "[80,\"443\",443]"]
        {
            let f = fields(&format!(r#"{{"allowed_ports":{list},"type":"set_network_policy"}}"#));
            assert_eq!(PolicyChange::from_fields(&f), Err(PolicyField::AllowedPorts), "{list}");
            assert_eq!(NetworkPolicyOk::from_fields(&f), Err(PolicyField::AllowedPorts), "{list}");
            assert_eq!(Request::from_fields(&f), Request::PolicyUnreadable { field: PolicyField::AllowedPorts });
        }
        let f = fields(r#"{"allowed_ports":[80,443,65535],"max_members":null}"#);
        assert_eq!(PolicyChange::from_fields(&f).unwrap().allowed_ports, Some(vec![80, 443, 65_535]));
        assert_eq!(NetworkPolicyOk::from_fields(&f).unwrap().allowed_ports, [80, 443, 65_535]);
        for (text, field) in [
            (r#"{"max_members":-1}"#, PolicyField::MaxMembers),
            (r#"{"max_members":"5"}"#, PolicyField::MaxMembers),
            (r#"{"max_members":4294967296}"#, PolicyField::MaxMembers),
            (r#"{"description":7}"#, PolicyField::Description),
        ] {
            assert_eq!(PolicyChange::from_fields(&fields(text)), Err(field), "{text}");
        }
        // Nothing named is no change; of a network it is that it has no policy.
        let none = fields(r#"{"allowed_ports":null}"#);
        assert!(PolicyChange::from_fields(&none).unwrap().is_empty());
        assert_eq!(NetworkPolicyOk::from_fields(&none), Ok(NetworkPolicyOk::default()));
    }

    #[test]
    fn an_unreadable_policy_survives_the_wire_as_one() {
        for field in [PolicyField::AllowedPorts, PolicyField::MaxMembers, PolicyField::Description] {
            let request = Request::PolicyUnreadable { field };
            assert_eq!(request.kind(), "set_network_policy");
            assert_eq!(Request::parse(&crate::json::to_vec(&request.to_value())), Ok(request));
        }
    }
}
