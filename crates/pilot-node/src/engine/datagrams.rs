//! Datagrams as programs inside the node see them.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use pilot_proto::endpoint::DatagramError;
use pilot_wire::SocketAddress;

use super::{ConnOwner, Engine, Incoming, PortOwner, Wakers};

/// Datagrams kept for a program that does not fetch them; newer ones are dropped (03 §2).
const MAX_DATAGRAMS: usize = 256;
/// Their bytes.
const MAX_BYTES: usize = 2 << 20;

/// A datagram that arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDatagram {
    /// Who sent it, and from which port. The node number is that of the authenticated tunnel.
    pub from: SocketAddress,
    /// Our port.
    pub port: u16,
    /// At least one byte.
    pub data: Vec<u8>,
}

#[derive(Default)]
struct Queue {
    datagrams: VecDeque<NodeDatagram>,
    bytes: usize,
    dropped: u64,
    waiting: Option<Waker>,
}

/// Where the datagrams of some ports arrive.
#[derive(Default)]
pub(super) struct DatagramInbox(Mutex<Queue>);

impl PortOwner for DatagramInbox {
    fn accepted(&self, _incoming: &Incoming, _wakers: &mut Wakers) -> Option<Arc<dyn ConnOwner>> {
        None
    }

    fn datagram(&self, from: SocketAddress, port: u16, data: &[u8], wakers: &mut Wakers) {
        let mut queue = self.0.lock();
        if queue.datagrams.len() >= MAX_DATAGRAMS || queue.bytes + data.len() > MAX_BYTES {
            queue.dropped += 1;
            return;
        }
        queue.bytes += data.len();
        queue.datagrams.push_back(NodeDatagram { from, port, data: data.to_vec() });
        wakers.push(queue.waiting.take());
    }
}

/// Sends datagrams from a port of its own, and receives the answers and what comes to the ports of listeners that were
/// made with it ([`Node::listen_with`](crate::Node::listen_with)). Up to 256 datagrams are kept; newer ones are dropped.
pub struct NodeDatagrams {
    engine: Arc<Engine>,
    pub(super) inbox: Arc<DatagramInbox>,
    port: u16,
    /// Whose turn it is to wait.
    turn: tokio::sync::Mutex<()>,
}

impl NodeDatagrams {
    /// The port that datagrams are sent from.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Hands a datagram to the tunnel, which promises nothing more.
    ///
    /// # Errors
    /// [`DatagramError`]; with a stable code and a hint.
    pub fn send_to(&self, to: SocketAddress, data: &[u8]) -> Result<(), DatagramError> {
        self.engine.with(|core, now| core.endpoint.send_datagram(now, self.port, to, data))
    }

    /// The next datagram. Cancel safe. Several tasks may wait; each datagram goes to one of them.
    pub async fn recv(&self) -> NodeDatagram {
        let _turn = self.turn.lock().await;
        poll_fn(|cx| {
            let mut queue = self.inbox.0.lock();
            if let Some(datagram) = queue.datagrams.pop_front() {
                queue.bytes -= datagram.data.len();
                return Poll::Ready(datagram);
            }
            queue.waiting = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Datagrams dropped because nobody fetched them in time.
    pub fn dropped(&self) -> u64 {
        self.inbox.0.lock().dropped
    }
}

impl Drop for NodeDatagrams {
    fn drop(&mut self) {
        self.engine.with(|core, _| core.unbind_datagrams(self.port));
    }
}

impl Engine {
    /// Datagrams from a source port of their own; `None` when all are taken.
    pub(crate) fn datagrams(self: &Arc<Self>) -> Option<NodeDatagrams> {
        let inbox = Arc::new(DatagramInbox::default());
        let start = self.env.random_u64() as u16;
        let port = self.with(|core, _| core.bind_datagrams(start, inbox.clone()))?;
        Some(NodeDatagrams { engine: self.clone(), inbox, port, turn: tokio::sync::Mutex::new(()) })
    }
}
