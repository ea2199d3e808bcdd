//! `bench`: throughput to the echo port and back (06 §6.8).

use std::time::Duration;

use pilot::Stream;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};

use super::ping::ECHO_PORT;
use crate::app::App;
use crate::args::Args;
use crate::errors::{CliError, Outcome};
use crate::go::{self, Span, short, size};
use crate::table::{Arg, Command};

/// Bytes given to the stream at once. The byte at offset `i` of the stream is `i mod 256`.
const CHUNK: usize = 64 * 1024;
/// Largest size, in MiB: a day at 10 GB/s is enough for everybody.
const MOST_MIB: f64 = 1e9;

pub(crate) const COMMAND: Command = Command {
    name: "bench",
    args: &[
        Arg::new("<address|hostname>", "an address, a node id or a host name"),
        Arg::new("[size_mb]", "MiB to send, with a fraction if wanted (default 1)"),
        Arg::new("[--timeout <dur>]", "longest wait for the whole echo (default 2m)"),
    ],
    about: "measure throughput through the echo port",
    details: "Every byte of the echo is compared with what was sent. Exits with 0 also when the time is up;\n\
              complete says whether everything came back.",
    returns: "target, sent_bytes, recv_bytes, send_duration_ms, total_duration_ms, send_mbps, total_mbps, complete",
    raw: false,
    run: |app, args| Box::pin(run(app, args)),
};

async fn run(app: &App, args: &Args) -> Outcome {
    let limit = args.span("timeout", Span::seconds(120))?;
    let driver = app.driver().await?;
    let address = app.resolve(&driver, args.word(0)).await?;
    let mib = args.get(1).map_or(Ok(1.0), go::parse_float);
    let mib = mib.map_err(|why| CliError::argument(format!("invalid size: {why}")))?;
    // Negative sizes are sizes of nothing, as in the official tool; the bound keeps the cast exact.
    let total = (mib.clamp(0.0, MOST_MIB) * f64::from(1 << 20)) as u64;
    let mut stream = app.dial(&driver, address, ECHO_PORT).await.map_err(|error| {
        CliError::connection(format!("cannot connect to {address} echo port"))
            .hint(format!("check that {address} is reachable: pilotctl ping {address}"))
            .because(&error)
    })?;
    app.out.text(&format!("BENCH {address} — sending {} via echo port\n", size(total)));
    let outcome = measure(&mut stream, total, limit).await;
    let _ = stream.close().await;
    let figures = outcome?;
    let data = json!({
        "target": address.to_string(),
        "sent_bytes": total,
        "recv_bytes": figures.received,
        "send_duration_ms": figures.sending.as_millis() as u64,
        "total_duration_ms": figures.whole.as_millis() as u64,
        "send_mbps": rate(total, figures.sending),
        "total_mbps": rate(figures.received, figures.whole),
        "complete": figures.received == total,
    });
    app.out.result(&data, || {
        let mut text = String::new();
        if figures.received < total {
            let (got, of) = (size(figures.received), size(total));
            text.push_str(&format!("warning: receive timed out (got {got} of {of})\n"));
        }
        text.push_str(&format!(
            "  Sent:     {} in {} ({:.1} MB/s)\n  Echoed:   {} in {} ({:.1} MB/s round-trip)\n",
            size(total),
            short(figures.sending),
            rate(total, figures.sending),
            size(figures.received),
            short(figures.whole),
            rate(figures.received, figures.whole),
        ));
        text
    });
    Ok(0)
}

struct Figures {
    received: u64,
    sending: Duration,
    whole: Duration,
}

/// MiB per second; 0 for nothing.
fn rate(bytes: u64, duration: Duration) -> f64 {
    let seconds = duration.as_secs_f64();
    if bytes == 0 || seconds == 0.0 { 0.0 } else { bytes as f64 / f64::from(1 << 20) / seconds }
}

/// Sends and receives at the same time.
async fn measure(stream: &mut Stream, total: u64, limit: Span) -> Result<Figures, CliError> {
    // Two rounds of the pattern behind a chunk, so that a chunk of it can start at any offset.
    let pattern: Vec<u8> = (0..CHUNK + 256).map(|i| i as u8).collect();
    let from_offset = |at: u64, most: usize| {
        let start = (at % 256) as usize;
        &pattern[start..start + most.min(CHUNK)]
    };
    let (mut from, mut to) = tokio::io::split(stream);
    let began = Instant::now();
    let send = async {
        let mut sent = 0u64;
        while sent < total {
            let most = usize::try_from(total - sent).unwrap_or(CHUNK);
            sent += to
                .write(from_offset(sent, most))
                .await
                .map_err(|error| CliError::connection(format!("write: {error}")))? as u64;
        }
        to.flush().await.map_err(|error| CliError::connection(format!("write: {error}")))?;
        Ok::<_, CliError>(began.elapsed())
    };
    let mut received = 0u64;
    let receive = async {
        let mut chunk = vec![0; CHUNK];
        while received < total {
            let n = from.read(&mut chunk).await.map_err(|error| CliError::connection(format!("read: {error}")))?;
            if n == 0 {
                return Err(CliError::connection(format!("echo ended after {received} of {total} bytes")));
            }
            if chunk[..n] != *from_offset(received, n) {
                return Err(CliError::connection(format!("the echo differs from what was sent, near byte {received}")));
            }
            received += n as u64;
        }
        Ok(())
    };
    let mut sending = None;
    let both = async {
        let send = async {
            sending = Some(send.await?);
            Ok(())
        };
        tokio::try_join!(send, receive)
    };
    if let Ok(outcome) = timeout(limit.wait(), both).await {
        outcome?;
    }
    let whole = began.elapsed();
    Ok(Figures { received, sending: sending.unwrap_or(whole), whole })
}
