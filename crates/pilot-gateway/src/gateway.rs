//! The gateway as a whole: its doors, who may use them, and what it can be told while it runs.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilot::Pilot;
use pilot_env::{Env, TcpListener};
use pilot_wire::gateway::name::Destination;
use pilot_wire::{Address, gateway::name::NameError};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::alias::Aliases;
use crate::control;
use crate::dial::{Cause, Dialer, Refusal};
use crate::door::{Doorman, Entry, Throttle};
use crate::error::GatewayError;
use crate::mapped::Mapping;
use crate::ports::{MAX_LISTENED, PortPair};
use crate::relay::{Activity, Client};
use crate::table::{Subnet, Table};
use crate::{http, socks};

/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Settings of a [`Gateway`].
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where mapped agents get their addresses.
    pub subnet: Subnet,
    /// Ports of each mapped address. Default [`DEFAULT_PORTS`](crate::DEFAULT_PORTS).
    pub ports: Vec<PortPair>,
    /// Where SOCKS5 is served; `None` for nowhere (default). Port 0 is any.
    pub socks5: Option<SocketAddr>,
    /// Where the HTTP proxy is served; `None` for nowhere (default). Port 0 is any.
    pub http_proxy: Option<SocketAddr>,
    /// Whether other machines may use it. Default: no.
    pub allow_remote: bool,
    /// Whether other users of this host may use it, besides `users` and root. Default: no.
    pub allow_users: bool,
    /// User ids that may use it. Default: our own.
    pub users: Vec<u32>,
    /// TCP connections served at once; further ones are refused. Default 1024.
    pub max_connections: usize,
    /// Longest wait for an agent. Default 45 s: official daemons give up after 39 s.
    pub dial_limit: Duration,
    /// Longest silence on a connection. Default 1 h.
    pub idle_limit: Duration,
    /// Control socket; `None` for none (default).
    pub control: Option<PathBuf>,
}

impl GatewayConfig {
    /// The defaults with addresses of this subnet.
    pub fn new(env: &Env, subnet: Subnet) -> Self {
        Self {
            subnet,
            // The constant is checked by a test.
            ports: crate::parse_ports(crate::DEFAULT_PORTS).unwrap_or_default(),
            socks5: None,
            http_proxy: None,
            allow_remote: false,
            allow_users: false,
            users: vec![env.user_id()],
            max_connections: 1024,
            dial_limit: Duration::from_secs(45),
            idle_limit: Duration::from_secs(3600),
            control: None,
        }
    }
}

/// A running gateway. Dropping it ends it at once; [`shutdown`](Self::shutdown) does it in order.
pub struct Gateway {
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) env: Env,
    pub(crate) dialer: Dialer,
    http_proxy: Option<SocketAddr>,
    socks5: Option<SocketAddr>,
    config: GatewayConfig,
    mappings: Mutex<Mappings>,
    /// Held while mappings change, which takes the system some time.
    changing: tokio::sync::Mutex<()>,
    aliases: Aliases,
    doorman: Doorman,
    /// For lines that somebody else can cause.
    lines: Throttle,
    last_error: Mutex<Option<String>>,
    /// Ends everything.
    stop: CancellationToken,
    /// Somebody wants the end.
    stop_asked: CancellationToken,
    tasks: TaskTracker,
}

struct Mappings {
    table: Table,
    entries: BTreeMap<IpAddr, Arc<Mapping>>,
}

/// A connection that was let in.
pub(crate) struct Guest {
    pub(crate) client: Client,
    /// Whether its owner may use the gateway.
    pub(crate) permission: Result<(), Refusal>,
    pub(crate) slot: OwnedSemaphorePermit,
}

