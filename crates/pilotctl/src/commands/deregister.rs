//! `deregister`: takes this node off the registry (06 §6.3).

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "deregister",
    args: &[],
    about: "take this node off the registry",
    details: "Its address stays reserved for its key. The daemon goes on, and registers again when it is restarted.",
    returns: "status",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let answer = app.ask("deregister", driver.deregister()).await?;
    app.out.object(&answer);
    Ok(0)
}
