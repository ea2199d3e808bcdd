//! Streams and listeners.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use pilot::Deadlines;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::io::{AsyncBufRead as _, AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::errors::Failure;
use crate::op::Op;
use crate::runtime::Owned;
use crate::scope::{Ends, Entry, Scope};

/// Most bytes read at once.
const CHUNK: usize = 256 * 1024;
/// The words of the official library when a stream is closed on this side.
const CLOSED: &str = "connection closed";
/// And when a port is.
const LISTENER_CLOSED: &str = "listener closed";

/// Bytes for Python.
pub(crate) struct Data(pub(crate) Vec<u8>);

impl<'py> IntoPyObject<'py> for Data {
    type Target = PyBytes;
    type Output = Bound<'py, PyBytes>;
    type Error = std::convert::Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Self::Error> {
        Ok(PyBytes::new(py, &self.0))
    }
}

/// What was read. Until it is handed out or given back nobody else reads, so that bytes keep their order.
struct Read(Data, OwnedMutexGuard<()>);

impl<'py> IntoPyObject<'py> for Read {
    type Target = PyBytes;
    type Output = Bound<'py, PyBytes>;
    type Error = std::convert::Infallible;

    fn into_pyobject(self, py: Python<'py>) -> Result<Self::Output, Self::Error> {
        self.0.into_pyobject(py)
    }
}

pub(crate) struct Inner {
    stream: Mutex<Option<pilot::Stream>>,
    /// Read and given back.
    back: Mutex<VecDeque<u8>>,
    /// One reads, one writes at a time: a stream remembers one waiter of each kind.
    reading: Arc<tokio::sync::Mutex<()>>,
    writing: tokio::sync::Mutex<()>,
    closed: CancellationToken,
    deadlines: Deadlines,
    reason: Mutex<Option<pilot::CloseReason>>,
    ended: AtomicBool,
    local: pilot::SocketAddress,
    peer: pilot::SocketAddress,
    id: u32,
    _entry: Entry,
}

impl Ends for Inner {
    fn end(self: Arc<Self>) -> BoxFuture<'static, ()> {
        // Nobody is there any more to be told how it went.
        Box::pin(async move { drop(self.close().await) })
    }
}

impl Inner {
    /// Polls the stream, or fails when it is closed on this side.
    async fn with<T>(
        &self,
        mut poll: impl FnMut(&mut pilot::Stream, &mut std::task::Context<'_>) -> Poll<std::io::Result<T>> + Send,
    ) -> Result<T, Failure> {
        let polling = poll_fn(|cx| match self.stream.lock().as_mut() {
            Some(stream) => poll(stream, cx).map_err(Failure::from),
            None => Poll::Ready(Err(Failure::closed(CLOSED))),
        });
        tokio::select! {
            biased;
            done = polling => done,
            () = self.closed.cancelled() => Err(Failure::closed(CLOSED)),
        }
    }

    /// At least one byte, at most `most`; none at the end.
    async fn read(&self, most: usize) -> Result<Read, Failure> {
        let alone = Arc::clone(&self.reading).lock_owned().await;
        if let Some(data) = self.unread(most) {
            return Ok(Read(Data(data), alone));
        }
        let mut buf = BytesMut::zeroed(most.min(CHUNK));
        let n = self
            .with(|stream, cx| {
                let mut into = ReadBuf::new(&mut buf);
                Pin::new(stream).poll_read(cx, &mut into).map_ok(|()| into.filled().len())
            })
            .await?;
        buf.truncate(n);
        if n == 0 {
            self.ended.store(true, Ordering::Relaxed);
        }
        Ok(Read(Data(buf.into()), alone))
    }

    fn unread(&self, most: usize) -> Option<Vec<u8>> {
        let mut back = self.back.lock();
        let n = back.len().min(most);
        (n > 0).then(|| back.drain(..n).collect())
    }

    async fn write(&self, data: &[u8]) -> Result<usize, Failure> {
        let _alone = self.writing.lock().await;
        let mut rest = data;
        while !rest.is_empty() {
            let n = self.with(|stream, cx| Pin::new(stream).poll_write(cx, rest)).await?;
            rest = rest.get(n..).unwrap_or_default();
        }
        self.with(|stream, cx| Pin::new(stream).poll_flush(cx)).await?;
        Ok(data.len())
    }

    async fn close(&self) -> Result<(), Failure> {
        let stream = self.stream.lock().take();
        self.closed.cancel();
        let Some(stream) = stream else { return Ok(()) };
        *self.reason.lock() = stream.close_reason();
        if stream.close_reason().is_some() {
            return Ok(());
        }
        stream.close().await.map_err(Failure::from)
    }
}

/// A stream of bytes to a peer.
#[pyclass(frozen, module = "pilot._pilot")]
pub(crate) struct Stream(Owned<Arc<Inner>>);

impl Stream {
    pub(crate) fn new(stream: pilot::Stream, scope: &Arc<Scope>) -> Self {
        Self(Owned::new(scope.add(|entry| Inner {
            deadlines: stream.deadlines(),
            local: stream.local_addr(),
            peer: stream.peer_addr(),
            id: stream.id(),
            stream: Mutex::new(Some(stream)),
            back: Mutex::default(),
            reading: Arc::default(),
            writing: tokio::sync::Mutex::default(),
            closed: scope.closing.child_token(),
            reason: Mutex::new(None),
            ended: AtomicBool::new(false),
            _entry: entry,
        })))
    }

