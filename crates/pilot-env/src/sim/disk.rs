//! The simulated disk. What a program wrote and named is kept twice: as programs see it, and as a power cut would leave
//! it. A sync copies from the first to the second; [`SimDisk::crash`] goes back to the second, and lets chance decide of
//! everything in between whether it had already reached the platter, whole or torn.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::fs::{DirEntry, Fs, Lock, LockError, Metadata, RawFile};

/// Bytes that reach the platter in one piece; a torn write is torn between such pieces.
const SECTOR: usize = 512;

#[derive(Default)]
struct FileBody {
    current: Vec<u8>,
    durable: Vec<u8>,
    mode: u32,
}

#[derive(Clone)]
enum Node {
    Dir { mode: u32 },
    File(Arc<Mutex<FileBody>>),
}

impl Node {
    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Dir { .. }, Self::Dir { .. }) => true,
            (Self::File(a), Self::File(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

struct State {
    rng: StdRng,
    /// Names as programs see them. Keys are absolute and normalised; `/` itself always exists.
    current: BTreeMap<PathBuf, Node>,
    /// Names as a power cut would leave them.
    durable: BTreeMap<PathBuf, Node>,
    /// Lock files held, each with the number of its holder.
    locked: BTreeMap<PathBuf, u64>,
    holders: u64,
    /// Directories renamed since their new parent was synced.
    moved: Vec<(PathBuf, PathBuf)>,
    /// Bytes of content that fit.
    capacity: u64,
    /// Changes asked for so far.
    operations: u64,
    /// The machine stops before the change with this number.
    stop_at: Option<u64>,
    /// Changes refused because it had.
    refused: u64,
}

/// A disk in memory.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => out.push(name),
            Component::ParentDir => {
                out.pop();
            }
            _ => {}
        }
    }
    out
}

/// The names below a directory, moved elsewhere.
fn move_below(names: &mut BTreeMap<PathBuf, Node>, from: &Path, to: &Path) {
    let below: Vec<PathBuf> = names.keys().filter(|name| name.starts_with(from)).cloned().collect();
    for name in below {
        let rest = name.strip_prefix(from).map(Path::to_path_buf).unwrap_or_default();
        if let Some(node) = names.remove(&name) {
            names.insert(if rest.as_os_str().is_empty() { to.to_path_buf() } else { to.join(rest) }, node);
        }
    }
}

impl State {
    /// Counts a change, unless the machine has stopped.
    fn change(&mut self) -> io::Result<()> {
        if self.stop_at.is_some_and(|at| self.operations >= at) {
            self.refused += 1;
            return Err(io::Error::other("the machine has stopped"));
        }
        self.operations += 1;
        Ok(())
    }

    fn used(&self) -> u64 {
        let len = |node: &Node| match node {
            Node::File(body) => body.lock().current.len() as u64,
            Node::Dir { .. } => 0,
        };
        self.current.values().map(len).sum()
    }

    fn is_dir(&self, path: &Path) -> bool {
        path == Path::new("/") || matches!(self.current.get(path), Some(Node::Dir { .. }))
    }

    fn check_parent(&self, path: &Path) -> io::Result<()> {
        match path.parent() {
            Some(dir) if self.is_dir(dir) => Ok(()),
            Some(_) => Err(io::ErrorKind::NotFound.into()),
            None => Err(io::ErrorKind::AlreadyExists.into()),
        }
    }

