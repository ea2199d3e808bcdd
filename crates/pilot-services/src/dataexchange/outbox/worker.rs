//! Sends what waits: for each peer one attempt at a time, in order, with backoff.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use pilot_wire::SocketAddress;
use pilot_wire::service::dataexchange::message::Tag;
use pilot_wire::service::dataexchange::ours::{Receipt, Transfer};
use pilot_wire::service::dataexchange::reply::Reply;
use pilot_wire::service::dataexchange::{PORT, RECEIPT, frame};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use super::super::client::{Client, MessageToSend, Peer, SendError};
use super::super::send_file::{Boxed, FileToSend, send_file};
use super::super::server::blocking;
use super::{Fate, Item, Kind, Meta, Outbox};

/// Peers that are tried at once.
const ACTIVE: usize = 64;
/// Wait after the first failure; doubled after each further one.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest wait between two attempts.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
/// Longest wait for a dial: the node gives up earlier by itself.
const DIAL_WAIT: Duration = Duration::from_secs(60);

/// How an item ended, or why not yet.
enum Attempt {
    Delivered { ack: Option<String>, tagged: bool },
    Failed(SendError),
}

impl Outbox {
    /// Sends what waits, for as long as it is polled.
    pub(crate) async fn work(&self) {
        let mut running: JoinSet<()> = JoinSet::new();
        loop {
            let woken = self.0.wake.notified();
            let next = self.start(&mut running);
            let sleep = async {
                match next {
                    Some(at) => self.0.host.env.sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = woken => {}
                () = sleep => {}
                Some(_) = running.join_next(), if !running.is_empty() => {}
            }
        }
    }

    /// Starts every attempt that is due; when there is more to do.
    fn start(&self, running: &mut JoinSet<()>) -> Option<Instant> {
        let now = self.0.host.env.now();
        let mut next: Option<Instant> = None;
        let mut sooner = |at: Instant| next = Some(next.map_or(at, |other| other.min(at)));
        let mut state = self.0.state.lock();
        state.queues.retain(|_, queue| queue.active || !queue.items.is_empty());
        for (node, queue) in state.queues.iter_mut().filter(|(_, queue)| !queue.active) {
            let due = queue.next.is_none_or(|at| at <= now);
            if due && running.len() < ACTIVE {
                queue.active = true;
                let (this, node) = (self.clone(), *node);
                running.spawn(async move {
                    let _active = Active(this.clone(), node);
                    this.deliver(node).await;
                });
                continue;
            }
            // One that is due and finds no place is looked at again when another has ended.
            if let Some(at) = queue.next.filter(|_| !due) {
                sooner(at);
            }
        }
        next
    }

    /// Sends to one peer until nothing waits for it, or until something fails.
    async fn deliver(&self, node: u32) {
        self.expire(node).await;
        let mut client: Option<Client<Boxed>> = None;
        loop {
            let due = {
                let state = self.0.state.lock();
                let queue = state.queues.get(&node);
                let now = self.0.host.env.now();
                queue
                    .filter(|queue| queue.next.is_none_or(|at| at <= now))
                    .and_then(|queue| queue.items.front().cloned())
            };
            let Some(item) = due else { break };
            item.attempts.fetch_add(1, Ordering::Relaxed);
            let attempt = self.attempt(&item, &mut client).await;
            item.sending.store(false, Ordering::Relaxed);
            match attempt {
                Attempt::Delivered { ack, tagged } => {
                    self.failed(node, None);
                    self.end(&item, Fate::Delivered, ack, None, tagged).await;
                }
                Attempt::Failed(error) if error.is_final() => {
                    client = None;
                    self.end(&item, Fate::Refused, error.ack().map(ToOwned::to_owned), Some(error.to_string()), false)
                        .await;
                }
                Attempt::Failed(error) => {
                    client = None;
                    self.failed(node, Some(error.to_string()));
                    self.changed(&item.meta.id);
                }
            }
        }
        if let Some(client) = client {
            let _ = client.into_inner().shutdown().await;
        }
    }

    /// Notes a failure and when to try again; or that there is none.
    fn failed(&self, node: u32, error: Option<String>) {
        let (now, unix, random) = (self.0.host.env.now(), self.0.host.env.unix(), self.0.host.env.random_u64());
        let mut state = self.0.state.lock();
        let Some(queue) = state.queues.get_mut(&node) else { return };
        match error {
            None => (queue.failures, queue.next, queue.error) = (0, None, None),
            Some(error) => {
                let wait = FIRST_WAIT.saturating_mul(1 << queue.failures.min(16)).min(LONGEST_WAIT);
                queue.failures += 1;
                // Up to a fifth more or less, so that many do not come at once when a peer comes back.
                let wait = wait * 4 / 5 + wait * u32::try_from(random % 1000).unwrap_or(0) / 2500;
                // Not past the next deadline, so that a message expires in time.
                let deadlines = queue.items.iter().map(|item| item.meta.deadline.saturating_sub(unix));
                let expiry = deadlines.filter(|left| !left.is_zero()).min().unwrap_or(wait);
                queue.next = Some(now + wait.min(expiry));
                queue.error = Some(error);
            }
        }
    }

    /// Ends everything for a peer whose deadline has passed.
    async fn expire(&self, node: u32) {
        let unix = self.0.host.env.unix();
        let expired: Vec<Arc<Item>> = {
            let state = self.0.state.lock();
            let items = state.queues.get(&node).map(|queue| queue.items.iter());
            items.into_iter().flatten().filter(|item| item.meta.deadline <= unix).cloned().collect()
        };
        for item in expired {
            let why = self.0.state.lock().queues.get(&node).and_then(|queue| queue.error.clone());
            let why =
                why.map_or("its deadline passed".to_owned(), |why| format!("its deadline passed; last failure: {why}"));
            self.end(&item, Fate::Expired, None, Some(why), false).await;
        }
    }

    /// Ends an item. When that cannot be written down it stays in the queue, and is tried again: a peer that knows ids
    /// stores it once.
    async fn end(&self, item: &Arc<Item>, fate: Fate, ack: Option<String>, reason: Option<String>, tagged: bool) {
        match self.settle(item, Some(fate), ack, reason, tagged).await {
            Ok(()) => {
                if let Some(queue) = self.0.state.lock().queues.get_mut(&item.meta.to.node) {
                    queue.items.retain(|other| other.number != item.number);
                }
                self.changed(&item.meta.id);
            }
            Err(error) => {
                tracing::error!(%error, id = item.meta.id, "cannot write down what became of a message");
                self.failed(item.meta.to.node, Some(format!("cannot write down the outcome: {error}")));
            }
        }
    }

    async fn dial(&self, item: &Item) -> Result<Boxed, SendError> {
        let dialing = self.0.host.network.dial(SocketAddress::new(item.meta.to, PORT));
        let failed = |code: String, message: String| SendError::Dial { code, message };
        match tokio::time::timeout(DIAL_WAIT, dialing).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(failed(error.code, error.message)),
            Err(_) => Err(failed("dial_timeout".into(), format!("dial {}: no answer within 60 s", item.meta.to))),
        }
    }

