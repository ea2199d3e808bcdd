//! What goes into a tunnel and what comes out: configuration, results, events, status, and the table of constants.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::hello::Hello;

use crate::crypto::{CryptoError, Scheme};
use crate::identity::Identity;

/// Numbers of the key exchange, each with its reason. Specification 01 §23 and 07 §4 say what they must respect.
pub mod limits {
    use std::time::Duration;

    /// Shortest time between two key exchanges of ours on one path. Peers refuse more than 5 per second (07 rule 14);
    /// the rules ask for one (01 rule 3).
    pub const AUTH_INTERVAL: Duration = Duration::from_secs(1);
    /// The same where the exchange repeats a key whose session has opened: longer than any usual round trip, so that two
    /// nodes never take each other's answers for questions (07 §16 item 5).
    pub const AUTH_INTERVAL_CONFIRMED: Duration = Duration::from_secs(3);
    /// Answers to key exchanges in a burst; one more every [`REPLY_REFILL`].
    pub const REPLY_BURST: u32 = 6;
    /// See [`REPLY_BURST`].
    pub const REPLY_REFILL: Duration = Duration::from_secs(2);
    /// Signature checks in a burst; one more every [`VERIFY_REFILL`]. A check costs about 150 µs (W16).
    pub const VERIFY_BURST: u32 = 20;
    /// See [`VERIFY_BURST`].
    pub const VERIFY_REFILL: Duration = Duration::from_millis(100);
    /// When the unanswered first exchange is repeated over the relay with the same key. Later than a usual direct round
    /// trip, because a February peer that hears from us by relay stays on the relay for ever (01 §13.2).
    pub const RELAY_COPY: Duration = Duration::from_millis(400);
    /// Pauses between exchanges that nobody answers, each with a fresh key (01 rule 2; first repeat after 1 s).
    pub const WANTED_PAUSES: [Duration; 7] = [
        Duration::from_secs(1),
        Duration::from_secs(1),
        Duration::from_secs(2),
        Duration::from_secs(4),
        Duration::from_secs(8),
        Duration::from_secs(8),
        Duration::from_secs(8),
    ];
    /// The same while healing a session that fell silent.
    pub const HEAL_PAUSES: [Duration; 4] =
        [Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
    /// The same for a new key on a session that works.
    pub const REKEY_PAUSES: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(2), Duration::from_secs(4)];
    /// Rest after an exchange that was given up (07 §5.3 uses 5 s).
    pub const EXCHANGE_REST: Duration = Duration::from_secs(5);
    /// Rest after healing was given up.
    pub const HEAL_REST: Duration = Duration::from_secs(10);
    /// Rest after a new key for a working session was given up.
    pub const REKEY_REST: Duration = Duration::from_secs(60);
    /// A packet that wants an answer and gets none for this long makes the session suspect.
    pub const SILENCE: Duration = Duration::from_secs(2);
    /// Unreadable frames in a row that make a session suspect. One or two are late frames of an old key.
    pub const UNREADABLE_SUSPECT: u32 = 3;
    /// A session that opened a frame this recently is not suspected for unreadable ones.
    pub const SUSPECT_QUIET: Duration = Duration::from_millis(500);
    /// Rest between two suspicions raised by unreadable frames, so that garbage buys few probes.
    pub const SUSPECT_REST: Duration = Duration::from_secs(5);
    /// A peer that is not ours and in use is asked after this time whether it still reads us.
    pub const PROVE_PAUSE: Duration = Duration::from_secs(15);
    /// The same for peers that never answer a probe.
    pub const PROVE_PAUSE_MAX: Duration = Duration::from_secs(960);
    /// A suspect session is probed at once and after this time.
    pub const PROBE_INTERVAL: Duration = Duration::from_millis(500);
    /// A suspect session that answers no probe for this long gets a key exchange.
    pub const SUSPECT_PATIENCE: Duration = Duration::from_millis(1500);
    /// First pause between answers to unreadable frames; doubles to [`UNREADABLE_MAX`].
    pub const UNREADABLE_FIRST: Duration = Duration::from_secs(1);
    /// See [`UNREADABLE_FIRST`].
    pub const UNREADABLE_MAX: Duration = Duration::from_secs(16);
    /// Unreadable frames after a completed exchange that mean the two sides do not understand each other (D3).
    pub const FAILING_FRAMES: u32 = 5;
    /// How long after the exchange this is judged: healing comes first.
    pub const FAILING_AFTER: Duration = Duration::from_millis(1500);
    /// How long packets are doubled while the scheme is unknown (07 rule 4).
    pub const DOUBLING: Duration = Duration::from_secs(10);
    /// How long a remembered scheme is trusted without any frame having opened.
    pub const HINT_TRUST: Duration = Duration::from_secs(2);
    /// How long an old key still opens frames after its successor took over. 1.18.0 waits 3 s (07 §16 item 4).
    pub const GRACE: Duration = Duration::from_secs(10);
    /// The node with the larger id goes back to an older pair after the other has used nothing else for this long, although
    /// it was shown the newer one.
    pub const FOLLOW: Duration = Duration::from_secs(1);
    /// Probes that show a lagging peer the newer pair; they last longer than [`FOLLOW`].
    pub const SHOW_PROBES: u8 = 4;
    /// A sealing key under which nothing has opened for this long yields to another one that does open frames.
    pub const QUIET_KEY: Duration = Duration::from_secs(3);
    /// How long a key of the peer that never opened a frame is kept.
    pub const CANDIDATE_LIFE: Duration = Duration::from_secs(30);
    /// Own X25519 keys kept at once: answers to the last few exchanges may cross (01 rule 2).
    pub const MAX_OWN_KEYS: usize = 4;
    /// X25519 keys of the peer kept at once, the current one included.
    pub const MAX_PEER_KEYS: usize = 3;
    /// Keys of the peer that opened frames and were replaced; an exchange that brings one back is a replay (D5).
    pub const MAX_RETIRED: usize = 16;
    /// A session between two of ours gets a fresh key after this time if it is in use (W14).
    pub const REKEY_AFTER: Duration = Duration::from_secs(600);
    /// The same by frames in both directions: about 80 GB.
    pub const REKEY_FRAMES: u64 = 1 << 26;
    /// Frames under one key after which any peer gets a fresh one.
    pub const SOFT_FRAMES: u64 = 1 << 32;
    /// Frames under one key after which nothing more is sealed.
    pub const HARD_FRAMES: u64 = 1 << 36;
    /// Pauses after each Hello nobody answers: at 20 % loss one pair in five hundred stays with the careful rules.
    pub const HELLO_PAUSES: [Duration; 6] = [
        Duration::from_secs(1),
        Duration::from_secs(1),
        Duration::from_secs(2),
        Duration::from_secs(4),
        Duration::from_secs(4),
        Duration::from_secs(4),
    ];
    /// Answers to Hellos within one process life of the peer.
    pub const MAX_HELLO_ANSWERS: u8 = 6;
    /// Shortest time between two answers to Hellos.
    pub const HELLO_ANSWER_INTERVAL: Duration = Duration::from_millis(500);
    /// Events kept until they are polled; beyond this the oldest is dropped.
    pub const MAX_EVENTS: usize = 32;
    /// Frames of the tunnel's own waiting to be polled; beyond this new ones are dropped.
    pub const MAX_OUTGOING: usize = 16;
    /// Shortest time between two events about replayed frames.
    pub const REPLAY_EVENT_INTERVAL: Duration = Duration::from_secs(1);
}