impl Gateway {
    /// Opens the doors.
    ///
    /// # Errors
    /// [`GatewayError`]; nothing is left behind then.
    pub async fn start(env: Env, network: Arc<dyn Pilot>, config: GatewayConfig) -> Result<Self, GatewayError> {
        let open = |what: &'static str, addr: Option<SocketAddr>| -> Result<Option<TcpListener>, GatewayError> {
            let Some(addr) = addr else { return Ok(None) };
            if !config.allow_remote && !addr.ip().is_loopback() {
                return Err(GatewayError::Remote { what, addr });
            }
            env.tcp_listen(addr).map(Some).map_err(|source| GatewayError::Listen { what, addr, source })
        };
        // First, so that a second gateway of this user changes nothing before it notices.
        let control = match &config.control {
            None => None,
            Some(path) => Some(control::listen(&env, path)?),
        };
        let socks5 = open("--socks5", config.socks5)?;
        let http_proxy = open("--http-proxy", config.http_proxy)?;
        let bound = |listener: &Option<TcpListener>| listener.as_ref().and_then(|listener| listener.local_addr().ok());
        let allow = (config.allow_remote, config.allow_users);
        let shared = Arc::new(Shared {
            dialer: Dialer::new(env.clone(), network, config.dial_limit),
            http_proxy: bound(&http_proxy),
            socks5: bound(&socks5),
            mappings: Mutex::new(Mappings { table: Table::new(config.subnet), entries: BTreeMap::new() }),
            changing: tokio::sync::Mutex::default(),
            aliases: Aliases::default(),
            doorman: Doorman::new(env.clone(), &config.users, allow, config.max_connections),
            lines: Throttle::default(),
            last_error: Mutex::default(),
            stop: CancellationToken::new(),
            stop_asked: CancellationToken::new(),
            tasks: TaskTracker::new(),
            env,
            config,
        });
        shared.aliases.adopt(&shared.env, shared.config.subnet).await;
        if let Some(listener) = socks5 {
            shared.open_door(listener, shared.stop.clone(), socks::serve);
        }
        if let Some(listener) = http_proxy {
            shared.open_door(listener, shared.stop.clone(), http::serve);
        }
        if let Some(listener) = control {
            shared.spawn(control::serve(shared.clone(), listener));
        }
        Ok(Self { shared })
    }

    /// Where SOCKS5 is served.
    pub fn socks5_addr(&self) -> Option<SocketAddr> {
        self.shared.socks5
    }

    /// Where the HTTP proxy is served.
    pub fn http_proxy_addr(&self) -> Option<SocketAddr> {
        self.shared.http_proxy
    }

    /// Gives an agent (an address or a hostname) an address of this host: the one asked for, or the next free one. An agent
    /// that has one keeps it.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub async fn map(&self, target: &str, ip: Option<IpAddr>) -> Result<Value, GatewayError> {
        self.shared.map(target, ip).await
    }

    /// Takes an address back. Connections that stand go on.
    ///
    /// # Errors
    /// [`GatewayError`].
    pub async fn unmap(&self, ip: IpAddr) -> Result<Value, GatewayError> {
        self.shared.unmap(ip).await
    }

    /// What there is: `mappings`, `total`, `subnet`, `socks5`, `http_proxy`, `pid`, and figures.
    pub fn list(&self) -> Value {
        self.shared.list()
    }

    /// Waits until somebody has asked for the end over the control socket.
    pub async fn stop_asked(&self) {
        self.shared.stop_asked.cancelled().await;
    }

    /// Closes the doors, ends all connections and takes added addresses away.
    pub async fn shutdown(self) {
        let shared = &self.shared;
        shared.stop.cancel();
        shared.tasks.close();
        // Changes of mappings are among them, so that none is half made when the addresses go.
        shared.tasks.wait().await;
        shared.dialer.settle().await;
        shared.aliases.clear().await;
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.shared.stop.cancel();
    }
}

