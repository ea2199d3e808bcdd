//! Two nodes and what lies between them, in virtual time: loss, duplication, reordering, restarts, and an attacker who
//! sees everything and may send anything.

use std::any::Any;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_proto::identity::Identity;
use pilot_proto::tunnel::{
    CONTROL_PORT, KeySend, LocalKeys, OpenError, Sealed, Tunnel, TunnelConfig, TunnelEvent, Via,
};
use pilot_wire::packet::{Flags, Header, Packet, protocol};
use pilot_wire::tunnel::{Datagram, SECURE_HEADER_LEN};
use pilot_wire::{Address, SocketAddress};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

pub const A: usize = 0;
pub const B: usize = 1;

/// The kind of path a datagram takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Path {
    Direct,
    Relay,
}

impl Path {
    pub fn via(self) -> Via {
        match self {
            Self::Direct => Via::Direct(address()),
            Self::Relay => Via::Relay,
        }
    }
}

pub fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4000))
}

#[allow(clippy::disallowed_methods)]
pub fn epoch() -> Instant {
    Instant::now()
}

pub fn node_id(who: usize) -> u32 {
    who as u32 + 1
}

pub fn identity(who: usize) -> Arc<Identity> {
    Arc::new(Identity::from_seed([who as u8 + 1; 32]))
}

/// A packet of ours that carries a number.
pub fn packet(from: u32, to: u32, number: u32) -> Vec<u8> {
    let h = Header::new(
        protocol::DATAGRAM,
        Flags::NONE,
        SocketAddress::new(Address::backbone(from), 5000),
        SocketAddress::new(Address::backbone(to), 6000),
    );
    let mut out = Vec::new();
    h.emit(&number.to_be_bytes(), &mut out).unwrap();
    out
}

pub fn pong(h: &Header, payload: &[u8]) -> Vec<u8> {
    let mut answer = Header::new(protocol::CONTROL, Flags::ACK, SocketAddress::new(h.dst.addr, 0), h.src);
    answer.seq = h.seq;
    answer.ack = h.seq.wrapping_add(1);
    let mut out = Vec::new();
    answer.emit(payload, &mut out).unwrap();
    out
}

/// Whether a control packet is to be answered (07 rule 20).
pub fn wants_pong(h: &Header, payload: &[u8]) -> bool {
    h.protocol == protocol::CONTROL
        && h.dst.port == 0
        && !h.flags.contains(Flags::ACK)
        && (h.src.port != 0 || !payload.is_empty())
}

pub type Outgoing = Vec<(Path, Vec<u8>)>;

/// A node of the test network.
pub trait Node: Any {
    fn receive(&mut self, now: Instant, path: Path, frame: &mut [u8], out: &mut Outgoing);
    fn send(&mut self, now: Instant, number: u32, out: &mut Outgoing);
    fn timeout(&mut self, now: Instant, out: &mut Outgoing);
    fn next(&self) -> Option<Instant>;
    /// Numbers delivered to the application, in order.
    fn delivered(&self) -> &[u32];
    fn as_any(&mut self) -> &mut dyn Any;
}

/// A node with a real tunnel.
pub struct Ours {
    pub id: u32,
    pub peer: u32,
    pub expected: [u8; 32],
    pub tunnel: Tunnel,
    pub delivered: Vec<u32>,
    pub waiting: Vec<u32>,
    pub events: Vec<TunnelEvent>,
    pub errors: Vec<OpenError>,
    /// Whether probes are answered, as the endpoint does.
    pub answers: bool,
    /// Path of data.
    pub path: Path,
}

impl Ours {
    pub fn new(who: usize, life: u8, cfg: &Arc<TunnelConfig>) -> Self {
        let local = Arc::new(LocalKeys::new(node_id(who), identity(who), 1_750_000_000 + u64::from(life)));
        let mut seed = [who as u8 + 10; 32];
        seed[0] = life;
        Self {
            id: node_id(who),
            peer: node_id(1 - who),
            expected: identity(1 - who).public_key(),
            tunnel: Tunnel::new(local, node_id(1 - who), cfg, seed),
            delivered: Vec::new(),
            waiting: Vec::new(),
            events: Vec::new(),
            errors: Vec::new(),
            answers: true,
            path: Path::Direct,
        }
    }

