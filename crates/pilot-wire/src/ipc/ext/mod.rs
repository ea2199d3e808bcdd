//! The extension of the local socket: request ids, error codes, credit per stream, half-close, close reasons, calls into
//! the daemon's services (`docs/spec/local-socket.md`, rules L1 to L43).
//!
//! Frames of a client ([`ClientFrame`]) have opcodes 0x80 to 0xBF, frames of the daemon ([`DaemonFrame`]) 0xC0 to 0xFF.
//! An older daemon answers the first of them, the greeting, with `unknown command: 0x80`.

mod client;
mod daemon;

pub use client::ClientFrame;
pub use daemon::{DaemonFrame, Opened};

use serde_json::{Value, json};

use crate::json as text;

/// The version of the extension described here (L3).
pub const VERSION: u16 = 1;
/// Most data a sender puts into one data frame, so that streams share the socket fairly (L21). A receiver takes up to
/// what the frame limit leaves.
pub const MAX_DATA: usize = 64 * 1024;
/// Longest JSON text of a call, of its result, or of an open, in bytes: the frame limit less the longest header.
pub const MAX_JSON: usize = crate::frame::MAX_FRAME - 512;
/// Longest method name, in bytes (L31).
pub const MAX_METHOD: usize = 128;

/// Opcodes.
pub mod op {
    /// The client says which version it speaks.
    pub const GREET: u8 = 0x80;
    /// Bind a port.
    pub const BIND: u8 = 0x81;
    /// Release a port.
    pub const UNBIND: u8 = 0x82;
    /// Wait for one incoming stream.
    pub const ACCEPT: u8 = 0x83;
    /// Open a stream to a peer.
    pub const DIAL: u8 = 0x84;
    /// Give up a waiting request.
    pub const CANCEL: u8 = 0x85;
    /// Send a datagram.
    pub const SEND_DATAGRAM: u8 = 0x86;
    /// Call a method of the daemon.
    pub const CALL: u8 = 0x87;
    /// Open a stream to a service inside the daemon.
    pub const OPEN: u8 = 0x88;
    /// Data of a stream, from the client.
    pub const DATA: u8 = 0x90;
    /// The client takes more bytes of a stream.
    pub const CREDIT: u8 = 0x91;
    /// The client ends its direction.
    pub const FINISH: u8 = 0x92;
    /// The client ends both directions in order.
    pub const CLOSE: u8 = 0x93;
    /// The client breaks a stream off.
    pub const RESET: u8 = 0x94;

    /// Answer to [`GREET`].
    pub const GREETING: u8 = 0xC0;
    /// A request succeeded.
    pub const DONE: u8 = 0xC1;
    /// A request failed, or (request 0) the client did.
    pub const FAILED: u8 = 0xC2;
    /// A stream is there.
    pub const OPENED: u8 = 0xC3;
    /// The result of a call.
    pub const RESULT: u8 = 0xC4;
    /// A datagram arrived.
    pub const DATAGRAM: u8 = 0xC5;
    /// Data of a stream, from the daemon.
    pub const RECEIVED: u8 = 0xD0;
    /// The daemon takes more bytes of a stream.
    pub const GRANTED: u8 = 0xD1;
    /// The other end's direction is over, and all of it has been given to the client.
    pub const FINISHED: u8 = 0xD2;
    /// The client's direction is over: what it still sends is thrown away.
    pub const STOPPED: u8 = 0xD3;
    /// The stream is over and its number free.
    pub const CLOSED: u8 = 0xD4;
}

