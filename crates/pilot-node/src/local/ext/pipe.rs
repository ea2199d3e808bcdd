//! A stream between a client and a service in this process (L33): two bounded buffers, with the same rules for credit and
//! for the end as a stream to a peer.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use pilot_env::Env;
use pilot_wire::ipc::ext::Problem;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::local::client::Client;
use crate::local::pump::LINGER;

/// Bytes kept in each direction.
pub(super) const CAPACITY: usize = 256 * 1024;

#[derive(Default)]
pub(super) struct State {
    /// From the client, not yet read by the service.
    inbound: VecDeque<u8>,
    /// From the service, not yet given to the client.
    outbound: VecDeque<u8>,
    /// Bytes the service has read.
    read: u64,
    /// The client has ended its direction.
    client_finished: bool,
    /// The client wants no more.
    client_gone: bool,
    /// The client has broken the stream off.
    client_reset: bool,
    /// The service has ended its direction.
    service_finished: bool,
    /// The service is done; with what, unless all went well.
    service_gone: Option<Option<Problem>>,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// What a client finds when it reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Status {
    Data,
    Nothing,
    Finished,
    /// The service failed.
    Broken,
}

/// What both ends share.
pub(super) struct Pipe {
    state: Mutex<State>,
    client: Weak<Client>,
    /// The stream's number, once it has one.
    stream: AtomicU32,
    /// The client has gone or broken the stream off.
    abandoned: Notify,
}

impl Pipe {
    pub(super) fn new(client: &Arc<Client>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::default(),
            client: Arc::downgrade(client),
            stream: AtomicU32::new(0),
            abandoned: Notify::new(),
        })
    }

    pub(super) fn set_stream(&self, id: u32) {
        self.stream.store(id, Ordering::Relaxed);
    }

    /// Has the client's pump look at the stream. Called without the pipe's lock.
    fn notify(&self) {
        let id = self.stream.load(Ordering::Relaxed);
        if id != 0
            && let Some(client) = self.client.upgrade()
        {
            client.update(|state| {
                if let Some(ext) = &mut state.ext {
                    ext.schedule(id);
                }
            });
        }
    }

    // --- The client's side, called by the pump with the client locked ---------------------------------------------

    /// Moves bytes for the client into `buf`.
    pub(super) fn take(&self, buf: &mut [u8]) -> usize {
        let mut state = self.state.lock();
        // Reading from a buffer in memory cannot fail.
        let n = io::Read::read(&mut state.outbound, buf).unwrap_or(0);
        let waker = state.writer.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        n
    }

    /// Bytes that wait for the client.
    pub(super) fn pending(&self) -> usize {
        self.state.lock().outbound.len()
    }

    /// What there is to read for the client.
    pub(super) fn status(&self) -> Status {
        let state = self.state.lock();
        match (&state.service_gone, state.outbound.is_empty()) {
            (_, false) => Status::Data,
            (Some(Some(_)), _) => Status::Broken,
            (Some(None), _) => Status::Finished,
            (None, _) if state.service_finished => Status::Finished,
            (None, _) => Status::Nothing,
        }
    }

    /// How the service ended, once it has.
    pub(super) fn outcome(&self) -> Option<Option<Problem>> {
        self.state.lock().service_gone.clone()
    }

    /// Takes bytes of the client. They fit: it was granted no more than there is room for.
    pub(super) fn put(&self, data: &[u8]) {
        let waker = {
            let mut state = self.state.lock();
            if state.service_gone.is_none() {
                state.inbound.extend(data);
            }
            state.reader.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(super) fn free(&self) -> usize {
        CAPACITY.saturating_sub(self.state.lock().inbound.len())
    }

    /// Bytes the service has read.
    pub(super) fn delivered(&self) -> u64 {
        self.state.lock().read
    }

    /// The client has ended its direction, or (`gone`) the whole stream.
    pub(super) fn end(&self, gone: bool) {
        let wakers = {
            let mut state = self.state.lock();
            state.client_finished = true;
            if gone {
                state.client_gone = true;
                state.outbound = VecDeque::new();
            }
            [state.reader.take(), state.writer.take()]
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
        self.abandoned.notify_one();
    }

    /// The client breaks the stream off: what the service has not read is lost.
    pub(super) fn reset(&self) {
        {
            let mut state = self.state.lock();
            state.inbound = VecDeque::new();
            state.client_reset = true;
        }
        self.end(true);
    }

    /// Waits until the service is to be given up: the client has broken the stream off, or has left it a while ago.
    pub(super) async fn given_up(&self, env: &Env) {
        let gone = |state: &State| (state.client_gone, state.client_reset);
        loop {
            let (left, reset) = gone(&self.state.lock());
            if reset {
                return;
            }
            if left {
                tokio::select! {
                    () = env.sleep(LINGER) => return,
                    () = self.abandoned.notified() => {}
                }
            } else {
                self.abandoned.notified().await;
            }
        }
    }

    /// The service is done.
    pub(super) fn finish_service(&self, problem: Option<Problem>) {
        {
            let mut state = self.state.lock();
            if state.service_gone.is_some() {
                return;
            }
            state.service_gone = Some(problem);
        }
        self.notify();
    }
}

/// The service's end. How the service ended is said by [`Pipe::finish_service`], not by dropping this.
pub(super) struct ServiceEnd(pub(super) Arc<Pipe>);

impl AsyncRead for ServiceEnd {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.state.lock();
        if state.inbound.is_empty() {
            if state.client_finished {
                return Poll::Ready(Ok(()));
            }
            state.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let (front, _) = state.inbound.as_slices();
        let n = front.len().min(buf.remaining());
        buf.put_slice(front.get(..n).unwrap_or_default());
        state.inbound.drain(..n);
        state.read += n as u64;
        drop(state);
        self.0.notify();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ServiceEnd {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = self.0.state.lock();
        if state.client_gone || state.service_finished || state.service_gone.is_some() {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let n = data.len().min(CAPACITY.saturating_sub(state.outbound.len()));
        if n == 0 && !data.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.outbound.extend(data.get(..n).unwrap_or_default());
        drop(state);
        self.0.notify();
        Poll::Ready(Ok(n))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.state.lock().service_finished = true;
        self.0.notify();
        Poll::Ready(Ok(()))
    }
}
