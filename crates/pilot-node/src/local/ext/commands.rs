//! What each frame of a client does (L4 to L33).

use std::sync::Arc;
use std::time::Duration;

use pilot_proto::endpoint::HalfClose;
use pilot_services::CallError;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::{ClientFrame, DaemonFrame, ExtError, Limits, MAX_JSON, Opened, Problem, VERSION, code};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::owner::{ExtPort, StreamOwner};
use super::pipe::{Pipe, ServiceEnd};
use super::state::{
    Cause, End, Ext, MAX_BACKLOG, MAX_PORTS, MAX_REQUESTS, MAX_STREAMS, Phase, Port, Waiting, done, fail, result,
    shutdown,
};
use crate::engine::Core;
use crate::local::client::{Client, MAX_DATAGRAMS, MAX_FRAMES_LEN, State};
use crate::node::Shared;

/// What a client may send on a new stream before more is granted; never more than its buffer holds.
const INITIAL_CREDIT: usize = 64 * 1024;
/// How often to look whether a peer has said that it knows half-close.
const HALF_CLOSE_POLL: Duration = Duration::from_millis(25);
/// Bytes of a client's name that are logged.
const MAX_NAME: usize = 64;

/// Whether the client may go on.
#[derive(PartialEq, Eq)]
pub(in crate::local) enum Verdict {
    Continue,
    /// It broke a rule and has been told (L5).
    Broken,
}

/// Does what one frame says. The caller wakes the pump after the last frame.
pub(in crate::local) fn handle(node: &Arc<Shared>, client: &Arc<Client>, body: &[u8]) -> Verdict {
    let frame = match ClientFrame::parse(body) {
        Ok(frame) => frame,
        Err(error) => return refuse(client, &error),
    };
    let cmd = Cmd { node, client };
    match frame {
        ClientFrame::Greet { version, credit, about } => return cmd.greet(version, credit, about),
        ClientFrame::Data { stream, data } => cmd.data(stream, data),
        ClientFrame::Credit { stream, bytes } => cmd.ext(|ext, _| ext.grant_to_daemon(stream, bytes)),
        ClientFrame::Close { stream } => cmd.close(stream),
        ClientFrame::Reset { stream } => cmd.reset(stream, Cause::Local),
        ClientFrame::Cancel { request } => {
            cmd.give_up(request, |_| true, || Problem::new(code::CANCELLED, "cancelled"))
        }
        ClientFrame::Bind { request, port, backlog, datagrams } => cmd.bind(request, port, backlog, datagrams),
        ClientFrame::Unbind { request, port } => cmd.unbind(request, port),
        ClientFrame::Accept { request, port } => cmd.accept(request, port),
        ClientFrame::Dial { request, remote, timeout_ms } => cmd.dial(request, remote, timeout_ms),
        ClientFrame::SendDatagram { request, port, to, data } => cmd.datagram(request, port, to, data),
        ClientFrame::Finish { request, stream, both } => cmd.finish(request, stream, both),
        ClientFrame::Call { request, method, params } => cmd.call(request, method, params),
        ClientFrame::Open { request, method, params } => cmd.open(request, method, params),
        _ => {}
    }
    Verdict::Continue
}

/// Answers a frame that makes no sense.
fn refuse(client: &Client, error: &ExtError) -> Verdict {
    let problem = match error {
        ExtError::Empty => return Verdict::Continue,
        ExtError::Invalid { op: pilot_wire::ipc::ext::op::GREET, .. } => {
            Problem::new(code::UNSUPPORTED_VERSION, error.to_string()).hint("greet with version 1")
        }
        _ => Problem::new(code::PROTOCOL_ERROR, error.to_string()).hint("see docs/spec/local-socket.md"),
    };
    client.update(|state| {
        let request = error.request();
        fail(request.unwrap_or(0), problem, &mut state.frames);
        if request.is_some() { Verdict::Continue } else { Verdict::Broken }
    })
}

pub(super) fn problem(error: CallError) -> Problem {
    Problem { code: error.code, message: error.message, hint: error.hint }
}

