//! Datagrams that arrive from the daemon (03 §7).
//!
//! Our daemon gives the datagrams of a bound port to the socket that bound it; official daemons give every datagram to
//! every socket. So a driver takes those of a port that it listens on from the listener's socket, and all others from
//! its control socket: each once, with either daemon. Over the extended socket there is only the one.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Poll, Waker};

use parking_lot::Mutex;
use pilot_wire::SocketAddress;
use rustc_hash::FxHashMap;

/// Datagrams kept for an application that does not fetch them; newer ones are dropped then (03 §2).
const QUEUE_LIMIT: usize = 256;

/// A datagram from a peer.
///
/// ```no_run
/// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
/// let datagram = driver.recv_from().await?;
/// // Answer to where it came from.
/// driver.send_to(datagram.from, &datagram.data).await?;
/// # Ok(()) }
/// ```
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
    /// Whose turn it is to wait.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Inner {
    queue: VecDeque<Datagram>,
    /// Ports that listeners hold, and the feed of each.
    bound: FxHashMap<u16, u64>,
    /// Number of the newest feed.
    feeds: u64,
    dropped: u64,
    failure: Option<String>,
    waiting: Option<Waker>,
}

impl DatagramQueue {
    pub(crate) fn take_failure(&self) -> Option<String> {
        self.inner.lock().failure.take()
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.inner.lock().dropped
    }

    /// Keeps a datagram, or drops it when the application does not fetch them.
    fn keep(inner: &mut Inner, datagram: Datagram) {
        if inner.queue.len() >= QUEUE_LIMIT {
            inner.dropped += 1;
            return;
        }
        inner.queue.push_back(datagram);
        if let Some(waker) = inner.waiting.take() {
            waker.wake();
        }
    }

    /// The next one. Whoever waits looks after the daemon himself.
    pub(crate) async fn next(&self) -> Datagram {
        let _turn = self.turn.lock().await;
        poll_fn(|cx| {
            let mut inner = self.inner.lock();
            if let Some(datagram) = inner.queue.pop_front() {
                return Poll::Ready(datagram);
            }
            inner.waiting = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// The way into the queue from one socket.
pub(crate) struct Feed {
    queue: Arc<DatagramQueue>,
    /// Tells feeds of one queue apart.
    id: u64,
    /// The port of the listener whose socket this is; none for the control socket.
    port: Option<u16>,
}

impl Feed {
    /// For the control socket: every port but those that listeners hold.
    pub(crate) fn control(queue: Arc<DatagramQueue>) -> Self {
        Self::new(queue, None)
    }

    /// For the socket of a listener: its port alone, from [`claim`](Self::claim) on.
    pub(crate) fn listener(queue: Arc<DatagramQueue>, port: u16) -> Self {
        Self::new(queue, Some(port))
    }

    fn new(queue: Arc<DatagramQueue>, port: Option<u16>) -> Self {
        let id = {
            let mut inner = queue.inner.lock();
            inner.feeds += 1;
            inner.feeds
        };
        Self { queue, id, port }
    }

    pub(crate) fn port(&self) -> Option<u16> {
        self.port
    }

    /// The daemon has bound the listener's port.
    pub(crate) fn claim(&self) {
        if let Some(port) = self.port {
            self.queue.inner.lock().bound.insert(port, self.id);
        }
    }

    /// Takes a datagram, unless it comes over another socket as well or the queue is full.
    pub(crate) fn push(&self, from: SocketAddress, port: u16, data: &[u8]) {
        let mut inner = self.queue.inner.lock();
        let ours = match inner.bound.get(&port) {
            Some(holder) => *holder == self.id,
            None => self.port.is_none(),
        };
        if !ours {
            return;
        }
        DatagramQueue::keep(&mut inner, Datagram { from, port, data: data.to_vec() });
    }

    /// The daemon has dropped some because this program did not take them in time.
    pub(crate) fn missed(&self, count: u32) {
        self.queue.inner.lock().dropped += u64::from(count);
    }

    /// An earlier datagram could not be sent.
    pub(crate) fn failed(&self, why: String) {
        self.queue.inner.lock().failure = Some(why);
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        let Some(port) = self.port else { return };
        let mut inner = self.queue.inner.lock();
        // The port may have gone to a later listener of this driver meanwhile.
        if inner.bound.get(&port) == Some(&self.id) {
            inner.bound.remove(&port);
        }
    }
}
