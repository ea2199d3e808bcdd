//! Token buckets by source. IPv6 sources count by /64, because one host has 2^64 addresses (04 §24.27).

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use crate::limits::MAX_SOURCES;

/// How many at once, and how many per second in the long run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Capacity of the bucket.
    pub burst: u32,
    /// Refill.
    pub per_second: f64,
}

/// One bucket. It starts full and refills continuously.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self { tokens: f64::from(rate.burst), at: now }
    }

    fn refill(&mut self, rate: Rate, now: Instant) {
        let elapsed = now.saturating_duration_since(self.at).as_secs_f64();
        self.tokens = (self.tokens + elapsed * rate.per_second).min(f64::from(rate.burst));
        self.at = self.at.max(now);
    }

    /// Takes one token if there is one.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        self.refill(rate, now);
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }

    /// Takes one token, going into debt, and says how long to wait until it is paid.
    pub fn pace(&mut self, rate: Rate, now: Instant) -> Duration {
        self.refill(rate, now);
        // The debt is bounded, so that nobody waits for ever for the sins of a neighbour.
        self.tokens = (self.tokens - 1.0).max(-f64::from(rate.burst));
        if self.tokens >= 0.0 || rate.per_second <= 0.0 {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(-self.tokens / rate.per_second)
    }
}

/// What sources are kept apart by.
fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from(u128::from(ip) >> 64 << 64)),
        v4 => v4,
    }
}

/// A bucket for each source.
#[derive(Debug)]
pub struct Limiter {
    rate: Rate,
    buckets: FxHashMap<IpAddr, Bucket>,
    /// Shared by the sources that do not fit the table.
    others: Option<Bucket>,
}

impl Limiter {
    /// No source has asked yet.
    pub fn new(rate: Rate) -> Self {
        Self { rate, buckets: FxHashMap::default(), others: None }
    }

    fn bucket(&mut self, ip: IpAddr, now: Instant) -> &mut Bucket {
        let ip = source(ip);
        if self.buckets.len() >= MAX_SOURCES && !self.buckets.contains_key(&ip) {
            self.collect(now);
        }
        if self.buckets.len() >= MAX_SOURCES && !self.buckets.contains_key(&ip) {
            return self.others.get_or_insert(Bucket::new(self.rate, now));
        }
        self.buckets.entry(ip).or_insert(Bucket::new(self.rate, now))
    }

    /// Takes one token of a source if there is one.
    pub fn take(&mut self, ip: IpAddr, now: Instant) -> bool {
        let rate = self.rate;
        self.bucket(ip, now).take(rate, now)
    }

    /// Gives back a token that was taken, because what it was taken for turned out to be harmless.
    pub fn give_back(&mut self, ip: IpAddr, now: Instant) {
        let burst = f64::from(self.rate.burst);
        let bucket = self.bucket(ip, now);
        bucket.tokens = (bucket.tokens + 1.0).min(burst);
    }

    /// Takes one token of a source and says how long to wait for it.
    pub fn pace(&mut self, ip: IpAddr, now: Instant) -> Duration {
        let rate = self.rate;
        self.bucket(ip, now).pace(rate, now)
    }

    /// Forgets sources whose bucket is full again.
    pub fn collect(&mut self, now: Instant) {
        let rate = self.rate;
        self.buckets.retain(|_, bucket| {
            bucket.refill(rate, now);
            bucket.tokens < f64::from(rate.burst)
        });
    }
}
