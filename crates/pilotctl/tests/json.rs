//! JSON mode against the golden vectors: every byte of every line, except where a fix of the official tool's mistakes
//! is meant, and that is listed here.

#![allow(clippy::disallowed_methods)]

#[path = "../../pilot-testkit/tests/support/compatibility.rs"]
mod compatibility;
mod support;

use std::collections::BTreeSet;

use pilot_wire::json as pilot_json;
use serde_json::Value;
use support::{Place, argv, cases, changed, commands, february, february_registry, here, prepare_mail, serve};

/// Keys that this tool adds to objects of the official one (the newest release's, and causes).
const ADDED: &[&str] = &[
    "time_ms",
    "shown",
    "complete",
    "cause",
    "error",
    "to",
    "total",
    "encrypted",
    "path",
    "endpoint",
    "message_id",
    "tagged",
    "first_contact",
    "reused",
    "seq",
    "sha256",
    "verified",
    "transport",
    "bytes_sent",
    "bytes_resumed",
    "elapsed_ms",
    "throughput_mbps",
    "hint",
];

/// Cases in which this tool means to differ: the official one guesses where the line holds a mistake (06 §24.34), and
/// pipe mode changes what it was given (06 §24.14).
const MISTAKES: &[(&str, &str)] = &[
    ("send 1 7 --data", "--data needs a value"),
    ("send 1 7 --data --timeout 2s", "--data needs a value"),
    ("connect alice 7 --message --json", "--message needs a value"),
    ("inbox --clear now", "unexpected argument \"now\""),
];

/// Cases that fail in the official tool and do what they say here: commands that could never succeed (06 §24.33), what
/// the newest release takes without arguments, a name where an address was needed.
const FIXED: &[&str] = &[
    "register",
    "register 127.0.0.1:5",
    "rotate-key",
    "rotate-key 1 me@example.com",
    "traceroute hostname (rejected)",
    // Documented, and never there (05 §11.1).
    "broadcast",
    "broadcast 1 hi",
    // A directory goes to peers that take one; a file of any size goes (06 §24.13).
    "send-file directory",
    "send-file 3000000 bytes",
    // These act on the running gateway (06 §24.32), take names, and say what to do without a daemon.
    "gateway map (no daemon)",
    "gateway map zz",
    "gateway start (no daemon)",
];

/// A recorded error with the key that the newest release has for its message.
fn newest(mut error: Value) -> Value {
    error["error"] = error["message"].clone();
    error
}

#[test]
fn usage_and_no_daemon_errors_are_those_of_the_official_tool() {
    let known = commands();
    let place = Place::new();
    let mut checked = 0;
    let mut different = BTreeSet::new();
    for case in cases(include_str!("vectors/cli-json-errors.json")) {
        let words = argv(&case, &place);
        let first = words.get(1).map_or("", String::as_str);
        if !known.contains(first) && first != "nosuch" && !first.is_empty() {
            continue;
        }
        let name = case["name"].as_str().unwrap().to_owned();
        if case["group"] == "usage" && FIXED.contains(&name.as_str()) {
            different.insert(name);
            continue;
        }
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let run = place.run_with(&words, &[("PILOT_REGISTRY", "127.0.0.1:1")], None);
        assert_eq!(i64::from(run.code), case["exit_code"].as_i64().unwrap(), "{words:?}");
        assert_eq!(run.stdout, "", "{words:?}");
        if let Some(expected) = case.get("stderr_json") {
            let mut got = pilot_json::parse(run.stderr.as_bytes()).unwrap();
            assert_eq!(run.stderr, format!("{}\n", pilot_json::to_string(&got)), "{words:?}");
            // Why the registry cannot be reached is for the system to say.
            got.as_object_mut().unwrap().remove("cause");
            assert_eq!(got, newest(expected.clone()), "{words:?}");
        }
        checked += 1;
    }
    assert!(checked >= 35, "only {checked} cases");
    compatibility::check("cli-json-errors", different);
}

/// How recordings write the time in a file's name.
const STAMP: &str = "<YYYYMMDD-HHMMSS.mmm>";

