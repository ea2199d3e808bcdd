//! One direction between two hosts, and what can go wrong on it.

use std::fmt;
use std::ops::AddAssign;
use std::time::{Duration, Instant};

use rand::Rng;
use rand::rngs::StdRng;

/// A time during which nothing passes in this direction, counted from the start of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partition {
    /// First instant.
    pub from: Duration,
    /// First instant after it.
    pub until: Duration,
}

/// What one direction does to datagrams. The default is a perfect link without delay limits or faults.
#[derive(Clone, Debug, PartialEq)]
pub struct Conditions {
    /// Probability that a datagram is lost.
    pub loss: f64,
    /// Probability that it arrives twice.
    pub duplicate: f64,
    /// Probability that it is held back so that later ones overtake it.
    pub reorder: f64,
    /// Probability that one bit is flipped.
    pub corrupt: f64,
    /// Time on the way.
    pub delay: Duration,
    /// Up to this much is added at random, which reorders by itself.
    pub jitter: Duration,
    /// Bytes per second, if limited.
    pub rate: Option<u64>,
    /// Bytes that may wait for a limited rate; more is dropped.
    pub queue: usize,
    /// Largest datagram that passes.
    pub mtu: usize,
    /// When nothing passes at all.
    pub partitions: Vec<Partition>,
}

impl Default for Conditions {
    fn default() -> Self {
        Self {
            loss: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            corrupt: 0.0,
            delay: Duration::from_millis(5),
            jitter: Duration::ZERO,
            rate: None,
            queue: usize::MAX,
            mtu: usize::MAX,
            partitions: Vec::new(),
        }
    }
}

/// How often each kind of fault has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Lost at random.
    pub lost: u64,
    /// Arrived twice.
    pub duplicated: u64,
    /// Arrived before something sent earlier.
    pub reordered: u64,
    /// Delayed by jitter.
    pub delayed: u64,
    /// Arrived damaged.
    pub corrupted: u64,
    /// Waited for a limited rate.
    pub throttled: u64,
    /// Dropped by a full queue.
    pub overflowed: u64,
    /// Too large for the path.
    pub oversized: u64,
    /// Dropped by a partition.
    pub partitioned: u64,
}

impl Faults {
    /// Name and count of each.
    pub fn each(&self) -> [(&'static str, u64); 9] {
        [
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("delayed", self.delayed),
            ("corrupted", self.corrupted),
            ("throttled", self.throttled),
            ("overflowed", self.overflowed),
            ("oversized", self.oversized),
            ("partitioned", self.partitioned),
        ]
    }
}

impl AddAssign for Faults {
    fn add_assign(&mut self, o: Self) {
        self.lost += o.lost;
        self.duplicated += o.duplicated;
        self.reordered += o.reordered;
        self.delayed += o.delayed;
        self.corrupted += o.corrupted;
        self.throttled += o.throttled;
        self.overflowed += o.overflowed;
        self.oversized += o.oversized;
        self.partitioned += o.partitioned;
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, count)) in self.each().into_iter().enumerate() {
            write!(f, "{}{name} {count}", if i > 0 { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// What became of a datagram.
pub(super) enum Fate {
    Gone,
    Arrives { at: Instant, damaged: bool },
}

/// One direction and its queue.
#[derive(Debug)]
pub(super) struct Link {
    conditions: Conditions,
    /// When the last datagram accepted will have left a limited rate.
    busy_until: Option<Instant>,
    /// Latest arrival scheduled so far.
    latest: Option<Instant>,
}

impl Link {
    pub(super) fn new(conditions: Conditions) -> Self {
        Self { conditions, busy_until: None, latest: None }
    }

    pub(super) fn heal(&mut self) {
        self.conditions = Conditions { delay: self.conditions.delay, ..Conditions::default() };
        self.busy_until = None;
    }

    pub(super) fn duplicates(&self, rng: &mut StdRng, faults: &mut Faults) -> bool {
        let twice = self.conditions.duplicate > 0.0 && rng.random_bool(self.conditions.duplicate);
        faults.duplicated += u64::from(twice);
        twice
    }

    /// Takes a datagram of `len` bytes at `now`, `since` the start of the network.
    pub(super) fn pass(
        &mut self,
        now: Instant,
        since: Duration,
        len: usize,
        rng: &mut StdRng,
        faults: &mut Faults,
    ) -> Fate {
        let c = &self.conditions;
        if c.partitions.iter().any(|p| p.from <= since && since < p.until) {
            faults.partitioned += 1;
            return Fate::Gone;
        }
        if len > c.mtu {
            faults.oversized += 1;
            return Fate::Gone;
        }
        if c.loss > 0.0 && rng.random_bool(c.loss) {
            faults.lost += 1;
            return Fate::Gone;
        }
        let mut at = now;
        if let Some(rate) = c.rate {
            let start = self.busy_until.map_or(now, |t| t.max(now));
            let waiting = (start - now).as_nanos() as u64 as f64 / 1e9 * rate as f64;
            if waiting as usize + len > c.queue {
                faults.overflowed += 1;
                return Fate::Gone;
            }
            faults.throttled += u64::from(start > now);
            at = start + Duration::from_nanos(len as u64 * 1_000_000_000 / rate.max(1));
            self.busy_until = Some(at);
        }
        at += c.delay;
        if !c.jitter.is_zero() {
            faults.delayed += 1;
            at += c.jitter.mul_f64(rng.random());
        }
        if c.reorder > 0.0 && rng.random_bool(c.reorder) {
            at += c.delay.mul_f64(rng.random_range(0.1..3.0));
        }
        if self.latest.is_some_and(|latest| at < latest) {
            faults.reordered += 1;
        }
        self.latest = self.latest.max(Some(at));
        let damaged = c.corrupt > 0.0 && rng.random_bool(c.corrupt);
        faults.corrupted += u64::from(damaged);
        Fate::Arrives { at, damaged }
    }
}
