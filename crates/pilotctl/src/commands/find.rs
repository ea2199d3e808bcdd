//! `find`: the node behind a host name (06 §6.4).

use serde_json::json;

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go::quote;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "find",
    args: &[Arg::new("<hostname>", "name to look up")],
    about: "look up a host name",
    details: "",
    returns: "hostname, node_id, address, public",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let hostname = args.word(0);
    let found = app.ask("find", driver.resolve_hostname(hostname)).await.map_err(|error| {
        let message = format!("cannot find {} — hostname not found or no mutual trust", quote(hostname));
        CliError::new(Code::NotFound, message)
            .hint(format!("establish trust first: pilotctl handshake {hostname} \"reason\""))
            .cause(error.message.strip_prefix("find: ").unwrap_or(&error.message))
    })?;
    let public = found["public"].as_bool().unwrap_or(false);
    let data = json!({
        "hostname": found["hostname"],
        "node_id": found["node_id"],
        "address": found["address"],
        "public": public,
    });
    app.out.result(&data, || {
        format!(
            "Hostname:  {}\nNode ID:   {}\nAddress:   {}\nVisible:   {}\n",
            found["hostname"].as_str().unwrap_or(hostname),
            found["node_id"],
            found["address"].as_str().unwrap_or("?"),
            if public { "public" } else { "private" }
        )
    });
    Ok(0)
}
