//! `send`: one message to a port, and the answer (06 §6.5).

use serde_json::json;

use crate::app::App;
use crate::args::{self, Args};
use crate::errors::{CliError, Code, Outcome};
use crate::exchange::{Failure, exchange};
use crate::go::Span;
use crate::table::{Arg, Command};

pub(crate) const COMMAND: Command = Command {
    name: "send",
    args: &[
        Arg::new("<address|hostname>", "an address, a node id or a host name"),
        Arg::new("<port>", "virtual port, 0 to 65535"),
        Arg::new("--data <msg>", "the message"),
        Arg::new("[--timeout <dur>]", "longest wait for the answer (default 30s)"),
    ],
    about: "send a message to a port and print the answer",
    details: "",
    returns: "target, port, sent, response",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let port = args::port(args.word(1))?;
    let data = args.flag("data").filter(|data| !data.is_empty());
    let data = data.ok_or_else(|| CliError::argument("--data is required"))?;
    let limit = args.span("timeout", Span::seconds(30))?;
    let mut stream = app.dial(&driver, address, port).await.map_err(|error| no_stream(&address, port, &error))?;
    let answer = exchange(&mut stream, data.as_bytes(), limit).await;
    let _ = stream.close().await;
    let answer = answer.map_err(|failure| match failure {
        Failure::Write(error) => CliError::connection(format!("write failed: {error}")),
        Failure::Read(error) => CliError::connection(format!("read failed: {error}")),
        Failure::Timeout => CliError::new(Code::Timeout, format!("no response within {limit}"))
            .hint(format!("increase with --timeout, or check peer: pilotctl ping {address}")),
    })?;
    report(app, &address, port, data, &answer);
    Ok(0)
}

/// Why there is no stream to a port.
pub(super) fn no_stream(address: &pilot::Address, port: u16, error: &pilot::Error) -> CliError {
    CliError::connection(format!("cannot connect to {address} port {port}"))
        .hint(format!("check that {address} is reachable: pilotctl ping {address}"))
        .because(error)
}

/// Prints what was sent and what came back.
pub(super) fn report(app: &App, address: &pilot::Address, port: u16, sent: &str, answer: &[u8]) {
    let response = pilot_wire::json::text_lossy(answer);
    if answer.is_empty() {
        app.out.note(&format!("sent {} bytes (no response)", sent.len()));
    }
    let data = json!({ "target": address.to_string(), "port": port, "sent": sent, "response": response });
    app.out.result(&data, || if response.is_empty() { String::new() } else { format!("{response}\n") });
}
