//! The operations of a client, drawn from its random numbers, and how each is carried out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pilot::{Address, Driver, SocketAddress, Stream};
use rand::Rng;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::plan::{Plan, ServiceAt, millis};
use super::talk::{self, Mode, Request};

/// The echo service of every daemon.
const ECHO: u16 = 7;
/// A port that nobody binds.
const NOBODY: u16 = 4999;
/// How long a dial to a node that does not trust us is waited for. The daemon itself would try for half a minute.
const STRANGER_WAIT: Duration = Duration::from_millis(1500);
/// Pause between two datagrams of a row.
const DATAGRAM_GAP: Duration = Duration::from_millis(5);

/// Something that must not have happened, whatever was killed meanwhile.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Never(pub String);

/// The streams a client holds, by the daemon's numbers.
#[derive(Clone, Default)]
pub(super) struct Held(Arc<std::sync::Mutex<BTreeMap<u32, usize>>>);

impl Held {
    /// Their numbers.
    pub(super) fn list(&self) -> Vec<u32> {
        self.lock().keys().copied().collect()
    }

    /// Counts a stream as held until the value is dropped.
    pub(super) fn hold(&self, stream: Stream) -> HeldStream {
        *self.lock().entry(stream.id()).or_default() += 1;
        HeldStream { mark: Mark { id: stream.id(), held: self.clone() }, stream: Some(stream) }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u32, usize>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A stream that is counted.
pub(super) struct HeldStream {
    // Before the mark, so that a stream is never open and yet not counted.
    stream: Option<Stream>,
    #[expect(dead_code, reason = "counts by being dropped")]
    mark: Mark,
}

struct Mark {
    id: u32,
    held: Held,
}

impl Drop for Mark {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        if let Some(count) = held.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.id);
            }
        }
    }
}

impl HeldStream {
    /// The stream.
    pub(super) fn get(&mut self) -> &mut Stream {
        self.stream.as_mut().expect("taken only by close")
    }

    async fn close(mut self) -> std::io::Result<()> {
        match self.stream.take() {
            Some(stream) => stream.close().await,
            None => Ok(()),
        }
    }

    /// Whether the stream is still open and silent, as an idle one should be.
    pub(super) async fn is_idle(&mut self) -> bool {
        // A ready answer comes before the deadline, which has passed already.
        tokio::time::timeout(Duration::ZERO, self.get().read(&mut [0])).await.is_err()
    }
}

/// A stream to an echo that is kept for later.
pub(super) struct Idle {
    stream: HeldStream,
    daemon: usize,
    seed: u64,
    at: u64,
    /// When it was last seen to work, in the clock of [`millis`]: what has become of it since counts as later.
    since: u64,
}

impl Idle {
    /// Whether it is still open.
    pub(super) async fn is_open(&mut self) -> bool {
        self.stream.is_idle().await
    }
}

/// How a stream ends.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ending {
    /// `close`, confirmed.
    Close,
    /// `shutdown`, then read to the end.
    Shutdown,
    /// Dropped after everything was read.
    Drop,
    /// Dropped with half of it unread.
    Early,
    /// Closed right after the last write, nothing read.
    Unread,
}

/// One operation.
pub(super) enum Task {
    /// Through the built-in echo and back.
    Echo { seed: u64, len: u64, ending: Ending },
    /// With another client's service.
    Service { at: ServiceAt, request: Request, ending: Ending },
    /// To a port that nobody binds.
    Refused,
    /// Given up while it is under way.
    Cancel { after: Duration },
    /// Opened and dropped at once.
    Vanish,
    /// Several echoes at once.
    Burst { seed: u64, count: usize, len: u64 },
    /// Opens a stream and keeps it.
    Open { seed: u64 },
    /// Uses a kept stream.
    Use { idle: Idle, len: u64, close: bool },
    /// Datagrams to another client's service.
    Datagrams { at: ServiceAt, seed: u64, count: u64, len: usize },
    /// To a node that does not trust us.
    Stranger,
}

/// What an operation moved.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) dials: u64,
    pub(super) sent: u64,
    pub(super) received: u64,
}

/// An operation and whom it is with.
pub(super) struct Job {
    /// For messages.
    pub(super) what: String,
    /// The daemon at the other end.
    pub(super) daemon: usize,
    /// The client at the other end.
    pub(super) client: Option<usize>,
    /// When what it builds on was last seen to work, if that is before now.
    pub(super) since: Option<u64>,
    task: Task,
    node: u32,
}

