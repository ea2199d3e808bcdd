//! A network of endpoints: latency, blocked ways, a directory, a beacon; the clock moves only when nothing is left to do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::beacon::BeaconMessage;
use pilot_wire::{Address, SocketAddress};

use crate::endpoint::*;
use crate::identity::Identity;
use crate::stream::StreamEvent;

pub(super) const BEACON: &str = "198.51.100.1:9001";

pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

pub(super) fn at(node: u32, port: u16) -> SocketAddress {
    SocketAddress::new(Address::backbone(node), port)
}

#[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
pub(super) fn origin() -> Instant {
    Instant::now()
}

pub(super) fn identity(node: u32) -> Arc<Identity> {
    Arc::new(Identity::from_seed([node as u8; 32]))
}

/// One endpoint and what its driver knows.
pub(super) struct Node {
    pub(super) ep: Endpoint,
    pub(super) id: u32,
    pub(super) addr: SocketAddr,
    pub(super) events: Vec<Event>,
    /// Connections whose bytes go straight back.
    echoing: HashSet<ConnId>,
    /// Ports whose connections echo.
    pub(super) echo_ports: HashSet<u16>,
    /// Bytes waiting to be written, per connection.
    backlog: BTreeMap<ConnId, Vec<u8>>,
    /// Bytes received on connections that do not echo.
    pub(super) received: BTreeMap<ConnId, Vec<u8>>,
    pub(super) finished: HashSet<ConnId>,
    pub(super) lookups: usize,
    /// What the registry says of others' networks; nothing of those that are not here.
    pub(super) members: BTreeMap<u32, Membership>,
    /// Who was asked about.
    pub(super) asked_members: Vec<u32>,
    /// The registry does not answer questions about networks.
    pub(super) members_unanswered: bool,
    /// It answers when the test does.
    pub(super) members_later: bool,
    pub(super) resolves: usize,
}

/// What the registry says about a node.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) key: Result<[u8; 32], DirectoryCode>,
    pub(super) endpoint: Result<Vec<SocketAddr>, DirectoryCode>,
    pub(super) version: bool,
}

struct Flight {
    due: Instant,
    order: u64,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

impl PartialEq for Flight {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Flight {}
impl PartialOrd for Flight {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Flight {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.order).cmp(&(other.due, other.order))
    }
}

type Filter = Box<dyn FnMut(SocketAddr, SocketAddr, &[u8]) -> bool>;

pub(super) struct Net {
    pub(super) now: Instant,
    pub(super) nodes: Vec<Node>,
    pub(super) directory: BTreeMap<u32, Entry>,
    queue: BinaryHeap<Reverse<Flight>>,
    order: u64,
    pub(super) latency: Duration,
    /// Ordered pairs of addresses between which nothing passes.
    pub(super) blocked: HashSet<(SocketAddr, SocketAddr)>,
    /// Asked last; false drops the datagram.
    pub(super) filter: Option<Filter>,
    pub(super) beacon: Option<SocketAddr>,
    beacon_nodes: BTreeMap<u32, SocketAddr>,
    /// Every datagram that left, in order.
    pub(super) sent: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
    pub(super) record: bool,
    pub(super) datagrams: u64,
    /// Datagrams that arrived at an address nobody has.
    pub(super) astray: Vec<(SocketAddr, SocketAddr, Vec<u8>)>,
}

impl Net {
    pub(super) fn new() -> Self {
        Self {
            now: origin(),
            nodes: Vec::new(),
            directory: BTreeMap::new(),
            queue: BinaryHeap::new(),
            order: 0,
            latency: Duration::from_millis(10),
            blocked: HashSet::new(),
            filter: None,
            beacon: None,
            beacon_nodes: BTreeMap::new(),
            sent: Vec::new(),
            record: false,
            datagrams: 0,
            astray: Vec::new(),
        }
    }

    pub(super) fn with_beacon() -> Self {
        let mut net = Self::new();
        net.beacon = Some(addr(BEACON));
        net
    }

    pub(super) fn config(&self, id: u32, seed: u8) -> EndpointConfig {
        let mut config = EndpointConfig::new(identity(id), [seed; 32], 1_800_000_000);
        config.node = id;
        config.beacon = self.beacon;
        config
    }

