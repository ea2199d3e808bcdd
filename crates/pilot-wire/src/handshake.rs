//! Trust messages on port 444 (specification 05 §3.2): one JSON object per stream, in one segment.

use serde_json::Value;

use crate::base64;
use crate::json::{self, JsonError};

/// Largest message: official receivers read exactly one segment (05 §3.2).
pub const MAX_LEN: usize = 4096;
/// Longest justification newer daemons take, in characters (07 §10).
pub const MAX_JUSTIFICATION: usize = 1024;
/// The reason every revoke message carries.
pub const REVOKE_REASON: &str = "trust revoked";

/// What a message says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Asks for trust.
    Request,
    /// Grants it.
    Accept,
    /// Refuses it.
    Reject,
    /// Ends it.
    Revoke,
    /// Names the sender's new key; ours alone (docs/spec/trust.md, K3). Its reason is a [`Rotation`].
    Rotated,
}

impl Kind {
    /// The text on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Request => "handshake_request",
            Self::Accept => "handshake_accept",
            Self::Reject => "handshake_reject",
            Self::Revoke => "handshake_revoke",
            Self::Rotated => "handshake_key_rotated",
        }
    }

    fn from_str(text: &str) -> Option<Self> {
        [Self::Request, Self::Accept, Self::Reject, Self::Revoke, Self::Rotated]
            .into_iter()
            .find(|kind| kind.as_str() == text)
    }
}

/// What a node says when its key was replaced: the new key, and a signature over [`crate::signed::rotated`] with each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The new key.
    pub new_key: [u8; 32],
    /// By the old key: it vouches for the new one.
    pub by_old: [u8; 64],
    /// By the new key: its holder wants it.
    pub by_new: [u8; 64],
}

impl Rotation {
    /// Reads the reason of a [`Kind::Rotated`] message: three base64 texts with a space between.
    pub fn parse(reason: &str) -> Option<Self> {
        let mut parts = reason.split(' ');
        let rotation = Self {
            new_key: base64::decode_array(parts.next()?)?,
            by_old: base64::decode_array(parts.next()?)?,
            by_new: base64::decode_array(parts.next()?)?,
        };
        parts.next().is_none().then_some(rotation)
    }

    /// The text of the reason.
    pub fn to_reason(&self) -> String {
        let Self { new_key, by_old, by_new } = self;
        format!("{} {} {}", base64::encode(new_key), base64::encode(by_old), base64::encode(by_new))
    }
}

/// A message. Key and signature are the texts as received: what is said about them depends on the texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it says.
    pub kind: Kind,
    /// Sender node id.
    pub node: u32,
    /// Sender Ed25519 key, base64 of 32 bytes; empty when absent.
    pub public_key: String,
    /// Text of a request.
    pub justification: String,
    /// Base64 of 64 bytes over [`crate::signed::handshake`]; empty when absent.
    pub signature: String,
    /// Text of a reject; [`REVOKE_REASON`] in a revoke.
    pub reason: String,
    /// Sender clock, Unix seconds.
    pub timestamp: i64,
}

/// Why bytes are no message, or a message no bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// Not JSON.
    #[error("handshake message is not JSON: {0}")]
    Json(#[from] JsonError),
    /// Not an object.
    #[error("handshake message is not a JSON object")]
    NotObject,
    /// A field of the wrong type or out of range.
    #[error("handshake message: field {0:?} has the wrong type or is out of range")]
    Field(&'static str),
    /// A type nobody knows.
    #[error("handshake message of unknown type {0:?}")]
    UnknownType(String),
    /// The text would not fit one segment of an old receiver.
    #[error("handshake message of {0} bytes (max 4096): shorten the justification or reason")]
    TooLong(usize),
}

impl HandshakeError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Json(_) => "handshake_json",
            Self::NotObject => "handshake_not_object",
            Self::Field(_) => "handshake_field",
            Self::UnknownType(_) => "handshake_unknown_type",
            Self::TooLong(_) => "handshake_too_long",
        }
    }
}

impl Message {
    /// Reads a message as the official receiver does: field names in any letter case, unknown fields ignored, absent
    /// ones empty, numbers only as integers, nothing but white space behind the object.
    ///
    /// # Errors
    /// [`HandshakeError`]; the receiver drops such a message silently.
    pub fn parse(text: &[u8]) -> Result<Self, HandshakeError> {
        let value = json::parse(text)?;
        let Value::Object(map) = &value else {
            return Err(HandshakeError::NotObject);
        };
        let get = |name: &str| {
            let exact = map.get(name);
            exact.or_else(|| map.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value))
        };
        let string = |name: &'static str| match get(name) {
            None | Some(Value::Null) => Ok(String::new()),
            Some(Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(HandshakeError::Field(name)),
        };
        let integer = |name: &'static str| match get(name) {
            None | Some(Value::Null) => Ok(0),
            Some(number) => number.as_i64().ok_or(HandshakeError::Field(name)),
        };
        let kind = string("type")?;
        let message = Self {
            kind: Kind::Request,
            node: u32::try_from(integer("node_id")?).map_err(|_| HandshakeError::Field("node_id"))?,
            public_key: string("public_key")?,
            justification: string("justification")?,
            signature: string("signature")?,
            reason: string("reason")?,
            timestamp: integer("timestamp")?,
        };
        let kind = Kind::from_str(&kind).ok_or(HandshakeError::UnknownType(kind.chars().take(64).collect()))?;
        Ok(Self { kind, ..message })
    }

    /// The exact text the official sender writes: seven fields, in this order.
    ///
    /// # Errors
    /// [`HandshakeError::TooLong`] above [`MAX_LEN`] bytes.
    pub fn emit(&self) -> Result<Vec<u8>, HandshakeError> {
        let text = self.canonical();
        if text.len() > MAX_LEN {
            return Err(HandshakeError::TooLong(text.len()));
        }
        Ok(text)
    }

    /// The text of the seven known fields, whatever its length. Replays are recognised by its SHA-256 (05 §3.3).
    pub fn canonical(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(320);
        let mut string = |name: &str, text: &str| {
            out.extend_from_slice(name.as_bytes());
            json::write_string(text, &mut out);
        };
        string("{\"type\":", self.kind.as_str());
        string(&format!(",\"node_id\":{},\"public_key\":", self.node), &self.public_key);
        string(",\"justification\":", &self.justification);
        string(",\"signature\":", &self.signature);
        string(",\"reason\":", &self.reason);
        out.extend_from_slice(format!(",\"timestamp\":{}}}", self.timestamp).as_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotation_is_read_as_it_was_written_and_from_nothing_else() {
        let rotation = Rotation { new_key: [7; 32], by_old: [8; 64], by_new: [9; 64] };
        let text = rotation.to_reason();
        assert_eq!(Rotation::parse(&text), Some(rotation));
        for wrong in ["", " ", &text[1..], &format!("{text} "), &format!("{text} x"), &text.replacen(' ', "  ", 1)] {
            assert_eq!(Rotation::parse(wrong), None, "{wrong:?}");
        }
    }
}
