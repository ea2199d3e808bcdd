//! Tasks on port 1003 (05 §7): frames, the JSON in them, and the files in which tasks are kept.

use serde_json::{Map, Value};

use crate::json::{self, JsonError};
use crate::{base64, time};

/// Longest body of a frame.
pub const MAX_BODY: usize = 16 << 20;
/// Longest description that is taken.
pub const MAX_DESCRIPTION: usize = 1 << 20;
/// Longest task id.
pub const MAX_ID: usize = 64;
/// Bytes in front of a body.
pub const HEADER_LEN: usize = 8;

/// What a frame is (05 §7.1).
pub mod kind {
    /// A task, and the answer to it.
    pub const SUBMIT: u32 = 1;
    /// A result of old libraries; daemons ignore it.
    pub const RESULT: u32 = 2;
    /// A change of status.
    pub const STATUS_UPDATE: u32 = 3;
    /// Results.
    pub const SEND_RESULTS: u32 = 4;
}

/// Why bytes are no frame, or a body is none of its kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TaskError {
    /// Above [`MAX_BODY`].
    #[error("task frame of {0} bytes (max 16777216)")]
    TooLarge(usize),
    /// Not JSON.
    #[error("task message is not JSON: {0}")]
    Json(#[from] JsonError),
    /// Not an object.
    #[error("task message is not a JSON object")]
    NotObject,
    /// A field of the wrong type or out of range.
    #[error("task message: field {0:?} has the wrong type or value")]
    Field(&'static str),
}

impl TaskError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge(_) => "task_too_large",
            Self::Json(_) => "task_json",
            Self::NotObject => "task_not_object",
            Self::Field(_) => "task_field",
        }
    }
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// One of [`kind`].
    pub kind: u32,
    /// JSON.
    pub body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The frame that begins `buf`, and its length; `None` when there is only part of it yet.
    ///
    /// # Errors
    /// [`TaskError::TooLarge`], as soon as the length can be read.
    pub fn parse(buf: &'a [u8]) -> Result<Option<(Self, usize)>, TaskError> {
        let Some((header, rest)) = buf.split_first_chunk::<HEADER_LEN>() else { return Ok(None) };
        let [a, b, c, d, length @ ..] = *header;
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_BODY {
            return Err(TaskError::TooLarge(length));
        }
        let kind = u32::from_be_bytes([a, b, c, d]);
        Ok(rest.get(..length).map(|body| (Self { kind, body }, HEADER_LEN + length)))
    }

    /// The bytes.
    ///
    /// # Errors
    /// [`TaskError::TooLarge`].
    pub fn emit(&self) -> Result<Vec<u8>, TaskError> {
        if self.body.len() > MAX_BODY {
            return Err(TaskError::TooLarge(self.body.len()));
        }
        let mut out = Vec::with_capacity(HEADER_LEN + self.body.len());
        out.extend_from_slice(&self.kind.to_be_bytes());
        // The limit makes the cast lossless.
        out.extend_from_slice(&(self.body.len() as u32).to_be_bytes());
        out.extend_from_slice(self.body);
        Ok(out)
    }
}

/// Whether a text can be a task id: it names files.
pub fn is_id(text: &str) -> bool {
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

/// A task id of 16 random bytes, in the form of the official tool.
pub fn id(random: [u8; 16]) -> String {
    let hex: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    // The text has 32 digits.
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default();
    [part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32)].join("-")
}

/// The fields of a JSON object as the official decoder reads them: names in any letter case, absent ones empty.
struct Fields(Map<String, Value>);

