//! The sum of the protocol: one UDP socket's worth of peers, tunnels, paths, streams and datagrams, without I/O.
//!
//! The driver owns the socket and the clock. It gives datagrams, time, answers of the registry and the wishes of
//! applications in, and takes datagrams, events and a deadline out. **After every mutation drain
//! [`Endpoint::poll_event`] and [`Endpoint::poll_transmit`] until both are empty, then re-arm the timer from
//! [`Endpoint::poll_timeout`].**
//!
//! Socket addresses are given in any form and come out canonical: an IPv4-mapped IPv6 address as IPv4. A driver with a
//! dual-stack socket maps them back when it sends.
//!
//! | File | Holds |
//! |---|---|
//! | `demux` | from a datagram to a packet of a peer |
//! | `streams`, `conns` | segments, SYNs, the connection table |
//! | `datagrams`, `control` | the other two protocols |
//! | `dial` | getting a session and an answer, and saying early what is wrong |
//! | `peers`, `upkeep` | the peer table; what is due for peers, and what the registry answered |
//! | `gate` | who reaches an application |
//! | `ports`, `limits`, `timers` | ports; rate limits and bounded tables; deadlines |
//! | `transmit` | from packets to batches of datagrams |
//! | `greeting` | Hello |
//! | `config`, `events`, `info` | what goes in at birth, what comes out |

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::SeedableRng as _;
use rand::rngs::StdRng;

mod config;
mod conns;
mod control;
mod datagrams;
mod demux;
mod dial;
mod events;
mod gate;
mod greeting;
mod info;
mod limits;
mod members;
mod peers;
mod ports;
mod streams;
#[cfg(test)]
mod tests;
mod timers;
mod transmit;
mod upkeep;

pub use config::{Encryption, EndpointConfig, Limits};
pub use control::PROBE;
pub use events::{
    BindError, ConnId, ConnectError, DatagramError, DialError, DialFailure, DirectoryCode, DirectoryFailure, Ended,
    EndedHow, Event, PeerRecord, RefusedReason, Tried, UnknownConn,
};
pub use gate::{DATA_PORT, HANDSHAKE_PORT};
pub use greeting::WIDE_SEGMENT;
pub use info::{ConnInfo, Counters, EndpointInfo, PeerInfo, StreamTotals};
pub use members::{ASK_AFTER, Membership, SharedNetwork, VALID};
pub use ports::EPHEMERAL_FIRST;
pub use streams::{Flow, HalfClose};
pub use transmit::{MAX_BATCH, MAX_BATCH_BYTES};

use crate::crypto::Scheme;
use crate::identity::Identity;
use crate::path::BeaconClient;
use crate::stream::StreamConfig;
use crate::tunnel::TunnelConfig;
use conns::Conns;
use gate::Gate;
use limits::{Bucket, Limiter, Lru, Notices, Once, Owed};
use peers::{LOOKUPS, Lookups, Peers};
use ports::Ports;
use timers::{Owner, Timers};

/// Between two events about the same refusal.
const REFUSED_EVERY: Duration = Duration::from_secs(10);
/// Between two questions to the registry about a node whose key differs from the known one (01 rule 7).
const REQUERY_EVERY: Duration = Duration::from_secs(10);
/// Between two rounds in which peers are told that our address changed.
const MOVED_EVERY: Duration = Duration::from_secs(10);
/// Between two key exchanges with a node whose frames belong to no session (07 rule 14: one per 3 s).
const STRANGER_EVERY: Duration = Duration::from_secs(3);

/// Datagrams for the socket: `len` bytes were appended to the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to, canonical (never IPv4-mapped).
    pub dst: SocketAddr,
    /// Bytes appended.
    pub len: usize,
    /// Every datagram is this long, the last may be shorter; `None` for a single datagram.
    pub segment_size: Option<usize>,
}

