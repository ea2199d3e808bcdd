//! The session with the registry (04 §18, 07 §9, 07 rules 27 to 30, client side), without I/O.
//!
//! One connection with pipelined requests; answers come in the order of the requests. [`Directory`] keeps the node
//! registered (signed registration, jittered heartbeats, registration again when the registry has forgotten us), polls
//! for relayed handshakes, reports trust, sets what differs from what is wanted, and carries the questions of the node.
//! Every request has a deadline; only requests that do no harm twice are sent again after a lost connection.
//!
//! The driver opens a connection on [`DirectoryEvent::Connect`], feeds [`Directory::handle_connected`],
//! [`Directory::handle_data`] and [`Directory::handle_disconnected`], writes what [`Directory::poll_transmit`] returns,
//! and closes the connection on [`DirectoryEvent::Disconnect`].

mod calls;
mod rotation;
mod session;
mod sync;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use pilot_wire::registry::{Fields, NetworkChange, PollOk};
pub use session::Directory;

use crate::identity::Identity;

/// Pause between heartbeats, before jitter. The registry drops a node after 180 s of silence (04 §8.2).
pub const HEARTBEAT: Duration = Duration::from_secs(30);
/// A timer fires this part earlier at most, so that nodes started together do not stay together (07 D22).
pub const JITTER: f64 = 0.2;
/// Heartbeats that may fail for unknown reasons before the node registers again (04 §18.2).
pub const HEARTBEAT_FAILURES: u32 = 3;
/// Pause between questions about our own entry, whose networks may change (07 §9.1), before jitter.
pub const IDENTIFY: Duration = Duration::from_secs(300);
/// Pause between polls while an answer is expected (07 §10).
pub const FAST_POLL: Duration = Duration::from_secs(2);
/// How long it is expected (07 §10).
pub const FAST_POLL_FOR: Duration = Duration::from_secs(120);
/// Notifies that poll at once (07 §8.1).
pub const NOTIFY_BURST: u32 = 3;
/// Pause between polls caused by further notifies (07 §8.1).
pub const NOTIFY_INTERVAL: Duration = Duration::from_secs(5);
/// A connection must be made within this time (04 §18.1).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The oldest request must be answered within this time, or the connection counts as dead.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A question of the node fails after this long, whatever it waits for.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// A question fails after this long when there is no connection.
pub const OFFLINE_CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// First pause before a new connection; doubled up to [`RECONNECT_MAX`], jittered.
pub const RECONNECT: Duration = Duration::from_millis(500);
/// Longest such pause.
pub const RECONNECT_MAX: Duration = Duration::from_secs(30);
/// A question brings the next attempt forward, but not closer to the last one than this.
pub const RECONNECT_ON_DEMAND: Duration = Duration::from_secs(1);
/// First pause after a refused registration; doubled up to [`REGISTER_RETRY_MAX`].
pub const REGISTER_RETRY: Duration = Duration::from_secs(5);
/// Longest such pause.
pub const REGISTER_RETRY_MAX: Duration = Duration::from_secs(60);
/// Registrations caused by a changed endpoint are at least this far apart, so that flapping floods nobody (07 §16.16).
pub const ENDPOINT_INTERVAL: Duration = Duration::from_secs(5);
/// A refused trust report (the peer is away, say) or attribute is tried again after this long.
pub const SYNC_RETRY: Duration = Duration::from_secs(300);
/// After a deregistration by hand the node stays away this long, as official daemons do (03 §10).
pub const STAY_AWAY: Duration = Duration::from_secs(90);
/// Requests sent and not yet answered.
pub const MAX_IN_FLIGHT: usize = 64;
/// Of these, trust reports: they leave room for questions.
pub const MAX_REPORTS_IN_FLIGHT: usize = 16;
/// Questions waiting to be sent; further ones fail at once.
pub const MAX_QUEUED: usize = 1024;
/// How long a shutdown waits for the deregistration to be answered.
pub const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Settings of [`Directory`].
#[derive(Clone, Debug)]
pub struct DirectoryConfig {
    /// Signs every request.
    pub identity: Arc<Identity>,
    /// The id of the last registration, 0 when there was none. Only saves waiting: the registry decides.
    pub node: u32,
    /// Owner text or e-mail, may be empty.
    pub owner: String,
    /// Program version; its presence tells peers that we read AEAD scheme B (07 rule 6).
    pub version: String,
    /// Ask for the beacon's address to be handed out instead of ours.
    pub relay_only: bool,
    /// Wanted hostname. `None`: leave it as it is.
    pub hostname: Option<String>,
    /// Wanted visibility. `None`: leave it as it is.
    pub public: Option<bool>,
    /// Wanted tags. `None`: leave them as they are.
    pub tags: Option<Vec<String>>,
    /// Pause between heartbeats, default [`HEARTBEAT`].
    pub heartbeat: Duration,
    /// The new key of a rotation whose outcome is not known, from an earlier life of the process.
    pub next_identity: Option<Arc<Identity>>,
}

impl DirectoryConfig {
    /// Defaults for an identity: nothing is wanted but to be registered.
    pub fn new(identity: Arc<Identity>) -> Self {
        Self {
            identity,
            node: 0,
            owner: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            relay_only: false,
            hostname: None,
            public: None,
            tags: None,
            heartbeat: HEARTBEAT,
            next_identity: None,
        }
    }
}

/// Names a question, for [`DirectoryEvent::Answer`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CallId(pub u64);

