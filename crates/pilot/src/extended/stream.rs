//! Streams with credit (L19 to L30).

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use parking_lot::Mutex;
use pilot_wire::ipc::ext::{ClientFrame, MAX_DATA, Opened, Problem, code};
use pilot_wire::json;
use serde_json::json;

use super::{Pending, Reply, WINDOW, send};
use crate::error::{CloseReason, Error, HalfCloseLack, StreamError};
use crate::plain::link::Link;
use crate::stream::Channel;

/// Taken bytes are granted anew when they are this many, so that a grant costs little and the daemon never waits for
/// one as long as the application reads.
const GRANT: u32 = WINDOW / 4;

/// What is between the reader task and a stream.
pub(crate) struct Pipe {
    inner: Mutex<Inner>,
}

struct Inner {
    buf: Vec<u8>,
    /// Bytes the daemon may still send.
    window: u64,
    /// Nobody reads any more.
    discard: bool,
    /// The peer's direction is over, and everything of it has arrived.
    finished: bool,
    /// Bytes we may still send.
    credit: u64,
    /// Why our direction is over.
    stopped: Option<StreamError>,
    closed: Option<StreamError>,
    reason: Option<CloseReason>,
    delivered: Option<u64>,
    reader: Option<Waker>,
    writer: Option<Waker>,
    closer: Option<Waker>,
}

impl Inner {
    fn wake(&mut self) {
        for waker in [&mut self.reader, &mut self.writer, &mut self.closer] {
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
    }

    fn note_delivered(&mut self, delivered: u64) {
        self.delivered = self.delivered.max(Some(delivered));
    }

    fn end(&mut self, reason: CloseReason, error: StreamError) {
        self.reason.get_or_insert(reason);
        self.closed.get_or_insert(error);
        self.wake();
    }
}

fn store(place: &mut Option<Waker>, cx: &Context<'_>) {
    if !place.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *place = Some(cx.waker().clone());
    }
}

/// The reason the daemon gave.
fn told(problem: &Problem) -> (CloseReason, StreamError) {
    let reason = CloseReason::from_code(&problem.code);
    let error = match reason {
        CloseReason::Service => StreamError::Service {
            code: problem.code.clone(),
            message: problem.message.clone(),
            hint: Some(problem.hint.clone()).filter(|hint| !hint.is_empty()),
        },
        known => StreamError::Ended(known),
    };
    (reason, error)
}

impl Pipe {
    pub(super) fn new(credit: u32) -> Self {
        Self {
            inner: Mutex::new(Inner {
                buf: Vec::new(),
                window: WINDOW.into(),
                discard: false,
                finished: false,
                credit: credit.into(),
                stopped: None,
                closed: None,
                reason: None,
                delivered: None,
                reader: None,
                writer: None,
                closer: None,
            }),
        }
    }

    /// Data in order. False when it is more than was granted.
    pub(super) fn deliver(&self, data: &[u8]) -> bool {
        let mut inner = self.inner.lock();
        let Some(window) = inner.window.checked_sub(data.len() as u64) else {
            tracing::warn!("the daemon sent more than it was granted");
            return false;
        };
        inner.window = window;
        if !inner.discard {
            inner.buf.extend_from_slice(data);
            if let Some(reader) = inner.reader.take() {
                reader.wake();
            }
        }
        true
    }

    pub(super) fn grant(&self, bytes: u32) {
        let mut inner = self.inner.lock();
        inner.credit = inner.credit.saturating_add(bytes.into()).min(1 << 63);
        if let Some(writer) = inner.writer.take() {
            writer.wake();
        }
    }

    pub(super) fn finish(&self) {
        let mut inner = self.inner.lock();
        inner.finished = true;
        inner.wake();
    }

    pub(super) fn stop(&self, delivered: u64, problem: &Problem) {
        let mut inner = self.inner.lock();
        inner.note_delivered(delivered);
        inner.stopped = Some(told(problem).1);
        inner.wake();
    }

    pub(super) fn close(&self, delivered: u64, problem: &Problem) {
        let mut inner = self.inner.lock();
        inner.note_delivered(delivered);
        let (reason, error) = told(problem);
        inner.end(reason, error);
    }

    pub(super) fn daemon_gone(&self) {
        let reason = CloseReason::DaemonGone;
        self.inner.lock().end(reason, StreamError::Ended(reason));
    }
}

/// The end of our direction.
enum Shut {
    Open,
    /// A half-close waits for its answer.
    Finishing(Pending),
    Finished,
}

/// A stream of the extended socket.
pub(crate) struct ExtendedStream {
    link: Link,
    stream: u32,
    conn: u32,
    pipe: Arc<Pipe>,
    sent: u64,
    /// Bytes taken and not yet granted anew.
    owed: u32,
    shut: Shut,
    /// Both directions are closed; what to wait for then.
    closing: Option<Option<Pending>>,
    /// A question how much has been delivered, and how much was sent when it was asked.
    confirming: Option<(u64, Pending)>,
}

