//! A running node: identity, engine, registry session, trust, services and the local server, joined.

pub(crate) mod broadcast;
mod holder;
mod info;
mod metrics;
mod monitor;
mod networks;
mod notices;
mod rotate;
mod session;
pub(crate) mod signing;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};
use pilot_env::tls::TlsConnector;
use pilot_env::{Env, UnixListener};
use pilot_proto::directory::{DirectoryConfig, DirectoryEvent};
use pilot_proto::endpoint::{BindError, EndpointConfig};
use pilot_proto::identity::Identity;
use pilot_services::{CallError, Events as _, Offer};
use pilot_wire::{Address, SocketAddress};
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::NodeConfig;
use crate::directory::{Directory, DirectoryError, Target};
use crate::engine::{DialFailed, Engine, NodeDatagrams, NodeListener, NodeStream};
use crate::error::NodeError;
use crate::events::{EventBus, EventStream};
use crate::hosting::{Hosting, Methods};
use crate::local::{self, Clients, NodeMethods};
use crate::store::{Memory, Store};
use crate::trust::TrustService;
use crate::webhook::{Webhook, WebhookTarget};
use rotate::Rotation;

pub(crate) use info::fitting;
pub(crate) use metrics::Metrics;
pub use monitor::{Check, Monitor, Readiness};

/// Mode of the local socket: this user only (03 §1).
const SOCKET_MODE: u32 = 0o600;
/// How long [`Node::start`] waits for the first registration. A node whose registry is down starts all the same.
const FIRST_REGISTRATION: Duration = Duration::from_secs(5);
/// Default deadline of [`Node::shutdown`].
pub const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// Largest file with the key that signs webhooks, bytes.
const MAX_SECRET: u64 = 4096;
/// Bytes under way in each direction of a local stream to a service.
const LOCAL_STREAM_BUFFER: usize = 64 * 1024;
/// How often the memory of peers is written, if it changed.
const MEMORY_INTERVAL: Duration = Duration::from_secs(10);

/// What local programs may change while the node runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Status {
    pub(crate) hostname: String,
    pub(crate) public: bool,
    /// Networks other than 0 that we are a member of.
    pub(crate) networks: Vec<u16>,
    /// Where the beacon sees the tunnel socket.
    pub(crate) observed: Option<SocketAddr>,
    /// The endpoint told to the registry last.
    pub(crate) registered_as: String,
    /// Whether there was a registration before.
    pub(crate) registered_before: bool,
    /// Why the last registration failed, or empty.
    pub(crate) registry_error: String,
    /// The hostname that the settings name.
    pub(crate) configured_hostname: String,
    /// The visibility that the settings name.
    pub(crate) configured_public: bool,
}

