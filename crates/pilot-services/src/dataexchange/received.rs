//! Received files: partial until they are whole and verified, then under a safe name that nothing else has.
//!
//! ```text
//! received/<name>           whole, synced
//! received/.partial/<key>   on their way; of chunked transfers it is kept for the next attempt
//! received/.meta/<name>     who sent it, its original name, its hash
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::Mutex;
use pilot_env::RawFile;
use pilot_wire::{Address, json, time};
use serde_json::{Map, Value};

use super::seen::{Entry, Seen};
use super::{FREE_DISK, Limits, hex, names, tree};
use crate::Host;

/// Transfers at once.
const TRANSFERS: usize = 64;
/// Partial files untouched for longer are removed.
const PARTIAL_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// A transfer silent for longer may be taken over by a new attempt (07 §11.2).
const TAKEOVER: Duration = Duration::from_secs(10);
/// Bytes hashed at once.
const PIECE: usize = 256 * 1024;
/// Longest description that is read.
const MAX_META: u64 = 16 * 1024;

/// Why a file was not stored. The text goes to the sender: it holds no local paths.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FileError {
    /// The quota.
    #[error("receiver disk quota exceeded: need {need}, {available} of {limit} available")]
    Quota {
        /// Bytes to come.
        need: u64,
        /// Left of the quota.
        available: u64,
        /// The quota.
        limit: u64,
    },
    /// The disk.
    #[error("receiver disk full: need {need}, {available} available, {FREE_DISK} are kept free")]
    Disk {
        /// Bytes to come.
        need: u64,
        /// Left on the disk.
        available: u64,
    },
    /// Too many transfers at once.
    #[error("receiver busy: {TRANSFERS} transfers at once")]
    Busy,
    /// The content is not what was announced.
    #[error("sha256 mismatch — file corrupt, .partial removed")]
    Mismatch,
    /// Some of it is missing.
    #[error("incomplete: have {have} of {size} bytes")]
    Incomplete {
        /// Bytes that arrived.
        have: u64,
        /// Bytes announced.
        size: u64,
    },
    /// A newer attempt goes on with the transfer.
    #[error("taken over by a newer transfer of the same file")]
    TakenOver,
    /// A directory that is not well-formed.
    #[error("directory refused: {0}")]
    Tree(String),
    /// Anything else; the particulars are in the daemon's log.
    #[error("{0}")]
    Io(String),
    /// The node keeps nothing on disk.
    #[error("this node keeps no files")]
    NoDirectory,
}

fn blamed(error: &io::Error, what: &str) -> FileError {
    tracing::error!(%error, "{what} a received file failed");
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FileError::Disk { need: 0, available: 0 },
        kind => FileError::Io(format!("{what} the file failed: {kind}")),
    }
}

/// What is said of a file before its bytes come.
#[derive(Debug, Clone)]
pub(crate) struct Announced {
    pub(crate) from: Address,
    /// As the sender wrote it.
    pub(crate) name: Vec<u8>,
    pub(crate) size: u64,
    /// Unknown for a file in one frame.
    pub(crate) sha256: Option<[u8; 32]>,
    pub(crate) message_id: Option<String>,
    pub(crate) reply_to: Option<String>,
    pub(crate) tree: bool,
}

/// A file that is safe on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredFile {
    pub(crate) name: String,
    pub(crate) sha256: [u8; 32],
}

struct Active {
    generation: u64,
    touched: Duration,
}

struct State {
    seen: Seen,
    /// Partial files that are being written, by name.
    active: BTreeMap<String, Active>,
    /// Bytes still to come of them.
    reserved: BTreeMap<u64, u64>,
}

struct Inner {
    host: Host,
    dir: PathBuf,
    limits: Limits,
    state: Mutex<State>,
    generations: AtomicU64,
}

/// The received files of a node. Cheap to clone. Every method blocks for as long as the disk takes.
#[derive(Clone)]
pub(crate) struct Received(Arc<Inner>);

