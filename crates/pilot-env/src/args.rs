//! Flags of a program, from the command line and from a JSON configuration file (specification 04 §20).
//!
//! A program declares its flags once as a table of [`Flag`]; parsing, conversion, the configuration file and the usage
//! text all come from that table. Spellings are `-x v`, `-x=v`, `--x v` and `--x=v`; booleans are `-x` or `-x=false`.
//! The file named by the flag `config` is a JSON object whose keys are flag names, with `-` or `_`. Precedence: command
//! line, file, default.
//!
//! An unknown flag or key, or a value that does not convert, is an error that says what, where and what was expected.
//! It is never a silent default: a mistyped `"encrypt": "yes"` must not turn encryption off.

mod values;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value as Json;

use values::{parse_bool, parse_uint};
pub use values::{parse_duration, split_host_port};

/// Name of the flag that names the configuration file.
pub const CONFIG_FLAG: &str = "config";

/// Longest configuration file that is read, in bytes. Real ones have a few hundred.
pub const MAX_CONFIG_BYTES: usize = 1 << 20;

/// What a flag's value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// Any text.
    Text,
    /// `true` or `false` and the short forms `1 t T TRUE True 0 f F FALSE False`.
    Bool,
    /// An unsigned integer from `min` to `max`, decimal or with `0x`, `0o`, `0b`.
    Uint {
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// A duration with units, such as `30s`, `1m30s`, `1.5h`, `250ms`; `0` needs no unit. Never negative.
    Duration,
    /// `host:port` with an optional host (`:9000` means every interface) and a port from 0 to 65535; may be empty.
    HostPort,
    /// One of the listed words, in any case.
    OneOf(&'static [&'static str]),
}

impl Kind {
    /// What the value must look like, for messages and usage.
    fn expected(self) -> String {
        match self {
            Self::Text => "text".into(),
            Self::Bool => "true or false".into(),
            Self::Uint { min, max } if max == u64::MAX => format!("an integer of at least {min}"),
            Self::Uint { min, max } => format!("an integer from {min} to {max}"),
            Self::Duration => "a duration with a unit, such as 30s, 1m30s or 250ms".into(),
            Self::HostPort => "host:port, such as 127.0.0.1:9000, [::1]:9000 or :9000".into(),
            Self::OneOf(words) => format!("one of {}", words.join(", ")),
        }
    }

    fn placeholder(self) -> &'static str {
        match self {
            Self::Text => " TEXT",
            Self::Bool => "",
            Self::Uint { .. } => " N",
            Self::Duration => " DURATION",
            Self::HostPort => " HOST:PORT",
            Self::OneOf(_) => " WORD",
        }
    }

    fn convert(self, text: &str) -> Option<Value> {
        Some(match self {
            Self::Text => Value::Text(text.to_owned()),
            Self::Bool => Value::Bool(parse_bool(text)?),
            Self::Uint { min, max } => Value::Uint(parse_uint(text).filter(|n| (min..=max).contains(n))?),
            Self::Duration => Value::Duration(parse_duration(text)?),
            Self::HostPort => {
                if !text.is_empty() {
                    split_host_port(text)?;
                }
                Value::Text(text.to_owned())
            }
            Self::OneOf(words) => Value::Text((*words.iter().find(|w| w.eq_ignore_ascii_case(text))?).to_owned()),
        })
    }
}

/// One declared flag.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Name without dashes.
    pub name: &'static str,
    /// What the value must be.
    pub kind: Kind,
    /// Value when neither the command line nor the file gives one, as text.
    pub default: &'static str,
    /// One line for the usage text.
    pub help: &'static str,
}