/// See the module.
pub struct Endpoint {
    identity: Arc<Identity>,
    node: u32,
    networks: Vec<u16>,
    origin: Instant,
    origin_unix: u64,
    encrypt: Encryption,
    limits: Limits,
    stream_config: Arc<StreamConfig>,
    tunnel_config: Arc<TunnelConfig>,
    rng: StdRng,
    beacon: BeaconClient,
    gate: Gate,
    ports: Ports,
    conns: Conns,
    peers: Peers,
    lookups: Lookups,
    /// Schemes seen, by node: a hint for peers that come back (07 rule 5).
    schemes: Lru<u32, Scheme>,
    timers: Timers,
    /// Scratch of `handle_timeout`.
    due: Vec<Owner>,
    /// Peers that may have something to send.
    ready: VecDeque<usize>,
    /// Finished datagrams that leave before anything else. Bounded: filled only while one peer is served, and emptied
    /// before the next.
    stash: VecDeque<(SocketAddr, Vec<u8>)>,
    twin: Option<Vec<u8>>,
    events: VecDeque<Event>,
    counters: Counters,
    /// What connections did that have ended.
    ended: StreamTotals,
    exchange_by_ip: Limiter<IpAddr>,
    exchange_by_node: Limiter<(u32, bool)>,
    exchange_global: Bucket,
    stranger_lookups: Bucket,
    syn_by_node: Limiter<u32>,
    syn_admitted: Limiter<u32>,
    syn_global: Bucket,
    refused_once: Once<(u32, u16)>,
    requery: Once<u32>,
    stranger_once: Once<u32>,
    /// When peers were last told that we moved.
    moved: Option<Instant>,
    /// By claimed node and address: what frames of sessions we do not have weighed.
    stranger_owed: Owed<(u32, SocketAddr)>,
    notices: Notices,
}

impl Endpoint {
    /// An endpoint that has spoken to nobody yet.
    pub fn new(now: Instant, config: EndpointConfig) -> Self {
        let mut rng = StdRng::from_seed(config.seed);
        let ports = Ports::new((rand::RngCore::next_u32(&mut rng) & 0xFFFF) as u16);
        let tunnel_config = TunnelConfig {
            allow_scheme_a: config.allow_scheme_a,
            hello: greeting::our_hello(&config.stream),
            ..TunnelConfig::default()
        };
        Self {
            node: config.node,
            networks: config.networks,
            origin: now,
            origin_unix: config.unix_secs,
            encrypt: config.encrypt,
            limits: config.limits,
            stream_config: Arc::new(config.stream),
            tunnel_config: Arc::new(tunnel_config),
            rng,
            beacon: BeaconClient::new(now, config.beacon, config.node),
            gate: Gate::new(&config.public_ports),
            ports,
            conns: Conns::default(),
            peers: Peers::default(),
            lookups: Lru::new(LOOKUPS),
            schemes: Lru::new(limits::SCHEMES),
            timers: Timers::default(),
            due: Vec::new(),
            ready: VecDeque::new(),
            stash: VecDeque::new(),
            twin: None,
            events: VecDeque::new(),
            counters: Counters::default(),
            ended: StreamTotals::default(),
            exchange_by_ip: Limiter::new(limits::KEY_EXCHANGE_RATE),
            exchange_by_node: Limiter::new(limits::KEY_EXCHANGE_RATE),
            exchange_global: Bucket::new(now, limits::KEY_EXCHANGE_GLOBAL),
            stranger_lookups: Bucket::new(now, limits::STRANGER_LOOKUPS),
            syn_by_node: Limiter::new(limits::SYN_PER_NODE),
            syn_admitted: Limiter::new(limits::SYN_ADMITTED),
            syn_global: Bucket::new(now, limits::Rate::of_syns(config.limits.syn_rate)),
            refused_once: Once::new(REFUSED_EVERY, limits::SOURCES),
            requery: Once::new(REQUERY_EVERY, limits::SOURCES),
            stranger_once: Once::new(STRANGER_EVERY, limits::SOURCES),
            stranger_owed: Owed::new(),
            moved: None,
            notices: Notices::new(now),
            identity: config.identity,
        }
    }

    /// Our node id and networks, after a (re-)registration. Before the first one (node 0) no peer is served. A changed
    /// node id ends every session and connection.
    pub fn set_local_node(&mut self, now: Instant, node: u32, networks: &[u16]) {
        if self.node != 0 && self.node != node {
            let nodes: Vec<u32> = self.peers.iter().map(|(_, p)| p.node).collect();
            for peer in nodes {
                self.forget_peer(now, peer);
            }
        }
        self.node = node;
        self.networks = networks.to_vec();
        self.own_networks_changed(now);
        self.beacon.set_node(now, node);
    }

    /// Changes the beacon; it is asked for our endpoint at once.
    pub fn set_beacon(&mut self, now: Instant, beacon: Option<SocketAddr>) {
        self.beacon.set_addr(now, beacon);
    }

    /// Tells the beacon where we are now, not at the next round: it may have forgotten us.
    pub fn rediscover(&mut self, now: Instant) {
        self.beacon.discover_soon(now);
    }

    /// The beacon in use.
    pub fn beacon(&self) -> Option<SocketAddr> {
        self.beacon.addr()
    }

