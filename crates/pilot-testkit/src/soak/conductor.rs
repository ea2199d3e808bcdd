//! The conductor: starts everything, kills and restarts at random, checks while it runs and at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::{Mutex, RwLock, mpsc};
use tokio::task::block_in_place;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::balance::{View, compare};
use super::figures::Figures;
use super::ledger::{Grace, Ledger, Party};
use super::network::{self, Daemon, STOP, befriend, rendezvous, rendezvous_ready};
use super::plan::{Order, Plan, Report, ServiceAt, millis};
use super::process::{Program, Usage, signal};
use super::seat::{Inbox, Seat};
use super::{Options, Outcome};

/// How long a peer may still fail after a daemon is back, or a client: on a busy machine, with streams that have to
/// learn that their other end is gone.
const GRACE: Grace = Grace { daemon: 45_000, client: 10_000, relay: 20_000 };
/// Failures are judged once every report that could excuse them has come.
const JUDGE_AFTER: u64 = 40_000;
/// Everything must balance this soon after the clients pause: an idle stream whose end died is given up after 40 s.
const SETTLE: Duration = Duration::from_secs(150);
/// The daemons that are never killed, so that their memory can be followed.
const STEADY: usize = 2;
/// Descriptors beyond those of clients that a daemon may hold: a connection to the registry, a file being written.
const SPARE_FDS: u64 = 3;
/// Packets that six daemons without streams may send in [`SILENCE`] altogether: keepalives and registry traffic.
const MURMUR: u64 = 300;
/// How long the silence after the end is listened to.
const SILENCE: Duration = Duration::from_secs(10);
/// Longest wait for the clients to end.
const PARTING: Duration = Duration::from_secs(60);

/// What a client said to [`Order::Hold`].
#[derive(Clone)]
struct Holding {
    round: u64,
    daemon: usize,
    streams: Vec<u32>,
    listens: bool,
}

/// The last answer of each client.
type Answers = BTreeMap<usize, Holding>;

struct Stage {
    options: Options,
    root: PathBuf,
    started: Instant,
    rendezvous: Mutex<Program>,
    daemons: Vec<Mutex<Daemon>>,
    stranger: Mutex<Daemon>,
    plans: Vec<Plan>,
    seats: Vec<Mutex<Option<Seat>>>,
    inbox: Inbox,
    ledger: std::sync::Mutex<Ledger>,
    figures: std::sync::Mutex<Figures>,
    answers: std::sync::Mutex<Answers>,
    pace: std::sync::Mutex<f64>,
    /// Read while something is broken on purpose, written while everything is checked.
    calm: RwLock<()>,
    counts: std::sync::Mutex<BTreeMap<&'static str, u64>>,
}

fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Runs the whole soak in `root`.
pub async fn run(options: Options, root: &Path) -> Result<Outcome> {
    let stage = Stage::set(options, root).await?;
    stage.say(&format!("{} daemons, {} clients, all trusted and working", stage.daemons.len(), stage.seats.len()));
    let end = Instant::now() + stage.options.duration;
    let mut rng = StdRng::seed_from_u64(stage.options.seed);
    let breakers = [
        tokio::spawn(stage.clone().break_clients(StdRng::seed_from_u64(rng.random()))),
        tokio::spawn(stage.clone().break_daemons(StdRng::seed_from_u64(rng.random()))),
        tokio::spawn(stage.clone().break_rendezvous(StdRng::seed_from_u64(rng.random()))),
    ];
    let meter = tokio::spawn(stage.clone().meter());
    let checks = (stage.options.duration.as_secs() / stage.options.check.as_secs().max(1)).max(1);
    let spacing = stage.options.duration / u32::try_from(checks)?;
    let mut next = Instant::now() + spacing;
    let warm = stage.options.warm_up().as_secs();
    while next + spacing / 2 < end {
        sleep_until(next).await;
        stage.check().await?;
        stage.tell_all(&Order::Resume).await;
        next += spacing;
    }
    sleep_until(end).await;
    // Nothing is broken any more; a breaker that is in the middle of it finishes first.
    let calm = stage.calm.write().await;
    for breaker in &breakers {
        breaker.abort();
    }
    drop(calm);
    for breaker in breakers {
        match breaker.await {
            Ok(result) => result?,
            Err(error) if error.is_cancelled() => {}
            Err(error) => return Err(error.into()),
        }
    }
    stage.check().await?;
    meter.abort();
    stage.finish().await?;
    lock(&stage.ledger).judge(u64::MAX);
    for text in lock(&stage.figures).judge(warm) {
        lock(&stage.ledger).violation(text);
    }
    Ok(stage.outcome(warm))
}

