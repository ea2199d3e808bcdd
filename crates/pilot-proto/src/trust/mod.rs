//! Who trusts whom: the handshake on port 444 and its relay through the registry (05 §3, 07 §10), without I/O.
//!
//! [`Trust`] holds four sets, keyed by node id: *trusted*, *pending* (asked us, undecided), *outgoing* (we asked) and
//! *revoked* (we ended it). Trust is bound to a key: the one the peer's tunnel proved, or the registry names. Inputs are
//! messages, polls, lookups and local commands; outputs are [`TrustEvent`]s. **Carry them out in order**: a
//! [`TrustEvent::Persist`] is synced before what follows it leaves (invariant 8 of `ARCHITECTURE.md`).
//!
//! What differs from the February reference, and why, is listed in 05 §15 (1 to 17): keys and signatures are required and
//! compared with the tunnel, an accept counts only after a request, the sets are bounded, the revoke message leaves
//! before the tunnel is torn down and is repeated until it was delivered.

mod file;
mod local;
mod receive;
mod relay;
mod replay;
mod state;
#[cfg(test)]
mod tests;
mod time;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

pub use file::TrustFileError;
use pilot_wire::handshake::Kind;
use serde_json::{Value, json};
pub use state::Trust;
pub use time::{format_rfc3339, parse_rfc3339};

/// Oldest message accepted (05 §3.3).
pub const MAX_AGE: Duration = Duration::from_secs(300);
/// Largest clock lead of a sender accepted (05 §3.3).
pub const MAX_LEAD: Duration = Duration::from_secs(30);
/// Messages remembered to recognise replays (07 §10).
pub const REPLAY_ENTRIES: usize = 8192;
/// How long each is remembered: longer than a message can be valid, [`MAX_AGE`] plus [`MAX_LEAD`] (05 §3.3).
pub const REPLAY_LIFETIME: Duration = Duration::from_secs(600);
/// Messages taken from one node within [`REPLAY_LIFETIME`], so that no node exhausts the replay set.
pub const MESSAGES_PER_NODE: usize = 32;
/// Requests waiting for a decision (07 §10). A further one is dropped.
pub const MAX_PENDING: usize = 256;
/// A waiting request is dropped after this long (07 §10).
pub const PENDING_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// Requests of ours without an answer.
pub const MAX_OUTGOING: usize = 256;
/// A relayed approval, which nobody signed, counts this long after our request (07 §10).
pub const RELAYED_ANSWER_WINDOW: Duration = Duration::from_secs(600);
/// A signed accept over the peer's own tunnel counts as long as our request may wait there.
pub const OUTGOING_LIFETIME: Duration = PENDING_LIFETIME;
/// Trusted nodes. A further approval is refused.
pub const MAX_TRUSTED: usize = 16_384;
/// Ended relations remembered; the oldest is forgotten first.
pub const MAX_REVOKED: usize = 1024;
/// After a revocation no automatic approval for this long, whatever the policy (07 §10).
pub const REVOKE_COOLDOWN: Duration = Duration::from_secs(300);
/// The tunnel outlives a revocation this long, so that the message can leave through it (05 §3.4).
pub const TEARDOWN_DELAY: Duration = Duration::from_secs(2);
/// First pause before an undelivered revocation is sent again; doubled each time.
pub const NOTICE_RETRY: Duration = Duration::from_secs(10);
/// Longest such pause.
pub const NOTICE_RETRY_MAX: Duration = Duration::from_secs(3600);
/// The registry hears that trust has ended when the peer has, or after so many attempts to tell it.
pub const REGISTRY_WAITS: u32 = 2;
/// A peer that still talks to us is told again at most this often.
pub const NOTICE_REPEAT: Duration = Duration::from_secs(10);
/// An undelivered revocation is given up after this long.
pub const NOTICE_LIFETIME: Duration = Duration::from_secs(7 * 24 * 3600);
/// A node that already is trusted and asks again is answered at most this often.
pub const ACCEPT_INTERVAL: Duration = Duration::from_secs(5);
/// Messages that wait for a registry lookup.
pub const MAX_PARKED: usize = 64;
/// They wait this long, then are judged without it.
pub const PARK_TIMEOUT: Duration = Duration::from_secs(20);
/// Approval hooks running at the same time; further requests wait for a person.
pub const MAX_HOOKS: usize = 16;

/// Both clocks, read together.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// For timers.
    pub now: Instant,
    /// Since 1970, for what crosses a process boundary.
    pub unix: Duration,
}

/// When a request is approved without a person. A mutual request always is. A request is never approved automatically
/// when a person ended trust in the node before, or when it would replace a pinned key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Approval {
    /// Everybody.
    pub all: bool,
    /// Who shares one of these networks with us (0 never counts).
    pub networks: NetworkApproval,
    /// Whose key is listed.
    pub keys: BTreeSet<[u8; 32]>,
    /// Who a command says yes to ([`TrustEvent::AskHook`]).
    pub hook: bool,
}

