//! `reject` (06 §6.7).

use crate::app::App;
use crate::args::{self, Args};
use crate::errors::Outcome;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "reject",
    args: &[Arg::new("<node_id>", "who asked"), Arg::new("[reason]", "why not, told to the other side")],
    about: "refuse a waiting request for trust",
    details: "",
    returns: "status, node_id",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let node = app.node(args.word(0), args::node).await?;
    let answer = app.ask("reject", driver.reject(node, args.word(1))).await?;
    app.out.result(&answer, || format!("handshake from node {node} rejected\n"));
    Ok(0)
}
