//! Holds `docs/compatibility.md` to the tests of golden vectors in all crates, beside what each of them checks itself
//! (`tests/support/compatibility.rs`), and the vectors to the tests: a recording that no test reads shows nothing.
#![allow(clippy::disallowed_methods)] // this module reads the repository

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Recordings of services and of the command line. Those of the libraries for C and Python come with these parts.
const RECORDINGS: [&str; 17] = [
    "cli-context",
    "cli-files",
    "cli-human-output",
    "cli-ipc-trace",
    "cli-json-commands",
    "cli-json-errors",
    "cli-webhook-samples",
    "drift-dataexchange",
    "drift-secure-channel",
    "services-dataexchange",
    "services-eventstream",
    "services-gateway",
    "services-handshake",
    "services-polo",
    "services-secure",
    "services-task",
    "services-webhook",
];

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Files below a directory with this ending.
fn files(dir: &Path, ending: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => files(&path, ending, found),
            false if path.extension().is_some_and(|extension| extension == ending) => found.push(path),
            false => {}
        }
    }
}

/// The text of every source file.
fn sources() -> Vec<String> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(crates()).expect("crates").flatten() {
        for part in ["src", "tests"] {
            files(&entry.path().join(part), "rs", &mut paths);
        }
    }
    assert!(paths.len() > 100, "{}", paths.len());
    paths.iter().map(|path| std::fs::read_to_string(path).expect("source")).collect()
}

#[test]
fn every_recording_is_read_by_a_test() {
    let sources = sources();
    let mut vectors = Vec::new();
    for entry in std::fs::read_dir(crates()).expect("crates").flatten() {
        files(&entry.path().join("tests/vectors"), "json", &mut vectors);
    }
    let mut read = BTreeSet::new();
    for path in vectors {
        let name = path.file_name().expect("name").to_string_lossy().into_owned();
        let include = format!("vectors/{name}\"");
        assert!(sources.iter().any(|text| text.contains(&include)), "nothing reads {}", path.display());
        read.insert(name.trim_end_matches(".json").to_owned());
    }
    for name in RECORDINGS {
        assert!(read.contains(name), "{name} is not here");
    }
}

#[test]
fn every_difference_belongs_to_a_test() {
    let page = std::fs::read_to_string(crates().join("../docs/compatibility.md")).expect("docs/compatibility.md");
    let sources = sources();
    let mut recordings = BTreeSet::new();
    let mut rows = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        // Bars inside a cell are escaped.
        let line = line.replace("\\|", "/");
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let [recording, case, rest @ ..] = &cells[..] else { panic!("no row: {line}") };
        if *recording == "Recording" || recording.is_empty() {
            continue;
        }
        assert!(case.len() > 2 && case.starts_with('`') && case.ends_with('`'), "no case in backquotes: {line}");
        assert!(!rest.is_empty() && rest.iter().all(|cell| !cell.is_empty()), "an empty cell: {line}");
        assert!(rows.insert((recording.to_string(), case.to_string())), "twice: {line}");
        recordings.insert(recording.to_string());
    }
    assert!(recordings.len() >= 10, "{recordings:?}");
    for recording in recordings {
        let check = format!("compatibility::check(\"{recording}\"");
        assert!(sources.iter().any(|text| text.contains(&check)), "no test holds {recording}");
    }
}
