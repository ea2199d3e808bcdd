//! `info`: the daemon's status (06 §7).

use serde_json::Value;

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Outcome};
use crate::go::{clock, quote, size};
use crate::printer::Printer;
use crate::table::{Arg, Command};

/// Rows for people; JSON mode lists all.
const MOST_ROWS: usize = 50;

pub(crate) const COMMAND: Command = Command {
    name: "info",
    args: &[Arg::new("[--format json|table]", "json is the same as --json")],
    about: "show the status of the daemon",
    details: "",
    returns: "node_id, address, hostname, uptime_secs, connections, ports, peers, encrypt, bytes_sent, bytes_recv, \
              conn_list, peer_list, and more",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let json = match args.flag("format") {
        None => app.out.is_json(),
        Some("json") => true,
        Some("table") => false,
        Some(other) => {
            return Err(CliError::argument(format!("unknown format {}", quote(other))).hint("available: json, table"));
        }
    };
    let app = &App { out: Printer::new(json), home: app.home.clone() };
    let driver = app.driver().await?;
    let info = app.ask("info", driver.info()).await?;
    app.out.result(&info, || text(&info));
    Ok(0)
}

pub(crate) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| value.as_f64().unwrap_or(0.0) as u64)
}

fn text(info: &Value) -> String {
    let mut text = String::from("Pilot Protocol Daemon\n");
    let mut row = |label: &str, value: String| text.push_str(&format!("  {label:<13}{value}\n"));
    let word = |key: &str| info[key].as_str().filter(|text| !text.is_empty()).map(super::line);
    let count = |key: &str| number(&info[key]);
    row("Node ID:", count("node_id").to_string());
    row("Address:", word("address").unwrap_or_else(|| "not registered yet".into()));
    if let Some(hostname) = word("hostname") {
        row("Hostname:", hostname);
    }
    if let Some(version) = word("version") {
        row("Version:", version);
    }
    row("Uptime:", clock(count("uptime_secs")));
    row("Connections:", count("connections").to_string());
    row("Ports:", count("ports").to_string());
    row("Peers:", count("peers").to_string());
    row(
        "Encryption:",
        match info["encrypt"].as_bool() {
            Some(false) => "disabled".into(),
            _ => format!(
                "enabled (X25519 + AES-256-GCM), {}/{} peers encrypted, {} authenticated",
                count("encrypted_peers"),
                count("peers"),
                count("authenticated_peers")
            ),
        },
    );
    let key: String = word("public_key").unwrap_or_default().chars().take(16).collect();
    row(
        "Identity:",
        match info["identity"].as_bool() {
            Some(true) => format!("persistent (Ed25519 {key}...)"),
            _ => "ephemeral (not persisted)".into(),
        },
    );
    for (label, key) in
        [("Owner:", "owner"), ("Email:", "email"), ("Endpoint:", "endpoint"), ("Beacon:", "beacon_addr")]
    {
        if let Some(value) = word(key) {
            row(label, value);
        }
    }
    row("Traffic:", format!("{} sent / {} recv", size(count("bytes_sent")), size(count("bytes_recv"))));
    row("Packets:", format!("{} sent / {} recv", count("pkts_sent"), count("pkts_recv")));
    if let Some(connections) = info["conn_list"].as_array().filter(|list| !list.is_empty()) {
        text.push_str(&table(connections));
    }
    text
}

fn table(connections: &[Value]) -> String {
    let mut text = format!("\nActive connections: {}\n", connections.len());
    text.push_str(&format!(
        "  {:<4}  {:<6}  {:<22}  {:<6}  {:<11}  {:<8}  {:<8}  {:<6}\n",
        "ID", "LOCAL", "REMOTE ADDR", "RPORT", "STATE", "CWND", "FLIGHT", "SRTT"
    ));
    for connection in connections.iter().take(MOST_ROWS) {
        text.push_str(&format!(
            "  {:<4}  {:<6}  {:<22}  {:<6}  {:<11}  {:<8}  {:<8}  {}ms\n",
            number(&connection["id"]),
            number(&connection["local_port"]),
            super::line(connection["remote_addr"].as_str().unwrap_or_default()),
            number(&connection["remote_port"]),
            super::line(connection["state"].as_str().unwrap_or_default()),
            size(number(&connection["cong_win"])),
            size(number(&connection["in_flight"])),
            number(&connection["srtt_ms"]),
        ));
    }
    if connections.len() > MOST_ROWS {
        text.push_str(&format!("  … and {} more (all of them: pilotctl --json info)\n", connections.len() - MOST_ROWS));
    }
    text
}
