//! What every command has at hand: the printer, the home directory, the daemon.

use std::time::Duration;

use pilot::{Address, Driver, Error, Options, SocketAddress, Stream};
use serde_json::Value;

use crate::errors::{CliError, Code};
use crate::home::Home;
use crate::printer::Printer;

/// Longest wait for an answer of the local daemon. It answers in milliseconds; what it has to ask the registry or a
/// peer for takes up to 40 s in official daemons (06 §6.7).
pub(crate) const ANSWER_WAIT: Duration = Duration::from_secs(60);
/// Longest wait for a dial: official daemons give up after 29 s or 39 s (06 §6.5).
const DIAL_WAIT: Duration = Duration::from_secs(45);

/// The surroundings of a command.
pub(crate) struct App {
    /// Output.
    pub(crate) out: Printer,
    /// `~/.pilot` and the environment.
    pub(crate) home: Home,
}

impl App {
    /// Connects to the daemon.
    ///
    /// # Errors
    /// `not_running` when none answers on the effective socket.
    pub(crate) async fn driver(&self) -> Result<Driver, CliError> {
        let socket = self.home.socket()?;
        // A command does one thing: when the daemon goes away it says so rather than wait for the next one.
        let options = Options::default().reconnect(false);
        Driver::connect_with(&socket, options).await.map_err(|error| match &error {
            // The plain cases need no more than the place, in case another was meant.
            Error::Connect { why, .. } if why.starts_with("no such file") || why == "connection refused" => {
                CliError::no_daemon().cause(format!("nothing serves the socket {socket}"))
            }
            _ => CliError::no_daemon().cause(error),
        })
    }

    /// Waits for an answer of the daemon; errors read `<command>: <driver error>`.
    ///
    /// # Errors
    /// `connection_failed` when the daemon refuses, `timeout` when it does not answer.
    pub(crate) async fn ask(
        &self,
        command: &str,
        answer: impl Future<Output = Result<Value, Error>>,
    ) -> Result<Value, CliError> {
        match tokio::time::timeout(ANSWER_WAIT, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(refused(command, error)),
            Err(_) => Err(CliError::new(Code::Timeout, format!("{command}: no answer from the daemon within 1m0s"))
                .hint("restart it with: pilotctl daemon stop && pilotctl daemon start")),
        }
    }

    /// The address behind an argument: a full address, a node id, a host name (06 §4).
    ///
    /// # Errors
    /// `not_found` in the official words, with the cause.
    pub(crate) async fn resolve(&self, driver: &Driver, target: &str) -> Result<Address, CliError> {
        if let Ok(address) = target.parse() {
            return Ok(address);
        }
        if let Ok(node) = crate::go::parse_uint(target, u64::from(u32::MAX)) {
            // The limit above makes the cast lossless.
            return Ok(Address::backbone(node as u32));
        }
        let cannot = |cause: &dyn std::fmt::Display| {
            CliError::new(
                Code::NotFound,
                format!(
                    "cannot resolve {} — is the hostname correct and is there mutual trust? (see: pilotctl handshake)",
                    crate::go::quote(target)
                ),
            )
            .cause(cause)
        };
        let answer = tokio::time::timeout(ANSWER_WAIT, driver.resolve_hostname(target)).await;
        let answer =
            answer.unwrap_or(Err(Error::Timeout { op: "resolve_hostname" })).map_err(|error| cannot(&error))?;
        let text = answer["address"].as_str().unwrap_or_default();
        let address = text.parse().map_err(|error| cannot(&error))?;
        self.out.note(&format!("resolved {} → {address}", crate::go::quote(target)));
        Ok(address)
    }

    /// The node that a word means: its id, as `parse` reads it, else its address or host name.
    ///
    /// # Errors
    /// `parse`'s, when nobody has that name either.
    pub(crate) async fn node(&self, word: &str, parse: fn(&str) -> Result<u32, CliError>) -> Result<u32, CliError> {
        let no_number = match parse(word) {
            Ok(node) => return Ok(node),
            Err(error) => error,
        };
        let Ok(driver) = self.driver().await else { return Err(no_number) };
        self.resolve(&driver, word).await.map(|address| address.node).map_err(|_| no_number)
    }

    /// Opens a stream.
    ///
    /// # Errors
    /// The driver's.
    pub(crate) async fn dial(&self, driver: &Driver, address: Address, port: u16) -> Result<Stream, Error> {
        driver.dial_timeout(SocketAddress::new(address, port), DIAL_WAIT).await
    }
}

/// A refusal by the daemon, in the official words.
pub(crate) fn refused(command: &str, error: Error) -> CliError {
    let refusal = CliError::connection(format!("{command}: {error}"));
    match error.hint() {
        Some(hint) if error.is_disconnected() => refusal.hint(hint),
        _ => refusal,
    }
}
