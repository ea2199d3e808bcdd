//! Signed commands count once (docs/spec/networks.md, N4): who sees one on its way cannot give it again.
//!
//! What is remembered is bounded. Where there is no room for more, nothing is forgotten that could still be used: what is
//! as old as the oldest forgotten command is refused from then on.

use std::collections::BTreeSet;

use aws_lc_rs::digest;
use rustc_hash::FxHashMap;

use crate::limits::{COMMAND_LIFE, COMMAND_NODES, COMMANDS_OF_NODE};

/// Commands that a node has given. Times are Unix seconds, as signed.
#[derive(Default)]
struct Given {
    /// Up to this time all count as given.
    floor: u64,
    commands: BTreeSet<(u64, Vec<u8>)>,
}

impl Given {
    fn newest(&self) -> u64 {
        self.commands.last().map_or(self.floor, |(at, _)| *at)
    }
}

/// See the module.
pub(crate) struct Once {
    nodes: FxHashMap<u32, Given>,
    /// Up to this time all commands of nodes that are not in the table count as given.
    floor: u64,
}

/// Whether a command of that time is too old to be taken anyway.
fn is_over(at: u64, now: u64) -> bool {
    at.saturating_add(COMMAND_LIFE.as_secs()) < now
}

impl Once {
    /// Nothing is known of what was given before the start, so nothing of that time counts.
    pub(crate) fn new(started: u64) -> Self {
        Self { nodes: FxHashMap::default(), floor: started.saturating_sub(1) }
    }

    /// Takes a command that a node has signed; false when it has been taken before, or might have been.
    pub(crate) fn take(&mut self, now: u64, node: u32, at: u64, text: &str) -> bool {
        if !self.nodes.contains_key(&node) {
            self.make_room(now);
        }
        let floor = self.floor;
        let given = self.nodes.entry(node).or_insert_with(|| Given { floor, ..Given::default() });
        while given.commands.first().is_some_and(|(at, _)| is_over(*at, now)) {
            given.commands.pop_first();
        }
        let command = (at, digest::digest(&digest::SHA256, text.as_bytes()).as_ref().to_vec());
        if at <= given.floor || !given.commands.insert(command) {
            return false;
        }
        if given.commands.len() > COMMANDS_OF_NODE
            && let Some((oldest, _)) = given.commands.pop_first()
        {
            given.floor = oldest;
        }
        true
    }

    fn make_room(&mut self, now: u64) {
        if self.nodes.len() < COMMAND_NODES {
            return;
        }
        self.nodes.retain(|_, given| !is_over(given.newest(), now));
        if self.nodes.len() >= COMMAND_NODES
            && let Some((node, newest)) =
                self.nodes.iter().map(|(node, given)| (*node, given.newest())).min_by_key(|(_, newest)| *newest)
        {
            self.nodes.remove(&node);
            self.floor = self.floor.max(newest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: u64 = 1_800_000_000;

    #[test]
    fn a_command_counts_once_for_as_long_as_it_could_be_given() {
        let mut once = Once::new(T);
        assert!(once.take(T, 1, T, "kick"));
        assert!(once.take(T, 1, T, "promote") && once.take(T, 2, T, "kick") && once.take(T, 1, T + 1, "kick"));
        for now in [T, T + 100, T + COMMAND_LIFE.as_secs()] {
            assert!(!once.take(now, 1, T, "kick"), "{now}");
        }
        assert!(!once.take(T, 3, T - 1, "kick"), "of before the start nothing is known");
        // From a clock ahead: until its time, and as long again.
        let ahead = T + COMMAND_LIFE.as_secs();
        assert!(once.take(T, 1, ahead, "kick"));
        assert!(!once.take(ahead + COMMAND_LIFE.as_secs(), 1, ahead, "kick"));
    }

    #[test]
    fn what_has_to_be_forgotten_is_refused() {
        let mut once = Once::new(T);
        let many = COMMANDS_OF_NODE as u64 * 2;
        for i in 0..many {
            assert!(once.take(T, 1, T + i, "kick"), "{i}");
        }
        assert!((0..many).all(|i| !once.take(T, 1, T + i, "kick")));
        assert_eq!(once.nodes[&1].commands.len(), COMMANDS_OF_NODE);
        assert!(once.take(T, 2, T, "kick"), "another node loses nothing by it");
        // A flood of nodes.
        let mut once = Once::new(T);
        assert!(once.take(T, 0, T, "kick"));
        for node in 1..=COMMAND_NODES as u32 {
            assert!(once.take(T, node, T + 5, "kick"));
        }
        assert_eq!(once.nodes.len(), COMMAND_NODES);
        assert!(!once.nodes.contains_key(&0) && !once.take(T, 0, T, "kick"));
        assert!(once.take(T, 0, T + 6, "kick"), "a fresh one of a forgotten node is taken");
        // What is over makes room, and refuses nothing.
        let later = T + 1000;
        assert!(once.take(later, 9_999_999, later - 10, "kick"));
        assert_eq!(once.nodes.len(), 1);
    }
}
