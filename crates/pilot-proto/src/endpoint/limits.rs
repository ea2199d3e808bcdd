//! Token buckets and tables of bounded size: what keeps strangers from costing us more than they pay.

use std::hash::Hash;
use std::time::{Duration, Instant};

use pilot_wire::tunnel::AUTH_LEN;
use rustc_hash::FxHashMap;

use crate::directory::{NOTIFY_BURST, NOTIFY_INTERVAL};

/// Key exchange frames per second from one IP address, or from one claimed node by relay (07 rule 14, §5.2).
pub(crate) const KEY_EXCHANGE_RATE: Rate = Rate { per_second: 5, burst: 10 };
/// Key exchange frames per second from everybody: bounds the signatures checked (50 µs each) when sources are forged.
pub(crate) const KEY_EXCHANGE_GLOBAL: Rate = Rate { per_second: 2_000, burst: 2_000 };
/// Questions to the registry per second on behalf of strangers.
pub(crate) const STRANGER_LOOKUPS: Rate = Rate { per_second: 100, burst: 200 };
/// SYNs per second of one node (07 §7: 10 sustained, burst 64).
pub(crate) const SYN_PER_NODE: Rate = Rate { per_second: 10, burst: 64 };
/// SYNs of everybody that may come at once; the rate is [`Limits::syn_rate`](super::Limits::syn_rate) (02 §11, 07 §7).
/// Charged only after the node's own bucket (02 §29.15).
const SYN_BURST: u32 = 256;
/// SYNs per second of one node past the gate: it may run 256 streams at once (07 §16 item 31).
pub(crate) const SYN_ADMITTED: Rate = Rate { per_second: 200, burst: 1_024 };
/// RSTs per second to one node (02 §29.15).
pub(crate) const RST_PER_NODE: Rate = Rate { per_second: 50, burst: 128 };
/// Answers to control packets per second to one node (07 rule 20). A prober sends one per 200 ms at most.
pub(crate) const PONG_PER_NODE: Rate = Rate { per_second: 20, burst: 40 };
/// What the first answer to a stranger's frame weighs, bytes: a key exchange. An address that has proven nothing gets it
/// only for at least as many bytes (07 D20).
pub(crate) const STRANGER_COST: usize = AUTH_LEN;
/// Entries of a table of buckets or sources (02 §11, 07 §5.2). When full the entry unused longest goes.
pub(crate) const SOURCES: usize = 4_096;

/// Nodes whose scheme is remembered (07 rule 5). When full the one seen longest ago is asked anew.
pub(crate) const SCHEMES: usize = 16_384;

/// How fast tokens come back and how many there can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) per_second: u32,
    pub(crate) burst: u32,
}

impl Rate {
    /// SYNs of everybody.
    pub(crate) fn of_syns(per_second: u32) -> Self {
        Self { per_second, burst: per_second.max(SYN_BURST) }
    }
}

/// A token bucket that keeps fractions (02 §11 shows what happens otherwise).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    /// Nanosecond-tokens: one token is 10^9 of them.
    level: u64,
    at: Instant,
}

const TOKEN: u64 = 1_000_000_000;

impl Bucket {
    /// A full bucket.
    pub(crate) fn new(now: Instant, rate: Rate) -> Self {
        Self { level: u64::from(rate.burst) * TOKEN, at: now }
    }

    fn refill(&mut self, now: Instant, rate: Rate) {
        let elapsed = now.saturating_duration_since(self.at);
        // An hour fills every bucket; the cap keeps the product in range.
        let nanos = elapsed.min(Duration::from_secs(3600)).as_nanos() as u64;
        self.level = (self.level + nanos * u64::from(rate.per_second)).min(u64::from(rate.burst) * TOKEN);
        self.at = self.at.max(now);
    }

    /// Takes one token; false when there is none.
    pub(crate) fn take(&mut self, now: Instant, rate: Rate) -> bool {
        self.refill(now, rate);
        let ok = self.level >= TOKEN;
        if ok {
            self.level -= TOKEN;
        }
        ok
    }
}

/// A map of at most `capacity` entries; inserting into a full one drops the entry used longest ago.
///
/// Entries stand in slots linked from newest to oldest, so every operation is O(1).
#[derive(Debug)]
pub(crate) struct Lru<K, V> {
    index: FxHashMap<K, usize>,
    slots: Vec<Slot<K, V>>,
    free: Vec<usize>,
    newest: usize,
    oldest: usize,
    capacity: usize,
}

