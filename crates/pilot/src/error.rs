//! What can go wrong between an application and its daemon (03 §12).

use pilot_wire::addr::AddressError;

/// An error of the driver. The texts are those of the official driver, so that tools built on either say the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No daemon answers on the socket.
    #[error("connect to daemon: dial unix {path}: connect: {why}")]
    Connect {
        /// The socket.
        path: String,
        /// The reason given by the system.
        why: String,
    },
    /// A text is not an address.
    #[error("parse address: {0}")]
    Address(#[from] AddressError),
    /// The daemon refused, in its words.
    #[error("{op}: daemon: {text}")]
    Daemon {
        /// The operation, as in `dial`, `bind`, `set_hostname`.
        op: &'static str,
        /// What the daemon said.
        text: String,
    },
    /// The daemon refused without a word.
    #[error("{op}: daemon error")]
    Unspecified {
        /// The operation.
        op: &'static str,
    },
    /// The daemon went away before it answered.
    #[error("{op}: daemon disconnected")]
    Disconnected {
        /// The operation.
        op: &'static str,
    },
    /// The daemon's answer is not the JSON object it should be.
    #[error("{op} unmarshal: {why}")]
    Unmarshal {
        /// The operation.
        op: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// The daemon's answer to a dial is too short to hold a connection id.
    #[error("invalid dial response")]
    InvalidDialResponse,
    /// The listener was closed.
    #[error("listener closed")]
    ListenerClosed,
    /// The deadline passed first.
    #[error("{op}: i/o timeout")]
    Timeout {
        /// The operation.
        op: &'static str,
    },
    /// The request does not fit into one local frame.
    #[error("{op}: {size} bytes are too many for the local socket (at most {limit})")]
    TooLarge {
        /// The operation.
        op: &'static str,
        /// Bytes given.
        size: usize,
        /// Bytes that fit.
        limit: usize,
    },
}

impl Error {
    /// Stable name of the error, for programs to match on.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "not_running",
            Self::Address(_) | Self::TooLarge { .. } => "invalid_argument",
            Self::Timeout { .. } => "timeout",
            Self::Daemon { .. }
            | Self::Unspecified { .. }
            | Self::Disconnected { .. }
            | Self::Unmarshal { .. }
            | Self::InvalidDialResponse
            | Self::ListenerClosed => "connection_failed",
        }
    }

    /// What a person can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Connect { .. } => Some("start the daemon with: pilotctl daemon start"),
            Self::Disconnected { .. } => Some("the daemon stopped or restarted; connect again"),
            Self::Address(_) => Some("addresses look like 0:0000.0000.0005, with a port 0:0000.0000.0005:1000"),
            _ => None,
        }
    }

    /// Whether the daemon is gone, so that only a new [`Driver`](crate::Driver) can help.
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected { .. } | Self::Connect { .. })
    }

    /// What the daemon said, when it is the daemon that refused.
    pub fn daemon_text(&self) -> Option<&str> {
        match self {
            Self::Daemon { text, .. } => Some(text),
            _ => None,
        }
    }
}

/// The words of the system in the official form, where they are common.
pub(crate) fn system_text(error: &std::io::Error) -> String {
    use std::io::ErrorKind as K;
    match error.kind() {
        K::NotFound => "no such file or directory".into(),
        K::ConnectionRefused => "connection refused".into(),
        K::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}