pub(super) fn not_owned(port: u16) -> Problem {
    Problem::new(code::PORT_NOT_OWNED, format!("port {port} is not bound by this client")).hint("bind it first")
}

pub(super) struct Cmd<'a> {
    pub(super) node: &'a Arc<Shared>,
    pub(super) client: &'a Arc<Client>,
}

impl Cmd<'_> {
    /// Looks at the client's side alone. A client without greeting never gets here.
    pub(super) fn ext(&self, act: impl FnOnce(&mut Ext, &mut Vec<u8>)) {
        let mut guard = self.client.state.lock();
        if let State { ext: Some(ext), frames, .. } = &mut *guard {
            act(ext, frames);
        }
    }

    /// Looks at the core and the client's side together.
    fn both(&self, act: impl FnOnce(&mut Core, std::time::Instant, &mut Ext, &mut Vec<u8>)) {
        self.node.engine.with_unsent(|core, now| {
            let mut guard = self.client.state.lock();
            if let State { ext: Some(ext), frames, .. } = &mut *guard {
                act(core, now, ext, frames);
            }
        });
    }

    fn greet(&self, version: u16, credit: u32, about: &[u8]) -> Verdict {
        let limits = Limits {
            requests: MAX_REQUESTS as u32,
            streams: MAX_STREAMS as u32,
            ports: MAX_PORTS as u32,
            call: MAX_JSON as u32,
            datagrams: MAX_DATAGRAMS as u32,
        };
        let name = pilot_wire::json::parse(about).ok();
        let name: String = name
            .as_ref()
            .and_then(|about| about.get("client")?.as_str())
            .unwrap_or_default()
            .chars()
            .filter(|c| !c.is_control())
            .take(MAX_NAME)
            .collect();
        tracing::debug!(client = %name, version, "a local client greets");
        let initial = INITIAL_CREDIT.min(self.node.config.stream.send_buffer);
        let greeting = json!({
            "daemon": format!("pilot-daemon {}", crate::VERSION),
            "node_id": self.node.node(),
            "address": self.node.address().to_string(),
            "limits": limits.to_json(),
            "features": [],
            "methods": super::methods::names(self.node),
        });
        let about = pilot_wire::json::to_vec(&greeting);
        self.client.update(|state| {
            if state.ext.is_some() {
                fail(0, Problem::new(code::PROTOCOL_ERROR, "a second greeting"), &mut state.frames);
                return Verdict::Broken;
            }
            state.ext = Some(Box::new(Ext::new(credit, initial)));
            let credit = u32::try_from(initial).unwrap_or(u32::MAX);
            // The names of all methods are far below the frame limit.
            let _ =
                DaemonFrame::Greeting { version: version.min(VERSION), credit, about: &about }.emit(&mut state.frames);
            Verdict::Continue
        })
    }

    // --- Ports ---------------------------------------------------------------------------------------------------

    fn bind(&self, request: u32, port: u16, backlog: u16, datagrams: bool) {
        let owner = Arc::new(ExtPort(self.client.clone()));
        self.both(|core, _, ext, frames| {
            if !ext.admit(request, frames) {
                return;
            }
            if ext.ports.len() >= MAX_PORTS {
                let why = format!("this client has bound {MAX_PORTS} ports");
                return fail(
                    request,
                    Problem::new(code::TOO_MANY_PORTS, why).hint("unbind what is not needed"),
                    frames,
                );
            }
            match core.bind(port, owner) {
                Ok(()) => {
                    let backlog = usize::from(backlog).min(MAX_BACKLOG);
                    let entry = Port { backlog, streams: Default::default(), accepts: Default::default(), datagrams };
                    ext.ports.insert(port, entry);
                    done(request, frames);
                }
                Err(error) => fail(request, Problem::new(error.code(), error.to_string()).hint(error.hint()), frames),
            }
        });
    }

    fn unbind(&self, request: u32, port: u16) {
        self.both(|core, now, ext, frames| {
            if !ext.admit(request, frames) {
                return;
            }
            let Some(entry) = ext.ports.remove(&port) else { return fail(request, not_owned(port), frames) };
            core.unbind(now, port);
            for id in entry.streams {
                if let Some(stream) = ext.remove_stream(id)
                    && let End::Peer(conn) = stream.end
                {
                    // Nobody ever heard of it.
                    let _ = core.endpoint.reset(now, conn);
                    core.release(now, conn);
                }
            }
            for accept in entry.accepts {
                if ext.settle(accept).is_some() {
                    fail(accept, Problem::new(code::CANCELLED, format!("port {port} was unbound")), frames);
                }
            }
            done(request, frames);
        });
    }

    fn accept(&self, request: u32, port: u16) {
        self.ext(|ext, frames| {
            if !ext.admit(request, frames) {
                return;
            }
            let Some(entry) = ext.ports.get_mut(&port) else { return fail(request, not_owned(port), frames) };
            match entry.streams.pop_front() {
                Some(id) => ext.open(request, id, &[], frames),
                None => {
                    entry.accepts.push_back(request);
                    ext.requests.insert(request, Waiting::Accept(port));
                }
            }
        });
    }

    // --- Requests ------------------------------------------------------------------------------------------------

    fn dial(&self, request: u32, remote: SocketAddress, timeout_ms: u32) {
        let mut timer = None;
        self.both(|core, now, ext, frames| {
            if !ext.admit(request, frames) {
                return;
            }
            let conn = match core.endpoint.connect(now, remote) {
                Ok(conn) => conn,
                Err(error) => {
                    return fail(request, Problem::new(error.code(), error.to_string()).hint(error.hint()), frames);
                }
            };
            let opened = Opened { stream: 0, conn: conn.0, local_port: 0, remote };
            let Some(stream) = ext.add_stream(End::Peer(conn), Phase::Dialing(request), opened) else {
                core.release(now, conn);
                return fail(request, too_many_streams(), frames);
            };
            let stop = (timeout_ms > 0).then(|| {
                let (stop, stopped) = oneshot::channel();
                timer = Some(stopped);
                stop
            });
            ext.requests.insert(request, Waiting::Dial { stream, _timer: stop });
            core.own(conn, Arc::new(StreamOwner { client: self.client.clone(), stream }));
        });
        if let Some(stopped) = timer {
            let limit = Duration::from_millis(u64::from(timeout_ms));
            self.after(limit, stopped, request, move || {
                Problem::new(code::TIMEOUT, format!("dial {remote}: no answer within {timeout_ms} ms"))
                    .hint("give it more time, or see `pilotctl ping` for whether the peer is there")
            });
        }
    }

    /// Gives a request up after a while, unless it has been answered before.
    fn after(
        &self,
        limit: Duration,
        mut stopped: oneshot::Receiver<()>,
        request: u32,
        why: impl FnOnce() -> Problem + Send + 'static,
    ) {
        let (node, client) = (self.node.clone(), self.client.clone());
        self.node.spawn(async move {
            tokio::select! {
                () = node.env.sleep(limit) => {}
                _ = &mut stopped => return,
            }
            let waits = |_: &Waiting| stopped.try_recv() == Err(oneshot::error::TryRecvError::Empty);
            Cmd { node: &node, client: &client }.give_up(request, waits, why);
            client.update(|_| ());
        });
    }

    /// Gives a waiting request up.
    fn give_up(&self, request: u32, still: impl FnOnce(&Waiting) -> bool, why: impl FnOnce() -> Problem) {
        self.both(|core, now, ext, frames| {
            if !ext.requests.get(&request).is_some_and(still) {
                return;
            }
            match ext.settle(request) {
                None => return,
                Some(Waiting::Dial { stream, .. }) => {
                    if let Some(stream) = ext.remove_stream(stream)
                        && let End::Peer(conn) = stream.end
                    {
                        core.release(now, conn);
                    }
                }
                Some(Waiting::Accept(port)) => {
                    if let Some(port) = ext.ports.get_mut(&port) {
                        port.accepts.retain(|accept| *accept != request);
                    }
                }
                Some(Waiting::Delivered { stream, .. }) => {
                    if let Some(stream) = ext.streams.get_mut(&stream) {
                        stream.waits.retain(|(wait, _)| *wait != request);
                    }
                }
                Some(Waiting::Task { .. } | Waiting::Finish(_)) => {}
            }
            fail(request, why(), frames);
        });
    }

    // --- Streams -------------------------------------------------------------------------------------------------

    fn data(&self, id: u32, data: &[u8]) {
        let mut exceeded = false;
        self.both(|core, now, ext, _| {
            let Some(stream) = ext.streams.get_mut(&id).filter(|stream| stream.takes_data()) else { return };
            if data.len() > stream.granted {
                exceeded = true;
                return;
            }
            match &stream.end {
                End::Peer(conn) => {
                    let mut rest = data;
                    while !rest.is_empty() {
                        match core.endpoint.write(now, *conn, rest) {
                            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                            // Over; what is said about it is on its way. It never blocks: room was granted.
                            Err(_) => break,
                        }
                    }
                }
                End::Service(pipe) => pipe.put(data),
            }
            stream.granted -= data.len();
            stream.sent += data.len() as u64;
            ext.schedule(id);
        });
        if exceeded {
            self.reset(id, Cause::CreditExceeded);
        }
    }

    fn close(&self, id: u32) {
        self.both(|core, now, ext, _| {
            let Some(stream) = ext.streams.get_mut(&id).filter(|s| s.phase == Phase::Open && !s.closing) else {
                return;
            };
            stream.closing = true;
            stream.granted = 0;
            match &stream.end {
                // Unknown only when it has just ended, which serving finds out.
                End::Peer(conn) => drop(core.endpoint.detach(now, *conn)),
                End::Service(pipe) => pipe.end(true),
            }
            ext.schedule(id);
        });
    }

    fn reset(&self, id: u32, cause: Cause) {
        self.both(|core, now, ext, _| {
            let Some(stream) = ext.streams.get_mut(&id).filter(|s| s.phase == Phase::Open) else { return };
            stream.closing = true;
            stream.granted = 0;
            if stream.over.is_none() {
                stream.cause.get_or_insert(cause);
            }
            match &stream.end {
                End::Peer(conn) => drop(core.endpoint.reset(now, *conn)),
                End::Service(pipe) => pipe.reset(),
            }
            ext.schedule(id);
        });
    }

    fn finish(&self, request: u32, id: u32, both: bool) {
        let mut undecided = false;
        self.both(|core, now, ext, frames| {
            if !ext.admit(request, frames) {
                return;
            }
            if !ext.streams.get(&id).is_some_and(|stream| stream.phase == Phase::Open) {
                let why = format!("this client has no stream {id}");
                return fail(request, Problem::new(code::UNKNOWN_STREAM, why), frames);
            }
            undecided = !decide_finish(core, now, ext, (request, id, both), frames);
            if undecided {
                ext.requests.insert(request, Waiting::Finish(id));
            }
        });
        if !undecided {
            return;
        }
        let (node, client) = (self.node.clone(), self.client.clone());
        self.node.spawn(async move {
            // The peer's greeting is awaited for a second at most, so this ends.
            loop {
                node.env.sleep(HALF_CLOSE_POLL).await;
                let mut decided = true;
                Cmd { node: &node, client: &client }.both(|core, now, ext, frames| {
                    if matches!(ext.requests.get(&request), Some(Waiting::Finish(stream)) if *stream == id) {
                        decided = decide_finish(core, now, ext, (request, id, both), frames);
                    }
                });
                if decided {
                    node.engine.pump();
                    return client.update(|_| ());
                }
            }
        });
    }

    // --- Services ------------------------------------------------------------------------------------------------

    fn params(&self, request: u32, params: &[u8]) -> Option<Value> {
        if params.is_empty() {
            return Some(Value::Null);
        }
        match pilot_wire::json::parse(params) {
            Ok(value) => Some(value),
            Err(error) => {
                let why = format!("the parameters are not JSON: {error}");
                self.ext(|_, frames| fail(request, Problem::new(code::INVALID_ARGUMENT, why), frames));
                None
            }
        }
    }

    /// Begins a request that is worked on beside.
    fn begin(&self, request: u32, params: &[u8]) -> Option<(Value, oneshot::Receiver<()>)> {
        let mut admitted = false;
        self.ext(|ext, frames| admitted = ext.admit(request, frames));
        if !admitted {
            return None;
        }
        let args = self.params(request, params)?;
        let mut stopped = None;
        self.ext(|ext, frames| stopped = ext.begin_task(request, params.len(), frames));
        Some((args, stopped?))
    }

    fn call(&self, request: u32, method: &str, params: &[u8]) {
        if method == super::methods::DELIVERED {
            return self.delivered(request, params);
        }
        let Some((args, stopped)) = self.begin(request, params) else { return };
        let methods = match self.node.methods.find(method) {
            Ok(methods) => methods,
            Err(error) => return self.ext(|ext, frames| refuse_task(ext, request, error, frames)),
        };
        let (client, method) = (self.client.clone(), method.to_owned());
        self.node.spawn(async move {
            let calling = async {
                // Nothing is worked out for a client that does not take what there is for it.
                client.room().await;
                methods.call(&method, args).await
            };
            let outcome = tokio::select! {
                outcome = calling => outcome,
                _ = stopped => return,
            };
            client.room().await;
            client.update(|state| {
                let State { ext: Some(ext), frames, .. } = state else { return };
                match outcome {
                    Ok(value) if ext.settle(request).is_some() => result(request, &method, &value, frames),
                    Ok(_) => {}
                    Err(error) => refuse_task(ext, request, error, frames),
                }
            });
        });
    }

    fn open(&self, request: u32, method: &str, params: &[u8]) {
        let Some((args, stopped)) = self.begin(request, params) else { return };
        let opening = match self.node.methods.find(method) {
            Ok(methods) => methods.open(method, args),
            Err(error) => return self.ext(|ext, frames| refuse_task(ext, request, error, frames)),
        };
        let (node, client) = (self.node.clone(), self.client.clone());
        self.node.spawn(async move {
            let outcome = tokio::select! {
                outcome = opening => outcome,
                _ = stopped => return,
            };
            let pipe = Pipe::new(&client);
            let serve = client.update(|state| {
                let State { ext: Some(ext), frames, .. } = state else { return None };
                let serve = match outcome {
                    Ok(serve) => serve,
                    Err(error) => {
                        refuse_task(ext, request, error, frames);
                        return None;
                    }
                };
                ext.settle(request)?;
                let Some(id) = ext.add_stream(End::Service(pipe.clone()), Phase::Backlog, Opened::default()) else {
                    fail(request, too_many_streams(), frames);
                    return None;
                };
                pipe.set_stream(id);
                ext.open(request, id, &[], frames);
                Some(serve)
            });
            let Some(serve) = serve else { return };
            // Whatever becomes of this task, the client is told.
            let ended = Ended(pipe.clone());
            let outcome = tokio::select! {
                outcome = serve(Box::new(ServiceEnd(pipe.clone()))) => outcome.err().map(service_problem),
                () = pipe.given_up(&node.env) => Some(Problem::new(code::LOCAL, "the client left the stream")),
            };
            pipe.finish_service(outcome);
            drop(ended);
        });
    }

    /// The call `delivered`, which is about a stream of this client (L30, L35).
    fn delivered(&self, request: u32, params: &[u8]) {
        let mut admitted = false;
        self.ext(|ext, frames| admitted = ext.admit(request, frames));
        if !admitted {
            return;
        }
        let Some(args) = self.params(request, params) else { return };
        let number = |name: &str| args.get(name).map_or(Some(0), Value::as_u64);
        let numbers = (args.get("stream").and_then(Value::as_u64), number("at_least"), number("timeout_ms"));
        let (Some(stream), Some(at_least), Some(timeout_ms)) = numbers else {
            let why = "delivered: stream, at_least and timeout_ms are numbers, and stream must be there";
            return self.ext(|_, frames| fail(request, Problem::new(code::INVALID_ARGUMENT, why), frames));
        };
        let id = u32::try_from(stream).unwrap_or(0);
        let mut timer = None;
        self.ext(|ext, frames| {
            let Some(stream) = ext.streams.get_mut(&id).filter(|stream| stream.phase == Phase::Open) else {
                let why = format!("this client has no stream {stream}");
                return fail(request, Problem::new(code::UNKNOWN_STREAM, why), frames);
            };
            stream.waits.push((request, at_least));
            let stop = (timeout_ms > 0).then(|| {
                let (stop, stopped) = oneshot::channel();
                timer = Some(stopped);
                stop
            });
            ext.requests.insert(request, Waiting::Delivered { stream: id, _timer: stop });
            // Serving answers it.
            ext.schedule(id);
        });
        if let Some(stopped) = timer {
            self.after(Duration::from_millis(timeout_ms), stopped, request, move || {
                Problem::new(code::TIMEOUT, format!("{at_least} bytes were not delivered within {timeout_ms} ms"))
            });
        }
    }
}

