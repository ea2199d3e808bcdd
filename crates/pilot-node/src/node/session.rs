//! The life of a node at the registry: what the session of [`pilot_proto::directory`] reports is told to the rest of the
//! node, and where we are is told to the session (02 §24, 07 §9).

use std::sync::Arc;
use std::time::Duration;

use pilot_proto::directory::DirectoryEvent;
use pilot_services::Events as _;
use serde_json::Map;
use tokio::sync::mpsc;

use super::Shared;
use crate::directory::LinkState;

/// How long the first registration waits for the beacon to say where it sees us.
const DISCOVERY: Duration = Duration::from_millis(800);
/// How often the address is looked at from which the host speaks to the beacon.
const ROUTE_CHECK: Duration = Duration::from_secs(1);
/// The same until it has been seen once.
const FIRST_ROUTE_CHECK: Duration = Duration::from_millis(20);
/// For so many checks after a move the beacon is told again and again, ever more seldom: until the registry has heard from the
/// new address it believes the old one.
const TELL_AGAIN: u32 = 16;
/// How often the beacon's name is looked up again until it has an address.
const BEACON_RETRY: Duration = Duration::from_secs(5);
/// At the end of the node, local programs that are silent this long have been heard out …
const QUIET: Duration = Duration::from_millis(100);
/// … and those that are not, after this long.
const TAKE_IN: Duration = Duration::from_secs(2);

/// Keeps this node registered until the task is aborted.
pub(super) async fn run(shared: Arc<Shared>, mut events: mpsc::Receiver<DirectoryEvent>) {
    for peer in shared.trust.trusted_nodes() {
        shared.directory.report_trust(peer);
    }
    let moving = shared.clone();
    shared.spawn(async move {
        find_beacon(&moving).await;
        loop {
            // The session registers a change, and does nothing otherwise.
            let listen_addr = listen_addr(&moving);
            moving.directory.set_listen_addr(&listen_addr);
            moving.status.lock().registered_as = listen_addr;
            moving.endpoint_changed.notified().await;
        }
    });
    let failing = shared.clone();
    shared.spawn(async move { watch_link(&failing).await });
    if shared.engine.local_addr().ip().is_unspecified() {
        let watching = shared.clone();
        shared.spawn(async move { watch_routes(&watching).await });
    }
    while let Some(event) = events.recv().await {
        handle(&shared, event).await;
    }
}

async fn handle(shared: &Arc<Shared>, event: DirectoryEvent) {
    match event {
        DirectoryEvent::Registered { node, changed, .. } => registered(shared, node, changed),
        // It asks the registry, whose answers come behind this event.
        DirectoryEvent::Identified { networks, .. } => {
            shared.spawn(super::networks::identified(shared.clone(), networks));
        }
        DirectoryEvent::RegistrationRefused { text } => not_registered(shared, &format!("registry: {text}")),
        DirectoryEvent::AttributeRefused { request, text } => {
            tracing::warn!(request, error = %text, "the registry did not take what we told it");
        }
        DirectoryEvent::Poll(poll) => {
            shared.trust.polled(&poll).await;
            shared.polls.send_modify(|count| *count += 1);
        }
        // A registry that comes back may have a beacon beside it that knows nobody, and through which nobody is reached
        // until its nodes have said where they are.
        DirectoryEvent::Online(true) => shared.engine.with(|core, now| core.endpoint.rediscover(now)),
        // It tells peers, which takes a while.
        DirectoryEvent::Rotated { public_key, result } => {
            shared.spawn(super::rotate::decided(shared.clone(), public_key, result));
        }
        other => tracing::debug!(?other, "registry"),
    }
}

fn registered(shared: &Arc<Shared>, node: u32, changed: bool) {
    shared.memory.lock().set_node(node);
    // Now, not at the next round: after a crash with the registry down it is all we know of our own address.
    let writer = shared.clone();
    drop(tokio::task::spawn_blocking(move || writer.store.save_memory(&writer.memory)));
    shared.tell_networks(node, |status| {
        status.registry_error.clear();
        true
    });
    shared.node_id.send_replace(node);
    let first = !shared.registered.send_replace(true);
    if first {
        tell_registered(shared);
    }
    if first || changed {
        tracing::info!(node, address = %shared.address(), "registered");
    }
}

/// Tells those who follow events that we are in the directory (05 §10.3).
fn tell_registered(shared: &Shared) {
    let (again, endpoint) = {
        let mut status = shared.status.lock();
        (std::mem::replace(&mut status.registered_before, true), status.registered_as.clone())
    };
    let mut data = Map::new();
    data.insert("address".to_owned(), shared.address().to_string().into());
    if again {
        return shared.events.emit("node.reregistered", data);
    }
    data.insert("endpoint".to_owned(), endpoint.into());
    shared.events.emit("node.registered", data);
}

