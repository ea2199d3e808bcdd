//! What an application may rely on, shown against a scripted daemon (03 §12 to §16).

use crate::fake::{hex, pair};
use pilot::{CloseReason, Error, SocketAddress, Stream, StreamError};
use pilot_wire::ipc::{Answer, op};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};

fn peer() -> SocketAddress {
    "0:0000.0000.0002:1000".parse().unwrap()
}

fn remote() -> SocketAddress {
    "0:0000.0000.0003:49154".parse().unwrap()
}

/// A driver, its daemon and a dialled stream with the id 9.
async fn dialled(space: usize) -> (pilot::Driver, crate::fake::Fake, Stream) {
    let (driver, mut fake) = pair(space);
    let (stream, ()) = tokio::join!(driver.dial(peer()), async {
        fake.expect("0300000000000203e8").await;
        fake.push(Answer::DialOk { conn: 9 }).await;
    });
    (driver, fake, stream.unwrap())
}

#[tokio::test]
async fn a_stream_reads_writes_and_ends() {
    let (_driver, mut fake, mut stream) = dialled(4096).await;
    assert_eq!((stream.remote(), stream.local_port(), stream.id()), (peer(), 0, 9));
    stream.write_all(b"hello").await.unwrap();
    fake.expect("060000000968656c6c6f").await;
    fake.push(Answer::Recv { conn: 9, data: b"world!" }).await;
    let mut four = [0; 4];
    stream.read_exact(&mut four).await.unwrap();
    assert_eq!(&four, b"worl");
    fake.push(Answer::Recv { conn: 9, data: b"\nmore" }).await;
    fake.push(Answer::CloseOk { conn: 9 }).await;
    fake.push(Answer::CloseOk { conn: 9 }).await;
    let mut line = String::new();
    stream.read_line(&mut line).await.unwrap();
    assert_eq!(line, "d!\n");
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "more");
    assert_eq!(stream.read(&mut four).await.unwrap(), 0);
}

#[tokio::test]
async fn data_in_front_of_the_answer_to_our_dial_is_read() {
    let (driver, mut fake) = pair(4096);
    let (stream, ()) = tokio::join!(driver.dial(peer()), async {
        fake.expect("0300000000000203e8").await;
        fake.push(Answer::Recv { conn: 8, data: b"another's" }).await;
        fake.push(Answer::Recv { conn: 9, data: b"early" }).await;
        fake.push(Answer::CloseOk { conn: 9 }).await;
        fake.push(Answer::DialOk { conn: 9 }).await;
    });
    let mut all = String::new();
    stream.unwrap().read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "early");
}

#[tokio::test]
async fn an_early_flood_ends_the_stream_rather_than_leaving_a_hole() {
    let (driver, mut fake) = pair(4096);
    let (stream, ()) = tokio::join!(driver.dial(peer()), async {
        fake.expect("0300000000000203e8").await;
        for _ in 0..3 {
            fake.push(Answer::Recv { conn: 9, data: &[7; 100_000] }).await;
        }
        fake.push(Answer::DialOk { conn: 9 }).await;
    });
    let error = stream.unwrap().read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(pilot::StreamError::of(&error).map(pilot::StreamError::code), Some("overrun"));
}

#[tokio::test]
async fn an_answer_that_is_cut_short_ends_the_wait() {
    let (driver, mut fake) = pair(4096);
    let (dialled, ()) = tokio::join!(driver.dial(peer()), async {
        fake.expect("0300000000000203e8").await;
        fake.raw(&[0, 0, 0, 2, op::DIAL_OK, 0]).await;
    });
    assert_eq!(dialled.err(), Some(Error::InvalidDialResponse));
    let (bound, ()) = tokio::join!(driver.listen(1000), async {
        fake.expect("0103e8").await;
        fake.raw(&[0, 0, 0, 2, op::BIND_OK, 0]).await;
    });
    assert!(matches!(bound, Err(Error::Unmarshal { op: "bind", .. })), "{bound:?}");
}

#[tokio::test]
async fn data_behind_the_answer_to_our_close_is_still_read() {
    let (_driver, mut fake, mut stream) = dialled(4096).await;
    stream.shutdown().await.unwrap();
    fake.expect("0800000009").await;
    fake.push(Answer::CloseOk { conn: 9 }).await;
    fake.push(Answer::Recv { conn: 9, data: b"late" }).await;
    fake.push(Answer::CloseOk { conn: 9 }).await;
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "late");
    assert_eq!(stream.write(b"x").await.unwrap_err().to_string(), "connection closed");
}

