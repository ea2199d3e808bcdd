//! Streams over the February protocol (03 §6).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use pilot_wire::ipc::Request;

use super::link::{Link, Shared};
use crate::error::{CloseReason, HalfCloseLack, StreamError};
use crate::stream::Channel;

/// Unread bytes of one stream at which the daemon is no longer read, so that its flow control holds the peer back.
/// About one round trip at 1 Gbit/s and 4 ms. A stream holds at most this, one socket read, and what it hands out.
const UNREAD_LIMIT: usize = 512 * 1024;
/// Payload of one local frame. Large enough that the cost per frame vanishes, small enough that streams which share a
/// socket take turns.
const WRITE_CHUNK: usize = 64 * 1024;

/// What has arrived for a connection, shared by the reader task and the stream.
#[derive(Default)]
pub(crate) struct Cell {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    buf: Vec<u8>,
    overfull: bool,
    reader: Option<Waker>,
    end: Option<End>,
    /// We have sent Close.
    closed: bool,
    /// CloseOK frames seen since. The answer to Close and the end of the stream look the same (03 §6.6).
    close_oks: u8,
    closer: Option<Waker>,
    is_disconnected: bool,
    write_error: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// The peer has finished, or the connection was reset: the daemon does not tell.
    Finished,
    /// The daemon is gone.
    Disconnected,
    /// The application did not read while others waited.
    Overrun,
}

impl Inner {
    fn wake(&mut self) {
        if let Some(waker) = self.reader.take() {
            waker.wake();
        }
        if let Some(waker) = self.closer.take() {
            waker.wake();
        }
    }

    /// Takes the mark off; true when there was one.
    fn relieve(&mut self) -> bool {
        std::mem::take(&mut self.overfull)
    }
}

impl Cell {
    /// Data in stream order. True when the stream has just become overfull.
    pub(crate) fn deliver(&self, data: &[u8]) -> bool {
        let mut inner = self.inner.lock();
        if inner.end.is_some() {
            return false;
        }
        inner.buf.extend_from_slice(data);
        if let Some(waker) = inner.reader.take() {
            waker.wake();
        }
        let over = inner.buf.len() > UNREAD_LIMIT && !inner.overfull;
        inner.overfull |= over;
        over
    }

    /// A CloseOK: the end of the stream, or the first of two after our own Close, behind which data may still come.
    pub(crate) fn close_ok(&self) {
        let mut inner = self.inner.lock();
        inner.close_oks = inner.close_oks.saturating_add(1);
        if !inner.closed || inner.close_oks >= 2 {
            inner.end.get_or_insert(End::Finished);
        }
        inner.wake();
    }

    pub(crate) fn disconnected(&self) {
        let mut inner = self.inner.lock();
        inner.is_disconnected = true;
        inner.end.get_or_insert(End::Disconnected);
        inner.wake();
    }

    /// Gives the stream up; true when it was overfull.
    pub(crate) fn overrun(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.end = Some(End::Overrun);
        inner.buf = Vec::new();
        inner.wake();
        inner.relieve()
    }

    pub(crate) fn write_failed(&self, why: String) {
        self.inner.lock().write_error = Some(why);
    }

    /// Drops what was not read; true when it was overfull.
    pub(crate) fn discard(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.buf = Vec::new();
        inner.relieve()
    }

    pub(crate) fn unread(&self) -> usize {
        self.inner.lock().buf.len()
    }

    /// Whether somebody waits for data of this stream.
    pub(crate) fn is_starving(&self) -> bool {
        let inner = self.inner.lock();
        inner.buf.is_empty() && inner.end.is_none() && (inner.reader.is_some() || inner.closer.is_some())
    }
}

/// A stream of one connection.
pub(crate) struct PlainStream {
    link: Link,
    conn: u32,
    cell: Arc<Cell>,
    closed: bool,
}

impl PlainStream {
    pub(crate) fn new(link: Link, conn: u32, cell: Arc<Cell>) -> Self {
        Self { link, conn, cell, closed: false }
    }

    fn shared(&self) -> &Arc<Shared> {
        self.link.shared()
    }

