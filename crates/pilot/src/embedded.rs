//! A node inside the program, behind the same interface as a daemon's.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::BoxFuture;
use pilot_env::Env;
use pilot_node::{
    DirectoryError, HalfClose, Node, NodeConfig, NodeDatagrams, NodeError, NodeListener, NodeStream, TrustFailed,
};
use pilot_wire::{Address, SocketAddress};
use serde_json::{Value, json};
use tokio::io::{AsyncRead as _, AsyncWrite as _, DuplexStream, ReadBuf};
use tokio::time::Sleep;

use crate::datagram::Datagram;
use crate::error::{CloseReason, Error, HalfCloseLack, StreamError};
use crate::extended::events::Events;
use crate::listener::{Door, Listener};
use crate::pilot::Pilot;
use crate::stream::{Channel, Stream};

/// Most bytes taken from a stream at once.
const READ_CHUNK: usize = 64 * 1024;
/// Longest wait for one member, when a datagram goes to everybody in a network.
const MEMBER_WAIT: Duration = Duration::from_secs(10);
/// Pause before a peer that is new is asked again what it can do; it says so within a second of the first contact.
const GREETING_PAUSE: Duration = Duration::from_millis(20);

/// A node inside this program: no daemon, no local socket, one process.
///
/// It derefs to the [`Node`], which offers more.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use pilot::{Embedded, Pilot};
/// use pilot::node::NodeConfig;
///
/// let config = NodeConfig { identity: Some("agent/identity.key".into()), ..NodeConfig::default() };
/// let network = Embedded::start(config).await?;
/// println!("this program is {}", Pilot::address(&network).await?);
/// let listener = network.listen(1000).await?;
/// let stream = listener.accept().await?;
/// println!("{} connected", stream.peer_addr());
/// network.shutdown(std::time::Duration::from_secs(5)).await;
/// # Ok(()) }
/// ```
pub struct Embedded {
    node: Node,
    datagrams: NodeDatagrams,
}

impl fmt::Debug for Embedded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Embedded").field("address", &self.node.address()).finish_non_exhaustive()
    }
}

impl Deref for Embedded {
    type Target = Node;

    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Embedded {
    /// Starts a node.
    ///
    /// ```no_run
    /// # async fn example(config: pilot::node::NodeConfig) -> Result<(), Box<dyn std::error::Error>> {
    /// let node = pilot::Embedded::start(config).await?;
    /// println!("on the network as {}", node.address());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`NodeError`] says what is wrong and what to do.
    pub async fn start(config: NodeConfig) -> Result<Self, NodeError> {
        Self::new(Node::start(Env::real(), config).await?)
    }

    /// Uses a node that runs.
    ///
    /// ```no_run
    /// # async fn example(node: pilot::node::Node) -> Result<(), Box<dyn std::error::Error>> {
    /// // A node that this program has set up in its own way, and looks at through the common interface.
    /// let network = pilot::Embedded::new(node)?;
    /// println!("{}", pilot::Pilot::info(&network).await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// When all 16,384 source ports of datagrams of the node are taken; each `Embedded` takes one.
    pub fn new(node: Node) -> Result<Self, NodeError> {
        let none = || NodeError::Config("every source port for datagrams of this node is taken".to_owned());
        let datagrams = node.datagrams().ok_or_else(none)?;
        Ok(Self { node, datagrams })
    }

    /// Datagrams dropped because [`recv_from`](Pilot::recv_from) was not called in time.
    ///
    /// ```no_run
    /// # fn example(node: pilot::Embedded) {
    /// println!("{} datagrams came too fast", node.datagrams_dropped());
    /// # }
    /// ```
    pub fn datagrams_dropped(&self) -> u64 {
        self.datagrams.dropped()
    }

    /// Ends the node in order; see [`Node::shutdown`].
    ///
    /// ```no_run
    /// # async fn example(node: pilot::Embedded) -> Result<(), Box<dyn std::error::Error>> {
    /// // Streams get five seconds to hand over what was written.
    /// node.shutdown(std::time::Duration::from_secs(5)).await;
    /// # Ok(()) }
    /// ```
    pub async fn shutdown(self, deadline: Duration) {
        let Self { node, datagrams } = self;
        drop(datagrams);
        node.shutdown(deadline).await;
    }

    fn local(&self, port: u16) -> SocketAddress {
        SocketAddress::new(self.node.address(), port)
    }
}

fn refused(op: &'static str, code: &str, message: impl fmt::Display, hint: impl Into<String>) -> Error {
    let hint = Some(hint.into()).filter(|hint| !hint.is_empty());
    Error::Refused { op, code: code.to_owned(), message: message.to_string(), hint }
}

fn directory(op: &'static str) -> impl Fn(DirectoryError) -> Error {
    move |error| {
        let hint = match error {
            DirectoryError::Unavailable(_) | DirectoryError::NotRegistered => {
                "the registry is not reachable: check its address, and that it runs"
            }
            _ => "",
        };
        refused(op, error.code(), &error, hint)
    }
}

fn trust(op: &'static str) -> impl Fn(TrustFailed) -> Error {
    move |error| refused(op, error.code(), &error, "")
}

fn call(op: &'static str) -> impl Fn(pilot_services::CallError) -> Error {
    move |error| refused(op, &error.code, &error.message, error.hint.as_str())
}

#[async_trait]
impl Pilot for Embedded {
    async fn address(&self) -> Result<Address, Error> {
        Ok(self.node.address())
    }