impl Flag {
    /// A text flag.
    pub const fn text(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Text, default, help }
    }

    /// A boolean flag that is off by default.
    pub const fn switch(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Bool, default: "false", help }
    }

    /// A boolean flag that is on by default (`-name=false` turns it off).
    pub const fn switch_on(name: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Bool, default: "true", help }
    }

    /// An unsigned integer from `min` to `max`.
    pub const fn uint(name: &'static str, default: &'static str, min: u64, max: u64, help: &'static str) -> Self {
        Self { name, kind: Kind::Uint { min, max }, default, help }
    }

    /// A duration.
    pub const fn duration(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::Duration, default, help }
    }

    /// An address to listen on or to dial.
    pub const fn host_port(name: &'static str, default: &'static str, help: &'static str) -> Self {
        Self { name, kind: Kind::HostPort, default, help }
    }

    /// One of some words.
    pub const fn one_of(
        name: &'static str,
        words: &'static [&'static str],
        default: &'static str,
        help: &'static str,
    ) -> Self {
        Self { name, kind: Kind::OneOf(words), default, help }
    }
}

/// Why the flags of a program could not be read. The text says what, where and what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArgsError {
    /// `-h`, `-help` or `--help` was given: print [`Program::usage`] and exit with status 0.
    #[error("help requested")]
    Help,
    /// A flag that the program does not have.
    #[error("unknown flag -{flag}{}", suggestion(.similar))]
    UnknownFlag {
        /// As given, without dashes.
        flag: String,
        /// The declared name most like it.
        similar: Option<&'static str>,
    },
    /// Text that is not a flag.
    #[error("unexpected argument {argument:?}: this program takes flags only{}", bool_hint(.after_switch))]
    Unexpected {
        /// As given.
        argument: String,
        /// The boolean flag before it, if there is one: `-tls false` must be written `-tls=false`.
        after_switch: Option<&'static str>,
    },
    /// A flag at the end that needs a value.
    #[error("flag -{flag} needs a value: {expected}")]
    MissingValue {
        /// Flag name.
        flag: &'static str,
        /// What is expected.
        expected: String,
    },
    /// A value on the command line that does not convert.
    #[error("invalid value {value:?} for flag -{flag}: expected {expected}")]
    BadValue {
        /// Flag name.
        flag: &'static str,
        /// As given, shortened.
        value: String,
        /// What is expected.
        expected: String,
    },
    /// The configuration file cannot be read.
    #[error("cannot read config file {path}: {reason}")]
    Unreadable {
        /// File name as given.
        path: String,
        /// Why.
        reason: String,
    },
    /// The configuration file is not a JSON object.
    #[error("config file {path} is not a JSON object: {reason}")]
    NotAnObject {
        /// File name as given.
        path: String,
        /// Why, with line and column.
        reason: String,
    },
    /// A key in the file that is no flag of the program.
    #[error("config file {path}: unknown key {key:?}{}", suggestion(.similar))]
    UnknownKey {
        /// File name as given.
        path: String,
        /// As written.
        key: String,
        /// The declared name most like it.
        similar: Option<&'static str>,
    },
    /// A value in the file that does not convert.
    #[error("config file {path}: invalid value {value} for {key:?}: expected {expected}")]
    BadFileValue {
        /// File name as given.
        path: String,
        /// As written.
        key: String,
        /// The JSON value, shortened.
        value: String,
        /// What is expected.
        expected: String,
    },
}

impl ArgsError {
    /// A stable name of the kind of error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Help => "help",
            Self::UnknownFlag { .. } => "unknown_flag",
            Self::Unexpected { .. } => "unexpected_argument",
            Self::MissingValue { .. } => "missing_value",
            Self::BadValue { .. } => "bad_value",
            Self::Unreadable { .. } => "config_unreadable",
            Self::NotAnObject { .. } => "config_invalid",
            Self::UnknownKey { .. } => "config_unknown_key",
            Self::BadFileValue { .. } => "config_bad_value",
        }
    }

    /// Exit status of a program: 0 for help, 2 for a bad command line, 1 for a bad configuration file (04 §20).
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Help => 0,
            Self::UnknownFlag { .. } | Self::Unexpected { .. } | Self::MissingValue { .. } | Self::BadValue { .. } => 2,
            _ => 1,
        }
    }
}

