//! Holds `docs/weaknesses.md` to the list of all rows of the specification's tables of weaknesses
//! (`weaknesses/rows.txt`: an id and a short title each), and to the tests in this repository.
#![allow(clippy::disallowed_methods)] // this module reads the repository

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// All rows, in their order.
const ROWS: &str = include_str!("weaknesses/rows.txt");
/// How the answer of a row begins that has no test because the weakness has no place here.
const NOWHERE: &str = "Cannot apply";

/// The rows of the list: id and title.
fn listed(rows: &str) -> Vec<(&str, &str)> {
    rows.lines().filter_map(|line| line.split_once(' ')).collect()
}

/// What is wrong with the page. `source` gives a file below `crates/`, if there is one.
fn faults(page: &str, rows: &str, source: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut faults = Vec::new();
    let listed = listed(rows);
    let titles: BTreeMap<&str, &str> = listed.iter().copied().collect();
    let mut seen = BTreeSet::new();
    for line in page.lines().filter(|line| line.starts_with("| ")) {
        // The first and the last bar have nothing outside.
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", id, title, answer, tests, ""] = cells[..] else {
            faults.push(format!("not four cells: {line}"));
            continue;
        };
        if id == "Row" {
            continue;
        }
        match titles.get(id) {
            None => faults.push(format!("{id} is not in the list of rows")),
            Some(expected) if *expected != title => faults.push(format!("{id} is called {title:?}, not {expected:?}")),
            Some(_) => {}
        }
        if !seen.insert(id) {
            faults.push(format!("{id} is there twice"));
        }
        if answer.is_empty() {
            faults.push(format!("{id} has no answer"));
        }
        if tests.is_empty() && !answer.starts_with(NOWHERE) {
            faults.push(format!("{id} names no test"));
        }
        for test in tests.split("<br>").map(str::trim).filter(|test| !test.is_empty()) {
            if let Err(fault) = exists(test, &source) {
                faults.push(format!("{id}: {fault}"));
            }
        }
    }
    for (id, title) in listed {
        if !seen.contains(id) {
            faults.push(format!("{id} ({title}) is not on the page"));
        }
    }
    faults
}

/// Whether `` `file::function` `` is a test that runs.
fn exists(test: &str, source: impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let name =
        test.strip_prefix('`').and_then(|t| t.strip_suffix('`')).ok_or(format!("{test} is not in backquotes"))?;
    let (file, function) = name.rsplit_once("::").ok_or(format!("{name} is not file::function"))?;
    let text = source(file).ok_or(format!("there is no file {file}"))?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let declares = |line: &str| {
        line.split_once("fn ").is_some_and(|(before, rest)| {
            let is_whole = |rest: &str| rest.starts_with(|c: char| !c.is_alphanumeric() && c != '_');
            ["", "async "].contains(&before) && rest.strip_prefix(function).is_some_and(is_whole)
        })
    };
    let at = lines.iter().position(|line| declares(line)).ok_or(format!("{file} has no function {function}"))?;
    // The attributes and comments right above.
    let above = lines[..at].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let above: Vec<&str> = above.copied().filter(|line| line.starts_with("#[")).collect();
    if !above.iter().any(|line| line.starts_with("#[test") || line.starts_with("#[tokio::test")) {
        return Err(format!("{name} is not a test"));
    }
    if above.iter().any(|line| line.starts_with("#[ignore")) {
        return Err(format!("{name} is ignored"));
    }
    Ok(())
}

#[test]
fn every_weakness_of_the_reference_is_answered_by_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/weaknesses.md")).expect("docs/weaknesses.md");
    let faults = faults(&page, ROWS, |file| std::fs::read_to_string(root.join("crates").join(file)).ok());
    assert!(faults.is_empty(), "docs/weaknesses.md:\n{}", faults.join("\n"));
}

#[test]
fn the_list_names_each_row_once() {
    let listed = listed(ROWS);
    assert_eq!(listed.len(), ROWS.lines().count());
    let ids: BTreeSet<&str> = listed.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids.len(), listed.len());
    // The tables' lengths: 01 §25, 02 §29, 03 §16, 05 §15, 06 §24, and 07 §16 with §18.
    for (part, rows) in [("01-W", 37), ("02-", 39), ("03-", 22), ("05-", 54), ("06-", 38), ("07-", 58 + 23)] {
        assert_eq!(ids.iter().filter(|id| id.starts_with(part)).count(), rows, "{part}");
    }
}

#[test]
fn a_page_with_a_fault_is_refused() {
    const ROWS: &str = "01-W1 First\n01-W2 Second\n";
    let good = "| Row | Weakness | Our answer | Test |\n|---|---|---|---|\n\
                | 01-W1 | First | it is so | `a/b.rs::shown`<br>`a/b.rs::waits` |\n\
                | 01-W2 | Second | Cannot apply: there is none. | |\n";
    let source = |file: &str| {
        let text = "#[test]\n// why\nfn shown() {\n#[tokio::test(flavor = \"x\")]\nasync fn waits() {\nfn helper() {\n\
                    #[test]\n#[ignore]\nfn sleeps() {\n";
        (file == "a/b.rs").then(|| text.to_owned())
    };
    assert_eq!(faults(good, ROWS, source), Vec::<String>::new());
    for (from, to, fault) in [
        ("| 01-W2 | Second | Cannot apply: there is none. | |\n", "", "01-W2 (Second) is not on the page"),
        ("First", "Frist", "is called \"Frist\""),
        ("| 01-W2 |", "| 01-W1 |", "there twice"),
        ("| 01-W2 |", "| 01-W9 |", "not in the list"),
        ("Cannot apply: there is none.", "we think not", "names no test"),
        ("::shown", "::show", "has no function show"),
        ("::shown", "::shown_not", "has no function shown_not"),
        ("::shown", "::helper", "is not a test"),
        ("::shown", "::sleeps", "is ignored"),
        ("a/b.rs::shown", "a/c.rs::shown", "there is no file a/c.rs"),
        ("it is so", "", "has no answer"),
        ("| it is so ", "", "not four cells"),
    ] {
        let bad = good.replacen(from, to, 1);
        assert_ne!(bad, good, "{from}");
        let found = faults(&bad, ROWS, source);
        assert!(found.iter().any(|f| f.contains(fault)), "{fault}: {found:?}");
    }
}
