//! The nameserver against the recorded exchanges, power cuts and rude clients.

use std::path::Path;

use pilot_wire::SocketAddress;
use serde_json::Value;
use tokio::io::DuplexStream;

use super::*;
use crate::{Dialing, Network, NoEvents};

struct Nowhere;

impl Network for Nowhere {
    fn address(&self) -> Address {
        Address::backbone(1)
    }
    fn dial(&self, _remote: SocketAddress) -> Dialing {
        Box::pin(async { Err(CallError::new("unreachable", "no network here")) })
    }
    fn trusted(&self) -> Vec<u32> {
        Vec::new()
    }
}

fn start(env: &Env) -> Arc<dyn Service> {
    env.fs().create_dir_all(Path::new("/pilot"), 0o700).unwrap();
    let (events, network) = (Arc::new(NoEvents), Arc::new(Nowhere));
    Nameserver.open(&Host { env: env.clone(), dir: Some("/pilot".into()), events, network }).unwrap()
}

fn stream(service: &Arc<dyn Service>, node: u32) -> DuplexStream {
    let (near, far) = tokio::io::duplex(1 << 16);
    let remote = SocketAddress::new(Address::backbone(node), 49_152);
    let context = Context { remote, unix: Arc::new(|| Duration::ZERO) };
    tokio::spawn(service.serve(Box::new(far), context));
    near
}

async fn exchange(service: &Arc<dyn Service>, node: u32, request: &[u8]) -> String {
    let mut stream = stream(service, node);
    // The server may have heard enough, and closed, before everything was said.
    drop(stream.write_all(request).await);
    if request.is_empty() {
        stream.shutdown().await.unwrap();
    }
    let mut reply = String::new();
    stream.read_to_string(&mut reply).await.unwrap();
    reply
}

/// Where ours means to differ: records of other nodes are refused, and with that what follows from them (04 §24.47).
const FIXED: &[(&str, &str)] = &[
    ("REGISTER A bob 0:0000.0000.0009", "ERR cannot register address for another node"),
    ("REGISTER A alice 0:0000.0000.0006", "ERR cannot register address for another node"),
    ("REGISTER S web2 0:0000.0000.0006 0 80", "ERR cannot register service for another node"),
    ("QUERY S 0 80", "S web 0:0000.0000.0005 80"),
];

