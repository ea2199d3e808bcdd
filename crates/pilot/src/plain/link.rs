//! One socket to the daemon: requests and their answers, streams, accepted connections, datagrams (03 §4, §13, §14.2).
//!
//! The official protocol has no request ids, so answers are attributed by position: an answer belongs to the oldest
//! request that waits for its opcode, an Error to the oldest request of all, except the Errors of Send and SendTo, which
//! answer nothing. The frames of the extension travel on the same socket; [`Extension`] has them. Two tasks serve a
//! socket, one per direction; they end when the last handle is dropped or the daemon goes.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pilot_wire::SocketAddress;
use pilot_wire::frame::{FrameDecoder, FrameError, MAX_FRAME};
use pilot_wire::ipc::{Answer, Request, ext, op, text};
use rustc_hash::FxHashMap;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::sync::{Notify, oneshot, watch};

use super::listener::{AcceptQueue, Incoming};
use super::outbox::Outbox;
use super::stream::Cell;
use crate::datagram::Feed;
use crate::error::Error;
use crate::extended::{Extension, Greeted};

/// Bytes asked of the socket in one read.
const READ_CHUNK: usize = 256 * 1024;
/// Unread bytes of all streams of one socket at which the fullest stream is given up, when others wait behind it.
const LINK_LIMIT: usize = 32 << 20;
/// How long a socket whose last handle is gone stays open for the daemon to take what was written, before it is cut.
const LINGER: Duration = Duration::from_secs(5);

/// A byte stream to a daemon.
///
/// ```no_run
/// fn over(pipe: impl pilot::Transport) -> pilot::Driver {
///     pilot::Driver::over(pipe)
/// }
/// ```
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Transport for T {}

/// A handle to a socket. The socket is closed when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Link {
    guard: Arc<Guard>,
}

struct Guard {
    shared: Arc<Shared>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.shared.unused.notify_one();
        self.shared.out.close();
        self.shared.resume.notify_one();
    }
}

pub(crate) struct Shared {
    pub(crate) out: Outbox,
    state: Mutex<State>,
    /// Streams that hold more unread bytes than they should.
    pub(crate) overfull: AtomicUsize,
    /// Wakes the reader task when it holds back because of them.
    pub(crate) resume: Notify,
    /// The last handle is gone.
    unused: Notify,
    /// Whether the daemon is gone.
    down: watch::Sender<bool>,
    /// What goes beyond the official protocol, where the daemon serves it.
    pub(crate) ext: Option<Extension>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiter>,
    streams: FxHashMap<u32, Arc<Cell>>,
    listeners: FxHashMap<u16, Arc<AcceptQueue>>,
    /// What came for connections nobody knows while a dial waits, whose answer may be right behind it.
    early: Early,
    /// What this socket's datagrams go through.
    datagrams: Option<Feed>,
    down: bool,
}

struct Waiter {
    op: &'static str,
    answer: u8,
    tx: oneshot::Sender<Result<Reply, Error>>,
}

/// Frames that a daemon sent for a dialled connection before it said which one that is.
#[derive(Default)]
struct Early {
    /// The connection with its data, or with none at its end.
    frames: Vec<(u32, Option<Vec<u8>>)>,
    bytes: usize,
}

impl Early {
    /// Bytes kept, more than a daemon sends in the moment between; below the limit of a stream's unread bytes.
    const LIMIT: usize = 256 * 1024;

    fn keep(&mut self, conn: u32, data: Option<&[u8]>) {
        let size = data.map_or(0, <[u8]>::len) + size_of::<(u32, Option<Vec<u8>>)>();
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes <= Self::LIMIT {
            self.frames.push((conn, data.map(<[u8]>::to_vec)));
        }
    }

    /// Hands over what there is for a connection; whatever else came is for none of this socket's. Where something had
    /// to be dropped the stream ends, because it would have a hole.
    fn deliver(&mut self, conn: u32, cell: &Cell) {
        let Self { frames, bytes } = std::mem::take(self);
        for (of, data) in frames {
            match data {
                _ if of != conn => {}
                // Below the limit it cannot be overfull.
                Some(data) => drop(cell.deliver(&data)),
                None => cell.close_ok(),
            }
        }
        if bytes > Self::LIMIT {
            cell.overrun();
        }
    }
}

/// The answer to a request.
pub(crate) enum Reply {
    /// The JSON text of an answer.
    Json(Vec<u8>),
    /// An answer that says no more than yes.
    Done,
    /// A connection; what arrived for it meanwhile is in the cell.
    Dialled(u32, Arc<Cell>),
}

impl Link {
    /// Takes a connected socket into service, without the extension. Must be called within a tokio runtime.
    pub(crate) fn start(io: impl Transport) -> Self {
        Self::start_greeted(io, Greeted::default())
    }

