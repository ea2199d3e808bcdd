//! What can go wrong between an application and its node (03 §12).
//!
//! [`Error`] is what calls return; [`StreamError`] is what stands inside the [`std::io::Error`] of a stream. Both have a
//! stable [`code`](Error::code) for programs and a [`hint`](Error::hint) for people.

use std::borrow::Cow;
use std::io;

use pilot_wire::addr::AddressError;

/// An error of a call. The texts are those of the official driver, so that tools built on either say the same.
///
/// ```
/// let error = "0:0000.0000:1".parse::<pilot::SocketAddress>().map_err(pilot::Error::from).unwrap_err();
/// assert_eq!(error.code(), "invalid_argument");
/// assert!(error.hint().unwrap().contains("0:0000.0000.0005:1000"));
/// ```
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
    /// The node refused, with a stable code and mostly with advice: our own daemon over the extended local socket, or an
    /// embedded node.
    #[error("{}", prefixed(op, message))]
    Refused {
        /// The operation.
        op: &'static str,
        /// The stable name of the reason.
        code: String,
        /// What happened.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The daemon refused without a word.
    #[error("{op}: daemon error")]
    Unspecified {
        /// The operation.
        op: &'static str,
    },
    /// The daemon does not serve what the call needs.
    #[error("{op}: the daemon does not serve {what}")]
    Unsupported {
        /// The operation.
        op: &'static str,
        /// What is missing.
        what: &'static str,
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
    ///
    /// | Code | When |
    /// |---|---|
    /// | `not_running` | no daemon answers on the socket |
    /// | `invalid_argument` | the address, or the size, cannot be |
    /// | `timeout` | the time given to the call is over |
    /// | `unsupported_by_daemon` | the daemon is too old, or an official one |
    /// | `connection_refused` | the peer does not listen on the port |
    /// | `dial_timeout` | the peer did not answer |
    /// | `port_in_use` | somebody else has the port |
    /// | `connection_failed` | the daemon refused for another reason, or went away |
    ///
    /// and, in [`Refused`](Self::Refused), those of the node.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// match driver.dial_text("0:0000.0000.0002:1000").await {
    ///     Err(error) if error.code() == "connection_refused" => println!("nobody listens there"),
    ///     other => println!("{other:?}"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn code(&self) -> &str {
        match self {
            Self::Connect { .. } => "not_running",
            Self::Address(_) | Self::TooLarge { .. } => "invalid_argument",
            Self::Timeout { .. } => "timeout",
            Self::Unsupported { .. } => "unsupported_by_daemon",
            Self::Refused { code, .. } => code,
            Self::Daemon { text, .. } => code_of(text),
            Self::Unspecified { .. }
            | Self::Disconnected { .. }
            | Self::Unmarshal { .. }
            | Self::InvalidDialResponse
            | Self::ListenerClosed => "connection_failed",
        }
    }

    /// What a person can do about it.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// if let Err(error) = driver.dial_text("0:0000.0000.0002:1000").await {
    ///     eprintln!("{error}");
    ///     if let Some(hint) = error.hint() {
    ///         eprintln!("hint: {hint}");
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub fn hint(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(match self {
            Self::Connect { .. } => "start the daemon with: pilotctl daemon start",
            Self::Disconnected { .. } => "the daemon stopped or restarted; try again once it runs",
            Self::Address(_) => "addresses look like 0:0000.0000.0005, with a port 0:0000.0000.0005:1000",
            Self::Unsupported { .. } => UPGRADE,
            Self::Refused { hint: None, code, .. } if code == "unknown_method" => UPGRADE,
            Self::Refused { hint, .. } => return hint.as_deref().map(Cow::Borrowed),
            Self::Daemon { text, .. } => match code_of(text) {
                "unsupported_by_daemon" => UPGRADE,
                "port_in_use" => "choose another port, or end the program that listens there",
                "connection_refused" => "nothing listens on that port of the peer",
                _ => return None,
            },
            Self::Timeout { .. } => "give the call more time, or check the path with: pilotctl ping",
            _ => return None,
        }))
    }

    /// Whether the daemon is gone. A [`Driver`](crate::Driver) that reconnects does so by itself; try again later.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// while driver.info().await.is_err_and(|error| error.is_disconnected()) {
    ///     tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    /// }
    /// # Ok(()) }
    /// ```
    pub fn is_disconnected(&self) -> bool {
        matches!(self, Self::Disconnected { .. } | Self::Connect { .. })
    }

    /// Whether the daemon does not know the command: an official one, or one older than this program.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// match driver.call("inbox.list", &serde_json::json!({})).await {
    ///     Err(error) if error.is_unsupported() => println!("this daemon keeps no inbox"),
    ///     other => println!("{other:?}"),
    /// }
    /// # Ok(()) }
    /// ```
    pub fn is_unsupported(&self) -> bool {
        matches!(self.code(), "unsupported_by_daemon" | "unknown_method")
    }

    /// What the daemon said, when it is the daemon that refused.
    ///
    /// ```no_run
    /// # fn example(error: pilot::Error) {
    /// if let Some(text) = error.daemon_text() {
    ///     println!("the daemon said: {text}");
    /// }
    /// # }
    /// ```
    pub fn daemon_text(&self) -> Option<&str> {
        match self {
            Self::Daemon { text, .. } => Some(text),
            Self::Refused { message, .. } => Some(message),
            _ => None,
        }
    }
}

