//! What a daemon costs that has nothing to do: memory and processor time, alone and with many idle streams.

use std::time::Duration;

use anyhow::{Context, Result};
use pilot::{Driver, Stream};
use pilot_testkit::agent::{Agent, AgentOptions, Release, make_trust};
use pilot_testkit::programs::RendezvousProcess;
use pilot_wire::SocketAddress;

/// Pause between dials to daemons that allow ten new streams a second from one peer.
const DIAL_PAUSE: Duration = Duration::from_millis(110);
/// Time for what the start has stirred up to settle.
const SETTLE: Duration = Duration::from_secs(5);
/// Ticks of `/proc/PID/stat` in a second (the kernel's USER_HZ).
const TICKS: f64 = 100.0;

/// What was measured of one product.
#[derive(Default)]
pub(crate) struct Idle {
    rss_mb: f64,
    cpu_ms: f64,
    rss_streams_mb: f64,
    cpu_streams_ms: f64,
    streams: usize,
}

/// Starts two daemons of a product and watches one of them, first alone and then with `streams` streams to the other.
pub(crate) fn measure(
    runtime: &tokio::runtime::Runtime,
    product: &Release,
    seconds: u64,
    streams: usize,
    echo_port: u16,
) -> Result<Idle> {
    let rendezvous = RendezvousProcess::start()?;
    let agent = |name: &str| {
        // The level an operator uses; the harness asks for debug.
        let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
        Agent::start(product, &options.flag("-log-level").flag("info"))
    };
    let (a, b) = (agent("idle-a")?, agent("idle-b")?);
    make_trust(&a, &b, Duration::from_secs(120))?;
    std::thread::sleep(SETTLE);
    let mut figures = Idle::default();
    (figures.rss_mb, figures.cpu_ms) = watch(a.pid(), seconds)?;
    let target = SocketAddress::new(b.address().parse()?, echo_port);
    let pause = if product.wants_email { DIAL_PAUSE } else { Duration::ZERO };
    let held: Vec<Stream> = runtime.block_on(async {
        let driver = Driver::connect(a.socket()).await?;
        let mut held = Vec::with_capacity(streams);
        while held.len() < streams {
            held.push(driver.dial(target).await.with_context(|| format!("stream {}", held.len()))?);
            tokio::time::sleep(pause).await;
        }
        anyhow::Ok(held)
    })?;
    std::thread::sleep(SETTLE);
    (figures.rss_streams_mb, figures.cpu_streams_ms) = watch(a.pid(), seconds)?;
    let info = a.ctl(&["info"])?;
    figures.streams = info["connections"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or_default();
    runtime.block_on(async { drop(held) });
    Ok(figures)
}

/// Memory at the end, and processor time used in each second, milliseconds.
fn watch(pid: u32, seconds: u64) -> Result<(f64, f64)> {
    let before = cpu_seconds(pid)?;
    std::thread::sleep(Duration::from_secs(seconds));
    Ok((super::rss_mb(pid)?, (cpu_seconds(pid)? - before) * 1000.0 / seconds as f64))
}

fn cpu_seconds(pid: u32) -> Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("stat")?;
    // `pid (name) state …`, and the name may hold anything. utime and stime are the 12th and 13th behind it.
    let (_, rest) = stat.rsplit_once(')').context("stat")?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|field| field.parse::<f64>().ok()).context("stat");
    Ok((ticks(11)? + ticks(12)?) / TICKS)
}

/// Prints what was measured, side by side.
pub(crate) fn print_table(rows: &[(String, Idle)], seconds: u64) {
    println!("idle daemons, {seconds} s each, one host, loopback");
    print!("| |");
    rows.iter().for_each(|(label, _)| print!(" {label} |"));
    println!("\n|---|{}", "---|".repeat(rows.len()));
    type Line = (&'static str, fn(&Idle) -> String);
    let lines: [Line; 5] = [
        ("idle: memory, RSS (MB)", |f| format!("{:.1}", f.rss_mb)),
        ("idle: processor (ms per second)", |f| format!("{:.2}", f.cpu_ms)),
        ("idle streams held", |f| f.streams.to_string()),
        ("with these: memory, RSS (MB)", |f| format!("{:.1}", f.rss_streams_mb)),
        ("with these: processor (ms per second)", |f| format!("{:.2}", f.cpu_streams_ms)),
    ];
    for (name, value) in lines {
        print!("| {name} |");
        rows.iter().for_each(|(_, figures)| print!(" {} |", value(figures)));
        println!();
    }
}
