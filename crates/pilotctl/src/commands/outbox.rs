//! `outbox`: what waits to be delivered, and what became of it (docs/messages.md).

use serde_json::{Value, json};

use super::mail;
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Outcome};
use crate::go;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "outbox",
    args: &[
        Arg::new("[action]", "list (default), status, cancel or retry"),
        Arg::new("[id]", "the message, for the other three"),
        Arg::new("[--all]", "with list: also what was delivered lately"),
    ],
    about: "show and steer what waits to be delivered",
    details: "States: queued, sending, delivered, read, expired, refused, cancelled. What expired or was refused is kept\n\
              until it is cancelled (thrown away) or retried with a fresh deadline.",
    returns: "messages [{message_id, to, type, bytes, state, attempts, last_error, deadline, reason, dead_letter}], total",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let action = args.get(0).unwrap_or("list");
    let id = || args.get(1).ok_or_else(|| CliError::argument(format!("usage: pilotctl outbox {action} <id>")));
    let method = match action {
        "list" => {
            let mut answer =
                driver.call("outbox.list", &json!({ "all": args.is_set("all") })).await.map_err(mail::refused)?;
            let messages = answer["messages"].take();
            let list = messages.as_array().cloned().unwrap_or_default();
            let data = json!({ "messages": list, "total": list.len() });
            app.out.result(&data, || human(&list));
            return Ok(0);
        }
        "status" => "outbox.status",
        "cancel" => "outbox.cancel",
        "retry" => "outbox.retry",
        other => {
            return Err(CliError::argument(format!("unknown outbox subcommand: {}", super::line(other)))
                .hint("available: list, status, cancel, retry"));
        }
    };
    let state = driver.call(method, &json!({ "message_id": id()? })).await.map_err(mail::refused)?;
    app.out.object(&state);
    Ok(0)
}

fn human(messages: &[Value]) -> String {
    if messages.is_empty() {
        return "nothing waits to be delivered\n  queue a message with: pilotctl send-message <peer> --queue --data \"hello\"\n".into();
    }
    let mut text = format!("{:<34} {:<18} {:<9} {:>9}  STATE\n", "ID", "TO", "TYPE", "BYTES");
    for message in messages {
        let word = |key: &str| super::line(message[key].as_str().unwrap_or_default());
        let bytes = go::size(message["bytes"].as_u64().unwrap_or(0));
        text.push_str(&format!(
            "{:<34} {:<18} {:<9} {bytes:>9}  {}",
            word("message_id"),
            word("to"),
            word("type"),
            word("state")
        ));
        for (key, what) in [("reason", ""), ("last_error", "last failure: ")] {
            if !word(key).is_empty() {
                text.push_str(&format!(" ({what}{})", word(key)));
            }
        }
        text.push('\n');
    }
    text
}
