//! `approve` (06 §6.7).

use crate::app::App;
use crate::args::{self, Args};
use crate::errors::Outcome;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "approve",
    args: &[Arg::new("<node_id>", "who asked")],
    about: "grant a waiting request for trust",
    details: "",
    returns: "status, node_id",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let node = app.node(args.word(0), args::node).await?;
    let answer = app.ask("approve", driver.approve(node)).await?;
    app.out.result(&answer, || format!("trust established with node {node}\n  try: pilotctl ping {node}\n"));
    Ok(0)
}
