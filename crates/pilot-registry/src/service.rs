//! Requests in, answers out: what the registry says to each message (04 §9, 07 §9), without sockets.

mod handlers;
mod networks;
mod session;

pub use session::Session;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use pilot_env::Env;
use pilot_wire::registry::{Answer, BeaconEntry, MessageError, Request};
use rustc_hash::FxHashMap;

use crate::error::Refusal;
use crate::limiter::{Limiter, Rate};
use crate::limits::{BEACON_TTL, MAX_BEACONS, cut};
use crate::once::Once;
use crate::store::Store;

/// Tells a node that something waits for it at the registry. Implemented by the beacon of the same process.
pub trait Notifier: Send + Sync + 'static {
    /// A handshake message waits for `node`. Must not block; nothing is lost when it does nothing, because nodes poll.
    fn handshake_waiting(&self, node: u32);
}

/// Settings of the registry's behaviour. Sockets are the server's matter.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// New nodes per source; default 10 at once and one per 6 s (04 §14).
    pub new_nodes: Rate,
    /// Requests per source; more are delayed. Default 2,000 at once, 1,000 per second: many daemons behind one NAT.
    pub requests_per_source: Rate,
    /// Requests per connection; more are delayed. Default 500 at once, 200 per second (a daemon makes a few per minute).
    pub requests_per_connection: Rate,
    /// The beacon's address, for nodes that want to be reached through it only (07 §8.2). A wildcard host means the
    /// address under which the client reached the registry. `None`: such nodes have no endpoint.
    pub beacon: Option<SocketAddr>,
    /// Who may make networks; default [`NetworkCreation::Default`].
    pub network_creation: NetworkCreation,
    /// Proves commands about any network (04 §6). Empty, the default: nobody has it.
    pub admin_token: AdminToken,
    /// Networks made from one source by nodes; default 16 at once and one per minute.
    pub new_networks: Rate,
    /// Wrong tokens from one source; default 20 at once and one per 10 s.
    pub token_guesses: Rate,
}

/// A secret that debug output does not show.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AdminToken(pub String);

impl std::fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "set" })
    }
}

/// Who may make networks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NetworkCreation {
    /// Every node, unless there is an admin token.
    #[default]
    Default,
    /// Every node, by its signature, within the limits.
    Anyone,
    /// Only who has the admin token.
    Admin,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            new_nodes: Rate { burst: 10, per_second: 10.0 / 60.0 },
            requests_per_source: Rate { burst: 2000, per_second: 1000.0 },
            requests_per_connection: Rate { burst: 500, per_second: 200.0 },
            beacon: None,
            network_creation: NetworkCreation::Default,
            admin_token: AdminToken::default(),
            new_networks: Rate { burst: 16, per_second: 1.0 / 60.0 },
            token_guesses: Rate { burst: 20, per_second: 0.1 },
        }
    }
}

/// An answer, and whether the connection ends after it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    /// What is sent.
    pub answer: Answer,
    /// Whether to close the connection then.
    pub is_last: bool,
}

/// The registry without its sockets. Shared by all connections.
pub struct Registry {
    env: Env,
    store: Arc<dyn Store>,
    config: RegistryConfig,
    notifier: Option<Arc<dyn Notifier>>,
    /// Unix seconds and instant of the start: the time of the domain never jumps.
    started: (u64, Instant),
    beacons: Mutex<FxHashMap<u32, (SocketAddr, u64)>>,
    new_nodes: Mutex<Limiter>,
    requests: Mutex<Limiter>,
    new_networks: Mutex<Limiter>,
    guesses: Mutex<Limiter>,
    commands: Mutex<Once>,
}

