//! The local socket of a node, with programs that speak frames by hand.

#[path = "../common/mod.rs"]
mod common;

mod ext_client;
mod extension;
mod extension_calls;
mod newer;
mod placement;
mod server;
mod services;
mod vectors;