impl Stage {
    async fn set(options: Options, root: &Path) -> Result<Arc<Self>> {
        network::separate()?;
        let mut rendezvous = rendezvous(root)?;
        rendezvous.start()?;
        rendezvous_ready(&mut rendezvous).await?;
        let mut daemons = Vec::new();
        for i in 0..=options.daemons {
            let name = if i == options.daemons { "stranger".to_owned() } else { format!("daemon-{i}") };
            let mut daemon = Daemon::new(root, i, &name)?;
            daemon.program.start()?;
            daemon.ready(true, 0).await.with_context(|| name)?;
            daemons.push(daemon);
        }
        let stranger = daemons.pop().context("the stranger")?;
        for (i, a) in daemons.iter().enumerate() {
            for (j, b) in daemons.iter().enumerate().skip(i + 1) {
                befriend(a, b).await.with_context(|| format!("trust between daemons {i} and {j}"))?;
            }
        }
        for daemon in &mut daemons {
            let info = daemon.info().await?;
            let view = View::parse(&info)?;
            let usage = Usage::of(daemon.program.pid().context("pid")?)?;
            (daemon.base_ports, daemon.base_fds) = (view.ports, usage.fds.saturating_sub(view.clients));
        }
        let nodes: Vec<u32> = daemons.iter().map(|d| d.node).collect();
        let services: Vec<ServiceAt> = (0..options.clients)
            .map(|client| ServiceAt { client, daemon: client % options.daemons, port: 2000 + client as u16 })
            .collect();
        let mut rng = StdRng::seed_from_u64(options.seed ^ 1);
        let plans = services.iter().map(|at| Plan {
            client: at.client,
            seed: rng.random(),
            daemon: at.daemon,
            socket: daemons[at.daemon].socket.clone(),
            port: at.port,
            nodes: nodes.clone(),
            stranger: stranger.node,
            services: services.clone(),
            pace: 1.0,
        });
        let plans: Vec<Plan> = plans.collect();
        let (inbox, reports) = mpsc::unbounded_channel();
        let stage = Arc::new(Self {
            root: root.to_owned(),
            started: Instant::now(),
            rendezvous: Mutex::new(rendezvous),
            daemons: daemons.into_iter().map(Mutex::new).collect(),
            stranger: Mutex::new(stranger),
            seats: plans.iter().map(|_| Mutex::new(None)).collect(),
            plans,
            inbox,
            ledger: std::sync::Mutex::new(Ledger::new(GRACE)),
            figures: std::sync::Mutex::default(),
            answers: std::sync::Mutex::default(),
            pace: std::sync::Mutex::new(1.0),
            calm: RwLock::new(()),
            counts: std::sync::Mutex::default(),
            options,
        });
        tokio::spawn(stage.clone().keep_book(reports));
        for client in 0..stage.seats.len() {
            // Until it says otherwise.
            lock(&stage.ledger).begin(Party::Client(client), millis());
        }
        for client in 0..stage.seats.len() {
            stage.seat(client, stage.plans[client].seed).await?;
        }
        Ok(stage)
    }

    fn say(&self, text: &str) {
        println!("[{:>5} s] {text}", self.started.elapsed().as_secs());
    }

    fn count(&self, what: &'static str) {
        *lock(&self.counts).entry(what).or_default() += 1;
    }

    /// Whether a client is a process: the last ones are.
    fn is_process(&self, client: usize) -> bool {
        client + self.options.processes >= self.plans.len()
    }

