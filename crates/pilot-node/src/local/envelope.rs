//! Requests signed for third parties, as the official commands carry them: JSON in, JSON out (07 §12). What they mean is in
//! `node::signing`.

use std::time::Duration;

use serde_json::{Value, json};

use crate::node::{Shared, signing};

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
    signing::sign(node, text(&payload, "audience"), text(&payload, "body_hash"))
}

/// Checks an envelope of any node.
pub(super) async fn verify(node: &Shared, body: &[u8]) -> Result<Value, String> {
    let payload = payload(body)?;
    let (signed, signature) = (text(&payload, "envelope"), text(&payload, "signature"));
    if signed.is_empty() || signature.is_empty() {
        return Err("envelope and signature required".to_owned());
    }
    let skew = match payload.get("max_skew_secs") {
        None | Some(Value::Null) => None,
        Some(value) => match value.as_u64() {
            Some(0) => None,
            Some(skew) => Some(Duration::from_secs(skew)),
            None => return Err("max_skew_secs is not a number of seconds".to_owned()),
        },
    };
    let mut answer = signing::verify(node, signed, signature, skew).await?;
    if answer["valid"] == true && payload.get("check_standing").and_then(Value::as_bool) == Some(true) {
        // There is nobody here who gives standing; saying so is better than a word that could be taken for one.
        answer["standing"] = json!("unknown");
    }
    Ok(answer)
}
