//! `task accept` and `task decline`: the worker's word on a new task (06 §6.6).

use pilot_services::tasks::{DECISION_MS, Decision};
use serde_json::json;

use super::Place;
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::table::{Arg, Command};

pub(crate) const ACCEPT: Command = Command {
    name: "task accept",
    args: &[Arg::new("--id <id>", "the task")],
    about: "accept a new task, within a minute",
    details: "",
    returns: "task_id, status, message",
    raw: false,
    run: |app, args| Box::pin(run(app, args, true)),
};

pub(crate) const DECLINE: Command = Command {
    name: "task decline",
    args: &[Arg::new("--id <id>", "the task"), Arg::new("--justification <reason>", "why")],
    about: "decline a new task",
    details: "",
    returns: "task_id, status, justification, message",
    raw: false,
    run: |app, args| Box::pin(run(app, args, false)),
};

async fn run(app: &App, args: &Args, accept: bool) -> Outcome {
    let given = |name: &str| {
        let value = args.flag(name).filter(|value| !value.is_empty());
        value.ok_or_else(|| CliError::argument(format!("--{name} is required")))
    };
    let id = given("id")?;
    let why = if accept { "" } else { given("justification")? };
    let place = match Place::ours(app).await {
        Some(place) => place,
        None => {
            // What the files say comes first, daemon or not.
            let task = super::received(app, id)?;
            super::must_be_new(&task)?;
            let age = pilot_env::Env::real().unix().as_millis().saturating_sub(task.created_ms().max(0) as u128);
            if accept && age > DECISION_MS as u128 {
                let text = format!("task {id} has expired (accept deadline was 1 minute after creation)");
                return Err(CliError::new(Code::Expired, text));
            }
            Place::find(app).await?
        }
    };
    let decision = if accept { Decision::Accept } else { Decision::Decline(why.to_owned()) };
    let told = place.decide(id, decision).await?;
    let failed = if told { "" } else { " (submitter notification failed)" };
    app.out.object(&if accept {
        json!({ "task_id": id, "status": "ACCEPTED", "message": format!("Task accepted{failed}") })
    } else {
        let message = format!("Task declined{failed}");
        json!({ "task_id": id, "status": "DECLINED", "justification": why, "message": message })
    });
    Ok(0)
}