#[derive(Debug)]
struct Slot<K, V> {
    entry: Option<(K, V)>,
    newer: usize,
    older: usize,
}

const NONE: usize = usize::MAX;

impl<K: Hash + Eq + Copy, V> Lru<K, V> {
    pub(crate) fn new(capacity: usize) -> Self {
        let capacity = capacity.max(1);
        Self { index: FxHashMap::default(), slots: Vec::new(), free: Vec::new(), newest: NONE, oldest: NONE, capacity }
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    fn unlink(&mut self, at: usize) {
        let (newer, older) = (self.slots[at].newer, self.slots[at].older);
        match newer {
            NONE => self.newest = older,
            n => self.slots[n].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            o => self.slots[o].newer = newer,
        }
    }

    fn link_newest(&mut self, at: usize) {
        self.slots[at].newer = NONE;
        self.slots[at].older = self.newest;
        match self.newest {
            NONE => self.oldest = at,
            n => self.slots[n].newer = at,
        }
        self.newest = at;
    }

    /// Looks without making the entry newer.
    pub(crate) fn peek(&self, key: &K) -> Option<&V> {
        let at = *self.index.get(key)?;
        self.slots[at].entry.as_ref().map(|(_, v)| v)
    }

    /// Looks and makes the entry the newest.
    pub(crate) fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let at = *self.index.get(key)?;
        if self.newest != at {
            self.unlink(at);
            self.link_newest(at);
        }
        self.slots[at].entry.as_mut().map(|(_, v)| v)
    }

    /// The entry of `key`, made if missing.
    pub(crate) fn get_or_insert(&mut self, key: K, make: impl FnOnce() -> V) -> &mut V {
        let at = match self.index.get(&key) {
            Some(&at) => {
                if self.newest != at {
                    self.unlink(at);
                    self.link_newest(at);
                }
                at
            }
            None => self.place(key, make()),
        };
        // `at` was found in the index or just placed, so the slot is filled.
        self.slots[at].entry.as_mut().map(|(_, v)| v).expect("an indexed slot is filled")
    }

    fn place(&mut self, key: K, value: V) -> usize {
        if self.index.len() >= self.capacity {
            self.pop_oldest();
        }
        let slot = Slot { entry: Some((key, value)), newer: NONE, older: NONE };
        let at = match self.free.pop() {
            Some(at) => {
                self.slots[at] = slot;
                at
            }
            None => {
                self.slots.push(slot);
                self.slots.len() - 1
            }
        };
        self.index.insert(key, at);
        self.link_newest(at);
        at
    }

    /// Sets the value of `key` and makes it the newest.
    pub(crate) fn insert(&mut self, key: K, value: V) {
        match self.get_mut(&key) {
            Some(slot) => *slot = value,
            None => {
                self.place(key, value);
            }
        }
    }

    pub(crate) fn remove(&mut self, key: &K) -> Option<V> {
        let at = self.index.remove(key)?;
        self.unlink(at);
        self.free.push(at);
        self.slots[at].entry.take().map(|(_, v)| v)
    }

    fn pop_oldest(&mut self) {
        if let Some((key, _)) = self.slots.get(self.oldest).and_then(|s| s.entry.as_ref()) {
            let key = *key;
            self.remove(&key);
        }
    }
}

/// One bucket per source, the least recently seen forgotten first.
#[derive(Debug)]
pub(crate) struct Limiter<K> {
    rate: Rate,
    buckets: Lru<K, Bucket>,
}

impl<K: Hash + Eq + Copy> Limiter<K> {
    pub(crate) fn new(rate: Rate) -> Self {
        Self { rate, buckets: Lru::new(SOURCES) }
    }

    /// Takes one token of `key`'s bucket.
    pub(crate) fn take(&mut self, now: Instant, key: K) -> bool {
        let rate = self.rate;
        self.buckets.get_or_insert(key, || Bucket::new(now, rate)).take(now, rate)
    }
}

/// Lets one thing per key pass in each interval.
#[derive(Debug)]
pub(crate) struct Once<K> {
    every: Duration,
    last: Lru<K, Instant>,
}

