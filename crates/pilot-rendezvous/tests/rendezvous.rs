//! Registry and beacon together, as a library.

use std::net::SocketAddr;
use std::path::Path;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use pilot_env::tls::{Fingerprint, TlsConnector};
use pilot_env::{Env, NetStream, RecvBatch, Transmit, UdpSocket};
use pilot_rendezvous::{Rendezvous, RendezvousConfig, StartError, Tls};
use pilot_wire::beacon::BeaconMessage;
use pilot_wire::registry::{Register, Request};
use pilot_wire::{base64, signed};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn sign(seed: u8, text: &str) -> String {
    base64::encode(pair(seed).sign(text.as_bytes()).as_ref())
}

async fn ask(stream: &mut NetStream, request: &Request) -> Value {
    let mut frame = Vec::new();
    request.emit(&mut frame).unwrap();
    stream.write_all(&frame).await.unwrap();
    let len = stream.read_u32().await.unwrap();
    let mut body = vec![0; len as usize];
    stream.read_exact(&mut body).await.unwrap();
    serde_json::from_slice(&body).unwrap()
}

async fn join(stream: &mut NetStream, seed: u8) -> u32 {
    let public_key = base64::encode(pair(seed).public_key().as_ref());
    let listen_addr = ":4000".to_owned();
    let signature = sign(seed, &signed::register(&listen_addr, &public_key));
    let register = Register { public_key, listen_addr, signature, ..Register::default() };
    let answer = ask(stream, &Request::Register(register)).await;
    u32::try_from(answer["node_id"].as_u64().unwrap_or_else(|| panic!("{answer}"))).unwrap()
}

async fn datagram(socket: &UdpSocket, to: SocketAddr, message: &BeaconMessage<'_>) {
    let mut contents = Vec::new();
    message.emit(&mut contents);
    socket.send(&Transmit { destination: to, contents: &contents, segment_size: None }).await.unwrap();
}

/// The next datagram and where it came from.
async fn next(socket: &UdpSocket) -> (SocketAddr, Vec<u8>) {
    let mut batch = RecvBatch::new();
    loop {
        socket.recv(&mut batch).await;
        if let Some((from, bytes)) = batch.datagrams_mut().next() {
            return (from, bytes.to_vec());
        }
    }
}

async fn discover(socket: &UdpSocket, beacon: SocketAddr, node: u32) {
    datagram(socket, beacon, &BeaconMessage::Discover { node }).await;
    assert_eq!(next(socket).await.1[0], 2);
}

#[tokio::test]
async fn a_handshake_request_wakes_its_target_through_the_beacon() {
    let env = Env::real();
    let rendezvous = Rendezvous::start(env.clone(), RendezvousConfig::loopback()).await.unwrap();
    let mut a = env.tcp_connect(rendezvous.registry_addr()).await.unwrap();
    let mut b = env.tcp_connect(rendezvous.registry_addr()).await.unwrap();
    let (asker, target) = (join(&mut a, 1).await, join(&mut b, 2).await);
    let socket = env.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
    discover(&socket, rendezvous.beacon_addr(), target).await;

    let signature = sign(1, &signed::handshake(asker, target));
    let request = Request::RequestHandshake { from: asker, to: target, justification: "hello".to_owned(), signature };
    assert_eq!(ask(&mut a, &request).await["status"], "delivered");
    assert_eq!(next(&socket).await, (rendezvous.beacon_addr(), vec![0x0A, 1]));
    let poll = Request::PollHandshakes { node: target, signature: sign(2, &signed::poll_handshakes(target)) };
    assert_eq!(ask(&mut b, &poll).await["requests"][0]["justification"], "hello");
    rendezvous.shutdown().await;
}

#[tokio::test]
async fn the_beacon_believes_the_registry_about_where_a_node_is() {
    let env = Env::real();
    let rendezvous = Rendezvous::start(env.clone(), RendezvousConfig::loopback()).await.unwrap();
    let mut session = env.tcp_connect(rendezvous.registry_addr()).await.unwrap();
    let node = join(&mut session, 1).await;
    let thief = env.bind_udp("127.0.0.2:0".parse().unwrap()).unwrap();
    let own = env.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
    discover(&thief, rendezvous.beacon_addr(), node).await;
    discover(&own, rendezvous.beacon_addr(), node).await;
    discover(&thief, rendezvous.beacon_addr(), node).await;
    // What is relayed to the node reaches the node.
    datagram(&own, rendezvous.beacon_addr(), &BeaconMessage::Relay { src: node, dst: node, frame: b"x" }).await;
    assert_eq!(next(&own).await.1, [&[6][..], &node.to_be_bytes(), b"x"].concat());
    assert_eq!(rendezvous.beacon().counters().takeovers_refused, 1);
    rendezvous.shutdown().await;
}

