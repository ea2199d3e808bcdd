//! Events of the daemon (L37).

use std::collections::VecDeque;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _};

use crate::driver::Driver;
use crate::error::{CloseReason, Error, StreamError};
use crate::stream::Stream;

/// Longest line of one event. Ours are a few hundred bytes; the services' own stay below this.
const MAX_LINE: u64 = 1 << 20;
/// Name of the notice that some events were not seen.
const MISSED: &str = "missed";
/// The operation in errors.
const OP: &str = "events";

/// Something that happened in the daemon.
///
/// ```no_run
/// # fn example(event: pilot::Event) {
/// match event.kind.as_str() {
///     "trust.approved" => println!("trusted: {}", event.data["node_id"]),
///     other => println!("{} {other}", event.seq),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Event {
    /// What it is, as in `trust.approved`. `missed` stands in the place of events that were lost: because this program did
    /// not read (`count` in the data says how many), or because the daemon restarted (`restarted` is true).
    pub kind: String,
    /// The daemon's number for it: each is one more than the one before. 0 when it has none.
    pub seq: u64,
    /// When, in seconds since the Unix epoch. 0 when that is not known.
    pub at: f64,
    /// What the kind says.
    pub data: Map<String, Value>,
}

impl Event {
    fn parse(line: &[u8]) -> Result<Self, Error> {
        let bad = |why: String| Error::Unmarshal { op: OP, why };
        let Value::Object(mut data) = pilot_wire::json::parse(line).map_err(|error| bad(error.to_string()))? else {
            return Err(bad("an event is not an object".into()));
        };
        let kind = data.remove("kind").and_then(|kind| kind.as_str().map(str::to_owned)).unwrap_or_default();
        let seq = data.remove("seq").and_then(|seq| seq.as_u64()).unwrap_or_default();
        let at = data.remove("at").and_then(|at| at.as_f64()).unwrap_or_default();
        Ok(Self { kind, seq, at, data })
    }

    /// Whether it stands in the place of others that were lost.
    ///
    /// ```no_run
    /// # fn example(event: pilot::Event) {
    /// if event.is_missed() {
    ///     println!("look at everything again: some events were not seen");
    /// }
    /// # }
    /// ```
    pub fn is_missed(&self) -> bool {
        self.kind == MISSED
    }
}

/// A subscription to events; see [`Driver::events`] and [`Pilot::events`](crate::Pilot::events). Dropping it ends the
/// subscription.
///
/// ```no_run
/// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
/// let mut trust = driver.events(&["trust.*"]).await?;
/// while let Ok(event) = trust.next().await {
///     println!("{}", event.kind);
/// }
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Events {
    source: Source,
    kinds: Vec<String>,
    ready: VecDeque<Event>,
}

#[derive(Debug)]
enum Source {
    Daemon(Subscription),
    #[cfg(feature = "node")]
    Node(pilot_node::EventStream),
}

#[derive(Debug)]
struct Subscription {
    driver: Driver,
    stream: Option<Stream>,
    /// Read and not yet complete, so that giving `next` up loses nothing.
    line: Vec<u8>,
}

impl Events {
    pub(crate) async fn subscribe(driver: Driver, kinds: &[&str]) -> Result<Self, Error> {
        let kinds: Vec<String> = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let stream = Some(open(&driver, &kinds).await?);
        let source = Source::Daemon(Subscription { driver, stream, line: Vec::new() });
        Ok(Self { source, kinds, ready: VecDeque::new() })
    }

    /// Those of a node inside this program.
    #[cfg(feature = "node")]
    pub(crate) fn of_node(events: pilot_node::EventStream, kinds: &[&str]) -> Self {
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        Self { source: Source::Node(events), kinds, ready: VecDeque::new() }
    }

    /// The next event. Cancel safe.
    ///
    /// When the daemon restarts the subscription is made anew, and an event of the kind `missed` says that some may not
    /// have been seen.
    ///
    /// ```no_run
    /// # async fn example(mut events: pilot::Events) -> Result<(), Box<dyn std::error::Error>> {
    /// let event = events.next().await?;
    /// println!("{} at {}: {:?}", event.kind, event.at, event.data);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the daemon has been away for longer than
    /// [`Options::patience`](crate::Options::patience), or the driver does not reconnect; the next call tries again. (Of
    /// a node inside the program: when it has stopped.) [`Error::Unmarshal`] for an event that is not JSON.
    /// [`Error::Refused`] when the daemon ends the subscription.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let subscription = match &mut self.source {
                Source::Daemon(subscription) => subscription,
                #[cfg(feature = "node")]
                Source::Node(events) => return next_of_node(events, &self.kinds).await,
            };
            if subscription.stream.is_none() {
                let stream = match open(&subscription.driver, &self.kinds).await {
                    Err(error) if error.is_disconnected() => return Err(Error::Disconnected { op: OP }),
                    other => other?,
                };
                subscription.stream = Some(stream);
                let data = Map::from_iter([("restarted".to_owned(), Value::Bool(true))]);
                self.ready.push_back(Event { kind: MISSED.to_owned(), seq: 0, at: 0.0, data });
                continue;
            }
            if let Some(event) = subscription.read().await? {
                return Ok(event);
            }
        }
    }
}

