//! A `~/.pilot` that an official daemon has used is used by ours as it is, and by the official one again afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use pilot_testkit::agent::{Agent, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::official::{NEWEST, Official, need_newest};
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours, program};
use serde_json::{Value, json};

use super::placement::Running;
use super::{PATIENCE, eventually, options, read, start};

/// Files that belong to the user and to newer official daemons, and that no takeover may touch.
const FOREIGN: [(&str, &str); 9] = [
    (
        "config.json",
        "{\n  \"hostname\": \"taken\",\n  \"telemetry\": {\"level\": 3},\n  \"motd-feed-url\": \"\",\n  \"x-own\": [1, 2]\n}\n",
    ),
    ("account.json", "{\n  \"email\": \"taken@example.com\"\n}"),
    ("consent.json", "{\"telemetry\":false,\"at\":\"2026-01-02T03:04:05Z\"}"),
    ("motd.json", "{\"text\":\"\"}"),
    ("update-state.json", "{\"channel\":\"stable\"}"),
    ("apps/notes/app.json", "{\"name\":\"notes\"}"),
    ("received/.partial/0123", "half a file"),
    ("received/report-20260102-030405.006.pdf", "%PDF-1.4"),
    (
        "inbox/TEXT-20260102-030405.006.json",
        "{\"bytes\":9,\"data\":\"hello bob\",\"from\":\"0:0000.0000.0001\",\"received_at\":\"2026-01-02T03:04:05Z\",\"type\":\"TEXT\"}",
    ),
];

fn add_foreign_files(pilot: &Path) {
    for (name, text) in FOREIGN {
        let path = pilot.join(name);
        fs::create_dir_all(path.parent().expect("directory")).expect("directory");
        fs::write(path, text).expect("write");
    }
}

fn check_foreign_files(pilot: &Path) {
    check_foreign_files_but_config(pilot);
    assert_eq!(read(&pilot.join("config.json")), FOREIGN[0].1);
}

fn check_foreign_files_but_config(pilot: &Path) {
    for (name, text) in FOREIGN.iter().filter(|(name, _)| *name != "config.json") {
        assert_eq!(read(&pilot.join(name)), *text, "{name}");
    }
}

/// Who wrote the messages that the agent's own tool shows.
fn senders(agent: &Agent) -> Vec<String> {
    let inbox = agent.ctl(&["inbox"]).expect("inbox");
    let messages = inbox["messages"].as_array().unwrap_or_else(|| panic!("{inbox}"));
    let mut from: Vec<String> = messages.iter().filter_map(|m| m["from"].as_str().map(str::to_owned)).collect();
    from.sort();
    from
}

fn trust_file(pilot: &Path) -> Value {
    serde_json::from_str(&read(&pilot.join("trust.json"))).expect("trust.json")
}

/// What a newer daemon may have written that ours has no use for.
fn add_unknown_fields(pilot: &Path, trusted: u32) {
    let mut file = trust_file(pilot);
    let entry = file["trusted"].as_array_mut().expect("trusted").iter_mut().find(|entry| entry["node_id"] == trusted);
    entry.expect("the peer")["nickname"] = json!("bob");
    file["pending"] = json!([{
        "node_id": 77_777, "public_key": "", "justification": "let me in", "received_at": "2099-01-02T03:04:05Z",
        "source": 77_777, "hops": 2
    }]);
    file["revoked"] = json!([{ "node_id": 88_888, "until": "2099-01-02T03:04:05Z", "why": "noise" }]);
    file["outgoing"] = json!([{ "node_id": 66_666, "sent_at": "2099-01-02T03:04:05Z", "tries": 3 }]);
    file["schema"] = json!(7);
    fs::write(pilot.join("trust.json"), file.to_string()).expect("write");
}

fn check_unknown_fields(pilot: &Path, trusted: u32) {
    let file = trust_file(pilot);
    let find = |list: &str, node: u32| {
        let entries = file[list].as_array().unwrap_or_else(|| panic!("no {list} in {file}"));
        entries.iter().find(|entry| entry["node_id"] == node).unwrap_or_else(|| panic!("no {node} in {file}")).clone()
    };
    assert_eq!(find("trusted", trusted)["nickname"], "bob");
    let pending = find("pending", 77_777);
    assert_eq!((&pending["source"], &pending["hops"]), (&77_777.into(), &2.into()));
    let revoked = find("revoked", 88_888);
    assert_eq!((&revoked["until"], &revoked["why"]), (&"2099-01-02T03:04:05Z".into(), &"noise".into()));
    let outgoing = find("outgoing", 66_666);
    assert_eq!((&outgoing["sent_at"], &outgoing["tries"]), (&"2099-01-02T03:04:05Z".into(), &3.into()));
    assert_eq!(file["schema"], 7);
}

