//! The registry: the directory of nodes, with its rules, its store and its server (specification 04, 07 §9).
//!
//! [`domain`] holds the rules as functions over the tables of one transaction; [`Store`] is what the server asks of a
//! store, one domain command per method; [`RedbStore`] is the store in one file. What was decided where the
//! specification is silent is written in `docs/spec/registry.md`.

pub mod domain;
pub mod error;
pub mod import;
mod limiter;
pub mod limits;
pub mod model;
mod once;
mod redb_store;
pub mod rules;
pub mod server;
mod service;
pub mod store;
pub mod tables;

pub use error::{Fault, OpenError, Refusal};
pub use limiter::{Bucket, Limiter, Rate};
pub use redb_store::{FORMAT, RedbStore};
pub use server::{RegistryServer, ServerConfig};
pub use service::{AdminToken, NetworkCreation, Notifier, Registry, RegistryConfig, Reply, Session};
pub use store::Store;
