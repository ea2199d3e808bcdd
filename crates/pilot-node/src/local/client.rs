//! What the daemon keeps of one connected program: its streams, its ports, and everything on its way out.
//!
//! Nothing here ever waits for the program. What the program must be told collects in bounded queues; the data of its
//! streams stays in the protocol core until there is room in its socket, so that a program that stops reading closes
//! the windows of its own streams and delays nobody else (03 §14.1).

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::Waker;

use parking_lot::Mutex;
use pilot_proto::endpoint::{ConnId, DialError};
use pilot_proto::stream::{CloseReason, StreamEvent};
use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::DaemonFrame;
use pilot_wire::ipc::{Answer, text};
use rustc_hash::{FxHashMap, FxHashSet};
use tokio::sync::Notify;

use super::ext::Ext;
use super::replies::{Replies, Ticket};
use super::texts;
use crate::engine::{ConnOwner, Incoming, PortOwner, Wakers};

/// Streams of one client, ended ones included (07 §12).
pub(super) const MAX_CONNS: usize = 4096;
/// Requests of one client in progress; its further ones are not read until one is answered.
pub(super) const MAX_OUTSTANDING: usize = 1024;
/// Bytes of replies and notices on their way to a client; above it its requests are not read.
pub(super) const MAX_FRAMES_LEN: usize = 4 << 20;
/// Datagrams waiting for a client; newer ones are dropped (03 §2).
pub(super) const MAX_DATAGRAMS: usize = 256;
/// Their bytes.
const MAX_DATAGRAM_BYTES: usize = 2 << 20;
/// Bytes a client has sent on streams whose peers do not keep up; above it nothing more is read from the client.
pub(super) const MAX_PENDING: usize = 4 << 20;
/// Streams that ended without the client closing them, remembered so that a late Send gets the right error.
const MAX_ENDED: usize = 1024;

/// Where a stream of the client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// DialOK has not been sent.
    Dialing(Ticket),
    /// Data flows.
    Open,
    /// The client asked to close; what has arrived is still delivered, then CloseOK.
    Closing,
    /// CloseOK was pushed. The client may still send, if the peer still listens.
    Ended,
    /// The core knows it no more.
    Gone,
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) phase: Phase,
    /// In the list of streams with something to read.
    queued: bool,
    /// Bytes from the client that the core had no room for.
    pub(super) pending: VecDeque<u8>,
    /// The core has reported the connection closed.
    pub(super) over: bool,
    /// The client is done with it: release it once `pending` is empty.
    pub(super) release_after: bool,
}

impl Conn {
    fn new(phase: Phase) -> Self {
        Self { phase, queued: false, pending: VecDeque::new(), over: false, release_after: false }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) replies: Replies,
    /// Replies and notices ready to leave, complete frames.
    pub(super) frames: Vec<u8>,
    pub(super) conns: FxHashMap<ConnId, Conn>,
    ended: VecDeque<ConnId>,
    pub(super) ports: FxHashSet<u16>,
    /// Source port of this client's datagrams, and so of the answers to them.
    pub(super) datagram_port: Option<u16>,
    ready: VecDeque<ConnId>,
    writable: Vec<ConnId>,
    /// The extension's side, once the client has greeted.
    pub(super) ext: Option<Box<Ext>>,
    datagrams: VecDeque<Vec<u8>>,
    datagram_bytes: usize,
    pub(super) datagrams_dropped: u64,
    /// Bytes in all `pending` together.
    pub(super) pending_bytes: usize,
    /// The client has gone: nothing is queued for it any more.
    pub(super) gone: bool,
    pub(super) pump: Option<Waker>,
    pub(super) reader: Option<Waker>,
}

