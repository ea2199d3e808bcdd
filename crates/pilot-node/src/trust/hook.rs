//! The approval hook: a program of the operator that decides about trust requests.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use pilot_wire::{Address, base64};
use tokio::process::Command;

/// A hook that takes longer is ended, and the request waits for a person.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the program; true when it exits with status 0 in time. What the peer said reaches it in environment variables
/// only, never in a shell.
pub(super) async fn ask(program: Option<&Path>, node: u32, key: Option<[u8; 32]>, justification: &str) -> bool {
    let Some(program) = program else { return false };
    let mut command = Command::new(program);
    command
        .env("PILOT_NODE_ID", node.to_string())
        .env("PILOT_ADDRESS", Address::backbone(node).to_string())
        .env("PILOT_PUBLIC_KEY", key.map(|key| base64::encode(&key)).unwrap_or_default())
        .env("PILOT_JUSTIFICATION", justification)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let running = async {
        let mut child = command.spawn()?;
        let mut group = Group(child.id());
        let status = child.wait().await;
        // It has ended by itself: what it left running is meant to run.
        group.0 = None;
        status
    };
    match tokio::time::timeout(TIMEOUT, running).await {
        Ok(Ok(status)) => status.success(),
        Ok(Err(error)) => {
            tracing::warn!(program = %program.display(), %error, "cannot run the approval hook");
            false
        }
        Err(_) => {
            tracing::warn!(program = %program.display(), node, "the approval hook took too long");
            false
        }
    }
}

/// The hook and everything it started. Killed when dropped: a hook that took too long, or outlives the daemon, leaves no
/// orphans (07 §16.57).
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = self.0.and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(leader) = leader {
            // It fails only when all of them are gone.
            let _ = rustix::process::kill_process_group(leader, rustix::process::Signal::KILL);
        }
    }
}
