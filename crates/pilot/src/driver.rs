//! The connection of an application to its daemon.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pilot_env::Env;
use pilot_wire::ipc::{HandshakeCommand, NetworkCommand, Request, text};
use pilot_wire::{SocketAddress, json};
use serde_json::Value;

use crate::datagram::{Datagram, DatagramQueue, Feed};
use crate::error::{Error, system_text};
use crate::link::{Link, Reply, Transport};
use crate::listener::Listener;
use crate::stream::Stream;

/// Where a daemon listens unless told otherwise (03 §1).
pub const DEFAULT_SOCKET: &str = "/tmp/pilot.sock";
/// The environment variable that names another socket.
pub const SOCKET_VARIABLE: &str = "PILOT_SOCKET";

/// An application's connection to the daemon of its host. Cheap to clone; clones share it.
///
/// Every dialled stream and every listener has a socket of its own. So a slow reader holds back only its own peer, a
/// dial that takes long delays nothing else, and closing a listener frees its port on every daemon. Only the streams
/// accepted from one listener share a socket.
///
/// Works with every official daemon. Nothing here has a time limit except where it is said: wrap calls in
/// [`tokio::time::timeout`]; a dial that is dropped is given up by the daemon.
#[derive(Clone)]
pub struct Driver {
    inner: Arc<Inner>,
}

struct Inner {
    /// Opens further sockets; absent over a transport the caller brought.
    connector: Option<Connector>,
    control: Link,
    datagrams: Arc<DatagramQueue>,
    /// The daemon does not know the confirmed datagram.
    plain_datagrams: AtomicBool,
}

struct Connector {
    env: Env,
    path: PathBuf,
}

impl Connector {
    async fn connect(&self) -> Result<Link, Error> {
        match self.env.unix_connect(&self.path).await {
            Ok(stream) => Ok(Link::start(stream)),
            Err(error) => Err(Error::Connect { path: self.path.display().to_string(), why: system_text(&error) }),
        }
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.inner.connector.as_ref().map(|connector| &connector.path);
        f.debug_struct("Driver").field("path", &path).finish_non_exhaustive()
    }
}

