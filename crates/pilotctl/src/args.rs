//! The argument rules of the command line (06 §2.1).
//!
//! Input that the official tool understands means the same here. What it silently misreads is an error: an unknown
//! flag, a flag without its value, a word too many (06 §24.34).

use crate::errors::CliError;
use crate::go::{self, Span};
use crate::table::{Arg, Command, Form};

/// What stood on the line behind the command.
#[derive(Debug, Default)]
pub(crate) struct Args {
    positionals: Vec<String>,
    flags: Vec<(String, String)>,
}

/// The line, or the wish to read about the command.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Arguments to run with.
    Run(Args),
    /// `--help`, `-help` or `-h` was there.
    Help,
}

impl Args {
    /// Sorts the words behind a command into flags and positional arguments.
    ///
    /// # Errors
    /// `invalid_argument` for an unknown flag, a flag without its value, a value that is no truth value where one is
    /// needed, a missing or surplus positional argument.
    pub(crate) fn parse(command: &Command, words: &[String]) -> Result<Parsed, CliError> {
        let mut args = Self::default();
        let mut words = words.iter().peekable();
        let mut first = true;
        while let Some(word) = words.next() {
            let help = matches!(word.as_str(), "--help" | "-help" | "-h");
            // Commands with raw arguments take `--x` as text, behind the first word at least: a justification may
            // begin with dashes.
            if help && (first || !command.raw) {
                return Ok(Parsed::Help);
            }
            first = false;
            match flag_name(word).filter(|_| !command.raw) {
                None => args.positionals.push(word.clone()),
                Some(name) => {
                    let (name, attached) = match name.split_once('=') {
                        Some((name, value)) => (name, Some(value.to_owned())),
                        None => (name, None),
                    };
                    let Some(takes_value) = command.flag(name) else {
                        return Err(CliError::argument(format!(
                            "unknown flag {} for {}",
                            go::quote(word),
                            command.name
                        ))
                        .hint(command.usage()));
                    };
                    let value = match (attached, takes_value) {
                        (Some(value), true) => value,
                        (Some(value), false) => truth(name, &value)?,
                        (None, false) => {
                            let next = words.next_if(|w| matches!(w.as_str(), "true" | "false" | "1" | "0"));
                            truth(name, next.map_or("true", String::as_str))?
                        }
                        (None, true) => match words.next_if(|w| !w.starts_with("--")) {
                            Some(value) => value.clone(),
                            None => {
                                return Err(CliError::argument(format!("--{name} needs a value"))
                                    .hint(format!("write --{name}=<value> when the value begins with --")));
                            }
                        },
                    };
                    args.flags.push((name.to_owned(), value));
                }
            }
        }
        if args.positionals.len() + args.instead(command) < command.required() {
            return Err(CliError::argument(command.usage()));
        }
        if let Some(surplus) = command.most().and_then(|most| args.positionals.get(most)) {
            return Err(CliError::argument(format!("unexpected argument {}", go::quote(surplus))).hint(command.usage()));
        }
        Ok(Parsed::Run(args))
    }

    /// Positional arguments for which switches stand.
    fn instead(&self, command: &Command) -> usize {
        let is_set = |arg: &&Arg| match arg.form() {
            Form::Flag { name, .. } => arg.is_instead() && self.is_set(name),
            _ => false,
        };
        command.args.iter().filter(is_set).count()
    }

    /// The positional argument at `index`; the empty text when it was not given.
    pub(crate) fn word(&self, index: usize) -> &str {
        self.get(index).unwrap_or("")
    }

    /// The positional argument at `index`, if it was given.
    pub(crate) fn get(&self, index: usize) -> Option<&str> {
        self.positionals.get(index).map(String::as_str)
    }

    /// All positional arguments.
    pub(crate) fn words(&self) -> &[String] {
        &self.positionals
    }