fn suggestion(similar: &Option<&'static str>) -> String {
    similar.map_or_else(String::new, |name| format!(" (did you mean {name}?)"))
}

fn bool_hint(after: &Option<&'static str>) -> String {
    after.map_or_else(String::new, |name| format!(" (write -{name}=VALUE)"))
}

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The declaration.
    Default,
    /// The configuration file.
    File,
    /// The command line.
    CommandLine,
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Text(String),
    Bool(bool),
    Uint(u64),
    Duration(Duration),
}

/// A program and its flags.
#[derive(Clone, Copy, Debug)]
pub struct Program {
    /// Name for the usage text.
    pub name: &'static str,
    /// One line that says what the program does.
    pub about: &'static str,
    /// Its flags. A text flag called `config` names the configuration file.
    pub flags: &'static [Flag],
}

impl Program {
    /// Reads the arguments (without the program name) and the configuration file they name.
    ///
    /// # Errors
    /// See [`ArgsError`]; the first problem found is reported.
    pub fn parse<I>(&self, args: I) -> Result<Flags, ArgsError>
    where
        I: IntoIterator<Item = OsString>,
    {
        self.parse_with(args, read_config)
    }

    /// As [`Program::parse`], with the configuration file read by `read`, which gets its name.
    ///
    /// # Errors
    /// See [`ArgsError`].
    pub fn parse_with<I, R>(&self, args: I, read: R) -> Result<Flags, ArgsError>
    where
        I: IntoIterator<Item = OsString>,
        R: FnOnce(&str) -> Result<String, String>,
    {
        let mut given: BTreeMap<&'static str, (Value, Source)> = BTreeMap::new();
        self.read_command_line(args, &mut given)?;
        if let Some(path) = self.config_path(&given) {
            let text = read(&path).map_err(|reason| ArgsError::Unreadable { path: path.clone(), reason })?;
            self.read_file(&path, &text, &mut given)?;
        }
        for flag in self.flags {
            if !given.contains_key(flag.name) {
                // A default that does not convert is a mistake in the declaration; `every_default_converts` in the
                // program's tests (see `Program::check`) keeps it from reaching a user.
                let value = flag.kind.convert(flag.default).unwrap_or_else(|| Value::Text(flag.default.to_owned()));
                given.insert(flag.name, (value, Source::Default));
            }
        }
        Ok(Flags { values: given })
    }

    /// Panics if two flags share a name or a default does not convert. For a program's tests.
    ///
    /// # Panics
    /// When the declaration is wrong.
    pub fn check(&self) {
        let mut names = BTreeMap::new();
        for flag in self.flags {
            assert!(names.insert(flag.name, ()).is_none(), "flag -{} is declared twice", flag.name);
            assert!(flag.kind.convert(flag.default).is_some(), "default of -{} does not convert", flag.name);
        }
    }

    fn config_path(&self, given: &BTreeMap<&'static str, (Value, Source)>) -> Option<String> {
        self.find(CONFIG_FLAG)?;
        match given.get(CONFIG_FLAG) {
            Some((Value::Text(path), _)) if !path.is_empty() => Some(path.clone()),
            _ => None,
        }
    }