/// Whether `got` is `expected`, in which `<…>` stands for any value of that kind.
fn matches(got: &Value, expected: &Value, place: &Place) -> bool {
    match (got, expected) {
        (got, Value::String(text)) if text.starts_with('<') && !text.contains("_") => match text.as_str() {
            "<int>" => got.is_u64() || got.is_i64(),
            "<number>" => got.is_number(),
            _ => got.is_string(),
        },
        (Value::String(got), Value::String(text)) => {
            let text = here(text, place);
            match text.split_once(STAMP) {
                // A time stamp of that length, whatever it says.
                Some((before, after)) => {
                    got.len() == text.len() - STAMP.len() + "20260227-101112.000".len()
                        && got.starts_with(before)
                        && got.ends_with(after)
                }
                None => *got == text,
            }
        }
        (Value::Array(got), Value::Array(expected)) => {
            got.len() == expected.len() && got.iter().zip(expected).all(|(got, expected)| matches(got, expected, place))
        }
        (Value::Object(got), Value::Object(expected)) => {
            expected.iter().all(|(key, value)| got.get(key).is_some_and(|got| matches(got, value, place)))
                && got.keys().all(|key| expected.contains_key(key) || ADDED.contains(&key.as_str()))
        }
        (got, expected) => got == expected,
    }
}

#[test]
fn results_are_those_of_the_official_tool() {
    let known = commands();
    let mut checked = 0;
    let mut different = BTreeSet::new();
    for case in cases(include_str!("vectors/cli-json-commands.json")) {
        let name = case["name"].as_str().unwrap().to_owned();
        let group = case["group"].as_str().unwrap();
        let place = Place::new();
        let words = argv(&case, &place);
        let first = words.get(1).cloned().unwrap_or_default();
        // Processes have tests of their own; messages from real peers, too. The recorded list is cut short.
        let elsewhere = (first == "daemon" && group != "bootstrap")
            || group == "listen"
            || (group == "gateway" && case["node"] != "n")
            || FIXED.contains(&name.as_str())
            || matches!(
                name.as_str(),
                "recv 3000 --count 2 --timeout 20s"
                    | "recv partial then timeout"
                    | "info (with connection)"
                    | "connections"
            );
        if FIXED.contains(&name.as_str()) {
            different.insert(name.clone());
        }
        // Events and tasks need a peer; see services.rs.
        let peer = matches!(first.as_str(), "subscribe" | "publish" | "task") && case["node"] != "n";
        if !known.contains(&first) || elsewhere || peer || !case["exit_code"].is_i64() {
            continue;
        }
        let daemon = case["node"] != "n";
        if daemon {
            let name = name.clone();
            serve(&place, february(move |request| changed(&name, request)));
        }
        prepare(&name, &place);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut variables = Vec::new();
        let registry = if group == "registry" { february_registry(&name) } else { String::new() };
        if group == "registry" {
            variables.push(("PILOT_REGISTRY", registry.as_str()));
        }
        if name.starts_with("config with PILOT_REGISTRY") {
            variables.push(("PILOT_REGISTRY", "127.0.0.1:9000"));
        }
        if name == "config" {
            variables.push(("PILOT_SOCKET", ""));
        }
        let piped = if name == "connect (pipe mode, empty stdin)" { Some("") } else { case["stdin"].as_str() };
        let run = place.run_with(&words, &variables, piped.map(str::as_bytes));
        if let Some((_, message)) = MISTAKES.iter().find(|(mistake, _)| *mistake == name) {
            let error: Value = serde_json::from_str(&run.stderr).unwrap();
            assert_eq!((error["code"].as_str(), error["message"].as_str()), (Some("invalid_argument"), Some(*message)));
            different.insert(name);
            checked += 1;
            continue;
        }
        assert_eq!(i64::from(run.code), case["exit_code"].as_i64().unwrap(), "{name}: {}{}", run.stdout, run.stderr);
        let (printed, silent, mut expected) = match case.get("stdout_json") {
            Some(expected) => (&run.stdout, &run.stderr, expected.clone()),
            None => (&run.stderr, &run.stdout, case["stderr_json"].clone()),
        };
        if name == "connect (pipe mode)" {
            for key in ["sent", "response"] {
                expected["data"][key] = "line1\nline2\n".into();
            }
            different.insert(name.clone());
        }
        assert_eq!(silent, "", "{name}");
        let got = pilot_json::parse(printed.as_bytes()).unwrap_or_else(|_| panic!("{name}: {printed:?}"));
        assert!(matches(&got, &expected, &place), "{name}: {got} is not {expected}");
        assert_eq!(*printed, format!("{}\n", pilot_json::to_string(&got)), "{name}");
        checked += 1;
    }
    assert!(checked >= 60, "only {checked} cases");
    compatibility::check("cli-json-commands", different);
    compatibility::check("added keys", ADDED.iter().copied());
}

