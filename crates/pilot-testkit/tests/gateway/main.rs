//! The gateway: raw clients in one process, and the real curl and chromium against real processes.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // plays TCP programs, drives real ones

mod control;
mod doors;
mod programs;
mod web;

use std::time::Duration;

/// Longest wait for anything; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for `work`, but not for ever.
async fn patient<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for: {what}"))
}
