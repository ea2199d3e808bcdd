//! Opening, creating and checking the file. A file that is not sound is refused and never changed.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot_env::{Env, Lock, LockError, RawFile};
use redb::{Database, ReadableTable as _};

use super::backend::{FileBackend, Overlay};
use super::queue::Engine;
use super::tx::{self, HOSTNAMES, KEYS, LIVE, META, NETWORKS, NODES, REQUESTS, RESPONSES, STATEMENTS, WriteTx, fault};
use super::{FORMAT, RedbStore};
use crate::error::{Fault, OpenError};
use crate::import::Snapshot;
use crate::limits::CACHE_BYTES;
use crate::model::{Network, Node, Presence};
use crate::tables::Writes;

fn corrupt(path: &Path, reason: impl ToString) -> OpenError {
    OpenError::Corrupt { path: path.to_owned(), reason: reason.to_string() }
}

fn io(path: &Path, error: std::io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), error }
}

/// `path` with something appended to its last part.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

impl RedbStore {
    /// A store that lives as long as this value and its clones, empty or filled from a snapshot.
    ///
    /// # Errors
    /// Only when memory cannot be had.
    pub fn in_memory(now: u64, import: Option<Snapshot>) -> Result<Self, OpenError> {
        let here = Path::new("(memory)");
        let db = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .create_with_backend(redb::backends::InMemoryBackend::new())
            .map_err(|e| corrupt(here, e))?;
        let engine = Engine::new(db, None);
        initialise(&engine, now, import).map_err(|e| corrupt(here, e))?;
        Ok(Self { engine: Arc::new(engine) })
    }

    /// Opens a store, creating it (with its directory) when there is none; `import` fills a new one. Blocks while it
    /// reads the file; a large one after a crash takes seconds.
    ///
    /// # Errors
    /// [`OpenError`]. The file is then as it was. [`OpenError::Io`] of kind `AlreadyExists` when there is something to
    /// import and the store exists already.
    pub fn open(env: &Env, path: &Path, now: u64, import: Option<Snapshot>) -> Result<Self, OpenError> {
        let lock = prepare(env, path)?;
        if env.fs().exists(path) {
            if import.is_some() {
                let text = "the store exists already; a snapshot can only be imported into a new one";
                return Err(io(path, std::io::Error::new(std::io::ErrorKind::AlreadyExists, text)));
            }
        } else {
            create(env, path, now, import)?;
        }
        let file = env.fs().open(path).map_err(|e| io(path, e))?;
        Self::open_locked(path, file, now, Some(lock))
    }

    /// Opens an existing store through a file that is open already; `path` is for messages. The caller keeps others away.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open_file(path: &Path, file: Box<dyn RawFile>, now: u64) -> Result<Self, OpenError> {
        Self::open_locked(path, file, now, None)
    }

    fn open_locked(path: &Path, file: Box<dyn RawFile>, now: u64, lock: Option<Lock>) -> Result<Self, OpenError> {
        check_beginning(path, &*file)?;
        let file: Arc<dyn RawFile> = file.into();
        let overlay = Overlay::new(file.clone()).map_err(|e| io(path, e))?;
        let live = guarded(path, || {
            let mut db = open_db(overlay)?;
            // Reads every page. After a crash the engine has repaired what it could before this.
            match db.check_integrity() {
                Ok(true) => check(path, &db, now),
                Ok(false) => Err(CheckError::Reason("its checksums do not match".into())),
                Err(error) => Err(error.into()),
            }
        })?;
        let engine = guarded(path, || Ok(Engine::new(open_db(FileBackend(file))?, lock)))?;
        engine.mirror.apply(live);
        Ok(Self { engine: Arc::new(engine) })
    }
}

/// The directory exists, and the store is ours.
fn prepare(env: &Env, path: &Path) -> Result<Lock, OpenError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    env.fs().create_dir_all(dir, 0o700).map_err(|e| io(dir, e))?;
    env.fs().lock(&beside(path, ".lock")).map_err(|e| match e {
        LockError::Held { .. } => OpenError::Locked { path: path.to_owned(), reason: e.to_string() },
        LockError::Io(e) => io(path, e),
    })
}

/// Makes a new store under another name and gives it its own when it is complete, so that a crash leaves none or a
/// whole one.
fn create(env: &Env, path: &Path, now: u64, import: Option<Snapshot>) -> Result<(), OpenError> {
    let unfinished = beside(path, ".new");
    match env.fs().remove_file(&unfinished) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&unfinished, e)),
        _ => {}
    }
    let file = env.fs().create_new(&unfinished, 0o600).map_err(|e| io(&unfinished, e))?;
    let engine = Engine::new(open_db(FileBackend(file.into())).map_err(|e| corrupt(&unfinished, e))?, None);
    initialise(&engine, now, import).map_err(|e| corrupt(&unfinished, e))?;
    // Closes the file cleanly.
    drop(engine);
    env.fs().rename(&unfinished, path).map_err(|e| io(path, e))?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    env.fs().sync_dir(dir).map_err(|e| io(path, e))
}

/// Recognises what is certainly no store before the engine sees it.
fn check_beginning(path: &Path, file: &dyn RawFile) -> Result<(), OpenError> {
    let mut first = [0u8; 64];
    let read = file.read_at(0, &mut first).map_err(|e| io(path, e))?;
    let first = &first[..read];
    if first.is_empty() {
        return Err(corrupt(path, "the file is empty"));
    }
    if first.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{') {
        return Err(OpenError::Snapshot { path: path.to_owned() });
    }
    if !first.starts_with(b"redb") {
        return Err(corrupt(path, "it does not begin like a store"));
    }
    Ok(())
}

