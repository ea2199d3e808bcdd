//! A daemon as a process, ours or an official one, driven through the command line it came with.
#![allow(clippy::disallowed_methods)] // this module drives real programs

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// How long a daemon may take to register and answer on its socket.
const START_LIMIT: Duration = Duration::from_secs(30);

/// How a daemon starts.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    /// Registry, TCP.
    pub registry: SocketAddr,
    /// Beacon, UDP.
    pub beacon: SocketAddr,
    /// Local UDP address.
    pub listen: SocketAddr,
    /// Registered name.
    pub hostname: String,
    /// Whether `resolve` answers everybody.
    pub public: bool,
    /// Further flags of the daemon.
    pub extra: Vec<String>,
}

impl AgentOptions {
    /// A private daemon on `listen`'s address, any port.
    pub fn new(registry: SocketAddr, beacon: SocketAddr, hostname: &str) -> Self {
        Self {
            registry,
            beacon,
            listen: SocketAddr::new(registry.ip(), 0),
            hostname: hostname.to_owned(),
            public: false,
            extra: Vec::new(),
        }
    }

    /// The same, visible to everybody.
    #[must_use]
    pub fn public(mut self) -> Self {
        self.public = true;
        self
    }

    /// The same with a further flag.
    #[must_use]
    pub fn flag(mut self, flag: &str) -> Self {
        self.extra.push(flag.to_owned());
        self
    }
}

/// The two programs of a release.
#[derive(Clone, Debug)]
pub struct Release {
    /// What to call it in messages.
    pub label: String,
    /// The daemon.
    pub daemon: PathBuf,
    /// The command line.
    pub ctl: PathBuf,
    /// Whether it wants an e-mail address to register with.
    pub wants_email: bool,
    /// Flags this release needs so that nothing in it dials out.
    pub quiet_flags: &'static [&'static str],
}

/// What a command printed and how it ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A running daemon with a home of its own. Dropping it kills it; a panicking test gets the end of its log.
pub struct Agent {
    release: Release,
    child: Child,
    home: tempfile::TempDir,
    options: AgentOptions,
    node: u32,
    address: String,
}