    /// Takes a socket into service on which the greeting has been exchanged.
    pub(crate) fn start_greeted(io: impl Transport, greeted: Greeted) -> Self {
        let (source, sink) = tokio::io::split(io);
        let Greeted { greeting, decoder } = greeted;
        let shared = Arc::new(Shared {
            out: Outbox::new(Box::new(sink)),
            state: Mutex::default(),
            overfull: AtomicUsize::new(0),
            resume: Notify::new(),
            unused: Notify::new(),
            down: watch::Sender::new(false),
            ext: greeting.map(Extension::new),
        });
        tokio::spawn({
            let shared = Arc::clone(&shared);
            async move { poll_fn(|cx| shared.out.poll_writer(cx)).await }
        });
        tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                let linger = async {
                    shared.unused.notified().await;
                    tokio::time::sleep(LINGER).await;
                };
                tokio::select! {
                    () = read(&shared, source, decoder) => {}
                    () = linger => {}
                }
                shared.disconnect();
            }
        });
        Self { guard: Arc::new(Guard { shared }) }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.guard.shared
    }

    /// Whether the daemon is gone.
    pub(crate) fn is_down(&self) -> bool {
        *self.shared().down.borrow()
    }

    /// Waits until the daemon is gone, without keeping the socket open.
    pub(crate) fn gone(&self) -> impl Future<Output = ()> + use<> {
        let mut down = self.shared().down.subscribe();
        async move {
            // Without its sender the socket is gone as well.
            let _ = down.wait_for(|down| *down).await;
        }
    }

    /// What goes beyond the official protocol, where the daemon serves it.
    pub(crate) fn ext(&self) -> Option<&Extension> {
        self.shared().ext.as_ref()
    }

    /// Sends a request and waits for its answer. `op` names it in errors.
    pub(crate) async fn request(&self, op: &'static str, request: &Request<'_>) -> Result<Reply, Error> {
        self.begin(op, request)?.await.unwrap_or(Err(Error::Disconnected { op }))
    }

    /// Sends a request; the answer comes through the channel. An answer nobody waits for any more is taken off the
    /// queue all the same.
    pub(crate) fn begin(
        &self,
        op: &'static str,
        request: &Request<'_>,
    ) -> Result<oneshot::Receiver<Result<Reply, Error>>, Error> {
        let (tx, rx) = oneshot::channel();
        let shared = self.shared();
        let frame = frame_of(op, request)?;
        // The state stays locked until the frame is in the outbox: the order of waiters is the order of frames.
        let mut state = shared.state.lock();
        if state.down {
            return Err(Error::Disconnected { op });
        }
        // Without an answer of its own only an Error can end the wait; no opcode is 0.
        let answer = request.answer_opcode().unwrap_or(0);
        state.waiting.push_back(Waiter { op, answer, tx });
        shared.out.push(|out| out.extend_from_slice(&frame));
        drop(state);
        shared.resume.notify_one();
        Ok(rx)
    }

    /// Sends a request that has no answer.
    pub(crate) fn send(&self, op: &'static str, request: &Request<'_>) -> Result<(), Error> {
        let frame = frame_of(op, request)?;
        let sent = self.shared().out.push(|out| out.extend_from_slice(&frame));
        if sent { Ok(()) } else { Err(Error::Disconnected { op }) }
    }

    /// Registers the queue of a port, before the port is bound (03 §14.2).
    pub(crate) fn add_listener(&self, port: u16, queue: Arc<AcceptQueue>) {
        let mut state = self.shared().state.lock();
        if state.down {
            queue.end();
        }
        state.listeners.insert(port, queue);
    }

    /// Refuses what still arrives for a port.
    pub(crate) fn remove_listener(&self, port: u16) {
        let mut state = self.shared().state.lock();
        state.listeners.remove(&port);
        if state.datagrams.as_ref().is_some_and(|feed| feed.port() == Some(port)) {
            state.datagrams = None;
        }
    }

    /// Takes datagrams from this socket from now on.
    pub(crate) fn set_datagrams(&self, feed: Feed) {
        let mut state = self.shared().state.lock();
        if !state.down {
            state.datagrams = Some(feed);
        }
    }
}

impl Shared {
    /// Asks the daemon to close a connection; no answer is waited for.
    pub(crate) fn close_conn(&self, conn: u32) -> bool {
        // A Close always fits into a frame.
        self.out.push(|out| {
            let _ = Request::Close { conn }.emit(out);
        })
    }

    /// Forgets a connection nobody reads any more.
    pub(crate) fn forget(&self, conn: u32) {
        let cell = self.state.lock().streams.remove(&conn);
        if cell.is_some_and(|cell| cell.discard()) {
            self.overfull.fetch_sub(1, Ordering::Relaxed);
        }
        self.resume.notify_one();
    }