const UPGRADE: &str = "the running daemon is an older or an official one: restart it with this version (pilotctl daemon stop, then start)";

/// The message with the operation in front, unless it begins with it.
fn prefixed(op: &str, message: &str) -> String {
    match message.strip_prefix(op) {
        Some(rest) if rest.starts_with([' ', ':']) => message.to_owned(),
        _ => format!("{op}: {message}"),
    }
}

/// The stable name behind the words of a daemon that gives no codes (03 §5).
fn code_of(text: &str) -> &'static str {
    use pilot_wire::ipc::text as known;
    if text == known::CONNECTION_REFUSED {
        "connection_refused"
    } else if text.starts_with(known::DIAL_TIMEOUT) {
        "dial_timeout"
    } else if text.starts_with("port ") && text.ends_with(" already bound") {
        "port_in_use"
    } else if text.starts_with("unknown command: 0x") || text.contains(": unknown sub-command 0x") {
        "unsupported_by_daemon"
    } else {
        "connection_failed"
    }
}

/// Why a stream does not go on. Stands inside the [`io::Error`] of every read and write of a [`Stream`](crate::Stream).
///
/// ```
/// # use pilot::StreamError;
/// fn explain(error: &std::io::Error) -> String {
///     match StreamError::of(error) {
///         Some(why) => format!("{} ({}): {}", why, why.code(), why.hint().unwrap_or("no advice")),
///         None => error.to_string(),
///     }
/// }
/// # explain(&std::io::Error::other("x"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// This side has closed it, or its own direction.
    #[error("connection closed")]
    Closed,
    /// It ended otherwise than in order.
    #[error("{0}")]
    Ended(CloseReason),
    /// The service inside the daemon ended it with an error of its own.
    #[error("{message}")]
    Service {
        /// The stable name of the reason.
        code: String,
        /// What happened.
        message: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The daemon refused what was written, in its words.
    #[error("{0}")]
    Refused(String),
    /// The deadline passed first.
    #[error("i/o timeout")]
    Deadline,
    /// The own direction cannot be ended alone.
    #[error("cannot end the own direction alone: {0} does not know half-close")]
    HalfCloseUnsupported(HalfCloseLack),
    /// Closing was not confirmed in time.
    #[error("the close was not confirmed in time")]
    CloseTimeout,
    /// The daemon does not tell what has been delivered.
    #[error("the local daemon does not tell what has been delivered")]
    DeliveryUntold,
}

/// Who does not know half-close.
///
/// ```no_run
/// # async fn example(mut stream: pilot::Stream) -> Result<(), Box<dyn std::error::Error>> {
/// use pilot::{HalfCloseLack, StreamError};
///
/// let ended = stream.close_write().await;
/// match ended.as_ref().err().and_then(StreamError::of) {
///     Some(StreamError::HalfCloseUnsupported(HalfCloseLack::Peer)) => println!("the peer runs an older daemon"),
///     Some(StreamError::HalfCloseUnsupported(HalfCloseLack::Daemon)) => println!("the daemon here is older"),
///     _ => ended?,
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HalfCloseLack {
    /// The peer's daemon: an official one, or one that has not said yet what it can do.
    Peer,
    /// The own daemon, which does not serve the extended local socket.
    Daemon,
}

impl std::fmt::Display for HalfCloseLack {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Peer => "the peer",
            Self::Daemon => "the local daemon",
        })
    }
}