impl Job {
    /// Draws one. `idle` is a kept stream to use, if the draw says so.
    pub(super) fn draw(plan: &Plan, rng: &mut impl Rng, idle: &mut Vec<Idle>, most_idle: usize) -> Self {
        let daemon = rng.random_range(0..plan.nodes.len());
        let at = plan.services[rng.random_range(0..plan.services.len())];
        let seed = rng.random();
        let ending =
            [Ending::Close, Ending::Shutdown, Ending::Drop, Ending::Early, Ending::Unread][rng.random_range(0..5)];
        let small = rng.random_range(1..16_000);
        let (task, what) = match rng.random_range(0..100) {
            0..28 => (Task::Echo { seed, len: small, ending }, format!("echo of {small} bytes, {ending:?}")),
            28..31 => {
                let len = rng.random_range(100_000..1_500_000);
                (Task::Echo { seed, len, ending }, format!("echo of {len} bytes, {ending:?}"))
            }
            31..61 => {
                let mode = [Mode::Echo, Mode::Push, Mode::Pull, Mode::Slow, Mode::PullClose, Mode::Vanish]
                    [rng.random_range(0..6)];
                let len = if rng.random_ratio(1, 12) { rng.random_range(100_000..1_000_000) } else { small };
                let request = Request { mode, seed, len, pause: rng.random_range(500..2500) };
                (Task::Service { at, request, ending }, format!("{mode:?} of {len} bytes, {ending:?}"))
            }
            61..66 => (Task::Refused, "dial of a port nobody binds".to_owned()),
            66..71 => {
                let after = Duration::from_micros(rng.random_range(0..20_000));
                (Task::Cancel { after }, format!("dial given up after {after:?}"))
            }
            71..75 => (Task::Vanish, "dial and drop".to_owned()),
            75..78 => {
                let count = rng.random_range(2..10);
                (Task::Burst { seed, count, len: small / 4 + 1 }, format!("{count} echoes at once"))
            }
            78..85 if idle.len() < most_idle => (Task::Open { seed }, "open a stream to keep".to_owned()),
            78..93 if !idle.is_empty() => {
                let idle = idle.swap_remove(rng.random_range(0..idle.len()));
                let (len, close) = (small, rng.random_ratio(1, 3));
                let (daemon, since) = (idle.daemon, Some(idle.since));
                let what = format!("{len} bytes over a kept stream");
                return Self {
                    what,
                    daemon,
                    client: None,
                    since,
                    task: Task::Use { idle, len, close },
                    node: plan.nodes[daemon],
                };
            }
            93..99 => {
                let count = rng.random_range(1..8);
                (Task::Datagrams { at, seed, count, len: rng.random_range(0..1000) }, format!("{count} datagrams"))
            }
            99 => (Task::Stranger, "dial of a node that does not trust us".to_owned()),
            _ => (Task::Echo { seed, len: 1, ending }, format!("echo of 1 byte, {ending:?}")),
        };
        let (daemon, client) = match &task {
            Task::Service { at, .. } | Task::Datagrams { at, .. } => (at.daemon, Some(at.client)),
            _ => (daemon, None),
        };
        let node = if matches!(task, Task::Stranger) { plan.stranger } else { plan.nodes[daemon] };
        Self { what, daemon, client, since: None, task, node }
    }

    /// Does it. A stream that is to be kept comes back.
    pub(super) async fn run(self, driver: Driver, held: Held, tally: &mut Tally) -> Result<Option<Idle>> {
        let to = |port| SocketAddress::new(Address::backbone(self.node), port);
        match self.task {
            Task::Echo { seed, len, ending } => {
                let stream = held.hold(dial(&driver, to(ECHO), tally).await?);
                finish(stream, seed, len, ending, tally).await?;
            }
            Task::Service { at, request, ending } => {
                let mut stream = held.hold(dial(&driver, to(at.port), tally).await?);
                service(&mut stream, &request, tally).await?;
                if request.mode == Mode::Echo {
                    finish(stream, request.seed, request.len, ending, tally).await?;
                }
            }
            Task::Refused => match dial(&driver, to(NOBODY), tally).await {
                Ok(_) => bail!(Never("a port that nobody binds was opened".to_owned())),
                Err(error) => ensure!(format!("{error:#}").contains("refused"), "expected a refusal: {error:#}"),
            },
            Task::Cancel { after } => {
                // Either outcome will do.
                let _ = tokio::time::timeout(after, dial(&driver, to(ECHO), tally)).await;
            }
            Task::Vanish => drop(dial(&driver, to(ECHO), tally).await?),
            Task::Burst { seed, count, len } => burst(&driver, to(ECHO), &held, seed, count, len, tally).await?,
            Task::Open { seed } => {
                let mut stream = held.hold(dial(&driver, to(ECHO), tally).await?);
                talk::round_trip(stream.get(), seed, 0, 100, &mut tally.sent, &mut tally.received).await?;
                return Ok(Some(Idle { stream, daemon: self.daemon, seed, at: 100, since: millis() }));
            }
            Task::Use { mut idle, len, close } => {
                let stream = idle.stream.get();
                talk::round_trip(stream, idle.seed, idle.at, len, &mut tally.sent, &mut tally.received).await?;
                idle.at += len;
                idle.since = millis();
                if !close {
                    return Ok(Some(idle));
                }
                idle.stream.close().await.context("close a kept stream")?;
            }
            Task::Datagrams { at, seed, count, len } => {
                for i in 0..count {
                    let data = talk::datagram(seed.wrapping_add(i), len);
                    driver.send_to(to(at.port), &data).await.context("datagram")?;
                    tally.sent += data.len() as u64;
                    tokio::time::sleep(DATAGRAM_GAP).await;
                }
            }
            Task::Stranger => {
                if driver.dial_timeout(to(ECHO), STRANGER_WAIT).await.is_ok() {
                    bail!(Never("a node that trusts nobody let us in".to_owned()));
                }
            }
        }
        Ok(None)
    }
}

