//! What programs on the same host can do with tasks: the methods `task.*` of the local socket (docs/spec/tasks.md).

use std::sync::Arc;

use pilot_wire::Address;
use pilot_wire::service::tasks::{Content, TaskFile};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{Decision, MAX_RESULT_FILE, Side, Tasks};
use crate::{CallError, Calling, LocalMethods, Opening, Serve, Stream};

/// The methods.
pub(super) struct Methods(pub(super) Arc<Tasks>);

const NAMES: &[&str] = &[
    "task.accept",
    "task.decline",
    "task.execute",
    "task.list",
    "task.queue",
    "task.send_file",
    "task.send_results",
    "task.submit",
];

fn text(args: &Value, name: &str) -> Result<String, CallError> {
    let missing = || CallError::new("invalid_argument", format!("{name} is required, as a text"));
    args[name].as_str().map(str::to_owned).ok_or_else(missing)
}

/// A task as local programs see it.
fn object(task: &TaskFile) -> Value {
    json!({
        "task_id": task.task_id, "description": task.description, "status": task.status,
        "justification": task.justification, "from": task.from, "to": task.to, "created_at": task.created_at,
    })
}

impl LocalMethods for Methods {
    fn methods(&self) -> &'static [&'static str] {
        NAMES
    }

    fn call(&self, method: &str, args: Value) -> Calling {
        let tasks = self.0.clone();
        let method = method.to_owned();
        Box::pin(async move {
            match method.as_str() {
                "task.submit" => {
                    let to = text(&args, "to")?;
                    let to: Address =
                        to.parse().map_err(|_| CallError::new("invalid_argument", format!("{to:?} is no address")))?;
                    let id = args["task_id"].as_str().map(str::to_owned);
                    let answer = tasks.submit(to, text(&args, "description")?, id).await?;
                    Ok(json!({ "task_id": answer.task_id, "status": answer.status, "message": answer.message }))
                }
                "task.accept" | "task.decline" => {
                    let decision = match method.as_str() {
                        "task.accept" => Decision::Accept,
                        _ => Decision::Decline(text(&args, "justification")?),
                    };
                    let (task, told) = tasks.decide(&text(&args, "task_id")?, decision).await?;
                    let mut value = object(&task);
                    value["submitter_told"] = told.into();
                    Ok(value)
                }
                "task.execute" => tasks.execute().await.map(|task| object(&task)),
                "task.send_results" => {
                    let content = Content::Text(text(&args, "text")?);
                    tasks.send_results(&text(&args, "task_id")?, content).await.map(|task| object(&task))
                }
                "task.queue" => Ok(tasks.queue().await?.iter().map(object).collect()),
                "task.list" => {
                    let side = match args["type"].as_str() {
                        Some("submitted") => Side::Submitted,
                        _ => Side::Received,
                    };
                    Ok(tasks.list(side).await?.iter().map(object).collect())
                }
                _ => Err(CallError::new("unknown_method", format!("{method} cannot be called"))),
            }
        })
    }

    fn open(&self, method: &str, args: Value) -> Opening {
        let tasks = self.0.clone();
        let known = method == "task.send_file";
        let method = method.to_owned();
        Box::pin(async move {
            if !known {
                return Err(CallError::new("unknown_method", format!("{method} cannot be opened as a stream")));
            }
            let (id, name) = (text(&args, "task_id")?, text(&args, "filename")?);
            let serve: Serve = Box::new(move |stream| Box::pin(send_file(stream, tasks, id, name)));
            Ok(serve)
        })
    }
}

/// Reads a file to the end of the stream, sends it as results, and answers with one line of JSON: the task, or an object
/// with `error`.
async fn send_file(mut stream: Box<dyn Stream>, tasks: Arc<Tasks>, id: String, name: String) -> std::io::Result<()> {
    let mut data = Vec::new();
    (&mut stream).take(MAX_RESULT_FILE as u64 + 1).read_to_end(&mut data).await?;
    let sent = if data.len() > MAX_RESULT_FILE {
        let text = format!("the file is larger than {MAX_RESULT_FILE} bytes");
        Err(CallError::new("too_large", text).hint("send it with pilotctl send-file and refer to it in the results"))
    } else {
        tasks.send_results(&id, Content::File { name, data }).await
    };
    let line = match sent {
        Ok(task) => object(&task),
        Err(error) => json!({ "error": { "code": error.code, "message": error.message, "hint": error.hint } }),
    };
    stream.write_all(format!("{line}\n").as_bytes()).await?;
    stream.shutdown().await
}
