//! What strangers, former neighbours and liars cannot do (04 §24, 07 §18), and that honest nodes are not hurt by it.

mod common;
#[path = "attacks/networks.rs"]
mod networks;

use std::sync::Arc;

use common::{Peers, addr, key_text, sign};
use pilot_env::Env;
use pilot_registry::limits::{HOSTNAME_GRACE, STALE_AFTER};
use pilot_registry::{RedbStore, RegistryConfig, Store};
use pilot_wire::base64;
use serde_json::{Value, json};

fn register(seed: u8, fields: Value) -> Value {
    let mut request = fields;
    request["type"] = "register".into();
    request["public_key"] = key_text(seed).into();
    request
}

/// A registration signed as 1.13.11 and later do.
fn signed_register(seed: u8, listen_addr: &str) -> Value {
    let signature = sign(seed, &format!("register:{listen_addr}:{}", key_text(seed)));
    register(seed, json!({"listen_addr": listen_addr, "signature": signature}))
}

async fn endpoint(peers: &mut Peers, node: u32) -> Value {
    peers.lookup(node).await["real_addr"].clone()
}

async fn public(peers: &mut Peers, host: u8, seed: u8) -> u32 {
    let node = peers.join(host, seed).await;
    peers.signed(host, seed, "set_visibility", node, json!({"public": true})).await;
    node
}

#[tokio::test]
async fn an_owner_text_moves_nobody() {
    let mut peers = Peers::new();
    let owner = json!({"owner": "alice@example.com", "hostname": "alice"});
    let alice = peers.from(1, register(1, owner.clone())).await;
    let mallory = peers.from(66, register(2, owner.clone())).await;
    assert_ne!(alice["node_id"], mallory["node_id"]);
    assert_eq!(mallory.get("hostname"), None);
    // Nor while its owner is away, nor the other way round.
    let node = 1;
    assert_eq!(peers.heartbeat(1, 1, node).await["type"], "heartbeat_ok");
    assert_eq!(peers.signed(1, 1, "deregister", node, json!({})).await["type"], "deregister_ok");
    let third = peers.from(66, register(3, owner)).await;
    assert_eq!(third["node_id"], 3);
    assert_eq!(peers.register(1, 1).await["node_id"], 1);
    assert_eq!(peers.lookup(1).await["public_key"], key_text(1));
}

#[tokio::test]
async fn every_spelling_of_a_key_is_the_same_node() {
    let mut peers = Peers::new();
    let node = peers.join(1, 1).await;
    let text = key_text(1);
    let other_bits = format!("{}{}=", &text[..42], char::from(text.as_bytes()[42] + 1));
    let broken = format!("{}\n{}", &text[..10], &text[10..]);
    for spelling in [other_bits, broken] {
        assert_eq!(base64::decode_array::<32>(&spelling), Some(common::key(1)), "{spelling:?}");
        let answer = peers.from(1, json!({"type": "register", "public_key": spelling})).await;
        assert_eq!(answer["node_id"], node);
        assert_eq!(answer["public_key"], spelling, "the text is echoed as sent");
    }
}

#[tokio::test]
async fn a_live_node_is_moved_only_by_its_key() {
    let mut peers = Peers::new();
    let node = public(&mut peers, 1, 1).await;
    assert_eq!(endpoint(&mut peers, node).await, "203.0.113.1:4000");
    // A stranger who knows the key text changes neither endpoint nor name.
    let answer = peers.from(66, register(1, json!({"listen_addr": ":6666", "hostname": "mine"}))).await;
    assert_eq!(answer["node_id"], node);
    assert_eq!(answer.get("hostname"), None);
    assert_eq!(endpoint(&mut peers, node).await, "203.0.113.1:4000");
    // Nor does another's proof on the same connection.
    peers.join(66, 2).await;
    assert_eq!(endpoint(&mut peers, node).await, "203.0.113.1:4000");
    assert_eq!(peers.from(250, json!({"type": "resolve_hostname", "hostname": "mine"})).await["type"], "error");

    // The holder of the key moves: nothing changes until it signs something on that connection.
    peers.from(2, register(1, json!({"listen_addr": ":4002", "hostname": "moved"}))).await;
    assert_eq!(endpoint(&mut peers, node).await, "203.0.113.1:4000");
    assert_eq!(peers.heartbeat(2, 1, node).await["type"], "heartbeat_ok");
    assert_eq!(endpoint(&mut peers, node).await, "203.0.113.2:4002");
    assert_eq!(peers.lookup(node).await["hostname"], "moved");
    // A signed registration moves it at once, a wrongly signed one is refused.
    assert_eq!(peers.from(3, signed_register(1, ":4003")).await["type"], "register_ok");
    assert_eq!(endpoint(&mut peers, node).await, "203.0.113.3:4003");
    let mut forged = signed_register(1, ":4004");
    forged["listen_addr"] = ":4005".into();
    assert_eq!(peers.from(66, forged).await["code"], "signature_failed");
    assert_eq!(peers.from(66, register(1, json!({"signature": "***"}))).await["code"], "signature_encoding");
    assert_eq!(endpoint(&mut peers, node).await, "203.0.113.3:4003");
}