    fn inner(&self) -> PyResult<Arc<Inner>> {
        Ok(Arc::clone(self.0.get()?))
    }
}

#[pymethods]
impl Stream {
    /// Reads at least one byte and at most `most` (one, when that is 0); none at the end.
    fn read(&self, most: usize) -> PyResult<Op> {
        let inner = self.inner()?;
        let again = Arc::clone(&inner);
        let back = move |Read(Data(data), _alone): Read| {
            let mut kept = again.back.lock();
            for byte in data.into_iter().rev() {
                kept.push_front(byte);
            }
        };
        Ok(Op::returning(async move { inner.read(most.max(1)).await }, back).light())
    }

    /// Writes all of it.
    fn write(&self, data: &[u8]) -> PyResult<Op> {
        let (inner, data) = (self.inner()?, data.to_vec());
        Ok(Op::new(async move { inner.write(&data).await }).light())
    }

    /// Ends the own direction: `close` where the peer has no half-close and `strict` is false.
    fn write_eof(&self, strict: bool) -> PyResult<Op> {
        let inner = self.inner()?;
        Ok(Op::new(async move {
            let _alone = inner.writing.lock().await;
            if strict {
                inner.with(pilot::Stream::poll_close_write).await
            } else {
                inner.with(|stream, cx| Pin::new(stream).poll_shutdown(cx)).await
            }
        }))
    }

    /// Waits until the peer's node has everything written so far; the number of bytes.
    fn wait_delivered(&self) -> PyResult<Op> {
        let inner = self.inner()?;
        Ok(Op::new(async move {
            let _alone = inner.writing.lock().await;
            // The wait keeps its state in the stream, so that a new future at each poll goes on where the last one was.
            inner.with(|stream, cx| std::pin::pin!(stream.wait_delivered()).as_mut().poll(cx)).await
        }))
    }

    /// Closes both directions.
    fn close(&self) -> PyResult<Op> {
        let inner = self.inner()?;
        Ok(Op::new(async move { inner.close().await }).light())
    }

    /// Closes without waiting; what was written is still delivered.
    fn abort(&self) -> PyResult<()> {
        let inner = self.inner()?;
        let _inside = crate::runtime::runtime()?.enter();
        let stream = inner.stream.lock().take();
        inner.closed.cancel();
        if let Some(stream) = stream {
            *inner.reason.lock() = stream.close_reason();
        }
        Ok(())
    }

    /// Reads give up after so many seconds from now; `None`: never.
    #[pyo3(signature = (seconds_from_now))]
    fn set_read_deadline(&self, seconds_from_now: Option<f64>) -> PyResult<()> {
        let inner = self.inner()?;
        let _inside = crate::runtime::runtime()?.enter();
        inner.deadlines.set_read(crate::op::deadline(seconds_from_now)?);
        Ok(())
    }

    /// The same for writes.
    #[pyo3(signature = (seconds_from_now))]
    fn set_write_deadline(&self, seconds_from_now: Option<f64>) -> PyResult<()> {
        let inner = self.inner()?;
        let _inside = crate::runtime::runtime()?.enter();
        inner.deadlines.set_write(crate::op::deadline(seconds_from_now)?);
        Ok(())
    }

    /// Address and port of the peer.
    #[getter]
    fn peer(&self) -> (String, u16) {
        (self.0.peer.addr.to_string(), self.0.peer.port)
    }

    /// The own address and port.
    #[getter]
    fn local(&self) -> (String, u16) {
        (self.0.local.addr.to_string(), self.0.local.port)
    }

    /// The node's number for the connection.
    #[getter]
    fn id(&self) -> u32 {
        self.0.id
    }

