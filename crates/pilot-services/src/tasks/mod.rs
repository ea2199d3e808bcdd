//! Tasks (port 1003): work that one agent asks of another, from the request to the results (05 §7, docs/spec/tasks.md).
//!
//! Files and frames are those of official daemons. Beyond them every message is bound to the node it comes from, nothing
//! is said before it is on disk, a submitter that is away gets its results when it is back, and the queue survives.

mod engine;
mod local;
mod names;
mod polo;
mod serve;
mod store;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilot_wire::service::tasks::{Content, Frame, Response, Status, Submit, TaskFile, id, kind};
use pilot_wire::{Address, SocketAddress};
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, Semaphore};

pub use engine::{DECISION_MS, Decision, HEAD_MS, OPEN_TASKS, OPEN_TASKS_PER_PEER};
pub use names::{extension, is_allowed};
pub use polo::reward;
pub use store::{MAX_TASKS, Side};

use crate::{CallError, Context, Host, LocalMethods, Offer, Service, Serving, Stream, Work};
use engine::{Due, Engine};
use store::Store;

/// The port.
pub const PORT: u16 = 1003;
/// Name in logs and flags.
const NAME: &str = "tasks";
/// Largest file that is sent as results: in base64 it has to fit into a frame.
pub const MAX_RESULT_FILE: usize = 12_000_000;
/// Longest wait for a peer to answer a dial.
const DIAL_WAIT: Duration = Duration::from_secs(45);
/// Longest wait for a peer to take a frame, and for its answer.
const TAKE_WAIT: Duration = Duration::from_secs(300);
const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// How often what is due is looked for.
const TICK: Duration = Duration::from_secs(2);
/// KiB of frames that arrive at the same time, all streams together. Further ones wait.
const ARRIVING_KIB: usize = 64 << 10;

/// Offers tasks.
#[derive(Debug, Clone, Copy, Default)]
pub struct TaskService;

impl Offer for TaskService {
    fn name(&self) -> &'static str {
        NAME
    }

    fn open(&self, host: &Host) -> Result<Arc<dyn Service>, CallError> {
        Ok(Arc::new(Serve(Tasks::open(host)?)))
    }
}

struct Serve(Arc<Tasks>);

impl Service for Serve {
    fn name(&self) -> &'static str {
        NAME
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn serve(&self, stream: Box<dyn Stream>, context: Context) -> Serving {
        Box::pin(serve::serve(stream, context, self.0.clone()))
    }

    fn work(&self) -> Option<Work> {
        Some(Box::pin(self.0.clone().work()))
    }

    fn local(&self) -> Option<Arc<dyn LocalMethods>> {
        Some(Arc::new(local::Methods(self.0.clone())))
    }
}

/// The tasks of a node, both those it works on and those it has submitted.
pub struct Tasks {
    host: Host,
    /// `None` without a directory: tasks are refused.
    engine: Mutex<Option<Engine>>,
    /// Tasks whose submitter is being told something, so that it is not told twice at a time.
    busy: Mutex<BTreeSet<String>>,
    changed: Notify,
    arriving: Arc<Semaphore>,
}

/// Why a frame has no answer.
enum Unanswered {
    /// Nothing was sent.
    NotReached(CallError),
    /// It may have arrived.
    Unknown(String),
}

impl Tasks {
    /// Opens the tasks below the directory of a node.
    ///
    /// # Errors
    /// `tasks_unusable` when the directory cannot be used.
    pub fn open(host: &Host) -> Result<Arc<Self>, CallError> {
        let engine = match &host.dir {
            None => None,
            Some(dir) => {
                let root = dir.join("tasks");
                let store = Store::open(host.env.clone(), root.clone()).map_err(|error| {
                    CallError::new("tasks_unusable", format!("tasks in {} cannot be kept: {error}", root.display()))
                        .hint("make the directory writable, or switch tasks off with -no-tasks")
                })?;
                Some(Engine::open(store))
            }
        };
        Ok(Arc::new(Self {
            host: host.clone(),
            engine: Mutex::new(engine),
            busy: Mutex::default(),
            changed: Notify::new(),
            arriving: Arc::new(Semaphore::new(ARRIVING_KIB)),
        }))
    }

