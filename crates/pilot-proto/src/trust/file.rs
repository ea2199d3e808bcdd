//! `trust.json` (05 §3.7, 07 §13): read as every release writes it, written so that every release reads it.
//!
//! Fields we do not know are kept, in the file and in each entry. Daemons of 1.18.0 keep `outgoing` too (so that an answer
//! still counts after a restart), with the field `sent_at`; an earlier name of ours, `requested_at`, is read. A list of
//! another form than theirs would make them forget the whole file. Ours on top, in `revoked`: `hold` (a person ended
//! trust: no policy restores it) and `untold_since` (the peer has not been told yet).

use pilot_wire::{base64, json};
use serde_json::{Map, Value};

use super::receive::clean;
use super::state::{Outgoing, Revoked, Trust};
use super::{MAX_OUTGOING, MAX_TRUSTED, Moment, PendingRequest, TrustedNode, format_rfc3339, parse_rfc3339};

/// Largest file read, in bytes.
const MAX_FILE: usize = 16 << 20;
/// Most entries read from a list that official programs do not bound; our own limits hold for what is added.
const MAX_ENTRIES: usize = 16_384;

/// Why a trust file is refused. It must then be left as it is: overwriting it would end every trust in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrustFileError {
    /// Not JSON.
    #[error("trust file is not valid JSON: {0}")]
    Json(#[from] json::JsonError),
    /// Not an object, or a list is not one.
    #[error("trust file: {0} has the wrong form")]
    Form(&'static str),
    /// An entry without a node id, or with a key that is none.
    #[error("trust file: entry {index} of {list} has no valid {field}")]
    Entry {
        /// Which list.
        list: &'static str,
        /// Which entry, from 0.
        index: usize,
        /// Which field.
        field: &'static str,
    },
    /// More entries than we hold.
    #[error("trust file: {0} is too long")]
    TooLong(&'static str),
}

impl TrustFileError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Json(_) => "trust_file_json",
            Self::Form(_) => "trust_file_form",
            Self::Entry { .. } => "trust_file_entry",
            Self::TooLong(_) => "trust_file_too_long",
        }
    }
}

/// One entry of a list while it is read: fields are taken out, what is left is unknown.
struct Entry {
    list: &'static str,
    index: usize,
    fields: Map<String, Value>,
}

impl Entry {
    fn error(&self, field: &'static str) -> TrustFileError {
        TrustFileError::Entry { list: self.list, index: self.index, field }
    }

    fn node(&mut self) -> Result<u32, TrustFileError> {
        let node = self.fields.remove("node_id").and_then(|v| v.as_u64()).and_then(|n| u32::try_from(n).ok());
        node.filter(|node| *node != 0).ok_or_else(|| self.error("node_id"))
    }

    /// A key; an absent or empty one is none, a malformed one an error: dropping it would undo a pin.
    fn key(&mut self) -> Result<Option<[u8; 32]>, TrustFileError> {
        match self.fields.remove("public_key") {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => base64::decode_array(&text).map(Some).ok_or_else(|| self.error("public_key")),
            Some(_) => Err(self.error("public_key")),
        }
    }

    /// A time as text or Unix seconds; 0 when there is none or it cannot be read.
    fn time(&mut self, field: &str) -> u64 {
        match self.fields.remove(field) {
            Some(Value::String(text)) => parse_rfc3339(&text).unwrap_or(0),
            Some(Value::Number(number)) => number.as_u64().unwrap_or(0),
            _ => 0,
        }
    }

    fn bool(&mut self, field: &str) -> bool {
        self.fields.remove(field).and_then(|v| v.as_bool()).unwrap_or(false)
    }

    fn text(&mut self, field: &str) -> String {
        match self.fields.remove(field) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        }
    }
}

fn entries(file: &mut Map<String, Value>, list: &'static str, max: usize) -> Result<Vec<Entry>, TrustFileError> {
    let items = match file.remove(list) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(TrustFileError::Form(list)),
    };
    if items.len() > max {
        return Err(TrustFileError::TooLong(list));
    }
    items
        .into_iter()
        .enumerate()
        .map(|(index, item)| match item {
            Value::Object(fields) => Ok(Entry { list, index, fields }),
            _ => Err(TrustFileError::Form(list)),
        })
        .collect()
}

impl Trust {
    /// Reads the file into an empty state; then call [`Trust::announce`]. A missing file is not read at all.
    ///
    /// # Errors
    /// [`TrustFileError`]: nothing was taken over, and the file must not be overwritten.
    pub fn load(&mut self, at: Moment, text: &[u8]) -> Result<(), TrustFileError> {
        if text.len() > MAX_FILE {
            return Err(TrustFileError::TooLong("file"));
        }
        let Value::Object(mut file) = json::parse(text)? else {
            return Err(TrustFileError::Form("file"));
        };
        let mut fresh = Self::new(self.identity.clone(), self.node, self.config.clone());
        for mut entry in entries(&mut file, "trusted", MAX_TRUSTED)? {
            let node = entry.node()?;
            let trusted = TrustedNode {
                key: entry.key()?,
                approved_at: entry.time("approved_at"),
                mutual: entry.bool("mutual"),
                network: entry.fields.remove("network").and_then(|v| v.as_u64()).map_or(0, |n| n as u16),
            };
            fresh.trusted.insert(node, trusted);
            fresh.unknown_trusted.insert(node, entry.fields);
        }
        for mut entry in entries(&mut file, "pending", MAX_ENTRIES)? {
            let node = entry.node()?;
            let request = PendingRequest {
                key: entry.key()?,
                justification: clean(&entry.text("justification")),
                received_at: entry.time("received_at"),
            };
            fresh.pending.insert(node, request);
            fresh.unknown_pending.insert(node, entry.fields);
        }
        for mut entry in entries(&mut file, "revoked", MAX_ENTRIES)? {
            let node = entry.node()?;
            let revoked = Revoked {
                until: entry.time("until"),
                hold: entry.bool("hold"),
                untold_since: entry.time("untold_since"),
                unknown: entry.fields,
                ..Revoked::default()
            };
            fresh.revoked.insert(node, revoked);
        }
        for mut entry in entries(&mut file, "outgoing", MAX_OUTGOING)? {
            let node = entry.node()?;
            let requested_at = entry.time("sent_at").max(entry.time("requested_at"));
            let outgoing = Outgoing { requested_at, again: false, unknown: entry.fields };
            fresh.outgoing.insert(node, outgoing);
        }
        self.trusted = fresh.trusted;
        self.pending = fresh.pending;
        self.outgoing = fresh.outgoing;
        self.revoked = fresh.revoked;
        self.unknown_trusted = fresh.unknown_trusted;
        self.unknown_pending = fresh.unknown_pending;
        self.unknown = file;
        self.schedule_notices(at);
        self.forget_old(at);
        Ok(())
    }

