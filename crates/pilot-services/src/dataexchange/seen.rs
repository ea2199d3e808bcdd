//! Which messages have been stored: so that one that is sent again, after a restart too, is stored once.
//!
//! In memory, and as a log of JSON lines in `messages.ids`. The log is written after the message is safe and synced a
//! little later: what a crash takes from it is read again from the messages themselves when the service opens.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot_env::{Env, RawFile};
use pilot_wire::json;
use serde_json::{Map, Value, json};

/// Ids kept for each sender. Senders repeat their latest messages first, so an older id is never asked for.
pub(super) const PER_SENDER: usize = 4096;
/// Ids kept in all. The sender with most of them loses its oldest.
pub(super) const TOTAL: usize = 262_144;
/// Most bytes of the log that are read: more than its bounds allow.
const MAX_LOG: u64 = 256 << 20;
/// Lines after which the log is synced.
const SYNC_EVERY: usize = 64;

/// What the log says of one stored thing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Sender.
    pub(super) node: u32,
    /// Its id, if it has one; files have theirs behind `f/`.
    pub(super) id: Option<String>,
    /// Name of the file it was stored as.
    pub(super) name: String,
    /// Bytes of that file.
    pub(super) bytes: u64,
}

impl Entry {
    fn line(&self) -> Vec<u8> {
        let mut map = Map::new();
        map.insert("n".into(), self.node.into());
        map.insert("f".into(), self.name.clone().into());
        map.insert("b".into(), self.bytes.into());
        if let Some(id) = &self.id {
            map.insert("i".into(), id.clone().into());
        }
        let mut line = json::to_vec(&Value::Object(map));
        line.push(b'\n');
        line
    }

    fn parse(line: &[u8]) -> Option<Self> {
        let value = json::parse(line).ok()?;
        let map = value.as_object()?;
        Some(Self {
            node: u32::try_from(map.get("n")?.as_u64()?).ok()?,
            id: map.get("i").and_then(Value::as_str).map(ToOwned::to_owned),
            name: map.get("f")?.as_str()?.to_owned(),
            bytes: map.get("b")?.as_u64()?,
        })
    }
}

#[derive(Default)]
struct Sender {
    order: VecDeque<Arc<str>>,
    ids: BTreeSet<Arc<str>>,
}

/// The ids.
pub(super) struct Seen {
    env: Env,
    path: PathBuf,
    senders: BTreeMap<u32, Sender>,
    total: usize,
    log: Option<Box<dyn RawFile>>,
    lines: usize,
    unsynced: usize,
}

impl Seen {
    /// Reads the log. Torn lines at its end are what a crash leaves; they are passed over.
    ///
    /// # Errors
    /// When the log cannot be read at all.
    pub(super) fn open(env: &Env, path: &Path) -> io::Result<(Self, Vec<Entry>)> {
        let text = match env.fs().read_limited(path, MAX_LOG) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut seen = Self {
            env: env.clone(),
            path: path.to_owned(),
            senders: BTreeMap::new(),
            total: 0,
            log: None,
            lines: 0,
            unsynced: 0,
        };
        let mut entries = Vec::new();
        for entry in text.split(|b| *b == b'\n').filter_map(Entry::parse) {
            seen.lines += 1;
            if let Some(id) = &entry.id {
                seen.remember(entry.node, id);
            }
            entries.push(entry);
        }
        // A torn last line must not swallow the next one.
        if text.last().is_some_and(|b| *b != b'\n') {
            seen.lines += 1;
            seen.append(b"\n")?;
        }
        Ok((seen, entries))
    }

    /// Whether a sender's id is among those stored.
    pub(super) fn contains(&self, node: u32, id: &str) -> bool {
        self.senders.get(&node).is_some_and(|sender| sender.ids.contains(id))
    }

    fn remember(&mut self, node: u32, id: &str) {
        let sender = self.senders.entry(node).or_default();
        let id: Arc<str> = id.into();
        if !sender.ids.insert(id.clone()) {
            return;
        }
        sender.order.push_back(id);
        self.total += 1;
        if sender.order.len() > PER_SENDER {
            self.forget(node);
        } else if self.total > TOTAL {
            let most = self.senders.iter().max_by_key(|(_, sender)| sender.order.len()).map(|(node, _)| *node);
            if let Some(node) = most {
                self.forget(node);
            }
        }
    }

