//! A soak of the whole stack: a rendezvous, daemons and clients, all real processes (most clients are tasks), work for
//! minutes or hours while processes of every kind are killed and restarted, and nothing may leak, hang or differ by a
//! byte.
//!
//! | File | Holds |
//! |---|---|
//! | `conductor` | the run: what is killed when, what is checked |
//! | `network`, `process` | daemons and the rendezvous as processes |
//! | `seat`, `plan` | clients as tasks or processes, and what is said to them |
//! | `client`, `tasks`, `talk` | what a client does, and the bytes it says |
//! | `ledger` | failures, and the disturbances that excuse them |
//! | `balance` | streams as daemons list them against streams that clients hold |
//! | `figures` | memory, descriptors, processor time |
//!
//! The rules of the game: bytes that differ, a stream that one side has forgotten and the other has not, a port or a
//! descriptor that outlives its client, memory that grows, a process that ends by itself are failures whatever happens.
//! An operation may fail only if one of the two daemons in it, or the client it was with, was killed at about the time.
//! A restart of the rendezvous excuses nothing.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // this module drives real programs

mod balance;
mod client;
mod conductor;
mod figures;
mod ledger;
mod network;
mod plan;
mod process;
mod seat;
mod talk;
mod tasks;

use std::path::Path;
use std::time::Duration;

pub use client::process as client_process;
pub use conductor::run;

/// What to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How long the clients work.
    pub duration: Duration,
    /// Time between two checks, for which everybody pauses.
    pub check: Duration,
    /// Seed of every choice. Timing is real, so a seed repeats the choices and not the run.
    pub seed: u64,
    /// Daemons that trust each other; two of them are never killed. At most 100.
    pub daemons: usize,
    /// Clients.
    pub clients: usize,
    /// How many of the clients are processes.
    pub processes: usize,
    /// Processor load to aim at, in cores.
    pub cores: f64,
}

impl Options {
    /// The part of the run after which memory should not grow any more.
    fn warm_up(&self) -> Duration {
        (self.duration / 3).min(Duration::from_secs(600))
    }
}

/// How it went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Figures for people.
    pub summary: String,
    /// What must not have happened.
    pub violations: Vec<String>,
}

/// Raises the limit on descriptors: the clients have a socket for each stream.
pub fn raise_descriptor_limit() -> std::io::Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?)
}

/// A directory for the run that is removed when all went well, and kept for a look when not.
pub fn with_directory<T>(work: impl FnOnce(&Path) -> anyhow::Result<(bool, T)>) -> anyhow::Result<T> {
    let directory = tempfile::Builder::new().prefix("pilot-soak-").tempdir()?;
    match work(directory.path()) {
        Ok((true, result)) => Ok(result),
        other => {
            println!("homes and logs are left in {}", directory.keep().display());
            other.map(|(_, result)| result)
        }
    }
}
