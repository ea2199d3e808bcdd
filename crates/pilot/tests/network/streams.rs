//! Streams between two programs, over every way the SDK knows: the extended socket of our daemon, the protocol of
//! February, and nodes inside the program.

use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use pilot::node::NodeConfig;
use pilot::{CloseReason, Driver, Embedded, Error, Options, Pilot, SocketAddress, Stream, StreamError};
use pilot_testkit::testnet::TestNet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::patient;

const PORT: u16 = 2000;

/// How a program reaches its node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Extended,
    February,
    Inside,
}

struct Pair {
    a: Box<dyn Pilot>,
    b: Box<dyn Pilot>,
    /// Port [`PORT`] of `b`.
    at: SocketAddress,
    net: TestNet,
    _homes: Vec<tempfile::TempDir>,
}

async fn pair(way: Way) -> Pair {
    if way == Way::Inside {
        return inside().await;
    }
    let net = TestNet::new(2).await.unwrap();
    net.befriend(0, 1).await.unwrap();
    let options = Options::default().extension(way == Way::Extended);
    let a = Driver::connect_with(net.socket(0), options.clone()).await.unwrap();
    let b = Driver::connect_with(net.socket(1), options).await.unwrap();
    assert_eq!(a.daemon().is_some(), way == Way::Extended);
    Pair { a: Box::new(a), b: Box::new(b), at: net.at(1, PORT), net, _homes: Vec::new() }
}

