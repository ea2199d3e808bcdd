//! The local socket under stress: slow, rude and leaving clients delay and harm nobody.

use std::time::Duration;

use crate::common::client::Client;
use crate::common::{Net, TestNode, befriend, patient, until};
use pilot_wire::SocketAddress;
use pilot_wire::ipc::{Answer, HandshakeCommand, Request};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn bind(client: &mut Client, port: u16) {
    let body = client.ask(&Request::Bind { port }).await;
    assert_eq!(Answer::parse(&body).unwrap(), Answer::BindOk { port });
}

async fn dial(client: &mut Client, remote: SocketAddress) -> u32 {
    let body = client.ask(&Request::Dial { remote }).await;
    match Answer::parse(&body).unwrap() {
        Answer::DialOk { conn } => conn,
        other => panic!("dial: {other:?}"),
    }
}

async fn accept(client: &mut Client) -> u32 {
    let body = client.next().await;
    match Answer::parse(&body).unwrap() {
        Answer::Accept { conn, .. } => conn,
        other => panic!("no Accept: {other:?}"),
    }
}

/// Reads the data of one stream up to its end.
async fn read_stream(client: &mut Client, conn: u32) -> Vec<u8> {
    let mut got = Vec::new();
    loop {
        let body = client.next().await;
        match Answer::parse(&body).unwrap() {
            Answer::Recv { conn: other, data } if other == conn => got.extend_from_slice(data),
            Answer::CloseOk { conn: other } if other == conn => return got,
            _ => {}
        }
    }
}

fn error_text(body: &[u8]) -> String {
    match Answer::parse(body).unwrap() {
        Answer::Error { text, .. } => text,
        other => panic!("no error: {other:?}"),
    }
}