#[tokio::test]
async fn close_waits_for_the_answer_and_drop_closes_as_well() {
    let (driver, mut fake, stream) = dialled(4096).await;
    let (closed, ()) = tokio::join!(stream.close(), async {
        fake.expect("0800000009").await;
        fake.push(Answer::CloseOk { conn: 9 }).await;
    });
    closed.unwrap();
    let (stream, ()) = tokio::join!(driver.dial(peer()), async {
        fake.frame().await.unwrap();
        fake.push(Answer::DialOk { conn: 10 }).await;
    });
    drop(stream.unwrap());
    fake.expect("080000000a").await;
}

#[tokio::test]
async fn close_fails_when_the_daemon_vanishes_before_it_confirms() {
    for peer_has_finished in [false, true] {
        let (_driver, mut fake, mut stream) = dialled(4096).await;
        if peer_has_finished {
            fake.push(Answer::CloseOk { conn: 9 }).await;
            // Seen before ours leaves: afterwards it could not be told from the confirmation.
            assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
        }
        let (closed, ()) = tokio::join!(stream.close(), async move {
            fake.expect("0800000009").await;
            drop(fake);
        });
        let error = closed.unwrap_err();
        let why = StreamError::of(&error);
        assert_eq!(why, Some(&StreamError::Ended(CloseReason::DaemonGone)), "{peer_has_finished}: {error}");
    }
}

#[tokio::test]
async fn what_arrives_before_accept_is_kept_in_order_with_its_end() {
    let (driver, mut fake) = pair(4096);
    let (listener, ()) = tokio::join!(driver.listen(2000), async {
        fake.expect("0107d0").await;
        fake.push(Answer::BindOk { port: 2000 }).await;
    });
    let listener = listener.unwrap();
    fake.push(Answer::Accept { local_port: 2000, conn: 10, remote: remote() }).await;
    fake.push(Answer::Recv { conn: 10, data: b"one " }).await;
    fake.push(Answer::Recv { conn: 10, data: b"two" }).await;
    fake.push(Answer::CloseOk { conn: 10 }).await;
    // The answer to Info comes behind all of it, so everything above has arrived before accept is called.
    let (info, ()) = tokio::join!(driver.info(), async {
        fake.expect("0d").await;
        fake.push(Answer::Json { op: op::INFO_OK, body: b"{}" }).await;
    });
    info.unwrap();
    let mut stream = listener.accept().await.unwrap();
    assert_eq!((stream.remote(), stream.local_port()), (remote(), 2000));
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "one two");
}

#[tokio::test]
async fn a_closed_listener_frees_its_port_and_closes_what_nobody_accepted() {
    let (driver, mut fake) = pair(4096);
    let (listener, ()) = tokio::join!(driver.listen(2000), async {
        fake.frame().await.unwrap();
        fake.push(Answer::BindOk { port: 2000 }).await;
        fake.push(Answer::Accept { local_port: 2000, conn: 10, remote: remote() }).await;
    });
    let listener = listener.unwrap();
    let stream = listener.accept().await.unwrap();
    fake.push(Answer::Accept { local_port: 2000, conn: 11, remote: remote() }).await;
    // A port nobody listens on.
    fake.push(Answer::Accept { local_port: 3000, conn: 12, remote: remote() }).await;
    fake.expect("080000000c").await;
    tokio::join!(listener.close(), async {
        fake.expect("080000000b").await;
        fake.expect("3707d0").await;
        fake.push(Answer::error("unknown command: 0x37")).await;
    });
    fake.push(Answer::Accept { local_port: 2000, conn: 13, remote: remote() }).await;
    fake.expect("080000000d").await;
    drop(stream);
    fake.expect("080000000a").await;
}

#[tokio::test]
async fn errors_of_sends_do_not_answer_requests() {
    let (driver, mut fake, mut stream) = dialled(4096).await;
    stream.write_all(b"x").await.unwrap();
    fake.frame().await.unwrap();
    let (info, ()) = tokio::join!(driver.info(), async {
        fake.expect("0d").await;
        fake.push(Answer::error("send: connection not established")).await;
        fake.push(Answer::error("connection 77 not found")).await;
        fake.push(Answer::error("sendto: resolve node 4: registry: request failed")).await;
        fake.push(Answer::Json { op: op::INFO_OK, body: b"{\"node_id\":1}" }).await;
    });
    assert_eq!(info.unwrap()["node_id"], 1);
    let failed = stream.write(b"y").await.unwrap_err();
    assert_eq!(
        (failed.kind(), failed.to_string().as_str()),
        (std::io::ErrorKind::BrokenPipe, "send: connection not established")
    );
    assert_eq!(driver.datagram_failure().unwrap(), "sendto: resolve node 4: registry: request failed");
    assert_eq!(driver.datagram_failure(), None);
}