    fn forget(&mut self, node: u32) {
        if let Some(sender) = self.senders.get_mut(&node) {
            if let Some(oldest) = sender.order.pop_front() {
                sender.ids.remove(&oldest);
                self.total -= 1;
            }
            if sender.order.is_empty() {
                self.senders.remove(&node);
            }
        }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let log = match self.log.take() {
            Some(log) => log,
            None => self.env.fs().open_or_create(&self.path, 0o600)?,
        };
        let written = log.append(bytes);
        self.log = Some(log);
        written
    }

    /// Adds what has just been stored. The log failing is no reason to fail the message, which is safe: it is said in
    /// the daemon's log, and the ids are found in the messages at the next start.
    pub(super) fn add(&mut self, entries: &[Entry]) {
        let mut text = Vec::new();
        for entry in entries {
            if let Some(id) = &entry.id {
                self.remember(entry.node, id);
            }
            text.extend_from_slice(&entry.line());
        }
        self.lines += entries.len();
        self.unsynced += entries.len();
        let written = self.append(&text).and_then(|()| match &self.log {
            Some(log) if self.unsynced >= SYNC_EVERY => log.sync(),
            _ => Ok(()),
        });
        match written {
            Ok(()) if self.unsynced >= SYNC_EVERY => self.unsynced = 0,
            Ok(()) => {}
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "cannot write the log of message ids"),
        }
    }

    /// Whether the log has grown to twice what it has to hold.
    pub(super) fn is_long(&self, stored: usize) -> bool {
        self.lines > 2 * (self.total + stored) + 4096
    }

    /// Writes the log anew: the ids, and what is still there.
    ///
    /// # Errors
    /// The file system's; the old log is then still there.
    pub(super) fn compact(&mut self, present: &BTreeMap<String, Entry>) -> io::Result<()> {
        let mut text = Vec::new();
        let mut lines = 0;
        let written: BTreeSet<(u32, &str)> =
            present.values().filter_map(|entry| Some((entry.node, entry.id.as_deref()?))).collect();
        for (node, sender) in &self.senders {
            for id in sender.order.iter().filter(|id| !written.contains(&(*node, id.as_ref()))) {
                let mut line = json::to_vec(&json!({ "n": node, "i": id.as_ref(), "f": "", "b": 0 }));
                line.push(b'\n');
                text.extend_from_slice(&line);
                lines += 1;
            }
        }
        for entry in present.values() {
            text.extend_from_slice(&entry.line());
            lines += 1;
        }
        self.log = None;
        self.env.fs().write_atomic(&self.path, &text, 0o600)?;
        (self.lines, self.unsynced) = (lines, 0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(node: u32, id: &str) -> Entry {
        Entry { node, id: Some(id.into()), name: format!("{id}.json"), bytes: 10 }
    }

    #[test]
    fn ids_survive_a_restart_and_a_torn_log() {
        let dir = tempfile::tempdir().unwrap();
        let (env, path) = (Env::real(), dir.path().join("messages.ids"));
        let (mut seen, entries) = Seen::open(&env, &path).unwrap();
        assert!(entries.is_empty());
        seen.add(&[entry(1, "a"), entry(2, "b")]);
        env.fs().open(&path).unwrap().append(b"{\"n\":3,\"i\":\"c").unwrap();
        let (mut seen, entries) = Seen::open(&env, &path).unwrap();
        assert_eq!(entries, [entry(1, "a"), entry(2, "b")]);
        assert!(seen.contains(1, "a") && seen.contains(2, "b") && !seen.contains(2, "a") && !seen.contains(3, "c"));
        seen.add(&[entry(3, "c")]);
        let (mut seen, entries) = Seen::open(&env, &path).unwrap();
        assert_eq!(entries.len(), 3);
        let present = BTreeMap::from([("c.json".to_owned(), entry(3, "c"))]);
        seen.compact(&present).unwrap();
        let (seen, entries) = Seen::open(&env, &path).unwrap();
        assert!(seen.contains(1, "a") && seen.contains(2, "b") && seen.contains(3, "c"));
        assert_eq!(entries.iter().filter(|entry| entry.name == "c.json").count(), 1);
    }

    #[test]
    fn a_sender_of_many_messages_costs_the_others_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (mut seen, _) = Seen::open(&Env::real(), &dir.path().join("messages.ids")).unwrap();
        seen.add(&[entry(1, "first")]);
        for round in 0..3 * PER_SENDER {
            seen.remember(2, &round.to_string());
        }
        assert!(seen.contains(1, "first"));
        assert!(seen.contains(2, &(3 * PER_SENDER - 1).to_string()) && !seen.contains(2, "0"));
        assert_eq!(seen.total, PER_SENDER + 1);
    }
}
