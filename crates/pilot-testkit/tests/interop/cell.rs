//! One cell of the matrix: our daemon and one peer in one set-up, every operation in turn. Runs in namespaces of its own
//! and reports line by line.

use std::fmt;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use pilot_testkit::lab::{Host, Star};
use pilot_testkit::official::{NEWEST, OLDER, Official, RELEASES};
use pilot_testkit::programs::{RendezvousProcess, ours};

use super::party::{Daemon, February, LIMIT, Party, Pipe, Place};

/// Name of the scripted peer in the table.
pub(crate) const FEBRUARY: &str = "Feb";
/// Before a line of the report.
pub(crate) const MARK: &str = "@cell";
/// Silence of the idle operation: longer than every keepalive (25 s, 30 s, 60 s) and than the silence after which 1.18.0
/// doubts a path (55 s).
const IDLE: Duration = Duration::from_secs(65);
/// First port of the streams between the two parties. Each stream has one of its own: on daemons before 1.13 a port stays
/// bound as long as a stream accepted from it lives (03 §6.1).
const FIRST_PORT: u16 = 5000;
/// Time in which a SYN may be a copy of an earlier one, and some.
const LATE_SYN: Duration = Duration::from_secs(3);
/// Bytes of a transfer in one direction.
const TRANSFER: usize = 2 << 20;
/// MiB that a bench sends and gets back.
const BENCH: usize = 2;

/// Shows the logs also when nothing failed.
const LOGS: &str = "PILOT_MATRIX_LOGS";
/// Lines of each log that are shown after a failure.
const LOG_LINES: usize = 80;

/// How the two parties reach each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    Direct,
    /// On two hosts that reach only the rendezvous.
    Relayed,
}

/// What happens to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Course {
    /// Nothing: every operation in turn.
    Steady,
    /// One is killed and started again.
    Restart { ours: bool, survivor_speaks_first: bool },
}

/// A cell's place in the matrix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Cell {
    pub(crate) peer: String,
    pub(crate) way: Way,
    pub(crate) course: Course,
}

/// Every restart: who, and who speaks first.
pub(crate) const RESTARTS: [Course; 4] = [
    Course::Restart { ours: true, survivor_speaks_first: true },
    Course::Restart { ours: true, survivor_speaks_first: false },
    Course::Restart { ours: false, survivor_speaks_first: true },
    Course::Restart { ours: false, survivor_speaks_first: false },
];

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Steady => f.write_str("steady"),
            Self::Restart { ours, survivor_speaks_first } => {
                let who = if ours { "ours restarts" } else { "theirs restarts" };
                let first = if ours == survivor_speaks_first { "they speak first" } else { "we speak first" };
                write!(f, "{who}, {first}")
            }
        }
    }
}

impl Cell {
    /// The set-up as the table names it.
    pub(crate) fn set_up(&self) -> String {
        let way = match self.way {
            Way::Direct => "direct",
            Way::Relayed => "relayed",
        };
        match self.course {
            Course::Steady => way.to_owned(),
            restart => format!("{way}, {restart}"),
        }
    }

    /// One line that [`Cell::parse`] understands.
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.peer, self.set_up())
    }

    pub(crate) fn parse(name: &str) -> Option<Self> {
        all().into_iter().find(|cell| cell.name() == name)
    }
}

fn peers() -> impl Iterator<Item = &'static str> {
    [FEBRUARY].into_iter().chain(RELEASES)
}

/// The full product.
pub(crate) fn all() -> Vec<Cell> {
    let courses = || [Course::Steady].into_iter().chain(RESTARTS);
    let of = |peer: &'static str| {
        let cell = move |way, course| Cell { peer: peer.to_owned(), way, course };
        [Way::Direct, Way::Relayed].into_iter().flat_map(move |way| courses().map(move |course| cell(way, course)))
    };
    peers().flat_map(of).collect()
}

/// What every run shows: each peer direct, by relay and over one restart; two of them over all, and the newest over all by
/// relay.
pub(crate) fn usual() -> Vec<Cell> {
    let restarts = |peer: &str| match peer {
        OLDER | NEWEST => &RESTARTS[..],
        "0.1.2" => &RESTARTS[0..1],
        "1.13.11" => &RESTARTS[1..2],
        FEBRUARY => &RESTARTS[3..4],
        _ => &RESTARTS[2..3],
    };
    let shown = |cell: &Cell| match cell.course {
        Course::Steady => true,
        course => restarts(&cell.peer).contains(&course) && (cell.way == Way::Direct || cell.peer == NEWEST),
    };
    all().into_iter().filter(shown).collect()
}