/// Two nodes inside the program, which get to trust each other through the same interface.
async fn inside() -> Pair {
    let net = TestNet::new(0).await.unwrap();
    let homes = vec![tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let mut nodes = Vec::new();
    for home in &homes {
        let config = NodeConfig { socket: None, ..net.config(home.path()) };
        let node = Embedded::start(config).await.unwrap();
        node.registered().await;
        nodes.push(Box::new(node) as Box<dyn Pilot>);
    }
    let (b, a) = (nodes.pop().unwrap(), nodes.pop().unwrap());
    let (address, other) = (a.address().await.unwrap(), b.address().await.unwrap());
    a.handshake(other.node, "test").await.unwrap();
    while b.pending().await.unwrap()["pending"][0]["node_id"] != address.node {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    b.approve(address.node).await.unwrap();
    assert_eq!(a.wait_trusted(other.node, Duration::from_secs(30)).await.unwrap()["trusted"], true);
    Pair { a, b, at: SocketAddress::new(other, PORT), net, _homes: homes }
}

impl Pair {
    async fn streams(&self, listener: &pilot::Listener) -> (Stream, Stream) {
        let (ours, theirs) = tokio::join!(self.a.dial(self.at), listener.accept());
        (ours.unwrap(), theirs.unwrap())
    }
}

/// Of a hundred tasks that waited for something and gave up, how many are still held to be woken.
fn remembered<F: Future>(wait: impl Fn() -> F) -> usize {
    struct Silent;
    impl Wake for Silent {
        fn wake(self: Arc<Self>) {}
    }
    let tasks: Vec<_> = (0..100)
        .map(|_| {
            let task = Arc::new(Silent);
            let waker = Waker::from(Arc::clone(&task));
            assert!(pin!(wait()).poll(&mut Context::from_waker(&waker)).is_pending());
            Arc::downgrade(&task)
        })
        .collect();
    tasks.iter().filter(|task| task.strong_count() > 0).count()
}

async fn talk(way: Way) {
    let pair = pair(way).await;
    let listener = pair.b.listen(PORT).await.unwrap();
    // One place for each port and one for its socket; datagrams are not asked for.
    assert!(remembered(|| listener.accept()) <= 2, "who gave up is kept");
    assert!(remembered(|| pair.b.recv_from()) <= 2, "who gave up is kept");
    let again = pair.b.listen(PORT).await.unwrap_err();
    assert_eq!(again.code(), "port_in_use", "{again}");
    let (mut ours, mut theirs) = pair.streams(&listener).await;
    assert_eq!((ours.peer_addr(), theirs.peer_addr().addr), (pair.at, pair.a.address().await.unwrap()));
    assert_eq!((theirs.local_addr().port, listener.port()), (PORT, PORT));

    // Half-close, where both ways know it: the answer comes after our end.
    ours.write_all(b"question").await.unwrap();
    let half = ours.close_write().await;
    if way == Way::February {
        let error = half.unwrap_err();
        assert_eq!(StreamError::of(&error).unwrap().code(), "no_half_close");
        theirs.read_exact(&mut [0; 8]).await.unwrap();
    } else {
        half.unwrap();
        let mut question = String::new();
        theirs.read_to_string(&mut question).await.unwrap();
        assert_eq!(question, "question");
        assert_eq!(ours.wait_delivered().await.unwrap(), 8);
    }
    theirs.write_all(b"answer").await.unwrap();
    theirs.shutdown().await.unwrap();
    let mut answer = String::new();
    ours.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    let reason = loop {
        match ours.close_reason() {
            Some(reason) => break reason,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert!(reason.is_orderly(), "{reason:?}");
    if way != Way::February {
        assert_eq!((reason, ours.delivered()), (CloseReason::Clean, Some(8)));
    }

    // A stream that is dropped with data under way delivers it all the same.
    let (mut ours, mut theirs) = pair.streams(&listener).await;
    ours.write_all(&[5; 300_000]).await.unwrap();
    drop(ours);
    let mut all = Vec::new();
    theirs.read_to_end(&mut all).await.unwrap();
    assert!(all.len() == 300_000 && all.iter().all(|byte| *byte == 5));

    // Closing says so only once everything is there.
    let (mut ours, mut theirs) = pair.streams(&listener).await;
    let reading = tokio::spawn(async move {
        let mut all = Vec::new();
        theirs.read_to_end(&mut all).await.map(|_| all.len())
    });
    ours.write_all(&[6; 500_000]).await.unwrap();
    ours.close().await.unwrap();
    assert_eq!(reading.await.unwrap().unwrap(), 500_000);

    // A port that nobody has.
    listener.close().await;
    let refused = pair.a.dial(pair.at).await.unwrap_err();
    assert_eq!(refused.code(), "connection_refused", "{refused}");
    assert!(refused.hint().is_some());

    // Datagrams, to a port that is listened on and back to where they came from.
    let _listener = pair.b.listen(PORT).await.unwrap();
    let datagram = loop {
        pair.a.send_to(pair.at, b"ping").await.unwrap();
        if let Ok(datagram) = tokio::time::timeout(Duration::from_secs(2), pair.b.recv_from()).await {
            break datagram.unwrap();
        }
    };
    assert_eq!((datagram.port, datagram.data.as_slice()), (PORT, &b"ping"[..]));
    let back = loop {
        pair.b.send_to(datagram.from, b"pong").await.unwrap();
        if let Ok(datagram) = tokio::time::timeout(Duration::from_secs(2), pair.a.recv_from()).await {
            break datagram.unwrap();
        }
    };
    assert_eq!(back.data, b"pong");

    // Trust and names.
    let other = pair.at.addr.node;
    let trusted = pair.a.trusted().await.unwrap();
    assert_eq!(trusted["trusted"][0]["node_id"], other);
    assert_eq!(pair.a.pending().await.unwrap()["pending"], serde_json::json!([]));
    assert_eq!(pair.a.wait_trusted(other, Duration::from_secs(1)).await.unwrap()["trusted"], true);
    pair.b.set_hostname("bee").await.unwrap();
    assert_eq!(pair.a.resolve("bee").await.unwrap(), pair.at.addr);
    assert!(pair.a.resolve("nobody").await.is_err());
    assert_eq!(pair.a.health().await.unwrap()["status"], "ok");
    let unknown = pair.a.call("no.such", &serde_json::json!(null)).await.unwrap_err();
    assert!(unknown.is_unsupported(), "{unknown}");
    let Pair { a, b, net, .. } = pair;
    drop((a, b));
    net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_extended_socket() {
    patient("the talk", talk(Way::Extended)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_the_protocol_of_february() {
    patient("the talk", talk(Way::February)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn between_nodes_inside_the_program() {
    patient("the talk", talk(Way::Inside)).await;
}

/// A stream that is not read holds back its own peer, keeps little here, and delays nobody else.
async fn unread(way: Way) {
    let pair = pair(way).await;
    let listener = pair.b.listen(PORT).await.unwrap();
    let (ours, mut theirs) = pair.streams(&listener).await;
    let flooding = tokio::spawn(async move {
        let chunk = vec![9; 64 * 1024];
        let mut written = 0usize;
        while written < 64 << 20 {
            match tokio::time::timeout(Duration::from_secs(2), theirs.write_all(&chunk)).await {
                Ok(Ok(())) => written += chunk.len(),
                _ => return written,
            }
        }
        written
    });
    // Meanwhile another stream of the same program goes on.
    let (mut other, mut far) = pair.streams(&listener).await;
    for round in 0..50u8 {
        other.write_all(&[round; 1000]).await.unwrap();
        let mut there = [0; 1000];
        far.read_exact(&mut there).await.unwrap();
        far.write_all(&there).await.unwrap();
        other.read_exact(&mut there).await.unwrap();
        assert!(there.iter().all(|byte| *byte == round));
    }
    pair.a.info().await.unwrap();
    let written = flooding.await.unwrap();
    assert!(written < 32 << 20, "{written} bytes went into a stream that nobody reads");
    drop(ours);
    let Pair { a, b, net, .. } = pair;
    drop((a, b));
    net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_delays_nobody_over_the_extended_socket() {
    patient("the others", unread(Way::Extended)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_reads_delays_nobody_inside_the_program() {
    patient("the others", unread(Way::Inside)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dial_that_fails_says_what_to_do() {
    let net = TestNet::new(1).await.unwrap();
    let driver = net.driver(0).await.unwrap();
    let error = driver.dial("0:0000.0000.00FF:80".parse().unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error:?}");
    assert_eq!(error.code(), "node_not_found");
    assert!(error.hint().unwrap().contains("0:0000.0000.00FF"));
    net.shutdown().await;
}
