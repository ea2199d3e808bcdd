//! What the extension keeps of one client, all of it bounded, and what it answers.

use std::collections::VecDeque;
use std::sync::Arc;

use pilot_proto::endpoint::ConnId;
use pilot_proto::stream::CloseReason;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::{DaemonFrame, MAX_JSON, Opened, Problem, code};
use rustc_hash::FxHashMap;
use serde_json::Value;
use tokio::sync::oneshot;

use super::pipe::Pipe;

/// Requests of one client that wait (L38).
pub(super) const MAX_REQUESTS: usize = 1024;
/// Streams of one client (L38, 07 §12).
pub(super) const MAX_STREAMS: usize = 4096;
/// Ports of one client (L38).
pub(super) const MAX_PORTS: usize = 1024;
/// Streams in the backlog of one port (L8).
pub(super) const MAX_BACKLOG: usize = 1024;
/// Parameters of all waiting calls of one client together, bytes (L32).
pub(super) const MAX_CALL_BYTES: usize = 16 << 20;
/// Most credit, which is as good as none too many (L23).
const MAX_CREDIT: u64 = 1 << 63;

/// A request that has no answer yet.
pub(super) enum Waiting {
    /// The stream that is being dialled; dropping the sender ends the timer.
    Dial { stream: u32, _timer: Option<oneshot::Sender<()>> },
    /// The port that has no stream to give.
    Accept(u16),
    /// Work beside; dropping the sender ends it.
    Task { _stop: oneshot::Sender<()>, bytes: usize },
    /// The stream whose bytes have to arrive.
    Delivered { stream: u32, _timer: Option<oneshot::Sender<()>> },
    /// The stream whose peer may still say that it knows half-close.
    Finish(u32),
}

/// A bound port.
pub(super) struct Port {
    pub(super) backlog: usize,
    /// Streams that wait for an Accept.
    pub(super) streams: VecDeque<u32>,
    /// Accepts that wait for a stream.
    pub(super) accepts: VecDeque<u32>,
    pub(super) datagrams: bool,
}

/// The other end of a stream.
#[derive(Clone)]
pub(super) enum End {
    /// A connection of the protocol core.
    Peer(ConnId),
    /// A service in this process.
    Service(Arc<Pipe>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The answer to this Dial is still to come.
    Dialing(u32),
    /// Waits for an Accept.
    Backlog,
    /// The client knows it.
    Open,
}

/// Why a stream ends, where the protocol core does not know the reason.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Cause {
    Local,
    Disconnected,
    CreditExceeded,
    Shutdown,
}

impl Cause {
    fn problem(self) -> Problem {
        match self {
            Self::Local => Problem::new(code::LOCAL, "reset by this client"),
            Self::Disconnected => Problem::new(code::DISCONNECTED, "ended by its number, by another program"),
            Self::CreditExceeded => Problem::new(code::CREDIT_EXCEEDED, "more bytes were sent than had been granted")
                .hint(
                    "count the bytes of Data frames against the credit of the stream (docs/spec/local-socket.md, L20)",
                ),
            Self::Shutdown => shutdown(),
        }
    }
}

pub(super) fn shutdown() -> Problem {
    Problem::new(code::DAEMON_SHUTDOWN, "the daemon is shutting down").hint("connect again once it has restarted")
}

/// How the protocol core or a service says that a stream is over.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Over {
    Core(CloseReason),
    Service(Option<Problem>),
}

impl Over {
    pub(super) fn problem(&self) -> Problem {
        match self {
            Self::Core(reason) => Problem::new(reason.code(), reason.to_string()),
            Self::Service(None) => Problem::new(code::CLEAN, "closed"),
            Self::Service(Some(problem)) => problem.clone(),
        }
    }
}

pub(super) struct Stream {
    pub(super) end: End,
    pub(super) phase: Phase,
    pub(super) opened: Opened,
    /// In the list of streams to serve.
    pub(super) queued: bool,
    /// Bytes the daemon may still send.
    pub(super) credit: u64,
    /// Bytes the client may still send.
    pub(super) granted: usize,
    /// Bytes the client has sent.
    pub(super) sent: u64,
    /// What was granted and is not delivered, as counted in [`Ext::reserved`].
    pub(super) reserved: usize,
    /// The client has ended its direction.
    pub(super) finishing: bool,
    /// Finished has been said.
    pub(super) finished: bool,
    /// Stopped has been said.
    pub(super) stopped: bool,
    /// The client wants no more of it.
    pub(super) closing: bool,
    pub(super) over: Option<Over>,
    pub(super) cause: Option<Cause>,
    /// Requests that wait until so many bytes have arrived.
    pub(super) waits: Vec<(u32, u64)>,
}

