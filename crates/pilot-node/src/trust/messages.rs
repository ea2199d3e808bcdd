//! Trust messages on their way: one message per stream on port 444, no answer on it (05 §3.2).

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilot_proto::endpoint::HalfClose;
use pilot_proto::trust::SendId;
use pilot_wire::handshake::{HandshakeError, MAX_LEN, Message};
use pilot_wire::json::JsonError;
use pilot_wire::{Address, SocketAddress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;

use crate::engine::{NodeListener, NodeStream};
use crate::node::Shared;

/// The port.
pub(super) const PORT: u16 = 444;
/// Time for a direct attempt; afterwards the registry relays.
const DIAL_TIMEOUT: Duration = Duration::from_secs(12);
/// Time for a message to arrive, either way (05 §3.3).
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Time that an official daemon has for reading a message before the stream ends (05 §3.2).
const READING_TIME: Duration = Duration::from_millis(500);
/// Time for the end of a stream whose message has arrived.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Streams of port 444 served at once; strangers may open them, so further ones are reset.
const STREAMS: usize = 256;

/// Messages going out. Those to one node keep their order; different nodes do not wait for each other.
#[derive(Default)]
pub(super) struct Outbox(Mutex<BTreeMap<u32, Queue>>);

/// Messages to one node, oldest first.
type Queue = Vec<(SendId, Vec<u8>)>;

impl Outbox {
    /// Sends a message and tells the service the outcome.
    pub(super) fn send(&self, node: &Arc<Shared>, id: SendId, peer: u32, message: Vec<u8>) {
        let mut queues = self.0.lock();
        let idle = !queues.contains_key(&peer);
        // The state machine has at most a few messages per node under way.
        queues.entry(peer).or_default().push((id, message));
        if idle {
            node.spawn(run(node.clone(), peer));
        }
    }

    /// Forgets a message whose turn has not come.
    pub(super) fn withdraw(&self, id: SendId, peer: u32) {
        if let Some(queue) = self.0.lock().get_mut(&peer) {
            queue.retain(|(queued, _)| *queued != id);
        }
    }

    fn next(&self, peer: u32) -> Option<(SendId, Vec<u8>)> {
        let mut queues = self.0.lock();
        let queue = queues.get_mut(&peer)?;
        if queue.is_empty() {
            queues.remove(&peer);
            return None;
        }
        Some(queue.remove(0))
    }
}

async fn run(node: Arc<Shared>, peer: u32) {
    while let Some((id, message)) = node.trust.outbox.next(peer) {
        let delivered = match tokio::time::timeout(DIAL_TIMEOUT, deliver(&node, peer, &message)).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                tracing::debug!(peer, %error, "trust message not delivered");
                false
            }
            Err(_) => {
                tracing::debug!(peer, "trust message not delivered in time");
                false
            }
        };
        node.trust.sent(id, delivered).await;
    }
}

/// Delivers one message: when this returns the peer's node has acknowledged it, and has had time to read it.
pub(super) async fn deliver(node: &Arc<Shared>, peer: u32, message: &[u8]) -> io::Result<()> {
    let remote = SocketAddress::new(Address::backbone(peer), PORT);
    let dial = node.engine.dial(remote).map_err(io::Error::other)?;
    let mut stream = dial.await.map_err(io::Error::other)?;
    stream.set_nodelay(true);
    stream.write_all(message).await?;
    let all = message.len() as u64;
    if std::future::poll_fn(|cx| stream.poll_delivered(cx, all)).await < all {
        return Err(io::Error::other("the stream ended before the message was acknowledged"));
    }
    if stream.half_close() != HalfClose::Yes {
        // Official daemons drop a message unread when the stream ends before they look (05 §3.3).
        tokio::time::sleep(READING_TIME).await;
    }
    // The message is there; how the stream ends says nothing of it.
    let ending = async {
        stream.shutdown().await?;
        while stream.read(&mut [0; 64]).await? > 0 {}
        io::Result::Ok(())
    };
    let _ = tokio::time::timeout(END_TIMEOUT, ending).await;
    Ok(())
}

/// Serves port 444.
pub(super) async fn serve(node: Arc<Shared>, listener: NodeListener) {
    let limit = Arc::new(Semaphore::new(STREAMS));
    loop {
        let mut stream = listener.accept().await;
        let Ok(permit) = limit.clone().try_acquire_owned() else {
            stream.reset();
            continue;
        };
        let serving = node.clone();
        node.spawn(async move {
            receive(&serving, &mut stream).await;
            drop(permit);
        });
    }
}

async fn receive(node: &Arc<Shared>, stream: &mut NodeStream) {
    let source = stream.remote_addr().addr.node;
    let text = match tokio::time::timeout(MESSAGE_TIMEOUT, read_message(stream)).await {
        Ok(Ok(text)) => text,
        Ok(Err(error)) => return tracing::debug!(source, %error, "port 444: no message"),
        Err(_) => return tracing::debug!(source, "port 444: no message in time"),
    };
    let key = node.engine.look(|core, now| {
        let info = core.endpoint.info(now);
        info.peers.iter().find(|peer| peer.node == source && peer.authenticated).and_then(|peer| peer.key)
    });
    node.trust.received(source, key, &text).await;
    // The sender ends the stream.
    let rest = async {
        let mut rest = [0; 256];
        while matches!(stream.read(&mut rest).await, Ok(n) if n > 0) {}
    };
    let _ = tokio::time::timeout(MESSAGE_TIMEOUT, rest).await;
}

/// Reads until there is a whole JSON value, the sender has ended, or there is more than any message has.
async fn read_message(stream: &mut NodeStream) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(MAX_LEN);
    let mut chunk = [0; MAX_LEN];
    loop {
        let n = stream.read(&mut chunk).await?;
        text.extend_from_slice(chunk.get(..n).unwrap_or_default());
        let complete = !matches!(Message::parse(&text), Err(HandshakeError::Json(JsonError::UnexpectedEnd)));
        if n == 0 || complete || text.len() >= 2 * MAX_LEN {
            return Ok(text);
        }
    }
}
