//! What the endpoint says about itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilot_wire::SocketAddress;

use super::conns::{Conn, Origin};
use super::peers::Link;
use super::{ConnId, Endpoint, gate};
use crate::stream::{State, Stats};
use crate::tunnel::SchemeState;

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

/// What all connections did since the endpoint was made, those that have ended included: none of these ever decreases.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamTotals {
    /// Connections that we opened and that came about.
    pub dialled: u64,
    /// Connections that peers opened and that were given to an application.
    pub accepted: u64,
    /// Payload bytes sent for the first time.
    pub bytes_sent: u64,
    /// Payload bytes received, duplicates included.
    pub bytes_recv: u64,
    /// Data segments sent for the first time.
    pub segs_sent: u64,
    /// Data segments received, duplicates included.
    pub segs_recv: u64,
    /// Segments repeated after a time-out.
    pub retransmits: u64,
    /// Segments repeated without waiting for a time-out.
    pub fast_retx: u64,
    /// Packets ignored because a number in them cannot be.
    pub invalid: u64,
    /// Data segments dropped because they lie beyond what was advertised.
    pub overrun: u64,
}

impl StreamTotals {
    /// Adds one connection.
    pub(super) fn add(&mut self, conn: &Conn) {
        match conn.origin {
            Origin::Dialled => self.dialled += 1,
            Origin::Accepted => self.accepted += 1,
            Origin::Dialling(_) | Origin::HalfOpen { .. } => {}
        }
        let stats = conn.stream.stats();
        self.bytes_sent += stats.bytes_sent;
        self.bytes_recv += stats.bytes_recv;
        self.segs_sent += stats.segs_sent;
        self.segs_recv += stats.segs_recv;
        self.retransmits += stats.retransmits;
        self.fast_retx += stats.fast_retx;
        self.invalid += stats.invalid;
        self.overrun += stats.overrun;
    }
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
    /// The AEAD scheme in use.
    pub scheme: SchemeState,
    /// Whether it is one of ours and said Hello.
    pub hello: bool,
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
    /// What all connections did, ended ones included.
    pub streams: StreamTotals,
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

impl Endpoint {
    /// A snapshot for status output.
    pub fn info(&self, now: Instant) -> EndpointInfo {
        let ago = |t: Instant| now.saturating_duration_since(t);
        let mut peers: Vec<PeerInfo> = self
            .peers
            .iter()
            .map(|(slot, peer)| {
                let status = peer.tunnel().map(|t| t.status());
                let key = match &peer.link {
                    Link::Own => Some(self.identity.public_key()),
                    _ => status.as_ref().and_then(|s| s.peer_key),
                };
                PeerInfo {
                    node: peer.node,
                    endpoint: peer.path.endpoint(),
                    relay: peer.path.is_relay(),
                    encrypted: status.as_ref().is_some_and(|s| s.encrypted),
                    authenticated: status.as_ref().is_some_and(|s| s.authenticated),
                    trusted: key.is_some_and(|k| self.gate.trusts(peer.node, gate::Proof::Key(k))),
                    scheme: status.as_ref().map_or(SchemeState::Unknown, |s| s.scheme),
                    hello: status.as_ref().is_some_and(|s| s.hello),
                    generation: status.as_ref().map_or(0, |s| s.generation),
                    key,
                    last_opened: peer.path.last_opened().map(ago),
                    rtt: peer.path.rtt(),
                    datagram_limit: self.payload_limit(now, slot),
                    connections: peer.conns,
                }
            })
            .collect();
        peers.sort_unstable_by_key(|p| p.node);
        let mut conns: Vec<ConnInfo> = self
            .conns
            .iter()
            .map(|(_, c)| ConnInfo {
                id: c.id,
                local: c.local,
                remote: c.remote,
                state: c.stream.state(),
                stats: c.stream.stats(),
            })
            .collect();
        conns.sort_unstable_by_key(|c| c.id);
        let mut streams = self.ended;
        self.conns.iter().for_each(|(_, conn)| streams.add(conn));
        EndpointInfo {
            node: self.node,
            counters: self.counters,
            streams,
            peers,
            conns,
            ports: self.ports.list(),
            public_ports: self.gate.public_ports(),
            beacon: self.beacon.addr(),
            observed: self.beacon.observed(),
            beacon_seen: self.beacon.replied_at().map(ago),
        }
    }
}
