//! What the commands for messages and files share: the outbox of the daemon, what is known of peers, errors, directories.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pilot::{Address, Driver, Error};
use pilot_services::dataexchange::{Peer, SendError, Source};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go::{self, Span};
use crate::table::Arg;

pub(super) const MESSAGE_ID: Arg =
    Arg::extra("[--message-id <id>]", "its id; sent again with the same id it is stored once (default: a fresh one)");
pub(super) const REPLY_TO: Arg = Arg::extra("[--reply-to <id>]", "the id of the message that it answers");

/// Bytes given to the daemon at once.
const PIECE: usize = 256 * 1024;

/// Where the daemon of this home keeps messages and files.
pub(super) fn dir(app: &App, name: &str) -> Result<PathBuf, CliError> {
    let config = app.home.load()?;
    let identity = app.home.identity(&config)?;
    Ok(identity.parent().map(|dir| dir.join(name)).unwrap_or_else(|| PathBuf::from(name)))
}

/// Whether a message goes through the outbox: asked for, waited for, or configured.
pub(super) fn wants_queue(app: &App, args: &Args) -> Result<bool, CliError> {
    if args.flag("queue").is_some() || args.flag("wait").is_some() {
        return Ok(args.is_set("queue") || args.flag("wait").is_some());
    }
    match app.home.load()?.0.get("queue") {
        None | Some(Value::Null | Value::Bool(false)) => Ok(false),
        Some(Value::Bool(true)) => Ok(true),
        Some(Value::String(text)) if text == "true" => Ok(true),
        Some(Value::String(text)) if matches!(text.as_str(), "" | "false") => Ok(false),
        Some(other) => Err(CliError::argument(format!("config key \"queue\" must be true or false, not {other}"))
            .hint("set it with: pilotctl config --set queue=true")),
    }
}

/// What the daemon remembers of a peer. Official daemons remember nothing.
pub(super) async fn known(driver: &Driver, address: Address) -> Option<Peer> {
    let answer = driver.call("messages.peer", &json!({ "node": address.node })).await.ok()?;
    Peer::from_text(answer["peer"].as_str()?)
}

/// Lets the daemon remember it. Not being able to costs a question next time.
pub(super) async fn learn(driver: &Driver, address: Address, peer: Peer) {
    let _ = driver.call("messages.learn", &json!({ "node": address.node, "peer": peer.to_text() })).await;
}

/// A dial that failed.
pub(super) fn no_dial(error: &Error) -> SendError {
    SendError::Dial { code: error.code().to_owned(), message: error.to_string() }
}

/// Why nothing was sent, or why it is not known.
pub(super) fn not_sent(error: &SendError, address: Address, id: Option<&str>) -> CliError {
    let again = |command: &str| id.map(|id| format!("{command} --message-id {id}")).unwrap_or_default();
    match error {
        SendError::Dial { message, .. } => {
            CliError::connection(format!("cannot connect to {address} (data exchange port 1001)"))
                .hint("add --queue to have it delivered once the peer can be reached")
                .cause(message)
        }
        SendError::NoAck(_) | SendError::UnexpectedAck { .. } => CliError::connection(error.to_string())
            .hint(format!("sending it again is safe with its id where the peer knows ids: {}", again("add"))),
        SendError::TooLarge { .. } => {
            CliError::argument(error.to_string()).hint("send it in parts, or have the peer updated")
        }
        SendError::Source(_) => CliError::internal(error.to_string()),
        SendError::Refused { .. } if !error.is_final() => {
            CliError::connection(error.to_string()).hint("add --queue to have it tried again until it fits")
        }
        _ => CliError::connection(error.to_string()),
    }
    .with_ack(error.ack())
}

/// A refusal of a method of the daemon.
pub(super) fn refused(error: Error) -> CliError {
    let code = match error.code() {
        "invalid_argument" | "too_large" => Code::InvalidArgument,
        "not_found" => Code::NotFound,
        "not_running" => Code::NotRunning,
        "storage" => Code::Internal,
        _ => Code::ConnectionFailed,
    };
    let message = match error.is_unsupported() {
        true => "this daemon has no outbox and no marks for its inbox".to_owned(),
        false => error.to_string(),
    };
    let hint = error.hint();
    let refusal = CliError::new(code, message);
    match hint {
        Some(hint) => refusal.hint(hint),
        None => refusal,
    }
}

/// The refusal in a line of the outbox.
fn refused_line(error: &Value) -> CliError {
    let text = |key: &str| error[key].as_str().unwrap_or_default();
    let code = match text("code") {
        "invalid_argument" | "too_large" => Code::InvalidArgument,
        "storage" => Code::Internal,
        _ => Code::ConnectionFailed,
    };
    let refusal = CliError::new(code, text("message"));
    if text("hint").is_empty() { refusal } else { refusal.hint(text("hint")) }
}