impl StreamError {
    /// The reason inside an I/O error of a stream.
    ///
    /// ```no_run
    /// # async fn example(mut stream: pilot::Stream) -> Result<(), Box<dyn std::error::Error>> {
    /// use pilot::{CloseReason, StreamError};
    /// use tokio::io::AsyncReadExt;
    ///
    /// if let Err(error) = stream.read_u8().await
    ///     && let Some(StreamError::Ended(CloseReason::TrustRevoked)) = StreamError::of(&error)
    /// {
    ///     println!("we are no longer trusted");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Stable name.
    ///
    /// ```
    /// assert_eq!(pilot::StreamError::Deadline.code(), "timeout");
    /// ```
    pub fn code(&self) -> &str {
        match self {
            Self::Closed => "closed",
            Self::Ended(reason) => reason.code(),
            Self::Service { code, .. } => code,
            Self::Refused(_) => "refused_by_daemon",
            Self::Deadline => "timeout",
            Self::HalfCloseUnsupported(_) => "no_half_close",
            Self::CloseTimeout => "close_timeout",
            Self::DeliveryUntold => "unsupported_by_daemon",
        }
    }

    /// What a person can do about it.
    ///
    /// ```
    /// use pilot::{CloseReason, StreamError};
    ///
    /// let error = StreamError::Ended(CloseReason::DaemonGone);
    /// assert!(error.hint().is_some_and(|hint| hint.contains("dial again")));
    /// ```
    pub fn hint(&self) -> Option<&str> {
        Some(match self {
            Self::Service { hint, .. } => return hint.as_deref(),
            Self::DeliveryUntold => UPGRADE,
            Self::HalfCloseUnsupported(HalfCloseLack::Peer) => {
                "mark the end of a request in the data (a length, a line), or have the peer run this daemon"
            }
            Self::HalfCloseUnsupported(HalfCloseLack::Daemon) => UPGRADE,
            Self::Ended(CloseReason::DaemonGone | CloseReason::DaemonShutdown) => {
                "the daemon stopped or restarted; dial again once it runs"
            }
            Self::Ended(CloseReason::Overrun) => "read every accepted stream, or close those that are not wanted",
            Self::Ended(CloseReason::Timeout | CloseReason::IdleTimeout) => {
                "the peer or the path to it failed; check it with: pilotctl ping"
            }
            Self::Deadline => "set a later deadline, or none",
            _ => return None,
        })
    }

    pub(crate) fn io(self) -> io::Error {
        use io::ErrorKind as K;
        let kind = match &self {
            Self::Closed => K::NotConnected,
            Self::Refused(_) => K::BrokenPipe,
            Self::Deadline | Self::CloseTimeout => K::TimedOut,
            Self::HalfCloseUnsupported(_) | Self::DeliveryUntold => K::Unsupported,
            Self::Service { .. } => K::Other,
            Self::Ended(reason) => match reason {
                CloseReason::Refused => K::ConnectionRefused,
                CloseReason::Timeout
                | CloseReason::IdleTimeout
                | CloseReason::DialTimeout
                | CloseReason::AcceptTimeout => K::TimedOut,
                CloseReason::Truncated => K::UnexpectedEof,
                CloseReason::DaemonGone | CloseReason::DaemonShutdown | CloseReason::Overrun => K::ConnectionAborted,
                CloseReason::Clean => K::BrokenPipe,
                _ => K::ConnectionReset,
            },
        };
        io::Error::new(kind, self)
    }
}

/// How a stream ended.
///
/// ```no_run
/// # fn example(stream: pilot::Stream) {
/// use pilot::CloseReason;
///
/// match stream.close_reason() {
///     None => println!("still open"),
///     Some(CloseReason::Clean) => println!("every byte arrived"),
///     Some(reason) => println!("{}: {reason}", reason.code()),
/// }
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseReason {
    /// Both ends closed, every byte arrived.
    Clean,
    /// It ended, and the daemon does not tell why: an official one (03 §6.6).
    Untold,
    /// The peer reset it.
    Reset,
    /// The peer refused it.
    Refused,
    /// This side reset it.
    Local,
    /// The peer fell silent, or made no progress, with data unacknowledged.
    Timeout,
    /// The end came before some bytes did.
    Truncated,
    /// Nothing was heard for the idle time-out.
    IdleTimeout,
    /// The peer did not answer the dial.
    DialTimeout,
    /// The dialler never completed the handshake.
    AcceptTimeout,
    /// The peer has restarted.
    PeerRestarted,
    /// Trust in the peer ended.
    TrustRevoked,
    /// Another program on this host ended it by its number.
    Disconnected,
    /// This program sent more than it was granted: an error in the driver.
    CreditExceeded,
    /// The own daemon ended in order.
    DaemonShutdown,
    /// The service inside the daemon ended it with an error of its own; reads say which.
    Service,
    /// The own daemon is gone.
    DaemonGone,
    /// Given up by the driver: its data was not read while other streams of the same socket waited (official daemons
    /// only, which have no flow control per stream on the local socket).
    Overrun,
}

