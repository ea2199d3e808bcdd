//! `daemon start`, `status` and `stop` with real processes.

#![allow(clippy::disallowed_methods)]

mod support;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::{Place, exists};

/// A rendezvous on free ports, for as long as it is in scope.
struct Rendezvous {
    child: Child,
    registry: String,
    beacon: String,
}

impl Rendezvous {
    fn start() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_pilotctl"))
            .args(["_rendezvous-run", "-registry-addr=127.0.0.1:0", "-beacon-addr=127.0.0.1:0", "-log-level=error"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut value = |key: &str| lines.next().unwrap().unwrap().strip_prefix(key).unwrap().trim().to_owned();
        let (registry, beacon) = (value("registry"), value("beacon"));
        Self { child, registry, beacon }
    }
}

impl Drop for Rendezvous {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Stops whatever daemon a test leaves behind.
struct Stop<'a>(&'a Place);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.run(&["daemon", "stop"]);
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| panic!("{text:?}"))
}

fn mode(path: &std::path::Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_daemon_is_started_asked_and_stopped() {
    let rendezvous = Rendezvous::start();
    let place = Place::new();
    let _stop = Stop(&place);
    let init = ["init", "--registry", &rendezvous.registry, "--beacon", &rendezvous.beacon, "--hostname", "alice"];
    assert_eq!(place.run(&init).code, 0);
    let start = place.run(&["--json", "daemon", "start", "--listen", "127.0.0.1:0"]);
    assert_eq!((start.code, start.stderr.as_str()), (0, ""), "{}", start.stdout);
    let started = json(&start.stdout)["data"].clone();
    assert_eq!(started["hostname"], "alice");
    assert_eq!(started["socket"], place.socket().to_str().unwrap());
    let pilot = place.home().join(".pilot");
    assert_eq!(started["pid"].to_string(), std::fs::read_to_string(pilot.join("pilot.pid")).unwrap());
    assert_eq!((mode(&pilot), mode(&pilot.join("config.json")), mode(&pilot.join("pilot.log"))), (0o700, 0o600, 0o600));
    assert!(pilot.join("identity.key").exists());

    let status = json(&place.run(&["--json", "daemon", "status"]).stdout)["data"].clone();
    assert_eq!((&status["running"], &status["responsive"]), (&true.into(), &true.into()));
    assert_eq!((&status["pid"], &status["address"]), (&started["pid"], &started["address"]));
    assert_eq!(place.run(&["daemon", "status", "--check"]).code, 0);
    let again = place.run(&["daemon", "start"]);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("daemon is already running (pid "), "{}", again.stderr);

    let stop = place.run(&["--json", "daemon", "stop"]);
    assert_eq!(stop.stdout, format!("{{\"data\":{{\"pid\":{}}},\"status\":\"ok\"}}\n", started["pid"]));
    assert!(!exists(&pilot.join("pilot.pid")) && !exists(&place.socket()));
    assert_eq!(place.run(&["daemon", "status", "--check"]).code, 1);
    let stop = place.run(&["daemon", "stop"]);
    assert_eq!((stop.code, stop.stderr.as_str()), (1, "error: daemon is not running\n"));

    // One key keeps one address.
    let start = place.run(&["daemon", "start", "--listen", "127.0.0.1:0"]);
    assert_eq!(start.code, 0, "{}", start.stderr);
    assert!(start.stdout.contains(started["address"].as_str().unwrap()), "{}", start.stdout);
    assert!(start.stderr.starts_with("starting daemon (pid "), "{}", start.stderr);
}

#[test]
fn a_daemon_that_dies_at_once_is_noticed_at_once_and_its_words_are_shown() {
    let place = Place::new();
    // At every level of the log (06 §24.19).
    for level in ["debug", "error"] {
        let run = place.run(&["daemon", "start", "--listen", "nonsense", "--log-level", level]);
        assert_eq!(run.code, 1);
        assert!(run.stderr.contains("ended at once") && run.stderr.contains("nonsense"), "{}", run.stderr);
        assert!(!exists(&place.home().join(".pilot/pilot.pid")));
    }
}