    /// The host has another address now: the beacon is told at once, and so are the peers in use, at most every 10 s (07
    /// §16.16).
    pub fn handle_network_change(&mut self, now: Instant) {
        self.beacon.discover_soon(now);
        if self.moved.is_some_and(|at| now.saturating_duration_since(at) < MOVED_EVERY) {
            return;
        }
        self.moved = Some(now);
        self.beacon.on_moved(now);
        let used: Vec<usize> = self.peers.iter().filter(|(_, p)| p.in_use(now)).map(|(slot, _)| slot).collect();
        for slot in used {
            if let Some(peer) = self.peers.get_mut(slot) {
                peer.path.on_moved(now);
            }
            self.service_peer(now, slot);
        }
    }

    /// The time of [`Self::poll_timeout`] has come. Harmless when called early.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.notices.pass(now) {
            self.notice(Event::HandshakeWaiting);
        }
        // A connection whose pace allows a packet now keeps that deadline until the packet is polled, so every owner gets
        // one turn and no more.
        let mut due = std::mem::take(&mut self.due);
        while let Some(owner) = self.timers.pop(now) {
            match owner {
                Owner::Conn(slot) => {
                    if let Some(conn) = self.conns.get_mut(slot) {
                        conn.armed = None;
                    }
                }
                Owner::Peer(slot) => {
                    if let Some(peer) = self.peers.get_mut(slot) {
                        peer.armed = None;
                    }
                }
            }
            due.push(owner);
        }
        for owner in due.drain(..) {
            match owner {
                Owner::Conn(slot) => {
                    if let Some(conn) = self.conns.get_mut(slot) {
                        conn.stream.handle_timeout(now);
                        self.service_conn(now, slot);
                    }
                }
                Owner::Peer(slot) => self.peer_timeout(now, slot),
            }
        }
        self.due = due;
    }

    /// Trusts a node under a pinned key; with `None` the key of its first authenticated session is pinned and told by
    /// [`Event::Pinned`].
    pub fn set_trusted(&mut self, now: Instant, node: u32, key: Option<[u8; 32]>) {
        self.gate.set_trusted(node, key);
        if let Some(slot) = self.peers.find(node) {
            self.pin_if_new(slot);
            self.service_peer(now, slot);
        }
    }

    /// Our identity key has been replaced at the registry. Sessions go on; exchanges are signed with the new key.
    pub fn set_identity(&mut self, identity: Arc<Identity>) {
        for (_, peer) in self.peers.iter_mut() {
            if let Some(tunnel) = peer.tunnel_mut() {
                tunnel.set_identity(Arc::clone(&identity));
            }
        }
        self.identity = identity;
    }

    /// A trusted node has replaced its key, which the old one has vouched for. Sessions and streams go on.
    pub fn rotate_peer(&mut self, node: u32, old: [u8; 32], new: [u8; 32]) {
        if self.gate.pinned(node) == Some(old) {
            self.gate.set_trusted(node, Some(new));
        }
        if let Some(peer) = self.peers.find(node).and_then(|slot| self.peers.get_mut(slot)) {
            if let Some(record) = &mut peer.record
                && record.ed25519 == old
            {
                record.ed25519 = new;
            }
            if let Some(tunnel) = peer.tunnel_mut() {
                tunnel.rename_peer(old, new);
            }
        }
    }

    /// Trusts a node no longer. Connections it would not be allowed to open any more are reset.
    pub fn remove_trusted(&mut self, now: Instant, node: u32) {
        self.gate.remove_trusted(node);
        self.reset_disallowed(now, node);
    }

    /// Opens a port to everybody, or closes it to new streams.
    pub fn set_public_port(&mut self, port: u16, open: bool) {
        self.gate.set_public(port, open);
    }

    /// We sent this node something outside a stream (a handshake by the registry, say): it may reply on ports 444 and
    /// 1001 for five minutes (07 §7). A dial does this by itself.
    pub fn open_reply_window(&mut self, now: Instant, node: u32) {
        self.gate.open_reply_window(now, node);
    }

    /// Accepts streams on `port` from now on.
    ///
    /// # Errors
    /// [`BindError`] when somebody has the port.
    pub fn bind(&mut self, port: u16) -> Result<(), BindError> {
        self.ports.bind(port)
    }

    /// Tries at once to reach a peer without the relay.
    pub fn prefer_direct(&mut self, now: Instant, node: u32) {
        if let Some(slot) = self.peers.find(node)
            && let Some(peer) = self.peers.get_mut(slot)
        {
            peer.path.prefer_direct(now);
            self.seek(now, slot);
            self.service_peer(now, slot);
        }
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.beacon.poll_timeout(), self.timers.next(), self.notices.due()].into_iter().flatten().min()
    }

    /// An event that may be dropped when nobody takes events.
    fn notice(&mut self, event: Event) {
        if self.events.len() >= self.limits.events {
            self.counters.events_dropped += 1;
        } else {
            self.events.push_back(event);
        }
    }
}