    fn seal(&mut self, now: Instant, packet: &[u8], out: &mut Outgoing) {
        let mut buf = vec![0; SECURE_HEADER_LEN];
        buf.extend_from_slice(packet);
        match self.tunnel.seal(now, &mut buf, 0) {
            Ok(Sealed::One) => out.push((self.path, buf)),
            Ok(Sealed::Twin { second }) => {
                let later = buf.split_off(second);
                assert_eq!(later.len(), buf.len());
                out.push((self.path, buf));
                out.push((self.path, later));
            }
            Err(e) => panic!("seal: {e}"),
        }
    }

    fn drain(&mut self, now: Instant, out: &mut Outgoing) {
        while let Some(e) = self.tunnel.poll_event() {
            self.events.push(e);
        }
        if self.tunnel.can_seal() {
            for number in std::mem::take(&mut self.waiting) {
                let p = packet(self.id, self.peer, number);
                self.seal(now, &p, out);
            }
        }
        let mut buf = Vec::new();
        while let Some(send) = self.tunnel.poll_transmit(now, &mut buf) {
            let frame = std::mem::take(&mut buf);
            match send {
                KeySend::Direct | KeySend::Reply(Via::Direct(_)) => out.push((Path::Direct, frame)),
                KeySend::Relay | KeySend::Reply(Via::Relay) => out.push((Path::Relay, frame)),
                KeySend::Current => out.push((self.path, frame)),
                KeySend::Both => {
                    out.push((Path::Direct, frame.clone()));
                    out.push((Path::Relay, frame));
                }
            }
        }
        while let Some(e) = self.tunnel.poll_event() {
            self.events.push(e);
        }
    }
}

impl Node for Ours {
    fn receive(&mut self, now: Instant, path: Path, frame: &mut [u8], out: &mut Outgoing) {
        match Datagram::parse(frame) {
            Some(Datagram::Auth(auth)) => {
                let _ = self.tunnel.handle_auth(now, path.via(), &auth, &self.expected);
            }
            Some(Datagram::Key(_)) => self.tunnel.handle_key_request(now, path.via()),
            Some(Datagram::Secure(_)) => match self.tunnel.open(now, path.via(), frame) {
                Ok(opened) => {
                    let p = Packet::parse(opened.packet).unwrap();
                    let (header, payload) = (p.header, p.payload.to_vec());
                    if wants_pong(&header, &payload) {
                        if self.answers {
                            let answer = pong(&header, &payload);
                            self.seal(now, &answer, out);
                        }
                    } else if header.protocol == protocol::DATAGRAM {
                        self.delivered.push(u32::from_be_bytes(payload.try_into().unwrap()));
                    } else if header.dst.port == CONTROL_PORT {
                        assert!(self.tunnel.handle_control(now, &header, &payload));
                    }
                }
                Err(e) => self.errors.push(e),
            },
            _ => {}
        }
        self.drain(now, out);
    }

    fn send(&mut self, now: Instant, number: u32, out: &mut Outgoing) {
        self.tunnel.start(now);
        self.waiting.push(number);
        self.drain(now, out);
    }

    fn timeout(&mut self, now: Instant, out: &mut Outgoing) {
        self.tunnel.handle_timeout(now);
        self.drain(now, out);
    }

    fn next(&self) -> Option<Instant> {
        self.tunnel.poll_timeout()
    }

