//! One client's stream: its subscription, its publications, and the events for it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use pilot_wire::json::text_lossy;
use pilot_wire::service::events::{Frame, Message, Offer, Welcome, Wishes};
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::broker::{Broker, Filter, Next, Progress, Subscription};
use super::pattern::Pattern;
use crate::{Context, Host, Stream};

/// Longest wait for the subscription, and for the rest of a frame that has begun.
const FRAME_WAIT: Duration = Duration::from_secs(60);
/// Longest time in which a subscriber takes nothing at all although something waits for it.
const STALL_WAIT: Duration = Duration::from_secs(300);
/// Longest wait for the disk after a publisher has ended its direction.
const STORE_WAIT: Duration = Duration::from_secs(30);
/// Bytes handed to the stream in one write, the last event beyond it.
const BATCH: usize = 64 << 10;
/// Frames up to this size need no room set aside.
const SMALL: usize = 256 << 10;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;
/// Shortest time between two reports that a subscriber of the official kind misses events.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// What the reading half has for the writing half.
#[derive(Default)]
struct Publications {
    count: u64,
    last: u64,
    /// Told to the publisher.
    acked: u64,
    refused: Option<(&'static str, String)>,
    ended: bool,
}

struct Client {
    host: Host,
    context: Context,
    broker: Arc<Broker>,
    topic: String,
    wishes: Wishes,
    ours: bool,
    publications: Mutex<Publications>,
    changed: Notify,
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// Serves one client until it ends its direction, or does not keep to the protocol.
pub(super) async fn serve(
    stream: Box<dyn Stream>,
    context: Context,
    host: Host,
    broker: Arc<Broker>,
) -> io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut buf = BytesMut::new();
    let Some((topic, offer)) = subscription(&mut reader, &mut buf).await? else {
        return writer.shutdown().await;
    };
    let wishes = offer.map(|offer| offer.wishes).unwrap_or_default();
    let filter = match (wishes.publish_only, wishes.pattern) {
        (true, _) => Ok(Filter::Nothing),
        (false, true) => Pattern::new(&topic).map(Filter::Pattern),
        (false, false) => Ok(Filter::topic(&topic)),
    };
    let (oldest, newest) = broker.range();
    let from_store = wishes.replay || wishes.retained;
    let subscription = match &filter {
        Ok(filter) => broker.subscribe(context.remote.addr.node, filter.clone(), from_store).ok_or((
            "too_many_subscriptions",
            format!("a node may have {} subscriptions here", super::SUBSCRIPTIONS_PER_NODE),
        )),
        Err(bad) => Err(("bad_pattern", bad.to_string())),
    };
    let mut first = Vec::new();
    if let Some(offer) = &offer {
        Welcome { nonce: offer.nonce, granted: wishes, store: broker.store, oldest, newest }.emit(&mut first);
    }
    let subscription = match subscription {
        Ok(subscription) => subscription,
        Err((code, text)) => {
            tracing::warn!(remote = %context.remote, code, "a subscription is refused: {text}");
            if offer.is_some() {
                Message::Refused { code, text: &text }.emit(&mut first).map_err(invalid)?;
                writer.write_all(&first).await?;
            }
            return writer.shutdown().await;
        }
    };
    let progress = progress(offer.as_ref(), &broker, newest);
    let client = Client {
        topic: text_lossy(&topic),
        wishes,
        ours: offer.is_some(),
        publications: Mutex::default(),
        changed: Notify::new(),
        host,
        context,
        broker,
    };
    let _reported = Reported::subscribed(&client);
    let served = {
        let write = write_events(&client, &subscription, &mut writer, first, progress);
        tokio::pin!(write);
        let read = read_publications(&client, &subscription, &mut reader, buf);
        tokio::pin!(read);
        let ended = tokio::select! {
            written = &mut write => Err(written),
            read = &mut read => Ok(read),
        };
        client.publications.lock().ended = true;
        client.changed.notify_one();
        match ended {
            Err(written) => written,
            // Whoever publishes with acknowledgement gets the last of them, too.
            Ok(read) if client.wishes.ack => match tokio::time::timeout(STORE_WAIT, write).await {
                Ok(written) => read.and(written),
                Err(_) => read.and(Err(io::ErrorKind::TimedOut.into())),
            },
            Ok(read) => read,
        }
    };
    let _ = writer.shutdown().await;
    served
}

/// Where a new subscriber begins.
fn progress(offer: Option<&Offer>, broker: &Broker, newest: u64) -> Progress {
    let Some(offer) = offer else { return Progress::Live };
    let since = if offer.store != 0 && offer.store != broker.store { 0 } else { offer.since.min(newest) };
    match (offer.wishes.retained, offer.wishes.replay) {
        (true, true) => Progress::Retained { after: None, then: since },
        (true, false) => Progress::Retained { after: None, then: newest },
        (false, true) => Progress::Replay(since),
        (false, false) => Progress::Live,
    }
}

/// Tells the node's listeners when a subscription begins and ends.
struct Reported<'a>(&'a Client);

