//! The client's side, over any stream: [`Subscriber`] and [`Publisher`]. With an offer they get from a broker of ours what
//! it has to give, and from an official one what that has; they need not know which it is.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use pilot_wire::SocketAddress;
use pilot_wire::service::events::{EventError, Frame, Message, NONCE_LEN, Offer, Welcome, Wishes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};

use crate::Stream;

/// Bytes read at once.
const CHUNK: usize = 64 << 10;

/// How long the end of publishing waits for a welcome that is still on its way.
const WELCOME_WAIT: Duration = Duration::from_millis(250);

/// Why a subscription or a publication failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventsError {
    /// The stream failed.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The broker, or we, broke the protocol.
    #[error("{0}")]
    Protocol(#[from] EventError),
    /// A broker of ours does not do what was asked.
    #[error("the broker refused: {text}")]
    Refused {
        /// Stable name of the reason.
        code: String,
        /// The reason in words.
        text: String,
    },
    /// The stream ended before the broker had stored everything.
    #[error("the broker ended the stream after it had stored {stored} of {sent} events")]
    Unconfirmed {
        /// Events stored.
        stored: u64,
        /// Events sent.
        sent: u64,
    },
    /// The broker is an official one, which has no such thing.
    #[error("the peer's broker does not know {0}")]
    NotSupported(&'static str),
}

impl EventsError {
    /// Stable name.
    pub fn code(&self) -> &str {
        match self {
            Self::Io(_) => "io",
            Self::Protocol(error) => error.code(),
            Self::Refused { code, .. } => code,
            Self::Unconfirmed { .. } => "unconfirmed",
            Self::NotSupported(_) => "not_supported",
        }
    }
}

/// An event as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// Topic.
    pub topic: Bytes,
    /// Payload.
    pub payload: Bytes,
    /// What only a broker of ours tells.
    pub origin: Option<Origin>,
}

/// Where an event comes from, as a broker of ours tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Number in the broker's store; to go on from later.
    pub number: u64,
    /// Milliseconds since the Unix epoch, by the broker's clock.
    pub time_ms: u64,
    /// Who published it.
    pub from: SocketAddress,
    /// It is its topic's retained value.
    pub retained: bool,
    /// It was published before the subscription.
    pub replayed: bool,
}

/// What a subscriber gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An event.
    Event(Received),
    /// Events that will not come; 0 when the broker does not know how many.
    Missed(u64),
    /// From here on events are new.
    CaughtUp,
}

/// What a subscriber asks of a broker of ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// The mark of the offer, random. Without it no offer is made, and only what every broker has can be had.
    pub nonce: Option<[u8; NONCE_LEN]>,
    /// First what was published after the event with this number; 0: all that is kept.
    pub since: Option<u64>,
    /// The store that `since` counts in, as [`Subscriber::store`] told earlier.
    pub store: u64,
    /// First the retained values.
    pub retained: bool,
    /// The topic is a pattern.
    pub pattern: bool,
}

/// The incoming direction.
struct Incoming<S> {
    reader: ReadHalf<S>,
    buf: BytesMut,
    nonce: Option<[u8; NONCE_LEN]>,
    /// The first frame has been seen.
    begun: bool,
    welcome: Option<Welcome>,
}

/// What came in.
enum Input {
    Plain(Received),
    Item(Item),
    Ack(u64, u64),
    Welcome,
    End,
}

impl<S: Stream> Incoming<S> {
    fn new(reader: ReadHalf<S>, nonce: Option<[u8; NONCE_LEN]>) -> Self {
        Self { reader, buf: BytesMut::new(), nonce, begun: false, welcome: None }
    }

    /// The next input. Cancel safe.
    async fn next(&mut self) -> Result<Input, EventsError> {
        loop {
            if let Some(input) = self.take()? {
                return Ok(input);
            }
            self.buf.reserve(CHUNK);
            if self.reader.read_buf(&mut self.buf).await? == 0 {
                return if self.buf.is_empty() { Ok(Input::End) } else { Err(cut_short().into()) };
            }
        }
    }

