//! Benchmarks beside the official daemons: the same operations, through the same client, in one run.
//!
//! `cargo run --release -p pilot-bench` starts one rendezvous and, for each product, two daemons as processes in a
//! network of their own, and prints a table with ratios. Figures are for notes and documentation; no test depends on
//! them.
#![allow(clippy::disallowed_methods)] // measures real time with real programs

mod idle;
mod services;

use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Parser;
use pilot::Driver;
use pilot_testkit::agent::{Agent, AgentOptions, Release, make_trust};
use pilot_testkit::isolate;
use pilot_testkit::official::Official;
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};
use pilot_wire::SocketAddress;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// First port the receiving application binds; each round has its own, because old daemons free a port late.
const SINK_PORT: u16 = 5000;
/// Echo service.
const ECHO_PORT: u16 = 7;
/// Set in the child that runs inside the namespace.
const INSIDE: &str = "PILOT_BENCH_INSIDE";

#[derive(Parser, Clone)]
#[command(about = "Benchmarks of Pilot beside the official daemons, in one run")]
struct Options {
    /// Megabytes (10^6 bytes) of each transfer.
    #[arg(long, default_value_t = 50)]
    size_mb: usize,
    /// Transfers of which the best and the median are shown.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Measure idle daemons instead: memory and processor time, alone and with this many idle streams.
    #[arg(long)]
    idle_streams: Option<usize>,
    /// Seconds for which idle daemons are watched.
    #[arg(long, default_value_t = 60)]
    idle_seconds: u64,
    /// Measure the services instead: messages, events and a file of `--file-mb`, also from one product to the other.
    #[arg(long)]
    services: bool,
    /// Messages of all senders together in a row of the services.
    #[arg(long, default_value_t = 3200)]
    messages: usize,
    /// Events to one subscriber; to a hundred it is a tenth of it.
    #[arg(long, default_value_t = 20_000)]
    events: usize,
    /// Megabytes (10^6 bytes) of the file.
    #[arg(long, default_value_t = 1000)]
    file_mb: usize,
    /// Official release to compare with, or `none`.
    #[arg(long, default_value = "1.18.0")]
    official: String,
}

/// What was measured of one product.
#[derive(Default)]
struct Figures {
    transfer_best: f64,
    transfer_median: f64,
    echo_p50_us: f64,
    echo_p99_us: f64,
    dial_p50_us: f64,
    info_ipc_us: f64,
    info_command_ms: f64,
    idle_rss_mb: f64,
    bench_command_mbps: f64,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let options = Options::parse();
    if std::env::var_os(INSIDE).is_none() {
        need_programs().map_err(|e| anyhow::anyhow!("{e}"))?;
        if options.official != "none" {
            Official::obtain(&options.official).map_err(|e| anyhow::anyhow!("{e}"))?;
        }
        let mut child = isolate::unshare();
        child.arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(INSIDE, "1");
        let status = child.stdin(Stdio::null()).status().context("unshare")?;
        if !status.success() {
            bail!("the run inside the namespace ended with {status}");
        }
        return Ok(());
    }
    isolate::loopback_up()?;
    let mut products = vec![(ours(), ours().label, true)];
    if options.official != "none" {
        let official = Official::obtain(&options.official).map_err(|e| anyhow::anyhow!("{e}"))?.release();
        let label = official.label.clone();
        products.push((official, label, true));
    }
    // The same daemon through the local socket of February, to see what the extended one costs or gains.
    products.push((ours(), format!("{}, old local socket", ours().label), false));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    if let Some(streams) = options.idle_streams {
        let mut rows = Vec::new();
        // The old local socket is a matter of throughput, not of idling.
        for (product, label, _) in products.iter().filter(|(.., extended)| *extended) {
            eprintln!("watching {label} ...");
            let figures = idle::measure(&runtime, product, options.idle_seconds, streams, ECHO_PORT)?;
            rows.push((label.clone(), figures));
        }
        idle::print_table(&rows, options.idle_seconds);
        return Ok(());
    }
    if options.services {
        let amounts =
            services::Amounts { messages: options.messages, events: options.events, file_mb: options.file_mb };
        let mut pairs = vec![(ours(), ours())];
        if let [_, (official, ..), _] = &products[..] {
            pairs.extend([
                (official.clone(), official.clone()),
                (ours(), official.clone()),
                (official.clone(), ours()),
            ]);
        }
        let mut rows = Vec::new();
        for (sender, receiver) in &pairs {
            let label = format!("{} to {}", sender.label, receiver.label);
            eprintln!("measuring {label} ...");
            rows.push((label, services::measure(&runtime, sender, receiver, amounts)?));
        }
        services::print_table(&rows, amounts);
        return Ok(());
    }
    let mut rows = Vec::new();
    for (product, label, extended) in &products {
        eprintln!("measuring {label} ...");
        rows.push((label.clone(), measure(&runtime, product, *extended, &options)?));
    }
    print_table(&rows, &options);
    Ok(())
}

