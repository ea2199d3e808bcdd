//! What the conductor and its clients say to each other: values for clients that are tasks, lines of JSON for clients
//! that are processes.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// Everything a client needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// Which client.
    pub(super) client: usize,
    /// Seed of its choices.
    pub(super) seed: u64,
    /// Which daemon it uses.
    pub(super) daemon: usize,
    /// That daemon's local socket.
    pub(super) socket: PathBuf,
    /// The port it listens on.
    pub(super) port: u16,
    /// Node ids of all daemons that trust each other.
    pub(super) nodes: Vec<u32>,
    /// A node that trusts nobody.
    pub(super) stranger: u32,
    /// Where all clients listen.
    pub(super) services: Vec<ServiceAt>,
    /// Factor of the pauses between operations.
    pub(super) pace: f64,
}

/// Where a client listens.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct ServiceAt {
    /// Which client.
    pub(super) client: usize,
    /// On which daemon.
    pub(super) daemon: usize,
    /// Its port.
    pub(super) port: u16,
}

/// Conductor to client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// End the operation under way, keep idle streams, begin nothing new.
    Pause,
    /// Say which streams are held; the number comes back with the answer.
    Hold(u64),
    /// Go on.
    Resume,
    /// Factor of the pauses between operations.
    Pace(f64),
    /// Close everything and end.
    Stop,
}

/// Client to conductor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Report {
    /// An operation ended.
    Done(Done),
    /// The client's own service is not there, from this time on (milliseconds of the clock all share).
    Away(u64),
    /// It is there again.
    Back(u64),
    /// Bytes that are not the ones sent, or another rule that no disturbance excuses.
    Wrong(String),
    /// Datagrams received, all of them as sent.
    Datagrams(u64),
    /// The streams it holds now, by the daemon's numbers.
    Held {
        /// The number in the order.
        round: u64,
        /// Streams.
        streams: Vec<u32>,
        /// Whether its own service is there; one that was just reconnecting when told to pause has none.
        listens: bool,
    },
    /// Everything is closed.
    Stopped,
}

/// How an operation went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Done {
    /// What it was.
    pub(super) what: String,
    /// When it began.
    pub(super) start: u64,
    /// When it ended.
    pub(super) end: u64,
    /// The daemon at the other end.
    pub(super) daemon: usize,
    /// The client at the other end, if it was not a built-in service.
    pub(super) client: Option<usize>,
    /// Streams opened.
    pub(super) dials: u64,
    /// Payload bytes written.
    pub(super) sent: u64,
    /// Payload bytes read and compared.
    pub(super) received: u64,
    /// Why it failed.
    pub(super) failure: Option<String>,
}

/// Milliseconds of a clock that every process on this machine shares.
pub(super) fn millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX))
}