    fn delivered(&self) -> &[u32] {
        &self.delivered
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// What the network does to datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub loss: f64,
    pub duplicate: f64,
    /// Chance that a datagram is delivered again much later.
    pub replay: f64,
    pub delay: Duration,
    /// Added at random: larger than the gap between datagrams means reordering.
    pub jitter: Duration,
    pub direct: bool,
    pub relay: bool,
}

impl Default for Faults {
    fn default() -> Self {
        Self {
            loss: 0.0,
            duplicate: 0.0,
            replay: 0.0,
            delay: Duration::from_millis(10),
            jitter: Duration::ZERO,
            direct: true,
            relay: true,
        }
    }
}

/// A datagram that was sent.
#[derive(Clone)]
pub struct Sent {
    pub at: Instant,
    pub from: usize,
    pub path: Path,
    pub frame: Vec<u8>,
}

type Flight = Reverse<(Instant, u64, usize, Path, Vec<u8>)>;

pub struct Net {
    pub start: Instant,
    pub now: Instant,
    pub nodes: [Box<dyn Node>; 2],
    pub faults: Faults,
    pub log: Vec<Sent>,
    rng: StdRng,
    flights: BinaryHeap<Flight>,
    seq: u64,
    lives: [u8; 2],
    talks: u32,
    cfg: Arc<TunnelConfig>,
}

impl Net {
    pub fn new(seed: u64) -> Self {
        Self::with(seed, TunnelConfig::default())
    }

    pub fn with(seed: u64, cfg: TunnelConfig) -> Self {
        let cfg = Arc::new(cfg);
        let nodes: [Box<dyn Node>; 2] = [Box::new(Ours::new(A, 0, &cfg)), Box::new(Ours::new(B, 0, &cfg))];
        Self::of(seed, cfg, nodes)
    }

    pub fn of(seed: u64, cfg: Arc<TunnelConfig>, nodes: [Box<dyn Node>; 2]) -> Self {
        let now = epoch();
        Self {
            start: now,
            now,
            nodes,
            faults: Faults::default(),
            log: Vec::new(),
            rng: StdRng::seed_from_u64(seed),
            flights: BinaryHeap::new(),
            seq: 0,
            lives: [0; 2],
            talks: 0,
            cfg,
        }
    }

    pub fn ours(&mut self, who: usize) -> &mut Ours {
        self.nodes[who].as_any().downcast_mut().unwrap()
    }

    pub fn tunnel(&mut self, who: usize) -> &mut Tunnel {
        &mut self.ours(who).tunnel
    }

    /// The process starts again: same identity, no keys.
    pub fn restart(&mut self, who: usize) {
        self.lives[who] += 1;
        self.nodes[who] = Box::new(Ours::new(who, self.lives[who], &Arc::clone(&self.cfg)));
    }

    pub fn send(&mut self, who: usize, number: u32) {
        let mut out = Vec::new();
        self.nodes[who].send(self.now, number, &mut out);
        self.launch(who, out);
    }

    /// Lets the network carry what a node emitted.
    pub fn launch(&mut self, from: usize, out: Outgoing) {
        for (path, frame) in out {
            self.log.push(Sent { at: self.now, from, path, frame: frame.clone() });
            let open = match path {
                Path::Direct => self.faults.direct,
                Path::Relay => self.faults.relay,
            };
            if !open || self.rng.random_bool(self.faults.loss) {
                continue;
            }
            let copies = 1 + usize::from(self.rng.random_bool(self.faults.duplicate));
            for _ in 0..copies {
                let at = self.now + self.faults.delay + self.faults.jitter.mul_f64(self.rng.random());
                self.inject(at, 1 - from, path, frame.clone());
            }
            if self.rng.random_bool(self.faults.replay) {
                let later = Duration::from_secs_f64(self.rng.random_range(1.0..30.0));
                self.inject(self.now + later, 1 - from, path, frame);
            }
        }
    }

    /// Delivers any bytes to a node at a time.
    pub fn inject(&mut self, at: Instant, to: usize, path: Path, frame: Vec<u8>) {
        self.seq += 1;
        self.flights.push(Reverse((at, self.seq, to, path, frame)));
    }