    /// Puts a client to work.
    async fn seat(&self, client: usize, seed: u64) -> Result<()> {
        let plan = Plan { seed, pace: *lock(&self.pace), ..self.plans[client].clone() };
        let seat = if self.is_process(client) {
            Seat::process(&plan, &self.inbox, self.root.join("clients.log"))?
        } else {
            Seat::task(plan, &self.inbox)
        };
        *self.seats[client].lock().await = Some(seat);
        Ok(())
    }

    /// Puts what clients report into the book.
    async fn keep_book(self: Arc<Self>, mut reports: mpsc::UnboundedReceiver<(usize, usize, Report)>) {
        while let Some((client, daemon, report)) = reports.recv().await {
            if let Report::Held { round, streams, listens } = report {
                lock(&self.answers).insert(client, Holding { round, daemon, streams, listens });
            } else {
                lock(&self.ledger).report(client, daemon, report);
            }
        }
    }

    async fn tell_all(&self, order: &Order) {
        for seat in &self.seats {
            if let Some(seat) = &*seat.lock().await {
                seat.order(order.clone());
            }
        }
    }

    // --- What is broken on purpose -------------------------------------------------------------------------------

    /// Kills client processes, and stops others for a while.
    async fn break_clients(self: Arc<Self>, mut rng: StdRng) -> Result<()> {
        let (first, all) = (self.plans.len() - self.options.processes, self.plans.len());
        if first == all {
            return Ok(());
        }
        loop {
            sleep(Duration::from_millis(rng.random_range(1_000..6_000))).await;
            let _breaking = self.calm.read().await;
            let client = rng.random_range(first..all);
            lock(&self.ledger).begin(Party::Client(client), millis());
            if rng.random_ratio(7, 10) {
                let seat = self.seats[client].lock().await.take();
                if let Some(seat) = seat {
                    seat.kill().await?;
                }
                sleep(Duration::from_millis(rng.random_range(0..1_500))).await;
                self.seat(client, rng.random()).await?;
                self.count("client processes killed");
            } else if let Some(pid) = self.seats[client].lock().await.as_ref().and_then(Seat::pid) {
                signal(pid, libc::SIGSTOP)?;
                sleep(Duration::from_millis(rng.random_range(500..5_000))).await;
                signal(pid, libc::SIGCONT)?;
                self.count("client processes stopped and continued");
            }
            lock(&self.ledger).end(Party::Client(client), millis());
        }
    }

    /// Kills daemons, or tells them to stop, and starts them again on their homes.
    async fn break_daemons(self: Arc<Self>, mut rng: StdRng) -> Result<()> {
        if self.daemons.len() <= STEADY {
            return Ok(());
        }
        loop {
            sleep(Duration::from_secs(rng.random_range(20..50))).await;
            let _breaking = self.calm.read().await;
            let index = rng.random_range(STEADY..self.daemons.len());
            let mut daemon = self.daemons[index].lock().await;
            lock(&self.ledger).begin(Party::Daemon(index), millis());
            if rng.random_ratio(3, 4) {
                daemon.program.kill()?;
                self.count("daemons killed and restarted");
            } else {
                block_in_place(|| daemon.program.stop(STOP))?;
                self.count("daemons stopped and restarted");
            }
            sleep(Duration::from_millis(rng.random_range(0..5_000))).await;
            daemon.program.start()?;
            let trusted = self.daemons.len() - 1;
            if let Err(error) = daemon.ready(false, trusted).await {
                lock(&self.ledger).violation(format!("daemon {index} after its restart: {error:#}"));
            }
            lock(&self.ledger).end(Party::Daemon(index), millis());
        }
    }

