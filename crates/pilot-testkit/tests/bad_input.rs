//! What people get wrong: every mistake ends in one error that names the thing and says what to do, nothing is
//! overwritten, and a running daemon does not notice.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the tests prepare files and sockets themselves

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use pilot_testkit::agent::{Agent, AgentOptions};
use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours, program};
use serde_json::Value;

/// Runs one of our programs, which must end by itself.
fn run(name: &str, home: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(program(name));
    command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).env("RUST_BACKTRACE", "0");
    command.env("PILOT_SOCKET", home.join("pilot.sock")).args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("start");
    let deadline = Instant::now() + Duration::from_secs(30);
    while child.try_wait().expect("wait").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("kill");
            let output = child.wait_with_output().expect("output");
            panic!("{name} {args:?} went on: {}", String::from_utf8_lossy(&output.stderr));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().expect("output")
}

/// The program must fail, with one message that contains every word.
fn fails(name: &str, home: &Path, args: &[&str], words: &[&str]) {
    let output = run(name, home, args);
    let text = String::from_utf8_lossy(&output.stderr);
    let code = output.status.code();
    assert!(code.is_some_and(|c| c != 0), "{name} {args:?} ended with {code:?}: {text}");
    assert!(!text.contains("panicked"), "{name} {args:?}: {text}");
    for word in words {
        assert!(text.contains(word), "{name} {args:?} does not say {word:?}:\n{text}");
    }
    let errors = text.lines().filter(|l| l.contains("error") || l.contains("level=ERROR")).count();
    assert!(errors <= 1, "{name} {args:?} says more than one error:\n{text}");
}

/// The command must fail with this code and a message that contains every word.
fn ctl_fails(home: &Path, args: &[&str], code: &str, words: &[&str]) {
    let output = run("pilotctl", home, &[&["--json"], args].concat());
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "pilotctl {args:?} succeeded");
    assert!(output.stdout.is_empty(), "pilotctl {args:?} printed on standard output");
    let last = text.lines().last().unwrap_or_default();
    let error: Value = serde_json::from_str(last).unwrap_or_else(|e| panic!("pilotctl {args:?}: {e}: {text}"));
    assert_eq!(error["code"], code, "pilotctl {args:?}: {error}");
    for word in words {
        assert!(error.to_string().contains(word), "pilotctl {args:?} does not say {word:?}: {error}");
    }
}

fn home() -> tempfile::TempDir {
    let home = tempfile::tempdir().expect("home");
    fs::create_dir(home.path().join(".pilot")).expect("directory");
    home
}

fn write(path: &Path, content: &[u8]) {
    fs::write(path, content).expect("write");
}

fn text(path: &Path) -> &str {
    path.to_str().expect("path is UTF-8")
}

