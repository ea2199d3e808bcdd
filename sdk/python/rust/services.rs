//! Messages, files and events at peers; what happens at the own node.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use pilot::{Address, SocketAddress, Stream};
use pilot_env::Env;
use pilot_services::dataexchange::{self, Client, FileToSend, MessageToSend, MessageType, Peer, SendError, Source};
use pilot_services::events::{Item, PORT, Publisher, SubscribeOptions, Subscriber};
use pilot_wire::json::text_lossy;
use pilot_wire::service::dataexchange::message::{Tag, is_id};
use pilot_wire::service::dataexchange::ours::Transfer;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use serde_json::{Value, json};
use tokio::sync::OwnedMutexGuard;
use tokio_util::sync::CancellationToken;

use crate::convert::Json;
use crate::errors::{Failure, Kind, code};
use crate::network::Backend;
use crate::op::Op;
use crate::runtime::Owned;
use crate::scope::{Ends, Entry, Scope};
use crate::stream::Data;

fn optional<'a>(args: &'a Value, key: &str) -> Option<&'a str> {
    args.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

fn id(args: &Value, key: &str) -> Result<Option<String>, Failure> {
    match optional(args, key) {
        Some(id) if !is_id(id) => Err(Failure::argument(format!("invalid {key}: {id:?}"))
            .hint("ids have 1 to 128 characters of A-Z a-z 0-9 . _ : -")),
        other => Ok(other.map(str::to_owned)),
    }
}

async fn target(backend: &Backend, args: &Value) -> Result<Address, Failure> {
    backend.resolve(args["target"].as_str().unwrap_or_default()).await
}

/// What the node remembers of the peer.
async fn known(backend: &Backend, to: Address) -> Option<Peer> {
    let answer = backend.pilot().call("messages.peer", &json!({ "node": to.node })).await.ok()?;
    Peer::from_text(answer["peer"].as_str()?)
}

/// Lets the node remember it. Not being able to costs a question next time.
async fn learn(backend: &Backend, to: Address, peer: Peer) {
    let _ = backend.pilot().call("messages.learn", &json!({ "node": to.node, "peer": peer.to_text() })).await;
}

async fn dial(backend: &Backend, to: Address) -> Result<Stream, SendError> {
    let dialled = backend.pilot().dial(SocketAddress::new(to, dataexchange::PORT)).await;
    dialled.map_err(|error| SendError::Dial { code: code(&error).to_owned(), message: error.to_string() })
}

/// What came of sending. That the daemon went away meanwhile says more than that the stream to the peer did.
fn outcome<T>(backend: &Backend, sent: Result<T, SendError>) -> Result<T, Failure> {
    sent.map_err(|error| {
        let broke = matches!(error, SendError::Write(_) | SendError::NoAck(_));
        let mut failure = Failure::from(error);
        if broke && !backend.is_connected() {
            failure.kind = Kind::Daemon;
        }
        failure
    })
}

pub(crate) async fn send_message(backend: &Backend, args: &Value, data: Vec<u8>) -> Result<Value, Failure> {
    let label = optional(args, "type").unwrap_or("text");
    let kind = MessageType::ALL.into_iter().find(|kind| kind.label() == label);
    let kind = kind.ok_or_else(|| {
        Failure::argument(format!("unknown type {label:?}")).hint("use text, binary or json; files go with send_file")
    })?;
    let message_id = id(args, "message_id")?.unwrap_or_else(|| dataexchange::new_id(&Env::real()));
    let reply_to = id(args, "reply_to")?;
    let to = target(backend, args).await?;
    let bytes = data.len();
    let message = MessageToSend {
        kind,
        payload: Arc::new(Bytes::from(data)),
        tag: Tag { message_id: Some(message_id.clone()), reply_to: reply_to.clone(), wants_receipt: false },
        trace: None,
    };
    let mut client = Client::new(dial(backend, to).await?, known(backend, to).await);
    // A peer that hangs up on a greeting is spoken to like those of old.
    if client.peer().await.is_err() {
        client = Client::new(dial(backend, to).await?, Some(Peer::Plain));
    }
    let sent = client.send(&message).await;
    if let Some(peer) = client.known() {
        learn(backend, to, peer).await;
    }
    // What counts is the acknowledgement; a peer that is gone behind it has stored the message.
    let _ = client.into_inner().close().await;
    let delivery = outcome(backend, sent)?;
    Ok(json!({
        "sent": bytes, "type": label, "target": to.to_string(), "ack": delivery.ack, "tagged": delivery.tagged,
        "duplicate": delivery.duplicate, "message_id": message_id, "reply_to": reply_to,
    }))
}

struct OpenFile {
    file: std::fs::File,
    len: u64,
}

impl Source for OpenFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        let mut filled = 0;
        while filled < most {
            let part = buf.get_mut(filled..most).unwrap_or_default();
            match self.file.read_at(part, offset + filled as u64)? {
                0 => break,
                n => filled += n,
            }
        }
        Ok(filled)
    }
}