impl State {
    /// Queues an answer to a request.
    pub(super) fn reply(&mut self, ticket: Ticket, answer: &Answer<'_>) {
        let mut frame = Vec::new();
        // Answers are far below the frame limit; JSON ones are cut to size where they are made.
        if answer.emit(&mut frame).is_err() {
            return self.fail(ticket, "answer too large");
        }
        match answer {
            Answer::Error { .. } => self.replies.fail(ticket, frame, &mut self.frames),
            _ => self.replies.succeed(ticket, frame, &mut self.frames),
        }
    }

    /// Queues a JSON answer to a request.
    pub(super) fn reply_json(&mut self, ticket: Ticket, opcode: u8, value: &serde_json::Value) {
        let mut frame = Vec::new();
        match Answer::emit_json(opcode, value, &mut frame) {
            Ok(()) => self.replies.succeed(ticket, frame, &mut self.frames),
            Err(e) => self.fail(ticket, &e.to_string()),
        }
    }

    /// Queues an Error as answer to a request.
    pub(super) fn fail(&mut self, ticket: Ticket, why: &str) {
        let mut frame = Vec::new();
        if Answer::error(why).emit(&mut frame).is_ok() {
            self.replies.fail(ticket, frame, &mut self.frames);
        }
    }

    /// Queues an Error of a command that has no answer.
    pub(super) fn late_error(&mut self, why: &str) {
        let mut frame = Vec::new();
        if Answer::error(why).emit(&mut frame).is_ok() {
            self.replies.late_error(frame, &mut self.frames);
        }
    }

    /// Queues a pushed frame.
    pub(super) fn push(&mut self, answer: &Answer<'_>) {
        // Pushed frames are a few bytes.
        let _ = answer.emit(&mut self.frames);
    }

    /// Whether the pump has something to do.
    pub(super) fn has_work(&self) -> bool {
        !self.frames.is_empty()
            || !self.ready.is_empty()
            || !self.writable.is_empty()
            || !self.datagrams.is_empty()
            || self.ext.as_ref().is_some_and(|ext| ext.has_ready())
            || self.gone
    }

    /// Adds what waits here to the sums over all clients.
    pub(super) fn add_queues(&self, sums: &mut super::Queues) {
        sums.frames += self.frames.len() as u64;
        sums.pending += self.pending_bytes as u64;
        sums.datagrams += self.datagram_bytes as u64;
        sums.datagrams_dropped += self.datagrams_dropped;
    }

    /// Whether more may be read from the client.
    pub(super) fn accepts_input(&self) -> bool {
        self.replies.outstanding() < MAX_OUTSTANDING
            && self.frames.len() < MAX_FRAMES_LEN
            && self.pending_bytes < MAX_PENDING
    }

    /// Puts a stream on the list of those with something to read.
    pub(super) fn schedule(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id)
            && !conn.queued
            && matches!(conn.phase, Phase::Open | Phase::Closing)
        {
            conn.queued = true;
            self.ready.push_back(id);
        }
    }

    /// Takes what is ready to leave: frames are appended to `out`, the streams with something to read and those with
    /// room to write are returned. All at one moment, so that the Accept of a stream is in `out` before its data.
    pub(super) fn take_work(&mut self, out: &mut Vec<u8>) -> (VecDeque<ConnId>, Vec<ConnId>) {
        out.append(&mut self.frames);
        let ready = std::mem::take(&mut self.ready);
        for id in &ready {
            if let Some(conn) = self.conns.get_mut(id) {
                conn.queued = false;
            }
        }
        (ready, std::mem::take(&mut self.writable))
    }

    /// Whether a client that is about to go has still something to get.
    pub(super) fn has_more_for_client(&self) -> bool {
        !self.frames.is_empty()
            || !self.ready.is_empty()
            || !self.datagrams.is_empty()
            || self.ext.as_ref().is_some_and(|ext| ext.has_ready())
    }

    /// Whether streams wait for room to write.
    pub(super) fn has_writable(&self) -> bool {
        !self.writable.is_empty()
    }

    pub(super) fn take_datagrams(&mut self, out: &mut Vec<u8>, limit: usize) {
        while out.len() < limit {
            let Some(frame) = self.datagrams.pop_front() else { return };
            self.datagram_bytes -= frame.len();
            out.extend_from_slice(&frame);
        }
    }

    /// The client has asked to close a stream, or somebody else has.
    pub(super) fn begin_close(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id)
            && conn.phase == Phase::Open
        {
            conn.phase = Phase::Closing;
            self.schedule(id);
        }
    }

    /// Forgets a stream.
    pub(super) fn forget(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.remove(&id) {
            self.pending_bytes -= conn.pending.len();
        }
    }

    /// A stream is over for the core; what is left is only the memory that there was one.
    pub(super) fn entomb(&mut self, id: ConnId) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        self.pending_bytes -= conn.pending.len();
        conn.pending = VecDeque::new();
        conn.phase = Phase::Gone;
        self.ended.push_back(id);
        while self.ended.len() > MAX_ENDED {
            if let Some(oldest) = self.ended.pop_front()
                && self.conns.get(&oldest).is_some_and(|conn| conn.phase == Phase::Gone)
            {
                self.conns.remove(&oldest);
            }
        }
    }

    pub(super) fn wake_pump(&mut self, wakers: &mut Wakers) {
        wakers.push(self.pump.take());
    }
}

