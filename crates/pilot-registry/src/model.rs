//! What the registry keeps.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// An identity: a key and the address it has for ever, with all that belongs to it. It stays when the node departs.
/// Times are Unix seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Node id; the address is this id on network 0.
    pub id: u32,
    /// Ed25519 public key.
    #[serde(with = "key_text")]
    pub public_key: [u8; 32],
    /// Since when the node has this key.
    #[serde(default, skip_serializing_if = "is_default")]
    pub key_since: u64,
    /// Owner text of the registration. Nothing is decided by it (04 §24.2).
    #[serde(default, skip_serializing_if = "is_default")]
    pub owner: String,
    /// `ip:port`; `None` when the registration named no usable port.
    #[serde(default, skip_serializing_if = "is_default")]
    pub endpoint: Option<String>,
    /// Networks in order of joining. `None` only after an import that says so.
    pub networks: Option<Vec<u16>>,
    /// Whether everybody may learn the endpoint.
    #[serde(default, skip_serializing_if = "is_default")]
    pub public: bool,
    /// Hostname, empty for none. Kept for the node for a while after it departed.
    #[serde(default, skip_serializing_if = "is_default")]
    pub hostname: String,
    /// Tags, without `#`.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tags: Vec<String>,
    /// Polo score.
    #[serde(default, skip_serializing_if = "is_default")]
    pub polo_score: i64,
    /// Whether it executes tasks.
    #[serde(default, skip_serializing_if = "is_default")]
    pub task_exec: bool,
    /// Version of its daemon, as registered.
    #[serde(default, skip_serializing_if = "is_default")]
    pub version: String,
    /// Whether peers get the beacon's address instead of its own (07 §8.2).
    #[serde(default, skip_serializing_if = "is_default")]
    pub relay_only: bool,
    /// How many statements it has made about others.
    #[serde(default, skip_serializing_if = "is_default")]
    pub statements: u32,
    /// Invitations to networks that it has not answered.
    #[serde(default, skip_serializing_if = "is_default")]
    pub invites: Vec<Invite>,
    /// When it departed; `None` while it is live.
    #[serde(default, skip_serializing_if = "is_default")]
    pub departed: Option<u64>,
}

impl Node {
    /// A new identity on network 0.
    pub fn new(id: u32, public_key: [u8; 32], now: u64) -> Self {
        Self {
            id,
            public_key,
            key_since: now,
            owner: String::new(),
            endpoint: None,
            networks: Some(vec![0]),
            public: false,
            hostname: String::new(),
            tags: Vec::new(),
            polo_score: 0,
            task_exec: false,
            version: String::new(),
            relay_only: false,
            statements: 0,
            invites: Vec::new(),
            departed: None,
        }
    }

    /// Whether both are members of a network other than 0.
    pub fn shares_network(&self, other: &Self) -> bool {
        let of = |node: &Self| node.networks.clone().unwrap_or_default();
        let others = of(other);
        of(self).iter().any(|n| *n != 0 && others.contains(n))
    }
}

mod key_text {
    use pilot_wire::base64;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(key: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&base64::encode(key))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(from)?;
        base64::decode_array(&text).ok_or_else(|| D::Error::custom("a key must be base64 of 32 bytes"))
    }
}

/// A sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Unix seconds of the last register or heartbeat.
    pub last_seen: u64,
    /// Whether the holder of the key has signed something since it registered.
    pub proved: bool,
    /// Where the registration, or the last proof, came from.
    pub source: IpAddr,
}

/// A network. Network 0 is every node and keeps no member list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Network id.
    pub id: u16,
    /// Name.
    pub name: String,
    /// `open`, `token` or `invite`.
    pub join_rule: String,
    /// Join token, empty for none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub token: String,
    /// Members in order of joining.
    pub members: Vec<u32>,
    /// Unix seconds of its creation.
    pub created: u64,
    /// The member it belongs to; 0 when there is none.
    #[serde(default, skip_serializing_if = "is_default")]
    pub owner: u32,
    /// Members that may invite and put out.
    #[serde(default, skip_serializing_if = "is_default")]
    pub admins: Vec<u32>,
    /// Nodes with an unanswered invitation; the invitation itself stands with the node.
    #[serde(default, skip_serializing_if = "is_default")]
    pub invited: Vec<u32>,
    /// Ports on which members reach each other; empty means all.
    #[serde(default, skip_serializing_if = "is_default")]
    pub allowed_ports: Vec<u16>,
    /// Most members; 0 means as many as the registry takes.
    #[serde(default, skip_serializing_if = "is_default")]
    pub max_members: u32,
    /// Free text.
    #[serde(default, skip_serializing_if = "is_default")]
    pub description: String,
}

impl Network {
    /// What a node is in it; `None` when it is no member.
    pub fn role(&self, node: u32) -> Option<Role> {
        if !self.members.contains(&node) {
            return None;
        }
        Some(if self.owner == node {
            Role::Owner
        } else if self.admins.contains(&node) {
            Role::Admin
        } else {
            Role::Member
        })
    }
}

/// What a member may do, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Talk to members.
    Member,
    /// Also invite, and put members out.
    Admin,
    /// Everything.
    Owner,
}

impl Role {
    /// As in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Member => "member",
            Self::Admin => "admin",
            Self::Owner => "owner",
        }
    }
}

/// Who may join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinRule {
    /// Everybody.
    Open,
    /// Whoever knows the token.
    Token,
    /// Whoever was invited.
    Invite,
}

impl JoinRule {
    /// As in messages; the empty text means open.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "open" => Some(Self::Open),
            "token" => Some(Self::Token),
            "invite" => Some(Self::Invite),
            _ => None,
        }
    }

    /// As in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Token => "token",
            Self::Invite => "invite",
        }
    }
}

/// An invitation to a network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// To which.
    pub network: u16,
    /// By whom.
    pub by: u32,
    /// Unix seconds.
    pub at: u64,
}

/// What a node has said about another (04 §24.3). Trust is a statement in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Statement {
    /// It asked for the other's endpoint.
    Resolved,
    /// It reported trust, asked for a handshake, or accepted one.
    Spoken,
}

/// A handshake request waiting for its target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeRequest {
    /// Who asks.
    pub from: u32,
    /// Why.
    pub justification: String,
    /// Unix seconds.
    pub at: u64,
}

/// A handshake response waiting for the one who asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandshakeResponse {
    /// Who answers.
    pub from: u32,
    /// The answer.
    pub accept: bool,
    /// Unix seconds.
    pub at: u64,
}
