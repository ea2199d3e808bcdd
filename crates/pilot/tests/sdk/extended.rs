//! The extended local socket against a scripted daemon (`docs/spec/local-socket.md`).

use std::io::ErrorKind;
use std::time::Duration;

use futures_util::FutureExt as _;
use pilot::{CloseReason, Driver, Error, HalfCloseLack, SocketAddress, Stream, StreamError};
use pilot_wire::ipc::ext::{DaemonFrame, Opened, Problem};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fake::{Fake, extended, old_control};

const DIAL: &str = "dial 0:0000.0000.0002:1000";

fn peer() -> SocketAddress {
    "0:0000.0000.0002:1000".parse().unwrap()
}

/// Bounds every wait for what must come.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("it did not come")
}

struct Set {
    driver: Driver,
    daemon: Fake,
    _door: pilot_env::UnixListener,
    _dir: tempfile::TempDir,
}

async fn set(credit: u32) -> Set {
    let dir = tempfile::tempdir().unwrap();
    let (driver, daemon, door) = extended(dir.path(), credit).await;
    Set { driver, daemon, _door: door, _dir: dir }
}

/// A dialled stream with the number 1, and `credit` bytes to send.
async fn dialled(credit: u32) -> (Set, Stream) {
    let mut set = set(credit).await;
    let (stream, ()) = tokio::join!(set.driver.dial(peer()), set.daemon.open(DIAL, 1));
    (set, stream.unwrap())
}

fn closed(code: &str, delivered: u64) -> DaemonFrame<'static> {
    DaemonFrame::Closed { stream: 1, delivered, problem: Problem::new(code, format!("{code}, they say")) }
}

#[tokio::test]
async fn a_stream_says_where_it_goes_and_writes_no_more_than_it_was_granted() {
    let (mut set, mut stream) = dialled(10).await;
    assert_eq!((stream.peer_addr(), stream.id()), (peer(), 71));
    assert_eq!(stream.local_addr(), "0:0000.0000.0001:49152".parse().unwrap());
    assert_eq!(set.driver.daemon().unwrap()["daemon"], "scripted");
    let writing = tokio::spawn(async move {
        stream.write_all(&[7; 25]).await.unwrap();
        stream
    });
    set.daemon.heard("data 1 10").await;
    assert!(!writing.is_finished());
    set.daemon.say(DaemonFrame::Granted { stream: 1, bytes: 12 }).await;
    set.daemon.heard("data 1 12").await;
    set.daemon.say(DaemonFrame::Granted { stream: 1, bytes: 100_000 }).await;
    set.daemon.heard("data 1 3").await;
    let mut stream = writing.await.unwrap();
    stream.write_all(&[7; 90_000]).await.unwrap();
    set.daemon.heard("data 1 65536").await;
    set.daemon.heard("data 1 24464").await;
    drop(stream);
    set.daemon.heard("close 1").await;
}

#[tokio::test]
async fn what_is_read_is_granted_anew_and_what_is_not_is_not() {
    let (mut set, mut stream) = dialled(10).await;
    let window = set.daemon.window as usize;
    let chunk = vec![1; window / 8];
    for _ in 0..8 {
        set.daemon.say(DaemonFrame::Received { stream: 1, data: &chunk }).await;
    }
    // Nobody reads: nothing is granted, and nothing else waits for it.
    let (answer, ()) = tokio::join!(set.driver.call("health", &json!(null)), async {
        let request = set.daemon.heard("call health null").await;
        set.daemon.say(DaemonFrame::Result { request, body: b"{\"status\":\"ok\"}" }).await;
    });
    assert_eq!(answer.unwrap()["status"], "ok");
    let mut all = vec![0; window];
    stream.read_exact(&mut all).await.unwrap();
    let (mut granted, mut text) = (0, String::new());
    while granted < window {
        text = set.daemon.hear().await.0;
        granted += text.strip_prefix("credit 1 ").unwrap_or_else(|| panic!("{text}")).parse::<usize>().unwrap();
    }
    assert_eq!(granted, window, "{text}");
}