/// One connected program.
#[derive(Default)]
pub(super) struct Client {
    pub(super) state: Mutex<State>,
    /// Raised when the program has taken what waited for it.
    pub(super) taken: Notify,
}

impl Client {
    /// Starts to own a stream whose DialOK is still to come.
    pub(super) fn dialing(&self, id: ConnId, ticket: Ticket) {
        self.state.lock().conns.insert(id, Conn::new(Phase::Dialing(ticket)));
    }

    /// Runs `change` and wakes the pump if that gave it work.
    pub(super) fn update<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let (result, waker) = {
            let mut state = self.state.lock();
            let result = change(&mut state);
            let waker = if state.has_work() { state.pump.take() } else { None };
            (result, waker)
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }
}

impl ConnOwner for Client {
    fn stream_event(&self, id: ConnId, event: StreamEvent, wakers: &mut Wakers) {
        let mut state = self.state.lock();
        let Some(phase) = state.conns.get(&id).map(|conn| conn.phase) else { return };
        match (event, phase) {
            (StreamEvent::Connected, Phase::Dialing(ticket)) => {
                if let Some(conn) = state.conns.get_mut(&id) {
                    conn.phase = Phase::Open;
                }
                state.reply(ticket, &Answer::DialOk { conn: id.0 });
                state.schedule(id);
            }
            (StreamEvent::Closed(reason), Phase::Dialing(ticket)) => {
                state.fail(ticket, &texts::dial_closed(reason));
                state.forget(id);
            }
            (StreamEvent::Readable | StreamEvent::Finished, _) => state.schedule(id),
            (StreamEvent::Writable, _) => {
                if state.conns.get(&id).is_some_and(|conn| !conn.pending.is_empty()) {
                    state.writable.push(id);
                }
            }
            (StreamEvent::Closed(_), _) => {
                if let Some(conn) = state.conns.get_mut(&id) {
                    conn.over = true;
                }
                // The pump delivers what is left and says CloseOK; for a stream that ended before it cleans up.
                state.schedule(id);
                state.writable.push(id);
            }
            (StreamEvent::Connected | StreamEvent::Delivered, _) => {}
        }
        if state.has_work() {
            state.wake_pump(wakers);
        }
    }

    fn dial_failed(&self, id: ConnId, error: DialError, wakers: &mut Wakers) {
        let mut state = self.state.lock();
        if let Some(Conn { phase: Phase::Dialing(ticket), .. }) = state.conns.get(&id) {
            let ticket = *ticket;
            state.fail(ticket, &texts::dial_error(&error));
        }
        state.forget(id);
        state.wake_pump(wakers);
    }