#[tokio::test]
async fn errors_belong_to_the_oldest_request_and_answers_to_the_oldest_of_their_kind() {
    let (driver, mut fake) = pair(4096);
    let script = async {
        for _ in 0..3 {
            fake.frame().await.unwrap();
        }
        // The dial takes long; the status overtakes it, as a daemon may do.
        fake.push(Answer::Json { op: op::INFO_OK, body: b"{\"node_id\":5}" }).await;
        fake.push(Answer::error("dial timeout")).await;
        fake.push(Answer::error("resolve_hostname: registry: request failed")).await;
    };
    let (dial, info, resolve, ()) =
        tokio::join!(driver.dial(peer()), driver.info(), driver.resolve_hostname("x"), script);
    assert_eq!(dial.unwrap_err().to_string(), "dial: daemon: dial timeout");
    assert_eq!(info.unwrap()["node_id"], 5);
    assert_eq!(resolve.unwrap_err().daemon_text(), Some("resolve_hostname: registry: request failed"));
}

#[tokio::test]
async fn a_dial_that_was_given_up_leaves_no_connection_behind() {
    let (driver, mut fake) = pair(4096);
    let gave_up = driver.dial_timeout(peer(), std::time::Duration::from_millis(1)).await;
    assert_eq!(gave_up.unwrap_err(), Error::Timeout { op: "dial" });
    fake.frame().await.unwrap();
    fake.push(Answer::DialOk { conn: 4 }).await;
    fake.expect("0800000004").await;
}

#[tokio::test]
async fn everything_wakes_when_the_daemon_goes() {
    let (driver, mut fake, mut stream) = dialled(4096).await;
    let (listener, ()) = tokio::join!(driver.listen(1), async {
        fake.frame().await.unwrap();
        fake.push(Answer::BindOk { port: 1 }).await;
    });
    let listener = listener.unwrap();
    let mut byte = [0; 1];
    let (read, accepted, datagram, info, ()) =
        tokio::join!(stream.read(&mut byte), listener.accept(), driver.recv_from(), driver.info(), async {
            fake.expect("0d").await;
            drop(fake);
        });
    assert_eq!(read.unwrap_err().to_string(), "daemon disconnected");
    assert_eq!(accepted.unwrap_err(), Error::ListenerClosed);
    assert_eq!(datagram.unwrap_err(), Error::Disconnected { op: "recv" });
    let error = info.unwrap_err();
    assert_eq!((error.to_string().as_str(), error.is_disconnected()), ("info: daemon disconnected", true));
    assert_eq!(driver.set_hostname("x").await.unwrap_err().to_string(), "set_hostname: daemon disconnected");
    assert!(stream.write(b"x").await.is_err());
}

#[tokio::test]
async fn a_large_write_becomes_frames_the_daemon_accepts() {
    let (_driver, mut fake, mut stream) = dialled(64 * 1024).await;
    let data: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let (wrote, received) = tokio::join!(async { stream.write_all(&data).await }, async {
        let mut received = Vec::new();
        while received.len() < data.len() {
            let body = fake.frame().await.unwrap();
            assert!(body.len() <= 64 * 1024 + 5 && hex(&body[..5]) == "0600000009");
            received.extend_from_slice(&body[5..]);
        }
        received
    });
    wrote.unwrap();
    assert!(received == data);
}

/// Pushes `frames` frames of 60,000 bytes on connection 9, then answers the Info that was asked meanwhile.
async fn flood(mut fake: crate::fake::Fake, frames: usize) -> crate::fake::Fake {
    let chunk = vec![7u8; 60_000];
    for _ in 0..frames {
        fake.push(Answer::Recv { conn: 9, data: &chunk }).await;
    }
    fake.push(Answer::Json { op: op::INFO_OK, body: b"{}" }).await;
    fake
}

#[tokio::test]
async fn an_unread_stream_holds_the_daemon_back_but_no_request() {
    let (driver, fake, mut stream) = dialled(1024).await;
    let mut daemon = tokio::spawn(flood(fake, 100));
    let held = tokio::time::timeout(std::time::Duration::from_millis(200), &mut daemon).await;
    assert!(held.is_err(), "six megabytes went into a stream nobody reads");
    driver.info().await.unwrap();
    daemon.await.unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap_err();
    assert!(all.len() == 6_000_000 && all.iter().all(|b| *b == 7));
}

