//! Streams as programs inside the node see them: [`AsyncRead`] and [`AsyncWrite`].

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;
use pilot_proto::endpoint::{ConnId, ConnectError, DialError, HalfClose};
use pilot_proto::stream::{CloseReason, ReadError, StreamEvent, WriteError};
use pilot_wire::SocketAddress;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{ConnOwner, Core, Engine, Wakers};

/// Why a dial failed. The text says what was tried; `code` is stable and `hint` says what to do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DialFailed {
    /// It could not start.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The peer was not reached, or did not want it.
    #[error("{0}")]
    Dial(Box<DialError>),
}

impl DialFailed {
    /// Stable name of the failure.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connect(e) => e.code(),
            Self::Dial(e) => e.code(),
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Connect(e) => e.hint().to_owned(),
            Self::Dial(e) => e.hint(),
        }
    }
}

#[derive(Default)]
struct State {
    connected: bool,
    failed: Option<DialError>,
    closed: Option<CloseReason>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Whoever waits for bytes to be acknowledged.
    delivery: Option<Waker>,
}

/// What the engine tells a stream.
#[derive(Default)]
pub(super) struct Shared(Mutex<State>);

impl ConnOwner for Shared {
    fn stream_event(&self, _conn: ConnId, event: StreamEvent, wakers: &mut Wakers) {
        let mut state = self.0.lock();
        match event {
            StreamEvent::Connected => {
                state.connected = true;
                wakers.push(state.reader.take());
            }
            StreamEvent::Readable | StreamEvent::Finished => wakers.push(state.reader.take()),
            StreamEvent::Writable => wakers.push(state.writer.take()),
            StreamEvent::Delivered => wakers.push(state.delivery.take()),
            StreamEvent::Closed(reason) => {
                state.closed = Some(reason);
                wakers.push(state.reader.take());
                wakers.push(state.writer.take());
                wakers.push(state.delivery.take());
            }
        }
    }

    fn dial_failed(&self, _conn: ConnId, error: DialError, wakers: &mut Wakers) {
        let mut state = self.0.lock();
        state.failed = Some(error);
        wakers.push(state.reader.take());
        wakers.push(state.writer.take());
    }
}

/// A reliable byte stream to a peer.
///
/// Dropping it is an orderly end: what was written is still delivered. `shutdown` ends the own direction; reading goes
/// on until the peer ends its own, where the peer can do that.
pub struct NodeStream {
    engine: Arc<Engine>,
    shared: Arc<Shared>,
    conn: ConnId,
    local: SocketAddress,
    remote: SocketAddress,
    shut: bool,
}

impl std::fmt::Debug for NodeStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NodeStream({} {} -> {})", self.conn, self.local, self.remote)
    }
}

impl NodeStream {
    pub(super) fn accepted(
        engine: Arc<Engine>,
        shared: Arc<Shared>,
        conn: ConnId,
        local: SocketAddress,
        remote: SocketAddress,
    ) -> Self {
        Self { engine, shared, conn, local, remote, shut: false }
    }

    /// The connection's number, as in status output.
    pub fn id(&self) -> u32 {
        self.conn.0
    }

    /// Our address and port; of a dialled stream the port is 0 (the node chose one).
    pub fn local_addr(&self) -> SocketAddress {
        self.local
    }

    /// The peer's address and port. The node number is that of the authenticated tunnel.
    pub fn remote_addr(&self) -> SocketAddress {
        self.remote
    }

    /// Whether small writes leave at once (default: they wait briefly for company).
    pub fn set_nodelay(&self, nodelay: bool) {
        // Fails only for a connection that has gone, where it no longer matters.
        let _ = self.engine.with(|core, now| core.endpoint.set_nodelay(now, self.conn, nodelay));
    }

