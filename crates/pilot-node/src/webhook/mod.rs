//! Webhooks: every event is posted to one URL, in order (05 §10, with the fixes of §15 rows 45 to 47).
//!
//! Events wait in a bounded queue and are sent one after the other, so that the receiver sees them in the order in which
//! they happened. What the receiver cannot take now is tried again with growing pauses; what it refuses for good is given
//! up. Nothing here ever delays the node: when the queue is full the newest event is dropped, and counted.
//!
//! The URL may change at any moment; what waits then goes to the new one.

mod body;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use parking_lot::Mutex;
use pilot_env::{Env, HttpClient, HttpPost, HttpUrl};
use tokio::sync::{Notify, watch};

use crate::events::{EventBus, EventStream, MissedEvents, NodeEvent};

/// Events that wait (05 §10.2). The newest is dropped when there are more.
pub(crate) const QUEUE: usize = 1024;
/// Time for one request, redirects included (05 §10.2).
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// First pause before an event is tried again; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(500);
/// Longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// How long an event is tried. A receiver that is away for less misses nothing but what overflows the queue.
const MAX_AGE: Duration = Duration::from_secs(3600);
/// Time to send what waits when the node stops.
const FAREWELL: Duration = Duration::from_secs(2);

/// Where events go, and the key that signs them.
#[derive(Clone, PartialEq, Eq)]
pub struct WebhookTarget {
    url: HttpUrl,
    secret: Option<Vec<u8>>,
}

impl WebhookTarget {
    /// Checks a URL.
    ///
    /// # Errors
    /// In the official words when it is neither `http://` nor `https://`.
    pub fn new(url: &str) -> Result<Self, String> {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err("webhook URL must start with http:// or https://".to_owned());
        }
        let url = HttpUrl::parse(url).map_err(|why| format!("webhook URL: {why}"))?;
        Ok(Self { url, secret: None })
    }

    /// Signs every body with HMAC-SHA256 under `secret`, in the header `X-Pilot-Signature: sha256=<hex>`.
    #[must_use]
    pub fn signed(mut self, secret: Vec<u8>) -> Self {
        self.secret = Some(secret);
        self
    }
}

impl fmt::Debug for WebhookTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WebhookTarget({}, signed: {})", self.url, self.secret.is_some())
    }
}

/// What became of the events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Taken by the receiver.
    pub(crate) delivered: u64,
    /// Refused by it, or tried for [`MAX_AGE`] in vain.
    pub(crate) failed: u64,
    /// Dropped because the queue was full.
    pub(crate) dropped: u64,
    /// Waiting.
    pub(crate) queued: usize,
}

#[derive(Default)]
struct State {
    target: Option<Arc<WebhookTarget>>,
    /// Subscribed when the target was set, so that nothing is missed in between.
    stream: Option<EventStream>,
    queue: VecDeque<(Instant, Arc<NodeEvent>)>,
    counts: Counts,
    /// The node stops: one try each, then the end.
    ending: bool,
}

/// Posts events. See the module.
pub(crate) struct Webhook {
    env: Env,
    bus: Arc<EventBus>,
    /// Names this run in event ids: event numbers begin anew with each.
    run: String,
    state: Mutex<State>,
    /// The target changed, or the node stops.
    changed: Notify,
    /// The queue has work for the sender, or what it waits for has changed.
    work: Notify,
    /// The queue was emptied.
    empty: Notify,
}

/// What one try came to.
enum Verdict {
    Taken,
    /// It will never be taken.
    Refused(String),
    /// Later perhaps; not before this much time if the receiver said so.
    Later(String, Option<Duration>),
}

impl Webhook {
    pub(crate) fn new(env: &Env, bus: &Arc<EventBus>) -> Self {
        Self {
            env: env.clone(),
            bus: bus.clone(),
            run: format!("{:016x}", env.random_u64()),
            state: Mutex::default(),
            changed: Notify::new(),
            work: Notify::new(),
            empty: Notify::new(),
        }
    }

    /// Begins, moves or (with `None`) ends the posting of events. Returns at once.
    ///
    /// # Errors
    /// When this machine cannot send HTTP requests at all.
    pub(crate) fn set(&self, target: Option<WebhookTarget>) -> Result<(), String> {
        if let Some(target) = &target {
            tracing::info!(signed = target.secret.is_some(), "webhook set");
        }
        let mut state = self.state.lock();
        match target {
            Some(target) => {
                if state.target.is_none() {
                    state.stream = Some(self.bus.subscribe());
                }
                state.target = Some(Arc::new(target));
            }
            None => {
                state.target = None;
                state.stream = None;
                state.queue.clear();
                self.empty.notify_waiters();
            }
        }
        drop(state);
        self.changed.notify_one();
        self.work.notify_one();
        Ok(())
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.state.lock();
        Counts { queued: state.queue.len(), ..state.counts }
    }

    /// Fills the queue until the task is aborted.
    pub(crate) async fn collect(self: Arc<Self>) {
        let mut stream = None;
        loop {
            {
                let mut state = self.state.lock();
                if state.target.is_none() {
                    stream = None;
                } else if let Some(fresh) = state.stream.take() {
                    stream = Some(fresh);
                }
            }
            let Some(events) = &mut stream else {
                self.changed.notified().await;
                continue;
            };
            let event = tokio::select! {
                event = events.next() => event,
                () = self.changed.notified() => continue,
            };
            let mut state = self.state.lock();
            if state.target.is_none() {
                continue;
            }
            match event {
                Ok(Some(event)) if state.queue.len() < QUEUE => {
                    state.queue.push_back((self.env.now(), event));
                    self.work.notify_one();
                }
                Ok(Some(_)) => state.counts.dropped += 1,
                Ok(None) => return,
                Err(MissedEvents(missed)) => state.counts.dropped += missed,
            }
        }
    }

