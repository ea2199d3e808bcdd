//! The programs of the soak as processes, and what the system says about them.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// A program that can be killed and started again with the same arguments.
pub(super) struct Program {
    name: String,
    path: PathBuf,
    args: Vec<String>,
    home: PathBuf,
    child: Option<Child>,
}

impl Program {
    /// Not started yet. Its log goes to `log` in `home`.
    pub(super) fn new(name: &str, path: PathBuf, args: Vec<String>, home: PathBuf) -> Result<Self> {
        fs::create_dir_all(&home)?;
        Ok(Self { name: name.to_owned(), path, args, home, child: None })
    }

    /// Starts it.
    pub(super) fn start(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = Command::new(&self.path);
        command.env_clear().env("PATH", "/usr/local/bin:/usr/bin:/bin").env("HOME", &self.home).args(&self.args);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().with_context(|| format!("start {}", self.path.display()))?);
        Ok(())
    }

    /// Process id, while it runs.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// How it ended, if it ended although nobody told it to.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        match &mut self.child {
            Some(child) => Ok(child.try_wait()?),
            None => Ok(None),
        }
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// SIGTERM, and waits for the orderly end.
    pub(super) fn stop(&mut self, limit: Duration) -> Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        signal(child.id(), libc::SIGTERM)?;
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "{} was told to stop and ended with {status}", self.name);
                return Ok(());
            }
            if Instant::now() > deadline {
                child.kill()?;
                child.wait()?;
                bail!("{} did not stop within {limit:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log_path(&self) -> PathBuf {
        self.home.join("log")
    }

    /// Lines of the log that nothing excuses.
    pub(super) fn complaints(&self) -> Vec<String> {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let bad = |line: &&str| line.contains("panicked") || line.contains(" ERROR ");
        log.lines().filter(bad).take(5).map(|line| format!("{}: {line}", self.name)).collect()
    }

    /// The end of the log.
    pub(super) fn tail(&self, lines: usize) -> String {
        let log = fs::read(self.log_path()).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Fails only when it is gone already.
        let _ = self.kill();
    }
}

/// Sends a signal.
pub(super) fn signal(pid: u32, signal: i32) -> Result<()> {
    let pid = i32::try_from(pid)?;
    // SAFETY: kill has no memory effects; the process is our child and not yet waited for.
    ensure!(unsafe { libc::kill(pid, signal) } == 0, "signal {signal}: {}", std::io::Error::last_os_error());
    Ok(())
}

/// What the system says about a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    /// Resident memory, KiB.
    pub(super) rss: u64,
    /// Open descriptors.
    pub(super) fds: u64,
    /// Processor time used, milliseconds.
    pub(super) cpu: u64,
}

impl Usage {
    /// Of a process.
    pub(super) fn of(pid: u32) -> Result<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        let rss = rss.trim().trim_end_matches(" kB").parse()?;
        let fds = fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The second field is the name in parentheses and may hold anything.
        let (_, rest) = stat.rsplit_once(')').context("stat")?;
        let ticks: u64 = rest.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
        // SAFETY: sysconf has no preconditions.
        let per_second = u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) })?;
        Ok(Self { rss, fds, cpu: ticks * 1000 / per_second.max(1) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_counts_an_open_file() {
        let before = Usage::of(std::process::id()).expect("own process");
        assert!(before.rss > 100 && before.fds >= 3, "{before:?}");
        let files: Vec<File> = (0..50).map(|_| File::open("/proc/self/status").expect("open")).collect();
        let with = Usage::of(std::process::id()).expect("own process");
        // Other tests of this process open and close some as well.
        assert!(with.fds + 20 >= before.fds + files.len() as u64, "{before:?} {with:?}");
    }
}
