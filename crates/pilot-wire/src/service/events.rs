//! Event stream on port 1002 (05 §6), and what our own peers say beyond it (docs/spec/events.md).
//!
//! [`Frame`] is the wire of every version. A client of ours puts an [`Offer`] into the payload of its subscription, which
//! every official broker ignores. A broker of ours answers with a [`Welcome`] and from then on sends [`Message`]s; what
//! the client sends stays [`Frame`]s for the life of the stream.

use crate::{Address, SocketAddress};

/// Longest topic in bytes.
pub const MAX_TOPIC: usize = 1024;
/// Longest payload in bytes.
pub const MAX_PAYLOAD: usize = 16 << 20;
/// The topic that receives everything.
pub const ALL: &[u8] = b"*";
/// First bytes of an offer and of a welcome.
pub const MAGIC: [u8; 8] = *b"PILOTEV1";
/// Bytes of the mark by which a client knows that a welcome answers its own offer.
pub const NONCE_LEN: usize = 16;

const OFFER_LEN: usize = 44;
const WELCOME_LEN: usize = 52;
/// Bytes in front of a message's body.
const MESSAGE_HEADER: usize = 5;
/// Bytes of an event in front of its topic.
const EVENT_HEADER: usize = 27;
/// Longest body of a message.
pub const MAX_MESSAGE: usize = EVENT_HEADER + MAX_TOPIC + MAX_PAYLOAD;
/// Longest text of a refusal.
const MAX_REFUSAL: usize = 1024;

/// Why bytes are no frame, or a frame no bytes. Frame errors have the words of the official receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EventError {
    /// Above [`MAX_TOPIC`].
    #[error("topic too long: {0}")]
    TopicTooLong(usize),
    /// Above [`MAX_PAYLOAD`].
    #[error("payload too large: {0}")]
    PayloadTooLarge(usize),
    /// Above [`MAX_MESSAGE`].
    #[error("message too large: {0}")]
    MessageTooLarge(usize),
    /// Too short for its kind.
    #[error("message of kind {0} is cut short")]
    Short(u8),
}

impl EventError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TopicTooLong(_) => "topic_too_long",
            Self::PayloadTooLarge(_) => "payload_too_large",
            Self::MessageTooLarge(_) => "message_too_large",
            Self::Short(_) => "message_short",
        }
    }
}

/// The frame of every version, in both directions: the first one of a client subscribes, each later one publishes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Topic, any bytes.
    pub topic: &'a [u8],
    /// Payload, any bytes.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame that begins `buf`, and its length; `None` when there is only part of it yet.
    ///
    /// # Errors
    /// As soon as a length that is too large can be read.
    pub fn parse(buf: &'a [u8]) -> Result<Option<(Self, usize)>, EventError> {
        let Some((topic_len, rest)) = buf.split_first_chunk::<2>() else { return Ok(None) };
        let topic_len = usize::from(u16::from_be_bytes(*topic_len));
        if topic_len > MAX_TOPIC {
            return Err(EventError::TopicTooLong(topic_len));
        }
        let Some((topic, rest)) = rest.split_at_checked(topic_len) else { return Ok(None) };
        let Some((payload_len, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let payload_len = u32::from_be_bytes(*payload_len) as usize;
        if payload_len > MAX_PAYLOAD {
            return Err(EventError::PayloadTooLarge(payload_len));
        }
        Ok(rest.get(..payload_len).map(|payload| (Self { topic, payload }, 6 + topic_len + payload_len)))
    }

    /// Bytes of the frame that begins `buf`, once its lengths have arrived.
    pub fn length(buf: &[u8]) -> Option<usize> {
        let (topic_len, rest) = buf.split_first_chunk::<2>()?;
        let topic_len = usize::from(u16::from_be_bytes(*topic_len));
        let payload_len = rest.get(topic_len..)?.first_chunk::<4>()?;
        Some(6 + topic_len + u32::from_be_bytes(*payload_len) as usize)
    }

    /// Appends the frame.
    ///
    /// # Errors
    /// Above a limit; nothing is appended then.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), EventError> {
        let topic_len = within(self.topic, MAX_TOPIC).map_err(EventError::TopicTooLong)?;
        let payload_len = within(self.payload, MAX_PAYLOAD).map_err(EventError::PayloadTooLarge)?;
        out.reserve(6 + self.topic.len() + self.payload.len());
        // The limits make both casts lossless.
        out.extend_from_slice(&(topic_len as u16).to_be_bytes());
        out.extend_from_slice(self.topic);
        out.extend_from_slice(&payload_len.to_be_bytes());
        out.extend_from_slice(self.payload);
        Ok(())
    }
}

