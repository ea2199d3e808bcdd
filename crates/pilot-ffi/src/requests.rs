//! Requests that a daemon answers with JSON (06 §16, §17).

use std::ffi::{c_char, c_int};
use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pilot_sdk::{Driver, Error, NetworkCommand, Options};
use pilot_wire::json;
use serde_json::Value;

use crate::answer::{labelled, object, pair, run, value, void};
use crate::handles::{self, DriverHandle, Object};
use crate::memory::{give, text};

/// The outcome of `PilotConnect`.
#[repr(C)]
pub struct PilotConnect_return {
    /// The handle of the driver; 0 on failure.
    pub r0: u64,
    /// The error as JSON, to be released with `FreeString`, or NULL.
    pub r1: *mut c_char,
}

/// Runs a request of a driver, until it is answered, the daemon goes away or the driver is closed.
pub(crate) fn ask<F>(handle: u64, label: &str, call: impl FnOnce(Driver) -> F) -> Result<Value, String>
where
    F: Future<Output = Result<Value, Error>>,
{
    let handle = handles::driver(handle)?;
    let gone = || labelled(label, &Error::Disconnected { op: "" });
    let driver = handle.driver().ok_or_else(gone)?;
    let answer = run(async {
        tokio::select! {
            answer = call(driver) => answer.map_err(|error| labelled(label, &error)),
            () = handle.closed.cancelled() => Err(gone()),
        }
    })?;
    object(label, answer)
}

/// Connects to a daemon. An empty path means the place where the daemon of this user is.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotConnect(socketPath: *const c_char) -> PilotConnect_return {
    // SAFETY: the contract.
    let (r0, r1) = pair(|| connect(&unsafe { text(socketPath) }));
    PilotConnect_return { r0, r1 }
}

fn connect(path: &str) -> Result<u64, String> {
    // A driver that came back by itself would have other streams behind the same handles.
    let options = Options::default().reconnect(false);
    let places = if path.is_empty() { pilot_sdk::default_sockets() } else { vec![PathBuf::from(path)] };
    run(async {
        let mut failed = "connect to daemon: no place to look for it".to_owned();
        for place in &places {
            match Driver::connect_with(place, options.clone()).await {
                Ok(driver) => return Ok(handles::insert(Object::Driver(Arc::new(DriverHandle::new(driver))))),
                // What is said of the last place is what the official library says, which knows no other.
                Err(error) => failed = error.to_string(),
            }
        }
        Err(failed)
    })
}

/// Closes a driver: its streams end, its ports are free, and whatever waits on it returns.
#[unsafe(no_mangle)]
pub extern "C" fn PilotClose(h: u64) -> *mut c_char {
    void(|| {
        let driver = match handles::driver(h) {
            Ok(driver) => driver,
            Err(text) if text.starts_with("invalid") => return Err("invalid handle".to_owned()),
            Err(text) => return Err(text),
        };
        handles::remove(h);
        run(async {
            driver.close().await;
            Ok(())
        })
    })
}

/// The daemon's status.
#[unsafe(no_mangle)]
pub extern "C" fn PilotInfo(h: u64) -> *mut c_char {
    value(|| ask(h, "info", |d| async move { d.info().await }))
}

/// The daemon's short status.
#[unsafe(no_mangle)]
pub extern "C" fn PilotHealth(h: u64) -> *mut c_char {
    value(|| ask(h, "health", |d| async move { d.health().await }))
}

/// Asks a node for trust.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotHandshake(h: u64, nodeID: u32, justification: *const c_char) -> *mut c_char {
    // SAFETY: the contract.
    let why = unsafe { text(justification) };
    value(|| ask(h, "handshake", |d| async move { d.handshake(nodeID, &why).await }))
}

/// Grants a waiting request for trust.
#[unsafe(no_mangle)]
pub extern "C" fn PilotApproveHandshake(h: u64, nodeID: u32) -> *mut c_char {
    value(|| ask(h, "approve", |d| async move { d.approve(nodeID).await }))
}

/// Refuses a waiting request for trust.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotRejectHandshake(h: u64, nodeID: u32, reason: *const c_char) -> *mut c_char {
    // SAFETY: the contract.
    let why = unsafe { text(reason) };
    value(|| ask(h, "reject", |d| async move { d.reject(nodeID, &why).await }))
}

/// Requests for trust that wait.
#[unsafe(no_mangle)]
pub extern "C" fn PilotPendingHandshakes(h: u64) -> *mut c_char {
    value(|| ask(h, "pending", |d| async move { d.pending().await }))
}

/// Trusted nodes, under the key that daemons send and under the one that the newest SDK looks for (06 §19.4).
#[unsafe(no_mangle)]
pub extern "C" fn PilotTrustedPeers(h: u64) -> *mut c_char {
    value(|| {
        let mut answer = ask(h, "trusted", |d| async move { d.trusted().await })?;
        if let Some(object) = answer.as_object_mut()
            && let Some(trusted) = object.get("trusted").cloned()
        {
            object.entry("peers").or_insert(trusted);
        }
        Ok(answer)
    })
}

/// Ends trust in a node.
#[unsafe(no_mangle)]
pub extern "C" fn PilotRevokeTrust(h: u64, nodeID: u32) -> *mut c_char {
    value(|| ask(h, "revoke", |d| async move { d.revoke(nodeID).await }))
}

/// Waits until a node is trusted.
#[unsafe(no_mangle)]
pub extern "C" fn PilotWaitForTrust(h: u64, nodeID: u32, timeoutMs: u32) -> *mut c_char {
    let limit = Duration::from_millis(timeoutMs.into());
    value(|| ask(h, "wait", |d| async move { d.wait_trusted(nodeID, limit).await }))
}