/// `extended`: whether the client uses the extended local socket where the daemon serves it.
fn measure(runtime: &tokio::runtime::Runtime, product: &Release, extended: bool, options: &Options) -> Result<Figures> {
    let rendezvous = RendezvousProcess::start()?;
    let agent = |name: &str| {
        Agent::start(product, &AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public())
    };
    let (a, b) = (agent("bench-a")?, agent("bench-b")?);
    make_trust(&a, &b, Duration::from_secs(120))?;
    std::thread::sleep(Duration::from_secs(2));
    let idle_rss_mb = rss_mb(a.pid())?;
    let target: pilot_wire::Address = b.address().parse()?;
    let mut figures = Figures { idle_rss_mb, ..Figures::default() };
    let (socket_a, socket_b) = (a.socket(), b.socket());
    runtime.block_on(async {
        let local = pilot::Options::default().extension(extended);
        let client = Driver::connect_with(&socket_a, local.clone()).await?;
        let server = Driver::connect_with(&socket_b, local).await?;
        let mut rates = Vec::new();
        for round in 0..options.rounds {
            let port = SINK_PORT + u16::try_from(round)?;
            rates
                .push(transfer(&client, &server, SocketAddress::new(target, port), options.size_mb * 1_000_000).await?);
        }
        rates.sort_by(f64::total_cmp);
        figures.transfer_best = rates.last().copied().unwrap_or_default();
        figures.transfer_median = rates.get(rates.len() / 2).copied().unwrap_or_default();
        let echo = echo_times(&client, target, 2000).await?;
        figures.echo_p50_us = percentile(&echo, 50);
        figures.echo_p99_us = percentile(&echo, 99);
        let dials = dial_times(&client, target, 200).await?;
        figures.dial_p50_us = percentile(&dials, 50);
        let mut infos = Vec::new();
        for _ in 0..200 {
            let started = Instant::now();
            client.info().await?;
            infos.push(started.elapsed());
        }
        figures.info_ipc_us = percentile(&infos, 50);
        anyhow::Ok(())
    })?;
    let mut commands = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        a.ctl(&["info"])?;
        commands.push(started.elapsed());
    }
    figures.info_command_ms = percentile(&commands, 50) / 1000.0;
    let bench = a.ctl(&["bench", b.address(), &(options.size_mb.min(50)).to_string()])?;
    figures.bench_command_mbps = bench["total_mbps"].as_f64().unwrap_or_default();
    Ok(figures)
}

