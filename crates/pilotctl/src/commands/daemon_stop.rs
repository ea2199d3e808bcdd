//! `daemon stop` (06 §6.2).

use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::process;
use crate::table::Command;

/// How long the daemon has to end by itself before it is killed.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often we look.
const INTERVAL: Duration = Duration::from_millis(50);

pub(crate) const COMMAND: Command = Command {
    name: "daemon stop",
    args: &[],
    about: "stop the daemon",
    details: "",
    returns: "pid, forced (bool)",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    let socket = app.home.socket()?;
    let pid_file = app.home.pid_path();
    let not_running = |message: &str| CliError::new(Code::NotRunning, message);
    let Some(pid) = process::read_pid(&pid_file) else {
        return Err(match process::serving(&socket).await {
            None => not_running("daemon is not running"),
            Some(_) => not_running("daemon socket is active but PID file is missing")
                .hint(format!("find and kill the process manually: lsof -U | grep {socket}")),
        });
    };
    if !process::is_alive(pid) || !process::is_daemon(pid, &socket).await {
        let _ = std::fs::remove_file(&pid_file);
        return Err(not_running("daemon is not running (cleaned up stale state)"));
    }
    process::signal(pid, Signal::TERM);
    let deadline = Instant::now() + PATIENCE;
    while process::is_alive(pid) && Instant::now() < deadline {
        sleep(INTERVAL).await;
    }
    let forced = process::is_alive(pid);
    if forced {
        process::signal(pid, Signal::KILL);
    }
    let _ = std::fs::remove_file(&pid_file);
    let data = if forced { json!({ "pid": pid, "forced": true }) } else { json!({ "pid": pid }) };
    let done = if forced { "force-stopped" } else { "stopped" };
    app.out.result(&data, || format!("daemon {done} (pid {pid})\n"));
    Ok(0)
}
