//! Registry and beacon in one process, as a library and as the program `pilot-rendezvous`.
//!
//! Together they are more than each alone: the registry tells the beacon where a node really is, so that nobody takes its
//! place, and the beacon tells a node at once that a handshake waits at the registry.
//!
//! ```no_run
//! # async fn demo() -> Result<(), pilot_rendezvous::StartError> {
//! use pilot_rendezvous::{Rendezvous, RendezvousConfig};
//! let rendezvous = Rendezvous::start(pilot_env::Env::real(), RendezvousConfig::loopback()).await?;
//! println!("registry {}, beacon {}", rendezvous.registry_addr(), rendezvous.beacon_addr());
//! rendezvous.shutdown().await;
//! # Ok(()) }
//! ```

mod health;
mod program;
mod tls;

pub use program::main;
pub use tls::Tls;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use pilot_beacon::{BeaconConfig, BeaconHandle, BeaconServer, Witness};
use pilot_env::Env;
use pilot_env::tls::Fingerprint;
use pilot_registry::import::{ImportError, Snapshot};
use pilot_registry::{Notifier, OpenError, RedbStore, Registry, RegistryConfig, RegistryServer, ServerConfig, Store};

use crate::health::HealthServer;

/// Largest snapshot that is imported, in bytes: some hundred thousand nodes.
const MAX_SNAPSHOT: u64 = 1 << 30;

/// Settings of a rendezvous.
#[derive(Clone, Debug)]
pub struct RendezvousConfig {
    /// Where the registry listens (TCP). `[::]` serves IPv4 too; port 0 takes any free one.
    pub registry_addr: SocketAddr,
    /// Where the beacon listens (UDP).
    pub beacon_addr: SocketAddr,
    /// The beacon's address for nodes that want to be reached only through it (07 §8.2). Default: where it listens.
    pub beacon_public: Option<SocketAddr>,
    /// The store file; `None` keeps everything in memory, and then every node gets a new address after a restart.
    pub store: Option<PathBuf>,
    /// A snapshot of the official registry to fill a new store with.
    pub import: Option<PathBuf>,
    /// TLS of the registry.
    pub tls: Tls,
    /// Where `/healthz` is served (HTTP).
    pub health: Option<SocketAddr>,
    /// Behaviour and rate limits of the registry. Its `beacon` is filled in from the fields above.
    pub registry: RegistryConfig,
    /// Connections to the registry in total.
    pub max_connections: usize,
    /// Connections to the registry from one address.
    pub max_per_source: usize,
    /// Gossip with other beacons.
    pub beacon: BeaconConfig,
}

impl RendezvousConfig {
    /// Registry and beacon on the given addresses, in memory, with the default limits.
    pub fn new(registry_addr: SocketAddr, beacon_addr: SocketAddr) -> Self {
        let server = ServerConfig::new(registry_addr);
        Self {
            registry_addr,
            beacon_addr,
            beacon_public: None,
            store: None,
            import: None,
            tls: Tls::Off,
            health: None,
            registry: RegistryConfig::default(),
            max_connections: server.max_connections,
            max_per_source: server.max_per_source,
            beacon: BeaconConfig::default(),
        }
    }

    /// For tests and demonstrations: any free ports of 127.0.0.1, in memory, and no limit on new nodes, which all come
    /// from one address there.
    pub fn loopback() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut config = Self::new(any, any);
        config.registry.new_nodes.burst = 100_000;
        config.registry.requests_per_source.burst = 1_000_000;
        config
    }
}

/// Why a rendezvous does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A socket cannot be bound.
    #[error("{part}: cannot listen on {addr}: {error}")]
    Listen {
        /// Which part.
        part: &'static str,
        /// Where.
        addr: SocketAddr,
        /// What the system says.
        error: std::io::Error,
    },
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The snapshot to import cannot be read.
    #[error("import {}: {error}", .path.display())]
    ImportFile {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// The file to import is no snapshot.
    #[error("import {}: {error}", .path.display())]
    Import {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: ImportError,
    },
    /// A certificate or key cannot be read, made or kept.
    #[error("TLS: {}: {error}", .path.display())]
    Tls {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: std::io::Error,
    },
}

impl StartError {
    /// A stable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Listen { .. } => "listen",
            Self::Store(error) => error.code(),
            Self::ImportFile { .. } => "import_unreadable",
            Self::Import { .. } => "import_invalid",
            Self::Tls { .. } => "tls",
        }
    }
}

