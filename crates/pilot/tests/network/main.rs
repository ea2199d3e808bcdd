//! The SDK on whole networks: our rendezvous and nodes on loopback sockets.

use std::time::Duration;

mod over_http;
mod restart;
mod streams;

#[path = "../../examples/http.rs"]
mod http;

/// Waits for `work`, but not for ever.
async fn patient<T>(what: &str, work: impl Future<Output = T>) -> T {
    let limit = Duration::from_secs(180);
    tokio::time::timeout(limit, work).await.unwrap_or_else(|_| panic!("waited {limit:?} for: {what}"))
}
