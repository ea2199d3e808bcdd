//! Tasks on disk: the official files, and beside them a note for each task with what those have no room for.
//!
//! The official files are the truth, because official tools write them, too: every operation reads the file it changes.
//! Each write replaces a file whole and is synced before anything is said to anybody.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use pilot_env::Env;
use pilot_wire::service::tasks::{TaskFile, is_id};
use serde::{Deserialize, Serialize};

use crate::CallError;

/// Largest file of a task that is read.
const MAX_FILE: u64 = 8 << 20;
/// Largest note that is read.
const MAX_NOTE: u64 = 64 << 10;
/// Tasks kept in each direction, finished ones included. Further ones are refused until some are removed.
pub const MAX_TASKS: usize = 10_000;

/// On which side of a task we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// We work on it.
    Received,
    /// We have submitted it.
    Submitted,
}

impl Side {
    /// The name of its directory.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Submitted => "submitted",
        }
    }
}

/// How far the score of a task has been settled. Each step is noted before it is taken: nothing is paid twice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Paid {
    #[default]
    No,
    Owed,
    Debited,
    Done,
}

/// What we know of a task beside its file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Note {
    /// Order of arrival.
    pub(super) seq: u64,
    /// When it arrived, or was submitted; milliseconds since the Unix epoch, as all times here.
    pub(super) at_ms: i64,
    /// The node on the other side, from the authenticated tunnel, or as dialled.
    pub(super) peer: u32,
    /// Worker: since when it is at the head of the queue; 0 when it is not.
    pub(super) head_ms: i64,
    /// Worker: the last status that the submitter has been told.
    pub(super) told: String,
    /// Worker: results wait to be delivered.
    pub(super) results: bool,
    /// Worker: attempts to reach the submitter that failed, one after the other.
    pub(super) tries: u32,
    /// Worker: when to try again.
    pub(super) next_ms: i64,
    /// Submitter: the worker has said that it has the task.
    pub(super) confirmed: bool,
    /// Submitter: how far the score is settled.
    pub(super) paid: Paid,
    /// Submitter: what the worker earns.
    pub(super) reward: i64,
}

/// The files.
pub(super) struct Store {
    env: Env,
    root: PathBuf,
    /// How many files there are on each side.
    counts: BTreeMap<Side, usize>,
}

fn failed(what: &str, path: &Path, error: &io::Error) -> CallError {
    CallError::new("internal_error", format!("failed to {what} {}: {error}", path.display()))
        .hint("check that the directory is writable and the disk has room")
}

impl Store {
    /// Opens the directories of tasks below `root`, creating what is missing.
    pub(super) fn open(env: Env, root: PathBuf) -> io::Result<Self> {
        for dir in ["received", "submitted", "results", "state"] {
            env.fs().create_dir_all(&root.join(dir), 0o700)?;
        }
        let mut store = Self { env, root, counts: BTreeMap::new() };
        for side in [Side::Received, Side::Submitted] {
            let count = store.ids(side).len();
            store.counts.insert(side, count);
        }
        Ok(store)
    }

    fn file(&self, side: Side, id: &str) -> PathBuf {
        self.root.join(side.as_str()).join(format!("{id}.json"))
    }

    fn note_file(&self, side: Side, id: &str) -> PathBuf {
        self.root.join("state").join(format!("{}-{id}.json", side.as_str()))
    }

    fn spool_file(&self, id: &str) -> PathBuf {
        self.root.join("state").join(format!("{id}.results"))
    }

    /// The ids of all tasks of a side, in the order of their names.
    pub(super) fn ids(&self, side: Side) -> Vec<String> {
        let entries = self.env.fs().list(&self.root.join(side.as_str())).unwrap_or_default();
        let names = entries.into_iter().filter(|entry| entry.metadata.is_file);
        let names = names.filter_map(|entry| entry.name.into_string().ok());
        names.filter_map(|name| name.strip_suffix(".json").filter(|id| is_id(id)).map(str::to_owned)).collect()
    }

    /// Whether there is room for another task.
    pub(super) fn has_room(&self, side: Side) -> bool {
        self.counts.get(&side).is_none_or(|count| *count < MAX_TASKS)
    }

