//! The simulated machine: virtual time, seeded randomness, an in-memory network and a disk that forgets.
//!
//! Time is tokio's paused clock, so a simulation runs inside `#[tokio::test(start_paused = true)]` or a runtime built with
//! `start_paused(true)`. Everything random (loss, delay, what a crash leaves on disk, keys) follows from one seed.
//!
//! ```no_run
//! # async fn demo() -> std::io::Result<()> {
//! let world = pilot_env::World::new(42);
//! let alice = world.host("10.0.0.1".parse().unwrap());
//! let bob = world.host("10.0.0.2".parse().unwrap());
//! world.set_conditions(pilot_env::NetConditions { loss: 0.02, ..Default::default() });
//! let socket = alice.bind_udp("0.0.0.0:4000".parse().unwrap())?;
//! alice.sim().unwrap().crash_disk();
//! # let _ = (bob, socket); Ok(()) }
//! ```

pub mod disk;
pub(crate) mod net;

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, RngCore, SeedableRng};

use crate::env::Env;
use crate::fs::Fs;
use crate::net::NetStream;
use crate::unix::UnixStream;
use disk::SimDisk;
use net::Network;

/// User id of every simulated process.
pub const USER_ID: u32 = 1000;
/// Where the simulated calendar starts: 2026-01-01T00:00:00Z.
const EPOCH: Duration = Duration::from_secs(1_767_225_600);

/// How a network treats datagrams. Probabilities are 0.0 to 1.0.
#[derive(Debug, Clone, PartialEq)]
pub struct NetConditions {
    /// Time a datagram takes (default 1 ms).
    pub latency: Duration,
    /// Up to this much more, drawn for each datagram, so that they overtake each other (default 0).
    pub jitter: Duration,
    /// Chance that a datagram is lost (default 0).
    pub loss: f64,
    /// Chance that it arrives twice (default 0).
    pub duplicate: f64,
    /// Chance that one bit of it is flipped (default 0).
    pub corrupt: f64,
    /// Largest datagram that passes, bytes; larger ones fail to be sent (default 65,507).
    pub mtu: usize,
    /// Datagrams a socket holds until they are read; more are lost (default 4096).
    pub queue: usize,
}

impl Default for NetConditions {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(1),
            jitter: Duration::ZERO,
            loss: 0.0,
            duplicate: 0.0,
            corrupt: 0.0,
            mtu: 65_507,
            queue: 4096,
        }
    }
}

/// A simulated network and the clock its hosts share.
#[derive(Clone)]
pub struct World(pub(crate) Arc<WorldInner>);

pub(crate) struct WorldInner {
    started: Instant,
    pub(crate) rng: Mutex<StdRng>,
    pub(crate) network: Mutex<Network>,
}

impl World {
    /// A world whose every accident follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(WorldInner {
            started: tokio::time::Instant::now().into_std(),
            rng: Mutex::new(StdRng::seed_from_u64(seed)),
            network: Mutex::new(Network::default()),
        }))
    }

    /// A new machine with one address and an empty disk.
    pub fn host(&self, address: IpAddr) -> Env {
        let seed = self.0.rng.lock().random();
        let disk = SimDisk::new(seed);
        Env::from_host(Arc::new(Host { world: self.clone(), address, disk }))
    }

    /// How datagrams fare from now on.
    pub fn set_conditions(&self, conditions: NetConditions) {
        self.0.network.lock().conditions = conditions;
    }

    /// Stops datagrams and new connections from one address to another (one direction).
    pub fn block(&self, from: IpAddr, to: IpAddr) {
        self.0.network.lock().blocked.insert((from, to));
    }

    /// Lifts every block.
    pub fn heal(&self) {
        self.0.network.lock().blocked.clear();
    }
}

/// One simulated machine. Reached through [`Env::sim`].
pub struct Host {
    pub(crate) world: World,
    pub(crate) address: IpAddr,
    disk: SimDisk,
}

impl Host {
    /// The network this machine is on.
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The machine's address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Pulls the plug on the disk: names and contents that were not synced are forgotten or torn, as the seed decides.
    /// Locks are released. Files opened before keep working on what is left, like those of a program that goes on; a
    /// test drops the program with its files first.
    pub fn crash_disk(&self) {
        self.disk.crash();
    }

    /// The disk itself, for tests that fill it or stop it between two changes.
    pub fn sim_disk(&self) -> &SimDisk {
        &self.disk
    }

    pub(crate) fn disk(&self) -> &dyn Fs {
        &self.disk
    }

    pub(crate) fn unix(&self) -> Duration {
        EPOCH + tokio::time::Instant::now().into_std().saturating_duration_since(self.world.0.started)
    }

    pub(crate) fn fill_random(&self, buf: &mut [u8]) {
        self.world.0.rng.lock().fill_bytes(buf);
    }

    pub(crate) fn resolve(&self, target: &str) -> io::Result<Vec<SocketAddr>> {
        let target = target.replacen("localhost:", "127.0.0.1:", 1);
        let target = target.strip_prefix(':').map_or(target.clone(), |port| format!("127.0.0.1:{port}"));
        let addr: SocketAddr = target
            .parse()
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("no such host: {target}")))?;
        Ok(vec![addr])
    }

    /// Loopback as seen from this machine is this machine.
    pub(crate) fn route(&self, addr: SocketAddr) -> SocketAddr {
        if addr.ip().is_loopback() || addr.ip().is_unspecified() {
            SocketAddr::new(self.address, addr.port())
        } else {
            addr
        }
    }

    pub(crate) fn bind_udp(&self, addr: SocketAddr) -> io::Result<net::SimUdp> {
        net::SimUdp::bind(self, addr)
    }

    pub(crate) fn tcp_listen(&self, addr: SocketAddr) -> io::Result<net::SimTcpListener> {
        net::SimTcpListener::bind(self, addr)
    }

    pub(crate) async fn tcp_connect(&self, addr: SocketAddr) -> io::Result<NetStream> {
        net::tcp_connect(self, addr).await
    }

    pub(crate) fn unix_listen(&self, path: &Path) -> io::Result<net::SimUnixListener> {
        net::SimUnixListener::bind(self, path)
    }

    pub(crate) fn unix_connect(&self, path: &Path) -> io::Result<UnixStream> {
        net::unix_connect(self, path)
    }
}