    fn file(&self, path: &Path) -> io::Result<Arc<Mutex<FileBody>>> {
        match self.current.get(path) {
            Some(Node::File(body)) => Ok(body.clone()),
            Some(Node::Dir { .. }) => Err(io::ErrorKind::IsADirectory.into()),
            None if path == Path::new("/") => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn create(&mut self, path: PathBuf, mode: u32) -> io::Result<Arc<Mutex<FileBody>>> {
        self.check_parent(&path)?;
        self.change()?;
        let body = Arc::new(Mutex::new(FileBody { mode, ..FileBody::default() }));
        self.current.insert(path, Node::File(body.clone()));
        Ok(body)
    }
}

impl SimDisk {
    /// An empty disk whose crashes follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            rng: StdRng::seed_from_u64(seed),
            current: BTreeMap::new(),
            durable: BTreeMap::new(),
            locked: BTreeMap::new(),
            holders: 0,
            moved: Vec::new(),
            capacity: u64::MAX,
            operations: 0,
            stop_at: None,
            refused: 0,
        })))
    }

    /// A power cut: see the module's description.
    pub fn crash(&self) {
        let mut state = self.0.lock();
        let State { rng, current, durable, locked, moved, stop_at, .. } = &mut *state;
        locked.clear();
        *stop_at = None;
        // A directory that was renamed is found, whole, under one of its two names.
        for (from, to) in std::mem::take(moved).into_iter().rev() {
            if rng.random_bool(0.5) {
                move_below(durable, &from, &to);
            } else {
                move_below(current, &to, &from);
            }
        }
        let names: BTreeSet<PathBuf> = current.keys().chain(durable.keys()).cloned().collect();
        let mut left: BTreeMap<PathBuf, Node> = BTreeMap::new();
        for name in names {
            let (seen, synced) = (current.get(&name), durable.get(&name));
            let unchanged = match (seen, synced) {
                (Some(a), Some(b)) => a.is_same(b),
                _ => false,
            };
            let kept = if unchanged || rng.random_bool(0.5) { seen } else { synced };
            // A name survives only inside a directory that did.
            let has_parent = name.parent().is_some_and(|dir| dir == Path::new("/") || left.contains_key(dir));
            if let (Some(node), true) = (kept, has_parent) {
                left.insert(name, node.clone());
            }
        }
        for node in left.values() {
            if let Node::File(body) = node {
                tear(&mut body.lock(), rng);
            }
        }
        *current = left.clone();
        *durable = left;
    }

    fn open_body(&self, body: Arc<Mutex<FileBody>>) -> Box<dyn RawFile> {
        Box::new(SimFile(body, self.clone()))
    }

    /// The machine stops before it makes the change with this number, counted from now: every change from then on fails,
    /// until the next [`SimDisk::crash`].
    pub fn stop_after(&self, changes: u64) {
        let mut state = self.0.lock();
        state.stop_at = Some(state.operations + changes);
    }

    /// Changes refused so far because the machine had stopped.
    pub fn refused(&self) -> u64 {
        self.0.lock().refused
    }

    /// Bytes of content that fit on the disk. Default: no limit.
    pub fn set_capacity(&self, bytes: u64) {
        self.0.lock().capacity = bytes;
    }
}

/// What is left of a file's content: all, nothing, or some sectors of what was written since the last sync.
fn tear(body: &mut FileBody, rng: &mut StdRng) {
    if body.current == body.durable {
        return;
    }
    let mut left = match rng.random_range(0..3) {
        0 => body.durable.clone(),
        1 => body.current.clone(),
        _ => {
            let len = if rng.random_bool(0.5) { body.current.len() } else { body.durable.len() };
            let mut torn = body.durable.clone();
            torn.resize(len, 0);
            for (i, sector) in torn.chunks_mut(SECTOR).enumerate() {
                let start = i * SECTOR;
                if let (Some(new), true) = (body.current.get(start..), rng.random_bool(0.5)) {
                    let n = new.len().min(sector.len());
                    sector[..n].copy_from_slice(&new[..n]);
                }
            }
            torn
        }
    };
    std::mem::swap(&mut body.current, &mut left);
    body.durable = body.current.clone();
}

struct SimFile(Arc<Mutex<FileBody>>, SimDisk);

impl RawFile for SimFile {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let body = self.0.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = body.current.get(start..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        buf[..n].copy_from_slice(&rest[..n]);
        Ok(n)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let end = start.checked_add(data.len()).ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut state = self.1.0.lock();
        state.change()?;
        let growth = end.saturating_sub(self.0.lock().current.len()) as u64;
        if state.capacity != u64::MAX && growth > 0 && state.used() + growth > state.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut body = self.0.lock();
        if body.current.len() < end {
            body.current.resize(end, 0);
        }
        body.current[start..end].copy_from_slice(data);
        Ok(())
    }
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().current.len() as u64)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        self.1.0.lock().change()?;
        self.0.lock().current.resize(len, 0);
        Ok(())
    }
    fn sync(&self) -> io::Result<()> {
        self.1.0.lock().change()?;
        let mut body = self.0.lock();
        body.durable = body.current.clone();
        Ok(())
    }
}

struct SimLock {
    disk: SimDisk,
    path: PathBuf,
    holder: u64,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.disk.0.lock();
        // After a crash the lock may belong to the next holder.
        if state.locked.get(&self.path) == Some(&self.holder) {
            state.locked.remove(&self.path);
        }
    }
}

impl Fs for SimDisk {
    fn open(&self, path: &Path) -> io::Result<Box<dyn RawFile>> {
        let body = self.0.lock().file(&normal(path))?;
        Ok(self.open_body(body))
    }

    fn open_read(&self, path: &Path) -> io::Result<Box<dyn RawFile>> {
        self.open(path)
    }

