//! Who has subscribed to what, and the way of a publication to them and to the disk.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pilot_env::Env;
use pilot_wire::SocketAddress;
use pilot_wire::service::event_log;
use pilot_wire::service::events::ALL;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

use super::log::Log;
use super::pattern::Pattern;
use super::ring::{Entry, Ring};

/// Events that wait for one subscriber. Beyond that the oldest is dropped, and counted.
pub const QUEUE_EVENTS: usize = 16_384;
/// Bytes that wait for one subscriber. One event may wait whatever its size.
pub const QUEUE_BYTES: usize = 8 << 20;
/// Subscriptions of one node. Further ones are refused.
pub const SUBSCRIPTIONS_PER_NODE: usize = 256;
/// Bytes that wait for the disk. Publishers wait while there are more.
const PENDING_BYTES: usize = 8 << 20;
/// KiB of large publications that arrive at the same time, all streams together. Further ones wait.
const ARRIVING_KIB: usize = 128 << 10;
/// How long they wait before their stream is ended.
const BUDGET_WAIT: Duration = Duration::from_secs(120);
/// How long records gather before they are written when nobody waits for them.
const GATHER: Duration = Duration::from_millis(200);

/// What a subscriber wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Filter {
    /// Nothing: it only publishes.
    Nothing,
    /// Everything.
    All,
    /// One topic.
    Topic(Bytes),
    /// Topics of a form.
    Pattern(Pattern),
}

impl Filter {
    /// The filter of a subscription: the topic itself, and `*` for everything.
    pub(super) fn topic(topic: &[u8]) -> Self {
        if topic == ALL { Self::All } else { Self::Topic(Bytes::copy_from_slice(topic)) }
    }

    pub(super) fn matches(&self, topic: &[u8]) -> bool {
        match self {
            Self::Nothing => false,
            Self::All => true,
            Self::Topic(wanted) => wanted == topic,
            Self::Pattern(pattern) => pattern.matches(topic),
        }
    }
}

/// What waits for a subscriber.
#[derive(Default)]
pub(super) struct Queue {
    pub(super) events: VecDeque<Arc<Entry>>,
    bytes: usize,
    /// Dropped since it was last told.
    pub(super) missed: u64,
    /// Events come out of the ring; nothing is queued meanwhile.
    replaying: bool,
}

impl Queue {
    fn push(&mut self, entry: &Arc<Entry>) {
        if self.replaying {
            return;
        }
        self.bytes += entry.size();
        self.events.push_back(entry.clone());
        while self.events.len() > 1 && (self.events.len() > QUEUE_EVENTS || self.bytes > QUEUE_BYTES) {
            self.pop();
            self.missed += 1;
        }
    }

    pub(super) fn pop(&mut self) -> Option<Arc<Entry>> {
        let entry = self.events.pop_front()?;
        self.bytes -= entry.size();
        Some(entry)
    }
}

/// One subscriber's end.
pub(super) struct Subscriber {
    id: u64,
    node: u32,
    filter: Filter,
    pub(super) queue: Mutex<Queue>,
    /// Something is there for its writer.
    pub(super) wake: Notify,
}

#[derive(Default)]
struct State {
    ring: Ring,
    next: u64,
    subscribers: BTreeMap<u64, Arc<Subscriber>>,
    by_topic: BTreeMap<Bytes, Vec<u64>>,
    /// Subscribers to everything and to patterns.
    others: Vec<u64>,
    per_node: BTreeMap<u32, usize>,
    next_id: u64,
    /// Records for the disk, and the number of the last.
    pending: Vec<u8>,
    pending_through: u64,
}

/// How far the disk is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// Number of the newest event on disk.
    pub(super) through: u64,
    /// Number of the newest event that could not be written, and why.
    pub(super) failed: Option<(u64, String)>,
}

/// The broker's state. Publishing never waits for a subscriber.
pub(super) struct Broker {
    env: Env,
    /// Identifies the numbers given out.
    pub(super) store: u64,
    state: Mutex<State>,
    log: Option<Mutex<Log>>,
    pub(super) stored: watch::Sender<Stored>,
    /// There are records for the disk.
    dirty: Notify,
    /// Somebody waits for them.
    hurry: Notify,
    /// There is room for records again.
    room: Notify,
    /// KiB free for large publications that are arriving.
    arriving: Arc<Semaphore>,
}

