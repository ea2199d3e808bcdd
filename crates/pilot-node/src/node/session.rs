//! The life of a node at the registry: register, heartbeat, register again when forgotten (02 §24, 07 §9).

use std::sync::Arc;
use std::time::Duration;

use pilot_wire::registry::{NODE_NOT_FOUND, SIGNATURE_FAILED};

use super::Shared;
use crate::directory::{DirectoryError, LinkState};

/// How long the first registration waits for the beacon to say where it sees us.
const DISCOVERY: Duration = Duration::from_millis(800);
/// First pause after a failed registration; doubled each time up to [`RETRY_MAX`].
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Heartbeats that may fail before we register again (02 §24).
const FAILURES: u32 = 3;
/// A changed endpoint is registered at most this often, so that a flapping address does not flood the registry.
const ENDPOINT_PAUSE: Duration = Duration::from_secs(5);
/// How often our own networks are asked for (07 §9.1).
const NETWORKS_INTERVAL: Duration = Duration::from_secs(300);
/// Pause between polls while an answer is expected, and how long it is (07 §10).
const FAST_POLL: Duration = Duration::from_secs(2);
const FAST_POLL_FOR: Duration = Duration::from_secs(120);
/// Least pause between two polls.
const POLL_PAUSE: Duration = Duration::from_millis(200);
/// How often the beacon's name is looked up again until it has an address.
const BEACON_RETRY: Duration = Duration::from_secs(5);

