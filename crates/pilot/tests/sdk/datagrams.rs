//! Datagrams of a port that the driver listens on, whichever sockets the daemon gives them to (03 §7).

use std::time::Duration;

use crate::fake::Fake;
use futures_util::FutureExt as _;
use pilot::{Datagram, Driver, Listener, SocketAddress};
use pilot_env::UnixListener;
use pilot_wire::ipc::{Answer, op};

/// The port listened on.
const BOUND: u16 = 2000;
/// A port nobody listens on.
const OTHER: u16 = 6000;

fn remote() -> SocketAddress {
    "0:0000.0000.0003:49154".parse().unwrap()
}

async fn give(fake: &mut Fake, port: u16, data: &[u8]) {
    fake.push(Answer::RecvFrom { from: remote(), port, data }).await;
}

async fn expect(driver: &Driver, port: u16, data: &[u8]) {
    let expected = Datagram { from: remote(), port, data: data.to_vec() };
    let got = tokio::time::timeout(Duration::from_secs(20), driver.recv_from()).await.expect("no datagram in time");
    assert_eq!(got.unwrap(), expected);
}

/// Returns when the driver has taken everything pushed over its first socket so far.
async fn settle(driver: &Driver, control: &mut Fake) {
    let (info, ()) = tokio::join!(driver.info(), async {
        control.expect("0d").await;
        control.push(Answer::Json { op: op::INFO_OK, body: b"{}" }).await;
    });
    info.unwrap();
}

/// Listens on [`BOUND`], over a socket of its own.
async fn listen(driver: &Driver, door: &UnixListener) -> (Listener, Fake) {
    let (listener, binder) = tokio::join!(driver.listen(BOUND), async {
        let mut binder = Fake::new(door.accept().await.unwrap());
        binder.expect("0107d0").await;
        binder.push(Answer::BindOk { port: BOUND }).await;
        binder
    });
    (listener.unwrap(), binder)
}

#[tokio::test]
async fn a_daemon_that_gives_them_to_the_binder_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (driver, mut control, door) = crate::fake::by_path(dir.path()).await;
    let (listener, mut binder) = listen(&driver, &door).await;
    give(&mut binder, BOUND, b"one").await;
    expect(&driver, BOUND, b"one").await;
    give(&mut control, OTHER, b"two").await;
    expect(&driver, OTHER, b"two").await;
    assert_eq!(listener.port(), BOUND);
}

#[tokio::test]
async fn a_daemon_that_gives_them_to_every_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (driver, mut control, door) = crate::fake::by_path(dir.path()).await;
    let (listener, mut binder) = listen(&driver, &door).await;
    // Each comes over both sockets, now one first and now the other, and out once.
    give(&mut control, BOUND, b"one").await;
    settle(&driver, &mut control).await;
    give(&mut binder, BOUND, b"one").await;
    expect(&driver, BOUND, b"one").await;
    give(&mut binder, OTHER, b"two").await;
    give(&mut binder, BOUND, b"three").await;
    expect(&driver, BOUND, b"three").await;
    give(&mut control, OTHER, b"two").await;
    give(&mut control, BOUND, b"three").await;
    expect(&driver, OTHER, b"two").await;
    settle(&driver, &mut control).await;
    assert_eq!(driver.recv_from().now_or_never(), None);
    assert_eq!(driver.datagrams_dropped(), 0);
    drop(listener);
}

#[tokio::test]
async fn a_port_no_longer_listened_on_is_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let (driver, mut control, door) = crate::fake::by_path(dir.path()).await;
    let (listener, mut binder) = listen(&driver, &door).await;
    tokio::join!(listener.close(), async {
        binder.expect("3707d0").await;
        binder.push(Answer::UnbindOk { port: BOUND }).await;
    });
    give(&mut control, BOUND, b"after").await;
    expect(&driver, BOUND, b"after").await;

    // A port that was lost with its socket is bound again, and its datagrams come over the new one.
    let (_listener, binder) = listen(&driver, &door).await;
    drop(binder);
    let mut binder = Fake::new(door.accept().await.unwrap());
    binder.expect("0107d0").await;
    binder.push(Answer::BindOk { port: BOUND }).await;
    give(&mut binder, BOUND, b"again").await;
    expect(&driver, BOUND, b"again").await;
}

#[tokio::test]
async fn a_refused_listener_takes_no_port_from_the_one_that_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let (driver, mut control, door) = crate::fake::by_path(dir.path()).await;
    let (_listener, mut binder) = listen(&driver, &door).await;
    let (second, ()) = tokio::join!(driver.listen(BOUND), async {
        let mut second = Fake::new(door.accept().await.unwrap());
        second.expect("0107d0").await;
        second.push(Answer::error("port 2000 already bound")).await;
    });
    assert_eq!(second.unwrap_err().daemon_text(), Some("port 2000 already bound"));
    give(&mut control, BOUND, b"not here").await;
    settle(&driver, &mut control).await;
    give(&mut binder, BOUND, b"but here").await;
    expect(&driver, BOUND, b"but here").await;
}

#[tokio::test]
async fn those_nobody_fetches_are_dropped_above_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (driver, mut control, door) = crate::fake::by_path(dir.path()).await;
    let (listener, mut binder) = listen(&driver, &door).await;
    for n in 0..300u16 {
        give(&mut binder, BOUND, &n.to_be_bytes()).await;
    }
    binder.push(Answer::Accept { local_port: BOUND, conn: 10, remote: remote() }).await;
    // The stream comes behind all of them.
    let _stream = listener.accept().await.unwrap();
    give(&mut control, OTHER, b"full").await;
    settle(&driver, &mut control).await;
    assert_eq!(driver.datagrams_dropped(), 300 - 256 + 1);
    for n in 0..256u16 {
        expect(&driver, BOUND, &n.to_be_bytes()).await;
    }
    assert_eq!(driver.recv_from().now_or_never(), None);
}
