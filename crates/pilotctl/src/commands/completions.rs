//! `completions`: a script that lets a shell complete the words of this program.

use serde_json::json;

use crate::app::App;
use crate::args::Args;
use crate::completions::{SHELLS, script};
use crate::errors::{CliError, Outcome};
use crate::go::quote;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "completions",
    args: &[Arg::new("<shell>", "bash, zsh or fish")],
    about: "print a completion script for a shell",
    details: "  bash:  pilotctl completions bash > ~/.local/share/bash-completion/completions/pilotctl\n  \
              zsh:   pilotctl completions zsh > \"${fpath[1]}/_pilotctl\"\n  \
              fish:  pilotctl completions fish > ~/.config/fish/completions/pilotctl.fish",
    returns: "shell, script",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let shell = args.word(0);
    let script = script(shell).ok_or_else(|| {
        CliError::argument(format!("no completions for the shell {}", quote(shell)))
            .hint(format!("available: {}", SHELLS.join(", ")))
    })?;
    app.out.result(&json!({ "shell": shell, "script": script }), || script.clone());
    Ok(0)
}
