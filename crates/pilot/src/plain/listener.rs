//! Ports bound over the February protocol (03 §6.1, §6.2).

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::Request;

use super::link::Link;
use super::stream::{Cell, PlainStream};
use crate::driver::Binding;
use crate::error::Error;
use crate::listener::BACKLOG;
use crate::stream::Stream;

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
    waiting: Option<Waker>,
}

impl Inner {
    fn wake(&mut self) {
        if let Some(waker) = self.waiting.take() {
            waker.wake();
        }
    }
}

impl AcceptQueue {
    /// False when the connection has to be refused.
    pub(crate) fn push(&self, incoming: Incoming) -> bool {
        let mut inner = self.inner.lock();
        if inner.ended || inner.queue.len() >= BACKLOG {
            return false;
        }
        inner.queue.push_back(incoming);
        inner.wake();
        true
    }

    pub(crate) fn end(&self) {
        let mut inner = self.inner.lock();
        inner.ended = true;
        inner.wake();
    }

    /// Whether somebody waits for a connection.
    pub(crate) fn is_starving(&self) -> bool {
        let inner = self.inner.lock();
        inner.queue.is_empty() && inner.waiting.is_some()
    }

    fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<Incoming>> {
        let mut inner = self.inner.lock();
        if let Some(incoming) = inner.queue.pop_front() {
            return Poll::Ready(Some(incoming));
        }
        if inner.ended {
            return Poll::Ready(None);
        }
        inner.waiting = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// A port of one socket.
pub(crate) struct PlainBinding {
    link: Link,
    port: u16,
    queue: Arc<AcceptQueue>,
}

impl PlainBinding {
    pub(crate) async fn bind(link: Link, port: u16) -> Result<Self, Error> {
        let queue = Arc::new(AcceptQueue::default());
        link.add_listener(port, Arc::clone(&queue));
        match link.request("bind", &Request::Bind { port }).await {
            Ok(_) => Ok(Self { link, port, queue }),
            Err(error) => {
                link.remove_listener(port);
                Err(error)
            }
        }
    }

    fn stream(&self, Incoming { conn, remote, cell }: Incoming) -> Stream {
        let channel = PlainStream::new(self.link.clone(), conn, cell);
        let local = SocketAddress::new(pilot_wire::Address::default(), self.port);
        Stream::new(Box::new(channel), local, remote)
    }
}

impl Binding for PlainBinding {
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>> {
        let next = self.queue.poll_next(cx);
        next.map(|next| next.map(|incoming| self.stream(incoming)).ok_or(Error::Disconnected { op: "accept" }))
    }

    fn gone(&self) -> BoxFuture<'static, ()> {
        Box::pin(self.link.gone())
    }

    fn release(&self) -> Option<BoxFuture<'static, ()>> {
        self.link.remove_listener(self.port);
        self.queue.end();
        let waiting = std::mem::take(&mut self.queue.inner.lock().queue);
        // Dropping a stream closes it.
        waiting.into_iter().for_each(|incoming| drop(self.stream(incoming)));
        let answer = self.link.begin("unbind", &Request::Unbind { port: self.port }).ok()?;
        // A daemon that does not know the command says so; then the port lives as long as the socket.
        Some(Box::pin(async move { drop(answer.await) }))
    }
}