    fn close_requested(&self, id: ConnId, wakers: &mut Wakers) {
        let mut state = self.state.lock();
        state.begin_close(id);
        state.wake_pump(wakers);
    }
}

/// A port that a client bound. (The engine asks for an owner of each stream, which must be an `Arc` of the client.)
pub(super) struct ClientPort(pub(super) Arc<Client>);

impl PortOwner for ClientPort {
    fn accepted(&self, incoming: &Incoming, wakers: &mut Wakers) -> Option<Arc<dyn ConnOwner>> {
        let mut state = self.0.state.lock();
        if state.gone || state.conns.len() >= MAX_CONNS || state.frames.len() >= MAX_FRAMES_LEN {
            return None;
        }
        state.conns.insert(incoming.conn, Conn::new(Phase::Open));
        let (local_port, conn, remote) = (incoming.port, incoming.conn.0, incoming.remote);
        state.push(&Answer::Accept { local_port, conn, remote });
        state.schedule(incoming.conn);
        state.wake_pump(wakers);
        Some(self.0.clone())
    }

    fn datagram(&self, src: SocketAddress, dst_port: u16, data: &[u8], wakers: &mut Wakers) {
        self.0.datagram(src, dst_port, data, wakers);
    }
}

/// The port a client's datagrams come from, so that the answers to them go to it.
pub(super) struct SourcePort(pub(super) Arc<Client>);

impl PortOwner for SourcePort {
    fn accepted(&self, _incoming: &Incoming, _wakers: &mut Wakers) -> Option<Arc<dyn ConnOwner>> {
        None
    }

    fn datagram(&self, src: SocketAddress, dst_port: u16, data: &[u8], wakers: &mut Wakers) {
        if self.0.state.lock().ext.is_some() {
            self.0.extended_datagram(src, dst_port, data, wakers);
        } else {
            self.0.datagram(src, dst_port, data, wakers);
        }
    }
}

impl Client {
    /// Queues a datagram, or drops it when the client does not keep up.
    pub(super) fn datagram(&self, from: SocketAddress, port: u16, data: &[u8], wakers: &mut Wakers) {
        self.queue_datagram(data.len(), wakers, |_, frame| Answer::RecvFrom { from, port, data }.emit(frame).is_ok());
    }

    /// The same for a client that has greeted: it is told how many were dropped before.
    pub(super) fn extended_datagram(&self, from: SocketAddress, port: u16, data: &[u8], wakers: &mut Wakers) {
        self.queue_datagram(data.len(), wakers, |state, frame| {
            let missed = state.ext.as_mut().map_or(0, |ext| std::mem::take(&mut ext.missed));
            DaemonFrame::Datagram { port, from, missed, data }.emit(frame).is_ok()
        });
    }

    fn queue_datagram(&self, len: usize, wakers: &mut Wakers, emit: impl FnOnce(&mut State, &mut Vec<u8>) -> bool) {
        let mut state = self.state.lock();
        let full = state.datagrams.len() >= MAX_DATAGRAMS || state.datagram_bytes + len > MAX_DATAGRAM_BYTES;
        if full || state.gone {
            state.datagrams_dropped += 1;
            if let Some(ext) = &mut state.ext {
                ext.missed = ext.missed.saturating_add(1);
            }
            return;
        }
        let mut frame = Vec::with_capacity(len + 32);
        if emit(&mut state, &mut frame) {
            state.datagram_bytes += frame.len();
            state.datagrams.push_back(frame);
        }
        state.wake_pump(wakers);
    }
}

/// Whether a closed stream is to be reported to the client as an error of its Send.
pub(super) fn send_error(reason: CloseReason) -> &'static str {
    match reason {
        CloseReason::Local => text::CONNECTION_CLOSED,
        _ => text::NOT_ESTABLISHED,
    }
}
