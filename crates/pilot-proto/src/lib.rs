//! See `ARCHITECTURE.md`.
#[cfg(test)]
#[path = "../../pilot-testkit/tests/support/compatibility.rs"]
mod compatibility;
pub mod crypto;
pub mod directory;
pub mod endpoint;
pub mod identity;
pub mod path;
pub mod profile;
pub mod stream;
pub mod trust;
pub mod tunnel;