#[test]
fn daemon_names_the_flag_or_key_that_is_wrong() {
    isolated("daemon_names_the_flag_or_key_that_is_wrong", &[need_programs], || {
        let home = home();
        let home = home.path();
        let daemon = |args: &[&str], words: &[&str]| fails("pilot-daemon", home, args, words);
        daemon(&["-no-such-flag"], &["no-such-flag"]);
        daemon(&["-keepalive", "soon"], &["keepalive", "soon"]);
        daemon(&["-keepalive"], &["keepalive"]);
        daemon(&["-listen", "127.0.0.1:99999"], &["listen", "99999"]);
        daemon(&["-registry", "nowhere"], &["registry", "nowhere"]);
        daemon(&["-encrypt=maybe"], &["encrypt", "maybe"]);
        let config = home.join("config.json");
        for (content, words) in [
            (r#"{"keepalive": 5}"#, &["keepalive"][..]),
            (r#"{"encrypt": "maybe"}"#, &["encrypt", "maybe"]),
            (r#"{"colour": "blue"}"#, &["colour"]),
            (r#"{"keepalive": "#, &["config.json"]),
            (r#"[1, 2]"#, &["config.json"]),
        ] {
            write(&config, content.as_bytes());
            daemon(&["-config", text(&config)], words);
        }
        daemon(&["-config", text(&home.join("missing.json"))], &["missing.json"]);
    });
}

#[test]
fn daemon_leaves_a_corrupt_identity_or_trust_file_alone() {
    isolated("daemon_leaves_a_corrupt_identity_or_trust_file_alone", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let registry = rendezvous.registry().to_string();
        let beacon = rendezvous.beacon().to_string();
        for (file, content) in [
            ("identity.key", &b"{\"private_key\": \"AAAA"[..]),
            ("identity.key", b""),
            ("identity.key", &[0xFF; 300]),
            ("trust.json", b"{\"trusted\": [{\"node_id\": 4"),
            ("trust.json", &[0; 40]),
        ] {
            let home = home();
            let dir = home.path().join(".pilot");
            write(&dir.join(file), content);
            let socket = home.path().join("pilot.sock");
            let identity = dir.join("identity.key");
            let args = [
                "-registry",
                &registry,
                "-beacon",
                &beacon,
                "-listen",
                "127.0.0.1:0",
                "-socket",
                text(&socket),
                "-identity",
                text(&identity),
            ];
            fails("pilot-daemon", home.path(), &args, &[file]);
            assert_eq!(fs::read(dir.join(file)).expect("file is still there"), content, "{file} was overwritten");
        }
    });
}

#[test]
fn rendezvous_never_overwrites_a_corrupt_store() {
    isolated("rendezvous_never_overwrites_a_corrupt_store", &[need_programs], || {
        let home = home();
        let store = home.path().join("registry.redb");
        let args = ["-registry-addr", "127.0.0.1:9000", "-beacon-addr", "127.0.0.1:9001", "-store", text(&store)];
        for content in [&b"this is not a store"[..], &[0x5A; 8192], &[0; 100]] {
            write(&store, content);
            fails("pilot-rendezvous", home.path(), &args, &["registry.redb"]);
            assert_eq!(fs::read(&store).expect("store is still there"), content, "the store was overwritten");
        }
        fails("pilot-rendezvous", home.path(), &["-no-such-flag"], &["no-such-flag"]);
        fails("pilot-rendezvous", home.path(), &["-registry-addr", "nonsense"], &["registry-addr", "nonsense"]);
    });
}

#[test]
fn things_that_are_in_use_are_named() {
    isolated("things_that_are_in_use_are_named", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let registry = rendezvous.registry().to_string();
        let beacon = rendezvous.beacon().to_string();
        let mut options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), "first");
        options.listen.set_port(4001);
        let mut first = Agent::start(&ours(), &options).expect("first daemon");
        let elsewhere = home();
        let own_socket = elsewhere.path().join("pilot.sock");
        let own_identity = elsewhere.path().join(".pilot/identity.key");
        let first_identity = first.home().join(".pilot/identity.key");
        let second = |listen: &str, socket: &Path, identity: &Path, words: &[&str]| {
            let args = [
                "-registry",
                &registry,
                "-beacon",
                &beacon,
                "-listen",
                listen,
                "-socket",
                text(socket),
                "-identity",
                text(identity),
            ];
            fails("pilot-daemon", elsewhere.path(), &args, words);
        };
        second("127.0.0.1:0", &first.socket(), &own_identity, &[text(&first.socket())]);
        second("127.0.0.1:0", &own_socket, &first_identity, &[text(first_identity.parent().expect("directory"))]);
        second("127.0.0.1:4001", &own_socket, &own_identity, &["127.0.0.1:4001"]);
        let args = ["-registry-addr", &registry, "-beacon-addr", "127.0.0.1:9003"];
        fails("pilot-rendezvous", elsewhere.path(), &args, &[&registry]);
        let args = ["-registry-addr", "127.0.0.1:9002", "-beacon-addr", &beacon];
        fails("pilot-rendezvous", elsewhere.path(), &args, &[&beacon]);
        assert!(first.is_alive());
        first.ctl(&["info"]).expect("the first daemon still serves its socket");
    });
}

#[test]
fn pilotctl_names_the_argument_that_is_wrong() {
    isolated("pilotctl_names_the_argument_that_is_wrong", &[need_programs], || {
        let nobody = home();
        ctl_fails(nobody.path(), &["info"], "not_running", &["daemon start"]);
        ctl_fails(nobody.path(), &["no-such-command"], "invalid_argument", &["no-such-command"]);

        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), "ours");
        let agent = Agent::start(&ours(), &options).expect("daemon");
        let home = agent.home();
        for address in ["0:0000.0000", "0:0000.0000.00001", "1:0000.0000.0001", "0:0000.0000.000G", "no-such-host"] {
            ctl_fails(home, &["ping", address], "not_found", &[address]);
        }
        ctl_fails(home, &["connect", "0:0000.0000.0001", "99999", "--message", "x"], "invalid_argument", &["99999"]);
        ctl_fails(home, &["connect", "0:0000.0000.0001", "7x", "--message", "x"], "invalid_argument", &["7x"]);
        ctl_fails(home, &["recv", "1000", "--timeout", "soon"], "invalid_argument", &["timeout", "soon"]);
        ctl_fails(home, &["recv", "1000", "--count", "many"], "invalid_argument", &["count", "many"]);
        ctl_fails(home, &["recv", "1000", "--colour", "blue"], "invalid_argument", &["colour"]);
        ctl_fails(home, &["approve", "-1"], "invalid_argument", &["-1"]);
        ctl_fails(home, &["approve", "4294967296"], "invalid_argument", &["4294967296"]);
        agent.ctl(&["info"]).expect("the daemon is fine");
    });
}

