//! `broadcast`: one message to every member of a network, or to every trusted node (05 §11.1, 07 §12).

use std::time::Duration;

use serde_json::{Value, json};

use super::network::{admin_token, code_of, id};
use super::{line, too_old};
use crate::app::{ANSWER_WAIT, App};
use crate::args::{self, Args};
use crate::errors::{CliError, Code, Outcome};
use crate::go::Span;
use crate::table::{Arg, Command};

/// Where it goes unless told otherwise.
const PORT: u16 = 1000;
/// Longest wait for one receiver unless told otherwise.
const PER_PEER: Span = Span::seconds(10);
/// How often a daemon that is at work is asked whether it is there.
const LOOK: Duration = Duration::from_secs(15);
/// Most times that one wait for a receiver can follow another: daemons serve many at a time, and know some thousands.
const MOST_ROUNDS: u32 = 256;

pub(crate) const COMMAND: Command = Command {
    name: "broadcast",
    args: &[
        Arg::new("<network_id>", "the network; left out with --trusted"),
        Arg::new("<message>", "the message"),
        Arg::new("[--port <port>]", "virtual port of the receivers (default 1000)"),
        Arg::instead("[--trusted]", "to every trusted node, over a stream of its own"),
        Arg::extra("[--timeout <dur>]", "longest wait for each receiver (default 10s)"),
    ],
    about: "send a message to every member of a network, or to every trusted node",
    details: "Members get a datagram, after they have shown that they are there: pilotctl listen <port> shows it. With\n\
              --trusted each gets a stream: pilotctl recv <port> takes it. Everybody who was not reached is named, and\n\
              then the exit code is 1.",
    returns: "network_id, message, port, bytes, members, sent, failed [{node_id, code, error}], results [...]",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let trusted = args.is_set("trusted");
    let words = args.words();
    let (network, message) = match (trusted, words) {
        (true, [message]) => (None, message),
        (true, [_, _]) => {
            return Err(CliError::argument("--trusted takes no network: it is about trust")
                .hint("pilotctl broadcast --trusted <message>"));
        }
        (false, [network, message]) => (Some(id(network)?), message),
        _ => return Err(CliError::argument(COMMAND.usage()).hint("or: pilotctl broadcast --trusted <message>")),
    };
    if message.is_empty() {
        return Err(CliError::argument("the message is empty"));
    }
    let port = args.flag("port").map_or(Ok(PORT), args::port)?;
    let each = args.span("timeout", PER_PEER)?.wait();
    let driver = app.driver().await?;
    let mut params =
        json!({ "text": message, "port": port, "timeout_ms": u64::try_from(each.as_millis()).unwrap_or(u64::MAX) });
    let method = match network {
        Some(network) => {
            params["network"] = network.into();
            "network.broadcast"
        }
        None => "trust.broadcast",
    };
    // Each receiver has its time, and they are served a few at a time.
    let told = patiently(&driver, each, driver.call(method, &params)).await?;
    let mut told = match (told, network) {
        (Ok(told), _) => told,
        (Err(pilot::Error::Unsupported { .. }), Some(network)) => {
            official(app, &driver, network, port, message).await?
        }
        (Err(error), _) => {
            let text = error.daemon_text().map_or_else(|| error.to_string(), str::to_owned);
            let failure = CliError::new(code_of(&error), text);
            return Err(match error.hint() {
                Some(hint) if !hint.is_empty() => failure.hint(hint),
                _ => failure,
            });
        }
    };
    told["message"] = message.as_str().into();
    let failed = told["failed"].as_array().map_or(0, Vec::len);
    app.out.result(&told, || human(&told, network));
    Ok(u8::from(failed > 0 || told["truncated"] == true))
}

