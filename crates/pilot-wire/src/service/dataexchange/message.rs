//! Messages with an id and with a time (07 §11.2).

use serde_json::{Map, Value};

use super::{Fields, Malformed};
use crate::json;

/// Longest header of a tagged message, in bytes.
pub const MAX_TAG: usize = 1024;
/// Longest id, in characters.
pub const MAX_ID: usize = 128;

/// Whether a text is a message id: 1 to 128 characters of `A–Z a–z 0–9 . _ : -`.
pub fn is_id(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'-');
    (1..=MAX_ID).contains(&text.len()) && text.bytes().all(good)
}

/// The header of a tagged message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tag {
    /// Its id, unique for its sender.
    pub message_id: Option<String>,
    /// The id of the message that it answers.
    pub reply_to: Option<String>,
    /// Ours: the sender wants to know when the message has been read (docs/spec/messages.md §6).
    pub wants_receipt: bool,
}

impl Tag {
    /// The header as JSON, keys in the order of official programs.
    pub fn to_json(&self) -> Vec<u8> {
        let mut out = vec![b'{'];
        let mut field = |name: &str, value: &str| {
            if out.len() > 1 {
                out.push(b',');
            }
            json::write_string(name, &mut out);
            out.push(b':');
            json::write_string(value, &mut out);
        };
        if let Some(id) = &self.message_id {
            field("message_id", id);
        }
        if let Some(id) = &self.reply_to {
            field("reply_to", id);
        }
        if self.wants_receipt {
            field("receipt", "read");
        }
        out.push(b'}');
        out
    }

    fn from_json(text: &[u8]) -> Option<Self> {
        let Ok(Value::Object(map)) = json::parse(text) else {
            return None;
        };
        Some(Self {
            message_id: id(&map, "message_id")?,
            reply_to: id(&map, "reply_to")?,
            wants_receipt: map.get("receipt").and_then(Value::as_str) == Some("read"),
        })
    }
}

/// An id of an object: `Some(None)` when absent, `None` when it is no id.
pub(super) fn id(map: &Map<String, Value>, name: &str) -> Option<Option<String>> {
    match map.get(name) {
        None | Some(Value::Null) => Some(None),
        Some(Value::String(text)) if text.is_empty() => Some(None),
        Some(Value::String(text)) if is_id(text) => Some(Some(text.clone())),
        Some(_) => None,
    }
}

/// Body of a tagged message: header, type of the message inside, its body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagged<'a> {
    /// The header.
    pub tag: Tag,
    /// Frame type of the message inside.
    pub kind: u32,
    /// Its body.
    pub body: &'a [u8],
}

impl<'a> Tagged<'a> {
    /// Reads the body of a frame.
    ///
    /// # Errors
    /// [`Malformed`] when the header is too long, no JSON object, or holds something other than ids.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(body);
        let read = (|| {
            let len = usize::from(fields.u16()?);
            let header = fields.take(len).filter(|_| len <= MAX_TAG)?;
            Some(Self { tag: Tag::from_json(header)?, kind: fields.u32()?, body: fields.0 })
        })();
        read.ok_or(Malformed { what: "TAGGED header" })
    }

    /// What stands before the body of the message inside.
    pub fn emit_head(tag: &Tag, kind: u32) -> Vec<u8> {
        let header = tag.to_json();
        // Two ids of 128 characters and the names make 300 bytes.
        let len = u16::try_from(header.len()).unwrap_or(u16::MAX);
        [&len.to_be_bytes()[..], &header, &kind.to_be_bytes()].concat()
    }
}

/// Body of a traced message: type of the message inside, when it left, its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traced<'a> {
    /// Frame type of the message inside.
    pub kind: u32,
    /// The sender's clock, nanoseconds since the Unix epoch.
    pub sent_ns: u64,
    /// Its body.
    pub body: &'a [u8],
}

/// Bytes before the body of the message inside a traced one.
pub const TRACE_HEAD: usize = 12;

impl<'a> Traced<'a> {
    /// Reads the body of a frame.
    ///
    /// # Errors
    /// [`Malformed`] when it is too short.
    pub fn parse(body: &'a [u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(body);
        let read = (|| Some(Self { kind: fields.u32()?, sent_ns: fields.u64()?, body: fields.0 }))();
        read.ok_or(Malformed { what: "TRACE header" })
    }

    /// What stands before the body of the message inside.
    pub fn emit_head(kind: u32, sent_ns: u64) -> [u8; TRACE_HEAD] {
        let mut out = [0; TRACE_HEAD];
        out[..4].copy_from_slice(&kind.to_be_bytes());
        out[4..].copy_from_slice(&sent_ns.to_be_bytes());
        out
    }
}