    fn find(&self, name: &str) -> Option<&'static Flag> {
        self.flags.iter().find(|f| f.name == name)
    }

    /// The declared name most like `name`: equal up to `-`/`_` and case, or within two edits.
    fn similar(&self, name: &str) -> Option<&'static str> {
        let plain = name.replace('_', "-").to_lowercase();
        let plain: String = plain.chars().take(64).collect();
        self.flags
            .iter()
            .map(|f| (edits(&plain, f.name), f.name))
            .min()
            .filter(|(distance, candidate)| *distance <= 2 && *distance < candidate.len())
            .map(|(_, candidate)| candidate)
    }

    fn read_command_line<I>(
        &self,
        args: I,
        given: &mut BTreeMap<&'static str, (Value, Source)>,
    ) -> Result<(), ArgsError>
    where
        I: IntoIterator<Item = OsString>,
    {
        let mut args = args.into_iter().map(|a| a.to_string_lossy().into_owned());
        let mut last_switch = None;
        while let Some(argument) = args.next() {
            let body = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')).unwrap_or("");
            if body.is_empty() || body.starts_with('-') || body.starts_with('=') {
                return Err(ArgsError::Unexpected { argument: shown(&argument), after_switch: last_switch });
            }
            let (name, inline) = match body.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (body, None),
            };
            let Some(flag) = self.find(name) else {
                if matches!(name, "h" | "help") {
                    return Err(ArgsError::Help);
                }
                return Err(ArgsError::UnknownFlag { flag: shown(name), similar: self.similar(name) });
            };
            last_switch = None;
            let text = match (inline, flag.kind) {
                (Some(value), _) => value,
                (None, Kind::Bool) => {
                    last_switch = Some(flag.name);
                    "true".to_owned()
                }
                (None, kind) => {
                    args.next().ok_or_else(|| ArgsError::MissingValue { flag: flag.name, expected: kind.expected() })?
                }
            };
            let value = flag.kind.convert(&text).ok_or_else(|| ArgsError::BadValue {
                flag: flag.name,
                value: shown(&text),
                expected: flag.kind.expected(),
            })?;
            given.insert(flag.name, (value, Source::CommandLine));
        }
        Ok(())
    }

    fn read_file(
        &self,
        path: &str,
        text: &str,
        given: &mut BTreeMap<&'static str, (Value, Source)>,
    ) -> Result<(), ArgsError> {
        let not_object = |reason: String| ArgsError::NotAnObject { path: path.to_owned(), reason };
        let json: Json = serde_json::from_str(text).map_err(|e| not_object(e.to_string()))?;
        let Json::Object(object) = json else {
            return Err(not_object("the file holds another kind of JSON value".into()));
        };
        for (key, json) in &object {
            let (flag, is_underscored) = match self.find(key) {
                Some(flag) => (flag, false),
                None => match self.find(&key.replace('_', "-")) {
                    Some(flag) => (flag, true),
                    None => {
                        return Err(ArgsError::UnknownKey {
                            path: path.to_owned(),
                            key: shown(key),
                            similar: self.similar(key),
                        });
                    }
                },
            };
            let value =
                json_text(json).and_then(|text| flag.kind.convert(&text)).ok_or_else(|| ArgsError::BadFileValue {
                    path: path.to_owned(),
                    key: shown(key),
                    value: shown(&json.to_string()),
                    expected: flag.kind.expected(),
                })?;
            // The hyphen spelling wins over the underscore one when the file has both.
            let outranked = is_underscored && object.contains_key(flag.name);
            let on_command_line = matches!(given.get(flag.name), Some((_, Source::CommandLine)));
            if !outranked && !on_command_line {
                given.insert(flag.name, (value, Source::File));
            }
        }
        Ok(())
    }

    /// The usage text, made from the declaration.
    pub fn usage(&self) -> String {
        let mut out = format!("{} - {}\n\nUsage: {} [flags]\n\nFlags:\n", self.name, self.about, self.name);
        let left = |f: &Flag| format!("  -{}{}", f.name, f.kind.placeholder());
        let width = self.flags.iter().map(|f| left(f).len()).max().unwrap_or(0).min(34);
        for flag in self.flags {
            let _ = write!(out, "{:width$}  {}", left(flag), flag.help);
            if let Kind::OneOf(words) = flag.kind {
                let _ = write!(out, " ({})", words.join(", "));
            }
            match (flag.kind, flag.default) {
                (_, "") | (Kind::Bool, "false") => {}
                (_, default) => {
                    let _ = write!(out, " (default {default})");
                }
            }
            out.push('\n');
        }
        out.push_str("\nFlags may be written -x v, -x=v, --x v or --x=v; switches -x or -x=false.\n");
        if self.find(CONFIG_FLAG).is_some() {
            out.push_str("Keys of the config file are flag names; the command line wins over the file.\n");
        }
        out
    }
}

