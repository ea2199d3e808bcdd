//! `task …`: work that one agent asks of another (06 §6.6, docs/tasks.md).
//!
//! Our daemon does it all, so that its queue knows what happens. Beside an official daemon, which knows no such calls,
//! the files are changed here, as the official tool does.

pub(crate) mod decide;
pub(crate) mod execute;
pub(crate) mod list;
pub(crate) mod send_results;
pub(crate) mod submit;

use std::sync::Arc;

use pilot::{Address, Driver, SocketAddress};
use pilot_env::Env;
use pilot_services::tasks::{Decision, Side, Tasks};
use pilot_services::{CallError, Dialing, Host, Network, NoEvents};
use pilot_wire::service::tasks::{Content, Status, TaskFile};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::app::App;
use crate::errors::{CliError, Code};

/// Where tasks are changed.
pub(super) enum Place {
    /// In our daemon.
    Daemon(Driver),
    /// In the files, beside an official daemon.
    Files(Arc<Tasks>),
}

/// An official daemon as the way to peers.
struct Through {
    driver: Driver,
    address: Address,
}

impl Network for Through {
    fn address(&self) -> Address {
        self.address
    }

    fn dial(&self, remote: SocketAddress) -> Dialing {
        let driver = self.driver.clone();
        Box::pin(async move {
            match driver.dial(remote).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn pilot_services::Stream>),
                Err(error) => Err(CallError::new(error.code(), error.to_string())),
            }
        })
    }

    fn trusted(&self) -> Vec<u32> {
        Vec::new()
    }
}

/// Whether a daemon of ours that knows tasks answers.
fn knows_tasks(driver: &Driver) -> bool {
    let known = driver.daemon().and_then(|daemon| daemon["methods"].as_array().cloned()).unwrap_or_default();
    known.iter().any(|method| method == "task.submit")
}

impl Place {
    /// Our daemon, if it is there and knows tasks.
    pub(super) async fn ours(app: &App) -> Option<Self> {
        let driver = app.driver().await.ok()?;
        knows_tasks(&driver).then_some(Self::Daemon(driver))
    }

    /// Our daemon, or the files beside another one.
    ///
    /// # Errors
    /// `not_running`, or what stands in the way of the files.
    pub(super) async fn find(app: &App) -> Result<Self, CliError> {
        let driver = app.driver().await?;
        if knows_tasks(&driver) {
            return Ok(Self::Daemon(driver));
        }
        let info = app.ask("info", driver.info()).await?;
        let address = info["address"].as_str().and_then(|text| text.parse().ok());
        let address = address.ok_or_else(|| CliError::connection("info: the daemon has no address yet"))?;
        let network = Arc::new(Through { driver, address });
        Ok(Self::Files(files(app, network)?))
    }

    /// Submits a task; the answer with `task_id`, `status`, `message`.
    pub(super) async fn submit(&self, to: Address, description: &str, id: Option<&str>) -> Result<Value, CliError> {
        match self {
            Self::Daemon(driver) => {
                let args = json!({ "to": to.to_string(), "description": description, "task_id": id });
                call(driver, "task.submit", args).await
            }
            Self::Files(tasks) => {
                let answer = tasks.submit(to, description.to_owned(), id.map(str::to_owned)).await;
                let answer = answer.map_err(failed)?;
                Ok(json!({ "task_id": answer.task_id, "status": answer.status, "message": answer.message }))
            }
        }
    }

    /// Accepts or declines; true when the submitter knows.
    pub(super) async fn decide(&self, id: &str, decision: Decision) -> Result<bool, CliError> {
        match self {
            Self::Daemon(driver) => {
                let (method, why) = match decision {
                    Decision::Accept => ("task.accept", Value::Null),
                    Decision::Decline(why) => ("task.decline", why.into()),
                };
                let task = call(driver, method, json!({ "task_id": id, "justification": why })).await?;
                Ok(task["submitter_told"] == true)
            }
            Self::Files(tasks) => Ok(tasks.decide(id, decision).await.map_err(failed)?.1),
        }
    }

    /// Begins the next task; it as an object with `task_id`, `description`, `status`, `from`.
    pub(super) async fn execute(&self) -> Result<Value, CliError> {
        match self {
            Self::Daemon(driver) => call(driver, "task.execute", json!({})).await,
            Self::Files(tasks) => tasks.execute().await.map(|task| object(&task)).map_err(failed),
        }
    }

    /// Sends results; the task.
    pub(super) async fn send_results(&self, id: &str, content: Content) -> Result<Value, CliError> {
        match (self, content) {
            (Self::Files(tasks), content) => {
                tasks.send_results(id, content).await.map(|task| object(&task)).map_err(failed)
            }
            (Self::Daemon(driver), Content::Text(text)) => {
                call(driver, "task.send_results", json!({ "task_id": id, "text": text })).await
            }
            (Self::Daemon(driver), Content::File { name, data }) => send_file(driver, id, &name, &data).await,
        }
    }

