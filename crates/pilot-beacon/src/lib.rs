//! The beacon: tells nodes their public endpoint, introduces them to each other for hole punching, and relays frames
//! where nothing else works (specification 01 §15 to §18, 07 §8).
//!
//! [`Beacon`] is the protocol without sockets, [`BeaconServer`] runs it on one UDP socket. What was decided where the
//! specification is silent is written in `docs/spec/registry.md`.

mod beacon;
pub mod limits;
mod server;

pub use beacon::{Batch, Beacon, BeaconConfig, Counters, NoWitness, Outbox, Witness};
pub use server::{BeaconHandle, BeaconServer};
