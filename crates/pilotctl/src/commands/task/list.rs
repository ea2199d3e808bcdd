//! `task list` and `task queue` (06 §6.6).

use std::fmt::Write as _;
use std::sync::Arc;

use pilot::{Address, SocketAddress};
use pilot_services::tasks::Side;
use pilot_services::{CallError, Dialing, Network};
use serde_json::{Value, json};

use super::Place;
use crate::app::App;
use crate::args::Args;
use crate::commands::line;
use crate::errors::{CliError, Outcome};
use crate::table::{Arg, Command};

pub(crate) const LIST: Command = Command {
    name: "task list",
    args: &[Arg::new("[--type <received|submitted>]", "only these")],
    about: "list tasks",
    details: "",
    returns: "tasks [{task_id, description, status, from, to, created_at, category}]",
    raw: false,
    run: |app, args| Box::pin(list(app, args)),
};

pub(crate) const QUEUE: Command = Command {
    name: "task queue",
    args: &[],
    about: "list accepted tasks in the order in which they are executed",
    details: "",
    returns: "queue [{task_id, description, from, created_at}], count",
    raw: false,
    run: |app, args| Box::pin(queue(app, args)),
};

/// No way to anybody: the files are only read.
struct Nowhere;

impl Network for Nowhere {
    fn address(&self) -> Address {
        Address::backbone(0)
    }

    fn dial(&self, _remote: SocketAddress) -> Dialing {
        Box::pin(async { Err(CallError::new("not_running", "daemon is not running")) })
    }

    fn trusted(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// Our daemon, or the files; `None` when there are no tasks.
async fn place(app: &App) -> Result<Option<Place>, CliError> {
    if let Some(ours) = Place::ours(app).await {
        return Ok(Some(ours));
    }
    // Looking creates nothing.
    if !app.home.config_path().with_file_name("tasks").is_dir() {
        return Ok(None);
    }
    Ok(Some(Place::Files(super::files(app, Arc::new(Nowhere))?)))
}

fn text<'a>(task: &'a Value, key: &str) -> &'a str {
    task[key].as_str().unwrap_or_default()
}

async fn list(app: &App, args: &Args) -> Outcome {
    let wanted = args.flag("type").unwrap_or_default();
    let place = place(app).await?;
    let mut tasks = Vec::new();
    for side in [Side::Received, Side::Submitted] {
        let Some(place) = place.as_ref().filter(|_| wanted.is_empty() || wanted == side.as_str()) else { continue };
        for task in place.list("task.list", side).await? {
            tasks.push(json!({
                "task_id": task["task_id"], "description": task["description"], "status": task["status"],
                "from": task["from"], "to": task["to"], "created_at": task["created_at"],
                "category": side.as_str(),
            }));
        }
    }
    app.out.result(&json!({ "tasks": tasks }), || {
        if tasks.is_empty() {
            return "No tasks found\n".to_owned();
        }
        let mut out = String::new();
        for task in &tasks {
            let part = |key| line(text(task, key));
            let _ = writeln!(
                out,
                "[{}] {} ({}) - {}\n  From: {} → To: {}",
                part("category"),
                part("task_id"),
                part("status"),
                part("description"),
                part("from"),
                part("to")
            );
        }
        out
    });
    Ok(0)
}

async fn queue(app: &App, _args: &Args) -> Outcome {
    let tasks = match place(app).await? {
        Some(place) => place.list("task.queue", Side::Received).await?,
        None => Vec::new(),
    };
    let entries: Vec<Value> = tasks
        .iter()
        .map(|task| {
            json!({
                "task_id": task["task_id"], "description": task["description"], "from": task["from"],
                "created_at": task["created_at"],
            })
        })
        .collect();
    // As the official tool has it: no count when there is nothing to count.
    let result =
        if entries.is_empty() { json!({ "queue": [] }) } else { json!({ "queue": entries, "count": entries.len() }) };
    app.out.result(&result, || {
        if entries.is_empty() {
            return "Queue is empty\n".to_owned();
        }
        let mut out = format!("Queued tasks ({}):\n", entries.len());
        for (i, task) in entries.iter().enumerate() {
            let part = |key| line(text(task, key));
            let _ = writeln!(out, "  {}. {}: {}", i + 1, part("task_id"), part("description"));
            let _ = writeln!(out, "     From: {}", part("from"));
        }
        out
    });
    Ok(0)
}