/// All parts of one node. Everything in it may be used from any task.
pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) config: NodeConfig,
    identity: RwLock<Arc<Identity>>,
    pub(crate) rotation: Rotation,
    pub(crate) engine: Arc<Engine>,
    pub(crate) directory: Directory,
    pub(crate) trust: TrustService,
    pub(crate) clients: Arc<Clients>,
    /// What happened, for whoever listens.
    pub(crate) events: Arc<EventBus>,
    /// Posts events to a URL.
    pub(crate) webhook: Arc<Webhook>,
    /// What services offer to local programs.
    pub(crate) methods: Methods,
    pub(crate) store: Arc<Store>,
    pub(crate) memory: Arc<Mutex<Memory>>,
    networks: networks::Networks,
    pub(crate) status: Mutex<Status>,
    /// Raised when the endpoint to register has changed.
    pub(crate) endpoint_changed: Notify,
    /// Counts polls for relayed trust messages whose answers were taken.
    pub(crate) polls: watch::Sender<u64>,
    /// Our id: 0 until it is known.
    pub(crate) node_id: watch::Sender<u32>,
    /// Whether the registry has us, as far as we know.
    pub(crate) registered: watch::Sender<bool>,
    pub(crate) started: Instant,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Shared {
    /// Runs a task until it is done or the node stops.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move { stop.run_until_cancelled(work).await });
    }

    /// Our id, 0 before the first registration.
    pub(crate) fn node(&self) -> u32 {
        *self.node_id.borrow()
    }

    /// Our address.
    pub(crate) fn address(&self) -> Address {
        Address::backbone(self.node())
    }

    /// Claims a hostname at the registry and remembers it.
    pub(crate) async fn set_hostname(&self, hostname: String) -> Result<Value, DirectoryError> {
        let answer = self.directory.set_hostname(&hostname).await?;
        let configured = {
            let mut status = self.status.lock();
            status.hostname.clone_from(&hostname);
            status.configured_hostname.clone()
        };
        self.memory.lock().set_hostname(hostname, configured);
        self.remember_now().await.map(|()| answer)
    }

    /// Changes who may learn our endpoint, and remembers it.
    pub(crate) async fn set_visibility(&self, public: bool) -> Result<Value, DirectoryError> {
        let answer = self.directory.set_visibility(public).await?;
        let configured = {
            let mut status = self.status.lock();
            status.public = public;
            status.configured_public
        };
        self.memory.lock().set_public(public, configured);
        self.remember_now().await.map(|()| answer)
    }

    /// Posts events to a URL from now on; empty ends it (05 §10.1).
    ///
    /// # Errors
    /// Says what is wrong with the URL or the secret file.
    pub(crate) fn set_webhook(&self, url: &str) -> Result<(), String> {
        if url.is_empty() {
            return self.webhook.set(None);
        }
        self.webhook.set(Some(self.webhook_target(WebhookTarget::new(url)?)?))
    }

    /// Gives a target the key that signs for it, if one is configured.
    fn webhook_target(&self, target: WebhookTarget) -> Result<WebhookTarget, String> {
        let Some(path) = &self.config.webhook_secret_file else { return Ok(target) };
        let shown = path.display();
        let secret =
            self.env.fs().read_limited(path, MAX_SECRET).map_err(|e| format!("webhook secret {shown}: {e}"))?;
        let secret = secret.strip_suffix(b"\n").unwrap_or(&secret);
        if secret.is_empty() {
            return Err(format!("webhook secret {shown}: the file is empty"));
        }
        Ok(target.signed(secret.to_vec()))
    }

    /// Replaces the tags; they are set again after the registry has forgotten them, and after a restart.
    pub(crate) async fn set_tags(&self, tags: Vec<String>) -> Result<Value, DirectoryError> {
        let answer = self.directory.set_tags(tags.clone()).await?;
        self.memory.lock().set_tags(tags);
        self.remember_now().await.map(|()| answer)
    }

    /// What was acknowledged is on disk before the acknowledgement leaves.
    async fn remember_now(&self) -> Result<(), DirectoryError> {
        let (store, memory) = (self.store.clone(), self.memory.clone());
        let written = tokio::task::spawn_blocking(move || store.write_memory(&memory)).await;
        let written = written.unwrap_or_else(|ended| Err(std::io::Error::other(ended)));
        written.map_err(|error| DirectoryError::NotSaved(error.to_string()))
    }
}

/// A node of the Pilot network.
///
/// ```no_run
/// # async fn demo() -> Result<(), Box<dyn std::error::Error>> {
/// use pilot_node::{Node, NodeConfig};
/// let node = Node::start(pilot_env::Env::real(), NodeConfig::default()).await?;
/// let listener = node.listen(2000)?;
/// let mut stream = listener.accept().await;
/// tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello").await?;
/// node.shutdown(std::time::Duration::from_secs(5)).await;
/// # Ok(()) }
/// ```
pub struct Node {
    shared: Arc<Shared>,
}

