//! Whether another daemon uses our identity. Ours lock the directory; official ones lock nothing, and two nodes with one
//! key take the address from each other without end. So we look for them among the processes of this host.

use std::path::Path;
use std::time::Duration;

use pilot_env::{Env, Process};

use crate::error::NodeError;

/// How long a daemon that is on its way out is waited for.
const PATIENCE: Duration = Duration::from_secs(3);
const INTERVAL: Duration = Duration::from_millis(100);
/// A PID file has a few digits.
const MAX_PID_FILE: u64 = 64;

/// Fails when a daemon that does not go away uses the identity file.
pub(super) async fn check(env: &Env, identity: &Path) -> Result<(), NodeError> {
    let deadline = env.now() + PATIENCE;
    while let Some(pid) = find(env, identity) {
        if env.now() >= deadline {
            let dir = pilot_env::fs::parent(identity).to_owned();
            return Err(NodeError::DirectoryLocked { dir, pid: Some(pid) });
        }
        env.sleep(INTERVAL).await;
    }
    Ok(())
}

fn find(env: &Env, identity: &Path) -> Option<u32> {
    let daemons: Vec<Process> = env.processes().into_iter().filter(is_daemon).collect();
    if daemons.is_empty() || !env.fs().exists(identity) {
        return None;
    }
    let text = env.fs().read_limited(&pilot_env::fs::parent(identity).join("pilot.pid"), MAX_PID_FILE);
    let noted = text.ok().and_then(|text| String::from_utf8_lossy(&text).trim().parse::<u32>().ok());
    let holds = |daemon: &&Process| match identities(&daemon.args) {
        // It says nothing of its identity; the PID file in our directory says that it is at home there.
        named if named.is_empty() => noted == Some(daemon.pid),
        named => named.iter().any(|path| daemon.means(path, identity)),
    };
    daemons.iter().find(holds).map(|daemon| daemon.pid)
}

/// A daemon of any release that is not the process which watches over us (as process 1 of a container does).
fn is_daemon(process: &Process) -> bool {
    let is_named = matches!(process.program(), "pilot-daemon" | "daemon");
    (is_named || process.args.iter().any(|arg| arg == "_daemon-run"))
        && process.pid != std::os::unix::process::parent_id()
}

/// Every value of the flag `identity` on a command line.
fn identities(args: &[String]) -> Vec<&str> {
    let mut found = Vec::new();
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        match arg.trim_start_matches('-') {
            "identity" if arg.starts_with('-') => found.extend(args.next().map(String::as_str)),
            flag => found.extend(flag.strip_prefix("identity=").filter(|_| arg.starts_with('-'))),
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_of_a_command_line_is_found_in_every_spelling() {
        for words in [&["-identity", "a"][..], &["--identity", "a"], &["-identity=a"], &["--identity=a"]] {
            let args: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            assert_eq!(identities(&args), ["a"]);
        }
        assert!(identities(&["identity".to_owned(), "x".to_owned()]).is_empty());
        assert!(identities(&["-identity".to_owned()]).is_empty());
    }
}
