//! `network …`: networks and who is in them (04 §13, 07 §12). The commands of members go through the daemon, which signs
//! them; those of owners do, too, or with the admin token straight to the registry, as the official tool does it.

pub(crate) mod join;
pub(crate) mod list;
pub(crate) mod manage;

use pilot::Error;
use pilot_wire::registry::ErrorAnswer;
use serde_json::Value;

use crate::app::App;
use crate::errors::{CliError, Code};
use crate::go;

/// A network id.
pub(super) fn id(text: &str) -> Result<u16, CliError> {
    match go::parse_uint(text, u64::from(u16::MAX)) {
        // The limit above makes the cast lossless.
        Ok(id) => Ok(id as u16),
        Err(why) => Err(CliError::argument(format!("invalid network_id {}: {why}", go::quote(text)))),
    }
}

/// Waits for the answer of the daemon about networks.
pub(super) async fn ask(command: &str, answer: impl Future<Output = Result<Value, Error>>) -> Result<Value, CliError> {
    match tokio::time::timeout(crate::app::ANSWER_WAIT, answer).await {
        Ok(answer) => answer.map_err(|error| failed(command, &error)),
        Err(_) => Err(CliError::new(Code::Timeout, format!("{command}: no answer from the daemon within 1m0s"))),
    }
}

/// What a script can go by, from the stable name of a refusal (docs/spec/networks.md); `None` for one that is not known here.
fn code_named(name: &str) -> Option<Code> {
    Some(match name {
        "invalid_argument"
        | "field_required"
        | "join_rule_invalid"
        | "network_name_invalid"
        | "network_policy_invalid"
        | "network_token_unusable" => Code::InvalidArgument,
        "network_not_found" | "node_not_found" | "hostname_not_found" | "invite_not_found" => Code::NotFound,
        "network_name_taken" | "already_member" | "already_pending" => Code::AlreadyExists,
        "admin_token_required"
        | "admin_token_invalid"
        | "backbone"
        | "network_full"
        | "network_policy"
        | "network_token_invalid"
        | "not_allowed"
        | "not_invited"
        | "not_member"
        | "not_trusted"
        | "owner_stays"
        | "too_many_invites"
        | "too_many_networks" => Code::PermissionDenied,
        "timeout" | "dial_timeout" | "no_answer" => Code::Timeout,
        "not_running" => Code::NotRunning,
        "busy" | "rate_limited" => Code::ConnectionFailed,
        _ => return None,
    })
}

/// What a script can go by. Our daemons give stable names, official ones words alone.
pub(super) fn code_of(error: &Error) -> Code {
    let named = match error {
        Error::Daemon { text, .. } => return code_in(text),
        Error::Refused { code, message, .. } => return code_named(code).unwrap_or_else(|| code_in(message)),
        other => code_named(other.code()),
    };
    named.unwrap_or(Code::ConnectionFailed)
}

/// The same for an answer of the registry itself.
pub(super) fn code_of_answer(answer: &ErrorAnswer) -> Code {
    answer.code.as_deref().and_then(code_named).unwrap_or_else(|| code_in(&answer.text))
}

/// What a script can go by, from the words of the registry (07 §9.4), which every release passes on.
fn code_in(text: &str) -> Code {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["rate limited"]) {
        Code::ConnectionFailed
    } else if has(&["not found"]) {
        Code::NotFound
    } else if has(&["already"]) {
        Code::AlreadyExists
    } else if has(&["invalid network", "invalid join rule"]) {
        Code::InvalidArgument
    } else if has(&[
        "require",
        "invalid token",
        "invalid admin token",
        "cannot",
        "not a member",
        "too many",
        "policy",
        "not permitted",
        "does not allow",
    ]) {
        Code::PermissionDenied
    } else {
        Code::ConnectionFailed
    }
}

fn failed(command: &str, error: &Error) -> CliError {
    if let Error::Unsupported { .. } = error {
        return CliError::connection(format!("{command}: this daemon cannot sign that command"))
            .hint("start a daemon of this release, or give the registry's admin token: PILOT_ADMIN_TOKEN=…");
    }
    let text = error.daemon_text().map_or_else(|| error.to_string(), str::to_owned);
    let message = if text.starts_with("network ") { text.clone() } else { format!("{command}: {text}") };
    let failure = CliError::new(code_of(error), message);
    let failure = super::too_old(failure, "this daemon knows no networks; they came in April 2026");
    match error.hint() {
        Some(hint) if failure.hint.is_none() && !hint.is_empty() => failure.hint(hint),
        _ => failure,
    }
}

/// The admin token of the environment or the configuration, if there is one.
pub(super) fn admin_token(app: &App) -> Result<Option<String>, CliError> {
    match std::env::var("PILOT_ADMIN_TOKEN").ok().filter(|token| !token.is_empty()) {
        Some(token) => Ok(Some(token)),
        None => app.home.load()?.text(&app.home, "admin_token"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_codes() {
        for (text, code) in [
            ("network 7: network not found", Code::NotFound),
            ("node 2 is already a member of network 7", Code::AlreadyExists),
            ("invalid network name too long (max 63 chars)", Code::InvalidArgument),
            ("invalid token for network 7", Code::PermissionDenied),
            ("this requires to be owner of network 7", Code::PermissionDenied),
            ("rate limited: too many wrong tokens", Code::ConnectionFailed),
            ("not connected", Code::ConnectionFailed),
        ] {
            assert_eq!(code_of(&Error::Daemon { op: "x", text: text.to_owned() }), code, "{text}");
        }
        for (name, code) in [
            ("not_member", Code::PermissionDenied),
            ("network_full", Code::PermissionDenied),
            ("rate_limited", Code::ConnectionFailed),
            ("network_not_found", Code::NotFound),
            ("dial_timeout", Code::Timeout),
            // Of a later release: its words still help.
            ("something_new", Code::AlreadyExists),
        ] {
            let message = "already, too many, as it were".to_owned();
            let refused = Error::Refused { op: "x", code: name.to_owned(), message, hint: None };
            assert_eq!(code_of(&refused), code, "{name}");
        }
        assert_eq!(code_of(&Error::Timeout { op: "x" }), Code::Timeout);
        assert_eq!(code_of(&Error::Disconnected { op: "x" }), Code::ConnectionFailed);
    }

    #[test]
    fn ids_are_numbers() {
        assert!(id("65536").is_err() && id("x").is_err());
        assert_eq!(id("65535").ok(), Some(65_535));
    }
}
