//! The work on one stream when something about it has changed: data out as credit allows, credit in as room allows, and its
//! end (L19 to L30).

use std::time::Instant;

use pilot_proto::endpoint::{ConnId, Endpoint};
use pilot_proto::stream::{ReadError, WriteError};
use pilot_wire::ipc::ext::{DaemonFrame, MAX_DATA, Problem};
use serde_json::json;

use super::pipe::{Pipe, Status};
use super::state::{Cause, End, Ext, Over, Phase, Waiting, result};
use crate::engine::{Core, Engine};
use crate::local::client::{Client, State};

/// Credit a client has at most for bytes it has not sent yet.
const WINDOW: usize = 1 << 20;
/// Credit is given in steps of at least this much, so that small frames do not cost an answer each.
const STEP: usize = 64 * 1024;
/// What all streams of one client together may have granted or undelivered. Beyond it each keeps [`FLOOR`].
const BUDGET: usize = 256 << 20;
/// What a stream may always have granted or undelivered.
const FLOOR: usize = STEP;
/// Bytes one stream may take of a write before the next stream's turn.
const QUOTA: usize = 128 * 1024;

/// The other end of a stream, whichever it is.
enum Other<'a> {
    Peer(&'a mut Endpoint, Instant, ConnId),
    Service(&'a Pipe),
}

/// What reading found.
enum Read {
    Data(usize),
    Nothing,
    /// Something has just arrived, for which there is no credit.
    Later,
    Finished,
    /// No more will come, and there was no orderly end.
    Broken,
}

impl Other<'_> {
    /// Reads up to `room` bytes. Without room it finds out whether this is the end; there must be nothing to read then.
    fn read(&mut self, room: usize, buf: &mut [u8]) -> Read {
        match self {
            Self::Peer(endpoint, now, conn) => match endpoint.read(*now, *conn, buf) {
                Ok(0) => Read::Finished,
                Ok(n) => Read::Data(n),
                Err(ReadError::Blocked) => Read::Nothing,
                Err(ReadError::Closed(_)) => Read::Broken,
            },
            // The service writes when it likes, so without room nothing may be taken.
            Self::Service(pipe) => match pipe.take(buf.get_mut(..room).unwrap_or_default()) {
                0 => match pipe.status() {
                    Status::Data => Read::Later,
                    Status::Nothing => Read::Nothing,
                    Status::Finished => Read::Finished,
                    Status::Broken => Read::Broken,
                },
                n => Read::Data(n),
            },
        }
    }

    fn readable(&self) -> usize {
        match self {
            Self::Peer(endpoint, _, conn) => endpoint.flow(*conn).map_or(0, |flow| flow.readable),
            Self::Service(pipe) => pipe.pending(),
        }
    }

    /// Room for bytes of the client.
    fn free(&self) -> usize {
        match self {
            Self::Peer(endpoint, _, conn) => endpoint.flow(*conn).map_or(0, |flow| flow.writable),
            Self::Service(pipe) => pipe.free(),
        }
    }

    fn delivered(&self) -> u64 {
        match self {
            Self::Peer(endpoint, _, conn) => endpoint.flow(*conn).map_or(0, |flow| flow.delivered),
            Self::Service(pipe) => pipe.delivered(),
        }
    }

    /// Whether the client's direction is over although the client did not end it.
    fn stopped(&mut self) -> Option<Over> {
        match self {
            Self::Peer(endpoint, now, conn) => match endpoint.write(*now, *conn, &[]) {
                Err(WriteError::Closed(reason)) => Some(Over::Core(reason)),
                _ => None,
            },
            Self::Service(pipe) => pipe.outcome().map(Over::Service),
        }
    }

    /// Asks to be told when `bytes` fit. A service's reader always tells.
    fn watch_free(&mut self, bytes: usize) {
        if let Self::Peer(endpoint, now, conn) = self {
            // Unknown only when it has just ended, which is told anyway.
            let _ = endpoint.watch_writable(*now, *conn, bytes);
        }
    }

    /// Asks to be told when `offset` bytes have arrived. A service's reader always tells.
    fn watch_delivered(&mut self, offset: u64) {
        if let Self::Peer(endpoint, now, conn) = self {
            let _ = endpoint.watch_delivered(*now, *conn, offset);
        }
    }
}

