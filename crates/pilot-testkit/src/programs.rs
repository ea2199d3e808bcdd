//! Our own programs as processes, built once per test run.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // this module drives real programs

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::agent::Release;
use crate::isolate::Unavailable;

/// Registry port of [`RendezvousProcess`]; tests run in networks of their own, so it is always free.
const REGISTRY_PORT: u16 = 9000;
/// Beacon port.
const BEACON_PORT: u16 = 9001;

/// Directory of the programs: the one this program, or this test (in `deps` below it), was built into.
pub(crate) fn directory() -> PathBuf {
    let exe = std::env::current_exe().unwrap_or_default();
    let parent = exe.parent().unwrap_or(Path::new(""));
    if parent.ends_with("deps") { parent.parent().unwrap_or(parent).to_path_buf() } else { parent.to_path_buf() }
}

/// The programs that tests start, beside the C library that they load.
const PROGRAMS: [&str; 4] = ["pilotctl", "pilot-daemon", "pilot-rendezvous", "pilot-gateway"];

/// Builds the programs this test run belongs to. Outside the namespace; quick when nothing changed.
pub fn need_programs() -> Result<(), Unavailable> {
    static BUILT: OnceLock<Result<(), Unavailable>> = OnceLock::new();
    BUILT.get_or_init(|| build().map_err(|e| Unavailable(format!("needs our programs: {e:#}")))).clone()
}

fn build() -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    // The whole workspace, as everybody builds it: another selection of packages would have other features, and build
    // the dependencies once more.
    command.args(["build", "--quiet", "--workspace", "--lib", "--bins"]);
    let target = directory();
    if target.file_name().is_some_and(|n| n == "release") {
        command.arg("--release");
    }
    if let Some(parent) = target.parent() {
        command.arg("--target-dir").arg(parent);
    }
    let output = command.stdin(Stdio::null()).output().context("run cargo")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    match PROGRAMS.iter().find(|name| !program(name).exists()) {
        Some(name) => bail!("{} was not built", program(name).display()),
        None => Ok(()),
    }
}

/// The C library. A test does not depend on it as far as cargo knows; [`need_programs`] builds it.
pub fn library() -> PathBuf {
    directory().join("libpilot.so")
}

/// One of our programs by name.
pub fn program(name: &str) -> PathBuf {
    directory().join(name)
}

/// Our daemon and command line.
pub fn ours() -> Release {
    Release {
        label: "ours".to_owned(),
        daemon: program("pilot-daemon"),
        ctl: program("pilotctl"),
        wants_email: false,
        quiet_flags: &[],
    }
}

/// Our rendezvous as a process. Dropping it kills it.
pub struct RendezvousProcess {
    child: Child,
    ip: IpAddr,
}

impl RendezvousProcess {
    /// Starts it on `ip` and waits until it accepts. `place` may move the command to another host; `reach` makes the
    /// connection that shows readiness and must come from a host that can reach `ip`.
    pub fn start_at(ip: IpAddr, store: Option<&Path>, place: impl FnOnce(&mut Command)) -> Result<Self> {
        let mut command = Command::new(program("pilot-rendezvous"));
        command.args(["-registry-addr", &SocketAddr::new(ip, REGISTRY_PORT).to_string()]);
        command.args(["-beacon-addr", &SocketAddr::new(ip, BEACON_PORT).to_string()]);
        // All nodes of a test come from one address.
        command.args(["-new-nodes-per-minute", "100000"]);
        if let Some(store) = store {
            command.arg("-store").arg(store);
        }
        place(&mut command);
        let child = command.stdin(Stdio::null()).spawn().context("start pilot-rendezvous")?;
        Ok(Self { child, ip })
    }

    /// Starts it on loopback and waits until it accepts.
    pub fn start() -> Result<Self> {
        Self::start_with(&[])
    }

    /// The same with further flags.
    pub fn start_with(flags: &[&str]) -> Result<Self> {
        let place = |command: &mut Command| {
            command.args(flags);
        };
        let this = Self::start_at(IpAddr::from([127, 0, 0, 1]), None, place)?;
        this.wait_ready()?;
        Ok(this)
    }

    /// Waits until the registry accepts a connection from here.
    pub fn wait_ready(&self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(20);
        while TcpStream::connect_timeout(&self.registry(), Duration::from_secs(1)).is_err() {
            if Instant::now() > deadline {
                bail!("pilot-rendezvous does not accept at {}", self.registry());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Registry address.
    pub fn registry(&self) -> SocketAddr {
        SocketAddr::new(self.ip, REGISTRY_PORT)
    }

    /// Beacon address.
    pub fn beacon(&self) -> SocketAddr {
        SocketAddr::new(self.ip, BEACON_PORT)
    }

    /// Kills it without warning.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for RendezvousProcess {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