async fn with_tls(dir: &Path) -> Rendezvous {
    let mut config = RendezvousConfig::loopback();
    config.store = Some(dir.join("registry.redb"));
    config.tls = Tls::SelfSigned;
    Rendezvous::start(Env::real(), config).await.unwrap()
}

#[tokio::test]
async fn what_clients_pinned_stays_right_after_a_restart() {
    let env = Env::real();
    let dir = tempfile::tempdir().unwrap();
    let mut pins: Vec<Fingerprint> = Vec::new();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let rendezvous = with_tls(dir.path()).await;
        let pin = rendezvous.fingerprint().unwrap();
        pins.push(pin);
        let plain = env.tcp_connect(rendezvous.registry_addr()).await.unwrap();
        let mut stream = TlsConnector::pinned(pin).unwrap().connect(plain).await.unwrap();
        ids.push(join(&mut stream, 1).await);
        // Another pin does not fit.
        let plain = env.tcp_connect(rendezvous.registry_addr()).await.unwrap();
        let wrong = TlsConnector::pinned("ab".repeat(32).parse().unwrap()).unwrap().connect(plain).await;
        assert!(wrong.err().unwrap().to_string().contains("fingerprint mismatch"));
        drop(stream);
        rendezvous.shutdown().await;
    }
    assert_eq!(pins[0], pins[1]);
    assert_eq!(ids[0], ids[1], "one key keeps one address");
    let kept = dir.path().join("registry.redb.tls.pem");
    assert_eq!(env.fs().metadata(&kept).unwrap().mode & 0o777, 0o600);
    // A damaged certificate is not replaced behind the clients' backs.
    env.fs().write_atomic(&kept, b"nonsense", 0o600).unwrap();
    let mut config = RendezvousConfig::loopback();
    config.store = Some(dir.path().join("registry.redb"));
    config.tls = Tls::SelfSigned;
    let error = Rendezvous::start(env.clone(), config).await.err().unwrap();
    assert_eq!(error.code(), "tls");
    assert!(error.to_string().contains("registry.redb.tls.pem"), "{error}");
    assert_eq!(env.fs().read(&kept).unwrap(), b"nonsense");
}

#[tokio::test]
async fn health_is_told_over_http() {
    let env = Env::real();
    let mut config = RendezvousConfig::loopback();
    config.health = Some("127.0.0.1:0".parse().unwrap());
    let rendezvous = Rendezvous::start(env.clone(), config).await.unwrap();
    for (path, status, body) in [("/healthz", "200", "ok"), ("/else", "404", "not found")] {
        let mut stream = env.tcp_connect(rendezvous.health_addr().unwrap()).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")) && answer.contains(body), "{answer}");
    }
    rendezvous.shutdown().await;
}

#[tokio::test]
async fn an_address_in_use_is_named_with_the_part_that_wanted_it() {
    let env = Env::real();
    let first = Rendezvous::start(env.clone(), RendezvousConfig::loopback()).await.unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    for (config, part) in [
        (RendezvousConfig::new(first.registry_addr(), any), "registry"),
        (RendezvousConfig::new(any, first.beacon_addr()), "beacon"),
    ] {
        match Rendezvous::start(env.clone(), config).await {
            Err(StartError::Listen { part: named, .. }) => assert_eq!(named, part),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("started twice"),
        }
    }
    first.shutdown().await;
}

#[tokio::test(start_paused = true)]
async fn silence_ends_a_node_after_minutes_and_a_connection_after_five() {
    let env = Env::simulated(7);
    let rendezvous = Rendezvous::start(env.clone(), RendezvousConfig::loopback()).await.unwrap();
    let mut quiet = env.tcp_connect(rendezvous.registry_addr()).await.unwrap();
    let mut lively = env.tcp_connect(rendezvous.registry_addr()).await.unwrap();
    let (silent, alive) = (join(&mut quiet, 1).await, join(&mut lively, 2).await);
    for minute in 1..=6 {
        env.sleep(std::time::Duration::from_secs(60)).await;
        let heartbeat = Request::Heartbeat { node: alive, signature: sign(2, &signed::heartbeat(alive)) };
        assert_eq!(ask(&mut lively, &heartbeat).await["type"], "heartbeat_ok", "minute {minute}");
        let seen = ask(&mut lively, &Request::Lookup { node: silent }).await;
        match minute {
            1 | 2 => assert_eq!(seen["node_id"], silent, "minute {minute}"),
            5.. => assert_eq!(seen["code"], "node_not_found", "minute {minute}"),
            _ => {}
        }
    }
    let mut rest = Vec::new();
    let _ = quiet.read_to_end(&mut rest).await;
    assert!(rest.is_empty(), "closed without a word");
    // It comes back to its address.
    let mut again = env.tcp_connect(rendezvous.registry_addr()).await.unwrap();
    assert_eq!(join(&mut again, 1).await, silent);
    rendezvous.shutdown().await;
}
