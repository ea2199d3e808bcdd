//! The beacon as a state machine: datagrams in, datagrams out (specification 01 §15 to §17, 07 §8.1).
//!
//! It is trusted with nothing: what it relays is sealed end to end. What it must guarantee is that nobody takes over a
//! node's place (01 W9), that nobody makes beacons or daemons send more than they were sent, and that frames of one flow
//! keep their order.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use pilot_env::Arrival;
use pilot_wire::beacon::{self as wire, BeaconMessage};
use rustc_hash::FxHashMap;

use crate::limits::{
    CONTROL_RATE, GOSSIP_TTL, MAX_BATCHED, MAX_NODES, MAX_REMOTE, MAX_SOURCES, MAX_SYNC, NODE_TTL, POKE_RATE,
    RELAY_RATE, TAKEOVER_AFTER,
};

/// Knows from where a node talks to the registry. Implemented by the registry of the same process.
pub trait Witness: Send + Sync + 'static {
    /// The address from which the holder of the node's key was last seen, for a live node.
    fn source_of(&self, node: u32) -> Option<IpAddr>;
}

/// Knows nothing; for a beacon that runs alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoWitness;

impl Witness for NoWitness {
    fn source_of(&self, _node: u32) -> Option<IpAddr> {
        None
    }
}

/// Datagrams to send, one behind the other in one buffer.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: Vec<u8>,
    /// Where each datagram goes and from which address, and where it ends.
    ends: Vec<(Arrival, usize)>,
}

/// Equally long datagrams (the last may be shorter) to one destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch<'a> {
    /// Where they go.
    pub to: SocketAddr,
    /// The own address to send them from: the one the receiver knows the beacon by. `None` where there is one only.
    pub source: Option<IpAddr>,
    /// The datagrams, one behind the other.
    pub bytes: &'a [u8],
    /// Length of each.
    pub size: usize,
}

impl Outbox {
    /// Whether there is nothing to send.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// How many datagrams there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Total bytes.
    pub fn total(&self) -> usize {
        self.bytes.len()
    }

    /// Empties it.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Queues a message for whoever is at the other end of `to`.
    fn push(&mut self, to: impl Into<Arrival>, message: &BeaconMessage<'_>) {
        message.emit(&mut self.bytes);
        self.ends.push((to.into(), self.bytes.len()));
    }

    /// The datagrams in order, each run of equally long ones to the same destination (the last may be shorter) as one
    /// batch.
    pub fn batches(&self, max_datagrams: usize, max_bytes: usize) -> Vec<Batch<'_>> {
        let mut out: Vec<Batch<'_>> = Vec::new();
        let (mut start, mut run_start, mut count) = (0, 0, 0);
        for &(to, end) in &self.ends {
            let len = end - start;
            let extends = out.last().is_some_and(|last| {
                (last.to, last.source) == (to.from, to.local)
                    && last.size > 0
                    && len <= last.size
                    && last.size <= MAX_BATCHED
                    && len > 0
                    && last.bytes.len() == last.size * count
                    && count < max_datagrams
                    && last.bytes.len() + len <= max_bytes
            });
            match out.last_mut() {
                Some(last) if extends => {
                    last.bytes = &self.bytes[run_start..end];
                    count += 1;
                }
                _ => {
                    out.push(Batch { to: to.from, source: to.local, bytes: &self.bytes[start..end], size: len });
                    (run_start, count) = (start, 1);
                }
            }
            start = end;
        }
        out
    }
}

/// What the beacon did, for operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Frames delivered to a node held here.
    pub relayed: u64,
    /// Frames passed on to a peer beacon.
    pub forwarded: u64,
    /// Frames for nobody known.
    pub unknown_destination: u64,
    /// Frames whose sender is not registered at the address they came from.
    pub foreign_sender: u64,
    /// Registrations refused because another IP holds the entry.
    pub takeovers_refused: u64,
    /// Messages dropped by a rate limit.
    pub rate_limited: u64,
    /// Gossip from somebody who is no configured peer.
    pub foreign_sync: u64,
    /// Datagrams that are no message.
    pub unreadable: u64,
}