async fn dial(driver: &Driver, to: SocketAddress, tally: &mut Tally) -> Result<Stream> {
    tally.dials += 1;
    driver.dial(to).await.map_err(|error| anyhow!("dial {to}: {error}"))
}

/// An echo of `len` bytes and the end of its stream.
async fn finish(mut stream: HeldStream, seed: u64, len: u64, ending: Ending, tally: &mut Tally) -> Result<()> {
    let (sent, received) = (&mut tally.sent, &mut tally.received);
    match ending {
        Ending::Close => {
            talk::round_trip(stream.get(), seed, 0, len, sent, received).await?;
            stream.close().await.context("close")?;
        }
        Ending::Shutdown => {
            talk::round_trip(stream.get(), seed, 0, len, sent, received).await?;
            stream.get().shutdown().await.context("shutdown")?;
            let end = talk::read_end(stream.get(), seed, len, received).await?;
            ensure!(end == len, Never(format!("{} bytes more than were sent", end - len)));
        }
        Ending::Drop => talk::round_trip(stream.get(), seed, 0, len, sent, received).await?,
        Ending::Early => {
            // A small echo, so that writing does not wait for reading.
            let len = len.min(60_000);
            talk::write(stream.get(), seed, 0, len, sent).await?;
            talk::read(stream.get(), seed, 0, len / 2, received).await?;
        }
        Ending::Unread => {
            talk::write(stream.get(), seed, 0, len.min(60_000), sent).await?;
            stream.close().await.context("close")?;
        }
    }
    Ok(())
}

/// Everything but [`Mode::Echo`], whose end is the dialler's choice.
async fn service(stream: &mut HeldStream, request: &Request, tally: &mut Tally) -> Result<()> {
    let stream = stream.get();
    stream.write_all(&request.bytes()).await.context("request")?;
    match request.mode {
        Mode::Echo => {}
        Mode::Push => {
            let end = talk::read_end(stream, request.seed, 0, &mut tally.received).await?;
            ensure!(end <= request.len, Never(format!("{} bytes more than were sent", end - request.len)));
            ensure!(end == request.len, "the stream ended after {end} of {} bytes", request.len);
        }
        Mode::Pull | Mode::Slow => {
            talk::deliver(stream, request, &mut tally.sent).await?;
            stream.shutdown().await.context("shutdown")?;
        }
        Mode::PullClose => {
            talk::deliver(stream, request, &mut tally.sent).await?;
            ensure!(stream.read(&mut [0]).await.context("end")? == 0, Never("bytes after the end".to_owned()));
        }
        Mode::Vanish => {
            // The peer goes away at once: whether the write fails is a matter of time, but the stream must end.
            let _ = talk::write(stream, request.seed, 0, request.len.min(60_000), &mut tally.sent).await;
            while let Ok(1..) = stream.read(&mut [0; 64]).await {}
        }
    }
    Ok(())
}

async fn burst(
    driver: &Driver,
    to: SocketAddress,
    held: &Held,
    seed: u64,
    count: usize,
    len: u64,
    tally: &mut Tally,
) -> Result<()> {
    let mut all = tokio::task::JoinSet::new();
    for i in 0..count {
        let (driver, held) = (driver.clone(), held.clone());
        all.spawn(async move {
            let mut tally = Tally::default();
            let stream = held.hold(dial(&driver, to, &mut tally).await?);
            let ending = if i % 2 == 0 { Ending::Close } else { Ending::Drop };
            finish(stream, seed.wrapping_add(i as u64), len, ending, &mut tally).await?;
            anyhow::Ok(tally)
        });
    }
    let mut failure = None;
    while let Some(result) = all.join_next().await {
        match result.map_err(anyhow::Error::from).and_then(|done| done) {
            Ok(done) => {
                tally.dials += done.dials;
                tally.sent += done.sent;
                tally.received += done.received;
            }
            Err(error) => failure = Some(error),
        }
    }
    failure.map_or(Ok(()), Err)
}
