//! Keeps a log readable and small when something repeats: equal lines within [`WINDOW`] become one and a count, and a
//! place in the program that writes more than its share is cut short, with a count. What is logged at `debug` is asked
//! for and is never held back here; the size of the file bounds it.

use std::hash::{Hash, Hasher};
use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHasher};
use tracing::Level;

use super::record::{Field, Record};

/// Equal lines within this time are written once, and counted.
pub(super) const WINDOW: Duration = Duration::from_secs(10);
/// Lines that one place in the program may write at once …
pub(super) const BURST: f64 = 100.0;
/// … and those it may write a second after that.
pub(super) const PER_SECOND: f64 = 10.0;
/// Different lines remembered. When there are more, the oldest is told early.
const MAX_SEEN: usize = 512;
/// Places remembered; a program has a few dozen. Those beyond share one allowance.
const MAX_PLACES: usize = 1024;

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is written.
    Write,
    /// It was counted.
    Hold,
}

struct Seen {
    record: Record,
    since: Instant,
    repeated: u64,
}

struct Place {
    tokens: f64,
    at: Instant,
    left_out: u64,
    last: Option<Record>,
}

/// See the module.
#[derive(Default)]
pub(super) struct Limiter {
    seen: FxHashMap<u64, Seen>,
    places: FxHashMap<(&'static str, u32), Place>,
}

impl Limiter {
    /// Judges a line. Lines that are due because of it are appended to `due` and come before it.
    pub(super) fn judge(&mut self, now: Instant, record: &Record, due: &mut Vec<Record>) -> Verdict {
        if record.level > Level::INFO {
            return Verdict::Write;
        }
        let key = key(record);
        if let Some(seen) = self.seen.get_mut(&key) {
            if now.saturating_duration_since(seen.since) < WINDOW {
                seen.repeated += 1;
                return Verdict::Hold;
            }
            if let Some(old) = self.seen.remove(&key) {
                due.extend(told(old));
            }
        }
        if !self.take_token(now, record) {
            return Verdict::Hold;
        }
        if self.seen.len() >= MAX_SEEN
            && let Some(oldest) = self.seen.iter().min_by_key(|(_, seen)| seen.since).map(|(key, _)| *key)
            && let Some(old) = self.seen.remove(&oldest)
        {
            due.extend(told(old));
        }
        self.seen.insert(key, Seen { record: record.clone(), since: now, repeated: 0 });
        Verdict::Write
    }

    /// Counts whose time has come, or all of them.
    pub(super) fn due(&mut self, now: Instant, all: bool, due: &mut Vec<Record>) {
        let over = |since: Instant| all || now.saturating_duration_since(since) >= WINDOW;
        let keys: Vec<u64> = self.seen.iter().filter(|(_, seen)| over(seen.since)).map(|(key, _)| *key).collect();
        for key in keys {
            due.extend(self.seen.remove(&key).and_then(told));
        }
        for place in self.places.values_mut() {
            refill(place, now);
            // Once it may speak again; until then it would only be told in pieces.
            if place.left_out > 0 && (all || place.tokens >= BURST / 2.0) {
                let count = std::mem::take(&mut place.left_out);
                if let Some(last) = place.last.take() {
                    let mut record =
                        Record::new(Level::WARN, last.target, "log lines were left out: too many of a kind");
                    record.fields.push(("left_out", Field::Plain(count.to_string())));
                    record.fields.push(("last", Field::Text(last.message)));
                    due.push(record);
                }
            }
        }
    }