/// Ends the client's direction if the peer can have that. Answers the request, unless that is not known yet.
fn decide_finish(
    core: &mut Core,
    now: std::time::Instant,
    ext: &mut Ext,
    (request, id, both): (u32, u32, bool),
    frames: &mut Vec<u8>,
) -> bool {
    let Some(stream) = ext.streams.get_mut(&id) else { return true };
    match &stream.end {
        _ if !stream.takes_data() => {}
        End::Service(pipe) => pipe.end(false),
        End::Peer(conn) => match core.endpoint.flow(*conn).map(|flow| flow.half_close) {
            // Unknown only when it has just ended.
            Some(HalfClose::Yes) => drop(core.endpoint.close(now, *conn)),
            Some(HalfClose::Unknown) => return false,
            // To such a peer our end is that of both directions.
            Some(HalfClose::No) if both => drop(core.endpoint.close(now, *conn)),
            Some(HalfClose::No) => {
                ext.settle(request);
                let why = "the peer does not know how to end one direction alone";
                let hint = "close the stream when everything has been read, or end messages by their length";
                fail(request, Problem::new(code::NO_HALF_CLOSE, why).hint(hint), frames);
                return true;
            }
            None => {}
        },
    }
    stream.finishing = true;
    stream.granted = 0;
    ext.settle(request);
    done(request, frames);
    ext.schedule(id);
    true
}

