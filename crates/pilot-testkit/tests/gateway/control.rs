//! The control socket: one gateway for each user, one clear answer for each line, and nothing for whoever says nothing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;

use pilot_env::Env;
use pilot_gateway::{Gateway, GatewayConfig, control, parse_ports};
use pilot_testkit::testnet::TestNet;
use pilot_wire::gateway::control::{Answer, MAX_REQUEST, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

use crate::{Addresses, patient};

async fn said(path: &Path, line: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(path).await.unwrap();
    let _ = stream.write_all(line).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    // A line that is too long may end in a reset.
    let _ = patient("the answer", stream.read_to_end(&mut answer)).await;
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_running_gateway_is_told_what_to_do_over_its_socket() {
    let net = TestNet::new(2).await.unwrap();
    net.befriend(0, 1).await.unwrap();
    let (env, addresses) = (Env::real(), Addresses::new());
    let home = tempfile::tempdir().unwrap();
    let path = control::socket(home.path());
    let config = || GatewayConfig {
        control: Some(path.clone()),
        ports: parse_ports("18080:80").unwrap(),
        ..GatewayConfig::new(&env, addresses.subnet().parse().unwrap())
    };
    let driver: Arc<dyn pilot::Pilot> = Arc::new(net.driver(0).await.unwrap());
    let gateway = Gateway::start(env.clone(), driver.clone(), config()).await.unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    let second = Gateway::start(env.clone(), driver.clone(), config()).await.err().unwrap();
    assert_eq!(second.code(), "already_exists", "{second}");

    let bob = net.node(1).address();
    let ask = async |request| patient("the gateway", control::ask(&env, &path, &request)).await.unwrap();
    let Answer::Done(mapping) = ask(Request::Map { target: bob.to_string(), ip: None }).await else { panic!() };
    assert_eq!(
        (&mapping["local_ip"], &mapping["pilot_addr"]),
        (&addresses.at(1).to_string().into(), &bob.to_string().into())
    );
    let Answer::Done(list) = ask(Request::List).await else { panic!() };
    assert_eq!((&list["total"], &list["mappings"][0]), (&1.into(), &mapping));
    for (line, code) in [
        (&b"{}\n"[..], "bad_request"),
        (b"\n", "bad_request"),
        (b"{\"command\":\"map\",\"target\":\"bob\"}\n", "not_found"),
        (b"{\"command\":\"unmap\",\"ip\":\"10.0.0.9\"}\n", "not_found"),
        (&[b' '; MAX_REQUEST + 1], "bad_request"),
        (b"\xff\xfe\n", "bad_request"),
    ] {
        let Ok(Answer::Failed { code: got, message, .. }) = Answer::parse(&said(&path, line).await) else { panic!() };
        assert!(got == code && !message.is_empty(), "{line:?}: {got} {message}");
    }
    // No end of a line, or none in time: there is nobody to tell, and nobody else waits for it.
    assert_eq!(said(&path, b"{\"command\":\"list\"}").await, b"");
    let silent = UnixStream::connect(&path).await.unwrap();
    let Answer::Done(_) = ask(Request::Unmap { ip: addresses.at(1).into() }).await else { panic!() };
    let Answer::Done(stopping) = ask(Request::Stop).await else { panic!() };
    assert_eq!(stopping["pid"], std::process::id());
    patient("the wish to end", gateway.stop_asked()).await;
    patient("the end, whoever is connected", gateway.shutdown()).await;
    assert!(!path.exists(), "the socket is gone with its gateway");
    drop(silent);
    Gateway::start(env.clone(), driver, config()).await.unwrap().shutdown().await;
    net.shutdown().await;
}
