//! What a node keeps on disk, in the directory of its identity file:
//!
//! | File | Content |
//! |---|---|
//! | the identity file | the key; formats of every official release (01 §21) |
//! | the same with `.next` | the new key of a rotation that is not decided |
//! | `trust.json` | trusted nodes and waiting requests (05 §3.7) |
//! | `node-state.json` | own id and peers last seen: a memory that lets the node serve known peers while the registry is down |
//! | `node.lock` | held while the node runs, so that no two nodes share a key |
//!
//! What is in a file that cannot be read is never overwritten; only the memory is replaced.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use pilot_env::fs::parent;
use pilot_env::{Env, Lock, LockError};
use pilot_proto::identity::Identity;
use pilot_wire::base64;
use serde_json::{Value, json};

use crate::error::NodeError;

/// An identity file has 175 bytes; a larger one is something else.
const MAX_IDENTITY: u64 = 64 * 1024;
/// Largest trust file: the limits of 05 §3 leave it far below.
const MAX_TRUST: u64 = 64 << 20;
/// Peers remembered. The one seen longest ago goes first.
const MAX_PEERS: usize = 4096;
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// The directory of one node, locked.
pub(crate) struct Store {
    env: Env,
    dir: Option<PathBuf>,
    identity: Option<PathBuf>,
    /// Held from start to [`Store::close`]; whoever writes holds the mutex, so that nothing is written afterwards.
    lock: Mutex<Option<Lock>>,
}

impl Store {
    /// Locks the directory of the identity file and loads the identity, or makes one.
    pub(crate) fn open(env: &Env, identity: Option<&Path>) -> Result<(Self, Arc<Identity>), NodeError> {
        let Some(path) = identity else {
            let store = Self { env: env.clone(), dir: None, identity: None, lock: Mutex::new(None) };
            return Ok((store, Arc::new(Identity::from_seed(env.seed()))));
        };
        let dir = parent(path).to_owned();
        let file_error = |path: &Path| {
            let path = path.to_owned();
            move |source| NodeError::File { path, source }
        };
        env.fs().create_dir_all(&dir, DIR_MODE).map_err(file_error(&dir))?;
        let lock_path = dir.join("node.lock");
        let lock = env.fs().lock(&lock_path).map_err(|e| match e {
            LockError::Held { pid } => NodeError::DirectoryLocked { dir: dir.clone(), pid },
            LockError::Io(source) => NodeError::File { path: lock_path.clone(), source },
        })?;
        let identity = match env.fs().read_limited(path, MAX_IDENTITY) {
            Ok(text) => {
                let identity = Identity::from_file_text(&text)
                    .map_err(|source| NodeError::Identity { path: path.to_owned(), source })?;
                keep_private(env, path, &text);
                identity
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let identity = Identity::from_seed(env.seed());
                let text = identity.to_file_text();
                env.fs().write_atomic(path, text.as_bytes(), FILE_MODE).map_err(file_error(path))?;
                tracing::info!(path = %path.display(), "made a new identity");
                identity
            }
            Err(source) => return Err(file_error(path)(source)),
        };
        let identity_path = Some(path.to_owned());
        let lock = Mutex::new(Some(lock));
        Ok((Self { env: env.clone(), dir: Some(dir), identity: identity_path, lock }, Arc::new(identity)))
    }

    /// Waits for a write under way and gives the directory up: another node may take it now.
    pub(crate) fn close(&self) {
        drop(self.lock.lock().take());
    }

    /// Where things are kept, if anywhere.
    pub(crate) fn dir(&self) -> Option<&Path> {
        self.dir.as_deref()
    }

    /// Whether anything is kept.
    pub(crate) fn is_persistent(&self) -> bool {
        self.dir.is_some()
    }

    fn next_path(&self) -> Option<PathBuf> {
        let path = self.identity.as_ref()?;
        let mut name = path.file_name()?.to_owned();
        name.push(".next");
        Some(path.with_file_name(name))
    }

