//! What the endpoint says about itself.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_wire::SocketAddress;

use super::ConnId;
use crate::stream::{State, Stats};

/// Counts since the endpoint was made. `bytes` are UDP payload bytes, relay header included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames sent to peers, key exchange included; not punches and beacon messages (01 §13.5).
    pub pkts_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Packets of peers that opened and were delivered.
    pub pkts_recv: u64,
    /// Their bytes, without relay header.
    pub bytes_recv: u64,
    /// Datagrams that are nothing we know.
    pub malformed: u64,
    /// Beacon messages from elsewhere than the beacon (01 rule 15).
    pub foreign_beacon: u64,
    /// Frames that do not open.
    pub unreadable: u64,
    /// Frames of nodes without session.
    pub no_session: u64,
    /// Plaintext packets dropped.
    pub plaintext_dropped: u64,
    /// Opened packets with a wrong version, source or destination (01 rule 12).
    pub misaddressed: u64,
    /// Key exchanges that failed: wrong key, bad signature, low-order point.
    pub exchange_failed: u64,
    /// Key exchanges over the rate limit.
    pub exchange_limited: u64,
    /// Streams and datagrams refused by the gate.
    pub refused: u64,
    /// SYNs over a limit.
    pub syn_limited: u64,
    /// Segments for no connection.
    pub stray_segments: u64,
    /// Datagrams of peers delivered to the driver.
    pub datagrams_in: u64,
    /// Datagrams given to us and sent.
    pub datagrams_out: u64,
    /// Events dropped because the driver did not take them.
    pub events_dropped: u64,
    /// Punches sent.
    pub punches_sent: u64,
}

/// One peer.
#[derive(Clone, Debug)]
pub struct PeerInfo {
    /// Its node id.
    pub node: u32,
    /// The direct address packets go to, or the last one known; `None` if there is none.
    pub endpoint: Option<SocketAddr>,
    /// Whether packets go through the beacon.
    pub relay: bool,
    /// Whether packets are encrypted: a session exists.
    pub encrypted: bool,
    /// Whether a frame has opened under a key bound to the peer's identity (07 D2).
    pub authenticated: bool,
    /// Whether its tunnel key is the pinned key of a trusted node.
    pub trusted: bool,
    /// How many sessions there have been with it.
    pub generation: u64,
    /// Its Ed25519 key, if a key exchange was accepted.
    pub key: Option<[u8; 32]>,
    /// How long ago its last readable frame came.
    pub last_opened: Option<Duration>,
    /// Round trip of the last answered probe.
    pub rtt: Option<Duration>,
    /// Largest datagram payload that can be sent to it now, bytes.
    pub datagram_limit: usize,
    /// Connections with it.
    pub connections: usize,
}

/// One connection.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Its id.
    pub id: ConnId,
    /// Our address and port.
    pub local: SocketAddress,
    /// The peer's.
    pub remote: SocketAddress,
    /// Its state.
    pub state: State,
    /// What it did so far.
    pub stats: Stats,
}

/// A snapshot; it takes time proportional to the number of peers and connections.
#[derive(Clone, Debug)]
pub struct EndpointInfo {
    /// Our node id, 0 before registration.
    pub node: u32,
    /// Counts.
    pub counters: Counters,
    /// Peers with state, by node id.
    pub peers: Vec<PeerInfo>,
    /// Connections, by id.
    pub conns: Vec<ConnInfo>,
    /// Bound ports, ascending.
    pub ports: Vec<u16>,
    /// Ports open to everybody, ascending.
    pub public_ports: Vec<u16>,
    /// The configured beacon.
    pub beacon: Option<SocketAddr>,
    /// How the beacon sees our socket.
    pub observed: Option<SocketAddr>,
    /// How long ago the beacon last answered.
    pub beacon_seen: Option<Duration>,
}
