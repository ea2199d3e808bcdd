//! `trust`: the trusted nodes (06 §6.7).

use serde_json::{Value, json};

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::go::{local_time, quote};
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "trust",
    args: &[Arg::new("[--search <query>]", "part of a node id or of a public key")],
    about: "list trusted nodes",
    details: "",
    returns: "trusted [{node_id, public_key, approved_at, mutual, network}], total",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let answer = app.ask("trust", driver.trusted()).await?;
    let query = args.flag("search").map(str::to_lowercase);
    let mut trusted = answer["trusted"].as_array().cloned().unwrap_or_default();
    if let Some(query) = &query {
        trusted.retain(|entry| matches(entry, query));
    }
    let data = json!({ "trusted": trusted, "total": trusted.len() });
    app.out.result(&data, || match &query {
        Some(query) if trusted.is_empty() => format!("no trusted peers matching {}\n", quote(query)),
        _ => table(&trusted),
    });
    Ok(0)
}

fn matches(entry: &Value, query: &str) -> bool {
    entry["node_id"].as_u64().is_some_and(|node| node.to_string().contains(query))
        || entry["public_key"].as_str().is_some_and(|key| key.to_lowercase().contains(query))
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