/// The path a datagram came on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// Straight from this UDP address.
    Direct(SocketAddr),
    /// Unwrapped from a delivery of the configured beacon.
    Relay,
}

/// Where a frame made by the tunnel itself is to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySend {
    /// To the peer's best known address; by relay when none is known.
    Direct,
    /// By relay; nothing when there is no beacon.
    Relay,
    /// One copy each way.
    Both,
    /// Back on the path a frame came on.
    Reply(Via),
    /// As data goes.
    Current,
}

/// What all tunnels of a node share.
#[derive(Clone, Debug)]
pub struct LocalKeys {
    /// Own node id.
    pub node: u32,
    /// Own identity.
    pub identity: Arc<Identity>,
    /// First send counter, before the first frame.
    pub counter_start: u64,
}

impl LocalKeys {
    /// `unix_secs` is the wall clock at start: counters begin at `unix_secs << 32`, so that they do not go back when the
    /// process starts again (01 rule 9). Tests give 0 and get counters from 1.
    pub fn new(node: u32, identity: Arc<Identity>, unix_secs: u64) -> Self {
        Self { node, identity, counter_start: (unix_secs & 0xFFFF_FFFF) << 32 }
    }
}

/// What an operator may change.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// Whether peers of the February scheme are served (07 rule 7). Default true.
    pub allow_scheme_a: bool,
    /// Whether a node without a registered key may open an unauthenticated session (W11). Default false.
    pub allow_anonymous: bool,
    /// What we tell peers about ourselves.
    pub hello: Hello,
    /// Default [`limits::REKEY_AFTER`].
    pub rekey_after: Duration,
    /// Default [`limits::REKEY_FRAMES`].
    pub rekey_frames: u64,
    /// Default [`limits::SOFT_FRAMES`].
    pub soft_frames: u64,
    /// Default [`limits::HARD_FRAMES`].
    pub hard_frames: u64,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            allow_scheme_a: true,
            allow_anonymous: false,
            hello: Hello::default(),
            rekey_after: limits::REKEY_AFTER,
            rekey_frames: limits::REKEY_FRAMES,
            soft_frames: limits::SOFT_FRAMES,
            hard_frames: limits::HARD_FRAMES,
        }
    }
}