    async fn dial(&self, to: SocketAddress) -> Result<Stream, Error> {
        let dialled = self.node.dial(to).await;
        let stream = dialled.map_err(|error| refused("dial", error.code(), &error, error.hint()))?;
        let (local, peer) = (self.local(stream.local_addr().port), stream.remote_addr());
        Ok(Stream::new(Box::new(NodeChannel::new(stream)), local, peer))
    }

    async fn listen(&self, port: u16) -> Result<Listener, Error> {
        let bound = self.node.listen_with(port, &self.datagrams);
        let listener = bound.map_err(|error| refused("bind", error.code(), error, error.hint()))?;
        Ok(Listener::new(Box::new(NodeDoor(Some(listener))), self.local(port)))
    }

    async fn send_to(&self, to: SocketAddress, data: &[u8]) -> Result<(), Error> {
        if to.addr.is_broadcast() && to.addr.network != 0 {
            let sent = self.node.send_to_members(to, MEMBER_WAIT, &self.datagrams, data).await;
            return sent.map_err(call("sendto"));
        }
        self.datagrams.send_to(to, data).map_err(|error| refused("sendto", error.code(), &error, error.hint()))
    }

    async fn recv_from(&self) -> Result<Datagram, Error> {
        let pilot_node::NodeDatagram { from, port, data } = self.datagrams.recv().await;
        Ok(Datagram { from, port, data })
    }

    // From the own port, so that answers come to `recv_from`.
    async fn broadcast(&self, network: u16, port: u16, data: &[u8], limit: Duration) -> Result<Value, Error> {
        self.node.broadcast(network, port, limit, &self.datagrams, data).await.map_err(call("broadcast"))
    }

    async fn info(&self) -> Result<Value, Error> {
        Ok(self.node.info())
    }

    async fn health(&self) -> Result<Value, Error> {
        Ok(self.node.health())
    }

    async fn resolve_hostname(&self, hostname: &str) -> Result<Value, Error> {
        self.node.resolve_hostname(hostname).await.map_err(directory("resolve_hostname"))
    }

    async fn set_hostname(&self, hostname: &str) -> Result<Value, Error> {
        self.node.set_hostname(hostname).await.map_err(directory("set_hostname"))
    }

    async fn set_visibility(&self, public: bool) -> Result<Value, Error> {
        self.node.set_visibility(public).await.map_err(directory("set_visibility"))
    }

