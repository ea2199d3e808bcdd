//! Messages and files between real daemons: ours with each other, while they are killed, and with official releases.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::official::{Official, RELEASES, need_all};
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};
use serde_json::Value;

use super::TRUST_LIMIT;

/// Kills in the suite; `PILOT_KILLS` asks for more.
const KILLS: usize = 4;

fn two_of_ours() -> (RendezvousProcess, Agent, Agent) {
    let rendezvous = RendezvousProcess::start().expect("rendezvous");
    let options = |name: &str| AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
    let a = Agent::start(&ours(), &options("alice")).expect("daemon");
    let b = Agent::start(&ours(), &options("bob")).expect("daemon");
    make_trust(&a, &b, TRUST_LIMIT).expect("trust");
    (rendezvous, a, b)
}

fn write(agent: &Agent, name: &str, content: &[u8]) -> PathBuf {
    let path = agent.home().join(name);
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).expect("directory");
    }
    std::fs::write(&path, content).expect("file");
    path
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 251 + i) as u8).collect()
}

/// The texts of an inbox of ours.
fn texts(agent: &Agent) -> Vec<String> {
    let inbox = agent.ctl(&["inbox"]).expect("inbox");
    let messages = inbox["messages"].as_array().cloned().unwrap_or_default();
    messages.iter().map(|message| message["text"].as_str().expect("text").to_owned()).collect()
}

fn received(agent: &Agent) -> Vec<Value> {
    let received = agent.ctl(&["received"]).expect("received");
    received["files"].as_array().cloned().unwrap_or_default()
}

#[test]
fn two_of_ours_exchange_messages_files_and_directories() {
    isolated("mail::two_of_ours_exchange_messages_files_and_directories", &[need_programs], || {
        let (_rendezvous, a, b) = two_of_ours();
        let sent = a.ctl(&["send-message", "bob", "--data", "hello", "--message-id", "m-1"]).expect("send-message");
        assert_eq!((&sent["ack"], &sent["tagged"]), (&"ACK TEXT 5 bytes".into(), &true.into()), "{sent}");
        assert_eq!((&sent["target"], &sent["to"]), (&b.address().into(), &b.address().into()));
        let again = a.ctl(&["send-message", "bob", "--data", "hello", "--message-id", "m-1"]).expect("again");
        assert_eq!(again["duplicate"], true, "{again}");
        assert_eq!(texts(&b), ["hello"]);

        let content = pattern(3_000_000);
        let file = write(&a, "data.bin", &content);
        let sent = a.ctl(&["send-file", "bob", file.to_str().expect("path")]).expect("send-file");
        assert_eq!((&sent["transport"], &sent["verified"]), (&"filestream".into(), &true.into()), "{sent}");
        let files = received(&b);
        assert_eq!((files.len(), &files[0]["from"], &files[0]["sha256"]), (1, &a.address().into(), &sent["sha256"]));
        assert!(std::fs::read(files[0]["path"].as_str().expect("path")).expect("file") == content, "the file differs");

        write(&a, "project/src/main.rs", b"fn main() {}\n");
        write(&a, "project/README", b"read me\n");
        std::os::unix::fs::symlink("/etc/passwd", a.home().join("project/link")).expect("link");
        let project = a.home().join("project");
        let sent = a.ctl(&["send-file", "bob", project.to_str().expect("path")]).expect("directory");
        assert_eq!(sent["directory"], true, "{sent}");
        let path = received(&b).into_iter().find(|file| file["directory"] == true).expect("directory");
        let path = PathBuf::from(path["path"].as_str().expect("path"));
        assert_eq!(std::fs::read(path.join("src/main.rs")).expect("file"), b"fn main() {}\n");
        assert!(path.join("README").exists() && !path.join("link").exists());

        // Who waits gets the answer.
        let asking = a
            .command(&["--json", "send-message", "bob", "--data", "what?", "--message-id", "q-1", "--wait", "reply"])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .expect("ask");
        b.wait("the question", TRUST_LIMIT, |b| Ok(texts(b).contains(&"what?".to_owned()))).expect("question");
        b.ctl(&["send-message", "alice", "--data", "that", "--reply-to", "q-1"]).expect("reply");
        let answer = asking.wait_with_output().expect("answer");
        let answer: Value = serde_json::from_slice(&answer.stdout).expect("json");
        assert_eq!(answer["data"]["reply"]["text"], "that", "{answer}");

        let marked = b.ctl(&["inbox", "--mark-read", "--limit", "1"]).expect("mark");
        assert_eq!(
            (&marked["marked"], &marked["shown"], &marked["total"]),
            (&1.into(), &1.into(), &2.into()),
            "{marked}"
        );
        assert_eq!(b.ctl(&["inbox", "--clear"]).expect("clear")["cleared"], 2);
        assert_eq!(b.ctl(&["received", "--clear"]).expect("clear")["cleared"], 2);
        assert!(received(&b).is_empty());
    });
}