    /// The daemon is gone, or nobody wants it any more: wakes everything that waits.
    fn disconnect(&self) {
        self.out.kill();
        let mut state = self.state.lock();
        state.down = true;
        let State { waiting, streams, listeners, datagrams, .. } = &mut *state;
        for waiter in waiting.drain(..) {
            let _ = waiter.tx.send(Err(Error::Disconnected { op: waiter.op }));
        }
        streams.drain().for_each(|(_, cell)| cell.disconnected());
        listeners.drain().for_each(|(_, queue)| queue.end());
        *datagrams = None;
        drop(state);
        if let Some(ext) = &self.ext {
            ext.disconnect();
        }
        self.down.send_replace(true);
    }

    /// A frame of the extension. False when the daemon breaks its rules.
    fn handle_extended(&self, body: &[u8]) -> bool {
        // Without a greeting they are frames like any other that nobody knows.
        let Some(ext) = &self.ext else { return true };
        let feed = |port, from, missed, data: &[u8]| {
            if let Some(feed) = &self.state.lock().datagrams {
                feed.missed(missed);
                feed.push(from, port, data);
            }
        };
        ext.handle(body, &self.out, feed)
    }

    fn handle(&self, answer: Answer<'_>) {
        match answer {
            Answer::Recv { conn, data } => {
                let cell = self.cell(conn, Some(data));
                // Data of a connection we have closed and forgotten goes nowhere.
                if cell.is_some_and(|cell| cell.deliver(data)) {
                    self.overfull.fetch_add(1, Ordering::Relaxed);
                }
            }
            Answer::CloseOk { conn } => {
                let cell = self.cell(conn, None);
                match cell {
                    Some(cell) => cell.close_ok(),
                    // Not one of ours, so somebody asked to close it by its id.
                    None => self.answer(op::CLOSE_OK, Reply::Done),
                }
            }
            Answer::Accept { local_port, conn, remote } => self.accept(local_port, conn, remote),
            Answer::RecvFrom { from, port, data } => {
                if let Some(feed) = &self.state.lock().datagrams {
                    feed.push(from, port, data);
                }
            }
            Answer::BindOk { .. } => {
                // Here and not where the listener waits: the port's first datagram may be right behind.
                if let Some(feed) = &self.state.lock().datagrams {
                    feed.claim();
                }
                self.answer(op::BIND_OK, Reply::Done);
            }
            Answer::DialOk { conn } => self.dialled(conn),
            Answer::Error { text, .. } => self.refused(text),
            Answer::Json { op, body } => self.answer(op, Reply::Json(body.to_vec())),
            other => self.answer(other.opcode(), Reply::Done),
        }
    }

    /// What has arrived for a connection. What comes for one that is not known yet is kept.
    fn cell(&self, conn: u32, data: Option<&[u8]>) -> Option<Arc<Cell>> {
        let mut state = self.state.lock();
        let cell = state.streams.get(&conn).cloned();
        if cell.is_none() && state.waiting.iter().any(|waiter| waiter.answer == op::DIAL_OK) {
            state.early.keep(conn, data);
        }
        cell
    }

    fn answer(&self, opcode: u8, reply: Reply) {
        let waiter = {
            let mut state = self.state.lock();
            let at = state.waiting.iter().position(|waiter| waiter.answer == opcode);
            at.and_then(|at| state.waiting.remove(at))
        };
        if let Some(waiter) = waiter {
            let _ = waiter.tx.send(Ok(reply));
        }
    }

    /// A frame that cannot be read. When it is the answer to a request, nothing better will come.
    fn malformed(&self, body: &[u8]) {
        let mut state = self.state.lock();
        let at = state.waiting.iter().position(|waiter| body.first() == Some(&waiter.answer));
        let Some(waiter) = at.and_then(|at| state.waiting.remove(at)) else { return };
        drop(state);
        let error = match waiter.answer {
            op::DIAL_OK => Error::InvalidDialResponse,
            _ => Error::Unmarshal { op: waiter.op, why: "the answer is cut short".into() },
        };
        let _ = waiter.tx.send(Err(error));
    }

    fn dialled(&self, conn: u32) {
        let waiter = {
            let mut state = self.state.lock();
            let at = state.waiting.iter().position(|waiter| waiter.answer == op::DIAL_OK);
            let waiter = at.and_then(|at| state.waiting.remove(at));
            waiter.map(|waiter| {
                let cell = Arc::new(Cell::default());
                state.early.deliver(conn, &cell);
                state.streams.insert(conn, Arc::clone(&cell));
                (waiter, cell)
            })
        };
        let taken = waiter.is_some_and(|(waiter, cell)| waiter.tx.send(Ok(Reply::Dialled(conn, cell))).is_ok());
        if !taken {
            // Whoever dialled has given up; the connection must not stay open without an owner.
            self.forget(conn);
            self.close_conn(conn);
        }
    }

