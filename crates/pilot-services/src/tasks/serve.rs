//! One peer's stream: tasks, status updates and results.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use pilot_wire::service::tasks::{Frame, HEADER_LEN, Response, Results, StatusUpdate, Submit, kind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Tasks;
use crate::{Context, Stream};

/// Longest wait for the next part of a frame, and for the next frame.
const FRAME_WAIT: Duration = Duration::from_secs(60);
/// Bytes read at once.
const CHUNK: usize = 16 << 10;
/// Frames up to this size need no room set aside.
const SMALL: usize = 256 << 10;

/// Serves one peer until it ends the stream. Official peers send one frame; several are taken (05 §15.34).
pub(super) async fn serve(mut stream: Box<dyn Stream>, context: Context, tasks: Arc<Tasks>) -> io::Result<()> {
    let mut buf = BytesMut::new();
    let mut budget = None;
    loop {
        match Frame::parse(&buf) {
            Err(error) => return refuse(stream, &buf, &error.to_string()).await,
            Ok(Some((frame, used))) => {
                let Some(answer) = tasks.handle(&frame, &context).await else { return stream.shutdown().await };
                let body = answer.emit();
                let frame = Frame { kind: frame.kind, body: &body }.emit().unwrap_or_default();
                stream.write_all(&frame).await?;
                stream.flush().await?;
                buf.advance(used);
                budget = None;
                continue;
            }
            Ok(None) => {}
        }
        if let Some(length) = length(&buf).filter(|length| *length > SMALL && budget.is_none()) {
            // A frame is at most 16 MiB: the cast is lossless, and the room is there some time.
            let room = tasks.arriving.clone().acquire_many_owned((length >> 10) as u32);
            match tokio::time::timeout(FRAME_WAIT, room).await {
                Ok(Ok(room)) => budget = Some(room),
                _ => return refuse(stream, &buf, "too much is arriving at once").await,
            }
        }
        buf.reserve(CHUNK);
        match tokio::time::timeout(FRAME_WAIT, stream.read_buf(&mut buf)).await {
            Ok(Ok(0)) if buf.is_empty() => return stream.shutdown().await,
            Ok(Ok(0)) => return refuse(stream, &buf, "the frame is cut short").await,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(error),
            Err(_) if buf.is_empty() => return stream.shutdown().await,
            Err(_) => return refuse(stream, &buf, "the frame did not arrive in time").await,
        }
    }
}

/// Bytes of the frame that begins `buf`, once its length is there.
fn length(buf: &[u8]) -> Option<usize> {
    let [.., a, b, c, d] = *buf.first_chunk::<HEADER_LEN>()?;
    Some(u32::from_be_bytes([a, b, c, d]) as usize)
}

/// Ends a stream on which a frame did not arrive whole. A worker of ours must not take that for the silent success of an
/// official submitter.
async fn refuse(mut stream: Box<dyn Stream>, buf: &[u8], why: &str) -> io::Result<()> {
    let kind = buf.first_chunk::<4>().map_or(0, |kind| u32::from_be_bytes(*kind));
    if matches!(kind, kind::STATUS_UPDATE | kind::SEND_RESULTS) {
        let answer = Response { task_id: String::new(), status: 500, message: why.to_owned() }.emit();
        stream.write_all(&Frame { kind, body: &answer }.emit().unwrap_or_default()).await?;
    }
    stream.shutdown().await
}

impl Tasks {
    /// Does what one frame says. `None` ends the stream without an answer.
    async fn handle(self: &Arc<Self>, frame: &Frame<'_>, context: &Context) -> Option<Response> {
        let peer = context.remote.addr;
        let unreadable = |error: &pilot_wire::service::tasks::TaskError| {
            tracing::debug!(remote = %context.remote, %error, "a task message cannot be read");
            Response { task_id: String::new(), status: Response::REFUSED, message: error.to_string() }
        };
        match frame.kind {
            kind::SUBMIT => match Submit::parse(frame.body) {
                Ok(submit) => Some(self.receive(submit, peer).await),
                Err(error) => {
                    unreadable(&error);
                    None
                }
            },
            kind::STATUS_UPDATE => Some(match StatusUpdate::parse(frame.body) {
                Err(error) => unreadable(&error),
                Ok(update) => {
                    let answer = self.with({
                        let update = update.clone();
                        move |engine, _| engine.update(peer.node, &update)
                    });
                    let answer = self.or_unavailable(answer.await, &update.task_id);
                    if answer.status == Response::OK {
                        let more = [("status", update.status.as_str()), ("worker", &peer.to_string())];
                        self.report("task.status", &update.task_id, &more);
                    }
                    answer
                }
            }),
            kind::SEND_RESULTS => Some(match Results::parse(frame.body) {
                Err(error) => unreadable(&error),
                Ok(results) => {
                    let id = results.task_id.clone();
                    let taken = self.with(move |engine, now| engine.results(peer.node, &results, now)).await;
                    let (answer, owed) = taken.unwrap_or_else(|error| (unavailable(&id, &error.message), false));
                    if owed {
                        self.report("task.completed", &id, &[("worker", &peer.to_string())]);
                        let tasks = self.clone();
                        // The worker need not wait for the registry.
                        tokio::spawn(async move { tasks.pay(&id).await });
                    }
                    answer
                }
            }),
            _ => None,
        }
    }

    fn or_unavailable(&self, answer: Result<Response, crate::CallError>, id: &str) -> Response {
        answer.unwrap_or_else(|error| unavailable(id, &error.message))
    }

    async fn receive(self: &Arc<Self>, submit: Submit, peer: pilot_wire::Address) -> Response {
        let id = submit.task_id.clone();
        let known = {
            let submit = submit.clone();
            self.with(move |engine, _| engine.known(&submit, peer.node)).await
        };
        match known {
            Ok(Some(known)) => return known,
            Ok(None) => {}
            Err(error) => return unavailable(&id, &error.message),
        }
        // The worker takes tasks of those who have done at least as much as it has itself.
        let network = &self.host.network;
        let own = network.address();
        let refusal = match tokio::join!(network.score(peer.node), network.score(own.node)) {
            (Ok(theirs), Ok(ours)) if theirs >= ours => None,
            (Ok(theirs), Ok(ours)) => Some(format!("Polo score too low: submitter={theirs}, receiver={ours}")),
            (theirs, ours) => {
                let error = theirs.err().or(ours.err()).map(|error| error.message).unwrap_or_default();
                tracing::warn!(remote = %peer, error, "a task is refused: the registry tells no scores");
                Some("Failed to verify polo score".to_owned())
            }
        };
        if let Some(message) = refusal {
            return Response { task_id: id, status: Response::REFUSED, message };
        }
        let answer = self.with(move |engine, now| engine.receive(&submit, peer, own, now)).await;
        let answer = self.or_unavailable(answer, &id);
        if answer.status == Response::OK {
            self.report("task.received", &id, &[("from", &peer.to_string())]);
            self.changed.notify_one();
        }
        answer
    }
}

fn unavailable(id: &str, why: &str) -> Response {
    tracing::warn!(task = id, "a task message is refused: {why}");
    Response { task_id: id.to_owned(), status: 500, message: "Tasks are not available here now".to_owned() }
}
