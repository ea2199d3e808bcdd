//! `inbox`: the messages that were received (06 §6.9).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use pilot::{Driver, Stream};
use pilot_wire::json as pilot_json;
use pilot_wire::service::dataexchange::record::{self, Record};
use serde_json::{Map, Value, json};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout_at};

use super::mail;
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go::Span;
use crate::table::{Arg, Command};

/// How often the directory is looked at where the daemon does not tell.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often it is looked at anyway: somebody else may write there.
const LOOK_ANYWAY: Duration = Duration::from_secs(5);

pub(crate) const COMMAND: Command = Command {
    name: "inbox",
    args: &[
        Arg::new("[--clear]", "delete all messages"),
        Arg::new("[--follow]", "print messages as they arrive; with --json one object per line"),
        Arg::new("[--limit <n>]", "only the newest n"),
        Arg::new("[--since <when>]", "only those since a time (RFC 3339) or a span ago (2h)"),
        Arg::new("[--unread]", "only those that are not marked as read"),
        Arg::new("[--mark-read]", "mark what is shown as read; senders that asked for it get a receipt"),
        Arg::new("[--count <n>]", "with --follow: end after n messages"),
        Arg::new("[--timeout <dur>]", "with --follow: end after this time"),
    ],
    about: "list the messages that were received",
    details: "In the order of arrival. data is base64, text is there when the message is UTF-8.",
    returns: "messages [{name, type, from, data, text, bytes, received_at, message_id, reply_to, read_at}], total, dir",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

/// A message on disk.
struct Message {
    name: String,
    arrival: (Duration, u32),
    object: Map<String, Value>,
}

async fn run(app: &App, args: &Args) -> Outcome {
    let dir = mail::dir(app, "inbox")?;
    if args.is_set("clear") {
        return clear(app, &dir);
    }
    let since = mail::since(args)?;
    if args.is_set("follow") {
        return follow(app, args, &dir, since).await;
    }
    let Some(mut messages) = list(&dir, None)? else {
        app.out.result(&json!({ "messages": [], "total": 0 }), || EMPTY.into());
        return Ok(0);
    };
    if let Some(since) = since {
        messages.retain(|message| message.arrival.0 >= since);
    }
    if args.is_set("unread") {
        messages.retain(|message| !message.object.contains_key("read_at"));
    }
    let (messages, total) = mail::limit(args, messages)?;
    let marked = if args.is_set("mark-read") {
        let driver = app.driver().await?;
        let names: Vec<&str> = messages.iter().map(|message| message.name.as_str()).collect();
        Some(driver.call("inbox.read", &json!({ "names": names })).await.map_err(mail::refused)?)
    } else {
        None
    };
    let human = human(&messages);
    let shown = messages.len();
    let objects: Vec<Value> = messages.into_iter().map(Message::shown).collect();
    // The official tool lists nothing as null (06 §6.9).
    let objects = if objects.is_empty() { Value::Null } else { objects.into() };
    let mut data = json!({ "dir": dir, "messages": objects, "total": total });
    if shown != total {
        data["shown"] = shown.into();
    }
    if let Some(marked) = marked {
        data["marked"] = marked["read"].clone();
        data["receipts"] = marked["receipts"].clone();
    }
    app.out.result(&data, || human);
    Ok(0)
}

const EMPTY: &str = "inbox is empty\n  messages appear here when someone sends: \
                     pilotctl send-message <your-hostname> --data \"hello\"\n";

fn human(messages: &[Message]) -> String {
    if messages.is_empty() {
        return EMPTY.into();
    }
    let mut text = format!("Inbox ({} messages):\n\n", messages.len());
    for message in messages {
        text.push_str(&message.lines());
    }
    text.push_str("\nclear with: pilotctl inbox --clear\n");
    text
}

impl Message {
    fn shown(self) -> Value {
        let mut object = self.object;
        // What other tools wrote is shown as it is.
        if object.contains_key("text") || object.contains_key("message_id") || object.contains_key("read_at") {
            object.insert("name".into(), self.name.into());
        }
        Value::Object(object)
    }

    fn lines(&self) -> String {
        let text = |key: &str| self.object.get(key).and_then(Value::as_str).unwrap_or_default();
        let payload = Record::from_object(&self.object).map(|record| record.payload);
        let said = match payload.as_ref().map(|payload| std::str::from_utf8(payload)) {
            Some(Ok(said)) => said.to_owned(),
            Some(Err(_)) => format!("({} bytes that are no text)", payload.map_or(0, |payload| payload.len())),
            None => text("data").to_owned(),
        };
        let said: Vec<String> = said.split('\n').map(super::line).collect();
        let (at, from, kind) = (text("received_at"), text("from"), text("type").to_uppercase());
        let (at, from) = (super::line(at), super::line(from));
        format!("  [{at}] from {from} type={}\n    {}\n", super::line(&kind), said.join("\n    "))
    }
}

/// The messages of a directory in the order of arrival, but for those that are known; `None` without directory.
fn list(dir: &Path, known: Option<&BTreeSet<String>>) -> Result<Option<Vec<Message>>, CliError> {
    let failed = |error: io::Error| CliError::internal(format!("read directory: {error}"));
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut messages = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let Ok(metadata) = entry.metadata() else { continue };
        let skip = name.starts_with('.') || known.is_some_and(|known| known.contains(&name));
        if skip || !metadata.is_file() || metadata.len() > record::MAX_FILE {
            continue;
        }
        // Cleared away meanwhile, or another program's.
        let Ok(Ok(Value::Object(object))) = fs::read(entry.path()).map(|text| pilot_json::parse(&text)) else {
            continue;
        };
        let changed = metadata.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
        let arrival = record::arrival(&name).unwrap_or((changed.unwrap_or_default(), 0));
        messages.push(Message { name, arrival, object });
    }
    messages.sort_by(|a, b| (a.arrival, &a.name).cmp(&(b.arrival, &b.name)));
    Ok(Some(messages))
}