/// What is known about the peer's scheme. It decides only how we send; receiving tries both (07 rules 2 to 5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SchemeState {
    /// Nothing: packets are doubled.
    Unknown,
    /// Remembered or announced, not yet seen in this process.
    Hinted(Scheme),
    /// A frame opened under it.
    Known(Scheme),
}

impl SchemeState {
    /// The scheme, hinted or known.
    pub fn scheme(self) -> Option<Scheme> {
        match self {
            Self::Unknown => None,
            Self::Hinted(s) | Self::Known(s) => Some(s),
        }
    }
}

/// What [`super::Tunnel::seal`] left in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// One frame from the given start to the end of the buffer.
    One,
    /// Two frames of equal size, the second from this index to the end: the scheme is unknown (07 rule 3). Both go to
    /// the same place, in this order.
    Twin {
        /// Where the second frame begins.
        second: usize,
    },
}

/// A frame that opened.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// The packet. Its version and its source and destination nodes have been checked, its checksum has not.
    pub packet: &'a [u8],
    /// Whether the frame is newer than every other of its prefix: only then may it move the peer's endpoint (rule 14).
    pub newest: bool,
}

/// Why a frame gives no packet. None of these changes the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Not a `PILS` frame that could hold a packet, or a counter of 0.
    #[error("malformed frame")]
    Malformed,
    /// Names another node.
    #[error("the frame names another node")]
    WrongNode,
    /// There is no key for this peer yet.
    #[error("no session")]
    NoSession,
    /// No key of either scheme opens it.
    #[error("the frame opens under no key")]
    Unreadable,
    /// Opened before, or too old to tell.
    #[error("replayed frame")]
    Replayed,
    /// Opened, but the packet inside has another version than 1 (07 rule 17).
    #[error("packet of another version")]
    Version,
    /// Opened, but it is a frame of our own come back, or speaks for another node (01 rule 12).
    #[error("packet from another node")]
    Source,
    /// Opened, but it is addressed to another node (07 rule 19).
    #[error("packet for another node")]
    Destination,
}

impl OpenError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed => "frame_malformed",
            Self::WrongNode => "frame_wrong_node",
            Self::NoSession => "no_session",
            Self::Unreadable => "frame_unreadable",
            Self::Replayed => "frame_replayed",
            Self::Version => "packet_version",
            Self::Source => "packet_source",
            Self::Destination => "packet_destination",
        }
    }
}

/// Why a packet was not sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SealError {
    /// There is no key yet; call [`super::Tunnel::start`] and wait for [`TunnelEvent::Ready`].
    #[error("no session")]
    NoSession,
    /// The key has been used up and its successor is not there yet.
    #[error("the session key is used up; a new key exchange is under way")]
    Exhausted,
    /// Fewer bytes than the reserved header and a packet.
    #[error("no packet to seal")]
    Short,
    /// See [`CryptoError`].
    #[error(transparent)]
    Crypto(#[from] CryptoError),
}

