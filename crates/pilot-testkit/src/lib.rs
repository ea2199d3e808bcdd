//! Networks to test Pilot on, and the peers that are not ours. See `ARCHITECTURE.md`.

pub mod isolate;
pub mod lab;
pub mod official;
pub mod scheme_a;
