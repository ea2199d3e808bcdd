//! Where a node listens, and whom it serves there (`docs/spec/local-socket.md`, L41, L42).
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the tests look at files and stand in for servers themselves

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use pilot_node::NodeConfig;
use pilot_wire::ipc::{Answer, Request};
use tokio::io::AsyncWriteExt;

use crate::common::client::Client;
use crate::common::{Net, patient};

fn places(config: &mut NodeConfig, private: &Path, shared: &Path) {
    config.socket = Some(private.to_owned());
    config.private_socket = true;
    config.shared_socket = Some(shared.to_owned());
}

async fn node_id(path: &Path) -> u64 {
    Client::connect(path).await.ask_json(&Request::Info).await["node_id"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_socket_is_served_when_it_is_free_and_never_taken_from_another_daemon() {
    let net = Net::new().await;
    let dir = tempfile::tempdir().unwrap();
    let shared = dir.path().join("shared.sock");
    let (first_private, second_private) = (dir.path().join("a/pilot.sock"), dir.path().join("b/pilot.sock"));
    // A daemon that was killed has left its file there.
    drop(std::os::unix::net::UnixListener::bind(&shared).unwrap());
    let first = net.node_with(|config| places(config, &first_private, &shared)).await;
    for path in [&first_private, &shared] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(node_id(path).await, u64::from(first.id()));
    }
    let second = net.node_with(|config| places(config, &second_private, &shared)).await;
    assert_eq!(node_id(&second_private).await, u64::from(second.id()));
    assert_eq!(node_id(&shared).await, u64::from(first.id()));
    // The one that has it gives it back; the other does not remove what is not its own.
    patient(second.node.shutdown(Duration::from_secs(5))).await;
    assert_eq!(node_id(&shared).await, u64::from(first.id()));
    patient(first.node.shutdown(Duration::from_secs(5))).await;
    assert!(!shared.exists() && !first_private.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn two_daemons_on_one_socket_path_the_second_says_so_and_does_not_start() {
    let net = Net::new().await;
    let first = net.node().await;
    let mut config = net.config();
    config.socket = Some(first.socket());
    let error = pilot_node::Node::start(pilot_env::Env::real(), config).await.err().unwrap();
    assert!(error.to_string().contains("another daemon is serving"), "{error}");
    assert_eq!(node_id(&first.socket()).await, u64::from(first.id()));
}

/// Names the socket for [`helper_of_another_user`].
const SOCKET: &str = "PILOT_TEST_SOCKET";

/// Run by the test below in a process of another user; does nothing by itself.
#[test]
fn helper_of_another_user() {
    use std::io::Read;
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let mut stream = std::os::unix::net::UnixStream::connect(path).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    let Ok(Answer::Error { text, .. }) = Answer::parse(&all[4..]) else { panic!("no error: {all:?}") };
    println!("told: {text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_another_user_is_told_so_and_closed() {
    use std::os::unix::process::CommandExt;
    if pilot_env::Env::real().user_id() != 0 {
        eprintln!("skipped: only root can start a process of another user");
        assert!(std::env::var_os("CI").is_none(), "it cannot run");
        return;
    }
    let net = Net::new().await;
    let node = net.node().await;
    // The mode of the file keeps others out already; here somebody has opened it.
    let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    open(node.home.path());
    open(&node.socket());
    // A copy, because that user may not be able to read where the tests are built.
    let program = node.home.path().join("helper");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    open(&program);
    let socket = node.socket();
    let running = tokio::task::spawn_blocking(move || {
        Command::new(program)
            .args(["--exact", "placement::helper_of_another_user", "--nocapture"])
            .env(SOCKET, socket)
            .uid(12_345)
            .gid(12_345)
            .output()
    });
    let output = patient(running).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("told: permission denied: this daemon serves user 0, not user 12345"), "{output:?}");
    assert_eq!(node_id(&node.socket()).await, u64::from(node.id()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_beyond_the_limit_is_told_so_and_the_others_are_served() {
    let net = Net::new().await;
    let node = net.node().await;
    let mut clients = Vec::new();
    for _ in 0..1024 {
        clients.push(Client::connect(&node.socket()).await);
    }
    // All of them are in once the last one has been answered.
    clients.last_mut().unwrap().ask_json(&Request::Health).await;
    let mut refused = Client::connect(&node.socket()).await;
    let body = refused.next().await;
    assert_eq!(Answer::parse(&body).unwrap(), Answer::error("too many local clients (limit 1024)"));
    assert!(refused.next_or_end().await.is_none());
    clients.pop();
    patient(async {
        loop {
            let mut client = Client::connect(&node.socket()).await;
            let mut frame = Vec::new();
            Request::Health.emit(&mut frame).unwrap();
            // One that is still refused may be closed before it has written.
            let _ = client.socket.write_all(&frame).await;
            let body = client.next_or_end().await;
            if body.is_some_and(|body| matches!(Answer::parse(&body), Ok(Answer::Json { .. }))) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_cannot_be_made_is_named_and_nothing_is_left_running() {
    let net = Net::new().await;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), b"in the way").unwrap();
    let path = dir.path().join("file/pilot.sock");
    let mut config = net.config();
    config.identity = Some(dir.path().join("identity.key"));
    config.socket = Some(path.clone());
    let error = pilot_node::Node::start(pilot_env::Env::real(), config.clone()).await.err().unwrap();
    assert!(error.to_string().contains(&path.display().to_string()), "{error}");
    // The directory is free again: the next start with a path that works does.
    config.socket = Some(dir.path().join("missing/directory/pilot.sock"));
    let node = pilot_node::Node::start(pilot_env::Env::real(), config).await.unwrap();
    node_id(&dir.path().join("missing/directory/pilot.sock")).await;
    patient(node.shutdown(Duration::from_secs(5))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_comes_before_the_daemon_is_ready_is_served_once_it_is() {
    // A registry that never answers: the node waits a few seconds for it before it lets programs in.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let registry = silent.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pilot.sock");
    let config = NodeConfig {
        registry,
        beacon: None,
        listen: "127.0.0.1:0".parse().unwrap(),
        socket: Some(path.clone()),
        ..NodeConfig::default()
    };
    let starting = tokio::spawn(pilot_node::Node::start(pilot_env::Env::real(), config));
    let connected = async {
        while !path.exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let mut client = Client::connect(&path).await;
        client.ask_json(&Request::Health).await
    };
    assert_eq!(patient(connected).await["status"], "degraded");
    let node = patient(starting).await.unwrap().unwrap();
    patient(node.shutdown(Duration::from_secs(1))).await;
}
