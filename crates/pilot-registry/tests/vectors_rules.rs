//! Tables of the reference's validation helpers, and its store file.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use common::Peers;
use pilot_env::Env;
use pilot_registry::import::Snapshot;
use pilot_registry::{Limiter, Rate, RedbStore, RegistryConfig, rules};
use serde_json::{Value, json};

fn file() -> Value {
    serde_json::from_str(include_str!("vectors/registry-validation.json")).unwrap()
}

#[test]
fn names_and_tags_are_judged_as_by_the_reference() {
    for row in file()["hostname"].as_array().unwrap() {
        let outcome = rules::check_hostname(row["input"].as_str().unwrap()).err().unwrap_or_default();
        assert_eq!(outcome, row["error"], "{row}");
    }
    for row in file()["network_name"].as_array().unwrap() {
        let outcome = rules::check_network_name(row["input"].as_str().unwrap()).err().unwrap_or_default();
        assert_eq!(outcome, row["error"], "{row}");
    }
    for row in file()["tag_pattern"].as_array().unwrap() {
        assert_eq!(rules::is_tag(row["input"].as_str().unwrap()), row["error"] == "", "{row}");
    }
}

#[test]
fn unsigned_registrations_get_the_endpoint_of_the_reference() {
    let mut played = 0;
    for row in file()["listen_addr"].as_array().unwrap() {
        // A socket address with a zone name, or none at all, cannot come from our listeners.
        let Ok(source) = row["tcp_remote"].as_str().unwrap().parse::<SocketAddr>() else { continue };
        let expected = row["real_addr"].as_str().unwrap();
        let got = rules::endpoint(source, row["listen_addr"].as_str().unwrap(), false).map(|a| a.to_string());
        match expected.rsplit_once(':').unwrap().1.parse::<u16>() {
            Ok(port) if port != 0 => assert_eq!(got.as_deref(), Some(expected), "{row}"),
            // The reference stores ports nobody can send to; here the node has no endpoint (04 §24.28).
            _ => assert_eq!(got, None, "{row}"),
        }
        played += 1;
    }
    assert_eq!(played, 26);
}

#[test]
fn only_a_signed_registration_may_name_another_host_and_only_a_sensible_one() {
    let endpoint = |source: &str, listen: &str, signed| {
        rules::endpoint(source.parse().unwrap(), listen, signed).map(|a| a.to_string()).unwrap_or_default()
    };
    let source = "8.8.4.4:51000";
    assert_eq!(endpoint(source, "9.9.9.9:4000", true), "9.9.9.9:4000");
    assert_eq!(endpoint(source, "9.9.9.9:4000", false), "8.8.4.4:4000");
    assert_eq!(endpoint(source, "[2606:4700::1]:4000", true), "[2606:4700::1]:4000");
    for odd in [
        ":4000",
        "0.0.0.0:4000",
        "[::]:4000",
        "10.1.2.3:4000",
        "172.16.0.1:4000",
        "192.168.1.1:4000",
        "127.0.0.1:4000",
        "169.254.1.1:4000",
        "100.64.0.1:4000",
        "224.0.0.1:4000",
        "255.255.255.255:4000",
        "240.0.0.1:4000",
        "0.1.2.3:4000",
        "[::1]:4000",
        "[fe80::1]:4000",
        "[fd00::1]:4000",
        "[ff02::1]:4000",
        "[::ffff:10.0.0.1]:4000",
        "example.org:4000",
    ] {
        assert_eq!(endpoint(source, odd, true), "8.8.4.4:4000", "{odd}");
    }
    // On the registry's own machine the source says nothing, so a signed address of the local network counts.
    assert_eq!(endpoint("127.0.0.1:51000", "192.168.1.7:4000", true), "192.168.1.7:4000");
    assert_eq!(endpoint("127.0.0.1:51000", "192.168.1.7:4000", false), "127.0.0.1:4000");
    assert_eq!(endpoint("[::ffff:198.51.100.7]:51000", ":4000", false), "198.51.100.7:4000");
    assert_eq!(endpoint(source, "9.9.9.9:0", true), "");
    assert_eq!(endpoint(source, "9.9.9.9:+5", true), "");
}

#[test]
fn new_nodes_are_limited_on_the_timeline_of_the_reference() {
    let start = Env::real().now();
    let mut limiter = Limiter::new(RegistryConfig::default().new_nodes);
    for row in file()["rate_limiter_10_per_minute"].as_array().unwrap() {
        let now = start + Duration::from_secs_f64(row["t_seconds"].as_f64().unwrap());
        let allowed = limiter.take("198.51.100.7".parse().unwrap(), now);
        assert_eq!(allowed, row["allowed"], "{row}");
    }
}

