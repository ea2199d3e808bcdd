//! What the services do in a second: messages that are kept on disk before they are acknowledged, events to one and to
//! many, and a large file, between two daemons of a product and from one product to another.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pilot::{Driver, Stream};
use pilot_testkit::agent::{Agent, AgentOptions, Release, make_trust};
use pilot_testkit::programs::RendezvousProcess;
use pilot_wire::service::dataexchange::{self, HEADER_LEN, Header};
use pilot_wire::service::events::Frame;
use pilot_wire::{Address, SocketAddress};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

/// Port of the event broker.
const EVENTS: u16 = 1002;
/// Senders at once in the second row of messages; subscribers in the second row of events.
const SENDERS: usize = 32;
const SUBSCRIBERS: usize = 100;
/// Bytes of a message and of an event.
const BODY: usize = 256;
/// Pause between dials: official daemons allow ten new streams a second from one peer.
const DIAL_PAUSE: Duration = Duration::from_millis(110);
/// Without an event for so long, what has not come is counted as lost.
const SILENCE: Duration = Duration::from_secs(10);

/// What was measured of one pair.
#[derive(Default)]
pub(crate) struct Services {
    messages_one: f64,
    messages_many: f64,
    messages_kept: f64,
    events_one: f64,
    events_one_lost: f64,
    events_many: f64,
    events_many_lost: f64,
    file_mbps: f64,
}

/// How much is done for each figure.
#[derive(Clone, Copy)]
pub(crate) struct Amounts {
    pub(crate) messages: usize,
    pub(crate) events: usize,
    pub(crate) file_mb: usize,
}

/// From a daemon of `sender` to one of `receiver`.
pub(crate) fn measure(
    runtime: &tokio::runtime::Runtime,
    sender: &Release,
    receiver: &Release,
    amounts: Amounts,
) -> Result<Services> {
    let rendezvous = RendezvousProcess::start()?;
    let agent = |product: &Release, name: &str| {
        let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
        Agent::start(product, &options.flag("-log-level").flag("warn"))
    };
    let (a, b) = (agent(sender, "serve-a")?, agent(receiver, "serve-b")?);
    make_trust(&a, &b, Duration::from_secs(120))?;
    std::thread::sleep(Duration::from_secs(2));
    let target: Address = b.address().parse()?;
    let mut figures = Services::default();
    runtime.block_on(async {
        let driver = Driver::connect(a.socket()).await?;
        figures.messages_one = messages(&driver, target, 1, amounts.messages).await.context("messages of one")?;
        figures.messages_many =
            messages(&driver, target, SENDERS, amounts.messages).await.context("messages of many")?;
        (figures.events_one, figures.events_one_lost) =
            events(&driver, target, 1, amounts.events).await.context("events to one")?;
        (figures.events_many, figures.events_many_lost) =
            events(&driver, target, SUBSCRIBERS, amounts.events / 10).await.context("events to many")?;
        anyhow::Ok(())
    })?;
    let sent = (1 + SENDERS) * each_sender(amounts.messages);
    figures.messages_kept = 100.0 * kept(&b)? as f64 / sent as f64;
    figures.file_mbps = file(&a, &b, amounts.file_mb).context("a file")?;
    Ok(figures)
}

/// Messages that each sender sends, so that many senders together send `count`.
fn each_sender(count: usize) -> usize {
    (count / SENDERS).max(1)
}

/// Each sender has a stream of its own and waits for the acknowledgement of a message before it sends the next one.
async fn messages(driver: &Driver, target: Address, senders: usize, count: usize) -> Result<f64> {
    let each = each_sender(count);
    let mut streams = Vec::new();
    for _ in 0..senders {
        streams.push(driver.dial(SocketAddress::new(target, dataexchange::PORT)).await?);
        tokio::time::sleep(DIAL_PAUSE).await;
    }
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    for mut stream in streams {
        tasks.spawn(async move {
            let mut frame = Header { kind: dataexchange::TEXT, len: BODY as u32 }.emit().to_vec();
            frame.extend_from_slice(&[b'm'; BODY]);
            for _ in 0..each {
                stream.write_all(&frame).await?;
                stream.flush().await?;
                let mut head = [0; HEADER_LEN];
                stream.read_exact(&mut head).await?;
                let header = Header::parse(head).check(1024)?;
                let mut text = vec![0; header.len as usize];
                stream.read_exact(&mut text).await?;
                ensure!(text.starts_with(b"ACK"), "refused: {}", String::from_utf8_lossy(&text));
            }
            anyhow::Ok(stream)
        });
    }
    let mut done = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        done.push(ended??);
    }
    let rate = (each * senders) as f64 / started.elapsed().as_secs_f64();
    for stream in done {
        stream.close().await?;
    }
    Ok(rate)
}

