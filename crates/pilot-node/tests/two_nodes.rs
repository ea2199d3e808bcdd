//! Two nodes in one process: find each other, trust each other, talk, and part.

mod common;

use std::time::Duration;

use common::{Net, PATIENCE, befriend, patient, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test(flavor = "multi_thread")]
async fn two_nodes_that_trust_each_other_exchange_data_both_ways() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    assert_ne!(a.id(), 0);
    assert_ne!(a.id(), b.id());
    befriend(&a, &b).await;
    let listener = b.node.listen(2000).unwrap();
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i / 7) as u8).collect();
    let sent = data.clone();
    let server = tokio::spawn(async move {
        let mut stream = patient(listener.accept()).await;
        let mut got = Vec::new();
        patient(stream.read_to_end(&mut got)).await.unwrap();
        stream.write_all(&got).await.unwrap();
        stream.shutdown().await.unwrap();
        got.len()
    });
    let mut stream = patient(a.node.dial(b.at(2000))).await.unwrap();
    assert_eq!(stream.remote_addr(), b.at(2000));
    patient(stream.write_all(&data)).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    patient(stream.read_to_end(&mut back)).await.unwrap();
    assert_eq!(server.await.unwrap(), sent.len());
    assert!(back == data);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_echo_service_answers_a_trusted_node_and_no_other() {
    let net = Net::new().await;
    let (a, b, stranger) = (net.node().await, net.node().await, net.node().await);
    befriend(&a, &b).await;
    let mut stream = patient(a.node.dial(b.at(7))).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut buf = [0; 4];
    patient(stream.read_exact(&mut buf)).await.unwrap();
    assert_eq!(&buf, b"ping");
    let refused = patient(stranger.node.dial(b.at(7))).await.unwrap_err();
    assert!(!refused.hint().is_empty());
    let info = b.node.info();
    let peer = info["peer_list"].as_array().unwrap().iter().find(|peer| peer["node_id"] == a.id()).unwrap();
    assert_eq!((&peer["encrypted"], &peer["authenticated"]), (&true.into(), &true.into()), "{peer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_to_trusted_nodes_has_arrived_when_it_is_acknowledged_whether_or_not_the_stream_ends() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let listener = b.node.listen(1000).unwrap();
    let params = serde_json::json!({ "text": "hello", "port": 1000, "timeout_ms": 20_000 });
    let (told, (heard, _open)) = tokio::join!(patient(a.node.call("trust.broadcast", params)), async {
        // A program that reads the message and never ends its own direction.
        let mut stream = patient(listener.accept()).await;
        let mut heard = String::new();
        patient(stream.read_to_string(&mut heard)).await.unwrap();
        (heard, stream)
    });
    let told = told.unwrap();
    assert_eq!((&told["sent"], &told["failed"]), (&1.into(), &serde_json::json!([])), "{told}");
    assert_eq!(heard, "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_port_is_said_at_once() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let error = patient(a.node.dial(b.at(4321))).await.unwrap_err();
    assert_eq!(error.code(), "connection_refused", "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_reaches_the_peer_and_holds() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    drop(patient(a.node.dial(b.at(7))).await.unwrap());
    assert!(b.node.trust().revoke(a.id()).await.unwrap());
    until(|| !a.node.trust().is_trusted(b.id())).await;
    assert!(patient(a.node.dial(b.at(7))).await.is_err());
    assert!(!b.node.trust().revoke(a.id()).await.unwrap(), "it was not trusted any more");
    let b = b.restart().await;
    assert!(!b.node.trust().is_trusted(a.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_keeps_its_address_and_its_trust_over_a_restart() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let (id, key) = (b.id(), b.node.public_key());
    let b = b.restart().await;
    assert_eq!((b.id(), b.node.public_key()), (id, key));
    // The first dial may meet the session that died with the old process.
    let mut stream = patient(async {
        loop {
            if let Ok(stream) = a.node.dial(b.at(7)).await {
                break stream;
            }
        }
    })
    .await;
    stream.write_all(b"still friends").await.unwrap();
    let mut buf = [0; 13];
    patient(stream.read_exact(&mut buf)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn known_peers_are_served_while_the_registry_is_down() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    drop(patient(a.node.dial(b.at(7))).await.unwrap());
    net.rendezvous.shutdown().await;
    let id = a.id();
    let started = std::time::Duration::from_secs(10);
    let a = tokio::time::timeout(started, a.restart()).await.expect("starts without the registry");
    assert_eq!(a.id(), id);
    let mut stream = patient(a.node.dial(b.at(7))).await.unwrap();
    stream.write_all(b"who needs it").await.unwrap();
    let mut buf = [0; 12];
    patient(stream.read_exact(&mut buf)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_delivers_what_was_written() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let listener = b.node.listen(2000).unwrap();
    let mut stream = patient(a.node.dial(b.at(2000))).await.unwrap();
    let mut incoming = patient(listener.accept()).await;
    stream.write_all(&vec![7; 1_000_000]).await.unwrap();
    let stopping = tokio::spawn(a.node.shutdown(Duration::from_secs(5)));
    let mut got = Vec::new();
    patient(incoming.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got.len(), 1_000_000);
    patient(stopping).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_tells_those_who_follow_it_what_happened() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    let mut events = b.node.events();
    befriend(&a, &b).await;
    // The peer ends this one first, we the other.
    for peer_first in [true, false] {
        let listener = b.node.listen(2000).unwrap();
        let mut ours = patient(a.node.dial(b.at(2000))).await.unwrap();
        let mut theirs = patient(listener.accept()).await;
        let (first, second) = if peer_first { (&mut ours, &mut theirs) } else { (&mut theirs, &mut ours) };
        first.write_all(b"farewell").await.unwrap();
        first.shutdown().await.unwrap();
        let mut said = String::new();
        patient(second.read_to_string(&mut said)).await.unwrap();
        assert_eq!(said, "farewell");
        second.shutdown().await.unwrap();
    }
    let mut names = Vec::new();
    let mut ends = Vec::new();
    while ends.len() < 2 {
        let event = patient(events.next()).await.unwrap().unwrap();
        names.push(event.name);
        if event.name == "conn.fin" && event.data["local_port"] == 2000 {
            ends.push(event.data.clone());
        }
        assert!(event.name != "conn.rst", "{:?}", event.data);
    }
    for expected in [
        "tunnel.peer_added",
        "tunnel.established",
        "handshake.received",
        "handshake.pending",
        "handshake.approved",
        "conn.syn_received",
        "conn.established",
    ] {
        assert!(names.contains(&expected), "no {expected} in {names:?}");
    }
    assert_eq!((&ends[0]["initiator"], &ends[0]["stats"]["bytes_recv"]), (&"remote".into(), &8.into()));
    assert_eq!((&ends[1]["initiator"], &ends[1]["stats"]["bytes_sent"]), (&"local".into(), &8.into()));
    assert_ne!(ends[0]["conn_id"], ends[1]["conn_id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_echo_service_survives_full_buffers_and_loses_nothing() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let (mut read, mut write) = tokio::io::split(patient(a.node.dial(b.at(7))).await.unwrap());
    // More than all buffers on the way there and back, and nothing is read until writing stops.
    let data: Vec<u8> = (0..24_000_000u32).map(|i| (i / 3) as u8).collect();
    let (sent, all) = (data.clone(), data);
    let full = std::sync::Arc::new(tokio::sync::Notify::new());
    let stalled = full.clone();
    let writing = tokio::spawn(async move {
        for chunk in sent.chunks(1 << 20) {
            let write = write.write_all(chunk);
            tokio::pin!(write);
            if tokio::time::timeout(Duration::from_millis(500), &mut write).await.is_err() {
                stalled.notify_one();
                write.await.unwrap();
            }
        }
        write.shutdown().await.unwrap();
        stalled.notify_one();
    });
    patient(full.notified()).await;
    let mut back = Vec::new();
    tokio::time::timeout(4 * PATIENCE, read.read_to_end(&mut back)).await.unwrap().unwrap();
    assert!(back == all);
    writing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_that_trickles_into_the_handshake_port_holds_up_nobody_and_is_let_go() {
    let net = Net::new().await;
    let (a, b, stranger) = (net.node().await, net.node().await, net.node().await);
    befriend(&a, &b).await;
    // A segment for each byte, never a whole message, and the stream stays open: 520 of them blocked a daemon (05 §15.14).
    let mut trickle = patient(stranger.node.dial(b.at(444))).await.unwrap();
    trickle.write_all(b"{").await.unwrap();
    for _ in 0..1100 {
        // On a slow machine it may have been let go already.
        if trickle.write_all(b" ").await.is_err() || trickle.flush().await.is_err() {
            break;
        }
    }
    let mut stream = patient(a.node.dial(b.at(7))).await.unwrap();
    stream.write_all(b"ping").await.unwrap();
    let mut buf = [0; 4];
    patient(stream.read_exact(&mut buf)).await.unwrap();
    // Others ask for trust meanwhile.
    let c = net.node().await;
    befriend(&c, &b).await;
    let mut rest = Vec::new();
    let _ = patient(trickle.read_to_end(&mut rest)).await;
    assert!(rest.is_empty() && !b.node.trust().is_trusted(stranger.id()));
}