impl Agent {
    /// Starts a daemon and waits until it answers. `place` may move its commands to another host.
    pub fn start_at(release: &Release, options: &AgentOptions, place: impl Fn(&mut Command)) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("agent").tempdir()?;
        fs::create_dir(home.path().join(".pilot"))?;
        let child = spawn(release, options, home.path(), &place)?;
        let (release, options) = (release.clone(), options.clone());
        let mut agent = Self { release, child, home, options, node: 0, address: String::new() };
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts a daemon here.
    pub fn start(release: &Release, options: &AgentOptions) -> Result<Self> {
        Self::start_at(release, options, |_| {})
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        let info = loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("{} ended at once ({status}):\n{}", self.release.label, self.log());
            }
            match self.ctl(&["info"]) {
                Ok(info) if info["node_id"].as_u64().is_some_and(|n| n != 0) => break info,
                Ok(_) | Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(50)),
                Ok(info) => bail!("{} did not register: {info}\n{}", self.release.label, self.log()),
                Err(e) => bail!("{} did not start: {e:#}\n{}", self.release.label, self.log()),
            }
        };
        self.node = info["node_id"].as_u64().and_then(|n| u32::try_from(n).ok()).context("node_id")?;
        self.address = info["address"].as_str().context("address")?.to_owned();
        Ok(())
    }

    /// Kills the daemon without warning and starts it again on the same home.
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.crash_and_restart_at(|_| {})
    }

    /// The same for a daemon that [`Agent::start_at`] put on another host.
    pub fn crash_and_restart_at(&mut self, place: impl Fn(&mut Command)) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.child = spawn(&self.release, &self.options, self.home.path(), &place)?;
        self.wait_ready()
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.pid())?).context("process id")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Asks the daemon to end (SIGTERM) and waits until it has.
    pub fn terminate(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("{} (node {}) still runs {limit:?} after SIGTERM", self.release.label, self.node);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts the daemon again on the same home, after it has ended.
    pub fn start_again(&mut self) -> Result<()> {
        self.child = spawn(&self.release, &self.options, self.home.path(), &|_| {})?;
        self.wait_ready()
    }

    /// Starts the daemon of another release on the same home, after this one has ended.
    pub fn take_over(&mut self, release: &Release) -> Result<()> {
        self.release = release.clone();
        self.start_again()
    }

    /// Node id given by the registry.
    pub fn node(&self) -> u32 {
        self.node
    }

    /// Node id as text, for commands.
    pub fn node_text(&self) -> String {
        self.node.to_string()
    }

    /// Address as text.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Home directory.
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// Local socket.
    pub fn socket(&self) -> PathBuf {
        self.home.path().join("pilot.sock")
    }

    /// What to call it in messages.
    pub fn label(&self) -> &str {
        &self.release.label
    }

    /// Everything the daemon logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// Whether the process still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The release's own `pilotctl` against the daemon.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.release.ctl);
        environment(&mut command, self.home.path());
        command.env("PILOT_SOCKET", self.socket()).env("PILOT_REGISTRY", self.options.registry.to_string());
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs it.
    pub fn run(&self, args: &[&str]) -> Result<Outcome> {
        let output = self.command(args).output().context("run pilotctl")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok(Outcome { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) })
    }

    /// The same with `--json`; the `data` of a successful answer.
    pub fn ctl(&self, args: &[&str]) -> Result<Value> {
        let what = || format!("{} (node {}): pilotctl {}", self.release.label, self.node, args.join(" "));
        let outcome = self.run(&[&["--json"], args].concat())?;
        if !outcome.status.success() {
            bail!("{}: {} {}", what(), outcome.stdout.trim(), outcome.stderr.trim());
        }
        let answer: Value =
            serde_json::from_str(&outcome.stdout).with_context(|| format!("{}: {}", what(), outcome.stdout))?;
        if answer["status"] != "ok" {
            bail!("{}: {}", what(), outcome.stdout);
        }
        Ok(answer["data"].clone())
    }

    /// Whether the daemon lists `node` as trusted.
    pub fn trusts(&self, node: u32) -> Result<bool> {
        let trust = self.ctl(&["trust"])?;
        Ok(trust["trusted"].as_array().is_some_and(|list| list.iter().any(|t| t["node_id"] == node)))
    }

    /// Waits until `done` says so.
    pub fn wait(&self, what: &str, limit: Duration, mut done: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !done(self)? {
            if Instant::now() > deadline {
                bail!("{} (node {}) waited {limit:?} for: {what}", self.release.label, self.node);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// Waits until the daemon trusts `node`.
    pub fn wait_trusts(&self, node: u32, limit: Duration) -> Result<()> {
        self.wait(&format!("trust in node {node}"), limit, |me| me.trusts(node))
    }
}

/// Asks from `a` for trust, approves at `b`, and waits until both have it.
pub fn make_trust(a: &Agent, b: &Agent, limit: Duration) -> Result<()> {
    a.ctl(&["handshake", &b.node_text(), "test"])?;
    b.wait(&format!("request of node {}", a.node()), limit, |b| {
        let pending = b.ctl(&["pending"])?;
        let waits = pending["pending"].as_array().is_some_and(|l| l.iter().any(|p| p["node_id"] == a.node()));
        Ok(waits || b.trusts(a.node())?)
    })?;
    if !b.trusts(a.node())? {
        b.ctl(&["approve", &a.node_text()])?;
    }
    b.wait_trusts(a.node(), limit)?;
    a.wait_trusts(b.node(), limit)
}

fn environment(command: &mut Command, home: &Path) {
    command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin").env("HOME", home);
    command.env("PILOT_NO_SKILLINJECT", "1").env("RUST_BACKTRACE", "1");
}

fn spawn(release: &Release, options: &AgentOptions, home: &Path, place: &impl Fn(&mut Command)) -> Result<Child> {
    let log = File::options().create(true).append(true).open(home.join("log"))?;
    let mut command = Command::new(&release.daemon);
    environment(&mut command, home);
    command.args(["-registry", &options.registry.to_string(), "-beacon", &options.beacon.to_string()]);
    command.args(["-listen", &options.listen.to_string(), "-hostname", &options.hostname, "-log-level", "debug"]);
    command.arg("-socket").arg(home.join("pilot.sock")).arg("-identity").arg(home.join(".pilot/identity.key"));
    if options.public {
        command.arg("-public");
    }
    if release.wants_email {
        command.args(["-email", &format!("{}@example.com", options.hostname)]);
    }
    command.args(release.quiet_flags).args(&options.extra).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    place(&mut command);
    command.spawn().with_context(|| format!("start {}", release.daemon.display()))
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.lines().rev().take(80).collect::<Vec<_>>();
            println!("--- {} (node {}), last lines of its log", self.release.label, self.node);
            for line in tail.iter().rev() {
                println!("{line}");
            }
        }
    }
}