/// The length, or the length as the error when it is above the limit.
fn within(bytes: &[u8], limit: usize) -> Result<u32, usize> {
    u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= limit).ok_or(bytes.len())
}

/// What a client asks of a broker of ours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// Acknowledge publications once they are stored.
    pub ack: bool,
    /// Keep the last publication of each topic of this stream for later subscribers.
    pub retain: bool,
    /// First send what was published after [`Offer::since`].
    pub replay: bool,
    /// The topic is a pattern: `+` stands for one level, a last `#` for all that follows.
    pub pattern: bool,
    /// First send what is retained.
    pub retained: bool,
    /// Send no events: this client only publishes.
    pub publish_only: bool,
}

impl Wishes {
    fn bits(self) -> u32 {
        [self.ack, self.retain, self.replay, self.pattern, self.retained, self.publish_only]
            .into_iter()
            .enumerate()
            .fold(0, |bits, (i, set)| bits | u32::from(set) << i)
    }

    fn from_bits(bits: u32) -> Self {
        let set = |i: u32| bits >> i & 1 == 1;
        Self { ack: set(0), retain: set(1), replay: set(2), pattern: set(3), retained: set(4), publish_only: set(5) }
    }
}

/// Payload of the subscription of a client of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Comes back in the welcome. Random, so that nobody else's event can pass for one.
    pub nonce: [u8; NONCE_LEN],
    /// What is asked for.
    pub wishes: Wishes,
    /// Last event seen; 0 for none.
    pub since: u64,
    /// The store that `since` counts in; 0 when unknown.
    pub store: u64,
}

impl Offer {
    /// Reads a payload; `None` when it is none of ours. Bytes behind the known ones are for later versions.
    pub fn parse(payload: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(payload);
        (cursor.array()? == MAGIC).then_some(())?;
        Some(Self {
            nonce: cursor.array()?,
            wishes: Wishes::from_bits(u32::from_be_bytes(cursor.array()?)),
            since: cursor.u64()?,
            store: cursor.u64()?,
        })
    }

    /// The payload.
    pub fn emit(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(OFFER_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.wishes.bits().to_be_bytes());
        out.extend_from_slice(&self.since.to_be_bytes());
        out.extend_from_slice(&self.store.to_be_bytes());
        out
    }
}

/// Payload of the frame with the empty topic by which a broker of ours answers an offer, before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Of the offer.
    pub nonce: [u8; NONCE_LEN],
    /// The wishes that are granted.
    pub granted: Wishes,
    /// Which store the numbers count in.
    pub store: u64,
    /// Number of the oldest event that can be replayed; 0 when there is none.
    pub oldest: u64,
    /// Number of the newest event; 0 when there was none.
    pub newest: u64,
}

impl Welcome {
    /// Reads a frame; `None` when it is not the answer to the offer with this nonce.
    pub fn parse(frame: &Frame<'_>, nonce: &[u8; NONCE_LEN]) -> Option<Self> {
        let mut cursor = Cursor(frame.payload);
        (frame.topic.is_empty() && cursor.array()? == MAGIC).then_some(())?;
        let welcome = Self {
            nonce: cursor.array()?,
            granted: Wishes::from_bits(u32::from_be_bytes(cursor.array()?)),
            store: cursor.u64()?,
            oldest: cursor.u64()?,
            newest: cursor.u64()?,
        };
        (welcome.nonce == *nonce).then_some(welcome)
    }

