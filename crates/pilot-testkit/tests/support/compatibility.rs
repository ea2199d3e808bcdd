//! The table of `docs/compatibility.md`, for the tests of golden vectors in every crate: what they let differ from the
//! official programs must stand there, and nothing else may.

use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../../../docs/compatibility.md");

/// The cases in which, says the page, the answer to a vector differs.
fn listed(vector: &str) -> BTreeSet<String> {
    let rows = PAGE.lines().filter_map(|line| line.strip_prefix(&format!("| {vector} | `")));
    rows.map(|rest| rest.split_once("` |").expect("a case in backquotes").0.to_owned()).collect()
}

/// Holds the page to what a test lets differ.
///
/// # Panics
/// When one names a case that the other does not.
pub(crate) fn check(vector: &str, allowed: impl IntoIterator<Item = impl Into<String>>) {
    let allowed: BTreeSet<String> = allowed.into_iter().map(Into::into).collect();
    let listed = listed(vector);
    let missing: Vec<_> = allowed.difference(&listed).collect();
    let stale: Vec<_> = listed.difference(&allowed).collect();
    assert!(
        missing.is_empty() && stale.is_empty(),
        "docs/compatibility.md and the test of {vector} do not agree: not on the page {missing:?}, only there {stale:?}"
    );
}
