//! See `ARCHITECTURE.md`.
pub mod crypto;
pub mod identity;
pub mod profile;
pub mod stream;
