//! Signs of life in memory. The store's table is their copy for the next start.

use parking_lot::Mutex;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::domain::Proof;
use crate::model::Presence;

/// All live nodes. Bounded by the number of identities.
#[derive(Default)]
pub(super) struct Mirror(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    live: FxHashMap<u32, Presence>,
    /// Nodes whose last sign of life is not in the table.
    dirty: FxHashSet<u32>,
}

impl Mirror {
    pub(super) fn get(&self, id: u32) -> Option<Presence> {
        self.0.lock().live.get(&id).copied()
    }

    pub(super) fn len(&self) -> u64 {
        self.0.lock().live.len() as u64
    }

    /// Takes over what a commit has made durable.
    pub(super) fn apply(&self, changes: impl IntoIterator<Item = (u32, Option<Presence>)>) {
        let mut inner = self.0.lock();
        for (id, change) in changes {
            match change {
                Some(presence) => inner.live.insert(id, presence),
                None => inner.live.remove(&id),
            };
            inner.dirty.remove(&id);
        }
    }

    /// A sign of life of a node, if it is live.
    pub(super) fn touch(&self, id: u32, presence: Presence) {
        let mut inner = self.0.lock();
        if let Some(kept) = inner.live.get_mut(&id) {
            *kept = presence;
            inner.dirty.insert(id);
        }
    }

    /// The holder of the key has signed something.
    pub(super) fn confirm(&self, proof: &Proof) {
        let mut inner = self.0.lock();
        if let Some(kept) = inner.live.get_mut(&proof.node)
            && !kept.proved
            && kept.source == proof.source
        {
            kept.proved = true;
            inner.dirty.insert(proof.node);
        }
    }

    /// Nodes not seen since `limit` (Unix seconds).
    pub(super) fn silent_since(&self, limit: u64) -> Vec<u32> {
        let inner = self.0.lock();
        inner.live.iter().filter(|(_, p)| p.last_seen < limit).map(|(id, _)| *id).collect()
    }

    /// Signs of life that the table does not have, which are from now on considered to be there.
    pub(super) fn take_dirty(&self) -> Vec<(u32, Presence)> {
        let mut inner = self.0.lock();
        let dirty = std::mem::take(&mut inner.dirty);
        dirty.into_iter().filter_map(|id| inner.live.get(&id).map(|p| (id, *p))).collect()
    }
}