    /// Every flag that was given, with its value, in order.
    pub(crate) fn given(&self) -> impl Iterator<Item = (&str, &str)> {
        self.flags.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of a flag, if it was given. The last one counts.
    pub(crate) fn flag(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Whether a switch is on.
    pub(crate) fn is_set(&self, name: &str) -> bool {
        self.flag(name) == Some("true")
    }

    /// A whole number.
    ///
    /// # Errors
    /// `invalid integer for --<name>: …`.
    pub(crate) fn int(&self, name: &str, default: i64) -> Result<i64, CliError> {
        self.flag(name).map_or(Ok(default), |text| {
            go::parse_int(text).map_err(|why| CliError::argument(format!("invalid integer for --{name}: {why}")))
        })
    }

    /// A span of time.
    ///
    /// # Errors
    /// `invalid duration for --<name>: …`.
    pub(crate) fn span(&self, name: &str, default: Span) -> Result<Span, CliError> {
        self.flag(name).map_or(Ok(default), |text| {
            Span::parse(text).map_err(|why| CliError::argument(format!("invalid duration for --{name}: {why}")))
        })
    }
}

/// The name (and attached value) of `--name`, or of `-name` where a letter follows the dash; `-1` is a number.
fn flag_name(word: &str) -> Option<&str> {
    word.strip_prefix("--")
        .or_else(|| word.strip_prefix('-').filter(|rest| rest.starts_with(|c: char| c.is_ascii_alphabetic())))
}

/// The value of a switch: `true`, `1` or empty is on, `false` or `0` is off.
fn truth(name: &str, value: &str) -> Result<String, CliError> {
    match value {
        "" | "1" | "true" => Ok("true".into()),
        "0" | "false" => Ok("false".into()),
        other => Err(CliError::argument(format!("invalid boolean for --{name}: {}", go::quote(other)))
            .hint(format!("use --{name} or --{name}=false"))),
    }
}

/// A port.
///
/// # Errors
/// `invalid port "x": strconv.ParseUint: …`.
pub(crate) fn port(text: &str) -> Result<u16, CliError> {
    match go::parse_uint(text, u64::from(u16::MAX)) {
        // The limit above makes the cast lossless.
        Ok(n) => Ok(n as u16),
        Err(why) => Err(CliError::argument(format!("invalid port {}: {why}", go::quote(text)))),
    }
}

/// A node id, for the commands that name the value in the error.
///
/// # Errors
/// `invalid node_id "x": strconv.ParseUint: …`.
pub(crate) fn node(text: &str) -> Result<u32, CliError> {
    match go::parse_uint(text, u64::from(u32::MAX)) {
        Ok(n) => Ok(n as u32),
        Err(why) => Err(CliError::argument(format!("invalid node_id {}: {why}", go::quote(text)))),
    }
}

/// A node id in the words of `untrust`, which leave the value out.
///
/// # Errors
/// `invalid node_id: strconv.ParseUint: …`.
pub(crate) fn bare_node(text: &str) -> Result<u32, CliError> {
    match go::parse_uint(text, u64::from(u32::MAX)) {
        Ok(n) => Ok(n as u32),
        Err(why) => Err(CliError::argument(format!("invalid node_id: {why}"))),
    }
}

/// Takes every `--json` off the line (06 §2.1 rule 1); true when there was one.
pub(crate) fn take_json(words: &mut Vec<String>) -> bool {
    let before = words.len();
    words.retain(|word| word != "--json");
    words.len() != before
}

impl Command {
    /// Whether the flag exists (`Some`) and takes a value (`true`).
    pub(crate) fn flag(&self, name: &str) -> Option<bool> {
        self.args.iter().find_map(|arg| match arg.form() {
            Form::Flag { name: n, value } if n == name => Some(value.is_some()),
            _ => None,
        })
    }

    fn required(&self) -> usize {
        self.args.iter().filter(|arg| matches!(arg.form(), Form::Positional { required: true, .. })).count()
    }

    /// The largest number of positional arguments; `None` when the last one repeats.
    fn most(&self) -> Option<usize> {
        let forms = || self.args.iter().map(Arg::form);
        if forms().any(|form| matches!(form, Form::Repeat)) {
            return None;
        }
        Some(forms().filter(|form| matches!(form, Form::Positional { .. })).count())
    }
}

#[cfg(test)]
#[path = "args_tests.rs"]
mod tests;