    /// Adds node `id` at 203.0.113.`id`:4000, known to the directory, with an echo on port 7.
    pub(super) fn add(&mut self, id: u32) -> usize {
        let config = self.config(id, id as u8);
        self.add_with(id, config)
    }

    pub(super) fn add_with(&mut self, id: u32, config: EndpointConfig) -> usize {
        let address = addr(&format!("203.0.113.{id}:4000"));
        self.directory
            .insert(id, Entry { key: Ok(identity(id).public_key()), endpoint: Ok(vec![address]), version: false });
        let mut ep = Endpoint::new(self.now, config);
        ep.bind(7).unwrap();
        self.nodes.push(Node {
            ep,
            id,
            addr: address,
            events: Vec::new(),
            echoing: HashSet::new(),
            echo_ports: HashSet::from([7]),
            backlog: BTreeMap::new(),
            received: BTreeMap::new(),
            finished: HashSet::new(),
            lookups: 0,
            members: BTreeMap::new(),
            asked_members: Vec::new(),
            members_unanswered: false,
            members_later: false,
            resolves: 0,
        });
        self.nodes.len() - 1
    }

    /// The process of a node ends and starts again: everything in memory is gone.
    pub(super) fn restart(&mut self, n: usize, seed: u8) {
        let config = self.config(self.nodes[n].id, seed);
        let mut config = config;
        config.unix_secs += 100;
        let mut ep = Endpoint::new(self.now, config);
        ep.bind(7).unwrap();
        let node = &mut self.nodes[n];
        node.ep = ep;
        node.events.clear();
        node.echoing.clear();
        node.backlog.clear();
        node.received.clear();
        node.finished.clear();
    }

    /// Mutual trust with pinned keys.
    pub(super) fn trust(&mut self, a: usize, b: usize) {
        for (x, y) in [(a, b), (b, a)] {
            let id = self.nodes[y].id;
            let now = self.now;
            self.nodes[x].ep.set_trusted(now, id, Some(identity(id).public_key()));
        }
    }

    /// Nothing passes directly between two nodes, in both directions.
    pub(super) fn block(&mut self, a: usize, b: usize) {
        let (a, b) = (self.nodes[a].addr, self.nodes[b].addr);
        self.blocked.extend([(a, b), (b, a)]);
    }

    pub(super) fn unblock_all(&mut self) {
        self.blocked.clear();
    }

    /// A datagram as if `from` had sent it.
    pub(super) fn inject(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        self.order += 1;
        self.datagrams += 1;
        let due = self.now + self.latency;
        self.queue.push(Reverse(Flight { due, order: self.order, from, to, bytes: bytes.to_vec() }));
    }

    fn leave(&mut self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        if self.record {
            self.sent.push((from, to, bytes.to_vec()));
        }
        let passes = match &mut self.filter {
            Some(filter) => filter(from, to, bytes),
            None => true,
        };
        if passes && !self.blocked.contains(&(from, to)) {
            self.inject(from, to, bytes);
        }
    }

    fn beacon_hears(&mut self, from: SocketAddr, bytes: &[u8]) {
        let Some(me) = self.beacon else { return };
        let reply = |message: BeaconMessage<'_>| {
            let mut out = Vec::new();
            message.emit(&mut out);
            out
        };
        match BeaconMessage::parse(bytes) {
            Some(BeaconMessage::Discover { node }) => {
                self.beacon_nodes.insert(node, from);
                self.inject(me, from, &reply(BeaconMessage::DiscoverReply { endpoint: from }));
            }
            Some(BeaconMessage::PunchRequest { requester, target }) => {
                self.beacon_nodes.insert(requester, from);
                if let Some(to) = self.beacon_nodes.get(&target).copied() {
                    self.inject(me, from, &reply(BeaconMessage::PunchCommand { endpoint: to }));
                    self.inject(me, to, &reply(BeaconMessage::PunchCommand { endpoint: from }));
                }
            }
            Some(BeaconMessage::Relay { src, dst, frame }) => {
                if let Some(to) = self.beacon_nodes.get(&dst).copied() {
                    self.inject(me, to, &reply(BeaconMessage::RelayDeliver { src, frame }));
                }
            }
            _ => {}
        }
    }

