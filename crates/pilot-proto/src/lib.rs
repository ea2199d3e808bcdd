//! See `ARCHITECTURE.md`.
pub mod crypto;
pub mod endpoint;
pub mod identity;
pub mod path;
pub mod profile;
pub mod stream;
pub mod tunnel;
