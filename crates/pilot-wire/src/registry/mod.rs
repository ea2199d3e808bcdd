//! Registry messages (specification 04, 07 §9): length-prefixed JSON ([`crate::frame`]), strictly request and answer,
//! answers in the order of the requests.
//!
//! Reading is lenient as the official server's is ([`Fields`]); writing gives the official bytes: sorted keys, empty
//! optional fields left out.

mod answer;
pub mod binary;
mod fields;
mod networks;
mod request;

pub use answer::{
    Answer, BeaconEntry, ErrorAnswer, LookupOk, PollOk, RegisterOk, ResolveHostnameOk, ResolveOk, WaitingRequest,
    WaitingResponse,
};
pub use fields::{Fields, coerce_i64, coerce_u16, coerce_u32};
pub use networks::{
    Authority, InviteEntry, ListNodesOk, NetworkChange, NetworkEntry, NetworkPolicyOk, NodeEntry, PolicyChange,
    PolicyField,
};
pub use request::{Register, Request};

use serde_json::Value;

use crate::json::{self, JsonError};

/// The text of an error whose reason is hidden, which is every one of the February server (04 §5).
pub const REQUEST_FAILED: &str = "request failed";
/// Words in the error text of a heartbeat that make newer daemons register again at once (07 rule 30).
pub const NODE_NOT_FOUND: &str = "node not found";
/// As [`NODE_NOT_FOUND`].
pub const SIGNATURE_FAILED: &str = "signature verification failed";

/// Why a body is no message. The server closes the connection without an answer (04 §3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// Not JSON.
    #[error("registry message is not JSON: {0}")]
    Json(#[from] JsonError),
    /// JSON, but neither an object nor `null`.
    #[error("registry message is not a JSON object")]
    NotObject,
}

impl MessageError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Json(_) => "registry_json",
            Self::NotObject => "registry_not_object",
        }
    }
}

/// Reads a message body; `null` counts as an empty object (04 §3).
///
/// # Errors
/// [`MessageError`]: close the connection.
pub fn parse_body(body: &[u8]) -> Result<Fields, MessageError> {
    match json::parse(body)? {
        Value::Object(map) => Ok(Fields(map)),
        Value::Null => Ok(Fields::default()),
        _ => Err(MessageError::NotObject),
    }
}