#[tokio::test]
async fn a_name_is_not_put_on_a_live_node_by_its_neighbours() {
    let mut peers = Peers::new();
    let node = peers.join(1, 1).await;
    peers.disconnect(1);
    let answer = peers.from(1, register(1, json!({"listen_addr": ":4000", "hostname": "odd"}))).await;
    assert_eq!((answer["node_id"].as_u64(), answer.get("hostname")), (Some(u64::from(node)), None));
    assert_eq!(peers.lookup(node).await.get("hostname"), None);
}

#[tokio::test]
async fn the_holder_of_a_key_takes_its_place_back_from_a_squatter() {
    let mut peers = Peers::new();
    let node = public(&mut peers, 1, 1).await;
    assert_eq!(peers.signed(1, 1, "deregister", node, json!({})).await["type"], "deregister_ok");
    // While it is away anybody can name its key, but not prove it.
    peers.from(66, register(1, json!({"listen_addr": ":6666"}))).await;
    // Its next heartbeat says that it has to register, and registering needs no waiting.
    let answer = peers.heartbeat(1, 1, node).await;
    assert!(answer["error"].as_str().unwrap().contains("node not found"), "{answer}");
    peers.register(1, 1).await;
    assert_eq!(peers.heartbeat(1, 1, node).await["type"], "heartbeat_ok");
    peers.signed(1, 1, "set_visibility", node, json!({"public": true})).await;
    assert_eq!(endpoint(&mut peers, node).await, "203.0.113.1:4000");
    peers.from(66, register(1, json!({"listen_addr": ":6666"}))).await;
    assert_eq!(endpoint(&mut peers, node).await, "203.0.113.1:4000");
}

#[tokio::test]
async fn one_side_alone_makes_no_trust() {
    let mut peers = Peers::new();
    let (a, b) = (peers.join(1, 1).await, peers.join(2, 2).await);
    assert_eq!(peers.about(66, 2, "report_trust", b, a, json!({})).await["type"], "report_trust_ok");
    assert_eq!(peers.resolve(2, 2, b, a).await["code"], "private");
    let signature = sign(2, &format!("punch:{b}:{a}"));
    let punch = json!({"type": "punch", "requester_id": b, "node_a": b, "node_b": a, "signature": signature});
    assert_eq!(peers.from(2, punch.clone()).await["code"], "private", "punching is no way around");
    // An answer nobody asked for is refused, and does not reach the other.
    let respond = peers.about(2, 2, "respond_handshake", b, a, json!({"accept": true})).await;
    assert_eq!(respond["code"], "no_request");
    let waiting = peers.signed(1, 1, "poll_handshakes", a, json!({})).await;
    assert_eq!(waiting["responses"], json!([]));
    // Even a resolve is no request for an answer, though it makes the trust mutual.
    assert_eq!(peers.resolve(1, 1, a, b).await["real_addr"], "203.0.113.2:4000");
    assert_eq!(peers.about(2, 2, "respond_handshake", b, a, json!({"accept": true})).await["code"], "no_request");
    assert_eq!(peers.resolve(2, 2, b, a).await["real_addr"], "203.0.113.1:4000");
    assert_eq!(peers.from(2, punch).await["node_b_addr"], "203.0.113.1:4000");
    // Either side ends it, for both.
    assert_eq!(peers.about(1, 1, "revoke_trust", a, b, json!({})).await["type"], "revoke_trust_ok");
    assert_eq!(peers.resolve(2, 2, b, a).await["code"], "private");
    let check = json!({"type": "check_trust", "node_id": a, "peer_id": b});
    assert_eq!(peers.from(1, check.clone()).await["trusted"], false);
    assert_eq!(peers.from(67, check).await["code"], "unproved", "the trust graph is nobody else's matter");
}

