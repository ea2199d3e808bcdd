//! `connections`: the streams of this node (06 §6.8).

use serde_json::{Value, json};

use super::info::number;
use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::go::size;
use crate::table::Command;

/// Rows for people; JSON mode lists all.
const MOST_ROWS: usize = 50;

pub(crate) const COMMAND: Command = Command {
    name: "connections",
    args: &[],
    about: "list the streams of this node, with their counters",
    details: "",
    returns: "connections [{id, local_port, remote_addr, remote_port, state, ...}], total",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let info = app.ask("connections", driver.info()).await?;
    let connections = info["conn_list"].as_array().map_or(&[][..], Vec::as_slice);
    let data = json!({ "connections": connections, "total": connections.len() });
    app.out.result(&data, || table(connections));
    Ok(0)
}

fn table(connections: &[Value]) -> String {
    if connections.is_empty() {
        return "no active connections\n  \
                connect to a peer: pilotctl connect <address|hostname> --message \"hello\"\n"
            .into();
    }
    let mut text = format!(
        "Active connections: {}\n\n{:<4}  {:<6}  {:<22}  {:<6}  {:<11}  {:<8}  {:<8}  {:<8}  {:<6}  {:<6}  {:<8}  {:<8}\n",
        connections.len(),
        "ID",
        "LOCAL",
        "REMOTE ADDR",
        "RPORT",
        "STATE",
        "CWND",
        "FLIGHT",
        "SRTT",
        "UNACK",
        "OOO",
        "PEERWIN",
        "RCVWIN"
    );
    for connection in connections.iter().take(MOST_ROWS) {
        let count = |key: &str| number(&connection[key]);
        let word = |key: &str| super::line(connection[key].as_str().unwrap_or_default());
        text.push_str(&format!(
            "{:<4}  {:<6}  {:<22}  {:<6}  {:<11}  {:<8}  {:<8}  {:<6}ms  {:<6}  {:<6}  {:<8}  {:<8}\n",
            count("id"),
            count("local_port"),
            word("remote_addr"),
            count("remote_port"),
            word("state"),
            size(count("cong_win")),
            size(count("in_flight")),
            count("srtt_ms"),
            count("unacked"),
            count("ooo_buf"),
            size(count("peer_recv_win")),
            size(count("recv_win")),
        ));
        text.push_str(&format!(
            "      tx: {} ({} segs)  rx: {} ({} segs)  retx: {}  fast-retx: {}  sack: {}/{}  dup-ack: {}\n",
            size(count("bytes_sent")),
            count("segs_sent"),
            size(count("bytes_recv")),
            count("segs_recv"),
            count("retransmits"),
            count("fast_retx"),
            count("sack_sent"),
            count("sack_recv"),
            count("dup_acks"),
        ));
    }
    if connections.len() > MOST_ROWS {
        text.push_str(&format!(
            "… and {} more (all of them: pilotctl --json connections)\n",
            connections.len() - MOST_ROWS
        ));
    }
    text
}
