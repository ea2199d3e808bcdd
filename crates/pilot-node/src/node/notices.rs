//! What the endpoint asks for and reports: keys and addresses of peers, pins, refusals.

use std::sync::Arc;

use pilot_proto::endpoint::{DirectoryCode, DirectoryFailure, Event, PeerRecord};
use pilot_wire::base64;
use tokio::sync::{Semaphore, mpsc};

use super::Shared;
use crate::directory::{DirectoryError, LinkState};

/// Questions to the registry under way at once.
const QUESTIONS: usize = 64;

/// Answers until the task is aborted.
pub(super) async fn run(shared: Arc<Shared>, mut notices: mpsc::Receiver<Event>) {
    let limit = Arc::new(Semaphore::new(QUESTIONS));
    while let Some(event) = notices.recv().await {
        match event {
            Event::NeedKey { node } => {
                // The semaphore is never closed.
                let Ok(permit) = limit.clone().acquire_owned().await else { return };
                let asking = shared.clone();
                shared.spawn(async move {
                    let answer = peer_key(&asking, node).await;
                    asking.engine.with(|core, now| core.endpoint.handle_peer_key(now, node, answer));
                    drop(permit);
                });
            }
            Event::NeedMembership { node } => {
                let Ok(permit) = limit.clone().acquire_owned().await else { return };
                let asking = shared.clone();
                shared.spawn(async move {
                    asking.find_membership(node).await;
                    drop(permit);
                });
            }
            Event::NeedEndpoint { node } => {
                let Ok(permit) = limit.clone().acquire_owned().await else { return };
                let asking = shared.clone();
                shared.spawn(async move {
                    let answer = peer_endpoint(&asking, node).await;
                    asking.engine.with(|core, now| core.endpoint.handle_resolved(now, node, answer));
                    drop(permit);
                });
            }
            Event::Pinned { node, key } => {
                let pinning = shared.clone();
                shared.spawn(async move { pinning.trust.pinned(node, key).await });
            }
            Event::ObservedEndpoint(addr) => {
                tracing::debug!(%addr, "the beacon sees us here");
                shared.status.lock().observed = Some(addr);
                shared.endpoint_changed.notify_one();
            }
            Event::HandshakeWaiting => shared.directory.handle_notify(),
            Event::PathChanged { node, direct, relay } => {
                tracing::debug!(node, ?direct, relay, "path changed");
                if let Some(addr) = direct
                    && !relay
                {
                    let unix = shared.env.unix().as_secs();
                    shared.memory.lock().note(node, unix, |peer| peer.endpoints = vec![addr]);
                }
            }
            Event::Refused { node, port, reason, .. } => {
                tracing::info!(node, port, reason = reason.code(), "refused a peer");
                let telling = shared.clone();
                shared.spawn(async move { telling.trust.refused(node).await });
            }
            Event::Tunnel { node, event } => tracing::debug!(node, ?event, "tunnel"),
            other => tracing::debug!(?other, "notice"),
        }
    }
}

/// Whether asking is of no use now.
fn is_down(shared: &Shared) -> bool {
    shared.directory.node() == 0 || matches!(*shared.directory.state().borrow(), LinkState::Down(_))
}

fn failure(error: &DirectoryError) -> DirectoryFailure {
    let code = match error {
        DirectoryError::Refused { text, .. } if text.contains("not found") => DirectoryCode::NotFound,
        DirectoryError::Refused { .. } => DirectoryCode::Denied,
        _ => DirectoryCode::Unavailable,
    };
    DirectoryFailure::new(code, error.to_string())
}

async fn peer_key(shared: &Shared, node: u32) -> Result<PeerRecord, DirectoryFailure> {
    let known = || {
        let memory = shared.memory.lock();
        let peer = memory.peer(node);
        let key = shared.trust.key_of(node).or_else(|| peer.and_then(|peer| peer.key))?;
        Some(PeerRecord { ed25519: key, version_known: peer.is_some_and(|peer| peer.version_known) })
    };
    if is_down(shared)
        && let Some(record) = known()
    {
        return Ok(record);
    }
    match shared.directory.lookup(node).await {
        Ok(found) => {
            let key: Option<[u8; 32]> = base64::decode_array(&found.public_key);
            let Some(ed25519) = key else {
                return Err(DirectoryFailure::new(DirectoryCode::NotFound, "registry: the node has no valid key"));
            };
            let version_known = found.version.is_some();
            let unix = shared.env.unix().as_secs();
            shared.memory.lock().note(node, unix, |peer| {
                peer.key = key;
                peer.version_known = version_known;
            });
            // Without its word on a policy the gate asks again.
            if let Ok(membership) = shared.shared_with(&found).await {
                shared.engine.with(|core, now| core.endpoint.handle_membership(now, node, membership));
            }
            Ok(PeerRecord { ed25519, version_known })
        }
        Err(error) if error.is_unavailable() => known().ok_or_else(|| failure(&error)),
        // A lookup is open to everybody: a refusal, whose reason February's registry hides, means that there is no such
        // node.
        Err(error @ DirectoryError::Refused { .. }) => {
            Err(DirectoryFailure::new(DirectoryCode::NotFound, error.to_string()))
        }
        Err(error) => Err(failure(&error)),
    }
}

async fn peer_endpoint(shared: &Shared, node: u32) -> Result<Vec<std::net::SocketAddr>, DirectoryFailure> {
    let known = || {
        let memory = shared.memory.lock();
        memory.peer(node).map(|peer| peer.endpoints.clone()).filter(|list| !list.is_empty())
    };
    if is_down(shared)
        && let Some(list) = known()
    {
        return Ok(list);
    }
    let error = match shared.directory.resolve(node).await {
        Ok(found) if found.relay_only => return Ok(Vec::new()),
        Ok(found) => match shared.env.resolve(&found.real_addr).await {
            Ok(list) => {
                let unix = shared.env.unix().as_secs();
                shared.memory.lock().note(node, unix, |peer| peer.endpoints.clone_from(&list));
                return Ok(list);
            }
            Err(error) => {
                let text = format!("registry: cannot use the address {:?}: {error}", found.real_addr);
                return Err(DirectoryFailure::new(DirectoryCode::NotFound, text));
            }
        },
        Err(error) => error,
    };
    // A registry that is down, or has lost our trust, does not keep us from a peer we trust and know the way to.
    let may_remember = error.is_unavailable() || shared.trust.is_trusted(node);
    may_remember.then(known).flatten().ok_or_else(|| failure(&error))
}
