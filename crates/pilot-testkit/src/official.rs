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
use crate::isolate::{Unavailable, need_program};

/// Newest official release.
pub const NEWEST: &str = "1.18.0";
/// Oldest official release of the current wire that is tested.
pub const OLDER: &str = "1.7.2";

/// Every release that interoperability is shown with, oldest first.
pub const RELEASES: [&str; 5] = ["0.1.2", OLDER, "1.9.1", "1.13.11", NEWEST];
/// Releases that dial elsewhere by themselves, and have switches against it.
const WITH_SWITCHES: [&str; 2] = ["1.13.11", NEWEST];

/// The flags of a release's daemon against dialling elsewhere.
pub fn quiet_flags(version: &str) -> &'static [&'static str] {
    if WITH_SWITCHES.contains(&version) {
        &["-telemetry-url", "", "-motd-feed-url", "", "-no-skillinject"]
    } else {
        &[]
    }
}

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

/// Releases whose Python SDK is shown to run: the first one and the newest.
pub const SDKS: [&str; 2] = ["0.1.2", NEWEST];

/// Need of the wheels of [`SDKS`], and of what installs them.
pub fn need_wheels() -> Result<(), Unavailable> {
    need_program("python3", "--version")?;
    SDKS.iter().try_for_each(|version| wheel(version).map(drop))
}

/// The wheel of a release, as PyPI has it for the Python here.
pub fn wheel(version: &str) -> Result<PathBuf, Unavailable> {
    let unavailable = |e: String| Unavailable(format!("needs the wheel of pilotprotocol {version} from PyPI: {e}"));
    let dir = cache().join("wheels");
    fs::create_dir_all(&dir).map_err(|e| unavailable(e.to_string()))?;
    let _lock = lock(&dir).map_err(|e| unavailable(e.to_string()))?;
    let kept = dir.join(version);
    if !kept.exists() {
        let fresh = tempfile::tempdir_in(&dir).map_err(|e| unavailable(e.to_string()))?;
        fetch(version, fresh.path(), &[]).map_err(|e| unavailable(format!("{e:#}")))?;
        // Whole or not at all.
        fs::rename(fresh.path(), &kept).map_err(|e| unavailable(e.to_string()))?;
    }
    only_file(&kept).map_err(|e| unavailable(format!("{e:#}")))
}

/// Installs a wheel into a new virtual environment, without asking any index; the environment's interpreter.
pub fn install(wheel: &Path, environment: &Path) -> Result<PathBuf> {
    let succeeds = |command: &mut Command| -> Result<()> {
        let output = command.stdin(Stdio::null()).output().context("python3")?;
        if !output.status.success() {
            bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    };
    // The pip that is here installs into it; unpacking another one would take longer than the rest.
    succeeds(Command::new("python3").args(["-m", "venv", "--without-pip"]).arg(environment))?;
    let python = environment.join("bin").join("python");
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "--python"]).arg(&python);
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-index", "--no-deps", "--no-cache-dir"]);
    succeeds(pip.env("HOME", environment).arg(wheel))?;
    Ok(python)
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
        let _lock = lock(&dir).map_err(|e| unavailable(e.to_string()))?;
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
            quiet_flags: quiet_flags(&self.version),
        }
    }
}

/// Held while the cache changes, by whichever process changes it.
fn lock(dir: &Path) -> std::io::Result<File> {
    let lock = File::create(dir.join(".lock"))?;
    lock.lock()?;
    Ok(lock)
}

/// Lets pip fetch the wheel of a release into a directory.
fn fetch(version: &str, to: &Path, which: &[&str]) -> Result<()> {
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]);
    pip.arg("--only-binary=:all:").args(which);
    pip.arg("--dest").arg(to).arg(format!("pilotprotocol=={version}"));
    let output = pip.stdin(Stdio::null()).output().context("python3")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("pip failed"));
    }
    Ok(())
}

fn only_file(dir: &Path) -> Result<PathBuf> {
    Ok(fs::read_dir(dir)?.next().context("pip left no wheel")??.path())
}

/// The wheels hold the same programs for every Python: this is one that has them all.
const ANY_PYTHON: [&str; 8] = [
    "--python-version",
    "3.11",
    "--implementation",
    "cp",
    "--platform",
    "manylinux_2_35_x86_64",
    "--platform",
    "manylinux_2_34_x86_64",
];

fn download(version: &str, dir: &Path) -> Result<()> {
    let wheels = tempfile::tempdir_in(dir)?;
    fetch(version, wheels.path(), &ANY_PYTHON)?;
    let wheel = only_file(wheels.path())?;
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
