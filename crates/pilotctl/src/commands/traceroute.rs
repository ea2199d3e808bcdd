//! `traceroute`: the way to a peer: how long it takes to open a stream, then round trips on it (06 §6.8).
//!
//! There is one virtual hop. What lies under it is told too, as far as the daemon knows: direct or through the relay.

use std::time::Duration;

use pilot::{Address, Driver, Error, SocketAddress, Stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout_at};

use super::ping::ECHO_PORT;
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go::{Span, short};
use crate::table::{Arg, Command};

/// Round trips measured.
const SAMPLES: usize = 3;
/// Longest echo that is read.
const MOST: usize = 1024;

pub(crate) const COMMAND: Command = Command {
    name: "traceroute",
    args: &[
        Arg::new("<address>", "an address, a node id or a host name"),
        Arg::new("[--timeout <dur>]", "longest time for all of it (default 30s)"),
    ],
    about: "measure the way to a node: opening a stream, then round trips",
    details: "Exits with 0 also when the stream cannot be opened; error says why.",
    returns: "target, setup_ms, rtt_samples [{rtt_ms, bytes}], path, endpoint",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let limit = args.span("timeout", Span::seconds(30))?;
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    app.out.text(&format!("TRACEROUTE {address}\n"));
    let began = Instant::now();
    let deadline = began + limit.wait();
    let dialled = timeout_at(deadline, driver.dial(SocketAddress::new(address, ECHO_PORT))).await;
    let setup = began.elapsed();
    let mut data = json!({ "target": address.to_string(), "setup_ms": millis(setup) });
    let mut stream = match dialled {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            data["error"] = error.to_string().into();
            app.out.result(&data, || format!("  1  {address}  connection failed: {error}\n"));
            return Ok(0);
        }
        Err(_) => {
            return Err(CliError::new(Code::Timeout, "dial timeout")
                .hint(format!("increase with --timeout, or check peer: pilotctl ping {address}")));
        }
    };
    let (path, endpoint) = way(&driver, address).await;
    let shown = match (path.as_str(), endpoint.as_str()) {
        ("", _) => String::new(),
        (path, "") => format!("  path={path}"),
        (path, endpoint) => format!("  path={path} via {endpoint}"),
    };
    app.out.text(&format!("  1  {address}  setup={}{shown}\n", short(setup)));
    let mut samples = Vec::new();
    for i in 0..SAMPLES {
        let (sample, text) = sample(&mut stream, i, deadline).await;
        app.out.text(&text);
        let failed = sample["error"].is_string();
        samples.push(sample);
        if failed {
            break;
        }
    }
    // The measurement is over, whatever becomes of the close.
    let _ = stream.close().await;
    data["rtt_samples"] = samples.into();
    data["path"] = path.into();
    data["endpoint"] = endpoint.into();
    app.out.result(&data, || {
        "\nsetup includes: tunnel negotiation + SYN/ACK handshake\n\
         rtt is: data round-trip over established connection\n"
            .into()
    });
    Ok(0)
}

/// Milliseconds with three digits, as the official tool counts them.
fn millis(time: Duration) -> f64 {
    time.as_micros() as f64 / 1000.0
}

/// How the daemon reaches the peer: `direct`, `relay` or nothing, and the endpoint behind it.
async fn way(driver: &Driver, address: Address) -> (String, String) {
    let Ok(info) = driver.info().await else { return Default::default() };
    let peers = info["peer_list"].as_array().map_or(&[][..], Vec::as_slice);
    let Some(peer) = peers.iter().find(|peer| peer["node_id"] == address.node) else { return Default::default() };
    let relay = peer["relay"].as_bool();
    let path = peer["path"].as_str().or(relay.map(|relay| if relay { "relay" } else { "direct" })).unwrap_or_default();
    (super::line(path), super::line(peer["endpoint"].as_str().unwrap_or_default()))
}

/// One round trip: the object, and the line for people.
async fn sample(stream: &mut Stream, i: usize, deadline: Instant) -> (Value, String) {
    let began = Instant::now();
    let mut echo = vec![0; MOST];
    let answer = timeout_at(deadline, async {
        stream.write_all(format!("trace-{i}").as_bytes()).await?;
        stream.read(&mut echo).await
    })
    .await;
    let rtt = began.elapsed();
    let error = match answer {
        Ok(Ok(bytes @ 1..)) => {
            let text = format!("     rtt={} bytes={bytes}\n", short(rtt));
            return (json!({ "rtt_ms": millis(rtt), "bytes": bytes }), text);
        }
        Ok(Ok(0)) => "EOF".to_owned(),
        Ok(Err(error)) => error.to_string(),
        Err(_) => Error::Timeout { op: "read" }.to_string(),
    };
    (json!({ "rtt_ms": millis(rtt), "error": error }), format!("     error: {error}\n"))
}
