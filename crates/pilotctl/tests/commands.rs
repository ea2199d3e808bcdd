//! Commands against a daemon and a registry that answer by script, where the golden vectors say nothing: datagrams,
//! closing by id, keys, and what the newest release prints.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

mod support;

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pilot_wire::ipc::{Answer, Request};
use pilot_wire::{Address, SocketAddress};
use serde_json::{Value, json};
use support::{Handler, Place, Run, eventually, exists, february, registry, serve};

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| panic!("{text:?}"))
}

fn data(run: &Run) -> Value {
    assert_eq!((run.code, run.stderr.as_str()), (0, ""), "{}", run.stdout);
    parsed(&run.stdout)["data"].clone()
}

fn error(run: &Run) -> Value {
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{}", run.stderr);
    parsed(&run.stderr)
}

/// A February daemon that pushes datagrams of several ports once a port is bound.
fn with_datagrams(count: usize) -> Arc<Handler> {
    let usual = february(|_| None);
    Arc::new(move |request, answer| {
        usual(request, answer);
        if let Request::Bind { .. } = request {
            let from = SocketAddress::new(Address::backbone(1), 49152);
            answer(Answer::RecvFrom { from, port: 8000, data: b"not for you" });
            for _ in 0..count {
                answer(Answer::RecvFrom { from, port: 9000, data: b"dg1 <x>" });
            }
        }
    })
}

fn datagram() -> Value {
    json!({"bytes": 7, "data": "dg1 <x>", "src_addr": "0:0000.0000.0001", "src_port": 49152})
}

#[test]
fn listen_prints_the_datagrams_of_its_port_only() {
    let place = Place::new();
    serve(&place, with_datagrams(2));
    let run = place.run(&["--json", "listen", "9000", "--count", "2", "--timeout", "60s"]);
    assert_eq!(data(&run), json!({"messages": [datagram(), datagram()], "timeout": false}));
    let run = place.run(&["--json", "listen", "9000", "--timeout", "1s"]);
    let line = r#"{"bytes":7,"data":"dg1 \u003cx\u003e","src_addr":"0:0000.0000.0001","src_port":49152}"#;
    assert_eq!((run.code, run.stdout), (0, format!("{line}\n{line}\n")));
    let run = place.run(&["listen", "9000", "--count", "1"]);
    assert_eq!(run.stdout, "[0:0000.0000.0001:49152] dg1 <x>\n");
    assert_eq!(run.stderr, "listening on port 9000 — waiting for datagrams...\n");
    let run = place.run(&["--json", "listen", "9001", "--count", "1", "--timeout", "300ms"]);
    assert_eq!(data(&run), json!({"messages": null, "timeout": true}));
    // The port of a program: official daemons give its datagrams to everybody all the same.
    assert_eq!(place.run(&["listen", "7", "--timeout", "100ms"]).code, 0);
}

