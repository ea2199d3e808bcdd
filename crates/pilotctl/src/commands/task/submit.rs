//! `task submit`: asks a peer to do something (06 §6.6).

use serde_json::json;

use super::Place;
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Outcome};
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "task submit",
    args: &[
        Arg::new("<address|hostname>", "the worker: an address, a node id or a host name"),
        Arg::new("--task <description>", "what is to be done"),
        Arg::extra("[--id <id>]", "id of an earlier attempt: the task runs once all the same"),
    ],
    about: "submit a task to a peer",
    details: "A worker takes tasks of peers whose polo score is at least its own; a refusal is a result (accepted: \
              false), not an error.",
    returns: "target, task_id, task, status, message, accepted",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let task = args.flag("task").filter(|task| !task.is_empty());
    let task = task.ok_or_else(|| CliError::argument("--task is required"))?;
    let answer = Place::find(app).await?.submit(address, task, args.flag("id")).await?;
    app.out.object(&json!({
        "target": address.to_string(), "task_id": answer["task_id"], "task": task, "status": answer["status"],
        "message": answer["message"], "accepted": answer["status"] == 200,
    }));
    Ok(0)
}