#[test]
fn what_lies_at_the_socket_path_is_removed_only_if_it_is_a_dead_socket() {
    let place = Place::new();
    std::fs::write(place.socket(), "precious").unwrap();
    let run = place.run(&["daemon", "start"]);
    assert!(run.code == 1 && run.stderr.contains("is not a socket"), "{}", run.stderr);
    assert_eq!(std::fs::read_to_string(place.socket()).unwrap(), "precious");
    std::fs::remove_file(place.socket()).unwrap();

    let other = UnixListener::bind(place.socket()).unwrap();
    let run = place.run(&["--json", "daemon", "start"]);
    assert_eq!(
        json(&run.stderr)["message"],
        format!("daemon is already running (socket {} is active)", place.socket().display())
    );
    let run = place.run(&["--json", "daemon", "stop"]);
    assert_eq!(json(&run.stderr)["message"], "daemon socket is active but PID file is missing");
    drop(other);
}

#[test]
fn a_pid_file_that_names_a_stranger_harms_nobody() {
    let place = Place::new();
    let mut stranger = Command::new("sleep").arg("600").spawn().unwrap();
    let pid_file = place.home().join(".pilot/pilot.pid");
    std::fs::create_dir_all(pid_file.parent().unwrap()).unwrap();
    std::fs::write(&pid_file, stranger.id().to_string()).unwrap();
    let status = json(&place.run(&["--json", "daemon", "status"]).stdout);
    assert_eq!(status["data"]["running"], false);
    std::fs::write(&pid_file, stranger.id().to_string()).unwrap();
    let stop = place.run(&["--json", "daemon", "stop"]);
    assert_eq!(json(&stop.stderr)["message"], "daemon is not running (cleaned up stale state)");
    assert!(stranger.try_wait().unwrap().is_none(), "a stranger was killed");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
}

