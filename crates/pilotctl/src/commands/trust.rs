//! `trust`: the trusted nodes (06 §6.7).

use serde_json::{Value, json};

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::go::local_time;
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "trust",
    args: &[],
    about: "list trusted nodes",
    details: "",
    returns: "trusted [{node_id, public_key, approved_at, mutual, network}]",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let answer = app.ask("trust", driver.trusted()).await?;
    let data = json!({ "trusted": answer["trusted"] });
    app.out.result(&data, || table(data["trusted"].as_array().map_or(&[], Vec::as_slice)));
    Ok(0)
}

fn table(trusted: &[Value]) -> String {
    if trusted.is_empty() {
        return "no trusted peers\n  establish trust: pilotctl handshake <node_id|hostname> \"reason\"\n".into();
    }
    let mut text = format!("{:<10}  {:<10}  {:<10}  {}\n", "NODE ID", "MUTUAL", "NETWORK", "APPROVED AT");
    for entry in trusted {
        let network = match entry["network"].as_u64().unwrap_or(0) {
            0 => "-".to_owned(),
            network => network.to_string(),
        };
        text.push_str(&format!(
            "{:<10}  {:<10}  {:<10}  {}\n",
            entry["node_id"].as_u64().unwrap_or(0),
            if entry["mutual"] == true { "yes" } else { "no" },
            network,
            local_time(entry["approved_at"].as_i64().unwrap_or(0)),
        ));
    }
    text
}
