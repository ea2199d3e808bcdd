//! Failures that are no fault of ours, and official commands without a row: `allowed.md` beside this file. What is not in it
//! must work, and what is in it must fail.

use std::collections::BTreeSet;

const LIST: &str = include_str!("allowed.md");

struct Entry {
    tool: String,
    daemon: String,
    row: String,
    reason: String,
}

/// Begins the second table.
const WITHOUT_A_ROW: &str = "## Commands without a row";

/// The list.
pub(crate) struct Allowed {
    entries: Vec<Entry>,
    /// Commands, or first words of commands, that need no row.
    left_out: Vec<(String, String)>,
}

/// The fields of each line of a table.
fn table<const N: usize>(text: &str) -> impl Iterator<Item = [&str; N]> {
    text.lines().filter(|line| line.starts_with('|')).skip(2).map(|line| {
        let fields: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        fields.try_into().unwrap_or_else(|_| panic!("not {N} columns: {line}"))
    })
}

impl Allowed {
    /// Reads the list.
    ///
    /// # Panics
    /// When a line is no entry.
    pub(crate) fn read() -> Self {
        let (failures, left_out) = LIST.split_once(WITHOUT_A_ROW).expect("two tables");
        let entries = table(failures).flat_map(|[tools, daemons, row, reason]| {
            assert!(!reason.is_empty(), "no reason: {row}");
            let mut entries = Vec::new();
            for tool in tools.split(", ") {
                for daemon in daemons.split(", ") {
                    let [tool, daemon, row, reason] = [tool, daemon, row, reason].map(str::to_owned);
                    entries.push(Entry { tool, daemon, row, reason });
                }
            }
            entries
        });
        let left_out = table(left_out).flat_map(|[tools, commands, reason]| {
            assert!(!reason.is_empty(), "no reason: {commands}");
            let of = |tool: &str| commands.split(", ").map(|c| (tool.to_owned(), c.to_owned())).collect::<Vec<_>>();
            tools.split(", ").flat_map(of).collect::<Vec<_>>()
        });
        Self { entries: entries.collect(), left_out: left_out.collect() }
    }

    /// What is wrong with the rows, given the commands of official tools and whether a row shows each.
    pub(crate) fn gaps(
        &self,
        commands: &BTreeSet<(String, String)>,
        shown: impl Fn(&str, &str) -> bool,
    ) -> Vec<String> {
        let covers = |(tools, entry): &(String, String), tool: &str, command: &str| {
            (tools == "all" || tools == tool)
                && command.strip_prefix(entry.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
        };
        let mut wrong = Vec::new();
        for (tool, command) in commands {
            let entry = self.left_out.iter().find(|entry| covers(entry, tool, command));
            match (shown(tool, command), entry) {
                (false, None) => wrong.push(format!("no row for {command:?} of {tool}")),
                (true, Some(_)) => wrong.push(format!("allowed.md leaves out {command:?}, which has a row for {tool}")),
                _ => {}
            }
        }
        let unknown = |entry: &&(String, String)| !commands.iter().any(|(tool, command)| covers(entry, tool, command));
        wrong.extend(self.left_out.iter().filter(unknown).map(|entry| format!("no official tool has {entry:?}")));
        wrong
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
