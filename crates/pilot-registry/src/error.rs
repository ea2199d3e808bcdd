//! Why a request is refused, and why a store fails.

use std::path::PathBuf;

/// A request is refused. The text says why; [`Refusal::wire_text`] is what the peer is told, [`Refusal::code`] the stable
/// name that goes with it (specification 04 §24.29, 07 §9.4).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No live node has this id.
    #[error("node {0}: node not found")]
    NodeNotFound(u32),
    /// No live node holds this name.
    #[error("hostname {0:?} not found")]
    HostnameNotFound(String),
    /// No network has this id.
    #[error("network {0}: network not found")]
    NetworkNotFound(u16),
    /// The request carries no signature.
    #[error("{0}")]
    SignatureRequired(&'static str),
    /// The signature is not base64 of 64 bytes.
    #[error("invalid signature encoding")]
    SignatureEncoding,
    /// The signature is not by the registered key.
    #[error("{0}")]
    SignatureFailed(&'static str),
    /// `register` without a key.
    #[error("registration requires public_key")]
    KeyRequired,
    /// A key that is not base64 of 32 bytes, or no point of the curve's encoding size.
    #[error("invalid {field}: {reason}")]
    KeyInvalid {
        /// Name of the field.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// `rotate_key` without the new key.
    #[error("rotate_key requires new_public_key")]
    NewKeyRequired,
    /// The new key already belongs to another node.
    #[error("new_public_key already belongs to another node")]
    KeyInUse,
    /// Too many new nodes from one source.
    #[error("rate limited: too many registrations from {0}")]
    RateLimited(std::net::IpAddr),
    /// A hostname that breaks the rules.
    #[error("invalid hostname: {0}")]
    HostnameInvalid(String),
    /// `resolve_hostname` without a name.
    #[error("hostname required")]
    HostnameRequired,
    /// Another node holds the name, or had it within the grace period.
    #[error("hostname {name:?} already in use by node {holder}")]
    HostnameTaken {
        /// The name.
        name: String,
        /// Who holds it.
        holder: u32,
    },
    /// A tag list that breaks the rules.
    #[error("{0}")]
    TagsInvalid(String),
    /// The requester of an endpoint is no live node.
    #[error("resolve denied: requester node {0} is not registered")]
    RequesterUnknown(u32),
    /// The target does not show its endpoint to the requester.
    #[error("resolve denied: node {0} is private (establish mutual trust first)")]
    Private(u32),
    /// The target is live but registered without a usable endpoint.
    #[error("node {0}: endpoint not found (it registered without a usable port)")]
    NoEndpoint(u32),
    /// `punch` for two others.
    #[error("punch denied: requester must be participant")]
    NotParticipant,
    /// Neither node has spoken about the other.
    #[error("no trust pair between {0} and {1}")]
    NoTrust(u32, u32),
    /// The same request is waiting already.
    #[error("handshake request already pending from node {0}")]
    AlreadyPending(u32),
    /// The inbox is full.
    #[error("too many handshake requests waiting for node {0}")]
    InboxFull(u32),
    /// An answer to a request that was never made (04 §24.4).
    #[error("handshake request from node {0} not found")]
    NoRequest(u32),
    /// The node has spoken about too many others.
    #[error("too many trust statements by node {0}")]
    TooManyStatements(u32),
    /// Score messages need a field.
    #[error("{0}")]
    FieldRequired(&'static str),
    /// Score messages are taken only from connections that proved a live node (04 §24.7).
    #[error("{0} requires a signed request by a live node on the same connection first")]
    Unproved(String),
    /// Nodes of network 0 are not listed.
    #[error("listing backbone nodes is not permitted (use lookup with a specific node_id)")]
    BackboneListing,
    /// Network 0 is every node, and nobody's to change.
    #[error("cannot {0} network 0: every node is in it")]
    Backbone(&'static str),
    /// A network name that breaks the rules.
    #[error("invalid {0}")]
    NetworkNameInvalid(String),
    /// Another network has the name.
    #[error("network name {0:?} already in use")]
    NetworkNameTaken(String),
    /// No such rule.
    #[error("invalid join rule {0:?} (open, token or invite)")]
    JoinRuleInvalid(String),
    /// A token that cannot be one, or none where one is needed.
    #[error("invalid network token: {0}")]
    TokenUnusable(&'static str),
    /// A policy that breaks the rules.
    #[error("invalid network policy: {0}")]
    PolicyInvalid(String),
    /// Not the network's token.
    #[error("invalid token for network {0}")]
    NetworkTokenInvalid(u16),
    /// The network is joined by invitation.
    #[error("network {network} requires an invitation for node {node}")]
    NotInvited {
        /// Which.
        network: u16,
        /// Whom.
        node: u32,
    },
    /// Nobody has invited the node, or too long ago.
    #[error("invitation to network {0} not found")]
    InviteNotFound(u16),
    /// It is in the network.
    #[error("node {node} is already a member of network {network}")]
    AlreadyMember {
        /// Who.
        node: u32,
        /// In which.
        network: u16,
    },
    /// It is not in the network.
    #[error("node {node} is not a member of network {network}")]
    NotMember {
        /// Who.
        node: u32,
        /// In which.
        network: u16,
    },
    /// A member asks for what its role does not allow.
    #[error("this requires to be {needs} of network {network}")]
    NotAllowed {
        /// In which.
        network: u16,
        /// Who may.
        needs: &'static str,
    },
    /// An owner stays the owner of its network until it hands it over.
    #[error("the owner cannot {what} network {network}: hand it over (transfer) or delete it first")]
    OwnerStays {
        /// Which.
        network: u16,
        /// What it cannot.
        what: &'static str,
    },
    /// No more members fit.
    #[error("too many members in network {network} (max {max})")]
    NetworkFull {
        /// Which.
        network: u16,
        /// How many fit.
        max: usize,
    },
    /// No more networks fit.
    #[error("too many networks: {0}")]
    TooManyNetworks(String),
    /// No more invitations fit.
    #[error("too many invitations: {0}")]
    TooManyInvites(String),
    /// Networks are made with the admin token here.
    #[error("this registry requires its admin token to create a network")]
    AdminTokenRequired,
    /// It is not the registry's admin token, or there is none.
    #[error("invalid admin token")]
    AdminTokenInvalid,
    /// Signed too long ago, or by a clock that is wrong.
    #[error(
        "signature expired: its time is {0} s away from this registry's clock (max {max})",
        max = crate::limits::COMMAND_LIFE.as_secs()
    )]
    SignatureExpired(u64),
    /// A signed command that has been given before, or might have been.
    #[error(
        "signature expired: the command was given already, or signed before this registry started \
         (by its clock); sign it anew, with the time of now"
    )]
    SignatureUsed,
    /// Too many attempts of one kind from one source.
    #[error("rate limited: too many attempts to {what} from {source_ip}")]
    TooOften {
        /// What was attempted.
        what: &'static str,
        /// From where.
        source_ip: std::net::IpAddr,
    },
    /// `beacon_register` without an id or an address.
    #[error("{0}")]
    BeaconFieldRequired(&'static str),
    /// The address is no `ip:port` or not the sender's.
    #[error("invalid beacon addr {addr:?}: {reason}")]
    BeaconAddress {
        /// As sent, shortened.
        addr: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Another address refreshed this beacon id recently.
    #[error("beacon {0} already registered from another address")]
    BeaconTaken(u32),
    /// The list is full.
    #[error("too many beacons")]
    BeaconsFull,
    /// A type this registry does not know.
    #[error("unknown message type: {0:?}")]
    UnknownType(String),
    /// Replication is not offered.
    #[error("replication not configured")]
    NoReplication,
    /// No more identities fit.
    #[error("registry is full: too many identities")]
    Full,
    /// The disk is behind.
    #[error("registry is busy")]
    Busy,
    /// The store failed; nothing was changed.
    #[error("internal error: {0}")]
    Internal(Fault),
}

/// Words whose presence lets an error text out to the peer (07 §9.4).
const PASSED_ON: [&str; 12] = [
    "rate limited",
    "enterprise feature",
    "expired",
    "already",
    "not a member",
    "cannot",
    "too many",
    "too long",
    "not found",
    "invalid",
    "require",
    "signature",
];

/// What a peer is told when the reason is not for it.
pub const MASKED: &str = "request failed";

/// Refusal of an unsigned request of most types.
pub const SIGNATURE_REQUIRED: Refusal = Refusal::SignatureRequired("signature required for authenticated node");
/// Refusal of a badly signed request of most types. 1.18.0 registers again at once on these words (07 rule 30).
pub const SIGNATURE_FAILED: Refusal = Refusal::SignatureFailed("signature verification failed");

impl Refusal {
    /// The stable name of the kind of refusal, sent as `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NodeNotFound(_) => "node_not_found",
            Self::HostnameNotFound(_) => "hostname_not_found",
            Self::NetworkNotFound(_) => "network_not_found",
            Self::SignatureRequired(_) => "signature_required",
            Self::SignatureEncoding => "signature_encoding",
            Self::SignatureFailed(_) => "signature_failed",
            Self::KeyRequired | Self::NewKeyRequired => "key_required",
            Self::KeyInvalid { .. } => "key_invalid",
            Self::KeyInUse => "key_in_use",
            Self::RateLimited(_) => "rate_limited",
            Self::HostnameInvalid(_) => "hostname_invalid",
            Self::HostnameRequired => "hostname_required",
            Self::HostnameTaken { .. } => "hostname_taken",
            Self::TagsInvalid(_) => "tags_invalid",
            Self::RequesterUnknown(_) => "requester_not_found",
            Self::Private(_) => "private",
            Self::NoEndpoint(_) => "no_endpoint",
            Self::NotParticipant => "not_participant",
            Self::NoTrust(..) => "no_trust",
            Self::AlreadyPending(_) => "already_pending",
            Self::InboxFull(_) => "inbox_full",
            Self::NoRequest(_) => "no_request",
            Self::TooManyStatements(_) => "too_many_statements",
            Self::FieldRequired(_) | Self::BeaconFieldRequired(_) => "field_required",
            Self::Unproved(_) => "unproved",
            Self::BackboneListing => "backbone_listing",
            Self::Backbone(_) => "backbone",
            Self::NetworkNameInvalid(_) => "network_name_invalid",
            Self::NetworkNameTaken(_) => "network_name_taken",
            Self::JoinRuleInvalid(_) => "join_rule_invalid",
            Self::TokenUnusable(_) => "network_token_unusable",
            Self::PolicyInvalid(_) => "network_policy_invalid",
            Self::NetworkTokenInvalid(_) => "network_token_invalid",
            Self::NotInvited { .. } => "not_invited",
            Self::InviteNotFound(_) => "invite_not_found",
            Self::AlreadyMember { .. } => "already_member",
            Self::NotMember { .. } => "not_member",
            Self::NotAllowed { .. } => "not_allowed",
            Self::OwnerStays { .. } => "owner_stays",
            Self::NetworkFull { .. } => "network_full",
            Self::TooManyNetworks(_) => "too_many_networks",
            Self::TooManyInvites(_) => "too_many_invites",
            Self::AdminTokenRequired => "admin_token_required",
            Self::AdminTokenInvalid => "admin_token_invalid",
            Self::SignatureExpired(_) | Self::SignatureUsed => "signature_expired",
            Self::TooOften { .. } => "rate_limited",
            Self::BeaconAddress { .. } => "beacon_address",
            Self::BeaconTaken(_) => "beacon_taken",
            Self::BeaconsFull => "beacons_full",
            Self::UnknownType(_) => "unknown_type",
            Self::NoReplication => "no_replication",
            Self::Full => "full",
            Self::Busy => "busy",
            Self::Internal(_) => "internal",
        }
    }

    /// The text for the peer: the reason where 07 §9.4 passes it on, else [`MASKED`].
    pub fn wire_text(&self) -> String {
        if matches!(self, Self::Internal(_)) {
            return MASKED.to_owned();
        }
        let text = self.to_string();
        if matches!(self, Self::NoReplication) || PASSED_ON.iter().any(|word| text.contains(word)) {
            text
        } else {
            MASKED.to_owned()
        }
    }
}

/// The store could not do its work. The request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

impl From<Fault> for Refusal {
    fn from(fault: Fault) -> Self {
        Self::Internal(fault)
    }
}

/// Why a store cannot be opened. Nothing in the file is changed in any of these cases.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Another process has it.
    #[error("store {} is {reason}; stop that process or choose another -store", .path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// Who holds it.
        reason: String,
    },
    /// The file, its directory or its lock cannot be used.
    #[error("store {}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file is an official snapshot.
    #[error(
        "store {} is an official JSON snapshot, not a store of this program; \
         choose a new -store and take the snapshot over with -import {}",
        .path.display(), .path.display()
    )]
    Snapshot {
        /// The file.
        path: PathBuf,
    },
    /// The file is damaged or something else.
    #[error(
        "store {} is damaged or not a registry store ({reason}); it was left as it is: \
         restore it from a backup, or move it away to start with an empty registry (every node gets a new address then)",
        .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        reason: String,
    },
    /// The file was written by a later version.
    #[error("store {} has format {found}, this program knows {known}; use a newer program", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Format of the file.
        found: u64,
        /// Newest format this program reads.
        known: u64,
    },
}

impl OpenError {
    /// A stable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "store_locked",
            Self::Io { .. } => "store_io",
            Self::Snapshot { .. } => "store_is_snapshot",
            Self::Corrupt { .. } => "store_corrupt",
            Self::Format { .. } => "store_format",
        }
    }
}
