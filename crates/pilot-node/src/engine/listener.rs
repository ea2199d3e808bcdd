//! A bound port as programs inside the node see it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use pilot_proto::endpoint::BindError;
use pilot_wire::SocketAddress;

use super::stream::Shared;
use super::{ConnOwner, Engine, Incoming, NodeStream, PortOwner, Wakers};

/// Streams waiting to be accepted. More are reset. Larger than the 64 of 02 §6.2: hundreds of peers may dial within one
/// turn of the accepting task (07 §16 item 31).
const BACKLOG: usize = 1024;

#[derive(Default)]
struct Queue {
    streams: VecDeque<(Incoming, Arc<Shared>)>,
    waker: Option<Waker>,
}

#[derive(Default)]
struct Inbox(Mutex<Queue>);

impl PortOwner for Inbox {
    fn accepted(&self, incoming: &Incoming, wakers: &mut Wakers) -> Option<Arc<dyn ConnOwner>> {
        let mut queue = self.0.lock();
        if queue.streams.len() >= BACKLOG {
            return None;
        }
        let shared = Arc::new(Shared::default());
        queue.streams.push_back((*incoming, shared.clone()));
        wakers.push(queue.waker.take());
        Some(shared)
    }

    fn datagram(&self, _src: SocketAddress, _dst_port: u16, _data: &[u8], _wakers: &mut Wakers) {
        // A stream service has no use for datagrams (05 §4).
    }
}

/// Accepts streams on one port. Dropping it frees the port; accepted streams live on.
pub struct NodeListener {
    engine: Arc<Engine>,
    inbox: Arc<Inbox>,
    port: u16,
}

impl NodeListener {
    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Waits for the next stream. Cancel safe.
    pub async fn accept(&self) -> NodeStream {
        let (incoming, shared) = poll_fn(|cx| {
            let mut queue = self.inbox.0.lock();
            match queue.streams.pop_front() {
                Some(next) => Poll::Ready(next),
                None => {
                    queue.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await;
        NodeStream::accepted(self.engine.clone(), shared, incoming.conn, incoming.local, incoming.remote)
    }
}

impl Drop for NodeListener {
    fn drop(&mut self) {
        let waiting = std::mem::take(&mut self.inbox.0.lock().streams);
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
        let inbox = Arc::new(Inbox::default());
        self.with(|core, _| core.bind(port, inbox.clone()))?;
        Ok(NodeListener { engine: self.clone(), inbox, port })
    }
}
