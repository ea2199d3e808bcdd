//! Networks to test Pilot on, and the peers that are not ours. See `ARCHITECTURE.md`.

pub mod agent;
#[cfg(test)]
mod compatibility;
pub mod isolate;
pub mod lab;
pub mod official;
pub mod programs;
pub mod scheme_a;
pub mod sim;
pub mod soak;
pub mod testnet;
#[cfg(test)]
mod weaknesses;
