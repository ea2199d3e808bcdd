//! Sending messages: what the peer can do is asked once, and only the acknowledgement of what was sent counts as delivery
//! (07 D11, D17, D18).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pilot_wire::json;
use pilot_wire::service::dataexchange::message::{Tag, Tagged, Traced};
use pilot_wire::service::dataexchange::ours::Capabilities;
use pilot_wire::service::dataexchange::reply::Reply;
use pilot_wire::service::dataexchange::{
    HELLO, Header, JSON, LEGACY_MAX_BODY, MAX_BODY, MessageType, TAGGED, TEXT, TRACE, frame,
};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

use super::frames;
use super::source::{self, Source};

/// Longest wait for an answer to the greeting.
const HELLO_WAIT: Duration = Duration::from_secs(10);
/// Longest wait for an acknowledgement once everything is written. A receiver syncs before it answers.
const ACK_WAIT: Duration = Duration::from_secs(60);
/// After a failed write: the peer may have said why before it closed.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Longest answer that is read.
const MAX_ANSWER: u32 = 64 * 1024;
/// Bytes of a payload written at once.
pub(super) const PIECE: usize = 64 * 1024;

/// What is known of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// One of ours.
    Ours(Capabilities),
    /// An official one that knows message ids (1.13.11 and later).
    Tagged,
    /// One that knows no message ids: delivery is at least once.
    Plain,
}

impl Peer {
    /// As text, for those who keep it elsewhere.
    pub fn to_text(self) -> String {
        match self {
            Self::Ours(capabilities) => json::text_lossy(&capabilities.emit()),
            Self::Tagged => "tagged".into(),
            Self::Plain => "plain".into(),
        }
    }

    /// Reads [`Peer::to_text`].
    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            "tagged" => Some(Self::Tagged),
            "plain" => Some(Self::Plain),
            other => Capabilities::parse(other.as_bytes()).ok().map(Self::Ours),
        }
    }

    /// Longest frame body it takes, in bytes.
    fn max_body(self) -> u32 {
        match self {
            Self::Ours(capabilities) => capabilities.max_body.clamp(1, MAX_BODY),
            Self::Tagged => MAX_BODY,
            Self::Plain => LEGACY_MAX_BODY,
        }
    }
}

/// A message to be sent.
#[derive(Clone)]
pub struct MessageToSend {
    /// What it is.
    pub kind: MessageType,
    /// What it says.
    pub payload: Arc<dyn Source>,
    /// Ids and the wish for a receipt.
    pub tag: Tag,
    /// Ask for the times it takes.
    pub trace: Option<u64>,
}

/// A message that the peer has stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Delivery {
    /// The acknowledgement, word for word.
    pub ack: String,
    /// The peer had stored it before.
    pub duplicate: bool,
    /// It went with its id.
    pub tagged: bool,
    /// The times, when they were asked for and the peer knows how to tell.
    pub trace: Option<Trace>,
}

/// When a traced message was where, nanoseconds since the Unix epoch by the receiver's clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trace {
    /// It had arrived.
    pub received_at_ns: u64,
    /// It was stored.
    pub inbox_written_at_ns: u64,
    /// The acknowledgement left.
    pub ack_sent_at_ns: u64,
}

/// Why a message or file was not delivered, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Longer than the peer takes.
    #[error("{len} bytes are too many for this peer: it takes at most {limit}")]
    TooLarge {
        /// Bytes to be sent.
        len: u64,
        /// What the peer takes.
        limit: u64,
    },
    /// What is to be sent cannot be read.
    #[error("cannot read what is to be sent: {0}")]
    Source(String),
    /// The peer cannot be reached.
    #[error("{message}")]
    Dial {
        /// Stable name.
        code: String,
        /// Why.
        message: String,
    },
    /// The peer refused.
    #[error("the peer did not store it: {reason}")]
    Refused {
        /// Its answer, word for word.
        ack: String,
        /// What it says.
        reason: String,
    },
    /// The peer answered with something else than an acknowledgement of what was sent.
    #[error("unexpected answer {ack:?}: it is not known whether the peer stored it")]
    UnexpectedAck {
        /// The answer.
        ack: String,
    },
    /// The stream failed before everything was sent.
    #[error("send failed: {0}")]
    Write(String),
    /// Everything was sent, and no acknowledgement came.
    #[error("no acknowledgement: {0}; it is not known whether the peer stored it")]
    NoAck(String),
    /// The peer needs something that it cannot do.
    #[error("{0}")]
    Unsupported(String),
}