/// One way, application to application; the clock stops when the receiver has said that it has everything.
async fn transfer(client: &Driver, server: &Driver, target: SocketAddress, bytes: usize) -> Result<f64> {
    let listener = server.listen(target.port).await?;
    let sink = tokio::spawn(async move {
        let mut stream = listener.accept().await?;
        let mut buf = vec![0; 256 * 1024];
        let mut got = 0;
        while got < bytes {
            match stream.read(&mut buf).await? {
                0 => bail!("the stream ended after {got} of {bytes} bytes"),
                n => got += n,
            }
        }
        stream.write_all(b"!").await?;
        stream.flush().await?;
        // The peer closes first, so that its answer cannot be overtaken.
        let _ = stream.read(&mut buf).await;
        anyhow::Ok(())
    });
    let mut stream = client.dial(target).await?;
    let chunk = vec![0x5A; 256 * 1024];
    let started = Instant::now();
    let mut left = bytes;
    while left > 0 {
        let n = left.min(chunk.len());
        stream.write_all(&chunk[..n]).await?;
        left -= n;
    }
    stream.flush().await?;
    let mut answer = [0; 1];
    stream.read_exact(&mut answer).await?;
    let rate = bytes as f64 / 1e6 / started.elapsed().as_secs_f64();
    stream.close().await?;
    sink.await??;
    Ok(rate)
}

async fn echo_times(client: &Driver, target: pilot_wire::Address, count: usize) -> Result<Vec<Duration>> {
    let mut stream = client.dial(SocketAddress::new(target, ECHO_PORT)).await?;
    let mut times = Vec::with_capacity(count);
    let mut buf = [0; 64];
    for _ in 0..count {
        let started = Instant::now();
        stream.write_all(&[7; 64]).await?;
        stream.flush().await?;
        stream.read_exact(&mut buf).await?;
        times.push(started.elapsed());
    }
    stream.close().await?;
    Ok(times)
}

async fn dial_times(client: &Driver, target: pilot_wire::Address, count: usize) -> Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    for _ in 0..count {
        let started = Instant::now();
        let stream = client.dial(SocketAddress::new(target, ECHO_PORT)).await?;
        times.push(started.elapsed());
        stream.close().await?;
        // Official daemons allow ten new streams a second from one peer, with some burst.
        tokio::time::sleep(Duration::from_millis(110)).await;
    }
    Ok(times)
}

/// Microseconds.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort();
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)))
        .map_or(0.0, |d| d.as_secs_f64() * 1e6)
}

fn rss_mb(pid: u32) -> Result<f64> {
    let path: PathBuf = format!("/proc/{pid}/status").into();
    let status = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS")?;
    let kb: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kb / 1024.0)
}

fn print_table(rows: &[(String, Figures)], options: &Options) {
    type Column = (&'static str, fn(&Figures) -> f64, bool);
    let lines: [Column; 9] = [
        ("app to app, best (MB/s)", |f| f.transfer_best, true),
        ("app to app, median (MB/s)", |f| f.transfer_median, true),
        ("`bench` command, round trip (MiB/s)", |f| f.bench_command_mbps, true),
        ("echo on an open stream, p50 (us)", |f| f.echo_p50_us, false),
        ("echo on an open stream, p99 (us)", |f| f.echo_p99_us, false),
        ("dial, p50 (us)", |f| f.dial_p50_us, false),
        ("info over the socket, p50 (us)", |f| f.info_ipc_us, false),
        ("`info` command, p50 (ms)", |f| f.info_command_ms, false),
        ("idle memory of a daemon, RSS (MB)", |f| f.idle_rss_mb, false),
    ];
    println!("{} MB x {} rounds, one host, loopback", options.size_mb, options.rounds);
    print!("| |");
    rows.iter().for_each(|(label, _)| print!(" {label} |"));
    println!("{}", if rows.len() > 1 { " ratio |" } else { "" });
    println!("|---|{}", "---|".repeat(rows.len() + usize::from(rows.len() > 1)));
    for (name, value, higher_is_better) in lines {
        print!("| {name} |");
        rows.iter().for_each(|(_, f)| print!(" {:.1} |", value(f)));
        if let [(_, ours), (_, theirs), ..] = rows {
            let (ours, theirs) = (value(ours), value(theirs));
            let ratio = if higher_is_better { ours / theirs } else { theirs / ours };
            print!(" {ratio:.1}x |");
        }
        println!();
    }
}
