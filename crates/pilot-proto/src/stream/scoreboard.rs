//! What was sent and not acknowledged: boundaries, selective acknowledgements, loss detection.
//!
//! Every transmission has a number. A segment is deemed lost when one transmitted later has been reported as received
//! and either enough of them were ([`reordering`](Scoreboard::threshold)) or enough time has passed, as in RFC 9002 §6.1;
//! this covers lost repeats as well as lost originals, and looks at each segment once.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::ranges::RangeSet;

/// Transmissions delivered behind one that is missing before it counts as lost (RFC 5681, RFC 9002 §6.1.1).
const REORDER_THRESHOLD: u64 = 3;
/// Times the threshold may double when repeats prove needless.
const MAX_REORDER_LEVEL: u32 = 5;
/// Smallest time threshold.
const MIN_LOSS_DELAY: Duration = Duration::from_millis(1);

/// Whether a sent segment is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    InFlight,
    /// Waits in the queue of repeats.
    Lost,
    /// Reported as received, not yet by number.
    Sacked,
}

#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    len: u32,
    fate: Fate,
    repeated: bool,
    /// Number and time of the last transmission.
    tx: u64,
    sent: Instant,
}

impl Segment {
    fn end(&self) -> u64 {
        self.offset + u64::from(self.len)
    }
}

/// What an acknowledgement delivered.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Delivered {
    /// Bytes reported as received for the first time.
    pub(super) bytes: u64,
    /// Round trip of the newest segment delivered, if it was sent once (Karn).
    pub(super) rtt: Option<Duration>,
    newest: Option<u64>,
}

/// What loss detection found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Losses {
    /// Number of the newest transmission found lost.
    pub(super) newest: Option<u64>,
    /// When to look again.
    pub(super) next_check: Option<Instant>,
}

/// The records.
#[derive(Debug, Default)]
pub(super) struct Scoreboard {
    /// Sorted by offset, without gaps.
    segments: VecDeque<Segment>,
    sacked: RangeSet,
    in_flight: u64,
    next_tx: u64,
    /// Newest transmission delivered.
    delivered_tx: u64,
    any_delivered: bool,
    /// Originals below this offset have been judged.
    judged: u64,
    /// Repeats in order of transmission, not yet judged.
    repeats: VecDeque<(u64, u64)>,
    /// Offsets to send again; entries whose segment has arrived meanwhile are skipped.
    lost: VecDeque<u64>,
    lost_segments: usize,
    reorder_level: u32,
}

impl Scoreboard {
    pub(super) fn len(&self) -> usize {
        self.segments.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.segments.is_empty()
    }

    pub(super) fn in_flight(&self) -> u64 {
        self.in_flight
    }

    pub(super) fn has_lost(&self) -> bool {
        self.lost_segments > 0
    }

    /// Number the next transmission will have.
    pub(super) fn next_tx(&self) -> u64 {
        self.next_tx
    }

    fn find(&self, offset: u64) -> Option<usize> {
        let i = self.segments.partition_point(|s| s.offset < offset);
        self.segments.get(i).is_some_and(|s| s.offset == offset).then_some(i)
    }

    /// A segment left for the first time; `offset` is where the last one ended.
    pub(super) fn on_sent(&mut self, now: Instant, offset: u64, len: usize) {
        let tx = self.next_tx;
        self.next_tx += 1;
        self.in_flight += len as u64;
        let len = len as u32;
        self.segments.push_back(Segment { offset, len, fate: Fate::InFlight, repeated: false, tx, sent: now });
    }

    /// The next segment to repeat: offset and length.
    pub(super) fn next_lost(&mut self) -> Option<(u64, usize)> {
        while let Some(&offset) = self.lost.front() {
            if let Some(i) = self.find(offset)
                && self.segments[i].fate == Fate::Lost
            {
                return Some((offset, self.segments[i].len as usize));
            }
            self.lost.pop_front();
        }
        None
    }

    /// The last segment sent, if it is still missing: what a tail probe repeats.
    pub(super) fn mark_last_lost(&mut self) -> bool {
        let Some(last) = self.segments.back_mut().filter(|s| s.fate == Fate::InFlight) else {
            return false;
        };
        last.fate = Fate::Lost;
        self.in_flight -= u64::from(last.len);
        self.lost_segments += 1;
        let offset = last.offset;
        self.lost.push_front(offset);
        true
    }

