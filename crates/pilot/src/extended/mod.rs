//! The local socket as our daemons serve it beyond the official protocol: requests with numbers, errors with codes,
//! credit for each stream (`docs/spec/local-socket.md`; rules are cited as L1 and so on).
//!
//! A socket begins with [`greet`]; a daemon that does not know the greeting is talked to without the extension.

pub(crate) mod events;
pub(crate) mod listener;
pub(crate) mod stream;

use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use pilot_wire::frame::{FrameDecoder, FrameError, MAX_FRAME};
use pilot_wire::ipc::ext::{self, ClientFrame, DaemonFrame, ExtError, Opened, Problem, code};
use pilot_wire::ipc::{Answer, text};
use pilot_wire::{SocketAddress, json};
use rustc_hash::FxHashMap;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;

use self::stream::Pipe;
use crate::error::Error;
use crate::plain::link::{Link, Shared, Transport};
use crate::plain::outbox::Outbox;
use crate::stream::Stream;

/// Bytes of one stream that may wait here unread; the peer is held back beyond them. About one round trip at 1 Gbit/s
/// and 4 ms, and many times what passes between daemon and program in one turn.
pub(crate) const WINDOW: u32 = 512 * 1024;

/// What the daemon said of itself.
#[derive(Clone, Debug)]
pub(crate) struct Greeting {
    /// Bytes we may send on a new stream.
    credit: u32,
    /// The JSON object: `daemon`, `node_id`, `address`, `limits`, `features`, `methods`.
    pub(crate) about: Value,
}

/// A socket after the greeting.
#[derive(Default)]
pub(crate) struct Greeted {
    /// None from a daemon that does not serve the extension.
    pub(crate) greeting: Option<Greeting>,
    /// With what came behind the answer.
    pub(crate) decoder: FrameDecoder,
}

/// Offers the extension (L2, L3).
///
/// # Errors
/// When the daemon goes away, refuses this client, or speaks a version that does not exist.
pub(crate) async fn greet(io: &mut impl Transport) -> io::Result<Greeted> {
    let about = json::to_vec(&json!({ "client": concat!("pilot/", env!("CARGO_PKG_VERSION")) }));
    let mut frame = Vec::new();
    // A few bytes always fit into a frame.
    let _ = ClientFrame::Greet { version: ext::VERSION, credit: WINDOW, about: &about }.emit(&mut frame);
    // A daemon that refuses this client may have left before; what it said is still there.
    let written = io.write_all(&frame).await;
    let mut decoder = FrameDecoder::default();
    loop {
        let verdict = match decoder.next_frame().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))? {
            Some(body) => judge(body)?,
            None => {
                if io.read_buf(decoder.buffer()).await? == 0 {
                    written?;
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon closed the socket"));
                }
                continue;
            }
        };
        if let Some(greeting) = verdict {
            return Ok(Greeted { greeting, decoder });
        }
    }
}

/// What a frame says about the greeting: nothing (old daemons push datagrams to everybody), no, or yes.
fn judge(body: &[u8]) -> io::Result<Option<Option<Greeting>>> {
    let refused = |why: String| Err(io::Error::other(why));
    match DaemonFrame::parse(body) {
        Ok(DaemonFrame::Greeting { version, credit, about }) if (1..=ext::VERSION).contains(&version) => {
            let about = json::parse(about).unwrap_or_default();
            return Ok(Some(Some(Greeting { credit, about })));
        }
        Ok(DaemonFrame::Greeting { version, .. }) => {
            return refused(format!("the daemon speaks version {version} of the local socket, this program does not"));
        }
        Ok(DaemonFrame::Failed { problem, .. }) => return refused(problem.message),
        _ => {}
    }
    match Answer::parse(body) {
        Ok(Answer::Error { text, .. }) if text == text::unknown_command(ext::op::GREET) => Ok(Some(None)),
        Ok(Answer::Error { text, .. }) => refused(text),
        _ => Ok(None),
    }
}

/// The answer to a request.
pub(crate) enum Reply {
    Done,
    Result(Vec<u8>),
    /// The stream, what the service says first, and where its data arrives.
    Opened(Opened, Vec<u8>, Arc<Pipe>),
}

struct Waiter {
    op: &'static str,
    tx: oneshot::Sender<Result<Reply, Error>>,
}

/// The extension's part of a socket.
pub(crate) struct Extension {
    greeting: Greeting,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last_request: u32,
    waiting: FxHashMap<u32, Waiter>,
    streams: FxHashMap<u32, Arc<Pipe>>,
    down: bool,
}

impl Inner {
    /// A number that no request has.
    fn number(&mut self) -> u32 {
        loop {
            self.last_request = self.last_request.wrapping_add(1);
            if self.last_request != 0 && !self.waiting.contains_key(&self.last_request) {
                return self.last_request;
            }
        }
    }
}

impl Extension {
    pub(crate) fn new(greeting: Greeting) -> Self {
        Self { greeting, inner: Mutex::default() }
    }

