//! The book of the soak: what was disturbed when, what failed when, and which failures no disturbance explains.

use std::collections::BTreeMap;

use super::plan::{Done, Report};

/// Whom a disturbance concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Party {
    /// A daemon by index.
    Daemon(usize),
    /// A client by index.
    Client(usize),
    /// The beacon, for the two daemons that reach each other through it.
    Relay(usize, usize),
}

/// How long after a disturbance an operation with that party may still fail, milliseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grace {
    /// After a daemon is back.
    pub(super) daemon: u64,
    /// After a client is back.
    pub(super) client: u64,
    /// After the beacon is back.
    pub(super) relay: u64,
}

#[derive(Clone, Copy, Debug)]
struct Disturbance {
    party: Party,
    start: u64,
    /// `u64::MAX` while it lasts.
    end: u64,
}

/// Sums over the run.
#[derive(Clone, Debug, Default)]
pub(super) struct Totals {
    /// Operations that went well.
    pub(super) good: u64,
    /// Operations that failed while a party was disturbed.
    pub(super) excused: u64,
    /// Streams dialled.
    pub(super) dials: u64,
    /// Payload bytes written.
    pub(super) sent: u64,
    /// Payload bytes read and compared.
    pub(super) received: u64,
    /// Datagrams received and compared.
    pub(super) datagrams: u64,
    /// Longest good operation, milliseconds, and what it was.
    pub(super) longest: (u64, String),
}

/// The book.
pub(super) struct Ledger {
    grace: Grace,
    disturbances: Vec<Disturbance>,
    /// Failures not yet judged, with the client and the daemon of the one that reports.
    failures: Vec<(usize, usize, Done)>,
    violations: Vec<String>,
    totals: Totals,
    /// Failures that were excused, by what is said of them.
    excuses: BTreeMap<String, u64>,
}

/// Violations kept in full; more of them say nothing new.
const MOST_VIOLATIONS: usize = 200;
/// Different texts of excused failures kept.
const MOST_EXCUSES: usize = 200;

impl Ledger {
    /// An empty one.
    pub(super) fn new(grace: Grace) -> Self {
        let (disturbances, failures, violations) = (Vec::new(), Vec::new(), Vec::new());
        Self { grace, disturbances, failures, violations, totals: Totals::default(), excuses: BTreeMap::new() }
    }

    /// Something happens to `party` from now on.
    pub(super) fn begin(&mut self, party: Party, now: u64) {
        self.disturbances.push(Disturbance { party, start: now, end: u64::MAX });
    }

    /// It is over.
    pub(super) fn end(&mut self, party: Party, now: u64) {
        for d in self.disturbances.iter_mut().filter(|d| d.party == party && d.end == u64::MAX) {
            d.end = now;
        }
    }

    /// Writes down what nothing excuses.
    pub(super) fn violation(&mut self, text: String) {
        if self.violations.len() < MOST_VIOLATIONS {
            println!("VIOLATION {text}");
            self.violations.push(text);
        }
    }

    /// What a client says about itself.
    pub(super) fn report(&mut self, client: usize, daemon: usize, report: Report) {
        match report {
            Report::Done(done) => {
                self.totals.dials += done.dials;
                self.totals.sent += done.sent;
                self.totals.received += done.received;
                if done.failure.is_some() {
                    self.failures.push((client, daemon, done));
                } else {
                    self.totals.good += 1;
                    let took = done.end.saturating_sub(done.start);
                    if took > self.totals.longest.0 {
                        self.totals.longest = (took, format!("daemon {daemon} to {}: {}", done.daemon, done.what));
                    }
                }
            }
            Report::Away(at) => self.begin(Party::Client(client), at),
            Report::Back(at) => self.end(Party::Client(client), at),
            Report::Wrong(text) => self.violation(text),
            Report::Datagrams(n) => self.totals.datagrams += n,
            Report::Held { .. } | Report::Stopped => {}
        }
    }

    /// Judges the failures that ended before `until`: later ones may be explained by reports that are still to come.
    pub(super) fn judge(&mut self, until: u64) {
        let (ripe, waiting) = std::mem::take(&mut self.failures).into_iter().partition(|(_, _, done)| done.end < until);
        self.failures = waiting;
        let ripe: Vec<(usize, usize, Done)> = ripe;
        for (client, daemon, done) in ripe {
            let why = done.failure.clone().unwrap_or_default();
            if self.excused(daemon, &done) {
                self.totals.excused += 1;
                let text = shorten(&why);
                if self.excuses.len() < MOST_EXCUSES || self.excuses.contains_key(&text) {
                    *self.excuses.entry(text).or_default() += 1;
                }
            } else {
                let with = done.client.map_or(String::new(), |c| format!(" (client {c})"));
                self.violation(format!(
                    "client {client} on daemon {daemon} to daemon {}{with}: {} failed after {} ms: {why} [{}]",
                    done.daemon,
                    done.what,
                    done.end.saturating_sub(done.start),
                    done.end
                ));
            }
        }
        // Nothing refers to disturbances that are long over.
        let horizon = until.saturating_sub(10 * 60 * 1000);
        self.disturbances.retain(|d| d.end > horizon);
    }

