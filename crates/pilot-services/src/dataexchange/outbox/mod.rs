//! The outbox: what is on disk here before the sender hears "accepted", and is tried until it is delivered, refused or
//! past its deadline, across restarts of either side (docs/spec/messages.md §8).
//!
//! One queue for each peer, first in, first out, one attempt at a time. A peer that cannot be reached costs one dial for
//! each step of the backoff, at most every ten minutes in the end.

mod item;
mod store;
mod worker;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pilot_wire::service::dataexchange::ours::Receipt;
use serde_json::Value;
use tokio::sync::{Notify, broadcast};

pub(crate) use item::{Finished, Item, Kind, Meta, State as Fate};
use store::Store;

use super::client::Peer;
use super::server::blocking;
use super::{Limits, new_id};
use crate::{CallError, Host};

/// How long a message is tried unless told otherwise: seven days.
pub(crate) const DEADLINE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Longest deadline: a year.
pub(crate) const MAX_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Outcomes that are remembered.
const FINISHED: usize = 10_000;
/// Peers of which it is remembered what they can do.
const PEERS: usize = 4096;
/// Peers are asked again after this time: they may have been updated.
const PEER_AGE: Duration = Duration::from_secs(24 * 3600);
/// Changes of which those who wait are told; a slower one looks the state up.
const CHANGES: usize = 1024;

#[derive(Default)]
struct Queue {
    items: VecDeque<Arc<Item>>,
    /// Attempts in a row that failed.
    failures: u32,
    next: Option<Instant>,
    active: bool,
    error: Option<String>,
}

#[derive(Default)]
struct State {
    queues: BTreeMap<u32, Queue>,
    dead: BTreeMap<String, Arc<Item>>,
    finished: VecDeque<Finished>,
    peers: BTreeMap<u32, (Peer, Duration)>,
    next_number: u64,
    /// Messages and bytes on disk, dead ones and those on their way in included.
    used: (u64, u64),
}

struct Inner {
    host: Host,
    limits: Limits,
    store: Store,
    state: Mutex<State>,
    wake: Notify,
    changes: broadcast::Sender<String>,
}

/// The outbox of a node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Outbox(Arc<Inner>);

impl Outbox {
    /// Opens the outbox in a directory: finds what waits, and finishes what a crash left half done.
    ///
    /// # Errors
    /// When something there cannot be read.
    pub(crate) fn open(host: &Host, dir: &Path, limits: Limits) -> io::Result<Self> {
        let store = Store::new(&host.env, &dir.join("outbox"));
        let found = store.open()?;
        let mut state = State { next_number: found.next_number, ..State::default() };
        for item in found.waiting {
            state.used = (state.used.0 + 1, state.used.1 + item.meta.bytes);
            state.queues.entry(item.meta.to.node).or_default().items.push_back(Arc::new(item));
        }
        for item in found.dead {
            state.used = (state.used.0 + 1, state.used.1 + item.meta.bytes);
            state.dead.insert(item.meta.id.clone(), Arc::new(item));
        }
        state.finished = found.finished.into();
        Ok(Self(Arc::new(Inner {
            host: host.clone(),
            limits,
            store,
            state: Mutex::new(state),
            wake: Notify::new(),
            changes: broadcast::Sender::new(CHANGES),
        })))
    }

    /// Ids of messages whose state has changed, from now on.
    pub(crate) fn changes(&self) -> broadcast::Receiver<String> {
        self.0.changes.subscribe()
    }

    fn changed(&self, id: &str) {
        // Nobody waiting is no error.
        let _ = self.0.changes.send(id.to_owned());
    }

    /// What is known of a peer.
    pub(crate) fn peer(&self, node: u32) -> Option<Peer> {
        let now = self.0.host.env.unix();
        let state = self.0.state.lock();
        state.peers.get(&node).filter(|(_, at)| now.saturating_sub(*at) < PEER_AGE).map(|(peer, _)| *peer)
    }

    /// Remembers what a peer can do.
    pub(crate) fn learn(&self, node: u32, peer: Peer) {
        let now = self.0.host.env.unix();
        let mut state = self.0.state.lock();
        if state.peers.len() >= PEERS && !state.peers.contains_key(&node) {
            let oldest = state.peers.iter().min_by_key(|(_, (_, at))| *at).map(|(node, _)| *node);
            oldest.and_then(|oldest| state.peers.remove(&oldest));
        }
        state.peers.insert(node, (peer, now));
    }

    /// The peer is there: what waits for it goes out now.
    pub(crate) fn appeared(&self, node: u32) {
        let mut state = self.0.state.lock();
        let Some(queue) = state.queues.get_mut(&node).filter(|queue| !queue.items.is_empty()) else { return };
        queue.next = None;
        drop(state);
        self.0.wake.notify_one();
    }

