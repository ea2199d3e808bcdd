//! The server on real sockets: frames, order, limits and deadlines; and the recorded traffic of daemons.

mod common;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::KeyPair as _;
use common::{Peers, key_text, pair, sign};
use pilot_env::{Env, NetStream};
use pilot_registry::{RedbStore, Registry, RegistryConfig, RegistryServer, ServerConfig};
use pilot_wire::{base64, json as wire_json};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

async fn start(limits: impl FnOnce(&mut ServerConfig, &mut RegistryConfig)) -> RegistryServer {
    let env = Env::real();
    let mut server = ServerConfig::new("127.0.0.1:0".parse().unwrap());
    let mut config = RegistryConfig::default();
    limits(&mut server, &mut config);
    let store = Arc::new(RedbStore::in_memory(env.unix().as_secs(), None).unwrap());
    let registry = Arc::new(Registry::new(env.clone(), store, config, None));
    RegistryServer::start(&env, registry, server).unwrap()
}

async fn connect(server: &RegistryServer) -> NetStream {
    Env::real().tcp_connect(server.addr()).await.unwrap()
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_be_bytes()[..], body].concat()
}

async fn read(stream: &mut NetStream) -> Option<Value> {
    let len = stream.read_u32().await.ok()?;
    let mut body = vec![0; len as usize];
    stream.read_exact(&mut body).await.unwrap();
    Some(serde_json::from_slice(&body).unwrap())
}

async fn ask(stream: &mut NetStream, request: &Value) -> Value {
    stream.write_all(&frame(&wire_json::to_vec(request))).await.unwrap();
    read(stream).await.expect("an answer")
}

