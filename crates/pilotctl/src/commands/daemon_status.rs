//! `daemon status`: whether the daemon runs and answers (06 §6.2).

use std::time::Duration;

use pilot::Driver;
use serde_json::{Value, json};

use super::info::number;
use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::go::clock;
use crate::process;
use crate::table::{Arg, Command};

/// Longest wait for an answer; a daemon that takes longer is not responsive.
const WAIT: Duration = Duration::from_secs(5);

pub(crate) const COMMAND: Command = Command {
    name: "daemon status",
    args: &[Arg::new("[--check]", "print nothing; exit with 0 when the daemon answers, else with 1")],
    about: "show whether the daemon runs",
    details: "",
    returns: "running (bool), responsive (bool), pid, pid_file, socket, node_id, address, hostname, uptime_secs, \
              peers, connections",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let socket = app.home.socket()?;
    let asked = tokio::time::timeout(WAIT, async { Driver::connect(&socket).await?.info().await }).await;
    let info = asked.ok().and_then(Result::ok);
    if args.is_set("check") {
        return Ok(u8::from(info.is_none()));
    }
    let pid_file = app.home.pid_path();
    let pid = process::read_pid(&pid_file);
    let running = match pid {
        Some(pid) => process::is_alive(pid) && process::is_daemon(pid, &socket).await,
        None => false,
    };
    if info.is_none() && !running {
        // Stale, or not there.
        let _ = std::fs::remove_file(&pid_file);
    }
    let mut data = json!({
        "running": running || info.is_some(),
        "responsive": info.is_some(),
        "pid": pid.unwrap_or(0),
        "pid_file": pid_file,
        "socket": socket,
    });
    let Some(info) = info else {
        app.out.result(&data, || {
            if running {
                format!(
                    "Daemon: not responding (pid {})\n  restart with: pilotctl daemon stop && pilotctl daemon start\n",
                    pid.unwrap_or(0)
                )
            } else {
                "Daemon: stopped\n  start with: pilotctl daemon start\n".into()
            }
        });
        return Ok(0);
    };
    for key in ["node_id", "address", "hostname", "uptime_secs", "peers", "connections"] {
        data[key] = info[key].clone();
    }
    app.out.result(&data, || text(&info, pid.filter(|_| running)));
    Ok(0)
}

fn text(info: &Value, pid: Option<i32>) -> String {
    let mut text = match pid {
        Some(pid) => format!("Daemon: running (pid {pid})\n"),
        None => "Daemon: running (started by other means)\n".into(),
    };
    let mut row = |label: &str, value: String| text.push_str(&format!("  {label:<13}{value}\n"));
    row("Node ID:", number(&info["node_id"]).to_string());
    row("Address:", super::line(info["address"].as_str().unwrap_or_default()));
    if let Some(hostname) = info["hostname"].as_str().filter(|hostname| !hostname.is_empty()) {
        row("Hostname:", super::line(hostname));
    }
    row("Uptime:", clock(number(&info["uptime_secs"])));
    row("Peers:", number(&info["peers"]).to_string());
    row("Connections:", number(&info["connections"]).to_string());
    text
}
