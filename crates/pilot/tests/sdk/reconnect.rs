//! What happens when the daemon goes away, comes back, or is another one than before.

use std::path::{Path, PathBuf};
use std::time::Duration;

use pilot::{CloseReason, ConnectionState, Driver, Error, Options, SocketAddress, StreamError};
use pilot_env::{Env, UnixListener};
use pilot_wire::ipc::ext::DaemonFrame;
use pilot_wire::ipc::{Answer, op};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::fake::{Fake, greeted, old_control};

fn peer() -> SocketAddress {
    "0:0000.0000.0002:1000".parse().unwrap()
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), work).await.expect("it did not come")
}

/// A place for a daemon's socket.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("pilot.sock")
    }

    fn open(&self) -> UnixListener {
        Env::real().unix_listen(&self.path(), 0o600).unwrap()
    }
}

async fn connect(path: &Path, options: Options, daemon: impl Future<Output = Fake>) -> (Driver, Fake) {
    let (driver, daemon) = tokio::join!(Driver::connect_with(path, options), daemon);
    (driver.unwrap(), daemon)
}

async fn state(driver: &Driver, wanted: &str) -> ConnectionState {
    let mut states = driver.connection_states();
    soon(async {
        loop {
            let state = states.next().await.expect("no further state");
            if state.code() == wanted {
                return state;
            }
        }
    })
    .await
}

#[tokio::test]
async fn everything_goes_on_with_the_next_daemon() {
    let place = Place::new();
    let door = place.open();
    let (driver, mut daemon) = connect(&place.path(), Options::default(), greeted(&door, 100)).await;
    let (listener, ()) = tokio::join!(driver.listen(80), async {
        let request = daemon.heard("bind 80 true").await;
        daemon.say(DaemonFrame::Done { request }).await;
    });
    let listener = listener.unwrap();
    let (stream, ()) = tokio::join!(driver.dial(peer()), daemon.open("dial 0:0000.0000.0002:1000", 1));
    let mut stream = stream.unwrap();
    let (events, ()) = tokio::join!(driver.events(&[]), daemon.open("open events null", 2));
    let mut events = events.unwrap();
    daemon.say(DaemonFrame::Received { stream: 1, data: b"rest" }).await;

    // A question, an act and three waits are under way when the daemon goes.
    let waiting =
        async { tokio::join!(driver.info(), driver.approve(7), listener.accept(), driver.recv_from(), events.next()) };
    let next = async {
        for _ in 0..3 {
            daemon.frame().await.unwrap();
        }
        drop((daemon, door));
        state(&driver, "reconnecting").await;
        let door = place.open();
        let mut daemon = greeted(&door, 100).await;
        // Everything comes again, in some order, but for the act.
        let mut heard = Vec::new();
        while heard.len() < 4 {
            let body = soon(daemon.frame()).await.unwrap();
            if body[0] == op::INFO {
                daemon.push(Answer::Json { op: op::INFO_OK, body: b"{\"node_id\":1}" }).await;
                heard.push("info".to_owned());
                continue;
            }
            assert_ne!(body[0], op::HANDSHAKE, "an act is not repeated");
            let (text, request) = Fake::read(&body);
            match text.as_str() {
                "bind 80 true" => daemon.say(DaemonFrame::Done { request }).await,
                "accept 80" | "open events null" => daemon.opened(request, heard.len() as u32 + 1).await,
                other => panic!("{other}"),
            }
            heard.push(text);
        }
        daemon.say(DaemonFrame::Datagram { port: 80, from: peer(), missed: 0, data: b"dg" }).await;
        (daemon, door)
    };
    let ((info, approve, accept, datagram, event), (_daemon, _door)) =
        soon(async { tokio::join!(waiting, next) }).await;
    assert_eq!(info.unwrap()["node_id"], 1);
    assert_eq!(approve.unwrap_err(), Error::Disconnected { op: "approve" });
    assert_eq!(accept.unwrap().local_port(), 49_152);
    assert_eq!(datagram.unwrap().data, b"dg");
    let event = event.unwrap();
    assert!(event.is_missed() && event.data["restarted"] == true);
    assert_eq!(driver.connection_state(), ConnectionState::Connected { extended: true });

    // The stream has ended with its daemon, after what had arrived.
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).await.unwrap_err();
    assert_eq!(rest, b"rest");
    assert_eq!(StreamError::of(&error), Some(&StreamError::Ended(CloseReason::DaemonGone)));
    assert_eq!(stream.close_reason(), Some(CloseReason::DaemonGone));
}

