//! Failures that are no fault of ours: `allowed.md` beside this file, a copy of what 07 §2.2 has for the operations of the
//! matrix. What is not in it must work, and what is in it must fail.

use super::cell;

const LIST: &str = include_str!("allowed.md");

struct Entry {
    peer: String,
    set_up: String,
    operation: String,
    reason: String,
}

/// The list.
pub(crate) struct Allowed {
    entries: Vec<Entry>,
}

impl Allowed {
    /// Reads the list.
    ///
    /// # Panics
    /// When a row is no row, or names a peer or set-up that the matrix does not have.
    pub(crate) fn read() -> Self {
        let rows = LIST.lines().filter(|line| line.starts_with('|')).skip(2);
        let entries = rows.map(|row| {
            let fields: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            let [peer, set_up, operation, reason] = fields[..] else { panic!("not four columns: {row}") };
            assert!(!reason.is_empty(), "no reason: {row}");
            let known = |cell: &cell::Cell| cell.peer == peer && (set_up == "*" || cell.set_up() == set_up);
            assert!(cell::all().iter().any(known), "no such cell: {row}");
            let [peer, set_up, operation, reason] = [peer, set_up, operation, reason].map(str::to_owned);
            Entry { peer, set_up, operation, reason }
        });
        Self { entries: entries.collect() }
    }

    /// Why this may fail.
    pub(crate) fn reason(&self, peer: &str, set_up: &str, operation: &str) -> Option<&str> {
        let covers = |e: &&Entry| e.peer == peer && (e.set_up == "*" || e.set_up == set_up) && e.operation == operation;
        self.entries.iter().find(covers).map(|e| e.reason.as_str())
    }
}