/// Messages in the inbox of an agent, as files: what was acknowledged must be there.
fn kept(agent: &Agent) -> Result<usize> {
    let directory = agent.home().join(".pilot/inbox");
    let entries = std::fs::read_dir(&directory).with_context(|| directory.display().to_string())?;
    Ok(entries.flatten().filter(|entry| entry.path().extension().is_some_and(|ext| ext == "json")).count())
}

/// Deliveries in a second, and the share in per cent that never came.
async fn events(driver: &Driver, target: Address, subscribers: usize, count: usize) -> Result<(f64, f64)> {
    let topic: &[u8] = b"bench";
    let place = SocketAddress::new(target, EVENTS);
    let join = async |topic: &[u8]| -> Result<Stream> {
        let mut stream = driver.dial(place).await?;
        let mut frame = Vec::new();
        Frame { topic, payload: b"" }.emit(&mut frame)?;
        stream.write_all(&frame).await?;
        stream.flush().await?;
        tokio::time::sleep(DIAL_PAUSE).await;
        Ok(stream)
    };
    let mut tasks = JoinSet::new();
    for _ in 0..subscribers {
        let stream = join(topic).await?;
        tasks.spawn(receive(stream, count));
    }
    let mut publisher = join(b"nothing comes here").await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut frame = Vec::new();
    Frame { topic, payload: &[b'e'; BODY] }.emit(&mut frame)?;
    let started = Instant::now();
    for _ in 0..count {
        publisher.write_all(&frame).await?;
    }
    publisher.flush().await?;
    let (mut came, mut last) = (0, started);
    while let Some(ended) = tasks.join_next().await {
        let (events, at) = ended??;
        came += events;
        last = last.max(at);
    }
    let expected = (count * subscribers) as f64;
    let seconds = last.duration_since(started).as_secs_f64().max(1e-9);
    publisher.close().await?;
    Ok((came as f64 / seconds, 100.0 * (expected - came as f64) / expected))
}

/// Events that came, and when the last one did.
async fn receive(mut stream: Stream, count: usize) -> Result<(usize, Instant)> {
    let mut buf = Vec::new();
    let mut chunk = vec![0; 64 * 1024];
    let (mut came, mut last) = (0, Instant::now());
    while came < count {
        let Ok(read) = tokio::time::timeout(SILENCE, stream.read(&mut chunk)).await else { break };
        let read = read?;
        if read == 0 {
            break;
        }
        buf.extend_from_slice(&chunk[..read]);
        let mut used = 0;
        while let Some((_, length)) = Frame::parse(&buf[used..])? {
            used += length;
            came += 1;
            last = Instant::now();
        }
        buf.drain(..used);
    }
    Ok((came, last))
}

/// `send-file`, from the start of the command to its end; the file must then be there, whole.
fn file(a: &Agent, b: &Agent, megabytes: usize) -> Result<f64> {
    let bytes = megabytes * 1_000_000;
    let name = "bench.bin";
    let path = a.home().join(name);
    let block: Vec<u8> = (0..1_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut file = std::fs::File::create(&path)?;
    for _ in 0..megabytes {
        std::io::Write::write_all(&mut file, &block)?;
    }
    drop(file);
    let text = path.to_str().context("a path of text")?;
    let started = Instant::now();
    a.ctl(&["send-file", b.address(), text])?;
    let elapsed = started.elapsed();
    std::fs::remove_file(&path)?;
    let directory = b.home().join(".pilot/received");
    let mut sizes = Vec::new();
    for entry in std::fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            sizes.push(entry.metadata()?.len());
            std::fs::remove_file(entry.path())?;
        }
    }
    ensure!(sizes.contains(&(bytes as u64)), "{bytes} bytes were sent, and the receiver has files of {sizes:?} bytes");
    Ok(bytes as f64 / 1e6 / elapsed.as_secs_f64())
}

pub(crate) fn print_table(rows: &[(String, Services)], amounts: Amounts) {
    type Line = (&'static str, fn(&Services) -> f64);
    let lines: [Line; 8] = [
        ("messages acknowledged, one sender (1/s)", |s| s.messages_one),
        ("messages acknowledged, 32 senders (1/s)", |s| s.messages_many),
        ("of those acknowledged, in the inbox (%)", |s| s.messages_kept),
        ("events, one subscriber (deliveries/s)", |s| s.events_one),
        ("lost (%)", |s| s.events_one_lost),
        ("events, 100 subscribers (deliveries/s)", |s| s.events_many),
        ("lost (%)", |s| s.events_many_lost),
        ("`send-file` (MB/s)", |s| s.file_mbps),
    ];
    println!(
        "{} messages and {} events of {BODY} bytes, a file of {} MB; one host, loopback",
        amounts.messages, amounts.events, amounts.file_mb
    );
    print!("| |");
    rows.iter().for_each(|(label, _)| print!(" {label} |"));
    println!("\n|---|{}", "---|".repeat(rows.len()));
    for (name, value) in lines {
        print!("| {name} |");
        rows.iter().for_each(|(_, services)| print!(" {:.1} |", value(services)));
        println!();
    }
}