    async fn set_tags(&self, tags: &[&str]) -> Result<Value, Error> {
        let tags: Vec<String> = tags.iter().map(|tag| (*tag).to_owned()).collect();
        self.node.set_tags(tags).await.map_err(directory("set_tags"))
    }

    async fn handshake(&self, node: u32, justification: &str) -> Result<Value, Error> {
        self.node.trust().request(node, justification.to_owned()).await.map_err(trust("handshake"))?;
        Ok(json!({ "node_id": node, "status": "sent" }))
    }

    async fn approve(&self, node: u32) -> Result<Value, Error> {
        self.node.trust().approve(node).await.map_err(trust("approve"))?;
        Ok(json!({ "node_id": node, "status": "approved" }))
    }

    async fn reject(&self, node: u32, reason: &str) -> Result<Value, Error> {
        self.node.trust().reject(node, reason.to_owned()).await.map_err(trust("reject"))?;
        Ok(json!({ "node_id": node, "status": "rejected" }))
    }

    async fn revoke(&self, node: u32) -> Result<Value, Error> {
        match self.node.trust().revoke(node).await.map_err(trust("revoke"))? {
            true => Ok(json!({ "node_id": node, "status": "revoked" })),
            false => Err(refused("revoke", "not_trusted", format!("node {node} was not trusted"), "")),
        }
    }

    async fn pending(&self) -> Result<Value, Error> {
        Ok(json!({ "pending": self.node.trust().pending() }))
    }

    async fn trusted(&self) -> Result<Value, Error> {
        Ok(json!({ "trusted": self.node.trust().trusted() }))
    }

    async fn wait_trusted(&self, node: u32, limit: Duration) -> Result<Value, Error> {
        let limit = limit.min(Duration::from_millis(u64::from(pilot_wire::ipc::MAX_HANDSHAKE_WAIT_MS)));
        Ok(json!({ "node_id": node, "trusted": self.node.trust().wait(node, limit).await }))
    }

    async fn sign_request(&self, audience: &str, body_hash: &[u8; 32]) -> Result<Value, Error> {
        const OP: &str = "sign_request";
        self.node.sign_request(audience, body_hash).map_err(|why| refused(OP, "invalid_argument", why, ""))
    }

    async fn verify_request(
        &self,
        envelope: &str,
        signature: &str,
        max_skew: Option<Duration>,
    ) -> Result<Value, Error> {
        const OP: &str = "verify_request";
        let verdict = self.node.verify_request(envelope, signature, max_skew).await;
        verdict.map_err(|why| refused(OP, "connection_failed", why, ""))
    }

    async fn call(&self, method: &str, params: &Value) -> Result<Value, Error> {
        self.node.call(method, params.clone()).await.map_err(call("call"))
    }

    async fn open(&self, method: &str, params: &Value) -> Result<Stream, Error> {
        let stream = self.node.open_local(method, params.clone()).await.map_err(call("open"))?;
        Ok(Stream::new(
            Box::new(ServiceChannel { io: stream, written: 0, reason: None }),
            self.local(0),
            SocketAddress::default(),
        ))
    }

    async fn events(&self, kinds: &[&str]) -> Result<Events, Error> {
        Ok(Events::of_node(self.node.events(), kinds))
    }
}

/// A listener of the node.
struct NodeDoor(Option<NodeListener>);

impl Door for NodeDoor {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let Some(listener) = &self.0 else { return Poll::Ready(Err(Error::ListenerClosed)) };
        listener.poll_accept(cx).map(|stream| {
            let (local, peer) = (stream.local_addr(), stream.remote_addr());
            Ok(Stream::new(Box::new(NodeChannel::new(stream)), local, peer))
        })
    }

    fn lost(&self) -> BoxFuture<'_, Error> {
        Box::pin(std::future::pending())
    }

    fn close(&mut self) -> BoxFuture<'static, ()> {
        // Dropping it frees the port.
        self.0 = None;
        Box::pin(std::future::ready(()))
    }
}

/// The reason of a stream of the node, by its stable name.
fn told(code: &str) -> CloseReason {
    CloseReason::from_code(code)
}