    fn resume(&self, relieved: bool) {
        if relieved {
            self.shared().overfull.fetch_sub(1, Ordering::Relaxed);
        }
        if relieved || self.shared().overfull.load(Ordering::Relaxed) > 0 {
            self.shared().resume.notify_one();
        }
    }
}

impl Channel for PlainStream {
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<io::Result<()>> {
        let mut inner = self.cell.inner.lock();
        if !inner.buf.is_empty() {
            std::mem::swap(out, &mut inner.buf);
            let relieved = inner.relieve();
            drop(inner);
            self.resume(relieved);
            return Poll::Ready(Ok(()));
        }
        match inner.end {
            Some(End::Finished) => Poll::Ready(Ok(())),
            Some(End::Disconnected) => Poll::Ready(Err(StreamError::Ended(CloseReason::DaemonGone).io())),
            Some(End::Overrun) => Poll::Ready(Err(StreamError::Ended(CloseReason::Overrun).io())),
            None => {
                if !inner.reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    inner.reader = Some(cx.waker().clone());
                }
                drop(inner);
                self.resume(false);
                Poll::Pending
            }
        }
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(StreamError::Closed.io()));
        }
        let failed = {
            let inner = self.cell.inner.lock();
            match inner.end {
                Some(End::Disconnected) => Some(StreamError::Ended(CloseReason::DaemonGone)),
                _ => inner.write_error.clone().map(StreamError::Refused),
            }
        };
        if let Some(why) = failed {
            return Poll::Ready(Err(why.io()));
        }
        let data = &data[..data.len().min(WRITE_CHUNK)];
        let conn = self.conn;
        // A chunk always fits into a frame.
        ready!(self.shared().out.poll_push(cx, |out| {
            let _ = Request::Send { conn, data }.emit(out);
        }))?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared().out.poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.closed {
            self.closed = true;
            {
                let mut inner = self.cell.inner.lock();
                inner.closed = true;
                if inner.end == Some(End::Finished) {
                    // The one of the peer's close; the answer to ours is still to come.
                    inner.close_oks = 0;
                }
            }
            self.shared().close_conn(self.conn);
        }
        self.shared().out.poll_flush(cx)
    }

    fn poll_close_write(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Close ends both directions as far as this protocol says (03 §12).
        let lack =
            if self.closed { StreamError::Closed } else { StreamError::HalfCloseUnsupported(HalfCloseLack::Daemon) };
        Poll::Ready(Err(lack.io()))
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // It fails only when the daemon is gone, which does not matter once it has confirmed.
        let is_gone = ready!(self.poll_shutdown(cx)).is_err();
        let mut inner = self.cell.inner.lock();
        inner.is_disconnected |= is_gone;
        // Nobody reads any more, so nothing may stand in the way of the confirmation.
        inner.buf.clear();
        let relieved = inner.relieve();
        let done = if inner.close_oks > 0 {
            Poll::Ready(Ok(()))
        } else if inner.is_disconnected {
            Poll::Ready(Err(StreamError::Ended(CloseReason::DaemonGone).io()))
        } else if inner.end == Some(End::Overrun) {
            // Broken off from here: nothing more comes of it.
            Poll::Ready(Ok(()))
        } else {
            inner.closer = Some(cx.waker().clone());
            Poll::Pending
        };
        drop(inner);
        self.resume(relieved);
        done
    }

    fn close_reason(&self) -> Option<CloseReason> {
        self.cell.inner.lock().end.map(|end| match end {
            End::Finished => CloseReason::Untold,
            End::Disconnected => CloseReason::DaemonGone,
            End::Overrun => CloseReason::Overrun,
        })
    }

    fn delivered(&self) -> Option<u64> {
        None
    }

    fn poll_delivered(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        Poll::Ready(Err(StreamError::DeliveryUntold.io()))
    }

    fn id(&self) -> u32 {
        self.conn
    }
}

impl Drop for PlainStream {
    fn drop(&mut self) {
        if !self.closed {
            self.shared().close_conn(self.conn);
        }
        self.shared().forget(self.conn);
    }
}
