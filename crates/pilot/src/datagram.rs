//! Datagrams that arrive from the daemon (03 §7).

use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use pilot_wire::SocketAddress;

use crate::error::Error;

/// Datagrams kept for an application that does not fetch them; newer ones are dropped then (03 §2).
const QUEUE_LIMIT: usize = 256;

/// A datagram from a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Who sent it, and from which port.
    pub from: SocketAddress,
    /// The local port it was sent to.
    pub port: u16,
    /// At least one byte.
    pub data: Vec<u8>,
}

#[derive(Default)]
pub(crate) struct DatagramQueue {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Datagram>,
    dropped: u64,
    failure: Option<String>,
    ended: bool,
    waiting: Vec<Waker>,
}

impl DatagramQueue {
    pub(crate) fn push(&self, datagram: Datagram) {
        let mut inner = self.inner.lock();
        if inner.queue.len() >= QUEUE_LIMIT {
            inner.dropped += 1;
            return;
        }
        inner.queue.push_back(datagram);
        inner.waiting.drain(..).for_each(Waker::wake);
    }

    /// An earlier datagram could not be sent.
    pub(crate) fn failed(&self, why: String) {
        self.inner.lock().failure = Some(why);
    }

    pub(crate) fn take_failure(&self) -> Option<String> {
        self.inner.lock().failure.take()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.inner.lock().dropped
    }

    pub(crate) fn end(&self) {
        let mut inner = self.inner.lock();
        inner.ended = true;
        inner.waiting.drain(..).for_each(Waker::wake);
    }

    pub(crate) async fn next(&self) -> Result<Datagram, Error> {
        poll_fn(|cx| {
            let mut inner = self.inner.lock();
            if let Some(datagram) = inner.queue.pop_front() {
                return Poll::Ready(Ok(datagram));
            }
            if inner.ended {
                return Poll::Ready(Err(Error::Disconnected { op: "recv" }));
            }
            if !inner.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                inner.waiting.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}
