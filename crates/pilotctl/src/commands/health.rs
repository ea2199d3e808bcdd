//! `health`: the daemon in a few numbers (07 §12).

use serde_json::Value;

use super::info::number;
use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::go::{clock, size};
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "health",
    args: &[],
    about: "show in short how the daemon is",
    details: "Exits with 0 whenever the daemon answers; status is ok, or degraded while it cannot reach its registry.",
    returns: "status, uptime_seconds, peers, encrypted_peers, authenticated_peers, relay_peer_count, connections, \
              handshake_pending_count, bytes_sent, bytes_recv, beacon_addr, accept_queue_drops",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let health = app
        .ask("health", driver.health())
        .await
        .map_err(|error| super::too_old(error, "this daemon is older than the command; try: pilotctl info"))?;
    app.out.result(&health, || text(&health));
    Ok(0)
}

fn text(health: &Value) -> String {
    let count = |key: &str| number(&health[key]);
    let status = super::line(health["status"].as_str().unwrap_or("unknown"));
    let mut text = format!("Daemon: {status}\n");
    let mut row = |label: &str, value: String| text.push_str(&format!("  {label:<13}{value}\n"));
    row("Uptime:", clock(count("uptime_seconds")));
    row(
        "Peers:",
        format!(
            "{} ({} encrypted, {} authenticated, {} by relay)",
            count("peers"),
            count("encrypted_peers"),
            count("authenticated_peers"),
            count("relay_peer_count")
        ),
    );
    row("Connections:", count("connections").to_string());
    row("Traffic:", format!("{} sent / {} recv", size(count("bytes_sent")), size(count("bytes_recv"))));
    if let Some(beacon) = health["beacon_addr"].as_str().filter(|beacon| !beacon.is_empty()) {
        row("Beacon:", super::line(beacon));
    }
    match count("handshake_pending_count") {
        0 => {}
        waiting => row("Waiting:", format!("{waiting} request(s) for trust; see them with: pilotctl pending")),
    }
    match count("accept_queue_drops") {
        0 => {}
        drops => row("Dropped:", format!("{drops} streams that no program accepted in time")),
    }
    if status == "degraded" {
        text.push_str("  the daemon cannot reach its registry; see why with: pilotctl info\n");
    }
    text
}
