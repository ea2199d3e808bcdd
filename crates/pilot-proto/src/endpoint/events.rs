//! What the endpoint tells its driver, and why its operations fail.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use pilot_wire::SocketAddress;

use crate::stream::StreamEvent;
use crate::tunnel::TunnelEvent;

/// Names a connection of one [`Endpoint`](super::Endpoint). Ids count up from 1 and come back only after 2^32 of them,
/// skipping those in use; 0 is never given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(pub u32);

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Something the driver should know or do. Order within one connection is the order in which things happened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Event {
    /// Which networks this node shares with us is needed; answer with `handle_membership`. Asked again after 10 s without
    /// answer.
    NeedMembership {
        /// Whose.
        node: u32,
    },
    /// The registry key of this node is needed; answer with `handle_peer_key`. Asked again after 10 s without answer.
    NeedKey {
        /// Whose key.
        node: u32,
    },
    /// The endpoint of this node is needed; answer with `handle_resolved`. Asked again after 10 s without answer.
    NeedEndpoint {
        /// Whose endpoint.
        node: u32,
    },
    /// A peer past the gate opened a stream to a bound port and finished the three-way handshake (02 §29.14).
    Accepted {
        /// The new connection.
        conn: ConnId,
        /// The bound port.
        port: u16,
        /// The peer's address and port.
        remote: SocketAddress,
        /// Our address as the peer named it (any own network) and the port.
        local: SocketAddress,
    },
    /// A connection changed.
    Stream {
        /// Which.
        conn: ConnId,
        /// How.
        event: StreamEvent,
    },
    /// A connection that was established is over, or its peer has ended it. Exactly one for each, whether or not its
    /// application has gone already; for accounts of what happened, not for control.
    Ended(Box<Ended>),
    /// A dial has failed; the connection id is free again.
    DialFailed {
        /// Which.
        conn: ConnId,
        /// Why, what was tried, what to do.
        error: DialError,
    },
    /// A datagram from a peer past the gate.
    Datagram {
        /// Who sent it.
        src: SocketAddress,
        /// Our port it was sent to; bound or not.
        dst_port: u16,
        /// Its bytes, never empty.
        data: Vec<u8>,
    },
    /// Something happened to the tunnel with a peer.
    Tunnel {
        /// Which peer.
        node: u32,
        /// What.
        event: TunnelEvent,
    },
    /// The way to a peer changed.
    PathChanged {
        /// Which peer.
        node: u32,
        /// The direct address in use, or `None` when the peer is reached by relay.
        direct: Option<SocketAddr>,
        /// Whether packets go through the beacon now.
        relay: bool,
    },
    /// A trusted node without a pinned key authenticated for the first time. Store the key with the trust record.
    Pinned {
        /// Which peer.
        node: u32,
        /// Its Ed25519 key.
        key: [u8; 32],
    },
    /// The gate refused a stream or datagram. At most one event per node and port in 10 s; all are counted.
    Refused {
        /// Who was refused.
        node: u32,
        /// The port it wanted.
        port: u16,
        /// The port it came from.
        remote_port: u16,
        /// Why.
        reason: RefusedReason,
    },
    /// The beacon saw the tunnel socket at this address: register it (01 rule 16). Raised on each change.
    ObservedEndpoint(SocketAddr),
    /// The beacon says that a handshake message waits at the registry (07 §8.1). At most
    /// [`NOTIFY_BURST`](crate::directory::NOTIFY_BURST) at once, then one per
    /// [`NOTIFY_INTERVAL`](crate::directory::NOTIFY_INTERVAL); more of them in between are told as one.
    HandshakeWaiting,
}

/// The account of one connection.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Which.
    pub conn: ConnId,
    /// Our address and port.
    pub local: SocketAddress,
    /// The peer's.
    pub remote: SocketAddress,
    /// How it ended.
    pub how: EndedHow,
    /// What it did.
    pub stats: crate::stream::Stats,
    /// From the first packet to the end.
    pub lasted: Duration,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndedHow {
    /// In order; the peer ended it first.
    FinByPeer,
    /// In order; we ended it first.
    FinByUs,
    /// The peer reset it, or dialled anew on its ports.
    ResetByPeer,
    /// We reset it, or gave it up because the peer fell silent.
    ResetByUs,
    /// Nothing was heard for the idle time-out.
    IdleTimeout,
}