    /// Drains every endpoint until none has anything left.
    pub(super) fn settle(&mut self) {
        for _ in 0..10_000 {
            let mut busy = false;
            for n in 0..self.nodes.len() {
                busy |= self.drain_events(n);
                let from = self.nodes[n].addr;
                let mut buf = Vec::new();
                while let Some(t) = self.nodes[n].ep.poll_transmit(self.now, &mut buf, 64) {
                    busy = true;
                    assert_eq!(t.len, buf.len(), "a batch says how long it is");
                    let size = t.segment_size.unwrap_or(t.len);
                    assert!(size > 0 && t.len <= MAX_BATCH_BYTES);
                    for datagram in buf.chunks(size) {
                        self.leave(from, t.dst, datagram);
                    }
                    buf.clear();
                }
            }
            if !busy {
                return;
            }
        }
        panic!("the endpoints never come to rest");
    }

    fn drain_events(&mut self, n: usize) -> bool {
        let mut busy = false;
        let now = self.now;
        while let Some(event) = self.nodes[n].ep.poll_event() {
            busy = true;
            let node = &mut self.nodes[n];
            match &event {
                Event::NeedKey { node: id } => {
                    node.lookups += 1;
                    let entry = self.directory.get(id);
                    let answer = match entry.map(|e| (e.key, e.version)) {
                        Some((Ok(ed25519), version_known)) => Ok(PeerRecord { ed25519, version_known }),
                        Some((Err(code), _)) => Err(DirectoryFailure::new(code, "registry: request failed")),
                        None => Err(DirectoryFailure::new(DirectoryCode::NotFound, "node not found")),
                    };
                    node.ep.handle_peer_key(now, *id, answer);
                }
                Event::NeedMembership { node: id } => {
                    node.asked_members.push(*id);
                    if node.members_unanswered {
                        node.ep.handle_membership_unknown(now, *id);
                    } else if !node.members_later {
                        let answer = node.members.get(id).cloned();
                        node.ep.handle_membership(now, *id, answer);
                    }
                }
                Event::NeedEndpoint { node: id } => {
                    node.resolves += 1;
                    let answer = match self.directory.get(id).map(|e| e.endpoint.clone()) {
                        Some(Ok(list)) => Ok(list),
                        Some(Err(code)) => Err(DirectoryFailure::new(code, "registry: request failed")),
                        None => Err(DirectoryFailure::new(DirectoryCode::NotFound, "node not found")),
                    };
                    node.ep.handle_resolved(now, *id, answer);
                }
                Event::Accepted { conn, port, .. } => {
                    if node.echo_ports.contains(port) {
                        node.echoing.insert(*conn);
                    }
                    self.pump(n, *conn);
                    self.nodes[n].events.push(event);
                }
                Event::Stream { conn, .. } => {
                    self.pump(n, *conn);
                    self.nodes[n].events.push(event);
                }
                _ => node.events.push(event),
            }
        }
        busy
    }

    /// Moves bytes of one connection: what was read goes to `received` or back, what waits is written.
    fn pump(&mut self, n: usize, conn: ConnId) {
        let now = self.now;
        let node = &mut self.nodes[n];
        let mut buf = [0; 16_384];
        loop {
            match node.ep.read(now, conn, &mut buf) {
                Ok(0) => {
                    if node.finished.insert(conn) && node.echoing.contains(&conn) {
                        let _ = node.ep.close(now, conn);
                    }
                    break;
                }
                Ok(len) if node.echoing.contains(&conn) => {
                    node.backlog.entry(conn).or_default().extend_from_slice(&buf[..len]);
                }
                Ok(len) => node.received.entry(conn).or_default().extend_from_slice(&buf[..len]),
                Err(_) => break,
            }
        }
        if let Some(waiting) = node.backlog.get_mut(&conn) {
            while !waiting.is_empty() {
                match node.ep.write(now, conn, waiting) {
                    Ok(len) => {
                        waiting.drain(..len);
                    }
                    Err(_) => break,
                }
            }
        }
    }

    pub(super) fn write(&mut self, n: usize, conn: ConnId, data: &[u8]) {
        self.nodes[n].backlog.entry(conn).or_default().extend_from_slice(data);
        self.pump(n, conn);
        self.settle();
    }

