//! libpilot as programs in other languages use it: the built library, loaded by C and by Python, with the official vectors,
//! the official SDKs and our daemons.
#![allow(clippy::disallowed_methods)] // prepares homes and runs programs

mod c;
mod official;
mod scripts;
mod symbols;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::{Unavailable, need_program};
use pilot_testkit::programs::{RendezvousProcess, library, ours};
use serde_json::{Value, json};

/// Long enough for a busy machine.
const TRUST_LIMIT: Duration = Duration::from_secs(75);

/// A file of this crate.
fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn need_python() -> Result<(), Unavailable> {
    need_program("python3", "--version")
}

/// Two daemons that trust each other, and what they hang on.
struct Pair {
    rendezvous: RendezvousProcess,
    alice: Agent,
    bob: Agent,
}

impl Pair {
    fn start() -> Self {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let start = |name: &str| {
            let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
            Agent::start(&ours(), &options).expect("daemon")
        };
        let (alice, bob) = (start("alice"), start("bob"));
        make_trust(&alice, &bob, TRUST_LIMIT).expect("trust");
        Self { rendezvous, alice, bob }
    }
}

/// Settings of a daemon inside the program, at the pair's rendezvous, which trusts whoever asks.
fn embedded_settings(pair: &Pair, place: &Path) -> Value {
    json!({
        "data_dir": place.join("data"),
        "socket_path": place.join("embedded.sock"),
        "registry_addr": pair.rendezvous.registry().to_string(),
        "beacon_addr": pair.rendezvous.beacon().to_string(),
        "trust_auto_approve": true,
    })
}

/// A script of this crate, with our library, in a home of its own.
fn python(script: &str, home: &Path) -> Command {
    with_interpreter(Path::new("python3"), script, home)
}

/// The same with another interpreter.
fn with_interpreter(interpreter: &Path, script: &str, home: &Path) -> Command {
    let mut command = Command::new(interpreter);
    command.args(["-X", "faulthandler", "-B"]).arg(file("tests/scripts").join(script));
    command.env("PILOT_LIB_PATH", library()).env("PILOT_HEADER", file("include/pilot.h"));
    // Nobody's daemon is found by accident.
    command.env("HOME", home).env("XDG_RUNTIME_DIR", home).env_remove("PILOT_SOCKET");
    command
}

/// Runs a program to its end; what it has said, both ways.
fn succeeds(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    println!("{text}");
    text
}
