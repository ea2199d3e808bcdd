//! Runs the cells, several at a time, and compares what failed with what may.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::process::Child;
use std::time::{Duration, Instant};

use pilot_testkit::isolate::again;

use super::allowed::Allowed;
use super::cell::{Cell, MARK};

/// The cell that a child runs, by name.
pub(crate) const CELL: &str = "PILOT_MATRIX_CELL";
/// Runs the full product, not only what every run shows.
pub(crate) const FULL: &str = "PILOT_FULL_MATRIX";
/// Runs only cells whose name contains this.
const ONLY: &str = "PILOT_MATRIX_ONLY";
/// Cells at a time. They mostly wait.
const AT_A_TIME: usize = 8;
/// For one cell. One without failures needs less than two minutes.
const CELL_LIMIT: Duration = Duration::from_secs(20 * 60);

/// How an operation ended.
pub(crate) struct Ended {
    pub(crate) operation: String,
    pub(crate) seconds: String,
    /// Why it failed.
    pub(crate) error: Option<String>,
}

struct Running {
    cell: Cell,
    child: Child,
    output: File,
    started: Instant,
}

struct Finished {
    cell: Cell,
    ended: Vec<Ended>,
    took: Duration,
    /// Everything it printed, when something is wrong.
    output: String,
}

impl Running {
    fn start(test: &str, cell: Cell) -> Self {
        let output = tempfile::tempfile().expect("file for the output");
        let stdout = output.try_clone().expect("duplicate");
        let stderr = output.try_clone().expect("duplicate");
        let child = again(test).env(CELL, cell.name()).stdout(stdout).stderr(stderr).spawn().expect("run unshare");
        Self { cell, child, output, started: Instant::now() }
    }

    fn is_over(&mut self) -> bool {
        if self.child.try_wait().expect("wait for the cell").is_some() {
            return true;
        }
        if self.started.elapsed() < CELL_LIMIT {
            return false;
        }
        self.child.kill().expect("end the cell");
        self.child.wait().expect("wait for the cell");
        true
    }

    fn finish(mut self) -> Finished {
        let mut output = String::new();
        self.output.rewind().expect("rewind");
        self.output.read_to_string(&mut output).expect("output in UTF-8");
        Finished { ended: parse(&output), cell: self.cell, took: self.started.elapsed(), output }
    }
}

fn parse(output: &str) -> Vec<Ended> {
    let line = |line: &str| {
        // The test runner does not end its own line before the first of ours.
        let (_, line) = line.split_once(MARK)?;
        let mut fields = line.trim_start_matches('\t').splitn(4, '\t');
        let (how, operation, seconds, why) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        let error = (how != "ok").then(|| why.to_owned());
        Some(Ended { operation: operation.to_owned(), seconds: seconds.to_owned(), error })
    };
    output.lines().filter_map(line).collect()
}

/// Runs `cells`, prints the table and fails on everything that is not as the allowed failures say.
pub(crate) fn run(test: &str, cells: Vec<Cell>, allowed: &Allowed) {
    let only = std::env::var(ONLY).unwrap_or_default();
    let cells: Vec<Cell> = cells.into_iter().filter(|cell| cell.name().contains(&only)).collect();
    let mut finished = run_all(test, cells);
    finished.sort_by(|a, b| a.cell.cmp(&b.cell));

    let table = table(&finished, allowed);
    // Straight to the descriptor: libtest captures the print macros, and the table is of interest also when all is well.
    let _ = std::io::stderr().write_all(table.as_bytes());
    let wrong = judge(&finished, allowed);
    assert!(wrong.is_empty(), "{wrong}");
}

fn run_all(test: &str, mut waiting: Vec<Cell>) -> Vec<Finished> {
    // Those with the long silence first, so that the others fill the gaps.
    waiting.sort_by_key(|cell| std::cmp::Reverse(cell.course));
    let mut running: Vec<Running> = Vec::new();
    let mut finished: Vec<Finished> = Vec::new();
    while !waiting.is_empty() || !running.is_empty() {
        while running.len() < AT_A_TIME
            && let Some(cell) = waiting.pop()
        {
            running.push(Running::start(test, cell));
        }
        let mut at = 0;
        while at < running.len() {
            if running[at].is_over() {
                let one = running.swap_remove(at).finish();
                println!("{} took {} s", one.cell.name(), one.took.as_secs());
                finished.push(one);
            } else {
                at += 1;
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    finished
}

/// What is not as it should be.
fn judge(finished: &[Finished], allowed: &Allowed) -> String {
    let mut wrong = String::new();
    for Finished { cell, ended, output, .. } in finished {
        let mut odd = String::new();
        if ended.last().is_none_or(|last| last.error.is_none() && !matches!(last.operation.as_str(), "idle" | "quiet"))
        {
            odd.push_str("  it did not reach its end\n");
        }
        for Ended { operation, error, .. } in ended {
            match (error, allowed.reason(&cell.peer, &cell.set_up(), operation)) {
                (Some(error), None) => drop(writeln!(odd, "  {operation}: {error}")),
                (None, Some(_)) => drop(writeln!(odd, "  {operation} works, yet the list of allowed failures has it")),
                (Some(_), Some(_)) | (None, None) => {}
            }
        }
        if !odd.is_empty() {
            let lines: Vec<&str> = output.lines().collect();
            let tail = lines[lines.len().saturating_sub(220)..].join("\n");
            let _ = write!(wrong, "{}:\n{odd}{tail}\n\n", cell.name());
        }
    }
    wrong
}

/// Two tables, one for each kind of course: seconds where it worked, `FAILED`, or `allowed`.
fn table(finished: &[Finished], allowed: &Allowed) -> String {
    let mut text = String::new();
    let mut kinds: BTreeMap<bool, Vec<&Finished>> = BTreeMap::new();
    for one in finished {
        kinds.entry(one.cell.course != super::cell::Course::Steady).or_default().push(one);
    }
    for rows in kinds.values() {
        let longest = rows.iter().map(|row| &row.ended).max_by_key(|ended| ended.len());
        let columns: Vec<&str> = longest.into_iter().flatten().map(|e| e.operation.as_str()).collect();
        let _ = writeln!(text, "\n| peer | set-up | {} | whole |", columns.join(" | "));
        let _ = writeln!(text, "|---|---|{}---|", "---|".repeat(columns.len()));
        for Finished { cell, ended, took, .. } in rows {
            let _ = write!(text, "| {} | {} |", cell.peer, cell.set_up());
            for column in &columns {
                let how = match ended.iter().find(|e| e.operation == *column) {
                    None => "-",
                    Some(Ended { error: None, seconds, .. }) => seconds,
                    Some(_) if allowed.reason(&cell.peer, &cell.set_up(), column).is_some() => "allowed",
                    Some(_) => "FAILED",
                };
                let _ = write!(text, " {how} |");
            }
            let _ = writeln!(text, " {} |", took.as_secs());
        }
    }
    text.push('\n');
    text
}
