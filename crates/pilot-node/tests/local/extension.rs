//! The extension of the local socket, rule by rule (`docs/spec/local-socket.md`): the greeting, streams, ports, datagrams.

use std::time::Duration;

use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::{ClientFrame, Limits};
use pilot_wire::ipc::{Answer, Request};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::client::Client;
use crate::common::{Net, TestNode, befriend, patient, until};
use crate::ext_client::{ExtClient, Got};

/// More than any test here reads at once.
pub(crate) const PLENTY: u32 = 1 << 30;

pub(crate) async fn friends() -> (Net, TestNode, TestNode) {
    let net = Net::new().await;
    let (a, b) = (net.node().await, net.node().await);
    befriend(&a, &b).await;
    (net, a, b)
}

/// A stream between a client of each node: the dialled end first.
pub(crate) async fn pair(from: &mut ExtClient, to: &mut ExtClient, at: SocketAddress) -> (u32, u32) {
    let accept = to.start_accept(at.port).await;
    let dialled = from.dial(at).await;
    (dialled, to.opened(accept).await.stream)
}

pub(crate) fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_greets_first_and_otherwise_sees_an_old_daemon() {
    let net = Net::new().await;
    let a = net.node().await;
    let mut old = Client::connect(&a.socket()).await;
    // L3: before Greet the extension does not exist.
    for opcode in [0x81u8, 0x90, 0xBF, 0xC0, 0xFF] {
        old.write(&[0, 0, 0, 5, opcode, 0, 0, 0, 1]).await;
        let body = old.next().await;
        let expected = Answer::error(format!("unknown command: 0x{opcode:02X}"));
        assert_eq!(Answer::parse(&body).unwrap(), expected);
    }
    let greeted = ExtClient::connect(&a.socket(), PLENTY).await;
    assert_eq!(greeted.greeting["node_id"], a.id());
    assert_eq!(greeted.greeting["address"], a.node.address().to_string());
    assert!(greeted.greeting["methods"].as_array().unwrap().iter().any(|name| name == "events"));
    let limits = Limits::from_json(&greeted.greeting);
    assert!(limits.requests == 1024 && limits.streams == 4096 && limits.ports == 1024 && limits.call > 1_000_000);

    // A broken rule is named, and then the socket is closed.
    let bad: [(&[u8], &str); 6] = [
        (&[0x80, 0, 1, 0, 0, 0, 0], "protocol_error"),
        (&[0x80, 0, 0, 0, 0, 0, 0], "unsupported_version"),
        (&[0xBF, 1, 2, 3], "protocol_error"),
        (&[0xC1, 0, 0, 0, 1], "protocol_error"),
        (&[0x90, 0, 0], "protocol_error"),
        (&[0x85, 0, 0, 0, 0], "protocol_error"),
    ];
    for (frame, code) in bad {
        let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
        let mut out = (frame.len() as u32).to_be_bytes().to_vec();
        out.extend_from_slice(frame);
        client.raw.write(&out).await;
        assert_eq!(client.code(0).await, code, "{frame:02x?}");
        assert!(client.raw.next_or_end().await.is_none());
    }
    // One that names its request costs only that request.
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    client.raw.write(&[0, 0, 0, 7, 0x81, 0, 0, 0, 9, 7, 0xD0]).await;
    assert_eq!(client.code(9).await, "protocol_error");
    client.call("health", &Value::Null).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_both_ways_with_their_count_and_a_clean_end() {
    let (_net, a, b) = friends().await;
    let (mut from, mut to) =
        (ExtClient::connect(&a.socket(), 65_536).await, ExtClient::connect(&b.socket(), 65_536).await);
    to.bind(2000, 4, false).await;
    let (near, far) = pair(&mut from, &mut to, b.at(2000)).await;
    let data = bytes(3_000_000);
    let expected = data.clone();
    let reading = tokio::spawn(async move {
        let got = to.read_to_end(far).await;
        // L24: the other direction goes on.
        to.write_all(far, b"thanks").await;
        assert_eq!(to.delivered(far, 6).await, 6);
        to.finish(far).await;
        (to.closed(far).await, got)
    });
    from.write_all(near, &data).await;
    assert_eq!(from.delivered(near, data.len() as u64).await, data.len() as u64);
    from.finish(near).await;
    assert_eq!(from.read_to_end(near).await, b"thanks");
    assert_eq!(from.closed(near).await, (data.len() as u64, "clean".to_owned()));
    let (closed, got) = patient(reading).await.unwrap();
    assert!(got == expected);
    assert_eq!(closed, (6, "clean".to_owned()));
    // The number is free, and nothing is left.
    let request = from.start_finish(near).await;
    assert_eq!(from.code(request).await, "unknown_stream");
    until(|| a.node.info()["conn_list"].as_array().unwrap().iter().all(|conn| conn["state"] != "ESTABLISHED")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_without_credit_stalls_itself_alone() {
    let (_net, a, b) = friends().await;
    let mut client = ExtClient::connect(&a.socket(), 10).await;
    let (stuck, lively) = (client.dial(b.at(7)).await, client.dial(b.at(7)).await);
    client.write_all(stuck, &bytes(50_000)).await;
    assert_eq!(client.read(stuck, 10).await, bytes(50_000)[..10]);
    for _ in 0..3 {
        client.data(lively, b"0123456789").await;
        assert_eq!(client.read(lively, 10).await, b"0123456789");
        client.credit(lively, 10).await;
    }
    // Not a byte more came for the other, nor does one come by itself.
    assert!(!client.kept().any(|got| matches!(got, Got::Data(id, _) if *id == stuck)));
    client.credit(stuck, 7).await;
    assert_eq!(client.read(stuck, 7).await, bytes(50_000)[10..17]);
    client.call("health", &Value::Null).await;
    assert!(!client.kept().any(|got| matches!(got, Got::Data(..))));
    client.credit(stuck, u32::MAX).await;
    client.credit(stuck, u32::MAX).await;
    assert_eq!(client.read(stuck, 50_000 - 17).await, bytes(50_000)[17..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_does_not_read_ends_the_credit_of_its_stream_alone() {
    let (_net, a, b) = friends().await;
    let listener = b.node.listen(2000).unwrap();
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    let stuck = client.dial(b.at(2000)).await;
    let mut unread = patient(listener.accept()).await;
    let lively = client.dial(b.at(7)).await;
    let mut credit = client.initial as usize;
    let mut sent = 0;
    // L22: what is granted is what the buffers between the programs hold, so it ends.
    loop {
        let n = credit.min(60_000);
        client.data(stuck, &vec![1; n]).await;
        sent += n;
        credit -= n;
        assert!(sent < 64 << 20, "nothing holds the client back");
        if credit == 0 {
            let more = client.find(|got| match got {
                Got::Credit(id, bytes) if *id == stuck => Some(*bytes as usize),
                _ => None,
            });
            match tokio::time::timeout(Duration::from_secs(2), more).await {
                Ok(bytes) => credit += bytes,
                Err(_) => break,
            }
        }
    }
    client.data(lively, b"hello").await;
    assert_eq!(client.read(lively, 5).await, b"hello");
    let delivered = client.delivered(stuck, 0).await as usize;
    assert!(delivered < sent, "{delivered} of {sent}");
    // Once it reads, everything arrives.
    let reading = tokio::spawn(async move {
        let mut all = vec![0; sent];
        unread.read_exact(&mut all).await.map(|_| unread)
    });
    assert_eq!(client.delivered(stuck, sent as u64).await as usize, sent);
    let _unread = patient(reading).await.unwrap().unwrap();
    // L20: who sends more than that loses the stream, and only that.
    let greedy = client.dial(b.at(2000)).await;
    for _ in 0..12 {
        client.data(greedy, &vec![0; 1 << 20][5..]).await;
    }
    assert_eq!(client.closed(greedy).await.1, "credit_exceeded");
    client.data(lively, b"hello").await;
    assert_eq!(client.read(lively, 5).await, b"hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_of_a_stream_says_why() {
    let (_net, a, b) = friends().await;
    let listener = b.node.listen(2000).unwrap();
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    // The peer breaks it off, after data.
    let stream = client.dial(b.at(2000)).await;
    client.data(stream, b"12345").await;
    let mut peer = patient(listener.accept()).await;
    peer.read_exact(&mut [0; 5]).await.unwrap();
    client.delivered(stream, 5).await;
    peer.write_all(b"half a").await.unwrap();
    assert_eq!(client.read(stream, 6).await, b"half a");
    peer.reset();
    assert_eq!(client.closed(stream).await, (5, "reset".to_owned()));
    // This client does.
    let stream = client.dial(b.at(2000)).await;
    client.send(ClientFrame::Reset { stream }).await;
    assert_eq!(client.closed(stream).await, (0, "local".to_owned()));
    let mut peer = patient(listener.accept()).await;
    assert_eq!(peer.read(&mut [0; 8]).await.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    // This client closes in order: what was sent arrives.
    let stream = client.dial(b.at(2000)).await;
    client.data(stream, b"last words").await;
    client.send(ClientFrame::Close { stream }).await;
    let mut peer = patient(listener.accept()).await;
    let mut got = Vec::new();
    patient(peer.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"last words");
    drop(peer);
    assert_eq!(client.closed(stream).await, (10, "clean".to_owned()));
    // Another program ends it by its number, which the answer tells.
    let request = client.start_dial(b.at(7), 0).await;
    let opened = client.opened(request).await;
    let mut other = ExtClient::connect(&a.socket(), PLENTY).await;
    let answer = other.call("disconnect", &json!({ "connection": opened.conn })).await;
    assert_eq!(answer, json!({ "connection": opened.conn, "known": true }));
    assert_eq!(client.closed(opened.stream).await.1, "disconnected");
    assert_eq!(other.call("disconnect", &json!({ "connection": 123_456_789 })).await["known"], false);
    // Trust ends.
    let stream = client.dial(b.at(7)).await;
    a.node.trust().revoke(b.id()).await.unwrap();
    assert_eq!(client.closed(stream).await.1, "trust_revoked");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unread_end_is_told_to_the_writer_and_kept_for_the_reader() {
    let (_net, a, b) = friends().await;
    let listener = b.node.listen(2000).unwrap();
    let mut client = ExtClient::connect(&a.socket(), 0).await;
    let stream = client.dial(b.at(2000)).await;
    let mut peer = patient(listener.accept()).await;
    peer.write_all(b"unread").await.unwrap();
    until(|| a.node.info()["conn_list"].as_array().unwrap().iter().any(|conn| conn["recv_queue"] == 6)).await;
    peer.reset();
    // L26: no credit, so the data stays, but nobody need wait for the writer's end.
    let stopped = client.find(|got| match got {
        Got::Stopped(id, 0, problem) if *id == stream => Some(problem.code.clone()),
        _ => None,
    });
    assert_eq!(stopped.await, "reset");
    client.data(stream, b"into the void").await;
    client.credit(stream, 100).await;
    assert_eq!(client.read(stream, 6).await, b"unread");
    assert_eq!(client.closed(stream).await, (0, "reset".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_bound_accepted_and_released_by_number() {
    let (_net, a, b) = friends().await;
    let mut client = ExtClient::connect(&b.socket(), PLENTY).await;
    let mut rival = ExtClient::connect(&b.socket(), PLENTY).await;
    client.bind(2000, 2, false).await;
    let request = rival.number();
    rival.send(ClientFrame::Bind { request, port: 2000, backlog: 1, datagrams: false }).await;
    assert_eq!(rival.code(request).await, "port_in_use");
    for frame in [ClientFrame::Accept { request: 90, port: 2000 }, ClientFrame::Unbind { request: 90, port: 2000 }] {
        rival.send(frame).await;
        assert_eq!(rival.code(90).await, "port_not_owned");
    }
    // The official command does not free it either.
    let mut frame = Vec::new();
    Request::Unbind { port: 2000 }.emit(&mut frame).unwrap();
    client.raw.write(&frame).await;
    let Got::Official(body) = client.find(|got| matches!(got, Got::Official(_)).then(|| got.clone())).await else {
        return;
    };
    assert_eq!(Answer::parse(&body).unwrap(), Answer::error("unbind: port is not owned by this client"));

    // Two wait in the backlog, the third is refused.
    let mut first = patient(a.node.dial(b.at(2000))).await.unwrap();
    first.write_all(b"first").await.unwrap();
    let mut second = patient(a.node.dial(b.at(2000))).await.unwrap();
    second.write_all(b"second").await.unwrap();
    let mut third = patient(a.node.dial(b.at(2000))).await.unwrap();
    let refused = patient(third.read(&mut [0; 1])).await;
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let request = client.start_accept(2000).await;
    let opened = client.opened(request).await;
    assert_eq!((opened.local_port, opened.remote.addr), (2000, a.node.address()));
    assert_eq!(client.read(opened.stream, 5).await, b"first");

    // An Accept can wait and be given up; the next one gets the stream.
    let request = client.start_accept(2000).await;
    let stream = client.opened(request).await.stream;
    assert_eq!(client.read(stream, 6).await, b"second");
    let (given_up, waiting) = (client.start_accept(2000).await, client.start_accept(2000).await);
    client.send(ClientFrame::Cancel { request: given_up }).await;
    assert_eq!(client.code(given_up).await, "cancelled");
    client.send(ClientFrame::Cancel { request: given_up }).await;
    let _fourth = patient(a.node.dial(b.at(2000))).await.unwrap();
    client.opened(waiting).await;

    // Unbind: the waiting Accept fails, the waiting stream is reset, the accepted one lives, the port is free.
    let mut fifth = patient(a.node.dial(b.at(2000))).await.unwrap();
    until(|| b.node.info()["conn_list"].as_array().unwrap().len() >= 4).await;
    let request = client.number();
    client.send(ClientFrame::Unbind { request, port: 2000 }).await;
    client.done(request).await;
    assert!(patient(fifth.read(&mut [0; 1])).await.is_err());
    rival.bind(2000, 1, false).await;
    let waiting = rival.start_accept(2000).await;
    let request = rival.number();
    rival.send(ClientFrame::Unbind { request, port: 2000 }).await;
    assert_eq!(rival.code(waiting).await, "cancelled");
    client.data(stream, b"still here").await;
    let mut got = [0; 10];
    patient(second.read_exact(&mut got)).await.unwrap();
    assert_eq!(&got, b"still here");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dial_can_be_cancelled_or_run_out_of_time_and_frees_its_port_at_once() {
    let (net, a, b) = friends().await;
    let gone = net.node().await;
    befriend(&a, &gone).await;
    let nowhere = gone.at(2000);
    drop(gone);
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    let dials = |node: &TestNode| {
        let info = node.node.info();
        info["conn_list"].as_array().unwrap().iter().filter(|conn| conn["state"] == "SYN_SENT").count()
    };
    let request = client.start_dial(nowhere, 0).await;
    let limited = client.start_dial(nowhere, 50).await;
    assert_eq!(client.code(limited).await, "timeout");
    until(|| dials(&a) == 1).await;
    // Nothing waits for it.
    let stream = client.dial(b.at(7)).await;
    client.data(stream, b"hi").await;
    assert_eq!(client.read(stream, 2).await, b"hi");
    let same = request;
    client.send(ClientFrame::Dial { request: same, remote: nowhere, timeout_ms: 0 }).await;
    assert_eq!(client.code(same).await, "duplicate_request");
    client.send(ClientFrame::Cancel { request }).await;
    assert_eq!(client.code(request).await, "cancelled");
    assert_eq!(dials(&a), 0);
    // The errors of dials have their own codes.
    let request = client.start_dial("0:0000.0000.0000:1".parse().unwrap(), 0).await;
    assert_eq!(client.code(request).await, "invalid_address");
    let request = client.start_dial(b.at(9999), 0).await;
    assert_eq!(client.code(request).await, "connection_refused");
}

#[tokio::test(flavor = "multi_thread")]
async fn datagrams_go_to_the_port_that_wants_them_and_losses_are_counted() {
    let (_net, a, b) = friends().await;
    let mut asker = ExtClient::connect(&a.socket(), PLENTY).await;
    let (mut owner, mut other) =
        (ExtClient::connect(&b.socket(), PLENTY).await, ExtClient::connect(&b.socket(), PLENTY).await);
    owner.bind(5000, 0, true).await;
    other.bind(5001, 4, false).await;
    let send = async |client: &mut ExtClient, port: u16, to: SocketAddress, data: &[u8]| {
        let request = client.number();
        client.send(ClientFrame::SendDatagram { request, port, to, data }).await;
        client.answer(request).await
    };
    assert!(matches!(send(&mut asker, 0, b.at(5000), b"question").await, Got::Done(_)));
    let Got::Datagram { port: 5000, from, missed: 0, data } = owner.next().await else { panic!("no question") };
    assert_eq!(data, b"question");
    assert!(matches!(send(&mut owner, 5000, from, b"answer").await, Got::Done(_)));
    let Got::Datagram { from: answered, data, .. } = asker.next().await else { panic!("no answer") };
    assert_eq!((answered, &data[..]), (b.at(5000), &b"answer"[..]));
    // A port without datagrams, and one nobody bound: a client that has greeted hears neither.
    for port in [5001, 5002] {
        assert!(matches!(send(&mut asker, 0, b.at(port), b"anyone?").await, Got::Done(_)));
    }
    // A stream opened afterwards says that they have passed.
    let stream = asker.dial(b.at(7)).await;
    asker.data(stream, b"x").await;
    asker.read(stream, 1).await;
    assert!(other.is_quiet().await && owner.is_quiet().await);
    for (port, data) in [(5001u16, &b"x"[..]), (80, b"x"), (0, &[0; 65_536]), (0, b"")] {
        let Got::Failed(_, problem) = send(&mut other, port, a.at(1), data).await else { panic!("sent") };
        let expected = if port != 0 {
            "port_not_owned"
        } else if data.is_empty() {
            "empty_datagram"
        } else {
            "datagram_too_large"
        };
        assert_eq!(problem.code, expected);
    }
    // The owner does not read while far more come than are kept for it.
    let sink = b.node.info()["counters"]["datagrams_in"].as_u64().unwrap();
    let mut sent = 0;
    patient(async {
        while b.node.info()["counters"]["datagrams_in"].as_u64().unwrap() < sink + 3000 {
            assert!(matches!(send(&mut asker, 0, b.at(5000), &[7; 1000]).await, Got::Done(_) | Got::Failed(..)));
            sent += 1;
        }
    })
    .await;
    let (mut got, mut missed) = (0u64, 0u64);
    while got + missed < 3000 {
        // What was dropped last is told with the next one that is not.
        assert!(matches!(send(&mut asker, 0, b.at(5000), b"last").await, Got::Done(_)));
        let Got::Datagram { missed: before, .. } = owner.next().await else { panic!("not a datagram") };
        got += 1;
        missed += u64::from(before);
    }
    assert!(missed > 0, "{got} of {sent} were kept");
}
