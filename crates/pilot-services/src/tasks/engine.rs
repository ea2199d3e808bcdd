//! The life of a task on both sides, as changes of what is on disk. Nothing here waits for a peer.

use std::collections::BTreeMap;
use std::time::Duration;

use pilot_wire::service::tasks::{
    Content, MAX_DESCRIPTION, Response, Results, Status, StatusUpdate, Submit, TaskFile, is_id,
};
use pilot_wire::{Address, time};

use super::names;
use super::polo::reward;
use super::store::{Kept, Note, Paid, Side, Store};
use crate::CallError;

/// Time in which a new task must be decided on (05 §7.3).
pub const DECISION_MS: i64 = 60_000;
/// Longest time at the head of the queue (05 §7.3).
pub const HEAD_MS: i64 = 3_600_000;
/// Tasks of all peers together that are not finished. Further ones are refused.
pub const OPEN_TASKS: usize = 1024;
/// The same for one peer.
pub const OPEN_TASKS_PER_PEER: usize = 128;
/// Longest text of a status update that is kept, in bytes.
const MAX_JUSTIFICATION: usize = 4096;
/// First and longest pause between attempts to reach a submitter.
const RETRY_MS: (i64, i64) = (5_000, 600_000);
/// How long a submitter is tried.
const GIVE_UP_MS: i64 = 7 * 24 * 3_600_000;

/// What official daemons answer to a task that they take.
const RECEIVED: &str = "Task received with status NEW";

/// A decision on a new task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It will be worked on.
    Accept,
    /// It will not, for this reason.
    Decline(String),
}

/// What a submitter is still owed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Due {
    /// The results: the body of a frame.
    Results(Vec<u8>),
    /// The status.
    Status(StatusUpdate),
}

/// A score to be settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Payment {
    /// Loses one.
    pub(super) submitter: u32,
    /// Gains `reward`.
    pub(super) worker: u32,
    /// At least 1.
    pub(super) reward: i64,
}

/// All tasks.
pub(super) struct Engine {
    pub(super) store: Store,
    /// Received tasks that are not finished, or whose submitter is owed something, in the order of arrival.
    open: BTreeMap<u64, String>,
    next_seq: u64,
}

fn stamp(ms: i64) -> String {
    time::rfc3339(Duration::from_millis(u64::try_from(ms).unwrap_or(0)))
}

fn node_of(address: &str) -> Option<Address> {
    address.parse().ok()
}

fn not_found(id: &str) -> CallError {
    CallError::new("not_found", format!("task not found: {id}")).hint("check pilotctl task list --type received")
}

fn response(id: &str, status: i64, message: impl Into<String>) -> Response {
    Response { task_id: id.to_owned(), status, message: message.into() }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_JUSTIFICATION);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

impl Engine {
    /// Takes up what is on disk.
    pub(super) fn open(store: Store) -> Self {
        let mut engine = Self { store, open: BTreeMap::new(), next_seq: 1 };
        let mut unnoted = Vec::new();
        for id in engine.store.ids(Side::Received) {
            let Ok(Some(task)) = engine.store.load(Side::Received, &id) else {
                tracing::warn!(task = id, "a task file cannot be read; it is left alone");
                continue;
            };
            if !engine.store.has_note(Side::Received, &id) {
                unnoted.push((task.created_at.clone(), id, task));
                continue;
            }
            let note = engine.store.note(Side::Received, &id);
            engine.next_seq = engine.next_seq.max(note.seq + 1);
            if engine.is_open(&task, &note) {
                engine.open.insert(note.seq, id);
            }
        }
        // Those of an official daemon, whose files we take over.
        unnoted.sort_by(|(a, x, _), (b, y, _)| (a, x).cmp(&(b, y)));
        for (_, id, task) in unnoted {
            if task.status().is_some_and(Status::is_final) {
                continue;
            }
            let peer = node_of(&task.from).map_or(0, |address| address.node);
            let note = Note {
                seq: engine.next_seq,
                at_ms: task.created_ms(),
                peer,
                told: task.status.clone(),
                ..Note::default()
            };
            if engine.store.save_note(Side::Received, &id, &note).is_ok() {
                engine.next_seq += 1;
                engine.open.insert(note.seq, id);
            }
        }
        engine
    }

