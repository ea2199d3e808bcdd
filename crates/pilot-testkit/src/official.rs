//! The official binaries as black-box peers.
//!
//! They come from PyPI (package `pilotprotocol`), into a cache outside the repository: `$PILOT_TEST_CACHE`, else
//! `target/official`. They run only inside [`crate::isolate::isolated`], where there is no way out: own home directory,
//! own socket, registry and beacon given, everything that dials elsewhere switched off (07 §17).
#![allow(clippy::disallowed_methods)] // this module drives real programs

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::isolate::Unavailable;

/// Newest official release.
pub const NEWEST: &str = "1.18.0";
/// Oldest official release of the current wire that is tested.
pub const OLDER: &str = "1.7.2";

/// How long a daemon may take to register and open its socket.
const START_LIMIT: Duration = Duration::from_secs(30);

/// One unpacked release.
#[derive(Clone, Debug)]
pub struct Official {
    version: String,
    bin: PathBuf,
}

/// Need of the newest release.
pub fn need_newest() -> Result<(), Unavailable> {
    Official::obtain(NEWEST).map(drop)
}

/// Need of the older release.
pub fn need_older() -> Result<(), Unavailable> {
    Official::obtain(OLDER).map(drop)
}

fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("PILOT_TEST_CACHE") {
        return dir.into();
    }
    // target/debug/deps/test-… → target
    let exe = std::env::current_exe().unwrap_or_default();
    exe.ancestors().nth(3).map_or_else(std::env::temp_dir, Path::to_path_buf).join("official")
}

impl Official {
    /// A release out of the cache, downloaded when it is not there.
    pub fn obtain(version: &str) -> Result<Self, Unavailable> {
        let unavailable = |e: String| Unavailable(format!("needs pilotprotocol {version} of PyPI: {e}"));
        let dir = cache();
        let bin = dir.join(version).join("pilotprotocol").join("bin");
        let found = Self { version: version.to_owned(), bin };
        fs::create_dir_all(&dir).map_err(|e| unavailable(e.to_string()))?;
        let lock = File::create(dir.join(".lock")).map_err(|e| unavailable(e.to_string()))?;
        lock.lock().map_err(|e| unavailable(e.to_string()))?;
        if !found.daemon().exists() {
            download(version, &dir).map_err(|e| unavailable(format!("{e:#}")))?;
        }
        Ok(found)
    }

    /// The version.
    pub fn version(&self) -> &str {
        &self.version
    }

    fn daemon(&self) -> PathBuf {
        self.bin.join("pilot-daemon")
    }

    /// Whether this release knows the switches that came after 1.7.2.
    fn has_upkeep_switches(&self) -> bool {
        self.version != OLDER
    }
}

fn download(version: &str, dir: &Path) -> Result<()> {
    let wheels = tempfile::tempdir_in(dir)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]);
    // The wheels hold the same programs for every Python; name one that has them all.
    pip.args(["--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"]);
    pip.args(["--platform", "manylinux_2_35_x86_64", "--platform", "manylinux_2_34_x86_64"]);
    pip.arg("--dest").arg(wheels.path()).arg(format!("pilotprotocol=={version}"));
    let output = pip.stdin(Stdio::null()).output().context("python3")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("pip failed"));
    }
    let wheel = fs::read_dir(wheels.path())?.next().context("pip left no wheel")??.path();
    let unpacked = tempfile::tempdir_in(dir)?;
    let mut zip = Command::new("python3");
    zip.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(unpacked.path());
    if !zip.stdin(Stdio::null()).status()?.success() {
        bail!("{} does not unpack", wheel.display());
    }
    for entry in fs::read_dir(unpacked.path().join("pilotprotocol").join("bin"))? {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(entry?.path(), fs::Permissions::from_mode(0o755))?;
    }
    let target = dir.join(version);
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    fs::rename(unpacked.path(), &target)?;
    Ok(())
}

/// How an official daemon starts.
#[derive(Clone, Debug)]
pub struct OfficialOptions {
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
    /// Approve every trust request at once (1.7.2 and later).
    pub auto_approve: bool,
}

/// A running official daemon. Dropping it kills it.
pub struct OfficialDaemon {
    release: Official,
    child: Child,
    home: tempfile::TempDir,
    registry: SocketAddr,
    node: u32,
    address: String,
}

