//! `context`: all commands, for programs that drive this one (06 §6.1).

use serde_json::{Map, Value, json};

use crate::app::App;
use crate::args::Args;
use crate::errors::{Code, Outcome};
use crate::home::DEFAULT_REGISTRY;
use crate::table::{self, Arg, Command};

/// Version of the form of the manifest, as the official tool has it.
const FORM: &str = "1.2";

pub(crate) const COMMAND: Command = Command {
    name: "context",
    args: &[],
    about: "describe all commands as JSON",
    details: "",
    returns: "version, commands {name: {args, description, returns}}, aliases, error_codes, global_flags, environment, config_file",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    app.out.object(&manifest());
    Ok(0)
}

fn manifest() -> Value {
    let commands: Map<String, Value> = table::all()
        .map(|command| {
            let (official, extra): (Vec<&Arg>, Vec<&Arg>) = command.args.iter().partition(|arg| arg.is_official());
            let texts = |args: &[&Arg]| args.iter().map(|arg| Value::from(arg.text())).collect::<Vec<_>>();
            let args = texts(&official);
            let mut entry = json!({ "args": args, "description": command.about, "returns": command.returns });
            if !extra.is_empty() {
                entry["options"] = texts(&extra).into();
            }
            (command.name.to_owned(), entry)
        })
        .collect();
    let codes: Map<String, Value> =
        Code::ALL.iter().map(|code| (code.as_str().to_owned(), code.meaning().into())).collect();
    let aliases: Map<String, Value> =
        table::ALIASES.iter().map(|(alias, name)| ((*alias).to_owned(), (*name).into())).collect();
    json!({
        "version": FORM,
        "commands": commands,
        "aliases": aliases,
        "error_codes": codes,
        "global_flags": { "--json": "print one line of JSON: {\"data\":…,\"status\":\"ok\"}; errors on standard error" },
        "environment": {
            "PILOT_REGISTRY": format!("Registry address (default: {DEFAULT_REGISTRY})"),
            "PILOT_SOCKET": format!("Daemon socket path (default: {})", pilot::DEFAULT_SOCKET),
        },
        "config_file": "~/.pilot/config.json",
    })
}