    /// The accepted tasks in their order, or all tasks of a side.
    pub(super) async fn list(&self, method: &str, side: Side) -> Result<Vec<Value>, CliError> {
        match self {
            Self::Daemon(driver) => {
                let list = call(driver, method, json!({ "type": side.as_str() })).await?;
                Ok(list.as_array().cloned().unwrap_or_default())
            }
            Self::Files(tasks) => {
                let list = if method == "task.queue" { tasks.queue().await } else { tasks.list(side).await };
                Ok(list.map_err(failed)?.iter().map(object).collect())
            }
        }
    }
}

/// The tasks in the files of this home.
pub(super) fn files(app: &App, network: Arc<dyn Network>) -> Result<Arc<Tasks>, CliError> {
    let dir = app.home.config_path().parent().map(ToOwned::to_owned);
    let host = Host { env: Env::real(), dir, events: Arc::new(NoEvents), network };
    Tasks::open(&host).map_err(failed)
}

/// A task in a file of this home, when no daemon of ours can be asked.
///
/// # Errors
/// `not_found`, `internal_error`.
pub(super) fn received(app: &App, id: &str) -> Result<TaskFile, CliError> {
    let not_found = || {
        CliError::new(Code::NotFound, format!("task not found: {id}")).hint("check pilotctl task list --type received")
    };
    if !pilot_wire::service::tasks::is_id(id) {
        return Err(not_found());
    }
    let path = app.home.config_path().with_file_name("tasks").join("received").join(format!("{id}.json"));
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(not_found()),
        Err(error) => {
            return Err(CliError::new(Code::InternalError, format!("failed to read {}: {error}", path.display())));
        }
    };
    TaskFile::parse(&text).map_err(|error| {
        CliError::new(Code::InternalError, format!("task file {} is damaged: {error}", path.display()))
    })
}

/// Refuses a task that is not in this state.
pub(super) fn must_be_new(task: &TaskFile) -> Result<(), CliError> {
    if task.status() == Some(Status::New) {
        return Ok(());
    }
    Err(CliError::new(Code::InvalidState, format!("task {} is already {}", task.task_id, task.status)))
}

/// A task as our daemon tells it.
fn object(task: &TaskFile) -> Value {
    json!({
        "task_id": task.task_id, "description": task.description, "status": task.status, "from": task.from,
        "to": task.to, "created_at": task.created_at,
    })
}

async fn call(driver: &Driver, method: &str, args: Value) -> Result<Value, CliError> {
    driver.call(method, &args).await.map_err(|error| {
        let hint = error.hint().map(|hint| hint.into_owned()).unwrap_or_default();
        let message = error.daemon_text().map_or_else(|| error.to_string(), str::to_owned);
        failed(CallError::new(error.code(), message).hint(hint))
    })
}

/// A file goes over a stream of its own: it may be larger than a call.
async fn send_file(driver: &Driver, id: &str, name: &str, data: &[u8]) -> Result<Value, CliError> {
    let broken = |error: &dyn std::fmt::Display| CliError::connection(format!("failed to send results: {error}"));
    let args = json!({ "task_id": id, "filename": name });
    let mut stream = driver.open("task.send_file", &args).await.map_err(|error| broken(&error))?;
    stream.write_all(data).await.map_err(|error| broken(&error))?;
    stream.shutdown().await.map_err(|error| broken(&error))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map_err(|error| broken(&error))?;
    let answer = pilot_wire::json::parse(&answer).map_err(|error| broken(&error))?;
    match &answer["error"] {
        Value::Null => Ok(answer),
        error => {
            let part = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
            Err(failed(CallError::new(&part("code"), part("message")).hint(part("hint"))))
        }
    }
}

/// An error of the tasks in the words and codes of the command line.
fn failed(error: CallError) -> CliError {
    let code = match error.code.as_str() {
        "not_found" => Code::NotFound,
        "invalid_argument" => Code::InvalidArgument,
        "invalid_state" => Code::InvalidState,
        "expired" => Code::Expired,
        "already_exists" => Code::AlreadyExists,
        "internal_error" => Code::InternalError,
        "outcome_unknown" | "timeout" => Code::Timeout,
        _ => Code::ConnectionFailed,
    };
    // The official messages end where the cause begins.
    let cut = error.message.find("): ").map(|at| at + 1);
    let submitter = error.message.strip_prefix("cannot connect to submitter ").and_then(|rest| rest.find(": "));
    let cut = cut.or(submitter.map(|at| at + "cannot connect to submitter ".len()));
    let failure = match cut.and_then(|at| Some((error.message.get(..at)?, error.message.get(at + 2..)?))) {
        Some((message, cause)) if code == Code::ConnectionFailed => CliError::new(code, message).cause(cause),
        _ => CliError::new(code, error.message.as_str()),
    };
    if error.hint.is_empty() { failure } else { failure.hint(error.hint) }
}
