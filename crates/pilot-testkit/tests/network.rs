//! The main path in one process: rendezvous, nodes and drivers on loopback.

use pilot_testkit::testnet::{PATIENCE, TestNet, patient, until};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 13 + i / 4093 + salt) as u8).collect()
}

/// Sends `data` over a new stream from node `a` to a listener of node `b`, and reads back what that returns.
async fn round_trip(net: &TestNet, a: usize, b: usize, data: Vec<u8>) {
    let (client, server) = (net.driver(a).await.expect("driver"), net.driver(b).await.expect("driver"));
    let listener = server.listen(3000).await.expect("listen");
    let to = net.at(b, 3000);
    let from = net.id(a);
    let expected = data.clone();
    let serve = async move {
        let mut stream = listener.accept().await.expect("accept");
        assert_eq!(stream.remote().addr.node, from, "the stream says who opened it");
        let mut got = vec![0; expected.len()];
        stream.read_exact(&mut got).await.expect("read");
        assert!(got == expected, "what arrived differs");
        stream.write_all(&got).await.expect("write");
        stream.close().await.expect("close");
    };
    let dial = async move {
        let mut stream = client.dial(to).await.expect("dial");
        stream.write_all(&data).await.expect("write");
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await.expect("read to the end");
        assert!(back == data, "{} of {} bytes came back, or others", back.len(), data.len());
    };
    patient("both ends", async { tokio::join!(serve, dial) }).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drivers_of_two_nodes_exchange_data_both_ways() {
    let net = TestNet::new(2).await.expect("network");
    net.befriend(0, 1).await.expect("trust");
    round_trip(&net, 0, 1, pattern(2_000_000, 1)).await;
    round_trip(&net, 1, 0, pattern(2_000_000, 2)).await;
    net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_pair_of_four_nodes_talks_at_once() {
    let net = TestNet::new(4).await.expect("network");
    net.befriend_all().await.expect("trust");
    patient("all pairs", async {
        tokio::join!(
            round_trip(&net, 0, 1, pattern(300_000, 1)),
            round_trip(&net, 1, 2, pattern(300_000, 2)),
            round_trip(&net, 2, 3, pattern(300_000, 3)),
            round_trip(&net, 3, 0, pattern(300_000, 4)),
        )
    })
    .await
    .expect("in time");
    net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_comes_back_with_its_address_its_trust_and_its_streams() {
    let mut net = TestNet::new(2).await.expect("network");
    net.befriend(0, 1).await.expect("trust");
    round_trip(&net, 0, 1, pattern(10_000, 1)).await;
    let before = net.id(1);
    net.restart(1).await.expect("restart");
    assert_eq!(net.id(1), before);
    round_trip(&net, 0, 1, pattern(10_000, 2)).await;
    round_trip(&net, 1, 0, pattern(10_000, 3)).await;
    net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_arrives_once_with_its_sender_at_whoever_wants_it() {
    let net = TestNet::new(2).await.expect("network");
    net.befriend(0, 1).await.expect("trust");
    let (from, to) = (net.driver(0).await.expect("driver"), net.driver(1).await.expect("driver"));
    // A stream first, so that the datagram does not race the key exchange; datagrams may be lost, streams may not.
    drop(from.dial(net.at(1, 7)).await.expect("dial"));
    // Programs of the old local protocol get what nobody has bound; those of ours only what they asked for.
    let plain = pilot::Options::default().extension(false);
    let old = pilot::Driver::connect_with(net.socket(1), plain).await.expect("old driver");
    one_datagram(&net, &from, &old, 4000, b"to any port").await;
    let listener = to.listen(4001).await.expect("listen");
    one_datagram(&net, &from, &to, 4001, b"to a bound port").await;
    listener.close().await;
    one_datagram(&net, &from, &old, 4001, b"to a freed port").await;
    let unasked = tokio::time::timeout(std::time::Duration::from_millis(300), to.recv_from()).await;
    assert!(unasked.is_err(), "a datagram came to a port that was given up: {unasked:?}");
    net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_speaks_and_closes_at_once_is_heard_whole() {
    // 02 §29 row 7, 03 §16 row 15: the stream may be over before the dial has returned.
    let net = TestNet::new(2).await.expect("network");
    net.befriend(0, 1).await.expect("trust");
    let (client, server) = (net.driver(0).await.expect("driver"), net.driver(1).await.expect("driver"));
    let listener = server.listen(3000).await.expect("listen");
    const STREAMS: usize = 60;
    let speak = async {
        for i in 0..STREAMS {
            let mut stream = listener.accept().await.expect("accept");
            stream.write_all(&pattern(1 + i * 700, i)).await.expect("write");
            if i % 2 == 0 {
                stream.close().await.expect("close");
            }
        }
    };
    let listen = async {
        for i in 0..STREAMS {
            let mut stream = client.dial(net.at(1, 3000)).await.expect("dial");
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.expect("read to the end");
            assert!(heard == pattern(1 + i * 700, i), "stream {i}: {} bytes", heard.len());
        }
    };
    patient("all streams", async { tokio::join!(speak, listen) }).await.expect("in time");
    net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_may_go_and_come_back_while_streams_arrive() {
    // 02 §29 row 19, 03 §16 row 22.
    let net = TestNet::new(2).await.expect("network");
    net.befriend(0, 1).await.expect("trust");
    let (client, server) = (net.driver(0).await.expect("driver"), net.driver(1).await.expect("driver"));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let knock = async {
        let (mut opened, mut refused) = (0, 0);
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            match client.dial(net.at(1, 3000)).await {
                Ok(mut stream) => {
                    opened += 1;
                    // Accepted, or closed because nobody will accept it any more: never left open and forgotten.
                    let mut end = Vec::new();
                    if let Err(error) = stream.read_to_end(&mut end).await {
                        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
                    }
                }
                Err(error) => {
                    assert!(error.to_string().contains("connection refused"), "{error}");
                    refused += 1;
                }
            }
        }
        (opened, refused)
    };
    let open_and_close = async {
        for round in 0..40 {
            let listener = server.listen(3000).await.expect("the port is free again at once");
            for _ in 0..round % 3 {
                drop(listener.accept().await.expect("accept"));
            }
            listener.close().await;
            tokio::time::sleep(std::time::Duration::from_millis(round % 4)).await;
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let ((opened, refused), ()) =
        patient("forty rounds", async { tokio::join!(knock, open_and_close) }).await.expect("in time");
    assert!(opened >= 40 && refused >= 1, "{opened} opened, {refused} refused");
    let streams = |i: usize| net.node(i).info()["connections"].as_u64();
    until("no stream is left", || streams(0) == Some(0) && streams(1) == Some(0)).await.expect("nothing left");
    round_trip(&net, 0, 1, pattern(10_000, 1)).await;
    net.shutdown().await;
}

/// Sends to a port of node 1 until one datagram has arrived there. One that was sent once must not arrive twice.
async fn one_datagram(net: &TestNet, from: &pilot::Driver, to: &pilot::Driver, port: u16, news: &[u8]) {
    let mut sent = 0;
    let datagram = patient("a datagram", async {
        loop {
            sent += 1;
            from.send_to(net.at(1, port), news).await.expect("send");
            let wait = std::time::Duration::from_millis(500);
            if let Ok(got) = tokio::time::timeout(wait, to.recv_from()).await {
                let got = got.expect("receive");
                // A late copy of earlier news says nothing about these.
                if got.data == news {
                    break got;
                }
            }
        }
    })
    .await
    .expect("in time");
    assert_eq!(datagram.port, port);
    assert_eq!(datagram.from.addr.node, net.id(0));
    let again = tokio::time::timeout(std::time::Duration::from_millis(300), to.recv_from()).await;
    let twice = matches!(again, Ok(Ok(second)) if second.data == news);
    assert!(!twice || sent > 1, "the datagram arrived twice");
}

/// The typed interface, through a daemon and inside a program, gives the same.
#[tokio::test(flavor = "multi_thread")]
async fn networks_work_through_a_driver_and_through_an_embedded_node() {
    use pilot::{NetworkChange, Pilot};
    let net = TestNet::new(3).await.unwrap();
    let driver = net.driver(0).await.unwrap();
    let config = net.config(std::path::Path::new("unused"));
    let embedded =
        pilot::Embedded::start(pilot_node::NodeConfig { identity: None, socket: None, ..config }).await.unwrap();
    let own: &dyn Pilot = &embedded;
    let them: &dyn Pilot = &driver;
    let create = NetworkChange::Create { name: "lab".into(), join_rule: "invite".into(), token: String::new() };
    let made = them.change_network(&create).await.unwrap();
    assert_eq!(made["network_id"], 1, "{made}");
    let node = own.address().await.unwrap().node;
    let error = own.join_network(1, "").await.unwrap_err();
    assert_eq!(error.code(), "not_invited", "{error}");
    them.invite(1, node).await.unwrap();
    assert_eq!(own.invites().await.unwrap()["invites"][0]["inviter_id"], net.id(0));
    own.respond_invite(1, true).await.unwrap();
    // The outsider hears nothing, the member does.
    let outsider = net.driver(1).await.unwrap();
    assert!(outsider.join_network(1, "").await.unwrap_err().to_string().contains("requires an invitation"));
    let _port = own.listen(1000).await.unwrap();
    let told = them.broadcast(1, 1000, b"\x00\xFFhello", PATIENCE).await.unwrap();
    assert_eq!((&told["members"], &told["sent"]), (&1.into(), &1.into()), "{told}");
    let heard = tokio::time::timeout(PATIENCE, own.recv_from()).await.unwrap().unwrap();
    assert_eq!((heard.from.addr.node, heard.data), (net.id(0), b"\x00\xFFhello".to_vec()));
    assert_eq!(outsider.broadcast(1, 1000, b"x", PATIENCE).await.unwrap_err().code(), "not_member");
    // A datagram to everybody's address is one, too.
    let all = pilot::SocketAddress::new(pilot::Address { network: 1, node: u32::MAX }, 1000);
    them.send_to(all, b"all").await.unwrap();
    let heard = tokio::time::timeout(PATIENCE, own.recv_from()).await.unwrap().unwrap();
    assert_eq!(heard.data, b"all");
    // And from inside a program: answers come back to it.
    let _theirs = them.listen(2001).await.unwrap();
    let told = own.broadcast(1, 2001, b"who is there?", PATIENCE).await.unwrap();
    assert_eq!((&told["sent"], &told["bytes"]), (&1.into(), &13.into()), "{told}");
    own.send_to(pilot::SocketAddress { port: 2001, ..all }, b"and now?").await.unwrap();
    for question in [&b"who is there?"[..], b"and now?"] {
        let heard = tokio::time::timeout(PATIENCE, them.recv_from()).await.unwrap().unwrap();
        assert_eq!(heard.data, question);
        them.send_to(heard.from, b"I am").await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, own.recv_from()).await.unwrap().unwrap();
        assert_eq!((answer.from.addr.node, &answer.data[..]), (net.id(0), &b"I am"[..]));
    }
    // The policy closes a port to members.
    let policy = pilot::PolicyChange { allowed_ports: Some(vec![80]), ..Default::default() };
    them.change_network(&NetworkChange::SetPolicy { network: 1, policy }).await.unwrap();
    assert_eq!(them.broadcast(1, 1000, b"x", PATIENCE).await.unwrap_err().code(), "network_policy");
    them.change_network(&NetworkChange::Kick { network: 1, target: node }).await.unwrap();
    assert_eq!(them.members(1).await.unwrap()["nodes"].as_array().unwrap().len(), 1);
    embedded.shutdown(std::time::Duration::from_secs(5)).await;
    net.shutdown().await;
}
