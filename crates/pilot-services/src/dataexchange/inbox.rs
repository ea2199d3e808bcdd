//! The inbox: one file for each message, safe on disk before anybody hears of it.
//!
//! A message is written under another name and synced; then all that wait are given their names and share one sync of
//! the directory (group commit). Nothing that was accepted is ever deleted here: what does not fit is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use pilot_wire::Address;
use pilot_wire::service::dataexchange::MessageType;
use pilot_wire::service::dataexchange::record::{self, InboxFormat, Record};
use serde_json::{Map, Value};
use tokio::sync::{Notify, broadcast, oneshot};

use super::hook::Hook;
use super::seen::{Entry, Seen};
use super::{FREE_DISK, Limits};
use crate::Host;

/// Where messages are written before they have their name. The official tools pass over directories.
const PARTIAL: &str = ".partial";
/// Messages of which followers are told; a slower one looks into the directory.
const ARRIVALS: usize = 1024;

/// A message that is safe on disk.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// Name of its file.
    pub(crate) name: Arc<str>,
    /// Sender.
    pub(crate) from: Address,
    /// What it is.
    pub(crate) kind: MessageType,
    /// Bytes of the payload.
    pub(crate) bytes: u64,
    /// Its id.
    pub(crate) message_id: Option<String>,
    /// What it answers.
    pub(crate) reply_to: Option<String>,
}

/// Why a message was not stored. The text goes to the sender: it holds no local paths.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StoreError {
    /// A quota.
    #[error("inbox full: {used} of {limit} {unit}{share}")]
    Full {
        /// In use.
        used: u64,
        /// Allowed.
        limit: u64,
        /// `messages` or `bytes`.
        unit: &'static str,
        /// ` for this sender`, or nothing.
        share: &'static str,
    },
    /// The disk.
    #[error("disk full: {available} bytes available, {FREE_DISK} are kept free")]
    Disk {
        /// What is left.
        available: u64,
    },
    /// Anything else; the particulars are in the daemon's log.
    #[error("{0}")]
    Io(String),
    /// The node keeps nothing on disk.
    #[error("this node keeps no messages")]
    NoDirectory,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    /// It has its file.
    New(Arc<str>),
    /// It had been stored before.
    Duplicate,
}

struct Waiting {
    temporary: PathBuf,
    kind: MessageType,
    received_at: Duration,
    number: u32,
    entry: Entry,
    arrival: Arrival,
    done: oneshot::Sender<Result<Arc<str>, StoreError>>,
}

/// A message written and synced, and where its fate will be told.
struct Written {
    waiting: Waiting,
    outcome: oneshot::Receiver<Result<Arc<str>, StoreError>>,
    room: Reserved,
}

struct State {
    seen: Seen,
    /// What is in the directory, as far as it is known.
    present: BTreeMap<String, Entry>,
    /// Messages and bytes, in all and by sender.
    used: (u64, u64),
    used_by: BTreeMap<u32, (u64, u64)>,
    /// Room given to messages on their way: messages and bytes, by sender.
    reserved: BTreeMap<u32, (u64, u64)>,
    /// Ids of messages on their way.
    storing: BTreeSet<(u32, String)>,
}

struct Inner {
    host: Host,
    dir: PathBuf,
    format: InboxFormat,
    limits: Limits,
    state: Mutex<State>,
    /// Messages written and synced, waiting for their names.
    waiting: Mutex<Vec<Waiting>>,
    committing: tokio::sync::Mutex<()>,
    stored: Notify,
    numbers: AtomicU32,
    temporaries: AtomicU64,
    arrivals: broadcast::Sender<Arrival>,
    hook: Option<Hook>,
}

/// The inbox of a node. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Inbox(Arc<Inner>);

fn interrupted() -> StoreError {
    StoreError::Io("storing was interrupted".into())
}

fn blamed(error: &io::Error, what: &str) -> StoreError {
    tracing::error!(%error, "{what} a message failed");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Disk { available: 0 },
        kind => StoreError::Io(format!("{what} the message failed: {kind}")),
    }
}