    fn accept(&self, port: u16, conn: u32, remote: SocketAddress) {
        let cell = Arc::new(Cell::default());
        let queue = {
            let mut state = self.state.lock();
            let queue = state.listeners.get(&port).cloned();
            if queue.is_some() {
                // From here on Recv and CloseOK of this connection are kept, accepted by the application or not.
                state.streams.insert(conn, Arc::clone(&cell));
            }
            queue
        };
        if !queue.is_some_and(|queue| queue.push(Incoming { conn, remote, cell })) {
            self.forget(conn);
            self.close_conn(conn);
        }
    }

    fn refused(&self, reason: String) {
        let mut state = self.state.lock();
        let confirms = state.waiting.front().is_some_and(|waiter| waiter.answer == op::SEND_TO_CONFIRM_OK);
        if text::is_asynchronous(&reason) && !(confirms && reason.starts_with("sendto:")) {
            if reason.starts_with("sendto:") {
                if let Some(feed) = &state.datagrams {
                    feed.failed(reason);
                }
                return;
            }
            // `send: …` names no connection. It is certain only when the socket carries a single one.
            let named = reason.strip_prefix("connection ").and_then(|rest| rest.split(' ').next()?.parse::<u32>().ok());
            let cell = match named {
                Some(conn) => state.streams.get(&conn).cloned(),
                None if state.streams.len() == 1 => state.streams.values().next().cloned(),
                None => None,
            };
            drop(state);
            if let Some(cell) = cell {
                cell.write_failed(reason);
            }
            return;
        }
        let Some(waiter) = state.waiting.pop_front() else { return };
        drop(state);
        let op = waiter.op;
        let error = if reason.is_empty() { Error::Unspecified { op } } else { Error::Daemon { op, text: reason } };
        let _ = waiter.tx.send(Err(error));
    }

    /// Holds the reader back while a stream holds too much and nobody else waits for this socket.
    async fn pace(&self) {
        while self.overfull.load(Ordering::Relaxed) > 0 {
            let resumed = self.resume.notified();
            if self.someone_waits() {
                self.give_up_fullest();
                return;
            }
            resumed.await;
        }
    }

    fn someone_waits(&self) -> bool {
        let state = self.state.lock();
        !state.waiting.is_empty()
            || state.streams.values().any(|cell| cell.is_starving())
            || state.listeners.values().any(|queue| queue.is_starving())
    }

    /// Above the limit of the socket, ends the stream with the most unread bytes, so that the others go on.
    fn give_up_fullest(&self) {
        let (total, fullest) = {
            let state = self.state.lock();
            let sizes = state.streams.iter().map(|(conn, cell)| (cell.unread(), *conn, cell));
            let total: usize = sizes.clone().map(|(unread, ..)| unread).sum();
            (total, sizes.max_by_key(|(unread, ..)| *unread).map(|(_, conn, cell)| (conn, Arc::clone(cell))))
        };
        if let Some((conn, cell)) = fullest.filter(|_| total > LINK_LIMIT) {
            tracing::warn!(conn, total, "stream given up: its data was not read while others waited");
            if cell.overrun() {
                self.overfull.fetch_sub(1, Ordering::Relaxed);
            }
            self.close_conn(conn);
        }
    }
}

fn frame_of(op: &'static str, request: &Request<'_>) -> Result<Vec<u8>, Error> {
    let mut frame = Vec::new();
    match request.emit(&mut frame) {
        Ok(()) => Ok(frame),
        Err(FrameError::TooLarge { len, limit }) => Err(Error::TooLarge { op, size: len, limit }),
        // The error may gain members; all of them mean that nothing was written.
        Err(_) => Err(Error::TooLarge { op, size: 0, limit: MAX_FRAME }),
    }
}

/// The reader task: ready when the daemon is gone or breaks the framing.
async fn read(shared: &Shared, mut source: impl AsyncRead + Unpin, mut decoder: FrameDecoder) {
    // What came behind the greeting waits in the decoder.
    let mut first = true;
    loop {
        if !std::mem::take(&mut first) {
            let buffer = decoder.buffer();
            buffer.reserve(READ_CHUNK);
            match source.read_buf(buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(body)) if body.first().is_some_and(|op| ext::is_extension(*op)) => {
                    if !shared.handle_extended(body) {
                        return;
                    }
                }
                Ok(Some(body)) => {
                    match Answer::parse(body) {
                        Ok(answer) => shared.handle(answer),
                        // Frames nobody knows are ignored: newer daemons may push more.
                        Err(_) => shared.malformed(body),
                    }
                }
                Ok(None) => break,
                Err(_) => return,
            }
        }
        shared.pace().await;
    }
}