impl Received {
    /// Opens the store in a directory and removes what nobody will need any more.
    ///
    /// # Errors
    /// When something there cannot be read.
    pub(crate) fn open(host: &Host, dir: &Path, limits: Limits) -> io::Result<Self> {
        let received = dir.join("received");
        let (mut seen, logged) = Seen::open(&host.env, &dir.join("files.ids"))?;
        let logged: BTreeSet<String> = logged.into_iter().map(|entry| entry.name).collect();
        let fs = host.env.fs();
        if seen.is_long(0) {
            seen.compact(&BTreeMap::new())?;
        }
        let present: BTreeSet<String> = list(host, &received)?.into_iter().map(|(name, _)| name).collect();
        let mut unlogged = Vec::new();
        for (meta, _) in list(host, &received.join(".meta"))? {
            let name = meta.strip_suffix(".json").unwrap_or(&meta).to_owned();
            if !present.contains(&name) {
                fs.remove_file(&received.join(".meta").join(&meta))?;
                continue;
            }
            if logged.contains(&name) {
                continue;
            }
            let text = fs.read_limited(&received.join(".meta").join(&meta), MAX_META).unwrap_or_default();
            let Ok(Value::Object(map)) = json::parse(&text) else { continue };
            let text = |key: &str| map.get(key).and_then(Value::as_str);
            let from = text("from").and_then(|from| from.parse::<Address>().ok());
            if let (Some(from), Some(id)) = (from, text("message_id")) {
                unlogged.push(Entry { node: from.node, id: Some(id.to_owned()), name, bytes: 0 });
            }
        }
        if !unlogged.is_empty() {
            seen.add(&unlogged);
        }
        let state = State { seen, active: BTreeMap::new(), reserved: BTreeMap::new() };
        let this = Self(Arc::new(Inner {
            host: host.clone(),
            dir: received,
            limits,
            state: Mutex::new(state),
            generations: AtomicU64::new(0),
        }));
        this.sweep(true)?;
        Ok(this)
    }