    /// The text of the file: two-space indent, official field order, entries by node id.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut file = Object::default();
        file.list(
            "trusted",
            self.trusted.iter().map(|(node, t)| {
                let mut entry = Object::default();
                entry.field("node_id", Value::from(*node));
                entry.field("public_key", Value::from(t.key.map(|k| base64::encode(&k)).unwrap_or_default()));
                entry.field("approved_at", Value::from(format_rfc3339(t.approved_at)));
                entry.field("mutual", Value::from(t.mutual));
                entry.optional("network", (t.network != 0).then(|| Value::from(t.network)));
                entry.unknown(self.unknown_trusted.get(node));
                entry
            }),
        );
        file.optional_list(
            "pending",
            self.pending.iter().map(|(node, p)| {
                let mut entry = Object::default();
                entry.field("node_id", Value::from(*node));
                entry.optional("public_key", p.key.map(|k| Value::from(base64::encode(&k))));
                entry.optional(
                    "justification",
                    Some(p.justification.as_str()).filter(|j| !j.is_empty()).map(Value::from),
                );
                entry.field("received_at", Value::from(format_rfc3339(p.received_at)));
                entry.unknown(self.unknown_pending.get(node));
                entry
            }),
        );
        file.optional_list(
            "revoked",
            self.revoked.iter().map(|(node, r)| {
                let mut entry = Object::default();
                entry.field("node_id", Value::from(*node));
                entry.field("until", Value::from(format_rfc3339(r.until)));
                entry.optional("hold", r.hold.then_some(Value::Bool(true)));
                entry.optional(
                    "untold_since",
                    (r.untold_since != 0).then(|| Value::from(format_rfc3339(r.untold_since))),
                );
                entry.unknown(Some(&r.unknown));
                entry
            }),
        );
        file.optional_list(
            "outgoing",
            self.outgoing.iter().map(|(node, o)| {
                let mut entry = Object::default();
                entry.field("node_id", Value::from(*node));
                entry.field("sent_at", Value::from(format_rfc3339(o.requested_at)));
                entry.unknown(Some(&o.unknown));
                entry
            }),
        );
        file.unknown(Some(&self.unknown));
        let mut out = Vec::new();
        file.write(0, &mut out);
        out
    }
}

/// A value with the field order kept, which JSON maps do not.
enum Node {
    Value(Value),
    List(Vec<Object>),
}

#[derive(Default)]
struct Object(Vec<(String, Node)>);

impl Object {
    fn field(&mut self, name: &str, value: Value) {
        self.0.push((name.to_owned(), Node::Value(value)));
    }

    fn optional(&mut self, name: &str, value: Option<Value>) {
        if let Some(value) = value {
            self.field(name, value);
        }
    }

    /// `null` when empty, as the official writer has it.
    fn list(&mut self, name: &str, entries: impl Iterator<Item = Object>) {
        let entries: Vec<Object> = entries.collect();
        let node = if entries.is_empty() { Node::Value(Value::Null) } else { Node::List(entries) };
        self.0.push((name.to_owned(), node));
    }

    fn optional_list(&mut self, name: &str, entries: impl Iterator<Item = Object>) {
        let entries: Vec<Object> = entries.collect();
        if !entries.is_empty() {
            self.0.push((name.to_owned(), Node::List(entries)));
        }
    }

    fn unknown(&mut self, fields: Option<&Map<String, Value>>) {
        for (name, value) in fields.into_iter().flatten() {
            self.field(name, value.clone());
        }
    }

    fn write(&self, depth: usize, out: &mut Vec<u8>) {
        let indent = |depth: usize, out: &mut Vec<u8>| {
            out.push(b'\n');
            out.extend(std::iter::repeat_n(b' ', 2 * depth));
        };
        out.push(b'{');
        for (i, (name, node)) in self.0.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            indent(depth + 1, out);
            json::write_string(name, out);
            out.extend_from_slice(b": ");
            match node {
                Node::Value(value) => json::write_value(value, out),
                Node::List(entries) => {
                    out.push(b'[');
                    for (i, entry) in entries.iter().enumerate() {
                        if i > 0 {
                            out.push(b',');
                        }
                        indent(depth + 2, out);
                        entry.write(depth + 2, out);
                    }
                    indent(depth + 1, out);
                    out.push(b']');
                }
            }
        }
        indent(depth, out);
        out.push(b'}');
    }
}