/// Bytes that differ from place to place and from salt to salt.
pub(crate) fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251 + salt * 97) as u8).collect()
}

/// Both parties and what they live on.
struct Scene {
    ours: Box<dyn Party>,
    theirs: Box<dyn Party>,
    // Dropped last.
    _rendezvous: RendezvousProcess,
    _hosts: Option<Arc<Hosts>>,
}

struct Hosts {
    left: Arc<Host>,
    right: Arc<Host>,
}

/// Runs the operations and writes down how each ended.
#[derive(Default)]
struct Report {
    stuck: bool,
    failed: bool,
}

impl Report {
    fn step<R>(&mut self, operation: &str, work: impl FnOnce() -> Result<R>) -> Option<R> {
        let started = Instant::now();
        let result = if self.stuck { Err(anyhow::anyhow!("not tried")) } else { work() };
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(value) => {
                println!("{MARK}\tok\t{operation}\t{seconds:.1}\t");
                Some(value)
            }
            Err(error) => {
                self.failed = true;
                println!("{MARK}\tfailed\t{operation}\t{seconds:.1}\t{}", format!("{error:#}").replace('\n', " "));
                None
            }
        }
    }

    /// The same, and nothing after a failure is tried.
    fn need<R>(&mut self, operation: &str, work: impl FnOnce() -> Result<R>) -> Option<R> {
        let value = self.step(operation, work);
        self.stuck |= value.is_none();
        value
    }
}

/// Runs a cell here, inside its namespaces.
pub(crate) fn run(cell: &Cell) {
    let mut report = Report::default();
    let Some(mut scene) = report.need("register", || Scene::new(cell)) else { return };
    match cell.course {
        Course::Steady => steady(&mut report, cell, &scene),
        Course::Restart { ours, survivor_speaks_first } => {
            restart(&mut report, cell, &mut scene, ours, survivor_speaks_first);
        }
    }
    if report.failed || std::env::var_os(LOGS).is_some() {
        for party in [&scene.ours, &scene.theirs] {
            let log = party.log();
            let lines: Vec<&str> = log.lines().collect();
            println!("--- log of {}, its end", party.label());
            println!("{}", lines[lines.len().saturating_sub(LOG_LINES)..].join("\n"));
        }
    }
}

