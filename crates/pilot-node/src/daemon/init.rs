//! The daemon as process 1 of a container. The kernel gives process 1 two duties that a daemon does not have: signals it
//! does not handle are thrown away, and orphans of the whole container are its children, which it must collect. So this
//! process does these two things, and the daemon is its child.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use tokio::signal::unix::{Signal as Signals, SignalKind, signal};

/// Set for the child, which may be process 1 of nothing.
const VARIABLE: &str = "_PILOT_INIT";

/// Whether this process is process 1.
pub(super) fn is_needed() -> bool {
    std::process::id() == 1 && std::env::var_os(VARIABLE).is_none()
}

/// Runs the daemon as a child until it ends. Its exit status is ours; a signal that ended it is 128 and its number.
/// `None` when no child can be started: then this process is the daemon itself.
pub(super) fn run() -> Option<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    runtime.block_on(async {
        // Before the child exists, so that its end is not missed.
        let mut children = signal(SignalKind::child()).ok()?;
        let mut forwarded = [
            (signal(SignalKind::terminate()).ok()?, Signal::TERM),
            (signal(SignalKind::interrupt()).ok()?, Signal::INT),
            (signal(SignalKind::hangup()).ok()?, Signal::HUP),
        ];
        let program = std::env::current_exe().map_or_else(|_| std::env::args_os().next(), |path| Some(path.into()))?;
        let args: Vec<OsString> = std::env::args_os().skip(1).collect();
        let child = Command::new(program).args(args).env(VARIABLE, "1").spawn().ok()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw)?;
        let [(terminate, term), (interrupt, int), (hangup, hup)] = &mut forwarded;
        loop {
            tokio::select! {
                _ = children.recv() => if let Some(code) = collect(pid) { return Some(code) },
                () = heard(terminate) => pass_on(pid, *term),
                () = heard(interrupt) => pass_on(pid, *int),
                () = heard(hangup) => pass_on(pid, *hup),
            }
        }
    })
}

async fn heard(signals: &mut Signals) {
    signals.recv().await;
}

fn pass_on(pid: Pid, signal: Signal) {
    // It fails only when the child has ended, which is noticed next.
    let _ = rustix::process::kill_process(pid, signal);
}

/// Collects every process that has ended. The exit status, when the daemon is among them.
fn collect(daemon: Pid) -> Option<ExitCode> {
    let mut code = None;
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == daemon {
            code = Some(exit_code(status));
        }
    }
    code
}

fn exit_code(status: WaitStatus) -> ExitCode {
    let number = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    ExitCode::from(number.and_then(|number| u8::try_from(number).ok()).unwrap_or(1))
}