#[tokio::test]
async fn a_daemon_that_sends_more_than_it_was_granted_is_left() {
    let (mut set, mut stream) = dialled(10).await;
    let window = set.daemon.window as usize;
    let chunk = vec![1; window / 8];
    for _ in 0..8 {
        set.daemon.say(DaemonFrame::Received { stream: 1, data: &chunk }).await;
    }
    set.daemon.say(DaemonFrame::Received { stream: 1, data: b"x" }).await;
    while soon(set.daemon.frame()).await.is_some() {}
    let mut all = Vec::new();
    let error = stream.read_to_end(&mut all).await.unwrap_err();
    assert_eq!(StreamError::of(&error), Some(&StreamError::Ended(CloseReason::DaemonGone)));
    assert_eq!(all.len(), window, "what had been granted is not lost");
}

#[tokio::test]
async fn half_close_is_possible_or_refused_by_name() {
    let (mut set, mut stream) = dialled(1000).await;
    let (refused, ()) = tokio::join!(stream.close_write(), async {
        let request = set.daemon.heard("finish 1 false").await;
        set.daemon.refuse(request, "no_half_close", "").await;
    });
    let error = refused.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    let why = StreamError::of(&error).unwrap();
    assert_eq!((why, why.code()), (&StreamError::HalfCloseUnsupported(HalfCloseLack::Peer), "no_half_close"));
    assert!(why.hint().is_some());
    // The stream is as it was.
    stream.write_all(b"more").await.unwrap();
    set.daemon.heard("data 1 4").await;
    let (done, ()) = tokio::join!(stream.close_write(), async {
        let request = set.daemon.heard("finish 1 false").await;
        set.daemon.say(DaemonFrame::Done { request }).await;
    });
    done.unwrap();
    let error = stream.write(b"x").await.unwrap_err();
    assert_eq!(StreamError::of(&error), Some(&StreamError::Closed));
    // Reading goes on to the end.
    set.daemon.say(DaemonFrame::Received { stream: 1, data: b"answer" }).await;
    set.daemon.say(DaemonFrame::Finished { stream: 1 }).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
    set.daemon.say(closed("clean", 4)).await;
    assert_eq!(soon(stream.wait_delivered()).await.unwrap(), 4);
    assert_eq!((stream.close_reason(), stream.delivered()), (Some(CloseReason::Clean), Some(4)));
}

#[tokio::test]
async fn shutdown_ends_as_much_as_the_peer_can_and_reading_goes_on() {
    let (mut set, mut stream) = dialled(1000).await;
    stream.write_all(b"question").await.unwrap();
    stream.shutdown().await.unwrap();
    set.daemon.heard("data 1 8").await;
    set.daemon.heard("finish 1 true").await;
    set.daemon.say(DaemonFrame::Received { stream: 1, data: b"answer" }).await;
    set.daemon.say(closed("clean", 8)).await;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
}

#[tokio::test]
async fn ends_have_reasons_and_say_what_was_delivered() {
    for (code, reason, kind) in [
        ("reset", CloseReason::Reset, ErrorKind::ConnectionReset),
        ("timeout", CloseReason::Timeout, ErrorKind::TimedOut),
        ("truncated", CloseReason::Truncated, ErrorKind::UnexpectedEof),
        ("trust_revoked", CloseReason::TrustRevoked, ErrorKind::ConnectionReset),
        ("daemon_shutdown", CloseReason::DaemonShutdown, ErrorKind::ConnectionAborted),
    ] {
        let (mut set, mut stream) = dialled(1000).await;
        stream.write_all(b"12345").await.unwrap();
        set.daemon.heard("data 1 5").await;
        set.daemon.say(DaemonFrame::Received { stream: 1, data: b"ab" }).await;
        set.daemon.say(closed(code, 3)).await;
        let mut got = Vec::new();
        let error = soon(stream.read_to_end(&mut got)).await.unwrap_err();
        assert_eq!((got.as_slice(), error.kind()), (&b"ab"[..], kind), "{code}");
        assert_eq!(StreamError::of(&error), Some(&StreamError::Ended(reason)));
        assert_eq!((stream.close_reason(), stream.delivered()), (Some(reason), Some(3)));
        assert_eq!(StreamError::of(&stream.write(b"x").await.unwrap_err()).unwrap().code(), code);
        assert_eq!(StreamError::of(&stream.wait_delivered().await.unwrap_err()).unwrap().code(), code);
    }
    let (mut set, mut stream) = dialled(1000).await;
    set.daemon.say(closed("disk_full", 0)).await;
    let error = stream.read_u8().await.unwrap_err();
    let why = StreamError::of(&error).unwrap();
    assert_eq!((why.code(), why.to_string().as_str()), ("disk_full", "disk_full, they say"));
    assert_eq!(stream.close_reason(), Some(CloseReason::Service));
}