#[test]
fn listen_ends_when_nobody_reads_any_more() {
    let place = Place::new();
    serve(&place, with_datagrams(100));
    let mut child =
        place.command().args(["listen", "9000"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn dgram_says_whether_the_datagram_has_left_and_whether_to_try_again() {
    let new = Place::new();
    serve(
        &new,
        Arc::new(|request, answer| match request {
            Request::SendToConfirm { to, .. } => match to.port {
                1 => answer(Answer::error("sendto: payload too large: 70000 bytes (max 65535)")),
                2 => answer(Answer::error("sendto: port 2 not allowed by network policy")),
                3 => answer(Answer::error("sendto: resolve node 2: registry: node 2: node not found")),
                4 => answer(Answer::error("sendto: no tunnel to node 2")),
                5 => answer(Answer::error("sendto: refusing tunnel to untrusted node")),
                _ => answer(Answer::SendToConfirmOk),
            },
            _ => panic!("{request:?}"),
        }),
    );
    let run = new.run(&["--json", "dgram", "2", "5000", "--data", "hello"]);
    assert_eq!(data(&run), json!({"bytes": 5, "confirmed": true, "port": 5000, "target": "0:0000.0000.0002"}));
    let codes = ["invalid_argument", "permission_denied", "not_found", "connection_failed", "trust_required"];
    for (port, code) in (1..).zip(codes) {
        let run = new.run(&["--json", "dgram", "2", &port.to_string(), "--data", "hello"]);
        let error = error(&run);
        assert_eq!(error["code"], code, "{error}");
        assert!(error["hint"].is_string() && error["cause"].as_str().unwrap().starts_with("sendto: "), "{error}");
    }
    let run = new.run(&["--json", "dgram", "2", "5000"]);
    assert_eq!(error(&run)["message"], "--data is required");

    let old = Place::new();
    let usual = february(|_| None);
    serve(
        &old,
        Arc::new(move |request, answer| match request {
            Request::SendTo { to, .. } if to.addr.node == 3 => answer(Answer::error("sendto: no tunnel to node 3")),
            Request::SendTo { .. } => {}
            _ => usual(request, answer),
        }),
    );
    let run = old.run(&["--json", "dgram", "2", "5000", "--data", "hello"]);
    assert_eq!(data(&run)["confirmed"], false);
    let run = old.run(&["--json", "dgram", "3", "5000", "--data", "hello"]);
    assert_eq!(error(&run)["cause"], "sendto: daemon: sendto: no tunnel to node 3");
}

#[test]
fn disconnect_returns_when_the_daemon_has_confirmed() {
    let place = Place::new();
    serve(&place, february(|_| None));
    assert_eq!(data(&place.run(&["--json", "disconnect", "99999"])), json!({"conn_id": 99999}));
}

#[test]
fn a_daemon_too_old_for_a_command_is_told_from_a_failure() {
    let place = Place::new();
    serve(&place, february(|_| None));
    for command in [&["health"][..], &["prefer-direct", "2"], &["rotate-key"]] {
        let run = place.run(&[&["--json"], command].concat());
        let error = error(&run);
        assert!(error["message"].as_str().unwrap().contains("unknown command: 0x"), "{error}");
        assert!(error["hint"].as_str().unwrap().contains("this daemon"), "{error}");
    }
}

#[test]
fn info_takes_its_format_by_flag_too() {
    let place = Place::new();
    serve(&place, february(|_| None));
    assert_eq!(place.run(&["info", "--format", "json"]).stdout, place.run(&["--json", "info"]).stdout);
    assert_eq!(place.run(&["--json", "info", "--format=table"]).stdout, place.run(&["info"]).stdout);
    let run = place.run(&["info", "--format", "xml"]);
    assert_eq!(run.stderr, "error: unknown format \"xml\"\nhint:  available: json, table\n");
}

#[test]
fn other_names_and_groupings_mean_the_same() {
    let place = Place::new();
    serve(&place, february(|_| None));
    for (one, other) in [
        (&["find", "bob"][..], &["resolve", "bob"][..]),
        (&["untrust", "2"], &["revoke", "2"]),
        (&["set-tags", "a"], &["extras", "set-tags", "a"]),
        (&["connections"], &["extras", "connections"]),
        (&["daemon", "status"], &["extras", "daemon", "status"]),
    ] {
        let [one, other] = [one, other].map(|words| place.run(&[&["--json"], words].concat()));
        assert_eq!((one.code, &one.stdout), (0, &other.stdout), "{}", one.stderr);
    }
    assert_eq!(place.run(&["extras"]).code, 2);
}

/// A home with an identity, and the key in it.
fn home_with_identity(place: &Place) -> Value {
    let registry = registry(
        |request| json!({"type": "register_ok", "node_id": 7, "address": "0:0000.0000.0007", "public_key": request["public_key"]}),
    );
    let run = place.run_with(&["--json", "register", "1.2.3.4:5"], &[("PILOT_REGISTRY", &registry)], None);
    let answer = data(&run);
    assert_eq!((&answer["type"], &answer["node_id"]), (&"register_ok".into(), &7.into()));
    let file = std::fs::read_to_string(place.home().join(".pilot/identity.key")).unwrap();
    let key = parsed(&file)["public_key"].clone();
    assert_eq!(answer["public_key"], key);
    key
}

fn key_of(place: &Place) -> Value {
    parsed(&std::fs::read_to_string(place.home().join(".pilot/identity.key")).unwrap())["public_key"].clone()
}

#[test]
fn a_key_is_replaced_without_a_daemon() {
    let place = Place::new();
    let old = home_with_identity(&place);
    let registry = registry(|request| {
        assert_eq!(request["type"], "rotate_key");
        json!({"type": "rotate_key_ok", "node_id": 7, "address": "0:0000.0000.0007", "public_key": request["new_public_key"]})
    });
    let variables = [("PILOT_REGISTRY", registry.as_str())];
    let answer = data(&place.run_with(&["--json", "rotate-key", "7", "me@example.com"], &variables, None));
    assert_eq!((&answer["type"], &answer["node_id"]), (&"rotate_key_ok".into(), &7.into()));
    assert_ne!(answer["public_key"], old);
    assert_eq!(key_of(&place), answer["public_key"]);
    assert!(!place.home().join(".pilot/identity.key.next").exists());
}

#[test]
fn a_refused_key_leaves_the_old_one() {
    let place = Place::new();
    let old = home_with_identity(&place);
    // As February's does, which says no more; asked in both forms of the signed text.
    let asked = Arc::new(AtomicUsize::new(0));
    let registry = registry({
        let asked = Arc::clone(&asked);
        move |_| {
            asked.fetch_add(1, Ordering::Relaxed);
            json!({"type": "error", "error": "request failed"})
        }
    });
    let variables = [("PILOT_REGISTRY", registry.as_str())];
    let run = place.run_with(&["--json", "rotate-key", "7", "me@example.com"], &variables, None);
    assert_eq!(error(&run)["message"], "rotate-key: registry: request failed");
    assert_eq!((key_of(&place), asked.load(Ordering::Relaxed)), (old, 2));
    assert!(!place.home().join(".pilot/identity.key.next").exists());
}

#[test]
fn a_rotation_cut_short_is_finished_by_the_next_run() {
    let place = Place::new();
    let old = home_with_identity(&place);
    // Nobody answers: what the registry knows cannot be told.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    std::thread::spawn(move || silent.incoming().for_each(drop));
    let variables = [("PILOT_REGISTRY", address.as_str())];
    let run = place.run_with(&["--json", "rotate-key", "7", "x"], &variables, None);
    let failure = error(&run);
    assert!(failure["message"].as_str().unwrap().contains("is not known"), "{failure}");
    assert!(failure["hint"].as_str().unwrap().contains("run the command again"), "{failure}");
    assert_eq!(key_of(&place), old);
    let next = place.home().join(".pilot/identity.key.next");
    let new = parsed(&std::fs::read_to_string(&next).unwrap())["public_key"].clone();

    // The registry had got it.
    let known = new.clone();
    let registry = registry(move |request| {
        assert_eq!(request["type"], "lookup", "nothing to rotate any more");
        json!({"type": "lookup_ok", "node_id": 7, "address": "0:0000.0000.0007", "public_key": known})
    });
    let variables = [("PILOT_REGISTRY", registry.as_str())];
    let answer = data(&place.run_with(&["--json", "rotate-key", "7", "x"], &variables, None));
    assert_eq!(answer["public_key"], new);
    assert_eq!(key_of(&place), new);
    assert!(!next.exists());
}

#[test]
fn only_a_node_itself_replaces_its_key() {
    let place = Place::new();
    serve(
        &place,
        february(|request| match request {
            Request::RotateKey => Some(json!({"node_id": 1, "address": "0:0000.0000.0001", "public_key": "k"})),
            _ => None,
        }),
    );
    assert_eq!(data(&place.run(&["--json", "rotate-key"]))["public_key"], "k");
    assert_eq!(data(&place.run(&["--json", "rotate-key", "1", "me"]))["public_key"], "k");
    let failure = error(&place.run(&["--json", "rotate-key", "2", "me"]));
    assert_eq!(failure["message"], "node 2 is not the node of the running daemon, which is 1");
    let nobody = Place::new();
    assert_eq!(error(&nobody.run(&["--json", "rotate-key"]))["code"], "not_running");
    let failure = error(&nobody.run(&["--json", "rotate-key", "1", "me"]));
    assert_eq!(failure["code"], "not_found", "{failure}");
}

#[test]
fn a_silent_peer_ends_no_command_later_than_its_deadline() {
    let usual = february(|_| None);
    // Streams open, and nothing ever comes back on them.
    let silent: Arc<Handler> = Arc::new(move |request, answer| {
        if !matches!(request, Request::Send { .. }) {
            usual(request, answer);
        }
    });
    for words in [
        &["ping", "bob", "--count", "1"][..],
        &["traceroute", "bob"],
        &["bench", "bob", "1"],
        &["connect", "bob", "3100", "--message", "x"],
        &["send", "bob", "3100", "--data", "x"],
        &["recv", "3000"],
        &["listen", "9000"],
    ] {
        let (done, ended) = std::sync::mpsc::channel();
        let silent = Arc::clone(&silent);
        std::thread::spawn(move || {
            let place = Place::new();
            serve(&place, silent);
            let _ = done.send(place.run(&[words, &["--timeout", "300ms"]].concat()));
        });
        // Without a deadline none of them ever ends.
        let run = ended.recv_timeout(std::time::Duration::from_secs(60));
        assert!(run.is_ok(), "{words:?} waits for ever");
    }
}

#[test]
fn a_gateway_that_waits_for_a_name_ends_when_it_is_told() {
    for by_signal in [true, false] {
        let usual = february(|_| None);
        let asked = Arc::new(AtomicBool::new(false));
        let place = Place::new();
        // The name is asked for, and no answer comes.
        let silent = {
            let asked = Arc::clone(&asked);
            move |request: &Request<'_>, answer: &mut dyn FnMut(Answer<'_>)| match request {
                Request::ResolveHostname { .. } => asked.store(true, Ordering::Relaxed),
                _ => usual(request, answer),
            }
        };
        serve(&place, Arc::new(silent));
        let mut gateway = place.command();
        gateway.args(["gateway", "start", "--subnet", "127.4.0.0/16", "bob"]).stdin(Stdio::null());
        let mut gateway = gateway.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("the name to be asked for", || asked.load(Ordering::Relaxed));
        if by_signal {
            let process = rustix::process::Pid::from_child(&gateway);
            rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
        } else {
            assert_eq!(data(&place.run(&["--json", "gateway", "stop"]))["pid"], gateway.id());
        }
        let ended = gateway.wait().unwrap();
        assert_eq!(ended.code(), Some(0), "by a signal: {by_signal}");
        for left in ["gateway.sock", "gateway.pid"] {
            assert!(!exists(&place.home().join(".pilot").join(left)), "{left} is left behind");
        }
    }
}

#[test]
fn a_limit_of_nothing_is_refused() {
    let place = Place::new();
    for limit in ["0", "999ms", "-1s"] {
        let failure = error(&place.run(&["--json", "gateway", "start", &format!("--idle-timeout={limit}")]));
        assert_eq!(failure["code"], "invalid_argument", "{failure}");
        assert!(failure["message"].as_str().unwrap().contains("at least 1s"), "{failure}");
    }
    for skew in ["0", "-1"] {
        let words = ["--json", "verify-request", "--envelope", "x", "--signature", "y", &format!("--max-skew={skew}")];
        let failure = error(&place.run(&words));
        assert_eq!(failure["code"], "invalid_argument", "{failure}");
        assert!(failure["message"].as_str().unwrap().contains("at least 1 second"), "{failure}");
    }
}

#[test]
fn a_network_made_with_the_admin_token_belongs_to_the_node_that_runs_here() {
    let owners = Arc::new(std::sync::Mutex::new(Vec::new()));
    let registry = registry({
        let owners = Arc::clone(&owners);
        move |request| {
            owners.lock().unwrap().push(request["node_id"].clone());
            json!({"type": "create_network_ok", "network_id": 1, "name": request["name"], "join_rule": "open"})
        }
    });
    let variables = [("PILOT_REGISTRY", registry.as_str()), ("PILOT_ADMIN_TOKEN", "tok")];
    let create = ["network", "create", "--name", "lab"];
    let place = Place::new();
    let alone = place.run_with(&create, &variables, None);
    assert!(alone.code == 0 && alone.stderr.contains("no owner"), "{} {}", alone.stdout, alone.stderr);
    serve(&place, february(|_| None));
    let owned = place.run_with(&create, &variables, None);
    assert!(owned.code == 0 && owned.stderr.is_empty(), "{} {}", owned.stdout, owned.stderr);
    let named = place.run_with(&[&create[..], &["--node-id", "7"]].concat(), &variables, None);
    assert!(named.code == 0 && named.stderr.is_empty(), "{} {}", named.stdout, named.stderr);
    // The February daemon is node 1.
    assert_eq!(json!(*owners.lock().unwrap()), json!([0, 1, 7]));
}