    /// Delivers now and lets what follows take its course.
    pub fn attack(&mut self, to: usize, path: Path, frame: &[u8]) {
        let mut out = Vec::new();
        self.nodes[to].receive(self.now, path, &mut frame.to_vec(), &mut out);
        self.launch(to, out);
    }

    /// Runs for so long.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut steps = 0;
        loop {
            steps += 1;
            assert!(steps < 200_000, "the network does not come to rest");
            let flight = self.flights.peek().map(|f| f.0.0);
            let timers = [self.nodes[A].next(), self.nodes[B].next()];
            let Some(at) = [flight, timers[A], timers[B]].into_iter().flatten().min().filter(|at| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            let mut out = Vec::new();
            if flight == Some(at) {
                let Reverse((_, _, to, path, mut frame)) = self.flights.pop().unwrap();
                self.nodes[to].receive(self.now, path, &mut frame, &mut out);
                self.launch(to, out);
            } else {
                let who = if timers[A] == Some(at) { A } else { B };
                self.nodes[who].timeout(self.now, &mut out);
                self.launch(who, out);
            }
        }
        self.now = end;
    }

    pub fn run_ms(&mut self, ms: u64) {
        self.run(Duration::from_millis(ms));
    }

    pub fn delivered(&self, who: usize) -> Vec<u32> {
        self.nodes[who].delivered().to_vec()
    }

    /// Key exchange frames sent by a node since a time.
    pub fn key_frames(&self, from: usize, since: Instant) -> usize {
        let key = |f: &[u8]| f.starts_with(b"PILA") || f.starts_with(b"PILK");
        self.log.iter().filter(|s| s.from == from && s.at >= since && key(&s.frame)).count()
    }

    /// Frames of a kind sent by a node, oldest first.
    pub fn frames(&self, from: usize, magic: &[u8; 4]) -> Vec<Vec<u8>> {
        self.log.iter().filter(|s| s.from == from && s.frame.starts_with(magic)).map(|s| s.frame.clone()).collect()
    }

    /// Both can read each other, shown by a packet each way within the time.
    pub fn talks(&mut self, within_ms: u64) -> bool {
        self.talks += 1;
        let (a, b) = (2_000_000 + self.talks, 3_000_000 + self.talks);
        self.send(A, a);
        self.send(B, b);
        self.run_ms(within_ms);
        self.delivered(B).contains(&a) && self.delivered(A).contains(&b)
    }
}

use crate::official::{Official, Version};

impl Net {
    /// Our node as A, an official one as B.
    pub fn with_official(seed: u64, version: Version) -> Self {
        let cfg = Arc::new(TunnelConfig::default());
        let nodes: [Box<dyn Node>; 2] = [Box::new(Ours::new(A, 0, &cfg)), Box::new(Official::new(B, version, 0))];
        Self::of(seed, cfg, nodes)
    }

    pub fn official(&mut self) -> &mut Official {
        self.nodes[B].as_any().downcast_mut().unwrap()
    }

    /// The official peer starts again with another key, possibly as another release.
    pub fn restart_official(&mut self, version: Version) {
        self.lives[B] += 1;
        self.nodes[B] = Box::new(Official::new(B, version, self.lives[B]));
    }
}

impl Net {
    /// The last frames, one line each, for a failing seed.
    pub fn tail(&self, count: usize) -> String {
        let from = self.log.len().saturating_sub(count);
        let line = |s: &Sent| {
            let at = s.at.duration_since(self.start).as_millis();
            let kind = String::from_utf8_lossy(&s.frame[..4]).into_owned();
            let id: Vec<String> = s.frame[8..12].iter().map(|b| format!("{b:02x}")).collect();
            format!("{at:>8} ms {} {:?} {kind} {} len {}", s.from, s.path, id.concat(), s.frame.len())
        };
        self.log[from..].iter().map(line).collect::<Vec<_>>().join("\n")
    }
}
