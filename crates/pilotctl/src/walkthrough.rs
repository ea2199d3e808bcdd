//! The walk-through of `CONTRIBUTING.md` holds: what it quotes stands in the files of `examples/ping/`, and the service runs
//! between two nodes, with its command in the command table.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use example_ping::Service as _;
use example_ping::ping::Ping;
use pilot_testkit::testnet::TestNet;
use serde_json::Value;

/// Set in the child that is `pilotctl` with the command of the walk-through: its words, separated by spaces.
const WORDS: &str = "WALKTHROUGH_WORDS";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The Rust blocks of the walk-through, without what indents them, and the text before each.
fn quotes(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let (mut before, mut block): (String, Option<String>) = (String::new(), None);
    for line in text.lines() {
        match (&mut block, line.trim()) {
            (None, "```rust") => block = Some(String::new()),
            (None, _) => before.push_str(line),
            (Some(quoted), "```") => {
                found.push((before.clone(), std::mem::take(quoted)));
                block = None;
            }
            (Some(quoted), _) => {
                quoted.push_str(line.strip_prefix("   ").unwrap_or(line));
                quoted.push('\n');
            }
        }
    }
    found
}

#[test]
fn what_the_walk_through_quotes_is_what_is_built() {
    let text = read("CONTRIBUTING.md");
    let (_, text) = text.split_once("## Adding a service").expect("the walk-through");
    let quotes = quotes(text);
    assert_eq!(quotes.len(), 3, "{quotes:?}");
    // Lines inside a function are indented in the file and not in the quote.
    let flat = |text: &str| text.lines().map(str::trim).collect::<Vec<_>>().join("\n");
    for (before, quoted) in &quotes {
        // The last file named before it.
        let name = ["examples/ping/src/ping.rs", "examples/ping/pilotctl/ping1004.rs"];
        let name = name.into_iter().max_by_key(|name| before.rfind(name)).expect("a file");
        assert!(
            flat(&read(name)).contains(&flat(quoted)),
            "{name} does not hold what CONTRIBUTING.md quotes:\n{quoted}"
        );
    }
    // The places it names, and the lines that make the example stand in them.
    for (path, line) in [
        ("crates/pilot-services/src/lib.rs", "pub fn builtin()"),
        ("crates/pilotctl/src/commands/mod.rs", "pub(crate) mod ping1004;"),
        ("crates/pilotctl/src/table.rs", "&commands::ping1004::COMMAND,"),
        ("examples/ping/pilotctl/ping1004.rs", "use example_ping::ping::{PORT, ask};"),
    ] {
        assert!(read(path).contains(line), "{path}: {line}");
    }
    for named in ["crates/pilot-services/src/ping.rs", "crates/pilotctl/src/commands/ping1004.rs", "tests/services/"] {
        assert!(text.contains(named), "{named}");
    }
    assert!(text.contains(&format!("port {}", Ping.port())) || text.contains("port\n1004"), "the port");
    // It moves to the crate of the services as it is: there, too, `crate` holds these names.
    let service = read("examples/ping/src/ping.rs");
    assert!(service.contains("use crate::{Context, Service, Serving, Stream};"));
    assert!(!service.contains("example_ping"));
}

/// Not a test of its own: what the child below runs.
#[test]
fn the_command_as_a_process() {
    let Ok(words) = std::env::var(WORDS) else { return };
    let mut words: Vec<String> = words.split(' ').map(str::to_owned).collect();
    let out = crate::printer::Printer::new(crate::args::take_json(&mut words));
    if let Err(error) = crate::dispatch(out, &words) {
        out.error(&error);
        std::process::exit(1);
    }
}

/// Runs the command line with the command of the walk-through; exit code, and both outputs.
fn pilotctl(net: &TestNet, words: &str) -> (i32, String, String) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "walkthrough::the_command_as_a_process", "--nocapture"]);
    let home = tempfile::tempdir().unwrap();
    child.env(WORDS, words).env("PILOT_SOCKET", net.socket(0)).env("HOME", home.path());
    let output = child.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_service_runs_between_two_nodes_and_answers_in_json() {
    let mut net = TestNet::new(1).await.unwrap();
    let offers = net.add(|config| config.services.push(Arc::new(Ping))).await.unwrap();
    let stranger = net.add(|config| config.services.push(Arc::new(Ping))).await.unwrap();
    net.befriend(0, offers).await.unwrap();
    let run = |words: String| {
        let net = &net;
        tokio::task::block_in_place(move || pilotctl(net, &words))
    };
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let peer = net.node(offers).address();
    let (code, stdout, stderr) = run(format!("--json ping1004 {peer} --timeout 60s"));
    assert_eq!(code, 0, "{stdout} {stderr}");
    let line = stdout.lines().find(|line| line.starts_with('{')).expect("a line of JSON");
    let answer: Value = serde_json::from_str(line).unwrap();
    let data = answer["data"].as_object().unwrap();
    assert_eq!((data.len(), &data["target"]), (3, &Value::from(peer.to_string())), "{line}");
    let received_at = pilot_wire::time::parse_rfc3339(data["received_at"].as_str().unwrap()).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    assert!(before <= received_at && received_at <= now, "{before:?} {received_at:?} {now:?}");
    let latency = u128::from(data["latency_ns"].as_u64().unwrap());
    assert!(latency > 0 && latency < (now - before).as_nanos(), "{latency}");

    let (code, stdout, _) = run(format!("ping1004 {peer}"));
    assert!(code == 0 && stdout.contains(&format!("{peer} received it at 2")), "{stdout}");
    let (code, stdout, stderr) = run(format!("--json ping1004 {}", net.node(stranger).address()));
    assert!(
        code == 1 && stderr.contains("\"code\":\"connection_failed\"") && stderr.contains("\"hint\""),
        "{stdout} {stderr}"
    );
    let (code, stdout, _) = run("help ping1004".to_owned());
    assert!(code == 0 && stdout.contains("usage: pilotctl ping1004 <address|hostname> [--timeout <dur>]"), "{stdout}");
    net.shutdown().await;
}
