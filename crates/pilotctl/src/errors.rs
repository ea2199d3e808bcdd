//! What can go wrong in a command: a stable code, a message, a hint, the cause, and the exit code (06 §2.3, §9).

use std::fmt;

use serde_json::{Map, Value};

/// Stable names that scripts match on (06 §9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Usage errors, bad numbers, bad addresses, unknown flags.
    InvalidArgument,
    /// A host name, target or file that does not exist.
    NotFound,
    /// A daemon is already there.
    AlreadyExists,
    /// No daemon is there.
    NotRunning,
    /// The daemon, the registry or the peer refused or is out of reach.
    ConnectionFailed,
    /// No answer in time.
    Timeout,
    /// A policy or a missing right forbids it.
    PermissionDenied,
    /// The peer does not trust this node yet.
    TrustRequired,
    /// The local system failed.
    Internal,
    /// The same, as the official tool spells it for tasks.
    InternalError,
    /// A task is not in the state for this.
    InvalidState,
    /// The time for this is over.
    Expired,
}

impl Code {
    /// Those of the manifest.
    pub(crate) const ALL: &[Self] = &[
        Self::InvalidArgument,
        Self::NotFound,
        Self::AlreadyExists,
        Self::NotRunning,
        Self::ConnectionFailed,
        Self::Timeout,
        Self::PermissionDenied,
        Self::TrustRequired,
        Self::Internal,
    ];

    /// What it means, for the manifest.
    pub(crate) const fn meaning(self) -> &'static str {
        match self {
            Self::InvalidArgument => "the command line is wrong; do not retry",
            Self::NotFound => "a host name, target or file does not exist",
            Self::AlreadyExists => "a daemon is already running",
            Self::NotRunning => "no daemon answers; start it",
            Self::ConnectionFailed => "daemon, registry or peer refused or is out of reach; may be retried",
            Self::Timeout => "no answer in time; may be retried",
            Self::PermissionDenied => "a policy or a missing right forbids it; do not retry unchanged",
            Self::TrustRequired => "the peer does not trust this node yet; ask it: pilotctl handshake",
            Self::Internal | Self::InternalError => "the local system failed",
            Self::InvalidState => "a task is not in the state for this; do not retry",
            Self::Expired => "the time for this is over; do not retry",
        }
    }

    /// The code as printed.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidArgument => "invalid_argument",
            Self::NotFound => "not_found",
            Self::AlreadyExists => "already_exists",
            Self::NotRunning => "not_running",
            Self::ConnectionFailed => "connection_failed",
            Self::Timeout => "timeout",
            Self::PermissionDenied => "permission_denied",
            Self::TrustRequired => "trust_required",
            Self::Internal => "internal",
            Self::InternalError => "internal_error",
            Self::InvalidState => "invalid_state",
            Self::Expired => "expired",
        }
    }
}

/// Why a command failed. Every error leaves the process with exit code 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CliError {
    /// Stable name.
    pub(crate) code: Code,
    /// What failed, in the official words where there are any.
    pub(crate) message: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    /// The underlying error, where the official message leaves it out.
    pub(crate) cause: Option<String>,
    /// The peer's answer, word for word, where it is one (06 §24.16).
    pub(crate) ack: Option<String>,
}

impl CliError {
    /// An error without hint or cause.
    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, cause: None, ack: None }
    }

    /// A mistake on the command line.
    pub(crate) fn argument(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// A failure of the local system.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, message)
    }

    /// A refusal by daemon, registry or peer.
    pub(crate) fn connection(message: impl Into<String>) -> Self {
        Self::new(Code::ConnectionFailed, message)
    }

    /// No daemon answers on the socket.
    pub(crate) fn no_daemon() -> Self {
        Self::new(Code::NotRunning, "daemon is not running").hint("start the daemon with: pilotctl daemon start")
    }

    /// Adds what to do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the underlying error.
    #[must_use]
    pub(crate) fn cause(mut self, cause: impl fmt::Display) -> Self {
        self.cause = Some(cause.to_string());
        self
    }

    /// Adds the peer's answer.
    #[must_use]
    pub(crate) fn with_ack(mut self, ack: Option<&str>) -> Self {
        self.ack = ack.map(str::to_owned);
        self
    }

    /// Adds the error of the daemon or the peer behind it, with the remedy it names.
    #[must_use]
    pub(crate) fn because(self, error: &pilot::Error) -> Self {
        let text = error.to_string();
        match error.hint() {
            Some(hint) if !text.contains(&*hint) => self.cause(format_args!("{text}; {hint}")),
            _ => self.cause(text),
        }
    }

    /// The object of JSON mode: `code`, `message` (the newest official release calls it `error`), `status`, and `hint`
    /// and `cause` where there are any.
    pub(crate) fn to_json(&self) -> Value {
        let mut map = Map::new();
        map.insert("code".into(), self.code.as_str().into());
        map.insert("error".into(), self.message.clone().into());
        map.insert("message".into(), self.message.clone().into());
        map.insert("status".into(), "error".into());
        if let Some(hint) = &self.hint {
            map.insert("hint".into(), hint.clone().into());
        }
        if let Some(cause) = &self.cause {
            map.insert("cause".into(), cause.clone().into());
        }
        if let Some(ack) = &self.ack {
            map.insert("ack".into(), ack.clone().into());
        }
        Value::Object(map)
    }

    /// The lines of human mode.
    pub(crate) fn to_text(&self) -> String {
        let mut text = format!("error: {}\n", self.message);
        if let Some(cause) = &self.cause {
            text.push_str(&format!("cause: {cause}\n"));
        }
        if let Some(hint) = &self.hint {
            text.push_str(&format!("hint:  {hint}\n"));
        }
        text
    }
}

/// What a command returns: the exit code of the process, or an error.
pub(crate) type Outcome = Result<u8, CliError>;