/// Which shared networks approve a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum NetworkApproval {
    /// None.
    #[default]
    Never,
    /// Any of our own networks other than 0. February daemons do this always (05 §3.3).
    Any,
    /// These.
    Listed(BTreeSet<u16>),
}

/// Settings of [`Trust`].
#[derive(Clone, Debug, Default)]
pub struct TrustConfig {
    /// Approval without a person.
    pub approval: Approval,
}

/// A trusted node, as `list trusted` shows it (03 §9).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedNode {
    /// Its pinned key; `None` until it first authenticates.
    pub key: Option<[u8; 32]>,
    /// Unix seconds; 0 when unknown.
    pub approved_at: u64,
    /// Whether both sides asked.
    pub mutual: bool,
    /// The shared network that approved it, or 0.
    pub network: u16,
}

/// A request that waits for a decision, as `list pending` shows it (03 §9).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingRequest {
    /// Its key; `None` when it came through the relay and the registry did not tell.
    pub key: Option<[u8; 32]>,
    /// What it said: printable, at most 1024 characters.
    pub justification: String,
    /// Unix seconds; 0 when unknown.
    pub received_at: u64,
}

/// What the registry says about a node; answers [`TrustEvent::Lookup`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its registered key.
    pub key: [u8; 32],
    /// Its networks.
    pub networks: Vec<u16>,
}

/// Names a message to send, for [`Trust::handle_sent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SendId(pub u64);

/// Names a running approval hook, for [`Trust::handle_hook`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HookId(pub u64);

/// What to do or to know, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TrustEvent {
    /// Write [`Trust::to_bytes`] to disk and sync it before going on with the next event.
    Persist,
    /// Dial port 444 of the node, write the message in one piece, wait until it is acknowledged, close; then call
    /// [`Trust::handle_sent`]. Messages to one node keep their order.
    SendDirect {
        /// For the answer.
        id: SendId,
        /// To whom.
        node: u32,
        /// What it says.
        kind: Kind,
        /// The bytes, at most 4096.
        message: Vec<u8>,
    },
    /// Relay a request through the registry, then call [`Trust::handle_relayed`].
    RelayRequest {
        /// For the answer.
        id: SendId,
        /// To whom.
        node: u32,
        /// Why.
        justification: String,
    },
    /// Tell the registry our answer to a request; no answer is needed.
    RelayRespond {
        /// Who had asked.
        node: u32,
        /// Yes or no.
        accept: bool,
    },
    /// Tell the registry that we trust the node.
    ReportTrust {
        /// Whom.
        node: u32,
    },
    /// Tell the registry that trust has ended.
    RevokeTrust {
        /// In whom.
        node: u32,
    },
    /// Look the node up and call [`Trust::handle_lookup`].
    Lookup {
        /// Whom.
        node: u32,
    },
    /// Ask the approval command and call [`Trust::handle_hook`].
    AskHook {
        /// For the answer.
        id: HookId,
        /// Who asks.
        node: u32,
        /// Its key, when known.
        key: Option<[u8; 32]>,
        /// What it said.
        justification: String,
    },
    /// An answer may come through the registry: poll it often for a while (07 §10).
    ExpectAnswer,
    /// The gate lets this node in, with this key.
    Trusted {
        /// Whom.
        node: u32,
        /// Its pinned key; `None`: pin the first one it authenticates with, and call [`Trust::handle_pinned`].
        key: Option<[u8; 32]>,
    },
    /// A trusted node has replaced its key; its old one has vouched for the new one.
    Rotated {
        /// Whose.
        node: u32,
        /// The key that was pinned.
        old: [u8; 32],
        /// The key that is.
        new: [u8; 32],
    },
    /// The gate lets this node in no longer.
    Untrusted {
        /// Whom.
        node: u32,
    },
    /// Do not send this message, if it has not begun to be sent.
    Withdraw {
        /// As in [`TrustEvent::SendDirect`].
        id: SendId,
        /// To whom it was.
        node: u32,
    },
    /// Drop the tunnel to this node: its last message has left, or cannot.
    ForgetPeer {
        /// Whom.
        node: u32,
    },
    /// A request of ours has reached its peer or the registry, or neither.
    RequestDone {
        /// As returned by [`Trust::request`].
        id: SendId,
        /// The text of the registry's refusal.
        result: Result<(), String>,
    },
    /// For people and webhooks.
    Notice {
        /// About whom.
        node: u32,
        /// What.
        notice: Notice,
    },
}

/// Something a person or a webhook wants to know (05 §10.3).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A request arrived and is genuine.
    Received {
        /// What it said.
        justification: String,
    },
    /// It waits for a decision.
    Pending {
        /// What it said.
        justification: String,
    },
    /// It was approved by the policy.
    AutoApproved {
        /// `mutual`, `same_network`, `key_list`, `hook` or `all`.
        reason: &'static str,
    },
    /// It was approved by a person.
    Approved,
    /// It was rejected by a person.
    Rejected {
        /// What we said.
        reason: String,
    },
    /// The peer accepted our request.
    Accepted,
    /// The peer rejected our request.
    RejectedByPeer {
        /// What it said.
        reason: String,
    },
    /// A person ended trust.
    Revoked,
    /// The peer ended trust.
    RevokedByPeer,
}

