//! The files of the package: units that systemd takes, and commands in them that the programs take.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use pilot_testkit::programs::{need_programs, program};

use super::read;

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging")
}

fn units() -> Vec<PathBuf> {
    let dirs = ["systemd/system", "systemd/user"].map(|dir| packaging().join(dir));
    let files = dirs.iter().flat_map(|dir| fs::read_dir(dir).expect("directory"));
    files.map(|entry| entry.expect("entry").path()).collect()
}

#[test]
fn every_unit_is_ready_watched_and_hardened_and_its_command_is_taken() {
    need_programs().expect("programs");
    let units = units();
    assert_eq!(units.len(), 3);
    for unit in units {
        let text = read(&unit);
        let has = |line: &str| text.lines().any(|l| l == line);
        for line in
            ["Type=notify", "Restart=on-failure", "NoNewPrivileges=yes", "UMask=0077", "SystemCallArchitectures=native"]
        {
            assert!(has(line), "{}: no {line}", unit.display());
        }
        let command = text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/bin/")).expect("ExecStart");
        let command = command.replace("/etc/pilot/", &format!("{}/etc/", packaging().display()));
        let words: Vec<&str> = command.split_whitespace().collect();
        let mut run = Command::new(program(words[0]));
        match words[0] {
            // Takes its flags and says its version instead of serving.
            "pilot-rendezvous" => run.args(&words[1..]).arg("-version"),
            // The last flag decides; a level that there is not ends it after all others are read.
            _ => run.args(&words[1..]).args(["--log-level", "no-such-level"]),
        };
        let home = tempfile::tempdir().expect("home");
        let output = run.env("HOME", home.path()).env("PILOT_SOCKET", home.path().join("s")).output().expect("run");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let is_taken = output.status.success() || (output.status.code() == Some(2) && said.contains("no-such-level"));
        assert!(is_taken, "{command}: {said}");
    }
}

#[test]
fn systemd_takes_every_unit() {
    need_programs().expect("programs");
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        println!("systemd-analyze is not installed: only what the other test reads is checked");
        return;
    }
    for unit in units() {
        let dir = tempfile::tempdir().expect("directory");
        let name = unit.file_name().and_then(|name| name.to_str()).expect("name").replace("@.", "@root.");
        let copy = dir.path().join(name);
        let programs = program("pilotctl").parent().expect("directory").display().to_string();
        fs::write(&copy, read(&unit).replace("/usr/bin/", &format!("{programs}/"))).expect("write");
        let mut verify = Command::new("systemd-analyze");
        if unit.parent().is_some_and(|dir| dir.ends_with("user")) {
            verify.arg("--user").env("XDG_RUNTIME_DIR", dir.path());
        }
        let output = verify.args(["verify", "--man=no"]).arg(&copy).output().expect("systemd-analyze");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let name = copy.file_name().and_then(|name| name.to_str()).expect("name");
        // It reads every unit of this machine, and complains about others too.
        let ours: Vec<&str> = said.lines().filter(|line| line.contains(name)).collect();
        assert!(ours.is_empty(), "{ours:?}");
    }
}

#[test]
fn the_configuration_that_is_shipped_is_taken() {
    need_programs().expect("programs");
    for (name, program_name) in [("daemon.json", "pilot-daemon"), ("rendezvous.json", "pilot-rendezvous")] {
        let file = packaging().join("etc").join(name);
        let output =
            Command::new(program(program_name)).arg("-config").arg(file).arg("-version").output().expect("run");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
