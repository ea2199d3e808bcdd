//! `task execute`: begins the accepted task that arrived first (06 §6.6).

use serde_json::json;

use super::Place;
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::table::Command;

pub(crate) const COMMAND: Command = Command {
    name: "task execute",
    args: &[],
    about: "begin the next accepted task",
    details: "",
    returns: "task_id, task_description, status, from",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, _args: &Args) -> Outcome {
    let place = match Place::ours(app).await {
        Some(place) => place,
        None => {
            let received = app.home.config_path().with_file_name("tasks").join("received");
            if !received.is_dir() {
                return Err(CliError::new(Code::NotFound, "no received tasks found"));
            }
            Place::find(app).await?
        }
    };
    let task = place.execute().await?;
    app.out.object(&json!({
        "task_id": task["task_id"], "task_description": task["description"], "status": "EXECUTING",
        "from": task["from"],
    }));
    Ok(0)
}
