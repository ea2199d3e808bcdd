//! `network …`: networks and who is in them (04 §13, 07 §12). The commands of members go through the daemon, which signs
//! them; those of owners do, too, or with the admin token straight to the registry, as the official tool does it.

pub(crate) mod join;
pub(crate) mod list;
pub(crate) mod manage;

use pilot::{Driver, Error};
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

/// The node behind an id, an address or a host name.
pub(super) async fn node(app: &App, driver: &Driver, target: &str) -> Result<u32, CliError> {
    match go::parse_uint(target, u64::from(u32::MAX)) {
        Ok(node) => Ok(node as u32),
        Err(_) => Ok(app.resolve(driver, target).await?.node),
    }
}

/// Waits for the answer of the daemon about networks.
pub(super) async fn ask(command: &str, answer: impl Future<Output = Result<Value, Error>>) -> Result<Value, CliError> {
    match tokio::time::timeout(crate::app::ANSWER_WAIT, answer).await {
        Ok(answer) => answer.map_err(|error| failed(command, &error)),
        Err(_) => Err(CliError::new(Code::Timeout, format!("{command}: no answer from the daemon within 1m0s"))),
    }
}

/// What a script can go by, from the words of the registry (07 §9.4), which every release passes on.
pub(super) fn code_of(text: &str) -> Code {
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if has(&["not found"]) {
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
    let failure = CliError::new(code_of(&text), message);
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
            ("not connected", Code::ConnectionFailed),
        ] {
            assert_eq!(code_of(text), code, "{text}");
        }
        assert!(id("65536").is_err() && id("x").is_err());
        assert_eq!(id("65535").ok(), Some(65_535));
    }
}
