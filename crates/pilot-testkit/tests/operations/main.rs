//! What an operator relies on, with real processes: health and metrics, logs, the service manager, orderly ends and new
//! beginnings, and taking over what an official daemon has left.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // drives real programs from outside

mod lifecycle;
mod logs;
mod monitoring;
mod packaging;
mod placement;
mod service_manager;
mod takeover;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use pilot_testkit::agent::{Agent, AgentOptions};
use pilot_testkit::programs::{RendezvousProcess, ours};

/// Longest wait for anything; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(90);

fn options(rendezvous: &RendezvousProcess, name: &str) -> AgentOptions {
    AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name)
}

fn start(rendezvous: &RendezvousProcess, name: &str, flags: &[&str]) -> Agent {
    let options = flags.iter().fold(options(rendezvous, name), |options, flag| options.flag(flag));
    Agent::start(&ours(), &options).expect("our daemon")
}

/// Waits until `test` gives something.
fn eventually<T>(what: &str, mut test: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = test() {
            return found;
        }
        assert!(Instant::now() < deadline, "waited {PATIENCE:?} for: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("runtime")
}
