//! What our own daemons say to each other on port 1001 (docs/spec/messages.md). Official receivers answer these frames
//! as they answer any unknown type, and store nothing.

use serde_json::{Map, Value, json};

use super::Malformed;
use super::message::id;
use crate::json;

/// Longest body of any of these frames, in bytes.
pub const MAX_LEN: usize = 4096;

/// The greeting that asks for capabilities, and its answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Knows tagged messages, suppresses duplicates by id for good, and sends receipts when asked to.
    pub receipts: bool,
    /// Knows [`Transfer`].
    pub transfers: bool,
    /// Takes directories.
    pub trees: bool,
    /// Longest frame body it takes, in bytes.
    pub max_body: u32,
    /// Longest chunk it takes, in bytes.
    pub max_chunk: u32,
}

fn object(body: &[u8]) -> Option<Map<String, Value>> {
    match json::parse(body.get(..MAX_LEN + 1).unwrap_or(body)) {
        Ok(Value::Object(map)) if body.len() <= MAX_LEN => Some(map),
        _ => None,
    }
}

impl Capabilities {
    /// Reads the body of a frame. Unknown keys are for later versions.
    ///
    /// # Errors
    /// [`Malformed`] when it is no JSON object or longer than [`MAX_LEN`].
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let map = object(body).ok_or(Malformed { what: "HELLO" })?;
        let on = |name| map.get(name).and_then(Value::as_bool).unwrap_or(false);
        let number = |name| map.get(name).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
        Ok(Self {
            receipts: on("receipts"),
            transfers: on("transfers"),
            trees: on("trees"),
            max_body: number("max_body"),
            max_chunk: number("max_chunk"),
        })
    }

    /// The body of a frame.
    pub fn emit(&self) -> Vec<u8> {
        json::to_vec(&json!({
            "receipts": self.receipts,
            "transfers": self.transfers,
            "trees": self.trees,
            "max_body": self.max_body,
            "max_chunk": self.max_chunk,
        }))
    }
}

/// What is said of the chunked transfer whose first piece follows on the same stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transfer {
    /// Id of the transfer, unique for its sender: the file is stored once, however often it is sent.
    pub message_id: Option<String>,
    /// The id of the message that it answers.
    pub reply_to: Option<String>,
    /// The file is a directory in the form of [`super::tree`].
    pub tree: bool,
}

impl Transfer {
    /// Reads the body of a frame.
    ///
    /// # Errors
    /// [`Malformed`] when it is no JSON object, longer than [`MAX_LEN`], or holds something other than ids.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let read = object(body).and_then(|map| {
            Some(Self {
                message_id: id(&map, "message_id")?,
                reply_to: id(&map, "reply_to")?,
                tree: map.get("tree").and_then(Value::as_bool).unwrap_or(false),
            })
        });
        read.ok_or(Malformed { what: "TRANSFER" })
    }

    /// The body of a frame.
    pub fn emit(&self) -> Vec<u8> {
        let mut map = Map::new();
        let ids = [("message_id", &self.message_id), ("reply_to", &self.reply_to)];
        for (name, id) in ids.into_iter().filter_map(|(name, id)| Some((name, id.as_ref()?))) {
            map.insert(name.into(), id.clone().into());
        }
        if self.tree {
            map.insert("tree".into(), true.into());
        }
        json::to_vec(&Value::Object(map))
    }
}

/// Tells the sender of a message what became of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The message.
    pub message_id: String,
    /// When it was read, seconds since the Unix epoch.
    pub read_at: u64,
}

impl Receipt {
    /// Reads the body of a frame.
    ///
    /// # Errors
    /// [`Malformed`] when an id or the time is missing.
    pub fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let read = object(body).and_then(|map| {
            let message_id = id(&map, "message_id")??;
            Some(Self { message_id, read_at: map.get("read_at")?.as_u64()? })
        });
        read.ok_or(Malformed { what: "RECEIPT" })
    }

    /// The body of a frame.
    pub fn emit(&self) -> Vec<u8> {
        json::to_vec(&json!({ "message_id": self.message_id, "read_at": self.read_at }))
    }
}