#[tokio::test]
async fn a_stream_nobody_reads_is_given_up_before_it_takes_all_memory() {
    let (driver, fake, mut stream) = dialled(1024).await;
    let daemon = tokio::spawn(flood(fake, 700));
    driver.info().await.unwrap();
    let mut fake = daemon.await.unwrap();
    assert!(stream.read_u8().await.unwrap_err().to_string().starts_with("stream given up"));
    fake.expect("0d").await;
    fake.expect("0800000009").await;
}

#[tokio::test]
async fn datagrams_are_confirmed_where_the_daemon_can() {
    let (driver, mut fake) = pair(4096);
    let to = "0:0000.0000.0002:5000".parse().unwrap();
    let (sent, ()) = tokio::join!(driver.send_to(to, b"dg"), async {
        fake.expect("3900000000000213886467").await;
        fake.push(Answer::SendToConfirmOk).await;
    });
    sent.unwrap();
    let (sent, ()) = tokio::join!(driver.send_to(to, b"dg"), async {
        fake.frame().await.unwrap();
        fake.push(Answer::error("sendto: no tunnel")).await;
    });
    assert_eq!(sent.unwrap_err().to_string(), "sendto: daemon: sendto: no tunnel");
    let (sent, ()) = tokio::join!(driver.send_to(to, b"dg"), async {
        fake.frame().await.unwrap();
        fake.push(Answer::error("unknown command: 0x39")).await;
        fake.expect("0b00000000000213886467").await;
    });
    sent.unwrap();
    driver.send_to(to, b"again").await.unwrap();
    fake.expect("0b0000000000021388616761696e").await;
    fake.push(Answer::RecvFrom { from: remote(), port: 5000, data: b"data" }).await;
    let datagram = driver.recv_from().await.unwrap();
    assert_eq!((datagram.from, datagram.port, datagram.data.as_slice()), (remote(), 5000, &b"data"[..]));
}

#[tokio::test]
async fn an_oversized_request_is_refused_here_and_not_by_losing_the_daemon() {
    let (driver, _fake) = pair(64);
    let error = driver.set_hostname(&"x".repeat(1 << 20)).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { op: "set_hostname", .. }), "{error}");
}

#[tokio::test]
async fn any_stream_is_closed_by_its_number_and_that_is_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let (driver, _control, door) = crate::fake::by_path(dir.path()).await;
    let (closed, ()) = tokio::join!(driver.disconnect(77), async {
        let mut second = crate::fake::Fake::new(door.accept().await.unwrap());
        second.expect("080000004d").await;
        second.push(Answer::CloseOk { conn: 77 }).await;
    });
    closed.unwrap();
}

#[tokio::test]
async fn data_for_a_closed_stream_is_dropped_and_holds_up_nothing() {
    // 03 §16 row 18. Kept, it would fill the space of an unread stream after half a megabyte and hold the daemon back.
    let (driver, mut fake, stream) = dialled(1024).await;
    drop(stream);
    fake.expect("0800000009").await;
    let daemon = tokio::spawn(flood(fake, 200));
    driver.info().await.unwrap();
    let mut fake = daemon.await.unwrap();
    fake.expect("0d").await;
    // Nothing was said about it: the next question is the next frame.
    let (info, ()) = tokio::join!(driver.info(), async {
        fake.expect("0d").await;
        fake.push(Answer::Json { op: op::INFO_OK, body: b"{}" }).await;
    });
    info.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_cannot_wait_for_trust_is_asked_over_and_over() {
    let (driver, mut fake) = pair(4096);
    let limit = std::time::Duration::from_secs(10);
    let (waited, ()) = tokio::join!(driver.wait_trusted(5, limit), async {
        assert_eq!(fake.frame().await.unwrap()[1], 7);
        fake.push(Answer::error("handshake: unknown sub-command 0x07")).await;
        for trusted in [r#"{"trusted":[]}"#, r#"{"trusted":[{"node_id":4}]}"#, r#"{"trusted":[{"node_id":5}]}"#] {
            fake.frame().await.unwrap();
            fake.push(Answer::Json { op: op::HANDSHAKE_OK, body: trusted.as_bytes() }).await;
        }
    });
    assert_eq!(waited.unwrap(), serde_json::json!({ "node_id": 5, "trusted": true }));
    let (waited, ()) = tokio::join!(driver.wait_trusted(6, std::time::Duration::ZERO), async {
        fake.frame().await.unwrap();
        fake.push(Answer::error("handshake: unknown sub-command 0x07")).await;
        for _ in 0..2 {
            if fake.frame().await.is_some() {
                fake.push(Answer::Json { op: op::HANDSHAKE_OK, body: br#"{"trusted":null}"# }).await;
            }
        }
    });
    assert_eq!(waited.unwrap()["trusted"], false);
}