#[tokio::test]
async fn the_next_daemon_may_be_an_older_one() {
    let place = Place::new();
    let door = place.open();
    let (driver, daemon) = connect(&place.path(), Options::default(), greeted(&door, 100)).await;
    drop((daemon, door));
    state(&driver, "reconnecting").await;
    let door = place.open();
    let mut control = old_control(&door).await;
    assert_eq!(state(&driver, "connected").await, ConnectionState::Connected { extended: false });
    let (dialled, _second) = tokio::join!(driver.dial(peer()), async {
        let mut second = Fake::new(door.accept().await.unwrap());
        second.expect("0300000000000203e8").await;
        second.push(Answer::DialOk { conn: 9 }).await;
        second
    });
    assert_eq!(dialled.unwrap().id(), 9);
    let (info, ()) = tokio::join!(driver.info(), async {
        control.expect("0d").await;
        control.push(Answer::Json { op: op::INFO_OK, body: b"{}" }).await;
    });
    info.unwrap();
}

#[tokio::test]
async fn calls_wait_as_long_as_the_program_is_patient_and_then_say_so() {
    let place = Place::new();
    let door = place.open();
    let options = Options::default().patience(Duration::from_millis(100));
    let (driver, mut daemon) = connect(&place.path(), options, greeted(&door, 100)).await;
    let (listener, ()) = tokio::join!(driver.listen(80), async {
        let request = daemon.heard("bind 80 true").await;
        daemon.say(DaemonFrame::Done { request }).await;
    });
    let listener = listener.unwrap();
    drop((daemon, door));
    state(&driver, "reconnecting").await;
    assert_eq!(soon(driver.info()).await.unwrap_err(), Error::Disconnected { op: "info" });
    assert_eq!(soon(driver.dial(peer())).await.unwrap_err(), Error::Disconnected { op: "dial" });
    assert_eq!(soon(driver.recv_from()).await.unwrap_err(), Error::Disconnected { op: "recv" });
    let error = soon(driver.call("health", &json!(null))).await.unwrap_err();
    assert_eq!((error.clone(), error.hint().is_some()), (Error::Disconnected { op: "call" }, true));
    assert_eq!(soon(listener.accept()).await.unwrap_err(), Error::Disconnected { op: "accept" });
    // It goes on trying, and so does the listener.
    let door = place.open();
    let mut daemon = greeted(&door, 100).await;
    let request = soon(daemon.heard("bind 80 true")).await;
    daemon.say(DaemonFrame::Done { request }).await;
    let (stream, ()) = tokio::join!(
        async {
            loop {
                match soon(listener.accept()).await {
                    Err(Error::Disconnected { .. }) => {}
                    other => return other,
                }
            }
        },
        daemon.open("accept 80", 1)
    );
    assert_eq!(stream.unwrap().id(), 71);
}

#[tokio::test]
async fn a_port_that_another_program_took_meanwhile_is_reported() {
    let place = Place::new();
    let door = place.open();
    let options = Options::default().patience(Duration::from_millis(100));
    let (driver, mut daemon) = connect(&place.path(), options, greeted(&door, 100)).await;
    let (listener, ()) = tokio::join!(driver.listen(80), async {
        let request = daemon.heard("bind 80 true").await;
        daemon.say(DaemonFrame::Done { request }).await;
    });
    let listener = listener.unwrap();
    drop((daemon, door));
    let door = place.open();
    let mut daemon = greeted(&door, 100).await;
    let refusing = tokio::spawn(async move {
        while let Some(body) = daemon.frame().await {
            let (_, request) = Fake::read(&body);
            daemon.refuse(request, "port_in_use", "choose another").await;
        }
    });
    let error = soon(async {
        loop {
            match listener.accept().await {
                Err(Error::Disconnected { .. }) => {}
                other => return other.unwrap_err(),
            }
        }
    })
    .await;
    assert_eq!(error.code(), "port_in_use");
    assert_eq!(listener.accept().await.unwrap_err(), error, "and it stays so");
    drop((listener, driver));
    soon(refusing).await.unwrap();
}