/// Nothing but the end of the stream comes.
async fn is_closed(stream: &mut NetStream) -> bool {
    let mut rest = Vec::new();
    // A reset is an end too.
    let _ = stream.read_to_end(&mut rest).await;
    rest.is_empty()
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_however_they_are_cut() {
    let server = start(|_, _| {}).await;
    let mut stream = connect(&server).await;
    let mut all = Vec::new();
    for i in 0..100 {
        all.extend(frame(json!({"type": format!("bogus{i}")}).to_string().as_bytes()));
        all.extend(frame(br#"{"type":"beacon_list"}"#));
    }
    let (mut reader, mut writer) = tokio::io::split(stream);
    let sender = tokio::spawn(async move {
        for piece in all.chunks(7) {
            writer.write_all(piece).await.unwrap();
        }
        writer
    });
    for _ in 0..100 {
        for expected in ["error", "beacon_list_ok"] {
            let len = reader.read_u32().await.unwrap();
            let mut body = vec![0; len as usize];
            reader.read_exact(&mut body).await.unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["type"], expected);
        }
    }
    stream = reader.unsplit(sender.await.unwrap());
    assert_eq!(ask(&mut stream, &json!({"type": "beacon_list"})).await["beacons"], json!([]));
    server.shutdown().await;
}

#[tokio::test]
async fn a_message_may_have_a_megabyte_and_not_a_byte_more() {
    let server = start(|_, _| {}).await;
    let mut stream = connect(&server).await;
    let mut body = br#"{"type":"beacon_list"}"#.to_vec();
    body.resize(1 << 20, b' ');
    stream.write_all(&frame(&body)).await.unwrap();
    assert_eq!(read(&mut stream).await.unwrap()["type"], "beacon_list_ok");
    // The prefix alone is enough to be shown out.
    stream.write_all(&0x0010_0001u32.to_be_bytes()).await.unwrap();
    assert!(is_closed(&mut stream).await);
    server.shutdown().await;
}

#[tokio::test]
async fn what_is_no_message_ends_the_connection_without_an_answer_and_nothing_else() {
    let server = start(|_, _| {}).await;
    let mut bystander = connect(&server).await;
    let deep = "[".repeat(20_000);
    for body in [&b"[]"[..], b"hello", b"", b"{} x", b"\"x\"", b"1e999", b"\xEF\xBB\xBF{}", deep.as_bytes()] {
        let mut stream = connect(&server).await;
        stream.write_all(&frame(body)).await.unwrap();
        assert!(is_closed(&mut stream).await, "{:?}", &body[..body.len().min(20)]);
    }
    // An unknown type keeps it open (07 rule 29).
    for request in [json!({"type": "ping"}), json!({}), json!({"type": 5})] {
        assert_eq!(ask(&mut bystander, &request).await["code"], "unknown_type");
    }
    let refused = ask(&mut bystander, &json!({"type": "subscribe_replication", "token": "x"})).await;
    assert_eq!(refused["error"], "replication not configured");
    assert!(is_closed(&mut bystander).await);
    server.shutdown().await;
}

#[tokio::test]
async fn too_many_connections_are_turned_away_and_places_come_back() {
    let server = start(|server, _| server.max_per_source = 3).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = connect(&server).await;
        assert_eq!(ask(&mut stream, &json!({"type": "beacon_list"})).await["type"], "beacon_list_ok");
        held.push(stream);
    }
    assert!(is_closed(&mut connect(&server).await).await);
    held.pop();
    // The server notices the end of a connection in its own time.
    loop {
        let mut stream = connect(&server).await;
        let _ = stream.write_all(&frame(br#"{"type":"beacon_list"}"#)).await;
        if read(&mut stream).await.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    server.shutdown().await;
}

#[tokio::test]
async fn a_flood_on_one_connection_is_slowed_and_others_are_served() {
    let server = start(|_, config| {
        config.requests_per_connection = pilot_registry::Rate { burst: 10, per_second: 20.0 };
    })
    .await;
    let mut flood = connect(&server).await;
    let request = frame(br#"{"type":"beacon_list"}"#);
    for _ in 0..20 {
        flood.write_all(&request).await.unwrap();
    }
    let mut other = connect(&server).await;
    assert_eq!(ask(&mut other, &json!({"type": "beacon_list"})).await["type"], "beacon_list_ok");
    let started = Env::real().now();
    for _ in 0..20 {
        assert_eq!(read(&mut flood).await.unwrap()["type"], "beacon_list_ok");
    }
    // Ten at once and ten at twenty per second.
    assert!(Env::real().now() - started > Duration::from_millis(300));
    server.shutdown().await;
}

#[tokio::test]
async fn a_client_that_never_reads_holds_up_nobody() {
    let server = start(|_, _| {}).await;
    let mut deaf = connect(&server).await;
    let request = frame(format!(r#"{{"type":"{}"}}"#, "x".repeat(50_000)).as_bytes());
    let deaf = tokio::spawn(async move { while deaf.write_all(&request).await.is_ok() {} });
    for _ in 0..50 {
        let mut stream = connect(&server).await;
        assert_eq!(ask(&mut stream, &json!({"type": "beacon_list"})).await["type"], "beacon_list_ok");
    }
    deaf.abort();
    server.shutdown().await;
}

#[tokio::test]
async fn a_stop_closes_idle_connections_at_once() {
    let server = start(|_, _| {}).await;
    let mut idle = connect(&server).await;
    assert_eq!(ask(&mut idle, &json!({"type": "beacon_list"})).await["type"], "beacon_list_ok");
    server.shutdown().await;
    assert!(is_closed(&mut idle).await);
}

#[tokio::test]
async fn large_messages_that_never_end_take_bounded_memory_and_spare_small_ones() {
    let server = start(|_, _| {}).await;
    let mut held = Vec::new();
    // More than all large messages together may take.
    for _ in 0..140 {
        let mut stream = connect(&server).await;
        stream.write_all(&(1u32 << 20).to_be_bytes()).await.unwrap();
        stream.write_all(&[b' '; 100]).await.unwrap();
        held.push(stream);
    }
    let mut small = connect(&server).await;
    assert_eq!(ask(&mut small, &json!({"type": "beacon_list"})).await["type"], "beacon_list_ok");
    // Room comes back when they go.
    drop(held);
    let mut body = br#"{"type":"beacon_list"}"#.to_vec();
    body.resize(1 << 20, b' ');
    small.write_all(&frame(&body)).await.unwrap();
    assert_eq!(read(&mut small).await.unwrap()["type"], "beacon_list_ok");
    server.shutdown().await;
}

/// Plays the recorded requests of a daemon with keys of our own, because the recorded ones are not known, and compares
/// the answers with the recorded ones field by field.
#[tokio::test]
async fn three_generations_of_daemons_get_the_answers_they_got() {
    let file: Value = serde_json::from_str(include_str!("vectors/drift-registry-sequence.json")).unwrap();
    for session in file["sessions"].as_array().unwrap() {
        let label = format!("{} with {}", session["daemon"], session["rendezvous"]);
        let mut peers = Peers::new();
        let messages = session["messages"].as_array().unwrap();
        let register = messages.iter().find(|m| m["msg"]["type"] == "register").unwrap();
        let recorded_key = register["msg"]["public_key"].as_str().unwrap();
        let node =
            messages.iter().find(|m| m["msg"]["type"] == "register_ok").unwrap()["msg"]["node_id"].as_u64().unwrap();
        // Others have registered before.
        for id in 1..node {
            peers.register(1, u8::try_from(100 + id).unwrap()).await;
        }
        let swap = |text: &str| text.replace(recorded_key, &key_text(1));
        let mut played = 0;
        for message in messages.iter().filter(|m| m["dir"] == "daemon->registry") {
            let mut request: Value = serde_json::from_str(&swap(&message["msg"].to_string())).unwrap();
            if let Some(text) = message["signed_text"].as_str() {
                request["signature"] = sign(1, &swap(text)).into();
            }
            // 1.18.0 uses four connections; each is one here too.
            let conn = u16::try_from(message["conn"].as_u64().unwrap()).unwrap();
            let source = SocketAddr::from(([127, 0, 0, 1], 50_000 + conn));
            let got = peers.ask(source, &request).await;
            let kind = format!("{}_ok", request["type"].as_str().unwrap());
            assert_eq!(got["type"], kind, "{label}: {request} -> {got}");
            let like = messages.iter().find(|m| m["msg"]["type"] == kind);
            for (name, value) in like.map(|m| m["msg"].as_object().unwrap()).into_iter().flatten() {
                match name.as_str() {
                    "time" | "networks" => assert!(got.get(name).is_some(), "{label}: {kind} lacks {name}"),
                    _ => {
                        let value: Value = serde_json::from_str(&swap(&value.to_string())).unwrap();
                        assert_eq!(got[name], value, "{label}: {kind}.{name}");
                    }
                }
            }
            if let Some(entry) = got["networks"].get(0).filter(|entry| entry.is_object()) {
                assert_eq!(
                    (&entry["id"], &entry["name"], &entry["join_rule"]),
                    (&json!(0), &json!("backbone"), &json!("open"))
                );
                assert!(entry["created"].is_u64() && entry["enterprise"] == false);
            }
            played += 1;
        }
        assert!(played >= 6, "{label}: {played}");
    }
    assert_eq!(base64::encode(pair(1).public_key().as_ref()), key_text(1));
}