#[test]
fn what_is_acknowledged_survives_kills_and_what_has_an_id_is_there_once() {
    isolated("mail::what_is_acknowledged_survives_kills_and_what_has_an_id_is_there_once", &[need_programs], || {
        let kills = std::env::var("PILOT_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(KILLS);
        let (_rendezvous, mut a, mut b) = two_of_ours();
        let mut sent = 0;
        for kill in 0..kills {
            // Queued messages, so that the sender may be killed, too; three of them run at once.
            let mut running: Vec<_> = (0..3)
                .map(|i| {
                    let id = format!("k-{kill}-{i}");
                    let mut command =
                        a.command(&["--json", "send-message", "bob", "--queue", "--message-id", &id, "--data", &id]);
                    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
                    command.spawn().expect("send")
                })
                .collect();
            if kill % 2 == 0 {
                b.crash_and_restart().expect("restart");
            } else {
                // In the middle of what it is doing, at another point each time.
                std::thread::sleep(Duration::from_millis(kill as u64 * 7 % 40));
                a.crash_and_restart().expect("restart");
            }
            for (i, child) in running.drain(..).enumerate() {
                let accepted = child.wait_with_output().expect("end").status.success();
                if !accepted {
                    // In doubt: once more under the same id.
                    let id = format!("k-{kill}-{i}");
                    a.ctl(&["send-message", "bob", "--queue", "--message-id", &id, "--data", &id]).expect("again");
                }
                sent += 1;
            }
        }
        b.wait("every message", Duration::from_secs(300), |b| Ok(texts(b).len() >= sent)).expect("messages");
        a.wait("an empty outbox", Duration::from_secs(300), |a| Ok(a.ctl(&["outbox"])?["total"] == 0)).expect("outbox");
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for text in texts(&b) {
            *counts.entry(text).or_default() += 1;
        }
        assert_eq!(counts.len(), sent);
        assert!(counts.values().all(|count| *count == 1), "{counts:?}");
        println!("{kills} kills, {sent} messages, each there once");
    });
}

#[test]
fn official_releases_exchange_messages_and_files_with_ours() {
    isolated("mail::official_releases_exchange_messages_and_files_with_ours", &[need_programs, need_all], || {
        for version in RELEASES {
            let rendezvous = RendezvousProcess::start().expect("rendezvous");
            let options = |name: &str| AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
            let release = Official::obtain(version).expect("release").release();
            let theirs = Agent::start(&release, &options("theirs")).expect("official daemon");
            let ours = Agent::start(&ours(), &options("ours")).expect("our daemon");
            make_trust(&ours, &theirs, TRUST_LIMIT).expect("trust");
            let content = pattern(100_000);

            let sent = ours.ctl(&["send-message", theirs.address(), "--data", "from ours"]).expect("to official");
            assert_eq!(sent["ack"], "ACK TEXT 9 bytes", "{version}: {sent}");
            let knows_ids = matches!(version, "1.13.11" | "1.18.0");
            assert_eq!(sent["tagged"], knows_ids, "{version}: {sent}");
            let inbox = theirs.ctl(&["inbox"]).expect("their inbox");
            assert_eq!(inbox["messages"].as_array().map(Vec::len), Some(1), "{version}: {inbox}");
            assert!(inbox.to_string().contains("from ours"), "{version}: {inbox}");

            let file = write(&ours, "data.bin", &content);
            let sent =
                ours.ctl(&["send-file", theirs.address(), file.to_str().expect("path")]).expect("file to official");
            assert_eq!(sent["transport"], if knows_ids { "filestream" } else { "frame" }, "{version}: {sent}");
            let files = received(&theirs);
            let path = files[0]["path"].as_str().expect("path");
            assert!(std::fs::read(path).expect("file") == content, "{version}: the file differs");

            // Once more: what was learned of the peer is used.
            let sent = ours.ctl(&["send-message", theirs.address(), "--data", "{}", "--type", "json"]).expect("again");
            assert_eq!(
                (&sent["ack"], &sent["first_contact"]),
                (&"ACK JSON 2 bytes".into(), &false.into()),
                "{version}: {sent}"
            );
            assert_eq!(theirs.ctl(&["inbox"]).expect("their inbox")["messages"].as_array().map(Vec::len), Some(2));

            let sent = theirs.ctl(&["send-message", ours.address(), "--data", "from theirs"]).expect("from official");
            assert_eq!(sent["ack"], "ACK TEXT 11 bytes", "{version}: {sent}");
            assert_eq!(texts(&ours), ["from theirs"], "{version}");
            let file = write(&theirs, "data.bin", &content);
            let sent =
                theirs.ctl(&["send-file", ours.address(), file.to_str().expect("path")]).expect("file from official");
            let files = received(&ours);
            assert_eq!((files.len(), &files[0]["from"]), (1, &theirs.address().into()), "{version}: {sent}");
            assert!(
                std::fs::read(files[0]["path"].as_str().expect("path")).expect("file") == content,
                "{version}: differs"
            );
            println!("{version}: {sent}");
        }
    });
}

/// Megabytes (10^6 bytes) of the file in the suite; `PILOT_FILE_MB` asks for another size.
const FILE_MB: usize = 64;

/// What has come of a file that is not whole yet, bytes.
fn partial(agent: &Agent) -> u64 {
    let Ok(entries) = std::fs::read_dir(agent.home().join(".pilot/received/.partial")) else { return 0 };
    entries.flatten().filter_map(|entry| entry.metadata().ok()).map(|meta| meta.len()).max().unwrap_or_default()
}

#[test]
fn a_file_goes_on_where_it_was_when_its_receiver_is_killed() {
    isolated("mail::a_file_goes_on_where_it_was_when_its_receiver_is_killed", &[need_programs], || {
        let megabytes = std::env::var("PILOT_FILE_MB").ok().and_then(|n| n.parse().ok()).unwrap_or(FILE_MB);
        let (_rendezvous, a, mut b) = two_of_ours();
        let content = pattern(megabytes * 1_000_000);
        let file = write(&a, "large.bin", &content);
        let path = file.to_str().expect("path");
        let send = || {
            let mut command = a.command(&["--json", "send-file", "bob", path, "--message-id", "large-1"]);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().expect("send-file")
        };
        let mut first = send();
        let third = content.len() as u64 / 3;
        let (mut over, started) = (false, std::time::Instant::now());
        while partial(&b) < third && !over {
            assert!(started.elapsed() < TRUST_LIMIT, "a third of the file has not arrived");
            over = first.try_wait().expect("wait").is_some();
            std::thread::sleep(Duration::from_millis(2));
        }
        let before = partial(&b);
        b.crash_and_restart().expect("restart");
        let first = first.wait_with_output().expect("end");
        // Either it went on by itself, or it said that the file is not there; silence is no answer.
        if !first.status.success() {
            let told = String::from_utf8_lossy(&first.stderr);
            let error: Value = serde_json::from_str(told.lines().last().expect("an error")).expect("json");
            assert_eq!(error["status"], "error", "{told}");
        }
        let second = send().wait_with_output().expect("end");
        assert!(second.status.success(), "{}", String::from_utf8_lossy(&second.stderr));
        let sent: Value = serde_json::from_slice(&second.stdout).expect("json");
        if !over && !first.status.success() {
            // At least what was synced before the kill need not be sent again.
            assert!(
                sent["data"]["bytes_resumed"].as_u64().is_some_and(|bytes| bytes > 0),
                "{before} were there: {sent}"
            );
        }
        let files = received(&b);
        assert_eq!(files.len(), 1, "{files:?}");
        assert!(std::fs::read(files[0]["path"].as_str().expect("path")).expect("file") == content, "the file differs");
        println!("{megabytes} MB, killed at {before} bytes: {}", sent["data"]);
    });
}

#[test]
fn a_hook_is_run_for_each_message_with_its_particulars() {
    use std::os::unix::fs::PermissionsExt as _;
    isolated("mail::a_hook_is_run_for_each_message_with_its_particulars", &[need_programs], || {
        let place = tempfile::tempdir().expect("directory");
        let (hook, told) = (place.path().join("hook"), place.path().join("told"));
        // What a peer chooses reaches the program as data, never as words of a shell.
        let script = format!(
            "#!/bin/sh\ntext=$(cat)\n\
             printf '%s|%s|%s|%s|%s\\n' \"$PILOT_EVENT\" \"$PILOT_TYPE\" \"$PILOT_BYTES\" \"$PILOT_MESSAGE_ID\" \"$text\" >>'{}'\n",
            told.display()
        );
        std::fs::write(&hook, script).expect("hook");
        std::fs::set_permissions(&hook, std::fs::Permissions::from_mode(0o700)).expect("mode");
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let options = |name: &str| AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
        let a = Agent::start(&ours(), &options("alice")).expect("daemon");
        let with_hook = options("bob").flag("-inbox-hook").flag(hook.to_str().expect("path"));
        let b = Agent::start(&ours(), &with_hook).expect("daemon");
        make_trust(&a, &b, TRUST_LIMIT).expect("trust");
        a.ctl(&["send-message", "bob", "--data", "$(id); `id` && id", "--message-id", "h-1"]).expect("send");
        a.ctl(&["send-message", "bob", "--data", "{\"n\":2}", "--type", "json", "--message-id", "h-2"]).expect("send");
        let lines = || {
            let text = std::fs::read_to_string(&told).unwrap_or_default();
            let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        b.wait("both runs of the hook", TRUST_LIMIT, |_| Ok(lines().len() >= 2)).expect("runs");
        assert_eq!(
            lines(),
            ["message.received|json|7|h-2|{\"n\":2}", "message.received|text|17|h-1|$(id); `id` && id"],
        );
        assert_eq!(texts(&b).len(), 2);
    });
}
