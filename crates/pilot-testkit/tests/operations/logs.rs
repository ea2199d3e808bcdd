//! What the daemon logs, and what it must never log.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use pilot_testkit::agent::{Agent, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs};
use rustix::process::Signal;
use serde_json::Value;

use super::{PATIENCE, eventually, read, start};

/// A text that an agent sends and no log may repeat.
const PAYLOAD: &str = "the-payload-that-nobody-may-see";

/// Every word of the text that is an IP address.
fn addresses(text: &str) -> Vec<String> {
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '.' | ':' | '_');
    let words = text.split(|c: char| !is_part(c)).flat_map(|word| {
        let without_port = word.rsplit_once(':').map_or(word, |(host, _)| host);
        [word.trim_end_matches(['.', ':']), without_port]
    });
    words.filter(|word| word.parse::<IpAddr>().is_ok_and(|ip| !ip.is_unspecified())).map(str::to_owned).collect()
}

fn secrets(agent: &Agent) -> Vec<String> {
    let identity = read(&agent.home().join(".pilot/identity.key"));
    let identity: Value = serde_json::from_str(&identity).expect("identity");
    let private = identity["private_key"].as_str().expect("private key").to_owned();
    vec![private[..40].to_owned(), private, PAYLOAD.to_owned()]
}

fn log_file(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.log"))
}

#[test]
fn nothing_private_is_logged_at_info_and_lines_are_whole() {
    let name = "logs::nothing_private_is_logged_at_info_and_lines_are_whole";
    isolated(name, &[need_programs], || {
        let logs = tempfile::tempdir().expect("directory");
        let mut rendezvous = RendezvousProcess::start().expect("rendezvous");
        let agent = |name: &str, level: &str, format: &str| {
            let file = log_file(logs.path(), name);
            let flags = ["-log-level", level, "-log-format", format, "-log-file", file.to_str().expect("path")];
            start(&rendezvous, name, &flags)
        };
        let mut quiet = agent("quiet", "info", "json");
        let loud = agent("loud", "debug", "text");
        let stranger = agent("stranger", "info", "text");
        make_trust(&quiet, &loud, PATIENCE).expect("trust");
        quiet.ctl(&["connect", loud.address(), "7", "--message", PAYLOAD]).expect("connect");
        loud.ctl(&["connect", quiet.address(), "7", "--message", PAYLOAD]).expect("connect");
        loud.ctl(&["bench", quiet.address(), "1"]).expect("bench");
        // A refusal, a crash and a registry that goes: what is logged about them names addresses most easily.
        assert!(stranger.ctl(&["connect", loud.address(), "7", "--message", PAYLOAD, "--timeout", "5s"]).is_err());
        quiet.crash_and_restart().expect("restart");
        quiet.ctl(&["connect", loud.address(), "7", "--message", PAYLOAD]).expect("connect");
        quiet.ctl(&["untrust", &loud.node_text()]).expect("untrust");
        rendezvous.kill().expect("kill");
        let file = log_file(logs.path(), "quiet");
        let marks = || read(&file).matches("not registered").count();
        let before = marks();
        // It is up again as soon as it knows its own address from its memory, and has no registry.
        quiet.crash_and_restart().expect("restart");
        eventually("the loss of the registry in the log", || (marks() > before).then_some(()));
        quiet.terminate(PATIENCE).expect("stop");

        let text = read(&file);
        assert_eq!(addresses(&text), Vec::<String>::new(), "{text}");
        assert_eq!(addresses(&read(&log_file(logs.path(), "stranger"))), Vec::<String>::new());
        let mut messages = Vec::new();
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}"));
            assert!(line["time"].is_string() && line["target"].is_string(), "{line}");
            assert!(["INFO", "WARN", "ERROR"].contains(&line["level"].as_str().expect("level")), "{line}");
            messages.push(line["msg"].as_str().expect("msg").to_owned());
        }
        for message in ["daemon started", "registered", "stopped"] {
            assert!(messages.iter().any(|m| m == message), "no {message:?} in {messages:?}");
        }
        // At debug addresses are there, secrets and payloads never.
        let debug = read(&log_file(logs.path(), "loud"));
        assert!(addresses(&debug).contains(&"127.0.0.1".to_owned()), "{debug}");
        for line in debug.lines().filter(|line| !line.contains("level=DEBUG")) {
            assert_eq!(addresses(line), Vec::<String>::new(), "{line}");
        }
        for name in ["quiet", "loud", "stranger"] {
            let text = read(&log_file(logs.path(), name));
            assert!(!text.is_empty());
            for secret in [secrets(&quiet), secrets(&loud), secrets(&stranger)].concat() {
                assert!(!text.contains(&secret), "{name} logged {secret}");
            }
        }
    });
}

#[test]
fn settings_are_read_again_and_a_log_that_was_moved_is_begun_anew() {
    let name = "logs::settings_are_read_again_and_a_log_that_was_moved_is_begun_anew";
    isolated(name, &[need_programs], || {
        let dir = tempfile::tempdir().expect("directory");
        let (config, log) = (dir.path().join("daemon.json"), dir.path().join("daemon.log"));
        let write = |text: &str| fs::write(&config, text).expect("write");
        write(r#"{"public-ports": "7"}"#);
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let paths = (config.to_str().expect("path"), log.to_str().expect("path"));
        let flags = ["-config", paths.0, "-log-file", paths.1, "-log-max-mb", "1", "-log-keep", "1"];
        let mut agent = start(&rendezvous, "a", &flags);
        let info = |agent: &Agent| agent.ctl(&["info"]).expect("info");
        assert_eq!(info(&agent)["public_ports"], serde_json::json!([7]));

        write(r#"{"public-ports": "7,1000", "public": true, "keepalive": "45s"}"#);
        fs::rename(&log, dir.path().join("taken.log")).expect("move");
        agent.signal(Signal::HUP).expect("signal");
        eventually("the reload", || read(&log).contains("msg=reloaded").then_some(()));
        let text = read(&log);
        assert!(text.contains("changed=public,public-ports"), "{text}");
        let named = text.lines().find(|line| line.contains("only when the daemon is restarted")).expect("a warning");
        assert!(named.contains("settings=keepalive"), "{named}");
        assert_eq!(info(&agent)["public_ports"], serde_json::json!([7, 1000]));
        assert_eq!(info(&agent)["public"], true);

        // A file that cannot be read changes nothing, and says why.
        write("{ nonsense");
        agent.signal(Signal::HUP).expect("signal");
        eventually("the refusal", || read(&log).contains("nothing was changed").then_some(()));
        assert_eq!(info(&agent)["public_ports"], serde_json::json!([7, 1000]));
        agent.terminate(PATIENCE).expect("stop");
    });
}
