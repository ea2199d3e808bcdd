//! The daemon's log: structured lines, without IP addresses above `debug`, that can neither fill the disk nor hold the
//! daemon up.
//!
//! | File | Holds |
//! |---|---|
//! | `record` | what a line says and how it is written |
//! | `scrub` | takes IP addresses out |
//! | `limit` | collapses what repeats |
//! | `file` | the file and its rotation |
//!
//! Lines go through a bounded queue to a thread of their own: a slow disk, or a terminal that nobody reads, costs lines
//! (counted), never time of the daemon.

mod file;
mod limit;
mod record;
mod scrub;

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender};
use std::time::Duration;

use parking_lot::Mutex;
use pilot_env::Env;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::error::NodeError;
pub(super) use file::FileOptions;
use file::LogFile;
use limit::{Limiter, Verdict};
pub(super) use record::Format;
use record::{Field, Record};

/// Environment variable with log directives (`pilot_node=debug,warn`) that go before `-log-level`.
const VARIABLE: &str = "PILOT_LOG";
/// Lines on their way to the disk. Further ones are counted and left out.
const QUEUE: usize = 8192;
/// Their bytes.
const QUEUE_BYTES: usize = 4 << 20;
/// How often counts that are due are looked for.
const TICK: Duration = Duration::from_secs(1);
/// How long the end of the program waits for the last lines.
const FLUSH: Duration = Duration::from_secs(2);

/// How the daemon logs.
#[derive(Debug, Clone)]
pub(super) struct Options {
    /// `debug`, `info`, `warn` or `error`.
    pub(super) level: String,
    pub(super) format: Format,
    /// `None` is standard error.
    pub(super) file: Option<FileOptions>,
}

/// Counts of the log, for the metrics.
#[derive(Debug, Default)]
pub(super) struct Stats {
    /// Lines written, by level: error, warn, info, debug.
    pub(super) written: [AtomicU64; 4],
    /// Lines held back because they repeat.
    pub(super) held: AtomicU64,
    /// Lines lost: the queue was full, or the file could not be written.
    pub(super) lost: AtomicU64,
    /// Bytes waiting for the disk.
    pub(super) queued: AtomicUsize,
}

/// Names of [`Stats::written`].
pub(super) const LEVELS: [&str; 4] = ["error", "warn", "info", "debug"];

fn slot(level: Level) -> usize {
    match level {
        Level::ERROR => 0,
        Level::WARN => 1,
        Level::INFO => 2,
        Level::DEBUG | Level::TRACE => 3,
    }
}

enum Order {
    Line(Level, String),
    Reopen,
    Flush(SyncSender<()>),
}

/// The way into the log.
struct Sink {
    env: Env,
    format: Format,
    limiter: Mutex<Limiter>,
    queue: SyncSender<Order>,
    stats: Arc<Stats>,
}

