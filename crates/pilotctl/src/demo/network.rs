//! The processes of the demonstration and their directory.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pilot::{Address, Driver};
use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout};

use super::report::Report;
use crate::errors::CliError;
use crate::process::{self, DAEMON_RUN, PARENT_VARIABLE, RENDEZVOUS_RUN};

/// How often a condition is looked at.
pub(super) const INTERVAL: Duration = Duration::from_millis(10);
/// How long the processes have to end by themselves.
const PATIENCE: Duration = Duration::from_secs(3);
/// Longest wait for one answer of a daemon that starts.
const ANSWER_WAIT: Duration = Duration::from_secs(2);
/// Lines of each log in an error.
const LOG_LINES: usize = 5;
/// Longest directory in which a socket path still fits (108 bytes, its own end included).
const MOST_DIRECTORY: usize = 80;

/// One of the two agents: its daemon, and the connection to it.
pub(super) struct Agent {
    pub(super) name: &'static str,
    pub(super) node: u32,
    pub(super) address: Address,
    pub(super) socket: PathBuf,
    pub(super) driver: Driver,
}

/// Everything that has to be removed again. Dropping it kills the processes and removes the directory.
pub(super) struct Network {
    children: Vec<Running>,
    directory: tempfile::TempDir,
}

struct Running {
    name: &'static str,
    log: PathBuf,
    child: Child,
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Network {
    /// A directory, and nothing in it.
    pub(super) fn prepare() -> Result<Self, CliError> {
        let mut builder = tempfile::Builder::new();
        builder.prefix("pilot-demo-");
        let root = std::env::temp_dir();
        let directory =
            if root.as_os_str().len() > MOST_DIRECTORY { builder.tempdir_in("/tmp") } else { builder.tempdir() };
        let directory =
            directory.map_err(|error| CliError::internal(format!("demo: make a temporary directory: {error}")))?;
        Ok(Self { children: Vec::new(), directory })
    }

    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts rendezvous and daemons, and waits until both are registered.
    pub(super) async fn start(&mut self, report: &mut Report<'_>) -> Result<(Agent, Agent), CliError> {
        let began = Instant::now();
        let (registry, beacon) = self.rendezvous().await?;
        report.rendezvous(registry, beacon);
        // One after the other, so that alice is node 1.
        self.daemon("alice", registry, beacon)?;
        let alice = self.agent("alice", report).await?;
        self.daemon("bob", registry, beacon)?;
        let bob = self.agent("bob", report).await?;
        report.started(began.elapsed());
        Ok((alice, bob))
    }

    /// The rendezvous takes any free ports and prints them: `registry ADDR`, `beacon ADDR`.
    async fn rendezvous(&mut self) -> Result<(SocketAddr, SocketAddr), CliError> {
        let flags = ["-registry-addr=127.0.0.1:0", "-beacon-addr=127.0.0.1:0", "-new-nodes-per-minute=1000"];
        let mut command = process::again(RENDEZVOUS_RUN, flags.map(Into::into))?;
        command.stdout(Stdio::piped());
        let at = self.spawn("rendezvous", command)?;
        let stdout = self.children[at].child.stdout.take();
        let said = tokio::task::spawn_blocking(move || {
            let lines = stdout.map(BufReader::new).into_iter().flat_map(BufRead::lines).map_while(Result::ok);
            let (mut registry, mut beacon) = (None, None);
            for line in lines {
                match line.split_once(' ') {
                    Some(("registry", addr)) => registry = addr.parse().ok(),
                    Some(("beacon", addr)) => beacon = addr.parse().ok(),
                    _ => {}
                }
                if registry.is_some() && beacon.is_some() {
                    break;
                }
            }
            registry.zip(beacon)
        });
        let said = said.await.unwrap_or_default();
        said.ok_or_else(|| CliError::internal("demo: the rendezvous ended before it said where it listens"))
    }

    fn daemon(&mut self, name: &'static str, registry: SocketAddr, beacon: SocketAddr) -> Result<(), CliError> {
        let home = self.directory().join(name);
        fs::create_dir(&home)
            .map_err(|error| CliError::internal(format!("demo: create {}: {error}", home.display())))?;
        let flags = [
            format!("-registry={registry}"),
            format!("-beacon={beacon}"),
            "-listen=127.0.0.1:0".into(),
            format!("-socket={}", self.socket(name).display()),
            format!("-identity={}", home.join("identity.json").display()),
            format!("-hostname={name}"),
        ];
        let mut command = process::again(DAEMON_RUN, flags.into_iter().map(Into::into))?;
        command.env("HOME", &home).stdout(Stdio::null());
        self.spawn(name, command).map(|_| ())
    }

    fn socket(&self, name: &str) -> PathBuf {
        self.directory().join(format!("{name}.sock"))
    }

    /// Starts a process that cannot outlive this one and whose log lies in the directory.
    fn spawn(&mut self, name: &'static str, mut command: Command) -> Result<usize, CliError> {
        let log = self.directory().join(format!("{name}.log"));
        let file = fs::File::create(&log).map_err(|error| CliError::internal(format!("demo: {error}")))?;
        let child = command
            .env(PARENT_VARIABLE, std::process::id().to_string())
            .env_remove("PILOT_SOCKET")
            .env_remove("PILOT_REGISTRY")
            // Ctrl-C is for this process, which then ends the others in order.
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(file)
            .spawn()
            .map_err(|error| CliError::internal(format!("demo: start {name}: {error}")))?;
        self.children.push(Running { name, log, child });
        Ok(self.children.len() - 1)
    }

    /// Waits until a daemon answers and is registered.
    async fn agent(&mut self, name: &'static str, report: &mut Report<'_>) -> Result<Agent, CliError> {
        let socket = self.socket(name);
        loop {
            self.all_alive()?;
            let asked = async {
                let driver = Driver::connect(&socket).await?;
                let info = driver.info().await?;
                Ok::<_, pilot::Error>((driver, info))
            };
            if let Ok(Ok((driver, info))) = timeout(ANSWER_WAIT, asked).await
                && let Some(node) = info["node_id"].as_u64().and_then(|node| u32::try_from(node).ok())
                && node != 0
                && info.get("registered").is_none_or(|registered| *registered == true)
            {
                let address = info["address"].as_str().and_then(|text| text.parse().ok());
                let address = address.unwrap_or(Address::backbone(node));
                let agent = Agent { name, node, address, socket, driver };
                report.agent(&agent, &info);
                return Ok(agent);
            }
            sleep(INTERVAL).await;
        }
    }

    fn all_alive(&mut self) -> Result<(), CliError> {
        for running in &mut self.children {
            if let Ok(Some(status)) = running.child.try_wait() {
                return Err(CliError::internal(format!("demo: {} ended at once: {status}", running.name)));
            }
        }
        Ok(())
    }

    /// The last lines of the logs, for an error: the logs go with the directory.
    pub(super) fn last_words(&self) -> String {
        let tails = self.children.iter().map(|running| (running.name, process::log_tail(&running.log, 0, LOG_LINES)));
        let tails = tails.filter(|(_, tail)| !tail.is_empty()).map(|(name, tail)| format!("log of {name}:\n{tail}"));
        tails.collect::<Vec<_>>().join("\n")
    }

    /// Ends the processes, daemons first so that they can sign off, and removes the directory.
    pub(super) async fn stop(mut self) {
        while let Some(mut running) = self.children.pop() {
            if let Ok(pid) = i32::try_from(running.child.id()) {
                process::signal(pid, Signal::TERM);
            }
            let deadline = Instant::now() + PATIENCE;
            while matches!(running.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                sleep(INTERVAL).await;
            }
        }
        // A directory that cannot be removed is in the system's temporary directory; there is nobody left to tell.
        let _ = self.directory.close();
    }
}
