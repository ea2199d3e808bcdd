//! Trust in action: carries out what [`pilot_proto::trust`] decides. It serves port 444, sends messages, asks the
//! registry and the approval hook, tells the gate, and keeps the file.
//!
//! Events are carried out strictly in their order, by whoever caused them: a command is answered only when its changes
//! are on disk (invariant 8 of `ARCHITECTURE.md`). What takes time (dials, the registry, the hook) runs beside.

mod hook;
mod messages;

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use pilot_env::Env;
use pilot_proto::identity::Identity;
use pilot_proto::trust::{
    Moment, PeerIdentity, Requested, SendId, Trust, TrustConfig, TrustError, TrustEvent, TrustedNode,
};
use pilot_services::Events as _;
use pilot_wire::registry::PollOk;
use pilot_wire::{Address, base64};
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot, watch};

use crate::config::NodeConfig;
use crate::error::NodeError;
use crate::node::Shared;
use crate::store::Store;

/// Longest wait for the outcome of a request: the direct attempt, then the relay.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// How long listing commands wait for a poll of the registry (07 §10).
const REFRESH_TIMEOUT: Duration = Duration::from_secs(3);
/// Listing commands poll at most this often (07 §10).
const REFRESH_INTERVAL: Duration = Duration::from_secs(2);
/// Longest sleep without a deadline.
const IDLE_SLEEP: Duration = Duration::from_secs(3600);

type Waiting = BTreeMap<SendId, oneshot::Sender<Result<(), String>>>;

/// Why a trust command failed. The text completes `handshake request: …` and the like.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum TrustFailed {
    /// It cannot be done.
    #[error(transparent)]
    Refused(#[from] TrustError),
    /// The request could not be handed to the peer, nor to the registry for it.
    #[error("handshake relay: {0}")]
    NotSent(String),
    /// The change could not be stored.
    #[error("cannot save trust: {0}")]
    NotSaved(String),
    /// No outcome in time; the request may still arrive.
    #[error("no outcome within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// The node stops.
    #[error("the node is stopping")]
    Stopping,
}

impl TrustFailed {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Refused(error) => error.code(),
            Self::NotSent(_) => "trust_not_sent",
            Self::NotSaved(_) => "trust_not_saved",
            Self::Timeout => "trust_timeout",
            Self::Stopping => "stopping",
        }
    }
}

/// Who trusts whom, and the commands that change it.
pub struct TrustService {
    env: Env,
    store: Arc<Store>,
    trust: Mutex<Trust>,
    /// Held while events are carried out, which keeps their order.
    carrying: tokio::sync::Mutex<()>,
    waiting: Mutex<Waiting>,
    /// Counts changes of the set of trusted nodes.
    changes: watch::Sender<u64>,
    wake: Notify,
    node: OnceLock<Weak<Shared>>,
    outbox: messages::Outbox,
    last_refresh: Mutex<Option<std::time::Instant>>,
}

impl TrustService {
    /// Loads what is on disk.
    ///
    /// # Errors
    /// [`NodeError::Trust`] for a file that cannot be read; it is left as it is.
    pub(crate) fn load(
        env: &Env,
        store: &Arc<Store>,
        config: &NodeConfig,
        identity: &Arc<Identity>,
        node: u32,
    ) -> Result<Self, NodeError> {
        let settings = TrustConfig { approval: config.approval.clone() };
        let mut trust = Trust::new(identity.clone(), node, settings);
        if let (Some(text), Some(path)) = (store.load_trust()?, store.trust_path()) {
            let at = Moment { now: env.now(), unix: env.unix() };
            trust.load(at, &text).map_err(|error| NodeError::Trust { path, text: error.to_string() })?;
        }
        trust.announce();
        Ok(Self {
            env: env.clone(),
            store: store.clone(),
            trust: Mutex::new(trust),
            carrying: tokio::sync::Mutex::new(()),
            waiting: Mutex::new(Waiting::new()),
            changes: watch::Sender::new(0),
            wake: Notify::new(),
            node: OnceLock::new(),
            outbox: messages::Outbox::default(),
            last_refresh: Mutex::new(None),
        })
    }

    /// Opens port 444 and starts the timer.
    ///
    /// # Errors
    /// [`NodeError::Service`] when the port is taken.
    pub(crate) fn start(&self, node: &Arc<Shared>) -> Result<(), NodeError> {
        // Set once, here.
        let _ = self.node.set(Arc::downgrade(node));
        let listener =
            node.engine.listen(messages::PORT).map_err(|source| NodeError::Service { service: "handshake", source })?;
        // What was loaded is in the gate before the first datagram is read.
        let loaded: Vec<(u32, Option<[u8; 32]>)> =
            self.trust.lock().trusted().map(|(peer, entry)| (peer, entry.key)).collect();
        node.engine.with(|core, now| {
            for (peer, key) in loaded {
                core.endpoint.set_trusted(now, peer, key);
            }
        });
        node.spawn(messages::serve(node.clone(), listener));
        node.spawn(keep_time(node.clone()));
        Ok(())
    }