    /// Kills the rendezvous, or tells it to stop, and starts it again on its store. Nothing between daemons that run
    /// all the time may notice, so the book hears of it only for the pair that talks by relay.
    async fn break_rendezvous(self: Arc<Self>, mut rng: StdRng) -> Result<()> {
        loop {
            sleep(Duration::from_secs(rng.random_range(30..100))).await;
            let _breaking = self.calm.read().await;
            let mut rendezvous = self.rendezvous.lock().await;
            let relay = Party::Relay(network::RELAYED.0, network::RELAYED.1);
            lock(&self.ledger).begin(relay, millis());
            if rng.random_ratio(2, 3) {
                rendezvous.kill()?;
                self.count("rendezvous killed and restarted");
            } else {
                block_in_place(|| rendezvous.stop(STOP))?;
                self.count("rendezvous stopped and restarted");
            }
            sleep(Duration::from_millis(rng.random_range(0..8_000))).await;
            rendezvous.start()?;
            rendezvous_ready(&mut rendezvous).await?;
            lock(&self.ledger).end(relay, millis());
        }
    }

    // --- What is watched all the time ----------------------------------------------------------------------------

    /// Names and ids of all processes, and failures of those that ended although nobody told them to.
    async fn processes(&self) -> Vec<(String, u32)> {
        let mut all = vec![("soak".to_owned(), std::process::id())];
        let mut note = |name: String, program: &mut Program| {
            match program.ended() {
                Ok(None) => {}
                other => {
                    let text = format!("{name} ended by itself: {other:?}\n{}", program.tail(20));
                    lock(&self.ledger).violation(text);
                }
            }
            all.extend(program.pid().map(|pid| (name, pid)));
        };
        // One that is being restarted right now is locked and left out.
        if let Ok(mut rendezvous) = self.rendezvous.try_lock() {
            note("rendezvous".to_owned(), &mut rendezvous);
        }
        for (i, daemon) in self.daemons.iter().enumerate() {
            if let Ok(mut daemon) = daemon.try_lock() {
                note(format!("daemon-{i}"), &mut daemon.program);
            }
        }
        if let Ok(mut daemon) = self.stranger.try_lock() {
            note("stranger".to_owned(), &mut daemon.program);
        }
        all
    }

    /// Measures, and holds the load where it was asked for.
    async fn meter(self: Arc<Self>) {
        let mut before = 0;
        loop {
            let began = Instant::now();
            sleep(Duration::from_secs(5)).await;
            let mut pids: BTreeSet<u32> = BTreeSet::new();
            for (name, pid) in self.processes().await {
                if let Ok(usage) = Usage::of(pid) {
                    pids.insert(pid);
                    let mut figures = lock(&self.figures);
                    figures.note(&name, pid, usage, None);
                    figures.cpu(pid, usage);
                }
            }
            for seat in &self.seats {
                let Ok(seat) = seat.try_lock() else { continue };
                if let Some(pid) = seat.as_ref().and_then(Seat::pid)
                    && let Ok(usage) = Usage::of(pid)
                {
                    pids.insert(pid);
                    lock(&self.figures).cpu(pid, usage);
                }
            }
            let total = {
                let mut figures = lock(&self.figures);
                figures.ended(|pid| pids.contains(&pid));
                figures.total_cpu()
            };
            let used = total.saturating_sub(before) as f64 / began.elapsed().as_millis() as f64;
            before = total;
            let pace = {
                let mut pace = lock(&self.pace);
                let change = (used / self.options.cores).clamp(0.8, 1.25);
                *pace = (*pace * change).clamp(0.05, 20.0);
                *pace
            };
            self.tell_all(&Order::Pace(pace)).await;
            lock(&self.ledger).judge(millis().saturating_sub(JUDGE_AFTER));
        }
    }

    // --- Checks --------------------------------------------------------------------------------------------------