impl Scene {
    fn new(cell: &Cell) -> Result<Self> {
        let hosts = match cell.way {
            Way::Direct => None,
            Way::Relayed => {
                let star = Star::new()?;
                Some(Arc::new(Hosts { left: Arc::new(star.left), right: Arc::new(star.right) }))
            }
        };
        let rendezvous = match cell.way {
            Way::Direct => RendezvousProcess::start()?,
            Way::Relayed => RendezvousProcess::start_at(Star::ROUTER, None, |_: &mut Command| {})?,
        };
        rendezvous.wait_ready()?;
        let place = |host: Option<&Arc<Host>>| {
            let ip = host.map_or(rendezvous.registry().ip(), |h| h.ip());
            let (registry, beacon) = (rendezvous.registry(), rendezvous.beacon());
            Place { registry, beacon, listen: SocketAddr::new(ip, 0), host: host.cloned() }
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let runtime = Arc::new(runtime);
        let left = place(hosts.as_deref().map(|h| &h.left));
        let right = place(hosts.as_deref().map(|h| &h.right));
        let our = Daemon::start(&ours(), true, "ours", &left, Arc::clone(&runtime))?;
        let theirs: Box<dyn Party> = if cell.peer == FEBRUARY {
            Box::new(February::start(&right)?)
        } else {
            let official = Official::obtain(&cell.peer).map_err(|e| anyhow::anyhow!("{e}"))?;
            Box::new(Daemon::start(&official.release(), false, "theirs", &right, runtime)?)
        };
        Ok(Self { ours: Box::new(our), theirs, _rendezvous: rendezvous, _hosts: hosts })
    }
}

/// `a` asks, `b` grants, both have it.
fn trust(a: &dyn Party, b: &dyn Party) -> Result<()> {
    a.ask(b.node())?;
    b.grant(a.node())?;
    b.wait_trust(a.node(), true)?;
    a.wait_trust(b.node(), true)
}

/// Packets to the peer go the way that is there.
fn path(cell: &Cell, ours: &dyn Party, theirs: &dyn Party) -> Result<()> {
    let relayed = cell.way == Way::Relayed;
    let started = Instant::now();
    while ours.relays(theirs.node())?.is_some_and(|now| now != relayed) {
        ensure!(started.elapsed() < LIMIT, "packets of {} take the wrong way after {LIMIT:?}", ours.label());
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// A port that nothing used yet.
fn fresh_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A stream from `a` to `b`.
fn stream(a: &dyn Party, b: &dyn Party) -> Result<(Box<dyn Pipe>, Box<dyn Pipe>)> {
    stream_to(a, b, fresh_port())
}

/// A stream from `a` to that port of `b`.
fn stream_to(a: &dyn Party, b: &dyn Party, number: u16) -> Result<(Box<dyn Pipe>, Box<dyn Pipe>)> {
    let mut port = b.listen(number).with_context(|| format!("listen at {}", b.label()))?;
    let client = a.dial(b.node(), number).with_context(|| format!("dial from {}", a.label()))?;
    let server = port.accept().with_context(|| format!("accept at {}", b.label()))?;
    Ok((client, server))
}

/// `up` from client to server and `down` back, at the same time, compared byte for byte.
fn exchange(client: &mut dyn Pipe, server: &mut dyn Pipe, up: &[u8], down: &[u8]) -> Result<()> {
    let (came_down, came_up) = std::thread::scope(|scope| {
        let at_client = scope.spawn(|| client.exchange(up, down.len()));
        let at_server = server.exchange(down, up.len());
        (at_client.join(), at_server)
    });
    let Ok(came_down) = came_down else { bail!("the client's thread panicked") };
    ensure!(came_up.context("at the server")? == up, "what the server got differs");
    ensure!(came_down.context("at the client")? == down, "what the client got differs");
    Ok(())
}

fn transfer(a: &dyn Party, b: &dyn Party, up: usize, down: usize) -> Result<()> {
    let (mut client, mut server) = stream(a, b)?;
    exchange(&mut *client, &mut *server, &pattern(up, 1), &pattern(down, 2))?;
    client.close()?;
    server.drain()?;
    server.close()
}

#[derive(Clone, Copy)]
enum Order {
    ClientFirst,
    ServerFirst,
    Both,
    /// One side ends while the other goes on sending.
    Half,
}

/// Whether ours says that it does not know if the last bytes arrived.
fn unconfirmed(error: &anyhow::Error) -> bool {
    format!("{error:#}").contains("the close was not confirmed in time")
}

/// Everything sent before the close arrives, the other side sees the end, and neither holds the stream afterwards.
fn close(order: Order, a: &dyn Party, b: &dyn Party) -> Result<()> {
    let port = fresh_port();
    let (mut client, mut server) = stream_to(a, b, port)?;
    let data = pattern(64 << 10, 3);
    let ends = |mut first: Box<dyn Pipe>, mut second: Box<dyn Pipe>, goes_on: bool| -> Result<()> {
        first.exchange(&data, 0).context("write before the close")?;
        let came = std::thread::scope(|scope| {
            let closer = scope.spawn(|| first.close());
            let came = second.exchange(&[], data.len());
            if goes_on {
                second.push(&pattern(256 << 10, 4), Duration::from_secs(1));
            }
            let Ok(closed) = closer.join() else { bail!("the closer's thread panicked") };
            closed.context("close first")?;
            came.context("what was written before the close")
        })?;
        ensure!(came == data, "what was written before the close arrived changed");
        // Nothing but the end may follow; a reset is an end as well where this side went on sending.
        match second.drain() {
            Ok(rest) => ensure!(rest.is_empty(), "{} more bytes came", rest.len()),
            Err(error) if goes_on && !format!("{error:#}").contains("no end") => {}
            Err(error) => return Err(error.context("the end after the close")),
        }
        match second.close() {
            // What it went on to send after the peer's end is lost, and it is told that nothing is known of it.
            Err(error) if goes_on && unconfirmed(&error) => Ok(()),
            other => other.context("close second"),
        }
    };
    match order {
        Order::ClientFirst => ends(client, server, false)?,
        Order::ServerFirst => ends(server, client, false)?,
        Order::Half => ends(client, server, true)?,
        Order::Both => {
            exchange(&mut *client, &mut *server, &data, &pattern(64 << 10, 5))?;
            // An old peer that ends at the same moment may leave the last bytes unacknowledged; ours then says, rightly,
            // that it does not know whether they arrived. Here they did: both sides have read everything.
            let ended = |closed: Result<()>| match closed {
                Err(error) if unconfirmed(&error) => Ok(()),
                other => other,
            };
            std::thread::scope(|scope| {
                let other = scope.spawn(|| client.close());
                ended(server.close()).context("at the server")?;
                let Ok(closed) = other.join() else { bail!("the client's thread panicked") };
                ended(closed).context("at the client")
            })?;
        }
    }
    for party in [a, b] {
        let started = Instant::now();
        loop {
            let open = party.open_streams(port)?;
            if open.is_empty() {
                break;
            }
            ensure!(started.elapsed() < LIMIT, "{} still has {} after {LIMIT:?}", party.label(), open.join(", "));
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// A stream that nobody used for a while still works, and so do new ones in both directions.
fn idle(ours: &dyn Party, theirs: &dyn Party) -> Result<()> {
    let (mut client, mut server) = stream(ours, theirs)?;
    exchange(&mut *client, &mut *server, b"before", b"the silence")?;
    std::thread::sleep(IDLE);
    exchange(&mut *client, &mut *server, &pattern(64 << 10, 6), &pattern(64 << 10, 7)).context("the idle stream")?;
    theirs.connect(ours.node(), "they resume").context("a new stream of theirs")?;
    ours.connect(theirs.node(), "we resume").context("a new stream of ours")?;
    client.close()?;
    server.close()
}

/// With nothing going on, next to nothing is sent: no storm is left of anything before.
fn quiet(ours: &dyn Party) -> Result<()> {
    std::thread::sleep(Duration::from_millis(500));
    let before = ours.packets_sent()?;
    std::thread::sleep(Duration::from_secs(2));
    let sent = ours.packets_sent()?.zip(before).map_or(0, |(after, before)| after.saturating_sub(before));
    ensure!(sent < 40, "{sent} packets in two quiet seconds");
    Ok(())
}

/// Operations of a steady pair. `→` is started by us, `←` by them.
fn steady(report: &mut Report, cell: &Cell, scene: &Scene) {
    let (us, them) = (&*scene.ours, &*scene.theirs);
    report.need("trust →", || trust(us, them));
    report.need("revoke", || {
        us.revoke(them.node())?;
        them.wait_trust(us.node(), false)
    });
    report.need("trust ←", || trust(them, us));
    report.step("ping →", || us.ping(them.node()));
    report.step("ping ←", || them.ping(us.node()));
    report.step("connect →", || us.connect(them.node(), "hello over there"));
    report.step("connect ←", || them.connect(us.node(), "hello over there"));
    report.step("path", || path(cell, us, them));
    report.step("bench →", || us.bench(them.node(), BENCH));
    report.step("bench ←", || them.bench(us.node(), BENCH));
    report.step("data →", || transfer(us, them, TRANSFER, 0));
    report.step("data ←", || transfer(them, us, TRANSFER, 0));
    report.step("data ⇄", || transfer(us, them, TRANSFER / 2, TRANSFER / 2));
    let orders = [
        ("client first", Order::ClientFirst),
        ("server first", Order::ServerFirst),
        ("both", Order::Both),
        ("half", Order::Half),
    ];
    for (name, order) in orders {
        report.step(&format!("close {name} →"), || close(order, us, them));
        report.step(&format!("close {name} ←"), || close(order, them, us));
    }
    report.step("quiet", || quiet(us));
    report.step("idle", || idle(us, them));
}

fn restart(report: &mut Report, cell: &Cell, scene: &mut Scene, ours: bool, survivor_speaks_first: bool) {
    let (us, them) = (&*scene.ours, &*scene.theirs);
    report.need("trust →", || trust(us, them));
    report.need("connect →", || us.connect(them.node(), "hello over there"));
    report.need("connect ←", || them.connect(us.node(), "hello over there"));
    let held = report.need("stream", || stream(us, them));
    let survivors_end = held.map(|(client, server)| if ours { server } else { client });
    // Official daemons begin again at the same port and sequence number. Within 2 s such a SYN is a late copy of the one
    // before (02 §27.4), and nobody starts a daemon that quickly.
    std::thread::sleep(LATE_SYN);
    report.need("restart", || if ours { scene.ours.restart() } else { scene.theirs.restart() });

    let (us, them) = (&*scene.ours, &*scene.theirs);
    let (survivor, restarted) = if ours { (them, us) } else { (us, them) };
    let (first, second) = if survivor_speaks_first { (survivor, restarted) } else { (restarted, survivor) };
    report.step("first word", || first.connect(second.node(), "are you there"));
    report.step("answer", || second.connect(first.node(), "here again"));
    report.step("ping →", || us.ping(them.node()));
    report.step("ping ←", || them.ping(us.node()));
    report.step("data →", || transfer(us, them, TRANSFER / 4, 0));
    report.step("data ←", || transfer(them, us, TRANSFER / 4, 0));
    report.step("path", || path(cell, us, them));
    report.step("old stream", || {
        let mut end = survivors_end.context("no stream")?;
        end.push(b"anybody there", Duration::from_secs(1));
        match end.drain() {
            Err(error) if format!("{error:#}").contains("no end") => Err(error),
            _ => Ok(()),
        }
    });
    report.step("quiet", || quiet(us));
}