impl Node {
    /// Starts a node. It waits a few seconds for the first registration, and starts without one when the registry is
    /// down: it then keeps trying, and serves peers it knows meanwhile.
    ///
    /// # Errors
    /// [`NodeError`] names what is wrong and the remedy. Nothing is left running.
    pub async fn start(env: Env, config: NodeConfig) -> Result<Self, NodeError> {
        config.stream.validate()?;
        if let Some(identity) = &config.identity {
            holder::check(&env, identity).await?;
        }
        let (store, identity) = Store::open(&env, config.identity.as_deref())?;
        let next = store.load_next()?;
        let store = Arc::new(store);
        let memory = store.load_memory();
        let socket = env.bind_udp(config.listen).map_err(|source| NodeError::Listen { addr: config.listen, source })?;
        let endpoint = EndpointConfig {
            node: memory.node,
            encrypt: config.encrypt,
            allow_scheme_a: config.allow_scheme_a,
            public_ports: config.public_ports.clone(),
            stream: config.stream.clone(),
            limits: config.limits,
            ..EndpointConfig::new(identity.clone(), env.seed(), env.unix().as_secs())
        };
        let tls = match config.registry_fingerprint {
            Some(pin) => Some(TlsConnector::pinned(pin).map_err(|e| NodeError::Config(format!("TLS: {e}")))?),
            None => None,
        };
        let target = Target { address: config.registry.clone(), tls };
        let events = Arc::new(EventBus::new(env.clone()));
        let (engine, notices) = Engine::new(env.clone(), socket, endpoint, events.clone());
        let wanted = DirectoryConfig {
            node: memory.node,
            owner: config.owner.clone(),
            version: config.version.clone(),
            hostname: Some(memory.hostname(&config.hostname)).filter(|hostname| !hostname.is_empty()),
            public: Some(memory.public(config.public)),
            tags: memory.tags(),
            heartbeat: config.keepalive,
            next_identity: next.clone(),
            ..DirectoryConfig::new(identity.clone())
        };
        let (directory, link, session) = Directory::start(env.clone(), target, wanted);
        let trust = TrustService::load(&env, &store, &config, &identity, memory.node)?;
        let started = env.now();
        let status = Status {
            hostname: memory.hostname(&config.hostname),
            public: memory.public(config.public),
            configured_hostname: config.hostname.clone(),
            configured_public: config.public,
            ..Status::default()
        };
        let shared = Arc::new(Shared {
            node_id: watch::Sender::new(memory.node),
            registered: watch::Sender::new(false),
            config,
            identity: RwLock::new(identity),
            rotation: Rotation::new(next),
            engine,
            directory,
            trust,
            clients: Arc::new(Clients::default()),
            webhook: Arc::new(Webhook::new(&env, &events)),
            events,
            methods: Methods::default(),
            env,
            store,
            memory: Arc::new(Mutex::new(memory)),
            networks: networks::Networks::default(),
            status: Mutex::new(status),
            endpoint_changed: Notify::new(),
            polls: watch::Sender::new(0),
            started,
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        });
        let node = Self { shared };
        match node.open(link, session, notices).await {
            Ok(()) => Ok(node),
            Err(error) => {
                node.shared.stop.cancel();
                node.shared.tasks.close();
                node.shared.tasks.wait().await;
                Err(error)
            }
        }
    }

    /// Opens every door and starts every task.
    async fn open(
        &self,
        link: impl Future<Output = ()> + Send + 'static,
        session: tokio::sync::mpsc::Receiver<DirectoryEvent>,
        notices: tokio::sync::mpsc::Receiver<pilot_proto::endpoint::Event>,
    ) -> Result<(), NodeError> {
        let shared = &self.shared;
        let sockets = listen_locally(shared)?;
        for offer in &shared.config.services {
            self.serve(offer.as_ref())?;
        }
        let own: Arc<dyn pilot_services::LocalMethods> = Arc::new(NodeMethods(Arc::downgrade(shared)));
        shared.methods.add(&own);
        if let Some(target) = &shared.config.webhook {
            let target = shared.webhook_target(target.clone()).map_err(NodeError::Config)?;
            shared.webhook.set(Some(target)).map_err(NodeError::Config)?;
        }
        shared.spawn(shared.webhook.clone().collect());
        shared.spawn(shared.webhook.clone().deliver(shared.node_id.subscribe()));
        shared.trust.start(shared)?;
        let clients = shared.clients.clone();
        shared.engine.with(|core, _| core.set_strays(Some(clients)));
        shared.spawn(link);
        shared.spawn(shared.engine.clone().drive());
        shared.spawn(notices::run(shared.clone(), notices));
        shared.spawn(session::run(shared.clone(), session));
        shared.spawn(remember(shared.clone()));
        shared.spawn(networks::review(shared.clone()));
        let mut registered = shared.registered.subscribe();
        let first = async {
            // The sender lives in `shared`, so this cannot fail.
            let _ = registered.wait_for(|yes| *yes).await;
        };
        let given_up = session::first_failure(shared);
        tokio::select! {
            () = first => {}
            () = given_up => {}
            () = shared.env.sleep(FIRST_REGISTRATION) => {}
        }
        for listener in sockets {
            shared.spawn(local::serve(shared.clone(), listener));
        }
        Ok(())
    }

