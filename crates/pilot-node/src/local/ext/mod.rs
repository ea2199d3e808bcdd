//! The extension of the local socket (`docs/spec/local-socket.md`, rules L1 to L43).
//!
//! | File | Holds |
//! |---|---|
//! | `state` | what is kept of one client: requests, streams, ports |
//! | `commands` | what each frame does |
//! | `datagrams` | datagrams to peers and to the members of a network |
//! | `owner` | what the protocol core tells: dials, accepted streams, events |
//! | `serve` | the data of one stream out, its credit in, its end |
//! | `pipe` | streams between a client and a service in this process |
//! | `methods`, `official`, `networks` | calls that every daemon has |

mod commands;
mod datagrams;
mod methods;
mod networks;
mod official;
mod owner;
mod pipe;
mod serve;
mod state;

pub(super) use commands::{Verdict, handle};
pub(crate) use methods::NodeMethods;
pub(super) use owner::dismiss;
pub(super) use serve::{depart, serve_ready};
pub(super) use state::Ext;
