//! One application of the soak: a driver, a service of its own, kept streams, and one random operation after another.
//! It runs as a task of the conductor or as a process that can be killed.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use pilot::{Driver, Listener};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::plan::{Done, Order, Plan, Report, millis};
use super::talk::{self, Wrong};
use super::tasks::{Held, Idle, Job, Never, Tally};

/// An operation that takes longer has hung: a daemon gives up a dial after half a minute and a stream after one.
const OPERATION_LIMIT: Duration = Duration::from_secs(120);
/// What an operation under way still gets when the clients are told to pause.
const PAUSE_LIMIT: Duration = Duration::from_secs(10);
/// Pause between two operations at pace 1.
const BREATH: Duration = Duration::from_millis(400);
/// Pause before a daemon that was not there is tried again.
const RETRY: Duration = Duration::from_millis(300);
/// A port of a client that was killed must be free again by then.
const PORT_LIMIT: Duration = Duration::from_secs(30);
/// Streams kept idle.
const MOST_IDLE: usize = 4;

type Reports = mpsc::UnboundedSender<Report>;

/// The application.
pub(super) struct Client {
    plan: Plan,
    rng: StdRng,
    orders: mpsc::UnboundedReceiver<Order>,
    reports: Reports,
    held: Held,
    connected: Option<Connected>,
    idle: Vec<Idle>,
    paused: bool,
    stopped: bool,
    pace: f64,
}

struct Connected {
    driver: Driver,
    service: Service,
    datagrams: JoinHandle<()>,
}

/// The accepting task. It owns the listener and the streams accepted from it.
struct Service {
    stop: oneshot::Sender<bool>,
    task: JoinHandle<()>,
}

impl Client {
    /// A client that lives until it is told to stop.
    pub(super) fn new(plan: Plan, orders: mpsc::UnboundedReceiver<Order>, reports: Reports) -> Self {
        let (rng, pace) = (StdRng::seed_from_u64(plan.seed), plan.pace);
        let (connected, idle, held) = (None, Vec::new(), Held::default());
        Self { plan, rng, orders, reports, held, connected, idle, paused: false, stopped: false, pace }
    }

    /// Works until told to stop.
    pub(super) async fn run(mut self) {
        while !self.stopped {
            if self.paused {
                let order = self.orders.recv().await;
                self.obey(order).await;
                continue;
            }
            if self.connected.as_ref().is_none_or(|c| c.service.task.is_finished()) {
                self.disconnect().await;
                if let Err(error) = self.connect().await {
                    if error.is::<Never>() {
                        self.say(Report::Wrong(format!("client {}: {error:#}", self.plan.client)));
                    }
                    self.rest(RETRY).await;
                    continue;
                }
            }
            match self.rng.random_range(0..200) {
                0 => self.reconnect().await,
                1..4 => self.listen_again().await,
                _ => self.work().await,
            }
            let breath = BREATH.mul_f64(self.pace * self.rng.random_range(0.25..1.75));
            self.rest(breath).await;
        }
        self.disconnect().await;
        self.say(Report::Stopped);
    }

    fn say(&self, report: Report) {
        // Nobody listens only when the run is over.
        let _ = self.reports.send(report);
    }

    async fn obey(&mut self, order: Option<Order>) {
        match order {
            Some(Order::Pause) => self.paused = true,
            Some(Order::Resume) => self.paused = false,
            Some(Order::Pace(pace)) => self.pace = pace,
            Some(Order::Hold(round)) => {
                let mut open = Vec::new();
                for mut idle in std::mem::take(&mut self.idle) {
                    if idle.is_open().await {
                        open.push(idle);
                    }
                }
                self.idle = open;
                let listens = self.connected.as_ref().is_some_and(|c| !c.service.task.is_finished());
                self.say(Report::Held { round, streams: self.held.list(), listens });
            }
            Some(Order::Stop) | None => self.stopped = true,
        }
    }

    async fn rest(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while !self.stopped && !self.paused {
            tokio::select! {
                () = sleep_until(end) => return,
                order = self.orders.recv() => self.obey(order).await,
            }
        }
    }

    /// One operation, to its end unless the clients are told to pause or to stop.
    async fn work(&mut self) {
        let Some(connected) = &self.connected else { return };
        let job = Job::draw(&self.plan, &mut self.rng, &mut self.idle, MOST_IDLE);
        let mut done = Done {
            what: job.what.clone(),
            start: job.since.unwrap_or_else(millis),
            end: 0,
            daemon: job.daemon,
            client: job.client,
            dials: 0,
            sent: 0,
            received: 0,
            failure: None,
        };
        let mut tally = Tally::default();
        let result = {
            let work = job.run(connected.driver.clone(), self.held.clone(), &mut tally);
            tokio::pin!(work);
            let mut limit = Instant::now() + OPERATION_LIMIT;
            let mut asked = false;
            loop {
                tokio::select! {
                    result = &mut work => break Some(result),
                    () = sleep_until(limit) => {
                        let hung = || Err(anyhow!("took longer than {OPERATION_LIMIT:?}"));
                        break (!asked).then(hung);
                    }
                    order = self.orders.recv(), if !asked => match order {
                        Some(Order::Pace(pace)) => self.pace = pace,
                        Some(Order::Pause) => {
                            (self.paused, asked) = (true, true);
                            limit = Instant::now() + PAUSE_LIMIT;
                        }
                        Some(Order::Resume | Order::Hold(_)) => {}
                        Some(Order::Stop) | None => {
                            self.stopped = true;
                            break None;
                        }
                    },
                }
            }
        };
        (done.dials, done.sent, done.received, done.end) = (tally.dials, tally.sent, tally.received, millis());
        match result {
            Some(Ok(kept)) => self.idle.extend(kept),
            Some(Err(error)) => {
                if error.chain().any(|e| e.is::<Wrong>() || e.is::<Never>()) {
                    let (me, with, what) = (self.plan.daemon, done.daemon, &done.what);
                    self.say(Report::Wrong(format!("daemon {me} to {with}: {what}: {error:#}")));
                }
                done.failure = Some(format!("{error:#}"));
            }
            // Cut short by us: neither good nor bad.
            None => {}
        }
        self.say(Report::Done(done));
    }