impl Broker {
    /// Opens the broker's files, or keeps everything in memory.
    pub(super) fn open(env: Env, dir: Option<&Path>) -> io::Result<Arc<Self>> {
        let (log, ring, next, store) = match dir {
            None => (None, Ring::default(), 1, env.random_u64() | 1),
            Some(dir) => {
                let opened = Log::open(&env, dir)?;
                let store = opened.log.store();
                (Some(Mutex::new(opened.log)), opened.ring, opened.next, store)
            }
        };
        let stored = Stored { through: next - 1, failed: None };
        Ok(Arc::new(Self {
            env,
            store,
            state: Mutex::new(State { ring, next, ..State::default() }),
            log,
            stored: watch::Sender::new(stored),
            dirty: Notify::new(),
            hurry: Notify::new(),
            room: Notify::new(),
            arriving: Arc::new(Semaphore::new(ARRIVING_KIB)),
        }))
    }

    /// Numbers of the oldest event kept and of the newest; 0 for none.
    pub(super) fn range(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.ring.oldest(), state.ring.newest)
    }

    /// Enters a subscriber. `None` when its node has too many.
    pub(super) fn subscribe(self: &Arc<Self>, node: u32, filter: Filter, replaying: bool) -> Option<Subscription> {
        let mut state = self.state.lock();
        let count = state.per_node.entry(node).or_default();
        if *count >= SUBSCRIPTIONS_PER_NODE {
            return None;
        }
        *count += 1;
        state.next_id += 1;
        let id = state.next_id;
        let queue = Mutex::new(Queue { replaying, ..Queue::default() });
        let subscriber = Arc::new(Subscriber { id, node, filter: filter.clone(), queue, wake: Notify::new() });
        match filter {
            Filter::Nothing => {}
            Filter::Topic(topic) => state.by_topic.entry(topic).or_default().push(id),
            Filter::All | Filter::Pattern(_) => state.others.push(id),
        }
        state.subscribers.insert(id, subscriber.clone());
        Some(Subscription { broker: self.clone(), subscriber })
    }

    /// Takes a publication and hands it to all who want it, except to the stream it came from. Returns its number.
    ///
    /// # Errors
    /// `Err` holds the number when the event was passed on but there is no room to retain it.
    pub(super) fn publish(
        &self,
        by: &Subscriber,
        from: SocketAddress,
        topic: &[u8],
        payload: &[u8],
        retain: bool,
    ) -> Result<u64, u64> {
        let (topic, payload) = (Bytes::copy_from_slice(topic), Bytes::copy_from_slice(payload));
        let time_ms = u64::try_from(self.env.unix().as_millis()).unwrap_or(u64::MAX);
        let mut state = self.state.lock();
        let state = &mut *state;
        let number = state.next;
        state.next += 1;
        let entry = Arc::new(Entry { number, time_ms, retained: retain, from, topic, payload });
        let kept = !retain || state.ring.retain(&entry);
        let entry = if kept { entry } else { Arc::new(Entry { retained: false, ..(*entry).clone() }) };
        state.ring.push(entry.clone());
        if self.log.is_some() {
            event_log::emit_record(&entry.event(false), &mut state.pending);
            state.pending_through = number;
        }
        let exact = state.by_topic.get(&entry.topic).map(Vec::as_slice).unwrap_or_default();
        for id in exact.iter().chain(&state.others) {
            let Some(subscriber) = state.subscribers.get(id).filter(|s| s.id != by.id) else { continue };
            if subscriber.filter.matches(&entry.topic) {
                subscriber.queue.lock().push(&entry);
                subscriber.wake.notify_one();
            }
        }
        if self.log.is_some() {
            self.dirty.notify_one();
        } else {
            self.stored.send_modify(|stored| stored.through = stored.through.max(number));
        }
        if kept { Ok(number) } else { Err(number) }
    }

    /// Waits for room for a large publication; it is given back when the answer is dropped.
    pub(super) async fn budget(&self, bytes: usize) -> io::Result<OwnedSemaphorePermit> {
        // A frame is at most 16 MiB, so the cast is lossless and the room is there some time.
        let wanted = self.arriving.clone().acquire_many_owned((bytes >> 10) as u32);
        match tokio::time::timeout(BUDGET_WAIT, wanted).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(io::Error::new(io::ErrorKind::OutOfMemory, "too many large events are arriving at once")),
        }
    }

    /// Waits until the disk has caught up enough for another publication.
    pub(super) async fn has_room(&self) {
        loop {
            let room = self.room.notified();
            if self.state.lock().pending.len() <= PENDING_BYTES {
                return;
            }
            self.hurry.notify_one();
            room.await;
        }
    }

    /// Waits until an event is on disk.
    ///
    /// # Errors
    /// Why it is not.
    pub(super) async fn is_stored(&self, number: u64) -> Result<(), String> {
        let mut stored = self.stored.subscribe();
        loop {
            {
                let now = stored.borrow_and_update();
                if let Some((through, why)) = now.failed.as_ref().filter(|(through, _)| *through >= number) {
                    return Err(format!("{why} (through event {through})"));
                }
                if now.through >= number {
                    return Ok(());
                }
            }
            self.hurry.notify_one();
            if stored.changed().await.is_err() {
                return Err("the broker has stopped".to_owned());
            }
        }
    }

    /// Writes records for as long as the node runs.
    pub(super) async fn write(self: Arc<Self>) {
        loop {
            self.dirty.notified().await;
            tokio::select! {
                () = self.hurry.notified() => {}
                () = self.env.sleep(GATHER) => {}
            }
            let broker = self.clone();
            // It fails only when the runtime ends.
            if tokio::task::spawn_blocking(move || broker.flush()).await.is_err() {
                return;
            }
        }
    }

    /// Writes the records that wait, and says how far the disk is.
    pub(super) fn flush(&self) {
        let Some(log) = &self.log else { return };
        let mut log = log.lock();
        let (records, through) = {
            let mut state = self.state.lock();
            (std::mem::take(&mut state.pending), state.pending_through)
        };
        self.room.notify_waiters();
        if records.is_empty() {
            return;
        }
        let written = log.append(&records, || {
            let state = self.state.lock();
            let mut ring = Ring::default();
            for entry in state.ring.retained_after(None).filter(|entry| entry.number <= through) {
                ring.retain(entry);
            }
            (ring, state.next)
        });
        self.stored.send_modify(|stored| match &written {
            Ok(()) => stored.through = stored.through.max(through),
            Err(error) => {
                tracing::error!(%error, "events cannot be stored");
                stored.failed = Some((through, format!("the broker cannot store it: {error}")));
            }
        });
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.flush();
    }
}