impl EndedHow {
    pub(super) fn of(reason: crate::stream::CloseReason, peer_first: bool) -> Self {
        use crate::stream::CloseReason as R;
        match reason {
            R::Clean if peer_first => Self::FinByPeer,
            R::Clean => Self::FinByUs,
            R::Reset | R::Refused | R::PeerRestarted => Self::ResetByPeer,
            R::IdleTimeout => Self::IdleTimeout,
            R::Local | R::Timeout | R::Truncated | R::DialTimeout | R::AcceptTimeout | R::TrustRevoked => {
                Self::ResetByUs
            }
        }
    }
}

/// Why the gate refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RefusedReason {
    /// The node is not trusted and shares no network other than 0.
    Untrusted,
    /// The node is trusted, but its tunnel key is not the pinned one.
    KeyMismatch,
    /// The networks we share do not allow the port (07 §7).
    NetworkPolicy,
    /// A SYN over the rate limit (02 §11).
    SynLimit,
    /// Too many connections on the port or in total.
    ConnectionLimit,
}

impl RefusedReason {
    /// Stable name.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Untrusted => "untrusted",
            Self::KeyMismatch => "key_mismatch",
            Self::NetworkPolicy => "network_policy",
            Self::SynLimit => "syn_limit",
            Self::ConnectionLimit => "connection_limit",
        }
    }
}

/// How a question to the registry failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DirectoryCode {
    /// The registry does not know the node, or the node has no key.
    NotFound,
    /// The registry refuses to tell (a private node we share neither trust nor a network with).
    Denied,
    /// The registry did not answer.
    Unavailable,
}

/// The answer to [`Event::NeedKey`] or [`Event::NeedEndpoint`] when there is no better one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryFailure {
    /// The kind of failure.
    pub code: DirectoryCode,
    /// The registry's words, for people.
    pub text: String,
}

impl DirectoryFailure {
    /// Joins code and text.
    pub fn new(code: DirectoryCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// What the registry says about a node's identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerRecord {
    /// Its Ed25519 key.
    pub ed25519: [u8; 32],
    /// Whether the record carries a `version` field: then the node is newer than February and speaks scheme B (07 rule 6).
    pub version_known: bool,
}

/// Why a dial failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialFailure {
    /// The registry knows no such node.
    NodeNotFound,
    /// The registry does not tell us where the node is.
    ResolveDenied,
    /// The registry could not be asked, and nothing else about the node is known.
    RegistryUnavailable,
    /// No key exchange came back on any path.
    NoAnswer,
    /// Key exchanges came back, but no frame opens.
    Unreadable,
    /// The peer offered a key that is not the registered or pinned one.
    KeyMismatch,
    /// The tunnel works and the peer answers probes, but not the SYN: it most likely does not trust us.
    UntrustedLikely,
    /// The peer answered the SYN with RST.
    Refused,
    /// The tunnel stood, and then nothing came any more.
    TimedOut,
    /// Closed by our own side before the dial was through.
    Cancelled,
}

/// What a dial went through, for the error text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tried {
    /// Whether the registry named an endpoint.
    pub resolved: bool,
    /// Direct addresses frames were sent to.
    pub direct: Vec<SocketAddr>,
    /// Whether a hole punch was asked for.
    pub punched: bool,
    /// Whether frames went through the relay.
    pub relay: bool,
    /// SYNs sent.
    pub syns: u32,
    /// How long ago the peer's last readable frame came.
    pub last_seen: Option<Duration>,
}

/// A failed dial: where, why, what was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DialError {
    /// Who was dialled.
    pub remote: SocketAddress,
    /// Why it failed.
    pub failure: DialFailure,
    /// What was tried before.
    pub tried: Tried,
    /// The registry's words, or empty.
    pub detail: String,
}