    async fn connect(&mut self) -> Result<()> {
        let driver = Driver::connect(&self.plan.socket).await?;
        let service = self.listen(&driver).await?;
        let (receiver, reports) = (driver.clone(), self.reports.clone());
        let datagrams = tokio::spawn(async move {
            while let Ok(datagram) = receiver.recv_from().await {
                let report = match talk::check_datagram(&datagram.data) {
                    Ok(()) => Report::Datagrams(1),
                    Err(error) => Report::Wrong(format!("datagram from {}: {error:#}", datagram.from)),
                };
                if reports.send(report).is_err() {
                    return;
                }
            }
        });
        self.connected = Some(Connected { driver, service, datagrams });
        self.say(Report::Back(millis()));
        Ok(())
    }

    /// Binds the own port. A predecessor that was killed may have held it: its daemon notices at once, but not before.
    async fn listen(&mut self, driver: &Driver) -> Result<Service> {
        let (port, deadline) = (self.plan.port, Instant::now() + PORT_LIMIT);
        let listener = loop {
            match driver.listen(port).await {
                Ok(listener) => break listener,
                Err(error) if error.daemon_text().is_none() => return Err(error.into()),
                Err(error) if Instant::now() > deadline => {
                    return Err(Never(format!("port {port} is not free after {PORT_LIMIT:?}: {error}")).into());
                }
                Err(_) => self.rest(RETRY).await,
            }
            if self.paused || self.stopped {
                return Err(anyhow!("interrupted"));
            }
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(accept(listener, stopped, self.held.clone(), self.reports.clone()));
        Ok(Service { stop, task })
    }

    /// Closes everything.
    async fn disconnect(&mut self) {
        self.idle.clear();
        if let Some(connected) = self.connected.take() {
            self.say(Report::Away(millis()));
            connected.service.end(false).await;
            connected.datagrams.abort();
            // The receiver holds a clone of the driver.
            let _ = connected.datagrams.await;
        }
    }

    async fn reconnect(&mut self) {
        self.disconnect().await;
        self.rest(RETRY).await;
    }

    /// Gives the port up, with the streams accepted from it living on, and takes it again.
    async fn listen_again(&mut self) {
        let Some(Connected { driver, service, datagrams }) = self.connected.take() else { return };
        self.say(Report::Away(millis()));
        service.end(true).await;
        match self.listen(&driver).await {
            Ok(service) => {
                self.connected = Some(Connected { driver, service, datagrams });
                self.say(Report::Back(millis()));
            }
            Err(error) => {
                if error.is::<Never>() {
                    self.say(Report::Wrong(format!("client {}: {error:#}", self.plan.client)));
                }
                datagrams.abort();
                let _ = datagrams.await;
            }
        }
    }
}

impl Service {
    /// Ends accepting, and the accepted streams at once or in their own time.
    async fn end(self, gently: bool) {
        // A task that has ended already got no such word.
        let _ = self.stop.send(gently);
        let _ = self.task.await;
    }
}

async fn accept(listener: Listener, mut stop: oneshot::Receiver<bool>, held: Held, reports: Reports) {
    let mut streams = JoinSet::new();
    let gently = loop {
        tokio::select! {
            gently = &mut stop => break gently.unwrap_or(false),
            accepted = listener.accept() => {
                let Ok(stream) = accepted else { return };
                let (held, reports) = (held.clone(), reports.clone());
                streams.spawn(async move {
                    let mut stream = held.hold(stream);
                    if let Err(error) = talk::serve(stream.get()).await
                        && error.chain().any(|e| e.is::<Wrong>())
                    {
                        // The run ends with the receiver.
                        let _ = reports.send(Report::Wrong(format!("accepted from {}: {error:#}", stream.get().remote())));
                    }
                });
            }
            Some(_) = streams.join_next() => {}
        }
    };
    listener.close().await;
    if gently {
        // They end by themselves: every dialler finishes, or its daemon does.
        tokio::spawn(async move { while streams.join_next().await.is_some() {} });
    } else {
        streams.shutdown().await;
    }
}

/// The client as a process: its plan is the first line of standard input, orders the further ones; reports are lines of
/// standard output. Ends with its input.
pub fn process() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let plan = serde_json::from_str(&lines.next_line().await?.context("no plan on standard input")?)?;
        let (orders, received) = mpsc::unbounded_channel();
        let (reports, mut out) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let Ok(order) = serde_json::from_str(&line) else { return };
                if orders.send(order).is_err() {
                    return;
                }
            }
        });
        let printer = std::thread::spawn(move || {
            use std::io::Write as _;
            let mut stdout = std::io::stdout().lock();
            while let Some(report) = out.blocking_recv() {
                let line = serde_json::to_string(&report).unwrap_or_default();
                if writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err() {
                    return;
                }
            }
        });
        Client::new(plan, received, reports).run().await;
        // Every sender is gone with the client, but for streams that their dialler is just ending.
        let _ = tokio::time::timeout(PAUSE_LIMIT, tokio::task::spawn_blocking(move || printer.join())).await;
        Ok(())
    });
    // A read of standard input under way would hold the process up.
    runtime.shutdown_background();
    result
}