/// Serves the streams of a client that have something to do, until `limit` bytes are gathered in `out`.
pub(in crate::local) fn serve_ready(engine: &Engine, client: &Client, out: &mut Vec<u8>, limit: usize) {
    // Each at most once: one that has more to say waits for its next turn.
    let turns = match &client.state.lock().ext {
        Some(ext) => ext.ready_len(),
        None => return,
    };
    for _ in 0..turns {
        if out.len() >= limit {
            return;
        }
        engine.with_unsent(|core, now| {
            let mut guard = client.state.lock();
            let State { ext: Some(ext), frames, .. } = &mut *guard else { return };
            if let Some(id) = ext.next_ready() {
                // What was said of the stream before comes first.
                out.append(frames);
                serve(core, now, ext, id, out);
            }
        });
    }
}

fn serve(core: &mut Core, now: Instant, ext: &mut Ext, id: u32, out: &mut Vec<u8>) {
    let Some(stream) = ext.streams.get_mut(&id) else { return };
    if stream.phase != Phase::Open {
        return;
    }
    let end = stream.end.clone();
    let mut other = match &end {
        End::Peer(conn) => Other::Peer(&mut core.endpoint, now, *conn),
        End::Service(pipe) => Other::Service(pipe),
    };
    if let End::Service(pipe) = &end
        && stream.over.is_none()
    {
        stream.over = pipe.outcome().map(Over::Service);
    }

    // What has arrived, and its end.
    let (mut drained, mut broken) = (stream.closing || stream.finished, false);
    let mut quota = QUOTA;
    while !drained && !broken {
        let room = usize::try_from(stream.credit).unwrap_or(usize::MAX).min(quota).min(MAX_DATA);
        if room == 0 && other.readable() > 0 {
            break;
        }
        let mut read = Read::Nothing;
        // Without credit there is nothing to read, so one byte of room finds out whether it is the end.
        DaemonFrame::emit_received(id, room.max(1), out, |buf| {
            read = other.read(room, buf);
            if let Read::Data(n) = read { n } else { 0 }
        });
        match read {
            Read::Data(n) => {
                stream.credit = stream.credit.saturating_sub(n as u64);
                quota -= n.min(quota);
            }
            Read::Nothing => drained = true,
            Read::Later => break,
            Read::Finished => {
                // Nine bytes.
                let _ = DaemonFrame::Finished { stream: id }.emit(out);
                stream.finished = true;
                drained = true;
            }
            Read::Broken => broken = true,
        }
    }
    let delivered = other.delivered();

    // The end of the stream.
    let ended = match (&stream.over, stream.cause) {
        (Some(_), _) => stream.closing || stream.finished || broken || drained,
        (None, Some(Cause::Disconnected | Cause::Shutdown | Cause::CreditExceeded)) => drained || broken,
        _ => false,
    };
    if ended {
        let problem = stream.problem();
        close(core, now, ext, id, delivered, problem, out);
        return;
    }

    // The client's direction.
    let may_stop = stream.over.is_some() && !stream.stopped && !stream.finishing && !stream.closing;
    if (may_stop || stream.takes_data())
        && let Some(over) = stream.over.clone().or_else(|| other.stopped())
    {
        stream.stopped = true;
        stream.granted = 0;
        let _ = DaemonFrame::Stopped { stream: id, delivered, problem: over.problem() }.emit(out);
    }
    let undelivered = usize::try_from(stream.sent.saturating_sub(delivered)).unwrap_or(usize::MAX);
    let mut starving = false;
    if stream.takes_data() {
        let held = stream.granted + undelivered;
        let budget =
            BUDGET.saturating_sub(ext.reserved.saturating_sub(stream.reserved)).max(FLOOR).saturating_sub(held);
        let wanted = WINDOW.saturating_sub(stream.granted).min(other.free().saturating_sub(stream.granted));
        let more = wanted.min(budget);
        if more >= STEP || (stream.granted == 0 && more > 0) {
            stream.granted += more;
            let bytes = u32::try_from(more).unwrap_or(u32::MAX);
            let _ = DaemonFrame::Granted { stream: id, bytes }.emit(out);
        }
        starving = wanted > more;
        if stream.granted < WINDOW / 2 && !starving {
            other.watch_free(stream.granted + STEP.min(WINDOW));
        }
    } else if stream.stopped {
        stream.granted = 0;
    }
    let reserved = stream.granted + undelivered;

    // Who waits for delivery.
    let mut next = None;
    let mut satisfied = Vec::new();
    stream.waits.retain(|(request, at_least)| {
        let there = delivered >= *at_least;
        if there {
            satisfied.push(*request);
        } else {
            next = Some(next.map_or(*at_least, |next: u64| next.min(*at_least)));
        }
        !there
    });
    let sent = stream.sent;
    let more = !drained && !broken && stream.credit > 0 && other.readable() > 0;
    // What is granted and undelivered is held until the peer has it: the budget follows.
    let watch = [next, (undelivered > 0 && reserved >= FLOOR).then_some(stream.sent)].into_iter().flatten().min();
    if let Some(offset) = watch {
        other.watch_delivered(offset);
    }
    for request in satisfied {
        told(ext, request, id, delivered, sent, out);
    }
    ext.account(id, reserved);
    if starving {
        ext.starve(id);
    }
    if more {
        ext.schedule(id);
    }
}