    fn at(&self) -> Moment {
        Moment { now: self.env.now(), unix: self.env.unix() }
    }

    /// Changes the state and carries out what follows.
    async fn change<R>(&self, change: impl FnOnce(&mut Trust, Moment) -> R) -> Result<R, TrustFailed> {
        let result = change(&mut self.trust.lock(), self.at());
        self.carry_out().await?;
        Ok(result)
    }

    /// Carries out every event there is, in order. A failed save is reported to whoever waits for it, and the rest is
    /// carried out all the same: the memory of this process is right, and the next save writes it.
    async fn carry_out(&self) -> Result<(), TrustFailed> {
        let _in_order = self.carrying.lock().await;
        let Some(node) = self.node.get().and_then(Weak::upgrade) else { return Err(TrustFailed::Stopping) };
        let mut outcome = Ok(());
        loop {
            let event = self.trust.lock().poll_event();
            let Some(event) = event else { break };
            if event == TrustEvent::Persist {
                if let Err(error) = self.persist().await {
                    tracing::error!(%error, "cannot save trust");
                    outcome = Err(TrustFailed::NotSaved(error));
                }
            } else {
                self.carry(&node, event);
            }
        }
        self.wake.notify_one();
        outcome
    }

    async fn persist(&self) -> Result<(), String> {
        let content = self.trust.lock().to_bytes();
        let store = self.store.clone();
        match tokio::task::spawn_blocking(move || store.save_trust(&content)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }

    fn carry(&self, node: &Arc<Shared>, event: TrustEvent) {
        match event {
            TrustEvent::Persist => {}
            TrustEvent::SendDirect { id, node: peer, kind, message } => {
                tracing::debug!(peer, ?kind, "sending a trust message");
                self.outbox.send(node, id, peer, message);
            }
            TrustEvent::Withdraw { id, node: peer } => self.outbox.withdraw(id, peer),
            TrustEvent::RelayRequest { id, node: peer, justification } => {
                let asking = node.clone();
                node.spawn(async move {
                    let result = asking.directory.request_handshake(peer, &justification).await;
                    let result = result.map_err(|error| error.to_string());
                    if result.is_ok() {
                        // The answer may come over a tunnel of the peer's own making.
                        asking.engine.with(|core, now| core.endpoint.open_reply_window(now, peer));
                    }
                    let _ = asking.trust.change(|trust, _| trust.handle_relayed(id, result)).await;
                });
            }
            TrustEvent::RelayRespond { node: peer, accept } => {
                let asking = node.clone();
                node.spawn(async move {
                    if let Err(error) = asking.directory.respond_handshake(peer, accept).await {
                        tracing::debug!(peer, %error, "the registry did not take our answer");
                    }
                });
            }
            TrustEvent::ReportTrust { node: peer } => node.directory.report_trust(peer),
            TrustEvent::RevokeTrust { node: peer } => node.directory.revoke_trust(peer),
            TrustEvent::Lookup { node: peer } => {
                let asking = node.clone();
                node.spawn(async move {
                    let found = asking.directory.lookup(peer).await.ok();
                    let identity = found.and_then(|found| {
                        let key = base64::decode_array(&found.public_key)?;
                        Some(PeerIdentity { key, networks: found.networks.unwrap_or_default() })
                    });
                    let _ = asking.trust.change(|trust, at| trust.handle_lookup(at, peer, identity.as_ref())).await;
                });
            }
            TrustEvent::AskHook { id, node: peer, key, justification } => {
                let asking = node.clone();
                node.spawn(async move {
                    let approve = hook::ask(asking.config.approval_hook.as_deref(), peer, key, &justification).await;
                    let _ = asking.trust.change(|trust, at| trust.handle_hook(at, id, approve)).await;
                });
            }
            TrustEvent::ExpectAnswer => node.expect_answer(),
            TrustEvent::Trusted { node: peer, key } => {
                node.engine.with(|core, now| core.endpoint.set_trusted(now, peer, key));
                self.changes.send_modify(|count| *count += 1);
            }
            TrustEvent::Rotated { node: peer, old, new } => {
                tracing::info!(peer, "a trusted node has replaced its key, signed by the one it had");
                let unix = self.env.unix().as_secs();
                node.memory.lock().note(peer, unix, |known| known.key = Some(new));
                node.engine.with(|core, _| core.endpoint.rotate_peer(peer, old, new));
                self.changes.send_modify(|count| *count += 1);
            }
            TrustEvent::Untrusted { node: peer } => {
                node.engine.with(|core, now| core.endpoint.remove_trusted(now, peer));
                self.changes.send_modify(|count| *count += 1);
            }
            TrustEvent::ForgetPeer { node: peer } => {
                node.memory.lock().forget(peer);
                node.engine.with(|core, now| core.endpoint.forget_peer(now, peer));
            }
            TrustEvent::RequestDone { id, result } => {
                if let Some(waiting) = self.waiting.lock().remove(&id) {
                    // Whoever waited may have gone.
                    let _ = waiting.send(result);
                }
            }
            TrustEvent::Notice { node: peer, notice } => {
                tracing::info!(peer, address = %Address::backbone(peer), event = notice.event(), "trust");
                if let Value::Object(data) = notice.data(peer) {
                    node.events.emit(notice.event(), data);
                }
            }
            other => tracing::debug!(?other, "trust event"),
        }
    }

    /// Asks a node for trust. Returns when the request has reached it, or the registry for it; that says nothing about
    /// the answer.
    ///
    /// # Errors
    /// [`TrustFailed`].
    pub async fn request(&self, node: u32, justification: String) -> Result<(), TrustFailed> {
        let (done, outcome) = oneshot::channel();
        let started = {
            let mut trust = self.trust.lock();
            let started = trust.request(self.at(), node, &justification)?;
            // Registered while the state is locked: the outcome cannot come before.
            if let Requested::Sending(id) = started {
                self.waiting.lock().insert(id, done);
            }
            started
        };
        self.carry_out().await?;
        let Requested::Sending(id) = started else { return Ok(()) };
        match tokio::time::timeout(REQUEST_TIMEOUT, outcome).await {
            Ok(Ok(result)) => result.map_err(TrustFailed::NotSent),
            Ok(Err(_)) => Err(TrustFailed::Stopping),
            Err(_) => {
                self.waiting.lock().remove(&id);
                Err(TrustFailed::Timeout)
            }
        }
    }

    /// Whether a request of this node waits.
    pub(crate) async fn waits(&self, node: u32) -> bool {
        self.refresh().await;
        self.trust.lock().pending().any(|(peer, _)| peer == node)
    }

    /// Approves a waiting request; nothing happens when there is none. The decision is on disk when this returns.
    ///
    /// # Errors
    /// [`TrustFailed`].
    pub async fn approve(&self, node: u32) -> Result<(), TrustFailed> {
        self.refresh().await;
        self.change(|trust, at| trust.approve(at, node)).await??;
        Ok(())
    }

    /// Rejects a waiting request; nothing happens when there is none.
    ///
    /// # Errors
    /// [`TrustFailed`].
    pub async fn reject(&self, node: u32, reason: String) -> Result<(), TrustFailed> {
        self.refresh().await;
        self.change(|trust, at| trust.reject(at, node, &reason)).await?;
        Ok(())
    }

    /// Ends trust. The gate closes at once; the peer is told, and told again until it has heard. Returns whether the
    /// node was trusted.
    ///
    /// # Errors
    /// [`TrustFailed`].
    pub async fn revoke(&self, node: u32) -> Result<bool, TrustFailed> {
        match self.change(|trust, at| trust.revoke(at, node)).await? {
            Ok(()) => Ok(true),
            Err(TrustError::NotTrusted(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Tells a trusted node that `next` has replaced our key. Says whether it has heard.
    pub(crate) async fn tell_rotation(&self, node: &Arc<Shared>, peer: u32, next: &Identity) -> bool {
        let composed = self.trust.lock().rotation_message(self.at(), peer, next);
        match composed {
            Ok(message) => messages::deliver(node, peer, &message).await.is_ok(),
            Err(error) => {
                tracing::error!(%error, "cannot write a message about the new key");
                false
            }
        }
    }

    /// Signs with another key from now on.
    pub(crate) fn set_identity(&self, identity: Arc<Identity>) {
        self.trust.lock().set_identity(identity);
    }

    /// Waiting requests, as the local socket lists them (03 §9).
    pub fn pending(&self) -> Vec<Value> {
        let trust = self.trust.lock();
        let element = |(node, request): (u32, &pilot_proto::trust::PendingRequest)| {
            json!({
                "node_id": node,
                "address": Address::backbone(node).to_string(),
                "public_key": request.key.map(|key| base64::encode(&key)).unwrap_or_default(),
                "justification": request.justification,
                "received_at": request.received_at,
            })
        };
        trust.pending().map(element).collect()
    }

    /// Trusted nodes, as the local socket lists them (03 §9).
    pub fn trusted(&self) -> Vec<Value> {
        let trust = self.trust.lock();
        let element = |(node, entry): (u32, &TrustedNode)| {
            json!({
                "node_id": node,
                "address": Address::backbone(node).to_string(),
                "public_key": entry.key.map(|key| base64::encode(&key)).unwrap_or_default(),
                "approved_at": entry.approved_at,
                "mutual": entry.mutual,
                "network": entry.network,
            })
        };
        trust.trusted().map(element).collect()
    }

    /// Whether a node is trusted.
    pub fn is_trusted(&self, node: u32) -> bool {
        self.trust.lock().is_trusted(node)
    }

    /// Waits until a node is trusted, at most so long. Returns whether it is.
    pub async fn wait(&self, node: u32, limit: Duration) -> bool {
        let mut changes = self.changes.subscribe();
        if let Some(node) = self.node.get().and_then(Weak::upgrade) {
            node.expect_answer();
        }
        let trusted = async {
            while !self.is_trusted(node) {
                // The sender lives as long as `self`.
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        let _ = tokio::time::timeout(limit, trusted).await;
        self.is_trusted(node)
    }

    /// How many requests wait.
    pub(crate) fn pending_count(&self) -> usize {
        self.trust.lock().pending_count()
    }

    /// The pinned key of a trusted node.
    pub(crate) fn key_of(&self, node: u32) -> Option<[u8; 32]> {
        self.trust.lock().trusted_node(node).and_then(|entry| entry.key)
    }

    /// Every trusted node.
    pub(crate) fn trusted_nodes(&self) -> Vec<u32> {
        self.trust.lock().trusted().map(|(node, _)| node).collect()
    }

    /// Our id and networks changed.
    pub(crate) fn set_local_node(&self, node: u32, networks: &[u16]) {
        self.trust.lock().set_local_node(node, networks);
    }

    /// A message came over a stream of this node.
    async fn received(&self, source: u32, tunnel_key: Option<[u8; 32]>, text: &[u8]) {
        match self.change(|trust, at| trust.handle_message(at, source, tunnel_key, text)).await {
            Ok(Ok(kind)) => tracing::debug!(source, ?kind, "trust message"),
            Ok(Err(refusal)) => tracing::info!(source, code = refusal.code(), %refusal, "dropped a trust message"),
            Err(error) => tracing::warn!(source, %error, "trust message"),
        }
    }

    /// A message of ours arrived at its peer, or did not.
    async fn sent(&self, id: SendId, delivered: bool) {
        let _ = self.change(|trust, at| trust.handle_sent(at, id, delivered)).await;
    }

    /// The registry had these messages for us.
    pub(crate) async fn polled(&self, poll: &PollOk) {
        if let Err(error) = self.change(|trust, at| trust.handle_poll(at, poll)).await {
            tracing::warn!(%error, "relayed trust messages");
        }
    }

    /// A trusted node without a pinned key has authenticated.
    pub(crate) async fn pinned(&self, node: u32, key: [u8; 32]) {
        let _ = self.change(|trust, _| trust.handle_pinned(node, key)).await;
    }

    /// The gate refused a node.
    pub(crate) async fn refused(&self, node: u32) {
        let _ = self.change(|trust, at| trust.handle_refused(at, node)).await;
    }

    /// Polls the registry before a command that shows or changes waiting requests, so that it sees what is there now.
    pub(crate) async fn refresh(&self) {
        let Some(node) = self.node.get().and_then(Weak::upgrade) else { return };
        let now = self.env.now();
        {
            let mut last = self.last_refresh.lock();
            if last.is_some_and(|at| now.saturating_duration_since(at) < REFRESH_INTERVAL) {
                return;
            }
            *last = Some(now);
        }
        let _ = tokio::time::timeout(REFRESH_TIMEOUT, node.poll_handshakes()).await;
    }
}

/// Lets the state machine's timers fire.
async fn keep_time(node: Arc<Shared>) {
    loop {
        let deadline = node.trust.trust.lock().poll_timeout();
        let at = deadline.unwrap_or_else(|| node.env.now() + IDLE_SLEEP);
        tokio::select! {
            () = node.env.sleep_until(at) => {
                let _ = node.trust.change(|trust, at| trust.handle_timeout(at)).await;
            }
            () = node.trust.wake.notified() => {}
        }
    }
}
