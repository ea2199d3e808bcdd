//! Frames on their way to the daemon: one bounded buffer per socket, written by whoever comes first.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use tokio::io::AsyncWrite;

/// Bytes that may wait for the daemon before writers are held back. Twice a usual socket buffer: enough to keep the
/// daemon busy, little enough that a write means something.
const LIMIT: usize = 256 * 1024;

/// The half of the socket that leads to the daemon.
pub(crate) type Sink = Box<dyn AsyncWrite + Send + Unpin>;

/// The buffer and the socket behind it.
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
}

struct Inner {
    sink: Sink,
    buf: Vec<u8>,
    /// Bytes of `buf` that are written.
    start: usize,
    /// The last user is gone: write the rest, then shut the socket down.
    closing: bool,
    /// The socket failed or is shut down.
    dead: bool,
    /// The task that writes what a writer could not write at once.
    writer: Option<Waker>,
    /// Tasks that wait for space or for everything to be written.
    waiting: Vec<Waker>,
}

impl Inner {
    fn pending(&self) -> usize {
        self.buf.len() - self.start
    }

    /// Writes until nothing is left or the socket is full.
    fn drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.start < self.buf.len() {
            match Pin::new(&mut self.sink).poll_write(cx, &self.buf[self.start..]) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => self.start += n,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            }
        }
        self.buf.clear();
        self.start = 0;
        Poll::Ready(Ok(()))
    }

    fn wake_waiting(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn die(&mut self) {
        self.dead = true;
        // Lets go of the socket, so that the daemon sees the end as well.
        self.sink = Box::new(tokio::io::sink());
        self.buf = Vec::new();
        self.start = 0;
        self.wake_waiting();
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
    }

    fn wait(&mut self, cx: &Context<'_>) {
        if !self.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.waiting.push(cx.waker().clone());
        }
    }

    /// Appends frames and writes at once if nothing was waiting.
    fn append(&mut self, emit: impl FnOnce(&mut Vec<u8>)) {
        let idle = self.pending() == 0;
        if self.start > LIMIT {
            self.buf.drain(..self.start);
            self.start = 0;
        }
        emit(&mut self.buf);
        if !idle {
            // The writer task is at it and will find these bytes.
            return;
        }
        // The writer task sleeps and holds no place in the socket's queue of waiters, so trying without a waker loses
        // no wake-up; it saves a change of tasks for nearly every frame.
        let mut cx = Context::from_waker(Waker::noop());
        match self.drain(&mut cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => self.die(),
            Poll::Pending => {
                if let Some(writer) = self.writer.take() {
                    writer.wake();
                }
            }
        }
    }
}

impl Outbox {
    pub(crate) fn new(sink: Sink) -> Self {
        Self {
            inner: Mutex::new(Inner {
                sink,
                buf: Vec::new(),
                start: 0,
                closing: false,
                dead: false,
                writer: None,
                waiting: Vec::new(),
            }),
        }
    }

    /// Appends a frame whatever waits already: requests and closes are few and small. False when the socket is gone.
    pub(crate) fn push(&self, emit: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut inner = self.inner.lock();
        if inner.dead {
            return false;
        }
        inner.append(emit);
        !inner.dead
    }

    /// Appends a frame when there is space, or waits for it.
    pub(crate) fn poll_push(&self, cx: &Context<'_>, emit: impl FnOnce(&mut Vec<u8>)) -> Poll<io::Result<()>> {
        let mut inner = self.inner.lock();
        if inner.dead {
            return Poll::Ready(Err(gone()));
        }
        if inner.pending() >= LIMIT {
            inner.wait(cx);
            return Poll::Pending;
        }
        inner.append(emit);
        Poll::Ready(if inner.dead { Err(gone()) } else { Ok(()) })
    }

    /// Waits until everything is with the daemon.
    pub(crate) fn poll_flush(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.inner.lock();
        if inner.dead {
            return Poll::Ready(Err(gone()));
        }
        if inner.pending() == 0 {
            return Poll::Ready(Ok(()));
        }
        inner.wait(cx);
        Poll::Pending
    }

    /// Lets the writer task finish and shut the socket down.
    pub(crate) fn close(&self) {
        let mut inner = self.inner.lock();
        inner.closing = true;
        if let Some(writer) = inner.writer.take() {
            writer.wake();
        }
    }

    /// The socket is of no more use.
    pub(crate) fn kill(&self) {
        self.inner.lock().die();
    }

    /// The writer task: ready when the socket is shut down or broken.
    pub(crate) fn poll_writer(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut inner = self.inner.lock();
        if inner.dead {
            return Poll::Ready(());
        }
        match inner.drain(cx) {
            Poll::Ready(Ok(())) => {}
            Poll::Ready(Err(_)) => {
                inner.die();
                return Poll::Ready(());
            }
            Poll::Pending => {
                if inner.pending() < LIMIT / 2 {
                    inner.wake_waiting();
                }
                return Poll::Pending;
            }
        }
        inner.wake_waiting();
        if inner.closing {
            match Pin::new(&mut inner.sink).poll_shutdown(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(_) => {
                    inner.die();
                    return Poll::Ready(());
                }
            }
        }
        inner.writer = Some(cx.waker().clone());
        Poll::Pending
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "daemon disconnected")
}