impl Shared {
    /// Runs work until the gateway ends.
    pub(crate) fn spawn(self: &Arc<Self>, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let _ = stop.run_until_cancelled(work).await;
        });
    }

    /// The agent that a host of a proxy request names, or whose address here it is.
    pub(crate) fn destination(&self, host: &str) -> Result<Destination, Refusal> {
        match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(ip) => self.destination_of(ip),
            Err(_) => Ok(host.parse::<Destination>()?),
        }
    }

    /// The agent that has an address of this host.
    pub(crate) fn destination_of(&self, ip: IpAddr) -> Result<Destination, Refusal> {
        let agent = self.mappings.lock().table.agent(ip);
        agent.map(Destination::Address).ok_or_else(|| {
            let message = format!("{ip} is mapped to no agent, and this gateway leads nowhere else");
            let hint = "let the proxy resolve names (curl: --socks5-hostname or socks5h://), or map the agent";
            Refusal::new(Cause::Foreign, message, hint)
        })
    }

    /// Keeps in mind what went wrong last.
    pub(crate) fn refused(&self, refusal: &Refusal) {
        self.note(Some(refusal.cause), &refusal.message, "a connection was refused");
        *self.last_error.lock() = Some(refusal.message.clone());
    }

    /// A line about a connection that failed: one of each, unless it is those of somebody else, who could fill a disk.
    pub(crate) fn note(&self, cause: Option<Cause>, why: &str, what: &'static str) {
        let others = if cause == Some(Cause::Forbidden) { self.lines.pass(self.env.now()) } else { Some(0) };
        if let Some(others) = others {
            tracing::info!(why, others, "{what}");
        }
    }

    /// Work that is finished also when whoever wanted it has gone, or the gateway ends.
    async fn finish<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, GatewayError>> + Send + 'static,
    ) -> Result<T, GatewayError> {
        self.tasks.spawn(work).await.unwrap_or(Err(GatewayError::Stopping))
    }

    /// Accepts connections until `until`.
    fn open_door<F>(
        self: &Arc<Self>,
        listener: TcpListener,
        until: CancellationToken,
        serve: impl Fn(Arc<Self>, Guest) -> F + Send + Sync + Clone + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let shared = self.clone();
        self.tasks.spawn(async move {
            loop {
                let next = async {
                    let accepted = listener.accept().await;
                    (accepted, shared.doorman.turn().await)
                };
                let Some((accepted, Some(turn))) = until.run_until_cancelled(next).await else { return };
                match accepted {
                    Ok(stream) => {
                        let (shared, serve) = (shared.clone(), serve.clone());
                        shared.clone().spawn(async move {
                            match shared.doorman.admit((stream.peer_addr(), stream.local_addr()), turn).await {
                                Ok(Entry { permission, place }) => {
                                    let activity = Activity::new(shared.env.clone(), shared.config.idle_limit);
                                    let client = Client::new(stream, activity);
                                    serve(shared, Guest { client, permission, slot: place }).await;
                                }
                                Err(why) => {
                                    *shared.last_error.lock() = Some(why);
                                    stream.reset_on_drop();
                                }
                            }
                        });
                    }
                    Err(error) => {
                        drop(turn);
                        if let Some(others) = shared.lines.pass(shared.env.now()) {
                            tracing::warn!(%error, others, "cannot accept a connection");
                        }
                        shared.env.sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }

    pub(crate) async fn map(self: &Arc<Self>, target: &str, asked: Option<IpAddr>) -> Result<Value, GatewayError> {
        let address = self.find(target).await?;
        let (shared, target) = (self.clone(), target.to_owned());
        self.finish(async move { shared.put(address, &target, asked).await }).await
    }

    async fn put(
        self: &Arc<Self>,
        address: Address,
        target: &str,
        asked: Option<IpAddr>,
    ) -> Result<Value, GatewayError> {
        let _changing = self.changing.lock().await;
        if self.stop.is_cancelled() {
            return Err(GatewayError::Stopping);
        }
        let (ip, new) = self.mappings.lock().table.map(address, asked)?;
        if !new && let Some(mapping) = self.mappings.lock().entries.get(&ip) {
            return Ok(mapping.to_json());
        }
        match self.listen(ip, address, target).await {
            Ok(mapping) => {
                self.mappings.lock().entries.insert(ip, mapping.clone());
                Ok(mapping.to_json())
            }
            Err(error) => {
                // It was just put there, and nobody else changes the table now.
                let _ = self.mappings.lock().table.unmap(ip);
                self.aliases.remove(ip).await;
                Err(error)
            }
        }
    }

    /// Adds the address to this host and listens on its ports.
    async fn listen(
        self: &Arc<Self>,
        ip: IpAddr,
        address: Address,
        target: &str,
    ) -> Result<Arc<Mapping>, GatewayError> {
        let listened = |mapping: &Arc<Mapping>| mapping.ports.len() + mapping.failed.len();
        let listened: usize = self.mappings.lock().entries.values().map(listened).sum();
        if listened + self.config.ports.len() > MAX_LISTENED {
            return Err(GatewayError::Ports);
        }
        self.aliases.add(ip).await.map_err(|why| GatewayError::Alias { ip, why })?;
        let mut mapping = Mapping::new(ip, address, target, self.stop.child_token());
        let mut listeners = Vec::new();
        for pair in &self.config.ports {
            match self.env.tcp_listen(SocketAddr::new(ip, pair.local)) {
                Ok(listener) => {
                    listeners.push((*pair, listener));
                    mapping.ports.push(*pair);
                }
                Err(error) => mapping.failed.push((*pair, why_not(pair.local, &error))),
            }
        }
        if listeners.is_empty() {
            let why: Vec<String> = mapping.failed.iter().map(|(pair, why)| format!("{}: {why}", pair.local)).collect();
            return Err(GatewayError::NoPort { ip, why: why.join("; ") });
        }
        for (pair, why) in &mapping.failed {
            tracing::warn!(%ip, port = pair.local, why, "a port of a mapped address is not served");
        }
        let mapping = Arc::new(mapping);
        for (pair, listener) in listeners {
            let served = mapping.clone();
            self.open_door(listener, mapping.stop.clone(), move |shared, guest| {
                served.clone().serve(shared, pair, guest)
            });
        }
        Ok(mapping)
    }

    pub(crate) async fn unmap(self: &Arc<Self>, ip: IpAddr) -> Result<Value, GatewayError> {
        let shared = self.clone();
        self.finish(async move { shared.take(ip).await }).await
    }

    async fn take(&self, ip: IpAddr) -> Result<Value, GatewayError> {
        let _changing = self.changing.lock().await;
        let (address, mapping) = {
            let mut mappings = self.mappings.lock();
            (mappings.table.unmap(ip)?, mappings.entries.remove(&ip))
        };
        if let Some(mapping) = mapping {
            mapping.stop.cancel();
        }
        self.aliases.remove(ip).await;
        Ok(json!({ "unmapped": ip.to_string(), "pilot_addr": address.to_string() }))
    }

    /// The address of what a person wrote: an address, a hostname with or without `.pilot`.
    async fn find(&self, target: &str) -> Result<Address, GatewayError> {
        let destination = match target.parse::<Destination>() {
            Err(NameError::Foreign(_)) if !target.contains(['.', ':']) => format!("{target}.pilot").parse(),
            other => other,
        };
        let destination = destination.map_err(|error| GatewayError::Target(error.to_string()))?;
        self.dialer.resolve(&destination).await.map_err(|refusal| match refusal.cause {
            Cause::Daemon | Cause::TimedOut | Cause::Unreachable => GatewayError::Unreachable(refusal.message),
            _ => GatewayError::Target(refusal.message),
        })
    }

    pub(crate) fn list(&self) -> Value {
        let mappings: Vec<Value> = self.mappings.lock().entries.values().map(|mapping| mapping.to_json()).collect();
        let text = |addr: Option<SocketAddr>| addr.map(|addr| addr.to_string());
        json!({
            "total": mappings.len(),
            "mappings": mappings,
            "subnet": self.config.subnet.to_string(),
            "socks5": text(self.socks5),
            "http_proxy": text(self.http_proxy),
            "pid": std::process::id(),
            "connections": self.doorman.connections(),
            "max_connections": self.config.max_connections,
            "turned_away": self.doorman.turned_away(),
            "last_error": *self.last_error.lock(),
        })
    }

    pub(crate) fn ask_to_stop(&self) {
        self.stop_asked.cancel();
    }
}

fn why_not(port: u16, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied if port < 1024 => "ports below 1024 need root".to_owned(),
        io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
        _ => error.to_string(),
    }
}
