//! `config`: shows the configuration, or sets one key (06 §6.1).

use serde_json::{Value, json};

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Outcome};
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "config",
    args: &[Arg::new("[--set key=value]", "store a value, as a text")],
    about: "show or change the configuration",
    details: "Shows the file with the effective registry and socket and the paths around it.",
    returns: "the configuration, config_path, pid_file, log_file; with --set: key, value",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let mut config = app.home.load()?;
    if let Some(setting) = args.flag("set") {
        let (key, value) = setting
            .split_once('=')
            .filter(|(key, _)| !key.is_empty())
            .ok_or_else(|| CliError::argument("usage: pilotctl config --set key=value"))?;
        config.0.insert(key.into(), value.into());
        app.home.save(&config)?;
        app.out.object(&json!({ "key": key, "value": value }));
        return Ok(0);
    }
    let effective = [("registry", app.home.registry(&config)?), ("socket", app.home.shown_socket()?)];
    let paths =
        [("config_path", app.home.config_path()), ("pid_file", app.home.pid_path()), ("log_file", app.home.log_path())];
    for (key, path) in paths {
        config.0.insert(key.into(), json!(path));
    }
    for (key, text) in effective {
        config.0.insert(key.into(), text.into());
    }
    app.out.object(&Value::Object(config.0));
    Ok(0)
}