impl Registry {
    /// A registry over a store.
    pub fn new(env: Env, store: Arc<dyn Store>, config: RegistryConfig, notifier: Option<Arc<dyn Notifier>>) -> Self {
        let started = (env.unix().as_secs(), env.now());
        Self {
            new_nodes: Mutex::new(Limiter::new(config.new_nodes)),
            requests: Mutex::new(Limiter::new(config.requests_per_source)),
            new_networks: Mutex::new(Limiter::new(config.new_networks)),
            guesses: Mutex::new(Limiter::new(config.token_guesses)),
            commands: Mutex::new(Once::new(started.0)),
            beacons: Mutex::default(),
            env,
            store,
            config,
            notifier,
            started,
        }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(crate) fn config(&self) -> &RegistryConfig {
        &self.config
    }

    pub(crate) fn env(&self) -> &Env {
        &self.env
    }

    /// Unix seconds that never go back.
    pub fn now(&self) -> u64 {
        self.started.0 + self.env.now().saturating_duration_since(self.started.1).as_secs()
    }

    /// How long a request from this source has to wait for its turn.
    pub(crate) fn pace(&self, source: std::net::IpAddr) -> std::time::Duration {
        self.requests.lock().pace(source, self.env.now())
    }

    /// Housekeeping: silent nodes depart, signs of life are written, forgotten sources and beacons dropped.
    ///
    /// # Errors
    /// When the store fails.
    pub async fn tick(&self) -> Result<(), Refusal> {
        let now = self.now();
        self.beacons.lock().retain(|_, (_, seen)| now < *seen + BEACON_TTL.as_secs());
        self.new_nodes.lock().collect(self.env.now());
        self.requests.lock().collect(self.env.now());
        self.new_networks.lock().collect(self.env.now());
        self.guesses.lock().collect(self.env.now());
        let departed = self.store.reap(now).await?;
        if departed > 0 {
            tracing::info!(departed, "silent nodes departed");
        }
        self.store.flush().await
    }

    /// Answers one message body.
    ///
    /// # Errors
    /// [`MessageError`]: the connection is to be closed without an answer.
    pub async fn answer(&self, session: &mut Session, body: &[u8]) -> Result<Reply, MessageError> {
        let request = Request::parse(body)?;
        let is_last = matches!(request, Request::SubscribeReplication { .. });
        let answer = match self.handle(session, request).await {
            Ok(answer) => answer,
            Err(refusal) => {
                match &refusal {
                    Refusal::Internal(fault) => tracing::error!(%fault, "request failed"),
                    refusal => {
                        tracing::debug!(source = %session.source(), code = refusal.code(), "{refusal}");
                    }
                }
                Answer::error(refusal.wire_text(), Some(refusal.code()))
            }
        };
        Ok(Reply { answer, is_last })
    }

    fn register_beacon(&self, session: &Session, id: u32, addr: &str) -> Result<Answer, Refusal> {
        if id == 0 {
            return Err(Refusal::BeaconFieldRequired("beacon_id required"));
        }
        if addr.is_empty() {
            return Err(Refusal::BeaconFieldRequired("addr required"));
        }
        let refuse = |reason| Refusal::BeaconAddress { addr: cut(addr, 80).to_owned(), reason };
        let parsed: SocketAddr = addr.parse().map_err(|_| refuse("expected ip:port"))?;
        let source = session.source().ip().to_canonical();
        if parsed.port() == 0 || parsed.ip().is_unspecified() || parsed.ip().is_multicast() {
            return Err(refuse("not an address daemons could use"));
        }
        // A beacon speaks for itself only; one on this machine may name the machine's public address.
        if parsed.ip().to_canonical() != source && !source.is_loopback() {
            return Err(refuse("its host must be the address the request comes from"));
        }
        let now = self.now();
        let mut beacons = self.beacons.lock();
        beacons.retain(|_, (_, seen)| now < *seen + BEACON_TTL.as_secs());
        match beacons.get(&id) {
            Some((other, _)) if other.ip() != parsed.ip() => return Err(Refusal::BeaconTaken(id)),
            None if beacons.len() >= MAX_BEACONS => return Err(Refusal::BeaconsFull),
            _ => {}
        }
        beacons.insert(id, (parsed, now));
        Ok(Answer::BeaconRegister { beacon: id })
    }

    fn list_beacons(&self) -> Answer {
        let now = self.now();
        let beacons = self.beacons.lock();
        let mut list: Vec<BeaconEntry> = beacons
            .iter()
            .filter(|(_, (_, seen))| now < *seen + BEACON_TTL.as_secs())
            .map(|(id, (addr, _))| BeaconEntry { id: *id, addr: addr.to_string() })
            .collect();
        list.sort_by_key(|beacon| beacon.id);
        Answer::BeaconList(list)
    }
}
