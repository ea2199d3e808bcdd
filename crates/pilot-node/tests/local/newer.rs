//! Commands that came after February (07 §12): those that mean something to us do it, the others say why not.
#![allow(clippy::disallowed_methods)] // the tests look at files and stand in for servers themselves

use std::time::Duration;

use pilot_wire::ipc::{Answer, HandshakeCommand, NetworkCommand, Request};
use pilot_wire::{SocketAddress, json as wire_json};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::client::Client;
use crate::common::{Net, TestNode, befriend, patient, until};

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn error_text(body: &[u8]) -> String {
    match Answer::parse(body).unwrap() {
        Answer::Error { text, .. } => text,
        other => panic!("no error: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_of_the_newest_release_is_answered_as_there_or_better() {
    let net = Net::new().await;
    let node = net.node().await;
    let recorded: Value = serde_json::from_str(include_str!("../vectors/drift-ipc.json")).unwrap();
    let mut compared = 0;
    for row in recorded["daemons"]["1.18.0"]["rows"].as_array().unwrap() {
        let (name, request) = (row["name"].as_str().unwrap(), unhex(row["request"].as_str().unwrap()));
        let opcode = request[0];
        // Only what came after February; `vectors.rs` holds the rest. And what changes the node comes last, by itself.
        let newer = opcode >= 0x1F || request.starts_with(&[0x0F, 7]);
        // Our registry has invitations to tell, and a broadcast needs no admin token here: see `networks.rs`.
        let ours = ["network poll", "broadcast net0"];
        let skipped = ["unbind 4000", "rotate key", "sendto confirm self port 4000", "op 2B cancel (no reply)"];
        if !newer || opcode >= 0x80 || skipped.contains(&name) || ours.contains(&name) {
            continue;
        }
        let mut client = Client::connect(&node.socket()).await;
        let mut frame = (request.len() as u32).to_be_bytes().to_vec();
        frame.extend_from_slice(&request);
        client.write(&frame).await;
        let body = client.next().await;
        let reply = &row["replies"][0];
        let op = u8::from_str_radix(reply["op"].as_str().unwrap(), 16).unwrap();
        assert_eq!(body[0], op, "{name}: {:?}", String::from_utf8_lossy(&body));
        if op == 0x0A {
            let (ours, theirs) = (error_text(&body), reply["text"].as_str().unwrap());
            // The registry says its reason where the official one hides it, and JSON parsers differ in their words.
            let known = theirs.split("registry: ").next().unwrap();
            let known = known.split("bad payload: ").next().unwrap();
            assert!(ours.starts_with(known), "{name}: {ours:?} is not {theirs:?}");
        } else if let Some(object) = reply["json"].as_object() {
            let ours: Value = wire_json::parse(&body[1..]).unwrap();
            for key in object.keys() {
                assert!(ours.get(key).is_some(), "{name}: {key} is missing in {ours}");
            }
        }
        compared += 1;
    }
    assert!(compared > 20, "{compared}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_waits_for_trust_hears_of_it_or_that_there_is_none() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    let mut client = Client::connect(&a.socket()).await;
    let wait = |node, millis| Request::Handshake(HandshakeCommand::Wait { node, millis });
    let none = client.ask_json(&wait(b.id(), 1)).await;
    assert_eq!(none, json!({ "node_id": b.id(), "trusted": false }));
    let asking = wait(b.id(), 30_000);
    let (told, ()) = tokio::join!(client.ask_json(&asking), befriend(&a, &b));
    assert_eq!(told, json!({ "node_id": b.id(), "trusted": true }));
    // There already.
    assert_eq!(client.ask_json(&wait(b.id(), 0)).await["trusted"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_asked_of_the_registry_and_its_refusals_passed_on() {
    let net = Net::new().await;
    let node = net.node().await;
    let mut client = Client::connect(&node.socket()).await;
    let list = client.ask_json(&Request::Network(NetworkCommand::List)).await;
    assert_eq!(list["networks"][0]["name"], "backbone");
    for (command, begins) in [
        (NetworkCommand::Members { network: 0 }, "network members: registry: "),
        (NetworkCommand::Join { network: 9, token: "t".to_owned() }, "network join: registry: "),
        (NetworkCommand::Leave { network: 9 }, "network leave: registry: "),
        (NetworkCommand::Invite { network: 9, node: 2 }, "network invite: registry: "),
        (NetworkCommand::Respond { network: 9, accept: true }, "network respond-invite: registry: "),
    ] {
        let text = error_text(&client.ask(&Request::Network(command)).await);
        assert!(text.starts_with(begins) && text.len() > begins.len(), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_signed_for_a_third_party_is_verified_anywhere_and_not_forged() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    let (mut signer, mut verifier) = (Client::connect(&a.socket()).await, Client::connect(&b.socket()).await);
    let hash = "0a".repeat(32);
    let body = json!({ "audience": "api.example", "body_hash": hash }).to_string();
    let signed = signer.ask_json(&Request::SignEnvelope(body.as_bytes())).await;
    assert_eq!(signed["address"], a.node.address().to_string());
    let verify = async |client: &mut Client, value: Value| {
        client.ask_json(&Request::VerifyEnvelope(value.to_string().as_bytes())).await
    };
    let given = json!({ "envelope": signed["envelope"], "signature": signed["signature"] });
    for client in [&mut verifier, &mut signer] {
        let answer = verify(client, given.clone()).await;
        assert_eq!((&answer["valid"], &answer["node_id"]), (&json!(true), &json!(a.id())), "{answer}");
        assert_eq!((&answer["body_hash"], &answer["audience"]), (&json!(hash), &json!("api.example")));
    }
    // One digit of the hash, another node, another signature, an old one.
    let text = signed["envelope"].as_str().unwrap();
    let other_node = format!("{:08x}", b.id());
    for (envelope, signature, part) in [
        (text.replace("0a0a", "0a0b"), signed["signature"].clone(), "not that of node"),
        (text.replace(&format!("{:08x}", a.id()), &other_node), signed["signature"].clone(), "not that of node"),
        (text.to_owned(), json!("AAAA"), "64 bytes"),
        ("pilot-req-v1".to_owned(), signed["signature"].clone(), "not an envelope"),
        (format!("pilot-req-v1|{:012x}|1|{}|{hash}|x", a.id(), "0".repeat(16)), signed["signature"].clone(), "300 s"),
    ] {
        let answer = verify(&mut verifier, json!({ "envelope": envelope, "signature": signature })).await;
        assert_eq!(answer["valid"], false, "{envelope}");
        assert!(answer["reason"].as_str().unwrap().contains(part), "{answer}");
    }
    for wrong in [json!({ "audience": "A", "body_hash": hash }), json!({ "audience": "a", "body_hash": "00" })] {
        let text = error_text(&signer.ask(&Request::SignEnvelope(wrong.to_string().as_bytes())).await);
        assert!(text.starts_with("sign_envelope: "), "{text}");
    }
}

async fn echo(from: &TestNode, to: SocketAddress) {
    let mut stream = patient(from.node.dial(to)).await.unwrap();
    stream.write_all(b"alive").await.unwrap();
    let mut buf = [0; 5];
    patient(stream.read_exact(&mut buf)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotated_key_keeps_address_trust_streams_and_survives_a_restart() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let (id, old) = (a.id(), a.node.public_key());
    let mut stream = patient(a.node.dial(b.at(7))).await.unwrap();
    stream.write_all(b"before").await.unwrap();
    let mut buf = [0; 6];
    patient(stream.read_exact(&mut buf)).await.unwrap();
    let mut client = Client::connect(&a.socket()).await;
    let answer = client.ask_json(&Request::RotateKey).await;
    let new = a.node.public_key();
    assert_ne!(old, new);
    assert_eq!((&answer["node_id"], &answer["type"]), (&json!(id), &json!("rotate_key_ok")));
    assert_eq!(answer["public_key"], pilot_wire::base64::encode(&new));
    assert_eq!((&answer["peers_told"], &answer["peers_not_told"]), (&json!(1), &json!([])));
    assert_eq!(client.ask_json(&Request::Info).await["public_key"], pilot_wire::base64::encode(&new));
    // Streams go on, and new ones come up, in both directions.
    stream.write_all(b"behind").await.unwrap();
    patient(stream.read_exact(&mut buf)).await.unwrap();
    assert_eq!(&buf, b"behind");
    echo(&a, b.at(7)).await;
    echo(&b, a.at(7)).await;
    // What is signed now is signed with the new key, and the registry knows it.
    let hash = "0a".repeat(32);
    let signed = json!({ "audience": "x", "body_hash": hash }).to_string();
    let signed = client.ask_json(&Request::SignEnvelope(signed.as_bytes())).await;
    let mut other = Client::connect(&b.socket()).await;
    let answer = other.ask_json(&Request::VerifyEnvelope(signed.to_string().as_bytes())).await;
    assert_eq!(answer["valid"], true, "{answer}");
    // A second one, and a start from disk: the same address, and new tunnels under the new key are let in.
    client.ask_json(&Request::RotateKey).await;
    let newest = a.node.public_key();
    drop((client, stream));
    let a = a.restart().await;
    assert_eq!(a.node.public_key(), newest);
    patient(a.node.registered()).await;
    assert_eq!(a.id(), id);
    echo(&a, b.at(7)).await;
    echo(&b, a.at(7)).await;
    let b = b.restart().await;
    echo(&b, a.at(7)).await;
    assert!(!a.home.path().join("identity.key.next").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_cut_off_after_the_registry_had_it_is_finished_at_the_next_start() {
    let net = Net::new().await;
    let a = net.node().await;
    let id = a.id();
    // The key file from before, and beside it the key that the registry has: what a crash in between leaves.
    let path = a.home.path().join("identity.key");
    let before = std::fs::read(&path).unwrap();
    a.node.rotate_key().await.unwrap();
    let (newest, after) = (a.node.public_key(), std::fs::read(&path).unwrap());
    let TestNode { node, config, home } = a;
    // Not a shutdown: that would tell the registry.
    drop(node);
    std::fs::write(&path, &before).unwrap();
    std::fs::write(home.path().join("identity.key.next"), &after).unwrap();
    let start = || pilot_node::Node::start(pilot_env::Env::real(), config.clone());
    let revived = patient(async {
        loop {
            match start().await {
                Ok(node) => return node,
                // The tasks of the one before still hold the directory.
                Err(pilot_node::NodeError::DirectoryLocked { .. }) => {
                    tokio::time::sleep(Duration::from_millis(20)).await
                }
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await;
    patient(revived.registered()).await;
    assert_eq!(revived.address().node, id);
    until(|| revived.public_key() == newest).await;
    until(|| !home.path().join("identity.key.next").exists()).await;
    assert_eq!(std::fs::read(&path).unwrap(), after);
    patient(revived.shutdown(Duration::from_secs(5))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_without_a_registry_says_so_and_keeps_the_key() {
    let net = Net::new().await;
    let node = net.node_with(|config| config.registry = "127.0.0.1:1".to_owned()).await;
    let before = node.node.public_key();
    let mut client = Client::connect(&node.socket()).await;
    let text = error_text(&client.ask(&Request::RotateKey).await);
    assert!(text.starts_with("rotate_key: not registered"), "{text}");
    assert_eq!(node.node.public_key(), before);
}
