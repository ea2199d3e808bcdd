//! `ping1004`: when did the peer get this, by its clock, and how long did question and answer take?

use std::time::Duration;

use example_ping::ping::{PORT, ask};
use serde_json::json;
use tokio::time::{Instant, timeout};

use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Code, Outcome};
use crate::go::Span;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "ping1004",
    args: &[
        Arg::new("<address|hostname>", "the peer"),
        Arg::new("[--timeout <dur>]", "longest wait for the answer (default 10s)"),
    ],
    about: "ask a peer when it got a message, and measure how long the answer takes",
    details: "The peer has to offer the service ping on port 1004, and to trust this node.",
    returns: "target, received_at, latency_ns",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let limit = args.span("timeout", Span::seconds(10))?;
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let mut stream = app.dial(&driver, address, PORT).await.map_err(|error| {
        CliError::connection(format!("cannot connect to {address} (ping, port {PORT})"))
            .hint(format!("check that {address} offers ping and trusts this node: pilotctl ping {address}"))
            .because(&error)
    })?;
    let [a, b, c, d, e, f, g, h, ..] = super::nonce();
    let began = Instant::now();
    let answer = match timeout(limit.wait(), ask(&mut stream, [a, b, c, d, e, f, g, h])).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(CliError::connection(format!("ping {address}: {error}"))),
        Err(_) => return Err(CliError::new(Code::Timeout, format!("ping {address}: no answer within {limit}"))),
    };
    let latency_ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    // The answer is here, whatever becomes of the close.
    let _ = stream.close().await;
    let received_at = pilot_wire::time::rfc3339_nanos(Duration::from_nanos(answer.received_at));
    let result = json!({ "target": address.to_string(), "received_at": received_at, "latency_ns": latency_ns });
    app.out.result(&result, || format!("{address} received it at {received_at}, answered after {latency_ns} ns\n"));
    Ok(0)
}