    /// The lost segment at `offset` is sent again, at most `limit` bytes of it; the answer is how many.
    pub(super) fn on_repeated(&mut self, now: Instant, offset: u64, limit: usize) -> usize {
        let Some(i) = self.find(offset).filter(|i| self.segments[*i].fate == Fate::Lost) else {
            return 0;
        };
        let tx = self.next_tx;
        self.next_tx += 1;
        let whole = self.segments[i];
        let len = whole.len.min(limit.try_into().unwrap_or(u32::MAX)).max(1);
        let s = &mut self.segments[i];
        (s.len, s.fate, s.repeated, s.tx, s.sent) = (len, Fate::InFlight, true, tx, now);
        self.lost.pop_front();
        if len < whole.len {
            let rest = Segment { offset: whole.offset + u64::from(len), len: whole.len - len, ..whole };
            self.segments.insert(i + 1, rest);
            self.lost.push_front(rest.offset);
        } else {
            self.lost_segments -= 1;
        }
        self.in_flight += u64::from(len);
        self.repeats.push_back((tx, offset));
        len as usize
    }

    fn note(&mut self, delivered: &mut Delivered, s: Segment, now: Instant, min_rtt: Option<Duration>) {
        delivered.bytes += u64::from(s.len);
        let age = now.saturating_duration_since(s.sent);
        if s.repeated && s.fate == Fate::InFlight && min_rtt.is_some_and(|min| age < min / 2) {
            // The original arrived after all: this path reorders more than assumed.
            self.reorder_level = (self.reorder_level + 1).min(MAX_REORDER_LEVEL);
            return;
        }
        if s.repeated && s.fate == Fate::Lost {
            return;
        }
        if delivered.newest.is_none_or(|tx| tx < s.tx) {
            delivered.newest = Some(s.tx);
            delivered.rtt = (!s.repeated).then_some(age);
        }
    }

    fn leave(&mut self, s: &Segment) {
        match s.fate {
            Fate::InFlight => self.in_flight -= u64::from(s.len),
            Fate::Lost => self.lost_segments -= 1,
            Fate::Sacked => {}
        }
    }

    /// Everything below `offset` has arrived.
    pub(super) fn acknowledge(
        &mut self,
        now: Instant,
        offset: u64,
        min_rtt: Option<Duration>,
        delivered: &mut Delivered,
    ) {
        while let Some(&s) = self.segments.front() {
            if s.offset >= offset {
                break;
            }
            let covered = s.end().min(offset) - s.offset;
            let part = Segment { len: covered as u32, ..s };
            if s.end() <= offset {
                self.leave(&s);
                self.segments.pop_front();
            } else if let Some(front) = self.segments.front_mut() {
                front.offset = offset;
                front.len -= part.len;
                match s.fate {
                    Fate::InFlight => self.in_flight -= covered,
                    Fate::Lost => self.lost.push_front(offset),
                    Fate::Sacked => {}
                }
                if s.repeated && s.fate == Fate::InFlight {
                    self.repeats.push_back((s.tx, offset));
                }
            }
            if s.fate != Fate::Sacked {
                self.note(delivered, part, now, min_rtt);
            }
        }
        self.sacked.remove_below(offset);
        self.settle(delivered);
        if self.segments.is_empty() {
            self.repeats.clear();
            self.lost.clear();
        }
    }

    /// `start..end` has arrived, though bytes before it have not. Only whole segments count, as their repeat is whole.
    pub(super) fn select(
        &mut self,
        now: Instant,
        start: u64,
        end: u64,
        min_rtt: Option<Duration>,
        delivered: &mut Delivered,
    ) {
        let mut first = self.segments.partition_point(|s| s.offset < start);
        let Some(s) = self.segments.get(first) else { return };
        let from = s.offset;
        let mut to = from;
        // Only ranges not marked before are walked, so repeated blocks cost nothing.
        let mut fresh: smallvec::SmallVec<[(u64, u64); 4]> = smallvec::SmallVec::new();
        let last = self.segments.partition_point(|s| s.end() <= end);
        if let Some(s) = last.checked_sub(1).and_then(|i| self.segments.get(i)) {
            to = s.end();
        }
        if to <= from {
            return;
        }
        self.sacked.insert(from, to, |a, b| fresh.push((a, b)));
        for (a, b) in fresh {
            first = first.max(self.segments.partition_point(|s| s.offset < a));
            while let Some(&s) = self.segments.get(first).filter(|s| s.end() <= b) {
                if s.fate != Fate::Sacked {
                    self.leave(&s);
                    self.note(delivered, s, now, min_rtt);
                    self.segments[first].fate = Fate::Sacked;
                }
                first += 1;
            }
        }
        self.settle(delivered);
    }