impl SealError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoSession => "no_session",
            Self::Exhausted => "key_exhausted",
            Self::Short => "packet_short",
            Self::Crypto(_) => "crypto",
        }
    }
}

/// Why a key exchange was refused. Nothing has changed then and no answer is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExchangeError {
    /// Names another node.
    #[error("the key exchange names another node")]
    WrongNode,
    /// Carries another identity key than expected. The caller may ask the registry again, rate-limited (01 rule 7).
    #[error("the key exchange carries another identity key than the registry")]
    ForeignKey,
    /// The signature is wrong.
    #[error("the signature of the key exchange is wrong")]
    Signature,
    /// The X25519 key is a low-order point (01 rule 8).
    #[error("the key exchange carries a low-order key")]
    LowOrder,
    /// A key that was already replaced: a replay (D5).
    #[error("the key exchange brings back a key that was replaced")]
    Stale,
    /// Too many new exchanges from this peer.
    #[error("too many key exchanges from this node")]
    RateLimited,
    /// Unauthenticated exchanges are not configured (W11).
    #[error("anonymous key exchanges are refused")]
    Anonymous,
}

impl ExchangeError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::WrongNode => "exchange_wrong_node",
            Self::ForeignKey => "exchange_foreign_key",
            Self::Signature => "exchange_signature",
            Self::LowOrder => "exchange_low_order",
            Self::Stale => "exchange_stale",
            Self::RateLimited => "exchange_rate_limited",
            Self::Anonymous => "exchange_anonymous",
        }
    }
}

/// Why a tunnel does not work although it tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The peer answered none of so many key exchanges.
    NoAnswer {
        /// Exchanges sent.
        attempts: u32,
    },
    /// Keys were exchanged, but so many frames of the peer open under no key: the two sides derive different keys.
    Unreadable {
        /// Frames since the exchange.
        frames: u32,
    },
}

impl Failure {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NoAnswer { .. } => "key_exchange_unanswered",
            Self::Unreadable { .. } => "tunnel_unreadable",
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelEvent {
    /// Packets can be sealed now; nothing has been heard under the key yet.
    Ready,
    /// The first frame opened.
    Established {
        /// Its scheme.
        scheme: Scheme,
        /// Whether the peer proved its identity.
        authenticated: bool,
    },
    /// A frame opened under a new key, which is used from now on.
    Rekeyed {
        /// Keys in use so far, this one included.
        generation: u64,
    },
    /// The peer's scheme is known or has changed: worth remembering (07 rule 5).
    Scheme(Scheme),
    /// A frame was replayed. At most one event per second.
    NonceReplay {
        /// Its counter.
        counter: u64,
    },
    /// The tunnel does not work; dials may fail now instead of timing out (D3).
    Failing(Failure),
    /// The peer is one of ours and said what it can do.
    Hello(Box<Hello>),
    /// The peer started again and has not said Hello: back to the careful rules.
    HelloLost,
}

/// What status output shows of a tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunnelStatus {
    /// Packets can be sealed.
    pub encrypted: bool,
    /// A frame opened under a key the peer's identity signed for (D2).
    pub authenticated: bool,
    /// The peer's scheme.
    pub scheme: SchemeState,
    /// Whether the peer said Hello.
    pub hello: bool,
    /// Keys in use so far; 0 before the first frame opened.
    pub generation: u64,
    /// The identity key behind the current session once it is authenticated.
    pub peer_key: Option<[u8; 32]>,
    /// When the first frame opened under the current key.
    pub established: Option<Instant>,
    /// When the last frame opened.
    pub last_opened: Option<Instant>,
    /// Counters.
    pub stats: TunnelStats,
}

/// Counters of one tunnel since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelStats {
    /// Packets sealed; a doubled one counts once.
    pub sealed: u64,
    /// Frames opened.
    pub opened: u64,
    /// Frames no key opened, or without a session.
    pub unreadable: u64,
    /// Frames refused as replays.
    pub replayed: u64,
    /// Packets that opened but speak for or to another node, or have another version.
    pub misaddressed: u64,
    /// Key exchanges handed out by `poll_transmit`.
    pub auth_sent: u64,
    /// Key exchanges accepted.
    pub auth_accepted: u64,
    /// Key exchanges refused.
    pub auth_refused: u64,
}
