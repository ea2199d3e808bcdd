//! A daemon of ours restarts under the programs that use it.

use std::time::Duration;

use pilot::{CloseReason, ConnectionState, Driver, Options, StreamError};
use pilot_testkit::testnet::TestNet;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::patient;

const PORT: u16 = 2000;

async fn restarted(extended: bool) {
    let mut net = TestNet::new(2).await.unwrap();
    net.befriend(0, 1).await.unwrap();
    let options = Options::default().extension(extended).patience(Duration::from_secs(120));
    let server = Driver::connect_with(net.socket(1), options.clone()).await.unwrap();
    assert_eq!(server.daemon().is_some(), extended);
    let listener = server.listen(PORT).await.unwrap();
    let client = Driver::connect_with(net.socket(0), options).await.unwrap();

    let (dialled, accepted) = tokio::join!(client.dial(net.at(1, PORT)), listener.accept());
    let (mut dialled, mut accepted) = (dialled.unwrap(), accepted.unwrap());
    dialled.write_all(b"before").await.unwrap();
    let mut six = [0; 6];
    accepted.read_exact(&mut six).await.unwrap();

    // While the daemon of the server restarts, a program waits for the next stream and asks for the status.
    let at = net.at(1, PORT);
    let waiting = tokio::spawn(async move {
        let stream = listener.accept().await;
        (listener, stream)
    });
    net.restart(1).await.unwrap();
    assert_eq!(server.info().await.unwrap()["node_id"], net.id(1));
    let end = accepted.read(&mut six).await;
    let reason = accepted.close_reason().unwrap();
    match reason {
        CloseReason::DaemonGone | CloseReason::DaemonShutdown => {
            assert_eq!(StreamError::of(&end.unwrap_err()), Some(&StreamError::Ended(reason)));
        }
        // The old protocol has one kind of end (03 §6.6).
        CloseReason::Untold if !extended => assert_eq!(end.unwrap(), 0),
        other => panic!("{other:?}"),
    }
    assert!(matches!(server.connection_state(), ConnectionState::Connected { .. }));

    // The listener has its port again, as soon as the peers have found each other.
    let mut second = loop {
        match client.dial(at).await {
            Ok(stream) => break stream,
            Err(error) => assert!(!error.is_disconnected(), "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    second.write_all(b"behind").await.unwrap();
    let (_listener, accepted) = waiting.await.unwrap();
    accepted.unwrap().read_exact(&mut six).await.unwrap();
    assert_eq!(&six, b"behind");
    net.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_and_calls_outlive_a_daemon_over_the_extended_socket() {
    patient("the restart", restarted(true)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn listeners_and_calls_outlive_a_daemon_over_the_protocol_of_february() {
    patient("the restart", restarted(false)).await;
}