#[test]
fn ipv6_sources_share_the_bucket_of_their_network() {
    let now = Env::real().now();
    let mut limiter = Limiter::new(Rate { burst: 1, per_second: 0.001 });
    assert!(limiter.take("2001:db8:1:2::1".parse().unwrap(), now));
    assert!(!limiter.take("2001:db8:1:2:ffff::9".parse().unwrap(), now));
    assert!(limiter.take("2001:db8:1:3::1".parse().unwrap(), now));
}

#[tokio::test]
async fn an_official_store_file_is_taken_over_with_its_addresses() {
    let env = Env::real();
    let now = env.unix().as_secs();
    let file: Value = serde_json::from_str(include_str!("vectors/registry-snapshot.json")).unwrap();
    let snapshot = Snapshot::read(file["store_file"].as_str().unwrap().as_bytes(), now).unwrap();
    assert_eq!(snapshot.next_node, 24);
    assert!(snapshot.notes.iter().any(|n| n.contains("node 6") && n.contains("node 5")), "{:?}", snapshot.notes);

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("registry.db");
    let store = RedbStore::open(&env, &path, now, Some(snapshot.clone())).unwrap();
    let mut peers = Peers::over(env.clone(), Arc::new(store), RegistryConfig::default());
    let node = peers.from(1, json!({"type": "lookup", "node_id": 2})).await;
    assert_eq!(node["hostname"], "node-b");
    assert_eq!(node["real_addr"], "127.0.0.6:4002");
    assert_eq!(node["tags"], json!(["api"]));
    assert_eq!(node["polo_score"], -3);
    // The key of a departed node still has its address.
    let departed = json!({"type": "register", "public_key": "zxs36F3ACu6U8QEIs38VHio3s64qDK53Uh+DSI25xNc="});
    assert_eq!(peers.from(1, departed).await["node_id"], 23);
    // Trust and waiting messages are there: node 3 has key E, seed 05.
    let waiting = peers.signed(1, 5, "poll_handshakes", 3, json!({})).await;
    assert_eq!(waiting["requests"][0]["justification"], "hi", "{waiting}");
    assert_eq!(waiting["responses"][0]["accept"], true);
    assert_eq!(peers.resolve(1, 5, 3, 1).await["real_addr"], "127.0.0.3:4778");
    drop(peers);

    // Nothing is imported over an existing store.
    let error = RedbStore::open(&env, &path, now, Some(snapshot)).err().unwrap().to_string();
    assert!(error.contains("exists already"), "{error}");
}

#[tokio::test]
async fn networks_of_a_store_file_are_served() {
    let env = Env::real();
    let now = env.unix().as_secs();
    let file: Value = serde_json::from_str(include_str!("vectors/registry-snapshot.json")).unwrap();
    let text = file["custom_network_store"].to_string();
    let snapshot = Snapshot::read(text.as_bytes(), now).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&env, &dir.path().join("r.db"), now, Some(snapshot)).unwrap();
    let mut peers = Peers::over(env, Arc::new(store), RegistryConfig::default());
    for row in file["custom_network_replies"].as_array().unwrap() {
        let request: Value = serde_json::from_str(row["request"].as_str().unwrap()).unwrap();
        let expected: Value = serde_json::from_str(row["reply"].as_str().unwrap()).unwrap();
        let mut got = peers.from(1, request).await;
        // Newer releases add these (07 §9.2), and we the role (N9).
        for list in ["networks", "nodes"] {
            for entry in got.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                if let Some(entry) = entry.as_object_mut() {
                    let added = ["created", "enterprise", "public", "role"];
                    entry.retain(|key, _| !added.contains(&key.as_str()));
                }
            }
        }
        assert_eq!(got, expected, "{row}");
    }
    // Members of a network learn each other's endpoints.
    assert_eq!(peers.resolve(1, 1, 1, 2).await["real_addr"], "127.0.0.1:4002");
}

#[test]
fn odd_files_are_refused_or_put_right() {
    assert!(Snapshot::read(b"{\"next_node\":77,", 0).is_err());
    assert!(Snapshot::read(b"{}", 0).is_err());
    let odd = json!({"next_node": 0, "nodes": {
        "1": {"id": 1, "public_key": ""},
        "2": {"id": 2, "public_key": common::key_text(1), "hostname": "a"},
        "3": {"id": 3, "public_key": common::key_text(2), "hostname": "a"},
        "4": {"id": 4, "public_key": common::key_text(1)},
        "5": {"id": u32::MAX, "public_key": common::key_text(3)},
    }, "trust_pairs": ["2:3", "2:9", "x"], "pub_key_idx": {"!": 7}});
    let snapshot = Snapshot::read(odd.to_string().as_bytes(), 5).unwrap();
    let ids: Vec<u32> = snapshot.nodes.iter().map(|(node, _)| node.id).collect();
    assert_eq!((ids, snapshot.next_node, snapshot.statements.len()), (vec![2, 3], 4, 2));
    assert_eq!(snapshot.nodes[1].0.hostname, "");
    assert_eq!(snapshot.notes.len(), 7, "{:?}", snapshot.notes);
}
