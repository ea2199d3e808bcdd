//! `listen`: prints the datagrams that arrive at a port (06 §6.5).

use std::future::pending;

use pilot::{Driver, Listener};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};

use crate::app::{App, refused};
use crate::args::{self, Args};
use crate::errors::{CliError, Outcome};
use crate::go::Span;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "listen",
    args: &[
        Arg::new("<port>", "virtual port"),
        Arg::new("[--count <n>]", "datagrams to wait for (default: no end)"),
        Arg::new("[--timeout <dur>]", "longest time for all of them (default: no limit)"),
    ],
    about: "print the datagrams that arrive at a port",
    details: "Without --count each datagram is printed as it arrives; with --json as one object per line.\n\
              Exits with 0 also when the time is up. The other side sends with: pilotctl dgram",
    returns: "messages [{src_addr, src_port, data, bytes}], timeout (bool). Unbounded: NDJSON per line",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let port = args::port(args.word(0))?;
    let count = args.int("count", 0)?;
    let limit = args.span("timeout", Span::seconds(0))?;
    // Zero is no limit; a negative one has expired.
    let deadline = (limit != Span::seconds(0)).then(|| Instant::now() + limit.wait());
    let driver = app.driver().await?;
    let listener = bind(&driver, port).await?;
    app.out.note(&format!("listening on port {port} — waiting for datagrams..."));
    let mut messages = Vec::new();
    let mut expired = false;
    while count <= 0 || (messages.len() as i64) < count {
        let received = tokio::select! {
            biased;
            () = until(deadline) => {
                expired = true;
                break;
            }
            received = driver.recv_from() => received.map_err(|error| refused("recv", error))?,
            () = refuse_streams(listener.as_ref()) => continue,
        };
        if received.port != port {
            continue;
        }
        let text = pilot_wire::json::text_lossy(&received.data);
        let (from, bytes) = (received.from, received.data.len());
        let message = json!({ "src_addr": from.addr.to_string(), "src_port": from.port, "data": text, "bytes": bytes });
        let human = format!("[{}:{}] {text}\n", from.addr, from.port);
        if count > 0 {
            app.out.text(&human);
            messages.push(message);
        } else {
            app.out.item(&message, &human);
        }
        if pilot_env::output::reader_gone() {
            break;
        }
    }
    if let Some(listener) = listener {
        listener.close().await;
    }
    if expired {
        app.out.note("timeout");
    }
    if count > 0 {
        let messages = if messages.is_empty() { Value::Null } else { Value::Array(messages) };
        app.out.result(&json!({ "messages": messages, "timeout": expired }), String::new);
    }
    Ok(0)
}

/// Takes the port, so that its datagrams come here and to nobody else. Official daemons give every datagram to every
/// program, so there a port that is taken is no obstacle.
async fn bind(driver: &Driver, port: u16) -> Result<Option<Listener>, CliError> {
    match driver.listen(port).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.daemon_text().is_some() => {
            let info = driver.info().await.map_err(|error| refused("listen", error))?;
            let features = info["features"].as_array();
            let by_port = features.is_some_and(|list| list.iter().any(|feature| feature == "datagram_ports"));
            if by_port {
                Err(refused("listen", error).hint("another program, or the daemon itself, has it; choose another port"))
            } else {
                Ok(None)
            }
        }
        Err(error) => Err(refused("listen", error)),
    }
}

/// Streams to the port have nobody to talk to: they are closed at once rather than left to wait.
async fn refuse_streams(listener: Option<&Listener>) {
    let Some(listener) = listener else { return pending().await };
    match listener.accept().await {
        Ok(stream) => {
            let _ = stream.close().await;
        }
        // The daemon is gone, which the wait for datagrams reports.
        Err(_) => pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}