    /// The new key of a rotation that was cut off.
    ///
    /// # Errors
    /// [`NodeError::Identity`] for a file that cannot be read as a key: it may be the only copy of the one that counts.
    pub(crate) fn load_next(&self) -> Result<Option<Arc<Identity>>, NodeError> {
        let Some(path) = self.next_path() else { return Ok(None) };
        match self.env.fs().read_limited(&path, MAX_IDENTITY) {
            Ok(text) => match Identity::from_file_text(&text) {
                Ok(identity) => Ok(Some(Arc::new(identity))),
                Err(source) => Err(NodeError::Identity { path, source }),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(NodeError::File { path, source }),
        }
    }

    /// Keeps the new key of a rotation; it is on disk when this returns.
    pub(crate) fn save_next(&self, next: &Identity) -> io::Result<()> {
        let Some(path) = self.next_path() else { return Ok(()) };
        let held = self.lock.lock();
        if held.is_none() {
            return Err(io::Error::other("the node has stopped"));
        }
        self.env.fs().write_atomic(&path, next.to_file_text().as_bytes(), FILE_MODE)
    }

    /// Puts the new key in the place of the old one, in one step, on disk when this returns.
    pub(crate) fn commit_next(&self, next: &Identity) -> io::Result<()> {
        let Some(path) = &self.identity else { return Ok(()) };
        // Also after the node was told to stop: the registry has decided, and nobody else can use the directory before
        // the lock is given up.
        self.env.fs().write_atomic(path, next.to_file_text().as_bytes(), FILE_MODE)?;
        self.forget_next()
    }

    /// A rotation has not taken place, or is done.
    pub(crate) fn forget_next(&self) -> io::Result<()> {
        let (Some(path), Some(dir)) = (self.next_path(), self.dir()) else { return Ok(()) };
        match self.env.fs().remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        self.env.fs().sync_dir(dir)
    }

    /// Where trust is kept.
    pub(crate) fn trust_path(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join("trust.json"))
    }

    /// The trust file, if there is one.
    pub(crate) fn load_trust(&self) -> Result<Option<Vec<u8>>, NodeError> {
        let Some(path) = self.trust_path() else { return Ok(None) };
        match self.env.fs().read_limited(&path, MAX_TRUST) {
            Ok(content) => Ok(Some(content)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(NodeError::File { path, source }),
        }
    }

    /// Replaces the trust file; it is on disk when this returns.
    pub(crate) fn save_trust(&self, content: &[u8]) -> io::Result<()> {
        let Some(path) = self.trust_path() else { return Ok(()) };
        let held = self.lock.lock();
        if held.is_none() {
            return Err(io::Error::other("the node has stopped"));
        }
        self.env.fs().write_atomic(&path, content, FILE_MODE)
    }

    fn memory_path(&self) -> Option<PathBuf> {
        self.dir.as_ref().map(|dir| dir.join("node-state.json"))
    }

    /// What was remembered; nothing when there is nothing or it cannot be read.
    pub(crate) fn load_memory(&self) -> Memory {
        let Some(path) = self.memory_path() else { return Memory::default() };
        let text = match self.env.fs().read_limited(&path, MAX_TRUST) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Memory::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "cannot read what was remembered of peers");
                return Memory::default();
            }
        };
        match serde_json::from_slice(&text) {
            Ok(value) => Memory::from_json(&value),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "forgot what was remembered of peers: not JSON");
                Memory::default()
            }
        }
    }

    /// Writes the memory if it changed since the last time it was written.
    pub(crate) fn write_memory(&self, memory: &Mutex<Memory>) -> io::Result<()> {
        let Some(path) = self.memory_path() else { return Ok(()) };
        let held = self.lock.lock();
        let text = {
            let mut memory = memory.lock();
            if !memory.changed {
                return Ok(());
            }
            if held.is_none() {
                return Err(io::Error::other("the node has stopped"));
            }
            memory.changed = false;
            memory.to_json().to_string()
        };
        let written = self.env.fs().write_atomic(&path, text.as_bytes(), FILE_MODE);
        if written.is_err() {
            memory.lock().changed = true;
        }
        written.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// The same where nobody waits for it: it is tried again with the next change.
    pub(crate) fn save_memory(&self, memory: &Mutex<Memory>) {
        if let Err(error) = self.write_memory(memory) {
            tracing::warn!(%error, "cannot remember peers");
        }
    }
}

