//! Built-in services between nodes: ours among themselves, and with official daemons of every generation.
#![allow(clippy::disallowed_methods)] // the tests prepare and look at files of the daemons' homes

mod events;
mod mail;
mod names;
mod networks;
mod secure;
mod signing;
mod tasks;
mod with_official;

use std::time::Duration;

/// Long enough for the slowest official path (one heartbeat of 65 s); a run that works takes a few seconds.
const TRUST_LIMIT: Duration = Duration::from_secs(75);
