//! The gateway as a whole: its doors, who may use them, and what it can be told while it runs.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pilot::Pilot;
use pilot_env::{Env, NetStream, TcpListener};
use pilot_wire::gateway::name::Destination;
use pilot_wire::{Address, gateway::name::NameError};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::alias::Aliases;
use crate::control;
use crate::dial::{Cause, Dialer, Refusal};
use crate::error::GatewayError;
use crate::mapped::Mapping;
use crate::ports::PortPair;
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
    pub(crate) http_proxy: Option<SocketAddr>,
    socks5: Option<SocketAddr>,
    config: GatewayConfig,
    mappings: Mutex<Mappings>,
    /// Held while mappings change, which takes the system some time.
    changing: tokio::sync::Mutex<()>,
    aliases: Aliases,
    slots: Arc<Semaphore>,
    turned_away: AtomicU64,
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
    pub async fn start(env: Env, network: Arc<dyn Pilot>, mut config: GatewayConfig) -> Result<Self, GatewayError> {
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
        config.users.sort_unstable();
        let shared = Arc::new(Shared {
            dialer: Dialer::new(env.clone(), network, config.dial_limit),
            http_proxy: bound(&http_proxy),
            socks5: bound(&socks5),
            mappings: Mutex::new(Mappings { table: Table::new(config.subnet), entries: BTreeMap::new() }),
            changing: tokio::sync::Mutex::default(),
            aliases: Aliases::default(),
            slots: Arc::new(Semaphore::new(config.max_connections)),
            turned_away: AtomicU64::new(0),
            last_error: Mutex::default(),
            stop: CancellationToken::new(),
            stop_asked: CancellationToken::new(),
            tasks: TaskTracker::new(),
            env,
            config,
        });
        shared.aliases.adopt(shared.config.subnet).await;
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
        // No mapping is half made when the addresses go.
        let _changing = shared.changing.lock().await;
        shared.tasks.close();
        shared.tasks.wait().await;
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
        tracing::info!(why = refusal.message, "a connection was refused");
        *self.last_error.lock() = Some(refusal.message.clone());
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
                let accepted = tokio::select! {
                    () = until.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok(stream) => {
                        let Some((stream, slot)) = shared.admit(stream) else { continue };
                        let (shared, serve) = (shared.clone(), serve.clone());
                        shared.clone().spawn(async move {
                            let permission = shared.permission(stream.peer_addr(), stream.local_addr()).await;
                            let activity = Activity::new(shared.env.clone(), shared.config.idle_limit);
                            serve(shared, Guest { client: Client::new(stream, activity), permission, slot }).await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        shared.env.sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
    }

    /// A place for a connection, unless it comes from elsewhere or there are too many.
    fn admit(&self, stream: NetStream) -> Option<(NetStream, OwnedSemaphorePermit)> {
        let (peer, own) = (stream.peer_addr(), stream.local_addr());
        let why = match self.slots.clone().try_acquire_owned() {
            Ok(slot) if self.config.allow_remote || is_local(peer, own) => return Some((stream, slot)),
            Ok(_) => format!("{peer} is another machine; --allow-remote would let it in"),
            Err(_) => format!("{} connections are open, which is the limit", self.config.max_connections),
        };
        self.turned_away.fetch_add(1, Ordering::Relaxed);
        tracing::warn!(%peer, why, "a connection was turned away");
        *self.last_error.lock() = Some(why);
        stream.reset_on_drop();
        None
    }

    /// Whether the owner of a connection may use the gateway: the daemon behind it serves its own user only.
    async fn permission(&self, peer: SocketAddr, own: SocketAddr) -> Result<(), Refusal> {
        if self.config.allow_users || !is_local(peer, own) {
            return Ok(());
        }
        let env = self.env.clone();
        let owner = tokio::task::spawn_blocking(move || env.tcp_user(peer, own)).await;
        let whose = match owner {
            Ok(Ok(Some(user))) if user == 0 || self.config.users.contains(&user) => return Ok(()),
            Ok(Ok(Some(user))) => format!("the connection belongs to user {user}"),
            Ok(Ok(None)) => "the system does not tell whose the connection is".to_owned(),
            Ok(Err(error)) => format!("the system does not tell whose the connection is: {error}"),
            Err(_) => "the gateway is stopping".to_owned(),
        };
        Err(Refusal::new(
            Cause::Forbidden,
            format!("{whose}, and this gateway serves user {} only", self.config.users.first().copied().unwrap_or(0)),
            "start it with --allow-users to let every user of this host in",
        ))
    }

    pub(crate) async fn map(self: &Arc<Self>, target: &str, asked: Option<IpAddr>) -> Result<Value, GatewayError> {
        let address = self.find(target).await?;
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

    pub(crate) async fn unmap(&self, ip: IpAddr) -> Result<Value, GatewayError> {
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
        let open = self.config.max_connections.saturating_sub(self.slots.available_permits());
        json!({
            "total": mappings.len(),
            "mappings": mappings,
            "subnet": self.config.subnet.to_string(),
            "socks5": text(self.socks5),
            "http_proxy": text(self.http_proxy),
            "pid": std::process::id(),
            "connections": open,
            "max_connections": self.config.max_connections,
            "turned_away": self.turned_away.load(Ordering::Relaxed),
            "last_error": *self.last_error.lock(),
        })
    }

    pub(crate) fn ask_to_stop(&self) {
        self.stop_asked.cancel();
    }
}

/// Whether a connection comes from this host: from a loopback address, or from the very address it goes to, as the kernel
/// chooses for an address of our own. (Linux takes packets for every own address from every interface.)
fn is_local(peer: SocketAddr, own: SocketAddr) -> bool {
    peer.ip().is_loopback() || peer.ip() == own.ip()
}

fn why_not(port: u16, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied if port < 1024 => "ports below 1024 need root".to_owned(),
        io::ErrorKind::AddrInUse => "another program listens there".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_is_local() {
        let is = |peer: &str, own: &str| is_local(peer.parse().unwrap(), own.parse().unwrap());
        assert!(is("127.0.0.1:5", "127.4.0.1:80") && is("10.4.0.1:5", "10.4.0.1:80") && is("[::1]:5", "[::1]:80"));
        assert!(!is("10.4.0.2:5", "10.4.0.1:80") && !is("192.0.2.7:5", "127.0.0.1:80"));
    }
}
