//! `set-hostname`: the name of this node, at the registry and for the next start (06 §6.4).

use serde_json::json;

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "set-hostname",
    args: &[Arg::new("<hostname>", "the name; \"\" clears it")],
    about: "set the host name of this node",
    details: "",
    returns: "hostname, node_id",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let answer = app.ask("set-hostname", driver.set_hostname(args.word(0))).await?;
    let hostname = answer["hostname"].as_str().unwrap_or_default();
    let mut config = app.home.load()?;
    if hostname.is_empty() {
        config.0.remove("hostname");
    } else {
        config.0.insert("hostname".into(), hostname.into());
    }
    app.home.save(&config)?;
    app.out.result(&json!({ "hostname": hostname, "node_id": answer["node_id"] }), || {
        if hostname.is_empty() { "hostname cleared\n".into() } else { format!("hostname set: {hostname}\n") }
    });
    Ok(0)
}
