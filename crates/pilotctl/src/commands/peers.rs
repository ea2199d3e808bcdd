//! `peers`: the nodes this one has tunnels with (06 §6.8).

use serde_json::{Value, json};

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::go::quote;
use crate::table::{Arg, Command};

/// Rows for people unless told otherwise; JSON mode lists all.
const ROWS: i64 = 50;

pub(crate) const COMMAND: Command = Command {
    name: "peers",
    args: &[
        Arg::new("[--search <query>]", "part of a node id or of an endpoint"),
        Arg::new("[--limit <n>]", "rows for people to read (default 50, 0 for all)"),
        Arg::new("[--all]", "all rows"),
    ],
    about: "list the nodes this one has tunnels with",
    details: "",
    returns: "peers [{node_id, endpoint, encrypted, authenticated}], encrypted, shown, total",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let limit = if args.is_set("all") { 0 } else { args.int("limit", ROWS)? };
    // Zero and less are no limit.
    let rows = usize::try_from(limit).ok().filter(|rows| *rows > 0).unwrap_or(usize::MAX);
    let driver = app.driver().await?;
    let info = app.ask("peers", driver.info()).await?;
    let query = args.flag("search").map(str::to_lowercase);
    let all = info["peer_list"].as_array().map_or(&[][..], Vec::as_slice);
    let peers: Vec<&Value> =
        all.iter().filter(|peer| query.as_deref().is_none_or(|query| matches(peer, query))).collect();
    // An empty list is null, as everywhere in lists this tool builds itself (06 §2.2).
    let list = if peers.is_empty() { Value::Null } else { json!(peers) };
    let encrypted = peers.iter().filter(|peer| peer["encrypted"] == true).count();
    let data = json!({ "peers": list, "encrypted": encrypted, "shown": peers.len(), "total": peers.len() });
    app.out.result(&data, || table(&peers, args.flag("search"), rows));
    Ok(0)
}

fn matches(peer: &Value, query: &str) -> bool {
    peer["node_id"].as_u64().is_some_and(|node| node.to_string().contains(query))
        || peer["endpoint"].as_str().is_some_and(|endpoint| endpoint.to_lowercase().contains(query))
}

fn table(peers: &[&Value], query: Option<&str>, rows_shown: usize) -> String {
    if peers.is_empty() {
        return match query {
            Some(query) => format!("no peers matching {}\n", quote(query)),
            None => "no peers connected\n  peers appear when you communicate with other nodes\n".into(),
        };
    }
    // Only our daemon tells by which way and under which keys it talks.
    let more = peers.iter().any(|peer| peer["path"].is_string());
    let mut rows = vec![["NODE ID", "ENDPOINT", "ENCRYPTED", "AUTH", "PATH", "KEYS"].map(str::to_owned)];
    for peer in peers.iter().take(rows_shown) {
        let word = |key: &str| super::line(peer[key].as_str().unwrap_or("-")).to_string();
        rows.push([
            peer["node_id"].as_u64().unwrap_or(0).to_string(),
            super::line(peer["endpoint"].as_str().unwrap_or_default()).to_string(),
            if peer["encrypted"] == true { "yes (AES-256-GCM)" } else { "no" }.to_owned(),
            if peer["authenticated"] == true { "yes (Ed25519)" } else { "no" }.to_owned(),
            word("path"),
            format!("scheme {}, generation {}", word("scheme"), peer["generation"].as_u64().unwrap_or(0)),
        ]);
    }
    let mut text = String::new();
    for [node, endpoint, encrypted, auth, path, keys] in &rows {
        text.push_str(&format!("{node:<10}  {endpoint:<30}  {encrypted:<20}  "));
        text.push_str(&if more { format!("{auth:<13}  {path:<6}  {keys}\n") } else { format!("{auth}\n") });
    }
    if peers.len() > rows_shown {
        text.push_str(&format!("… and {} more (all of them: pilotctl peers --all)\n", peers.len() - rows_shown));
    }
    text
}
