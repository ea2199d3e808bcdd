//! The extension of the local socket, rule by rule: calls, limits, events, and clients that do not keep to the rules.

use std::time::Duration;

use pilot_wire::ipc::ext::ClientFrame;
use pilot_wire::ipc::{Answer, Request};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::common::{Net, patient, until};
use crate::ext_client::{ExtClient, Got};
use crate::extension::{PLENTY, bytes, friends};
use crate::services::Trial;

#[tokio::test(flavor = "multi_thread")]
async fn calls_and_streams_reach_services_without_new_opcodes() {
    let net = Net::new().await;
    let a = net.node_with(|config| config.services.push(std::sync::Arc::new(Trial))).await;
    let mut client = ExtClient::connect(&a.socket(), 20_000).await;
    assert_eq!(client.call("trial.call", &json!([1, "<2>"])).await, json!({ "got": [1, "<2>"] }));
    let never = client.start_call("trial.never", &Value::Null).await;
    for (method, params, code) in [
        ("trial.huge", "null", "too_large"),
        ("trial.refuse", "null", "not_today"),
        ("trial.nothing", "null", "unknown_method"),
        ("trial.call", "{", "invalid_argument"),
        ("events", "", "unknown_method"),
        ("delivered", r#"{"stream":"x"}"#, "invalid_argument"),
        ("delivered", r#"{"stream":77}"#, "unknown_stream"),
        ("connections", r#"{"limit":-1}"#, "invalid_argument"),
    ] {
        let request = client.number();
        client.send(ClientFrame::Call { request, method, params: params.as_bytes() }).await;
        assert_eq!(client.code(request).await, code, "{method} {params}");
    }
    let request = client.number();
    client.send(ClientFrame::Call { request, method: "trial.call", params: b"" }).await;
    assert_eq!(client.answer(request).await, Got::Result(request, json!({ "got": null })));
    client.send(ClientFrame::Cancel { request: never }).await;
    assert_eq!(client.code(never).await, "cancelled");

    // A stream, larger than everything between the two, both ways at once.
    let stream = client.open("trial.echo", &Value::Null).await;
    let mut credit = client.initial as usize;
    let data = bytes(2_000_000);
    let (mut sent, mut got) = (0, Vec::new());
    while got.len() < data.len() {
        while sent < data.len() && credit > 0 {
            let n = (data.len() - sent).min(credit).min(50_000);
            client.data(stream, &data[sent..sent + n]).await;
            sent += n;
            credit -= n;
        }
        match client.next().await {
            Got::Data(_, part) => {
                client.credit(stream, part.len() as u32).await;
                got.extend(part);
            }
            Got::Credit(_, bytes) => credit += bytes as usize,
            other => panic!("{other:?}"),
        }
    }
    assert!(got == data);
    client.finish(stream).await;
    assert_eq!(client.read_to_end(stream).await, b"");
    assert_eq!(client.closed(stream).await, (data.len() as u64, "clean".to_owned()));

    // A service that fails says so, after what it had said; one that does not listen can be left.
    let stream = client.open("trial.fail", &Value::Null).await;
    assert_eq!(client.read(stream, 7).await, b"partial");
    assert_eq!(client.closed(stream).await, (0, "disk_full".to_owned()));
    assert!(!client.kept().any(|got| matches!(got, Got::Finished(_))), "a failure is no orderly end");
    let stream = client.open("trial.deaf", &Value::Null).await;
    client.data(stream, b"hello?").await;
    assert_eq!(client.delivered(stream, 0).await, 0);
    let wait = json!({ "stream": stream, "at_least": 6, "timeout_ms": 20 });
    let request = client.start_call("delivered", &wait).await;
    assert_eq!(client.code(request).await, "timeout");
    client.send(ClientFrame::Reset { stream }).await;
    assert_eq!(client.closed(stream).await, (0, "local".to_owned()));
    let request = client.start_open("trial.refuse", &Value::Null).await;
    assert_eq!(client.code(request).await, "not_today");
    let request = client.start_open("health", &Value::Null).await;
    assert_eq!(client.code(request).await, "unknown_method");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemons_own_calls_answer_without_a_service() {
    let (_net, a, b) = friends().await;
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    let stream = client.dial(b.at(7)).await;
    assert_eq!(client.call("health", &Value::Null).await["status"], "ok");
    assert_eq!(client.call("info", &json!({})).await["node_id"], a.id());
    let methods = client.call("methods", &Value::Null).await;
    assert_eq!(methods["methods"], client.greeting["methods"]);
    let conns = client.call("connections", &Value::Null).await;
    assert!(conns["total"].as_u64().unwrap() >= 1);
    assert!(conns["connections"].as_array().unwrap().iter().any(|conn| conn["remote_port"] == 7));
    let peers = client.call("peers", &json!({ "limit": 1 })).await;
    assert_eq!(peers["peers"][0]["node_id"], b.id());
    assert_eq!(client.call("connections", &json!({ "limit": 0 })).await["connections"], json!([]));
    // The official commands as calls, with codes.
    let trusted = client.call("trust.trusted", &Value::Null).await;
    assert_eq!(trusted["trusted"][0]["node_id"], b.id());
    assert_eq!(client.call("trust.wait", &json!({ "node": b.id() })).await["trusted"], true);
    let request = client.call("trust.request", &json!({ "node": b.id() })).await;
    assert_eq!((&request["status"], &request["already_trusted"]), (&json!("sent"), &json!(true)));
    assert_eq!(client.call("hostname.set", &json!({ "hostname": "alice" })).await["hostname"], "alice");
    assert_eq!(client.call("hostname.resolve", &json!({ "hostname": "alice" })).await["node_id"], a.id());
    assert_eq!(client.call("visibility.set", &json!({ "public": true })).await["visibility"], "public");
    assert_eq!(client.call("tags.set", &json!({ "tags": ["web"] })).await["tags"], json!(["web"]));
    for (method, params, code) in [
        ("trust.approve", json!({ "node": "x" }), "invalid_argument"),
        ("trust.revoke", json!({ "node": 4000 }), "not_trusted"),
        ("tags.set", json!({ "tags": ["a", "b", "c", "d"] }), "invalid_argument"),
        ("visibility.set", json!({}), "invalid_argument"),
        ("hostname.resolve", json!({ "hostname": "nobody" }), "hostname_not_found"),
    ] {
        let request = client.start_call(method, &params).await;
        assert_eq!(client.code(request).await, code, "{method}");
    }
    // The same for a program that embeds the node.
    assert_eq!(a.node.call("health", Value::Null).await.unwrap()["status"], "ok");
    client.send(ClientFrame::Close { stream }).await;
    assert_eq!(client.closed(stream).await.1, "clean");
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_beyond_the_limit_fail_and_the_others_go_on() {
    let net = Net::new().await;
    let a = net.node_with(|config| config.services.push(std::sync::Arc::new(Trial))).await;
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    client.bind(2000, 1, false).await;
    let accepts: Vec<u32> = {
        let mut all = Vec::new();
        for _ in 0..1024 {
            all.push(client.start_accept(2000).await);
        }
        all
    };
    let request = client.start_call("health", &Value::Null).await;
    assert_eq!(client.code(request).await, "too_many_requests");
    client.send(ClientFrame::Cancel { request: accepts[0] }).await;
    assert_eq!(client.code(accepts[0]).await, "cancelled");
    client.call("health", &Value::Null).await;
    for accept in &accepts[1..] {
        client.send(ClientFrame::Cancel { request: *accept }).await;
        assert_eq!(client.code(*accept).await, "cancelled");
    }
    // Parameters of waiting calls are bounded by their bytes, too.
    let params = Value::from("x".repeat(1_000_000));
    let mut calls = Vec::new();
    for _ in 0..17 {
        calls.push(client.start_call("trial.never", &params).await);
    }
    assert_eq!(client.code(calls[16]).await, "too_many_requests");
    client.send(ClientFrame::Cancel { request: calls[0] }).await;
    client.code(calls[0]).await;
    assert_eq!(client.call("trial.call", &params).await["got"], params);
}

#[tokio::test(flavor = "multi_thread")]
async fn five_thousand_binds_are_answered_and_those_beyond_the_limit_refused() {
    let net = Net::new().await;
    let a = net.node().await;
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    let mut frames = Vec::new();
    for port in 5000..10_000u16 {
        let request = u32::from(port);
        ClientFrame::Bind { request, port, backlog: 1, datagrams: false }.emit(&mut frames).unwrap();
    }
    client.raw.write(&frames).await;
    let mut bound = 0;
    for port in 5000..10_000u32 {
        match client.answer(port).await {
            Got::Done(_) => bound += 1,
            Got::Failed(_, problem) => assert_eq!(problem.code, "too_many_ports"),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(bound, 1024);
    drop(client);
    until(|| a.node.info()["ports"].as_u64().unwrap() < 10).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_followed_by_kind_and_a_slow_reader_is_told_what_it_missed() {
    let net = Net::new().await;
    let a = net.node().await;
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    let all = client.open("events", &Value::Null).await;
    let some = client.open("events", &json!({ "kinds": ["test.*"] })).await;
    let request = client.start_open("events", &json!({ "kinds": "test" })).await;
    assert_eq!(client.code(request).await, "invalid_argument");
    let mut slow = ExtClient::connect(&a.socket(), 0).await;
    let unread = slow.open("events", &json!({ "kinds": ["test.*", "other"] })).await;
    let bus = a.node.reporter();
    bus.emit("other", json!({ "kind": "a lie", "n": 1 }).as_object().unwrap().clone());
    bus.emit("test.one", json!({ "n": 2 }).as_object().unwrap().clone());
    let line = async |client: &mut ExtClient, stream: u32| -> Value {
        let text = client
            .find(|got| match got {
                Got::Data(id, data) if *id == stream => Some(data.clone()),
                _ => None,
            })
            .await;
        let first = text.split(|b| *b == b'\n').next().unwrap();
        serde_json::from_slice(first).unwrap()
    };
    let event = line(&mut client, some).await;
    assert_eq!((&event["kind"], &event["n"]), (&json!("test.one"), &json!(2)));
    assert!(event["at"].as_f64().unwrap() > 1e9 && event["seq"].as_u64().unwrap() > 0);
    let event = line(&mut client, all).await;
    assert_eq!((&event["kind"], &event["n"]), (&json!("other"), &json!(1)));
    client.send(ClientFrame::Close { stream: all }).await;
    assert_eq!(client.closed(all).await.1, "clean");
    // Far more than the bus and the stream hold, for one that does not read at all.
    let filler = json!({ "filler": "x".repeat(1000) }).as_object().unwrap().clone();
    for _ in 0..20_000 {
        bus.emit("test.flood", filler.clone());
    }
    bus.emit("test.last", serde_json::Map::new());
    slow.credit(unread, PLENTY).await;
    let (mut text, mut missed, mut seen) = (Vec::new(), 0, 0);
    'reading: loop {
        text.extend(
            slow.find(|got| match got {
                Got::Data(_, data) => Some(data.clone()),
                _ => None,
            })
            .await,
        );
        while let Some(end) = text.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = text.drain(..=end).collect();
            let event: Value = serde_json::from_slice(&line).unwrap();
            match event["kind"].as_str().unwrap() {
                "missed" => missed += event["count"].as_u64().unwrap(),
                "test.last" => break 'reading,
                _ => seen += 1,
            }
        }
    }
    assert!(missed > 0 && seen > 0, "{missed} {seen}");
    assert!(missed + seen >= 20_002, "{missed} missed and {seen} seen");
}

#[tokio::test(flavor = "multi_thread")]
async fn rude_clients_harm_only_themselves() {
    let (_net, a, b) = friends().await;
    let mut good = ExtClient::connect(&a.socket(), PLENTY).await;
    let stream = good.dial(b.at(7)).await;
    // Half a frame, and gone.
    let mut half = ExtClient::connect(&a.socket(), PLENTY).await;
    half.raw.write(&[0, 0, 0, 99, 0x87, 0, 0]).await;
    // Garbage of every opcode.
    for opcode in 0..=255u8 {
        let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
        client.raw.write(&[0, 0, 0, 12, opcode, 0xFF, 0xFF, 0xFF, 0xFF, 7, 7, 7, 7, 7, 7, 7]).await;
    }
    // One that asks and never reads: it is not read from either once enough waits for it.
    let mut silent = ExtClient::connect(&a.socket(), PLENTY).await;
    let mut frames = Vec::new();
    for request in 1..=300 {
        ClientFrame::Call { request, method: "info", params: b"" }.emit(&mut frames).unwrap();
        let remote = b.at(7);
        ClientFrame::Dial { request: request + 5000, remote, timeout_ms: 0 }.emit(&mut frames).unwrap();
    }
    let _ = tokio::time::timeout(Duration::from_millis(500), silent.raw.socket.write_all(&frames)).await;
    // One that vanishes in the middle of a stream: the peer gets what was sent, and the end.
    let listener = b.node.listen(2000).unwrap();
    let mut vanishing = ExtClient::connect(&a.socket(), PLENTY).await;
    let lost = vanishing.dial(b.at(2000)).await;
    vanishing.write_all(lost, &bytes(300_000)).await;
    drop(vanishing);
    let mut peer = patient(listener.accept()).await;
    let mut got = Vec::new();
    patient(peer.read_to_end(&mut got)).await.unwrap();
    assert!(got == bytes(300_000));
    good.data(stream, b"unharmed").await;
    assert_eq!(good.read(stream, 8).await, b"unharmed");
    drop((half, silent));
    until(|| a.node.info()["clients"] == 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_answers_what_waits_and_says_why_streams_end() {
    let (_net, a, b) = friends().await;
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    let stream = client.dial(b.at(7)).await;
    client.bind(2000, 1, false).await;
    let accept = client.start_accept(2000).await;
    let events = client.open("events", &Value::Null).await;
    client.call("health", &Value::Null).await;
    patient(a.node.shutdown(Duration::from_secs(5))).await;
    assert_eq!(client.closed(stream).await.1, "daemon_shutdown");
    assert_eq!(client.closed(events).await.1, "daemon_shutdown");
    assert_eq!(client.code(accept).await, "daemon_shutdown");
    while client.raw.next_or_end().await.is_some() {}
}

#[tokio::test(flavor = "multi_thread")]
async fn official_commands_go_on_beside_the_extension() {
    let (_net, a, b) = friends().await;
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    let mut frame = Vec::new();
    Request::Dial { remote: b.at(7) }.emit(&mut frame).unwrap();
    client.raw.write(&frame).await;
    let stream = client.dial(b.at(7)).await;
    let Got::Official(body) = client.find(|got| matches!(got, Got::Official(_)).then(|| got.clone())).await else {
        return;
    };
    let Answer::DialOk { conn } = Answer::parse(&body).unwrap() else { panic!("{body:?}") };
    frame.clear();
    Request::Send { conn, data: b"old" }.emit(&mut frame).unwrap();
    client.raw.write(&frame).await;
    client.data(stream, b"new").await;
    assert_eq!(client.read(stream, 3).await, b"new");
    let Got::Official(body) = client.find(|got| matches!(got, Got::Official(_)).then(|| got.clone())).await else {
        return;
    };
    assert_eq!(Answer::parse(&body).unwrap(), Answer::Recv { conn, data: b"old" });
}

#[tokio::test(flavor = "multi_thread")]
async fn hundreds_of_streams_of_one_client_share_its_socket() {
    let (_net, a, b) = friends().await;
    let mut client = ExtClient::connect(&a.socket(), PLENTY).await;
    let mut requests = Vec::new();
    for _ in 0..300 {
        requests.push(client.start_dial(b.at(7), 0).await);
    }
    let mut streams = Vec::new();
    for request in requests {
        streams.push(client.opened(request).await.stream);
    }
    for stream in &streams {
        client.data(*stream, &stream.to_be_bytes()).await;
    }
    for stream in &streams {
        assert_eq!(client.read(*stream, 4).await, stream.to_be_bytes());
        client.send(ClientFrame::Close { stream: *stream }).await;
    }
    for stream in &streams {
        assert_eq!(client.closed(*stream).await, (4, "clean".to_owned()));
    }
}