/// Settings of a beacon.
#[derive(Clone, Debug, Default)]
pub struct BeaconConfig {
    /// Id in gossip; 0 for a beacon that runs alone.
    pub id: u32,
    /// Peer beacons. Gossip and forwarded frames are accepted from these addresses only.
    pub peers: Vec<SocketAddr>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    fn new((_, burst): (f64, f64), now: Instant) -> Self {
        Self { tokens: burst, at: now }
    }

    fn take(&mut self, (per_second, burst): (f64, f64), now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * per_second).min(burst);
        self.at = self.at.max(now);
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }
}

#[derive(Debug)]
struct Node {
    endpoint: SocketAddr,
    /// The own address it speaks to; it takes nothing from another (07 rule 27).
    local: Option<IpAddr>,
    seen: Instant,
    /// Asked with DiscoverEx, so deliveries name the destination.
    wants_destination: bool,
    relay: Bucket,
    poke: Bucket,
}

impl Node {
    /// How to reach it.
    fn way(&self) -> Arrival {
        Arrival { from: self.endpoint, local: self.local }
    }

    fn is_fresh(&self, now: Instant, within: Duration) -> bool {
        now.saturating_duration_since(self.seen) < within
    }
}

/// See the module. Inputs are [`Beacon::handle`], [`Beacon::notify`], [`Beacon::sync`] and [`Beacon::sweep`].
#[derive(Debug)]
pub struct Beacon {
    config: BeaconConfig,
    nodes: FxHashMap<u32, Node>,
    /// Node → peer beacon that holds it.
    remote: FxHashMap<u32, SocketAddr>,
    /// When each peer beacon gossiped last.
    heard: FxHashMap<SocketAddr, Instant>,
    sources: FxHashMap<IpAddr, Bucket>,
    /// Allowance of the sources that do not fit the table.
    others: Option<Bucket>,
    counters: Counters,
}

fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) >> 64 << 64)),
        v4 => v4,
    }
}

impl Beacon {
    /// A beacon that knows nobody.
    pub fn new(mut config: BeaconConfig) -> Self {
        for peer in &mut config.peers {
            peer.set_ip(peer.ip().to_canonical());
        }
        Self {
            config,
            nodes: FxHashMap::default(),
            remote: FxHashMap::default(),
            heard: FxHashMap::default(),
            sources: FxHashMap::default(),
            others: None,
            counters: Counters::default(),
        }
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How many nodes are held.
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// Where a node is, if it was heard within [`NODE_TTL`].
    pub fn endpoint(&self, now: Instant, node: u32) -> Option<SocketAddr> {
        self.nodes.get(&node).filter(|n| n.is_fresh(now, NODE_TTL)).map(|n| n.endpoint)
    }

    /// The nodes a peer beacon is believed to hold, sorted.
    pub fn remote_nodes(&self, peer: SocketAddr) -> Vec<u32> {
        let mut nodes: Vec<u32> = self.remote.iter().filter(|(_, at)| **at == peer).map(|(id, _)| *id).collect();
        nodes.sort_unstable();
        nodes
    }

    fn may_ask(&mut self, now: Instant, from: IpAddr) -> bool {
        let from = source(from);
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&from) {
            return self.others.get_or_insert(Bucket::new(CONTROL_RATE, now)).take(CONTROL_RATE, now);
        }
        self.sources.entry(from).or_insert(Bucket::new(CONTROL_RATE, now)).take(CONTROL_RATE, now)
    }