impl Driver {
    /// Connects to the daemon at `PILOT_SOCKET`, or at `/tmp/pilot.sock`.
    ///
    /// # Errors
    /// [`Error::Connect`] when no daemon answers there.
    pub async fn connect_default() -> Result<Self, Error> {
        let path = std::env::var_os(SOCKET_VARIABLE).filter(|path| !path.is_empty());
        Self::connect(path.map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from)).await
    }

    /// Connects to the daemon at a socket.
    ///
    /// # Errors
    /// [`Error::Connect`] when no daemon answers there.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_in(Env::real(), path).await
    }

    /// As [`connect`](Self::connect), in an environment that may be a simulated one.
    ///
    /// # Errors
    /// [`Error::Connect`] when no daemon answers there.
    pub async fn connect_in(env: Env, path: impl AsRef<Path>) -> Result<Self, Error> {
        let connector = Connector { env, path: path.as_ref().to_path_buf() };
        let control = connector.connect().await?;
        Ok(Self::new(Some(connector), control))
    }

    /// Uses a connected transport, over which everything then goes: with one socket, a slow reader can hold back
    /// the others (up to 32 MiB are kept unread), and a listener's port stays bound on old daemons.
    pub fn over(transport: impl Transport) -> Self {
        Self::new(None, Link::start(transport))
    }

    fn new(connector: Option<Connector>, control: Link) -> Self {
        let datagrams = Arc::new(DatagramQueue::default());
        control.set_datagrams(Feed::control(Arc::clone(&datagrams)));
        Self { inner: Arc::new(Inner { connector, control, datagrams, plain_datagrams: AtomicBool::new(false) }) }
    }

    async fn link(&self) -> Result<Link, Error> {
        match &self.inner.connector {
            Some(connector) => connector.connect().await,
            None => Ok(self.inner.control.clone()),
        }
    }

    // --- Streams -------------------------------------------------------------------------------------------------

    /// Opens a stream to a port of a peer. The daemon gives up by itself after about half a minute.
    ///
    /// # Errors
    /// [`Error::Daemon`] with the daemon's reason: `connection refused`, `dial timeout`, `resolve node N: …`.
    pub async fn dial(&self, to: SocketAddress) -> Result<Stream, Error> {
        let link = self.link().await?;
        match link.request("dial", &Request::Dial { remote: to }).await? {
            Reply::Dialled(conn, cell) => Ok(Stream::new(link, conn, 0, to, cell)),
            Reply::Json(_) | Reply::Done => Err(Error::InvalidDialResponse),
        }
    }

    /// Opens a stream to an address in text form, `N:NNNN.HHHH.LLLL:PORT`.
    ///
    /// # Errors
    /// [`Error::Address`], and as [`dial`](Self::dial).
    pub async fn dial_text(&self, to: &str) -> Result<Stream, Error> {
        self.dial(to.parse()?).await
    }

    /// As [`dial`](Self::dial), given up after `limit`.
    ///
    /// # Errors
    /// [`Error::Timeout`], and as [`dial`](Self::dial).
    pub async fn dial_timeout(&self, to: SocketAddress, limit: Duration) -> Result<Stream, Error> {
        tokio::time::timeout(limit, self.dial(to)).await.unwrap_or(Err(Error::Timeout { op: "dial" }))
    }

    /// Binds a port. Exactly that port: 0 is a port like any other. Datagrams to it come out of
    /// [`recv_from`](Self::recv_from); they share the listener's socket, so they wait, and get lost, behind an accepted
    /// stream that is not read.
    ///
    /// # Errors
    /// [`Error::Daemon`]: `port N already bound`.
    pub async fn listen(&self, port: u16) -> Result<Listener, Error> {
        let link = self.link().await?;
        if self.inner.connector.is_some() {
            link.set_datagrams(Feed::listener(Arc::clone(&self.inner.datagrams), port));
        }
        Listener::bind(link, port).await
    }

    // --- Datagrams -----------------------------------------------------------------------------------------------

    /// Sends a datagram. Daemons from 1.17 on say whether it has left; older ones do not, and what they refuse shows
    /// up in [`datagram_failure`](Self::datagram_failure) later.
    ///
    /// # Errors
    /// [`Error::Daemon`] with the daemon's reason, [`Error::TooLarge`] above the local frame.
    pub async fn send_to(&self, to: SocketAddress, data: &[u8]) -> Result<(), Error> {
        const OP: &str = "sendto";
        if !self.inner.plain_datagrams.load(Ordering::Relaxed) {
            let request = Request::SendToConfirm { to, data };
            match self.inner.control.request(OP, &request).await {
                Err(Error::Daemon { text, .. }) if text == text::unknown_command(request.opcode()) => {
                    self.inner.plain_datagrams.store(true, Ordering::Relaxed);
                }
                other => return other.map(|_| ()),
            }
        }
        self.inner.control.send(OP, &Request::SendTo { to, data })
    }

    /// The next datagram, whatever port it was sent to, those of this driver's listeners included. Cancel safe. Up to 256
    /// are kept; newer ones are dropped.
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the daemon is gone.
    pub async fn recv_from(&self) -> Result<Datagram, Error> {
        self.inner.datagrams.next().await
    }

    /// Why an earlier datagram was not sent, as far as an old daemon tells; each reason is given once.
    pub fn datagram_failure(&self) -> Option<String> {
        self.inner.datagrams.take_failure()
    }

    /// Datagrams dropped because [`recv_from`](Self::recv_from) was not called in time.
    pub fn datagrams_dropped(&self) -> u64 {
        self.inner.datagrams.dropped()
    }

    // --- Status and names ----------------------------------------------------------------------------------------

    async fn json(&self, op: &'static str, request: &Request<'_>) -> Result<Value, Error> {
        match self.inner.control.request(op, request).await? {
            Reply::Json(text) => json::parse(&text).map_err(|why| Error::Unmarshal { op, why: why.to_string() }),
            Reply::Done | Reply::Dialled(..) => Err(Error::Unmarshal { op, why: "not a JSON answer".into() }),
        }
    }

    /// The daemon's status (03 §8, 07 §12).
    ///
    /// # Errors
    /// As every request: [`Error::Daemon`], [`Error::Disconnected`], [`Error::Unmarshal`].
    pub async fn info(&self) -> Result<Value, Error> {
        self.json("info", &Request::Info).await
    }

    /// A short status; daemons from April 2026 on.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn health(&self) -> Result<Value, Error> {
        self.json("health", &Request::Health).await
    }

    /// The node behind a host name: `address`, `hostname`, `node_id`, `public`.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn resolve_hostname(&self, hostname: &str) -> Result<Value, Error> {
        self.json("resolve_hostname", &Request::ResolveHostname { hostname: hostname.into() }).await
    }

    /// Sets the own host name; the empty one clears it.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn set_hostname(&self, hostname: &str) -> Result<Value, Error> {
        self.json("set_hostname", &Request::SetHostname { hostname: hostname.into() }).await
    }

    /// Shows the endpoint to everybody, or only to trusted nodes.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn set_visibility(&self, public: bool) -> Result<Value, Error> {
        self.json("set_visibility", &Request::SetVisibility { public }).await
    }

    /// Takes the node off the registry; the daemon goes on and registers again later.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn deregister(&self) -> Result<Value, Error> {
        self.json("deregister", &Request::Deregister).await
    }

    /// Replaces the own tags, three at most; none clears them.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn set_tags(&self, tags: &[&str]) -> Result<Value, Error> {
        let tags = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self.json("set_tags", &Request::SetTags { tags }).await
    }

    /// Sets the address that events are posted to; the empty one turns them off.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn set_webhook(&self, url: &str) -> Result<Value, Error> {
        self.json("set_webhook", &Request::SetWebhook { url: url.into() }).await
    }

    /// Offers or withdraws task execution; daemons up to 1.9.1.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn set_task_exec(&self, enabled: bool) -> Result<Value, Error> {
        self.json("set_task_exec", &Request::SetTaskExec { enabled }).await
    }

    /// Network commands; daemons from April 2026 on.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn network(&self, command: NetworkCommand) -> Result<Value, Error> {
        self.json("network", &Request::Network(command)).await
    }

    /// Asks the daemon to reach a node directly rather than through the relay; daemons from 1.12.8 on.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn prefer_direct(&self, node: u32) -> Result<Value, Error> {
        self.json("prefer_direct", &Request::PreferDirect { node }).await
    }

    // --- Trust ---------------------------------------------------------------------------------------------------

    /// Asks a node for trust: `node_id`, `status` (`sent`). Says nothing about the answer: poll
    /// [`trusted`](Self::trusted), or [`wait_trusted`](Self::wait_trusted).
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn handshake(&self, node: u32, justification: &str) -> Result<Value, Error> {
        let justification = justification.into();
        self.json("handshake", &Request::Handshake(HandshakeCommand::Request { node, justification })).await
    }

    /// Grants a waiting request.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn approve(&self, node: u32) -> Result<Value, Error> {
        self.json("approve", &Request::Handshake(HandshakeCommand::Approve { node })).await
    }

    /// Refuses a waiting request.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn reject(&self, node: u32, reason: &str) -> Result<Value, Error> {
        self.json("reject", &Request::Handshake(HandshakeCommand::Reject { node, reason: reason.into() })).await
    }

    /// Requests that wait: `pending`, a list of `node_id`, `public_key`, `justification`, `received_at`.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn pending(&self) -> Result<Value, Error> {
        self.json("pending", &Request::Handshake(HandshakeCommand::Pending)).await
    }

    /// Trusted nodes: `trusted`, a list of `node_id`, `public_key`, `approved_at`, `mutual`, `network`.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn trusted(&self) -> Result<Value, Error> {
        self.json("trusted", &Request::Handshake(HandshakeCommand::Trusted)).await
    }

    /// Ends trust in a node.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn revoke(&self, node: u32) -> Result<Value, Error> {
        self.json("revoke", &Request::Handshake(HandshakeCommand::Revoke { node })).await
    }

    /// Waits until a node is trusted, at most half a minute: `node_id`, `trusted`. Daemons from 1.10.5 on.
    ///
    /// # Errors
    /// As [`info`](Self::info).
    pub async fn wait_trusted(&self, node: u32, limit: Duration) -> Result<Value, Error> {
        let millis = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX);
        self.json("handshake", &Request::Handshake(HandshakeCommand::Wait { node, millis })).await
    }
}
