//! What programs on this host may ask of the data exchange (docs/spec/messages.md §9).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pilot_wire::service::dataexchange::message::is_id;
use pilot_wire::service::dataexchange::record::MAX_FILE;
use pilot_wire::{Address, json};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast::error::RecvError;

use super::client::Peer;
use super::inbox::Arrival;
use super::outbox::{DEADLINE, Kind, MAX_DEADLINE, Meta};
use super::server::blocking;
use super::{MAX_BODY, Rooms, Shared, new_id};
use crate::{CallError, Calling, LocalMethods, Opening, Serve, Stream};

/// Longest piece of a payload taken from a program at once.
const PIECE: usize = 256 * 1024;
/// Longest pause of a program in the middle of a payload.
const PAUSE: Duration = Duration::from_secs(60);
/// Names in one call.
const MAX_NAMES: usize = 10_000;

pub(super) struct Methods(pub(super) Arc<Shared>);

impl LocalMethods for Methods {
    fn methods(&self) -> &'static [&'static str] {
        &[
            "inbox.follow",
            "inbox.get",
            "inbox.list",
            "inbox.read",
            "messages.learn",
            "messages.peer",
            "outbox.cancel",
            "outbox.list",
            "outbox.put",
            "outbox.retry",
            "outbox.status",
        ]
    }

    fn call(&self, method: &str, args: Value) -> Calling {
        let (shared, method) = (self.0.clone(), method.to_owned());
        Box::pin(async move { call(&shared, &method, &args).await })
    }

    fn open(&self, method: &str, args: Value) -> Opening {
        let (shared, method) = (self.0.clone(), method.to_owned());
        Box::pin(async move { open(shared, &method, &args) })
    }
}

fn rooms(shared: &Shared) -> Result<&Rooms, CallError> {
    shared.rooms.as_ref().ok_or_else(|| {
        CallError::new("unavailable", "this node keeps nothing on disk")
            .hint("start the daemon with an identity file: its directory holds the messages")
    })
}

fn bad(what: impl Into<String>) -> CallError {
    CallError::new("invalid_argument", what)
}

fn text<'a>(args: &'a Value, key: &str) -> Result<&'a str, CallError> {
    args.get(key).and_then(Value::as_str).ok_or_else(|| bad(format!("{key} is missing, or not a text")))
}

fn node(args: &Value) -> Result<u32, CallError> {
    let node = args.get("node").and_then(Value::as_u64).and_then(|node| u32::try_from(node).ok());
    node.ok_or_else(|| bad("node is missing, or not a node id"))
}

async fn call(shared: &Arc<Shared>, method: &str, args: &Value) -> Result<Value, CallError> {
    let rooms = rooms(shared)?;
    match method {
        "messages.peer" => Ok(json!({ "peer": rooms.outbox.peer(node(args)?).map(Peer::to_text) })),
        "messages.learn" => {
            let peer =
                Peer::from_text(text(args, "peer")?).ok_or_else(|| bad("peer is not what messages.peer gives"))?;
            rooms.outbox.learn(node(args)?, peer);
            Ok(json!({}))
        }
        "outbox.list" => {
            let all = args.get("all").and_then(Value::as_bool).unwrap_or(false);
            Ok(json!({ "messages": rooms.outbox.list(all) }))
        }
        "outbox.status" => {
            let id = text(args, "message_id")?;
            let unknown = || CallError::new("not_found", format!("no message {id} in the outbox"));
            rooms.outbox.status(id).ok_or_else(|| unknown().hint("list them with: pilotctl outbox list --all"))
        }
        "outbox.cancel" => rooms.outbox.cancel(text(args, "message_id")?).await,
        "outbox.retry" => rooms.outbox.retry(text(args, "message_id")?).await,
        "inbox.list" => {
            let inbox = rooms.inbox.clone();
            let mut names = blocking(move || inbox.names()).await.and_then(|names| names).map_err(unlisted)?;
            let total = names.len();
            // The newest ones, when not all fit.
            names.drain(..total.saturating_sub(MAX_NAMES));
            Ok(json!({ "names": names, "total": total }))
        }
        "inbox.read" => mark_read(shared, rooms, args).await,
        other => Err(CallError::new("unknown_method", format!("{other} cannot be called"))),
    }
}