fn open_db(backend: impl redb::StorageBackend) -> Result<Database, redb::DatabaseError> {
    Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend)
}

/// The engine checks its file as it goes, and may panic on a damaged one.
fn guarded<T>(path: &Path, f: impl FnOnce() -> Result<T, CheckError>) -> Result<T, OpenError> {
    match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(CheckError::Open(error))) => Err(error),
        Ok(Err(CheckError::Reason(reason))) => Err(corrupt(path, reason)),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("damaged pages");
            Err(corrupt(path, text))
        }
    }
}

enum CheckError {
    Open(OpenError),
    Reason(String),
}

impl From<redb::DatabaseError> for CheckError {
    fn from(error: redb::DatabaseError) -> Self {
        Self::Reason(error.to_string())
    }
}

impl From<Fault> for CheckError {
    fn from(fault: Fault) -> Self {
        Self::Reason(fault.0)
    }
}

/// Creates all tables and the first records.
fn initialise(engine: &Engine, now: u64, import: Option<Snapshot>) -> Result<(), Fault> {
    engine.write_now(|t| {
        t.tx.open_table(NODES).map_err(fault)?;
        t.tx.open_table(KEYS).map_err(fault)?;
        t.tx.open_table(HOSTNAMES).map_err(fault)?;
        t.tx.open_table(LIVE).map_err(fault)?;
        t.tx.open_table(STATEMENTS).map_err(fault)?;
        t.tx.open_table(REQUESTS).map_err(fault)?;
        t.tx.open_table(RESPONSES).map_err(fault)?;
        t.tx.open_table(NETWORKS).map_err(fault)?;
        t.set_meta(tx::meta::FORMAT, FORMAT)?;
        t.set_meta(tx::meta::NEXT_SEQUENCE, 0)?;
        t.set_next_node(1)?;
        t.put_network(&Network {
            id: 0,
            name: "backbone".into(),
            join_rule: "open".into(),
            created: now,
            ..Network::default()
        })?;
        match import {
            Some(snapshot) => fill(t, now, snapshot),
            None => Ok(()),
        }
    })
}

fn fill(t: &mut WriteTx<'_>, now: u64, snapshot: Snapshot) -> Result<(), Fault> {
    for network in &snapshot.networks {
        t.put_network(network)?;
    }
    for (node, presence) in &snapshot.nodes {
        t.put_node(node)?;
        if let Some(presence) = presence {
            t.put_presence(node.id, Some(Presence { last_seen: now, ..*presence }))?;
        }
        if !node.hostname.is_empty() {
            t.put_hostname(&node.hostname, node.id)?;
        }
    }
    for (key, id) in &snapshot.keys {
        t.put_key(key, *id)?;
    }
    for (from, to, statement) in &snapshot.statements {
        t.put_statement(*from, *to, Some(*statement))?;
    }
    for (to, request) in &snapshot.requests {
        t.push_request(*to, request)?;
    }
    for (to, response) in &snapshot.responses {
        t.push_response(*to, response)?;
    }
    t.set_next_node(snapshot.next_node)
}

/// Reads everything once: the indexes agree with the records. Gives the live nodes, each with time to show itself.
fn check(path: &Path, db: &Database, now: u64) -> Result<Vec<(u32, Option<Presence>)>, CheckError> {
    use redb::ReadableDatabase as _;
    let tx = db.begin_read().map_err(fault)?;
    let meta = tx.open_table(META).map_err(fault)?;
    let counter = |key: &str| -> Result<u64, CheckError> {
        let row = meta.get(key).map_err(fault)?;
        row.map(|v| v.value()).ok_or_else(|| CheckError::Reason(format!("no counter {key}")))
    };
    let found = counter(tx::meta::FORMAT)?;
    if found != FORMAT {
        return Err(CheckError::Open(OpenError::Format { path: path.to_owned(), found, known: FORMAT }));
    }
    let next_node = counter(tx::meta::NEXT_NODE)?;
    counter(tx::meta::NEXT_SEQUENCE)?;

    let keys = tx.open_table(KEYS).map_err(fault)?;
    let live = tx.open_table(LIVE).map_err(fault)?;
    let mut changes = Vec::new();
    for row in tx.open_table(NODES).map_err(fault)?.iter().map_err(fault)? {
        let (id, bytes) = row.map_err(fault)?;
        let node: Node = tx::decode("nodes", bytes.value())?;
        let owner = keys.get(&node.public_key).map_err(fault)?.map(|row| row.value());
        if node.id != id.value() || owner != Some(node.id) || u64::from(node.id) >= next_node {
            return Err(CheckError::Reason(format!("node {} and its key do not agree", id.value())));
        }
        let presence = live.get(node.id).map_err(fault)?.map(|row| tx::row_presence(row.value()));
        if presence.is_some() == node.departed.is_some() {
            return Err(CheckError::Reason(format!("node {} is both live and departed, or neither", node.id)));
        }
        if let Some(presence) = presence {
            changes.push((node.id, Some(Presence { last_seen: now, ..presence })));
        }
    }
    for row in tx.open_table(NETWORKS).map_err(fault)?.iter().map_err(fault)? {
        tx::decode::<Network>("networks", row.map_err(fault)?.1.value())?;
    }
    for name in [REQUESTS, RESPONSES] {
        for row in tx.open_table(name).map_err(fault)?.iter().map_err(fault)? {
            tx::decode::<serde_json::Value>("inboxes", row.map_err(fault)?.1.value())?;
        }
    }
    tx.open_table(STATEMENTS).map_err(fault)?;
    tx.open_table(HOSTNAMES).map_err(fault)?;
    Ok(changes)
}
