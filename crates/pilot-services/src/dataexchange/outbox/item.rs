//! A message in the outbox, and what became of one.

use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

use pilot_wire::service::dataexchange::MessageType;
use pilot_wire::{Address, base64, json, time};
use serde_json::{Map, Value};

/// What waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A message.
    Message(MessageType),
    /// A file.
    File,
    /// A directory in one run of bytes.
    Directory,
    /// A receipt of ours.
    Receipt,
}

impl Kind {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Message(kind) => kind.label(),
            Self::File => "file",
            Self::Directory => "directory",
            Self::Receipt => "receipt",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "file" => Some(Self::File),
            "directory" => Some(Self::Directory),
            "receipt" => Some(Self::Receipt),
            other => MessageType::parse(other).map(Self::Message),
        }
    }
}

/// What is known of a message before it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) id: String,
    pub(crate) to: Address,
    pub(crate) kind: Kind,
    /// Bytes of the payload.
    pub(crate) bytes: u64,
    /// Of a file: its name.
    pub(crate) name: String,
    /// Of a file: its hash.
    pub(crate) sha256: Option<[u8; 32]>,
    pub(crate) reply_to: Option<String>,
    /// Whether a receipt is wanted when it has been read.
    pub(crate) wants_receipt: bool,
    /// Since the Unix epoch, like the deadline.
    pub(crate) created: Duration,
    pub(crate) deadline: Duration,
    /// A short payload; a long one has a file of its own.
    pub(crate) data: Option<Vec<u8>>,
}

fn text<'a>(map: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    map.get(key).and_then(Value::as_str)
}

impl Meta {
    /// What is told about it.
    pub(crate) fn to_json(&self) -> Map<String, Value> {
        let mut map = Map::new();
        map.insert("message_id".into(), self.id.clone().into());
        map.insert("to".into(), self.to.to_string().into());
        map.insert("type".into(), self.kind.label().into());
        map.insert("bytes".into(), self.bytes.into());
        map.insert("created_at".into(), time::rfc3339_nanos(self.created).into());
        map.insert("deadline".into(), time::rfc3339_nanos(self.deadline).into());
        if !self.name.is_empty() {
            map.insert("filename".into(), self.name.clone().into());
        }
        if let Some(sha256) = &self.sha256 {
            map.insert("sha256".into(), super::super::hex(sha256).into());
        }
        if let Some(reply_to) = &self.reply_to {
            map.insert("reply_to".into(), reply_to.clone().into());
        }
        if self.wants_receipt {
            map.insert("receipt".into(), "read".into());
        }
        map
    }

    /// As it is on disk.
    pub(crate) fn emit(&self) -> Vec<u8> {
        let mut map = self.to_json();
        if let Some(data) = &self.data {
            map.insert("data".into(), base64::encode(data).into());
        }
        json::to_vec(&Value::Object(map))
    }

    /// Reads [`Meta::emit`].
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let value = json::parse(bytes).ok()?;
        let map = value.as_object()?;
        let sha256 = match text(map, "sha256") {
            None => None,
            Some(hex) => Some(unhex(hex)?),
        };
        let data = match text(map, "data") {
            None => None,
            Some(data) => Some(base64::decode_up_to(data, bytes.len())?),
        };
        Some(Self {
            id: text(map, "message_id")?.to_owned(),
            to: text(map, "to")?.parse().ok()?,
            kind: Kind::parse(text(map, "type")?)?,
            bytes: map.get("bytes")?.as_u64()?,
            name: text(map, "filename").unwrap_or_default().to_owned(),
            sha256,
            reply_to: text(map, "reply_to").map(ToOwned::to_owned),
            wants_receipt: text(map, "receipt") == Some("read"),
            created: time::parse_rfc3339(text(map, "created_at")?)?,
            deadline: time::parse_rfc3339(text(map, "deadline")?)?,
            data,
        })
    }
}