#[tokio::test]
async fn a_relayed_handshake_reaches_both_at_once_and_makes_trust() {
    let mut peers = Peers::new();
    let (a, b) = (peers.join(1, 1).await, peers.join(2, 2).await);
    let long = "ü".repeat(5000);
    let sent = peers.about(1, 1, "request_handshake", a, b, json!({"justification": long})).await;
    assert_eq!(sent["status"], "delivered");
    assert_eq!(*peers.told.0.lock(), [b], "the target is told at once");
    let got = peers.signed(2, 2, "poll_handshakes", b, json!({})).await;
    assert_eq!(got["requests"][0]["from_node_id"], a);
    assert_eq!(got["requests"][0]["justification"].as_str().unwrap().len(), 4096);
    for _ in 0..3 {
        let answer = peers.about(2, 2, "respond_handshake", b, a, json!({"accept": true})).await;
        assert_eq!(answer["type"], "respond_handshake_ok");
    }
    assert_eq!(peers.told.0.lock().last(), Some(&a));
    let got = peers.signed(1, 1, "poll_handshakes", a, json!({})).await;
    assert_eq!(got["responses"].as_array().unwrap().len(), 1, "repeated answers are one");
    assert_eq!(peers.resolve(1, 1, a, b).await["real_addr"], "203.0.113.2:4000");
    assert_eq!(peers.resolve(2, 2, b, a).await["real_addr"], "203.0.113.1:4000");
}

#[tokio::test]
async fn inboxes_are_bounded_and_every_poll_fits_a_frame() {
    let mut config = RegistryConfig::default();
    config.new_nodes.burst = 1000;
    let env = Env::real();
    let store = Arc::new(RedbStore::in_memory(env.unix().as_secs(), None).unwrap());
    let mut peers = Peers::over(env, store, config);
    let target = peers.join(1, 1).await;
    // Control characters take six bytes each in JSON.
    let text = "\u{1}".repeat(4096);
    for seed in 2..=101 {
        let from = peers.join(2, seed).await;
        let sent = peers.about(2, seed, "request_handshake", from, target, json!({"justification": text})).await;
        assert_eq!(sent["type"], "request_handshake_ok", "{sent}");
    }
    let from = peers.join(2, 102).await;
    assert_eq!(peers.about(2, 102, "request_handshake", from, target, json!({})).await["code"], "inbox_full");
    let mut seen = Vec::new();
    let mut polls = 0;
    while seen.len() < 100 {
        let got = peers.signed(1, 1, "poll_handshakes", target, json!({})).await;
        assert!(got.to_string().len() < 1 << 20);
        seen.extend(got["requests"].as_array().unwrap().iter().map(|r| r["from_node_id"].as_u64().unwrap()));
        polls += 1;
    }
    assert_eq!(seen, (2..=101).collect::<Vec<u64>>(), "in order, each once");
    assert!(polls > 1);
}

#[tokio::test]
async fn scores_take_a_proved_connection_and_stay_in_bounds() {
    let mut peers = Peers::new();
    let node = peers.join(1, 1).await;
    let set = |score: f64| json!({"type": "set_polo_score", "node_id": node, "polo_score": score});
    assert_eq!(peers.from(66, set(5.0)).await["code"], "unproved");
    assert_eq!(peers.from(1, set(1e300)).await["polo_score"], -1_000_000_000, "out of range means the smallest");
    assert_eq!(peers.from(1, set(9e18)).await["polo_score"], 1_000_000_000);
    let update = json!({"type": "update_polo_score", "node_id": node, "delta": 9e18});
    assert_eq!(peers.from(1, update).await["polo_score"], 1_000_000_000);
    assert_eq!(peers.signed(1, 1, "deregister", node, json!({})).await["type"], "deregister_ok");
    peers.join(1, 1).await;
    assert_eq!(peers.lookup(node).await["polo_score"], 1_000_000_000, "a new start launders no score");
}