fn trusted_keys(agent: &Agent) -> BTreeMap<u64, String> {
    let trust = agent.ctl(&["trust"]).expect("trust");
    let entries = trust["trusted"].as_array().cloned().unwrap_or_default();
    let pair = |entry: Value| {
        (entry["node_id"].as_u64().expect("node_id"), entry["public_key"].as_str().unwrap_or_default().to_owned())
    };
    entries.into_iter().map(pair).collect()
}

fn echo(from: &Agent, to: &Agent, text: &str) {
    let answer = from.ctl(&["connect", to.address(), "7", "--message", text, "--timeout", "60s"]).expect("connect");
    assert_eq!(answer["response"], text);
}

#[test]
fn from_official_1_18_0_to_ours_and_back() {
    isolated("takeover::from_official_1_18_0_to_ours_and_back", &[need_programs, need_newest], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let official = Official::obtain(NEWEST).expect("release").release();
        let friend = start(&rendezvous, "friend", &[]);
        let later = start(&rendezvous, "later", &[]);
        let mut taken = Agent::start(&official, &options(&rendezvous, "taken")).expect("official daemon");
        make_trust(&taken, &friend, PATIENCE).expect("trust");
        echo(&friend, &taken, "to the official one");
        let (node, address) = (taken.node(), taken.address().to_owned());
        let trusted = trusted_keys(&taken);
        let pilot = taken.home().join(".pilot");
        let identity = read(&pilot.join("identity.key"));
        taken.terminate(PATIENCE).expect("end");
        let left_behind: Vec<_> = fs::read_dir(&pilot).expect("directory").flatten().map(|e| e.file_name()).collect();
        println!("official {NEWEST} left {left_behind:?}");
        add_foreign_files(&pilot);
        add_unknown_fields(&pilot, friend.node());

        taken.take_over(&ours()).expect("our daemon on its home");
        assert_eq!((taken.node(), taken.address()), (node, address.as_str()));
        assert_eq!(trusted_keys(&taken), trusted);
        assert_eq!(taken.ctl(&["info"]).expect("info")["hostname"], "taken");
        let pending = taken.ctl(&["pending"]).expect("pending");
        assert_eq!(pending["pending"][0]["node_id"], 77_777, "{pending}");
        echo(&friend, &taken, "to ours");
        echo(&taken, &friend, "from ours");
        let old = "0:0000.0000.0001".to_owned();
        assert_eq!(senders(&taken), std::slice::from_ref(&old));
        friend.ctl(&["send-message", taken.address(), "--data", "to ours"]).expect("send-message");
        assert_eq!(senders(&taken).len(), 2);
        // New trust writes the file anew.
        make_trust(&later, &taken, PATIENCE).expect("trust");
        check_unknown_fields(&pilot, friend.node());
        check_foreign_files(&pilot);
        assert_eq!(read(&pilot.join("identity.key")), identity);
        assert!(taken.terminate(PATIENCE).expect("end").success());
        check_unknown_fields(&pilot, friend.node());

        taken.take_over(&official).expect("the official daemon again");
        assert_eq!((taken.node(), taken.address()), (node, address.as_str()));
        let after = trusted_keys(&taken);
        assert!(
            after.contains_key(&u64::from(friend.node())) && after.contains_key(&u64::from(later.node())),
            "{after:?}"
        );
        echo(&friend, &taken, "to the official one again");
        let mut both = [old, friend.address().to_owned()];
        both.sort();
        assert_eq!(senders(&taken), both);
        check_foreign_files(&pilot);
        assert_eq!(read(&pilot.join("identity.key")), identity);
    });
}

#[test]
fn an_identity_that_an_official_daemon_uses_is_left_to_it() {
    let name = "takeover::an_identity_that_an_official_daemon_uses_is_left_to_it";
    isolated(name, &[need_programs, need_newest], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let official = Official::obtain(NEWEST).expect("release").release();
        let mut running = Agent::start(&official, &options(&rendezvous, "running")).expect("official daemon");
        let identity = running.home().join(".pilot/identity.key");
        let ours = |flags: &[&str], dir: &Path| {
            let mut command = Command::new(program("pilot-daemon"));
            command.args(["-registry", "127.0.0.1:9000", "-beacon", "", "-listen", "127.0.0.1:0"]).current_dir(dir);
            command.arg("-socket").arg(dir.join("other.sock")).args(flags);
            command.output().expect("daemon")
        };
        let dir = tempfile::tempdir().expect("directory");
        // Named in another way, it is the same file.
        std::os::unix::fs::symlink(running.home().join(".pilot"), dir.path().join("link")).expect("link");
        let absolute = format!("-identity={}", identity.display());
        for flags in [&[absolute.as_str()][..], &["-identity", "link/identity.key"]] {
            let output = ours(flags, dir.path());
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            let expected = format!("is in use by another node (pid {})", running.pid());
            assert!(said.contains(&expected) && said.contains("hint:"), "{said}");
        }
        assert!(running.is_alive());
        assert_eq!(running.ctl(&["info"]).expect("info")["node_id"], running.node());
    });
}