    /// Pauses everybody and waits until daemons and clients agree about every stream. Leaves the clients paused.
    async fn check(&self) -> Result<()> {
        let _calm = self.calm.write().await;
        self.tell_all(&Order::Pause).await;
        let began = Instant::now();
        let mut wrong = Vec::new();
        for round in millis().. {
            wrong = match self.balance(round).await {
                Ok(wrong) => wrong,
                Err(error) => vec![format!("{error:#}")],
            };
            if wrong.is_empty() || began.elapsed() > SETTLE {
                break;
            }
            sleep(Duration::from_millis(500)).await;
        }
        for text in wrong {
            lock(&self.ledger).violation(format!("after {SETTLE:?} of quiet: {text}"));
        }
        self.measure().await;
        let totals = lock(&self.ledger).totals().clone();
        let failed = lock(&self.ledger).violations().len();
        self.say(&format!(
            "in balance after {:.1} s; {} operations, {} excused, {} dials, {:.1} MB checked, pace {:.2}, {failed} violations",
            began.elapsed().as_secs_f64(),
            totals.good,
            totals.excused,
            totals.dials,
            totals.received as f64 / 1e6,
            *lock(&self.pace),
        ));
        Ok(())
    }

    /// Notes memory and descriptors of every process while nothing moves.
    async fn measure(&self) {
        let at = self.started.elapsed().as_secs();
        for (name, pid) in self.processes().await {
            match Usage::of(pid) {
                Ok(usage) => lock(&self.figures).note(&name, pid, usage, Some(at)),
                Err(error) => lock(&self.ledger).violation(format!("{name}: {error:#}")),
            }
        }
    }

    async fn balance(&self, round: u64) -> Result<Vec<String>> {
        self.tell_all(&Order::Hold(round)).await;
        let deadline = Instant::now() + Duration::from_secs(20);
        let answers = loop {
            let answers = lock(&self.answers).clone();
            if answers.values().filter(|holding| holding.round == round).count() == self.seats.len() {
                break answers;
            }
            if Instant::now() > deadline {
                let answered = |c: &usize| answers.get(c).is_some_and(|holding| holding.round == round);
                let silent: Vec<usize> = (0..self.seats.len()).filter(|c| !answered(c)).collect();
                return Ok(vec![format!("clients {silent:?} do not say what they hold")]);
            }
            sleep(Duration::from_millis(20)).await;
        };
        let mut held = vec![BTreeSet::new(); self.daemons.len()];
        let mut listening = vec![0; self.daemons.len()];
        for holding in answers.into_values() {
            held[holding.daemon].extend(holding.streams);
            listening[holding.daemon] += u64::from(holding.listens);
        }
        let views = self.views().await?;
        let mut wrong = compare(&views, &held);
        for (i, view) in views.iter().enumerate() {
            let daemon = self.daemons[i].lock().await;
            let expected = daemon.base_ports + listening[i];
            if view.ports != expected {
                wrong.push(format!("daemon {i}: {} ports are bound instead of {expected}", view.ports));
            }
            wrong.extend(descriptors(i, &daemon, view)?);
        }
        Ok(wrong)
    }

    async fn views(&self) -> Result<Vec<View>> {
        let mut views = Vec::new();
        for (i, daemon) in self.daemons.iter().enumerate() {
            let info = daemon.lock().await.info().await.with_context(|| format!("daemon {i}"))?;
            views.push(View::parse(&info)?);
        }
        Ok(views)
    }