/// Answers a request for how much has arrived.
fn told(ext: &mut Ext, request: u32, stream: u32, delivered: u64, sent: u64, out: &mut Vec<u8>) {
    if ext.settle(request).is_some() {
        let value = json!({ "stream": stream, "delivered": delivered, "sent": sent });
        result(request, "delivered", &value, out);
    }
}

/// Says Closed and forgets the stream.
fn close(core: &mut Core, now: Instant, ext: &mut Ext, id: u32, delivered: u64, problem: Problem, out: &mut Vec<u8>) {
    let Some(stream) = ext.remove_stream(id) else { return };
    for (request, _) in &stream.waits {
        told(ext, *request, id, delivered, stream.sent, out);
    }
    let finishing: Vec<u32> = ext
        .requests
        .iter()
        .filter(|(_, waiting)| matches!(waiting, Waiting::Finish(stream) if *stream == id))
        .map(|(request, _)| *request)
        .collect();
    for request in finishing {
        ext.settle(request);
        super::state::done(request, out);
    }
    if (DaemonFrame::Closed { stream: id, delivered, problem }).emit(out).is_err() {
        let problem = Problem::new(pilot_wire::ipc::ext::code::INTERNAL, "the reason is too long to tell");
        let _ = DaemonFrame::Closed { stream: id, delivered, problem }.emit(out);
    }
    match stream.end {
        End::Peer(conn) => core.release(now, conn),
        End::Service(pipe) => pipe.end(true),
    }
}

/// The client has gone: its ports are free, its streams end in order, its requests are given up (L40).
pub(in crate::local) fn depart(core: &mut Core, now: Instant, state: &mut State) {
    let Some(mut ext) = state.ext.take() else { return };
    for port in std::mem::take(&mut ext.ports).into_keys() {
        core.unbind(now, port);
    }
    for (_, stream) in std::mem::take(&mut ext.streams) {
        match stream.end {
            End::Peer(conn) => {
                if stream.phase == Phase::Backlog {
                    // Nobody ever heard of it.
                    let _ = core.endpoint.reset(now, conn);
                }
                core.release(now, conn);
            }
            End::Service(pipe) => pipe.end(true),
        }
    }
}