/// Keeps this node registered until the task is aborted.
pub(super) async fn run(shared: Arc<Shared>) {
    find_beacon(&shared).await;
    let mut pause = RETRY_FIRST;
    loop {
        match register(&shared).await {
            Ok(()) => {
                pause = RETRY_FIRST;
                stay(&shared).await;
            }
            Err(error) => {
                let first = std::mem::replace(&mut shared.status.lock().registry_error, error.to_string()).is_empty();
                shared.registered.send_replace(false);
                if first {
                    tracing::warn!(%error, "not registered; trying again in the background");
                }
                let jitter = pause.mul_f64((shared.env.random_u64() % 256) as f64 / 512.0);
                shared.env.sleep(pause + jitter).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

/// Resolves once a first registration has failed, so that a start need not wait any longer.
pub(super) async fn first_failure(shared: &Shared) {
    let mut state = shared.directory.state();
    let _ = state.wait_for(|state| matches!(state, LinkState::Down(_))).await;
}

/// Gives the endpoint its beacon, and waits a moment for the answer.
async fn find_beacon(shared: &Arc<Shared>) {
    let Some(name) = shared.config.beacon.clone() else { return };
    match shared.env.resolve(&name).await.map(|list| list.into_iter().next()) {
        Ok(Some(addr)) => shared.engine.with(|core, now| core.endpoint.set_beacon(now, Some(addr))),
        failed => {
            let reason = failed.err().map_or_else(|| "it has no address".to_owned(), |e| e.to_string());
            tracing::warn!(beacon = %name, %reason, "cannot find the beacon; trying again in the background");
            let again = shared.clone();
            shared.spawn(async move {
                loop {
                    again.env.sleep(BEACON_RETRY).await;
                    if let Ok(list) = again.env.resolve(&name).await
                        && let Some(addr) = list.into_iter().next()
                    {
                        return again.engine.with(|core, now| core.endpoint.set_beacon(now, Some(addr)));
                    }
                }
            });
            return;
        }
    }
    if shared.config.endpoint.is_none() {
        let known = async {
            while shared.status.lock().observed.is_none() {
                shared.endpoint_changed.notified().await;
            }
        };
        let _ = tokio::time::timeout(DISCOVERY, known).await;
    }
}

/// What to tell the registry about where we are (02 §4).
fn listen_addr(shared: &Shared) -> String {
    if let Some(endpoint) = &shared.config.endpoint {
        return endpoint.clone();
    }
    let observed = shared.status.lock().observed;
    let mut addr = observed.unwrap_or_else(|| shared.engine.local_addr());
    if addr.ip().is_unspecified() {
        addr.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
    }
    addr.to_string()
}

async fn register(shared: &Arc<Shared>) -> Result<(), DirectoryError> {
    let listen_addr = listen_addr(shared);
    let (hostname, public, tags) = {
        let status = shared.status.lock();
        (status.hostname.clone(), status.public, status.tags.clone())
    };
    let answer = shared.directory.register(&listen_addr, &shared.config.owner, &hostname).await?;
    let node = answer.node;
    let before = shared.node();
    shared.directory.set_node(node);
    shared.memory.lock().set_node(node);
    {
        let mut status = shared.status.lock();
        status.registered_as = listen_addr;
        status.registry_error.clear();
    }
    let networks = shared.status.lock().networks.clone();
    shared.trust.set_local_node(node, &networks);
    shared.engine.with(|core, now| core.endpoint.set_local_node(now, node, &networks));
    shared.node_id.send_replace(node);
    // The registry forgets these with the entry, so they are told each time; a refusal of one is no reason to be
    // without the others.
    let mut told = vec![("visibility", shared.directory.set_visibility(public).await.map(drop))];
    if !hostname.is_empty() && answer.hostname.as_deref() != Some(&hostname) {
        told.push(("hostname", shared.directory.set_hostname(&hostname).await.map(drop)));
    }
    if let Some(tags) = tags {
        told.push(("tags", shared.directory.set_tags(tags).await.map(drop)));
    }
    for (what, result) in told {
        if let Err(error) = result {
            tracing::warn!(%error, "the registry did not take our {what}");
        }
    }
    let first = !shared.registered.send_replace(true);
    if first || before != node {
        tracing::info!(node, address = %shared.address(), "registered");
    }
    for peer in shared.trust.trusted_nodes() {
        if let Err(error) = shared.directory.report_trust(peer).await {
            tracing::debug!(peer, %error, "the registry did not take our trust");
        }
    }
    refresh_networks(shared).await;
    Ok(())
}

/// Heartbeats until it is time to register again.
async fn stay(shared: &Arc<Shared>) {
    let mut link = shared.directory.state();
    let connection = link.borrow_and_update().clone();
    let mut failures = 0;
    let mut networks_due = shared.env.now() + NETWORKS_INTERVAL;
    loop {
        let interval = shared.config.keepalive;
        let jitter = interval.mul_f64((shared.env.random_u64() % 256) as f64 / 2560.0);
        tokio::select! {
            () = shared.env.sleep(interval + jitter) => {}
            () = endpoint_moved(shared) => {
                shared.env.sleep(ENDPOINT_PAUSE.min(interval)).await;
                return;
            }
            () = reconnected(&mut link, &connection) => return,
        }
        match shared.directory.heartbeat().await {
            Ok(()) => {
                failures = 0;
                shared.polling.notify_one();
            }
            Err(DirectoryError::Refused { text, .. })
                if text.contains(NODE_NOT_FOUND) || text.contains(SIGNATURE_FAILED) =>
            {
                tracing::info!("the registry has forgotten this node; registering again");
                return;
            }
            Err(error) => {
                failures += 1;
                tracing::debug!(%error, failures, "heartbeat failed");
                if failures >= FAILURES {
                    return;
                }
            }
        }
        if shared.env.now() >= networks_due {
            refresh_networks(shared).await;
            networks_due = shared.env.now() + NETWORKS_INTERVAL;
        }
    }
}

/// Resolves when what we registered is no longer where we are.
async fn endpoint_moved(shared: &Shared) {
    loop {
        // Two statements: both sides look into the same lock.
        let wanted = listen_addr(shared);
        if shared.status.lock().registered_as != wanted {
            return;
        }
        shared.endpoint_changed.notified().await;
    }
}

/// Resolves when there is another connection than the one we registered over: the registry may have restarted.
async fn reconnected(link: &mut tokio::sync::watch::Receiver<LinkState>, registered: &LinkState) {
    loop {
        if link.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let now = link.borrow_and_update().clone();
        if matches!(now, LinkState::Connected(_)) && now != *registered {
            return;
        }
    }
}

/// Asks for our own networks; peers that share one are let in.
async fn refresh_networks(shared: &Arc<Shared>) {
    let node = shared.node();
    let Ok(own) = shared.directory.lookup(node).await else { return };
    let networks: Vec<u16> = own.networks.unwrap_or_default().into_iter().filter(|network| *network != 0).collect();
    let changed = {
        let mut status = shared.status.lock();
        let changed = status.networks != networks;
        status.networks.clone_from(&networks);
        changed
    };
    if changed {
        shared.trust.set_local_node(node, &networks);
        shared.engine.with(|core, now| core.endpoint.set_local_node(now, node, &networks));
    }
}

impl Shared {
    /// An answer to a request of ours may come through the registry: poll it often for a while (07 §10).
    pub(crate) fn expect_answer(&self) {
        *self.expecting_until.lock() = Some(self.env.now() + FAST_POLL_FOR);
        self.polling.notify_one();
    }

    /// Fetches relayed trust messages.
    pub(crate) async fn poll_handshakes(&self) {
        match self.directory.poll_handshakes().await {
            Ok(poll) => self.trust.polled(&poll).await,
            Err(error) => tracing::debug!(%error, "cannot poll the registry"),
        }
    }
}

/// Polls when asked to, and often while an answer is expected.
pub(super) async fn poll(shared: Arc<Shared>) {
    loop {
        let fast = shared.expecting_until.lock().is_some_and(|until| shared.env.now() < until);
        if fast {
            let _ = tokio::time::timeout(FAST_POLL, shared.polling.notified()).await;
        } else {
            shared.polling.notified().await;
        }
        shared.poll_handshakes().await;
        // However many notifies come, one poll in this time answers them.
        shared.env.sleep(POLL_PAUSE).await;
    }
}

/// Ends every stream and waits until all are gone.
pub(super) async fn drain_streams(shared: &Arc<Shared>) {
    shared.engine.with(|core, now| core.close_all(now));
    while shared.engine.with(|core, now| core.undelivered(now)) {
        shared.env.sleep(Duration::from_millis(5)).await;
    }
}
