//! The outbox on disk.
//!
//! ```text
//! outbox/<number>.json       what waits; a short payload inside
//! outbox/<number>.data       a long payload; there and synced before the .json is
//! outbox/finished.log        what became of each, one JSON line; synced before the .json goes
//! outbox/.partial/           on its way in
//! ```
//!
//! A dead letter stays where it is: what the log says of it makes it one, until a newer description takes it back.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::digest::{Context, SHA256};
use parking_lot::Mutex;
use pilot_env::{Env, RawFile};
use pilot_wire::json;

use super::super::FREE_DISK;
use super::super::server::blocking;
use super::super::source::{OpenFile, Source};
use super::item::{Finished, Item, Kind, Meta};
use super::{FINISHED, Fate};

/// Longest payload that is kept inside the description.
const INLINE: u64 = 32 * 1024;
/// Longest description that is read.
const MAX_META: u64 = 128 * 1024;
/// Longest log that is read: more than its bounds allow.
const MAX_LOG: u64 = 256 << 20;
/// Bytes of a payload taken at once.
const PIECE: usize = 256 * 1024;

pub(super) struct Found {
    pub(super) waiting: Vec<Item>,
    pub(super) dead: Vec<Item>,
    pub(super) finished: Vec<Finished>,
    pub(super) next_number: u64,
}

#[derive(Default)]
struct Log {
    file: Option<Box<dyn RawFile>>,
    lines: usize,
}

pub(super) struct Store {
    env: Env,
    dir: PathBuf,
    log: Mutex<Log>,
    temporaries: AtomicU64,
}

impl Store {
    pub(super) fn new(env: &Env, dir: &Path) -> Self {
        Self { env: env.clone(), dir: dir.to_owned(), log: Mutex::default(), temporaries: AtomicU64::new(0) }
    }

    fn path(&self, number: u64, extension: &str) -> PathBuf {
        self.dir.join(format!("{number:016}.{extension}"))
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("finished.log")
    }

    /// Reads everything, and finishes what a crash left half done.
    pub(super) fn open(&self) -> io::Result<Found> {
        let fs = self.env.fs();
        match fs.remove_dir_all(&self.dir.join(".partial")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let text = match fs.read_limited(&self.log_path(), MAX_LOG) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            other => other?,
        };
        let mut finished: VecDeque<Finished> = VecDeque::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        let mut lines = 0;
        for line in text.split(|b| *b == b'\n').filter_map(Finished::parse) {
            lines += 1;
            match places.get(&line.id).and_then(|place| finished.get_mut(*place)) {
                // A later line about the same message: it was read, or tried again.
                Some(earlier) => *earlier = line,
                None => {
                    places.insert(line.id.clone(), finished.len());
                    finished.push_back(line);
                }
            }
        }
        self.log.lock().lines = lines;
        if text.last().is_some_and(|b| *b != b'\n') {
            // A torn last line must not swallow the next one.
            self.append(b"\n", 1)?;
        }
        let (mut waiting, mut dead) = (Vec::new(), Vec::new());
        let mut revived = std::collections::BTreeSet::new();
        for item in self.read_dir(&self.dir)? {
            let ended = places.get(&item.meta.id).and_then(|place| finished.get(*place));
            match ended.map(|end| (end.state, item.meta.created > end.at)) {
                None => waiting.push(item),
                // Taken back since it ended.
                Some((_, true)) => {
                    revived.insert(item.meta.id.clone());
                    waiting.push(item);
                }
                Some((Fate::Expired | Fate::Refused, false)) => dead.push(item),
                Some((Fate::Delivered | Fate::Cancelled, false)) => self.remove(item.number)?,
            }
        }
        finished.retain(|finished| !revived.contains(&finished.id));
        let next_number = waiting.iter().chain(&dead).map(|item| item.number).max().unwrap_or(0);
        while finished.len() > FINISHED {
            finished.pop_front();
        }
        Ok(Found { waiting, dead, finished: finished.into(), next_number })
    }

