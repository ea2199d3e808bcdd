//! What people read, against the recorded output of the official tool. Ours says the same and adds causes.

#![allow(clippy::disallowed_methods)]

#[path = "../../pilot-testkit/tests/support/compatibility.rs"]
mod compatibility;
mod support;

use pilot_wire::ipc::{Answer, Request};
use support::{Place, argv, cases, changed, commands, february, here, serve};

/// Whether `got` is `expected`, in which `<…>` stands for any text on one line, and `<usage text>` for any text.
fn matches(got: &str, expected: &str) -> bool {
    let Some(open) = expected.find('<') else { return got == expected };
    let literal = &expected[..open];
    let Some(rest) = got.strip_prefix(literal) else { return false };
    let Some(close) = expected[open..].find('>') else { return got == expected };
    let (name, tail) = (&expected[open..=open + close], &expected[open + close + 1..]);
    // Angle brackets that are meant: `pilotctl handshake <your-node-id>`, `hello <&>`.
    if let Some(rest) = rest.strip_prefix(name) {
        return matches(rest, tail);
    }
    let most = if name == "<usage text>" { rest.len() } else { rest.find('\n').unwrap_or(rest.len()) };
    (0..=most).rev().filter(|end| rest.is_char_boundary(*end)).any(|end| matches(&rest[end..], tail))
}

fn without_causes(text: &str) -> String {
    text.split_inclusive('\n').filter(|line| !line.starts_with("cause: ")).collect()
}

#[test]
fn the_pattern_matcher_can_fail() {
    assert!(matches("a 12 b\n", "a <int> b\n") && matches("try <x>\n", "try <x>\n") && matches("", ""));
    assert!(!matches("a 12 c\n", "a <int> b\n") && !matches("a 1\n2 b\n", "a <int> b\n") && !matches("ab", "a"));
}

#[test]
fn people_read_what_they_are_used_to() {
    let known = commands();
    let mut checked = 0;
    let mut different = std::collections::BTreeSet::new();
    for case in cases(include_str!("vectors/cli-human-output.json")) {
        let name = case["name"].as_str().unwrap().to_owned();
        let place = Place::new();
        let words = argv(&case, &place);
        let first = words.first().cloned().unwrap_or_default();
        let expected = (case["stdout"].as_str().unwrap_or_default(), case["stderr"].as_str().unwrap_or_default());
        // Processes, and messages from real peers, have tests of their own. A daemon started by other means is
        // running, whatever the PID file says.
        // More is told of a delivery than the recording shows; and commands that could never succeed (06 §24.33) do.
        let differs = (matches!(first.as_str(), "send-message" | "send-file") && case["exit_code"] == 0)
            || (matches!(first.as_str(), "register" | "rotate-key") && case["node"] != "n");
        if differs {
            different.insert(name.clone());
        }
        let elsewhere = differs
            || (first == "daemon" && case["node"] != "n")
            || name.contains("with connection")
            || expected.0.contains("Active connections")
            || (first == "recv" && !expected.0.is_empty())
            || first == "listen"
            // Events and tasks need a peer; see services.rs.
            || (matches!(first.as_str(), "subscribe" | "publish" | "task") && case["node"] != "n")
            || (first == "gateway" && case["node"] != "n")
            || matches!(first.as_str(), "register" | "rotate-key");
        if elsewhere
            || !(known.contains(&first) || first == "nosuch" || first.is_empty())
            || !case["exit_code"].is_i64()
        {
            continue;
        }
        if case["node"] != "n" {
            let name = match (first.as_str(), expected.0.lines().nth(1)) {
                ("pending", Some(line)) if line.starts_with('1') => "pending".to_owned(),
                ("trust", Some(line)) if line.starts_with('1') => "trust".to_owned(),
                ("trust", Some(line)) if line.starts_with('2') => "trust (requester side)".to_owned(),
                _ => name.clone(),
            };
            // In this recording, trust had ended before.
            let untrusted = name == "untrust 2";
            let refusal = || "handshake revoke: node 2 was not trusted".into();
            serve(&place, february(move |request| if untrusted { Some(refusal()) } else { changed(&name, request) }));
        }
        if name == "config after init" {
            for setting in ["registry=127.0.0.1:9000", "beacon=127.0.0.1:9001", "hostname=alice"] {
                place.run(&["config", "--set", setting]);
            }
        }
        support::prepare_mail(&name, &place);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let registry = if case["node"] == "n" { "127.0.0.1:1".to_owned() } else { support::february_registry("") };
        let mut variables = vec![("PILOT_REGISTRY", registry.as_str())];
        if name == "config" {
            variables.push(("PILOT_SOCKET", ""));
        }
        if first == "config" || first == "init" {
            variables.remove(0);
        }
        let run = place.run_with(&words, &variables, case["stdin"].as_str().map(str::as_bytes));
        assert_eq!(i64::from(run.code), case["exit_code"].as_i64().unwrap(), "{name}");
        let (mut stdout, stderr) = (here(expected.0, &place), here(expected.1, &place));
        if stdout == "line1\nline2\n" {
            // What is piped in is sent unchanged, so that its last line end comes back, too.
            stdout.push('\n');
            different.insert(name.clone());
        }
        // The visibility of bob is the daemon's affair.
        assert!(matches(&run.stdout, &stdout), "{name}: {:?} is not {stdout:?}", run.stdout);
        let said = without_causes(&run.stderr);
        assert!(matches(&said, &stderr), "{name}: {said:?} is not {stderr:?}");
        checked += 1;
    }
    assert!(checked >= 45, "only {checked} cases");
    compatibility::check("cli-human-output", different);
}

