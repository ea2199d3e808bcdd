//! The one place that writes to standard output and standard error (06 §2.2).

use std::io::IsTerminal;

use pilot_env::output;
use pilot_wire::json;
use serde_json::{Value, json};

use crate::errors::CliError;

/// Writes results, notes and errors in the mode the user asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Printer {
    json: bool,
}

impl Printer {
    /// A printer for JSON mode or for people.
    pub(crate) const fn new(json: bool) -> Self {
        Self { json }
    }

    /// Whether JSON mode is on.
    pub(crate) const fn is_json(self) -> bool {
        self.json
    }

    /// Whether a progress bar has somebody to look at it.
    pub(crate) fn shows_progress(self) -> bool {
        !self.json && std::io::stderr().is_terminal()
    }

    /// The result of a command without a form of its own: the object, indented for people.
    pub(crate) fn object(self, data: &Value) {
        if self.json { self.envelope(data) } else { self.text(&format!("{}\n", indented(data))) }
    }

    /// The result of a command: the object in JSON mode, `human` otherwise.
    pub(crate) fn result(self, data: &Value, human: impl FnOnce() -> String) {
        if self.json { self.envelope(data) } else { self.text(&human()) }
    }

    /// One of many results, while a command runs: a bare object on a line of its own in JSON mode, `human` otherwise.
    pub(crate) fn item(self, data: &Value, human: &str) {
        let text = if self.json { format!("{}\n", json::to_string(data)) } else { human.to_owned() };
        output::print(&text);
    }

    /// Text for people on standard output, while a command runs.
    pub(crate) fn text(self, text: &str) {
        if !self.json {
            output::print(text);
        }
    }

    /// A line of progress for people on standard error.
    pub(crate) fn note(self, line: &str) {
        if !self.json {
            output::eprint(&format!("{line}\n"));
        }
    }

    /// Progress without a line end.
    pub(crate) fn note_part(self, part: &str) {
        if !self.json {
            output::eprint(part);
        }
    }

    /// Progress for programs: an object on a line of standard error in JSON mode, so that standard output holds the
    /// result alone.
    pub(crate) fn progress(self, data: &Value) {
        if self.json {
            output::eprint(&format!("{}\n", json::to_string(data)));
        }
    }

    /// An error on standard error.
    pub(crate) fn error(self, error: &CliError) {
        let text = if self.json { format!("{}\n", json::to_string(&error.to_json())) } else { error.to_text() };
        output::eprint(&text);
    }

    fn envelope(self, data: &Value) {
        let text = format!("{}\n", json::to_string(&json!({ "data": data, "status": "ok" })));
        output::print(&text);
    }
}

/// A text on standard output in either mode: help.
pub(crate) fn say(text: &str) {
    output::print(text);
}

/// A text on standard error in either mode: the usage text.
pub(crate) fn complain(text: &str) {
    output::eprint(text);
}

/// JSON over several lines, two spaces deep, keys sorted, escaped as in JSON mode.
pub(crate) fn indented(value: &Value) -> String {
    let mut out = String::new();
    indent(value, 0, &mut out);
    out
}

fn indent(value: &Value, depth: usize, out: &mut String) {
    let line = |out: &mut String, depth: usize| {
        out.push('\n');
        out.push_str(&"  ".repeat(depth));
    };
    match value {
        Value::Array(list) if !list.is_empty() => {
            out.push('[');
            for (i, item) in list.iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                line(out, depth + 1);
                indent(item, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        Value::Object(map) if !map.is_empty() => {
            let mut keys: Vec<_> = map.iter().collect();
            keys.sort_unstable_by_key(|(key, _)| *key);
            out.push('{');
            for (i, (key, item)) in keys.into_iter().enumerate() {
                if i > 0 {
                    out.push(',');
                }
                line(out, depth + 1);
                out.push_str(&json::to_string(&Value::from(key.as_str())));
                out.push_str(": ");
                indent(item, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        scalar => out.push_str(&json::to_string(scalar)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indentation_is_two_spaces_with_sorted_keys() {
        let value = json!({"b": [1, {"x": "<&>"}], "a": {}, "c": []});
        let expected = "{\n  \"a\": {},\n  \"b\": [\n    1,\n    {\n      \"x\": \"\\u003c\\u0026\\u003e\"\n    }\n  ],\n  \"c\": []\n}";
        assert_eq!(indented(&value), expected);
    }
}