impl<'a> Reported<'a> {
    fn subscribed(client: &'a Client) -> Self {
        client.report("pubsub.subscribed", []);
        Self(client)
    }
}

impl Drop for Reported<'_> {
    fn drop(&mut self) {
        // The empty topic is not reported (05 §6.2).
        if !self.0.topic.is_empty() {
            self.0.report("pubsub.unsubscribed", []);
        }
    }
}

impl Client {
    fn report<const N: usize>(&self, event: &'static str, more: [(&str, Value); N]) {
        let mut data = Map::new();
        data.insert("remote".into(), self.context.remote.to_string().into());
        data.insert("topic".into(), self.topic.as_str().into());
        data.extend(more.map(|(key, value)| (key.to_owned(), value)));
        self.host.events.emit(event, data);
    }

    fn published(&self, topic: &[u8], size: usize) {
        let mut data = Map::new();
        data.insert("from".into(), self.context.remote.to_string().into());
        data.insert("size".into(), size.into());
        data.insert("topic".into(), text_lossy(topic).into());
        self.host.events.emit("pubsub.published", data);
    }
}

/// Reads the first frame; `None` when the stream ends before it begins.
async fn subscription(
    reader: &mut (impl AsyncRead + Unpin),
    buf: &mut BytesMut,
) -> io::Result<Option<(Vec<u8>, Option<Offer>)>> {
    let reading = async {
        loop {
            if let Some((frame, used)) = Frame::parse(buf).map_err(invalid)? {
                let subscription = (frame.topic.to_vec(), Offer::parse(frame.payload));
                buf.advance(used);
                return Ok(Some(subscription));
            }
            buf.reserve(CHUNK);
            if reader.read_buf(buf).await? == 0 {
                return if buf.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    };
    tokio::time::timeout(FRAME_WAIT, reading).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Takes publications until the stream ends.
async fn read_publications(
    client: &Client,
    subscription: &Subscription,
    reader: &mut (impl AsyncRead + Unpin),
    mut buf: BytesMut,
) -> io::Result<()> {
    let mut budget = None;
    loop {
        let mut taken = 0;
        while let Some((frame, used)) = Frame::parse(&buf).map_err(invalid)? {
            client.broker.has_room().await;
            let published = client.broker.publish(
                &subscription.subscriber,
                client.context.remote,
                frame.topic,
                frame.payload,
                client.wishes.retain,
            );
            client.published(frame.topic, frame.payload.len());
            {
                let mut publications = client.publications.lock();
                publications.count += 1;
                match published {
                    Ok(number) => publications.last = number,
                    Err(_) => {
                        let text = format!("the broker retains no more topics (limit {})", super::RETAINED_TOPICS);
                        publications.refused = Some(("retained_full", text));
                    }
                }
            }
            if client.wishes.ack {
                client.changed.notify_one();
            }
            if published.is_err() && client.ours {
                return Ok(());
            }
            buf.advance(used);
            taken += 1;
            if taken % 256 == 0 {
                // Subscribers' writers get their turn, too.
                tokio::task::yield_now().await;
            }
        }
        let large = Frame::length(&buf).filter(|length| *length > SMALL);
        match large {
            None => budget = None,
            Some(length) if budget.is_none() => budget = Some(client.broker.budget(length).await?),
            Some(_) => {}
        }
        // Between frames a stream may be silent for ever.
        let begun = !buf.is_empty();
        buf.reserve(CHUNK);
        let more = reader.read_buf(&mut buf);
        let n = if begun {
            tokio::time::timeout(FRAME_WAIT, more).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?
        } else {
            more.await?
        };
        if n == 0 {
            return if buf.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
    }
}

/// What there is to send.
enum Turn {
    Bytes,
    Wait,
    End,
}

struct Writing<'a> {
    client: &'a Client,
    subscription: &'a Subscription,
    progress: Progress,
    out: Vec<u8>,
    /// The acknowledgement that waits for the disk.
    owed: Option<(u64, u64)>,
    /// Missed by a subscriber of the official kind, who cannot be told.
    untold: u64,
    last_report: Option<Duration>,
}

/// Sends events until there is nothing more to send, or for ever.
async fn write_events(
    client: &Client,
    subscription: &Subscription,
    writer: &mut (impl AsyncWrite + Unpin),
    first: Vec<u8>,
    progress: Progress,
) -> io::Result<()> {
    let mut writing = Writing { client, subscription, progress, out: first, owed: None, untold: 0, last_report: None };
    loop {
        let turn = writing.collect()?;
        if !writing.out.is_empty() {
            put(writer, &writing.out).await?;
            writing.out.clear();
            continue;
        }
        match turn {
            Turn::End => return Ok(()),
            Turn::Bytes => {}
            Turn::Wait => writing.wait().await?,
        }
    }
}

/// Writes all of it, as long as the subscriber takes some of it now and then.
async fn put(writer: &mut (impl AsyncWrite + Unpin), mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let taken = tokio::time::timeout(STALL_WAIT, writer.write(bytes)).await;
        let n = taken.unwrap_or_else(|_| {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the subscriber has taken nothing for 5 minutes"))
        })?;
        if n == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        bytes = bytes.get(n..).unwrap_or_default();
    }
    writer.flush().await
}

impl Writing<'_> {
    /// Puts what is due into the buffer.
    fn collect(&mut self) -> io::Result<Turn> {
        while self.out.len() < BATCH {
            match self.subscription.next(&mut self.progress) {
                Next::Event(entry, replayed) if self.client.ours => {
                    Message::Event(entry.event(replayed)).emit(&mut self.out).map_err(invalid)?;
                }
                Next::Event(entry, _) => {
                    Frame { topic: &entry.topic, payload: &entry.payload }.emit(&mut self.out).map_err(invalid)?;
                }
                Next::Missed(count) if self.client.ours => {
                    Message::Missed { count }.emit(&mut self.out).map_err(invalid)?;
                }
                Next::Missed(count) => self.missed(count),
                Next::CaughtUp => Message::CaughtUp.emit(&mut self.out).map_err(invalid)?,
                Next::Nothing => return self.acknowledge(),
            }
        }
        Ok(Turn::Bytes)
    }

    /// A subscriber of the official kind cannot be told, so the node's log and listeners are.
    fn missed(&mut self, count: u64) {
        self.untold += count;
        let now = (self.client.context.unix)();
        if self.last_report.is_none_or(|last| now.saturating_sub(last) >= REPORT_INTERVAL) {
            self.last_report = Some(now);
            self.report_missed();
        }
    }

    fn report_missed(&mut self) {
        let missed = std::mem::take(&mut self.untold);
        if missed > 0 {
            let remote = &self.client.context.remote;
            tracing::warn!(%remote, topic = self.client.topic, missed, "a slow subscriber missed events");
            self.client.report("pubsub.missed", [("missed", missed.into())]);
        }
    }

    fn acknowledge(&mut self) -> io::Result<Turn> {
        let mut publications = self.client.publications.lock();
        if let Some((code, text)) = publications.refused.take().filter(|_| self.client.ours) {
            Message::Refused { code, text: &text }.emit(&mut self.out).map_err(invalid)?;
            publications.acked = publications.count;
            publications.ended = true;
            return Ok(Turn::Bytes);
        }
        if self.client.wishes.ack && self.owed.is_none() && publications.acked < publications.count {
            self.owed = Some((publications.count, publications.last));
            publications.acked = publications.count;
        }
        Ok(if publications.ended && self.owed.is_none() { Turn::End } else { Turn::Wait })
    }

    /// Waits until something is due.
    async fn wait(&mut self) -> io::Result<()> {
        let woken = self.subscription.subscriber.wake.notified();
        let changed = self.client.changed.notified();
        match self.owed {
            None => tokio::select! {
                () = woken => {}
                () = changed => {}
            },
            Some((count, number)) => tokio::select! {
                () = woken => {}
                stored = self.client.broker.is_stored(number) => {
                    self.owed = None;
                    match stored {
                        Ok(()) => Message::Ack { count, number }.emit(&mut self.out).map_err(invalid)?,
                        Err(why) => {
                            let refused = Message::Refused { code: "not_stored", text: &why };
                            refused.emit(&mut self.out).map_err(invalid)?;
                            self.client.publications.lock().ended = true;
                        }
                    }
                }
            },
        }
        Ok(())
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        if !self.client.ours {
            self.untold += std::mem::take(&mut self.subscription.subscriber.queue.lock().missed);
        }
        self.report_missed();
    }
}
