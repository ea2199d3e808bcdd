//! See `ARCHITECTURE.md`.
pub mod args;
