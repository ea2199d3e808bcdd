//! A bound port as programs inside the node see it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use pilot_proto::endpoint::BindError;
use pilot_wire::SocketAddress;

use super::datagrams::DatagramInbox;
use super::stream::Shared;
use super::{ConnOwner, Engine, Incoming, NodeDatagrams, NodeStream, PortOwner, Wakers};

/// Streams waiting to be accepted. More are reset. Larger than the 64 of 02 §6.2: hundreds of peers may dial within one
/// turn of the accepting task (07 §16 item 31).
const BACKLOG: usize = 1024;

#[derive(Default)]
struct Queue {
    streams: VecDeque<(Incoming, Arc<Shared>)>,
    waiting: Option<Waker>,
}

#[derive(Default)]
struct Inbox {
    queue: Mutex<Queue>,
    /// Where the port's datagrams go, if they are wanted.
    datagrams: Option<Arc<DatagramInbox>>,
}

impl PortOwner for Inbox {
    fn accepted(&self, incoming: &Incoming, wakers: &mut Wakers) -> Option<Arc<dyn ConnOwner>> {
        let mut queue = self.queue.lock();
        if queue.streams.len() >= BACKLOG {
            return None;
        }
        let shared = Arc::new(Shared::default());
        queue.streams.push_back((*incoming, shared.clone()));
        wakers.push(queue.waiting.take());
        Some(shared)
    }

    fn datagram(&self, src: SocketAddress, dst_port: u16, data: &[u8], wakers: &mut Wakers) {
        // A stream service has no use for datagrams (05 §4).
        if let Some(inbox) = &self.datagrams {
            inbox.datagram(src, dst_port, data, wakers);
        }
    }
}

/// Accepts streams on one port. Dropping it frees the port; accepted streams live on.
pub struct NodeListener {
    engine: Arc<Engine>,
    inbox: Arc<Inbox>,
    port: u16,
    /// Whose turn it is to wait.
    turn: tokio::sync::Mutex<()>,
}

impl NodeListener {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the next stream. Cancel safe. Several tasks may wait; each stream goes to one of them.
    pub async fn accept(&self) -> NodeStream {
        let _turn = self.turn.lock().await;
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`accept`](Self::accept), for one task at a time: the one that asked last is woken.
    pub fn poll_accept(&self, cx: &Context<'_>) -> Poll<NodeStream> {
        let mut queue = self.inbox.queue.lock();
        let Some((incoming, shared)) = queue.streams.pop_front() else {
            queue.waiting = Some(cx.waker().clone());
            return Poll::Pending;
        };
        drop(queue);
        let Incoming { conn, local, remote, .. } = incoming;
        Poll::Ready(NodeStream::accepted(self.engine.clone(), shared, conn, local, remote))
    }
}

impl Drop for NodeListener {
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut self.inbox.queue.lock().streams);
        self.engine.with(|core, now| {
            core.unbind(now, self.port);
            for (incoming, _) in &waiting {
                let _ = core.endpoint.reset(now, incoming.conn);
                core.release(now, incoming.conn);
            }
        });
    }
}

impl Engine {
    /// Binds a port for streams.
    pub(crate) fn listen(self: &Arc<Self>, port: u16) -> Result<NodeListener, BindError> {
        self.listen_with(port, None)
    }

    /// The same, with the port's datagrams.
    pub(crate) fn listen_with(
        self: &Arc<Self>,
        port: u16,
        datagrams: Option<&NodeDatagrams>,
    ) -> Result<NodeListener, BindError> {
        let datagrams = datagrams.map(|datagrams| datagrams.inbox.clone());
        let inbox = Arc::new(Inbox { queue: Mutex::default(), datagrams });
        self.with(|core, _| core.bind(port, inbox.clone()))?;
        Ok(NodeListener { engine: self.clone(), inbox, port, turn: tokio::sync::Mutex::new(()) })
    }
}