impl Fields {
    fn parse(text: &[u8]) -> Result<Self, TaskError> {
        match json::parse(text)? {
            Value::Object(map) => Ok(Self(map)),
            _ => Err(TaskError::NotObject),
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        let exact = self.0.get(name);
        exact.or_else(|| self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
    }

    fn text(&self, name: &'static str) -> Result<String, TaskError> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(TaskError::Field(name)),
        }
    }

    fn number(&self, name: &'static str) -> Result<i64, TaskError> {
        match self.get(name) {
            None | Some(Value::Null) => Ok(0),
            Some(number) => number.as_i64().ok_or(TaskError::Field(name)),
        }
    }

    fn id(&self) -> Result<String, TaskError> {
        self.text("task_id").and_then(|id| if is_id(&id) { Ok(id) } else { Err(TaskError::Field("task_id")) })
    }
}

/// Writes an object in the order of the official encoder.
struct Writer {
    out: Vec<u8>,
    indented: bool,
}

impl Writer {
    fn new(indented: bool) -> Self {
        Self { out: vec![b'{'], indented }
    }

    fn key(&mut self, name: &str) {
        if self.out.len() > 1 {
            self.out.push(b',');
        }
        let (begin, end) = if self.indented { ("\n  \"", "\": ") } else { ("\"", "\":") };
        self.out.extend_from_slice(begin.as_bytes());
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(end.as_bytes());
    }

    fn text(&mut self, name: &str, text: &str) {
        self.key(name);
        json::write_string(text, &mut self.out);
    }

    fn non_empty(&mut self, name: &str, text: &str) {
        if !text.is_empty() {
            self.text(name, text);
        }
    }

    fn number(&mut self, name: &str, number: i64) {
        self.key(name);
        self.out.extend_from_slice(number.to_string().as_bytes());
    }

    fn non_zero(&mut self, name: &str, number: i64) {
        if number != 0 {
            self.number(name, number);
        }
    }

    fn done(mut self) -> Vec<u8> {
        self.out.extend_from_slice(if self.indented { b"\n}" } else { b"}" });
        self.out
    }
}

/// A task on its way to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submit {
    /// Chosen by the submitter.
    pub task_id: String,
    /// What is to be done.
    pub description: String,
    /// The submitter, by its own account.
    pub from: String,
    /// The worker.
    pub to: String,
}

impl Submit {
    /// Reads a body.
    ///
    /// # Errors
    /// [`TaskError`], also for an id that could not name a file.
    pub fn parse(body: &[u8]) -> Result<Self, TaskError> {
        let fields = Fields::parse(body)?;
        Ok(Self {
            task_id: fields.id()?,
            description: fields.text("task_description")?,
            from: fields.text("from_addr")?,
            to: fields.text("to_addr")?,
        })
    }

    /// The body.
    pub fn emit(&self) -> Vec<u8> {
        let mut writer = Writer::new(false);
        writer.text("task_id", &self.task_id);
        writer.text("task_description", &self.description);
        writer.text("from_addr", &self.from);
        writer.text("to_addr", &self.to);
        writer.done()
    }
}

/// The answer to a task; between our own peers also to status updates and results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// Of the task; libraries may leave it empty.
    pub task_id: String,
    /// 200 accepted, 4xx refused, 5xx to be tried again.
    pub status: i64,
    /// In words.
    pub message: String,
}

impl Response {
    /// Status of what was taken.
    pub const OK: i64 = 200;
    /// Status of what was refused.
    pub const REFUSED: i64 = 400;

    /// Reads a body.
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn parse(body: &[u8]) -> Result<Self, TaskError> {
        let fields = Fields::parse(body)?;
        let (task_id, message) = (fields.text("task_id")?, fields.text("message")?);
        Ok(Self { task_id, status: fields.number("status")?, message })
    }

    /// The body.
    pub fn emit(&self) -> Vec<u8> {
        let mut writer = Writer::new(false);
        writer.text("task_id", &self.task_id);
        writer.number("status", self.status);
        writer.text("message", &self.message);
        writer.done()
    }
}

/// A change of status on its way to the submitter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusUpdate {
    /// Of the task.
    pub task_id: String,
    /// One of [`Status`], as text.
    pub status: String,
    /// Why.
    pub justification: String,
}