    fn now(&self) -> i64 {
        i64::try_from(self.host.env.unix().as_millis()).unwrap_or(i64::MAX)
    }

    /// Changes what is on disk, on a thread that may wait for it.
    async fn with<R: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut Engine, i64) -> R + Send + 'static,
    ) -> Result<R, CallError> {
        let this = self.clone();
        let now = self.now();
        let done = tokio::task::spawn_blocking(move || this.engine.lock().as_mut().map(|engine| work(engine, now)));
        match done.await {
            Ok(Some(result)) => Ok(result),
            Ok(None) => Err(CallError::new("no_directory", "this node keeps nothing on disk, so it has no tasks")
                .hint("start it with -identity")),
            Err(_) => Err(CallError::new("node_stopped", "the node has stopped")),
        }
    }

    fn report(&self, event: &'static str, task: &str, more: &[(&str, &str)]) {
        let mut data = Map::new();
        data.insert("task_id".into(), task.into());
        data.extend(more.iter().map(|(key, value)| ((*key).to_owned(), Value::from(*value))));
        self.host.events.emit(event, data);
    }

    /// Accepts or declines a new task, and tells its submitter. The flag says whether that was reached at once.
    ///
    /// # Errors
    /// `not_found`, `invalid_state`, `expired`, or the disk's.
    pub async fn decide(self: &Arc<Self>, id: &str, decision: Decision) -> Result<(TaskFile, bool), CallError> {
        let id = id.to_owned();
        let task = self.with(move |engine, now| engine.decide(&id, &decision, now)).await??;
        let told = self.tell(&task.task_id).await.is_ok();
        Ok((task, told))
    }

    /// Begins the accepted task that arrived first, and tells its submitter.
    ///
    /// # Errors
    /// `not_found`, or the disk's.
    pub async fn execute(self: &Arc<Self>) -> Result<TaskFile, CallError> {
        let task = self.with(Engine::execute).await??;
        let _ = self.tell(&task.task_id).await;
        Ok(task)
    }

    /// Sends results. They are on disk first and stay there until the submitter has them, however long that takes.
    ///
    /// # Errors
    /// `not_found`, `invalid_state`, `invalid_argument`; `connection_failed` when the submitter was not reached now.
    pub async fn send_results(self: &Arc<Self>, id: &str, content: Content) -> Result<TaskFile, CallError> {
        let owned = id.to_owned();
        let task = self.with(move |engine, now| engine.finish(&owned, content, now)).await??;
        self.tell(id).await?;
        let owned = id.to_owned();
        // The final word goes on a stream of its own, which official submitters need; it is retried by itself.
        let _ = self.tell(id).await;
        let now = self.with(move |engine, _| engine.store.load(Side::Received, &owned)).await??;
        Ok(now.unwrap_or(task))
    }

    /// The accepted tasks in their order.
    ///
    /// # Errors
    /// The disk's.
    pub async fn queue(self: &Arc<Self>) -> Result<Vec<TaskFile>, CallError> {
        self.with(|engine, _| engine.queue()).await
    }

    /// All tasks of a side, in the order of their names.
    ///
    /// # Errors
    /// The disk's.
    pub async fn list(self: &Arc<Self>, side: Side) -> Result<Vec<TaskFile>, CallError> {
        self.with(move |engine, _| {
            let ids = engine.store.ids(side).into_iter();
            ids.filter_map(|id| engine.store.load(side, &id).ok().flatten()).collect()
        })
        .await
    }

    /// A fresh id.
    pub fn new_id(&self) -> String {
        let mut random = [0; 16];
        self.host.env.fill_random(&mut random);
        id(random)
    }

    /// Submits a task. A refusal is an answer like any other. With the id of an earlier attempt the task runs once all
    /// the same.
    ///
    /// # Errors
    /// `connection_failed` when the worker was not reached; `outcome_unknown` when it did not answer.
    pub async fn submit(
        self: &Arc<Self>,
        to: Address,
        description: String,
        task_id: Option<String>,
    ) -> Result<Response, CallError> {
        let submit = Submit {
            task_id: task_id.unwrap_or_else(|| self.new_id()),
            description,
            from: self.host.network.address().to_string(),
            to: to.to_string(),
        };
        let id = submit.task_id.clone();
        let entered = submit.clone();
        let is_new = self.with(move |engine, now| engine.begin_submit(&entered, to, now)).await??;
        let answer = self.exchange(to, kind::SUBMIT, &submit.emit()).await;
        let owned = id.clone();
        match answer {
            Ok(Some(mut answer)) if answer.status == Response::OK => {
                self.with(move |engine, _| engine.confirm(&owned)).await??;
                // Libraries leave it empty.
                answer.task_id = id;
                Ok(answer)
            }
            Ok(Some(mut answer)) => {
                if is_new {
                    self.with(move |engine, _| engine.abandon(&owned)).await?;
                }
                answer.task_id = id;
                Ok(answer)
            }
            Err(Unanswered::NotReached(error)) => {
                if is_new {
                    self.with(move |engine, _| engine.abandon(&owned)).await?;
                }
                Err(error)
            }
            Ok(None) => Err(unknown_outcome(&id, "the worker ended the stream without an answer")),
            Err(Unanswered::Unknown(why)) => Err(unknown_outcome(&id, &why)),
        }
    }

    /// Sends one frame and waits for the answer. `None` is the orderly end of a peer that gives none.
    async fn exchange(&self, to: Address, kind: u32, body: &[u8]) -> Result<Option<Response>, Unanswered> {
        let not_reached = |why: String| {
            Unanswered::NotReached(
                CallError::new("connection_failed", format!("cannot connect to {to} (task submit port {PORT}): {why}"))
                    .hint(format!("check that {to} is reachable: pilotctl ping {to}")),
            )
        };
        let frame = Frame { kind, body }.emit().map_err(|error| not_reached(error.to_string()))?;
        let dial = self.host.network.dial(SocketAddress::new(to, PORT));
        let mut stream = match tokio::time::timeout(DIAL_WAIT, dial).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return Err(not_reached(error.message)),
            Err(_) => return Err(not_reached("no answer within 45s".to_owned())),
        };
        let unknown = |why: std::io::Error| Unanswered::Unknown(why.to_string());
        let written = async {
            stream.write_all(&frame).await?;
            stream.flush().await
        };
        let timed_out = || std::io::Error::from(std::io::ErrorKind::TimedOut);
        tokio::time::timeout(TAKE_WAIT, written).await.unwrap_or_else(|_| Err(timed_out())).map_err(unknown)?;
        let reading = async {
            let mut buf = Vec::new();
            loop {
                match Frame::parse(&buf) {
                    Ok(Some((frame, _))) => return Ok(Response::parse(frame.body).ok()),
                    Ok(None) => {}
                    Err(error) => return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, error)),
                }
                if stream.read_buf(&mut buf).await? == 0 {
                    return if buf.is_empty() { Ok(None) } else { Err(std::io::ErrorKind::UnexpectedEof.into()) };
                }
            }
        };
        let answer = tokio::time::timeout(ANSWER_WAIT, reading).await.unwrap_or_else(|_| Err(timed_out()));
        let _ = stream.shutdown().await;
        answer.map_err(unknown)
    }

    /// Tells a submitter what it is owed. Results are marked as sent once it has them.
    async fn tell(self: &Arc<Self>, id: &str) -> Result<(), CallError> {
        while !self.busy.lock().insert(id.to_owned()) {
            // Somebody is at it; what is left afterwards is ours.
            self.host.env.sleep(Duration::from_millis(50)).await;
        }
        let told = self.tell_now(id).await;
        self.busy.lock().remove(id);
        told
    }

    async fn tell_now(self: &Arc<Self>, id: &str) -> Result<(), CallError> {
        let owned = id.to_owned();
        let Some((to, due)) = self.with(move |engine, _| engine.due(&owned)).await? else { return Ok(()) };
        let answer = match &due {
            Due::Results(body) => self.exchange(to, kind::SEND_RESULTS, body).await,
            Due::Status(update) => self.exchange(to, kind::STATUS_UPDATE, &update.emit()).await,
        };
        let owned = id.to_owned();
        let failed = match (answer, due) {
            // An official submitter answers nothing; it ends the stream when it has taken the frame.
            (Ok(None), Due::Results(_)) => return self.delivered(owned).await,
            (Ok(Some(answer)), Due::Results(_)) if answer.status == Response::OK => {
                return self.delivered(owned).await;
            }
            (Ok(Some(answer)), Due::Results(_)) if answer.status < 500 => {
                tracing::warn!(task = id, submitter = %to, "the submitter refused the results: {}", answer.message);
                self.with(move |engine, _| engine.results_refused(&owned)).await?;
                let text = format!("the submitter {to} refused the results: {}", answer.message);
                return Err(CallError::new("refused", text));
            }
            // What the submitter thinks of a status is its own business.
            (Ok(answer), Due::Status(update)) if answer.as_ref().is_none_or(|answer| answer.status < 500) => {
                return self.with(move |engine, _| engine.told(&owned, &update.status)).await;
            }
            (Ok(answer), _) => answer.map_or_else(String::new, |answer| answer.message),
            (Err(Unanswered::NotReached(error)), _) => error.message,
            (Err(Unanswered::Unknown(why)), _) => why,
        };
        let again = self.with(move |engine, now| engine.not_reached(&owned, now)).await?;
        if !again {
            tracing::warn!(task = id, submitter = %to, "the submitter was not reached for a week; it is not told");
            self.report("task.untold", id, &[("submitter", &to.to_string())]);
        }
        Err(CallError::new("connection_failed", format!("cannot connect to submitter {to}: {failed}"))
            .hint(format!("check that {to} is reachable; the daemon tries again by itself")))
    }

    async fn delivered(self: &Arc<Self>, id: String) -> Result<(), CallError> {
        let task = self.with(move |engine, now| engine.delivered(&id, now)).await??;
        self.report("task.succeeded", &task.task_id, &[("submitter", &task.from)]);
        Ok(())
    }

    /// Cancels and expires tasks, retries what submitters are owed, and settles scores, for as long as the node runs.
    async fn work(self: Arc<Self>) {
        let unpaid = self.with(|engine, _| engine.unpaid()).await.unwrap_or_default();
        for id in unpaid {
            self.pay(&id).await;
        }
        loop {
            tokio::select! {
                () = self.changed.notified() => {}
                () = self.host.env.sleep(TICK) => {}
            }
            let swept = self.with(Engine::sweep).await.unwrap_or_default();
            for task in swept {
                self.report("task.status", &task.task_id, &[("status", &task.status), ("from", &task.from)]);
                if task.status() == Some(Status::Expired) {
                    let own = self.host.network.address().node;
                    if let Err(error) = self.host.network.add_score(own, -1).await {
                        tracing::warn!(%error, task = task.task_id, "the score of an expired task is not settled");
                    }
                }
            }
            let due = self.with(|engine, now| engine.due_now(now)).await.unwrap_or_default();
            // One after the other: a submitter that is away delays others by one dial, not more.
            futures_in_order(&self, due).await;
        }
    }

    /// Takes the steps that are left in settling the score of a task.
    async fn pay(self: &Arc<Self>, id: &str) {
        loop {
            let owned = id.to_owned();
            let Ok(Some((node, delta))) = self.with(move |engine, _| engine.next_payment(&owned)).await else { return };
            if let Err(error) = self.host.network.add_score(node, delta).await {
                tracing::warn!(%error, task = id, node, delta, "a score is not settled");
                if error.code == "registry_unavailable" {
                    let owned = id.to_owned();
                    // Settled at the next start.
                    let _ = self.with(move |engine, _| engine.undo_payment(&owned)).await;
                }
                return;
            }
        }
    }
}

/// Tells several submitters, a few at a time.
async fn futures_in_order(tasks: &Arc<Tasks>, due: Vec<String>) {
    const AT_ONCE: usize = 8;
    let mut running = tokio::task::JoinSet::new();
    for id in due {
        if running.len() >= AT_ONCE {
            running.join_next().await;
        }
        let tasks = tasks.clone();
        running.spawn(async move {
            if let Err(error) = tasks.tell(&id).await {
                tracing::debug!(%error, task = id, "a submitter is not told yet");
            }
        });
    }
    while running.join_next().await.is_some() {}
}

fn unknown_outcome(id: &str, why: &str) -> CallError {
    CallError::new("outcome_unknown", format!("submit: it is not known whether the worker has task {id}: {why}"))
        .hint(format!("submit it again with --id {id}: it runs once all the same"))
}
