//! A message on disk: one JSON object in `inbox/` (05 §5.3, 06 §14.1, 07 §11.2).

use std::time::Duration;

use serde_json::{Map, Value};

use super::{MAX_BODY, MessageType};
use crate::{base64, json, time};

/// Longest file that is read as a message: payload as base64 and as text whose every byte is escaped.
pub const MAX_FILE: u64 = 8 * MAX_BODY as u64 + 65_536;

/// Which form messages are written in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InboxFormat {
    /// As the public documentation has it: `type` in lower case, `data` in base64, `received_at` in UTC; with `text`
    /// beside them when the payload is UTF-8.
    #[default]
    Public,
    /// As the official daemon of February wrote them: `data` as text, which destroys what is no UTF-8. `data_b64` beside
    /// it keeps such a payload.
    February,
    /// As newer official daemons write them: `data`, or `data_b64`, with `data_encoding`.
    Newest,
}

impl InboxFormat {
    /// Reads the value of the setting `inbox_format`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "public" => Some(Self::Public),
            "february" => Some(Self::February),
            "newest" => Some(Self::Newest),
            _ => None,
        }
    }
}

/// A received message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: MessageType,
    /// The sender's address.
    pub from: String,
    /// What it says.
    pub payload: Vec<u8>,
    /// When it was received, since the Unix epoch.
    pub received_at: Duration,
    /// Its id, if the sender gave one.
    pub message_id: Option<String>,
    /// The id of the message that it answers.
    pub reply_to: Option<String>,
    /// The sender wants to know when it has been read.
    pub wants_receipt: bool,
}

impl Record {
    /// The object, compact, keys sorted, no line end.
    pub fn emit(&self, format: InboxFormat) -> Vec<u8> {
        let mut map = Map::new();
        let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
        put("bytes", self.payload.len().into());
        put("from", self.from.clone().into());
        let utf8 = std::str::from_utf8(&self.payload).ok();
        match format {
            InboxFormat::Public => {
                put("type", self.kind.label().into());
                put("received_at", time::rfc3339(self.received_at).into());
                put("data", base64::encode(&self.payload).into());
                if let Some(text) = utf8 {
                    put("text", text.into());
                }
            }
            InboxFormat::February => {
                put("type", self.kind.name().into());
                put("received_at", time::rfc3339(self.received_at).into());
                put("data", json::text_lossy(&self.payload).into());
                if utf8.is_none() {
                    put("data_b64", base64::encode(&self.payload).into());
                }
            }
            InboxFormat::Newest => {
                put("type", self.kind.name().into());
                put("received_at", time::rfc3339_nanos(self.received_at).into());
                match utf8.filter(|_| self.kind != MessageType::Binary) {
                    Some(text) => {
                        put("data", text.into());
                        put("data_encoding", "utf8".into());
                    }
                    None => {
                        put("data_b64", base64::encode(&self.payload).into());
                        put("data_encoding", "base64".into());
                    }
                }
            }
        }
        let ids = [("message_id", &self.message_id), ("reply_to", &self.reply_to)];
        for (key, id) in ids.into_iter().filter_map(|(key, id)| Some((key, id.as_ref()?))) {
            put(key, id.clone().into());
        }
        if self.wants_receipt {
            put("receipt", "read".into());
        }
        json::to_vec(&Value::Object(map))
    }

    /// Reads an object in any of the forms, also as other programs wrote it.
    pub fn parse(text: &[u8]) -> Option<Self> {
        match json::parse(text).ok()? {
            Value::Object(map) => Self::from_object(&map),
            _ => None,
        }
    }

    /// As [`Record::parse`], of an object that has been read.
    pub fn from_object(map: &Map<String, Value>) -> Option<Self> {
        let text = |key: &str| map.get(key).and_then(Value::as_str);
        let kind = text("type")?;
        let decode = |text: &str| base64::decode_up_to(text, 2 * MAX_BODY as usize);
        let payload = match (text("data_b64"), text("data")) {
            (Some(data), _) => decode(data)?,
            // Lower case is the mark of the public form.
            (None, Some(data)) if kind.chars().all(|c| c.is_ascii_lowercase()) => decode(data)?,
            (None, Some(data)) => data.as_bytes().to_vec(),
            (None, None) => return None,
        };
        Some(Self {
            kind: MessageType::parse(kind)?,
            from: text("from").unwrap_or_default().to_owned(),
            payload,
            received_at: text("received_at").and_then(time::parse_rfc3339).unwrap_or_default(),
            message_id: text("message_id").map(ToOwned::to_owned),
            reply_to: text("reply_to").map(ToOwned::to_owned),
            wants_receipt: text("receipt") == Some("read"),
        })
    }
}

/// The name of a message's file: `TEXT-20260227-101112.345-000001.json`. `number` tells apart what arrives within a
/// millisecond.
pub fn file_name(kind: MessageType, received_at: Duration, number: u32) -> String {
    format!("{}-{}-{number:06}.json", kind.name(), time::stamp(received_at))
}

/// The order of arrival, as far as the name of a message's file tells it: time stamp and number. Names without a number
/// are older.
pub fn arrival(name: &str) -> Option<(Duration, u32)> {
    let (_, rest) = name.strip_suffix(".json")?.split_once('-')?;
    match time::parse_stamp(rest) {
        Some(at) => Some((at, 0)),
        None => {
            let (stamp, number) = rest.rsplit_once('-')?;
            Some((time::parse_stamp(stamp)?, number.parse().ok()?))
        }
    }
}