/// The node behind a host name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotResolveHostname(h: u64, hostname: *const c_char) -> *mut c_char {
    // SAFETY: the contract.
    let name = unsafe { text(hostname) };
    value(|| ask(h, "resolve_hostname", |d| async move { d.resolve_hostname(&name).await }))
}

/// Sets the own host name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotSetHostname(h: u64, hostname: *const c_char) -> *mut c_char {
    // SAFETY: the contract.
    let name = unsafe { text(hostname) };
    value(|| ask(h, "set_hostname", |d| async move { d.set_hostname(&name).await }))
}

/// Shows the own endpoint to everybody, or only to trusted nodes.
#[unsafe(no_mangle)]
pub extern "C" fn PilotSetVisibility(h: u64, public: c_int) -> *mut c_char {
    value(|| ask(h, "set_visibility", |d| async move { d.set_visibility(public != 0).await }))
}

/// Says whether this node takes tasks.
#[unsafe(no_mangle)]
pub extern "C" fn PilotSetTaskExec(h: u64, enabled: c_int) -> *mut c_char {
    value(|| ask(h, "set_task_exec", |d| async move { d.set_task_exec(enabled != 0).await }))
}

/// Leaves the registry.
#[unsafe(no_mangle)]
pub extern "C" fn PilotDeregister(h: u64) -> *mut c_char {
    value(|| ask(h, "deregister", |d| async move { d.deregister().await }))
}

/// Replaces the identity key.
#[unsafe(no_mangle)]
pub extern "C" fn PilotRotateKey(h: u64) -> *mut c_char {
    value(|| ask(h, "rotate_key", |d| async move { d.rotate_key().await }))
}

/// Replaces the own tags by those of a JSON array of strings, or `null` for none.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotSetTags(h: u64, tagsJSON: *const c_char) -> *mut c_char {
    // SAFETY: the contract.
    let given = unsafe { text(tagsJSON) };
    value(|| {
        handles::driver(h)?;
        let tags = parse_tags(&given)?;
        ask(h, "set_tags", |d| async move {
            let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
            d.set_tags(&tags).await
        })
    })
}

pub(crate) fn parse_tags(given: &str) -> Result<Vec<String>, String> {
    let bad = |why: &str| format!("invalid tags JSON: {why}");
    match json::parse(given.as_bytes()).map_err(|error| bad(&error.to_string()))? {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list
            .into_iter()
            .map(|tag| match tag {
                Value::String(tag) => Ok(tag),
                Value::Null => Ok(String::new()),
                _ => Err(bad("a tag is not a string")),
            })
            .collect(),
        _ => Err(bad("not an array of strings")),
    }
}

/// Posts events to a URL; the empty one ends it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotSetWebhook(h: u64, url: *const c_char) -> *mut c_char {
    // SAFETY: the contract.
    let url = unsafe { text(url) };
    value(|| ask(h, "set_webhook", |d| async move { d.set_webhook(&url).await }))
}

/// Ends a connection by its number in the daemon.
#[unsafe(no_mangle)]
pub extern "C" fn PilotDisconnect(h: u64, connID: u32) -> *mut c_char {
    void(|| ask(h, "", |d| async move { d.disconnect(connID).await.map(|()| Value::Null) }).map(drop))
}

fn network(h: u64, label: &'static str, command: NetworkCommand) -> *mut c_char {
    value(|| ask(h, label, |d| async move { d.network(command).await }))
}

/// The networks.
#[unsafe(no_mangle)]
pub extern "C" fn PilotNetworkList(h: u64) -> *mut c_char {
    network(h, "network list", NetworkCommand::List)
}

/// Joins a network.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotNetworkJoin(h: u64, networkID: u16, token: *const c_char) -> *mut c_char {
    // SAFETY: the contract.
    let token = unsafe { text(token) };
    network(h, "network join", NetworkCommand::Join { network: networkID, token })
}

/// Leaves a network.
#[unsafe(no_mangle)]
pub extern "C" fn PilotNetworkLeave(h: u64, networkID: u16) -> *mut c_char {
    network(h, "network leave", NetworkCommand::Leave { network: networkID })
}

/// The members of a network.
#[unsafe(no_mangle)]
pub extern "C" fn PilotNetworkMembers(h: u64, networkID: u16) -> *mut c_char {
    network(h, "network members", NetworkCommand::Members { network: networkID })
}

/// Invites a node to a network.
#[unsafe(no_mangle)]
pub extern "C" fn PilotNetworkInvite(h: u64, networkID: u16, targetNodeID: u32) -> *mut c_char {
    network(h, "network invite", NetworkCommand::Invite { network: networkID, node: targetNodeID })
}

/// Invitations that wait.
#[unsafe(no_mangle)]
pub extern "C" fn PilotNetworkPollInvites(h: u64) -> *mut c_char {
    network(h, "network poll-invites", NetworkCommand::PollInvites)
}

/// Answers an invitation.
#[unsafe(no_mangle)]
pub extern "C" fn PilotNetworkRespondInvite(h: u64, networkID: u16, accept: c_int) -> *mut c_char {
    network(h, "network respond-invite", NetworkCommand::Respond { network: networkID, accept: accept != 0 })
}

/// The release of this library, to be released with `FreeString`. Not in the official header.
#[unsafe(no_mangle)]
pub extern "C" fn PilotLibraryVersion() -> *mut c_char {
    give(env!("CARGO_PKG_VERSION"))
}