    /// How it ended, once it has.
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.shared.0.lock().closed
    }

    /// Whether our direction can end alone.
    pub fn half_close(&self) -> HalfClose {
        let flow = self.engine.look(|core, _| core.endpoint.flow(self.conn));
        flow.map_or(HalfClose::No, |flow| flow.half_close)
    }

    /// Bytes that the peer's node has acknowledged.
    pub fn delivered(&self) -> u64 {
        let flow = self.engine.look(|core, _| core.endpoint.flow(self.conn));
        flow.map_or(0, |flow| flow.delivered)
    }

    /// Waits until the peer's node has acknowledged `offset` bytes, or the stream has ended; gives how many it has.
    pub fn poll_delivered(&self, cx: &Context<'_>, offset: u64) -> Poll<u64> {
        self.engine.with(|core, now| {
            let delivered = core.endpoint.flow(self.conn).map_or(0, |flow| flow.delivered);
            // Stored while the core is locked, so no event can pass by unseen.
            let mut state = self.shared.0.lock();
            if delivered >= offset || state.closed.is_some() {
                return Poll::Ready(delivered);
            }
            state.delivery = Some(cx.waker().clone());
            drop(state);
            // Known: its flow was.
            let _ = core.endpoint.watch_delivered(now, self.conn, offset);
            Poll::Pending
        })
    }

    /// Ends both directions at once; what was not delivered is lost.
    pub fn reset(&mut self) {
        self.shut = true;
        let _ = self.engine.with(|core, now| core.endpoint.reset(now, self.conn));
    }
}

/// An ended stream as an I/O error.
fn ended(reason: CloseReason) -> io::Error {
    let kind = match reason {
        CloseReason::Refused => io::ErrorKind::ConnectionRefused,
        CloseReason::Timeout | CloseReason::IdleTimeout | CloseReason::DialTimeout | CloseReason::AcceptTimeout => {
            io::ErrorKind::TimedOut
        }
        CloseReason::Truncated => io::ErrorKind::UnexpectedEof,
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, reason.to_string())
}

impl AsyncRead for NodeStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let room = buf.initialize_unfilled();
        if room.is_empty() {
            return Poll::Ready(Ok(()));
        }
        let read = self.engine.with(|core, now| {
            let read = core.endpoint.read(now, self.conn, room);
            if matches!(read, Err(ReadError::Blocked)) {
                // Stored while the core is locked, so no event can pass by unseen.
                self.shared.0.lock().reader = Some(cx.waker().clone());
            }
            read
        });
        match read {
            Ok(n) => {
                buf.advance(n);
                Poll::Ready(Ok(()))
            }
            Err(ReadError::Blocked) => Poll::Pending,
            Err(ReadError::Closed(CloseReason::Clean)) => Poll::Ready(Ok(())),
            Err(ReadError::Closed(reason)) => Poll::Ready(Err(ended(reason))),
        }
    }
}

impl AsyncWrite for NodeStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = self.engine.with(|core, now| {
            let written = core.endpoint.write(now, self.conn, data);
            if matches!(written, Err(WriteError::Blocked)) {
                self.shared.0.lock().writer = Some(cx.waker().clone());
            }
            written
        });
        match written {
            Ok(n) => Poll::Ready(Ok(n)),
            Err(WriteError::Blocked) => Poll::Pending,
            Err(WriteError::Finished) => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            Err(WriteError::Closed(reason)) => Poll::Ready(Err(ended(reason))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The core sends by itself; there is nothing to push.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut {
            self.shut = true;
            // A connection that has gone needs no end.
            let _ = self.engine.with(|core, now| core.endpoint.close(now, self.conn));
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for NodeStream {
    fn drop(&mut self) {
        self.engine.with(|core, now| core.release(now, self.conn));
    }
}

/// A dial in progress. Dropping it gives the dial up and frees its port.
pub(crate) struct DialFuture(Option<NodeStream>);

impl Engine {
    /// Starts a dial.
    pub(crate) fn dial(self: &Arc<Self>, remote: SocketAddress) -> Result<DialFuture, ConnectError> {
        let shared = Arc::new(Shared::default());
        let conn = self.with(|core: &mut Core, now| {
            let conn = core.endpoint.connect(now, remote)?;
            core.own(conn, shared.clone());
            Ok(conn)
        })?;
        let local = SocketAddress::default();
        Ok(DialFuture(Some(NodeStream { engine: self.clone(), shared, conn, local, remote, shut: false })))
    }
}

impl Future for DialFuture {
    type Output = Result<NodeStream, DialFailed>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(stream) = &self.0 else { return Poll::Pending };
        {
            let mut state = stream.shared.0.lock();
            if let Some(error) = state.failed.take() {
                drop(state);
                self.0 = None;
                return Poll::Ready(Err(DialFailed::Dial(Box::new(error))));
            }
            if !state.connected && state.closed.is_none() {
                state.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        // A stream that closed at once is given out too: it says so itself, after what it received.
        match self.0.take() {
            Some(stream) => Poll::Ready(Ok(stream)),
            None => Poll::Pending,
        }
    }
}