/// Waits for the daemon while it has receivers left to wait for. It is asked now and then whether it is still there: one that
/// hangs is not waited for as long as all of its receivers could take.
async fn patiently(
    driver: &pilot::Driver,
    each: Duration,
    answer: impl Future<Output = Result<Value, pilot::Error>>,
) -> Result<Result<Value, pilot::Error>, CliError> {
    let silent = async {
        loop {
            tokio::time::sleep(LOOK).await;
            // Whatever it says, it is there; what has become of the broadcast is told in its answer.
            if tokio::time::timeout(ANSWER_WAIT, driver.info()).await.is_err() {
                return;
            }
        }
    };
    let most = each.saturating_mul(MOST_ROUNDS).saturating_add(ANSWER_WAIT);
    let late = || {
        CliError::new(Code::Timeout, "broadcast: no answer from the daemon; some receivers may have been reached")
            .hint("see whether it still runs: pilotctl daemon status")
    };
    tokio::select! {
        biased;
        answer = tokio::time::timeout(most, answer) => answer.map_err(|_| late()),
        () = silent => Err(late()),
    }
}

/// By an official daemon, which wants the registry's admin token and tells nothing of the single members.
async fn official(
    app: &App,
    driver: &pilot::Driver,
    network: u16,
    port: u16,
    message: &str,
) -> Result<Value, CliError> {
    let Some(token) = admin_token(app)? else {
        return Err(CliError::new(Code::PermissionDenied, "admin token required for this operation")
            .hint("set PILOT_ADMIN_TOKEN env var or admin_token in ~/.pilot/config.json"));
    };
    let sending = driver.broadcast_with_token(network, port, message.as_bytes(), &token);
    let sent = tokio::time::timeout(ANSWER_WAIT, sending).await;
    let sent = sent.unwrap_or(Err(pilot::Error::Timeout { op: "broadcast" }));
    sent.map_err(|error| {
        too_old(CliError::new(code_of(&error), error.to_string()), "this daemon knows no broadcast; it came with 1.9.1")
    })?;
    Ok(json!({ "network_id": network, "port": port, "bytes": message.len() }))
}

fn human(told: &Value, network: Option<u16>) -> String {
    let to = network.map_or_else(|| "to trusted nodes".to_owned(), |network| format!("on network {network}"));
    let mut text = format!("broadcast {to} port {} ({} bytes)", told["port"], told["bytes"]);
    let Some(members) = told["members"].as_u64() else {
        text.push('\n');
        return text;
    };
    text.push_str(&format!(": reached {} of {members}\n", told["sent"]));
    for failure in told["failed"].as_array().into_iter().flatten() {
        let name = failure["hostname"].as_str().map_or_else(String::new, |name| format!(" ({})", line(name)));
        text.push_str(&format!(
            "  node {}{name} {}: {}\n",
            failure["node_id"],
            line(failure["status"].as_str().unwrap_or("failed")),
            line(failure["error"].as_str().unwrap_or_default()),
        ));
    }
    if told["truncated"] == true {
        text.push_str("  there are more members than the registry's answer holds; they were not tried\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_hangs_is_not_waited_for() {
        // Held, and never read.
        let (_daemon, transport) = tokio::io::duplex(4096);
        let driver = pilot::Driver::over(transport);
        let failure = patiently(&driver, Duration::from_secs(3600), std::future::pending()).await.unwrap_err();
        assert_eq!(failure.code, Code::Timeout);
    }

    #[test]
    fn people_read_who_was_not_reached() {
        let told = json!({ "port": 1000, "bytes": 2, "members": 2, "sent": 1, "failed": [
            { "node_id": 5, "hostname": "bob", "status": "offline", "error": "gone\n" },
        ] });
        assert_eq!(
            human(&told, Some(7)),
            "broadcast on network 7 port 1000 (2 bytes): reached 1 of 2\n  node 5 (bob) offline: gone?\n"
        );
        let official = json!({ "port": 1000, "bytes": 2 });
        assert_eq!(human(&official, Some(7)), "broadcast on network 7 port 1000 (2 bytes)\n");
    }
}
