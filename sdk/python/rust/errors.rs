//! Failures, with a stable code and a hint, and how they become exceptions.

use std::io;

use pilot::StreamError;
use pilot_services::dataexchange::SendError;
use pilot_services::events::EventsError;
use pyo3::prelude::*;

/// Which class of exception it is; `python/pilot/_errors.py` has the other half of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No daemon answers, or it went away.
    Daemon,
    /// The peer or the node said no.
    Refused,
    /// The time given is over.
    Timeout,
    /// An argument cannot be.
    Argument,
    /// The daemon does not serve it.
    Unsupported,
    /// A stream is over.
    Stream,
    /// Closed on this side.
    Closed,
    /// Anything else.
    Other,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Daemon => "daemon",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Argument => "argument",
            Self::Unsupported => "unsupported",
            Self::Stream => "stream",
            Self::Closed => "closed",
            Self::Other => "other",
        }
    }
}

/// What went wrong.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) code: String,
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
}

impl Failure {
    pub(crate) fn new(kind: Kind, code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind, code: code.into(), message: message.into(), hint: None }
    }

    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn internal(what: impl Into<String>) -> Self {
        Self::new(Kind::Other, "internal", what).hint("this is a defect: please report it")
    }

    pub(crate) fn argument(what: impl Into<String>) -> Self {
        Self::new(Kind::Argument, "invalid_argument", what)
    }

    pub(crate) fn timeout(op: &str) -> Self {
        Self::new(Kind::Timeout, "timeout", format!("{op}: i/o timeout"))
    }

    pub(crate) fn closed(what: &str) -> Self {
        Self::new(Kind::Closed, "closed", what)
    }
}

/// The stable code of an error. Calls and streams have the same for a daemon that went away.
pub(crate) fn code(error: &pilot::Error) -> &str {
    if matches!(error, pilot::Error::Disconnected { .. }) { daemon_gone() } else { error.code() }
}

fn daemon_gone() -> &'static str {
    pilot::CloseReason::DaemonGone.code()
}

impl From<pilot::Error> for Failure {
    fn from(error: pilot::Error) -> Self {
        use pilot::Error as E;
        let kind = match &error {
            E::Timeout { .. } => Kind::Timeout,
            E::Address(_) | E::TooLarge { .. } => Kind::Argument,
            E::ListenerClosed => Kind::Closed,
            other if other.is_disconnected() => Kind::Daemon,
            other if other.is_unsupported() => Kind::Unsupported,
            other if other.code() == "daemon_shutdown" => Kind::Daemon,
            other if other.code() == "invalid_argument" => Kind::Argument,
            _ => Kind::Refused,
        };
        let hint = error.hint().map(std::borrow::Cow::into_owned);
        Self { kind, code: code(&error).to_owned(), message: error.to_string(), hint }
    }
}

impl From<io::Error> for Failure {
    /// An error of a stream.
    fn from(error: io::Error) -> Self {
        let Some(inner) = StreamError::of(&error) else {
            let kind = if error.kind() == io::ErrorKind::TimedOut { Kind::Timeout } else { Kind::Stream };
            let code = if kind == Kind::Timeout { "timeout" } else { "io" };
            return Self::new(kind, code, error.to_string());
        };
        let kind = match inner {
            StreamError::Deadline | StreamError::CloseTimeout => Kind::Timeout,
            StreamError::Closed => Kind::Closed,
            StreamError::HalfCloseUnsupported(_) | StreamError::DeliveryUntold => Kind::Unsupported,
            StreamError::Ended(pilot::CloseReason::DaemonGone | pilot::CloseReason::DaemonShutdown) => Kind::Daemon,
            _ => Kind::Stream,
        };
        let code = if kind == Kind::Timeout { "timeout" } else { inner.code() };
        Self { kind, code: code.to_owned(), message: inner.to_string(), hint: inner.hint().map(str::to_owned) }
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        let kind = match &error {
            SendError::TooLarge { .. } | SendError::Source(_) => Kind::Argument,
            SendError::Unsupported(_) => Kind::Unsupported,
            SendError::Dial { code, .. } if code == daemon_gone() || code == "not_running" => Kind::Daemon,
            SendError::Dial { code, .. } if code == "timeout" => Kind::Timeout,
            SendError::Write(_) | SendError::NoAck(_) => Kind::Stream,
            _ => Kind::Refused,
        };
        let failure = Self::new(kind, error.code(), error.to_string());
        match &error {
            SendError::NoAck(_) | SendError::UnexpectedAck { .. } => {
                failure.hint("send it again with the same message_id: a peer that knows ids stores it once")
            }
            SendError::Dial { .. } => failure.hint("queue_message keeps it on disk until the peer can be reached"),
            _ => failure,
        }
    }
}

impl From<EventsError> for Failure {
    fn from(error: EventsError) -> Self {
        match error {
            EventsError::Io(error) => error.into(),
            EventsError::NotSupported(_) => Self::new(Kind::Unsupported, error.code(), error.to_string())
                .hint("the peer runs an official daemon: ask without since, retained and pattern"),
            other => Self::new(Kind::Refused, other.code(), other.to_string()),
        }
    }
}

impl From<Failure> for PyErr {
    /// By the function `make` of `pilot._errors`, which knows the classes.
    fn from(failure: Failure) -> Self {
        Python::attach(|py| {
            let make = || -> PyResult<PyErr> {
                let module = py.import("pilot._errors")?;
                let Failure { kind, code, message, hint } = &failure;
                let made = module.call_method1("make", (kind.name(), message, code, hint.as_deref()))?;
                Ok(PyErr::from_value(made))
            };
            make().unwrap_or_else(|error| error)
        })
    }
}
