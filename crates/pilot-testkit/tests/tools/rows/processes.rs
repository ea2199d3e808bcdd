//! Commands that start and stop daemons, and write the configuration: in homes of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pilot_testkit::official::Official;
use pilot_testkit::programs::ours;
use rustix::process::{Pid, WaitOptions};
use serde_json::Value;

use super::{SLOW, Side, data};

/// The command line of a release.
fn tool(name: &str) -> Result<PathBuf> {
    match name {
        "ours" => Ok(ours().ctl),
        release => Ok(Official::obtain(release)?.release().ctl),
    }
}

/// A home of its own, with the surroundings of a side.
struct Place<'a> {
    side: &'a Side<'a>,
    home: tempfile::TempDir,
}

impl<'a> Place<'a> {
    fn new(side: &'a Side<'a>) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("place").tempdir()?;
        std::fs::create_dir(home.path().join(".pilot"))?;
        Ok(Self { side, home })
    }

    fn socket(&self) -> String {
        self.home.path().join("pilot.sock").display().to_string()
    }

    fn registry(&self) -> Result<String> {
        let own = self.side.me.command(&[]);
        let registry = own.get_envs().find(|(key, _)| *key == "PILOT_REGISTRY").and_then(|(_, value)| value);
        Ok(registry.context("PILOT_REGISTRY")?.to_string_lossy().into_owned())
    }

    fn command(&self, program: &Path, args: &[&str]) -> Command {
        let mut command = super::with(self.side.me, program, &[&["--json"], args].concat());
        command.env("HOME", self.home.path()).env("PILOT_SOCKET", self.socket());
        command
    }

    fn run(&self, program: &Path, args: &[&str]) -> Result<Value> {
        data(args, self.command(program, args).spawn()?, SLOW)
    }

    /// Starts a daemon; its process. `prepare` may say which.
    fn start(&self, program: &Path, prepare: impl FnOnce(&mut Command)) -> Result<Pid> {
        let registry = self.registry()?;
        let beacon = registry.replace(":9000", ":9001");
        let hostname = format!("started-{}-{}", self.side.me.node(), self.side.peer.node());
        let identity = self.home.path().join(".pilot/identity.key").display().to_string();
        let (socket, email) = (self.socket(), format!("{hostname}@example.com"));
        let args = [
            ["daemon", "start"],
            ["--registry", &registry],
            ["--beacon", &beacon],
            ["--listen", "127.0.0.1:0"],
            ["--hostname", &hostname],
            ["--email", &email],
            ["--socket", &socket],
            ["--identity", &identity],
        ];
        let args = args.concat();
        let mut command = self.command(program, &args);
        prepare(&mut command);
        let started = data(&args, command.spawn()?, SLOW)?;
        let pid = started["pid"].as_i64().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).context("pid")?;
        ensure!(started["node_id"].as_u64() > Some(0) && started["socket"] == socket.as_str(), "{started}");
        Ok(pid)
    }

    /// Stops a daemon, and makes sure that it has ended.
    fn stop(&self, program: &Path, pid: Pid) -> Result<()> {
        let stopped = AtomicBool::new(false);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            // Its parent has ended, so it is ours to collect: official tools wait until it is gone altogether.
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    let collected = rustix::process::waitpid(Some(pid), WaitOptions::NOHANG);
                    ended.store(!matches!(collected, Ok(None)), Ordering::Relaxed);
                    if stopped.load(Ordering::Relaxed) {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            });
            let answer = self.run(program, &["daemon", "stop"]);
            std::thread::sleep(Duration::from_millis(50));
            stopped.store(true, Ordering::Relaxed);
            let answer = answer?;
            ensure!(answer["pid"] == pid.as_raw_nonzero().get(), "{answer}");
            Ok(())
        })?;
        ensure!(ended.load(Ordering::Relaxed), "the daemon runs on");
        Ok(())
    }
}

pub(super) fn init(side: &Side<'_>) -> Result<()> {
    let place = Place::new(side)?;
    let args = ["init", "--registry", "127.0.0.1:9000", "--beacon", "127.0.0.1:9001", "--hostname", "begun"];
    let answer = place.run(&tool(side.tool)?, &args)?;
    let path = answer["config_path"].as_str().context("config_path")?;
    let config: Value = serde_json::from_str(&std::fs::read_to_string(path)?)?;
    for key in ["registry", "beacon", "hostname"] {
        ensure!(config[key] == answer[key] && config[key].is_string(), "{key}: {answer}, {config}");
    }
    Ok(())
}

/// An official tool starts our daemon, which it is told to by its variable.
pub(super) fn daemon_start(side: &Side<'_>) -> Result<()> {
    let place = Place::new(side)?;
    let tool = tool(side.tool)?;
    let pid = place.start(&tool, |command| {
        command.env("PILOT_DAEMON_BIN", ours().daemon);
    })?;
    let status = place.run(&tool, &["daemon", "status"])?;
    ensure!(status["responsive"] == true && status["pid"] == pid.as_raw_nonzero().get(), "{status}");
    place.stop(&tool, pid)
}

/// A daemon that its own tool has started is stopped by the other one.
pub(super) fn daemon_stop(side: &Side<'_>) -> Result<()> {
    let place = Place::new(side)?;
    let pid = place.start(&tool(side.daemon)?, |_| {})?;
    let tool = tool(side.tool)?;
    let status = place.run(&tool, &["daemon", "status"])?;
    ensure!(status["responsive"] == true && status["pid"] == pid.as_raw_nonzero().get(), "{status}");
    place.stop(&tool, pid)
}