/// The newest official daemon on a home, until it answers with its id.
fn official_on(home: &Path, identity: &Path, rendezvous: &RendezvousProcess) -> (Running, Value) {
    let official = Official::obtain(NEWEST).expect("release").release();
    let (registry, beacon) = (rendezvous.registry().to_string(), rendezvous.beacon().to_string());
    let socket = home.join("official.sock");
    let command = |program: &Path| {
        let mut command = Command::new(program);
        command.env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin").env("PILOT_NO_SKILLINJECT", "1");
        command.env("PILOT_SOCKET", &socket).stdin(std::process::Stdio::null());
        command
    };
    let mut daemon = command(&official.daemon);
    daemon.args(["-registry", &registry, "-beacon", &beacon, "-listen", "127.0.0.1:0", "-email", "taken@example.com"]);
    daemon.arg("-socket").arg(&socket).arg("-identity").arg(identity).args(official.quiet_flags);
    let running = Running(daemon.spawn().expect("official daemon"));
    let info = eventually("the official daemon", || {
        let output = command(&official.ctl).args(["--json", "info"]).output().expect("pilotctl");
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        (answer["data"]["node_id"].as_u64()? != 0).then(|| answer["data"].clone())
    });
    (running, info)
}

/// What an installer of February has laid out (06 §13), byte for byte where the vectors show it.
#[test]
fn from_the_layout_of_february_to_ours_and_to_official_1_18_0() {
    let name = "takeover::from_the_layout_of_february_to_ours_and_to_official_1_18_0";
    isolated(name, &[need_programs, need_newest], || {
        let vectors: Value = serde_json::from_str(include_str!("../vectors/february-home.json")).expect("vectors");
        let text = |name: &str| vectors[name].as_str().unwrap_or_else(|| panic!("no {name}")).to_owned();
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let home = tempfile::tempdir().expect("home");
        let pilot = home.path().join(".pilot");
        add_foreign_files(&pilot);
        let identity = pilot.join("identity.json");
        fs::write(&identity, text("identity.json")).expect("write");
        fs::write(pilot.join("trust.json"), text("trust.json")).expect("write");
        let config = json!({
            "registry": rendezvous.registry().to_string(), "beacon": rendezvous.beacon().to_string(),
            "socket": home.path().join("pilot.sock"), "encrypt": true, "identity": identity, "x-own": {"kept": [1, 2]},
        });
        let config = format!("{config:#}\n");
        fs::write(pilot.join("config.json"), &config).expect("write");
        let ctl = |words: &[&str]| {
            let output = Command::new(program("pilotctl"))
                .env_clear()
                .env("HOME", home.path())
                .arg("--json")
                .args(words)
                .output()
                .expect("pilotctl");
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{words:?}: {said}");
            let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            answer["data"].clone()
        };
        let started = ctl(&["daemon", "start", "--listen", "127.0.0.1:0"]);
        let info = ctl(&["info"]);
        assert_eq!(info["public_key"], vectors["public_key"], "{info}");
        // It was laid out for everybody to read, and official daemons refuse such a key.
        assert_eq!(fs::metadata(&identity).expect("identity").permissions().mode() & 0o777, 0o600);
        assert!(!pilot.join("identity.key").exists(), "no second identity beside the installer's");
        let mut nodes: Vec<u64> = Vec::new();
        for entry in ctl(&["trust"])["trusted"].as_array().expect("trusted") {
            nodes.push(entry["node_id"].as_u64().expect("node_id"));
        }
        assert_eq!(json!(nodes), vectors["trusted_nodes"]);
        assert_eq!(ctl(&["daemon", "status"])["responsive"], true);
        ctl(&["daemon", "stop"]);
        assert_eq!(read(&identity), text("identity.json"));
        assert_eq!(read(&pilot.join("trust.json")), text("trust.json"), "nothing changed, so nothing is written");
        assert_eq!(read(&pilot.join("config.json")), config);
        // The same key has the same address.
        assert_eq!(ctl(&["daemon", "start", "--listen", "127.0.0.1:0"])["address"], started["address"]);
        // A command that writes the configuration keeps what it does not know.
        ctl(&["set-hostname", "february"]);
        let written: Value = serde_json::from_str(&read(&pilot.join("config.json"))).expect("config.json");
        assert_eq!((&written["x-own"]["kept"], &written["encrypt"]), (&json!([1, 2]), &true.into()), "{written}");
        // The log is the daemon's own, and says so at its start.
        assert!(read(&pilot.join("pilot.log")).contains("msg=\"daemon started\""));
        ctl(&["daemon", "stop"]);
        let (_running, info) = official_on(home.path(), &identity, &rendezvous);
        assert_eq!((&info["address"], &info["public_key"]), (&started["address"], &vectors["public_key"]), "{info}");
        check_foreign_files_but_config(&pilot);
    });
}