#[test]
fn help_explains_every_command_and_every_argument() {
    let place = Place::new();
    let usage = place.run(&["--help"]);
    assert_eq!((usage.code, usage.stderr.as_str()), (0, ""));
    for command in ["init", "daemon start", "ping", "connect", "recv", "bench", "demo", "version"] {
        assert!(usage.stdout.contains(&format!("  {command} ")), "{command}");
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = place.run(&words);
        assert!(
            help.code == 0 && help.stdout.contains(&format!("usage: pilotctl {command}")),
            "{command}: {}",
            help.stdout
        );
    }
    assert_eq!(place.run(&["version"]).stdout, format!("pilotctl {}\n", env!("CARGO_PKG_VERSION")));
    let version = place.run(&["--json", "--version"]).stdout;
    assert_eq!(version, format!("{{\"data\":{{\"version\":\"{}\"}},\"status\":\"ok\"}}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn causes_are_named() {
    let place = Place::new();
    serve(&place, february(|_| None));
    let run = place.run(&["connect", "bob", "5555", "--message", "x"]);
    assert_eq!(
        run.stderr,
        "resolved \"bob\" → 0:0000.0000.0002\n\
         error: cannot connect to 0:0000.0000.0002 port 5555\n\
         cause: dial: daemon: connection refused; nothing listens on that port of the peer\n\
         hint:  check that 0:0000.0000.0002 is reachable: pilotctl ping 0:0000.0000.0002\n"
    );
}

#[test]
fn a_long_answer_is_printed_whole() {
    let place = Place::new();
    serve(&place, february(|_| None));
    let long = "0123456789".repeat(2_000);
    assert_eq!(place.run(&["send", "bob", "7", "--data", &long]).stdout, format!("{long}\n"));
    let run = place.run(&["--json", "bench", "bob", "3"]);
    let result: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    assert_eq!((&result["data"]["recv_bytes"], &result["data"]["complete"]), (&(3 << 20).into(), &true.into()));
}

#[test]
fn a_bench_that_stops_early_fails_and_says_where() {
    // 07 §16 item 55.
    let place = Place::new();
    let daemon = february(|_| None);
    let left = std::sync::Mutex::new(3);
    serve(
        &place,
        std::sync::Arc::new(move |request, answer| match request {
            Request::Send { conn, .. } => {
                let mut left = left.lock().unwrap();
                if *left == 0 {
                    return answer(Answer::CloseOk { conn: *conn });
                }
                *left -= 1;
                daemon(request, answer);
            }
            _ => daemon(request, answer),
        }),
    );
    let run = place.run(&["--json", "bench", "bob", "1"]);
    assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{}", run.stderr);
    assert!(run.stderr.contains("of 1048576 bytes"), "{}", run.stderr);
}

#[test]
fn a_broken_configuration_is_reported_and_never_overwritten() {
    let place = Place::new();
    let path = place.home().join(".pilot/config.json");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    for broken in ["{\"registry\":", "[]", "\u{feff}{}"] {
        std::fs::write(&path, broken).unwrap();
        for words in [&["config"][..], &["init"], &["config", "--set", "a=b"], &["daemon", "start"]] {
            let run = place.run(words);
            assert_eq!(run.code, 1, "{words:?}");
            assert!(run.stderr.contains(path.to_str().unwrap()) && run.stderr.contains("hint:"), "{}", run.stderr);
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), broken);
    }
    std::fs::write(&path, "{\"socket\":5}").unwrap();
    let run = place.run_with(&["info"], &[("PILOT_SOCKET", "")], None);
    assert!(run.stderr.contains("\"socket\"") && run.stderr.contains("must be a text"), "{}", run.stderr);
}

#[test]
fn a_second_init_changes_only_what_it_is_told() {
    let place = Place::new();
    let first = ["init", "--registry", "reg.example:9000", "--beacon", "reg.example:9001", "--socket", "/run/pilot"];
    assert_eq!(place.run(&first).code, 0);
    place.run(&["config", "--set", "webhook=http://example.com"]);
    assert_eq!(place.run(&["init", "--hostname", "alice"]).code, 0);
    let text = std::fs::read_to_string(place.home().join(".pilot/config.json")).unwrap();
    assert_eq!(
        text,
        "{\n  \"beacon\": \"reg.example:9001\",\n  \"hostname\": \"alice\",\n  \"registry\": \"reg.example:9000\",\n  \
         \"socket\": \"/run/pilot\",\n  \"webhook\": \"http://example.com\"\n}\n"
    );
}

#[test]
fn exit_codes_are_zero_one_and_two() {
    let place = Place::new();
    for (words, code) in [
        (&["version"][..], 0),
        (&["help"], 0),
        (&["ping", "--help"], 0),
        (&["info"], 1),
        (&["ping", "bob", "--cuont", "3"], 1),
        (&["daemon", "status"], 0),
        (&["daemon", "status", "--check"], 1),
        (&["daemon"], 1),
        (&["daemon", "nonsense"], 1),
        (&[], 2),
        (&["nonsense"], 2),
        (&["--json"], 2),
        (&["--json", "nonsense"], 1),
        (&["--json", "help", "nonsense"], 1),
    ] {
        let run = place.run(words);
        assert_eq!(run.code, code, "{words:?}: {}{}", run.stdout, run.stderr);
        // In JSON mode every error is an object, wherever on the line the mistake is.
        if words.first() == Some(&"--json") && code == 1 {
            let error: serde_json::Value = serde_json::from_str(&run.stderr).unwrap();
            assert_eq!((&error["code"], &error["status"]), (&"invalid_argument".into(), &"error".into()));
        }
    }
    for words in [
        &["ping", "bob", "--cuont", "3"][..],
        &["ping"],
        &["send", "1", "70000", "--data", "x"],
        &["recv", "1", "--timeout", "soon"],
        &["daemon", "start", "--wait", "soon"],
        &["daemon", "status", "--check=maybe"],
        &["completions", "tcsh"],
        &["man", "nonsense"],
        &["info", "--format", "xml"],
    ] {
        let run = place.run(&[words, &["--json"]].concat());
        let error: serde_json::Value = serde_json::from_str(&run.stderr).unwrap_or_else(|_| panic!("{}", run.stderr));
        // Commands that need the daemon look for it first.
        assert!(matches!(error["code"].as_str(), Some("invalid_argument" | "not_running")), "{words:?}: {error}");
        assert_eq!((run.code, run.stdout.as_str()), (1, ""), "{words:?}");
    }
}
