//! `publish`: one event to a peer's broker (06 §6.5, docs/events.md).

use std::time::Duration;

use pilot::Stream;
use pilot_services::events::{Delivery, EventsError, PORT, Publisher};
use pilot_wire::service::events::Frame;
use serde_json::json;
use tokio::io::AsyncWriteExt as _;

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::table::{Arg, Command};

/// Longest wait for the broker to have the event.
const CONFIRM_WAIT: Duration = Duration::from_secs(30);

pub(crate) const COMMAND: Command = Command {
    name: "publish",
    args: &[
        Arg::new("<address|hostname>", "whose broker: an address, a node id or a host name"),
        Arg::new("<topic>", "the topic"),
        Arg::new("--data <message>", "the event"),
        Arg::extra("[--retain]", "keep it as the topic's value for later subscribers; empty data clears it"),
    ],
    about: "publish an event",
    details: "Returns when a broker of ours has the event on disk (\"delivery\":\"stored\"), when an official one has\n\
              received it (\"received\"), or, through an official daemon, when it is written (\"written\").",
    returns: "target, topic, bytes, delivery, number",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let topic = args.word(1);
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let retain = args.is_set("retain");
    let data = args.flag("data").filter(|data| !data.is_empty() || retain);
    let data = data.ok_or_else(|| CliError::argument("--data is required"))?;
    let stream = app.dial(&driver, address, PORT).await.map_err(|error| {
        CliError::connection(format!("cannot connect to {address} (event stream port {PORT})"))
            .hint(format!("check that {address} is reachable: pilotctl ping {address}"))
            .because(&error)
    })?;
    let mut result = json!({ "target": address.to_string(), "topic": topic, "bytes": data.len() });
    let nonce = (retain || driver.daemon().is_some()).then(super::nonce);
    let Some(nonce) = nonce else {
        written(stream, topic, data).await.map_err(|error| failed(&error))?;
        app.out.object(&result);
        return Ok(0);
    };
    let publishing = async {
        let mut publisher = Publisher::open(stream, topic.as_bytes(), Some(nonce), retain).await?;
        publisher.publish(topic.as_bytes(), data.as_bytes()).await?;
        publisher.finish().await
    };
    let delivery = tokio::time::timeout(CONFIRM_WAIT, publishing).await.unwrap_or_else(|_| {
        Err(EventsError::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "no confirmation within 30s")))
    });
    match delivery.map_err(|error| failed(&error))? {
        Delivery::Stored { number } => {
            result["delivery"] = "stored".into();
            result["number"] = number.into();
        }
        // It took the event as any other; nothing is retained.
        Delivery::Received if retain => return Err(failed(&EventsError::NotSupported("retained values"))),
        Delivery::Received => result["delivery"] = "received".into(),
    }
    app.out.object(&result);
    Ok(0)
}

/// Through an official daemon: the frames of the official tool, and nothing that the peer would not expect.
async fn written(mut stream: Stream, topic: &str, data: &str) -> Result<(), EventsError> {
    for payload in ["", data] {
        let mut frame = Vec::new();
        Frame { topic: topic.as_bytes(), payload: payload.as_bytes() }.emit(&mut frame)?;
        stream.write_all(&frame).await?;
    }
    stream.close().await?;
    Ok(())
}

fn failed(error: &EventsError) -> CliError {
    match error {
        EventsError::Io(error) if error.kind() == std::io::ErrorKind::TimedOut => {
            CliError::new(Code::Timeout, format!("publish: {error}"))
                .hint("it is not known whether the event was passed on")
        }
        EventsError::NotSupported(_) => CliError::connection(format!("publish: {error}"))
            .hint("the peer runs an official daemon: the event was passed on but not kept; publish without --retain"),
        other => CliError::connection(format!("publish: {other}")),
    }
}
