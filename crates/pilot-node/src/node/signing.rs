//! Requests signed for third parties: an agent proves to a web service, say, which node it is (07 §12).

use std::time::Duration;

use pilot_proto::identity::verify as verifies;
use pilot_wire::base64;
use pilot_wire::envelope::{self, Envelope, MAX_SKEW};
use serde_json::{Value, json};

use super::{Node, Shared};

/// Longest skew a caller may allow, in seconds: a day.
const LONGEST_SKEW: u64 = 86_400;

impl Node {
    /// Signs a request for a third party as this node, now: `envelope`, `signature`, `address`. `body_hash` is the SHA-256
    /// of what is asked, `audience` names whom it is meant for.
    ///
    /// # Errors
    /// Says what is wrong with the audience, or that the node is not registered yet.
    pub fn sign_request(&self, audience: &str, body_hash: &[u8; 32]) -> Result<Value, String> {
        let hash: String = body_hash.iter().map(|byte| format!("{byte:02x}")).collect();
        sign(&self.shared, audience, &hash)
    }

    /// Verifies a request that some node has signed, against the key the registry has for it: `valid`, `reason`, and what
    /// was signed. `max_skew` is how far the signer's clock may be off, a day at most; `None` means 300 s.
    ///
    /// # Errors
    /// Only when the registry cannot be asked.
    pub async fn verify_request(
        &self,
        envelope: &str,
        signature: &str,
        max_skew: Option<Duration>,
    ) -> Result<Value, String> {
        verify(&self.shared, envelope, signature, max_skew).await
    }
}

/// Signs `audience` and `body_hash` (64 hex digits) as this node, now.
pub(crate) fn sign(node: &Shared, audience: &str, body_hash: &str) -> Result<Value, String> {
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
pub(crate) async fn verify(
    node: &Shared,
    signed: &str,
    signature: &str,
    max_skew: Option<Duration>,
) -> Result<Value, String> {
    let skew = max_skew.map_or(MAX_SKEW, |skew| skew.as_secs().min(LONGEST_SKEW));
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
    Ok(json!({
        "valid": true,
        "reason": "",
        "address": envelope.address.to_string(),
        "node_id": peer,
        "timestamp": envelope.unix,
        "nonce": format!("{:016x}", envelope.nonce),
        "body_hash": envelope.body_hash,
        "audience": envelope.audience,
    }))
}