    fn take_token(&mut self, now: Instant, record: &Record) -> bool {
        let mut name = (record.target, record.line);
        if !self.places.contains_key(&name) && self.places.len() >= MAX_PLACES {
            name = ("", 0);
        }
        let new = Place { tokens: BURST, at: now, left_out: 0, last: None };
        let place = self.places.entry(name).or_insert(new);
        refill(place, now);
        if place.tokens < 1.0 {
            place.left_out += 1;
            place.last = Some(record.clone());
            return false;
        }
        place.tokens -= 1.0;
        true
    }
}

fn refill(place: &mut Place, now: Instant) {
    let passed = now.saturating_duration_since(place.at);
    place.tokens = (place.tokens + passed.as_secs_f64() * PER_SECOND).min(BURST);
    place.at = now;
}

fn key(record: &Record) -> u64 {
    let mut hasher = FxHasher::default();
    (record.target, record.line, &record.message).hash(&mut hasher);
    record.fields.hash(&mut hasher);
    hasher.finish()
}

/// The line that tells how often another was repeated.
fn told(seen: Seen) -> Option<Record> {
    (seen.repeated > 0).then(|| {
        let mut record = seen.record;
        record.fields.push(("repeated", Field::Plain(seen.repeated.to_string())));
        record
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(level: Level, text: &str) -> Record {
        Record::new(level, "test", text)
    }

    #[test]
    fn equal_lines_become_one_and_a_count() {
        let mut limiter = Limiter::default();
        let start = pilot_env::Env::real().now();
        let mut due = Vec::new();
        let record = line(Level::WARN, "udp receive failed");
        let written = (0..1_000_000).filter(|_| limiter.judge(start, &record, &mut due) == Verdict::Write).count();
        assert_eq!((written, due.len()), (1, 0));
        limiter.due(start + WINDOW / 2, false, &mut due);
        assert!(due.is_empty());
        limiter.due(start + WINDOW, false, &mut due);
        assert_eq!(due.len(), 1);
        assert_eq!(due[0].fields, [("repeated", Field::Plain("999999".to_owned()))]);
        // The next one is news again.
        assert_eq!(limiter.judge(start + WINDOW, &record, &mut due), Verdict::Write);
    }

    #[test]
    fn a_repeated_line_after_the_window_tells_the_count_first() {
        let mut limiter = Limiter::default();
        let start = pilot_env::Env::real().now();
        let mut due = Vec::new();
        let record = line(Level::INFO, "again");
        limiter.judge(start, &record, &mut due);
        limiter.judge(start, &record, &mut due);
        assert_eq!(limiter.judge(start + WINDOW, &record, &mut due), Verdict::Write);
        assert_eq!(due.len(), 1);
    }

    #[test]
    fn lines_that_differ_are_cut_short_and_counted_without_silencing_other_places() {
        let mut limiter = Limiter::default();
        let start = pilot_env::Env::real().now();
        let mut due = Vec::new();
        let written = (0..100_000)
            .filter(|i| limiter.judge(start, &line(Level::INFO, &format!("refused {i}")), &mut due) == Verdict::Write)
            .count();
        assert_eq!(written, BURST as usize);
        let mut elsewhere = line(Level::ERROR, "cannot save trust");
        elsewhere.line = 7;
        assert_eq!(limiter.judge(start, &elsewhere, &mut due), Verdict::Write);
        due.clear();
        limiter.due(start + Duration::from_secs(60), false, &mut due);
        assert_eq!(due.len(), 1, "{due:?}");
        assert_eq!(due[0].fields[0], ("left_out", Field::Plain((100_000 - written).to_string())));
        assert!(limiter.seen.len() <= MAX_SEEN);
    }

    #[test]
    fn what_was_asked_for_at_debug_is_written_whole() {
        let mut limiter = Limiter::default();
        let now = pilot_env::Env::real().now();
        let record = line(Level::DEBUG, "packet");
        assert!((0..10_000).all(|_| limiter.judge(now, &record, &mut Vec::new()) == Verdict::Write));
    }

    #[test]
    fn different_lines_do_not_grow_the_memory() {
        let mut limiter = Limiter::default();
        let start = pilot_env::Env::real().now();
        for i in 0..5_000_u32 {
            let mut record = line(Level::INFO, &format!("line {i}"));
            record.line = i;
            limiter.judge(start + Duration::from_millis(u64::from(i)), &record, &mut Vec::new());
        }
        assert!(limiter.seen.len() <= MAX_SEEN && limiter.places.len() <= MAX_PLACES + 1);
    }
}