impl OfficialDaemon {
    /// Starts a daemon and waits until it has registered. `place` may move the command to another host.
    pub fn start_at(release: &Official, options: &OfficialOptions, place: impl FnOnce(&mut Command)) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("official").tempdir()?;
        let at = |name: &str| home.path().join(name);
        fs::create_dir(at(".pilot"))?;
        let log = File::create(at("log"))?;
        let mut command = Command::new(release.daemon());
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home.path());
        command.args(["-registry", &options.registry.to_string(), "-beacon", &options.beacon.to_string()]);
        command.args(["-listen", &options.listen.to_string(), "-hostname", &options.hostname]);
        command.arg("-socket").arg(at("pilot.sock")).arg("-identity").arg(at(".pilot/identity.key"));
        command.args(["-email", &format!("{}@example.com", options.hostname), "-log-level", "debug"]);
        if options.public {
            command.arg("-public");
        }
        if options.auto_approve {
            command.arg("-trust-auto-approve");
        }
        if release.has_upkeep_switches() {
            command.args(["-telemetry-url", "", "-motd-feed-url", "", "-no-skillinject"]);
            command.env("PILOT_NO_SKILLINJECT", "1");
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        place(&mut command);
        let child = command.spawn().with_context(|| format!("start {}", release.daemon().display()))?;
        let mut daemon =
            Self { release: release.clone(), child, home, registry: options.registry, node: 0, address: String::new() };
        let deadline = Instant::now() + START_LIMIT;
        let info = loop {
            match daemon.ctl(&["info"]) {
                Ok(info) => break info,
                Err(e) if Instant::now() > deadline => {
                    bail!("official {} did not start: {e:#}\n{}", release.version, daemon.log());
                }
                Err(_) => std::thread::sleep(Duration::from_millis(100)),
            }
        };
        daemon.node = info["node_id"].as_u64().and_then(|n| u32::try_from(n).ok()).context("node_id")?;
        daemon.address = info["address"].as_str().context("address")?.to_owned();
        Ok(daemon)
    }

    /// Starts a daemon here.
    pub fn start(release: &Official, options: &OfficialOptions) -> Result<Self> {
        Self::start_at(release, options, |_| {})
    }

    /// Node id given by the registry.
    pub fn node(&self) -> u32 {
        self.node
    }

    /// Address as text.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Everything the daemon logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.home.path().join("log")).unwrap_or_default()
    }

    /// Runs the release's own `pilotctl --json` against the daemon; the `data` of its answer.
    pub fn ctl(&self, args: &[&str]) -> Result<Value> {
        let mut command = Command::new(self.release.bin.join("pilotctl"));
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.home.path());
        command.env("PILOT_SOCKET", self.home.path().join("pilot.sock"));
        command.env("PILOT_REGISTRY", self.registry.to_string());
        let output = command.arg("--json").args(args).stdin(Stdio::null()).output()?;
        let what = || format!("official {} pilotctl {}", self.release.version, args.join(" "));
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            bail!("{}: {} {}", what(), text.trim(), String::from_utf8_lossy(&output.stderr).trim());
        }
        let answer: Value = serde_json::from_str(&text).with_context(|| format!("{}: {text}", what()))?;
        if answer["status"] != "ok" {
            bail!("{}: {text}", what());
        }
        Ok(answer["data"].clone())
    }

    /// Whether the daemon lists `node` as trusted.
    pub fn trusts(&self, node: u32) -> Result<bool> {
        let trust = self.ctl(&["trust"])?;
        Ok(trust["trusted"].as_array().is_some_and(|list| list.iter().any(|t| t["node_id"] == node)))
    }

    /// Waits until the daemon trusts `node`.
    pub fn wait_trusts(&self, node: u32, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.trusts(node)? {
            if Instant::now() > deadline {
                bail!("official {} does not trust node {node} after {limit:?}", self.release.version);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }
}

impl Drop for OfficialDaemon {
    fn drop(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let tail = log.lines().rev().take(60).collect::<Vec<_>>();
            println!("--- official {} (node {}), last lines of its log", self.release.version, self.node);
            for line in tail.iter().rev() {
                println!("{line}");
            }
        }
    }
}
