//! One log line: what an event says, and how it is written. Text lines are `time=… level=… msg=… key=value`, JSON lines
//! objects with the same keys, as every official daemon writes them (06 §11.3), so that whatever reads their logs reads
//! ours.

use std::fmt::{self, Write as _};
use std::time::Duration;

use serde_json::{Map, Value};
use tracing::field::{Field as Name, Visit};
use tracing::{Event, Level};

use super::scrub::scrub;

/// Longest value written; the rest is cut off and said so.
const MAX_VALUE: usize = 4096;
/// Most fields of a line; the program's own lines have a handful.
const MAX_FIELDS: usize = 32;
/// Keys of the line itself; a field of that name gets an underscore.
const RESERVED: [&str; 4] = ["time", "level", "msg", "target"];

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// `key=value`.
    Text,
    /// One JSON object for each line.
    Json,
}

/// A value.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Field {
    /// Written with quotes where needed.
    Text(String),
    /// A number or truth value.
    Plain(String),
}

/// What one event says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) level: Level,
    pub(super) target: &'static str,
    /// Line in the source: with the target it names the place that speaks.
    pub(super) line: u32,
    pub(super) message: String,
    pub(super) fields: Vec<(&'static str, Field)>,
}

impl Record {
    pub(super) fn new(level: Level, target: &'static str, message: &str) -> Self {
        Self { level, target, line: 0, message: message.to_owned(), fields: Vec::new() }
    }

    /// Reads an event. Above `debug` it has no IP addresses from here on.
    pub(super) fn read(event: &Event<'_>) -> Self {
        let metadata = event.metadata();
        let mut record = Self::new(*metadata.level(), metadata.target(), "");
        record.line = metadata.line().unwrap_or_default();
        event.record(&mut record);
        if record.level <= Level::INFO {
            let clean = |text: &mut String| {
                if let std::borrow::Cow::Owned(scrubbed) = scrub(text) {
                    *text = scrubbed;
                }
            };
            clean(&mut record.message);
            for (_, field) in &mut record.fields {
                if let Field::Text(text) = field {
                    clean(text);
                }
            }
        }
        record
    }

    fn add(&mut self, name: &Name, value: Field) {
        if self.fields.len() < MAX_FIELDS {
            self.fields.push((name.name(), value));
        }
    }

    /// Appends the line, newline included.
    pub(super) fn write(&self, unix: Duration, format: Format, out: &mut String) {
        match format {
            Format::Text => self.write_text(unix, out),
            Format::Json => self.write_json(unix, out),
        }
        out.push('\n');
    }

    fn write_text(&self, unix: Duration, out: &mut String) {
        let _ = write!(out, "time={} level={} msg=", timestamp(unix), self.level);
        write_value(&self.message, out);
        let _ = write!(out, " target={}", self.target);
        for (name, field) in &self.fields {
            let _ = write!(out, " {}=", Key(name));
            match field {
                Field::Text(text) => write_value(text, out),
                Field::Plain(text) => out.push_str(text),
            }
        }
    }

    fn write_json(&self, unix: Duration, out: &mut String) {
        // By hand, so that the keys every line has stand first, where people look for them.
        let text = |text: &str| Value::from(text).to_string();
        let _ = write!(out, "{{\"time\":{},\"level\":{},", text(&timestamp(unix)), text(self.level.as_str()));
        let _ = write!(out, "\"msg\":{},\"target\":{}", text(&self.message), text(self.target));
        let mut fields = Map::new();
        for (name, field) in &self.fields {
            let value = match field {
                Field::Text(text) => Value::from(text.as_str()),
                Field::Plain(text) => serde_json::from_str(text).unwrap_or_else(|_| Value::from(text.as_str())),
            };
            fields.insert(Key(name).to_string(), value);
        }
        for (name, value) in &fields {
            let _ = write!(out, ",{}:{value}", text(name));
        }
        out.push('}');
    }
}

/// A field's name as it is written.
struct Key<'a>(&'a str);

