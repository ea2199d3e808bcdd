//! Event stream (port 1002): every node is a broker of events by topic (05 §6, docs/spec/events.md).
//!
//! Clients of every version subscribe with their first frame and publish with each later one. Between our own peers a
//! subscriber can have what it missed, retained values and patterns, and a publisher learns that its events are stored.
//! A slow subscriber delays nobody: what does not fit into its queue is dropped, oldest first, and counted.

mod broker;
mod client;
mod log;
mod pattern;
mod ring;
mod serve;
#[cfg(test)]
mod tests;

use std::sync::Arc;

pub use broker::{QUEUE_BYTES, QUEUE_EVENTS, SUBSCRIPTIONS_PER_NODE};
pub use client::{Delivery, EventsError, Item, Publisher, Received, SubscribeOptions, Subscriber};
pub use pattern::{BadPattern, Pattern};
pub use ring::{RETAINED_BYTES, RETAINED_TOPICS, RING_BYTES, RING_EVENTS};

use crate::{CallError, Context, Host, Offer, Service, Serving, Stream, Work};

/// The port.
pub const PORT: u16 = 1002;
/// Name in logs and flags.
const NAME: &str = "eventstream";
/// Directory below that of the node.
const DIRECTORY: &str = "events";

/// Offers the event stream.
#[derive(Debug, Clone, Copy, Default)]
pub struct EventStream;

impl Offer for EventStream {
    fn name(&self) -> &'static str {
        NAME
    }

    fn open(&self, host: &Host) -> Result<Arc<dyn Service>, CallError> {
        let dir = host.dir.as_ref().map(|dir| dir.join(DIRECTORY));
        let broker = broker::Broker::open(host.env.clone(), dir.as_deref()).map_err(|error| {
            let place = dir.as_deref().unwrap_or(std::path::Path::new("memory")).display();
            CallError::new("events_unusable", format!("the kept events in {place} cannot be read: {error}"))
                .hint("make the directory writable, or move it away to begin without the kept events")
        })?;
        Ok(Arc::new(Serve { host: host.clone(), broker }))
    }
}

struct Serve {
    host: Host,
    broker: Arc<broker::Broker>,
}

impl Service for Serve {
    fn name(&self) -> &'static str {
        NAME
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn serve(&self, stream: Box<dyn Stream>, context: Context) -> Serving {
        Box::pin(serve::serve(stream, context, self.host.clone(), self.broker.clone()))
    }

    fn work(&self) -> Option<Work> {
        Some(Box::pin(self.broker.clone().write()))
    }
}