    /// Takes a message whose payload follows from `read`. When this returns it is on disk, synced. One with an id that
    /// is known already is not taken again.
    ///
    /// # Errors
    /// `outbox_full`, `storage`, or what `read` says.
    pub(crate) async fn put<R, F>(&self, mut meta: Meta, read: R) -> Result<Value, CallError>
    where
        R: FnMut(usize) -> F,
        F: Future<Output = io::Result<Vec<u8>>>,
    {
        if meta.id.is_empty() {
            meta.id = new_id(&self.0.host.env);
        }
        let id = meta.id.clone();
        if let Some(known) = self.status(&id) {
            return Ok(known);
        }
        let room = self.reserve(&meta)?;
        let number = {
            let mut state = self.0.state.lock();
            state.next_number += 1;
            state.next_number
        };
        let item = self.0.store.add(number, meta, read).await.map_err(|error| storage("queue the message", &error))?;
        let item = Arc::new(item);
        {
            let mut state = self.0.state.lock();
            let queue = state.queues.entry(item.meta.to.node).or_default();
            let place = queue.items.partition_point(|other| other.number < number);
            queue.items.insert(place, item);
        }
        room.keep();
        self.0.wake.notify_one();
        self.changed(&id);
        self.status(&id).ok_or_else(|| CallError::new("internal", "the message is gone"))
    }

    fn reserve(&self, meta: &Meta) -> Result<Room, CallError> {
        let mut state = self.0.state.lock();
        let limits = self.0.limits;
        let for_peer = state.queues.get(&meta.to.node).map_or(0, |queue| queue.items.len() as u64);
        let full = |what: String| {
            Err(CallError::new("outbox_full", what).hint(
                "see what waits with: pilotctl outbox list; drop what is not needed with: pilotctl outbox cancel <id>",
            ))
        };
        let (messages, bytes) = state.used;
        if messages >= limits.outbox_messages {
            return full(format!("the outbox is full: {messages} of {} messages", limits.outbox_messages));
        }
        if for_peer >= limits.outbox_messages.div_ceil(2) {
            return full(format!("{for_peer} messages wait for {} already", meta.to));
        }
        if bytes.saturating_add(meta.bytes) > limits.outbox_bytes {
            let limit = limits.outbox_bytes;
            return full(format!("the outbox is full: {bytes} of {limit} bytes, {} more do not fit", meta.bytes));
        }
        state.used = (messages + 1, bytes + meta.bytes);
        Ok(Room { outbox: self.clone(), bytes: meta.bytes, kept: false })
    }

    /// What became of a message, or will.
    pub(crate) fn status(&self, id: &str) -> Option<Value> {
        let now = self.0.host.env.now();
        let state = self.0.state.lock();
        for queue in state.queues.values() {
            if let Some(item) = queue.items.iter().find(|item| item.meta.id == id) {
                return Some(waiting(item, queue, now));
            }
        }
        let finished = state.finished.iter().rev().find(|finished| finished.id == id)?;
        Some(finished.to_json(state.dead.contains_key(id)))
    }

    /// All that waits, the dead letters, and with `all` what was delivered lately.
    pub(crate) fn list(&self, all: bool) -> Vec<Value> {
        let now = self.0.host.env.now();
        let state = self.0.state.lock();
        let mut out = Vec::new();
        for finished in &state.finished {
            let dead = state.dead.contains_key(&finished.id);
            if all || dead {
                out.push(finished.to_json(dead));
            }
        }
        for queue in state.queues.values() {
            let shown = queue.items.iter().filter(|item| all || item.meta.kind != Kind::Receipt);
            out.extend(shown.map(|item| waiting(item, queue, now)));
        }
        out
    }

    /// Takes a message back, or throws a dead letter away.
    ///
    /// # Errors
    /// `not_found`, `in_transit`, `storage`.
    pub(crate) async fn cancel(&self, id: &str) -> Result<Value, CallError> {
        let (item, dead) = {
            let mut state = self.0.state.lock();
            if let Some(item) = state.dead.remove(id) {
                (item, true)
            } else {
                let queued = state.queues.values_mut().find_map(|queue| {
                    let place = queue.items.iter().position(|item| item.meta.id == id)?;
                    Some((queue, place))
                });
                let (queue, place) = queued.ok_or_else(|| unknown(id))?;
                let item = queue.items.get(place).cloned().ok_or_else(|| unknown(id))?;
                if item.sending.load(Ordering::Relaxed) {
                    return Err(CallError::new("in_transit", format!("message {id} is being sent right now"))
                        .hint("ask what became of it with: pilotctl outbox status"));
                }
                queue.items.remove(place);
                (item, false)
            }
        };
        let fate = if dead { None } else { Some(Fate::Cancelled) };
        self.settle(&item, fate, None, None, false).await.map_err(|error| storage("cancel the message", &error))?;
        self.status(id).ok_or_else(|| unknown(id))
    }