    /// Appends the frame.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&0u16.to_be_bytes());
        out.extend_from_slice(&(WELCOME_LEN as u32).to_be_bytes());
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&self.nonce);
        out.extend_from_slice(&self.granted.bits().to_be_bytes());
        for number in [self.store, self.oldest, self.newest] {
            out.extend_from_slice(&number.to_be_bytes());
        }
    }
}

/// An event as a broker of ours passes it on and keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Its number in the broker's store; grows from event to event, with gaps.
    pub number: u64,
    /// When the broker took it, milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// It is the retained value of its topic, or becomes it.
    pub retained: bool,
    /// It was published before the subscription.
    pub replayed: bool,
    /// Who published it; the node is that of the authenticated tunnel.
    pub from: SocketAddress,
    /// Topic.
    pub topic: &'a [u8],
    /// Payload.
    pub payload: &'a [u8],
}

impl<'a> Event<'a> {
    /// Reads the body of an event message.
    ///
    /// # Errors
    /// [`EventError::Short`], or a limit.
    pub fn parse(body: &'a [u8]) -> Result<Self, EventError> {
        Self::read(body).ok_or(EventError::Short(kind::EVENT)).and_then(|event| {
            let too_long = event.topic.len() > MAX_TOPIC;
            if too_long { Err(EventError::TopicTooLong(event.topic.len())) } else { Ok(event) }
        })
    }

    fn read(body: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor(body);
        let (number, time_ms) = (cursor.u64()?, cursor.u64()?);
        let [flags] = cursor.array()?;
        let network = u16::from_be_bytes(cursor.array()?);
        let node = u32::from_be_bytes(cursor.array()?);
        let port = u16::from_be_bytes(cursor.array()?);
        let topic_len = usize::from(u16::from_be_bytes(cursor.array()?));
        let (topic, payload) = cursor.0.split_at_checked(topic_len)?;
        let from = SocketAddress::new(Address { network, node }, port);
        Some(Self { number, time_ms, retained: flags & 1 != 0, replayed: flags & 2 != 0, from, topic, payload })
    }

    /// Bytes of the body.
    pub fn body_len(&self) -> usize {
        EVENT_HEADER + self.topic.len() + self.payload.len()
    }

    /// Appends the body.
    ///
    /// # Errors
    /// Above a limit; nothing is appended then.
    pub fn emit_body(&self, out: &mut Vec<u8>) -> Result<(), EventError> {
        let topic_len = within(self.topic, MAX_TOPIC).map_err(EventError::TopicTooLong)?;
        within(self.payload, MAX_PAYLOAD).map_err(EventError::PayloadTooLarge)?;
        out.extend_from_slice(&self.number.to_be_bytes());
        out.extend_from_slice(&self.time_ms.to_be_bytes());
        out.push(u8::from(self.retained) | u8::from(self.replayed) << 1);
        out.extend_from_slice(&self.from.addr.network.to_be_bytes());
        out.extend_from_slice(&self.from.addr.node.to_be_bytes());
        out.extend_from_slice(&self.from.port.to_be_bytes());
        // The limit makes the cast lossless.
        out.extend_from_slice(&(topic_len as u16).to_be_bytes());
        out.extend_from_slice(self.topic);
        out.extend_from_slice(self.payload);
        Ok(())
    }
}

/// The first byte of a message.
mod kind {
    pub(super) const EVENT: u8 = 1;
    pub(super) const MISSED: u8 = 2;
    pub(super) const ACK: u8 = 3;
    pub(super) const CAUGHT_UP: u8 = 4;
    pub(super) const REFUSED: u8 = 5;
}

