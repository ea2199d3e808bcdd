//! The texts that are signed with a node's Ed25519 key (04 §6, 07 §9.2), all in one place. Ids are decimal without
//! padding; the signature travels as padded base64 in the field `signature`.

use crate::registry::NetworkChange;

/// `heartbeat:<node>`
pub fn heartbeat(node: u32) -> String {
    format!("heartbeat:{node}")
}

/// `deregister:<node>`
pub fn deregister(node: u32) -> String {
    format!("deregister:{node}")
}

/// `rotate:<node>`, signed with the old key.
pub fn rotate(node: u32) -> String {
    format!("rotate:{node}")
}

/// `rotate:<node>:<new_public_key>`, signed with the old key: the form of official daemons from 1.9.1 on. Unlike
/// [`rotate`] it names the new key, so that who sees it once cannot use it for a key of his own.
pub fn rotate_to(node: u32, new_public_key: &str) -> String {
    format!("rotate:{node}:{new_public_key}")
}

/// `rotated:<node>:<new key>`, signed with the old key and with the new one: what a node tells those who trust it
/// (docs/spec/trust.md, K3).
pub fn rotated(node: u32, new_public_key: &str) -> String {
    format!("rotated:{node}:{new_public_key}")
}

/// `register:<listen_addr>:<public_key>` with both texts exactly as sent (07 §9.2).
pub fn register(listen_addr: &str, public_key: &str) -> String {
    format!("register:{listen_addr}:{public_key}")
}

/// `resolve:<requester>:<node>`, signed by the requester.
pub fn resolve(requester: u32, node: u32) -> String {
    format!("resolve:{requester}:{node}")
}

/// `punch:<a>:<b>` in the order of the message, signed by the requester.
pub fn punch(a: u32, b: u32) -> String {
    format!("punch:{a}:{b}")
}

/// `set_hostname:<node>`
pub fn set_hostname(node: u32) -> String {
    format!("set_hostname:{node}")
}

/// `set_visibility:<node>`
pub fn set_visibility(node: u32) -> String {
    format!("set_visibility:{node}")
}

/// `set_tags:<node>`
pub fn set_tags(node: u32) -> String {
    format!("set_tags:{node}")
}

/// `set_task_exec:<node>`
pub fn set_task_exec(node: u32) -> String {
    format!("set_task_exec:{node}")
}

/// `authorize_task_submit:<caller>:<submitter>:<receiver>`, signed by the caller (docs/spec/registry.md, R29).
pub fn authorize_task(caller: u32, submitter: u32, receiver: u32) -> String {
    format!("authorize_task_submit:{caller}:{submitter}:{receiver}")
}

/// `report_trust:<node>:<peer>`
pub fn report_trust(node: u32, peer: u32) -> String {
    format!("report_trust:{node}:{peer}")
}

/// `revoke_trust:<node>:<peer>`
pub fn revoke_trust(node: u32, peer: u32) -> String {
    format!("revoke_trust:{node}:{peer}")
}

/// `handshake:<from>:<to>`: the direct message on port 444 (05 §3.2) and the relayed request are signed alike.
pub fn handshake(from: u32, to: u32) -> String {
    format!("handshake:{from}:{to}")
}

/// `poll_handshakes:<node>`
pub fn poll_handshakes(node: u32) -> String {
    format!("poll_handshakes:{node}")
}

/// `respond:<node>:<peer>`, the same for accept and reject.
pub fn respond(node: u32, peer: u32) -> String {
    format!("respond:{node}:{peer}")
}

/// `join_network:<node>:<network>`
pub fn join_network(node: u32, network: u16) -> String {
    format!("join_network:{node}:{network}")
}

/// `leave_network:<node>:<network>`
pub fn leave_network(node: u32, network: u16) -> String {
    format!("leave_network:{node}:{network}")
}

/// `invite:<inviter>:<network>:<target>`
pub fn invite(inviter: u32, network: u16, target: u32) -> String {
    format!("invite:{inviter}:{network}:{target}")
}

/// `poll_invites:<node>`
pub fn poll_invites(node: u32) -> String {
    format!("poll_invites:{node}")
}

/// `respond_invite:<node>:<network>`
pub fn respond_invite(node: u32, network: u16) -> String {
    format!("respond_invite:{node}:{network}")
}

/// `<type>:<node>:<timestamp>:<fields>`: a command about a network by the node that may give it (docs/spec/networks.md,
/// N4). Unlike the official texts it names all that is commanded, and a time: the registry takes it once, and not for long.
pub fn network_command(node: u32, change: &NetworkChange, timestamp: u64) -> String {
    format!("{}:{node}:{timestamp}:{}", change.kind(), change.canonical())
}

/// `set_key_expiry:<node>`
pub fn set_key_expiry(node: u32) -> String {
    format!("set_key_expiry:{node}")
}

/// `submit_badge:<node>:<badge>`
pub fn submit_badge(node: u32, badge: &str) -> String {
    format!("submit_badge:{node}:{badge}")
}

/// `enroll_recovery:<node>:<commitment>`
pub fn enroll_recovery(node: u32, commitment: &str) -> String {
    format!("enroll_recovery:{node}:{commitment}")
}