    pub(crate) fn about(&self) -> &Value {
        &self.greeting.about
    }

    /// The own address as the daemon gave it in its greeting.
    fn local(&self, port: u16) -> SocketAddress {
        let text = self.greeting.about.get("address").and_then(Value::as_str).unwrap_or_default();
        SocketAddress::new(text.parse().unwrap_or_default(), port)
    }

    /// A frame of the daemon. False when it breaks the rules, and nothing more can be believed.
    pub(crate) fn handle(
        &self,
        body: &[u8],
        out: &Outbox,
        datagram: impl FnOnce(u16, SocketAddress, u32, &[u8]),
    ) -> bool {
        let frame = match DaemonFrame::parse(body) {
            Ok(frame) => frame,
            // Newer daemons may push more (L5).
            Err(ExtError::Unknown(_) | ExtError::Empty) => return true,
            Err(error) => {
                tracing::warn!(%error, "the daemon sent a frame that cannot be understood");
                return false;
            }
        };
        match frame {
            DaemonFrame::Done { request } => self.answer(request, Ok(Reply::Done)),
            DaemonFrame::Result { request, body } => self.answer(request, Ok(Reply::Result(body.to_vec()))),
            DaemonFrame::Failed { request: 0, problem } => {
                tracing::warn!(code = problem.code, message = problem.message, "the daemon gives this program up");
                return false;
            }
            DaemonFrame::Failed { request, problem } => {
                let waiter = self.inner.lock().waiting.remove(&request);
                if let Some(Waiter { op, tx }) = waiter {
                    let _ = tx.send(Err(refusal(op, problem)));
                }
            }
            DaemonFrame::Opened { request, opened, about } => self.opened(request, opened, about, out),
            DaemonFrame::Datagram { port, from, missed, data } => datagram(port, from, missed, data),
            DaemonFrame::Received { stream, data } => return self.pipe(stream).is_none_or(|pipe| pipe.deliver(data)),
            DaemonFrame::Granted { stream, bytes } => {
                if let Some(pipe) = self.pipe(stream) {
                    pipe.grant(bytes);
                }
            }
            DaemonFrame::Finished { stream } => {
                if let Some(pipe) = self.pipe(stream) {
                    pipe.finish();
                }
            }
            DaemonFrame::Stopped { stream, delivered, problem } => {
                if let Some(pipe) = self.pipe(stream) {
                    pipe.stop(delivered, &problem);
                }
            }
            DaemonFrame::Closed { stream, delivered, problem } => {
                let pipe = self.inner.lock().streams.remove(&stream);
                if let Some(pipe) = pipe {
                    pipe.close(delivered, &problem);
                }
            }
            // A second greeting, and what later versions add.
            _ => {}
        }
        true
    }

    fn pipe(&self, stream: u32) -> Option<Arc<Pipe>> {
        self.inner.lock().streams.get(&stream).cloned()
    }

    fn answer(&self, request: u32, reply: Result<Reply, Error>) {
        let waiter = self.inner.lock().waiting.remove(&request);
        if let Some(waiter) = waiter {
            let _ = waiter.tx.send(reply);
        }
    }

    fn opened(&self, request: u32, opened: Opened, about: &[u8], out: &Outbox) {
        let pipe = Arc::new(Pipe::new(self.greeting.credit));
        let waiter = {
            let mut inner = self.inner.lock();
            inner.streams.insert(opened.stream, Arc::clone(&pipe));
            inner.waiting.remove(&request)
        };
        let taken =
            waiter.is_some_and(|waiter| waiter.tx.send(Ok(Reply::Opened(opened, about.to_vec(), pipe))).is_ok());
        if !taken {
            // Whoever asked has given up, and the stream must not stay open without an owner (L7).
            abandon(opened.stream, out);
        }
    }

    /// The daemon is gone, or nobody wants it any more: wakes everything that waits.
    pub(crate) fn disconnect(&self) {
        let (waiting, streams) = {
            let mut inner = self.inner.lock();
            inner.down = true;
            (std::mem::take(&mut inner.waiting), std::mem::take(&mut inner.streams))
        };
        // The streams first: who asked about one finds it ended.
        streams.into_values().for_each(|pipe| pipe.daemon_gone());
        for Waiter { op, tx } in waiting.into_values() {
            let _ = tx.send(Err(Error::Disconnected { op }));
        }
    }
}

/// Closes a stream nobody owns.
fn abandon(stream: u32, out: &Outbox) {
    send(out, &ClientFrame::Close { stream });
}

/// Appends a small frame; false when the daemon is gone.
fn send(out: &Outbox, frame: &ClientFrame<'_>) -> bool {
    out.push(|buf| {
        // Callers pass frames of a few bytes, which always fit.
        let _ = frame.emit(buf);
    })
}