    /// Removes partial files that are too old, and after a start those that cannot be resumed.
    ///
    /// # Errors
    /// The file system's.
    pub(crate) fn sweep(&self, starting: bool) -> io::Result<()> {
        let (fs, partial) = (self.0.host.env.fs(), self.0.dir.join(".partial"));
        let entries = match fs.list(&partial) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        let now = self.0.host.env.unix();
        for entry in entries {
            let path = partial.join(&entry.name);
            let name = entry.name.to_string_lossy();
            if self.0.state.lock().active.contains_key(name.as_ref()) {
                continue;
            }
            let old = now.saturating_sub(entry.metadata.modified) > PARTIAL_AGE && !entry.metadata.modified.is_zero();
            // Only what is called after a peer and a hash can be resumed.
            let resumable = entry.metadata.is_file && !name.contains('.');
            if entry.metadata.is_dir && starting {
                fs.remove_dir_all(&path)?;
            } else if entry.metadata.is_file && (old || (starting && !resumable)) {
                fs.remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn check_room(&self, need: u64) -> Result<(), FileError> {
        let inner = &self.0;
        let sum = |dir: &Path| -> Result<u64, FileError> {
            Ok(list(&inner.host, dir).map_err(|e| blamed(&e, "counting"))?.into_iter().map(|(_, bytes)| bytes).sum())
        };
        let partial = inner.dir.join(".partial");
        let to_come: u64 = inner.state.lock().reserved.values().sum();
        let used = sum(&inner.dir)? + sum(&partial)? + self.in_directories() + to_come;
        let limit = inner.limits.received_bytes;
        if used.saturating_add(need) > limit {
            return Err(FileError::Quota { need, available: limit.saturating_sub(used), limit });
        }
        let fs = inner.host.env.fs();
        let there = fs.create_dir_all(&partial, 0o700).and_then(|()| fs.available(&partial));
        let available = there.map_err(|error| blamed(&error, "storing"))?.saturating_sub(to_come);
        if available < need.saturating_add(FREE_DISK) {
            return Err(FileError::Disk { need, available: available.saturating_sub(FREE_DISK) });
        }
        Ok(())
    }

    /// Bytes in received directories, as they were announced.
    fn in_directories(&self) -> u64 {
        let fs = self.0.host.env.fs();
        let entries = fs.list(&self.0.dir).unwrap_or_default();
        let directories = entries.iter().filter(|entry| entry.metadata.is_dir);
        let announced = |entry: &pilot_env::DirEntry| {
            let meta = self.0.dir.join(".meta").join(format!("{}.json", entry.name.to_string_lossy()));
            json::parse(&fs.read_limited(&meta, MAX_META).ok()?).ok()?.get("bytes")?.as_u64()
        };
        directories.filter_map(announced).sum()
    }

    /// Whether a sender's transfer with this id has been stored.
    pub(crate) fn is_duplicate(&self, announced: &Announced) -> bool {
        let id = announced.message_id.as_ref();
        id.is_some_and(|id| self.0.state.lock().seen.contains(announced.from.node, id))
    }

    /// Prepares for a file: makes room, and finds what an earlier attempt left.
    ///
    /// # Errors
    /// [`FileError`].
    pub(crate) fn begin(&self, announced: Announced) -> Result<Incoming, FileError> {
        let inner = &self.0;
        let generation = inner.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let now = inner.host.env.unix();
        let key = {
            let mut state = inner.state.lock();
            let resumable = announced.sha256.map(|sha| format!("{:08x}-{}", announced.from.node, hex(&sha)));
            let free = |state: &State, key: &str| match state.active.get(key) {
                None => true,
                Some(active) => now.saturating_sub(active.touched) >= TAKEOVER,
            };
            // A second transfer of the same file at the same time has a partial file of its own.
            let key = resumable.filter(|key| free(&state, key)).unwrap_or_else(|| format!("{generation}.part"));
            if state.active.len() >= TRANSFERS && !state.active.contains_key(&key) {
                return Err(FileError::Busy);
            }
            state.active.insert(key.clone(), Active { generation, touched: now });
            key
        };
        let path = inner.dir.join(".partial").join(&key);
        let mut incoming = Incoming {
            store: self.clone(),
            resumable: !key.contains('.'),
            key,
            path,
            generation,
            file: None,
            at: 0,
            digest: Some(Context::new(&SHA256)),
            announced,
            finished: false,
        };
        incoming.prepare()?;
        Ok(incoming)
    }

    fn touch(&self, key: &str, generation: u64, to_come: u64) -> Result<(), FileError> {
        let mut state = self.0.state.lock();
        match state.active.get_mut(key) {
            Some(active) if active.generation == generation => active.touched = self.0.host.env.unix(),
            _ => return Err(FileError::TakenOver),
        }
        state.reserved.insert(generation, to_come);
        Ok(())
    }
}

/// Names and sizes of the files in a directory, which may be missing.
fn list(host: &Host, dir: &Path) -> io::Result<Vec<(String, u64)>> {
    let entries = match host.env.fs().list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let named = |entry: pilot_env::DirEntry| {
        let name = entry.name.into_string().ok()?;
        (!name.starts_with('.')).then_some((name, entry.metadata.len))
    };
    Ok(entries.into_iter().filter_map(named).collect())
}

/// A file on its way. Dropping it leaves what can be resumed and removes the rest.
pub(crate) struct Incoming {
    store: Received,
    key: String,
    resumable: bool,
    path: PathBuf,
    generation: u64,
    file: Option<Box<dyn RawFile>>,
    at: u64,
    /// Of what was written so far; absent after a resumption, when the whole file is read at the end.
    digest: Option<Context>,
    announced: Announced,
    finished: bool,
}

impl Incoming {
    fn prepare(&mut self) -> Result<(), FileError> {
        let fs = self.store.0.host.env.fs();
        let there = match fs.metadata(&self.path) {
            Ok(metadata) => metadata.len,
            Err(_) => 0,
        };
        // More than the whole is no part of it.
        let resume = if self.resumable && there <= self.announced.size { there } else { 0 };
        self.store.check_room(self.announced.size - resume)?;
        self.store.touch(&self.key, self.generation, self.announced.size - resume)?;
        let open = || {
            fs.create_dir_all(self.path.parent().unwrap_or(Path::new(".")), 0o700)?;
            let file = fs.open_or_create(&self.path, 0o600)?;
            if resume != there {
                file.set_len(resume)?;
            }
            Ok(file)
        };
        self.file = Some(open().map_err(|error| blamed(&error, "storing"))?);
        self.at = resume;
        if resume > 0 {
            self.digest = None;
        }
        Ok(())
    }

    /// Bytes that are there.
    pub(crate) fn offset(&self) -> u64 {
        self.at
    }

    /// Writes the next bytes.
    ///
    /// # Errors
    /// [`FileError`].
    pub(crate) fn write(&mut self, data: &[u8]) -> Result<(), FileError> {
        let end = self.at + data.len() as u64;
        if end > self.announced.size {
            return Err(FileError::Incomplete { have: end, size: self.announced.size });
        }
        self.store.touch(&self.key, self.generation, self.announced.size - end)?;
        let file = self.file.as_ref().ok_or_else(|| FileError::Io("no file".into()))?;
        file.write_at(self.at, data).map_err(|error| blamed(&error, "writing"))?;
        if let Some(digest) = &mut self.digest {
            digest.update(data);
        }
        self.at = end;
        Ok(())
    }

    fn hash(&mut self) -> io::Result<[u8; 32]> {
        let digest = match self.digest.take() {
            Some(digest) => digest,
            None => {
                let mut digest = Context::new(&SHA256);
                let file = self.file.as_ref().ok_or(io::ErrorKind::NotFound)?;
                let (mut buf, mut at) = (vec![0; PIECE], 0);
                loop {
                    let n = file.read_at(at, &mut buf)?;
                    if n == 0 {
                        break digest;
                    }
                    digest.update(buf.get(..n).unwrap_or_default());
                    at += n as u64;
                }
            }
        };
        digest.finish().as_ref().try_into().map_err(io::Error::other)
    }

    /// Verifies the file and gives it its name. When this returns it is on disk, synced.
    ///
    /// # Errors
    /// [`FileError`]; after a mismatch nothing is left that could spoil the next attempt.
    pub(crate) fn finish(mut self) -> Result<StoredFile, FileError> {
        let (have, size) = (self.at, self.announced.size);
        if have != size {
            return Err(FileError::Incomplete { have, size });
        }
        let sha256 = self.hash().map_err(|error| blamed(&error, "reading"))?;
        if self.announced.sha256.is_some_and(|announced| announced != sha256) {
            self.resumable = false;
            return Err(FileError::Mismatch);
        }
        self.store.touch(&self.key, self.generation, 0)?;
        let file = self.file.take().ok_or_else(|| FileError::Io("no file".into()))?;
        let fs = self.store.0.host.env.fs();
        let source = if self.announced.tree {
            let unpacked = self.path.with_extension(format!("{}.dir", self.generation));
            let done = tree::unpack(fs, file.as_ref(), size, &unpacked);
            if let Err(error) = done {
                let _ = fs.remove_dir_all(&unpacked);
                self.resumable = false;
                return Err(match error {
                    tree::UnpackError::Malformed(what) => FileError::Tree(what.to_string()),
                    tree::UnpackError::Io(error) => blamed(&error, "unpacking"),
                });
            }
            unpacked
        } else {
            file.sync().map_err(|error| blamed(&error, "syncing"))?;
            self.path.clone()
        };
        drop(file);
        // Two of one transfer at once: the first has won.
        let stored = if self.store.is_duplicate(&self.announced) {
            if self.announced.tree {
                let _ = fs.remove_dir_all(&source);
            }
            self.resumable = false;
            return Ok(StoredFile { name: String::new(), sha256 });
        } else {
            self.place(&source, sha256)
        };
        if self.announced.tree {
            // The packed form has served, or is of no use.
            self.resumable = false;
            if stored.is_err() {
                let _ = fs.remove_dir_all(&source);
            }
        } else {
            self.finished = stored.is_ok();
        }
        stored
    }

    /// Gives a whole file (or directory) its name.
    fn place(&self, source: &Path, sha256: [u8; 32]) -> Result<StoredFile, FileError> {
        let inner = &self.store.0;
        let (fs, at) = (inner.host.env.fs(), inner.host.env.unix());
        let base = names::base(&self.announced.name);
        let metas = inner.dir.join(".meta");
        fs.create_dir_all(&metas, 0o700).map_err(|error| blamed(&error, "storing"))?;
        let mut attempt = 0;
        let name = loop {
            let name = names::stored(&base, at, attempt);
            attempt += 1;
            let (path, meta) = (inner.dir.join(&name), metas.join(format!("{name}.json")));
            if fs.exists(&path) || fs.exists(&meta) {
                continue;
            }
            // Before the file, so that no file is ever without its sender. One without file is removed at the next start.
            fs.write_atomic(&meta, &self.describe(&base, at, sha256), 0o600).map_err(|e| blamed(&e, "describing"))?;
            match fs.rename_new(source, &path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    let _ = fs.remove_file(&meta);
                    return Err(blamed(&error, "naming"));
                }
                Ok(()) => break name,
            }
        };
        fs.sync_dir(&inner.dir).map_err(|error| blamed(&error, "syncing"))?;
        let announced = &self.announced;
        if let Some(id) = &announced.message_id {
            let entry = Entry { node: announced.from.node, id: Some(id.clone()), name: name.clone(), bytes: 0 };
            inner.state.lock().seen.add(&[entry]);
        }
        let mut data = Map::new();
        data.insert("filename".into(), base.into());
        data.insert("path".into(), inner.dir.join(&name).to_string_lossy().into_owned().into());
        data.insert("size".into(), announced.size.into());
        inner.host.events.emit("file.received", data);
        Ok(StoredFile { name, sha256 })
    }

    fn describe(&self, base: &str, at: Duration, sha256: [u8; 32]) -> Vec<u8> {
        let announced = &self.announced;
        let mut map = Map::new();
        map.insert("from".into(), announced.from.to_string().into());
        map.insert("filename".into(), base.into());
        map.insert("bytes".into(), announced.size.into());
        map.insert("sha256".into(), hex(&sha256).into());
        map.insert("received_at".into(), time::rfc3339(at).into());
        if announced.tree {
            map.insert("directory".into(), true.into());
        }
        let ids = [("message_id", &announced.message_id), ("reply_to", &announced.reply_to)];
        for (key, id) in ids.into_iter().filter_map(|(key, id)| Some((key, id.as_ref()?))) {
            map.insert(key.into(), id.clone().into());
        }
        json::to_vec(&Value::Object(map))
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        let mut state = self.store.0.state.lock();
        state.reserved.remove(&self.generation);
        if state.active.get(&self.key).is_none_or(|active| active.generation != self.generation) {
            return;
        }
        state.active.remove(&self.key);
        if !self.finished && (!self.resumable || self.at == 0) {
            // Best effort: what stays behind is swept later.
            let _ = self.store.0.host.env.fs().remove_file(&self.path);
        }
    }
}