    /// A task; `None` when there is none of this id.
    pub(super) fn load(&self, side: Side, id: &str) -> Result<Option<TaskFile>, CallError> {
        if !is_id(id) {
            return Ok(None);
        }
        let path = self.file(side, id);
        let text = match self.env.fs().read_limited(&path, MAX_FILE) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read", &path, &error)),
        };
        let bad = |why: String| {
            CallError::new("internal_error", format!("task file {} is damaged: {why}", path.display()))
                .hint("repair the file, or move it away")
        };
        let task = TaskFile::parse(&text).map_err(|error| bad(error.to_string()))?;
        if task.task_id != id {
            return Err(bad(format!("it holds the task {:?}", task.task_id)));
        }
        Ok(Some(task))
    }

    /// Keeps a task. When this returns it is on disk.
    pub(super) fn save(&mut self, side: Side, task: &TaskFile) -> Result<(), CallError> {
        let path = self.file(side, &task.task_id);
        let is_new = !self.env.fs().exists(&path);
        self.env.fs().write_atomic(&path, &task.emit(), 0o600).map_err(|error| failed("write", &path, &error))?;
        if is_new {
            *self.counts.entry(side).or_default() += 1;
        }
        Ok(())
    }

    /// Removes a task and all that belongs to it.
    pub(super) fn remove(&mut self, side: Side, id: &str) {
        let fs = self.env.fs();
        if fs.remove_file(&self.file(side, id)).is_ok() {
            self.counts.entry(side).and_modify(|count| *count = count.saturating_sub(1));
        }
        // Both may be missing.
        let _ = fs.remove_file(&self.note_file(side, id));
        for dir in [side.as_str(), "state"] {
            let _ = fs.sync_dir(&self.root.join(dir));
        }
    }

    /// The note of a task; an empty one when there is none or it is damaged.
    pub(super) fn note(&self, side: Side, id: &str) -> Note {
        let path = self.note_file(side, id);
        let text = self.env.fs().read_limited(&path, MAX_NOTE).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Whether there is a note.
    pub(super) fn has_note(&self, side: Side, id: &str) -> bool {
        self.env.fs().exists(&self.note_file(side, id))
    }

    /// Keeps a note. When this returns it is on disk.
    pub(super) fn save_note(&self, side: Side, id: &str, note: &Note) -> Result<(), CallError> {
        let path = self.note_file(side, id);
        let text = serde_json::to_vec(note).unwrap_or_default();
        self.env.fs().write_atomic(&path, &text, 0o600).map_err(|error| failed("write", &path, &error))
    }

    /// Keeps results that are to be delivered.
    pub(super) fn spool(&self, id: &str, body: &[u8]) -> Result<(), CallError> {
        let path = self.spool_file(id);
        self.env.fs().write_atomic(&path, body, 0o600).map_err(|error| failed("write", &path, &error))
    }

    /// Results that are to be delivered.
    pub(super) fn spooled(&self, id: &str) -> Result<Vec<u8>, CallError> {
        let path = self.spool_file(id);
        self.env.fs().read_limited(&path, 32 << 20).map_err(|error| failed("read", &path, &error))
    }

    /// Forgets results that have been delivered or refused.
    pub(super) fn unspool(&self, id: &str) {
        // Delivered twice at worst: the submitter knows them.
        let _ = self.env.fs().remove_file(&self.spool_file(id));
    }

    /// Keeps results that have arrived, under a name inside the directory. Answers whether they are new; others under
    /// the same name are left alone.
    pub(super) fn save_results(&self, name: &str, data: &[u8]) -> Result<Kept, CallError> {
        let path = self.root.join("results").join(name);
        match self.env.fs().read_limited(&path, 32 << 20) {
            Ok(old) if old == data => return Ok(Kept::Same),
            Ok(_) => return Ok(Kept::Other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(_) => return Ok(Kept::Other),
        }
        self.env.fs().write_atomic(&path, data, 0o600).map_err(|error| failed("write", &path, &error))?;
        Ok(Kept::New)
    }
}

/// What became of results.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kept {
    /// They are kept now.
    New,
    /// They were there already.
    Same,
    /// Something else was there.
    Other,
}