#[tokio::test]
async fn a_direction_that_is_over_fails_writes_while_reads_go_on() {
    let (mut set, mut stream) = dialled(0).await;
    let mut byte = [0];
    {
        let writing = stream.write(b"x");
        tokio::pin!(writing);
        assert!(writing.as_mut().now_or_never().is_none());
        let problem = Problem::new("reset", "the peer is gone");
        set.daemon.say(DaemonFrame::Stopped { stream: 1, delivered: 0, problem }).await;
        let error = soon(writing).await.unwrap_err();
        assert_eq!(StreamError::of(&error).unwrap().code(), "reset");
    }
    set.daemon.say(DaemonFrame::Received { stream: 1, data: b"!" }).await;
    stream.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"!");
}

#[tokio::test]
async fn answers_come_in_any_order_with_codes_and_hints() {
    let mut set = set(10).await;
    let calls = async {
        let (null, list) = (json!(null), json!({ "limit": 2 }));
        tokio::join!(
            set.driver.call("mail.list", &list),
            set.driver.call("mail.nothing", &null),
            set.driver.dial(peer())
        )
    };
    let daemon = async {
        let first = set.daemon.heard(r#"call mail.list {"limit":2}"#).await;
        let second = set.daemon.heard("call mail.nothing null").await;
        let third = set.daemon.heard(DIAL).await;
        set.daemon.refuse(third, "untrusted", "ask for trust").await;
        set.daemon.refuse(second, "unknown_method", "").await;
        set.daemon.say(DaemonFrame::Result { request: first, body: b"[1,2]" }).await;
    };
    let ((list, nothing, dial), ()) = tokio::join!(calls, daemon);
    assert_eq!(list.unwrap(), json!([1, 2]));
    let nothing = nothing.unwrap_err();
    assert_eq!(nothing.code(), "unknown_method");
    assert!(nothing.is_unsupported() && nothing.hint().is_some());
    let dial = dial.unwrap_err();
    assert_eq!((dial.code(), dial.hint().as_deref()), ("untrusted", Some("ask for trust")));
    assert_eq!(dial.to_string(), "dial: untrusted it is");
}

#[tokio::test]
async fn official_commands_go_over_the_same_socket() {
    let mut set = set(10).await;
    let (info, ()) = tokio::join!(set.driver.info(), async {
        set.daemon.expect("0d").await;
        set.daemon.push(pilot_wire::ipc::Answer::Json { op: 0x0e, body: b"{\"node_id\":4}" }).await;
    });
    assert_eq!(info.unwrap()["node_id"], 4);
}

#[tokio::test]
async fn what_is_given_up_is_cancelled_and_what_comes_all_the_same_is_closed() {
    let mut set = set(10).await;
    let gave_up = set.driver.dial_timeout(peer(), Duration::from_millis(1)).await;
    assert_eq!(gave_up.unwrap_err(), Error::Timeout { op: "dial" });
    let request = set.daemon.heard(DIAL).await;
    assert_eq!(set.daemon.heard("cancel").await, request);
    let opened = Opened { stream: 5, ..Opened::default() };
    set.daemon.say(DaemonFrame::Opened { request, opened, about: b"" }).await;
    set.daemon.heard("close 5").await;
}

#[tokio::test]
async fn a_listener_asks_for_one_stream_at_a_time_and_loses_none() {
    let mut set = set(10).await;
    let (listener, ()) = tokio::join!(set.driver.listen(80), async {
        let request = set.daemon.heard("bind 80 true").await;
        set.daemon.say(DaemonFrame::Done { request }).await;
    });
    let listener = listener.unwrap();
    assert_eq!(listener.local_addr(), "0:0000.0000.0001:80".parse().unwrap());
    // A call that is given up leaves its stream to the next one.
    assert!(listener.accept().now_or_never().is_none());
    set.daemon.open("accept 80", 1).await;
    assert_eq!(soon(listener.accept()).await.unwrap().id(), 71);
    set.daemon.heard("close 1").await;
    // Two wait, and each gets one.
    let ((first, second), ()) = tokio::join!(async { tokio::join!(listener.accept(), listener.accept()) }, async {
        set.daemon.open("accept 80", 2).await;
        set.daemon.open("accept 80", 3).await;
    });
    let mut ids = [first.unwrap().id(), second.unwrap().id()];
    ids.sort_unstable();
    assert_eq!(ids, [72, 73]);
    for _ in 0..2 {
        assert!(set.daemon.hear().await.0.starts_with("close "));
    }
    tokio::join!(listener.close(), async {
        let request = set.daemon.heard("unbind 80").await;
        set.daemon.say(DaemonFrame::Done { request }).await;
    });
}

#[tokio::test]
async fn closing_waits_until_everything_is_delivered() {
    let (mut set, mut stream) = dialled(1000).await;
    stream.write_all(b"123").await.unwrap();
    let closing = tokio::spawn(stream.close());
    set.daemon.heard("data 1 3").await;
    let request = set.daemon.heard(r#"call delivered {"at_least":3,"stream":1}"#).await;
    set.daemon.heard("close 1").await;
    assert!(!closing.is_finished());
    set.daemon.say(DaemonFrame::Result { request, body: br#"{"stream":1,"delivered":3,"sent":3}"# }).await;
    soon(closing).await.unwrap().unwrap();

    let (mut set, mut stream) = dialled(1000).await;
    stream.write_all(b"123").await.unwrap();
    let closing = tokio::spawn(stream.close());
    set.daemon.heard("data 1 3").await;
    set.daemon.hear().await;
    set.daemon.heard("close 1").await;
    set.daemon.say(closed("timeout", 1)).await;
    assert_eq!(soon(closing).await.unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn delivery_is_asked_for_and_waited_for() {
    let (mut set, mut stream) = dialled(1000).await;
    stream.write_all(b"1234").await.unwrap();
    assert_eq!(stream.delivered(), None);
    let (delivered, ()) = tokio::join!(stream.wait_delivered(), async {
        set.daemon.heard("data 1 4").await;
        let request = set.daemon.heard(r#"call delivered {"at_least":4,"stream":1}"#).await;
        set.daemon.say(DaemonFrame::Result { request, body: br#"{"stream":1,"delivered":4,"sent":4}"# }).await;
    });
    assert_eq!(delivered.unwrap(), 4);
    assert_eq!(stream.delivered(), Some(4));
}

#[tokio::test]
async fn datagrams_have_ports_and_losses_are_counted() {
    let mut set = set(10).await;
    let (sent, ()) = tokio::join!(set.driver.send_to(peer(), b"dg"), async {
        let request = set.daemon.heard("datagram 0 0:0000.0000.0002:1000 dg").await;
        set.daemon.say(DaemonFrame::Done { request }).await;
    });
    sent.unwrap();
    set.daemon.say(DaemonFrame::Datagram { port: 9, from: peer(), missed: 3, data: b"hi" }).await;
    let datagram = soon(set.driver.recv_from()).await.unwrap();
    assert_eq!((datagram.port, datagram.from, datagram.data.as_slice()), (9, peer(), &b"hi"[..]));
    assert_eq!(set.driver.datagrams_dropped(), 3);
}

#[tokio::test]
async fn events_are_lines_of_a_stream() {
    let mut set = set(10).await;
    let (events, ()) =
        tokio::join!(set.driver.events(&["trust.*"]), set.daemon.open(r#"open events {"kinds":["trust.*"]}"#, 1));
    let mut events = events.unwrap();
    set.daemon.say(DaemonFrame::Received { stream: 1, data: b"{\"seq\":1,\"kind\":\"trust.asked\",\"at\":2.5," }).await;
    assert!(events.next().now_or_never().is_none(), "half a line is no event");
    set.daemon
        .say(DaemonFrame::Received { stream: 1, data: b"\"node_id\":9}\n{\"kind\":\"missed\",\"count\":4}\n" })
        .await;
    let first = soon(events.next()).await.unwrap();
    assert_eq!((first.kind.as_str(), first.seq, &first.data["node_id"]), ("trust.asked", 1, &json!(9)));
    assert!(soon(events.next()).await.unwrap().is_missed());
    set.daemon.say(closed("internal", 0)).await;
    assert_eq!(soon(events.next()).await.unwrap_err().code(), "internal");
}

#[tokio::test]
async fn deadlines_end_reads_and_writes_and_moving_them_does_not() {
    let (mut set, mut stream) = dialled(0).await;
    let now = || pilot_env::Env::real().now();
    stream.set_read_deadline(Some(now() + Duration::from_millis(20)));
    let error = soon(stream.read_u8()).await.unwrap_err();
    assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::TimedOut, "i/o timeout"));
    stream.set_write_deadline(Some(now() + Duration::from_millis(20)));
    assert_eq!(soon(stream.write(b"x")).await.unwrap_err().kind(), ErrorKind::TimedOut);
    stream.set_deadline(None);
    // An hour away, then moved closer, then further away while a read waits.
    let deadlines = stream.deadlines();
    deadlines.set_read(Some(now() + Duration::from_secs(3600)));
    let reading = tokio::spawn(async move {
        let byte = stream.read_u8().await;
        (stream, byte)
    });
    tokio::task::yield_now().await;
    deadlines.set_read(Some(now() + Duration::from_secs(7200)));
    set.daemon.say(DaemonFrame::Received { stream: 1, data: b"a" }).await;
    let (mut stream, byte) = soon(reading).await.unwrap();
    assert_eq!(byte.unwrap(), b'a');
    let reading = tokio::spawn(async move { stream.read_u8().await });
    tokio::task::yield_now().await;
    deadlines.set_read(Some(now()));
    assert_eq!(soon(reading).await.unwrap().unwrap_err().kind(), ErrorKind::TimedOut);
}

#[tokio::test]
async fn an_old_daemon_is_named_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pilot.sock");
    let door = pilot_env::Env::real().unix_listen(&path, 0o600).unwrap();
    let (driver, _control) = tokio::join!(Driver::connect(&path), old_control(&door));
    let driver = driver.unwrap();
    assert_eq!(driver.daemon(), None);
    for error in [
        driver.call("health", &json!(null)).await.unwrap_err(),
        driver.open("events", &json!(null)).await.unwrap_err(),
        driver.events(&[]).await.unwrap_err(),
    ] {
        assert_eq!(error.code(), "unsupported_by_daemon", "{error}");
        assert!(error.is_unsupported() && error.hint().unwrap().contains("restart"), "{error}");
    }
}

#[tokio::test]
async fn a_daemon_that_refuses_the_greeting_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pilot.sock");
    let door = pilot_env::Env::real().unix_listen(&path, 0o600).unwrap();
    let (driver, ()) = tokio::join!(Driver::connect(&path), async {
        let mut fake = Fake::new(door.accept().await.unwrap());
        fake.push(pilot_wire::ipc::Answer::error("too many local clients (limit 1024)")).await;
    });
    let error = driver.unwrap_err();
    assert_eq!(error.code(), "not_running");
    assert!(error.to_string().contains("too many local clients"), "{error}");
}
