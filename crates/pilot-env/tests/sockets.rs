//! Sockets, real and simulated: batches, unreachable peers, local sockets and their files.
#![allow(clippy::disallowed_methods)]

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use pilot_env::places::SocketPlaces;
use pilot_env::tls::{Fingerprint, TlsAcceptor, TlsConnector};
use pilot_env::{Env, NetConditions, RecvBatch, Transmit, UdpSocket, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn receive(socket: &UdpSocket, count: usize) -> Vec<Vec<u8>> {
    let mut batch = RecvBatch::new();
    let mut got = Vec::new();
    while got.len() < count {
        tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut batch)).await.expect("datagrams arrive");
        got.extend(batch.datagrams_mut().map(|(_, data)| data.to_vec()));
    }
    got
}

fn loopback(socket: &UdpSocket, v6: bool) -> std::net::SocketAddr {
    let ip: std::net::IpAddr = if v6 { "::1".parse().unwrap() } else { "127.0.0.1".parse().unwrap() };
    (ip, socket.local_addr().port()).into()
}

#[tokio::test]
async fn a_batch_arrives_as_its_datagrams() {
    let env = Env::real();
    let (a, b) =
        (env.bind_udp("[::]:0".parse().unwrap()).unwrap(), env.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap());
    let contents: Vec<u8> = (0..1000 * 9 + 100).map(|i| (i / 1000) as u8).collect();
    let transmit = Transmit { destination: b.local_addr(), contents: &contents, segment_size: Some(1000) };
    a.send(&transmit).await.unwrap();
    let got = receive(&b, 10).await;
    assert_eq!(got.len(), 10);
    assert_eq!(got.concat(), contents);
    assert_eq!(got[9].len(), 100);
}

#[tokio::test]
async fn a_dual_stack_socket_reports_ipv4_sources_as_ipv4() {
    let env = Env::real();
    let (a, b) =
        (env.bind_udp("[::]:0".parse().unwrap()).unwrap(), env.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap());
    b.send(&Transmit { destination: loopback(&a, false), contents: b"x", segment_size: None }).await.unwrap();
    let mut batch = RecvBatch::new();
    a.recv(&mut batch).await;
    let (from, data) = batch.datagrams_mut().next().unwrap();
    assert_eq!((from, &data[..]), (b.local_addr(), &b"x"[..]));
}

#[tokio::test]
async fn an_unreachable_peer_does_not_disturb_a_socket() {
    let env = Env::real();
    let (a, b) =
        (env.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap(), env.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap());
    let gone = env.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap().local_addr();
    for _ in 0..20 {
        a.send(&Transmit { destination: gone, contents: b"anyone?", segment_size: None }).await.unwrap();
    }
    b.send(&Transmit { destination: a.local_addr(), contents: b"here", segment_size: None }).await.unwrap();
    assert_eq!(receive(&a, 1).await, [b"here".to_vec()]);
}

#[tokio::test]
async fn a_datagram_too_large_is_refused_before_it_is_sent() {
    let env = Env::real();
    let a = env.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
    let contents = vec![0; 66_000];
    let error =
        a.send(&Transmit { destination: a.local_addr(), contents: &contents, segment_size: None }).await.unwrap_err();
    assert!(pilot_env::udp::is_too_large(&error), "{error}");
}

#[tokio::test]
async fn a_bound_port_is_reported_as_in_use() {
    let env = Env::real();
    let a = env.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
    assert_eq!(env.bind_udp(a.local_addr()).err().unwrap().kind(), std::io::ErrorKind::AddrInUse);
}