/// Without reconnecting, and whatever the protocol: nothing that waits outlives the daemon.
#[tokio::test]
async fn every_call_that_waits_wakes_when_the_daemon_goes() {
    let place = Place::new();
    let door = place.open();
    let (driver, mut daemon) = connect(&place.path(), Options::default().reconnect(false), greeted(&door, 4)).await;
    let (listener, ()) = tokio::join!(driver.listen(80), async {
        let request = daemon.heard("bind 80 true").await;
        daemon.say(DaemonFrame::Done { request }).await;
    });
    let listener = listener.unwrap();
    let mut streams = Vec::new();
    for number in 1..=6 {
        let (stream, ()) = tokio::join!(driver.dial(peer()), daemon.open("dial 0:0000.0000.0002:1000", number));
        streams.push(stream.unwrap());
    }
    let (events, ()) = tokio::join!(driver.events(&[]), daemon.open("open events null", 7));
    let mut events = events.unwrap();
    let [mut a, mut b, mut c, mut d, e, mut f] = <[_; 6]>::try_from(streams).unwrap();
    f.write_all(b"1234").await.unwrap();
    let null = json!(null);
    let gone = async {
        // Time for all of them to ask what they ask.
        for _ in 0..10 {
            soon(daemon.frame()).await.unwrap();
        }
        drop((daemon, door));
    };
    let (streams, calls, ()) = soon(async {
        let mut buf = [0; 8];
        let streams = async {
            tokio::join!(
                a.read(&mut buf),
                async { b.write_all(&[0; 100]).await },
                c.close_write(),
                async {
                    d.write_all(&[0; 4]).await?;
                    d.wait_delivered().await
                },
                e.close(),
                f.write_all(b"5"),
            )
        };
        let calls = async {
            tokio::join!(
                driver.info(),
                driver.dial(peer()),
                driver.call("health", &null),
                driver.open("x", &null),
                driver.listen(81),
                listener.accept(),
                driver.recv_from(),
                events.next(),
                driver.send_to(peer(), b"x"),
            )
        };
        tokio::join!(streams, calls, gone)
    })
    .await;
    let kinds = [
        streams.0.unwrap_err(),
        streams.1.unwrap_err(),
        streams.2.unwrap_err(),
        streams.3.map(drop).unwrap_err(),
        streams.4.unwrap_err(),
        streams.5.unwrap_err(),
    ];
    for error in kinds {
        assert_eq!(StreamError::of(&error), Some(&StreamError::Ended(CloseReason::DaemonGone)), "{error}");
    }
    let errors = [
        calls.0.unwrap_err(),
        calls.1.unwrap_err(),
        calls.2.unwrap_err(),
        calls.3.unwrap_err(),
        calls.4.unwrap_err(),
        calls.6.unwrap_err(),
        calls.7.unwrap_err(),
        calls.8.unwrap_err(),
    ];
    assert!(errors.iter().all(Error::is_disconnected), "{errors:?}");
    assert_eq!(calls.5.unwrap_err(), Error::ListenerClosed);
    assert_eq!(driver.connection_state(), ConnectionState::Disconnected);
    let mut states = driver.connection_states();
    assert_eq!(states.next().await, Some(ConnectionState::Disconnected));
    assert_eq!(states.next().await, None);
}

#[tokio::test]
async fn connecting_waits_for_a_daemon_that_starts_later_when_told_to() {
    let place = Place::new();
    let error = Driver::connect(place.path()).await.unwrap_err();
    assert_eq!((error.code(), error.hint().is_some()), ("not_running", true));
    let options = Options::default().wait_for_daemon(Duration::from_millis(80));
    assert_eq!(soon(Driver::connect_with(place.path(), options)).await.unwrap_err().code(), "not_running");
    let options = Options::default().wait_for_daemon(Duration::from_secs(60));
    let (driver, _daemon) = soon(async {
        tokio::join!(Driver::connect_with(place.path(), options), async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            let door = place.open();
            (old_control(&door).await, door)
        })
    })
    .await;
    driver.unwrap();
}

#[tokio::test]
async fn a_driver_nobody_has_any_more_leaves_its_daemon() {
    let place = Place::new();
    let door = place.open();
    let (driver, mut daemon) = connect(&place.path(), Options::default(), greeted(&door, 100)).await;
    drop(driver);
    assert_eq!(soon(daemon.frame()).await, None);
}
