//! `SimNet`: hosts without I/O on a simulated network, with virtual time and one seed.
//!
//! Whatever consumes and produces datagrams can be a host ([`SimHost`]). The network delays, loses, repeats, reorders,
//! damages, throttles and partitions what the hosts send, as its [`Conditions`] say, and counts how often each happened
//! ([`Faults`]). A run is a function of the seed and of what the test does: a failure is replayed by its seed.

mod link;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

pub use link::{Conditions, Faults, Partition};
use link::{Fate, Link};

/// Something that talks in datagrams: one connection, or a whole endpoint.
pub trait SimHost {
    /// A datagram has arrived.
    fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]);
    /// The time of [`SimHost::poll_timeout`] has come.
    fn handle_timeout(&mut self, now: Instant);
    /// Appends one datagram to the empty `out` and says where it goes.
    fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SocketAddr>;
    /// When [`SimHost::handle_timeout`] wants to be called.
    fn poll_timeout(&self) -> Option<Instant>;
}

/// A datagram on its way.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival {
    at: Instant,
    /// Breaks ties in order of sending.
    order: u64,
    to: usize,
    from: usize,
    bytes: Vec<u8>,
}

/// Most datagrams a host may send at one instant. More means that it never stops.
const MAX_BURST: usize = 200_000;

/// Hosts and the network between them.
pub struct SimNet<H> {
    now: Instant,
    started: Instant,
    rng: StdRng,
    hosts: Vec<(SocketAddr, H)>,
    /// By sender and receiver.
    links: BTreeMap<(usize, usize), Link>,
    default: Conditions,
    queue: BinaryHeap<Reverse<Arrival>>,
    order: u64,
    faults: Faults,
    /// Datagrams handed to the network, by host.
    sent: Vec<u64>,
    spare: Vec<Vec<u8>>,
}

impl<H: SimHost> SimNet<H> {
    /// An empty network without faults.
    pub fn new(seed: u64) -> Self {
        let now = epoch();
        Self {
            now,
            started: now,
            rng: StdRng::seed_from_u64(seed),
            hosts: Vec::new(),
            links: BTreeMap::new(),
            default: Conditions::default(),
            queue: BinaryHeap::new(),
            order: 0,
            faults: Faults::default(),
            sent: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// Adds a host; its index names it from now on.
    pub fn add(&mut self, address: SocketAddr, host: H) -> usize {
        self.hosts.push((address, host));
        self.sent.push(0);
        self.hosts.len() - 1
    }

    /// The present.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// Time since the network was made.
    pub fn elapsed(&self) -> Duration {
        self.now - self.started
    }

    /// The host.
    pub fn host(&self, i: usize) -> &H {
        &self.hosts[i].1
    }

    /// The host, to do something with it; what it sends leaves at the next step.
    pub fn host_mut(&mut self, i: usize) -> &mut H {
        &mut self.hosts[i].1
    }

    /// Randomness of the same seed, for the test's own choices.
    pub fn rng(&mut self) -> &mut StdRng {
        &mut self.rng
    }

    /// How often each fault has happened.
    pub fn faults(&self) -> Faults {
        self.faults
    }

    /// Datagrams host `i` has sent.
    pub fn sent(&self, i: usize) -> u64 {
        self.sent[i]
    }

    /// Sets the conditions from host `from` to host `to`.
    pub fn set_conditions(&mut self, from: usize, to: usize, conditions: Conditions) {
        self.links.insert((from, to), Link::new(conditions));
    }

    /// Heals the network: from now on nothing is lost. What is on its way stays so.
    pub fn heal(&mut self) {
        for link in self.links.values_mut() {
            link.heal();
        }
        self.default = Conditions::default();
    }

    /// Sends what the hosts have to send.
    fn flush(&mut self) {
        for from in 0..self.hosts.len() {
            for burst in 0.. {
                assert!(burst < MAX_BURST, "host {from} never stops sending");
                let mut bytes = self.spare.pop().unwrap_or_default();
                bytes.clear();
                let Some(target) = self.hosts[from].1.poll_transmit(self.now, &mut bytes) else {
                    self.spare.push(bytes);
                    break;
                };
                self.sent[from] += 1;
                if let Some(to) = self.hosts.iter().position(|h| h.0 == target) {
                    self.carry(from, to, bytes);
                }
            }
        }
    }

    fn carry(&mut self, from: usize, to: usize, bytes: Vec<u8>) {
        let default = &self.default;
        let link = self.links.entry((from, to)).or_insert_with(|| Link::new(default.clone()));
        let since = self.now - self.started;
        let copies = 1 + usize::from(link.duplicates(&mut self.rng, &mut self.faults));
        for copy in 0..copies {
            let fate = link.pass(self.now, since, bytes.len(), &mut self.rng, &mut self.faults);
            let Fate::Arrives { at, damaged } = fate else { continue };
            let mut bytes = if copy + 1 == copies { bytes.clone() } else { bytes.to_vec() };
            if damaged && !bytes.is_empty() {
                let at = self.rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << self.rng.random_range(0..8);
            }
            self.order += 1;
            self.queue.push(Reverse(Arrival { at, order: self.order, to, from, bytes }));
        }
        if self.spare.len() < 64 {
            self.spare.push(bytes);
        }
    }

    /// Goes on to the next thing that happens, at most to `limit`. Whether something happened.
    pub fn step(&mut self, limit: Instant) -> bool {
        self.flush();
        let arrival = self.queue.peek().map(|Reverse(a)| a.at);
        let timer = self.hosts.iter().filter_map(|h| h.1.poll_timeout()).min();
        let Some(next) = [arrival, timer].into_iter().flatten().min().filter(|at| *at <= limit) else {
            self.now = self.now.max(limit);
            return false;
        };
        self.now = self.now.max(next);
        while self.queue.peek().is_some_and(|Reverse(a)| a.at <= self.now) {
            if let Some(Reverse(mut a)) = self.queue.pop() {
                let from = self.hosts[a.from].0;
                self.hosts[a.to].1.handle_datagram(self.now, from, &mut a.bytes);
                self.spare.push(a.bytes);
                self.spare.truncate(64);
            }
        }
        for (_, host) in &mut self.hosts {
            if host.poll_timeout().is_some_and(|at| at <= self.now) {
                host.handle_timeout(self.now);
            }
        }
        true
    }

    /// Whether no datagram is on its way.
    pub fn is_quiet(&self) -> bool {
        self.queue.is_empty()
    }
}

/// Where virtual time begins. Only differences matter.
#[allow(clippy::disallowed_methods)]
fn epoch() -> Instant {
    Instant::now()
}
