//! HTTP runs over the SDK unchanged: axum behind a listener, hyper through streams, in every order of closing. The code
//! is that of the example.

use std::time::Duration;

use axum::body::Bytes;
use pilot::{Driver, Options, Pilot, SocketAddress};
use pilot_testkit::testnet::TestNet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::http::{Client, Door, PORT, application, pattern};
use crate::patient;

/// A server at one node and a way to it from another.
struct Web {
    net: TestNet,
    client: Box<dyn Pilot>,
    at: SocketAddress,
}

/// Over the extended socket of our daemon, or over the protocol of February.
async fn web(extended: bool) -> Web {
    let net = TestNet::new(2).await.unwrap();
    net.befriend(0, 1).await.unwrap();
    let options = Options::default().extension(extended);
    let server = Driver::connect_with(net.socket(1), options.clone()).await.unwrap();
    let listener = server.listen(PORT).await.unwrap();
    tokio::spawn(async move { axum::serve(Door(listener), application()).await });
    let client = Driver::connect_with(net.socket(0), options).await.unwrap();
    let at = net.at(1, PORT);
    Web { net, client: Box::new(client), at }
}

async fn everything(web: Web) {
    let network = web.client.as_ref();
    // Keep-alive: several requests, one connection, a body of 10 MB in either direction.
    let mut client = Client::connect(network, web.at).await.unwrap();
    for _ in 0..3 {
        assert_eq!(client.get("/").await.unwrap(), "hello over Pilot\n");
    }
    let big = 10_000_000;
    assert!(client.get(&format!("/bytes/{big}")).await.unwrap() == pattern(big));
    let counted = client.ask("POST", "/count", pattern(big)).await.unwrap();
    assert_eq!(counted.body(), &big.to_string());
    assert!(!client.is_closed());

    // A hundred clients at once, each on a connection of its own; they close first.
    let requests = (0..100).map(|i: usize| async move {
        let mut client = Client::connect(network, web.at).await.unwrap();
        let size = 1000 + i * 100;
        assert!(client.get(&format!("/bytes/{size}")).await.unwrap() == pattern(size));
        assert_eq!(client.get("/").await.unwrap(), "hello over Pilot\n");
    });
    futures_util::future::join_all(requests).await;

    // The server closes first, after its answer.
    let bye = client.ask("GET", "/bye", Bytes::new()).await.unwrap();
    assert_eq!((bye.headers()["connection"].as_bytes(), bye.body().as_ref()), (&b"close"[..], &b"bye\n"[..]));
    while !client.is_closed() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // The client closes its direction first and reads the answer to the end: a stream, not a request, decides.
    let mut raw = network.dial(web.at).await.unwrap();
    raw.write_all(b"GET /bytes/100000 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    raw.read_to_end(&mut answer).await.unwrap();
    assert!(answer.ends_with(&pattern(100_000)), "{} bytes", answer.len());
    raw.shutdown().await.unwrap();
    drop(raw);

    // The client vanishes in the middle of an answer; the server goes on with others.
    let mut gone = network.dial(web.at).await.unwrap();
    gone.write_all(b"GET /bytes/10000000 HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    gone.read_u8().await.unwrap();
    drop(gone);
    let mut client = Client::connect(network, web.at).await.unwrap();
    assert_eq!(client.get("/").await.unwrap(), "hello over Pilot\n");
    web.net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_extended_socket() {
    patient("HTTP", async { everything(web(true).await).await }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_protocol_of_february() {
    patient("HTTP", async { everything(web(false).await).await }).await;
}