#[tokio::test]
async fn a_worker_learns_for_itself_whether_it_may_take_a_task() {
    let mut peers = Peers::new();
    let (worker, submitter) = (peers.join(1, 1).await, peers.join(2, 2).await);
    let ask = |seed: u8, caller: u32, submitter: u32, receiver: u32| {
        let signature = sign(seed, &format!("authorize_task_submit:{caller}:{submitter}:{receiver}"));
        json!({"type": "authorize_task_submit", "caller_node_id": caller, "submitter_node_id": submitter,
            "receiver_node_id": receiver, "signature": signature})
    };
    let yes = json!({"type": "authorize_task_submit_ok", "authorized": true});
    assert_eq!(peers.from(1, ask(1, worker, submitter, worker)).await, yes);
    peers.from(1, json!({"type": "update_polo_score", "node_id": worker, "delta": 1})).await;
    assert_eq!(
        peers.from(1, ask(1, worker, submitter, worker)).await,
        json!({"type": "authorize_task_submit_ok", "authorized": false,
            "reason": "polo score too low: submitter=0, receiver=1"})
    );
    peers.from(1, json!({"type": "update_polo_score", "node_id": submitter, "delta": 1})).await;
    assert_eq!(peers.from(1, ask(1, worker, submitter, worker)).await, yes);
    // In the name of another, and about a node that is not there.
    assert_eq!(peers.from(66, ask(2, worker, submitter, worker)).await["code"], "signature_failed");
    assert_eq!(peers.from(66, ask(2, submitter, submitter, worker)).await["code"], "not_participant");
    assert_eq!(peers.from(1, ask(1, worker, 999, worker)).await["code"], "node_not_found");
    // As an official daemon of release 1.9.1 sent it, which signed it with this key.
    let key = "JLc+MdasP93XCr6AmpM8HI+Hh+KrJtO2iYTdEdyLEac=";
    let official = peers.from(3, json!({"type": "register", "public_key": key, "listen_addr": ":4000"})).await;
    assert_eq!(official["node_id"], 3);
    let recorded = json!({"caller_node_id": 3, "receiver_node_id": 3, "submitter_node_id": 2,
        "type": "authorize_task_submit",
        "signature": "dIrICdYnkmwUOicOGlFkBFjGno2EYYcdQ3AjnUaPS91KtKOCHdgjJ8qzpP5UX/oo9D5itGtICw/tbN7+ociDDA=="});
    assert_eq!(peers.from(3, recorded).await, yes);
}

#[tokio::test]
async fn a_key_cannot_be_rotated_onto_another_node() {
    let mut peers = Peers::new();
    let (a, b) = (peers.join(1, 1).await, peers.join(2, 2).await);
    let rotate = |to: u8| json!({"new_public_key": key_text(to), "signature": ""});
    let mut request = rotate(2);
    request["type"] = "rotate_key".into();
    request["node_id"] = a.into();
    request["signature"] = sign(1, &format!("rotate:{a}")).into();
    assert_eq!(peers.from(1, request.clone()).await["code"], "key_in_use");
    assert_eq!(peers.register(2, 2).await["node_id"], b);
    request["new_public_key"] = key_text(3).into();
    assert_eq!(peers.from(1, request).await["type"], "rotate_key_ok");
    assert_eq!(peers.heartbeat(1, 3, a).await["type"], "heartbeat_ok");
    let old = peers.heartbeat(1, 1, a).await;
    assert!(old["error"].as_str().unwrap().contains("signature verification failed"), "{old}");
    assert_eq!(peers.register(1, 3).await["node_id"], a);
    assert_ne!(peers.register(1, 1).await["node_id"], a, "the old key belongs to the node no more");
}

