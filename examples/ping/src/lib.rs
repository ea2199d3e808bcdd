//! The walk-through of `CONTRIBUTING.md`, built and tested: `ping` on port 1004.
//!
//! `ping.rs` is the service as it would stand in `crates/pilot-services/src/`, to the letter; `../pilotctl/ping1004.rs` is the
//! command as it would stand in `crates/pilotctl/src/commands/`. `main.rs` shows the other way: an application serves the
//! same service through a daemon that knows nothing of it.

pub mod ping;

// What `ping.rs` finds in `crate::` where it would stand.
pub use pilot_services::{Context, Service, Serving, Stream};