#[test]
fn messages_pass_between_two_daemons_from_the_command_line() {
    let rendezvous = Rendezvous::start();
    let (alice, bob) = (Place::new(), Place::new());
    let _stops = (Stop(&alice), Stop(&bob));
    for (place, name) in [(&alice, "alice"), (&bob, "bob")] {
        let flags = ["--registry", &rendezvous.registry, "--beacon", &rendezvous.beacon, "--hostname", name];
        let start = place.run(&[&["daemon", "start", "--listen", "127.0.0.1:0"][..], &flags].concat());
        assert_eq!(start.code, 0, "{}", start.stderr);
    }
    let ok = |place: &Place, words: &[&str]| {
        let run = place.run(&[&["--json"], words].concat());
        assert_eq!(run.code, 0, "{words:?}: {}", run.stderr);
        json(&run.stdout)["data"].clone()
    };
    let node = |place: &Place| ok(place, &["info"])["node_id"].to_string();
    let (a, b) = (node(&alice), node(&bob));
    assert_eq!(ok(&alice, &["handshake", "bob", "a test"])["node_id"].to_string(), b);
    support::eventually("bob has the request", || !ok(&bob, &["pending"])["pending"].as_array().unwrap().is_empty());
    assert_eq!(ok(&bob, &["approve", "alice"])["node_id"].to_string(), a);
    support::eventually("both trust", || {
        [&alice, &bob].iter().all(|place| !ok(place, &["trust"])["trusted"].as_array().unwrap().is_empty())
    });
    for name in ["trust.json", "identity.key", "node-state.json"] {
        assert_eq!(mode(&bob.home().join(".pilot").join(name)), 0o600, "{name}");
    }
    // Newer official tools take a PID file for a stale one when it names a process of another name.
    let pid = std::fs::read_to_string(alice.home().join(".pilot/pilot.pid")).unwrap();
    if let Ok(line) = std::fs::read_to_string(format!("/proc/{pid}/cmdline")) {
        assert_eq!(line.split('\0').next(), Some("pilot-daemon"));
    }
    let ping = ok(&alice, &["ping", "bob", "--count", "2"]);
    assert!(
        ping["results"].as_array().unwrap().iter().all(|probe| probe["rtt_ms"].is_number() && probe["bytes"] == 6),
        "{ping}"
    );
    assert_eq!(ping["results"].as_array().unwrap().len(), 2);

    let long = "0123456789".repeat(3000);
    std::thread::scope(|scope| {
        let recv = scope.spawn(|| ok(&bob, &["recv", "3000", "--count", "2", "--timeout", "30s"]));
        for message in ["m1", &long] {
            // Until recv has bound the port, the dial is refused.
            support::eventually("the message is sent", || {
                alice.run(&["send", "bob", "3000", "--data", message, "--timeout", "5s"]).code == 0
            });
        }
        let messages = recv.join().unwrap();
        assert_eq!(messages["timeout"], false);
        assert_eq!(messages["messages"][0], serde_json::json!({"seq": 0, "port": 3000, "data": "m1", "bytes": 2}));
        assert_eq!(messages["messages"][1]["data"], long);
    });
    assert_eq!(ok(&alice, &["connect", "bob", "7", "--message", "hello <&>"])["response"], "hello <&>");
    let bench = ok(&alice, &["bench", "bob", "5"]);
    assert_eq!((&bench["recv_bytes"], &bench["complete"]), (&(5 << 20).into(), &true.into()));
    let peers = ok(&alice, &["peers"]);
    assert_eq!(
        (peers["peers"][0]["node_id"].to_string(), &peers["peers"][0]["authenticated"]),
        (b.clone(), &true.into())
    );
    assert_eq!(ok(&alice, &["set-tags", "ml", "#gpu"])["tags"], serde_json::json!(["ml", "gpu"]));
    let lookup = |place: &Place, node: &str| {
        let run = place.run_with(&["--json", "lookup", node], &[("PILOT_REGISTRY", &rendezvous.registry)], None);
        assert_eq!(run.code, 0, "{}", run.stderr);
        json(&run.stdout)["data"].clone()
    };
    let known = lookup(&bob, &a);
    assert_eq!((&known["hostname"], &known["tags"]), (&"alice".into(), &serde_json::json!(["ml", "gpu"])));
    assert_eq!(lookup(&bob, "alice"), known);
    assert_eq!(ok(&alice, &["set-public"])["visibility"], "public");
    assert!(lookup(&bob, &a)["real_addr"].is_string());
    assert_eq!(ok(&alice, &["set-private"])["visibility"], "private");
    assert_eq!(ok(&alice, &["clear-tags"]), serde_json::json!({"tags": []}));
    let trace = ok(&alice, &["traceroute", "bob"]);
    assert_eq!((trace["rtt_samples"].as_array().unwrap().len(), &trace["path"]), (3, &"direct".into()), "{trace}");
    assert_eq!(ok(&alice, &["health"])["status"], "ok");
    assert_eq!(ok(&alice, &["prefer-direct", "bob"])["had_tunnel"], true);
    std::thread::scope(|scope| {
        let listen = scope.spawn(|| ok(&bob, &["listen", "9000", "--count", "1", "--timeout", "50s"]));
        // Datagrams to a port that nobody listens on yet go nowhere.
        while !listen.is_finished() {
            assert_eq!(ok(&alice, &["dgram", "bob", "9000", "--data", "psst"])["confirmed"], true);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert_eq!(listen.join().unwrap()["messages"][0]["data"], "psst");
    });
    let taken = bob.run(&["listen", "7"]);
    assert!(taken.code == 1 && taken.stderr.contains("choose another port"), "{}", taken.stderr);
    assert_eq!(ok(&alice, &["disconnect", "4000000"])["conn_id"], 4_000_000);
    let run = alice.run(&["--json", "register"]);
    assert_eq!(json(&run.stderr)["code"], "already_exists", "{}", run.stderr);
    ok(&alice, &["clear-hostname"]);
    assert_eq!(alice.run(&["find", "alice"]).code, 1);
    ok(&alice, &["untrust", "bob"]);
    let nobody = alice.run(&["--json", "untrust", "nobody"]);
    assert_eq!(json(&nobody.stderr)["code"], "invalid_argument", "{}", nobody.stderr);
    support::eventually("neither trusts the other", || {
        [&alice, &bob].iter().all(|place| ok(place, &["trust"])["trusted"].as_array().unwrap().is_empty())
    });
}