    fn settle(&mut self, delivered: &Delivered) {
        if let Some(tx) = delivered.newest
            && (!self.any_delivered || tx > self.delivered_tx)
        {
            self.delivered_tx = tx;
            self.any_delivered = true;
        }
    }

    /// Looks for segments that must have been lost. `rtt` is the round trip to judge age by.
    pub(super) fn detect(&mut self, now: Instant, rtt: Duration) -> Losses {
        let mut out = Losses::default();
        if self.sacked.is_empty() && self.repeats.is_empty() {
            return out;
        }
        let threshold = self.threshold();
        let patience = (rtt + rtt * (1 + 2 * self.reorder_level) / 8).max(MIN_LOSS_DELAY);
        let (newest, delivered) = (self.delivered_tx, self.any_delivered);
        // Some(true): lost. Some(false): cannot be judged, nor can anything sent later. The time is when it can.
        let judge = |tx: u64, sent: Instant| -> Result<bool, Instant> {
            if !delivered || tx >= newest {
                return Ok(false);
            }
            if tx + threshold <= newest || sent + patience <= now { Ok(true) } else { Err(sent + patience) }
        };
        let mut i = self.segments.partition_point(|s| s.offset < self.judged);
        while let Some(s) = self.segments.get_mut(i) {
            if s.fate == Fate::InFlight && !s.repeated {
                match judge(s.tx, s.sent) {
                    Ok(true) => {
                        s.fate = Fate::Lost;
                        self.in_flight -= u64::from(s.len);
                        self.lost_segments += 1;
                        self.lost.push_back(s.offset);
                        out.newest = out.newest.max(Some(s.tx));
                    }
                    Ok(false) => break,
                    Err(at) => {
                        out.next_check = Some(at);
                        break;
                    }
                }
            }
            self.judged = s.end();
            i += 1;
        }
        while let Some(&(tx, offset)) = self.repeats.front() {
            let current = self.find(offset).filter(|i| {
                let s = &self.segments[*i];
                s.tx == tx && s.fate == Fate::InFlight
            });
            if let Some(i) = current {
                match judge(tx, self.segments[i].sent) {
                    Ok(true) => {
                        let s = &mut self.segments[i];
                        s.fate = Fate::Lost;
                        self.in_flight -= u64::from(s.len);
                        self.lost_segments += 1;
                        self.lost.push_back(offset);
                        out.newest = out.newest.max(Some(tx));
                    }
                    Ok(false) => break,
                    Err(at) => {
                        out.next_check = Some(out.next_check.map_or(at, |other| other.min(at)));
                        break;
                    }
                }
            }
            self.repeats.pop_front();
        }
        out
    }

    fn threshold(&self) -> u64 {
        REORDER_THRESHOLD << self.reorder_level
    }

    /// The retransmission timer ran out: everything not reported as received is lost. Whether the peer had reported the
    /// first segment and then not acknowledged it: then it may have forgotten, and so every report is forgotten here
    /// (RFC 2018 §8).
    pub(super) fn on_timeout(&mut self) -> bool {
        let reneged = self.segments.front().is_some_and(|s| s.fate == Fate::Sacked);
        if reneged {
            self.sacked.clear();
        }
        self.lost.clear();
        self.repeats.clear();
        self.lost_segments = 0;
        self.in_flight = 0;
        for s in &mut self.segments {
            if reneged || s.fate != Fate::Sacked {
                s.fate = Fate::Lost;
                self.lost.push_back(s.offset);
                self.lost_segments += 1;
            }
        }
        reneged
    }

    /// Whether a segment shorter than `len` is on its way (for coalescing, 07 §7).
    pub(super) fn has_short(&self, len: usize) -> bool {
        self.segments.back().is_some_and(|s| (s.len as usize) < len)
    }

    /// Gives the memory of an empty board back.
    pub(super) fn shrink(&mut self) {
        if self.segments.is_empty() {
            self.segments = VecDeque::new();
            self.repeats = VecDeque::new();
            self.lost = VecDeque::new();
        }
    }

    /// Drops all records.
    pub(super) fn clear(&mut self) {
        *self = Self { next_tx: self.next_tx, ..Self::default() };
    }
}
