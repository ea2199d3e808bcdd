//! See `ARCHITECTURE.md`.
pub mod crypto;
pub mod identity;