    pub(super) fn close(&mut self, n: usize, conn: ConnId) {
        let now = self.now;
        self.nodes[n].ep.close(now, conn).unwrap();
        self.settle();
    }

    /// Lets time pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.settle();
        for _ in 0..200_000 {
            let flight = self.queue.peek().map(|f| f.0.due);
            let timer = self.nodes.iter().filter_map(|n| n.ep.poll_timeout()).min();
            let Some(next) = [flight, timer].into_iter().flatten().min().filter(|t| *t <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            while self.queue.peek().is_some_and(|f| f.0.due <= self.now) {
                let Some(Reverse(mut f)) = self.queue.pop() else { break };
                if self.beacon == Some(f.to) {
                    self.beacon_hears(f.from, &f.bytes);
                } else if let Some(node) = self.nodes.iter_mut().find(|n| n.addr == f.to) {
                    node.ep.handle_datagram(self.now, f.from, &mut f.bytes);
                } else {
                    self.astray.push((f.from, f.to, f.bytes));
                }
            }
            for node in &mut self.nodes {
                if node.ep.poll_timeout().is_some_and(|t| t <= self.now) {
                    node.ep.handle_timeout(self.now);
                }
            }
            self.settle();
        }
        panic!("time does not pass: an endpoint asks for the same moment again and again");
    }

    pub(super) fn run_ms(&mut self, ms: u64) {
        self.run(Duration::from_millis(ms));
    }

    pub(super) fn dial(&mut self, a: usize, b: usize, port: u16) -> ConnId {
        let now = self.now;
        let to = at(self.nodes[b].id, port);
        let conn = self.nodes[a].ep.connect(now, to).unwrap();
        self.settle();
        conn
    }

    pub(super) fn connected(&self, n: usize, conn: ConnId) -> bool {
        self.nodes[n]
            .events
            .iter()
            .any(|e| matches!(e, Event::Stream { conn: c, event: StreamEvent::Connected } if *c == conn))
    }

    pub(super) fn closed(&self, n: usize, conn: ConnId) -> bool {
        self.nodes[n]
            .events
            .iter()
            .any(|e| matches!(e, Event::Stream { conn: c, event: StreamEvent::Closed(_) } if *c == conn))
    }

    pub(super) fn dial_error(&self, n: usize, conn: ConnId) -> Option<DialError> {
        self.nodes[n].events.iter().find_map(|e| match e {
            Event::DialFailed { conn: c, error } if *c == conn => Some(error.clone()),
            _ => None,
        })
    }

    /// Runs until the dial is decided; how long that took.
    pub(super) fn decide(&mut self, n: usize, conn: ConnId, most: Duration) -> Duration {
        let start = self.now;
        while self.now - start < most {
            if self.connected(n, conn) || self.dial_error(n, conn).is_some() {
                return self.now - start;
            }
            self.run_ms(5);
        }
        panic!("the dial is not decided within {most:?}");
    }

    /// Dials `b` on port 7, sends `data`, and asserts that it comes back.
    pub(super) fn echo(&mut self, a: usize, b: usize, data: &[u8], most: Duration) -> ConnId {
        let conn = self.dial(a, b, 7);
        self.decide(a, conn, most);
        assert!(self.connected(a, conn), "{:?}", self.dial_error(a, conn));
        self.echo_on(a, conn, data, most);
        conn
    }

    pub(super) fn echo_on(&mut self, a: usize, conn: ConnId, data: &[u8], most: Duration) {
        self.nodes[a].received.remove(&conn);
        self.write(a, conn, data);
        let start = self.now;
        while self.nodes[a].received.get(&conn).is_none_or(|r| r.len() < data.len()) {
            assert!(self.now - start < most, "echo incomplete after {most:?}");
            self.run_ms(5);
        }
        assert_eq!(self.nodes[a].received[&conn], data);
    }

    pub(super) fn info(&self, n: usize) -> EndpointInfo {
        self.nodes[n].ep.info(self.now)
    }

    pub(super) fn peer(&self, n: usize, id: u32) -> PeerInfo {
        self.info(n).peers.into_iter().find(|p| p.node == id).unwrap_or_else(|| panic!("no peer {id}"))
    }
}
