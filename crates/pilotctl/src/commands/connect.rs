//! `connect`: one message, given or piped, and the answer (06 §6.5).

use std::io::Read;
use std::os::unix::fs::FileTypeExt;

use crate::app::App;
use crate::args::{self, Args};
use crate::errors::{CliError, Code, Outcome};
use crate::exchange::{Failure, exchange};
use crate::go::Span;
use crate::table::{Arg, Command};

/// The port agents talk on unless they agree on another (05 §4).
const STDIO_PORT: u16 = 1000;
/// Most that is read from standard input, in bytes.
const MOST_INPUT: u64 = 64 << 20;

pub(crate) const COMMAND: Command = Command {
    name: "connect",
    args: &[
        Arg::new("<address|hostname>", "an address, a node id or a host name"),
        Arg::new("[port]", "virtual port (default 1000)"),
        Arg::new("[--message <msg>]", "the message; without it, standard input is sent"),
        Arg::new("[--timeout <dur>]", "longest wait for the answer (default 30s)"),
    ],
    about: "send a message, or what is piped in, and print the answer",
    details: "  pilotctl connect bob --message hello\n  echo hello | pilotctl connect bob 7",
    returns: "target, port, sent, response",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let port = args.get(1).map_or(Ok(STDIO_PORT), args::port)?;
    let limit = args.span("timeout", Span::seconds(30))?;
    let message = match args.flag("message").filter(|message| !message.is_empty()) {
        Some(message) => message.as_bytes().to_vec(),
        None => piped()?,
    };
    let mut stream =
        app.dial(&driver, address, port).await.map_err(|error| super::send::no_stream(&address, port, &error))?;
    let answer = exchange(&mut stream, &message, limit).await;
    let _ = stream.close().await;
    let answer = answer.map_err(|failure| match failure {
        Failure::Write(error) => CliError::connection(format!("write: {error}")),
        Failure::Read(error) => CliError::connection(format!("read: {error}")),
        Failure::Timeout => CliError::new(Code::Timeout, format!("no response within {limit}"))
            .hint("increase with --timeout, or check if the target is listening on that port"),
    })?;
    super::send::report(app, &address, port, &pilot_wire::json::text_lossy(&message), &answer);
    Ok(0)
}

/// Standard input, unchanged. A terminal, and the null device, hold no message.
fn piped() -> Result<Vec<u8>, CliError> {
    let device = std::fs::metadata("/dev/stdin").is_ok_and(|metadata| metadata.file_type().is_char_device());
    if device {
        return Err(CliError::argument("--message is required (interactive mode not supported)")
            .hint("use --message to send a single message, or pipe data via stdin"));
    }
    let mut data = Vec::new();
    std::io::stdin()
        .take(MOST_INPUT + 1)
        .read_to_end(&mut data)
        .map_err(|error| CliError::internal(format!("read stdin: {error}")))?;
    if data.is_empty() {
        return Err(CliError::argument("no data on stdin — use --message or pipe data"));
    }
    if data.len() as u64 > MOST_INPUT {
        return Err(CliError::argument("more than 64 MiB on stdin").hint("send large data as a file"));
    }
    Ok(data)
}
