//! `rendezvous`: the directory of a network, in the foreground. This program becomes `pilot-rendezvous`.

use std::os::unix::process::CommandExt as _;

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Outcome};
use crate::process;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "rendezvous",
    args: &[
        Arg::new("[flags]", "those of pilot-rendezvous; `pilotctl rendezvous help` lists them"),
        Arg::new("[...]", "more of them"),
    ],
    about: "run registry and beacon here, in the foreground",
    details: "One per network. `pilotctl rendezvous -store registry.redb -tls` keeps what it knows and encrypts.",
    returns: "",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(_app: &App, args: &Args) -> Outcome {
    let words = (0..).map_while(|i| args.get(i)).map(|word| if word == "help" { "-h".into() } else { word.into() });
    // Returns only when it fails: on success this process is the rendezvous.
    let error = process::again(process::RENDEZVOUS_RUN, words)?.exec();
    Err(CliError::internal(format!("start the rendezvous: {error}")))
}