impl DialError {
    /// Stable name of the failure.
    pub const fn code(&self) -> &'static str {
        match self.failure {
            DialFailure::NodeNotFound => "node_not_found",
            DialFailure::ResolveDenied => "resolve_denied",
            DialFailure::RegistryUnavailable => "registry_unavailable",
            DialFailure::NoAnswer => "no_answer",
            DialFailure::Unreadable => "unreadable",
            DialFailure::KeyMismatch => "key_mismatch",
            DialFailure::UntrustedLikely => "untrusted",
            DialFailure::Refused => "connection_refused",
            DialFailure::TimedOut => "dial_timeout",
            DialFailure::Cancelled => "cancelled",
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> String {
        let node = self.remote.addr;
        match self.failure {
            DialFailure::NodeNotFound => format!("check the address: the registry knows no node {node}"),
            DialFailure::ResolveDenied | DialFailure::UntrustedLikely => {
                format!(
                    "the peer probably does not trust this node: run `pilotctl handshake {node}` and have it approved"
                )
            }
            DialFailure::RegistryUnavailable => {
                "the registry is not reachable: check `pilotctl info` and the -registry address".into()
            }
            DialFailure::NoAnswer => {
                "the peer is offline, or UDP between both hosts and the beacon is blocked: check that it runs".into()
            }
            DialFailure::Unreadable => {
                "both sides hold different tunnel keys or an unknown encryption scheme: restart the peer or update it"
                    .into()
            }
            DialFailure::KeyMismatch => {
                format!("the key of {node} changed: `pilotctl untrust {node}` and a new handshake if that was intended")
            }
            DialFailure::Refused => format!("nothing listens on port {} of the peer", self.remote.port),
            DialFailure::TimedOut => "the path to the peer broke: try again".into(),
            DialFailure::Cancelled => "the dial was given up by this side".into(),
        }
    }

    fn reason(&self) -> &'static str {
        match self.failure {
            DialFailure::NodeNotFound => "node not found",
            DialFailure::ResolveDenied => "the registry does not tell its endpoint",
            DialFailure::RegistryUnavailable => "the registry is not reachable",
            DialFailure::NoAnswer => "peer did not answer",
            DialFailure::Unreadable => "frames of the peer cannot be read",
            DialFailure::KeyMismatch => "the peer's key is not the expected one",
            DialFailure::UntrustedLikely => "peer is reachable but ignores us, most likely it does not trust this node",
            DialFailure::Refused => "connection refused",
            DialFailure::TimedOut => "dial timeout",
            DialFailure::Cancelled => "cancelled",
        }
    }
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "dial {}: {} (", self.remote, self.reason())?;
        if !self.detail.is_empty() {
            write!(f, "{}; ", self.detail)?;
        }
        f.write_str(if self.tried.resolved { "resolved" } else { "not resolved" })?;
        let mut separator = "; tried ";
        for addr in &self.tried.direct {
            write!(f, "{separator}direct {addr}")?;
            separator = ", ";
        }
        if self.tried.punched {
            write!(f, "{separator}punched")?;
            separator = ", ";
        }
        if self.tried.relay {
            write!(f, "{separator}relay")?;
        }
        match self.tried.last_seen {
            Some(ago) => write!(f, "; last seen {} ago)", Ago(ago)),
            None => f.write_str("; never seen)"),
        }
    }
}

impl std::error::Error for DialError {}

/// A duration in the largest unit that fits.
struct Ago(Duration);

impl fmt::Display for Ago {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = self.0.as_secs();
        match s {
            0..=119 => write!(f, "{s} s"),
            120..=7199 => write!(f, "{} min", s / 60),
            _ => write!(f, "{} h", s / 3600),
        }
    }
}

/// Why a dial could not even start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No node id yet.
    #[error("connect {0}: this node is not registered yet")]
    NotRegistered(SocketAddress),
    /// Broadcast or node 0.
    #[error("connect {0}: not the address of a node")]
    InvalidAddress(SocketAddress),
    /// The connection table is full.
    #[error("connect {0}: too many connections (limit {1})")]
    TooManyConnections(SocketAddress, usize),
    /// The peer table is full of peers in use.
    #[error("connect {0}: too many peers in use (limit {1})")]
    TooManyPeers(SocketAddress, usize),
    /// No free source port towards this destination.
    #[error("connect {0}: no free ephemeral port")]
    NoPort(SocketAddress),
}

