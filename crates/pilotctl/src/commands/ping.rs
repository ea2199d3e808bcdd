//! `ping`: a new stream to the echo port for each probe (06 §6.8).

use std::time::Duration;

use pilot::{Address, Driver};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::app::App;
use crate::args::Args;
use crate::errors::Outcome;
use crate::go::{Span, short};
use crate::table::{Arg, Command};

/// The echo service (05 §4).
pub(crate) const ECHO_PORT: u16 = 7;
/// Pause between probes.
const PAUSE: Duration = Duration::from_secs(1);
/// Longest wait for what is only a help to the reader.
const ASIDE: Duration = Duration::from_secs(5);
/// Longest echo that is read.
const MOST: usize = 1024;

pub(crate) const COMMAND: Command = Command {
    name: "ping",
    args: &[
        Arg::new("<address|hostname>", "whom to ping: an address, a node id or a host name"),
        Arg::new("[--count <n>]", "probes to send (default 4)"),
        Arg::new("[--timeout <dur>]", "longest time for all of them (default 30s)"),
    ],
    about: "measure the time to a node and back",
    details: "The time includes opening the stream. Exits with 0 even when no probe is answered.",
    returns: "target, to, results [{seq, bytes, rtt_ms, time_ms, error}], timeout (bool), hint (when none is answered)",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

/// What became of a probe.
pub(crate) enum Probe {
    Answered { rtt: Duration, bytes: usize },
    Failed { rtt: Duration, error: String },
    NotDialled { error: String },
}

impl Probe {
    fn to_json(&self, seq: i64) -> Value {
        // Milliseconds with three digits, as the official tool counts them.
        let millis = |rtt: &Duration| rtt.as_micros() as f64 / 1000.0;
        match self {
            Self::Answered { rtt, bytes } => {
                json!({ "seq": seq, "bytes": bytes, "rtt_ms": millis(rtt), "time_ms": millis(rtt) })
            }
            Self::Failed { rtt, error } => {
                json!({ "seq": seq, "error": error, "rtt_ms": millis(rtt), "time_ms": millis(rtt) })
            }
            Self::NotDialled { error } => json!({ "seq": seq, "error": error }),
        }
    }

    fn to_text(&self, seq: i64) -> String {
        match self {
            Self::Answered { rtt, bytes } => format!("seq={seq} bytes={bytes} time={}\n", short(*rtt)),
            Self::Failed { error, .. } | Self::NotDialled { error } => format!("seq={seq} error: {error}\n"),
        }
    }
}

async fn run(app: &App, args: &Args) -> Outcome {
    let count = args.int("count", 4)?;
    let limit = args.span("timeout", Span::seconds(30))?;
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let deadline = Instant::now() + limit.wait();
    app.out.text(&format!("PING {address}\n"));
    let mut results = Vec::new();
    let (mut expired, mut answered) = (false, false);
    for seq in 0..count {
        if seq > 0 {
            sleep(PAUSE.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
        if Instant::now() >= deadline {
            expired = true;
            break;
        }
        let began = Instant::now();
        let probe = timeout_at(deadline, probe(&driver, address, seq)).await.unwrap_or_else(|_| {
            expired = true;
            Probe::Failed { rtt: began.elapsed(), error: format!("no answer within {limit}") }
        });
        answered |= matches!(probe, Probe::Answered { .. });
        app.out.text(&probe.to_text(seq));
        results.push(probe.to_json(seq));
        if expired {
            break;
        }
    }
    if expired {
        app.out.text("timeout\n");
    }
    let results = if results.is_empty() { Value::Null } else { Value::Array(results) };
    let mut data =
        json!({ "target": address.to_string(), "to": address.to_string(), "results": results, "timeout": expired });
    if !answered && let Some(hint) = silence(&driver, address).await {
        app.out.note(&format!("hint: {hint}"));
        data["hint"] = hint.into();
    }
    app.out.result(&data, String::new);
    Ok(0)
}

/// Why a node may not have answered, as far as the daemon knows: a stranger's dial is dropped without a word, so that the
/// answer alone does not tell.
async fn silence(driver: &Driver, address: Address) -> Option<String> {
    let trusted = timeout(ASIDE, driver.trusted()).await.ok()?.ok()?;
    let known =
        trusted["trusted"].as_array().is_some_and(|peers| peers.iter().any(|peer| peer["node_id"] == address.node));
    Some(if known {
        format!("{address} is trusted; it may be offline, or not reachable from here: pilotctl lookup {}", address.node)
    } else {
        format!(
            "{address} is not among the trusted peers; unless it is public, a node answers them and its networks alone: pilotctl handshake {}",
            address.node
        )
    })
}

/// Dials, writes `ping-<seq>`, reads one chunk, closes.
pub(crate) async fn probe(driver: &Driver, address: Address, seq: i64) -> Probe {
    let began = Instant::now();
    let mut stream = match driver.dial(pilot::SocketAddress::new(address, ECHO_PORT)).await {
        Ok(stream) => stream,
        Err(error) => return Probe::NotDialled { error: error.to_string() },
    };
    let mut echo = vec![0; MOST];
    let answer = async {
        stream.write_all(format!("ping-{seq}").as_bytes()).await?;
        stream.read(&mut echo).await
    }
    .await;
    let rtt = began.elapsed();
    let probe = match answer {
        Ok(0) => Probe::Failed { rtt, error: "EOF".into() },
        Ok(bytes) => Probe::Answered { rtt, bytes },
        Err(error) => Probe::Failed { rtt, error: error.to_string() },
    };
    // The probe is over, whatever becomes of the close.
    let _ = stream.close().await;
    probe
}
