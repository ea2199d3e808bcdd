//! What shells make of the program: pipes that close, disks that are full, completions, manual pages.
#![allow(clippy::disallowed_methods)] // drives real programs

mod support;

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};

use support::Place;

#[test]
fn a_result_that_cannot_be_written_is_an_error() {
    let full = File::options().write(true).open("/dev/full").expect("/dev/full is there on Linux");
    let output = Command::new(env!("CARGO_BIN_EXE_pilotctl"))
        .args(["--json", "version"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("run pilotctl");
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("\"code\":\"internal\"") && error.contains("write the output"), "{error}");
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    for command in ["help", "context", "completions bash"] {
        let mut child = Place::new().command();
        let mut child = child.args(command.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{command}");
    }
}

/// Runs a program with a text as standard input; `None` when it is not installed, which is said.
fn shell(program: &str, args: &[&str], input: &str) -> Option<String> {
    let child =
        Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED the part for {program}: {error}");
            return None;
        }
    };
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{program}: {}: {errors}", output.status);
    Some(String::from_utf8(output.stdout).unwrap())
}

fn script(name: &str) -> String {
    let run = Place::new().run(&["completions", name]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    run.stdout
}

/// Lines begun, the last word being completed, and what has to be among the proposals.
const LINES: &[(&str, &[&str])] = &[
    ("pilotctl pi", &["ping"]),
    ("pilotctl --json set-", &["set-hostname", "set-public", "set-private", "set-tags"]),
    ("pilotctl daemon st", &["start", "stop", "status"]),
    ("pilotctl extras daemon st", &["start", "stop", "status"]),
    ("pilotctl daemon start --lo", &["--log-level", "--log-format"]),
    ("pilotctl ping --", &["--count", "--timeout", "--json"]),
    ("pilotctl info --format ", &["json", "table"]),
    ("pilotctl completions ", &["bash", "zsh", "fish"]),
    ("pilotctl resol", &["resolve"]),
    ("pilotctl revo", &["revoke"]),
    ("pilotctl man trace", &["traceroute"]),
];

#[test]
fn bash_completes() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("some-file.json"), "{}").unwrap();
    let script = script("bash");
    let complete = |line: &str| -> Vec<String> {
        let words: Vec<String> = line.split(' ').map(|word| format!("'{word}'")).collect();
        let input = format!(
            "set -u\ncd {:?}\n{script}\ncomplete -p pilotctl >/dev/null || exit 3\nCOMP_WORDS=({})\nCOMP_CWORD={}\n_pilotctl\n\
             printf '%s\\n' ${{COMPREPLY[@]+\"${{COMPREPLY[@]}}\"}}\n",
            dir.path(),
            words.join(" "),
            words.len() - 1
        );
        let text = shell("bash", &["--norc", "-s"], &input).expect("bash is everywhere");
        text.lines().map(str::to_owned).collect()
    };
    for (line, expected) in LINES {
        let got = complete(line);
        assert!(expected.iter().all(|word| got.iter().any(|got| got == word)), "{line:?}: {got:?}");
    }
    assert_eq!(complete("pilotctl pin"), ["ping"]);
    // --flag=value comes in three words.
    assert_eq!(complete("pilotctl info --format = t"), ["table"]);
    assert_eq!(complete("pilotctl info --format ="), ["json", "table"]);
    assert_eq!(complete("pilotctl daemon start --config some"), ["some-file.json"]);
    // A value nobody can guess: no proposals rather than wrong ones.
    assert_eq!(complete("pilotctl ping --count "), [""; 1]);
}

#[test]
fn zsh_completes() {
    let script = script("zsh");
    for (line, expected) in LINES {
        let words: Vec<String> = line.split(' ').map(|word| format!("'{word}'")).collect();
        // zsh completes only at a prompt; the functions it would call there are played here.
        let input = format!(
            "compdef() {{ }}\n_describe() {{ local list=${{@[-1]}}; print -l -- ${{(P)list}} }}\n\
             compadd() {{ shift; print -l -- $@ }}\n_files() {{ print -- FILES }}\n_message() {{ }}\n{script}\n\
             words=({})\nCURRENT={}\nPREFIX={}\n_pilotctl\n",
            words.join(" "),
            words.len(),
            words[words.len() - 1]
        );
        let Some(text) = shell("zsh", &["-f", "-s"], &input) else { return };
        let got: Vec<&str> = text.lines().map(|line| line.split(':').next().unwrap_or_default()).collect();
        assert!(expected.iter().all(|word| got.contains(word)), "{line:?}: {text}");
    }
}

#[test]
fn fish_completes() {
    let script = script("fish");
    for (line, expected) in LINES {
        let input = format!("{script}\ncomplete -C '{line}'\n");
        let home = tempfile::tempdir().unwrap();
        let home = format!("set -x HOME {:?}\n", home.path());
        let Some(text) = shell("fish", &["--no-config"], &format!("{home}{input}")) else { return };
        let got: Vec<&str> = text.lines().map(|line| line.split('\t').next().unwrap_or_default()).collect();
        assert!(expected.iter().all(|word| got.contains(word)), "{line:?}: {text}");
    }
}

#[test]
fn an_unknown_shell_is_refused() {
    let run = Place::new().run(&["completions", "tcsh"]);
    assert_eq!(run.code, 1);
    assert!(run.stderr.contains("tcsh") && run.stderr.contains("hint:  available: bash, zsh, fish"), "{}", run.stderr);
}

#[test]
fn manual_pages_are_clean() {
    let place = Place::new();
    let dir = place.dir.path().join("man1");
    let run = place.run(&["--json", "man", "--dir", dir.to_str().unwrap()]);
    assert_eq!((run.code, run.stderr.as_str()), (0, ""));
    let files: serde_json::Value = serde_json::from_str(&run.stdout).unwrap();
    let files: Vec<&str> =
        files["data"]["files"].as_array().unwrap().iter().map(|file| file.as_str().unwrap()).collect();
    assert!(files.contains(&"pilotctl.1") && files.contains(&"pilotctl-daemon-start.1"), "{files:?}");
    for file in &files {
        let text = std::fs::read_to_string(dir.join(file)).unwrap();
        let Some(shown) = shell("groff", &["-man", "-Tascii", "-P-cbou", "-ww"], &text) else { return };
        assert!(shown.contains("NAME") && shown.contains("pilotctl"), "{file}: {shown}");
    }
    let lint: Vec<&str> = ["-T", "lint", "-W", "error"].into_iter().chain(files.iter().copied()).collect();
    match Command::new("mandoc").args(lint).current_dir(&dir).output() {
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout)),
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "SKIPPED the part for mandoc: {error}");
        }
    }
    let page = place.run(&["man", "daemon", "start"]).stdout;
    assert_eq!(page, std::fs::read_to_string(dir.join("pilotctl-daemon-start.1")).unwrap());
    let run = place.run(&["man", "daemon"]);
    assert!(run.code == 1 && run.stderr.contains("start | stop | status"), "{}", run.stderr);
    assert_eq!(place.run(&["man", "resolve"]).stdout, place.run(&["man", "find"]).stdout);
}
