//! Managed networks, policies, member tags and broadcasts (06 §17). Our daemons refuse them in words; official ones have
//! an engine for them.

use std::ffi::{c_char, c_int, c_void};

use pilot_sdk::Error;
use pilot_wire::ipc::managed as sub;
use pilot_wire::json;
use serde_json::json;

use crate::answer::value;
use crate::handles;
use crate::memory::{bytes, text, untrusted_text};
use crate::requests::{ask, parse_tags};
use crate::streams::PATIENCE;

/// Reading, in requests that read or write.
const GET: u8 = 0;
const SET: u8 = 1;

fn managed(h: u64, label: &'static str, sub: u8, rest: Vec<u8>) -> *mut c_char {
    value(|| ask(h, label, |d| async move { d.managed(sub, &rest).await }))
}

/// A two-byte length and the text; what does not fit is cut.
fn counted(text: &str, out: &mut Vec<u8>) {
    let text = &text.as_bytes()[..text.len().min(usize::from(u16::MAX))];
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

/// The state of a managed network.
#[unsafe(no_mangle)]
pub extern "C" fn PilotManagedStatus(h: u64, networkID: u16) -> *mut c_char {
    managed(h, "managed status", sub::STATUS, networkID.to_be_bytes().to_vec())
}

/// Runs a cycle of a managed network.
#[unsafe(no_mangle)]
pub extern "C" fn PilotManagedForceCycle(h: u64, networkID: u16) -> *mut c_char {
    managed(h, "managed cycle", sub::CYCLE, networkID.to_be_bytes().to_vec())
}

/// Reconciles a managed network.
#[unsafe(no_mangle)]
pub extern "C" fn PilotManagedReconcile(h: u64, networkID: u16) -> *mut c_char {
    managed(h, "managed reconcile", sub::RECONCILE, networkID.to_be_bytes().to_vec())
}

/// Scores a node; releases of April 2026 only.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotManagedScore(
    h: u64,
    networkID: u16,
    nodeID: u32,
    delta: i32,
    topic: *const c_char,
) -> *mut c_char {
    let mut rest = networkID.to_be_bytes().to_vec();
    rest.extend_from_slice(&nodeID.to_be_bytes());
    rest.extend_from_slice(&delta.to_be_bytes());
    // SAFETY: the contract.
    rest.extend_from_slice(unsafe { text(topic) }.as_bytes());
    managed(h, "managed score", sub::SCORE, rest)
}

/// The order of the nodes of a managed network; releases of April 2026 only.
#[unsafe(no_mangle)]
pub extern "C" fn PilotManagedRankings(h: u64, networkID: u16) -> *mut c_char {
    managed(h, "managed rankings", sub::RANKINGS, networkID.to_be_bytes().to_vec())
}

/// The policy of a network.
#[unsafe(no_mangle)]
pub extern "C" fn PilotPolicyGet(h: u64, networkID: u16) -> *mut c_char {
    let mut rest = vec![GET];
    rest.extend_from_slice(&networkID.to_be_bytes());
    managed(h, "policy get", sub::POLICY, rest)
}

/// Sets the policy of a network. One binding passes no token, so that the last argument is whatever was in its register:
/// it is used when there is a short readable text behind it, and counts as the empty one otherwise.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotPolicySet(
    h: u64,
    networkID: u16,
    policyJSON: *const c_char,
    adminToken: *const c_char,
) -> *mut c_char {
    let mut rest = vec![SET];
    rest.extend_from_slice(&networkID.to_be_bytes());
    counted(&untrusted_text(adminToken), &mut rest);
    // SAFETY: the contract.
    rest.extend_from_slice(unsafe { text(policyJSON) }.as_bytes());
    managed(h, "policy set", sub::POLICY, rest)
}

/// The tags of a member.
#[unsafe(no_mangle)]
pub extern "C" fn PilotMemberTagsGet(h: u64, networkID: u16, nodeID: u32) -> *mut c_char {
    let mut rest = vec![GET];
    rest.extend_from_slice(&networkID.to_be_bytes());
    rest.extend_from_slice(&nodeID.to_be_bytes());
    managed(h, "member-tags get", sub::MEMBER_TAGS, rest)
}

/// Sets the tags of a member.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotMemberTagsSet(
    h: u64,
    networkID: u16,
    nodeID: u32,
    tagsJSON: *const c_char,
) -> *mut c_char {
    // SAFETY: the contract.
    let given = unsafe { text(tagsJSON) };
    value(|| {
        handles::driver(h)?;
        let tags = parse_tags(&given)?;
        let mut rest = vec![SET];
        rest.extend_from_slice(&networkID.to_be_bytes());
        rest.extend_from_slice(&nodeID.to_be_bytes());
        rest.extend_from_slice(&json::to_vec(&json!(tags)));
        ask(h, "member-tags set", |d| async move { d.managed(sub::MEMBER_TAGS, &rest).await })
    })
}

/// Sends a datagram to every member of a network.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn PilotBroadcast(
    h: u64,
    networkID: u16,
    port: u16,
    data: *const c_void,
    dataLen: c_int,
    adminToken: *const c_char,
) -> *mut c_char {
    // SAFETY: the contract.
    let (data, token) = unsafe { (bytes(data, dataLen).to_vec(), text(adminToken)) };
    value(|| {
        let sent = ask(h, "", |d| async move {
            let sending = d.broadcast_with_token(networkID, port, &data, &token);
            // As binds and dials: without an answer of the daemon it fails.
            tokio::time::timeout(PATIENCE, sending).await.unwrap_or(Err(Error::Timeout { op: "broadcast" }))
        });
        sent.map(|_| json!({ "ok": true }))
    })
}