pub(crate) async fn send_file(backend: &Backend, args: &Value, path: &Path) -> Result<Value, Failure> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::new(Kind::Argument, "not_found", format!("File not found: {}", path.display()))
        }
        _ => Failure::new(Kind::Argument, "unreadable", format!("read {}: {error}", path.display())),
    };
    let there = path.to_owned();
    // Looked at before it is opened: opening a pipe waits for somebody to write. And not on a thread of the network.
    let opened = tokio::task::spawn_blocking(move || {
        let looked = std::fs::metadata(&there)?;
        let file = if looked.is_file() { Some(std::fs::File::open(&there)?) } else { None };
        file.map(|file| Ok((file.metadata()?, file))).transpose()
    });
    let opened = opened.await.map_err(|error| Failure::internal(format!("open: {error}")))?;
    let Some((metadata, file)) = opened.map_err(unreadable)? else {
        return Err(Failure::argument(format!("{} is not a file", path.display()))
            .hint("a directory goes with: pilotctl send-file"));
    };
    let own = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name = optional(args, "filename").map_or(own, str::to_owned);
    let message_id = id(args, "message_id")?.unwrap_or_else(|| dataexchange::new_id(&Env::real()));
    let reply_to = id(args, "reply_to")?;
    let to = target(backend, args).await?;
    let source: Arc<dyn Source> = Arc::new(OpenFile { file, len: metadata.len() });
    let sha256 = dataexchange::hash(&source).await.map_err(unreadable)?;
    let transfer = Transfer { message_id: Some(message_id.clone()), reply_to: reply_to.clone(), tree: false };
    let file = FileToSend { name: name.clone(), source, sha256, transfer };
    let before = known(backend, to).await;
    let (peer, sent) = dataexchange::send_file(|| dial(backend, to), before, &file, &mut |_| {}).await;
    if let Some(peer) = peer.filter(|peer| Some(*peer) != before) {
        learn(backend, to, peer).await;
    }
    let delivery = outcome(backend, sent)?;
    Ok(json!({
        "sent": metadata.len(), "filename": name, "target": to.to_string(), "ack": delivery.ack,
        "tagged": delivery.tagged, "duplicate": delivery.duplicate, "resumed": delivery.resumed,
        "message_id": message_id, "reply_to": reply_to,
    }))
}

fn nonce() -> [u8; 16] {
    let mut nonce = [0; 16];
    Env::real().fill_random(&mut nonce);
    nonce
}

pub(crate) async fn publish(
    backend: &Backend,
    target: &str,
    topic: &str,
    data: &[u8],
    retain: bool,
) -> Result<Value, Failure> {
    use pilot_services::events::Delivery;
    let to = backend.resolve(target).await?;
    let stream = backend.pilot().dial(SocketAddress::new(to, PORT)).await?;
    let mark = (retain || backend.is_ours()).then(nonce);
    let mut publisher = Publisher::open(stream, topic.as_bytes(), mark, retain).await?;
    publisher.publish(topic.as_bytes(), data).await?;
    let mut result = json!({ "status": "published", "topic": topic, "bytes": data.len(), "target": to.to_string() });
    match publisher.finish().await? {
        Delivery::Stored { number } => {
            result["delivery"] = "stored".into();
            result["number"] = number.into();
        }
        Delivery::Received => result["delivery"] = "received".into(),
    }
    Ok(result)
}

pub(crate) async fn subscribe(
    backend: &Backend,
    target: &str,
    topic: &str,
    since: Option<u64>,
    retained: bool,
    pattern: bool,
) -> Result<Subscriber<Stream>, Failure> {
    let to = backend.resolve(target).await?;
    let stream = backend.pilot().dial(SocketAddress::new(to, PORT)).await?;
    let asks_ours = since.is_some() || retained || pattern;
    let mark = (asks_ours || backend.is_ours()).then(nonce);
    let options = SubscribeOptions { nonce: mark, since, store: 0, retained, pattern };
    let mut subscriber = Subscriber::open(stream, topic.as_bytes(), options).await?;
    if mark.is_some() {
        // Once a broker of ours has said so, nothing published from here on is missed. An official one says nothing.
        let welcome = tokio::time::timeout(WELCOME_WAIT, subscriber.is_welcome()).await;
        if let Ok(welcome) = welcome {
            welcome?;
        }
    }
    Ok(subscriber)
}

/// Longest wait for a broker's welcome: official ones send none.
const WELCOME_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

/// A subscription at a broker.
#[pyclass(frozen, module = "pilot._pilot")]
pub(crate) struct Subscription(Owned<Arc<Followed<Subscriber<Stream>, Item>>>);

/// Something of which the next item is awaited.
struct Followed<S, T> {
    source: tokio::sync::Mutex<Option<S>>,
    /// Held until an item is handed out or given back, so that items keep their order.
    turn: Arc<tokio::sync::Mutex<()>>,
    back: Mutex<VecDeque<T>>,
    closed: CancellationToken,
    _entry: Entry,
}