fn refusal(op: &'static str, problem: Problem) -> Error {
    let Problem { code, message, hint } = problem;
    if code == code::DAEMON_SHUTDOWN {
        return Error::Disconnected { op };
    }
    Error::Refused { op, code, message, hint: Some(hint).filter(|hint| !hint.is_empty()) }
}

/// A request that waits for its answer. Dropped before, it gives the request up (L7).
pub(crate) struct Pending {
    op: &'static str,
    request: u32,
    rx: oneshot::Receiver<Result<Reply, Error>>,
    shared: Arc<Shared>,
    answered: bool,
}

impl Future for Pending {
    type Output = Result<Reply, Error>;

    fn poll(mut self: std::pin::Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> std::task::Poll<Self::Output> {
        let answer = std::task::ready!(std::pin::Pin::new(&mut self.rx).poll(cx));
        self.answered = true;
        std::task::Poll::Ready(answer.unwrap_or(Err(Error::Disconnected { op: self.op })))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        self.rx.close();
        match self.rx.try_recv() {
            // The answer was there and nobody has looked at it.
            Ok(Ok(Reply::Opened(opened, ..))) => abandon(opened.stream, &self.shared.out),
            Ok(_) => {}
            Err(_) => {
                send(&self.shared.out, &ClientFrame::Cancel { request: self.request });
            }
        }
    }
}

impl Link {
    /// Sends a request of the extension. The link must have it.
    pub(crate) fn ask<'a>(
        &self,
        op: &'static str,
        build: impl FnOnce(u32) -> ClientFrame<'a>,
    ) -> Result<Pending, Error> {
        let Some(ext) = self.ext() else {
            return Err(Error::Unsupported { op, what: EXTENSION });
        };
        let (tx, rx) = oneshot::channel();
        let mut inner = ext.inner.lock();
        if inner.down {
            return Err(Error::Disconnected { op });
        }
        let request = inner.number();
        let mut frame = Vec::new();
        match build(request).emit(&mut frame) {
            Ok(()) => {}
            Err(FrameError::TooLarge { len, limit }) => return Err(Error::TooLarge { op, size: len, limit }),
            // The error may gain members; all of them mean that nothing was written.
            Err(_) => return Err(Error::TooLarge { op, size: 0, limit: MAX_FRAME }),
        }
        inner.waiting.insert(request, Waiter { op, tx });
        drop(inner);
        // When the daemon is gone the reader notices and answers for it.
        self.shared().out.push(|buf| buf.extend_from_slice(&frame));
        Ok(Pending { op, request, rx, shared: Arc::clone(self.shared()), answered: false })
    }

    /// A request number for a frame whose answer nobody waits for.
    fn unheard(&self) -> u32 {
        self.ext().map_or(1, |ext| ext.inner.lock().number())
    }

    /// Calls a method of the daemon.
    pub(crate) async fn call(&self, op: &'static str, method: &str, params: &Value) -> Result<Value, Error> {
        let params = json::to_vec(params);
        match self.ask(op, |request| ClientFrame::Call { request, method, params: &params })?.await? {
            Reply::Result(body) => json::parse(&body).map_err(|why| Error::Unmarshal { op, why: why.to_string() }),
            Reply::Done => Ok(Value::Null),
            Reply::Opened(opened, ..) => {
                abandon(opened.stream, &self.shared().out);
                Err(Error::Unmarshal { op, why: "the daemon opened a stream instead of answering".into() })
            }
        }
    }

    /// Opens a stream to a peer.
    pub(crate) async fn open<'a>(
        &self,
        op: &'static str,
        build: impl FnOnce(u32) -> ClientFrame<'a>,
    ) -> Result<Stream, Error> {
        match self.ask(op, build)?.await? {
            Reply::Opened(opened, _, pipe) => Ok(self.opened(opened, pipe)),
            Reply::Done | Reply::Result(_) => Err(Error::InvalidDialResponse),
        }
    }

    /// Opens a stream to a service inside the daemon, with what it says first.
    pub(crate) async fn open_said<'a>(
        &self,
        op: &'static str,
        build: impl FnOnce(u32) -> ClientFrame<'a>,
    ) -> Result<(Stream, Value), Error> {
        match self.ask(op, build)?.await? {
            Reply::Opened(opened, about, pipe) => {
                let stream = self.opened(opened, pipe);
                let said = if about.is_empty() { Ok(Value::Null) } else { json::parse(&about) };
                said.map(|said| (stream, said)).map_err(|why| Error::Unmarshal { op, why: why.to_string() })
            }
            Reply::Done | Reply::Result(_) => Err(Error::InvalidDialResponse),
        }
    }

    fn opened(&self, opened: Opened, pipe: Arc<Pipe>) -> Stream {
        let local = self.ext().map(|ext| ext.local(opened.local_port)).unwrap_or_default();
        let channel = stream::ExtendedStream::new(self.clone(), opened, pipe);
        Stream::new(Box::new(channel), local, opened.remote)
    }
}

/// The name of what old daemons lack.
pub(crate) const EXTENSION: &str = "calls and streams to services (the extended local socket)";