impl StatusUpdate {
    /// Reads a body.
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn parse(body: &[u8]) -> Result<Self, TaskError> {
        let fields = Fields::parse(body)?;
        let (status, justification) = (fields.text("status")?, fields.text("justification")?);
        Ok(Self { task_id: fields.id()?, status, justification })
    }

    /// The body.
    pub fn emit(&self) -> Vec<u8> {
        let mut writer = Writer::new(false);
        writer.text("task_id", &self.task_id);
        writer.text("status", &self.status);
        writer.text("justification", &self.justification);
        writer.done()
    }
}

/// What a worker sends back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Text.
    Text(String),
    /// A file.
    File {
        /// Its name, as sent.
        name: String,
        /// What is in it.
        data: Vec<u8>,
    },
}

/// Results on their way to the submitter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Results {
    /// Of the task.
    pub task_id: String,
    /// The results.
    pub content: Content,
    /// RFC 3339.
    pub completed_at: String,
    /// From receipt to decision.
    pub idle_ms: i64,
    /// At the head of the queue.
    pub staged_ms: i64,
    /// In execution.
    pub cpu_ms: i64,
}

impl Results {
    /// Reads a body.
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn parse(body: &[u8]) -> Result<Self, TaskError> {
        let fields = Fields::parse(body)?;
        let data = match fields.text("file_data")? {
            text if text.is_empty() => Vec::new(),
            text => base64::decode_up_to(&text, MAX_BODY).ok_or(TaskError::Field("file_data"))?,
        };
        // As the official receiver: a file without content is taken as text.
        let content = if fields.text("result_type")? == "file" && !data.is_empty() {
            Content::File { name: fields.text("filename")?, data }
        } else {
            Content::Text(fields.text("result_text")?)
        };
        Ok(Self {
            task_id: fields.id()?,
            content,
            completed_at: fields.text("completed_at")?,
            idle_ms: fields.number("time_idle_ms")?,
            staged_ms: fields.number("time_staged_ms")?,
            cpu_ms: fields.number("time_cpu_ms")?,
        })
    }

    /// The body.
    pub fn emit(&self) -> Vec<u8> {
        let mut writer = Writer::new(false);
        writer.text("task_id", &self.task_id);
        match &self.content {
            Content::Text(text) => {
                writer.text("result_type", "text");
                writer.non_empty("result_text", text);
            }
            Content::File { name, data } => {
                writer.text("result_type", "file");
                writer.non_empty("filename", name);
                writer.non_empty("file_data", &base64::encode(data));
            }
        }
        writer.text("completed_at", &self.completed_at);
        writer.non_zero("time_idle_ms", self.idle_ms);
        writer.non_zero("time_staged_ms", self.staged_ms);
        writer.non_zero("time_cpu_ms", self.cpu_ms);
        writer.done()
    }
}

/// Where a task is in its life (05 §7.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    /// Waits for a decision.
    New,
    /// Waits for its turn.
    Accepted,
    /// Refused by the worker.
    Declined,
    /// Being worked on.
    Executing,
    /// The submitter has the results.
    Completed,
    /// The worker knows that the submitter has them.
    Succeeded,
    /// Nobody decided in time.
    Cancelled,
    /// Its turn did not come to an end in time.
    Expired,
}