impl fmt::Display for Key<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)?;
        if RESERVED.contains(&self.0) { f.write_char('_') } else { Ok(()) }
    }
}

fn timestamp(unix: Duration) -> String {
    let millis = i64::try_from(unix.as_millis()).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(millis).unwrap_or_default();
    time.strftime("%Y-%m-%dT%H:%M:%S.%3fZ").to_string()
}

/// A value of a text line. Everything that could end the line, or look like another field, is quoted: a peer's words must
/// not forge lines.
fn write_value(text: &str, out: &mut String) {
    let is_bare = |c: char| !c.is_whitespace() && !c.is_control() && !matches!(c, '"' | '=' | '\\');
    if !text.is_empty() && text.chars().all(is_bare) {
        return out.push_str(text);
    }
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// A text within its bound.
struct Bounded(String);

impl fmt::Write for Bounded {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MAX_VALUE.saturating_sub(self.0.len());
        if text.len() <= room {
            self.0.push_str(text);
            return Ok(());
        }
        let cut = (0..=room).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        self.0.push_str(&text[..cut]);
        self.0.push_str("… (cut off)");
        Err(fmt::Error)
    }
}

fn bounded(value: &dyn fmt::Debug) -> String {
    let mut out = Bounded(String::new());
    // It fails only when it is full.
    let _ = write!(out, "{value:?}");
    out.0
}

impl Visit for Record {
    fn record_debug(&mut self, field: &Name, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = bounded(value),
            _ => self.add(field, Field::Text(bounded(value))),
        }
    }

    fn record_str(&mut self, field: &Name, value: &str) {
        let text = bounded(&format_args!("{value}"));
        match field.name() {
            "message" => self.message = text,
            _ => self.add(field, Field::Text(text)),
        }
    }

    fn record_u64(&mut self, field: &Name, value: u64) {
        self.add(field, Field::Plain(value.to_string()));
    }

    fn record_i64(&mut self, field: &Name, value: i64) {
        self.add(field, Field::Plain(value.to_string()));
    }

    fn record_bool(&mut self, field: &Name, value: bool) {
        self.add(field, Field::Plain(value.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> Record {
        let mut record = Record::new(Level::WARN, "pilot_node::trust", "it said \"no\"\nlevel=ERROR msg=forged");
        record.fields.push(("peer", Field::Plain("5".to_owned())));
        record.fields.push(("address", Field::Text("0:0000.0000.0005".to_owned())));
        record.fields.push(("level", Field::Text("a b".to_owned())));
        record.fields.push(("empty", Field::Text(String::new())));
        record
    }

    #[test]
    fn a_text_line_is_one_line_that_nobody_can_forge() {
        let mut out = String::new();
        example().write(Duration::from_millis(1_700_000_000_123), Format::Text, &mut out);
        assert_eq!(
            out,
            "time=2023-11-14T22:13:20.123Z level=WARN msg=\"it said \\\"no\\\"\\nlevel=ERROR msg=forged\" \
             target=pilot_node::trust peer=5 address=0:0000.0000.0005 level_=\"a b\" empty=\"\"\n"
        );
    }

    #[test]
    fn a_json_line_is_one_object_with_the_official_keys() {
        let mut out = String::new();
        example().write(Duration::from_millis(1_700_000_000_123), Format::Json, &mut out);
        assert_eq!(out.matches('\n').count(), 1);
        let value: Value = serde_json::from_str(&out).unwrap();
        assert_eq!(value["time"], "2023-11-14T22:13:20.123Z");
        assert_eq!((&value["level"], &value["peer"]), (&"WARN".into(), &5.into()));
        assert_eq!(value["msg"], "it said \"no\"\nlevel=ERROR msg=forged");
        assert_eq!(value["level_"], "a b");
    }

    #[test]
    fn a_value_has_a_bound() {
        let text = bounded(&format_args!("{}", "ü".repeat(10_000)));
        assert!(text.len() < MAX_VALUE + 32 && text.ends_with("(cut off)"));
    }
}