impl Sink {
    fn write(&self, record: &Record) {
        let mut due = Vec::new();
        let verdict = self.limiter.lock().judge(self.env.now(), record, &mut due);
        due.iter().for_each(|record| self.enqueue(record));
        match verdict {
            Verdict::Write => self.enqueue(record),
            Verdict::Hold => {
                self.stats.held.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn enqueue(&self, record: &Record) {
        let mut line = String::new();
        record.write(self.env.unix(), self.format, &mut line);
        let len = line.len();
        let has_room = self.stats.queued.fetch_add(len, Ordering::Relaxed) + len <= QUEUE_BYTES;
        if !has_room || self.queue.try_send(Order::Line(record.level, line)).is_err() {
            self.stats.queued.fetch_sub(len, Ordering::Relaxed);
            self.stats.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Tells the counts whose time has come. Called by the writing thread, which must not queue: it would wait for itself.
    fn due(&self, all: bool) -> Vec<(Level, String)> {
        let mut due = Vec::new();
        self.limiter.lock().due(self.env.now(), all, &mut due);
        let text = |record: Record| {
            let mut line = String::new();
            record.write(self.env.unix(), self.format, &mut line);
            (record.level, line)
        };
        due.into_iter().map(text).collect()
    }
}

/// Hands events to the sink.
struct Tap(Arc<Sink>);

impl<S: Subscriber> Layer<S> for Tap {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        self.0.write(&Record::read(event));
    }
}

/// The running log. [`Log::flush`] before the program ends.
#[derive(Clone)]
pub(super) struct Log {
    sink: Arc<Sink>,
    filter: Option<reload::Handle<EnvFilter, Registry>>,
}

impl Log {
    /// Starts the log of this process. A second start in one process keeps the first one's log.
    pub(super) fn start(env: &Env, options: Options) -> Result<Self, NodeError> {
        let (sink, tap) = Self::open(env, &options)?;
        let (filter, handle) = reload::Layer::new(filter(&options.level)?);
        let filter = tracing_subscriber::registry().with(filter).with(tap).try_init().is_ok().then_some(handle);
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            let text = panic.payload().downcast_ref::<&str>().copied();
            let text =
                text.or_else(|| panic.payload().downcast_ref::<String>().map(String::as_str)).unwrap_or_default();
            tracing::error!(place, text, "a task failed on a mistake in this program: please report it");
            previous(panic);
        }));
        Ok(Self { sink, filter })
    }

    fn open(env: &Env, options: &Options) -> Result<(Arc<Sink>, Tap), NodeError> {
        let target = match &options.file {
            None => Target::Stderr,
            Some(file) => Target::File(
                LogFile::open(env, file.clone())
                    .map_err(|source| NodeError::File { path: file.path.clone(), source })?,
            ),
        };
        let (queue, orders) = mpsc::sync_channel(QUEUE);
        let stats = Arc::new(Stats::default());
        let limiter = Mutex::default();
        let sink = Arc::new(Sink { env: env.clone(), format: options.format, limiter, queue, stats });
        let writer = Writer { sink: sink.clone(), target, lost_told: 0 };
        let started = std::thread::Builder::new().name("log".to_owned()).spawn(move || writer.run(&orders));
        started.map_err(|error| NodeError::Config(format!("cannot start a thread for the log: {error}")))?;
        Ok((sink.clone(), Tap(sink)))
    }

    /// Counts of the log.
    pub(super) fn stats(&self) -> Arc<Stats> {
        self.sink.stats.clone()
    }

    /// Changes the level. False when [`VARIABLE`] decides instead.
    pub(super) fn set_level(&self, level: &str) -> Result<bool, NodeError> {
        if std::env::var_os(VARIABLE).is_some() {
            return Ok(false);
        }
        let new = filter(level)?;
        Ok(self.filter.as_ref().is_some_and(|filter| filter.reload(new).is_ok()))
    }

    /// Opens the file again, after somebody has moved it away.
    pub(super) fn reopen(&self) {
        // The queue is full only when nothing can be written anyway.
        let _ = self.sink.queue.try_send(Order::Reopen);
    }

    /// Waits until everything logged so far is written, but not for ever.
    pub(super) fn flush(&self) {
        let (done, written) = mpsc::sync_channel(1);
        if self.sink.queue.try_send(Order::Flush(done)).is_ok() {
            let _ = written.recv_timeout(FLUSH);
        }
    }
}

fn filter(level: &str) -> Result<EnvFilter, NodeError> {
    let level = if level == "warning" { "warn" } else { level };
    match std::env::var(VARIABLE) {
        Ok(directives) => EnvFilter::try_new(&directives)
            .map_err(|error| NodeError::Config(format!("{VARIABLE}={directives}: {error}"))),
        Err(_) => Ok(EnvFilter::new(level)),
    }
}

enum Target {
    Stderr,
    File(LogFile),
}

/// The thread that writes.
struct Writer {
    sink: Arc<Sink>,
    target: Target,
    lost_told: u64,
}

impl Writer {
    fn run(mut self, orders: &Receiver<Order>) {
        let mut last_tick = self.sink.env.now();
        loop {
            match orders.recv_timeout(TICK) {
                Ok(Order::Line(level, line)) => {
                    self.sink.stats.queued.fetch_sub(line.len(), Ordering::Relaxed);
                    self.write(level, &line);
                }
                Ok(Order::Reopen) => {
                    if let Target::File(file) = &mut self.target
                        && file.reopen().is_err()
                    {
                        self.sink.stats.lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(Order::Flush(done)) => {
                    self.tell_counts(true);
                    let _ = done.try_send(());
                }
                Err(RecvTimeoutError::Timeout) => {}
                // The sink keeps the other end, so this does not happen.
                Err(RecvTimeoutError::Disconnected) => return,
            }
            let now = self.sink.env.now();
            if now.saturating_duration_since(last_tick) >= TICK {
                last_tick = now;
                self.tell_counts(false);
            }
        }
    }

    fn tell_counts(&mut self, all: bool) {
        for (level, line) in self.sink.due(all) {
            self.write(level, &line);
        }
        let lost = self.sink.stats.lost.load(Ordering::Relaxed);
        if lost > self.lost_told {
            let mut record = Record::new(Level::WARN, module_path!(), "log lines were lost: they could not be written");
            record.fields.push(("lost", Field::Plain((lost - self.lost_told).to_string())));
            let mut line = String::new();
            record.write(self.sink.env.unix(), self.sink.format, &mut line);
            if self.write(Level::WARN, &line) {
                self.lost_told = lost;
            }
        }
    }

    /// Whether it was written.
    fn write(&mut self, level: Level, line: &str) -> bool {
        let written = match &mut self.target {
            Target::Stderr => std::io::stderr().write_all(line.as_bytes()),
            Target::File(file) => file.write(line.as_bytes()),
        };
        let stats = &self.sink.stats;
        match written {
            Ok(()) => stats.written[slot(level)].fetch_add(1, Ordering::Relaxed),
            Err(_) => stats.lost.fetch_add(1, Ordering::Relaxed),
        };
        written.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_log(format: Format, level: &str, speak: impl FnOnce()) -> (String, Arc<Stats>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let file = FileOptions { path: path.clone(), max_bytes: 1 << 20, keep: 1 };
        let env = Env::real();
        let options = Options { level: level.to_owned(), format, file: Some(file) };
        let (sink, tap) = Log::open(&env, &options).unwrap();
        let subscriber = tracing_subscriber::registry().with(EnvFilter::new(level)).with(tap);
        tracing::subscriber::with_default(subscriber, speak);
        let log = Log { sink, filter: None };
        log.flush();
        (String::from_utf8(env.fs().read(&path).unwrap()).unwrap(), log.stats())
    }

    #[test]
    fn lines_have_time_level_message_and_fields() {
        let (text, stats) = with_log(Format::Json, "info", || {
            tracing::info!(node = 5, name = "bob", "registered");
            tracing::debug!("not asked for");
        });
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&line["msg"], &line["node"], &line["name"]), (&"registered".into(), &5.into(), &"bob".into()));
        assert_eq!((&line["level"], &line["target"]), (&"INFO".into(), &module_path!().into()));
        assert_eq!(stats.written[2].load(Ordering::Relaxed), 1);
    }

    #[test]
    fn addresses_are_written_at_debug_only() {
        let (text, _) = with_log(Format::Text, "debug", || {
            let error = std::io::Error::other("connect 192.0.2.7:9000");
            tracing::warn!(%error, "at 192.0.2.7");
            tracing::debug!("at 192.0.2.8");
        });
        assert!(text.contains("msg=\"at <ip>\"") && text.contains("error=\"connect <ip>:9000\""), "{text}");
        assert!(!text.contains("192.0.2.7") && text.contains("192.0.2.8"), "{text}");
    }

    #[test]
    fn a_flood_is_a_line_and_a_count() {
        let (text, stats) = with_log(Format::Text, "info", || {
            for _ in 0..100_000 {
                tracing::warn!("the same again");
            }
        });
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("repeated=99999"), "{text}");
        assert_eq!(stats.held.load(Ordering::Relaxed), 99_999);
    }

    #[test]
    fn a_log_nobody_can_write_costs_lines_and_not_time() {
        let env = Env::real();
        let options = Options {
            level: "debug".to_owned(),
            format: Format::Text,
            file: Some(FileOptions { path: "/dev/full".into(), max_bytes: u64::MAX, keep: 0 }),
        };
        let (sink, tap) = Log::open(&env, &options).unwrap();
        let subscriber = tracing_subscriber::registry().with(tap);
        tracing::subscriber::with_default(subscriber, || (0..100).for_each(|i| tracing::debug!(i, "lost")));
        let log = Log { sink, filter: None };
        log.flush();
        assert!(log.stats().lost.load(Ordering::Relaxed) >= 100);
    }
}
