//! What happened at the node, for webhooks and for local programs that follow it (05 §10.3).
//!
//! One bounded ring serves all who listen. Nobody who reports ever waits; who is too slow misses the oldest events and is
//! told how many.

pub(crate) mod reports;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pilot_env::Env;
use pilot_services::Events;
use serde_json::{Map, Value};
use tokio::sync::broadcast;

/// Events kept for those who listen. The slowest of them misses the oldest beyond that.
const RING: usize = 4096;

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeEvent {
    /// Position in the sequence of this run of the node, from 1. Nothing is counted while nobody listens.
    pub number: u64,
    /// When, since the Unix epoch.
    pub time: Duration,
    /// Name (`message.received`).
    pub name: &'static str,
    /// Particulars; empty for events that have none.
    pub data: Map<String, Value>,
}

/// How many events somebody who listens was too slow for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} events were missed")]
pub struct MissedEvents(pub u64);

/// Takes reports and hands them to all who listen.
pub(crate) struct EventBus {
    env: Env,
    sender: broadcast::Sender<Arc<NodeEvent>>,
    reported: AtomicU64,
}

impl EventBus {
    pub(crate) fn new(env: Env) -> Self {
        Self { env, sender: broadcast::Sender::new(RING), reported: AtomicU64::new(0) }
    }

    /// Whether anybody listens. Who reports often asks first, and saves the work otherwise.
    pub(crate) fn is_heard(&self) -> bool {
        self.sender.receiver_count() > 0
    }

    pub(crate) fn subscribe(&self) -> EventStream {
        EventStream(self.sender.subscribe())
    }
}

impl Events for EventBus {
    fn emit(&self, name: &'static str, data: Map<String, Value>) {
        if !self.is_heard() {
            return;
        }
        let number = self.reported.fetch_add(1, Ordering::Relaxed) + 1;
        let event = NodeEvent { number, time: self.env.unix(), name, data };
        // Nobody listening is no error.
        let _ = self.sender.send(Arc::new(event));
    }
}

/// Events from the moment of subscription on.
#[derive(Debug)]
pub struct EventStream(broadcast::Receiver<Arc<NodeEvent>>);

impl EventStream {
    /// Waits for the next event; `None` when the node has gone. Cancel safe.
    ///
    /// # Errors
    /// [`MissedEvents`] once for each gap; the next call goes on behind it.
    pub async fn next(&mut self) -> Result<Option<Arc<NodeEvent>>, MissedEvents> {
        match self.0.recv().await {
            Ok(event) => Ok(Some(event)),
            Err(broadcast::error::RecvError::Closed) => Ok(None),
            Err(broadcast::error::RecvError::Lagged(missed)) => Err(MissedEvents(missed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_listener_is_told_what_it_missed_and_delays_nobody() {
        let bus = EventBus::new(Env::real());
        let mut slow = bus.subscribe();
        for _ in 0..RING + 5 {
            bus.emit("test", Map::new());
        }
        assert_eq!(slow.next().await, Err(MissedEvents(5)));
        let next = slow.next().await.unwrap().unwrap();
        assert_eq!((next.number, next.name), (6, "test"));
        drop(bus);
        for _ in 0..RING - 1 {
            assert!(slow.next().await.unwrap().is_some());
        }
        assert_eq!(slow.next().await, Ok(None));
    }
}
