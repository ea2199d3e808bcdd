//! `clear-tags` (06 §6.4).

use serde_json::json;

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "clear-tags",
    args: &[],
    about: "take all tags off this node",
    details: "",
    returns: "node_id, tags",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    let driver = app.driver().await?;
    app.ask("clear-tags", driver.set_tags(&[])).await?;
    app.out.result(&json!({ "tags": [] }), || "tags cleared\n".into());
    Ok(0)
}