impl Inbox {
    /// Opens the inbox in a directory: clears what a crash left half written, and counts what is there.
    ///
    /// # Errors
    /// When something there cannot be read.
    pub(crate) fn open(
        host: &Host,
        dir: &Path,
        format: InboxFormat,
        limits: Limits,
        hook: Option<Hook>,
    ) -> io::Result<Self> {
        let fs = host.env.fs();
        let inbox = dir.join("inbox");
        match fs.remove_dir_all(&inbox.join(PARTIAL)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (mut seen, logged) = Seen::open(&host.env, &dir.join("messages.ids"))?;
        let mut logged: BTreeMap<String, Entry> = logged
            .into_iter()
            .filter(|entry| !entry.name.is_empty())
            .map(|entry| (entry.name.clone(), entry))
            .collect();
        let mut present = BTreeMap::new();
        let mut unlogged = Vec::new();
        for (name, bytes) in files(host, &inbox)? {
            let entry = match logged.remove(&name) {
                Some(entry) => entry,
                None => {
                    let text = fs.read_limited(&inbox.join(&name), record::MAX_FILE).ok();
                    let record = text.and_then(|text| Record::parse(&text));
                    let node = record.as_ref().and_then(|r| r.from.parse::<Address>().ok()).map_or(0, |from| from.node);
                    let entry = Entry { node, id: record.and_then(|r| r.message_id), name: name.clone(), bytes };
                    unlogged.push(entry.clone());
                    entry
                }
            };
            present.insert(name, entry);
        }
        if !unlogged.is_empty() {
            seen.add(&unlogged);
        }
        if seen.is_long(present.len()) {
            seen.compact(&present)?;
        }
        let mut state = State {
            seen,
            present,
            used: (0, 0),
            used_by: BTreeMap::new(),
            reserved: BTreeMap::new(),
            storing: BTreeSet::new(),
        };
        state.count();
        Ok(Self(Arc::new(Inner {
            host: host.clone(),
            dir: inbox,
            format,
            limits,
            state: Mutex::new(state),
            waiting: Mutex::new(Vec::new()),
            committing: tokio::sync::Mutex::new(()),
            stored: Notify::new(),
            numbers: AtomicU32::new(0),
            temporaries: AtomicU64::new(0),
            arrivals: broadcast::Sender::new(ARRIVALS),
            hook,
        })))
    }

    /// Messages from now on, as they become safe.
    pub(crate) fn arrivals(&self) -> broadcast::Receiver<Arrival> {
        self.0.arrivals.subscribe()
    }

    /// Where the messages are.
    pub(crate) fn dir(&self) -> &Path {
        &self.0.dir
    }

    /// Stores a message. When this returns it is on disk, synced, under its name. Goes on when the future is dropped: a
    /// message is stored whole or not at all.
    ///
    /// # Errors
    /// [`StoreError`]; the message is then not there.
    pub(crate) async fn store(&self, from: Address, record: Record) -> Result<Stored, StoreError> {
        let storing = tokio::spawn(self.clone().store_to_the_end(from, record));
        storing.await.unwrap_or_else(|_| Err(interrupted()))
    }

    async fn store_to_the_end(self, from: Address, record: Record) -> Result<Stored, StoreError> {
        let Some(_storing) = self.begin(from.node, record.message_id.as_deref()).await else {
            return Ok(Stored::Duplicate);
        };
        let inner = &self.0;
        let number = (inner.numbers.fetch_add(1, Ordering::Relaxed) + 1) % 1_000_000;
        // Long payloads take a while to encode, and the disk takes its time.
        let this = self.clone();
        let written = tokio::task::spawn_blocking(move || this.write(from, &record, number)).await;
        let Written { waiting, outcome, room: _room } = written.map_err(|_| interrupted())??;
        inner.waiting.lock().push(waiting);
        let guard = inner.committing.lock().await;
        // The holder of the lock before may have done it.
        if !inner.waiting.lock().is_empty() {
            let this = self.clone();
            tokio::task::spawn_blocking(move || this.commit()).await.map_err(|_| interrupted())?;
        }
        drop(guard);
        outcome.await.map_err(|_| interrupted())?.map(Stored::New)
    }

    /// Takes an id for itself; `None` when it has been stored. One that is being stored under the same id decides.
    async fn begin(&self, node: u32, id: Option<&str>) -> Option<Storing> {
        let inner = &self.0;
        let Some(id) = id else { return Some(Storing(self.clone(), None)) };
        loop {
            let decided = inner.stored.notified();
            tokio::pin!(decided);
            decided.as_mut().enable();
            {
                let mut state = inner.state.lock();
                if state.seen.contains(node, id) {
                    return None;
                }
                if state.storing.insert((node, id.to_owned())) {
                    return Some(Storing(self.clone(), Some((node, id.to_owned()))));
                }
            }
            decided.await;
        }
    }

    /// Writes and syncs a message under a name of its own.
    fn write(&self, from: Address, record: &Record, number: u32) -> Result<Written, StoreError> {
        let inner = &self.0;
        let text = record.emit(inner.format);
        let bytes = text.len() as u64;
        let room = self.reserve(from.node, bytes)?;
        let fs = inner.host.env.fs();
        let partial = inner.dir.join(PARTIAL);
        let temporary = partial.join(inner.temporaries.fetch_add(1, Ordering::Relaxed).to_string());
        let write = || {
            let file = match fs.create_new(&temporary, 0o600) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs.create_dir_all(&partial, 0o700)?;
                    fs.create_new(&temporary, 0o600)?
                }
                other => other?,
            };
            file.write_at(0, &text)?;
            file.sync()
        };
        let available = match fs.available(&partial) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs.create_dir_all(&partial, 0o700).and_then(|()| fs.available(&partial))
            }
            other => other,
        };
        let available = available.map_err(|error| blamed(&error, "storing"))?;
        if available < FREE_DISK.saturating_add(bytes) {
            return Err(StoreError::Disk { available });
        }
        if let Err(error) = write() {
            let _ = fs.remove_file(&temporary);
            return Err(blamed(&error, "writing"));
        }
        let (done, outcome) = oneshot::channel();
        let arrival = Arrival {
            name: "".into(),
            from,
            kind: record.kind,
            bytes: record.payload.len() as u64,
            message_id: record.message_id.clone(),
            reply_to: record.reply_to.clone(),
        };
        let entry = Entry { node: from.node, id: record.message_id.clone(), name: String::new(), bytes };
        let waiting =
            Waiting { temporary, kind: record.kind, received_at: record.received_at, number, entry, arrival, done };
        Ok(Written { waiting, outcome, room })
    }

    /// Gives names to all that wait, syncs the directory once, and tells everybody.
    fn commit(&self) {
        let inner = &self.0;
        let fs = inner.host.env.fs();
        let batch = std::mem::take(&mut *inner.waiting.lock());
        if batch.is_empty() {
            return;
        }
        let mut named = Vec::new();
        for mut waiting in batch {
            match self.name(&waiting) {
                Ok(name) => {
                    waiting.entry.name.clone_from(&name);
                    waiting.arrival.name = name.into();
                    named.push(waiting);
                }
                Err(error) => {
                    let _ = fs.remove_file(&waiting.temporary);
                    let _ = waiting.done.send(Err(blamed(&error, "naming")));
                }
            }
        }
        if let Err(error) = fs.sync_dir(&inner.dir) {
            // Unacknowledged, so not to be found either.
            for waiting in named {
                let _ = fs.remove_file(&inner.dir.join(&waiting.entry.name));
                let _ = waiting.done.send(Err(blamed(&error, "syncing")));
            }
            return;
        }
        {
            let mut state = inner.state.lock();
            let entries: Vec<Entry> = named.iter().map(|waiting| waiting.entry.clone()).collect();
            state.seen.add(&entries);
            for entry in entries {
                state.add(entry);
            }
            let State { seen, present, .. } = &mut *state;
            if seen.is_long(present.len())
                && let Err(error) = seen.compact(present)
            {
                tracing::warn!(%error, "cannot shorten the log of message ids");
            }
        }
        for waiting in named {
            self.tell(&waiting.arrival);
            let _ = waiting.done.send(Ok(waiting.arrival.name));
        }
    }

    fn name(&self, waiting: &Waiting) -> io::Result<String> {
        let fs = self.0.host.env.fs();
        let mut number = waiting.number;
        loop {
            let name = record::file_name(waiting.kind, waiting.received_at, number);
            match fs.rename_new(&waiting.temporary, &self.0.dir.join(&name)) {
                // The clock went back, or another program writes here, too.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number = (number + 1) % 1_000_000,
                Err(error) => return Err(error),
                Ok(()) => return Ok(name),
            }
        }
    }

    /// Webhooks, followers, the hook.
    fn tell(&self, arrival: &Arrival) {
        let mut data = Map::new();
        data.insert("from".into(), arrival.from.to_string().into());
        data.insert("size".into(), arrival.bytes.into());
        data.insert("type".into(), arrival.kind.name().into());
        self.0.host.events.emit("message.received", data);
        if let Some(hook) = &self.0.hook {
            hook.run(self.0.dir.join(arrival.name.as_ref()), arrival.clone());
        }
        // Nobody following is no error.
        let _ = self.0.arrivals.send(arrival.clone());
    }

    fn reserve(&self, node: u32, bytes: u64) -> Result<Reserved, StoreError> {
        let mut state = self.0.state.lock();
        let check = |state: &State| self.0.limits.check_inbox(state.usage(None), state.usage(Some(node)), bytes);
        if check(&state).is_err() {
            // Somebody may have cleared messages away.
            let there = files(&self.0.host, &self.0.dir).map_err(|error| blamed(&error, "counting"))?;
            let there: BTreeSet<String> = there.into_iter().map(|(name, _)| name).collect();
            state.present.retain(|name, _| there.contains(name));
            state.count();
            check(&state)?;
        }
        let reserved = state.reserved.entry(node).or_default();
        reserved.0 += 1;
        reserved.1 += bytes;
        Ok(Reserved { inbox: self.clone(), node, bytes })
    }

    /// Marks messages as read and returns those that are now, for receipts. Names that are not there are left out.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn mark_read(&self, names: &[String], at: Duration) -> io::Result<Vec<Record>> {
        let fs = self.0.host.env.fs();
        let mut read = Vec::new();
        for name in names.iter().filter(|name| record::arrival(name).is_some() && !name.contains('/')) {
            let path = self.0.dir.join(name);
            let text = match fs.read_limited(&path, record::MAX_FILE) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let Ok(Value::Object(mut map)) = pilot_wire::json::parse(&text) else { continue };
            if map.contains_key("read_at") {
                continue;
            }
            let record = Record::from_object(&map);
            map.insert("read_at".into(), pilot_wire::time::rfc3339(at).into());
            fs.write_atomic(&path, &pilot_wire::json::to_vec(&Value::Object(map)), 0o600)?;
            read.extend(record);
        }
        Ok(read)
    }

    /// Names of all messages.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn names(&self) -> io::Result<Vec<String>> {
        Ok(files(&self.0.host, &self.0.dir)?.into_iter().map(|(name, _)| name).collect())
    }
}