/// Puts a message or file into the daemon's outbox, and waits for what `--wait` names.
pub(super) async fn queue(app: &App, driver: &Driver, args: &Args, mut put: Value, source: Arc<dyn Source>) -> Outcome {
    if let Some(wait) = args.flag("wait") {
        if !matches!(wait, "delivery" | "read" | "reply") {
            return Err(CliError::argument(format!(
                "invalid --wait: {} (use delivery, read, or reply)",
                go::quote(wait)
            )));
        }
        put["wait"] = wait.into();
    }
    if args.flag("deadline").is_some() {
        let span = args.span("deadline", Span::seconds(0))?.wait();
        put["deadline_ms"] = u64::try_from(span.as_millis()).unwrap_or(u64::MAX).into();
    }
    let limit = match args.flag("timeout") {
        Some(_) => Some(args.span("timeout", Span::seconds(0))?),
        None => None,
    };
    let mut stream = driver.open("outbox.put", &put).await.map_err(refused)?;
    let lost = |error: io::Error| CliError::connection(format!("the daemon went away: {error}"));
    let mut at = 0;
    while at < source.len() {
        let reading = source.clone();
        let piece = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let n = reading.read_at(at, &mut piece)?;
            piece.truncate(n);
            Ok::<_, io::Error>(piece)
        });
        let piece = piece.await.map_err(io::Error::other).and_then(|read| read);
        let piece = piece.map_err(|error| CliError::internal(format!("read: {error}")))?;
        if piece.is_empty() {
            return Err(CliError::internal("read: it became shorter while it was read"));
        }
        at += piece.len() as u64;
        // Refused before its end: the reason waits to be read.
        if stream.write_all(&piece).await.is_err() {
            break;
        }
    }
    stream.flush().await.map_err(lost)?;
    let mut lines = BufReader::new(stream).lines();
    let mut last: Map<String, Value> = Map::new();
    let waiting = async {
        while let Some(line) = lines.next_line().await.map_err(lost)? {
            let Ok(Value::Object(state)) = pilot_wire::json::parse(line.as_bytes()) else {
                return Err(CliError::connection(format!("the daemon answered {}", go::quote(&line))));
            };
            if let Some(error) = state.get("error") {
                return Err(refused_line(error));
            }
            app.out.note(&format!("{}: {}", state["message_id"].as_str().unwrap_or_default(), label(&state)));
            last.extend(state);
        }
        Ok(())
    };
    match limit {
        None => waiting.await?,
        Some(limit) => match tokio::time::timeout(limit.wait(), waiting).await {
            Ok(waited) => waited?,
            Err(_) => {
                let id = last.get("message_id").and_then(Value::as_str).unwrap_or_default();
                let (what, state) = (args.flag("wait").unwrap_or("acceptance"), label(&last));
                return Err(CliError::new(Code::Timeout, format!("no {what} within {limit}; the message is {state}"))
                    .hint(format!("it goes on by itself; see: pilotctl outbox status {id}")));
            }
        },
    }
    if last.is_empty() {
        return Err(CliError::connection("the daemon went away before it had taken the message"));
    }
    match label(&last) {
        state @ ("expired" | "refused" | "cancelled") => {
            let reason = last.get("reason").and_then(Value::as_str).unwrap_or("no reason was given");
            let ack = last.get("ack").and_then(Value::as_str);
            Err(CliError::connection(format!("the message is {state}: {reason}"))
                .hint("it is kept; see: pilotctl outbox list")
                .with_ack(ack))
        }
        _ => {
            last.insert("target".into(), put["to"].clone());
            last.insert("queued".into(), true.into());
            app.out.object(&Value::Object(last));
            Ok(0)
        }
    }
}

fn label(state: &Map<String, Value>) -> &str {
    state.get("state").and_then(Value::as_str).unwrap_or("unknown")
}

/// A point in time: RFC 3339, or a span before now.
pub(super) fn since(args: &Args) -> Result<Option<Duration>, CliError> {
    let Some(text) = args.flag("since") else { return Ok(None) };
    if let Some(at) = pilot_wire::time::parse_rfc3339(text) {
        return Ok(Some(at));
    }
    let span = Span::parse(text).map_err(|_| {
        CliError::argument(format!("invalid --since: {}", go::quote(text)))
            .hint("give a time (2026-02-27T10:11:12Z) or how long ago (2h)")
    })?;
    Ok(Some(pilot_env::Env::real().unix().saturating_sub(span.wait())))
}

/// The last `--limit` of a list, and how many there were.
pub(super) fn limit<T>(args: &Args, mut list: Vec<T>) -> Result<(Vec<T>, usize), CliError> {
    let total = list.len();
    match args.int("limit", 0)? {
        n if n < 0 => Err(CliError::argument(format!("invalid --limit: {n} is negative"))),
        0 => Ok((list, total)),
        n => {
            let first = total.saturating_sub(usize::try_from(n).unwrap_or(usize::MAX));
            list.drain(..first);
            Ok((list, total))
        }
    }
}