fn unlisted(error: io::Error) -> CallError {
    CallError::new("storage", format!("cannot list messages: {error}"))
}

/// Marks messages as read and queues the receipts that their senders want.
async fn mark_read(shared: &Arc<Shared>, rooms: &Rooms, args: &Value) -> Result<Value, CallError> {
    let names = match args.get("names") {
        None | Some(Value::Null) => None,
        Some(Value::Array(names)) if names.len() <= MAX_NAMES => {
            let names: Option<Vec<String>> = names.iter().map(|name| name.as_str().map(ToOwned::to_owned)).collect();
            Some(names.ok_or_else(|| bad("names must be texts"))?)
        }
        Some(_) => return Err(bad(format!("names must be a list of at most {MAX_NAMES} names"))),
    };
    let (inbox, now) = (rooms.inbox.clone(), shared.host.env.unix());
    let marking = move || {
        let names = names.map_or_else(|| inbox.names(), Ok)?;
        inbox.mark_read(&names, now)
    };
    let failed = |error: io::Error| CallError::new("storage", format!("cannot mark messages: {error}"));
    let read = blocking(marking).await.and_then(|read| read).map_err(failed)?;
    let mut receipts = 0;
    for record in read.iter().filter(|record| record.wants_receipt) {
        let (Some(message_id), Ok(to)) = (&record.message_id, record.from.parse::<Address>()) else { continue };
        let receipt = Meta {
            id: new_id(&shared.host.env),
            to,
            kind: Kind::Receipt,
            bytes: 0,
            name: String::new(),
            sha256: None,
            reply_to: Some(message_id.clone()),
            wants_receipt: false,
            created: now,
            deadline: now + DEADLINE,
            data: None,
        };
        rooms.outbox.put(receipt, |_| async { Ok(Vec::new()) }).await?;
        receipts += 1;
    }
    Ok(json!({ "read": read.len(), "receipts": receipts }))
}

fn open(shared: Arc<Shared>, method: &str, args: &Value) -> Result<Serve, CallError> {
    rooms(&shared)?;
    match method {
        "outbox.put" => {
            let put = Put::parse(&shared, args)?;
            Ok(Box::new(move |stream| Box::pin(serve_put(shared, put, stream))))
        }
        "inbox.follow" => {
            // From the opening on: nothing that comes behind it is missed.
            let arrivals = rooms(&shared)?.inbox.arrivals();
            Ok(Box::new(move |stream| Box::pin(follow(shared, arrivals, stream))))
        }
        "inbox.get" => {
            let name = text(args, "name")?.to_owned();
            // A name of a message, never a path.
            if name.contains(['/', '\0']) || name.starts_with('.') || !name.ends_with(".json") {
                return Err(bad(format!("{name:?} is not the name of a message")).hint("list them with inbox.list"));
            }
            Ok(Box::new(move |stream| Box::pin(get(shared, name, stream))))
        }
        other => Err(CallError::new("unknown_method", format!("{other} cannot be opened as a stream"))),
    }
}

/// Writes one message, as it is on disk; `null` when it was cleared away meanwhile.
async fn get(shared: Arc<Shared>, name: String, mut stream: Box<dyn Stream>) -> io::Result<()> {
    let Some(rooms) = &shared.rooms else { return Ok(()) };
    let message = record(&shared, rooms, &name).await;
    line(&mut stream, &message).await?;
    stream.shutdown().await
}

/// Until when a program that queued a message wants to hear of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    Accepted,
    Delivery,
    Read,
    Reply,
}

struct Put {
    meta: Meta,
    wait: Wait,
}