    async fn connect(&self, item: &Item) -> Result<Client<Boxed>, SendError> {
        let node = item.meta.to.node;
        let mut client = Client::new(self.dial(item).await?, self.peer(node));
        match client.peer().await {
            Ok(peer) => {
                self.learn(node, peer);
                Ok(client)
            }
            // A peer that hangs up on a greeting is spoken to like those of old, for this time.
            Err(_) => Ok(Client::new(self.dial(item).await?, Some(Peer::Plain))),
        }
    }

    async fn attempt(&self, item: &Arc<Item>, client: &mut Option<Client<Boxed>>) -> Attempt {
        match self.try_once(item, client).await {
            Ok((ack, tagged)) => Attempt::Delivered { ack, tagged },
            Err(error) => Attempt::Failed(error),
        }
    }

    async fn try_once(
        &self,
        item: &Arc<Item>,
        client: &mut Option<Client<Boxed>>,
    ) -> Result<(Option<String>, bool), SendError> {
        let meta = &item.meta;
        let payload = {
            let (inner, item) = (self.0.clone(), item.clone());
            blocking(move || inner.store.payload(&item)).await.and_then(|payload| payload)
        };
        // Synced before it was accepted: a payload that is gone was taken by another hand, and does not come back.
        let payload = payload.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => SendError::Unsupported("its payload is gone from the outbox".into()),
            _ => SendError::Source(error.to_string()),
        })?;
        if matches!(meta.kind, Kind::File | Kind::Directory) {
            // Streams of their own: a fallback needs a fresh one.
            client.take();
            item.sending.store(true, Ordering::Relaxed);
            let file = FileToSend {
                name: meta.name.clone(),
                source: payload,
                sha256: meta.sha256.unwrap_or_default(),
                transfer: Transfer {
                    message_id: Some(meta.id.clone()),
                    reply_to: meta.reply_to.clone(),
                    tree: meta.kind == Kind::Directory,
                },
            };
            let (peer, sent) = send_file(|| self.dial(item), self.peer(meta.to.node), &file, &mut |_| ()).await;
            if let Some(peer) = peer {
                self.learn(meta.to.node, peer);
            }
            return sent.map(|delivery| (delivery.ack, delivery.tagged));
        }
        let client = match client {
            Some(client) => client,
            None => client.insert(self.connect(item).await?),
        };
        item.sending.store(true, Ordering::Relaxed);
        let Kind::Message(kind) = meta.kind else { return send_receipt(client, meta).await };
        let tag = Tag {
            message_id: Some(meta.id.clone()),
            reply_to: meta.reply_to.clone(),
            wants_receipt: meta.wants_receipt,
        };
        let message = MessageToSend { kind, payload, tag, trace: None };
        let sent = client.send(&message).await;
        if let Some(peer) = client.known() {
            self.learn(meta.to.node, peer);
        }
        sent.map(|delivery| (Some(delivery.ack), delivery.tagged))
    }
}

/// A peer that is being served. However that ends, it can be served again.
struct Active(Outbox, u32);

impl Drop for Active {
    fn drop(&mut self) {
        if let Some(queue) = self.0.0.state.lock().queues.get_mut(&self.1) {
            queue.active = false;
        }
    }
}

/// Receipts are for our own kind; others are not bothered.
async fn send_receipt(client: &mut Client<Boxed>, meta: &Meta) -> Result<(Option<String>, bool), SendError> {
    let Some(Peer::Ours(ours)) = client.known() else { return Ok((None, false)) };
    let message_id = meta.reply_to.clone().unwrap_or_default();
    if !ours.receipts || message_id.is_empty() {
        return Ok((None, false));
    }
    let body = Receipt { message_id, read_at: meta.created.as_secs() }.emit();
    let framed = frame(RECEIPT, &[&body]).map_err(|error| SendError::Unsupported(error.to_string()))?;
    client.write(&framed).await?;
    let (_, answer) = client.answer(DIAL_WAIT).await?;
    match Reply::parse(&answer, RECEIPT, body.len() as u64) {
        Reply::Stored { .. } => Ok((None, true)),
        _ => Err(super::super::client::refused(&answer)),
    }
}
