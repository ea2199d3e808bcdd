//! The network of the soak: a rendezvous and daemons as processes on loopback, mutual trust, one pair of daemons that
//! cannot reach each other directly, and one daemon that trusts nobody.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pilot::Driver;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::process::Program;
use crate::programs::program;

/// Registry.
const REGISTRY: &str = "127.0.0.1:9000";
/// Beacon.
const BEACON: &str = "127.0.0.1:9001";
/// Longest wait for a daemon to answer, to register or to trust.
const READY: Duration = Duration::from_secs(90);
/// Longest wait for one answer of a daemon.
const ANSWER: Duration = Duration::from_secs(30);
/// An orderly end takes 5 s at the most, and a busy machine longer.
pub(super) const STOP: Duration = Duration::from_secs(30);
/// Silence after which a stream is given up. Shorter than by default, so that a stream whose other end died without a
/// word is gone within one check.
const IDLE_TIMEOUT: &str = "40s";
/// The two daemons that only reach each other through the relay.
pub(super) const RELAYED: (usize, usize) = (2, 3);

/// A daemon.
pub(super) struct Daemon {
    /// Its process.
    pub(super) program: Program,
    /// Its local socket.
    pub(super) socket: PathBuf,
    /// Its node id.
    pub(super) node: u32,
    /// Bound ports of a daemon without clients.
    pub(super) base_ports: u64,
    /// Descriptors of a daemon without clients.
    pub(super) base_fds: u64,
}

impl Daemon {
    /// A daemon that has not been started. Half of them come back on the UDP port they had, the others on a new one.
    pub(super) fn new(root: &Path, index: usize, name: &str) -> Result<Self> {
        let home = root.join(name);
        let socket = home.join("pilot.sock");
        let port = if index.is_multiple_of(2) { 4000 } else { 0 };
        let text = |path: PathBuf| path.display().to_string();
        let args = [
            ("-registry", REGISTRY.to_owned()),
            ("-beacon", BEACON.to_owned()),
            ("-listen", format!("{}:{port}", address(index))),
            ("-hostname", name.to_owned()),
            ("-socket", text(socket.clone())),
            ("-identity", text(home.join(".pilot/identity.key"))),
            ("-idle-timeout", IDLE_TIMEOUT.to_owned()),
            ("-log-level", "info".to_owned()),
        ];
        let args = args.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect();
        let program = Program::new(name, program("pilot-daemon"), args, home.clone())?;
        std::fs::create_dir_all(home.join(".pilot"))?;
        Ok(Self { program, socket, node: 0, base_ports: 0, base_fds: 0 })
    }

    /// Its status object.
    pub(super) async fn info(&self) -> Result<Value> {
        timeout(ANSWER, async { Ok(Driver::connect(&self.socket).await?.info().await?) }).await.context("info")?
    }

    /// Waits until it answers and knows its node id, which must not change, and has its trust.
    pub(super) async fn ready(&mut self, registered: bool, trusted: usize) -> Result<()> {
        let deadline = Instant::now() + READY;
        let info = loop {
            if let Some(status) = self.program.ended()? {
                bail!("ended at its start: {status}\n{}", self.program.tail(20));
            }
            match self.info().await {
                Ok(info) if info["node_id"] != 0 && (!registered || info["registered"] == true) => break info,
                _ if Instant::now() < deadline => sleep(Duration::from_millis(100)).await,
                other => bail!("not ready after {READY:?}: {other:?}\n{}", self.program.tail(20)),
            }
        };
        let node = info["node_id"].as_u64().and_then(|n| u32::try_from(n).ok()).context("node_id")?;
        ensure!(self.node == 0 || self.node == node, "was node {} and came back as node {node}", self.node);
        self.node = node;
        let trust = Driver::connect(&self.socket).await?.trusted().await?;
        let known = trust["trusted"].as_array().map_or(0, Vec::len);
        ensure!(known == trusted, "trusts {known} nodes instead of {trusted}: {trust}");
        Ok(())
    }
}

/// The address of a daemon. Each has one of its own, so that a rule can keep two of them apart.
fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 0, 10 + u8::try_from(index).unwrap_or(200))
}

/// A rendezvous with a store, not started yet.
pub(super) fn rendezvous(root: &Path) -> Result<Program> {
    let home = root.join("rendezvous");
    let store = home.join("store").display().to_string();
    let args = ["-registry-addr", REGISTRY, "-beacon-addr", BEACON, "-store", &store, "-new-nodes-per-minute", "1000"];
    let args = args.map(str::to_owned).to_vec();
    Program::new("rendezvous", program("pilot-rendezvous"), args, home)
}

/// Waits until the rendezvous serves.
pub(super) async fn rendezvous_ready(program: &mut Program) -> Result<()> {
    let deadline = Instant::now() + READY;
    while tokio::net::TcpStream::connect(REGISTRY).await.is_err() {
        if let Some(status) = program.ended()? {
            bail!("the rendezvous ended at its start: {status}\n{}", program.tail(20));
        }
        ensure!(Instant::now() < deadline, "the rendezvous does not serve after {READY:?}\n{}", program.tail(20));
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Keeps the relayed pair apart.
pub(super) fn separate() -> Result<()> {
    let (a, b) = (address(RELAYED.0), address(RELAYED.1));
    let rules = format!(
        "add table ip soak\n\
         add chain ip soak out {{ type filter hook output priority 0; }}\n\
         add rule ip soak out ip saddr {a} ip daddr {b} udp dport 1-65535 drop\n\
         add rule ip soak out ip saddr {b} ip daddr {a} udp dport 1-65535 drop\n"
    );
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("run nft")?;
    let mut input = nft.stdin.take().context("stdin of nft")?;
    std::io::Write::write_all(&mut input, rules.as_bytes())?;
    drop(input);
    ensure!(nft.wait()?.success(), "nft refused the rules:\n{rules}");
    Ok(())
}

/// Lets two daemons trust each other: one asks, the other approves.
pub(super) async fn befriend(a: &Daemon, b: &Daemon) -> Result<()> {
    let (from, to) = (Driver::connect(&a.socket).await?, Driver::connect(&b.socket).await?);
    from.handshake(b.node, "soak").await?;
    let deadline = Instant::now() + READY;
    let lists = |list: &Value, node: u32| list.as_array().is_some_and(|all| all.iter().any(|e| e["node_id"] == node));
    while !lists(&to.pending().await?["pending"], a.node) {
        ensure!(Instant::now() < deadline, "node {} never heard the request of node {}", b.node, a.node);
        sleep(Duration::from_millis(50)).await;
    }
    to.approve(a.node).await?;
    for (driver, peer) in [(&from, b.node), (&to, a.node)] {
        while !lists(&driver.trusted().await?["trusted"], peer) {
            ensure!(Instant::now() < deadline, "node {peer} is not trusted in time");
            sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(())
}