async fn open(driver: &Driver, kinds: &[String]) -> Result<Stream, Error> {
    let params = if kinds.is_empty() { Value::Null } else { json!({ "kinds": kinds }) };
    driver.open_repeatedly("events", &params).await
}

/// The next event of a node that is among the kinds.
#[cfg(feature = "node")]
async fn next_of_node(events: &mut pilot_node::EventStream, kinds: &[String]) -> Result<Event, Error> {
    loop {
        match events.next().await {
            Ok(Some(event)) if selects(kinds, event.name) => {
                let (seq, at) = (event.number, event.time.as_secs_f64());
                return Ok(Event { kind: event.name.to_owned(), seq, at, data: event.data.clone() });
            }
            Ok(Some(_)) => {}
            Ok(None) => return Err(Error::Disconnected { op: OP }),
            Err(missed) => {
                let data = Map::from_iter([("count".to_owned(), missed.0.into())]);
                return Ok(Event { kind: MISSED.to_owned(), seq: 0, at: 0.0, data });
            }
        }
    }
}

/// Whether a kind is among those asked for: by name, or by prefix when it ends in `.*`; none means all (L37).
#[cfg(feature = "node")]
fn selects(kinds: &[String], kind: &str) -> bool {
    let one = |wanted: &String| match wanted.strip_suffix('*') {
        Some(prefix) if prefix.ends_with('.') => kind.starts_with(prefix),
        _ => wanted == kind,
    };
    kinds.is_empty() || kinds.iter().any(one)
}

impl Subscription {
    /// The next event of the stream there is; none when it has ended with the daemon.
    async fn read(&mut self) -> Result<Option<Event>, Error> {
        let Some(stream) = &mut self.stream else { return Ok(None) };
        let room = (MAX_LINE + 1).saturating_sub(self.line.len() as u64);
        let read = stream.take(room).read_until(b'\n', &mut self.line).await;
        let complete = self.line.last() == Some(&b'\n');
        match read {
            Ok(_) if complete => {
                let line = std::mem::take(&mut self.line);
                Event::parse(&line).map(Some)
            }
            Ok(_) if self.line.len() as u64 > MAX_LINE => {
                self.line.clear();
                self.stream = None;
                Err(Error::Unmarshal { op: OP, why: format!("a line of more than {MAX_LINE} bytes") })
            }
            other => {
                self.line.clear();
                self.stream = None;
                ended(&other.err())
            }
        }
    }
}

/// What the end of the stream means: another try after a restart, an error otherwise.
fn ended(error: &Option<std::io::Error>) -> Result<Option<Event>, Error> {
    match error.as_ref().and_then(StreamError::of) {
        Some(StreamError::Ended(CloseReason::DaemonGone | CloseReason::DaemonShutdown)) => Ok(None),
        Some(other) => Err(Error::Refused {
            op: OP,
            code: other.code().to_owned(),
            message: other.to_string(),
            hint: other.hint().map(str::to_owned),
        }),
        None => Err(Error::Refused {
            op: OP,
            code: "ended".to_owned(),
            message: "the daemon ended the subscription".to_owned(),
            hint: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_becomes_an_event() {
        let event = Event::parse(br#"{"seq":7,"kind":"trust.approved","at":12.5,"node_id":3}"#).unwrap();
        assert_eq!((event.kind.as_str(), event.seq, event.at), ("trust.approved", 7, 12.5));
        assert_eq!(event.data["node_id"], 3);
        assert!(!event.is_missed());
        assert!(Event::parse(br#"{"kind":"missed","count":4}"#).unwrap().is_missed());
        assert!(Event::parse(b"[]").is_err() && Event::parse(b"x").is_err());
    }

    #[cfg(feature = "node")]
    #[test]
    fn kinds_are_names_or_prefixes() {
        let selects =
            |kinds: &[&str], kind| super::selects(&kinds.iter().map(|k| (*k).into()).collect::<Vec<_>>(), kind);
        assert!(selects(&[], "trust.asked"));
        assert!(selects(&["trust.*"], "trust.asked") && selects(&["a", "trust.asked"], "trust.asked"));
        assert!(!selects(&["trust"], "trust.asked") && !selects(&["trus*"], "trust.asked"));
    }
}