/// A question or command of the node. Own id and signature are filled in when it is sent.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Call {
    /// Key, networks and name of a node.
    Lookup {
        /// Whom.
        node: u32,
    },
    /// Endpoint of a node.
    Resolve {
        /// Whose.
        node: u32,
    },
    /// Who has a hostname.
    ResolveHostname {
        /// Exact name.
        hostname: String,
    },
    /// Our hostname; on success it is kept through later registrations.
    SetHostname {
        /// Empty clears.
        hostname: String,
    },
    /// Our visibility; on success it is kept through later registrations.
    SetVisibility {
        /// Whether everybody gets our endpoint.
        public: bool,
    },
    /// Our tags; on success they are kept through later registrations.
    SetTags {
        /// Empty clears.
        tags: Vec<String>,
    },
    /// Our task flag.
    SetTaskExec {
        /// On or off.
        enabled: bool,
    },
    /// The polo score of a node.
    GetScore {
        /// Whose.
        node: u32,
    },
    /// A change of a node's polo score. Sent at most once.
    AddScore {
        /// Whose.
        node: u32,
        /// By how much.
        delta: i64,
    },
    /// Leave the registry for [`STAY_AWAY`].
    Deregister,
    /// Relay a request for trust; polls often from then on.
    RequestHandshake {
        /// To whom.
        node: u32,
        /// Why.
        justification: String,
    },
    /// Relay our answer to such a request.
    RespondHandshake {
        /// Who had asked.
        node: u32,
        /// Yes or no.
        accept: bool,
    },
    /// All networks.
    ListNetworks,
    /// Members of a network.
    ListNodes {
        /// Not 0.
        network: u16,
    },
    /// Become a member of a network.
    JoinNetwork {
        /// Which.
        network: u16,
        /// May be empty.
        token: String,
    },
    /// Be a member no longer.
    LeaveNetwork {
        /// Which.
        network: u16,
    },
    /// Invite a node to a network.
    InviteToNetwork {
        /// Which.
        network: u16,
        /// Whom.
        node: u32,
    },
    /// Invitations that wait for us.
    PollInvites,
    /// Our answer to an invitation.
    RespondInvite {
        /// To which network.
        network: u16,
        /// Yes or no.
        accept: bool,
    },
    /// What the policy of a network says.
    NetworkPolicy {
        /// Which.
        network: u16,
    },
    /// What a node is in a network.
    MemberRole {
        /// Which.
        network: u16,
        /// Whose.
        node: u32,
    },
    /// A command that needs a right in the network. Sent at most once.
    ChangeNetwork {
        /// What.
        change: NetworkChange,
        /// Unix seconds, which the signature covers.
        at: u64,
    },
    /// Beacons in service.
    BeaconList,
}

/// Why a question has no answer. Shown after the command's name: `set_hostname: registry: request failed`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The registry said no.
    #[error("registry: {text}")]
    Refused {
        /// Its words; `request failed` when it hides them.
        text: String,
        /// Its reason for machines, from our own registries.
        code: Option<String>,
    },
    /// There is no connection.
    #[error("registry: not connected ({reason})")]
    Offline {
        /// Why not.
        reason: String,
    },
    /// There is one, but no answer came in time; whether the command took effect is not known.
    #[error("registry: no answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout,
    /// The connection was lost after the command was sent; whether it took effect is not known.
    #[error("registry: connection lost before the answer ({reason})")]
    Lost {
        /// Why.
        reason: String,
    },
    /// Too many questions wait.
    #[error("registry: too many requests waiting (max {MAX_QUEUED})")]
    Busy,
    /// The session is over.
    #[error("registry: shutting down")]
    Closed,
}

impl CallError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "registry_refused",
            Self::Offline { .. } => "registry_offline",
            Self::Timeout => "registry_timeout",
            Self::Lost { .. } => "registry_connection_lost",
            Self::Busy => "registry_busy",
            Self::Closed => "registry_closed",
        }
    }

    /// Whether the registry answered.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }
}

/// What to do or to know, in order.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum DirectoryEvent {
    /// Open a connection.
    Connect,
    /// Close the connection; do not call [`Directory::handle_disconnected`] for it.
    Disconnect {
        /// Why, for the log.
        reason: String,
    },
    /// We are registered.
    Registered {
        /// Our id.
        node: u32,
        /// Whether it differs from the one before: then every trust by id is void until reported again.
        changed: bool,
        /// Where the registry saw us, from newer ones.
        observed: Option<String>,
    },
    /// What the registry holds about us: after each registration, and every [`IDENTIFY`].
    Identified {
        /// Our id.
        node: u32,
        /// Our networks.
        networks: Vec<u16>,
        /// Our hostname.
        hostname: Option<String>,
        /// Our visibility.
        public: bool,
    },
    /// A rotation is decided.
    Rotated {
        /// The new key; ours from now on if the rotation succeeded.
        public_key: [u8; 32],
        /// Why it did not.
        result: Result<(), String>,
    },
    /// The registry refuses us; tried again by itself.
    RegistrationRefused {
        /// Its words.
        text: String,
    },
    /// A wanted hostname, visibility or tag list was refused.
    AttributeRefused {
        /// Type of the request.
        request: &'static str,
        /// The registry's words.
        text: String,
    },
    /// The registry is answered for the first time since it was not, or not any more.
    Online(bool),
    /// The answer to a question: all fields of the registry's answer.
    Answer {
        /// Which.
        id: CallId,
        /// The fields, `type` included.
        result: Result<Fields, CallError>,
    },
    /// The answer to a poll, often empty; the registry has forgotten what is in it.
    Poll(PollOk),
    /// After [`Directory::shutdown`]: nothing more will happen.
    Closed,
}