impl SendError {
    /// Stable name of the error.
    pub fn code(&self) -> &str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Source(_) => "unreadable",
            Self::Dial { code, .. } => code,
            Self::Refused { .. } => "refused",
            Self::UnexpectedAck { .. } => "unexpected_ack",
            Self::Write(_) => "send_failed",
            Self::NoAck(_) => "no_ack",
            Self::Unsupported(_) => "unsupported",
        }
    }

    /// Whether the peer may have stored it nevertheless.
    pub fn outcome_unknown(&self) -> bool {
        matches!(self, Self::NoAck(_) | Self::UnexpectedAck { .. })
    }

    /// Whether trying again later is of no use.
    pub fn is_final(&self) -> bool {
        match self {
            Self::TooLarge { .. } | Self::Unsupported(_) => true,
            Self::Refused { reason, .. } => {
                let passing =
                    ["full", "quota", "busy", "space", "exceeded", "interrupted", "at once", "taken over", "mismatch"];
                !passing.iter().any(|word| reason.contains(word))
            }
            _ => false,
        }
    }

    /// The peer's answer, if there was one.
    pub fn ack(&self) -> Option<&str> {
        match self {
            Self::Refused { ack, .. } | Self::UnexpectedAck { ack } => Some(ack),
            _ => None,
        }
    }
}

/// A stream to the data exchange of a peer.
pub struct Client<S> {
    stream: S,
    peer: Option<Peer>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    /// Over a fresh stream to port 1001, with what is known of the peer.
    pub fn new(stream: S, peer: Option<Peer>) -> Self {
        Self { stream, peer }
    }

    /// The stream, to close it.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// What is known of the peer by now.
    pub fn known(&self) -> Option<Peer> {
        self.peer
    }

    /// What the peer can do; asks it when that is not known.
    ///
    /// # Errors
    /// [`SendError::NoAck`] when it does not answer. Then nothing has been sent: a new stream may be used with
    /// [`Peer::Plain`].
    pub async fn peer(&mut self) -> Result<Peer, SendError> {
        if let Some(peer) = self.peer {
            return Ok(peer);
        }
        let hello =
            frame(HELLO, &[&super::capabilities().emit()]).map_err(|error| SendError::Write(error.to_string()))?;
        self.write(&hello).await?;
        let (kind, body) = self.answer(HELLO_WAIT).await?;
        let peer = match kind {
            HELLO => match Capabilities::parse(&body) {
                Ok(capabilities) => Peer::Ours(capabilities),
                Err(error) => return Err(SendError::NoAck(error.to_string())),
            },
            _ => match Reply::parse(&body, HELLO, 0) {
                Reply::UnknownType { kind: HELLO, acknowledged: false } => Peer::Tagged,
                _ => Peer::Plain,
            },
        };
        self.peer = Some(peer);
        Ok(peer)
    }

    pub(super) async fn write(&mut self, bytes: &[u8]) -> Result<(), SendError> {
        frames::write(&mut self.stream, bytes).await.map_err(|error| SendError::Write(error.to_string()))
    }

    /// Reads one frame that is an answer.
    pub(super) async fn answer(&mut self, limit: Duration) -> Result<(u32, Vec<u8>), SendError> {
        let reading = async {
            let header = frames::header(&mut self.stream, limit).await?;
            let header =
                header.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the stream"))?;
            let header = header.check(MAX_ANSWER).map_err(io::Error::other)?;
            let mut body = vec![0; header.len as usize];
            tokio::io::AsyncReadExt::read_exact(&mut self.stream, &mut body).await?;
            Ok::<_, io::Error>((header.kind, body))
        };
        let limit = limit + Duration::from_secs(1);
        let read = tokio::time::timeout(limit, reading).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        read.map_err(|error| SendError::NoAck(error.to_string()))
    }