impl Stream {
    pub(super) fn new(end: End, phase: Phase, opened: Opened, credit: u64, granted: usize) -> Self {
        Self {
            end,
            phase,
            opened,
            queued: false,
            credit,
            granted,
            sent: 0,
            reserved: 0,
            finishing: false,
            finished: false,
            stopped: false,
            closing: false,
            over: None,
            cause: None,
            waits: Vec::new(),
        }
    }

    /// Whether bytes of the client still go anywhere.
    pub(super) fn takes_data(&self) -> bool {
        self.phase == Phase::Open
            && !self.finishing
            && !self.stopped
            && !self.closing
            && self.over.is_none()
            && self.cause.is_none()
    }

    /// Why it ended.
    pub(super) fn problem(&self) -> Problem {
        match (self.cause, &self.over) {
            (Some(cause), _) => cause.problem(),
            (None, Some(over)) => over.problem(),
            (None, None) => Problem::new(code::CLEAN, "closed"),
        }
    }
}

/// The extension's side of one client.
pub(in crate::local) struct Ext {
    /// What the client takes of each new stream at once.
    credit: u64,
    /// What it may send on each new stream at once.
    pub(super) initial: usize,
    pub(super) requests: FxHashMap<u32, Waiting>,
    pub(super) streams: FxHashMap<u32, Stream>,
    pub(super) ports: FxHashMap<u16, Port>,
    last_stream: u32,
    /// Streams to serve, in turn.
    ready: VecDeque<u32>,
    /// Parameters of waiting calls.
    call_bytes: usize,
    /// Bytes granted and not delivered, of all streams.
    pub(super) reserved: usize,
    /// Streams that got less credit than they could use.
    starved: VecDeque<u32>,
    /// Datagrams dropped since the last one that was not.
    pub(in crate::local) missed: u32,
    /// The daemon is about to end.
    pub(super) ending: bool,
}

impl Ext {
    pub(super) fn new(credit: u32, initial: usize) -> Self {
        Self {
            credit: u64::from(credit),
            initial,
            requests: FxHashMap::default(),
            streams: FxHashMap::default(),
            ports: FxHashMap::default(),
            last_stream: 0,
            ready: VecDeque::new(),
            call_bytes: 0,
            reserved: 0,
            starved: VecDeque::new(),
            missed: 0,
            ending: false,
        }
    }

    // --- Requests ------------------------------------------------------------------------------------------------

    /// Whether a new request may begin; otherwise it is answered.
    pub(super) fn admit(&self, request: u32, frames: &mut Vec<u8>) -> bool {
        let problem = if self.ending {
            shutdown()
        } else if self.requests.contains_key(&request) {
            Problem::new(code::DUPLICATE_REQUEST, format!("request {request} is still waiting"))
                .hint("choose a number that no waiting request has")
        } else if self.requests.len() >= MAX_REQUESTS {
            Problem::new(code::TOO_MANY_REQUESTS, format!("{MAX_REQUESTS} requests of this client wait already"))
                .hint("wait for answers before asking more")
        } else {
            return true;
        };
        fail(request, problem, frames);
        false
    }

    /// Takes a request off the list. `None` when it has been answered or given up already.
    pub(super) fn settle(&mut self, request: u32) -> Option<Waiting> {
        let waiting = self.requests.remove(&request)?;
        if let Waiting::Task { bytes, .. } = &waiting {
            self.call_bytes -= bytes;
        }
        Some(waiting)
    }

    /// Begins work beside. The receiver is done when the work is no longer wanted.
    pub(super) fn begin_task(
        &mut self,
        request: u32,
        bytes: usize,
        frames: &mut Vec<u8>,
    ) -> Option<oneshot::Receiver<()>> {
        if self.call_bytes + bytes > MAX_CALL_BYTES {
            let why = format!("the parameters of this client's waiting calls exceed {MAX_CALL_BYTES} bytes");
            let problem = Problem::new(code::TOO_MANY_REQUESTS, why).hint("wait for answers before calling more");
            fail(request, problem, frames);
            return None;
        }
        let (stop, stopped) = oneshot::channel();
        self.call_bytes += bytes;
        self.requests.insert(request, Waiting::Task { _stop: stop, bytes });
        Some(stopped)
    }

    // --- Streams -------------------------------------------------------------------------------------------------

    /// A number for a new stream; `None` when there are too many.
    pub(super) fn add_stream(&mut self, end: End, phase: Phase, opened: Opened) -> Option<u32> {
        if self.streams.len() >= MAX_STREAMS {
            return None;
        }
        loop {
            self.last_stream = self.last_stream.wrapping_add(1);
            if self.last_stream != 0 && !self.streams.contains_key(&self.last_stream) {
                break;
            }
        }
        let id = self.last_stream;
        let stream = Stream::new(end, phase, Opened { stream: id, ..opened }, self.credit, self.initial);
        self.streams.insert(id, stream);
        Some(id)
    }