    fn is_open(&self, task: &TaskFile, note: &Note) -> bool {
        note.results || note.told != task.status || !task.status().is_some_and(Status::is_final)
    }

    fn received(&self, id: &str) -> Result<(TaskFile, Note), CallError> {
        let task = self.store.load(Side::Received, id)?.ok_or_else(|| not_found(id))?;
        Ok((task, self.store.note(Side::Received, id)))
    }

    /// The answer to a task that is already here.
    pub(super) fn known(&self, submit: &Submit, peer: u32) -> Option<Response> {
        let id = &submit.task_id;
        match self.store.load(Side::Received, id) {
            Ok(None) => None,
            // Sent once more because an answer got lost: it still runs once.
            Ok(Some(task))
                if self.store.note(Side::Received, id).peer == peer && task.description == submit.description =>
            {
                Some(response(id, Response::OK, RECEIVED))
            }
            Ok(Some(_)) => Some(response(id, Response::REFUSED, "Task id is already in use")),
            Err(_) => Some(response(id, Response::REFUSED, "Task id cannot be used")),
        }
    }

    /// Takes a task. What is answered is on disk.
    pub(super) fn receive(&mut self, submit: &Submit, from: Address, to: Address, now: i64) -> Response {
        let id = &submit.task_id;
        if let Some(known) = self.known(submit, from.node) {
            return known;
        }
        let refuse = |why: &str| response(id, Response::REFUSED, why);
        if submit.description.len() > MAX_DESCRIPTION {
            return refuse("Task description is too long (max 1048576 bytes)");
        }
        let of_peer = self.open.values().filter(|id| self.store.note(Side::Received, id).peer == from.node).count();
        if self.open.len() >= OPEN_TASKS || of_peer >= OPEN_TASKS_PER_PEER {
            return refuse("Too many unfinished tasks");
        }
        if !self.store.has_room(Side::Received) {
            tracing::warn!("no more tasks are kept: remove finished ones from tasks/received");
            return refuse("No more tasks are kept here");
        }
        let status = Status::New.as_str().to_owned();
        let note = Note { seq: self.next_seq, at_ms: now, peer: from.node, told: status.clone(), ..Note::default() };
        let task = TaskFile {
            task_id: id.clone(),
            description: submit.description.clone(),
            created_at: stamp(now),
            status,
            justification: "A new task was created".to_owned(),
            from: from.to_string(),
            to: to.to_string(),
            ..TaskFile::default()
        };
        let saved =
            self.store.save_note(Side::Received, id, &note).and_then(|()| self.store.save(Side::Received, &task));
        match saved {
            Ok(()) => {
                self.next_seq += 1;
                self.open.insert(note.seq, id.clone());
                response(id, Response::OK, RECEIVED)
            }
            Err(error) => {
                tracing::error!(%error, "a task cannot be kept");
                refuse("Task cannot be kept")
            }
        }
    }

    /// Accepts or declines a new task.
    pub(super) fn decide(&mut self, id: &str, decision: &Decision, now: i64) -> Result<TaskFile, CallError> {
        let (mut task, note) = self.received(id)?;
        if task.status() != Some(Status::New) {
            return Err(CallError::new("invalid_state", format!("task {id} is already {}", task.status)));
        }
        let since = if note.at_ms > 0 { note.at_ms } else { task.created_ms() };
        match decision {
            Decision::Accept if now - since > DECISION_MS => {
                let text = format!("task {id} has expired (accept deadline was 1 minute after creation)");
                return Err(CallError::new("expired", text));
            }
            Decision::Accept => decided(&mut task, Status::Accepted, "Task accepted", now),
            Decision::Decline(why) => decided(&mut task, Status::Declined, why, now),
        }
        self.store.save(Side::Received, &task)?;
        self.find_head(now);
        Ok(task)
    }

