//! Messages seen before, recognised by the SHA-256 of their seven fields (05 §3.3). A message is recorded only after
//! its signature has verified, so strangers cannot fill the set.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use aws_lc_rs::digest::{SHA256, digest};
use pilot_wire::handshake::Message;
use rustc_hash::FxHashSet;

use super::{MESSAGES_PER_NODE, REPLAY_ENTRIES, REPLAY_LIFETIME, Refusal};

/// The set, bounded by number, by age and per node.
#[derive(Debug, Default)]
pub(super) struct ReplaySet {
    seen: FxHashSet<[u8; 32]>,
    /// Oldest first.
    order: VecDeque<(Instant, u32, [u8; 32])>,
    per_node: BTreeMap<u32, usize>,
}

impl ReplaySet {
    /// Records a verified message.
    pub(super) fn record(&mut self, now: Instant, message: &Message) -> Result<(), Refusal> {
        self.expire(now);
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, &message.canonical()).as_ref());
        if self.seen.contains(&hash) {
            return Err(Refusal::Replay);
        }
        // A full set refuses rather than forgets: forgetting would let the forgotten be replayed.
        if self.order.len() >= REPLAY_ENTRIES {
            return Err(Refusal::TooMany);
        }
        let count = self.per_node.entry(message.node).or_insert(0);
        if *count >= MESSAGES_PER_NODE {
            return Err(Refusal::TooMany);
        }
        *count += 1;
        self.seen.insert(hash);
        self.order.push_back((now, message.node, hash));
        Ok(())
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, node, hash)) = self.order.front().copied() {
            if now.saturating_duration_since(at) < REPLAY_LIFETIME {
                return;
            }
            self.order.pop_front();
            self.seen.remove(&hash);
            if let Some(count) = self.per_node.get_mut(&node) {
                *count -= 1;
                if *count == 0 {
                    self.per_node.remove(&node);
                }
            }
        }
    }

    /// Messages remembered.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}