impl ExtendedStream {
    pub(super) fn new(link: Link, opened: Opened, pipe: Arc<Pipe>) -> Self {
        let Opened { stream, conn, .. } = opened;
        Self { link, stream, conn, pipe, sent: 0, owed: 0, shut: Shut::Open, closing: None, confirming: None }
    }

    fn send(&self, frame: &ClientFrame<'_>) -> bool {
        send(&self.link.shared().out, frame)
    }

    fn is_over(&self) -> bool {
        self.pipe.inner.lock().closed.is_some()
    }

    fn finish(&self, request: u32, both: bool) -> ClientFrame<'static> {
        ClientFrame::Finish { request, stream: self.stream, both }
    }

    /// Asks to be told when everything sent has been delivered.
    fn ask_delivered(&self) -> Result<Pending, Error> {
        let params = json::to_vec(&json!({ "stream": self.stream, "at_least": self.sent }));
        self.link.ask("delivered", |request| ClientFrame::Call { request, method: "delivered", params: &params })
    }
}

impl Channel for ExtendedStream {
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<io::Result<()>> {
        let mut inner = self.pipe.inner.lock();
        if inner.buf.is_empty() {
            return match &inner.closed {
                _ if inner.finished => Poll::Ready(Ok(())),
                Some(StreamError::Ended(CloseReason::Clean)) => Poll::Ready(Ok(())),
                Some(error) => Poll::Ready(Err(error.clone().io())),
                None => {
                    store(&mut inner.reader, cx);
                    Poll::Pending
                }
            };
        }
        std::mem::swap(out, &mut inner.buf);
        // A window is at most `WINDOW` bytes, so that neither the length nor the sum overflows.
        self.owed += out.len() as u32;
        let grant = self.owed >= GRANT && !inner.finished && inner.closed.is_none();
        if grant {
            inner.window += u64::from(self.owed);
        }
        drop(inner);
        if grant {
            let bytes = std::mem::take(&mut self.owed);
            self.send(&ClientFrame::Credit { stream: self.stream, bytes });
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if !matches!(self.shut, Shut::Open) || self.closing.is_some() {
            return Poll::Ready(Err(StreamError::Closed.io()));
        }
        let room = {
            let mut inner = self.pipe.inner.lock();
            if let Some(error) = inner.closed.as_ref().or(inner.stopped.as_ref()) {
                return Poll::Ready(Err(error.clone().io()));
            }
            if inner.credit == 0 {
                store(&mut inner.writer, cx);
                return Poll::Pending;
            }
            usize::try_from(inner.credit).unwrap_or(usize::MAX)
        };
        let data = &data[..data.len().min(MAX_DATA).min(room)];
        let stream = self.stream;
        // A chunk always fits into a frame.
        let pushed = ready!(self.link.shared().out.poll_push(cx, |out| {
            let _ = ClientFrame::Data { stream, data }.emit(out);
        }));
        if pushed.is_err() {
            return Poll::Ready(Err(StreamError::Ended(CloseReason::DaemonGone).io()));
        }
        // Only this stream spends its credit; the daemon can have added to it meanwhile.
        self.pipe.inner.lock().credit -= data.len() as u64;
        self.sent += data.len() as u64;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.link.shared().out.poll_flush(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(Err(StreamError::Ended(CloseReason::DaemonGone).io())),
            other => other,
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Shut::Finishing(pending) = &mut self.shut {
            // A half-close that was asked for and not awaited to its end. Refused, it is followed by the full one.
            let done = ready!(Pin::new(pending).poll(cx));
            self.shut = if done.is_ok() { Shut::Finished } else { Shut::Open };
        }
        if matches!(self.shut, Shut::Open) {
            self.shut = Shut::Finished;
            if !self.is_over() {
                let request = self.link.unheard();
                self.send(&self.finish(request, true));
            }
        }
        if self.is_over() {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush(cx)
    }

    fn poll_close_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if matches!(self.shut, Shut::Open) {
            let asked = self.link.ask("close_write", |request| self.finish(request, false));
            match asked {
                Ok(pending) => self.shut = Shut::Finishing(pending),
                Err(_) => return Poll::Ready(Err(StreamError::Ended(CloseReason::DaemonGone).io())),
            }
        }
        let Shut::Finishing(pending) = &mut self.shut else { return Poll::Ready(Ok(())) };
        match ready!(Pin::new(pending).poll(cx)) {
            Ok(_) => {
                self.shut = Shut::Finished;
                Poll::Ready(Ok(()))
            }
            Err(Error::Refused { code, .. }) if code == code::NO_HALF_CLOSE => {
                self.shut = Shut::Open;
                Poll::Ready(Err(StreamError::HalfCloseUnsupported(HalfCloseLack::Peer).io()))
            }
            Err(Error::Refused { message, .. }) => {
                self.shut = Shut::Open;
                let ended = self.pipe.inner.lock().closed.clone();
                Poll::Ready(Err(ended.unwrap_or(StreamError::Refused(message)).io()))
            }
            Err(_) => {
                self.shut = Shut::Open;
                Poll::Ready(Err(StreamError::Ended(CloseReason::DaemonGone).io()))
            }
        }
    }

    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing.is_none() {
            let mut inner = self.pipe.inner.lock();
            inner.discard = true;
            inner.buf = Vec::new();
            drop(inner);
            if self.is_over() {
                self.closing = Some(None);
            } else {
                // Asked before the close: it may be the last the daemon knows of the stream.
                let delivered = self.ask_delivered().ok();
                self.send(&ClientFrame::Close { stream: self.stream });
                self.closing = Some(delivered);
            }
        }
        {
            let mut inner = self.pipe.inner.lock();
            match (&inner.closed, inner.reason) {
                (Some(_), Some(CloseReason::Clean)) => return Poll::Ready(Ok(())),
                // It ended before; everything that was to be delivered may have been.
                (Some(_), _) if inner.delivered == Some(self.sent) => return Poll::Ready(Ok(())),
                (Some(error), _) => return Poll::Ready(Err(error.clone().io())),
                (None, _) => store(&mut inner.closer, cx),
            }
        }
        if let Some(Some(pending)) = &mut self.closing {
            match ready!(Pin::new(pending).poll(cx)) {
                Ok(_) => return Poll::Ready(Ok(())),
                // The stream went first, and Closed says how, or the daemon did.
                Err(_) => self.closing = Some(None),
            }
        }
        if self.is_over() { self.poll_close(cx) } else { Poll::Pending }
    }

    fn reset(&mut self) {
        // The daemon says when it is over; dropping the stream must not ask for an orderly end meanwhile.
        if !self.is_over() {
            self.send(&ClientFrame::Reset { stream: self.stream });
            self.closing = Some(None);
        }
    }

    fn close_reason(&self) -> Option<CloseReason> {
        self.pipe.inner.lock().reason
    }

    fn delivered(&self) -> Option<u64> {
        self.pipe.inner.lock().delivered
    }

    fn poll_delivered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>> {
        loop {
            {
                let mut inner = self.pipe.inner.lock();
                match (&inner.closed, inner.delivered) {
                    (Some(_), Some(delivered)) if delivered >= self.sent => return Poll::Ready(Ok(delivered)),
                    (Some(StreamError::Ended(CloseReason::Clean)), _) => return Poll::Ready(Ok(self.sent)),
                    (Some(error), _) => return Poll::Ready(Err(error.clone().io())),
                    // The end answers as well.
                    (None, _) => store(&mut inner.closer, cx),
                }
            }
            if self.confirming.is_none() {
                match self.ask_delivered() {
                    Ok(pending) => self.confirming = Some((self.sent, pending)),
                    Err(error) => return Poll::Ready(Err(io::Error::other(error))),
                }
            }
            let Some((sent, pending)) = &mut self.confirming else { continue };
            let answer = ready!(Pin::new(pending).poll(cx));
            let enough = *sent;
            self.confirming = None;
            match answer {
                Ok(Reply::Result(body)) => {
                    let delivered = json::parse(&body).ok().and_then(|answer| answer.get("delivered")?.as_u64());
                    let delivered = delivered.unwrap_or_default();
                    if delivered >= enough {
                        self.pipe.inner.lock().note_delivered(delivered);
                        if enough == self.sent {
                            return Poll::Ready(Ok(delivered));
                        }
                    } else if !self.is_over() {
                        // The stream is over for the daemon; Closed says how and is on its way.
                        return Poll::Pending;
                    }
                }
                Ok(_) => return Poll::Ready(Err(StreamError::DeliveryUntold.io())),
                // The stream went first, and Closed said how, or the daemon does not know the method.
                Err(error) if !self.is_over() => return Poll::Ready(Err(io::Error::other(error))),
                Err(_) => {}
            }
        }
    }

    fn id(&self) -> u32 {
        self.conn
    }
}

impl Drop for ExtendedStream {
    fn drop(&mut self) {
        let over = {
            let mut inner = self.pipe.inner.lock();
            inner.discard = true;
            inner.buf = Vec::new();
            inner.closed.is_some()
        };
        if !over && self.closing.is_none() {
            self.send(&ClientFrame::Close { stream: self.stream });
        }
    }
}