/// Where a subscriber is in what it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    /// Retained values behind this topic, then events behind this number.
    Retained { after: Option<Bytes>, then: u64 },
    /// Events behind this number.
    Replay(u64),
    /// What comes in.
    Live,
}

/// What comes next for a subscriber.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// An event; true when it was published before the subscription.
    Event(Arc<Entry>, bool),
    /// This many are gone; 0 when that is not known.
    Missed(u64),
    /// From here on events are new.
    CaughtUp,
    /// Nothing now.
    Nothing,
}

/// A subscription; dropping it ends it.
pub(super) struct Subscription {
    broker: Arc<Broker>,
    pub(super) subscriber: Arc<Subscriber>,
}

impl Subscription {
    /// Takes what comes next.
    pub(super) fn next(&self, progress: &mut Progress) -> Next {
        if *progress == Progress::Live {
            let mut queue = self.subscriber.queue.lock();
            if queue.missed > 0 {
                return Next::Missed(std::mem::take(&mut queue.missed));
            }
            return queue.pop().map_or(Next::Nothing, |entry| Next::Event(entry, false));
        }
        let state = self.broker.state.lock();
        let filter = &self.subscriber.filter;
        if let Progress::Retained { after, then } = progress {
            // What the replay will bring is not sent twice.
            let through = (*then).max(state.ring.lost_through);
            let wanted = |entry: &&Arc<Entry>| filter.matches(&entry.topic) && entry.number <= through;
            if let Some(entry) = state.ring.retained_after(after.as_ref()).find(wanted) {
                *after = Some(entry.topic.clone());
                return Next::Event(entry.clone(), true);
            }
            *progress = Progress::Replay(*then);
        }
        let Progress::Replay(since) = progress else { return Next::Nothing };
        if *since < state.ring.lost_through {
            *since = state.ring.lost_through;
            return Next::Missed(0);
        }
        match state.ring.after(*since).find(|entry| filter.matches(&entry.topic)) {
            Some(entry) => {
                *since = entry.number;
                Next::Event(entry.clone(), true)
            }
            None => {
                // Under the broker's lock: nothing is published between the end of the ring and the queue.
                self.subscriber.queue.lock().replaying = false;
                *progress = Progress::Live;
                Next::CaughtUp
            }
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.broker.state.lock();
        let id = self.subscriber.id;
        state.subscribers.remove(&id);
        state.others.retain(|other| *other != id);
        if let Filter::Topic(topic) = &self.subscriber.filter
            && let Some(ids) = state.by_topic.get_mut(topic)
        {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                state.by_topic.remove(topic);
            }
        }
        if let Some(count) = state.per_node.get_mut(&self.subscriber.node) {
            *count -= 1;
            if *count == 0 {
                state.per_node.remove(&self.subscriber.node);
            }
        }
    }
}