#[tokio::test(start_paused = true)]
async fn simulated_loss_and_duplication_follow_the_seed() {
    let run = |seed| async move {
        let world = World::new(seed);
        let (a, b) = (world.host("10.0.0.1".parse().unwrap()), world.host("10.0.0.2".parse().unwrap()));
        world.set_conditions(NetConditions {
            loss: 0.2,
            duplicate: 0.1,
            jitter: Duration::from_millis(20),
            ..Default::default()
        });
        let (sa, sb) =
            (a.bind_udp("0.0.0.0:1".parse().unwrap()).unwrap(), b.bind_udp("0.0.0.0:2".parse().unwrap()).unwrap());
        for i in 0..100u8 {
            sa.send(&Transmit { destination: sb.local_addr(), contents: &[i], segment_size: None }).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut batch = RecvBatch::new();
        let mut got = Vec::new();
        while sb.try_recv(&mut batch) {
            got.extend(batch.datagrams_mut().map(|(_, data)| data[0]));
        }
        got
    };
    let first = run(7).await;
    assert_eq!(first, run(7).await, "the same seed gives the same run");
    assert_ne!(first, run(8).await);
    assert!(first.len() > 60 && first.len() < 110, "{}", first.len());
    assert!(!first.is_sorted(), "jitter reorders");
}

#[tokio::test(start_paused = true)]
async fn a_blocked_direction_carries_nothing_until_healed() {
    let world = World::new(1);
    let (a, b) = (world.host("10.0.0.1".parse().unwrap()), world.host("10.0.0.2".parse().unwrap()));
    let (sa, sb) =
        (a.bind_udp("0.0.0.0:1".parse().unwrap()).unwrap(), b.bind_udp("0.0.0.0:1".parse().unwrap()).unwrap());
    let say = |data: &'static [u8]| Transmit { destination: sb.local_addr(), contents: data, segment_size: None };
    world.block(a.sim().unwrap().address(), b.sim().unwrap().address());
    sa.send(&say(b"lost")).await.unwrap();
    sb.send(&Transmit { destination: sa.local_addr(), contents: b"back", segment_size: None }).await.unwrap();
    assert_eq!(receive(&sa, 1).await, [b"back".to_vec()]);
    world.heal();
    sa.send(&say(b"heard")).await.unwrap();
    assert_eq!(receive(&sb, 1).await, [b"heard".to_vec()]);
}

#[tokio::test(start_paused = true)]
async fn simulated_byte_streams_connect_and_refuse() {
    let world = World::new(1);
    let (a, b) = (world.host("10.0.0.1".parse().unwrap()), world.host("10.0.0.2".parse().unwrap()));
    let listener = b.tcp_listen("0.0.0.0:9000".parse().unwrap()).unwrap();
    let mut client = a.tcp_connect("10.0.0.2:9000".parse().unwrap()).await.unwrap();
    let mut server = listener.accept().await.unwrap();
    assert_eq!(server.peer_addr().ip(), a.sim().unwrap().address());
    client.write_all(b"hello").await.unwrap();
    let mut buf = [0; 5];
    server.read_exact(&mut buf).await.unwrap();
    assert_eq!(&buf, b"hello");
    let refused = a.tcp_connect("10.0.0.2:9001".parse().unwrap()).await.err().unwrap();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn a_local_socket_has_its_mode_and_its_file_goes_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/pilot.sock");
    let env = Env::real();
    let listener = env.unix_listen(&path, 0o600).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    let mut client = env.unix_connect(&path).await.unwrap();
    let mut server = listener.accept().await.unwrap();
    assert_eq!(server.peer().uid, env.user_id());
    client.write_all(b"hi").await.unwrap();
    let mut buf = [0; 2];
    server.read_exact(&mut buf).await.unwrap();
    drop(listener);
    assert!(!path.exists());
}

#[tokio::test]
async fn a_live_socket_is_never_taken_over_and_a_stale_one_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pilot.sock");
    let env = Env::real();
    let live = env.unix_listen(&path, 0o600).unwrap();
    let error = env.unix_listen(&path, 0o600).err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains("pilot.sock"), "{error}");
    env.unix_connect(&path).await.expect("the live one still serves");
    drop(live);
    // A daemon that was killed leaves its file behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert!(path.exists());
    let taken = env.unix_listen(&path, 0o600).unwrap();
    env.unix_connect(&path).await.unwrap();
    drop(taken);
    std::fs::write(&path, b"precious").unwrap();
    assert_eq!(env.unix_listen(&path, 0o600).err().unwrap().kind(), std::io::ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
}

/// Whether this test may give files to other users; says so when it may not.
fn is_root(test: &str) -> bool {
    let root = Env::real().user_id() == 0;
    if !root {
        eprintln!("skipped {test}: it needs root to give a file to another user");
        assert!(std::env::var_os("CI").is_none(), "{test} cannot run");
    }
    root
}

#[tokio::test]
async fn a_socket_file_of_another_user_is_left_alone_though_nobody_serves_it() {
    if !is_root("a_socket_file_of_another_user_is_left_alone_though_nobody_serves_it") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pilot.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
    let error = Env::real().unix_listen(&path, 0o600).err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert!(error.to_string().contains("12345"), "{error}");
    assert!(path.exists());
}

#[tokio::test]
async fn a_link_is_not_followed_to_a_socket() {
    let dir = tempfile::tempdir().unwrap();
    let (target, link) = (dir.path().join("target.sock"), dir.path().join("pilot.sock"));
    drop(std::os::unix::net::UnixListener::bind(&target).unwrap());
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let error = Env::real().unix_listen(&link, 0o600).err().unwrap();
    assert_eq!(error.kind(), std::io::ErrorKind::AlreadyExists);
    assert!(target.exists() && link.is_symlink());
    let places = SocketPlaces::new(None, None, Some(link));
    assert_eq!(places.find(&Env::real()), None);
}

#[tokio::test]
async fn two_daemons_that_start_at_once_on_one_stale_path_do_not_both_get_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pilot.sock");
    for _ in 0..20 {
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let starting: Vec<_> = (0..2)
            .map(|_| {
                let path = path.clone();
                tokio::task::spawn_blocking(move || Env::real().unix_listen(&path, 0o600))
            })
            .collect();
        let mut listening = Vec::new();
        for start in starting {
            listening.extend(start.await.unwrap().ok());
        }
        assert_eq!(listening.len(), 1);
        Env::real().unix_connect(&path).await.expect("the one that listens is reached");
        drop(listening);
        assert!(!path.exists());
    }
}

