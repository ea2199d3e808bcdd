//! The gateway: raw clients in one process, and the real curl and chromium against real processes.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // plays TCP programs, drives real ones

mod control;
mod doors;
mod programs;
mod web;

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Longest wait for anything; far more than it takes.
const PATIENCE: Duration = Duration::from_secs(90);

/// Waits for `work`, but not for ever.
async fn patient<T>(what: &str, work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("waited {PATIENCE:?} for: {what}"))
}

/// Sixteen addresses of this host for one gateway, as a subnet and one by one: tests run beside each other.
struct Addresses(u32);

impl Addresses {
    fn new() -> Self {
        static TAKEN: AtomicU32 = AtomicU32::new(0);
        let (process, number) = (std::process::id(), TAKEN.fetch_add(1, Ordering::Relaxed) % 16);
        // 127.16.0.0 to 127.239.255.255, 256 for each process.
        Self(u32::from(Ipv4Addr::new(127, 16, 0, 0)) + (process % (224 << 8)) * 256 % (224 << 16) + number * 16)
    }

    fn at(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(self.0 + offset)
    }

    fn subnet(&self) -> String {
        format!("{}/28", self.at(0))
    }
}