    /// Begins the accepted task that arrived first.
    pub(super) fn execute(&mut self, now: i64) -> Result<TaskFile, CallError> {
        let next = self.open.values().find_map(|id| {
            let (task, note) = self.received(id).ok()?;
            (task.status() == Some(Status::Accepted) && !note.results).then_some((task, note))
        });
        let (mut task, note) = next.ok_or_else(|| CallError::new("not_found", "no accepted tasks to execute"))?;
        start(&mut task, &note, Status::Executing, "Task execution started", now);
        self.store.save(Side::Received, &task)?;
        self.find_head(now);
        Ok(task)
    }

    /// The accepted tasks in their order.
    pub(super) fn queue(&self) -> Vec<TaskFile> {
        let tasks = self.open.values().filter_map(|id| self.received(id).ok());
        tasks
            .filter(|(task, note)| task.status() == Some(Status::Accepted) && !note.results)
            .map(|(task, _)| task)
            .collect()
    }

    /// Keeps results until the submitter has them.
    pub(super) fn finish(&mut self, id: &str, content: Content, now: i64) -> Result<TaskFile, CallError> {
        let (task, mut note) = self.received(id)?;
        if !matches!(task.status(), Some(Status::Executing | Status::Accepted)) {
            let text = format!("task {id} cannot receive results (status: {})", task.status);
            return Err(CallError::new("invalid_state", text));
        }
        if note.results {
            let text = format!("task {id} already has results, which wait for the submitter");
            return Err(CallError::new("invalid_state", text).hint("they are sent again until it has them"));
        }
        if let Content::File { name, .. } = &content {
            let extension = names::extension(name);
            if !names::is_allowed(&extension) {
                let text = format!("file type \"{extension}\" not allowed for results");
                return Err(CallError::new("invalid_argument", text));
            }
        }
        let started = time::parse_rfc3339(&task.execute_started_at).and_then(|at| i64::try_from(at.as_millis()).ok());
        let results = Results {
            task_id: id.to_owned(),
            content,
            completed_at: stamp(now),
            idle_ms: task.idle_ms,
            staged_ms: task.staged_ms,
            cpu_ms: started.map_or(0, |started| (now - started).max(0)),
        };
        self.store.spool(id, &results.emit())?;
        note.results = true;
        (note.tries, note.next_ms) = (0, 0);
        self.store.save_note(Side::Received, id, &note)?;
        Ok(task)
    }

    /// What the submitter of a task is owed now, and where it is.
    pub(super) fn due(&self, id: &str) -> Option<(Address, Due)> {
        let (task, note) = self.received(id).ok()?;
        let to = node_of(&task.from).filter(|address| note.peer == 0 || address.node == note.peer)?;
        if note.results && matches!(task.status(), Some(Status::Executing | Status::Accepted)) {
            return self.store.spooled(id).ok().map(|body| (to, Due::Results(body)));
        }
        if note.told == task.status {
            return None;
        }
        // Official workers say it in these words.
        let succeeded = task.status() == Some(Status::Succeeded);
        let justification = if succeeded { "Task completed successfully".to_owned() } else { task.justification };
        Some((to, Due::Status(StatusUpdate { task_id: task.task_id, status: task.status, justification })))
    }

    /// Ids of tasks whose submitter is to be tried now.
    pub(super) fn due_now(&self, now: i64) -> Vec<String> {
        let due = |id: &&String| {
            let note = self.store.note(Side::Received, id);
            note.next_ms <= now && self.due(id).is_some()
        };
        self.open.values().filter(due).cloned().collect()
    }

    /// The submitter has been told a status.
    pub(super) fn told(&mut self, id: &str, status: &str) {
        self.change_note(id, |note| {
            status.clone_into(&mut note.told);
            (note.tries, note.next_ms) = (0, 0);
        });
    }

    /// The submitter has the results.
    pub(super) fn delivered(&mut self, id: &str, now: i64) -> Result<TaskFile, CallError> {
        let (mut task, mut note) = self.received(id)?;
        if matches!(task.status(), Some(Status::Executing | Status::Accepted)) {
            if let Ok(results) = self.store.spooled(id).map(|body| Results::parse(&body)) {
                let times = results.ok().map(|results| (results.completed_at, results.cpu_ms));
                (task.completed_at, task.cpu_ms) = times.unwrap_or_else(|| (stamp(now), 0));
            }
            Status::Succeeded.as_str().clone_into(&mut task.status);
            "Results sent successfully".clone_into(&mut task.justification);
            self.store.save(Side::Received, &task)?;
        }
        note.results = false;
        (note.tries, note.next_ms) = (0, 0);
        self.store.save_note(Side::Received, id, &note)?;
        self.store.unspool(id);
        Ok(task)
    }

