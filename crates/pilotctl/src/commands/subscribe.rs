//! `subscribe`: prints the events of a topic at a peer's broker (06 §6.5, docs/events.md).

use std::future::pending;

use pilot_services::events::{EventsError, Item, PORT, Received, SubscribeOptions, Subscriber};
use pilot_wire::json::text_lossy;
use pilot_wire::{base64, time};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Outcome};
use crate::go::{self, Span};
use crate::table::{Arg, Command};

const ARGS: &[Arg] = &[
    Arg::new("<address|hostname>", "whose broker: an address, a node id or a host name"),
    Arg::new("<topic>", "the topic; * is everything"),
    Arg::new("[--count <n>]", "events to wait for (default: no end)"),
    Arg::new("[--timeout <dur>]", "longest time for all of them (default: no limit)"),
    Arg::extra("[--since <number>]", "first what was published after the event with this number; 0: all that is kept"),
    Arg::extra("[--retained]", "first the retained values"),
    Arg::extra("[--pattern]", "the topic is a pattern: a/+/c, a/#"),
];
const ABOUT: &str = "print the events of a topic";
const DETAILS: &str = "  pilotctl subscribe bob news\n  pilotctl --json subscribe bob 'sensors/#' --pattern --retained\n\n\
    Without --count each event is printed as it arrives; with --json as one object per line. Exits with 0 also when\n\
    the time is up. --since, --retained and --pattern work between our own daemons only, and so do the keys number,\n\
    from and published_at of an event, and notices of events that were missed.";
const RETURNS: &str =
    "events [{topic, data, bytes, number, from, published_at}], timeout (bool). Unbounded: NDJSON per line";

pub(crate) const COMMAND: Command = Command {
    name: "subscribe",
    args: ARGS,
    about: ABOUT,
    details: DETAILS,
    returns: RETURNS,
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let topic = args.word(1);
    // The official order: mistakes on the line come to light behind the daemon and the target.
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let count = args.int("count", 0)?;
    let limit = args.span("timeout", Span::seconds(0))?;
    let since = match args.flag("since") {
        Some(text) => Some(
            go::parse_uint(text, u64::MAX)
                .map_err(|why| CliError::argument(format!("invalid number for --since: {why}")))?,
        ),
        None => None,
    };
    let asks_ours = since.is_some() || args.is_set("retained") || args.is_set("pattern");
    let nonce = (asks_ours || driver.daemon().is_some()).then(super::nonce);
    let options =
        SubscribeOptions { nonce, since, store: 0, retained: args.is_set("retained"), pattern: args.is_set("pattern") };
    let deadline = (limit != Span::seconds(0)).then(|| Instant::now() + limit.wait());
    let cannot = |cause: &dyn std::fmt::Display| {
        CliError::connection(format!("cannot subscribe on {address} (event stream port {PORT})"))
            .hint(format!("check that {address} is reachable: pilotctl ping {address}"))
            .cause(cause)
    };
    let stream = app.dial(&driver, address, PORT).await.map_err(|error| cannot(&error))?;
    let mut subscriber = Subscriber::open(stream, topic.as_bytes(), options).await.map_err(|error| failed(&error))?;
    app.out.note(&format!("subscribed to {} on {address} — waiting for events...", go::quote(topic)));
    let mut printed = Printed { app, keep: count > 0, events: Vec::new(), missed: None };
    let mut expired = false;
    let mut broken = None;
    while count <= 0 || (printed.events.len() as i64) < count {
        let item = tokio::select! {
            biased;
            () = until(deadline) => {
                expired = true;
                break;
            }
            item = subscriber.next() => item,
        };
        match item {
            Ok(Some(item)) => printed.item(item),
            // Events that came before the end are a result all the same.
            Ok(None) if !printed.events.is_empty() => {
                broken = Some("EOF".to_owned());
                break;
            }
            Ok(None) => return Err(CliError::connection("recv: EOF")),
            Err(EventsError::Io(error)) if !printed.events.is_empty() => {
                broken = Some(error.to_string());
                break;
            }
            Err(error) => return Err(failed(&error)),
        }
        if pilot_env::output::reader_gone() {
            break;
        }
    }
    subscriber.close().await;
    if expired {
        app.out.note("timeout");
    }
    if count > 0 {
        app.out.result(&printed.result(expired, broken), String::new);
    }
    Ok(0)
}

/// An error of the stream or the broker.
fn failed(error: &EventsError) -> CliError {
    let text = match error {
        EventsError::Io(error) => format!("recv: {error}"),
        other => other.to_string(),
    };
    let failure = CliError::connection(text);
    match error {
        EventsError::NotSupported(_) => {
            failure.hint("the peer runs an official daemon: subscribe without --since, --retained and --pattern")
        }
        _ => failure,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// What came so far.
struct Printed<'a> {
    app: &'a App,
    keep: bool,
    events: Vec<Value>,
    missed: Option<u64>,
}

impl Printed<'_> {
    fn item(&mut self, item: Item) {
        match item {
            Item::CaughtUp => {}
            Item::Missed(count) => {
                *self.missed.get_or_insert(0) += count;
                let said =
                    if count == 0 { "events are no longer kept".to_owned() } else { format!("missed {count} events") };
                self.app.out.note(&said);
                if !self.keep {
                    self.app.out.item(&json!({ "missed": count }), "");
                }
            }
            Item::Event(event) => {
                let human = format!("[{}] {}\n", text_lossy(&event.topic), text_lossy(&event.payload));
                let value = object(&event);
                if self.keep {
                    self.app.out.text(&human);
                    self.events.push(value);
                } else {
                    self.app.out.item(&value, &human);
                }
            }
        }
    }

    fn result(self, expired: bool, broken: Option<String>) -> Value {
        let events = if self.events.is_empty() { Value::Null } else { Value::Array(self.events) };
        let mut result = json!({ "events": events, "timeout": expired });
        if let Some(why) = broken {
            result["error"] = why.into();
        }
        if let Some(missed) = self.missed {
            result["missed"] = missed.into();
        }
        result
    }
}

fn object(event: &Received) -> Value {
    let mut value = json!({
        "topic": text_lossy(&event.topic), "data": text_lossy(&event.payload), "bytes": event.payload.len()
    });
    // What is no text would be lost otherwise.
    if std::str::from_utf8(&event.payload).is_err() {
        value["data_base64"] = base64::encode(&event.payload).into();
    }
    if let Some(origin) = event.origin {
        value["number"] = origin.number.into();
        value["from"] = origin.from.addr.to_string().into();
        value["published_at"] = time::rfc3339_nanos(std::time::Duration::from_millis(origin.time_ms)).into();
        for (key, set) in [("retained", origin.retained), ("replayed", origin.replayed)] {
            if set {
                value[key] = true.into();
            }
        }
    }
    value
}