/// Takes a private key that others may read away from them; official daemons refuse to start with it. A file that is a
/// link, as mounted secrets are, is somebody else's to keep.
fn keep_private(env: &Env, path: &Path, text: &[u8]) {
    let shown = path.display();
    match env.fs().metadata(path) {
        Ok(found) if found.is_file && found.mode & 0o077 != 0 => match env.fs().write_atomic(path, text, FILE_MODE) {
            Ok(()) => tracing::warn!(path = %shown, "others could read the private key; now only this user can"),
            Err(error) => tracing::warn!(path = %shown, %error, "others can read the private key: chmod 600 it"),
        },
        Ok(_) => {}
        Err(error) => tracing::warn!(path = %shown, %error, "cannot see who may read the private key"),
    }
}

/// What is remembered of one peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KnownPeer {
    /// Its registered Ed25519 key.
    pub(crate) key: Option<[u8; 32]>,
    /// Whether its registration names a version.
    pub(crate) version_known: bool,
    /// Where it was.
    pub(crate) endpoints: Vec<SocketAddr>,
    /// Unix seconds of the last change.
    pub(crate) seen: u64,
}

/// Something said at run time, which stands until the settings say something new.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Choice<T> {
    /// What was said.
    value: T,
    /// What the settings said at that time.
    configured: T,
}

impl<T: Clone + PartialEq> Choice<T> {
    /// What holds now: the newer of what was said and what the settings say.
    fn holds<'a>(choice: Option<&'a Self>, configured: &'a T) -> &'a T {
        choice.filter(|choice| choice.configured == *configured).map_or(configured, |choice| &choice.value)
    }
}

/// Own id and peers, as last told by the registry, and what was set at run time.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Our id under this identity; 0 when never registered.
    pub(crate) node: u32,
    peers: BTreeMap<u32, KnownPeer>,
    hostname: Option<Choice<String>>,
    public: Option<Choice<bool>>,
    tags: Option<Vec<String>>,
    changed: bool,
}

impl Memory {
    /// Notes our own id.
    pub(crate) fn set_node(&mut self, node: u32) {
        self.changed |= self.node != node;
        self.node = node;
    }

    /// The hostname to claim, when the settings say `configured`.
    pub(crate) fn hostname(&self, configured: &String) -> String {
        Choice::holds(self.hostname.as_ref(), configured).clone()
    }

    /// Whether to be public, when the settings say `configured`.
    pub(crate) fn public(&self, configured: bool) -> bool {
        *Choice::holds(self.public.as_ref(), &configured)
    }

    /// The tags set last; `None` when there never were any.
    pub(crate) fn tags(&self) -> Option<Vec<String>> {
        self.tags.clone()
    }

    /// Notes the hostname that was set, and what the settings say.
    pub(crate) fn set_hostname(&mut self, value: String, configured: String) {
        let choice = (value != configured).then_some(Choice { value, configured });
        self.changed |= self.hostname != choice;
        self.hostname = choice;
    }

    /// Notes the visibility that was set, and what the settings say.
    pub(crate) fn set_public(&mut self, value: bool, configured: bool) {
        let choice = (value != configured).then_some(Choice { value, configured });
        self.changed |= self.public != choice;
        self.public = choice;
    }

    /// Notes the tags that were set.
    pub(crate) fn set_tags(&mut self, tags: Vec<String>) {
        self.changed |= self.tags.as_ref() != Some(&tags);
        self.tags = Some(tags);
    }

    /// What is remembered of a peer.
    pub(crate) fn peer(&self, node: u32) -> Option<&KnownPeer> {
        self.peers.get(&node)
    }

    /// Notes something about a peer.
    pub(crate) fn note(&mut self, node: u32, unix: u64, change: impl FnOnce(&mut KnownPeer)) {
        let empty = KnownPeer { key: None, version_known: false, endpoints: Vec::new(), seen: 0 };
        let peer = self.peers.entry(node).or_insert(empty);
        let before = peer.clone();
        change(peer);
        if *peer != before {
            peer.seen = unix;
            self.changed = true;
        }
        if self.peers.len() > MAX_PEERS
            && let Some(oldest) = self.peers.iter().min_by_key(|(_, peer)| peer.seen).map(|(node, _)| *node)
        {
            self.peers.remove(&oldest);
        }
    }