impl ConnectError {
    /// Stable name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::NotRegistered(_) => "not_registered",
            Self::InvalidAddress(_) => "invalid_address",
            Self::TooManyConnections(..) => "too_many_connections",
            Self::TooManyPeers(..) => "too_many_peers",
            Self::NoPort(_) => "no_port",
        }
    }

    /// What to do.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::NotRegistered(_) => "wait until the daemon has registered; see `pilotctl info`",
            Self::InvalidAddress(_) => "give the address of one node, N:NNNN.HHHH.LLLL",
            Self::TooManyConnections(..) | Self::NoPort(_) => "close connections that are not needed",
            Self::TooManyPeers(..) => "wait until other peers are idle for 5 minutes",
        }
    }
}

/// Why a port could not be bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Somebody has it.
    #[error("port {0} already bound")]
    InUse(u16),
}

impl BindError {
    /// Stable name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::InUse(_) => "port_in_use",
        }
    }

    /// What to do.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::InUse(_) => "choose another port, or end the program that listens there",
        }
    }
}

/// No connection has this id (any more).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connection {0} does not exist")]
pub struct UnknownConn(pub ConnId);

impl UnknownConn {
    /// Stable name.
    pub const fn code(&self) -> &'static str {
        "unknown_connection"
    }
}

/// Why a datagram was not sent. Nothing left the node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// Larger than one unfragmented datagram on this path.
    #[error("datagram to {dst}: {len} bytes do not fit the path (max {max})")]
    TooLarge {
        /// Where to.
        dst: SocketAddress,
        /// Payload bytes given.
        len: usize,
        /// Payload bytes possible now.
        max: usize,
    },
    /// Receivers drop empty datagrams (02 §21).
    #[error("datagram to {0}: empty payload")]
    Empty(SocketAddress),
    /// A broadcast destination (01 §2.5; the words of the official daemon).
    #[error("broadcast is not available — custom networks are WIP")]
    Broadcast,
    /// Node 0.
    #[error("datagram to {0}: not the address of a node")]
    InvalidAddress(SocketAddress),
    /// No node id yet.
    #[error("datagram to {0}: this node is not registered yet")]
    NotRegistered(SocketAddress),
    /// Datagrams wait for the tunnel and no more fit.
    #[error("datagram to {0}: too many datagrams wait for the tunnel")]
    QueueFull(SocketAddress),
    /// The peer table is full of peers in use.
    #[error("datagram to {0}: too many peers in use")]
    TooManyPeers(SocketAddress),
    /// The registry recently said so.
    #[error("resolve node {}: {detail}", dst.addr.node)]
    Unreachable {
        /// Where to.
        dst: SocketAddress,
        /// The registry's words.
        detail: String,
    },
}

impl DatagramError {
    /// Stable name.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "datagram_too_large",
            Self::Empty(_) => "empty_datagram",
            Self::Broadcast => "broadcast",
            Self::InvalidAddress(_) => "invalid_address",
            Self::NotRegistered(_) => "not_registered",
            Self::QueueFull(_) => "queue_full",
            Self::TooManyPeers(_) => "too_many_peers",
            Self::Unreachable { .. } => "unreachable",
        }
    }

    /// What to do.
    pub const fn hint(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "send smaller pieces, or use a stream",
            Self::Empty(_) => "send at least one byte",
            Self::Broadcast | Self::InvalidAddress(_) => "give the address of one node",
            Self::NotRegistered(_) => "wait until the daemon has registered",
            Self::QueueFull(_) => "send slower, or use a stream",
            Self::TooManyPeers(_) => "wait until other peers are idle for 5 minutes",
            Self::Unreachable { .. } => "ask for trust first: `pilotctl handshake`",
        }
    }
}
