//! `version`: which pilotctl this is.

use serde_json::json;

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "version",
    args: &[],
    about: "print the version",
    details: "",
    returns: "version",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    let version = env!("CARGO_PKG_VERSION");
    app.out.result(&json!({ "version": version }), || format!("pilotctl {version}\n"));
    Ok(0)
}
