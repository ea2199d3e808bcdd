//! When to acknowledge: at once, delayed, or with the empty duplicates an official sender needs.

use std::time::{Duration, Instant};

/// Empty duplicate acknowledgements per hole: the third makes an official sender repeat (02 §27.9).
const DUPLICATES_PER_HOLE: u8 = 3;

/// The acknowledgement owed to the peer.
#[derive(Debug)]
pub(super) struct AckState {
    /// In-order segments not acknowledged.
    pending: u32,
    /// When the acknowledgement is due.
    due: Option<Instant>,
    /// No acknowledgement before this.
    not_before: Option<Instant>,
    /// In-order segments still acknowledged at once.
    quick: u32,
    /// Empty duplicates to send.
    duplicates: u8,
    /// The hole they are for, by its first byte, and how many it had.
    hole: Option<(u64, u8)>,
}

/// The rules in force.
#[derive(Clone, Copy, Debug)]
pub(super) struct AckRules {
    pub(super) every: u32,
    pub(super) delay: Duration,
    pub(super) floor: Duration,
}

impl AckState {
    pub(super) fn new(quick: u32) -> Self {
        Self { pending: 0, due: None, not_before: None, quick, duplicates: 0, hole: None }
    }

    fn owe(&mut self, now: Instant, wait: Duration, floor: Duration) {
        let floor = *self.not_before.get_or_insert(now + floor);
        let at = (now + wait).max(floor);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// A segment arrived in order.
    pub(super) fn on_in_order(&mut self, now: Instant, rules: &AckRules) {
        self.pending += 1;
        self.duplicates = 0;
        let at_once = self.quick > 0 || self.pending >= rules.every;
        self.quick = self.quick.saturating_sub(1);
        self.owe(now, if at_once { Duration::ZERO } else { rules.delay }, rules.floor);
    }

    /// Something that must be answered without delay: a gap, a filled gap, a probe.
    pub(super) fn on_urgent(&mut self, now: Instant) {
        self.due = Some(self.due.map_or(now, |due| due.min(now)));
    }

    /// A repeat of something received.
    pub(super) fn on_duplicate(&mut self, now: Instant, wait: Duration) {
        let at = now + wait;
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// A segment arrived behind the hole that begins at `next`; the sender needs empty duplicates.
    pub(super) fn on_hole(&mut self, next: u64) {
        let count = match self.hole {
            Some((at, count)) if at == next => count,
            _ => 0,
        };
        if count < DUPLICATES_PER_HOLE {
            self.duplicates += 1;
            self.hole = Some((next, count + 1));
        }
    }

    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|due| due <= now)
    }

    /// Takes one empty duplicate.
    pub(super) fn take_duplicate(&mut self) -> bool {
        let owed = self.duplicates > 0;
        self.duplicates = self.duplicates.saturating_sub(1);
        owed
    }

    /// The timer had to fire: the sender waits for acknowledgements, so the next ones come at once (07 §7).
    pub(super) fn on_timer(&mut self, quick: u32) {
        self.quick = self.quick.max(quick);
    }

    /// A packet with the current number left.
    pub(super) fn on_sent(&mut self) {
        self.pending = 0;
        self.due = None;
        self.not_before = None;
    }

    /// Nothing is owed any more.
    pub(super) fn clear(&mut self) {
        self.on_sent();
        self.duplicates = 0;
    }
}