    /// One datagram arrived.
    pub fn handle(
        &mut self,
        now: Instant,
        from: impl Into<Arrival>,
        datagram: &[u8],
        witness: &dyn Witness,
        out: &mut Outbox,
    ) {
        let from = from.into();
        let Some(message) = BeaconMessage::parse(datagram) else {
            self.counters.unreadable += 1;
            return;
        };
        match message {
            BeaconMessage::Discover { node } => self.discover(now, from, node, false, witness, out),
            BeaconMessage::DiscoverEx { node } => self.discover(now, from, node, true, witness, out),
            BeaconMessage::PunchRequest { requester, target } => {
                self.punch(now, from, requester, target, witness, out);
            }
            BeaconMessage::Relay { src, dst, frame } => self.relay(now, from.from, src, dst, frame, out),
            BeaconMessage::Sync { nodes, .. } => self.learn_remote(now, from.from, nodes.iter()),
            // Messages of a beacon to a node.
            _ => self.counters.unreadable += 1,
        }
    }

    fn discover(
        &mut self,
        now: Instant,
        from: Arrival,
        node: u32,
        wants_destination: bool,
        witness: &dyn Witness,
        out: &mut Outbox,
    ) {
        if !self.may_ask(now, from.from.ip()) {
            self.counters.rate_limited += 1;
            return;
        }
        if self.learn(now, from, node, witness)
            && let Some(entry) = self.nodes.get_mut(&node)
        {
            entry.wants_destination = wants_destination;
        }
        // The endpoint is the asker's own, so it is told to everybody.
        out.push(from, &BeaconMessage::DiscoverReply { endpoint: from.from });
    }

    /// Notes where a node is. False when that is refused.
    fn learn(&mut self, now: Instant, arrival: Arrival, node: u32, witness: &dyn Witness) -> bool {
        let Arrival { from, local } = arrival;
        // Nodes ask under id 0 before they are registered; that is nobody.
        if node == 0 {
            return false;
        }
        // The registry's word can only help: a node behind several addresses may reach the two servers from different
        // ones.
        let is_confirmed = witness.source_of(node).map(|ip| ip.to_canonical()) == Some(from.ip());
        match self.nodes.get_mut(&node) {
            Some(entry) => {
                let is_same_host = entry.endpoint.ip() == from.ip();
                if !is_same_host && !is_confirmed && entry.is_fresh(now, TAKEOVER_AFTER) {
                    self.counters.takeovers_refused += 1;
                    return false;
                }
                if entry.endpoint != from {
                    entry.wants_destination = false;
                }
                (entry.endpoint, entry.local) = (from, local);
                entry.seen = now;
            }
            None => {
                if self.nodes.len() >= MAX_NODES {
                    self.counters.rate_limited += 1;
                    return false;
                }
                let (relay, poke) = (Bucket::new(RELAY_RATE, now), Bucket::new(POKE_RATE, now));
                let node_at = Node { endpoint: from, local, seen: now, wants_destination: false, relay, poke };
                self.nodes.insert(node, node_at);
                self.remote.remove(&node);
            }
        }
        true
    }

    fn punch(
        &mut self,
        now: Instant,
        from: Arrival,
        requester: u32,
        target: u32,
        witness: &dyn Witness,
        out: &mut Outbox,
    ) {
        if !self.may_ask(now, from.from.ip()) {
            self.counters.rate_limited += 1;
            return;
        }
        if !self.learn(now, from, requester, witness) {
            return;
        }
        let Some(entry) = self.nodes.get_mut(&target).filter(|n| n.is_fresh(now, NODE_TTL)) else {
            return;
        };
        if !entry.poke.take(POKE_RATE, now) {
            self.counters.rate_limited += 1;
            return;
        }
        let to = entry.way();
        out.push(from, &BeaconMessage::PunchCommand { endpoint: to.from });
        out.push(to, &BeaconMessage::PunchCommand { endpoint: from.from });
    }

