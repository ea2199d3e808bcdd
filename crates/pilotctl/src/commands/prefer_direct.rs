//! `prefer-direct`: lets the daemon look for a direct path to a peer again (07 §12).

use serde_json::Value;

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "prefer-direct",
    args: &[Arg::new("<node_id|address|hostname>", "the peer")],
    about: "reach a peer directly again rather than through the relay",
    details: "Takes a daemon of 1.12.8 or later.",
    returns: "node_id, had_tunnel, was_relay_active, was_relay_pinned, pila_pushed, resolve_error",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let node = address.node;
    let answer = app.ask("prefer-direct", driver.prefer_direct(node)).await.map_err(|error| {
        super::too_old(error, "this daemon is older than the command; restart it from a newer release")
    })?;
    app.out.result(&answer, || text(node, &answer));
    Ok(0)
}

fn text(node: u32, answer: &Value) -> String {
    let was = if answer["was_relay_active"] == true {
        "through the relay"
    } else if answer["had_tunnel"] == true {
        "directly"
    } else {
        "not at all"
    };
    let mut text = format!("looking for a direct path to node {node}; it was reached {was} until now\n");
    if let Some(why) = answer["resolve_error"].as_str().filter(|why| !why.is_empty()) {
        text.push_str(&format!("  the registry does not say where it is: {}\n", super::line(why)));
    }
    text.push_str(&format!("  see the result with: pilotctl ping {node} && pilotctl peers\n"));
    text
}
