//! `dgram`: sends one datagram (07 §12).

use std::time::Duration;

use pilot::{Driver, Error, SocketAddress};
use serde_json::json;

use crate::app::App;
use crate::args::{self, Args};
use crate::errors::{CliError, Code, Outcome};
use crate::table::{Arg, Command};

/// Longest wait for the daemon's word on it; it may have to ask the registry where the peer is.
const WAIT: Duration = Duration::from_secs(45);

pub(crate) const COMMAND: Command = Command {
    name: "dgram",
    args: &[
        Arg::new("<address|hostname>", "an address, a node id or a host name"),
        Arg::new("<port>", "virtual port, 0 to 65535"),
        Arg::new("--data <msg>", "the datagram"),
    ],
    about: "send a datagram: quick, and lost without notice if it is lost",
    details: "Success means that it has left this host (confirmed is false when the daemon is too old to say). The\n\
              peer takes it if a program listens there: pilotctl listen <port>. What must arrive goes over a stream:\n\
              pilotctl send.",
    returns: "target, port, bytes, confirmed (bool)",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let port = args::port(args.word(1))?;
    let data = args.flag("data").filter(|data| !data.is_empty());
    let data = data.ok_or_else(|| CliError::argument("--data is required"))?;
    let sent = tokio::time::timeout(WAIT, send(&driver, SocketAddress::new(address, port), data.as_bytes())).await;
    sent.unwrap_or(Err(Error::Timeout { op: "sendto" })).map_err(|error| explain(&address, port, &error))?;
    let confirmed = driver.confirms_datagrams();
    let data = json!({ "target": address.to_string(), "port": port, "bytes": data.len(), "confirmed": confirmed });
    app.out.result(&data, || {
        let unconfirmed = if confirmed { "" } else { " (this daemon does not say whether it has left)" };
        format!("sent {} bytes to {address} port {port}{unconfirmed}\n", data["bytes"])
    });
    Ok(0)
}

/// Sends, and gives a daemon that does not confirm the time to complain.
async fn send(driver: &Driver, to: SocketAddress, data: &[u8]) -> Result<(), Error> {
    driver.send_to(to, data).await?;
    if driver.confirms_datagrams() {
        return Ok(());
    }
    // Requests of one socket are done in their order: once this one is answered, the datagram was dealt with.
    driver.info().await?;
    match driver.datagram_failure() {
        Some(text) => Err(Error::Daemon { op: "sendto", text }),
        None => Ok(()),
    }
}

/// The code says whether sending again can help.
fn explain(address: &pilot::Address, port: u16, error: &Error) -> CliError {
    let text = error.daemon_text().unwrap_or_default();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let check = format!("check that {address} is reachable: pilotctl ping {address}");
    let (code, hint) = match error {
        Error::TooLarge { .. } => (Code::InvalidArgument, "send large data over a stream: pilotctl send".into()),
        Error::Timeout { .. } => (Code::Timeout, check),
        _ if has(&["too large", "too long"]) => {
            (Code::InvalidArgument, "send large data over a stream: pilotctl send".into())
        }
        _ if has(&["not allowed", "policy", "broadcast"]) => {
            (Code::PermissionDenied, "the other side, or the network, does not allow it".into())
        }
        _ if error.code() == "untrusted" || has(&["trust"]) => {
            (Code::TrustRequired, format!("ask for trust first: pilotctl handshake {} \"reason\"", address.node))
        }
        _ if has(&["not found"]) => (Code::NotFound, format!("look it up with: pilotctl lookup {}", address.node)),
        _ => (Code::ConnectionFailed, check),
    };
    CliError::new(code, format!("cannot send a datagram to {address} port {port}")).hint(hint).because(error)
}