    fn relay(&mut self, now: Instant, from: SocketAddr, src: u32, dst: u32, frame: &[u8], out: &mut Outbox) {
        let is_peer = self.config.peers.contains(&from);
        if !is_peer {
            let Some(sender) = self.nodes.get_mut(&src).filter(|n| n.endpoint == from) else {
                self.counters.foreign_sender += 1;
                return;
            };
            if !sender.relay.take(RELAY_RATE, now) {
                self.counters.rate_limited += 1;
                return;
            }
        }
        if let Some(entry) = self.nodes.get(&dst).filter(|n| n.is_fresh(now, NODE_TTL)) {
            self.counters.relayed += 1;
            let message = if entry.wants_destination {
                BeaconMessage::RelayDeliverDest { src, dst, frame }
            } else {
                BeaconMessage::RelayDeliver { src, frame }
            };
            out.push(entry.way(), &message);
        } else if let Some(peer) = self.remote.get(&dst).filter(|_| !is_peer) {
            // One hop only: what a peer sent is never sent on (01 W10).
            self.counters.forwarded += 1;
            out.push(*peer, &BeaconMessage::Relay { src, dst, frame });
        } else {
            self.counters.unknown_destination += 1;
        }
    }

    /// A peer beacon's list replaces what it said before.
    fn learn_remote(&mut self, now: Instant, from: SocketAddr, nodes: impl Iterator<Item = u32>) {
        if !self.config.peers.contains(&from) {
            self.counters.foreign_sync += 1;
            return;
        }
        self.remote.retain(|_, peer| *peer != from);
        self.heard.insert(from, now);
        for node in nodes {
            if !self.nodes.contains_key(&node) && (self.remote.len() < MAX_REMOTE || self.remote.contains_key(&node)) {
                self.remote.insert(node, from);
            }
        }
    }

    /// Tells a node that a handshake message waits at the registry, if it is known here.
    pub fn notify(&mut self, now: Instant, node: u32, out: &mut Outbox) {
        let Some(entry) = self.nodes.get_mut(&node).filter(|n| n.is_fresh(now, NODE_TTL)) else {
            return;
        };
        if entry.poke.take(POKE_RATE, now) {
            out.push(entry.way(), &BeaconMessage::Notify { kind: wire::NOTIFY_HANDSHAKE });
        } else {
            self.counters.rate_limited += 1;
        }
    }

    /// Gossips the nodes held here to every peer beacon; due every [`crate::limits::SYNC_EVERY`]. Above [`MAX_SYNC`] the
    /// most recently heard are named.
    pub fn sync(&mut self, now: Instant, out: &mut Outbox) {
        if self.config.peers.is_empty() {
            return;
        }
        let fresh = self.nodes.iter().filter(|(_, n)| n.is_fresh(now, GOSSIP_TTL));
        let mut nodes: Vec<(Instant, u32)> = fresh.map(|(id, n)| (n.seen, *id)).collect();
        nodes.sort_unstable_by(|a, b| b.cmp(a));
        nodes.truncate(MAX_SYNC);
        let nodes: Vec<u32> = nodes.into_iter().map(|(_, id)| id).collect();
        for peer in &self.config.peers {
            wire::emit_sync(self.config.id, &nodes, &mut out.bytes);
            out.ends.push(((*peer).into(), out.bytes.len()));
        }
    }

    /// Forgets what expired; due every [`crate::limits::SWEEP_EVERY`].
    pub fn sweep(&mut self, now: Instant) {
        self.nodes.retain(|_, n| n.is_fresh(now, NODE_TTL));
        self.heard.retain(|_, at| now.saturating_duration_since(*at) < GOSSIP_TTL);
        let heard = &self.heard;
        self.remote.retain(|_, peer| heard.contains_key(peer));
        let (per_second, burst) = CONTROL_RATE;
        self.sources.retain(|_, bucket| {
            let elapsed = now.saturating_duration_since(bucket.at).as_secs_f64();
            bucket.tokens + elapsed * per_second < burst
        });
    }
}
