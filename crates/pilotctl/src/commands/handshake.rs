//! `handshake`: asks a node for trust (06 §6.7).

use pilot::Address;

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go::{self, quote};
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "handshake",
    args: &[
        Arg::new("<node_id|address|hostname>", "whom to ask"),
        Arg::new("[justification]", "why, shown to the other side"),
    ],
    about: "ask a node for trust",
    details: "Two nodes that ask each other trust each other at once; otherwise the other side approves.",
    returns: "status, node_id",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let target = args.word(0);
    let node = if let Ok(node) = go::parse_uint(target, u64::from(u32::MAX)) {
        // The limit above makes the cast lossless.
        node as u32
    } else if let Ok(address) = target.parse::<Address>() {
        app.out.note(&format!("parsed address {target} → node {}", address.node));
        address.node
    } else {
        let unresolved = |why: &str| CliError::new(Code::NotFound, format!("resolve {}: {why}", quote(target)));
        let found = app
            .ask("handshake", driver.resolve_hostname(target))
            .await
            .map_err(|error| unresolved(error.message.strip_prefix("handshake: ").unwrap_or(&error.message)))?;
        let node = found["node_id"].as_u64().and_then(|node| u32::try_from(node).ok());
        let node = node.ok_or_else(|| unresolved("the registry's answer holds no node id"))?;
        app.out.note(&format!("resolved {target} → node {node}"));
        node
    };
    let answer = app.ask("handshake", driver.handshake(node, args.word(1))).await?;
    app.out.result(&answer, || {
        if answer["status"] == "already_trusted" {
            return format!("node {node} is already trusted\n  try: pilotctl ping {node}\n");
        }
        format!(
            "handshake request sent to node {node}\n  \
             next: node {node} must approve — or send a handshake back for auto-approval\n  \
             check: pilotctl trust\n"
        )
    });
    Ok(0)
}
