//! What the official commands do, as calls: with a number of their own, and with codes for their failures (L35).

use std::sync::Arc;
use std::time::Duration;

use pilot_services::CallError;
use pilot_wire::ipc::{MAX_HANDSHAKE_WAIT_MS, MAX_TAGS};
use serde_json::{Value, json};

use super::methods::{invalid, number};
use crate::directory::DirectoryError;
use crate::node::Shared;
use crate::trust::TrustFailed;

/// Their names.
pub(super) const NAMES: [&str; 13] = [
    "deregister",
    "hostname.resolve",
    "hostname.set",
    "key.rotate",
    "tags.set",
    "trust.approve",
    "trust.pending",
    "trust.reject",
    "trust.request",
    "trust.revoke",
    "trust.trusted",
    "trust.wait",
    "visibility.set",
];

pub(super) fn registry(error: DirectoryError) -> CallError {
    CallError::new(error.code(), error.to_string())
}

fn trust(error: TrustFailed) -> CallError {
    CallError::new(error.code(), error.to_string())
}

pub(super) fn peer(args: &Value) -> Result<u32, CallError> {
    let node = number(args, "node", 0)?;
    u32::try_from(node).ok().filter(|node| *node != 0).ok_or_else(|| invalid("node is the number of a node"))
}

/// A text of the arguments, empty when absent.
pub(super) fn text(args: &Value, name: &str) -> Result<String, CallError> {
    match args.get(name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(invalid(format!("{name} is a text"))),
    }
}

/// Does it, and answers as the official command.
pub(super) async fn call(node: &Arc<Shared>, method: &str, args: &Value) -> Result<Value, CallError> {
    let done = |peer: u32, status: &str| json!({ "node_id": peer, "status": status });
    match method {
        "deregister" => node.directory.deregister().await.map_err(registry),
        "hostname.resolve" => node.directory.resolve_hostname(&text(args, "hostname")?).await.map_err(registry),
        "hostname.set" => node.set_hostname(text(args, "hostname")?).await.map_err(registry),
        "key.rotate" => node.rotate_key().await.map_err(|why| CallError::new("not_rotated", why)),
        "tags.set" => {
            let tags = args.get("tags").and_then(Value::as_array).ok_or_else(|| invalid("tags is a list of texts"))?;
            let tags: Option<Vec<String>> = tags.iter().map(|tag| tag.as_str().map(str::to_owned)).collect();
            let tags = tags.ok_or_else(|| invalid("tags is a list of texts"))?;
            if tags.len() > MAX_TAGS {
                return Err(invalid(format!("{} tags (limit {MAX_TAGS})", tags.len())));
            }
            node.set_tags(tags).await.map_err(registry)
        }
        "trust.approve" => {
            let (peer, waited) = (peer(args)?, node.trust.waits(peer(args)?).await);
            node.trust.approve(peer).await.map_err(trust)?;
            Ok(json!({ "node_id": peer, "status": "approved", "was_pending": waited }))
        }
        "trust.pending" => {
            node.trust.refresh().await;
            Ok(crate::local::commands::cut_list("pending", node.trust.pending()))
        }
        "trust.reject" => {
            let (peer, reason) = (peer(args)?, text(args, "reason")?);
            let waited = node.trust.waits(peer).await;
            node.trust.reject(peer, reason).await.map_err(trust)?;
            Ok(json!({ "node_id": peer, "status": "rejected", "was_pending": waited }))
        }
        "trust.request" => {
            let (peer, justification) = (peer(args)?, text(args, "justification")?);
            let already = node.trust.is_trusted(peer);
            node.trust.request(peer, justification).await.map_err(trust)?;
            Ok(json!({ "node_id": peer, "status": "sent", "already_trusted": already }))
        }
        "trust.revoke" => {
            let peer = peer(args)?;
            if node.trust.revoke(peer).await.map_err(trust)? {
                return Ok(done(peer, "revoked"));
            }
            Err(CallError::new("not_trusted", format!("node {peer} was not trusted")))
        }
        "trust.trusted" => {
            node.trust.refresh().await;
            Ok(crate::local::commands::cut_list("trusted", node.trust.trusted()))
        }
        "trust.wait" => {
            let (peer, limit) = (peer(args)?, number(args, "timeout_ms", u64::from(MAX_HANDSHAKE_WAIT_MS))?);
            // A call can be cancelled, so it may wait longer than the official command.
            let trusted = node.trust.wait(peer, Duration::from_millis(limit)).await;
            Ok(json!({ "node_id": peer, "trusted": trusted }))
        }
        "visibility.set" => {
            let public =
                args.get("public").and_then(Value::as_bool).ok_or_else(|| invalid("public is true or false"))?;
            node.set_visibility(public).await.map_err(registry)
        }
        _ => Err(CallError::new("unknown_method", format!("{method} cannot be called"))),
    }
}