impl Put {
    fn parse(shared: &Shared, args: &Value) -> Result<Self, CallError> {
        let optional = |key: &str| match args.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(bad(format!("{key} must be a text"))),
        };
        let id = |key: &str| match optional(key)? {
            Some(text) if !is_id(&text) => {
                Err(bad(format!("{key} must have 1 to 128 characters of A–Z a–z 0–9 . _ : -")))
            }
            other => Ok(other),
        };
        let number = |key: &str| args.get(key).and_then(Value::as_u64);
        let kind = Kind::parse(text(args, "type")?).filter(|kind| *kind != Kind::Receipt);
        let kind = kind.ok_or_else(|| bad("type must be text, json, binary, file or directory"))?;
        let bytes = number("bytes").ok_or_else(|| bad("bytes is missing, or not a number"))?;
        // The header of a tagged message goes along.
        let most = u64::from(MAX_BODY) - 4096;
        if matches!(kind, Kind::Message(_)) && bytes > most {
            return Err(CallError::new(
                "too_large",
                format!("a message of {bytes} bytes; at most {most} are possible"),
            )
            .hint("send it as a file: pilotctl send-file"));
        }
        let name = optional("filename")?.unwrap_or_default();
        if matches!(kind, Kind::File | Kind::Directory) && (name.is_empty() || name.len() > 255) {
            return Err(bad("filename must have 1 to 255 bytes"));
        }
        let span = match number("deadline_ms").map(Duration::from_millis) {
            None => DEADLINE,
            Some(span) if !span.is_zero() && span <= MAX_DEADLINE => span,
            Some(_) => return Err(bad("the deadline must lie within a year")),
        };
        let wait = match optional("wait")?.as_deref() {
            None => Wait::Accepted,
            Some("delivery") => Wait::Delivery,
            Some("read") => Wait::Read,
            Some("reply") => Wait::Reply,
            Some(_) => return Err(bad("wait must be delivery, read or reply")),
        };
        let created = shared.host.env.unix();
        let meta = Meta {
            id: id("message_id")?.unwrap_or_default(),
            to: text(args, "to")?.parse().map_err(|error| bad(format!("to: {error}")))?,
            kind,
            bytes,
            name,
            sha256: None,
            reply_to: id("reply_to")?,
            wants_receipt: wait == Wait::Read || args.get("receipt").and_then(Value::as_bool).unwrap_or(false),
            created,
            deadline: created + span,
            data: None,
        };
        Ok(Self { meta, wait })
    }
}

async fn line(stream: &mut (impl AsyncWriteExt + Unpin), value: &Value) -> io::Result<()> {
    let mut text = json::to_vec(value);
    text.push(b'\n');
    stream.write_all(&text).await?;
    stream.flush().await
}

