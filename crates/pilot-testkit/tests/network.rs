//! The main path in one process: rendezvous, nodes and drivers on loopback.

use pilot_testkit::testnet::{TestNet, patient};
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
async fn a_datagram_arrives_once_with_its_sender_bound_port_or_not() {
    let net = TestNet::new(2).await.expect("network");
    net.befriend(0, 1).await.expect("trust");
    let (from, to) = (net.driver(0).await.expect("driver"), net.driver(1).await.expect("driver"));
    // A stream first, so that the datagram does not race the key exchange; datagrams may be lost, streams may not.
    drop(from.dial(net.at(1, 7)).await.expect("dial"));
    one_datagram(&net, &from, &to, 4000, b"to any port").await;
    let listener = to.listen(4001).await.expect("listen");
    one_datagram(&net, &from, &to, 4001, b"to a bound port").await;
    listener.close().await;
    one_datagram(&net, &from, &to, 4001, b"to a freed port").await;
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