#[tokio::test(start_paused = true)]
async fn exchanges_are_those_of_the_official_server_but_for_its_mistakes() {
    let text = include_str!("../../pilot-wire/tests/vectors/registry-nameserver.json");
    let file: Value = serde_json::from_str(text).unwrap();
    let service = start(&Env::simulated(1));
    let mut overwritten = false;
    for row in file["exchanges"].as_array().unwrap() {
        let request = row["request"].as_str().unwrap();
        overwritten |= request == "REGISTER A alice 0:0000.0000.0006";
        let mut expected = row["reply"].as_str().unwrap();
        if let Some((_, fixed)) = FIXED.iter().find(|(r, reply)| *r == request && (expected != "S" || *reply != "S")) {
            expected = if expected == "S" { "S" } else { fixed };
        }
        if overwritten && request == "QUERY A alice" {
            expected = "A alice 0:0000.0000.0005";
        }
        assert_eq!(exchange(&service, 5, request.as_bytes()).await, expected, "{request:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn names_belong_to_who_came_first_until_they_expire() {
    let env = Env::simulated(2);
    let service = start(&env);
    assert_eq!(exchange(&service, 5, b"REGISTER A alice 0:0000.0000.0005\n").await, "OK");
    assert_eq!(exchange(&service, 5, b"REGISTER N lab 7").await, "OK");
    assert_eq!(
        exchange(&service, 6, b"REGISTER A alice 0:0000.0000.0006").await,
        "ERR name \"alice\" belongs to another node"
    );
    assert_eq!(exchange(&service, 6, b"REGISTER N lab 8").await, "ERR network \"lab\" belongs to another node");
    tokio::time::sleep(LIFETIME / 2).await;
    assert_eq!(exchange(&service, 5, b"REGISTER A alice 0:0000.0000.0005").await, "OK");
    tokio::time::sleep(LIFETIME * 3 / 4).await;
    // Refreshed and still there; the other one is gone to the second.
    assert_eq!(exchange(&service, 9, b"QUERY A alice").await, "A alice 0:0000.0000.0005");
    assert_eq!(exchange(&service, 9, b"QUERY N lab").await, "ERR network \"lab\" not found");
    tokio::time::sleep(LIFETIME).await;
    assert_eq!(exchange(&service, 6, b"REGISTER A alice 0:0000.0000.0006").await, "OK");
}

#[tokio::test(start_paused = true)]
async fn what_was_registered_survives_a_power_cut_in_the_official_form() {
    for seed in 0..20 {
        let env = Env::simulated(seed);
        let service = start(&env);
        for request in
            [&b"REGISTER A alice 0:0000.0000.0005"[..], b"REGISTER N lab 7", b"REGISTER S web 0:0000.0000.0005 0 80"]
        {
            assert_eq!(exchange(&service, 5, request).await, "OK");
        }
        env.sim().unwrap().crash_disk();
        let service = start(&env);
        assert_eq!(exchange(&service, 9, b"QUERY A alice").await, "A alice 0:0000.0000.0005");
        assert_eq!(exchange(&service, 9, b"QUERY N lab").await, "N lab 7");
        assert_eq!(exchange(&service, 9, b"QUERY S 0 80").await, "S web 0:0000.0000.0005 80");
        assert_eq!(exchange(&service, 6, b"REGISTER N lab 8").await, "ERR network \"lab\" belongs to another node");
    }
    // A file of the official server is taken over.
    let text = include_str!("../../pilot-wire/tests/vectors/registry-nameserver.json");
    let file: Value = serde_json::from_str(text).unwrap();
    for name in ["store_file_after", "store_file_after_everything_expired"] {
        let env = Env::simulated(3);
        env.fs().create_dir_all(Path::new("/pilot"), 0o700).unwrap();
        let text = file[name].as_str().unwrap();
        env.fs().write_atomic(Path::new("/pilot/nameserver.json"), text.as_bytes(), 0o600).unwrap();
        let found = exchange(&start(&env), 9, b"QUERY A bob").await;
        let expected = if text.contains("bob") { "A bob 0:0000.0000.0009" } else { "ERR name \"bob\" not found" };
        assert_eq!(found, expected);
    }
}

#[tokio::test(start_paused = true)]
async fn hostile_input_is_bounded() {
    let env = Env::simulated(4);
    let service = start(&env);
    let bad_name = "ERR name must have at most 253 bytes and no control characters";
    for (request, answer) in [
        (format!("REGISTER A {} 0:0000.0000.0005\n", "x".repeat(254)).into_bytes(), bad_name),
        (b"REGISTER A a\x01b 0:0000.0000.0005\n".to_vec(), bad_name),
        (b"\xFF\xFE\n".to_vec(), "ERR request is not UTF-8 text"),
        (vec![b'x'; 70_000], "ERR too few fields"),
        (b"QUERY A ".repeat(3), "ERR name \"QUERY\" not found"),
    ] {
        assert_eq!(exchange(&service, 5, &request).await, answer);
    }
    for n in 0..MAX_PER_NODE {
        assert_eq!(exchange(&service, 5, format!("REGISTER A n{n} 0:0000.0000.0005\n").as_bytes()).await, "OK");
    }
    let reply = exchange(&service, 5, b"REGISTER A more 0:0000.0000.0005\n").await;
    assert_eq!(reply, "ERR too many records of one node (limit 256)");
    assert_eq!(exchange(&service, 6, b"REGISTER A more 0:0000.0000.0006\n").await, "OK");
    // Silence is ended.
    let mut silent = stream(&service, 5);
    let mut reply = String::new();
    silent.read_to_string(&mut reply).await.unwrap();
    assert_eq!(reply, "ERR no request within 10s");
    let found = ask(stream(&service, 9), &Request::QueryA("n7".into())).await.unwrap();
    assert_eq!(found, Reply::A { name: "n7".into(), address: Address::backbone(5) });
}
