//! Data exchange (port 1001): messages and files between agents (05 §5, 07 §11.2, docs/spec/messages.md).
//!
//! ```text
//! frames     frames over a stream, with limits on time and memory
//! server     one stream of a peer: stores what comes and acknowledges it
//! inbox      messages on disk; seen: which ids have been stored
//! received   files on disk; names: how they are called; tree: directories in one run of bytes
//! transfer   chunked transfers, the receiving side
//! hook       the operator's program that is run on arrival
//! client     sending a message; send_file: sending a file
//! outbox     messages that wait until they can be delivered
//! local      what programs on this host may ask
//! ```
//!
//! An acknowledgement leaves after the message is on disk, synced.

mod client;
mod frames;
mod hook;
mod inbox;
mod local;
mod names;
mod outbox;
mod received;
mod seen;
mod send_file;
mod server;
mod source;
mod transfer;
mod tree;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pilot_wire::service::dataexchange::file::MAX_CHUNK;
use pilot_wire::service::dataexchange::ours::Capabilities;
use pilot_wire::service::dataexchange::record::InboxFormat;
pub use pilot_wire::service::dataexchange::{MAX_BODY, MessageType, PORT};

pub use client::{Client, Delivery, MessageToSend, Peer, SendError, Trace};
pub use names::{base as safe_base_name, stored as stored_name};
pub use send_file::{FileDelivery, FileToSend, Progress, hash, send_file};
pub use source::Source;
pub use tree::{Node as TreeNode, Packed};

use crate::{CallError, Context, Host, LocalMethods, Offer, Service, Serving, Stream, Work};
use hook::Hook;
use inbox::{Inbox, StoreError};
use outbox::Outbox;
use received::Received;

/// Disk space that is always left free, in bytes (07 §11.2).
pub const FREE_DISK: u64 = 16 << 20;

/// How much a node keeps for its applications. What does not fit is refused; what was accepted is never deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Messages in the inbox. Default 10,000. One sender may have half of them.
    pub inbox_messages: u64,
    /// Bytes of all messages in the inbox as they are on disk. Default 256 MiB. One sender may have half of them.
    pub inbox_bytes: u64,
    /// Bytes of all received files, those on their way included. Default 16 GiB.
    pub received_bytes: u64,
    /// Messages in the outbox. Default 10,000. For one peer at most half of them.
    pub outbox_messages: u64,
    /// Bytes in the outbox. Default 4 GiB.
    pub outbox_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            inbox_messages: 10_000,
            inbox_bytes: 256 << 20,
            received_bytes: 16 << 30,
            outbox_messages: 10_000,
            outbox_bytes: 4 << 30,
        }
    }
}

impl Limits {
    /// Whether one more message of `bytes` fits: usage of all senders, and of this one.
    fn check_inbox(&self, all: (u64, u64), one: (u64, u64), bytes: u64) -> Result<(), StoreError> {
        let checks = [
            (all.0, 1, self.inbox_messages, "messages", ""),
            (all.1, bytes, self.inbox_bytes, "bytes", ""),
            (one.0, 1, self.inbox_messages.div_ceil(2), "messages", " for this sender"),
            (one.1, bytes, self.inbox_bytes.div_ceil(2), "bytes", " for this sender"),
        ];
        match checks.into_iter().find(|(used, more, limit, ..)| used.saturating_add(*more) > *limit) {
            Some((used, _, limit, unit, share)) => Err(StoreError::Full { used, limit, unit, share }),
            None => Ok(()),
        }
    }
}

/// The service, to be opened by a node. The default is what daemons serve unless told otherwise.
#[derive(Debug, Clone, Default)]
pub struct DataExchange {
    /// How messages are written. Default: as the public documentation has it.
    pub inbox_format: InboxFormat,
    /// A program that is run for each message that arrives. Default none.
    pub inbox_hook: Option<PathBuf>,
    /// How much is kept.
    pub limits: Limits,
}

impl Offer for DataExchange {
    fn name(&self) -> &'static str {
        "dataexchange"
    }

    fn open(&self, host: &Host) -> Result<Arc<dyn Service>, CallError> {
        let rooms = match &host.dir {
            None => None,
            Some(dir) => {
                let failed = |what: &str, error: std::io::Error| {
                    CallError::new("storage", format!("cannot open the {what} in {}: {error}", dir.display()))
                        .hint("check that this user may read and write the directory and what is in it")
                };
                let hook = self.inbox_hook.as_deref().map(|program| Hook::new(&host.env, program));
                Some(Rooms {
                    inbox: Inbox::open(host, dir, self.inbox_format, self.limits, hook)
                        .map_err(|error| failed("inbox", error))?,
                    received: Received::open(host, dir, self.limits)
                        .map_err(|error| failed("received files", error))?,
                    outbox: Outbox::open(host, dir, self.limits).map_err(|error| failed("outbox", error))?,
                })
            }
        };
        Ok(Arc::new(Open(Arc::new(Shared { host: host.clone(), rooms, budget: frames::Budget::default() }))))
    }
}

/// What is kept on disk.
struct Rooms {
    inbox: Inbox,
    received: Received,
    outbox: Outbox,
}

struct Shared {
    host: Host,
    rooms: Option<Rooms>,
    budget: frames::Budget,
}

/// What we tell our own kind about ourselves.
fn capabilities() -> Capabilities {
    Capabilities { receipts: true, transfers: true, trees: true, max_body: MAX_BODY, max_chunk: MAX_CHUNK }
}

/// The service of one node.
struct Open(Arc<Shared>);

impl Service for Open {
    fn name(&self) -> &'static str {
        "dataexchange"
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn serve(&self, stream: Box<dyn Stream>, context: Context) -> Serving {
        Box::pin(server::serve(self.0.clone(), stream, context.remote.addr))
    }

    fn work(&self) -> Option<Work> {
        let shared = self.0.clone();
        Some(Box::pin(async move {
            let Some(rooms) = &shared.rooms else { return };
            let sweep = async {
                loop {
                    shared.host.env.sleep(Duration::from_secs(24 * 3600)).await;
                    let received = rooms.received.clone();
                    if let Ok(Err(error)) = tokio::task::spawn_blocking(move || received.sweep(false)).await {
                        tracing::warn!(%error, "cannot clear old partial files away");
                    }
                }
            };
            tokio::join!(sweep, rooms.outbox.work());
        }))
    }

    fn local(&self) -> Option<Arc<dyn LocalMethods>> {
        Some(Arc::new(local::Methods(self.0.clone())))
    }
}

/// Lower-case hex.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// A fresh message id: 32 hex digits.
pub fn new_id(env: &pilot_env::Env) -> String {
    let mut bytes = [0; 16];
    env.fill_random(&mut bytes);
    hex(&bytes)
}

#[cfg(test)]
mod tests;