/// The reasons that nodes give, by their stable names.
const TOLD: [CloseReason; 14] = [
    CloseReason::Clean,
    CloseReason::Reset,
    CloseReason::Refused,
    CloseReason::Local,
    CloseReason::Timeout,
    CloseReason::Truncated,
    CloseReason::IdleTimeout,
    CloseReason::DialTimeout,
    CloseReason::AcceptTimeout,
    CloseReason::PeerRestarted,
    CloseReason::TrustRevoked,
    CloseReason::Disconnected,
    CloseReason::CreditExceeded,
    CloseReason::DaemonShutdown,
];

impl CloseReason {
    /// Stable name.
    ///
    /// ```
    /// assert_eq!(pilot::CloseReason::PeerRestarted.code(), "peer_restarted");
    /// ```
    pub const fn code(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Untold => "ended",
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::Local => "local",
            Self::Timeout => "timeout",
            Self::Truncated => "truncated",
            Self::IdleTimeout => "idle_timeout",
            Self::DialTimeout => "dial_timeout",
            Self::AcceptTimeout => "accept_timeout",
            Self::PeerRestarted => "peer_restarted",
            Self::TrustRevoked => "trust_revoked",
            Self::Disconnected => "disconnected",
            Self::CreditExceeded => "credit_exceeded",
            Self::DaemonShutdown => "daemon_shutdown",
            Self::Service => "service",
            Self::DaemonGone => "daemon_disconnected",
            Self::Overrun => "overrun",
        }
    }

    /// The reason with a stable name, as a node gives it; any other is that of a service.
    pub(crate) fn from_code(code: &str) -> Self {
        TOLD.into_iter().find(|reason| reason.code() == code).unwrap_or(Self::Service)
    }

    /// Whether every byte sent by the peer before its end has arrived, as far as is known.
    ///
    /// ```
    /// use pilot::CloseReason;
    ///
    /// assert!(CloseReason::Clean.is_orderly());
    /// assert!(!CloseReason::Truncated.is_orderly());
    /// ```
    pub fn is_orderly(self) -> bool {
        matches!(self, Self::Clean | Self::Untold)
    }
}

impl std::fmt::Display for CloseReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Clean => "closed",
            Self::Untold => "ended",
            Self::Reset => "reset by the peer",
            Self::Refused => "connection refused by the peer",
            Self::Local => "reset by this side",
            Self::Timeout => "the peer stopped answering",
            Self::Truncated => "the peer closed before all data had passed",
            Self::IdleTimeout => "the peer went silent on an idle connection",
            Self::DialTimeout => "the peer did not answer the dial",
            Self::AcceptTimeout => "the dialler never completed the handshake",
            Self::PeerRestarted => "the peer has restarted",
            Self::TrustRevoked => "trust in the peer ended",
            Self::Disconnected => "ended by another program of this host",
            Self::CreditExceeded => "more was sent than the daemon had granted",
            Self::DaemonShutdown => "the daemon ended",
            Self::Service => "ended by the service",
            Self::DaemonGone => "daemon disconnected",
            Self::Overrun => "stream given up: its data was not read while other streams of the same listener waited",
        })
    }
}

/// The words of the system in the official form, where they are common.
pub(crate) fn system_text(error: &io::Error) -> String {
    use io::ErrorKind as K;
    match error.kind() {
        K::NotFound => "no such file or directory".into(),
        K::ConnectionRefused => "connection refused".into(),
        K::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_of_nodes_are_read_by_their_names() {
        for reason in TOLD {
            assert_eq!(CloseReason::from_code(reason.code()), reason);
        }
        assert_eq!(CloseReason::from_code("disk_full"), CloseReason::Service);
    }

    #[test]
    fn the_words_of_old_daemons_have_codes() {
        let code = |text: &str| Error::Daemon { op: "x", text: text.into() }.code().to_owned();
        assert_eq!(code("connection refused"), "connection_refused");
        assert_eq!(code("dial timeout: peer did not answer"), "dial_timeout");
        assert_eq!(code("port 7 already bound"), "port_in_use");
        assert_eq!(code("unknown command: 0x37"), "unsupported_by_daemon");
        assert_eq!(code("handshake: unknown sub-command 0x07"), "unsupported_by_daemon");
        assert_eq!(code("something else"), "connection_failed");
    }

    #[test]
    fn a_stream_error_is_found_inside_an_io_error() {
        let error = StreamError::Ended(CloseReason::PeerRestarted).io();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(StreamError::of(&error).map(StreamError::code), Some("peer_restarted"));
        assert_eq!(StreamError::of(&io::ErrorKind::Other.into()), None);
    }
}