    fn take(&mut self) -> Result<Option<Input>, EventsError> {
        loop {
            if self.welcome.is_none() {
                let Some((frame, used)) = Frame::parse(&self.buf)? else { return Ok(None) };
                // Only the first frame can be a welcome, and only with our own mark.
                let nonce = self.nonce.filter(|_| !self.begun);
                self.begun = true;
                if let Some(welcome) = nonce.and_then(|nonce| Welcome::parse(&frame, &nonce)) {
                    self.welcome = Some(welcome);
                    self.buf.advance(used);
                    return Ok(Some(Input::Welcome));
                }
                let received = Received {
                    topic: Bytes::copy_from_slice(frame.topic),
                    payload: Bytes::copy_from_slice(frame.payload),
                    origin: None,
                };
                self.buf.advance(used);
                return Ok(Some(Input::Plain(received)));
            }
            let Some((message, used)) = Message::parse(&self.buf)? else { return Ok(None) };
            let input = match message {
                Message::Event(event) => Some(Input::Item(Item::Event(Received {
                    topic: Bytes::copy_from_slice(event.topic),
                    payload: Bytes::copy_from_slice(event.payload),
                    origin: Some(Origin {
                        number: event.number,
                        time_ms: event.time_ms,
                        from: event.from,
                        retained: event.retained,
                        replayed: event.replayed,
                    }),
                }))),
                Message::Missed { count } => Some(Input::Item(Item::Missed(count))),
                Message::CaughtUp => Some(Input::Item(Item::CaughtUp)),
                Message::Ack { count, number } => Some(Input::Ack(count, number)),
                Message::Refused { code, text } => {
                    return Err(EventsError::Refused { code: code.to_owned(), text: text.to_owned() });
                }
                Message::Unknown(_) => None,
            };
            self.buf.advance(used);
            if input.is_some() {
                return Ok(input);
            }
        }
    }
}

fn cut_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "unexpected EOF")
}

/// The frame that subscribes.
async fn subscribe<S: Stream>(
    writer: &mut WriteHalf<S>,
    topic: &[u8],
    offer: Option<Offer>,
) -> Result<(), EventsError> {
    let payload = offer.map(|offer| offer.emit()).unwrap_or_default();
    let mut frame = Vec::new();
    Frame { topic, payload: &payload }.emit(&mut frame)?;
    writer.write_all(&frame).await?;
    writer.flush().await?;
    Ok(())
}

/// Receives the events of a topic.
pub struct Subscriber<S> {
    incoming: Incoming<S>,
    /// Kept open: the end of this direction would end the subscription.
    writer: WriteHalf<S>,
    needs_ours: Option<&'static str>,
}

impl<S: Stream> Subscriber<S> {
    /// Subscribes. Returns once the subscription is on its way.
    ///
    /// # Errors
    /// The stream's, and [`EventError::TopicTooLong`].
    pub async fn open(stream: S, topic: &[u8], options: SubscribeOptions) -> Result<Self, EventsError> {
        let (reader, mut writer) = tokio::io::split(stream);
        let wishes = Wishes {
            replay: options.since.is_some(),
            retained: options.retained,
            pattern: options.pattern,
            ..Wishes::default()
        };
        let since = options.since.unwrap_or(0);
        let offer = options.nonce.map(|nonce| Offer { nonce, wishes, since, store: options.store });
        subscribe(&mut writer, topic, offer).await?;
        let needs_ours = match wishes {
            Wishes { pattern: true, .. } => Some("patterns"),
            Wishes { replay: true, .. } => Some("replay"),
            Wishes { retained: true, .. } => Some("retained values"),
            _ => None,
        };
        if offer.is_none()
            && let Some(what) = needs_ours
        {
            return Err(EventsError::NotSupported(what));
        }
        Ok(Self { incoming: Incoming::new(reader, options.nonce), writer, needs_ours })
    }

    /// What comes next; `None` at the end of the stream. Cancel safe.
    ///
    /// # Errors
    /// The stream's; [`EventsError::Refused`]; [`EventsError::NotSupported`] when something was asked for that the
    /// broker turns out not to have.
    pub async fn next(&mut self) -> Result<Option<Item>, EventsError> {
        loop {
            match self.incoming.next().await? {
                Input::Plain(received) => {
                    return match self.needs_ours {
                        Some(what) => Err(EventsError::NotSupported(what)),
                        None => Ok(Some(Item::Event(received))),
                    };
                }
                Input::Item(item) => return Ok(Some(item)),
                Input::Welcome | Input::Ack(..) => {}
                Input::End => return Ok(None),
            }
        }
    }

    /// Waits for the broker's welcome, at most until an event comes. An official broker sends none: give it a deadline.
    /// Cancel safe.
    ///
    /// # Errors
    /// The stream's.
    pub async fn is_welcome(&mut self) -> Result<bool, EventsError> {
        while self.incoming.welcome.is_none() && !self.incoming.begun {
            if let Input::End = self.incoming.next_welcome().await? {
                return Ok(false);
            }
        }
        Ok(self.incoming.welcome.is_some())
    }

    /// The store of a broker of ours, once it has answered.
    pub fn store(&self) -> Option<u64> {
        self.incoming.welcome.map(|welcome| welcome.store)
    }

    /// Ends the subscription.
    pub async fn close(mut self) {
        // A stream that has gone has ended, too.
        let _ = self.writer.shutdown().await;
    }
}

