//! Networks to test Pilot on, and the peers that are not ours. See `ARCHITECTURE.md`.

pub mod scheme_a;
