//! `send-message`: one message to the inbox of a peer, now or as soon as it can be reached (06 §6.5, 07 §11.2).

use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use pilot::{Address, Driver};
use pilot_services::dataexchange::{self, Client, Delivery, MAX_BODY, MessageToSend, MessageType, Peer, SendError};
use pilot_wire::service::dataexchange::message::{Tag, is_id};
use serde_json::{Map, Value, json};

use super::mail;
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "send-message",
    args: &[
        Arg::new("<address|hostname>", "an address, a node id or a host name"),
        Arg::new("--data <text>", "the message"),
        Arg::new("[--type text|json|binary]", "what it is (default text)"),
        Arg::extra("[--data-file <path>]", "the message from a file, or from standard input with -"),
        mail::REPLY_TO,
        mail::MESSAGE_ID,
        Arg::extra("[--queue]", "keep it on disk and try until it is delivered, also when the peer is away"),
        Arg::extra("[--deadline <dur>]", "with --queue: how long to try (default 168h)"),
        Arg::extra("[--wait <what>]", "queue it and wait for delivery, read or reply"),
        Arg::extra("[--timeout <dur>]", "with --wait: longest wait (default: until the deadline)"),
        Arg::extra("[--receipt]", "with --queue: learn from the outbox when it has been read"),
        Arg::extra("[--trace]", "also tell how long each step took"),
    ],
    about: "send a message to a peer's inbox",
    details: "Success means that the peer has stored it, or with --queue that it is safe on this host's disk. Between\n\
              daemons that know message ids nothing is stored twice; toward older ones (\"tagged\": false) a message\n\
              whose acknowledgement got lost may be. The setting queue=true makes --queue the default.",
    returns: "target, to, type, bytes, ack, tagged, message_id, reply_to; with --queue: state, deadline, reply",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let data = payload(args)?;
    let kind = kind(args)?;
    let id = |flag: &str| match args.flag(flag) {
        Some(id) if !is_id(id) => Err(CliError::argument(format!("invalid --{flag}: {}", go::quote(id)))
            .hint("ids have 1 to 128 characters of A-Z a-z 0-9 . _ : -")),
        other => Ok(other.map(str::to_owned)),
    };
    let message_id = id("message-id")?.unwrap_or_else(|| dataexchange::new_id(&pilot_env::Env::real()));
    let reply_to = id("reply-to")?;
    if mail::wants_queue(app, args)? {
        let mut put = json!({
            "to": address.to_string(),
            "type": kind.label(),
            "bytes": data.len(),
            "message_id": message_id,
            "receipt": args.is_set("receipt"),
        });
        if let Some(reply_to) = reply_to {
            put["reply_to"] = reply_to.into();
        }
        let source: Arc<dyn dataexchange::Source> = Arc::new(bytes::Bytes::from(data));
        return mail::queue(app, &driver, args, put, source).await;
    }
    let trace = args.is_set("trace").then(now_ns);
    let bytes = data.len();
    let message = MessageToSend {
        kind,
        payload: Arc::new(bytes::Bytes::from(data)),
        tag: Tag { message_id: Some(message_id.clone()), reply_to: reply_to.clone(), wants_receipt: false },
        trace,
    };
    let known = mail::known(&driver, address).await;
    let sent = deliver(app, &driver, address, known, &message).await;
    let delivery = sent.map_err(|error| mail::not_sent(&error, address, Some(&message_id)))?;
    let mut result = Map::new();
    let mut put = |key: &str, value: Value| result.insert(key.to_owned(), value);
    put("target", address.to_string().into());
    put("to", address.to_string().into());
    put("type", kind.label().into());
    put("bytes", bytes.into());
    put("ack", delivery.ack.clone().into());
    put("tagged", delivery.tagged.into());
    put("message_id", message_id.into());
    put("first_contact", known.is_none().into());
    put("reused", false.into());
    put("seq", 0.into());
    if delivery.duplicate {
        put("duplicate", true.into());
    }
    if let Some(reply_to) = reply_to {
        put("reply_to", reply_to.into());
    }
    if let (Some(sent_ns), Some(times)) = (trace, delivery.trace) {
        let ms = |from: u64, to: u64| json!((to as f64 - from as f64) / 1e6);
        let end = now_ns();
        put("inner_ack", delivery.ack.into());
        put("to_receiver_ms", ms(sent_ns, times.received_at_ns));
        put("receiver_process_ms", ms(times.received_at_ns, times.ack_sent_at_ns));
        put("return_trip_ms", ms(times.ack_sent_at_ns, end));
        put("total_ms", ms(sent_ns, end));
    }
    app.out.object(&Value::Object(result));
    Ok(0)
}

fn now_ns() -> u64 {
    u64::try_from(pilot_env::Env::real().unix().as_nanos()).unwrap_or(u64::MAX)
}

/// Sends a message over a stream of its own.
async fn deliver(
    app: &App,
    driver: &Driver,
    address: Address,
    known: Option<Peer>,
    message: &MessageToSend,
) -> Result<Delivery, SendError> {
    let dial = || async { app.dial(driver, address, dataexchange::PORT).await.map_err(|error| mail::no_dial(&error)) };
    let mut client = Client::new(dial().await?, known);
    // A peer that hangs up on a greeting is spoken to like those of old.
    if client.peer().await.is_err() {
        client = Client::new(dial().await?, Some(Peer::Plain));
    }
    let sent = client.send(message).await;
    if let Some(peer) = client.known() {
        mail::learn(driver, address, peer).await;
    }
    let _ = client.into_inner().close().await;
    sent
}

fn kind(args: &Args) -> Result<MessageType, CliError> {
    let text = args.flag("type").unwrap_or("text");
    let known = MessageType::ALL.into_iter().find(|kind| kind.label() == text);
    known.ok_or_else(|| CliError::argument(format!("unknown type {} (use text, json, or binary)", go::quote(text))))
}

/// What is to be sent.
fn payload(args: &Args) -> Result<Vec<u8>, CliError> {
    let most = u64::from(MAX_BODY) - 4096;
    let data = match (args.flag("data").filter(|data| !data.is_empty()), args.flag("data-file")) {
        (Some(_), Some(_)) => return Err(CliError::argument("--data and --data-file exclude each other")),
        (Some(data), None) => data.as_bytes().to_vec(),
        (None, None) => return Err(CliError::argument("--data is required")),
        (None, Some(path)) => {
            let mut data = Vec::new();
            let read = match path {
                "-" => std::io::stdin().lock().take(most + 1).read_to_end(&mut data),
                path => {
                    std::fs::File::open(Path::new(path)).and_then(|file| file.take(most + 1).read_to_end(&mut data))
                }
            };
            read.map_err(|error| CliError::new(Code::NotFound, format!("read {path}: {error}")))?;
            data
        }
    };
    if data.len() as u64 > most {
        return Err(CliError::argument(format!("a message has at most {most} bytes"))
            .hint("send it as a file: pilotctl send-file"));
    }
    Ok(data)
}
