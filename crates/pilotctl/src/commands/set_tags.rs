//! `set-tags`: words by which others find this node (06 §6.4).

use serde_json::{Value, json};

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Outcome};
use crate::table::{Arg, Command};

/// More than these the registry does not keep (04 §10.2).
const MOST: usize = 3;

pub(crate) const COMMAND: Command = Command {
    name: "set-tags",
    args: &[
        Arg::new("<tag1>", "a word of lower case letters, digits and dashes; a # in front is taken off"),
        Arg::new("[tag2]", "another"),
        Arg::new("...", "at most three in all"),
    ],
    about: "replace the tags of this node",
    details: "  pilotctl set-tags ml gpu",
    returns: "node_id, tags",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let tags = args.words();
    if tags.len() > MOST {
        return Err(CliError::argument(format!("set-tags: maximum {MOST} tags allowed, got {}", tags.len())));
    }
    let driver = app.driver().await?;
    let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    let answer = app.ask("set-tags", driver.set_tags(&tags)).await?;
    let set = answer["tags"].as_array().cloned().unwrap_or_default();
    app.out.result(&json!({ "node_id": answer["node_id"], "tags": set }), || {
        let set: Vec<String> =
            set.iter().filter_map(Value::as_str).map(|tag| format!("#{}", super::line(tag))).collect();
        if set.is_empty() { "tags set: none\n".into() } else { format!("tags set: {}\n", set.join(" ")) }
    });
    Ok(0)
}
