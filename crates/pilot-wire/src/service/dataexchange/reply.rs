//! What a receiver answers to a message or a file frame: one text frame (05 §5.2, 07 §11.2).

use super::type_name;
use crate::json;

/// An answer, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Stored.
    Stored {
        /// It had been stored before: the receiver keeps one copy for each id.
        duplicate: bool,
    },
    /// Not stored.
    Refused {
        /// What the receiver says.
        reason: String,
    },
    /// Not stored, because the receiver does not know the frame type.
    UnknownType {
        /// The type it names.
        kind: u32,
        /// It acknowledged nevertheless, as receivers up to 1.12.8 do (07 D11): so it knows no tagged messages either.
        acknowledged: bool,
    },
    /// Something else; whether the message was stored is not known.
    Other,
}

impl Reply {
    /// Reads an answer to a frame of a type (of the message inside, for tagged and traced messages) and a length.
    /// An acknowledgement of anything else is [`Reply::Other`].
    pub fn parse(text: &[u8], kind: u32, bytes: u64) -> Self {
        let text = json::text_lossy(text);
        let (verdict, rest) = text.split_once(' ').unwrap_or((&text, ""));
        if !matches!(verdict, "ACK" | "ERR") {
            return Self::Other;
        }
        let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
        let number = name.strip_prefix("UNKNOWN(").and_then(|n| n.strip_suffix(')')).and_then(|n| n.parse().ok());
        if let Some(kind) = number {
            return Self::UnknownType { kind, acknowledged: verdict == "ACK" };
        }
        if verdict == "ERR" {
            let reason = rest.strip_prefix("save failed: ").unwrap_or(rest);
            return Self::Refused { reason: if reason.is_empty() { text } else { reason.to_owned() } };
        }
        let (count, duplicate) = rest.strip_suffix(" (duplicate)").map_or((rest, false), |count| (count, true));
        if name == type_name(kind) && count == format!("{bytes} bytes") {
            Self::Stored { duplicate }
        } else {
            Self::Other
        }
    }
}

/// `ACK TEXT 18 bytes`, with ` (duplicate)` behind it for a message that had been stored before.
pub fn ack(kind: u32, bytes: u64, duplicate: bool) -> String {
    let suffix = if duplicate { " (duplicate)" } else { "" };
    format!("ACK {} {bytes} bytes{suffix}", type_name(kind))
}

/// `ERR TEXT save failed: <reason>`.
pub fn err(kind: u32, reason: &str) -> String {
    format!("ERR {} save failed: {reason}", type_name(kind))
}

/// `ERR UNKNOWN(9) save failed: unsupported frame type 9`.
pub fn unsupported(kind: u32) -> String {
    format!("ERR UNKNOWN({kind}) save failed: unsupported frame type {kind}")
}
