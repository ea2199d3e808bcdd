//! `task send-results`: sends a text or a file back to the submitter (06 §6.6).

use pilot_services::tasks::{MAX_RESULT_FILE, extension, is_allowed};
use pilot_wire::service::tasks::{Content, Status};
use serde_json::json;

use super::Place;
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "task send-results",
    args: &[
        Arg::new("--id <id>", "the task"),
        Arg::new("[--results <text>]", "the results as text"),
        Arg::new("[--file <path>]", "the results as a file, up to 12 MB"),
    ],
    about: "send the results of a task",
    details: "A task has succeeded once the submitter has the results. When it is away, the command fails and the daemon\n\
              keeps the results and sends them when it is back.",
    returns: "task_id, status, sent_to, sent_type, filename, file_size",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let given = |name: &str| args.flag(name).filter(|value| !value.is_empty());
    let id = given("id").ok_or_else(|| CliError::argument("--id is required"))?;
    let (text, file) = (given("results"), given("file"));
    if text.is_none() && file.is_none() {
        return Err(CliError::argument("either --results or --file is required"));
    }
    let ours = Place::ours(app).await;
    if ours.is_none() {
        let task = super::received(app, id)?;
        if !matches!(task.status(), Some(Status::Executing | Status::Accepted)) {
            let text = format!("task {id} cannot receive results (status: {})", task.status);
            return Err(CliError::new(Code::InvalidState, text));
        }
    }
    let content = match file {
        Some(path) => read(path)?,
        None => Content::Text(text.unwrap_or_default().to_owned()),
    };
    let place = match ours {
        Some(place) => place,
        None => Place::find(app).await?,
    };
    let about = match &content {
        Content::Text(_) => None,
        Content::File { name, data } => Some((name.clone(), data.len())),
    };
    let task = place.send_results(id, content).await?;
    let sent_type = if about.is_some() { "file" } else { "text" };
    let mut result = json!({
        "task_id": id, "status": "SUCCEEDED", "sent_to": task["from"], "sent_type": sent_type,
    });
    if let Some((name, size)) = about {
        result["filename"] = name.into();
        result["file_size"] = size.into();
    }
    app.out.object(&result);
    Ok(0)
}

fn read(path: &str) -> Result<Content, CliError> {
    let extension = extension(path);
    if !is_allowed(&extension) {
        return Err(CliError::argument(format!("file type \"{extension}\" not allowed for results")));
    }
    let failed = |error: &std::io::Error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        CliError::new(Code::InternalError, format!("failed to read file: open {path}: {why}"))
    };
    let size = std::fs::metadata(path).map_err(|error| failed(&error))?.len();
    if size > MAX_RESULT_FILE as u64 {
        return Err(CliError::argument(format!("{path} is larger than {MAX_RESULT_FILE} bytes"))
            .hint("send it with pilotctl send-file and refer to it in --results"));
    }
    let data = std::fs::read(path).map_err(|error| failed(&error))?;
    if data.is_empty() {
        return Err(CliError::argument(format!("{path} is empty")).hint("use --results"));
    }
    let name = path.rsplit('/').next().unwrap_or(path).to_owned();
    Ok(Content::File { name, data })
}
