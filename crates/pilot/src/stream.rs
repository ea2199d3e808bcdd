//! A reliable stream to a peer.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use parking_lot::Mutex;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::Request;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use crate::link::{Link, Shared};

/// Unread bytes of one stream at which the daemon is no longer read, so that its flow control holds the peer back.
/// About one round trip at 1 Gbit/s and 4 ms. A stream holds at most this, one socket read, and what it hands out.
const UNREAD_LIMIT: usize = 512 * 1024;
/// Payload of one local frame. Large enough that the cost per frame vanishes, small enough that streams which share a
/// socket take turns.
const WRITE_CHUNK: usize = 64 * 1024;
/// How long [`Stream::close`] waits for the daemon to confirm.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

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

/// A reliable, ordered, encrypted stream of bytes to an application on another node.
///
/// Implements [`AsyncRead`], [`AsyncBufRead`] and [`AsyncWrite`]. The end of the stream means that the peer has closed
/// it, or that the connection was reset or timed out: a daemon does not tell these apart (03 §6.6).
///
/// * **Writing.** A finished write is in the hands of the daemon's socket, not of the peer. Writers wait while more than
///   256 KiB are on their way to the daemon.
/// * **Reading.** Up to 512 KiB (and one read of the socket) are kept unread; then the daemon holds the peer back.
/// * **Closing.** `shutdown` and [`close`](Self::close) hand over everything written first. Dropping the stream closes
///   it as well. After `shutdown` reading goes on to the end of the stream.
///
/// Bounds: about 1.3 MiB of buffers in the worst case.
pub struct Stream {
    link: Link,
    conn: u32,
    local_port: u16,
    remote: SocketAddress,
    cell: Arc<Cell>,
    /// Taken from the cell and partly read.
    front: Vec<u8>,
    read: usize,
    closed: bool,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("conn", &self.conn).field("remote", &self.remote).finish_non_exhaustive()
    }
}

impl Stream {
    pub(crate) fn new(link: Link, conn: u32, local_port: u16, remote: SocketAddress, cell: Arc<Cell>) -> Self {
        Self { link, conn, local_port, remote, cell, front: Vec::new(), read: 0, closed: false }
    }

    /// The peer and its port: as dialled, or where an accepted stream comes from.
    pub fn remote(&self) -> SocketAddress {
        self.remote
    }

    /// The port an accepted stream arrived on; 0 for a dialled one, because the daemon does not say.
    pub fn local_port(&self) -> u16 {
        self.local_port
    }

    /// The daemon's number for the connection, as in `conn_list` of the status.
    pub fn id(&self) -> u32 {
        self.conn
    }

    /// Hands over what was written, closes the stream in both directions and waits (at most 5 s) until the daemon has
    /// confirmed. What the peer still sends is discarded.
    ///
    /// # Errors
    /// `BrokenPipe` when the daemon is gone, `TimedOut` when it does not confirm.
    pub async fn close(mut self) -> io::Result<()> {
        let confirmed = poll_fn(|cx| {
            ready!(Pin::new(&mut self).poll_shutdown(cx))?;
            let mut inner = self.cell.inner.lock();
            // Nobody reads any more, so nothing may stand in the way of the confirmation.
            inner.buf.clear();
            let relieved = inner.relieve();
            let done = inner.close_oks > 0 || inner.end.is_some_and(|end| end != End::Finished);
            if !done {
                inner.closer = Some(cx.waker().clone());
            }
            drop(inner);
            self.resume(relieved);
            if done { Poll::Ready(Ok(())) } else { Poll::Pending }
        });
        tokio::time::timeout(CLOSE_WAIT, confirmed).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
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

    fn unread(&self) -> &[u8] {
        // `read` only grows by what was handed out of `front`.
        self.front.get(self.read..).unwrap_or_default()
    }

    /// Makes `front` hold unread bytes, unless the stream has ended.
    fn poll_front(&mut self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        if self.read < self.front.len() {
            return Poll::Ready(Ok(()));
        }
        self.front.clear();
        self.read = 0;
        let mut inner = self.cell.inner.lock();
        if !inner.buf.is_empty() {
            std::mem::swap(&mut self.front, &mut inner.buf);
            let relieved = inner.relieve();
            drop(inner);
            self.resume(relieved);
            return Poll::Ready(Ok(()));
        }
        match inner.end {
            Some(End::Finished) => Poll::Ready(Ok(())),
            Some(End::Disconnected) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "daemon disconnected")))
            }
            Some(End::Overrun) => Poll::Ready(Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "stream given up: its data was not read while other streams of the same listener waited",
            ))),
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
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        while out.remaining() > 0 {
            match self.poll_front(cx) {
                Poll::Ready(Ok(())) if self.unread().is_empty() => break,
                Poll::Ready(Ok(())) => {
                    let unread = self.unread();
                    let n = unread.len().min(out.remaining());
                    out.put_slice(&unread[..n]);
                    self.read += n;
                }
                // What was found is handed out first; the end or the wait comes with the next call.
                _ if out.filled().len() > before => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for Stream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        ready!(this.poll_front(cx))?;
        Poll::Ready(Ok(this.unread()))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.read = (self.read + amount).min(self.front.len());
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::NotConnected, "connection closed")));
        }
        let failed = {
            let inner = self.cell.inner.lock();
            match inner.end {
                Some(End::Disconnected) => Some("daemon disconnected".to_owned()),
                _ => inner.write_error.clone(),
            }
        };
        if let Some(why) = failed {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::BrokenPipe, why)));
        }
        let data = &data[..data.len().min(WRITE_CHUNK)];
        let conn = self.conn;
        // A chunk always fits into a frame.
        ready!(self.shared().out.poll_push(cx, |out| {
            let _ = Request::Send { conn, data }.emit(out);
        }))?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.shared().out.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
}

impl Drop for Stream {
    fn drop(&mut self) {
        if !self.closed {
            self.shared().close_conn(self.conn);
        }
        self.shared().forget(self.conn);
    }
}