#[test]
fn a_frame_too_large_ends_that_client_and_no_other() {
    isolated("a_frame_too_large_ends_that_client_and_no_other", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), "ours");
        let mut agent = Agent::start(&ours(), &options).expect("daemon");
        for length in [u32::MAX, 1 << 30, (1 << 20) + 1, 0] {
            let mut client = UnixStream::connect(agent.socket()).expect("connect");
            client.set_read_timeout(Some(Duration::from_secs(10))).expect("time-out");
            client.write_all(&length.to_be_bytes()).expect("length");
            // The daemon may close while we still write: that is the point.
            let _ = client.write_all(&[0x0D; 64]);
            let mut rest = Vec::new();
            match client.read_to_end(&mut rest) {
                Ok(_) => {}
                Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
                Err(e) => panic!("frame of {length} bytes: the daemon kept the client: {e}"),
            }
        }
        // A client that stops in the middle of a frame, and one that sends noise, disturb nobody.
        let mut half = UnixStream::connect(agent.socket()).expect("connect");
        half.write_all(&[0, 0, 0, 50, 0x0D]).expect("half a frame");
        let mut noise = UnixStream::connect(agent.socket()).expect("connect");
        noise.write_all(&[0, 0, 0, 3, 0xEE, 1, 2, 0, 0, 0, 1, 0x01]).expect("unknown and short commands");
        agent.ctl(&["info"]).expect("others are served");
        assert!(agent.is_alive());
        assert!(!agent.log().contains("panicked"), "{}", agent.log());
    });
}

#[test]
fn a_stale_pid_file_and_a_dead_socket_are_cleaned_up() {
    isolated("a_stale_pid_file_and_a_dead_socket_are_cleaned_up", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let home = home();
        let dir = home.path().join(".pilot");
        let socket = home.path().join("pilot.sock");
        // A process that has ended, and a socket nobody listens on.
        let dead = Command::new("true").spawn().and_then(|mut c| c.wait().map(|_| c.id())).expect("a process");
        write(&dir.join("pilot.pid"), dead.to_string().as_bytes());
        drop(std::os::unix::net::UnixListener::bind(&socket).expect("bind"));
        ctl_fails(home.path(), &["daemon", "stop"], "not_running", &["not running"]);
        write(&dir.join("pilot.pid"), dead.to_string().as_bytes());

        let (registry, beacon) = (rendezvous.registry().to_string(), rendezvous.beacon().to_string());
        let args =
            ["--json", "daemon", "start", "--registry", &registry, "--beacon", &beacon, "--listen", "127.0.0.1:0"];
        let output = run("pilotctl", home.path(), &args);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        ctl_fails(home.path(), &["daemon", "start"], "already_exists", &["already running", "daemon stop"]);
        let output = run("pilotctl", home.path(), &["--json", "daemon", "stop"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(!dir.join("pilot.pid").exists(), "the PID file stays behind");
        ctl_fails(home.path(), &["daemon", "stop"], "not_running", &[]);
    });
}