    /// Opens a service and offers it on its port for as long as the node runs.
    ///
    /// # Errors
    /// [`NodeError::Offer`] when it cannot be opened, [`NodeError::Service`] when its port is taken.
    pub fn serve(&self, offer: &dyn Offer) -> Result<(), NodeError> {
        Hosting::new(&self.shared).serve(offer)
    }

    /// Calls a method that a service of this node offers to local programs.
    ///
    /// # Errors
    /// `unknown_method`, or what the service says.
    pub async fn call(&self, method: &str, args: Value) -> Result<Value, CallError> {
        self.shared.methods.find(method)?.call(method, args).await
    }

    /// Opens a stream to a method that a service of this node offers to local programs.
    ///
    /// # Errors
    /// `unknown_method`, or what the service says.
    pub async fn open_local(&self, method: &str, args: Value) -> Result<tokio::io::DuplexStream, CallError> {
        let serve = self.shared.methods.find(method)?.open(method, args).await?;
        let (ours, theirs) = tokio::io::duplex(LOCAL_STREAM_BUFFER);
        let serving = serve(Box::new(theirs));
        let method = method.to_owned();
        self.shared.spawn(async move {
            if let Err(error) = serving.await {
                tracing::debug!(method, %error, "a local stream ended early");
            }
        });
        Ok(ours)
    }

    /// Reports events of a program that embeds the node, beside the node's own.
    pub fn reporter(&self) -> Arc<dyn pilot_services::Events> {
        self.shared.events.clone()
    }

    /// What happens from now on (05 §10.3).
    pub fn events(&self) -> EventStream {
        self.shared.events.subscribe()
    }

    /// Our address; node 0 until the registry has given one.
    pub fn address(&self) -> Address {
        self.shared.address()
    }

    /// Our Ed25519 key.
    pub fn public_key(&self) -> [u8; 32] {
        self.shared.identity().public_key()
    }

    /// Waits until the registry has given an address, and returns it.
    pub async fn registered(&self) -> Address {
        let mut registered = self.shared.registered.subscribe();
        let _ = registered.wait_for(|yes| *yes).await;
        self.address()
    }

    /// The address of the tunnel socket.
    pub fn local_addr(&self) -> SocketAddr {
        self.shared.engine.local_addr()
    }

    /// Opens a stream to a port of a peer.
    ///
    /// # Errors
    /// [`DialFailed`] says what was tried, with a stable code and a hint.
    pub async fn dial(&self, remote: SocketAddress) -> Result<NodeStream, DialFailed> {
        self.shared.engine.dial(remote)?.await
    }

    /// Accepts streams on a port.
    ///
    /// # Errors
    /// [`BindError`] when the port is taken.
    pub fn listen(&self, port: u16) -> Result<NodeListener, BindError> {
        self.shared.engine.listen(port)
    }

    /// The same, with the port's datagrams.
    ///
    /// # Errors
    /// [`BindError`] when the port is taken.
    pub fn listen_with(&self, port: u16, datagrams: &NodeDatagrams) -> Result<NodeListener, BindError> {
        self.shared.engine.listen_with(port, Some(datagrams))
    }

    /// Datagrams, from a source port of their own; `None` when all 16,384 are taken.
    pub fn datagrams(&self) -> Option<NodeDatagrams> {
        self.shared.engine.datagrams()
    }

    /// Trust operations.
    pub fn trust(&self) -> &TrustService {
        &self.shared.trust
    }

    /// The status object: the keys of every official release together (03 §8, 07 §12).
    pub fn info(&self) -> Value {
        self.shared.info()
    }

    /// A look at this node from outside, for health checks and metrics.
    pub fn monitor(&self) -> Monitor {
        Monitor { shared: self.shared.clone() }
    }

    /// The short status object (07 §12): `status` is `ok` while the registry has us.
    pub fn health(&self) -> Value {
        self.shared.health()
    }