    /// Tries a message now, or a dead letter once more with a fresh deadline.
    ///
    /// # Errors
    /// `not_found`, `storage`.
    pub(crate) async fn retry(&self, id: &str) -> Result<Value, CallError> {
        let dead = self.0.state.lock().dead.get(id).cloned();
        if let Some(item) = dead {
            let mut meta = item.meta.clone();
            let span = meta.deadline.saturating_sub(meta.created).max(Duration::from_secs(60));
            meta.created = self.0.host.env.unix();
            meta.deadline = meta.created + span;
            let (inner, number) = (self.0.clone(), item.number);
            let revived = blocking(move || inner.store.revive(number, meta)).await.and_then(|revived| revived);
            let revived = Arc::new(revived.map_err(|error| storage("revive the message", &error))?);
            let mut state = self.0.state.lock();
            state.dead.remove(id);
            state.finished.retain(|finished| finished.id != id);
            let queue = state.queues.entry(revived.meta.to.node).or_default();
            let place = queue.items.partition_point(|other| other.number < number);
            queue.items.insert(place, revived);
        }
        {
            let mut state = self.0.state.lock();
            let queue = state.queues.values_mut().find(|queue| queue.items.iter().any(|item| item.meta.id == id));
            match queue {
                Some(queue) => (queue.next, queue.failures) = (None, 0),
                None => return Err(unknown(id)),
            }
        }
        self.0.wake.notify_one();
        self.changed(id);
        self.status(id).ok_or_else(|| unknown(id))
    }

    /// Notes that a peer has read a message of ours.
    ///
    /// # Errors
    /// A text for the peer.
    pub(crate) async fn receipt(&self, node: u32, receipt: &Receipt) -> Result<(), String> {
        let noted = {
            let mut state = self.0.state.lock();
            let of_peer = |finished: &&mut Finished| finished.id == receipt.message_id && finished.to.node == node;
            let finished = state.finished.iter_mut().rev().find(of_peer);
            let finished = finished.ok_or("no such message")?;
            finished.read_at = Some(Duration::from_secs(receipt.read_at));
            finished.clone()
        };
        let inner = self.0.clone();
        let written = blocking(move || inner.store.log(&noted)).await.and_then(|written| written);
        written.map_err(|error| format!("writing failed: {}", error.kind()))?;
        self.changed(&receipt.message_id);
        Ok(())
    }

    /// Ends the life of an item: what became of it is on disk before it goes.
    async fn settle(
        &self,
        item: &Arc<Item>,
        fate: Option<Fate>,
        ack: Option<String>,
        reason: Option<String>,
        tagged: bool,
    ) -> io::Result<()> {
        let kept = matches!(fate, Some(Fate::Expired | Fate::Refused)) && item.meta.kind != Kind::Receipt;
        let finished = fate.filter(|_| item.meta.kind != Kind::Receipt).map(|state| Finished {
            id: item.meta.id.clone(),
            to: item.meta.to,
            kind: item.meta.kind,
            bytes: item.meta.bytes,
            state,
            at: self.0.host.env.unix(),
            ack,
            reason,
            tagged,
            read_at: None,
        });
        let (inner, number, noted) = (self.0.clone(), item.number, finished.clone());
        let written = blocking(move || {
            noted.as_ref().map_or(Ok(()), |noted| inner.store.log(noted))?;
            if kept { Ok(()) } else { inner.store.remove(number) }
        });
        written.await??;
        {
            let mut state = self.0.state.lock();
            if let Some(finished) = finished {
                state.finished.push_back(finished);
                if state.finished.len() > FINISHED {
                    // Dead letters keep their outcome for as long as they are there.
                    let dead = |state: &State, at: usize| {
                        state.finished.get(at).is_some_and(|f| state.dead.contains_key(&f.id))
                    };
                    let oldest = (0..state.finished.len()).find(|at| !dead(&state, *at));
                    oldest.and_then(|at| state.finished.remove(at));
                }
            }
            if kept {
                state.dead.insert(item.meta.id.clone(), item.clone());
            } else {
                state.used = (state.used.0.saturating_sub(1), state.used.1.saturating_sub(item.meta.bytes));
            }
        }
        self.changed(&item.meta.id);
        Ok(())
    }
}

fn unknown(id: &str) -> CallError {
    CallError::new("not_found", format!("no message {id} in the outbox"))
        .hint("list them with: pilotctl outbox list --all")
}

fn storage(what: &str, error: &io::Error) -> CallError {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some disk space",
        _ => "see the daemon's log",
    };
    CallError::new("storage", format!("cannot {what}: {error}")).hint(hint)
}

fn waiting(item: &Item, queue: &Queue, now: Instant) -> Value {
    let mut map = item.meta.to_json();
    let state = if item.sending.load(Ordering::Relaxed) { "sending" } else { "queued" };
    map.insert("state".into(), state.into());
    map.insert("attempts".into(), item.attempts.load(Ordering::Relaxed).into());
    if let Some(error) = &queue.error {
        map.insert("last_error".into(), error.clone().into());
    }
    if let Some(next) = queue.next {
        map.insert("next_attempt_in_ms".into(), (next.saturating_duration_since(now).as_millis() as u64).into());
    }
    Value::Object(map)
}

/// Room for a message on its way in; given back unless it is kept.
struct Room {
    outbox: Outbox,
    bytes: u64,
    kept: bool,
}

impl Room {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if !self.kept {
            let mut state = self.outbox.0.state.lock();
            state.used = (state.used.0.saturating_sub(1), state.used.1.saturating_sub(self.bytes));
        }
    }
}