    /// The client learns of a stream.
    pub(super) fn open(&mut self, request: u32, id: u32, about: &[u8], frames: &mut Vec<u8>) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.phase = Phase::Open;
        // What is said first is cut to size where it is made.
        let _ = DaemonFrame::Opened { request, opened: stream.opened, about }.emit(frames);
        self.schedule(id);
    }

    /// Puts a stream on the list of those to serve.
    pub(super) fn schedule(&mut self, id: u32) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.queued
            && stream.phase == Phase::Open
        {
            stream.queued = true;
            self.ready.push_back(id);
        }
    }

    pub(in crate::local) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// How many streams are to be served now.
    pub(super) fn ready_len(&self) -> usize {
        self.ready.len()
    }

    /// The next stream to serve.
    pub(super) fn next_ready(&mut self) -> Option<u32> {
        let id = self.ready.pop_front()?;
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.queued = false;
        }
        Some(id)
    }

    /// Counts what one stream holds of the common budget, and lets those go on that were kept short.
    pub(super) fn account(&mut self, id: u32, reserved: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = std::mem::replace(&mut stream.reserved, reserved);
        self.reserved = self.reserved - before + reserved;
        if reserved < before {
            self.feed_starved();
        }
    }

    fn feed_starved(&mut self) {
        for _ in 0..self.starved.len().min(8) {
            if let Some(id) = self.starved.pop_front() {
                self.schedule(id);
            }
        }
    }

    /// A stream that could use more credit than there is for all of this client's.
    pub(super) fn starve(&mut self, id: u32) {
        if self.starved.len() < MAX_STREAMS && !self.starved.contains(&id) {
            self.starved.push_back(id);
        }
    }

    /// Takes a stream out of every table; requests about it are answered.
    pub(super) fn remove_stream(&mut self, id: u32) -> Option<Stream> {
        let stream = self.streams.remove(&id)?;
        self.reserved -= stream.reserved;
        self.feed_starved();
        Some(stream)
    }

    pub(super) fn grant_to_daemon(&mut self, id: u32, bytes: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let before = stream.credit;
        stream.credit = before.saturating_add(u64::from(bytes)).min(MAX_CREDIT);
        if before == 0 || bytes > 0 {
            self.schedule(id);
        }
    }

    // --- Ports ---------------------------------------------------------------------------------------------------

    /// Whether the datagrams of a port are for frames of the extension.
    pub(in crate::local) fn takes_datagrams(&self, port: u16) -> bool {
        self.ports.get(&port).is_some_and(|port| port.datagrams)
    }

    /// A stream came in. `None` refuses it.
    pub(super) fn incoming(
        &mut self,
        conn: ConnId,
        port: u16,
        remote: SocketAddress,
        frames: &mut Vec<u8>,
    ) -> Option<u32> {
        let entry = self.ports.get_mut(&port)?;
        let accept = entry.accepts.pop_front();
        if self.ending || (accept.is_none() && entry.streams.len() >= entry.backlog) {
            return None;
        }
        let opened = Opened { stream: 0, conn: conn.0, local_port: port, remote };
        let Some(id) = self.add_stream(End::Peer(conn), Phase::Backlog, opened) else {
            if let (Some(request), Some(entry)) = (accept, self.ports.get_mut(&port)) {
                entry.accepts.push_front(request);
            }
            return None;
        };
        match accept {
            Some(request) => {
                self.settle(request);
                self.open(request, id, &[], frames);
            }
            None => {
                if let Some(entry) = self.ports.get_mut(&port) {
                    entry.streams.push_back(id);
                }
            }
        }
        Some(id)
    }
}

/// Answers a request with a failure.
pub(super) fn fail(request: u32, problem: Problem, frames: &mut Vec<u8>) {
    let frame = DaemonFrame::Failed { request, problem };
    if frame.emit(frames).is_err() {
        // A text of a megabyte is nobody's; the code is what counts.
        let DaemonFrame::Failed { problem: Problem { code, .. }, .. } = frame else { return };
        let _ = DaemonFrame::Failed { request, problem: Problem::new(code, "the message is too long") }.emit(frames);
    }
}

/// Answers a request that has nothing to say.
pub(super) fn done(request: u32, frames: &mut Vec<u8>) {
    // Nine bytes.
    let _ = DaemonFrame::Done { request }.emit(frames);
}

/// Answers a call.
pub(super) fn result(request: u32, method: &str, value: &Value, frames: &mut Vec<u8>) {
    let body = pilot_wire::json::to_vec(value);
    if body.len() > MAX_JSON {
        let why = format!("the result of {method} has {} bytes (limit {MAX_JSON})", body.len());
        return fail(request, Problem::new(code::TOO_LARGE, why).hint("ask for less, or use Open"), frames);
    }
    // It fits, by the test above.
    let _ = DaemonFrame::Result { request, body: &body }.emit(frames);
}