    /// Closed on this side.
    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.0.get()?.closed.is_cancelled())
    }

    /// Whether a read would not wait: something has arrived, or it is over. While somebody reads it would.
    #[getter]
    fn readable(&self) -> PyResult<bool> {
        let inner = self.0.get()?;
        let Ok(_alone) = inner.reading.try_lock() else { return Ok(false) };
        if !inner.back.lock().is_empty() {
            return Ok(true);
        }
        let _inside = crate::runtime::runtime()?.enter();
        let mut nobody = std::task::Context::from_waker(std::task::Waker::noop());
        let mut stream = inner.stream.lock();
        Ok(stream.as_mut().is_none_or(|stream| Pin::new(stream).poll_fill_buf(&mut nobody).is_ready()))
    }

    /// Read to the end.
    #[getter]
    fn at_eof(&self) -> PyResult<bool> {
        let inner = self.0.get()?;
        Ok(inner.ended.load(Ordering::Relaxed) && inner.back.lock().is_empty())
    }

    /// How it ended: the stable name of the reason.
    #[getter]
    fn close_reason(&self) -> PyResult<Option<&'static str>> {
        let inner = self.0.get()?;
        let now = inner.stream.lock().as_ref().map(pilot::Stream::close_reason);
        let reason = now.unwrap_or_else(|| *inner.reason.lock());
        Ok(reason.map(pilot::CloseReason::code))
    }

    /// Bytes that the peer's node has, where that is known.
    #[getter]
    fn delivered(&self) -> PyResult<Option<u64>> {
        Ok(self.0.get()?.stream.lock().as_ref().and_then(pilot::Stream::delivered))
    }
}

/// A bound port.
#[pyclass(frozen, module = "pilot._pilot")]
pub(crate) struct Listener(Owned<Arc<Door>>);

struct Door {
    listener: tokio::sync::RwLock<Option<pilot::Listener>>,
    /// Held until a stream is handed out or given back, so that one given back goes to whoever waits already.
    accepting: Arc<tokio::sync::Mutex<()>>,
    back: Mutex<VecDeque<pilot::Stream>>,
    closed: CancellationToken,
    scope: Arc<Scope>,
    local: pilot::SocketAddress,
    _entry: Entry,
}

impl Door {
    async fn accept(self: Arc<Self>) -> Result<Accepted, Failure> {
        let turn = tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(Failure::closed(LISTENER_CLOSED)),
            turn = Arc::clone(&self.accepting).lock_owned() => turn,
        };
        if let Some(stream) = self.back.lock().pop_front() {
            return Ok(Accepted(stream, Arc::clone(&self.scope), turn));
        }
        let listener = self.listener.read().await;
        let Some(listener) = listener.as_ref() else { return Err(Failure::closed(LISTENER_CLOSED)) };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Failure::closed(LISTENER_CLOSED)),
            stream = listener.accept() => match stream {
                Ok(stream) => Ok(Accepted(stream, Arc::clone(&self.scope), turn)),
                // Nobody has closed it here, so that it is the daemon which is gone.
                Err(pilot::Error::ListenerClosed) => Err(pilot::Error::Disconnected { op: "accept" }.into()),
                Err(error) => Err(error.into()),
            },
        }
    }

    async fn close(&self) {
        self.closed.cancel();
        let listener = self.listener.write().await.take();
        self.back.lock().clear();
        if let Some(listener) = listener {
            listener.close().await;
        }
    }
}

impl Ends for Door {
    fn end(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.close().await })
    }
}

impl Listener {
    pub(crate) fn new(listener: pilot::Listener, scope: &Arc<Scope>) -> Self {
        Self(Owned::new(scope.add(|entry| Door {
            local: listener.local_addr(),
            listener: tokio::sync::RwLock::new(Some(listener)),
            accepting: Arc::default(),
            back: Mutex::default(),
            closed: scope.closing.child_token(),
            scope: Arc::clone(scope),
            _entry: entry,
        })))
    }
}

/// An accepted stream, on its way to Python.
struct Accepted(pilot::Stream, Arc<Scope>, OwnedMutexGuard<()>);

impl<'py> IntoPyObject<'py> for Accepted {
    type Target = Stream;
    type Output = Bound<'py, Stream>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        Bound::new(py, Stream::new(self.0, &self.1))
    }
}

#[pymethods]
impl Listener {
    /// The next stream.
    fn accept(&self) -> PyResult<Op> {
        let door = Arc::clone(self.0.get()?);
        let again = Arc::clone(&door);
        Ok(Op::returning(door.accept(), move |Accepted(stream, _, _turn)| again.back.lock().push_front(stream)).light())
    }

    /// Frees the port; whoever accepts gets an error.
    fn close(&self) -> PyResult<Op> {
        let door = Arc::clone(self.0.get()?);
        Ok(Op::new(async move {
            door.close().await;
            Ok(())
        }))
    }

    /// The port.
    #[getter]
    fn port(&self) -> u16 {
        self.0.local.port
    }

    /// The own address and port.
    #[getter]
    fn local(&self) -> (String, u16) {
        (self.0.local.addr.to_string(), self.0.local.port)
    }

    /// Closed on this side.
    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.0.get()?.closed.is_cancelled())
    }
}

/// Waits for `work` for at most so many seconds.
pub(crate) async fn within<T>(
    op: &'static str,
    limit: Option<Duration>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    match limit {
        None => work.await,
        // Over before it began, however quick the answer would be.
        Some(Duration::ZERO) => Err(Failure::timeout(op)),
        Some(limit) => tokio::time::timeout(limit, work).await.unwrap_or_else(|_| Err(Failure::timeout(op))),
    }
}
