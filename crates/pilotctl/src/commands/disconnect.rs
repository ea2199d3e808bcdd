//! `disconnect`: closes a stream of the daemon by its id (06 §6.8).

use std::time::Duration;

use serde_json::json;

use crate::app::{App, refused};
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go;
use crate::table::{Arg, Command};

/// The daemon answers at once, whatever the peer does.
const WAIT: Duration = Duration::from_secs(10);

pub(crate) const COMMAND: Command = Command {
    name: "disconnect",
    args: &[Arg::new("<conn_id>", "the id that `pilotctl connections` shows")],
    about: "close a stream of this node",
    details: "An id that no stream has is no error: that stream is closed already.",
    returns: "conn_id",
    raw: true,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let id = go::parse_uint(args.word(0), u64::from(u32::MAX))
        .map_err(|why| CliError::argument(format!("invalid connection ID: {why}")))?;
    let driver = app.driver().await?;
    // The limit above makes the cast lossless.
    match tokio::time::timeout(WAIT, driver.disconnect(id as u32)).await {
        Ok(closed) => closed.map_err(|error| refused("disconnect", error))?,
        Err(_) => {
            return Err(CliError::new(Code::Timeout, "disconnect: no answer from the daemon within 10s")
                .hint("restart it with: pilotctl daemon stop && pilotctl daemon start"));
        }
    }
    app.out.object(&json!({ "conn_id": id }));
    Ok(0)
}
