//! What Python shows with the library alone, and with one daemon.

use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::need_programs;

use crate::{Pair, embedded_settings, file, need_python, python, succeeds};

fn vectors(name: &str, recording: &str) {
    isolated(name, &[need_python, need_programs], || {
        let home = tempfile::tempdir().expect("home");
        succeeds(python("vectors.py", home.path()).arg(file(recording)).arg(home.path()));
    });
}

#[test]
fn calls_are_those_of_the_first_official_library() {
    vectors("scripts::calls_are_those_of_the_first_official_library", "tests/vectors/cli-libpilot-0.1.2.json");
}

#[test]
fn calls_are_those_of_the_newest_official_library() {
    vectors("scripts::calls_are_those_of_the_newest_official_library", "tests/vectors/cli-libpilot-1.18.0.json");
}

#[test]
fn every_call_that_waits_is_woken_when_the_daemon_is_killed() {
    isolated(
        "scripts::every_call_that_waits_is_woken_when_the_daemon_is_killed",
        &[need_python, need_programs],
        || {
            let pair = Pair::start();
            let home = tempfile::tempdir().expect("home");
            let mut script = python("gone.py", home.path());
            script.arg(pair.alice.socket()).args([&pair.alice.pid().to_string(), pair.bob.address()]);
            succeeds(&mut script);
        },
    );
}

/// `PILOT_FFI_CYCLES` asks for another number than these few: 10,000 take about a minute.
#[test]
fn opening_and_closing_leaves_nothing_behind() {
    isolated("scripts::opening_and_closing_leaves_nothing_behind", &[need_python, need_programs], || {
        let cycles = std::env::var("PILOT_FFI_CYCLES").unwrap_or_else(|_| "300".to_owned());
        let pair = Pair::start();
        let home = tempfile::tempdir().expect("home");
        let mut script = python("cycles.py", home.path());
        script.arg(pair.alice.socket()).args([&pair.alice.pid().to_string(), pair.bob.address(), &cycles]);
        succeeds(&mut script);
    });
}

#[test]
fn a_child_shares_nothing_with_its_parent_and_a_close_waits_once() {
    isolated(
        "scripts::a_child_shares_nothing_with_its_parent_and_a_close_waits_once",
        &[need_python, need_programs],
        || {
            let pair = Pair::start();
            let home = tempfile::tempdir().expect("home");
            let embedded = embedded_settings(&pair, home.path());
            let mut script = python("processes.py", home.path());
            script.arg(pair.alice.socket()).args([pair.alice.pid().to_string(), embedded.to_string()]);
            succeeds(&mut script);
        },
    );
}
