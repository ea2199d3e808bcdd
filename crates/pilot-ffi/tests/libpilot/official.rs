//! The official Python SDKs, unmodified, over our library and our daemons.

use pilot_testkit::isolate::isolated;
use pilot_testkit::official::{NEWEST, Official, need_all};
use pilot_testkit::programs::need_programs;
use serde_json::json;

use crate::{Pair, file, python, succeeds};

fn run(name: &str, version: &str) {
    isolated(name, &[need_programs, need_all], || {
        let pair = Pair::start();
        let sdk = Official::obtain(version).expect("release").sdk();
        let home = tempfile::tempdir().expect("home");
        let embedded = json!({
            "data_dir": home.path().join("data"),
            "socket_path": home.path().join("embedded.sock"),
            "registry_addr": pair.rendezvous.registry().to_string(),
            "beacon_addr": pair.rendezvous.beacon().to_string(),
        });
        let mut script = python("official_sdk.py", home.path());
        script.arg(sdk).arg(version).arg(file("tests/vectors/cli-sdk-python.json"));
        script.args([pair.alice.socket(), pair.bob.socket()]).arg(embedded.to_string());
        script.arg(file("tests/vectors/cli-libpilot-embedded.json"));
        succeeds(&mut script);
    });
}

#[test]
fn the_newest_python_sdk_runs_unmodified() {
    run("official::the_newest_python_sdk_runs_unmodified", NEWEST);
}

#[test]
fn the_first_python_sdk_runs_unmodified() {
    run("official::the_first_python_sdk_runs_unmodified", "0.1.2");
}
