//! Accepting streams on a port.

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::Stream as Streams;
use parking_lot::Mutex;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::Request;

use crate::error::Error;
use crate::link::Link;
use crate::stream::{Cell, Stream};

/// Connections kept for an application that does not accept them; further ones are closed (03 §2).
const BACKLOG: usize = 64;

pub(crate) struct Incoming {
    pub(crate) conn: u32,
    pub(crate) remote: SocketAddress,
    pub(crate) cell: Arc<Cell>,
}

#[derive(Default)]
pub(crate) struct AcceptQueue {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Incoming>,
    ended: bool,
    waiting: Vec<Waker>,
}

impl AcceptQueue {
    /// False when the connection has to be refused.
    pub(crate) fn push(&self, incoming: Incoming) -> bool {
        let mut inner = self.inner.lock();
        if inner.ended || inner.queue.len() >= BACKLOG {
            return false;
        }
        inner.queue.push_back(incoming);
        inner.waiting.drain(..).for_each(Waker::wake);
        true
    }

    pub(crate) fn end(&self) {
        let mut inner = self.inner.lock();
        inner.ended = true;
        inner.waiting.drain(..).for_each(Waker::wake);
    }

    /// Whether somebody waits for a connection.
    pub(crate) fn is_starving(&self) -> bool {
        let inner = self.inner.lock();
        inner.queue.is_empty() && !inner.waiting.is_empty()
    }

    fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<Incoming>> {
        let mut inner = self.inner.lock();
        if let Some(incoming) = inner.queue.pop_front() {
            return Poll::Ready(Some(incoming));
        }
        if inner.ended {
            return Poll::Ready(None);
        }
        if !inner.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            inner.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// A bound port. Streams that peers open to it are handed out by [`accept`](Self::accept), or one by one as a
/// [`futures` stream](futures_util::Stream).
///
/// Up to 64 streams wait to be accepted; what has arrived on them meanwhile is kept, their end included. Closing or
/// dropping the listener frees the port, on daemons before 1.13 once the streams accepted from it are closed as well:
/// these have no command for it, so the port lives as long as the socket (03 §6.1).
pub struct Listener {
    link: Link,
    port: u16,
    queue: Arc<AcceptQueue>,
    closed: bool,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Listener {
    pub(crate) async fn bind(link: Link, port: u16) -> Result<Self, Error> {
        let queue = Arc::new(AcceptQueue::default());
        link.add_listener(port, Arc::clone(&queue));
        match link.request("bind", &Request::Bind { port }).await {
            Ok(_) => Ok(Self { link, port, queue, closed: false }),
            Err(error) => {
                link.remove_listener(port);
                Err(error)
            }
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next stream. Cancel safe.
    ///
    /// # Errors
    /// [`Error::ListenerClosed`] when the daemon is gone.
    pub async fn accept(&self) -> Result<Stream, Error> {
        poll_fn(|cx| self.queue.poll_next(cx)).await.map(|incoming| self.stream(incoming)).ok_or(Error::ListenerClosed)
    }

    /// Frees the port and closes the streams nobody has accepted. Accepted ones live on.
    pub async fn close(mut self) {
        if let Some(answer) = self.shut() {
            // A daemon that does not know the command says so; then the port lives as long as the socket.
            let _ = answer.await;
        }
    }

    fn stream(&self, Incoming { conn, remote, cell }: Incoming) -> Stream {
        Stream::new(self.link.clone(), conn, self.port, remote, cell)
    }

    fn shut(&mut self) -> Option<impl Future> {
        if std::mem::replace(&mut self.closed, true) {
            return None;
        }
        self.link.remove_listener(self.port);
        self.queue.end();
        let waiting = std::mem::take(&mut self.queue.inner.lock().queue);
        // Dropping a stream closes it.
        waiting.into_iter().for_each(|incoming| drop(self.stream(incoming)));
        self.link.begin("unbind", &Request::Unbind { port: self.port }).ok()
    }
}

impl Streams for Listener {
    type Item = Stream;

    fn poll_next(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Stream>> {
        self.queue.poll_next(cx).map(|incoming| incoming.map(|incoming| self.stream(incoming)))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.shut());
    }
}
