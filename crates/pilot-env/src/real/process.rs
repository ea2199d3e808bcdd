//! Processes of the real machine, out of `/proc`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::process::Process;

/// Longest command line read, in bytes; longer ones are read in part.
const MAX_COMMAND_LINE: u64 = 64 * 1024;

pub(crate) fn others() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let own = std::process::id();
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter(|pid| *pid != own).filter_map(read).collect()
}

/// `None` when it has ended, or has no command line (kernel threads, processes waiting to be collected).
fn read(pid: u32) -> Option<Process> {
    use std::io::Read as _;
    let base = PathBuf::from(format!("/proc/{pid}"));
    let mut line = Vec::new();
    std::fs::File::open(base.join("cmdline")).ok()?.take(MAX_COMMAND_LINE).read_to_end(&mut line).ok()?;
    let text = String::from_utf8_lossy(&line);
    let args: Vec<String> = text.trim_end_matches('\0').split('\0').map(str::to_owned).collect();
    let known = args.iter().any(|arg| !arg.is_empty());
    known.then(|| Process { pid, args, cwd: base.join("cwd"), root: base.join("root") })
}

pub(crate) fn cpu_time() -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec of ours; the call has no other conditions.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) } != 0;
    let (secs, nanos) = (u64::try_from(time.tv_sec).ok()?, u32::try_from(time.tv_nsec).ok()?);
    (!failed).then(|| Duration::new(secs, nanos))
}

pub(crate) fn is_same_file(a: &Path, b: &Path) -> bool {
    let id = |path: &Path| std::fs::metadata(path).ok().map(|meta| (meta.dev(), meta.ino()));
    id(a).is_some_and(|a| id(b) == Some(a))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn a_process_is_seen_with_its_arguments_and_its_paths() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("identity.key");
        std::fs::write(&file, "x").unwrap();
        let mut child =
            std::process::Command::new("sleep").args(["600", "--"]).current_dir(dir.path()).spawn().unwrap();
        // Until it has become `sleep`, it is a copy of this program, and for a moment it has no command line at all.
        let seen = loop {
            let seen = others().into_iter().find(|process| process.pid == child.id());
            if let Some(seen) = seen.filter(|seen| seen.program() == "sleep") {
                break seen;
            }
            assert!(child.try_wait().unwrap().is_none(), "it runs for ten minutes");
            std::thread::sleep(std::time::Duration::from_millis(5));
        };
        assert_eq!(seen.args, ["sleep", "600", "--"]);
        assert!(seen.means("identity.key", &file) && seen.means(file.to_str().unwrap(), &file));
        assert!(!seen.means("other.key", &file));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(others().iter().all(|process| process.pid != std::process::id()));
    }
}