    /// The submitter does not want the results, and never will.
    pub(super) fn results_refused(&mut self, id: &str) {
        self.change_note(id, |note| note.results = false);
        self.store.unspool(id);
    }

    /// The submitter was not reached. Answers whether it is tried again.
    pub(super) fn not_reached(&mut self, id: &str, now: i64) -> bool {
        let mut given_up = false;
        let status = self.store.load(Side::Received, id).ok().flatten().map(|task| task.status).unwrap_or_default();
        self.change_note(id, |note| {
            let pause = RETRY_MS.0.saturating_mul(1 << note.tries.min(20)).min(RETRY_MS.1);
            note.tries += 1;
            note.next_ms = now + pause;
            // Results are somebody's work: they are kept and tried for as long as the task is there.
            given_up = !note.results && now - note.at_ms > GIVE_UP_MS;
            if given_up {
                note.told.clone_from(&status);
            }
        });
        !given_up
    }

    fn change_note(&self, id: &str, change: impl FnOnce(&mut Note)) {
        let mut note = self.store.note(Side::Received, id);
        change(&mut note);
        if let Err(error) = self.store.save_note(Side::Received, id, &note) {
            tracing::error!(%error, task = id, "the state of a task cannot be kept");
        }
    }

    /// Cancels, expires and forgets what has had its time. Answers the tasks that changed.
    pub(super) fn sweep(&mut self, now: i64) -> Vec<TaskFile> {
        let mut changed = Vec::new();
        for id in self.open.values().cloned().collect::<Vec<_>>() {
            let Ok((mut task, note)) = self.received(&id) else { continue };
            if task.status() == Some(Status::New) && now - note.at_ms > DECISION_MS {
                let why = "Task cancelled: no response within 1 minute";
                decided(&mut task, Status::Cancelled, why, now);
                changed.extend(self.store.save(Side::Received, &task).ok().map(|()| task));
            }
        }
        if let Some((mut task, note)) = self.find_head(now)
            && note.head_ms > 0
            && now - note.head_ms > HEAD_MS
        {
            start(&mut task, &note, Status::Expired, "Task expired: at head of queue for over 1 hour", now);
            changed.extend(self.store.save(Side::Received, &task).ok().map(|()| task));
            self.find_head(now);
        }
        let store = &self.store;
        self.open.retain(|_, id| {
            let Ok(Some(task)) = store.load(Side::Received, id) else { return false };
            let note = store.note(Side::Received, id);
            note.results || note.told != task.status || !task.status().is_some_and(Status::is_final)
        });
        changed
    }

    /// The task at the head of the queue: the first that is new or accepted. Notes since when it is there.
    fn find_head(&self, now: i64) -> Option<(TaskFile, Note)> {
        let waits = |id: &String| {
            let (task, note) = self.received(id).ok()?;
            // What is done already does not wait for its turn.
            (matches!(task.status(), Some(Status::New | Status::Accepted)) && !note.results).then_some((task, note))
        };
        let (task, mut note) = self.open.values().find_map(waits)?;
        if note.head_ms == 0 {
            note.head_ms = now;
            if let Err(error) = self.store.save_note(Side::Received, &task.task_id, &note) {
                tracing::error!(%error, task = task.task_id, "the state of a task cannot be kept");
            }
        }
        Some((task, note))
    }