    /// Sends what is in the queue until the task is aborted.
    pub(crate) async fn deliver(self: Arc<Self>, node: watch::Receiver<u32>) {
        let client = loop {
            match self.env.http_client(&format!("pilot-daemon/{}", crate::VERSION)) {
                Ok(client) => break client,
                Err(error) => {
                    tracing::warn!(%error, "webhooks cannot be sent");
                    self.env.sleep(LONGEST_PAUSE).await;
                }
            }
        };
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1u32;
        loop {
            let next = {
                let state = self.state.lock();
                state.target.clone().zip(state.queue.front().cloned())
            };
            let Some((target, (queued, event))) = next else {
                self.empty.notify_waiters();
                self.work.notified().await;
                continue;
            };
            let id = *node.borrow();
            let verdict = self.post(&client, &target, &event, id, attempt).await;
            let expired = self.env.now().saturating_duration_since(queued) >= MAX_AGE;
            match verdict {
                Verdict::Taken => {
                    if attempt > 1 {
                        tracing::info!(attempt, "the webhook takes events again");
                    }
                    self.done(&event, |counts| counts.delivered += 1);
                }
                Verdict::Refused(why) => {
                    tracing::warn!(event = event.name, %why, "the webhook refused an event; it is lost");
                    self.done(&event, |counts| counts.failed += 1);
                }
                Verdict::Later(why, _) if expired || self.state.lock().ending => {
                    tracing::warn!(event = event.name, %why, attempt, "an event could not be posted; it is lost");
                    self.done(&event, |counts| counts.failed += 1);
                }
                Verdict::Later(why, wanted) => {
                    if attempt == 1 {
                        tracing::warn!(%why, "the webhook does not take events; trying again with growing pauses");
                    }
                    let wait = wanted.unwrap_or(pause).clamp(pause, LONGEST_PAUSE);
                    tokio::select! {
                        () = self.env.sleep(wait) => {}
                        () = self.retry_now() => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    attempt = attempt.saturating_add(1);
                    continue;
                }
            }
            pause = FIRST_PAUSE;
            attempt = 1;
        }
    }

    /// Resolves when waiting for the old target has become pointless.
    async fn retry_now(&self) {
        let before = self.state.lock().target.clone();
        loop {
            self.work.notified().await;
            let state = self.state.lock();
            if state.ending || state.target != before {
                return;
            }
        }
    }

    /// Takes an event off the queue, unless the queue was cleared meanwhile.
    fn done(&self, event: &Arc<NodeEvent>, count: impl FnOnce(&mut Counts)) {
        let mut state = self.state.lock();
        if state.queue.front().is_some_and(|(_, front)| Arc::ptr_eq(front, event)) {
            state.queue.pop_front();
        }
        count(&mut state.counts);
    }

    async fn post(
        &self,
        client: &HttpClient,
        target: &WebhookTarget,
        event: &NodeEvent,
        node: u32,
        attempt: u32,
    ) -> Verdict {
        let body = body::json(event, node);
        let mut headers = vec![
            ("Content-Type", "application/json".to_owned()),
            ("X-Pilot-Event-Id", format!("{}-{}", self.run, event.number)),
            ("X-Pilot-Attempt", attempt.to_string()),
        ];
        if let Some(secret) = &target.secret {
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), &body);
            headers.push(("X-Pilot-Signature", format!("sha256={}", hex(tag.as_ref()))));
        }
        let post = HttpPost { url: &target.url, headers: &headers, body, timeout: REQUEST_TIMEOUT };
        match client.post(post).await {
            Ok(answer) if answer.status < 300 => Verdict::Taken,
            Ok(answer) => {
                let wanted = answer.retry_after.map(Duration::from_secs);
                match answer.status {
                    408 | 425 | 429 | 500.. => Verdict::Later(format!("status {}", answer.status), wanted),
                    300..400 => Verdict::Refused(format!(
                        "status {}: it points to {}; set the webhook to that URL",
                        answer.status,
                        answer.location.as_deref().unwrap_or("nowhere")
                    )),
                    status => Verdict::Refused(format!("status {status}")),
                }
            }
            Err(error) => Verdict::Later(error.to_string(), None),
        }
    }

    /// Sends what still waits, once each, for at most [`FAREWELL`].
    pub(crate) async fn finish(&self) {
        self.state.lock().ending = true;
        let drained = async {
            loop {
                let empty = self.empty.notified();
                // Let the collector fetch what was reported last.
                tokio::task::yield_now().await;
                self.work.notify_one();
                if self.state.lock().target.is_none() {
                    return;
                }
                tokio::select! {
                    () = empty => {}
                    () = self.env.sleep(Duration::from_millis(20)) => {}
                }
                if self.state.lock().queue.is_empty() {
                    return;
                }
            }
        };
        if tokio::time::timeout(FAREWELL, drained).await.is_err() {
            let left = self.state.lock().queue.len();
            tracing::warn!(left, "stopped before every event was posted");
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
