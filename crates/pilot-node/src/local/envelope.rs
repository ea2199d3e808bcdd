//! Requests signed for third parties: an agent proves to a web service, say, which node it is (07 §12).

use pilot_proto::identity::verify as verifies;
use pilot_wire::base64;
use pilot_wire::envelope::{self, Envelope, MAX_SKEW};
use serde_json::{Value, json};

use crate::node::Shared;

/// Longest skew a caller may allow, in seconds: a day.
const LONGEST_SKEW: u64 = 86_400;

fn payload(body: &[u8]) -> Result<Value, String> {
    pilot_wire::json::parse(body).map_err(|error| format!("bad payload: {error}"))
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value.get(name).and_then(Value::as_str).unwrap_or_default()
}

/// Why JSON with two texts cannot even be looked at; `None` when they are there.
pub(super) fn refuse_json(body: &[u8], command: &str, names: [&str; 2]) -> Option<String> {
    match payload(body) {
        Err(why) => Some(format!("{command}: {why}")),
        Ok(value) if names.iter().any(|name| text(&value, name).is_empty()) => {
            Some(format!("{command}: {} and {} required", names[0], names[1]))
        }
        Ok(_) => None,
    }
}

/// Signs `audience` and `body_hash` as this node, now.
pub(super) fn sign(node: &Shared, body: &[u8]) -> Result<Value, String> {
    let payload = payload(body)?;
    let (audience, body_hash) = (text(&payload, "audience"), text(&payload, "body_hash"));
    envelope::check(audience, body_hash).map_err(|error| error.to_string())?;
    if node.node() == 0 {
        return Err("this node is not registered yet".to_owned());
    }
    let signed = Envelope {
        address: node.address(),
        unix: node.env.unix().as_secs(),
        nonce: node.env.random_u64(),
        body_hash: body_hash.to_owned(),
        audience: audience.to_owned(),
    }
    .to_string();
    let signature = base64::encode(&node.identity().sign(signed.as_bytes()));
    Ok(json!({ "envelope": signed, "signature": signature, "address": node.address().to_string() }))
}

/// Checks an envelope of any node against the key the registry has for it.
///
/// What was signed is answered beside `valid`, so that the caller can compare the hash with what it received.
pub(super) async fn verify(node: &Shared, body: &[u8]) -> Result<Value, String> {
    let payload = payload(body)?;
    let (signed, signature) = (text(&payload, "envelope"), text(&payload, "signature"));
    if signed.is_empty() || signature.is_empty() {
        return Err("envelope and signature required".to_owned());
    }
    let skew = match payload.get("max_skew_secs") {
        None | Some(Value::Null) => MAX_SKEW,
        Some(value) => match value.as_u64() {
            Some(0) => MAX_SKEW,
            Some(skew) => skew.min(LONGEST_SKEW),
            None => return Err("max_skew_secs is not a number of seconds".to_owned()),
        },
    };
    let invalid = |reason: String| json!({ "valid": false, "reason": reason });
    let envelope: Envelope = match signed.parse() {
        Ok(envelope) => envelope,
        Err(error) => return Ok(invalid(error.to_string())),
    };
    let now = node.env.unix().as_secs();
    if now.abs_diff(envelope.unix) > skew {
        return Ok(invalid(format!("signed at {}, which is more than {skew} s from now ({now})", envelope.unix)));
    }
    let Some(signature) = base64::decode_array::<64>(signature) else {
        return Ok(invalid("the signature is not 64 bytes in base64".to_owned()));
    };
    let peer = envelope.address.node;
    let key = if peer == node.node() {
        node.identity().public_key()
    } else {
        // The registry's word is asked for each time: a key may have been rotated, and pinned ones are not for others.
        let found = node.directory.lookup(peer).await.map_err(|error| format!("lookup node {peer}: {error}"))?;
        match base64::decode_array(&found.public_key) {
            Some(key) => key,
            None => return Ok(invalid(format!("the registry has no usable key for node {peer}"))),
        }
    };
    if !verifies(&key, signed.as_bytes(), &signature) {
        return Ok(invalid(format!("the signature is not that of node {peer}")));
    }
    let mut answer = json!({
        "valid": true,
        "reason": "",
        "address": envelope.address.to_string(),
        "node_id": peer,
        "timestamp": envelope.unix,
        "nonce": format!("{:016x}", envelope.nonce),
        "body_hash": envelope.body_hash,
        "audience": envelope.audience,
    });
    if payload.get("check_standing").and_then(Value::as_bool) == Some(true) {
        // There is nobody here who gives standing; saying so is better than a word that could be taken for one.
        answer["standing"] = json!("unknown");
    }
    Ok(answer)
}