/// Reads 32 bytes of hex.
pub(crate) fn unhex(text: &str) -> Option<[u8; 32]> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let digits = digits.filter(|digits| digits.len() == 64)?;
    let bytes: Vec<u8> = digits.chunks_exact(2).filter_map(|pair| Some(pair.first()? << 4 | pair.get(1)?)).collect();
    bytes.try_into().ok()
}

/// A message that waits.
#[derive(Debug)]
pub(crate) struct Item {
    /// Place in the order of acceptance, and name of its files.
    pub(crate) number: u64,
    pub(crate) meta: Meta,
    /// Its bytes are on their way: it may be delivered whatever happens next.
    pub(crate) sending: AtomicBool,
    pub(crate) attempts: AtomicU32,
}

impl Item {
    pub(crate) fn new(number: u64, meta: Meta) -> Self {
        Self { number, meta, sending: AtomicBool::new(false), attempts: AtomicU32::new(0) }
    }
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The peer has stored it.
    Delivered,
    /// Its deadline passed.
    Expired,
    /// The peer does not want it, ever.
    Refused,
    /// Taken back.
    Cancelled,
}

impl State {
    const ALL: [Self; 4] = [Self::Delivered, Self::Expired, Self::Refused, Self::Cancelled];

    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finished {
    pub(crate) id: String,
    pub(crate) to: Address,
    pub(crate) kind: Kind,
    pub(crate) bytes: u64,
    pub(crate) state: State,
    pub(crate) at: Duration,
    pub(crate) ack: Option<String>,
    pub(crate) reason: Option<String>,
    pub(crate) tagged: bool,
    pub(crate) read_at: Option<Duration>,
}

impl Finished {
    /// What is told about it, and what stands in the log.
    pub(crate) fn to_json(&self, dead: bool) -> Value {
        let mut map = Map::new();
        let read = self.read_at.filter(|_| self.state == State::Delivered);
        map.insert("message_id".into(), self.id.clone().into());
        map.insert("to".into(), self.to.to_string().into());
        map.insert("type".into(), self.kind.label().into());
        map.insert("bytes".into(), self.bytes.into());
        map.insert("state".into(), if read.is_some() { "read" } else { self.state.label() }.into());
        map.insert(format!("{}_at", self.state.label()), time::rfc3339_nanos(self.at).into());
        map.insert("tagged".into(), self.tagged.into());
        let texts = [("ack", &self.ack), ("reason", &self.reason)];
        for (key, text) in texts.into_iter().filter_map(|(key, text)| Some((key, text.as_ref()?))) {
            map.insert(key.into(), text.clone().into());
        }
        if let Some(at) = read {
            map.insert("read_at".into(), time::rfc3339(at).into());
        }
        if dead {
            map.insert("dead_letter".into(), true.into());
        }
        Value::Object(map)
    }

    /// Reads a line of the log.
    pub(crate) fn parse(line: &[u8]) -> Option<Self> {
        let value = json::parse(line).ok()?;
        let map = value.as_object()?;
        let label = text(map, "state")?;
        let read_at = text(map, "read_at").and_then(time::parse_rfc3339);
        let state = match read_at {
            Some(_) => State::Delivered,
            None => State::ALL.into_iter().find(|state| state.label() == label)?,
        };
        Some(Self {
            id: text(map, "message_id")?.to_owned(),
            to: text(map, "to")?.parse().ok()?,
            kind: Kind::parse(text(map, "type")?)?,
            bytes: map.get("bytes")?.as_u64()?,
            state,
            at: text(map, &format!("{}_at", state.label())).and_then(time::parse_rfc3339)?,
            ack: text(map, "ack").map(ToOwned::to_owned),
            reason: text(map, "reason").map(ToOwned::to_owned),
            tagged: map.get("tagged").and_then(Value::as_bool).unwrap_or(false),
            read_at,
        })
    }
}