    /// Enters a task before it is sent, so that no answer can come too early. Answers whether it is new: the same task
    /// may be sent again while nobody knows what became of it.
    pub(super) fn begin_submit(&mut self, submit: &Submit, to: Address, now: i64) -> Result<bool, CallError> {
        let id = &submit.task_id;
        if !is_id(id) {
            let text = format!("task id {id:?} is not 1 to 64 letters, digits and dashes");
            return Err(CallError::new("invalid_argument", text));
        }
        if let Some(task) = self.store.load(Side::Submitted, id)? {
            if task.description == submit.description && node_of(&task.to).is_some_and(|a| a.node == to.node) {
                return Ok(false);
            }
            return Err(CallError::new("already_exists", format!("another task has the id {id}")));
        }
        if submit.description.len() > MAX_DESCRIPTION {
            return Err(CallError::new("invalid_argument", "the task is longer than 1048576 bytes"));
        }
        if !self.store.has_room(Side::Submitted) {
            return Err(CallError::new("quota", "no more submitted tasks are kept")
                .hint("remove finished ones from tasks/submitted"));
        }
        self.store.save_note(Side::Submitted, id, &Note { at_ms: now, peer: to.node, ..Note::default() })?;
        let task = TaskFile {
            task_id: id.clone(),
            description: submit.description.clone(),
            created_at: stamp(now),
            status: Status::New.as_str().to_owned(),
            justification: "A new task was created".to_owned(),
            from: submit.from.clone(),
            to: submit.to.clone(),
            ..TaskFile::default()
        };
        self.store.save(Side::Submitted, &task)?;
        Ok(true)
    }

    /// The worker has the task.
    pub(super) fn confirm(&mut self, id: &str) -> Result<(), CallError> {
        let mut note = self.store.note(Side::Submitted, id);
        note.confirmed = true;
        self.store.save_note(Side::Submitted, id, &note)
    }

    /// The worker does not have the task and will not get it.
    pub(super) fn abandon(&mut self, id: &str) {
        self.store.remove(Side::Submitted, id);
    }

    /// A task that we have submitted to this node, and its note.
    fn submitted(&self, id: &str, worker: u32) -> Result<(TaskFile, Note), Response> {
        // Who is not its worker learns nothing about it.
        let unknown = || response(id, 404, "No such task");
        let task = self.store.load(Side::Submitted, id).ok().flatten().ok_or_else(unknown)?;
        let to = node_of(&task.to).ok_or_else(unknown)?;
        if to.node != worker {
            return Err(unknown());
        }
        Ok((task, self.store.note(Side::Submitted, id)))
    }

    /// Takes a status update of a worker.
    pub(super) fn update(&mut self, worker: u32, update: &StatusUpdate) -> Response {
        let id = &update.task_id;
        let (mut task, _) = match self.submitted(id, worker) {
            Ok(found) => found,
            Err(refusal) => return refusal,
        };
        let Some(next) = Status::from_name(&update.status) else {
            return response(id, Response::REFUSED, "Unknown status");
        };
        let now = task.status().unwrap_or(Status::New);
        if now == next {
            return response(id, Response::OK, "Status is already known");
        }
        // Completion is ours to find out; and nothing goes back.
        if next == Status::Completed || !now.may_become(next) {
            return response(id, 409, format!("Task is already {}", task.status));
        }
        next.as_str().clone_into(&mut task.status);
        task.justification = cut(&update.justification);
        match self.store.save(Side::Submitted, &task) {
            Ok(()) => response(id, Response::OK, "Status received"),
            Err(error) => failed(id, &error),
        }
    }