fn not_registered(shared: &Shared, error: &str) {
    let first = std::mem::replace(&mut shared.status.lock().registry_error, error.to_owned()).is_empty();
    shared.registered.send_replace(false);
    if first {
        tracing::warn!(%error, "not registered; trying again in the background");
    }
}

/// Says why we are not registered while the registry cannot be reached.
async fn watch_link(shared: &Shared) {
    let mut state = shared.directory.state();
    while state.changed().await.is_ok() {
        let reason = match &*state.borrow_and_update() {
            LinkState::Down(reason) => reason.clone(),
            LinkState::Idle | LinkState::Connected => continue,
        };
        if !*shared.registered.borrow() {
            not_registered(shared, &format!("registry: {reason}"));
        }
    }
}

/// Notices when the host gets another address: with the next Discover it would take 25 s until others can reach us again, and
/// the connection to the registry would have to time out (07 §16.16).
async fn watch_routes(shared: &Shared) {
    let mut known = None;
    // Checks since the last move.
    let mut since = u32::MAX;
    loop {
        // The first look comes as early as can be: a move before it would go unnoticed.
        shared.env.sleep(if known.is_some() { ROUTE_CHECK } else { FIRST_ROUTE_CHECK }).await;
        since = since.saturating_add(1);
        if since <= TELL_AGAIN && since.is_power_of_two() {
            shared.engine.with(|core, now| core.endpoint.rediscover(now));
        }
        let Some(beacon) = shared.engine.look(|core, _| core.endpoint.beacon()) else { continue };
        // Without a route nothing can be told to anybody; what counts is the address that comes next.
        let Ok(source) = shared.env.source_toward(beacon) else { continue };
        let before = known.replace(source);
        if before.is_some_and(|before| before != source) {
            tracing::info!("this host has another address now");
            since = 0;
            shared.directory.reconnect();
            shared.engine.with(|core, now| core.endpoint.handle_network_change(now));
        }
    }
}

/// Resolves once a first registration has failed, so that a start need not wait any longer.
pub(super) async fn first_failure(shared: &Shared) {
    let mut state = shared.directory.state();
    let Ok(failed) = state.wait_for(|state| matches!(state, LinkState::Down(_))).await else { return };
    // Whoever looks next, once the node has started, learns the reason; `watch_link` may still be on its way to it.
    if let LinkState::Down(reason) = &*failed {
        not_registered(shared, &format!("registry: {reason}"));
    }
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

impl Shared {
    /// An answer to a request of ours may come through the registry: poll it often for a while (07 §10).
    pub(crate) fn expect_answer(&self) {
        self.directory.expect_answer();
    }

    /// Fetches relayed trust messages; they are with the trust service when this returns.
    pub(crate) async fn poll_handshakes(&self) {
        if !*self.registered.borrow() || matches!(*self.directory.state().borrow(), LinkState::Down(_)) {
            return;
        }
        let mut polls = self.polls.subscribe();
        polls.mark_unchanged();
        self.directory.poll_handshakes();
        // The sender lives in `self`.
        let _ = polls.changed().await;
    }
}

/// Ends every stream and waits until all are gone.
pub(super) async fn drain_streams(shared: &Arc<Shared>) {
    take_in(shared).await;
    shared.engine.with(|core, now| core.close_all(now));
    while shared.engine.with(|core, now| core.undelivered(now)) {
        shared.env.sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until local programs' bytes are in the core: what a program wrote before the end belongs before the end of its
/// stream, also when it still stands in its socket. A program that never pauses is cut off after [`TAKE_IN`].
async fn take_in(shared: &Arc<Shared>) {
    let until = shared.env.now() + TAKE_IN;
    let taken = || {
        let info = shared.engine.look(|core, now| core.endpoint.info(now));
        let bytes = info.conns.iter().map(|conn| conn.stats.bytes_sent + conn.stats.send_queue).sum::<u64>();
        (info.conns.is_empty(), bytes)
    };
    let (mut idle, mut before) = taken();
    let mut still_since = shared.env.now();
    while !idle && shared.env.now() < until {
        shared.env.sleep(Duration::from_millis(5)).await;
        let (none, bytes) = taken();
        if bytes != before || shared.clients.queues().pending > 0 {
            (before, still_since) = (bytes, shared.env.now());
        }
        idle = none || shared.env.now().saturating_duration_since(still_since) >= QUIET;
    }
}