impl<S: Stream> Incoming<S> {
    /// Reads until the first frame is there; takes it only if it is a welcome.
    async fn next_welcome(&mut self) -> Result<Input, EventsError> {
        loop {
            if let Some((frame, used)) = Frame::parse(&self.buf)? {
                self.begun = true;
                self.welcome = self.nonce.and_then(|nonce| Welcome::parse(&frame, &nonce));
                if self.welcome.is_some() {
                    self.buf.advance(used);
                }
                return Ok(Input::Welcome);
            }
            self.buf.reserve(CHUNK);
            if self.reader.read_buf(&mut self.buf).await? == 0 {
                return Ok(Input::End);
            }
        }
    }
}

/// How far publications have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// A broker of ours has them on disk (or in memory, where it keeps nothing on disk).
    Stored {
        /// Number of the last of them.
        number: u64,
    },
    /// An official broker has received them; it tells nothing more.
    Received,
}

/// Publishes events.
pub struct Publisher<S> {
    incoming: Incoming<S>,
    writer: WriteHalf<S>,
    sent: u64,
    acked: u64,
    number: u64,
}

impl<S: Stream> Publisher<S> {
    /// Opens a stream for publishing. With a mark (random) a broker of ours is asked to acknowledge, and, if `retain`,
    /// to keep the last value of each topic. `topic` is what an official broker sends to us meanwhile; it is discarded.
    ///
    /// # Errors
    /// The stream's, and [`EventError::TopicTooLong`].
    pub async fn open(
        stream: S,
        topic: &[u8],
        nonce: Option<[u8; NONCE_LEN]>,
        retain: bool,
    ) -> Result<Self, EventsError> {
        if retain && nonce.is_none() {
            return Err(EventsError::NotSupported("retained values"));
        }
        let (reader, mut writer) = tokio::io::split(stream);
        let wishes = Wishes { ack: true, publish_only: true, retain, ..Wishes::default() };
        let offer = nonce.map(|nonce| Offer { nonce, wishes, since: 0, store: 0 });
        subscribe(&mut writer, topic, offer).await?;
        Ok(Self { incoming: Incoming::new(reader, nonce), writer, sent: 0, acked: 0, number: 0 })
    }

    /// Publishes one event. What the broker sends meanwhile is read, so that neither waits for the other.
    ///
    /// # Errors
    /// The stream's, a limit, or [`EventsError::Refused`].
    pub async fn publish(&mut self, topic: &[u8], payload: &[u8]) -> Result<(), EventsError> {
        let mut frame = Vec::new();
        Frame { topic, payload }.emit(&mut frame)?;
        let Self { incoming, writer, acked, number, .. } = self;
        let writing = writer.write_all(&frame);
        tokio::pin!(writing);
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                written = &mut writing => {
                    written?;
                    break;
                }
                input = incoming.next(), if open => match input? {
                    Input::Ack(count, last) => (*acked, *number) = (count, last),
                    Input::End => open = false,
                    _ => {}
                }
            }
        }
        self.sent += 1;
        Ok(())
    }

    /// Ends the stream and waits until the broker has everything.
    ///
    /// # Errors
    /// [`EventsError::Unconfirmed`] when a broker of ours ended the stream before; [`EventsError::Refused`]; the
    /// stream's. None of them says that an event was not passed on.
    pub async fn finish(mut self) -> Result<Delivery, EventsError> {
        self.writer.flush().await?;
        // Where a stream has no half-close its end would cut off the answer, so it is awaited for a moment first. An
        // official broker has none, and shows only by the end of its direction that it has read everything.
        let greeted = tokio::time::timeout(WELCOME_WAIT, async {
            while self.incoming.nonce.is_some() && self.incoming.welcome.is_none() {
                if let Input::End = self.incoming.next().await? {
                    break;
                }
            }
            Ok::<_, EventsError>(())
        });
        if let Ok(result) = greeted.await {
            result?;
        }
        if self.incoming.welcome.is_none() {
            self.writer.shutdown().await?;
        }
        while self.acked < self.sent || self.incoming.welcome.is_none() {
            match self.incoming.next().await? {
                Input::Ack(count, number) => (self.acked, self.number) = (count, number),
                Input::End if self.incoming.welcome.is_none() => return Ok(Delivery::Received),
                Input::End if self.acked < self.sent => {
                    return Err(EventsError::Unconfirmed { stored: self.acked, sent: self.sent });
                }
                Input::End => break,
                _ => {}
            }
        }
        // Whoever has stored everything may be left at once.
        let _ = self.writer.shutdown().await;
        Ok(Delivery::Stored { number: self.number })
    }
}
