//! `demo`: a whole network on this machine, shown at work.

use crate::app::App;
use crate::args::Args;
use crate::demo::{self, Options, Source};
use crate::errors::{CliError, Outcome};
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "demo",
    args: &[
        Arg::new("[--message <text>]", "what alice says to bob"),
        Arg::new("[--file <path>]", "what alice sends to bob (default: 64 MB made up on the spot)"),
        Arg::new("[--keep]", "keep the network running until Ctrl-C"),
    ],
    about: "start a network on this machine and send a message and a file through it",
    details: "Starts a rendezvous and two daemons as processes of their own, in a temporary directory and on loopback,\n\
              lets them trust each other, and sends a message and a file over the encrypted tunnel. Sender and\n\
              receiver hash the file independently. Everything is removed at the end, whatever the end is.",
    returns: "rendezvous, nodes, trust, ping, message, file, tunnel, directory, commands",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let source = match args.flag("file") {
        Some("") => return Err(CliError::argument("--file needs a path")),
        Some(path) => Source::File(path.into()),
        None => Source::Generated,
    };
    let message = args.flag("message").unwrap_or("Hello bob, this is alice.").to_owned();
    demo::run(app, Options { message, source, keep: args.is_set("keep") }).await
}