/// Takes a payload, queues it, and tells what becomes of it: one JSON object for each change.
async fn serve_put(shared: Arc<Shared>, mut put: Put, stream: Box<dyn Stream>) -> io::Result<()> {
    let Some(rooms) = &shared.rooms else { return Ok(()) };
    let (from, mut to) = tokio::io::split(stream);
    if put.meta.id.is_empty() {
        put.meta.id = new_id(&shared.host.env);
    }
    let (id, peer) = (put.meta.id.clone(), put.meta.to);
    let mut changes = rooms.outbox.changes();
    let mut arrivals = rooms.inbox.arrivals();
    let from = Arc::new(tokio::sync::Mutex::new(from));
    let read = |most: usize| {
        let from = from.clone();
        async move {
            let mut piece = vec![0; most.min(PIECE)];
            let mut from = from.lock().await;
            let n = tokio::time::timeout(PAUSE, from.read(&mut piece)).await;
            let n = n.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the program paused for too long"))??;
            piece.truncate(n);
            Ok(piece)
        }
    };
    let accepted = match rooms.outbox.put(put.meta, read).await {
        Ok(accepted) => accepted,
        Err(error) => {
            let error = json!({ "error": { "code": error.code, "message": error.message, "hint": error.hint } });
            line(&mut to, &error).await?;
            return to.shutdown().await;
        }
    };
    line(&mut to, &accepted).await?;
    let (mut last, mut half_closed) = (accepted, false);
    let ended = |value: &Value| !matches!(value["state"].as_str(), Some("queued" | "sending"));
    let failed = |value: &Value| ended(value) && !matches!(value["state"].as_str(), Some("delivered" | "read"));
    loop {
        let enough = match put.wait {
            Wait::Accepted => true,
            Wait::Delivery => ended(&last),
            Wait::Read => failed(&last) || last["state"] == "read",
            Wait::Reply => failed(&last),
        };
        if enough {
            return to.shutdown().await;
        }
        tokio::select! {
            changed = changes.recv() => match changed {
                Ok(changed) if changed != id => {}
                Err(RecvError::Closed) => return to.shutdown().await,
                // Missed some: the state says it all.
                Ok(_) | Err(RecvError::Lagged(_)) => match rooms.outbox.status(&id) {
                    Some(now) if now != last => {
                        line(&mut to, &now).await?;
                        last = now;
                    }
                    _ => {}
                },
            },
            arrival = arrivals.recv(), if put.wait == Wait::Reply => match arrival {
                Ok(arrival) if arrival.reply_to.as_deref() == Some(&id) && arrival.from.node == peer.node => {
                    let reply = record(&shared, rooms, &arrival.name).await;
                    line(&mut to, &json!({ "state": "replied", "message_id": id, "reply": reply })).await?;
                    return to.shutdown().await;
                }
                _ => {}
            },
            // Programs that wait write nothing more; one that half-closes still listens.
            more = more(&from), if !half_closed => half_closed = more.is_err(),
        }
    }
}

/// Reads and forgets what a program writes behind its payload.
async fn more(from: &tokio::sync::Mutex<impl tokio::io::AsyncRead + Unpin>) -> io::Result<u8> {
    from.lock().await.read_u8().await
}

/// A message as it is on disk.
async fn record(shared: &Arc<Shared>, rooms: &Rooms, name: &str) -> Value {
    let (env, path) = (shared.host.env.clone(), rooms.inbox.dir().join(name));
    let read = blocking(move || env.fs().read_limited(&path, MAX_FILE)).await;
    let parsed = read.ok().and_then(Result::ok).and_then(|text| json::parse(&text).ok());
    match parsed {
        Some(Value::Object(mut map)) => {
            map.insert("name".into(), name.into());
            Value::Object(map)
        }
        // Cleared away meanwhile.
        _ => Value::Null,
    }
}

/// Tells of each message that has become safe: one JSON object for each.
async fn follow(
    shared: Arc<Shared>,
    mut arrivals: tokio::sync::broadcast::Receiver<Arrival>,
    stream: Box<dyn Stream>,
) -> io::Result<()> {
    drop(shared);
    let (mut from, mut to) = tokio::io::split(stream);
    let mut byte = [0];
    loop {
        tokio::select! {
            arrival = arrivals.recv() => match arrival {
                Ok(arrival) => line(&mut to, &told(&arrival)).await?,
                Err(RecvError::Lagged(missed)) => line(&mut to, &json!({ "missed": missed })).await?,
                Err(RecvError::Closed) => return to.shutdown().await,
            },
            // Who hangs up is done.
            read = from.read(&mut byte) => if read? == 0 { return to.shutdown().await },
        }
    }
}

fn told(arrival: &Arrival) -> Value {
    let mut map = Map::new();
    map.insert("name".into(), arrival.name.as_ref().into());
    map.insert("from".into(), arrival.from.to_string().into());
    map.insert("type".into(), arrival.kind.label().into());
    map.insert("bytes".into(), arrival.bytes.into());
    let ids = [("message_id", &arrival.message_id), ("reply_to", &arrival.reply_to)];
    for (key, id) in ids.into_iter().filter_map(|(key, id)| Some((key, id.as_ref()?))) {
        map.insert(key.into(), id.clone().into());
    }
    Value::Object(map)
}