/// One echo over the node's own service, timed by the test's patience.
async fn echo(from: &TestNode, to: &TestNode) {
    let mut stream = patient(from.node.dial(to.at(7))).await.unwrap();
    stream.write_all(b"alive").await.unwrap();
    let mut buf = [0; 5];
    patient(stream.read_exact(&mut buf)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_arrive_in_order_through_two_daemons_and_before_the_end() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let (mut sender, mut receiver) = (Client::connect(&a.socket()).await, Client::connect(&b.socket()).await);
    bind(&mut receiver, 2000).await;
    let out = dial(&mut sender, b.at(2000)).await;
    let conn = accept(&mut receiver).await;
    let data: Vec<u8> = (0..6_000_000u32).map(|i| (i / 5) as u8).collect();
    let expected = data.clone();
    let reading = tokio::spawn(async move { read_stream(&mut receiver, conn).await });
    for chunk in data.chunks(60_000) {
        sender.send(&Request::Send { conn: out, data: chunk }).await;
    }
    // The program ends right after its last write.
    sender.send(&Request::Close { conn: out }).await;
    drop(sender);
    assert!(patient(reading).await.unwrap() == expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_delays_nobody_and_loses_nothing() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let mut lazy = Client::connect(&b.socket()).await;
    bind(&mut lazy, 2000).await;
    let mut stream = patient(a.node.dial(b.at(2000))).await.unwrap();
    let data = vec![42; 1 << 20];
    let mut written: usize = 0;
    // Its windows fill, and then its own sender is held back.
    while let Ok(n) = tokio::time::timeout(Duration::from_millis(500), stream.write(&data)).await {
        written += n.unwrap();
        assert!(written < 64 << 20, "nothing holds the sender back");
    }
    for _ in 0..3 {
        echo(&a, &b).await;
    }
    let mut other = Client::connect(&b.socket()).await;
    other.ask_json(&Request::Info).await;
    stream.shutdown().await.unwrap();
    let conn = accept(&mut lazy).await;
    assert_eq!(read_stream(&mut lazy, conn).await.len(), written);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sender_whose_peer_does_not_read_can_use_its_other_streams() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let listener = b.node.listen(2000).unwrap();
    let mut client = Client::connect(&a.socket()).await;
    let stuck = dial(&mut client, b.at(2000)).await;
    let _unread = patient(listener.accept()).await;
    let lively = dial(&mut client, b.at(7)).await;
    // More than the buffers of both ends hold.
    for _ in 0..160 {
        client.send(&Request::Send { conn: stuck, data: &[1; 60_000] }).await;
    }
    client.send(&Request::Send { conn: lively, data: b"hello" }).await;
    let body = client.next().await;
    assert_eq!(Answer::parse(&body).unwrap(), Answer::Recv { conn: lively, data: b"hello" });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dial_that_takes_long_holds_up_nothing_and_can_be_cancelled() {
    let net = Net::new().await;
    let (a, b, gone) = (net.node().await, net.node().await, net.node().await);
    befriend(&a, &b).await;
    befriend(&a, &gone).await;
    let nowhere = gone.at(2000);
    drop(gone);
    let mut client = Client::connect(&a.socket()).await;
    let lively = dial(&mut client, b.at(7)).await;
    client.send(&Request::Dial { remote: nowhere }).await;
    client.send(&Request::Send { conn: lively, data: b"hello" }).await;
    let body = client.next().await;
    assert_eq!(Answer::parse(&body).unwrap(), Answer::Recv { conn: lively, data: b"hello" });
    client.ask_json(&Request::Info).await;
    client.send(&Request::Cancel).await;
    assert_eq!(error_text(&client.next().await), "dial cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_datagram_goes_to_the_client_that_bound_its_port_and_the_answer_to_its_sender() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let (mut asker, mut bystander) = (Client::connect(&a.socket()).await, Client::connect(&a.socket()).await);
    let (mut owner, mut other) = (Client::connect(&b.socket()).await, Client::connect(&b.socket()).await);
    bind(&mut owner, 5000).await;
    asker.send(&Request::SendTo { to: b.at(5000), data: b"question" }).await;
    let body = owner.next().await;
    let Answer::RecvFrom { from, port: 5000, data: b"question" } = Answer::parse(&body).unwrap() else {
        panic!("no question: {body:?}");
    };
    owner.send(&Request::SendTo { to: from, data: b"answer" }).await;
    let body = asker.next().await;
    assert!(matches!(Answer::parse(&body).unwrap(), Answer::RecvFrom { data: b"answer", .. }));
    assert!(other.is_quiet().await && bystander.is_quiet().await);
    // A port nobody bound: everybody who listens hears it, as `pilotctl listen` of the official releases needs.
    asker.send(&Request::SendTo { to: b.at(5001), data: b"anyone?" }).await;
    for client in [&mut owner, &mut other] {
        let body = client.next().await;
        assert!(matches!(Answer::parse(&body).unwrap(), Answer::RecvFrom { port: 5001, data: b"anyone?", .. }));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sizes_at_and_beyond_the_limits_are_answered_or_end_only_the_one_client() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let (mut client, mut other) = (Client::connect(&a.socket()).await, Client::connect(&a.socket()).await);
    let too_large = vec![0; 65_536];
    client.send(&Request::SendTo { to: b.at(5000), data: &too_large }).await;
    let text = error_text(&client.next().await);
    assert_eq!(text, "sendto: marshal: payload too large: 65536 bytes (max 65535)");
    let mut largest = vec![0xEE; 4 + (1 << 20)];
    largest[..4].copy_from_slice(&(1u32 << 20).to_be_bytes());
    client.write(&largest).await;
    assert_eq!(error_text(&client.next().await), "unknown command: 0xEE");
    client.write(&[0, 0, 0, 0]).await;
    client.ask_json(&Request::Health).await;
    client.write(&((1u32 << 20) + 1).to_be_bytes()).await;
    assert!(client.next_or_end().await.is_none(), "the client is dropped without a word");
    other.ask_json(&Request::Info).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_frees_its_ports_and_ends_its_streams() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let mut client = Client::connect(&b.socket()).await;
    bind(&mut client, 2000).await;
    let mut second = Client::connect(&b.socket()).await;
    assert_eq!(error_text(&second.ask(&Request::Bind { port: 2000 }).await), "port 2000 already bound");
    let mut stream = patient(a.node.dial(b.at(2000))).await.unwrap();
    let conn = accept(&mut client).await;
    client.send(&Request::Send { conn, data: b"bye" }).await;
    drop(client);
    let mut got = Vec::new();
    patient(stream.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"bye");
    patient(async {
        while error_or_ok(&second.ask(&Request::Bind { port: 2000 }).await).is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    // A port can also be given back.
    let body = second.ask(&Request::Unbind { port: 2000 }).await;
    assert_eq!(Answer::parse(&body).unwrap(), Answer::UnbindOk { port: 2000 });
    let text = error_text(&second.ask(&Request::Unbind { port: 2000 }).await);
    assert_eq!(text, "unbind: port is not owned by this client");
    drop(stream);
    until(|| b.node.info()["clients"] == 1).await;
}

fn error_or_ok(body: &[u8]) -> Result<(), ()> {
    if matches!(Answer::parse(body).unwrap(), Answer::Error { .. }) { Err(()) } else { Ok(()) }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_status_object_has_the_keys_of_every_release() {
    let net = Net::new().await;
    let a = net.node().await;
    let mut client = Client::connect(&a.socket()).await;
    let info = client.ask_json(&Request::Info).await;
    let recorded: serde_json::Value = serde_json::from_str(include_str!("../vectors/drift-ipc.json")).unwrap();
    for (release, daemon) in recorded["daemons"].as_object().unwrap() {
        let row = daemon["rows"].as_array().unwrap().iter().find(|row| row["name"] == "info").unwrap();
        for key in row["replies"][0]["json"].as_object().unwrap().keys() {
            assert!(info.get(key).is_some(), "{release} has {key}");
        }
    }
    let health = client.ask_json(&Request::Health).await;
    assert_eq!(health["status"], "ok");
    // 03 §16.13: by which way a peer is reached, and an uptime that is one.
    let b = net.node().await;
    befriend(&a, &b).await;
    let info = client.ask_json(&Request::Info).await;
    let peer = info["peer_list"].as_array().unwrap().iter().find(|peer| peer["node_id"] == b.id()).unwrap();
    assert!(peer["relay"].is_boolean() && ["direct", "relay"].contains(&peer["path"].as_str().unwrap()), "{peer}");
    assert!(info["uptime_secs"].as_u64().unwrap() < 3600);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_tells_every_client_and_removes_the_socket() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let mut client = Client::connect(&a.socket()).await;
    let conn = dial(&mut client, b.at(7)).await;
    let socket = a.socket();
    patient(a.node.shutdown(Duration::from_secs(5))).await;
    let body = client.next().await;
    assert_eq!(Answer::parse(&body).unwrap(), Answer::CloseOk { conn });
    assert!(client.next_or_end().await.is_none());
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_sends_on_a_stream_of_another_client_but_may_close_it_by_number() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    let (mut owner, mut other) = (Client::connect(&a.socket()).await, Client::connect(&a.socket()).await);
    let conn = dial(&mut owner, b.at(7)).await;
    other.send(&Request::Send { conn, data: b"intruder" }).await;
    assert_eq!(error_text(&other.next().await), format!("connection {conn} not found"));
    owner.send(&Request::Send { conn, data: b"mine" }).await;
    let body = owner.next().await;
    assert_eq!(Answer::parse(&body).unwrap(), Answer::Recv { conn, data: b"mine" });
    let body = other.ask(&Request::Close { conn }).await;
    assert_eq!(Answer::parse(&body).unwrap(), Answer::CloseOk { conn });
    let body = owner.next().await;
    assert_eq!(Answer::parse(&body).unwrap(), Answer::CloseOk { conn });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dial_closed_by_its_number_ends_at_once() {
    let net = Net::new().await;
    let (a, gone) = (net.node().await, net.node().await);
    befriend(&a, &gone).await;
    let nowhere = gone.at(2000);
    drop(gone);
    let (mut dialler, mut other) = (Client::connect(&a.socket()).await, Client::connect(&a.socket()).await);
    dialler.send(&Request::Dial { remote: nowhere }).await;
    let number = || {
        let info = a.node.info();
        let conns = info["conn_list"].as_array().unwrap();
        let dialling = conns.iter().find(|conn| conn["state"] == "SYN_SENT");
        dialling.and_then(|conn| conn["id"].as_u64())
    };
    until(|| number().is_some()).await;
    let conn = u32::try_from(number().unwrap()).unwrap();
    let body = other.ask(&Request::Close { conn }).await;
    assert_eq!(Answer::parse(&body).unwrap(), Answer::CloseOk { conn });
    assert_eq!(error_text(&dialler.next().await), "dial cancelled");
    assert_eq!(number(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_accepted_while_their_client_leaves_are_not_left_open() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    for _ in 0..5 {
        let mut client = Client::connect(&b.socket()).await;
        bind(&mut client, 2000).await;
        let mut dialler = Client::connect(&a.socket()).await;
        for _ in 0..20 {
            dialler.send(&Request::Dial { remote: b.at(2000) }).await;
        }
        accept(&mut client).await;
        drop(client);
        // Each dial is answered, refused once the port is free again; each stream ends, in order or by a reset.
        let (mut open, mut answered) = (0, 0);
        while answered < 20 || open > 0 {
            match Answer::parse(&dialler.next().await).unwrap() {
                Answer::DialOk { .. } => (open, answered) = (open + 1, answered + 1),
                Answer::Error { .. } => answered += 1,
                Answer::CloseOk { .. } => open -= 1,
                other => panic!("{other:?}"),
            }
        }
        until(|| !b.node.info()["conn_list"].as_array().unwrap().iter().any(|conn| conn["state"] == "ESTABLISHED"))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trust_commands_say_what_really_happened_beside_the_official_status() {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    let mut client = Client::connect(&a.socket()).await;
    let (approve, reject) =
        (HandshakeCommand::Approve { node: b.id() }, HandshakeCommand::Reject { node: b.id(), reason: String::new() });
    let answer = client.ask_json(&Request::Handshake(approve.clone())).await;
    assert_eq!((&answer["status"], &answer["was_pending"]), (&json!("approved"), &json!(false)));
    let answer = client.ask_json(&Request::Handshake(reject)).await;
    assert_eq!((&answer["status"], &answer["was_pending"]), (&json!("rejected"), &json!(false)));
    assert!(!a.node.trust().is_trusted(b.id()));
    patient(b.node.trust().request(a.id(), "please".to_owned())).await.unwrap();
    until(|| !a.node.trust().pending().is_empty()).await;
    let answer = client.ask_json(&Request::Handshake(approve)).await;
    assert_eq!((&answer["status"], &answer["was_pending"]), (&json!("approved"), &json!(true)));
    let request = HandshakeCommand::Request { node: b.id(), justification: String::new() };
    let answer = client.ask_json(&Request::Handshake(request)).await;
    assert_eq!((&answer["status"], &answer["already_trusted"]), (&json!("sent"), &json!(true)));
}