fn refuse_task(ext: &mut Ext, request: u32, error: CallError, frames: &mut Vec<u8>) {
    if ext.settle(request).is_some() {
        fail(request, problem(error), frames);
    }
}

fn too_many_streams() -> Problem {
    Problem::new(code::TOO_MANY_STREAMS, format!("this client has {MAX_STREAMS} streams"))
        .hint("close streams that are not needed")
}

/// How a service's failure is told: in its own words when it has some.
fn service_problem(error: std::io::Error) -> Problem {
    match error.get_ref().and_then(|inner| inner.downcast_ref::<CallError>()) {
        Some(own) => problem(own.clone()),
        None => Problem::new("service_failed", error.to_string()),
    }
}

/// Says that the daemon ended, if nothing else was said.
struct Ended(Arc<Pipe>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.finish_service(Some(shutdown()));
    }
}

impl Client {
    /// Waits until the client has taken most of what waits for it.
    async fn room(&self) {
        loop {
            let notified = self.taken.notified();
            {
                let state = self.state.lock();
                if state.gone || state.frames.len() < MAX_FRAMES_LEN {
                    return;
                }
            }
            notified.await;
        }
    }

    /// The source port of this client's datagrams.
    pub(in crate::local) fn datagram_port(self: &Arc<Self>, core: &mut Core, start: u16) -> Option<u16> {
        let known = self.state.lock().datagram_port;
        if known.is_some() {
            return known;
        }
        let owner = Arc::new(crate::local::client::SourcePort(self.clone()));
        let port = core.bind_datagrams(start, owner)?;
        self.state.lock().datagram_port = Some(port);
        Some(port)
    }
}
