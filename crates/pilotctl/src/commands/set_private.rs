//! `set-private` (06 §6.3).

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "set-private",
    args: &[],
    about: "let only trusted nodes learn the endpoint of this node",
    details: "",
    returns: "status",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    super::set_public::set(app, "set-private", false).await
}
