//! `clear-hostname`: gives the name of this node up (06 §6.4).

use serde_json::json;

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "clear-hostname",
    args: &[],
    about: "give the host name of this node up",
    details: "The next start of the daemon claims no name either.",
    returns: "hostname, node_id",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    let driver = app.driver().await?;
    app.ask("clear-hostname", driver.set_hostname("")).await?;
    let mut config = app.home.load()?;
    if config.0.remove("hostname").is_some() {
        app.home.save(&config)?;
    }
    app.out.result(&json!({ "hostname": "" }), || "hostname cleared\n".into());
    Ok(0)
}
