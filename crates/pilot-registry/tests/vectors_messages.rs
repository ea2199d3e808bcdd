//! The 187 exchanges recorded from the reference, in order. Where this registry answers differently on purpose, the table
//! [`DIFFERENCES`] says so and why; any other difference fails.

mod common;

use std::net::{IpAddr, SocketAddr};

use common::Peers;
use pilot_registry::error::MASKED;
use serde_json::{Value, json};

/// What is expected instead of the recorded answer.
enum Ours {
    /// An error with this code.
    Error(&'static str),
    /// These fields.
    Fields(fn() -> Value),
    /// The request is not played: what it does in the reference cannot happen here. Another test plays it.
    Skipped,
}

const ONE_SIDED: &str = "04 §24.3: a statement of one side is not trust";
const TAKEOVER: &str = "04 §24.2, 07 D12: an owner text moves nobody's node; see attacks.rs";
const KEPT: &str = "04 §24.8, §24.13: tags, score, task flag and name stay with the identity";
const PORT: &str = "04 §24.28: a port must be 1 to 65535; without one the node has no endpoint";
const SPELLING: &str = "04 §24.10: keys are indexed by their 32 bytes, so both spellings are one node; see attacks.rs";
const NETWORKS: &str = "07 §9.3: networks exist; commands about them are proved";
const WORDING: &str = "07 §9.4: the reason is passed on; our text says that the tags are invalid";

const DIFFERENCES: &[(&str, &str, Ours)] = &[
    ("resolve/private_trusted", ONE_SIDED, Ours::Error("private")),
    ("set_tags/uppercase", WORDING, Ours::Error("tags_invalid")),
    ("set_tags/hash_only", WORDING, Ours::Error("tags_invalid")),
    ("set_tags/mixed_types", WORDING, Ours::Error("tags_invalid")),
    ("register/owner_recovery_live", TAKEOVER, Ours::Skipped),
    (
        "lookup/after_owner_recovery",
        TAKEOVER,
        Ours::Fields(|| json!({"public_key": "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w=", "hostname": "a--1"})),
    ),
    ("heartbeat/old_key_after_takeover", TAKEOVER, Ours::Fields(|| json!({"type": "heartbeat_ok"}))),
    (
        "lookup/after_reclaim",
        KEPT,
        Ours::Fields(|| {
            json!({"polo_score": 42, "public": false, "hostname": "node-b", "task_exec": true,
                   "tags": ["web-server", "api"]})
        }),
    ),
    ("create_network/disabled", NETWORKS, Ours::Error("admin_token_invalid")),
    ("join_network/disabled", NETWORKS, Ours::Error("signature_required")),
    ("leave_network/disabled", NETWORKS, Ours::Error("signature_required")),
    ("deregister/node1_by_D", TAKEOVER, Ours::Error("signature_failed")),
    ("register/owner_reclaim_offline", TAKEOVER, Ours::Skipped),
    ("register/stale_key_after_owner_reclaim", TAKEOVER, Ours::Skipped),
    (
        "lookup/after_stale_key_register",
        TAKEOVER,
        Ours::Fields(|| json!({"public_key": "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="})),
    ),
    ("register/key_X_other_spelling", SPELLING, Ours::Fields(|| json!({"node_id": 5}))),
    ("lookup/listen_addr_1.2.3.4:", PORT, Ours::Fields(|| json!({"public": true, "real_addr": null}))),
    ("lookup/listen_addr_:http", PORT, Ours::Fields(|| json!({"public": true, "real_addr": null}))),
    ("lookup/listen_addr_:99999", PORT, Ours::Fields(|| json!({"public": true, "real_addr": null}))),
];

/// Keys that newer releases add to the recorded answers (07 §9.2), besides `code` (04 §24.29).
const ADDED: [&str; 7] =
    ["observed_addr", "protocol_version", "version", "key_age_days", "created", "enterprise", "code"];

/// Words of 07 §9.4 whose presence lets a reason out.
const PASSED_ON: [&str; 8] =
    ["rate limited", "already", "too many", "too long", "not found", "invalid", "require", "signature"];

/// Every recorded field has the recorded value, and nothing is added but what newer releases add.
fn check(name: &str, expected: &Value, got: &Value) {
    match (expected, got) {
        (Value::Object(expected), Value::Object(got)) => {
            for (key, value) in expected {
                if matches!(key.as_str(), "time" | "timestamp") {
                    assert!(got[key].as_u64().is_some_and(|t| t > 1_700_000_000), "{name}: {key} in {got:?}");
                } else {
                    check(&format!("{name}.{key}"), value, got.get(key).unwrap_or(&Value::Null));
                }
            }
            for key in got.keys() {
                assert!(expected.contains_key(key) || ADDED.contains(&key.as_str()), "{name}: added key {key}");
            }
        }
        (Value::Array(expected), Value::Array(got)) => {
            assert_eq!(expected.len(), got.len(), "{name}");
            expected.iter().zip(got).for_each(|(expected, got)| check(name, expected, got));
        }
        _ => assert_eq!(expected, got, "{name}"),
    }
}

fn check_error(name: &str, vector: &Value, got: &Value) {
    let reason = vector["server_log_error"].as_str().unwrap_or_default();
    let text = got["error"].as_str().unwrap_or_else(|| panic!("{name}: {got} is no error"));
    assert!(got["code"].as_str().is_some_and(|code| !code.is_empty()), "{name}: {got}");
    if name == "subscribe_replication/not_configured" {
        return assert_eq!(text, "replication not configured");
    }
    let is_passed_on = PASSED_ON.iter().any(|word| reason.contains(word));
    assert_eq!(text != MASKED, is_passed_on, "{name}: the reference logs {reason:?}, we answer {text:?}");
}

/// Where the recorded request came from.
fn source(vectors: &[Value], name: &str) -> SocketAddr {
    if name.starts_with("ratelimit/") {
        return "127.0.0.9:50000".parse().unwrap();
    }
    if let Some((_, which)) = name.split_once("listen_addr_") {
        let lookup = vectors.iter().find(|v| v["name"] == format!("lookup/listen_addr_{which}"));
        let shown: Value = serde_json::from_str(lookup.unwrap()["response_json"].as_str().unwrap()).unwrap();
        let (host, port) = shown["real_addr"].as_str().unwrap().rsplit_once(':').unwrap();
        let host: IpAddr = host.parse().unwrap();
        return SocketAddr::new(host, port.parse().unwrap_or(50000));
    }
    "127.0.0.1:50000".parse().unwrap()
}

#[tokio::test]
async fn recorded_exchanges_are_answered_as_by_the_reference() {
    let file: Value = serde_json::from_str(include_str!("vectors/registry-messages.json")).unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 187);
    let mut peers = Peers::new();
    let mut applied = 0;
    for vector in vectors {
        let name = vector["name"].as_str().unwrap();
        // These three are about frames; `server.rs` plays them over a socket.
        if ["max_size_1048576", "over_size_1048577", "pipelined_pair"].contains(&name) {
            continue;
        }
        if name == "register/listen_addr_garbage" {
            // A node takes the id that the other spelling of key X got in the recording.
            let filler = json!({"type": "register", "public_key": common::key_text(200)});
            assert_eq!(peers.ask("192.0.2.1:1".parse().unwrap(), &filler).await["node_id"], 6);
        }
        let difference = DIFFERENCES.iter().find(|(which, ..)| *which == name);
        applied += usize::from(difference.is_some());
        if matches!(difference, Some((_, _, Ours::Skipped))) {
            continue;
        }
        let body = vector["request_json"].as_str().unwrap();
        let got = peers.send(source(vectors, name), body.as_bytes()).await;
        let closes = vector["server_closes_connection"] == true;
        match (got, difference) {
            (None, _) => assert!(closes && vector["response_json"].as_str().unwrap_or("").is_empty(), "{name}"),
            (Some(got), Some((_, reason, Ours::Error(code)))) => {
                assert_eq!(got["code"], *code, "{name} ({reason}): {got}")
            }
            (Some(got), Some((_, reason, Ours::Fields(fields)))) => {
                for (key, value) in fields().as_object().unwrap() {
                    assert_eq!(got.get(key).unwrap_or(&Value::Null), value, "{name} ({reason}): {got}");
                }
            }
            (Some(got), _) => {
                let recorded = vector["response_json"].as_str().unwrap_or_else(|| panic!("{name} has no answer"));
                let recorded: Value = serde_json::from_str(recorded).unwrap_or_else(|_| panic!("{name}: {recorded:?}"));
                if recorded["type"] == "error" {
                    check_error(name, vector, &got);
                } else {
                    check(name, &recorded, &got);
                }
            }
        }
    }
    assert_eq!(applied, DIFFERENCES.len(), "every difference belongs to an exchange");
}