/// An error of the node's stream with the reason inside.
fn explain(stream: &NodeStream, error: io::Error) -> io::Error {
    match stream.close_reason() {
        Some(reason) => StreamError::Ended(told(reason.code())).io(),
        None => error,
    }
}

/// A stream of the node.
struct NodeChannel {
    stream: NodeStream,
    written: u64,
    shut: bool,
    /// Until the peer has said whether it knows half-close.
    pause: Option<Pin<Box<Sleep>>>,
}

impl NodeChannel {
    fn new(stream: NodeStream) -> Self {
        Self { stream, written: 0, shut: false, pause: None }
    }
}

/// Reads at most [`READ_CHUNK`] bytes behind what is in `out`.
fn fill(out: &mut Vec<u8>, read: impl FnOnce(&mut ReadBuf<'_>) -> Poll<io::Result<()>>) -> Poll<io::Result<()>> {
    out.resize(READ_CHUNK, 0);
    let mut buf = ReadBuf::new(out);
    let result = read(&mut buf);
    let filled = buf.filled().len();
    out.truncate(filled);
    result
}

impl Channel for NodeChannel {
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<io::Result<()>> {
        let stream = &mut self.stream;
        let read = fill(out, |buf| Pin::new(&mut *stream).poll_read(cx, buf));
        read.map_err(|error| explain(stream, error))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.shut {
            return Poll::Ready(Err(StreamError::Closed.io()));
        }
        let written = ready!(Pin::new(&mut self.stream).poll_write(cx, data));
        if let Ok(n) = written {
            self.written += n as u64;
        }
        Poll::Ready(written.map_err(|error| explain(&self.stream, error)))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shut = true;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_close_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shut {
            return Poll::Ready(Ok(()));
        }
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match self.stream.half_close() {
                HalfClose::Yes => return self.poll_shutdown(cx),
                HalfClose::No => {
                    return Poll::Ready(Err(StreamError::HalfCloseUnsupported(HalfCloseLack::Peer).io()));
                }
                HalfClose::Unknown => self.pause = Some(Box::pin(tokio::time::sleep(GREETING_PAUSE))),
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(self.poll_shutdown(cx))?;
        }
        self.poll_delivered(cx).map_ok(|_| ())
    }

    fn poll_delivered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        let delivered = ready!(self.stream.poll_delivered(cx, self.written));
        if delivered >= self.written {
            return Poll::Ready(Ok(delivered));
        }
        // It ended before.
        let reason = self.stream.close_reason().map_or(CloseReason::Local, |reason| told(reason.code()));
        Poll::Ready(Err(StreamError::Ended(reason).io()))
    }

    fn close_reason(&self) -> Option<CloseReason> {
        self.stream.close_reason().map(|reason| told(reason.code()))
    }

    fn delivered(&self) -> Option<u64> {
        Some(self.stream.delivered())
    }

    fn id(&self) -> u32 {
        self.stream.id()
    }
}

/// A stream to a service of the node.
struct ServiceChannel {
    io: DuplexStream,
    written: u64,
    reason: Option<CloseReason>,
}

impl Channel for ServiceChannel {
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<io::Result<()>> {
        let io = &mut self.io;
        let read = fill(out, |buf| Pin::new(io).poll_read(cx, buf));
        if matches!(read, Poll::Ready(Ok(()))) && out.is_empty() {
            self.reason = Some(CloseReason::Clean);
        }
        read
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(cx, data));
        self.written += *written.as_ref().unwrap_or(&0) as u64;
        Poll::Ready(written)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_close_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_shutdown(cx)
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_shutdown(cx)
    }

    fn close_reason(&self) -> Option<CloseReason> {
        self.reason
    }

    fn delivered(&self) -> Option<u64> {
        None
    }

    fn poll_delivered(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        // Within one process there is nothing on the way that could be lost.
        Poll::Ready(Ok(self.written))
    }

    fn id(&self) -> u32 {
        0
    }
}
