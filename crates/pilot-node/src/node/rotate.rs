//! A new identity key for a running node (`docs/spec/trust.md`, K1 to K6).
//!
//! The new key is on disk before the registry hears of it, and takes the old one's place in one step once the registry has
//! it. A rotation that is cut off in between, by a crash or a lost connection, is decided by asking the registry which key
//! it holds, before anything is registered.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilot_proto::identity::Identity;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::Shared;

/// How long a program waits for the outcome. The rotation goes on without it.
const WAIT: Duration = Duration::from_secs(30);
/// How long trusted nodes are told; who is away then needs a new handshake.
const TELLING: Duration = Duration::from_secs(8);
/// Nodes told at once.
const AT_ONCE: usize = 64;

/// The rotation of one node.
#[derive(Default)]
pub(crate) struct Rotation {
    /// Held by the program that asked for one.
    asking: tokio::sync::Mutex<()>,
    /// The new key, until it is decided.
    next: Mutex<Option<Arc<Identity>>>,
    outcome: watch::Sender<Option<Result<Value, String>>>,
}

impl Rotation {
    /// With the new key of a rotation that was cut off.
    pub(super) fn new(next: Option<Arc<Identity>>) -> Self {
        Self { next: Mutex::new(next), ..Self::default() }
    }
}

impl Shared {
    /// Our key.
    pub(crate) fn identity(&self) -> Arc<Identity> {
        self.identity.read().clone()
    }

    /// Replaces our key, and tells the nodes that trust us.
    pub(crate) async fn rotate_key(self: &Arc<Self>) -> Result<Value, String> {
        let busy = || "a rotation is under way already; its outcome is not known yet".to_owned();
        let Ok(_asking) = self.rotation.asking.try_lock() else { return Err(busy()) };
        if self.rotation.next.lock().is_some() {
            return Err(busy());
        }
        if !*self.registered.borrow() {
            return Err("not registered: the registry has to take the new key (see `pilotctl info`)".to_owned());
        }
        let next = Arc::new(Identity::from_seed(self.env.seed()));
        let (store, kept) = (self.clone(), next.clone());
        let saved = tokio::task::spawn_blocking(move || store.store.save_next(&kept)).await;
        match saved {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(format!("cannot save the new key: {error}; the old one is still in use")),
            Err(error) => return Err(format!("cannot save the new key: {error}")),
        }
        *self.rotation.next.lock() = Some(next.clone());
        let mut outcome = self.rotation.outcome.subscribe();
        outcome.mark_unchanged();
        if !self.directory.rotate_key(next) {
            self.give_up().await;
            return Err("not registered: the registry has to take the new key (see `pilotctl info`)".to_owned());
        }
        match tokio::time::timeout(WAIT, outcome.changed()).await {
            Ok(Ok(())) => outcome.borrow().clone().unwrap_or_else(|| Err("the node stops".to_owned())),
            Ok(Err(_)) => Err("the node stops".to_owned()),
            Err(_) => Err(format!(
                "the registry has not answered within {} s; which key it holds is settled when it is back",
                WAIT.as_secs()
            )),
        }
    }

    async fn give_up(self: &Arc<Self>) {
        let store = self.clone();
        let forgotten = tokio::task::spawn_blocking(move || store.store.forget_next()).await;
        if let Ok(Err(error)) = forgotten {
            tracing::warn!(%error, "cannot remove the key of a rotation that did not take place");
        }
        self.rotation.next.lock().take();
    }
}

/// The registry has decided.
pub(super) async fn decided(shared: Arc<Shared>, key: [u8; 32], result: Result<(), String>) {
    let next = shared.rotation.next.lock().clone();
    let outcome = match (next, result) {
        (Some(next), Ok(())) if next.public_key() == key => take_over(&shared, &next).await,
        (_, Err(why)) => {
            shared.give_up().await;
            tracing::warn!(error = %why, "the key was not replaced");
            Err(format!("registry: {why}"))
        }
        // The session was given no other key than that one.
        (_, Ok(())) => Err("the registry took a key that is not the new one".to_owned()),
    };
    shared.rotation.next.lock().take();
    shared.rotation.outcome.send_replace(Some(outcome));
}

async fn take_over(shared: &Arc<Shared>, next: &Arc<Identity>) -> Result<Value, String> {
    let (store, kept) = (shared.clone(), next.clone());
    let saved = tokio::task::spawn_blocking(move || store.store.commit_next(&kept)).await;
    let saved = saved.map_err(|error| error.to_string()).and_then(|saved| saved.map_err(|error| error.to_string()));
    // The registry knows only the new key, so it is used whatever the disk says; the next start finds it beside the old.
    let (told, missed) = tell(shared, next).await;
    shared.engine.with(|core, _| core.endpoint.set_identity(next.clone()));
    shared.trust.set_identity(next.clone());
    *shared.identity.write() = next.clone();
    tracing::info!(told, missed = missed.len(), "the identity key was replaced");
    if let Err(error) = saved {
        tracing::error!(%error, "the new key could not be put in the place of the old one");
        return Err(format!(
            "the registry has the new key, but it could not be put in the place of the old one: {error}; make room and \
             restart the daemon, which finds it beside the old one (.next)"
        ));
    }
    Ok(json!({
        "type": "rotate_key_ok",
        "node_id": shared.node(),
        "address": shared.address().to_string(),
        "public_key": next.public_key_base64(),
        "peers_told": told,
        "peers_not_told": missed,
    }))
}

/// Tells the nodes that trust us, over tunnels that still know us by the old key. Says how many have heard, and who has
/// not.
async fn tell(shared: &Arc<Shared>, next: &Arc<Identity>) -> (usize, Vec<u32>) {
    let mut waiting = shared.trust.trusted_nodes();
    let limit = Arc::new(Semaphore::new(AT_ONCE));
    let mut telling = JoinSet::new();
    for peer in waiting.clone() {
        let (shared, next, limit) = (shared.clone(), next.clone(), limit.clone());
        telling.spawn(async move {
            // Never closed.
            let _permit = limit.acquire().await;
            (peer, shared.trust.tell_rotation(&shared, peer, &next).await)
        });
    }
    let mut told = 0;
    let all = async {
        while let Some(done) = telling.join_next().await {
            if let Ok((peer, true)) = done {
                told += 1;
                waiting.retain(|other| *other != peer);
            }
        }
    };
    // Those still under way are given up with the set.
    let _ = tokio::time::timeout(TELLING, all).await;
    (told, waiting)
}
