//! Processes: PID files, signals, and children that are this program again under a hidden name.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use pilot_env::Env;
use rustix::process::{Pid, Signal};

use crate::errors::CliError;

/// The hidden command that is the daemon.
pub(crate) const DAEMON_RUN: &str = "_daemon-run";
/// The hidden command that is the rendezvous.
pub(crate) const RENDEZVOUS_RUN: &str = "_rendezvous-run";
/// The hidden command that is a gateway in the background.
pub(crate) const GATEWAY_RUN: &str = "_gateway-run";
/// Set for a child that leaves the terminal behind.
pub(crate) const DETACH_VARIABLE: &str = "_PILOT_DETACH";
/// Set to our process id for a child that must not outlive us.
pub(crate) const PARENT_VARIABLE: &str = "_PILOT_PARENT";
/// Bytes read from the end of a log.
const LOG_TAIL: u64 = 16 * 1024;

/// What a daemon is called in lists of processes. Newer official tools stop only processes of this name, and take the
/// PID file of any other for one that was left behind.
const DAEMON_NAME: &str = "pilot-daemon";

/// This program again, as `command`.
///
/// # Errors
/// `internal` when the system does not tell where this program lies.
pub(crate) fn again(command: &str, arguments: impl IntoIterator<Item = OsString>) -> Result<Command, CliError> {
    let program = std::env::current_exe().map_err(|error| CliError::internal(format!("find this program: {error}")))?;
    let mut child = Command::new(program);
    if command == DAEMON_RUN {
        child.arg0(DAEMON_NAME);
    }
    child.arg(command).args(arguments);
    Ok(child)
}

/// What a child does first: leaves the terminal, or ties its life to the parent's, as the variables say. False when
/// the parent is gone already.
pub(crate) fn settle() -> bool {
    if std::env::var_os(DETACH_VARIABLE).is_some() {
        // Fails only for the leader of a process group, which a child just started is not.
        let _ = rustix::process::setsid();
    }
    let Some(parent) = std::env::var(PARENT_VARIABLE).ok().and_then(|pid| pid.parse::<i32>().ok()) else {
        return true;
    };
    #[cfg(target_os = "linux")]
    let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    // The parent may have died before the line above.
    rustix::process::getppid().map(Pid::as_raw_nonzero).is_some_and(|pid| pid.get() == parent)
}

/// The number in a PID file; `None` when it is missing or holds none.
pub(crate) fn read_pid(path: &Path) -> Option<i32> {
    let text = fs::read_to_string(path).ok()?;
    text.trim().parse().ok().filter(|pid| *pid > 0)
}

/// Whether a process with this number exists. One that has ended and waits to be collected does not.
pub(crate) fn is_alive(pid: i32) -> bool {
    let Some(handle) = Pid::from_raw(pid) else { return false };
    let exists = match rustix::process::test_kill_process(handle) {
        Ok(()) => true,
        Err(error) => error == rustix::io::Errno::PERM,
    };
    exists && !is_zombie(pid)
}

fn is_zombie(pid: i32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // `pid (name) state …`, and the name may hold anything.
    stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Sends a signal; failures mean that the process is gone.
pub(crate) fn signal(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// The process that serves a socket, where the system tells; `None` when nobody does.
pub(crate) async fn serving(socket: &str) -> Option<Option<i32>> {
    let stream = Env::real().unix_connect(Path::new(socket)).await.ok()?;
    Some(stream.peer().pid.and_then(|pid| i32::try_from(pid).ok()))
}

/// Whether the process a PID file names is a daemon of ours and not a stranger that got its number later
/// (06 §24.5): it serves the socket, or was started as a daemon. Where the system tells neither, it is believed.
pub(crate) async fn is_daemon(pid: i32, socket: &str) -> bool {
    if serving(socket).await.flatten() == Some(pid) {
        return true;
    }
    match fs::read(format!("/proc/{pid}/cmdline")) {
        Ok(line) => {
            let line = String::from_utf8_lossy(&line);
            line.contains(DAEMON_RUN) || line.split('\0').next().is_some_and(|program| program.ends_with(DAEMON_NAME))
        }
        Err(_) => !Path::new("/proc/self").exists(),
    }
}

/// The last lines of a log from an offset on, at most `most` of them.
pub(crate) fn log_tail(path: &Path, from: u64, most: usize) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = fs::File::open(path)?;
        let len = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(len.saturating_sub(LOG_TAIL))))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_default();
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(most)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pid_file_holds_a_positive_number_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        assert_eq!(read_pid(&path), None);
        for (text, pid) in [("123", Some(123)), (" 7\n", Some(7)), ("", None), ("x", None), ("-1", None), ("0", None)] {
            fs::write(&path, text).unwrap();
            assert_eq!(read_pid(&path), pid, "{text:?}");
        }
    }

    #[test]
    fn a_process_that_has_ended_is_not_alive_even_uncollected() {
        let mut child = Command::new("true").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let mut waited = 0;
        while is_alive(pid) && waited < 1000 {
            std::thread::sleep(std::time::Duration::from_millis(10));
            waited += 1;
        }
        assert!(!is_alive(pid));
        child.wait().unwrap();
        assert!(is_alive(i32::try_from(std::process::id()).unwrap()));
    }

    #[tokio::test]
    async fn a_stranger_with_the_number_of_a_daemon_is_not_one() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(!is_daemon(me, "/nonexistent/pilot.sock").await);
    }

    #[test]
    fn the_tail_of_a_log_starts_where_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        fs::write(&path, "old\none\n\ntwo\nthree\n").unwrap();
        assert_eq!(log_tail(&path, 4, 2), "two\nthree");
        assert_eq!(log_tail(&path, 4, 9), "one\ntwo\nthree");
        assert_eq!(log_tail(&dir.path().join("none"), 0, 9), "");
    }
}