#[tokio::test]
async fn a_rotation_that_names_its_key_is_good_for_that_key_only() {
    let mut peers = Peers::new();
    let node = peers.join(1, 1).await;
    let text = format!("rotate:{node}:{}", key_text(3));
    let mut request = json!({"type": "rotate_key", "node_id": node, "new_public_key": key_text(4)});
    request["signature"] = sign(1, &text).into();
    assert_eq!(peers.from(66, request.clone()).await["code"], "signature_failed", "somebody who saw it");
    request["new_public_key"] = key_text(3).into();
    let mut forged = request.clone();
    forged["signature"] = sign(2, &text).into();
    assert_eq!(peers.from(66, forged).await["code"], "signature_failed");
    assert_eq!(peers.from(1, request).await["type"], "rotate_key_ok");
    assert_eq!(peers.heartbeat(1, 3, node).await["type"], "heartbeat_ok");
}

#[tokio::test]
async fn names_outlast_an_absence_but_not_a_long_one() {
    let env = Env::real();
    let now = env.unix().as_secs();
    let store = Arc::new(RedbStore::in_memory(now, None).unwrap());
    let mut peers = Peers::over(env, store.clone(), RegistryConfig::default());
    let node = peers.join(1, 1).await;
    peers.signed(1, 1, "set_hostname", node, json!({"hostname": "web"})).await;
    let squatter = peers.join(2, 2).await;
    // Three minutes of silence end a node; others cannot have its name then.
    let later = now + STALE_AFTER.as_secs() + 60;
    assert_eq!(store.reap(later).await.unwrap(), 2);
    assert_eq!(peers.lookup(node).await["code"], "node_not_found");
    assert_eq!(peers.join(2, 2).await, squatter);
    let taken = peers.signed(2, 2, "set_hostname", squatter, json!({"hostname": "web"})).await;
    assert_eq!(taken["code"], "hostname_taken");
    assert_eq!(peers.from(9, json!({"type": "resolve_hostname", "hostname": "web"})).await["type"], "error");
    // It comes back to its address and its name.
    assert_eq!(peers.join(1, 1).await, node);
    assert_eq!(peers.from(9, json!({"type": "resolve_hostname", "hostname": "web"})).await["node_id"], node);
    // After the grace period the name is free.
    store.reap(now + 1000).await.unwrap();
    let proof = pilot_registry::domain::Proof { node: squatter, key: common::key(2), source: addr(2).ip() };
    peers.join(2, 2).await;
    let at = now + 1000 + HOSTNAME_GRACE.as_secs();
    store.set_hostname(at, proof, "web".to_owned()).await.unwrap();
    assert_eq!(peers.join(1, 1).await, node);
    assert_eq!(peers.lookup(node).await.get("hostname"), None);
    assert_eq!(peers.lookup(squatter).await["hostname"], "web");
}

#[tokio::test]
async fn a_name_taken_without_a_key_is_free_again_at_once() {
    let env = Env::real();
    let now = env.unix().as_secs();
    let store = Arc::new(RedbStore::in_memory(now, None).unwrap());
    let mut peers = Peers::over(env, store.clone(), RegistryConfig::default());
    peers.from(66, register(9, json!({"hostname": "web"}))).await;
    store.reap(now + 1000).await.unwrap();
    let node = peers.join(1, 1).await;
    let given = peers.signed(1, 1, "set_hostname", node, json!({"hostname": "web"})).await;
    assert_eq!(given["hostname"], "web");
}

#[tokio::test]
async fn beacons_speak_for_themselves_only() {
    let mut peers = Peers::new();
    let beacon = |id: u32, addr: &str| json!({"type": "beacon_register", "beacon_id": id, "addr": addr});
    assert_eq!(peers.from(1, beacon(7, "203.0.113.1:9001")).await["type"], "beacon_register_ok");
    assert_eq!(peers.from(66, beacon(8, "198.51.100.1:9001")).await["code"], "beacon_address");
    assert_eq!(peers.from(66, beacon(7, "203.0.113.66:9001")).await["code"], "beacon_taken");
    for odd in ["203.0.113.66:0", "beacon.example:9001", "0.0.0.0:9001", "x"] {
        assert_eq!(peers.from(66, beacon(9, odd)).await["code"], "beacon_address", "{odd}");
    }
    let list = peers.from(66, json!({"type": "beacon_list"})).await;
    assert_eq!(list["beacons"], json!([{"addr": "203.0.113.1:9001", "id": 7}]));
}