    /// Takes the results of a worker. What is answered is on disk. The flag says whether a score is to be settled.
    pub(super) fn results(&mut self, worker: u32, results: &Results, now: i64) -> (Response, bool) {
        let id = &results.task_id;
        let (mut task, mut note) = match self.submitted(id, worker) {
            Ok(found) => found,
            Err(refusal) => return (refusal, false),
        };
        let (name, data) = match &results.content {
            Content::Text(text) => (format!("{id}_result.txt"), text.as_bytes()),
            Content::File { name, data } => match names::safe(name) {
                Some(name) => (format!("{id}_{name}"), &data[..]),
                None => return (response(id, Response::REFUSED, "This type of file is not taken"), false),
            },
        };
        let status = task.status().unwrap_or(Status::New);
        if matches!(status, Status::Declined | Status::Cancelled | Status::Expired) {
            return (response(id, 409, format!("Task is already {}", task.status)), false);
        }
        // One set of results for each task; the same ones may come again, because an answer got lost.
        if note.paid != Paid::No && self.store.save_results(&name, data).ok() != Some(Kept::Same) {
            return (response(id, 409, "Task already has results"), false);
        }
        let kept = match self.store.save_results(&name, data) {
            Ok(Kept::Other) => return (response(id, 409, "Other results have this name"), false),
            Ok(kept) => kept,
            Err(error) => return (failed(id, &error), false),
        };
        if note.paid == Paid::No {
            // The worker's clock may say anything; more time than has passed it cannot have taken.
            let since = if note.at_ms > 0 { note.at_ms } else { task.created_ms() };
            let most = (now - since).max(0);
            let within = |ms: i64| ms.clamp(0, most);
            note.paid = Paid::Owed;
            note.reward = reward(within(results.idle_ms), within(results.staged_ms), within(results.cpu_ms));
            if let Err(error) = self.store.save_note(Side::Submitted, id, &note) {
                return (failed(id, &error), false);
            }
        }
        if status.may_become(Status::Completed) {
            Status::Completed.as_str().clone_into(&mut task.status);
            "Task completed with results".clone_into(&mut task.justification);
            if let Err(error) = self.store.save(Side::Submitted, &task) {
                return (failed(id, &error), false);
            }
        }
        let text = if kept == Kept::Same { "Results are already here" } else { "Results received" };
        (response(id, Response::OK, text), note.paid == Paid::Owed)
    }

    /// Submitted tasks whose score was not settled when the node stopped.
    pub(super) fn unpaid(&self) -> Vec<String> {
        let ids = self.store.ids(Side::Submitted).into_iter();
        ids.filter(|id| matches!(self.store.note(Side::Submitted, id).paid, Paid::Owed | Paid::Debited)).collect()
    }

    /// The next step in settling a score: who gets how much. It is noted as taken before it is.
    pub(super) fn next_payment(&mut self, id: &str) -> Option<(u32, i64)> {
        let task = self.store.load(Side::Submitted, id).ok()??;
        let mut note = self.store.note(Side::Submitted, id);
        let (submitter, worker) = (node_of(&task.from)?.node, node_of(&task.to)?.node);
        let payment = Payment { submitter, worker, reward: note.reward };
        let (after, step) = match note.paid {
            Paid::Owed => (Paid::Debited, (payment.submitter, -1)),
            Paid::Debited => (Paid::Done, (payment.worker, payment.reward)),
            Paid::No | Paid::Done => return None,
        };
        note.paid = after;
        self.store.save_note(Side::Submitted, id, &note).ok().map(|()| step)
    }

    /// A step was certainly not taken: it is to be taken later.
    pub(super) fn undo_payment(&mut self, id: &str) {
        let mut note = self.store.note(Side::Submitted, id);
        note.paid = match note.paid {
            Paid::Debited => Paid::Owed,
            Paid::Done => Paid::Debited,
            other => other,
        };
        if let Err(error) = self.store.save_note(Side::Submitted, id, &note) {
            tracing::error!(%error, task = id, "the state of a task cannot be kept");
        }
    }
}

fn failed(id: &str, error: &CallError) -> Response {
    tracing::error!(%error, task = id, "what a worker sent cannot be kept");
    response(id, 500, "It cannot be kept here now")
}

fn decided(task: &mut TaskFile, status: Status, why: &str, now: i64) {
    status.as_str().clone_into(&mut task.status);
    task.justification = cut(why);
    task.accepted_at = stamp(now);
    task.idle_ms = (now - task.created_ms()).max(0);
}

fn start(task: &mut TaskFile, note: &Note, status: Status, why: &str, now: i64) {
    status.as_str().clone_into(&mut task.status);
    why.clone_into(&mut task.justification);
    // Its turn may come before it is at the head: those before it still wait for a decision.
    let staged = if note.head_ms > 0 { note.head_ms } else { now };
    task.staged_at = stamp(staged);
    task.execute_started_at = stamp(now);
    task.staged_ms = (now - staged).max(0);
}