fn clear(app: &App, dir: &Path) -> Outcome {
    let cleared = remove_files(dir)?.ok_or_else(|| CliError::new(Code::NotFound, "inbox is empty"))?;
    app.out.result(&json!({ "cleared": cleared }), || format!("cleared {cleared} message(s)\n"));
    Ok(0)
}

/// Removes the files of a directory; `None` without directory.
pub(super) fn remove_files(dir: &Path) -> Result<Option<usize>, CliError> {
    let failed = |error: io::Error| CliError::internal(format!("read directory: {error}"));
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let mut removed = 0;
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            match fs::remove_file(entry.path()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(CliError::internal(format!("remove {}: {error}", entry.path().display())));
                }
                Err(_) => {}
                Ok(()) => removed += 1,
            }
        }
    }
    Ok(Some(removed))
}

/// Prints messages as they arrive.
async fn follow(app: &App, args: &Args, dir: &Path, since: Option<Duration>) -> Outcome {
    let count = args.int("count", 0)?;
    let limit = args.span("timeout", Span::seconds(0))?;
    let deadline = (limit != Span::seconds(0)).then(|| Instant::now() + limit.wait());
    let mark = args.is_set("mark-read");
    let driver = if mark { Some(app.driver().await?) } else { app.driver().await.ok() };
    // Before the first look, so that nothing falls between the two.
    let mut wakes = open(driver.as_ref()).await;
    let mut known = BTreeSet::new();
    let mut printed = 0;
    if since.is_none() {
        known.extend(list(dir, None)?.unwrap_or_default().into_iter().map(|message| message.name));
    }
    app.out.note("waiting for messages...");
    loop {
        let mut fresh = list(dir, Some(&known))?.unwrap_or_default();
        known.extend(fresh.iter().map(|message| message.name.clone()));
        fresh.retain(|message| since.is_none_or(|since| message.arrival.0 >= since));
        for message in fresh {
            if let Some(driver) = driver.as_ref().filter(|_| mark) {
                driver.call("inbox.read", &json!({ "names": [message.name] })).await.map_err(mail::refused)?;
            }
            let lines = message.lines();
            app.out.item(&message.shown(), &lines);
            printed += 1;
            if count > 0 && printed >= count {
                return Ok(0);
            }
        }
        if pilot_env::output::reader_gone() {
            return Ok(0);
        }
        let now = Instant::now();
        if deadline.is_some_and(|deadline| now >= deadline) {
            return Ok(0);
        }
        let look = now + if wakes.is_some() { LOOK_ANYWAY } else { LOOK_EVERY };
        let until = deadline.map_or(look, |deadline| deadline.min(look));
        let mut buf = [0; 4096];
        let woken = async {
            match &mut wakes {
                Some(stream) => stream.read(&mut buf).await.unwrap_or(0) > 0,
                None => std::future::pending().await,
            }
        };
        // The daemon has gone: the directory is still there.
        if let Ok(false) = timeout_at(until, woken).await {
            wakes = None;
        }
    }
}

async fn open(driver: Option<&Driver>) -> Option<Stream> {
    driver?.open("inbox.follow", &json!({})).await.ok()
}