#[tokio::test]
async fn messages_between_beacons_and_registry_are_as_recorded() {
    let mut peers = Peers::new();
    let file: Value = serde_json::from_str(include_str!("vectors/wire-beacon-registry.json")).unwrap();
    let source = "127.0.0.1:50000".parse().unwrap();
    let mut answer = None;
    for row in file["messages"].as_array().unwrap() {
        let body: Value = serde_json::from_str(row["body"].as_str().unwrap()).unwrap();
        if row["direction"] == "beacon->registry" {
            answer = peers.send(source, row["body"].as_str().unwrap().as_bytes()).await;
        } else {
            assert_eq!(answer.take().unwrap(), body);
        }
    }
}

#[tokio::test]
async fn a_flood_of_new_keys_is_cut_off_and_known_keys_come_through() {
    let mut peers = Peers::new();
    let node = peers.join(1, 1).await;
    let refused = {
        let mut refused = 0;
        for seed in 2..=60 {
            let answer = peers.register(1, seed).await;
            refused += usize::from(answer["code"] == "rate_limited");
        }
        refused
    };
    // Ten at once, and one every six seconds of however long this took.
    assert!((45..=50).contains(&refused), "{refused}");
    assert_eq!(peers.register(1, 1).await["node_id"], node);
    assert_eq!(peers.register(2, 61).await["type"], "register_ok", "others are not hurt");
}

#[tokio::test]
async fn a_node_reached_through_the_beacon_only_shows_the_beacons_address() {
    let env = Env::real();
    let store = Arc::new(RedbStore::in_memory(env.unix().as_secs(), None).unwrap());
    let config = RegistryConfig { beacon: Some("0.0.0.0:9001".parse().unwrap()), ..RegistryConfig::default() };
    let mut peers = Peers::over(env, store, config);
    let hidden = peers.from(1, register(1, json!({"relay_only": true, "listen_addr": ":4000"}))).await;
    let hidden = u32::try_from(hidden["node_id"].as_u64().unwrap()).unwrap();
    peers.signed(1, 1, "set_visibility", hidden, json!({"public": true})).await;
    let asker = peers.join(2, 2).await;
    let shown = peers.resolve(2, 2, asker, hidden).await;
    // The wildcard became the address by which the asker reached the registry.
    assert_eq!((&shown["real_addr"], &shown["relay_only"]), (&json!("192.0.2.250:9001"), &json!(true)));
    assert_eq!(peers.lookup(hidden).await["real_addr"], "192.0.2.250:9001");
}

#[tokio::test(start_paused = true)]
async fn every_heartbeat_is_checked_and_a_forged_one_keeps_nobody_alive() {
    // 07 D14: the official registry checks one in two minutes.
    let env = Env::simulated(14);
    let store = Arc::new(RedbStore::in_memory(env.unix().as_secs(), None).unwrap());
    let mut peers = Peers::over(env.clone(), store.clone(), RegistryConfig::default());
    let (alive, dead) = (peers.join(1, 1).await, peers.join(2, 2).await);
    for _ in 0..STALE_AFTER.as_secs() / 10 + 6 {
        env.sleep(std::time::Duration::from_secs(10)).await;
        assert_eq!(peers.heartbeat(1, 1, alive).await["type"], "heartbeat_ok");
        // From the dead node's own address, signed by somebody else and not at all.
        let forged = peers.heartbeat(2, 9, dead).await;
        assert!(forged["error"].as_str().unwrap().contains("signature verification failed"), "{forged}");
        let bare = peers.from(2, json!({"type": "heartbeat", "node_id": dead})).await;
        assert_eq!(bare["type"], "error", "{bare}");
    }
    assert_eq!(store.reap(env.unix().as_secs()).await.unwrap(), 1);
    assert_eq!(peers.lookup(dead).await["code"], "node_not_found");
    assert_eq!(peers.lookup(alive).await["type"], "lookup_ok");
}