impl<S: Send + 'static, T: Send + 'static> Ends for Followed<S, T> {
    fn end(self: Arc<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            self.closed.cancel();
            // Dropped, it says goodbye by itself.
            drop(self.source.lock().await.take());
        })
    }
}

impl<S: Send + 'static, T: Send + 'static> Followed<S, T> {
    fn new(source: S, scope: &Arc<Scope>) -> Owned<Arc<Self>> {
        Owned::new(scope.add(|entry| Self {
            source: tokio::sync::Mutex::new(Some(source)),
            turn: Arc::default(),
            back: Mutex::default(),
            closed: scope.closing.child_token(),
            _entry: entry,
        }))
    }

    async fn next(
        &self,
        next: impl AsyncFnOnce(&mut S) -> Result<Option<T>, Failure>,
    ) -> Result<(Option<T>, OwnedMutexGuard<()>), Failure> {
        let turn = tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(Failure::closed("subscription closed")),
            turn = Arc::clone(&self.turn).lock_owned() => turn,
        };
        let mut source = self.source.lock().await;
        if let Some(item) = self.back.lock().pop_front() {
            return Ok((Some(item), turn));
        }
        let Some(source) = source.as_mut() else { return Err(Failure::closed("subscription closed")) };
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(Failure::closed("subscription closed")),
            item = next(source) => Ok((item?, turn)),
        }
    }
}

/// An item of a broker, for Python: a dictionary, or nothing at the end.
struct Told(Option<Item>, OwnedMutexGuard<()>);

impl<'py> IntoPyObject<'py> for Told {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        let dict = PyDict::new(py);
        match self.0 {
            None => return Ok(py.None().into_bound(py)),
            Some(Item::CaughtUp) => dict.set_item("caught_up", true)?,
            Some(Item::Missed(count)) => dict.set_item("missed", count)?,
            Some(Item::Event(event)) => {
                dict.set_item("topic", text_lossy(&event.topic))?;
                dict.set_item("data", Data(event.payload.to_vec()))?;
                if let Some(origin) = event.origin {
                    dict.set_item("number", origin.number)?;
                    dict.set_item("from", origin.from.addr.to_string())?;
                    dict.set_item("published_at", origin.time_ms as f64 / 1000.0)?;
                    dict.set_item("retained", origin.retained)?;
                    dict.set_item("replayed", origin.replayed)?;
                }
            }
        }
        Ok(dict.into_any())
    }
}

impl Subscription {
    pub(crate) fn new(subscriber: Subscriber<Stream>, scope: &Arc<Scope>) -> Self {
        Self(Followed::new(subscriber, scope))
    }
}

#[pymethods]
impl Subscription {
    /// The next item, a dictionary; `None` at the end.
    fn next(&self) -> PyResult<Op> {
        let followed = Arc::clone(self.0.get()?);
        let again = Arc::clone(&followed);
        let work = async move {
            let next = followed.next(async |subscriber: &mut Subscriber<Stream>| Ok(subscriber.next().await?)).await;
            next.map(|(item, turn)| Told(item, turn))
        };
        Ok(Op::returning(work, move |Told(item, _turn)| again.back.lock().extend(item)))
    }

    /// Ends the subscription.
    fn close(&self) -> PyResult<Op> {
        let followed = Arc::clone(self.0.get()?);
        Ok(Op::new(async move {
            followed.closed.cancel();
            if let Some(subscriber) = followed.source.lock().await.take() {
                subscriber.close().await;
            }
            Ok(())
        }))
    }
}

/// What happens at the node.
#[pyclass(frozen, module = "pilot._pilot")]
pub(crate) struct Events(Owned<Arc<Followed<pilot::Events, pilot::Event>>>);

struct Happened(pilot::Event, OwnedMutexGuard<()>);

impl<'py> IntoPyObject<'py> for Happened {
    type Target = pyo3::types::PyTuple;
    type Output = Bound<'py, pyo3::types::PyTuple>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        let event = self.0;
        (event.kind, event.seq, event.at, Json(Value::Object(event.data))).into_pyobject(py)
    }
}

impl Events {
    pub(crate) fn new(events: pilot::Events, scope: &Arc<Scope>) -> Self {
        Self(Followed::new(events, scope))
    }
}

#[pymethods]
impl Events {
    /// The next event: kind, number, time, data.
    fn next(&self) -> PyResult<Op> {
        let followed = Arc::clone(self.0.get()?);
        let again = Arc::clone(&followed);
        let work = async move {
            let next = followed.next(async |events: &mut pilot::Events| Ok(Some(events.next().await?))).await?;
            let (event, turn) = next;
            event.map(|event| Happened(event, turn)).ok_or_else(|| Failure::closed("subscription closed"))
        };
        Ok(Op::returning(work, move |Happened(event, _turn)| again.back.lock().push_front(event)))
    }

    /// Ends the subscription.
    fn close(&self) -> PyResult<Op> {
        let followed = Arc::clone(self.0.get()?);
        Ok(Op::new(async move {
            followed.closed.cancel();
            followed.source.lock().await.take();
            Ok(())
        }))
    }
}
