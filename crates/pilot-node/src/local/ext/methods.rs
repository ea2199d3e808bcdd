//! Methods that every daemon has (L35), for programs on this host and for programs that embed a node.

use std::io;
use std::sync::{Arc, Weak};

use pilot_proto::endpoint::ConnId;
use pilot_services::{CallError, Calling, LocalMethods, Opening, Serve, Serving, Stream};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{networks, official};
use crate::events::{EventStream, NodeEvent};
use crate::node::Shared;

/// A call about a stream of the client that asks, so the local server answers it itself.
pub(super) const DELIVERED: &str = "delivered";
/// Elements of a list unless asked otherwise.
const DEFAULT_LIMIT: u64 = 1000;
/// Kinds one subscription may name.
const MAX_KINDS: usize = 64;

/// The names of all methods, sorted.
pub(super) fn names(node: &Shared) -> Vec<&'static str> {
    let mut names = node.methods.names();
    names.push(DELIVERED);
    names.sort_unstable();
    names
}

/// The daemon's own methods. They do not keep the node alive.
pub(crate) struct NodeMethods(pub(crate) Weak<Shared>);

type Answer = Result<Value, CallError>;

pub(super) fn invalid(why: impl Into<String>) -> CallError {
    CallError::new("invalid_argument", why)
}

/// A number of the arguments, or `default` when it is absent.
pub(super) fn number(args: &Value, name: &str, default: u64) -> Result<u64, CallError> {
    match args.get(name) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => value.as_u64().ok_or_else(|| invalid(format!("{name} is not a number from 0 up"))),
    }
}

fn limit(args: &Value) -> Result<usize, CallError> {
    number(args, "limit", DEFAULT_LIMIT).map(|limit| usize::try_from(limit).unwrap_or(usize::MAX))
}

impl NodeMethods {
    fn answer(&self, method: &str, args: &Value) -> Answer {
        let node = self.node()?;
        Ok(match method {
            "health" => node.health(),
            "info" => node.info(),
            "methods" => json!({ "methods": names(&node) }),
            "connections" => node.connections(limit(args)?),
            "peers" => node.peers(limit(args)?),
            "disconnect" => {
                let conn = number(args, "connection", 0)?;
                let id = u32::try_from(conn).ok().filter(|id| *id != 0).ok_or_else(|| invalid("which connection?"))?;
                let known = node.engine.with(|core, now| core.close_any(now, ConnId(id)));
                json!({ "connection": id, "known": known })
            }
            _ => return Err(CallError::new("unknown_method", format!("{method} is opened as a stream, not called"))),
        })
    }

    fn node(&self) -> Result<Arc<Shared>, CallError> {
        self.0.upgrade().ok_or_else(|| CallError::new("daemon_shutdown", "the node has stopped"))
    }

    fn follow(&self, args: &Value) -> Result<Serve, CallError> {
        let kinds = match args.get("kinds") {
            None | Some(Value::Null) => None,
            Some(Value::Array(list)) if list.len() <= MAX_KINDS => {
                let kinds: Option<Vec<String>> = list.iter().map(|kind| kind.as_str().map(str::to_owned)).collect();
                Some(kinds.ok_or_else(|| invalid("kinds is a list of names"))?)
            }
            Some(_) => return Err(invalid(format!("kinds is a list of at most {MAX_KINDS} names"))),
        };
        // Subscribed before the answer leaves, so nothing after it is missed.
        let events = self.node()?.events.subscribe();
        Ok(Box::new(move |stream| -> Serving { Box::pin(write_events(events, kinds, stream)) }))
    }
}

impl LocalMethods for NodeMethods {
    fn methods(&self) -> &'static [&'static str] {
        static ALL: std::sync::LazyLock<Vec<&'static str>> = std::sync::LazyLock::new(|| {
            let own = ["connections", "disconnect", "events", "health", "info", "methods", "peers"];
            own.into_iter().chain(official::NAMES).chain(networks::NAMES).collect()
        });
        &ALL
    }

    fn call(&self, method: &str, args: Value) -> Calling {
        let (own, method) = (Self(self.0.clone()), method.to_owned());
        Box::pin(async move {
            if official::NAMES.contains(&&method[..]) {
                return official::call(&own.node()?, &method, &args).await;
            }
            if networks::NAMES.contains(&&method[..]) {
                return networks::call(&own.node()?, &method, &args).await;
            }
            own.answer(&method, &args)
        })
    }

    fn open(&self, method: &str, args: Value) -> Opening {
        let opened = if method == "events" {
            self.follow(&args)
        } else {
            Err(CallError::new("unknown_method", format!("{method} is called, not opened as a stream")))
        };
        Box::pin(async move { opened })
    }
}

fn wanted(kinds: Option<&[String]>, name: &str) -> bool {
    kinds.is_none_or(|kinds| {
        kinds.iter().any(|kind| match kind.strip_suffix(".*") {
            Some(prefix) => name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.')),
            None => kind == name,
        })
    })
}

/// One event as a line (L37). What the event says cannot hide what it is.
fn line(event: &NodeEvent) -> Vec<u8> {
    let mut object: Map<String, Value> = event.data.clone();
    object.insert("seq".to_owned(), json!(event.number));
    object.insert("kind".to_owned(), json!(event.name));
    object.insert("at".to_owned(), json!(event.time.as_secs_f64()));
    let mut line = pilot_wire::json::to_vec(&Value::Object(object));
    line.push(b'\n');
    line
}

/// Writes events until the client leaves. While it does not read, the ring of the bus goes on without it.
async fn write_events(mut events: EventStream, kinds: Option<Vec<String>>, stream: Box<dyn Stream>) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let left = async {
        let mut ignored = [0; 256];
        while read.read(&mut ignored).await? > 0 {}
        Ok(())
    };
    let writing = async {
        loop {
            let line = match events.next().await {
                Ok(None) => return write.shutdown().await,
                Ok(Some(event)) if wanted(kinds.as_deref(), event.name) => line(&event),
                Ok(Some(_)) => continue,
                Err(missed) => format!("{{\"count\":{},\"kind\":\"missed\"}}\n", missed.0).into_bytes(),
            };
            write.write_all(&line).await?;
        }
    };
    tokio::select! {
        ended = left => ended,
        ended = writing => ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_exact_names_or_prefixes() {
        let kinds = ["tunnel.*".to_owned(), "message.received".to_owned()];
        for (name, is) in [
            ("tunnel.up", true),
            ("tunnel", false),
            ("tunnels.up", false),
            ("message.received", true),
            ("message.received.late", false),
        ] {
            assert_eq!(wanted(Some(&kinds), name), is, "{name}");
        }
        assert!(wanted(None, "anything") && !wanted(Some(&[]), "anything"));
    }
}