    /// Writes a frame whose body ends with what a source holds. A refusal that came meanwhile is the better error.
    pub(super) async fn write_frame(
        &mut self,
        kind: u32,
        head: &[u8],
        source: &Arc<dyn Source>,
        progress: &mut (dyn FnMut(u64) + Send),
    ) -> Result<(), SendError> {
        let limit = self.peer.unwrap_or(Peer::Plain).max_body();
        let len = source.len() + head.len() as u64;
        let body_len = u32::try_from(len).ok().filter(|len| *len <= limit);
        let body_len =
            body_len.ok_or(SendError::TooLarge { len: source.len(), limit: u64::from(limit) - head.len() as u64 })?;
        let mut piece = [&Header { kind, len: body_len }.emit()[..], head].concat();
        let mut at = 0;
        loop {
            let n = usize::try_from(source.len() - at).unwrap_or(PIECE).min(PIECE);
            let data = source::read(source, at, n).await.map_err(|error| SendError::Source(error.to_string()))?;
            piece.extend_from_slice(&data);
            at += n as u64;
            if let Err(error) = self.write(&piece).await {
                return Err(match self.answer(LAST_WORD).await {
                    Ok((TEXT, text)) if text.starts_with(b"ERR ") => refused(&text),
                    _ => error,
                });
            }
            progress(at);
            if at == source.len() {
                return Ok(());
            }
            piece.clear();
        }
    }

    /// Sends a message and waits for its acknowledgement.
    ///
    /// # Errors
    /// [`SendError`]; see [`SendError::outcome_unknown`].
    pub async fn send(&mut self, message: &MessageToSend) -> Result<Delivery, SendError> {
        let has_id = message.tag.message_id.is_some() || message.tag.reply_to.is_some();
        let mut tagged = has_id && self.peer().await? != Peer::Plain;
        let mut trace = message.trace;
        let (kind, bytes) = (message.kind.wire(), message.payload.len());
        let mut tag = message.tag.clone();
        tag.wants_receipt &= matches!(self.peer, Some(Peer::Ours(ours)) if ours.receipts);
        loop {
            let inner = if trace.is_some() { TRACE } else { kind };
            let traced = trace.map(|sent_ns| Traced::emit_head(kind, sent_ns));
            let traced = traced.as_ref().map_or(&[][..], |head| &head[..]);
            let (outer, head) = if tagged {
                (TAGGED, [&Tagged::emit_head(&tag, inner)[..], traced].concat())
            } else {
                (inner, traced.to_vec())
            };
            self.write_frame(outer, &head, &message.payload, &mut |_| ()).await?;
            let (answered, body) = self.answer(ACK_WAIT).await?;
            let (text, times) = match trace_answer(answered, &body).filter(|_| trace.is_some()) {
                Some((ack, times)) => (ack.into_bytes(), Some(times)),
                None => (body, None),
            };
            match Reply::parse(&text, kind, bytes) {
                Reply::Stored { duplicate } => {
                    return Ok(Delivery { ack: json::text_lossy(&text), duplicate, tagged, trace: times });
                }
                // It has changed since it was asked.
                Reply::UnknownType { kind: TAGGED, .. } if tagged => {
                    tagged = false;
                    self.peer = Some(Peer::Plain);
                }
                // Nothing is lost for want of a time (07 D17).
                Reply::UnknownType { kind: TRACE, .. } if trace.is_some() => trace = None,
                Reply::UnknownType { .. } | Reply::Refused { .. } => return Err(refused(&text)),
                Reply::Other => return Err(SendError::UnexpectedAck { ack: json::text_lossy(&text) }),
            }
        }
    }
}

/// A refusal, with what the peer says.
pub(super) fn refused(text: &[u8]) -> SendError {
    let ack = json::text_lossy(text);
    let reason = match Reply::parse(text, 0, 0) {
        Reply::Refused { reason } => reason,
        Reply::UnknownType { kind, .. } => format!("it does not know frame type {kind}"),
        _ => ack.clone(),
    };
    SendError::Refused { ack, reason }
}

/// The acknowledgement and the times inside the answer to a traced message.
fn trace_answer(kind: u32, body: &[u8]) -> Option<(String, Trace)> {
    let Ok(Value::Object(map)) = json::parse(body) else { return None };
    let number = |key: &str| map.get(key).and_then(Value::as_u64).unwrap_or_default();
    let ack = map.get("inner_ack").and_then(Value::as_str).filter(|_| kind == JSON)?;
    let trace = Trace {
        received_at_ns: number("received_at_ns"),
        inbox_written_at_ns: number("inbox_written_at_ns"),
        ack_sent_at_ns: number("ack_sent_at_ns"),
    };
    Some((ack.to_owned(), trace))
}