impl Status {
    const ALL: [(Self, &'static str); 8] = [
        (Self::New, "NEW"),
        (Self::Accepted, "ACCEPTED"),
        (Self::Declined, "DECLINED"),
        (Self::Executing, "EXECUTING"),
        (Self::Completed, "COMPLETED"),
        (Self::Succeeded, "SUCCEEDED"),
        (Self::Cancelled, "CANCELLED"),
        (Self::Expired, "EXPIRED"),
    ];

    /// As in files and frames.
    pub fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(status, _)| *status == self).map_or("", |(_, text)| text)
    }

    /// Reads [`Status::as_str`].
    pub fn from_name(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(status, _)| *status)
    }

    /// Whether nothing more happens.
    pub fn is_final(self) -> bool {
        !matches!(self, Self::New | Self::Accepted | Self::Executing)
    }

    /// Whether a submitter may learn `next` after this: life goes on, and never back.
    pub fn may_become(self, next: Self) -> bool {
        let rank = |status| match status {
            Self::New => 0,
            Self::Accepted => 1,
            Self::Executing => 2,
            Self::Declined | Self::Cancelled | Self::Expired | Self::Completed => 3,
            Self::Succeeded => 4,
        };
        match self {
            Self::New | Self::Accepted | Self::Executing => rank(next) > rank(self),
            Self::Completed => next == Self::Succeeded,
            _ => false,
        }
    }
}

/// A task as it is kept: `received/<id>.json` at the worker, `submitted/<id>.json` at the submitter (05 §7.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFile {
    /// Its id.
    pub task_id: String,
    /// What is to be done.
    pub description: String,
    /// RFC 3339, whole seconds.
    pub created_at: String,
    /// One of [`Status`], as text.
    pub status: String,
    /// Why.
    pub justification: String,
    /// Address of the submitter.
    pub from: String,
    /// Address of the worker.
    pub to: String,
    /// When it was decided on; empty when not yet, as the following.
    pub accepted_at: String,
    /// When it came to the head of the queue.
    pub staged_at: String,
    /// When its execution began.
    pub execute_started_at: String,
    /// When the results were there.
    pub completed_at: String,
    /// From receipt to decision.
    pub idle_ms: i64,
    /// At the head of the queue.
    pub staged_ms: i64,
    /// In execution.
    pub cpu_ms: i64,
}

impl TaskFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`TaskError`].
    pub fn parse(text: &[u8]) -> Result<Self, TaskError> {
        let fields = Fields::parse(text)?;
        Ok(Self {
            task_id: fields.text("task_id")?,
            description: fields.text("task_description")?,
            created_at: fields.text("created_at")?,
            status: fields.text("status")?,
            justification: fields.text("status_justification")?,
            from: fields.text("from")?,
            to: fields.text("to")?,
            accepted_at: fields.text("accepted_at")?,
            staged_at: fields.text("staged_at")?,
            execute_started_at: fields.text("execute_started_at")?,
            completed_at: fields.text("completed_at")?,
            idle_ms: fields.number("time_idle_ms")?,
            staged_ms: fields.number("time_staged_ms")?,
            cpu_ms: fields.number("time_cpu_ms")?,
        })
    }

    /// The text of the file.
    pub fn emit(&self) -> Vec<u8> {
        let mut writer = Writer::new(true);
        writer.text("task_id", &self.task_id);
        writer.text("task_description", &self.description);
        writer.text("created_at", &self.created_at);
        writer.text("status", &self.status);
        writer.text("status_justification", &self.justification);
        writer.text("from", &self.from);
        writer.text("to", &self.to);
        writer.non_empty("accepted_at", &self.accepted_at);
        writer.non_empty("staged_at", &self.staged_at);
        writer.non_empty("execute_started_at", &self.execute_started_at);
        writer.non_empty("completed_at", &self.completed_at);
        writer.non_zero("time_idle_ms", self.idle_ms);
        writer.non_zero("time_staged_ms", self.staged_ms);
        writer.non_zero("time_cpu_ms", self.cpu_ms);
        writer.done()
    }

    /// The status; `None` for a text that is none.
    pub fn status(&self) -> Option<Status> {
        Status::from_name(&self.status)
    }

    /// Milliseconds since the Unix epoch of `created_at`; 0 when it is no time.
    pub fn created_ms(&self) -> i64 {
        time::parse_rfc3339(&self.created_at).and_then(|at| i64::try_from(at.as_millis()).ok()).unwrap_or(0)
    }
}