/// The values of a program's flags. The getters panic for a name that is not declared with that kind, which is a
/// mistake in the program, never in its input.
#[derive(Clone, Debug)]
pub struct Flags {
    values: BTreeMap<&'static str, (Value, Source)>,
}

impl Flags {
    fn value(&self, name: &str) -> &Value {
        match self.values.get(name) {
            Some((value, _)) => value,
            None => panic!("flag -{name} is not declared"),
        }
    }

    /// A text, address or word (words in the declared case).
    pub fn text(&self, name: &str) -> &str {
        match self.value(name) {
            Value::Text(text) => text,
            other => panic!("flag -{name} is declared as {other:?}, not as text"),
        }
    }

    /// A text, or `None` when it is empty.
    pub fn non_empty(&self, name: &str) -> Option<&str> {
        Some(self.text(name)).filter(|t| !t.is_empty())
    }

    /// A boolean.
    pub fn bool(&self, name: &str) -> bool {
        match self.value(name) {
            Value::Bool(value) => *value,
            other => panic!("flag -{name} is declared as {other:?}, not as a boolean"),
        }
    }

    /// An unsigned integer, within its declared range.
    pub fn uint(&self, name: &str) -> u64 {
        match self.value(name) {
            Value::Uint(value) => *value,
            other => panic!("flag -{name} is declared as {other:?}, not as an integer"),
        }
    }

    /// A duration.
    pub fn duration(&self, name: &str) -> Duration {
        match self.value(name) {
            Value::Duration(value) => *value,
            other => panic!("flag -{name} is declared as {other:?}, not as a duration"),
        }
    }

    /// Where the value came from.
    pub fn source(&self, name: &str) -> Source {
        match self.values.get(name) {
            Some((_, source)) => *source,
            None => panic!("flag -{name} is not declared"),
        }
    }

    /// Names of the flags whose values differ from those in `other`, which belongs to the same program.
    pub fn differing(&self, other: &Self) -> Vec<&'static str> {
        let differs = |name: &&'static str| {
            let value = |flags: &Self| flags.values.get(name).map(|(value, _)| value.clone());
            value(self) != value(other)
        };
        self.values.keys().copied().filter(differs).collect()
    }

    /// Takes one value over from `other`, which belongs to the same program.
    pub fn adopt(&mut self, name: &'static str, other: &Self) {
        if let Some(value) = other.values.get(name) {
            self.values.insert(name, value.clone());
        }
    }

    /// Whether the command line or the file gave the value.
    pub fn is_set(&self, name: &str) -> bool {
        self.source(name) != Source::Default
    }
}

/// A JSON scalar as the text a user would have typed; lists, objects and null have none.
fn json_text(json: &Json) -> Option<String> {
    match json {
        Json::String(text) => Some(text.clone()),
        Json::Bool(value) => Some(value.to_string()),
        Json::Number(number) => {
            // 1e6 and 30.0 are integers written in another way.
            match number.as_f64() {
                Some(f) if !number.is_i64() && !number.is_u64() && f.fract() == 0.0 && f.abs() < 9e15 => {
                    Some((f as i64).to_string())
                }
                _ => Some(number.to_string()),
            }
        }
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

/// Longest piece of input repeated in an error.
fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Number of single-character changes between two short texts.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Reads a configuration file of bounded size.
fn read_config(path: &str) -> Result<String, String> {
    use std::io::Read as _;
    // Flags are read before there is an environment to read files through.
    #[allow(clippy::disallowed_methods)]
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut bytes = Vec::new();
    file.take(MAX_CONFIG_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    if bytes.len() > MAX_CONFIG_BYTES {
        return Err(format!("larger than {MAX_CONFIG_BYTES} bytes"));
    }
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests;