/// Stable codes of failures and of ends. Those of dials, datagrams and stream ends of the protocol core are passed on
/// unchanged (`docs/spec/local-socket.md`, L36).
pub mod code {
    /// The other end ended the stream, and every byte passed.
    pub const CLEAN: &str = "clean";
    /// The other end broke the stream off.
    pub const RESET: &str = "reset";
    /// This client broke the stream off.
    pub const LOCAL: &str = "local";
    /// The client gave the request up.
    pub const CANCELLED: &str = "cancelled";
    /// The daemon ends.
    pub const DAEMON_SHUTDOWN: &str = "daemon_shutdown";
    /// Another program ended the stream by its number.
    pub const DISCONNECTED: &str = "disconnected";
    /// The peer is no longer trusted.
    pub const TRUST_REVOKED: &str = "trust_revoked";
    /// The client sent more than it was granted.
    pub const CREDIT_EXCEEDED: &str = "credit_exceeded";
    /// The peer knows no half-close.
    pub const NO_HALF_CLOSE: &str = "no_half_close";
    /// A frame that cannot be understood.
    pub const PROTOCOL_ERROR: &str = "protocol_error";
    /// The client speaks no version the daemon knows.
    pub const UNSUPPORTED_VERSION: &str = "unsupported_version";
    /// An argument makes no sense.
    pub const INVALID_ARGUMENT: &str = "invalid_argument";
    /// No such method.
    pub const UNKNOWN_METHOD: &str = "unknown_method";
    /// No such stream of this client.
    pub const UNKNOWN_STREAM: &str = "unknown_stream";
    /// The request's number is in use.
    pub const DUPLICATE_REQUEST: &str = "duplicate_request";
    /// Too many requests of this client wait.
    pub const TOO_MANY_REQUESTS: &str = "too_many_requests";
    /// Too many streams of this client.
    pub const TOO_MANY_STREAMS: &str = "too_many_streams";
    /// Too many ports of this client.
    pub const TOO_MANY_PORTS: &str = "too_many_ports";
    /// Somebody has the port.
    pub const PORT_IN_USE: &str = "port_in_use";
    /// The port is not this client's.
    pub const PORT_NOT_OWNED: &str = "port_not_owned";
    /// The deadline passed first.
    pub const TIMEOUT: &str = "timeout";
    /// The answer does not fit a frame.
    pub const TOO_LARGE: &str = "too_large";
    /// The daemon failed.
    pub const INTERNAL: &str = "internal";
}

/// What goes wrong, for programs and people.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Problem {
    /// Stable; see [`code`].
    pub code: String,
    /// What, where, why.
    pub message: String,
    /// What to do about it; empty when there is nothing to say.
    pub hint: String,
}

impl Problem {
    /// A problem without a hint.
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), hint: String::new() }
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Reads the object of a frame; absent members are empty.
    fn parse(body: &[u8]) -> Option<Self> {
        let value = text::parse(body).ok()?;
        let member = |name| value.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        value.is_object().then(|| Self { code: member("code"), message: member("message"), hint: member("hint") })
    }

    fn emit(&self, out: &mut Vec<u8>) {
        let object = if self.hint.is_empty() {
            json!({ "code": self.code, "message": self.message })
        } else {
            json!({ "code": self.code, "message": self.message, "hint": self.hint })
        };
        text::write_value(&object, out);
    }
}

/// What the daemon allows one client; the `limits` member of its greeting. A member an old daemon does not send is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests waiting for their answers, accepts included.
    pub requests: u32,
    /// Streams.
    pub streams: u32,
    /// Bound ports.
    pub ports: u32,
    /// Bytes of one call or its result.
    pub call: u32,
    /// Datagrams kept for a client that does not read.
    pub datagrams: u32,
}

impl Limits {
    /// The JSON object.
    pub fn to_json(&self) -> Value {
        json!({
            "requests": self.requests,
            "streams": self.streams,
            "ports": self.ports,
            "call": self.call,
            "datagrams": self.datagrams,
        })
    }

    /// Reads the `limits` member of a greeting's JSON.
    pub fn from_json(about: &Value) -> Self {
        let limits = about.get("limits");
        let member = |name| {
            let number = limits.and_then(|limits| limits.get(name)).and_then(Value::as_u64).unwrap_or_default();
            u32::try_from(number).unwrap_or(u32::MAX)
        };
        Self {
            requests: member("requests"),
            streams: member("streams"),
            ports: member("ports"),
            call: member("call"),
            datagrams: member("datagrams"),
        }
    }
}

