//! The demonstration succeeds, and leaves no process and no directory behind, however it ends.

#![allow(clippy::disallowed_methods)]

mod support;

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::{Place, eventually};

/// The command, with a temporary directory of its own in which everything it makes can be seen.
fn demo(place: &Place, arguments: &[&str]) -> (Command, PathBuf) {
    let temporary = place.dir.path().join("tmp");
    std::fs::create_dir_all(&temporary).unwrap();
    let mut command = place.command();
    command.arg("demo").args(arguments).env("TMPDIR", &temporary).stdout(Stdio::piped()).stderr(Stdio::piped());
    (command, temporary)
}

/// Processes that were started with this temporary directory, by what `/proc` has of them in `file`.
fn processes_in(directory: &Path, file: &str) -> Vec<String> {
    let needle = directory.to_str().unwrap();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let texts = entries.filter_map(|entry| std::fs::read(entry.path().join(file)).ok());
    texts.map(|text| String::from_utf8_lossy(&text).replace('\0', " ")).filter(|text| text.contains(needle)).collect()
}

/// Whether the network is up: a daemon's command line names its socket.
fn a_daemon_runs(temporary: &Path) -> bool {
    !processes_in(temporary, "cmdline").is_empty()
}

/// The rendezvous and the daemons have the directory in their environment.
fn children(temporary: &Path) -> Vec<String> {
    processes_in(temporary, "environ")
}

fn nothing_is_left(temporary: &Path) {
    assert_eq!(children(temporary), Vec::<String>::new());
    let left: Vec<_> = std::fs::read_dir(temporary).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(left, Vec::<PathBuf>::new());
}

#[test]
fn the_demonstration_sends_a_message_and_a_file() {
    let place = Place::new();
    let file = place.dir.path().join("some file.bin");
    let data: Vec<u8> = (0..3_000_001u32).map(|i| (i * 7 + i / 255) as u8).collect();
    std::fs::write(&file, &data).unwrap();
    let (mut command, temporary) = demo(&place, &["--json", "--message", "hi <bob>", "--file", file.to_str().unwrap()]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "one object: {text}");
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["status"], "ok");
    let data_of = &value["data"];
    assert_eq!(data_of["message"]["text"], "hi <bob>");
    assert_eq!((&data_of["file"]["bytes"], &data_of["file"]["identical"]), (&data.len().into(), &true.into()));
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &data);
    let hash: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        (&data_of["file"]["sender_sha256"], &data_of["file"]["receiver_sha256"]),
        (&hash.clone().into(), &hash.into())
    );
    let tunnel = data_of["tunnel"].as_array().unwrap();
    assert_eq!(tunnel.len(), 2);
    for side in tunnel {
        assert_eq!((&side["state"]["encrypted"], &side["state"]["authenticated"]), (&true.into(), &true.into()));
    }
    nothing_is_left(&temporary);
}

#[test]
fn an_empty_file_and_a_missing_one() {
    let place = Place::new();
    let (mut command, temporary) = demo(&place, &["--file", "/dev/null"]);
    let output = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stderr}");
    // SHA-256 of nothing, said by both sides.
    assert_eq!(
        stdout.matches("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855").count(),
        2,
        "{stdout}"
    );
    nothing_is_left(&temporary);
    let (mut command, temporary) = demo(&place, &["--json", "--file", "/nonexistent/file"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("file not found: /nonexistent/file"));
    nothing_is_left(&temporary);
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

#[test]
fn ctrl_c_cleans_up_at_any_moment() {
    let place = Place::new();
    let (mut command, temporary) = demo(&place, &[]);
    let mut child = command.spawn().unwrap();
    eventually("a daemon runs", || a_daemon_runs(&temporary));
    signal(child.id(), "-INT");
    assert_eq!(child.wait().unwrap().code(), Some(130));
    nothing_is_left(&temporary);
}

#[test]
fn a_kept_network_lives_until_ctrl_c_and_its_commands_work() {
    let place = Place::new();
    let (mut command, temporary) = demo(&place, &["--json", "--keep", "--file", "/dev/null"]);
    let mut child = command.spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let value: Value = serde_json::from_str(&line).unwrap_or_else(|_| {
        let mut text = String::new();
        let _ = child.stderr.take().unwrap().read_to_string(&mut text);
        panic!("{line:?} {text}")
    });
    let commands: Vec<&str> = value["data"]["commands"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    let ping = commands.iter().find(|command| command.contains(" ping ")).unwrap();
    let output =
        Command::new("sh").args(["-c", &format!("{ping} --count 1")]).env("HOME", place.home()).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains("seq=0 bytes=6"), "{output:?}");
    signal(child.id(), "-TERM");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    nothing_is_left(&temporary);
}

#[cfg(target_os = "linux")]
#[test]
fn children_die_with_a_demonstration_that_is_killed() {
    let place = Place::new();
    let (mut command, temporary) = demo(&place, &["--keep"]);
    let mut child = command.spawn().unwrap();
    eventually("a daemon runs", || a_daemon_runs(&temporary));
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the children are gone", || children(&temporary).is_empty());
}
