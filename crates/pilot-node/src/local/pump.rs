//! What moves between the protocol core and one client's socket: replies, notices, stream data and datagrams out,
//! stream data that had to wait in.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use pilot_proto::endpoint::ConnId;
use pilot_proto::stream::{ReadError, WriteError};
use pilot_wire::frame;
use pilot_wire::ipc::{Answer, op};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::client::{Client, Phase};
use super::ext;
use crate::engine::Engine;

/// Bytes gathered for one write to a client.
const OUT_LIMIT: usize = 256 * 1024;
/// Data of one Recv frame: as much as one segment can ever have been (03 §2), for clients that expect no more.
const RECV_DATA: usize = 65_535;
/// Bytes one stream may take of a write before the next stream's turn.
const STREAM_QUOTA: usize = 128 * 1024;
/// How long bytes that a client wrote before it left are still handed to slow peers.
pub(super) const LINGER: Duration = Duration::from_secs(30);

/// How far the delivery of one stream came.
#[derive(PartialEq, Eq)]
enum Delivered {
    /// Nothing more there.
    Drained,
    /// The quota was used up.
    More,
    /// The end of the stream; true when the connection is over in both directions.
    End(bool),
}

/// Serves the way out until the client is gone or its socket fails.
pub(super) async fn run(engine: &Engine, client: &Client, mut socket: impl AsyncWrite + Unpin) -> io::Result<()> {
    let mut out = Vec::with_capacity(OUT_LIMIT + RECV_DATA);
    loop {
        let (mut ready, writable, gone) = poll_fn(|cx| {
            let mut state = client.state.lock();
            if !state.has_work() {
                state.pump = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let (ready, writable) = state.take_work(&mut out);
            Poll::Ready((ready, writable, state.gone))
        })
        .await;
        for id in writable {
            flush_pending(engine, client, id);
        }
        while out.len() < OUT_LIMIT
            && let Some(id) = ready.pop_front()
        {
            deliver(engine, client, id, &mut out);
        }
        ext::serve_ready(engine, client, &mut out, OUT_LIMIT);
        client.update(|state| {
            ready.into_iter().for_each(|id| state.schedule(id));
            state.take_datagrams(&mut out, OUT_LIMIT);
        });
        engine.pump();
        if !out.is_empty() {
            socket.write_all(&out).await?;
            out.clear();
            client.taken.notify_waiters();
        }
        resume_reader(client);
        if gone && !client.state.lock().has_more_for_client() {
            return Ok(());
        }
    }
}

/// Lets the reader go on when there is room again.
pub(super) fn resume_reader(client: &Client) {
    let waker = {
        let mut state = client.state.lock();
        if state.accepts_input() { state.reader.take() } else { None }
    };
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// Moves received data of one stream into Recv frames, and says CloseOK at its end.
fn deliver(engine: &Engine, client: &Client, id: ConnId, out: &mut Vec<u8>) {
    engine.with_unsent(|core, now| {
        let mut state = client.state.lock();
        let Some(conn) = state.conns.get(&id) else { return };
        let (phase, was_over) = (conn.phase, conn.over);
        if !matches!(phase, Phase::Open | Phase::Closing) {
            return;
        }
        let limit = out.len() + STREAM_QUOTA;
        let delivered = loop {
            if out.len() >= limit {
                break Delivered::More;
            }
            let start = out.len();
            let mut read = Ok(0);
            // One Recv frame is far below the frame limit.
            let _ = frame::emit_with(out, |out| {
                out.push(op::RECV);
                out.extend_from_slice(&id.0.to_be_bytes());
                let at = out.len();
                out.resize(at + RECV_DATA, 0);
                read = core.endpoint.read(now, id, out.get_mut(at..).unwrap_or_default());
                out.truncate(at + read.unwrap_or(0));
            });
            match read {
                Ok(0) => {
                    out.truncate(start);
                    break Delivered::End(was_over);
                }
                Ok(_) => {}
                Err(ReadError::Blocked) => {
                    out.truncate(start);
                    break if was_over { Delivered::End(true) } else { Delivered::Drained };
                }
                Err(ReadError::Closed(_)) => {
                    out.truncate(start);
                    break Delivered::End(true);
                }
            }
        };
        let ended = match (&delivered, phase) {
            (Delivered::More, _) => {
                state.schedule(id);
                return;
            }
            (Delivered::Drained, Phase::Closing) | (Delivered::End(_), _) => true,
            (Delivered::Drained, _) => false,
        };
        if !ended {
            return;
        }
        // A CloseOK is nine bytes.
        let _ = Answer::CloseOk { conn: id.0 }.emit(out);
        let over = delivered == Delivered::End(true);
        let Some(conn) = state.conns.get_mut(&id) else { return };
        if phase == Phase::Closing {
            conn.phase = Phase::Ended;
            conn.release_after = true;
            if over || conn.pending.is_empty() {
                state.forget(id);
                core.release(now, id);
            }
        } else if over {
            state.entomb(id);
            core.release(now, id);
        } else {
            conn.phase = Phase::Ended;
        }
    });
}

/// Gives the core what a client wrote while there was no room.
fn flush_pending(engine: &Engine, client: &Client, id: ConnId) {
    engine.with_unsent(|core, now| {
        let mut state = client.state.lock();
        let Some(conn) = state.conns.get_mut(&id) else { return };
        let before = conn.pending.len();
        while !conn.over && !conn.pending.is_empty() {
            let written = core.endpoint.write(now, id, conn.pending.as_slices().0);
            match written {
                Ok(n) => drop(conn.pending.drain(..n)),
                Err(WriteError::Blocked) => break,
                Err(_) => conn.pending.clear(),
            }
        }
        if conn.over {
            conn.pending.clear();
        }
        let (left, phase, over, release) = (conn.pending.len(), conn.phase, conn.over, conn.release_after);
        state.pending_bytes -= before - left;
        if left > 0 {
            return;
        }
        if release {
            state.forget(id);
            core.release(now, id);
        } else if over && phase == Phase::Ended {
            state.entomb(id);
            core.release(now, id);
        }
    });
}

/// Takes a client's bytes for one of its streams: into the core, or into the queue that waits for room there.
///
/// Returns the text of the error when the stream is not there to write to.
pub(super) fn send(engine: &Engine, client: &Client, id: ConnId, data: &[u8]) -> Result<(), String> {
    use super::client::send_error;
    use pilot_wire::ipc::text;
    engine.with_unsent(|core, now| {
        let mut state = client.state.lock();
        let conn = match state.conns.get_mut(&id) {
            None => return Err(text::connection_not_found(id.0)),
            Some(conn) if matches!(conn.phase, Phase::Gone | Phase::Closing | Phase::Dialing(_)) || conn.over => {
                return Err(text::NOT_ESTABLISHED.to_owned());
            }
            Some(conn) => conn,
        };
        let mut rest = data;
        while conn.pending.is_empty() && !rest.is_empty() {
            match core.endpoint.write(now, id, rest) {
                Ok(n) => rest = rest.get(n..).unwrap_or_default(),
                Err(WriteError::Blocked) => break,
                Err(WriteError::Finished) => return Err(text::NOT_ESTABLISHED.to_owned()),
                Err(WriteError::Closed(reason)) => return Err(send_error(reason).to_owned()),
            }
        }
        conn.pending.extend(rest);
        state.pending_bytes += rest.len();
        Ok(())
    })
}

/// The client asks to end a stream: its own, or any other by number (the command-line tool's `disconnect`).
pub(super) fn close(engine: &Engine, client: &Client, id: ConnId) {
    engine.with_unsent(|core, now| {
        let mut state = client.state.lock();
        let Some(conn) = state.conns.get_mut(&id) else {
            drop(state);
            core.close_any(now, id);
            return;
        };
        let idle = conn.pending.is_empty();
        match conn.phase {
            Phase::Dialing(ticket) => {
                state.fail(ticket, "dial cancelled");
                state.forget(id);
                core.release(now, id);
            }
            Phase::Open => {
                if idle {
                    // Unknown only when it has just ended, which the pump will find out.
                    let _ = core.endpoint.close(now, id);
                }
                state.begin_close(id);
            }
            Phase::Closing => {}
            Phase::Ended if !idle => conn.release_after = true,
            Phase::Ended | Phase::Gone => {
                let gone = conn.phase == Phase::Gone;
                state.forget(id);
                if !gone {
                    core.release(now, id);
                }
            }
        }
    });
}

/// Ends every dial of the client that is still under way.
pub(super) fn cancel_dials(engine: &Engine, client: &Client) {
    engine.with(|core, now| {
        let mut state = client.state.lock();
        let dialing: Vec<(ConnId, _)> = state
            .conns
            .iter()
            .filter_map(|(id, conn)| if let Phase::Dialing(ticket) = conn.phase { Some((*id, ticket)) } else { None })
            .collect();
        for (id, ticket) in dialing {
            state.fail(ticket, "dial cancelled");
            state.forget(id);
            core.release(now, id);
        }
    });
    client.update(|_| ());
}

/// The client has gone: frees its ports and ends its streams, each after the bytes it wrote.
pub(super) async fn depart(engine: Arc<Engine>, client: Arc<Client>) {
    engine.with(|core, now| {
        let mut state = client.state.lock();
        state.gone = true;
        ext::depart(core, now, &mut state);
        for port in std::mem::take(&mut state.ports) {
            core.unbind(now, port);
        }
        if let Some(port) = state.datagram_port.take() {
            core.unbind_datagrams(port);
        }
        let ids: Vec<ConnId> = state.conns.keys().copied().collect();
        for id in ids {
            let Some(conn) = state.conns.get_mut(&id) else { continue };
            if conn.phase == Phase::Gone {
                state.forget(id);
            } else if conn.pending.is_empty() {
                state.forget(id);
                core.release(now, id);
            } else {
                conn.phase = Phase::Ended;
                conn.release_after = true;
            }
        }
    });
    client.taken.notify_waiters();
    let linger = async {
        while client.state.lock().pending_bytes > 0 {
            let (_, writable) = poll_fn(|cx| {
                let mut state = client.state.lock();
                if state.has_writable() {
                    return Poll::Ready(state.take_work(&mut Vec::new()));
                }
                state.pump = Some(cx.waker().clone());
                Poll::Pending
            })
            .await;
            for id in writable {
                flush_pending(&engine, &client, id);
            }
            engine.pump();
        }
    };
    if tokio::time::timeout(LINGER, linger).await.is_err() {
        tracing::debug!("a client left with data that its peers did not take in time");
    }
    engine.with(|core, now| {
        let mut state = client.state.lock();
        let ids: Vec<ConnId> = state.conns.keys().copied().collect();
        for id in ids {
            state.forget(id);
            core.release(now, id);
        }
    });
}