    /// The items of a directory in their order. Payloads without description were on their way in; they go.
    fn read_dir(&self, dir: &Path) -> io::Result<Vec<Item>> {
        let fs = self.env.fs();
        let entries = match fs.list(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        let mut items = Vec::new();
        let mut described = std::collections::BTreeSet::new();
        let files = || entries.iter().filter(|entry| entry.metadata.is_file).filter_map(|entry| entry.name.to_str());
        for name in files() {
            let Some(number) = name.strip_suffix(".json").and_then(|number| number.parse().ok()) else { continue };
            described.insert(number);
            match fs.read_limited(&dir.join(name), MAX_META).map(|text| Meta::parse(&text)) {
                Ok(Some(meta)) => items.push(Item::new(number, meta)),
                // Written whole and synced: a disk error, or another hand. Left alone, and said.
                Ok(None) => tracing::error!(file = name, "unreadable message in the outbox; left where it is"),
                Err(error) => return Err(error),
            }
        }
        for name in files() {
            let orphan = name.strip_suffix(".data").and_then(|number| number.parse::<u64>().ok());
            if orphan.is_some_and(|number| !described.contains(&number)) {
                fs.remove_file(&dir.join(name))?;
            }
        }
        items.sort_by_key(|item| item.number);
        Ok(items)
    }

    /// Writes a message whose payload `read` gives in pieces of at most the length it is asked for.
    pub(super) async fn add<R, F>(&self, number: u64, mut meta: Meta, mut read: R) -> io::Result<Item>
    where
        R: FnMut(usize) -> F,
        F: Future<Output = io::Result<Vec<u8>>>,
    {
        let partial = self.dir.join(".partial");
        let temporary = partial.join(self.temporaries.fetch_add(1, Ordering::Relaxed).to_string());
        let (env, dir, need) = (self.env.clone(), partial.clone(), meta.bytes);
        let prepare = move || {
            env.fs().create_dir_all(&dir, 0o700)?;
            let available = env.fs().available(&dir)?;
            if available < need.saturating_add(FREE_DISK) {
                let text = format!("{available} bytes available, {need} needed, {FREE_DISK} are kept free");
                return Err(io::Error::new(io::ErrorKind::StorageFull, text));
            }
            Ok(())
        };
        blocking(prepare).await??;
        let short = |meta: &Meta, got: u64| {
            let text = format!("the payload ended after {got} of {} bytes", meta.bytes);
            io::Error::new(io::ErrorKind::UnexpectedEof, text)
        };
        let mut digest = Context::new(&SHA256);
        let mut got = 0;
        if meta.bytes <= INLINE {
            let mut data = Vec::new();
            while got < meta.bytes {
                let piece = read((meta.bytes - got) as usize).await?;
                if piece.is_empty() {
                    return Err(short(&meta, got));
                }
                got += piece.len() as u64;
                data.extend_from_slice(&piece);
            }
            digest.update(&data);
            meta.data = Some(data);
        } else {
            let (env, path) = (self.env.clone(), temporary.clone());
            let mut file = blocking(move || env.fs().create_new(&path, 0o600)).await??;
            let removal = Removal { env: self.env.clone(), path: temporary.clone() };
            while got < meta.bytes {
                let most = usize::try_from(meta.bytes - got).unwrap_or(PIECE).min(PIECE);
                let piece = read(most).await?;
                if piece.is_empty() {
                    return Err(short(&meta, got));
                }
                digest.update(&piece);
                let at = got;
                got += piece.len() as u64;
                file = blocking(move || file.write_at(at, &piece).map(|()| file)).await??;
            }
            let (env, to) = (self.env.clone(), self.path(number, "data"));
            let named = move || {
                file.sync()?;
                env.fs().rename_new(&removal.path, &to)
            };
            blocking(named).await??;
        }
        if matches!(meta.kind, Kind::File | Kind::Directory) {
            meta.sha256 = digest.finish().as_ref().try_into().ok();
        }
        let (env, dir, to, text) = (self.env.clone(), self.dir.clone(), self.path(number, "json"), meta.emit());
        let described = temporary.with_extension("json");
        let data = self.path(number, "data");
        let describe = move || {
            let fs = env.fs();
            let write = || {
                let file = fs.create_new(&described, 0o600)?;
                file.write_at(0, &text)?;
                file.sync()?;
                fs.rename_new(&described, &to)?;
                fs.sync_dir(&dir)
            };
            let written = write();
            if written.is_err() {
                // Refused, so not to be sent later either.
                for path in [&to, &described, &data] {
                    let _ = fs.remove_file(path);
                }
            }
            written
        };
        blocking(describe).await??;
        // A long payload is read from its file.
        Ok(Item::new(number, meta))
    }

    /// The payload of a message.
    pub(super) fn payload(&self, item: &Item) -> io::Result<std::sync::Arc<dyn Source>> {
        match &item.meta.data {
            Some(data) => Ok(std::sync::Arc::new(bytes::Bytes::from(data.clone()))),
            None => {
                let file = self.env.fs().open_read(&self.path(item.number, "data"))?;
                Ok(std::sync::Arc::new(OpenFile { file, len: item.meta.bytes }))
            }
        }
    }

    fn append(&self, bytes: &[u8], lines: usize) -> io::Result<()> {
        let mut log = self.log.lock();
        let file = match log.file.take() {
            Some(file) => file,
            None => {
                self.env.fs().create_dir_all(&self.dir, 0o700)?;
                let file = self.env.fs().open_or_create(&self.log_path(), 0o600)?;
                self.env.fs().sync_dir(&self.dir)?;
                file
            }
        };
        file.append(bytes)?;
        file.sync()?;
        log.lines += lines;
        log.file = Some(file);
        Ok(())
    }

    /// Writes down what became of a message, synced.
    pub(super) fn log(&self, finished: &Finished) -> io::Result<()> {
        let mut line = json::to_vec(&finished.to_json(false));
        line.push(b'\n');
        self.append(&line, 1)?;
        if self.log.lock().lines > 2 * FINISHED { self.shorten() } else { Ok(()) }
    }

    /// Keeps the newest lines of the log.
    fn shorten(&self) -> io::Result<()> {
        let mut log = self.log.lock();
        let text = self.env.fs().read_limited(&self.log_path(), MAX_LOG)?;
        let lines: Vec<&[u8]> = text.split_inclusive(|b| *b == b'\n').collect();
        let kept = lines.get(lines.len().saturating_sub(FINISHED)..).unwrap_or_default();
        log.file = None;
        self.env.fs().write_atomic(&self.log_path(), &kept.concat(), 0o600)?;
        log.lines = kept.len();
        Ok(())
    }

    /// Removes a message, wherever it is. What is gone already is no error.
    pub(super) fn remove(&self, number: u64) -> io::Result<()> {
        let fs = self.env.fs();
        // The description first: a payload without one is cleared away at the next start.
        for path in [self.path(number, "json"), self.path(number, "data")] {
            match fs.remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs.sync_dir(&self.dir)
    }

    /// Takes a dead letter back into the queue with a new description.
    pub(super) fn revive(&self, number: u64, meta: Meta) -> io::Result<Item> {
        self.env.fs().write_atomic(&self.path(number, "json"), &meta.emit(), 0o600)?;
        Ok(Item::new(number, meta))
    }
}

/// Removes a file on its way in when nobody goes on with it.
struct Removal {
    env: Env,
    path: PathBuf,
}

impl Drop for Removal {
    fn drop(&mut self) {
        // Best effort: the next start clears the directory.
        let _ = self.env.fs().remove_file(&self.path);
    }
}
