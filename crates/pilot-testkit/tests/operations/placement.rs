//! Programs that were told of no socket find our daemon where the official one is.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use pilot_testkit::isolate::isolated;
use pilot_testkit::official::{Official, RELEASES, need_all};
use pilot_testkit::programs::{RendezvousProcess, need_programs, program};
use serde_json::Value;

use super::eventually;

fn mount(args: &[&str]) {
    let status = Command::new("mount").args(args).status().expect("mount");
    assert!(status.success(), "mount {args:?}: {status}");
}

/// A directory that stays visible when `/tmp` is another one.
fn keep(place: &Path, name: &str, directory: &Path) -> std::path::PathBuf {
    let kept = place.join(name);
    fs::create_dir(&kept).expect("directory");
    mount(&["--bind", directory.to_str().expect("path"), kept.to_str().expect("path")]);
    kept
}

/// A process that ends with the test.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn official_tools_find_our_daemon_by_themselves() {
    isolated("placement::official_tools_find_our_daemon_by_themselves", &[need_programs, need_all], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        // `/tmp/pilot.sock` may be somebody's: the mounts are those of this test alone.
        let place = tempfile::tempdir_in("/var/tmp").expect("directory");
        let ours = keep(place.path(), "ours", program("pilotctl").parent().expect("directory"));
        let tools = RELEASES.map(|release| {
            let ctl = Official::obtain(release).expect("release").release().ctl;
            (release, keep(place.path(), release, ctl.parent().expect("directory")).join("pilotctl"))
        });
        mount(&["-t", "tmpfs", "tmpfs", "/tmp"]);
        let home = Path::new("/tmp/home");
        fs::create_dir(home).expect("home");
        let command = |program: &Path, args: &[&str]| {
            let mut command = Command::new(program);
            command.env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin").args(args).stdin(Stdio::null());
            command
        };
        let (registry, beacon) = (rendezvous.registry().to_string(), rendezvous.beacon().to_string());
        let flags = ["-registry", &registry, "-beacon", &beacon, "-listen", "127.0.0.1:0", "-hostname", "found"];
        let _daemon = Running(command(&ours.join("pilot-daemon"), &flags).spawn().expect("daemon"));
        for (tool, ctl) in [("ours", ours.join("pilotctl"))].into_iter().chain(tools) {
            let info = eventually(&format!("{tool}: info"), || {
                let output = command(&ctl, &["--json", "info"]).output().expect("pilotctl");
                let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
                (answer["data"]["node_id"].as_u64()? != 0).then(|| answer["data"].clone())
            });
            assert_eq!(info["hostname"], "found", "{tool}: {info}");
        }
        assert!(Path::new("/tmp/pilot.sock").exists() && home.join(".pilot/pilot.sock").exists());
        // Bind mounts end with the namespace; what they were mounted on is not removed through them.
        std::mem::forget(place);
    });
}