    fn open_or_create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn RawFile>> {
        let path = normal(path);
        let mut state = self.0.lock();
        let body = match state.file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => state.create(path, mode)?,
            other => other?,
        };
        Ok(self.open_body(body))
    }

    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn RawFile>> {
        let path = normal(path);
        let mut state = self.0.lock();
        if state.current.contains_key(&path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let body = state.create(path, mode)?;
        Ok(self.open_body(body))
    }

    fn read_limited(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let body = self.0.lock().file(&normal(path))?;
        let content = body.lock().current.clone();
        if content.len() as u64 > limit {
            let text = format!("{} is larger than {limit} bytes", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        Ok(content)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (normal(from), normal(to));
        let mut state = self.0.lock();
        let body = state.file(&from)?;
        state.check_parent(&to)?;
        if state.is_dir(&to) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        state.change()?;
        state.current.remove(&from);
        state.current.insert(to, Node::File(body));
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (from, to) = (normal(from), normal(to));
        {
            let mut state = self.0.lock();
            if state.current.contains_key(&to) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            if state.is_dir(&from) && from != Path::new("/") {
                state.check_parent(&to)?;
                if to.starts_with(&from) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                state.change()?;
                move_below(&mut state.current, &from, &to);
                state.moved.push((from, to));
                return Ok(());
            }
        }
        self.rename(&from, &to)
    }

    fn available(&self, dir: &Path) -> io::Result<u64> {
        let state = self.0.lock();
        if !state.is_dir(&normal(dir)) {
            return Err(io::ErrorKind::NotFound.into());
        }
        // What an empty disk without a limit would have.
        Ok(state.capacity.min(1 << 50).saturating_sub(state.used()))
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        let mut state = self.0.lock();
        state.file(&path)?;
        state.change()?;
        state.current.remove(&path);
        Ok(())
    }

    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()> {
        let path = normal(path);
        let mut state = self.0.lock();
        if path == Path::new("/") || state.current.contains_key(&path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.check_parent(&path)?;
        state.change()?;
        state.current.insert(path, Node::Dir { mode });
        Ok(())
    }

    fn remove_dir_all(&self, path: &Path) -> io::Result<()> {
        let path = normal(path);
        let mut state = self.0.lock();
        if !state.is_dir(&path) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change()?;
        state.current.retain(|name, _| !name.starts_with(&path));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let dir = normal(dir);
        let mut state = self.0.lock();
        if !state.is_dir(&dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        state.change()?;
        let State { current, durable, moved, .. } = &mut *state;
        moved.retain(|(from, to)| {
            let now = to.parent() == Some(&dir);
            if now {
                move_below(durable, from, to);
            }
            !now
        });
        durable.retain(|name, _| name.parent() != Some(&dir) || current.contains_key(name));
        for (name, node) in current.iter().filter(|(name, _)| name.parent() == Some(&dir)) {
            durable.insert(name.clone(), node.clone());
        }
        Ok(())
    }

    fn metadata(&self, path: &Path) -> io::Result<Metadata> {
        let path = normal(path);
        let state = self.0.lock();
        let dir = |mode| Metadata { is_dir: true, is_file: false, len: 0, mode, modified: Duration::ZERO };
        match state.current.get(&path) {
            Some(Node::Dir { mode }) => Ok(dir(*mode)),
            Some(Node::File(body)) => {
                let body = body.lock();
                let (len, mode) = (body.current.len() as u64, body.mode);
                Ok(Metadata { is_dir: false, is_file: true, len, mode, modified: Duration::ZERO })
            }
            None if path == Path::new("/") => Ok(dir(0o755)),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        let dir = normal(dir);
        let names: Vec<PathBuf> = {
            let state = self.0.lock();
            if !state.is_dir(&dir) {
                let exists = state.current.contains_key(&dir);
                let kind = if exists { io::ErrorKind::NotADirectory } else { io::ErrorKind::NotFound };
                return Err(kind.into());
            }
            state.current.keys().filter(|name| name.parent() == Some(&dir)).cloned().collect()
        };
        let entry = |path: PathBuf| match self.metadata(&path) {
            // Removed by somebody between the two looks.
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) => Some(Err(e)),
            Ok(metadata) => {
                let name = path.file_name().unwrap_or_default().to_owned();
                Some(Ok(DirEntry { name, metadata }))
            }
        };
        names.into_iter().filter_map(entry).collect()
    }

    fn lock(&self, path: &Path) -> Result<Lock, LockError> {
        let path = normal(path);
        drop(self.open_or_create(&path, 0o600)?);
        let mut state = self.0.lock();
        if state.locked.contains_key(&path) {
            return Err(LockError::Held { pid: None });
        }
        state.holders += 1;
        let holder = state.holders;
        state.locked.insert(path.clone(), holder);
        Ok(Lock::new(SimLock { disk: self.clone(), path, holder }))
    }
}
