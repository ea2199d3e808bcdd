//! The Pilot node: the runtime around the protocol core, as a library. The program `pilot-daemon` is [`daemon::main`].
//!
//! ```text
//! engine     the core behind one lock, one UDP socket, one timer; streams and listeners
//! directory  the registry connection
//! trust      who trusts whom: port 444, the relay, the gate, the file
//! events     what happened, for webhooks and for programs that follow it
//! hosting    services: what they may ask of the node, and the methods they offer to local programs
//! node       all of it joined, and the life at the registry
//! local      the socket through which programs on this host use the daemon
//! webhook    posts events to a URL of the operator
//! store      what is kept on disk
//! daemon     the program: flags, logs, signals
//! ```

#[cfg(test)]
#[path = "../../pilot-testkit/tests/support/compatibility.rs"]
mod compatibility;
pub mod config;
pub mod daemon;
mod directory;
mod engine;
mod error;
mod events;
mod hosting;
mod local;
mod node;
mod store;
mod trust;
mod webhook;

pub use config::NodeConfig;
pub use directory::DirectoryError;
pub use engine::{DialFailed, NodeDatagram, NodeDatagrams, NodeListener, NodeStream};
pub use error::NodeError;
pub use events::{EventStream, MissedEvents, NodeEvent};
pub use node::{Check, Monitor, Node, Readiness, SHUTDOWN_DEADLINE};
pub use pilot_proto::endpoint::HalfClose;
pub use trust::{TrustFailed, TrustService};
pub use webhook::WebhookTarget;

/// Version of this program, as registry and peers see it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
