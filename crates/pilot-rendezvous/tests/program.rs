//! The program as a process: readiness, signals, `kill -9`, and bad input.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use pilot_env::Env;
use pilot_wire::base64;
use pilot_wire::registry::{Register, Request};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pilot-rendezvous"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running program and its registry's address. Killed when dropped.
struct Running(Child, String);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(store: &Path) -> Running {
    let store = store.to_str().unwrap();
    let args = ["-registry-addr", "127.0.0.1:0", "--beacon-addr=127.0.0.1:0", "-store", store];
    let mut child = command(&args).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    let addr = line.strip_prefix("registry ").unwrap_or_else(|| panic!("{line:?}")).trim().to_owned();
    Running(child, addr)
}

async fn register(addr: &str, seed: u8) -> u64 {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap();
    let public_key = base64::encode(pair.public_key().as_ref());
    let mut frame = Vec::new();
    Request::Register(Register { public_key, ..Register::default() }).emit(&mut frame).unwrap();
    let mut stream = Env::real().tcp_connect(addr.parse().unwrap()).await.unwrap();
    stream.write_all(&frame).await.unwrap();
    let len = stream.read_u32().await.unwrap();
    let mut body = vec![0; len as usize];
    stream.read_exact(&mut body).await.unwrap();
    serde_json::from_slice::<Value>(&body).unwrap()["node_id"].as_u64().unwrap()
}

#[tokio::test]
async fn addresses_survive_kill_9_and_an_orderly_stop() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("registry.redb");
    for round in 0..3 {
        let mut running = start(&store);
        for seed in 1..=3 {
            assert_eq!(register(&running.1, seed).await, u64::from(seed));
        }
        assert_eq!(register(&running.1, 10 + round).await, 4 + u64::from(round));
        running.0.kill().unwrap();
        running.0.wait().unwrap();
    }
    let mut running = start(&store);
    rustix::process::kill_process(rustix::process::Pid::from_child(&running.0), rustix::process::Signal::TERM).unwrap();
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
    assert_eq!(register(&start(&store).1, 12).await, 6);
}

#[test]
fn bad_input_gets_one_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = |content: &str| {
        let mut file = tempfile::Builder::new().suffix(".json").tempfile_in(&dir).unwrap();
        std::io::Write::write_all(&mut file, content.as_bytes()).unwrap();
        file.into_temp_path().keep().unwrap().to_str().unwrap().to_owned()
    };
    let odd_config = file(r#"{"tls": "yes"}"#);
    let snapshot = file(r#"{"next_node":5,"nodes":{}}"#);
    let nothing = file("nothing");
    let store = dir.path().join("new.redb");
    let store = store.to_str().unwrap();
    let cases: &[(&[&str], i32, &[&str])] = &[
        (&["-no-such-flag"], 2, &["-no-such-flag"]),
        (&["-registry-addr", "nonsense"], 2, &["registry-addr", "nonsense", "host:port"]),
        (&["-config", &odd_config], 1, &[&odd_config, "tls", "yes", "true or false"]),
        (&["-config", "/no/such/file"], 1, &["/no/such/file"]),
        (&["-tls-cert", "x"], 1, &["-tls"]),
        (&["-tls", "-tls-cert", "/no/such/cert", "-tls-key", "x"], 1, &["/no/such/cert"]),
        (&["-beacon-peers", "somewhere"], 1, &["-beacon-peers", "somewhere"]),
        (&["-store", &snapshot], 1, &[&snapshot, "-import"]),
        (&["-store", &nothing], 1, &[&nothing, "left as it is"]),
        (&["-store", store, "-import", &nothing], 1, &[&nothing, "snapshot"]),
        (&["-store", store, "-import", "/no/such/file"], 1, &["/no/such/file"]),
    ];
    for (args, status, words) in cases {
        let mut child =
            command(&["-registry-addr", "127.0.0.1:0", "-beacon-addr", "127.0.0.1:0", "-log-level", "error"]);
        let output = child.args(*args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(*status), "{args:?}: {text}");
        for word in *words {
            assert!(text.contains(word), "{args:?}: {word:?} is not in {text:?}");
        }
        assert!(!text.contains("panicked"), "{text}");
    }
}

#[test]
fn what_cannot_be_written_is_an_error() {
    for flag in ["-h", "--version"] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(&[flag]).stdout(full).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("write the output: "), "{error}");
    }
}

#[test]
fn help_and_version_are_told_on_standard_output() {
    for (flag, word) in [("-h", "-registry-addr"), ("--version", env!("CARGO_PKG_VERSION"))] {
        let mut child = command(&[flag]).spawn().unwrap();
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert!(text.contains(word), "{text}");
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}