/// What a broker of ours sends after its welcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// An event.
    Event(Event<'a>),
    /// Events that this subscriber will not get: it was too slow for them, or they are no longer kept.
    Missed {
        /// How many; 0 when that is not known any more.
        count: u64,
    },
    /// Publications of this stream that are stored.
    Ack {
        /// How many since the stream began.
        count: u64,
        /// Number of the last of them.
        number: u64,
    },
    /// What was kept has been sent; from here on events are new.
    CaughtUp,
    /// The broker does not do what was asked, and ends the stream.
    Refused {
        /// Stable name of the reason.
        code: &'a str,
        /// The reason in words.
        text: &'a str,
    },
    /// A kind of a later version; to be passed over.
    Unknown(u8),
}

impl<'a> Message<'a> {
    /// The message that begins `buf`, and its length; `None` when there is only part of it yet.
    ///
    /// # Errors
    /// A message that is too large, or too short for its kind.
    pub fn parse(buf: &'a [u8]) -> Result<Option<(Self, usize)>, EventError> {
        let Some(([kind, length @ ..], rest)) = buf.split_first_chunk::<MESSAGE_HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_MESSAGE {
            return Err(EventError::MessageTooLarge(length));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let mut cursor = Cursor(body);
        let short = EventError::Short(*kind);
        let message = match *kind {
            kind::EVENT => Self::Event(Event::parse(body)?),
            kind::MISSED => Self::Missed { count: cursor.u64().ok_or(short)? },
            kind::ACK => Self::Ack { count: cursor.u64().ok_or(short)?, number: cursor.u64().ok_or(short)? },
            kind::CAUGHT_UP => Self::CaughtUp,
            kind::REFUSED => {
                let [code_len] = cursor.array().ok_or(short)?;
                let (code, text) = cursor.0.split_at_checked(usize::from(code_len)).ok_or(short)?;
                let read = |bytes| std::str::from_utf8(bytes).unwrap_or("");
                Self::Refused { code: read(code), text: read(text) }
            }
            other => Self::Unknown(other),
        };
        Ok(Some((message, MESSAGE_HEADER + length)))
    }

    /// Appends the message.
    ///
    /// # Errors
    /// Above a limit; nothing is appended then.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), EventError> {
        let start = out.len();
        let kind = match self {
            Self::Event(_) => kind::EVENT,
            Self::Missed { .. } => kind::MISSED,
            Self::Ack { .. } => kind::ACK,
            Self::CaughtUp => kind::CAUGHT_UP,
            Self::Refused { .. } => kind::REFUSED,
            Self::Unknown(kind) => *kind,
        };
        out.push(kind);
        out.extend_from_slice(&[0; 4]);
        match self {
            Self::Event(event) => {
                if let Err(error) = event.emit_body(out) {
                    out.truncate(start);
                    return Err(error);
                }
            }
            Self::Missed { count } => out.extend_from_slice(&count.to_be_bytes()),
            Self::Ack { count, number } => {
                out.extend_from_slice(&count.to_be_bytes());
                out.extend_from_slice(&number.to_be_bytes());
            }
            Self::CaughtUp | Self::Unknown(_) => {}
            Self::Refused { code, text } => {
                let code = prefix(code, usize::from(u8::MAX));
                out.push(code.len() as u8);
                out.extend_from_slice(code.as_bytes());
                out.extend_from_slice(prefix(text, MAX_REFUSAL).as_bytes());
            }
        }
        // Bodies are below MAX_MESSAGE, so the cast is lossless.
        let length = (out.len() - start - MESSAGE_HEADER) as u32;
        out[start + 1..start + MESSAGE_HEADER].copy_from_slice(&length.to_be_bytes());
        Ok(())
    }
}

/// The longest beginning of at most `limit` bytes that ends between characters.
fn prefix(text: &str, limit: usize) -> &str {
    let end = (0..=limit.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.get(..end).unwrap_or("")
}

/// Takes values off the front.
struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (value, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*value)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}
