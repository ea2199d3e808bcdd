//! `lookup`: what the registry knows of a node (06 §6.3).

use pilot::Address;
use pilot_wire::registry::Request;

use crate::app::App;
use crate::args::{self, Args};
use crate::errors::{CliError, Outcome};
use crate::registry::{Failure, Registry};
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "lookup",
    args: &[Arg::new("<node_id>", "a node id, an address or (with a running daemon) a host name")],
    about: "show what the registry knows of a node",
    details: "Asks the registry itself: PILOT_REGISTRY, or the configuration. real_addr is there for public nodes.",
    returns: "node_id, address, real_addr, public, hostname",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let node = node(app, args.word(0)).await?;
    let registry = Registry::of(&app.home, &app.home.load()?)?;
    let request = Request::Lookup { node };
    let answer = match registry.ask(&request).await {
        // Asking again does no harm.
        Err(Failure::Lost(_)) => registry.ask(&request).await,
        other => other,
    };
    app.out.object(&answer.map_err(|failure| registry.explain("lookup", failure))?);
    Ok(0)
}

async fn node(app: &App, target: &str) -> Result<u32, CliError> {
    if let Ok(address) = target.parse::<Address>() {
        return Ok(address.node);
    }
    let no_number = match args::node(target) {
        Ok(node) => return Ok(node),
        Err(error) => error,
    };
    if target.bytes().all(|b| b.is_ascii_digit()) {
        return Err(no_number);
    }
    // Host names are the daemon's affair; without one, the official error stands.
    let driver = app.driver().await.map_err(|_| no_number)?;
    Ok(app.resolve(&driver, target).await?.node)
}
