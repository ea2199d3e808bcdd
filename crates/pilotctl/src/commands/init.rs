//! `init`: writes the configuration file (06 §6.1).

use serde_json::json;

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::home::{DEFAULT_BEACON, DEFAULT_REGISTRY};
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "init",
    args: &[
        Arg::new("--registry <addr>", "registry to register with (default 127.0.0.1:9000)"),
        Arg::new("--beacon <addr>", "beacon for NAT traversal and relay (default 127.0.0.1:9001)"),
        Arg::new("--hostname <name>", "name to register"),
        Arg::new("[--socket <path>]", "socket of the daemon (default /tmp/pilot.sock)"),
    ],
    about: "write ~/.pilot/config.json",
    details: "What is not given keeps the value it has in the file, or gets its default. Other keys stay as they are.",
    returns: "config_path, registry, beacon, socket, hostname",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let mut config = app.home.load()?;
    let defaults = [("registry", DEFAULT_REGISTRY), ("beacon", DEFAULT_BEACON), ("socket", pilot::DEFAULT_SOCKET)];
    let hostname = args.flag("hostname").unwrap_or_default();
    let mut data = json!({ "config_path": app.home.config_path(), "hostname": hostname });
    for (key, default) in defaults {
        // A second init for one setting must not reset the others (06 §24.23).
        let text = match args.flag(key) {
            Some(given) => given.to_owned(),
            None => config.text(&app.home, key)?.unwrap_or_else(|| default.to_owned()),
        };
        data[key] = text.clone().into();
        config.0.insert(key.into(), text.into());
    }
    if let Some(hostname) = args.flag("hostname") {
        config.0.insert("hostname".into(), hostname.into());
    }
    app.home.save(&config)?;
    app.out.object(&data);
    Ok(0)
}
