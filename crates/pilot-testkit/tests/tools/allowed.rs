//! Failures that are no fault of ours: `allowed.md` beside this file. What is not in it must work, and what is in it must
//! fail.

const LIST: &str = include_str!("allowed.md");

struct Entry {
    tool: String,
    daemon: String,
    row: String,
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
    /// When a line is no entry.
    pub(crate) fn read() -> Self {
        let lines = LIST.lines().filter(|line| line.starts_with('|')).skip(2);
        let entries = lines.flat_map(|line| {
            let fields: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            let [tools, daemons, row, reason] = fields[..] else { panic!("not four columns: {line}") };
            assert!(!reason.is_empty(), "no reason: {line}");
            let mut entries = Vec::new();
            for tool in tools.split(", ") {
                for daemon in daemons.split(", ") {
                    let [tool, daemon, row, reason] = [tool, daemon, row, reason].map(str::to_owned);
                    entries.push(Entry { tool, daemon, row, reason });
                }
            }
            entries
        });
        Self { entries: entries.collect() }
    }

    /// Why this may fail.
    pub(crate) fn reason(&self, tool: &str, daemon: &str, row: &str) -> Option<&str> {
        let covers = |entry: &&Entry| entry.tool == tool && entry.daemon == daemon && entry.row == row;
        self.entries.iter().find(covers).map(|entry| entry.reason.as_str())
    }

    /// Entries for combinations that `ran` does not hold.
    pub(crate) fn unknown(&self, ran: impl Fn(&str, &str, &str) -> bool) -> Vec<String> {
        let entries = self.entries.iter().filter(|entry| !ran(&entry.tool, &entry.daemon, &entry.row));
        entries.map(|entry| format!("{} x {}: {}", entry.tool, entry.daemon, entry.row)).collect()
    }
}