impl Notice {
    /// The name of the webhook event.
    pub const fn event(&self) -> &'static str {
        match self {
            Self::Received { .. } => "handshake.received",
            Self::Pending { .. } => "handshake.pending",
            Self::AutoApproved { .. } => "handshake.auto_approved",
            Self::Approved => "handshake.approved",
            Self::Rejected { .. } => "handshake.rejected",
            Self::Accepted => "handshake.accepted",
            Self::RejectedByPeer { .. } => "handshake.rejected_by_peer",
            Self::Revoked => "trust.revoked",
            Self::RevokedByPeer => "trust.revoked_by_peer",
        }
    }

    /// The `data` of the webhook event.
    pub fn data(&self, node: u32) -> Value {
        match self {
            Self::Received { justification } | Self::Pending { justification } => {
                json!({"justification": justification, "peer_node_id": node})
            }
            Self::AutoApproved { reason } => json!({"peer_node_id": node, "reason": reason}),
            Self::Rejected { reason } | Self::RejectedByPeer { reason } => {
                json!({"peer_node_id": node, "reason": reason})
            }
            Self::Approved | Self::Accepted | Self::Revoked | Self::RevokedByPeer => json!({"peer_node_id": node}),
        }
    }
}

/// Why a message was dropped. Nothing is ever answered; the caller counts and logs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// Not a message.
    #[error(transparent)]
    Malformed(#[from] pilot_wire::handshake::HandshakeError),
    /// It names another node than the stream it came over.
    #[error("message of node {claimed} came from node {source_node}")]
    SourceMismatch {
        /// In the message.
        claimed: u32,
        /// Of the stream.
        source_node: u32,
    },
    /// It names ourselves or node 0.
    #[error("message of node {0} cannot come from another node")]
    BadNode(u32),
    /// Older than [`MAX_AGE`] or more than [`MAX_LEAD`] ahead.
    #[error("message clock is {0} s off")]
    Clock(i64),
    /// No key, or not 32 bytes.
    #[error("message without a valid public key")]
    NoKey,
    /// No signature, not 64 bytes, or not over this message.
    #[error("message without a valid signature")]
    BadSignature,
    /// Another key than the tunnel's or the registry's.
    #[error("message key differs from the key the node is known by")]
    KeyMismatch,
    /// Seen before.
    #[error("message was seen before")]
    Replay,
    /// More than [`MESSAGES_PER_NODE`], or a table is full.
    #[error("too many messages")]
    TooMany,
    /// An accept that answers no request of ours.
    #[error("accept without a request of ours")]
    Unsolicited,
}

impl Refusal {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed(error) => error.code(),
            Self::SourceMismatch { .. } => "trust_source_mismatch",
            Self::BadNode(_) => "trust_bad_node",
            Self::Clock(_) => "trust_clock",
            Self::NoKey => "trust_no_key",
            Self::BadSignature => "trust_bad_signature",
            Self::KeyMismatch => "trust_key_mismatch",
            Self::Replay => "trust_replay",
            Self::TooMany => "trust_too_many",
            Self::Unsolicited => "trust_unsolicited",
        }
    }
}

/// Why a local command fails. The text completes `handshake request: …` and the like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustError {
    /// Nobody trusts himself.
    #[error("node {0} is this node")]
    OwnNode(u32),
    /// Node 0 is nobody.
    #[error("node 0 does not exist")]
    NoNode,
    /// We have no id yet, so nothing we sign would count.
    #[error("not registered yet")]
    NotRegistered,
    /// The message would not fit (05 §3.2).
    #[error("justification too long: {0} characters (max 1024)")]
    JustificationTooLong(usize),
    /// As [`TrustError::JustificationTooLong`], after escaping.
    #[error(transparent)]
    Message(#[from] pilot_wire::handshake::HandshakeError),
    /// A table is full.
    #[error("too many {what} (max {max})")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// Revoked without trust; the official text.
    #[error("node {0} was not trusted")]
    NotTrusted(u32),
}

impl TrustError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OwnNode(_) => "trust_own_node",
            Self::NoNode => "trust_no_node",
            Self::NotRegistered => "trust_not_registered",
            Self::JustificationTooLong(_) => "trust_justification_too_long",
            Self::Message(error) => error.code(),
            Self::TooMany { .. } => "trust_too_many",
            Self::NotTrusted(_) => "trust_not_trusted",
        }
    }
}

/// What became of a local request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requested {
    /// The node is trusted already; nothing was sent. The official reply is `sent` all the same.
    AlreadyTrusted,
    /// On its way: [`TrustEvent::RequestDone`] with this id follows.
    Sending(SendId),
}