impl State {
    /// Messages and bytes in use, by one sender or by all, those on their way included.
    fn usage(&self, node: Option<u32>) -> (u64, u64) {
        let (stored, reserved) = match node {
            None => (self.used, self.reserved.values().fold((0, 0), |sum, more| (sum.0 + more.0, sum.1 + more.1))),
            Some(node) => {
                let of = |map: &BTreeMap<u32, (u64, u64)>| map.get(&node).copied().unwrap_or_default();
                (of(&self.used_by), of(&self.reserved))
            }
        };
        (stored.0 + reserved.0, stored.1 + reserved.1)
    }

    fn tally(&mut self, node: u32, bytes: u64) {
        let by = self.used_by.entry(node).or_default();
        *by = (by.0 + 1, by.1 + bytes);
        self.used = (self.used.0 + 1, self.used.1 + bytes);
    }

    fn add(&mut self, entry: Entry) {
        self.tally(entry.node, entry.bytes);
        self.present.insert(entry.name.clone(), entry);
    }

    fn count(&mut self) {
        self.used = (0, 0);
        self.used_by.clear();
        let all: Vec<(u32, u64)> = self.present.values().map(|entry| (entry.node, entry.bytes)).collect();
        for (node, bytes) in all {
            self.tally(node, bytes);
        }
    }
}

/// Names and sizes of the messages in a directory, which may be missing.
fn files(host: &Host, dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let entries = match host.env.fs().list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let message = |entry: pilot_env::DirEntry| {
        let name = entry.name.into_string().ok().filter(|name| name.ends_with(".json") && !name.starts_with('.'))?;
        entry.metadata.is_file.then_some((name, entry.metadata.len))
    };
    Ok(entries.into_iter().filter_map(message).collect())
}

/// Room for a message on its way.
struct Reserved {
    inbox: Inbox,
    node: u32,
    bytes: u64,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut state = self.inbox.0.state.lock();
        if let Some(reserved) = state.reserved.get_mut(&self.node) {
            reserved.0 -= 1;
            reserved.1 -= self.bytes;
            if reserved.0 == 0 {
                state.reserved.remove(&self.node);
            }
        }
    }
}

/// An id on its way.
struct Storing(Inbox, Option<(u32, String)>);

impl Drop for Storing {
    fn drop(&mut self) {
        if let Some(key) = self.1.take() {
            self.0.0.state.lock().storing.remove(&key);
            self.0.0.stored.notify_waiters();
        }
    }
}
