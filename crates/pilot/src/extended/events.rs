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

/// Something that happened in the daemon.
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
        let bad = |why: String| Error::Unmarshal { op: "events", why };
        let Value::Object(mut data) = pilot_wire::json::parse(line).map_err(|error| bad(error.to_string()))? else {
            return Err(bad("an event is not an object".into()));
        };
        let kind = data.remove("kind").and_then(|kind| kind.as_str().map(str::to_owned)).unwrap_or_default();
        let seq = data.remove("seq").and_then(|seq| seq.as_u64()).unwrap_or_default();
        let at = data.remove("at").and_then(|at| at.as_f64()).unwrap_or_default();
        Ok(Self { kind, seq, at, data })
    }

    /// Whether it stands in the place of others that were lost.
    pub fn is_missed(&self) -> bool {
        self.kind == MISSED
    }
}

/// A subscription to events; see [`Driver::events`]. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Events {
    driver: Driver,
    kinds: Vec<String>,
    stream: Option<Stream>,
    /// Read and not yet complete, so that giving `next` up loses nothing.
    line: Vec<u8>,
    ready: VecDeque<Event>,
}

impl Events {
    pub(crate) async fn subscribe(driver: Driver, kinds: &[&str]) -> Result<Self, Error> {
        let kinds = kinds.iter().map(|kind| (*kind).to_owned()).collect();
        let mut events = Self { driver, kinds, stream: None, line: Vec::new(), ready: VecDeque::new() };
        events.stream = Some(events.open().await?);
        Ok(events)
    }

    async fn open(&self) -> Result<Stream, Error> {
        let params = if self.kinds.is_empty() { Value::Null } else { json!({ "kinds": self.kinds }) };
        self.driver.open("events", &params).await
    }

    /// The next event. Cancel safe.
    ///
    /// When the daemon restarts the subscription is made anew, and an event of the kind `missed` says that some may not
    /// have been seen.
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the daemon has been away for longer than
    /// [`Options::patience`](crate::Options::patience), or the driver does not reconnect; the next call tries again.
    /// [`Error::Unmarshal`] for an event that is not JSON. [`Error::Refused`] when the daemon ends the subscription.
    pub async fn next(&mut self) -> Result<Event, Error> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            if self.stream.is_none() {
                let stream = match self.open().await {
                    Err(error) if error.is_disconnected() => return Err(Error::Disconnected { op: "events" }),
                    other => other?,
                };
                self.stream = Some(stream);
                let data = Map::from_iter([("restarted".to_owned(), Value::Bool(true))]);
                self.ready.push_back(Event { kind: MISSED.to_owned(), seq: 0, at: 0.0, data });
                continue;
            }
            if let Some(event) = self.read().await? {
                return Ok(event);
            }
        }
    }

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
                Err(Error::Unmarshal { op: "events", why: format!("a line of more than {MAX_LINE} bytes") })
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
    const OP: &str = "events";
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
}