    /// Forgets a peer (its trust was ended).
    pub(crate) fn forget(&mut self, node: u32) {
        self.changed |= self.peers.remove(&node).is_some();
    }

    fn to_json(&self) -> Value {
        let peers: Vec<Value> = self
            .peers
            .iter()
            .map(|(node, peer)| {
                let endpoints: Vec<String> = peer.endpoints.iter().map(SocketAddr::to_string).collect();
                json!({
                    "node_id": node,
                    "public_key": peer.key.map(|key| base64::encode(&key)).unwrap_or_default(),
                    "version_known": peer.version_known,
                    "endpoints": endpoints,
                    "seen": peer.seen,
                })
            })
            .collect();
        let mut file = json!({ "version": 1, "node_id": self.node, "peers": peers });
        if let Some(choice) = &self.hostname {
            file["hostname"] = json!({ "set": choice.value, "configured": choice.configured });
        }
        if let Some(choice) = &self.public {
            file["public"] = json!({ "set": choice.value, "configured": choice.configured });
        }
        if let Some(tags) = &self.tags {
            file["tags"] = json!(tags);
        }
        file
    }

    /// Reads leniently: it is a memory, and what does not fit is not remembered.
    fn from_json(value: &Value) -> Self {
        let number = |value: &Value, name: &str| value.get(name).and_then(Value::as_u64).unwrap_or(0);
        let node = |value: &Value| u32::try_from(number(value, "node_id")).unwrap_or(0);
        let peer = |value: &Value| {
            let text = |value: &Value| value.as_str().and_then(|text| text.parse().ok());
            let list = value.get("endpoints").and_then(Value::as_array);
            KnownPeer {
                key: value.get("public_key").and_then(Value::as_str).and_then(base64::decode_array),
                version_known: value.get("version_known").and_then(Value::as_bool).unwrap_or(false),
                endpoints: list.map(|list| list.iter().filter_map(text).collect()).unwrap_or_default(),
                seen: number(value, "seen"),
            }
        };
        let peers = value.get("peers").and_then(Value::as_array);
        let peers = peers.into_iter().flatten().map(|value| (node(value), peer(value))).filter(|(node, _)| *node != 0);
        let part = |name: &str, part: &str| value.get(name).and_then(|choice| choice.get(part));
        let text = |name: &str| part("hostname", name).and_then(Value::as_str).map(str::to_owned);
        let bool = |name: &str| part("public", name).and_then(Value::as_bool);
        let tags = value.get("tags").and_then(Value::as_array);
        Self {
            node: node(value),
            peers: peers.take(MAX_PEERS).collect(),
            hostname: text("set").zip(text("configured")).map(|(value, configured)| Choice { value, configured }),
            public: bool("set").zip(bool("configured")).map(|(value, configured)| Choice { value, configured }),
            tags: tags.map(|tags| tags.iter().filter_map(|tag| tag.as_str().map(str::to_owned)).collect()),
            changed: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_word_on_a_setting_holds_over_a_restart() {
        let mut memory = Memory::default();
        let again = |memory: &Memory| Memory::from_json(&memory.to_json());
        let none = String::new();
        assert_eq!((memory.hostname(&none), memory.public(true), memory.tags()), (String::new(), true, None));
        memory.set_hostname("bob".to_owned(), String::new());
        memory.set_public(false, true);
        memory.set_tags(vec!["a".to_owned(), "b".to_owned()]);
        let memory = again(&memory);
        assert_eq!(memory.hostname(&none), "bob");
        assert!(!memory.public(true));
        assert_eq!(memory.tags(), Some(vec!["a".to_owned(), "b".to_owned()]));
        // Settings that say something new are newer.
        assert_eq!(memory.hostname(&"carol".to_owned()), "carol");
        assert!(!memory.public(false));
    }

    #[test]
    fn what_is_set_back_to_the_settings_is_no_exception_any_more() {
        let mut memory = Memory::default();
        memory.set_public(true, false);
        memory.set_public(false, false);
        assert!(memory.to_json().get("public").is_none());
    }
}
