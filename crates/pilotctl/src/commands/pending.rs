//! `pending`: requests for trust that wait (06 §6.7).

use serde_json::{Value, json};

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::go::local_time;
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "pending",
    args: &[],
    about: "list requests for trust that wait",
    details: "",
    returns: "pending [{node_id, public_key, justification, received_at}]",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let answer = app.ask("pending", driver.pending()).await?;
    let data = json!({ "pending": answer["pending"] });
    app.out.result(&data, || table(data["pending"].as_array().map_or(&[], Vec::as_slice)));
    Ok(0)
}

fn table(pending: &[Value]) -> String {
    if pending.is_empty() {
        return "no pending handshake requests\n  \
                requests appear here when another node sends: pilotctl handshake <your-node-id>\n"
            .into();
    }
    let mut text = format!("{:<10}  {:<40}  {}\n", "NODE ID", "JUSTIFICATION", "RECEIVED");
    for entry in pending {
        text.push_str(&format!(
            "{:<10}  {:<40}  {}\n",
            entry["node_id"].as_u64().unwrap_or(0),
            super::line(entry["justification"].as_str().unwrap_or_default()),
            local_time(entry["received_at"].as_i64().unwrap_or(0)),
        ));
    }
    text
}