impl<K: Hash + Eq + Copy> Once<K> {
    pub(crate) fn new(every: Duration, capacity: usize) -> Self {
        Self { every, last: Lru::new(capacity) }
    }

    pub(crate) fn pass(&mut self, now: Instant, key: K) -> bool {
        match self.last.get_mut(&key) {
            Some(last) if now.saturating_duration_since(*last) < self.every => false,
            Some(last) => {
                *last = now;
                true
            }
            None => {
                self.last.insert(key, now);
                true
            }
        }
    }
}

/// Bytes that came from unproven sources and were not answered yet, so that an answer never weighs more than what provoked
/// it (07 D20).
#[derive(Debug)]
pub(crate) struct Owed<K> {
    bytes: Lru<K, usize>,
}

impl<K: Hash + Eq + Copy> Owed<K> {
    pub(crate) fn new() -> Self {
        Self { bytes: Lru::new(SOURCES) }
    }

    /// Counts a frame of `len` bytes. Returns whether the source has paid for an answer of `cost` bytes; more than one
    /// answer cannot be saved up.
    pub(crate) fn pay(&mut self, key: K, len: usize, cost: usize) -> bool {
        let bytes = self.bytes.get_or_insert(key, || 0);
        *bytes = bytes.saturating_add(len).min(cost);
        *bytes == cost
    }

    /// The answer goes out.
    pub(crate) fn spend(&mut self, key: &K) {
        self.bytes.remove(key);
    }
}

/// Passes notices on: a burst at once, then one per interval. What comes too fast becomes one notice when the next is
/// allowed, so none is lost and at most one waits.
#[derive(Debug)]
pub(crate) struct Notices {
    /// When the burst is whole again.
    whole: Instant,
    due: Option<Instant>,
}

impl Notices {
    pub(crate) fn new(now: Instant) -> Self {
        Self { whole: now, due: None }
    }

    /// A notice came. Returns whether it passes now.
    pub(crate) fn arrived(&mut self, now: Instant) -> bool {
        if self.due.is_none() {
            self.due = Some(now.max(self.next_allowed(now)));
        }
        self.pass(now)
    }

    /// Whether one passes now: the one that waited, if its time has come.
    pub(crate) fn pass(&mut self, now: Instant) -> bool {
        let passes = self.due.is_some_and(|due| due <= now);
        if passes {
            self.due = None;
            self.whole = self.whole.max(now) + NOTIFY_INTERVAL;
        }
        passes
    }

    /// When [`Self::pass`] is due.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    fn next_allowed(&self, now: Instant) -> Instant {
        self.whole.checked_sub(NOTIFY_INTERVAL * (NOTIFY_BURST - 1)).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_bucket_keeps_fractions_of_tokens() {
        let t = origin();
        let rate = Rate { per_second: 10, burst: 2 };
        let mut bucket = Bucket::new(t, rate);
        assert!(bucket.take(t, rate) && bucket.take(t, rate) && !bucket.take(t, rate));
        let mut passed = 0;
        for ms in 1..=1000 {
            passed += u32::from(bucket.take(t + Duration::from_millis(ms), rate));
        }
        assert_eq!(passed, 10);
    }

    #[test]
    fn a_full_table_forgets_the_entry_unused_longest() {
        let mut lru = Lru::new(3);
        for k in 0..3 {
            lru.insert(k, k * 10);
        }
        assert_eq!(lru.get_mut(&0), Some(&mut 0));
        lru.insert(3, 30);
        assert_eq!(lru.peek(&1), None);
        assert_eq!((lru.peek(&0), lru.peek(&2), lru.peek(&3)), (Some(&0), Some(&20), Some(&30)));
        assert_eq!(lru.remove(&2), Some(20));
        lru.insert(4, 40);
        lru.insert(5, 50);
        assert_eq!(lru.len(), 3);
        assert_eq!(lru.peek(&0), None);
    }

    #[test]
    fn a_flood_of_sources_stays_within_the_table() {
        let t = origin();
        let mut limiter = Limiter::new(Rate { per_second: 1, burst: 1 });
        for source in 0..100_000u32 {
            assert!(limiter.take(t, source));
        }
        assert_eq!(limiter.buckets.len(), SOURCES);
        assert!(limiter.buckets.slots.len() <= SOURCES);
        assert!(!limiter.take(t, 99_999));
    }
}
