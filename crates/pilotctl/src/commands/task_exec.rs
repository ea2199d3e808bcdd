//! `enable-tasks` and `disable-tasks`: whether the registry shows this node as one that takes tasks (06 §6.3).

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::table::Command;

pub(crate) const ENABLE: Command = Command {
    name: "enable-tasks",
    args: &[],
    about: "tell the registry that this node takes tasks",
    details: "",
    returns: "node_id, task_exec",
    raw: true,
    run: |app, args| Box::pin(run(app, args, true)),
};

pub(crate) const DISABLE: Command = Command {
    name: "disable-tasks",
    args: &[],
    about: "tell the registry that this node takes no tasks",
    details: "",
    returns: "node_id, task_exec",
    raw: true,
    run: |app, args| Box::pin(run(app, args, false)),
};

async fn run(app: &App, _args: &Args, on: bool) -> Outcome {
    let driver = app.driver().await?;
    let command = if on { "enable-tasks" } else { "disable-tasks" };
    let answer = app.ask(command, driver.set_task_exec(on)).await?;
    app.out.object(&answer);
    Ok(0)
}