/// Why a frame is none of the extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExtError {
    /// A frame without opcode; ignored.
    #[error("empty frame")]
    Empty,
    /// An opcode that has no meaning in this direction.
    #[error("unknown frame 0x{0:02X}")]
    Unknown(u8),
    /// A fixed part is missing.
    #[error("frame 0x{op:02X} is too short")]
    Short {
        /// The opcode.
        op: u8,
        /// The request it belongs to, if it says so.
        request: Option<u32>,
    },
    /// A part is not what it should be.
    #[error("frame 0x{op:02X}: {what}")]
    Invalid {
        /// The opcode.
        op: u8,
        /// The request it belongs to, if it says so.
        request: Option<u32>,
        /// What is wrong.
        what: &'static str,
    },
}

impl ExtError {
    /// Stable name of the error.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Empty => "ipc_empty_frame",
            Self::Unknown(_) => "ipc_unknown_frame",
            Self::Short { .. } => "ipc_short_frame",
            Self::Invalid { .. } => "ipc_invalid_frame",
        }
    }

    /// The request that can be told of the error; otherwise it ends the connection (L5).
    pub const fn request(&self) -> Option<u32> {
        match self {
            Self::Empty | Self::Unknown(_) => None,
            Self::Short { request, .. } | Self::Invalid { request, .. } => *request,
        }
    }
}

/// Whether the opcode is one of the extension, in either direction.
pub const fn is_extension(opcode: u8) -> bool {
    opcode >= super::op::EXTENSION
}

/// A reader over the payload of one frame. The first part missing makes every later one missing too.
struct Fields<'a> {
    op: u8,
    request: Option<u32>,
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    fn new(body: &'a [u8]) -> Result<Self, ExtError> {
        let (&op, rest) = body.split_first().ok_or(ExtError::Empty)?;
        Ok(Self { op, request: None, rest })
    }

    fn short(&self) -> ExtError {
        ExtError::Short { op: self.op, request: self.request }
    }

    fn invalid(&self, what: &'static str) -> ExtError {
        ExtError::Invalid { op: self.op, request: self.request, what }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ExtError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(self.short())?;
        self.rest = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, ExtError> {
        self.array().map(u8::from_be_bytes)
    }

    fn u16(&mut self) -> Result<u16, ExtError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, ExtError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, ExtError> {
        self.array().map(u64::from_be_bytes)
    }

    /// The number of the request, remembered for errors further on. 0 names no request (L4).
    fn request(&mut self) -> Result<u32, ExtError> {
        let id = self.u32()?;
        if id == 0 {
            return Err(self.invalid("request 0 is reserved"));
        }
        self.request = Some(id);
        Ok(id)
    }

    fn address(&mut self) -> Result<crate::addr::SocketAddress, ExtError> {
        let addr = crate::addr::Address::from_bytes(self.array()?);
        Ok(crate::addr::SocketAddress::new(addr, self.u16()?))
    }

    /// Length (1) and a method name.
    fn method(&mut self) -> Result<&'a str, ExtError> {
        let len = usize::from(self.u8()?);
        let (name, rest) = self.rest.split_at_checked(len).ok_or(self.short())?;
        self.rest = rest;
        let valid = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > MAX_METHOD || !name.iter().all(valid) {
            return Err(self.invalid("a method name is 1 to 128 of a-z 0-9 . _ -"));
        }
        std::str::from_utf8(name).map_err(|_| self.invalid("a method name is ASCII"))
    }

    fn problem(&mut self) -> Result<Problem, ExtError> {
        Problem::parse(self.rest).ok_or(self.invalid("not an object that says what is wrong"))
    }
}