    /// Ends the clients and shows that nothing of them is left; then ends the daemons.
    async fn finish(&self) -> Result<()> {
        for (client, seat) in self.seats.iter().enumerate() {
            if let Some(seat) = seat.lock().await.take() {
                match timeout(PARTING, seat.stop()).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => lock(&self.ledger).violation(format!("client {client}: {error:#}")),
                    Err(_) => lock(&self.ledger).violation(format!("client {client} does not end")),
                }
            }
        }
        let began = Instant::now();
        loop {
            let wrong = match self.emptiness().await {
                Ok(wrong) => wrong,
                Err(error) => vec![format!("{error:#}")],
            };
            if wrong.is_empty() {
                break;
            }
            if began.elapsed() > SETTLE {
                for text in wrong {
                    lock(&self.ledger).violation(format!("{SETTLE:?} after the last client: {text}"));
                }
                break;
            }
            sleep(Duration::from_millis(500)).await;
        }
        self.say(&format!("nothing left after {:.1} s", began.elapsed().as_secs_f64()));
        let before: u64 = self.views().await?.iter().map(|v| v.pkts_sent).sum();
        sleep(SILENCE).await;
        let packets = self.views().await?.iter().map(|v| v.pkts_sent).sum::<u64>().saturating_sub(before);
        self.say(&format!("{packets} packets in {SILENCE:?} of silence"));
        if packets > MURMUR {
            lock(&self.ledger).violation(format!("{packets} packets in {SILENCE:?} although nobody says anything"));
        }
        self.measure().await;
        for (i, daemon) in self.daemons.iter().chain([&self.stranger]).enumerate() {
            let mut daemon = daemon.lock().await;
            if let Err(error) = block_in_place(|| daemon.program.stop(STOP)) {
                lock(&self.ledger).violation(format!("daemon {i}: {error:#}\n{}", daemon.program.tail(20)));
            }
            for text in daemon.program.complaints() {
                lock(&self.ledger).violation(text);
            }
        }
        let mut rendezvous = self.rendezvous.lock().await;
        if let Err(error) = block_in_place(|| rendezvous.stop(STOP)) {
            lock(&self.ledger).violation(format!("{error:#}"));
        }
        for text in rendezvous.complaints() {
            lock(&self.ledger).violation(text);
        }
        Ok(())
    }

    /// What is left of clients that have ended.
    async fn emptiness(&self) -> Result<Vec<String>> {
        let views = self.views().await?;
        let mut wrong = Vec::new();
        for (i, view) in views.iter().enumerate() {
            let daemon = self.daemons[i].lock().await;
            if let Some(conn) = view.conns.first() {
                wrong.push(format!("daemon {i}: {} streams are left, such as {conn:?}", view.conns.len()));
            }
            if view.ports != daemon.base_ports {
                wrong.push(format!("daemon {i}: {} ports are bound instead of {}", view.ports, daemon.base_ports));
            }
            if view.clients != 1 {
                wrong.push(format!("daemon {i}: {} clients are connected instead of the one that asks", view.clients));
            }
            wrong.extend(descriptors(i, &daemon, view)?);
        }
        Ok(wrong)
    }

    fn outcome(&self, warm: u64) -> Outcome {
        let ledger = lock(&self.ledger);
        let totals = ledger.totals();
        let mut text = format!(
            "\nseed {}, {} s\noperations {} good, {} failed beside a disturbance; longest good one {} ms ({})\n\
             dials {}, bytes written {}, bytes read and compared {}, datagrams compared {}\n",
            self.options.seed,
            self.started.elapsed().as_secs(),
            totals.good,
            totals.excused,
            totals.longest.0,
            totals.longest.1,
            totals.dials,
            totals.sent,
            totals.received,
            totals.datagrams,
        );
        for (what, n) in &*lock(&self.counts) {
            text.push_str(&format!("{what}: {n}\n"));
        }
        let figures = lock(&self.figures);
        let cores = figures.total_cpu() as f64 / self.started.elapsed().as_millis().max(1) as f64;
        text.push_str(&format!("processor: {cores:.2} cores on average\n\n{}", figures.table(warm)));
        text.push_str("\nexcused failures by text\n");
        for (excuse, n) in ledger.excuses().into_iter().take(25) {
            text.push_str(&format!("{n:>7}  {excuse}\n"));
        }
        Outcome { summary: text, violations: ledger.violations().to_vec() }
    }
}

/// Every descriptor of a daemon belongs to itself or to a client it counts.
fn descriptors(index: usize, daemon: &Daemon, view: &View) -> Result<Option<String>> {
    let pid = daemon.program.pid().ok_or_else(|| anyhow!("daemon {index} does not run"))?;
    let open = Usage::of(pid)?.fds;
    let expected = daemon.base_fds + view.clients + SPARE_FDS;
    ensure!(view.clients > 0, "daemon {index} does not count the client that asks");
    Ok((open > expected).then(|| {
        format!(
            "daemon {index}: {open} descriptors are open, of {} clients and {} of its own",
            view.clients, daemon.base_fds
        )
    }))
}
