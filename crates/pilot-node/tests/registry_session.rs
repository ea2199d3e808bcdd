//! A node and a registry that comes, goes and forgets.

mod common;

use std::net::SocketAddr;

use common::{Net, patient, until};
use pilot_env::Env;
use pilot_rendezvous::{Rendezvous, RendezvousConfig};
use pilot_wire::frame::FrameDecoder;
use pilot_wire::registry::{Fields, Request, parse_body};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Asks the registry something as a stranger does.
async fn ask(registry: SocketAddr, request: &Request) -> Fields {
    let mut stream = Env::real().tcp_connect(registry).await.unwrap();
    let mut bytes = Vec::new();
    request.emit(&mut bytes).unwrap();
    stream.write_all(&bytes).await.unwrap();
    let mut decoder = FrameDecoder::default();
    loop {
        if let Some(body) = decoder.next_frame().unwrap() {
            return parse_body(body).unwrap();
        }
        assert_ne!(stream.read_buf(decoder.buffer()).await.unwrap(), 0, "no answer");
    }
}

async fn holder(registry: SocketAddr, hostname: &str) -> u32 {
    ask(registry, &Request::ResolveHostname { hostname: hostname.to_owned(), requester: 0 }).await.u32("node_id")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_started_without_a_registry_registers_when_there_is_one() {
    let net = Net::new().await;
    let (registry, beacon) = (net.rendezvous.registry_addr(), net.rendezvous.beacon_addr());
    let mut config = net.config();
    config.hostname = "early".to_owned();
    net.rendezvous.shutdown().await;
    let node = patient(pilot_node::Node::start(Env::real(), config)).await.unwrap();
    assert_eq!(node.address().node, 0);
    let error = node.set_hostname("other").await.unwrap_err();
    assert_eq!(error.code(), "not_registered");
    let rendezvous = Rendezvous::start(Env::real(), RendezvousConfig::new(registry, beacon)).await.unwrap();
    assert_eq!(patient(node.registered()).await.node, 1);
    patient(async { while holder(registry, "early").await != 1 {} }).await;
    drop((node, rendezvous));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_lost_everything_is_told_again_without_waiting_for_heartbeats() {
    let net = Net::new().await;
    let (registry, beacon) = (net.rendezvous.registry_addr(), net.rendezvous.beacon_addr());
    // Heartbeats are 30 s apart: only the lost connection can tell.
    let node = net.node().await;
    node.node.set_hostname("alice").await.unwrap();
    node.node.set_visibility(true).await.unwrap();
    assert_eq!(holder(registry, "alice").await, node.id());
    net.rendezvous.shutdown().await;
    let rendezvous = Rendezvous::start(Env::real(), RendezvousConfig::new(registry, beacon)).await.unwrap();
    patient(async {
        loop {
            let found = ask(registry, &Request::Lookup { node: 1 }).await;
            if found.text("hostname") == Some("alice") && found.bool("public") {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    drop((node, rendezvous));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_says_goodbye() {
    let net = Net::new().await;
    let registry = net.rendezvous.registry_addr();
    let node = net.node_with(|config| config.hostname = "bob".to_owned()).await;
    let id = node.id();
    patient(async { while holder(registry, "bob").await != id {} }).await;
    patient(node.node.shutdown(std::time::Duration::from_secs(5))).await;
    assert_eq!(holder(registry, "bob").await, 0, "not found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_with_tls_is_reached_by_its_fingerprint_and_another_is_refused() {
    let home = tempfile::TempDir::new().unwrap();
    let mut settings = RendezvousConfig::loopback();
    settings.tls = pilot_rendezvous::Tls::SelfSigned;
    let rendezvous = Rendezvous::start(Env::real(), settings).await.unwrap();
    let mut config = pilot_node::NodeConfig {
        registry: rendezvous.registry_addr().to_string(),
        beacon: Some(rendezvous.beacon_addr().to_string()),
        listen: "127.0.0.1:0".parse().unwrap(),
        identity: Some(home.path().join("identity.key")),
        registry_fingerprint: rendezvous.fingerprint(),
        ..pilot_node::NodeConfig::default()
    };
    let node = patient(pilot_node::Node::start(Env::real(), config.clone())).await.unwrap();
    assert_ne!(patient(node.registered()).await.node, 0);
    node.shutdown(std::time::Duration::from_secs(5)).await;
    config.registry_fingerprint = Some("00".repeat(32).parse().unwrap());
    let node = patient(pilot_node::Node::start(Env::real(), config)).await.unwrap();
    until(|| node.info()["registry_error"] != "").await;
    let info = node.info();
    assert_eq!(info["registered"], false);
    assert!(info["registry_error"].as_str().unwrap().contains("fingerprint mismatch"), "{info}");
}

/// Waits until the registry shows what it should; says what it shows instead.
async fn shown(registry: SocketAddr, hostname: &str, expected: &str) {
    let mut last = None;
    let right = async {
        loop {
            let node = holder(registry, hostname).await;
            last = ask(registry, &Request::Lookup { node }).await.text("real_addr").map(str::to_owned);
            if last.as_deref() == Some(expected) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    let in_time = tokio::time::timeout(common::PATIENCE, right).await;
    assert!(in_time.is_ok(), "{hostname} is shown at {last:?} instead of {expected}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_endpoint_registered_is_the_tunnel_sockets_or_the_fixed_one_also_at_a_registry_that_forgot() {
    let net = Net::new().await;
    let (registry, beacon) = (net.rendezvous.registry_addr(), net.rendezvous.beacon_addr());
    let named = |hostname: &'static str| {
        move |config: &mut pilot_node::NodeConfig| {
            config.hostname = hostname.to_owned();
            config.public = true;
        }
    };
    // Listens on port 0.
    let plain = net.node_with(named("plain")).await;
    let fixed = net
        .node_with(|config| {
            named("fixed")(config);
            config.endpoint = Some("9.9.9.9:4000".to_owned());
        })
        .await;
    let own = plain.node.local_addr().to_string();
    shown(registry, "plain", &own).await;
    shown(registry, "fixed", "9.9.9.9:4000").await;
    net.rendezvous.shutdown().await;
    let rendezvous = Rendezvous::start(Env::real(), RendezvousConfig::new(registry, beacon)).await.unwrap();
    shown(registry, "plain", &own).await;
    shown(registry, "fixed", "9.9.9.9:4000").await;
    drop((plain, fixed, rendezvous));
}