    fn excused(&self, daemon: usize, done: &Done) -> bool {
        self.disturbances.iter().any(|d| {
            let (concerns, grace) = match d.party {
                Party::Daemon(i) => (i == daemon || i == done.daemon, self.grace.daemon),
                Party::Client(i) => (done.client == Some(i), self.grace.client),
                Party::Relay(a, b) => ([(a, b), (b, a)].contains(&(daemon, done.daemon)), self.grace.relay),
            };
            concerns && d.start <= done.end && d.end.saturating_add(grace) >= done.start
        })
    }

    /// Sums so far.
    pub(super) fn totals(&self) -> &Totals {
        &self.totals
    }

    /// What went wrong.
    pub(super) fn violations(&self) -> &[String] {
        &self.violations
    }

    /// Excused failures by text, most frequent first.
    pub(super) fn excuses(&self) -> Vec<(&str, u64)> {
        let mut all: Vec<_> = self.excuses.iter().map(|(text, n)| (text.as_str(), *n)).collect();
        all.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        all
    }
}

/// Without the numbers, so that equal failures look equal.
fn shorten(text: &str) -> String {
    let mut short = String::new();
    for c in text.chars().take(160) {
        match c {
            '0'..='9' if short.ends_with('#') => {}
            '0'..='9' => short.push('#'),
            other => short.push(other),
        }
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failed(daemon: usize, client: Option<usize>, start: u64, end: u64) -> Report {
        let failure = Some("broken".to_owned());
        Report::Done(Done { what: "x".into(), start, end, daemon, client, dials: 1, sent: 0, received: 0, failure })
    }

    fn judged(disturb: impl FnOnce(&mut Ledger), report: Report) -> (usize, u64) {
        let mut ledger = Ledger::new(Grace { daemon: 10, client: 2, relay: 1 });
        disturb(&mut ledger);
        ledger.report(0, 0, report);
        ledger.judge(u64::MAX);
        (ledger.violations().len(), ledger.totals().excused)
    }

    #[test]
    fn a_failure_needs_a_disturbance_of_one_of_its_parties_at_its_time() {
        let killed = |daemon| {
            move |ledger: &mut Ledger| {
                ledger.begin(Party::Daemon(daemon), 100);
                ledger.end(Party::Daemon(daemon), 110);
            }
        };
        assert_eq!(judged(|_| (), failed(1, None, 100, 105)), (1, 0), "nothing was disturbed");
        assert_eq!(judged(killed(1), failed(1, None, 50, 99)), (1, 0), "before it");
        assert_eq!(judged(killed(1), failed(1, None, 50, 100)), (0, 1), "into it");
        assert_eq!(judged(killed(1), failed(1, None, 120, 130)), (0, 1), "within the grace");
        assert_eq!(judged(killed(1), failed(1, None, 121, 130)), (1, 0), "after it");
        assert_eq!(judged(killed(0), failed(1, None, 100, 130)), (0, 1), "our own daemon");
        assert_eq!(judged(killed(2), failed(1, None, 100, 130)), (1, 0), "a third one");
        let lasting = |ledger: &mut Ledger| ledger.begin(Party::Daemon(1), 100);
        assert_eq!(judged(lasting, failed(1, None, 5000, 5001)), (0, 1), "still down");
    }

    #[test]
    fn the_beacon_excuses_only_the_pair_that_needs_it() {
        let down = |a, b| move |ledger: &mut Ledger| ledger.begin(Party::Relay(a, b), 100);
        assert_eq!(judged(down(1, 0), failed(1, None, 105, 106)), (0, 1));
        assert_eq!(judged(down(0, 1), failed(1, None, 105, 106)), (0, 1));
        assert_eq!(judged(down(1, 2), failed(1, None, 105, 106)), (1, 0));
    }

    #[test]
    fn a_client_that_was_away_excuses_only_what_was_with_it() {
        let away = |ledger: &mut Ledger| {
            ledger.report(5, 1, Report::Away(100));
            ledger.report(5, 1, Report::Back(110));
        };
        assert_eq!(judged(away, failed(1, Some(5), 105, 106)), (0, 1));
        assert_eq!(judged(away, failed(1, Some(4), 105, 106)), (1, 0));
        assert_eq!(judged(away, failed(1, None, 105, 106)), (1, 0));
    }
}
