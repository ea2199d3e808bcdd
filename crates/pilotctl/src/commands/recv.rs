//! `recv`: binds a port and prints the messages that arrive (06 §6.5).

use serde_json::{Value, json};
use tokio::time::{Instant, timeout_at};

use crate::app::{App, refused};
use crate::args::{self, Args};
use crate::errors::Outcome;
use crate::exchange;
use crate::go::Span;
use crate::table::{Arg, Command};

/// Longest message.
const MOST: usize = 65_535;

pub(crate) const COMMAND: Command = Command {
    name: "recv",
    args: &[
        Arg::new("<port>", "virtual port to listen on"),
        Arg::new("[--count <n>]", "messages to wait for (default 1)"),
        Arg::new("[--timeout <dur>]", "longest time for all of them (default 30s)"),
    ],
    about: "wait for messages on a port",
    details: "Each stream is one message of at most 65535 bytes. Exits with 0 also when the time is up.",
    returns: "messages [{seq, port, data, bytes}], timeout (bool)",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let port = args::port(args.word(0))?;
    let count = args.int("count", 1)?;
    let limit = args.span("timeout", Span::seconds(30))?;
    let deadline = Instant::now() + limit.wait();
    let driver = app.driver().await?;
    let listener = driver.listen(port).await.map_err(|error| refused("listen", error))?;
    let mut messages = Vec::new();
    let mut expired = false;
    for seq in 0..count {
        // The accepted stream is read under the same deadline: a silent peer must not hold the command.
        let received = timeout_at(deadline, async {
            let mut stream = listener.accept().await?;
            let message = exchange::message(&mut stream, MOST).await;
            let _ = stream.close().await;
            Ok::<_, pilot::Error>(message)
        });
        match received.await {
            Err(_) => {
                expired = true;
                break;
            }
            Ok(Err(error)) => return Err(refused("accept", error)),
            Ok(Ok(Ok(message))) => {
                let text = pilot_wire::json::text_lossy(&message);
                app.out.text(&format!("{text}\n"));
                messages.push(json!({ "seq": seq, "port": port, "data": text, "bytes": message.len() }));
            }
            Ok(Ok(Err(error))) => {
                app.out.note(&format!("message {seq}: {error}"));
                messages.push(json!({ "seq": seq, "port": port, "error": error.to_string() }));
            }
        }
    }
    listener.close().await;
    if expired {
        app.out.note("timeout");
    }
    let messages = if messages.is_empty() { Value::Null } else { Value::Array(messages) };
    app.out.result(&json!({ "messages": messages, "timeout": expired }), String::new);
    Ok(0)
}