#[tokio::test]
async fn the_private_place_comes_first_and_must_be_private() {
    let env = Env::real();
    let dir = tempfile::tempdir().unwrap();
    let (runtime, home, shared) = (dir.path().join("run"), dir.path().join("home"), dir.path().join("tmp/pilot.sock"));
    std::fs::create_dir(&home).unwrap();
    let places = SocketPlaces::new(Some(runtime.clone()), Some(home.clone()), Some(shared.clone()));
    let at_home = home.join(".pilot/pilot.sock");
    // There is no runtime directory yet, or it is open to others.
    assert_eq!(places.private(&env), Some(at_home.clone()));
    std::fs::create_dir(&runtime).unwrap();
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o777)).unwrap();
    assert_eq!(places.private(&env), Some(at_home.clone()));
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o700)).unwrap();
    let private = runtime.join("pilot/pilot.sock");
    assert_eq!(places.private(&env), Some(private.clone()));

    // Programs look in the same order, and pass what nobody serves.
    assert_eq!(places.find(&env), None);
    let shared_listener = env.unix_listen(&shared, 0o600).unwrap();
    assert_eq!(places.find(&env), Some(shared.clone()));
    let home_listener = env.unix_listen_private(&at_home, 0o600).unwrap();
    assert_eq!(places.find(&env), Some(at_home));
    let listener = env.unix_listen_private(&private, 0o600).unwrap();
    assert_eq!(places.find(&env), Some(private.clone()));
    assert_eq!(std::fs::metadata(private.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    drop((listener, home_listener));
    assert_eq!(places.find(&env), Some(shared));
    drop(shared_listener);

    // A directory that others can write to, a link, and a path that is too long are no private place.
    std::fs::set_permissions(private.parent().unwrap(), std::fs::Permissions::from_mode(0o770)).unwrap();
    let error = env.unix_listen_private(&private, 0o600).err().unwrap();
    assert!(error.to_string().contains("770"), "{error}");
    std::fs::remove_dir(private.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&home, private.parent().unwrap()).unwrap();
    assert!(env.unix_listen_private(&private, 0o600).is_err());
    let long = SocketPlaces::new(None, Some(dir.path().join("x".repeat(120))), None);
    assert_eq!(long.private(&env), None);
    if is_root("the_private_place_comes_first_and_must_be_private") {
        let theirs = dir.path().join("theirs");
        std::fs::create_dir(&theirs).unwrap();
        std::os::unix::fs::chown(&theirs, Some(12_345), None).unwrap();
        assert!(env.unix_listen_private(&theirs.join("pilot.sock"), 0o600).is_err());
        // A socket that somebody else has put at the shared place is passed over, although somebody serves it.
        let listener = env.unix_listen(&home.join("shared.sock"), 0o600).unwrap();
        std::os::unix::fs::chown(home.join("shared.sock"), Some(12_345), None).unwrap();
        assert_eq!(SocketPlaces::new(None, None, Some(home.join("shared.sock"))).find(&env), None);
        drop(listener);
    }
}

#[test]
fn a_fingerprint_is_read_in_any_usual_form() {
    let plain = "ab".repeat(32);
    let pin: Fingerprint = plain.parse().unwrap();
    let colons = vec!["AB"; 32].join(":");
    assert_eq!(colons.parse::<Fingerprint>().unwrap(), pin);
    assert_eq!(pin.to_string(), plain);
    for bad in ["", "ab", &"zz".repeat(32), &"ab".repeat(33)] {
        assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
    }
    let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    assert_eq!(Fingerprint::of(b"").to_string(), empty);
}

#[tokio::test]
async fn tls_accepts_the_pinned_certificate_and_no_other() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let acceptor =
        TlsAcceptor::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes()).unwrap();
    let env = Env::real();
    let listener = env.tcp_listen("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let pin = acceptor.fingerprint();
    let server = tokio::spawn(async move {
        loop {
            let stream = listener.accept().await.unwrap();
            if let Ok(mut tls) = acceptor.accept(stream).await {
                let mut buf = [0; 4];
                tls.read_exact(&mut buf).await.unwrap();
                tls.write_all(&buf).await.unwrap();
                tls.shutdown().await.unwrap();
            }
        }
    });
    let wrong = TlsConnector::pinned("00".repeat(32).parse().unwrap()).unwrap();
    let refused = wrong.connect(env.tcp_connect(addr).await.unwrap()).await.err().unwrap();
    assert!(refused.to_string().contains("certificate fingerprint mismatch"), "{refused}");
    let right = TlsConnector::pinned(pin).unwrap();
    let mut tls = right.connect(env.tcp_connect(addr).await.unwrap()).await.unwrap();
    tls.write_all(b"ping").await.unwrap();
    let mut buf = Vec::new();
    tls.read_to_end(&mut buf).await.unwrap();
    assert_eq!(buf, b"ping");
    server.abort();
}