/// The registry's knowledge of where nodes are, for the beacon.
struct StoreWitness(Arc<dyn Store>);

impl Witness for StoreWitness {
    fn source_of(&self, node: u32) -> Option<IpAddr> {
        self.0.source_of(node)
    }
}

/// The beacon's way to nodes, for the registry.
struct BeaconNotifier(BeaconHandle);

impl Notifier for BeaconNotifier {
    fn handshake_waiting(&self, node: u32) {
        self.0.notify(node);
    }
}

/// A running rendezvous. Dropping it leaves it running until the runtime ends; see [`Rendezvous::shutdown`].
pub struct Rendezvous {
    registry: RegistryServer,
    beacon: BeaconServer,
    health: Option<HealthServer>,
    fingerprint: Option<Fingerprint>,
}

impl Rendezvous {
    /// Starts registry and beacon. Opening a large store blocks for as long as it takes to read it.
    ///
    /// # Errors
    /// [`StartError`]; nothing keeps running then.
    pub async fn start(env: Env, config: RendezvousConfig) -> Result<Self, StartError> {
        let listen = |part, addr| move |error| StartError::Listen { part, addr, error };
        let store = open_store(&env, &config)?;
        let tls = tls::acceptor(&env, &config.tls, config.store.as_deref())?;
        let fingerprint = tls.as_ref().map(|tls| tls.fingerprint());

        let beacon = BeaconServer::bind(&env, config.beacon_addr, config.beacon)
            .map_err(listen("beacon", config.beacon_addr))?;
        let mut behaviour = config.registry;
        behaviour.beacon = Some(config.beacon_public.unwrap_or(beacon.addr()));
        let notifier = Arc::new(BeaconNotifier(beacon.clone()));
        let registry = Arc::new(Registry::new(env.clone(), store.clone(), behaviour, Some(notifier)));
        let server = ServerConfig {
            listen: config.registry_addr,
            tls,
            max_connections: config.max_connections,
            max_per_source: config.max_per_source,
        };
        let registry =
            RegistryServer::start(&env, registry, server).map_err(listen("registry", config.registry_addr))?;
        let beacon = BeaconServer::serve(beacon, Arc::new(StoreWitness(store.clone())));
        let health = match config.health {
            None => None,
            Some(addr) => Some(HealthServer::start(&env, addr, store).map_err(listen("health", addr))?),
        };
        Ok(Self { registry, beacon, health, fingerprint })
    }

    /// Where the registry listens.
    pub fn registry_addr(&self) -> SocketAddr {
        self.registry.addr()
    }

    /// Where the beacon listens.
    pub fn beacon_addr(&self) -> SocketAddr {
        self.beacon.addr()
    }

    /// Where `/healthz` is served.
    pub fn health_addr(&self) -> Option<SocketAddr> {
        self.health.as_ref().map(HealthServer::addr)
    }

    /// What clients pin (`-registry-fingerprint`), when the registry speaks TLS.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint
    }

    /// The registry, for looking into.
    pub fn registry(&self) -> &Arc<Registry> {
        self.registry.registry()
    }

    /// The beacon, for looking into.
    pub fn beacon(&self) -> BeaconHandle {
        self.beacon.handle()
    }

    /// Stops both, lets requests in hand be answered, writes what is not on disk, and closes the store.
    pub async fn shutdown(self) {
        if let Some(health) = self.health {
            health.shutdown().await;
        }
        self.beacon.shutdown().await;
        self.registry.shutdown().await;
    }
}

fn open_store(env: &Env, config: &RendezvousConfig) -> Result<Arc<dyn Store>, StartError> {
    let now = env.unix().as_secs();
    let snapshot = match &config.import {
        None => None,
        Some(path) => {
            let text = env
                .fs()
                .read_limited(path, MAX_SNAPSHOT)
                .map_err(|error| StartError::ImportFile { path: path.clone(), error })?;
            let snapshot =
                Snapshot::read(&text, now).map_err(|error| StartError::Import { path: path.clone(), error })?;
            for note in &snapshot.notes {
                tracing::warn!(path = %path.display(), "import: {note}");
            }
            Some(snapshot)
        }
    };
    Ok(match &config.store {
        Some(path) => Arc::new(RedbStore::open(env, path, now, snapshot)?),
        None => Arc::new(RedbStore::in_memory(now, snapshot)?),
    })
}