/// Files that earlier cases of the recording have left.
fn prepare(name: &str, place: &Place) {
    prepare_mail(name, place);
    let mut settings = vec!["registry=127.0.0.1:9000", "beacon=127.0.0.1:9001", "hostname=alice"];
    match name {
        "config after --set" => settings.push("foo=bar=baz"),
        "config after init" => {}
        _ => return,
    }
    for setting in settings {
        assert_eq!(place.run(&["config", "--set", setting]).code, 0);
    }
}

#[test]
fn the_manifest_describes_the_commands_as_the_official_one_does() {
    let file: Value = serde_json::from_str(include_str!("vectors/cli-context.json")).unwrap();
    let place = Place::new();
    let printed: Value = serde_json::from_str(&place.run(&["--json", "context"]).stdout).unwrap();
    let (got, expected) = (&printed["data"], &file["data"]);
    for key in ["version", "config_file"] {
        assert_eq!(got[key], expected[key]);
    }
    for key in ["error_codes", "global_flags", "environment"] {
        let all = got[key].as_object().unwrap();
        for name in expected[key].as_object().unwrap().keys() {
            assert!(all.contains_key(name), "{key}: {name}");
        }
    }
    let mut checked = 0;
    let mut different = BTreeSet::new();
    for (name, command) in expected["commands"].as_object().unwrap() {
        let Some(ours) = got["commands"].get(name) else { continue };
        // The official manifest leaves out that `handshake` takes an address, too; and without a daemon, `rotate-key`
        // takes what was never optional before.
        let args =
            here(&command["args"].to_string(), &place).replace("<node_id|hostname>", "<node_id|address|hostname>");
        let args = if name == "rotate-key" { r#"["[node_id]","[owner]"]"#.to_owned() } else { args };
        if args != here(&command["args"].to_string(), &place) {
            different.insert(name.clone());
        }
        let mut ours = ours["args"].as_array().unwrap().iter();
        for arg in serde_json::from_str::<Value>(&args).unwrap().as_array().unwrap() {
            // What ours has besides can be left out.
            let found = ours.by_ref().find(|ours| {
                assert!(*ours == arg || ours.as_str().unwrap().starts_with("[--"), "{name}: {ours} before {arg}");
                *ours == arg
            });
            assert!(found.is_some(), "{name}: {arg}");
        }
        assert!(ours.all(|arg| arg.as_str().unwrap().starts_with("[--")), "{name}");
        checked += 1;
    }
    assert!(checked >= 32, "only {checked} commands");
    compatibility::check("cli-context", different);
}

#[test]
fn files_are_those_of_the_official_tool() {
    let file: Value = serde_json::from_str(include_str!("vectors/cli-files.json")).unwrap();
    let recorded = |path: &str| {
        let mut files = file["files"].as_array().unwrap().iter();
        files.find(|file| file["path"] == path).unwrap_or_else(|| panic!("no {path}")).clone()
    };
    let place = Place::new();
    let socket = place.socket().display().to_string();
    let init =
        ["init", "--registry", "127.0.0.1:9000", "--beacon", "127.0.0.1:9001", "--hostname", "alice", "--socket"];
    assert_eq!(place.run(&[&init[..], &[&socket]].concat()).code, 0);
    let config = std::fs::read_to_string(place.home().join(".pilot/config.json")).unwrap();
    let expected = recorded("config.json")["text"].as_str().unwrap().replace("<SOCKET_A>", &socket);
    assert_eq!(config, expected);
    // What February leaves readable to everybody is the owner's alone; tests of the daemon look at the modes.
    let open = file["files"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|file| file["mode"].as_str().is_some_and(|mode| !mode.starts_with("0600")));
    compatibility::check("cli-files", open.map(|file| file["path"].as_str().unwrap()));
}