    /// The node behind a hostname: `address`, `hostname`, `node_id`, `public`.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn resolve_hostname(&self, hostname: &str) -> Result<Value, DirectoryError> {
        self.shared.directory.resolve_hostname(hostname).await
    }

    /// Replaces the tags.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn set_tags(&self, tags: Vec<String>) -> Result<Value, DirectoryError> {
        self.shared.set_tags(tags).await
    }

    /// Claims or (empty) gives up a hostname.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn set_hostname(&self, hostname: &str) -> Result<Value, DirectoryError> {
        self.shared.set_hostname(hostname.to_owned()).await
    }

    /// Lets everybody learn our endpoint from the registry, or only those who trust us.
    ///
    /// # Errors
    /// [`DirectoryError`].
    pub async fn set_visibility(&self, public: bool) -> Result<Value, DirectoryError> {
        self.shared.set_visibility(public).await
    }

    /// Claims the hostname that the settings name now.
    pub(crate) async fn configure_hostname(&self, hostname: &str) -> Result<Value, DirectoryError> {
        let before = std::mem::replace(&mut self.shared.status.lock().configured_hostname, hostname.to_owned());
        let outcome = self.shared.set_hostname(hostname.to_owned()).await;
        if outcome.is_err() {
            self.shared.status.lock().configured_hostname = before;
        }
        outcome
    }

    /// Takes the visibility that the settings name now.
    pub(crate) async fn configure_visibility(&self, public: bool) -> Result<Value, DirectoryError> {
        let before = std::mem::replace(&mut self.shared.status.lock().configured_public, public);
        let outcome = self.shared.set_visibility(public).await;
        if outcome.is_err() {
            self.shared.status.lock().configured_public = before;
        }
        outcome
    }

    /// Opens these ports to everybody, trusted or not, and no others.
    pub(crate) fn set_public_ports(&self, ports: &[u16]) {
        self.shared.engine.with(|core, now| {
            for port in core.endpoint.info(now).public_ports {
                core.endpoint.set_public_port(port, ports.contains(&port));
            }
            for port in ports {
                core.endpoint.set_public_port(*port, true);
            }
        });
    }

    /// Replaces the identity key by a new one, at the registry, on disk and at the nodes that trust us; the address stays.
    /// The answer tells `public_key`, `peers_told` and the ids `peers_not_told`, who need a new handshake.
    ///
    /// # Errors
    /// Says why not, and which key is in use.
    pub async fn rotate_key(&self) -> Result<Value, String> {
        self.shared.rotate_key().await
    }

    /// Ends everything in an orderly way: streams get their end, clients their CloseOK, the registry a farewell. Returns
    /// after at most `deadline` and a little.
    pub async fn shutdown(self, deadline: Duration) {
        let shared = &self.shared;
        shared.clients.announce_end();
        if *shared.registered.borrow() {
            shared.events.emit("node.deregistered", Map::new());
        }
        let farewell = async {
            let streams = session::drain_streams(shared);
            tokio::join!(shared.directory.shutdown(), streams);
        };
        if tokio::time::timeout(deadline, farewell).await.is_err() {
            tracing::warn!("shutdown deadline passed; what was still under way was cut off");
        }
        shared.webhook.finish().await;
        shared.clients.dismiss();
        // A moment for the last frames to reach the clients.
        let dismissed = async {
            while shared.clients.len() > 0 {
                shared.env.sleep(Duration::from_millis(5)).await;
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(500), dismissed).await;
        shared.stop.cancel();
        shared.tasks.close();
        let _ = tokio::time::timeout(Duration::from_secs(1), shared.tasks.wait()).await;
        let shared = self.shared.clone();
        let _ = tokio::task::spawn_blocking(move || {
            shared.store.save_memory(&shared.memory);
            shared.store.close();
        })
        .await;
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

/// Opens the local sockets.
fn listen_locally(shared: &Shared) -> Result<Vec<UnixListener>, NodeError> {
    let Some(path) = &shared.config.socket else { return Ok(Vec::new()) };
    let opened = if shared.config.private_socket {
        shared.env.unix_listen_private(path, SOCKET_MODE)
    } else {
        shared.env.unix_listen(path, SOCKET_MODE)
    };
    let mut sockets = vec![opened.map_err(|source| NodeError::LocalSocket { path: path.clone(), source })?];
    if let Some(path) = &shared.config.shared_socket {
        match shared.env.unix_listen(path, SOCKET_MODE) {
            Ok(listener) => sockets.push(listener),
            Err(error) => tracing::warn!(
                path = %path.display(),
                %error,
                "programs that look for their daemon only there will not find this one"
            ),
        }
    }
    Ok(sockets)
}

/// Writes the memory of peers now and then.
async fn remember(shared: Arc<Shared>) {
    loop {
        shared.env.sleep(MEMORY_INTERVAL).await;
        let writer = shared.clone();
        let _ = tokio::task::spawn_blocking(move || writer.store.save_memory(&writer.memory)).await;
    }
}
