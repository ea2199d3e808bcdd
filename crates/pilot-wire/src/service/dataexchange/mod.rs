//! Data exchange (port 1001): messages and files in frames of type, length and body (05 §5.1, 07 §11.2).
//!
//! | Module | Body |
//! |---|---|
//! | [`message`] | traced and tagged messages |
//! | [`reply`] | what a receiver answers |
//! | [`file`] | the file frame and the chunked, resumable transfer |
//! | [`ours`] | what our own daemons say to each other: capabilities, transfer particulars, receipts |
//! | [`record`] | a message on disk |
//! | [`tree`] | a directory in one run of bytes |

pub mod file;
pub mod message;
pub mod ours;
pub mod record;
pub mod reply;
pub mod tree;

/// The port.
pub const PORT: u16 = 1001;
/// Bytes before the body: type and length.
pub const HEADER_LEN: usize = 8;
/// Longest body that receivers of February take, in bytes (05 §5.1).
pub const LEGACY_MAX_BODY: u32 = 1 << 24;
/// Longest body that newer receivers take, in bytes; ours too (07 §11.2).
pub const MAX_BODY: u32 = 64 << 20;

/// Text, UTF-8 by convention.
pub const TEXT: u32 = 1;
/// Any bytes.
pub const BINARY: u32 = 2;
/// JSON text, by convention.
pub const JSON: u32 = 3;
/// A file with its name.
pub const FILE: u32 = 4;
/// A message with the time it left the sender.
pub const TRACE: u32 = 5;
/// A piece of a chunked transfer.
pub const FILESTREAM: u32 = 7;
/// A message with an id.
pub const TAGGED: u32 = 10;
/// Ours: capabilities (docs/spec/messages.md §3).
pub const HELLO: u32 = 0x5049_4C01;
/// Ours: particulars of the transfer that follows (docs/spec/messages.md §5).
pub const TRANSFER: u32 = 0x5049_4C02;
/// Ours: a receipt (docs/spec/messages.md §6).
pub const RECEIPT: u32 = 0x5049_4C03;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MessageType {
    /// Any bytes.
    Binary,
    /// JSON text; nobody checks it.
    Json,
    /// Text; nobody checks it.
    Text,
}

impl MessageType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Binary, Self::Json, Self::Text];

    /// The frame type.
    pub const fn wire(self) -> u32 {
        match self {
            Self::Binary => BINARY,
            Self::Json => JSON,
            Self::Text => TEXT,
        }
    }

    /// The message type with this frame type.
    pub fn from_wire(kind: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.wire() == kind)
    }

    /// In acknowledgements, events and file names: `TEXT`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Binary => "BINARY",
            Self::Json => "JSON",
            Self::Text => "TEXT",
        }
    }

    /// On the command line and in the inbox: `text`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Binary => "binary",
            Self::Json => "json",
            Self::Text => "text",
        }
    }

    /// Reads [`name`](Self::name) or [`label`](Self::label).
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == text || t.label() == text)
    }
}

/// How a frame type is called in acknowledgements: `TEXT`, `UNKNOWN(9)`.
pub fn type_name(kind: u32) -> String {
    let name = match kind {
        TEXT => "TEXT",
        BINARY => "BINARY",
        JSON => "JSON",
        FILE => "FILE",
        TRACE => "TRACE",
        FILESTREAM => "FILESTREAM",
        TAGGED => "TAGGED",
        RECEIPT => "RECEIPT",
        other => return format!("UNKNOWN({other})"),
    };
    name.to_owned()
}

/// Type and length of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Frame type.
    pub kind: u32,
    /// Bytes of the body.
    pub len: u32,
}

impl Header {
    /// Reads the eight bytes. The length is not judged: see [`Header::check`].
    pub fn parse(bytes: [u8; HEADER_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self { kind: u32::from_be_bytes([a, b, c, d]), len: u32::from_be_bytes([e, f, g, h]) }
    }

    /// The eight bytes.
    pub fn emit(self) -> [u8; HEADER_LEN] {
        let ([a, b, c, d], [e, f, g, h]) = (self.kind.to_be_bytes(), self.len.to_be_bytes());
        [a, b, c, d, e, f, g, h]
    }

    /// Refuses a body longer than `limit`.
    ///
    /// # Errors
    /// [`FrameTooLarge`].
    pub fn check(self, limit: u32) -> Result<Self, FrameTooLarge> {
        if self.len > limit { Err(FrameTooLarge { len: u64::from(self.len), limit }) } else { Ok(self) }
    }
}

/// A body longer than allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frame too large: {len} (at most {limit} bytes)")]
pub struct FrameTooLarge {
    /// Its length in bytes.
    pub len: u64,
    /// The longest allowed.
    pub limit: u32,
}

impl FrameTooLarge {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        "frame_too_large"
    }
}

/// A body that is not what its frame type promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed {what}")]
pub struct Malformed {
    /// `INIT`, `TAGGED header`, …
    pub what: &'static str,
}

impl Malformed {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        "malformed_frame"
    }
}

/// A frame whose body consists of these parts.
///
/// # Errors
/// [`FrameTooLarge`] above [`MAX_BODY`].
pub fn frame(kind: u32, parts: &[&[u8]]) -> Result<Vec<u8>, FrameTooLarge> {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    let short = u32::try_from(len).ok().filter(|len| *len <= MAX_BODY);
    let len = short.ok_or(FrameTooLarge { len: len as u64, limit: MAX_BODY })?;
    let mut out = Vec::with_capacity(HEADER_LEN + len as usize);
    out.extend_from_slice(&Header { kind, len }.emit());
    for part in parts {
        out.extend_from_slice(part);
    }
    Ok(out)
}

/// Takes bytes off the front of a body.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests;
