//! `untrust` (06 §6.7).

use crate::app::App;
use crate::args::{self, Args};
use crate::errors::Outcome;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "untrust",
    args: &[Arg::new("<node_id>", "whom to trust no longer")],
    about: "end trust in a node",
    details: "",
    returns: "node_id",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let node = app.node(args.word(0), args::bare_node).await?;
    let driver = app.driver().await?;
    app.ask("untrust", driver.revoke(node)).await?;
    app.out.object(&serde_json::json!({ "node_id": node }));
    Ok(0)
}
