//! The official binaries as black-box peers.
//!
//! They come from PyPI (package `pilotprotocol`), into a cache outside the repository: `$PILOT_TEST_CACHE`, else
//! `target/official`. They run only inside [`crate::isolate::isolated`], where there is no way out: own home directory,
//! own socket, registry and beacon given, everything that dials elsewhere switched off (07 §17).
#![allow(clippy::disallowed_methods)] // this module drives real programs

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::agent::Release;
use crate::isolate::Unavailable;

/// Newest official release.
pub const NEWEST: &str = "1.18.0";
/// Oldest official release of the current wire that is tested.
pub const OLDER: &str = "1.7.2";

/// Every release that interoperability is shown with, oldest first.
pub const RELEASES: [&str; 5] = ["0.1.2", OLDER, "1.9.1", "1.13.11", NEWEST];
/// Releases that dial elsewhere by themselves, and have switches against it.
const WITH_SWITCHES: [&str; 2] = ["1.13.11", NEWEST];

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

/// Need of every release of [`RELEASES`].
pub fn need_all() -> Result<(), Unavailable> {
    RELEASES.iter().try_for_each(|version| Official::obtain(version).map(drop))
}

fn cache() -> PathBuf {
    if let Some(dir) = std::env::var_os("PILOT_TEST_CACHE") {
        return dir.into();
    }
    crate::programs::directory().parent().map_or_else(std::env::temp_dir, Path::to_path_buf).join("official")
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

    /// The directory that the Python package is in.
    pub fn sdk(&self) -> PathBuf {
        self.bin.ancestors().nth(2).unwrap_or(&self.bin).to_path_buf()
    }

    /// The C library.
    pub fn library(&self) -> PathBuf {
        self.bin.join("libpilot.so")
    }

    /// The programs, for [`crate::agent::Agent`].
    pub fn release(&self) -> Release {
        Release {
            label: format!("official {}", self.version),
            daemon: self.daemon(),
            ctl: self.bin.join("pilotctl"),
            wants_email: true,
            quiet_flags: if WITH_SWITCHES.contains(&self.version.as_str()) {
                &["-telemetry-url", "", "-motd-feed-url", "", "-no-skillinject"]
            } else {
                &[]
            },
        }
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
