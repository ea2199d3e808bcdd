//! The receive buffer: every byte is copied to its final place on arrival, in order or not.

use super::ranges::RangeSet;
use super::ring::Ring;

/// Most ranges held out of order. More than any window of an official sender can make (02 §27.2).
const MAX_RANGES: usize = 1024;

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Inserted {
    /// New bytes extended the readable part.
    InOrder,
    /// New bytes behind a gap.
    OutOfOrder,
    /// Nothing new.
    Duplicate,
    /// Beyond the limit, or one range too many: dropped whole.
    Overrun,
}

/// The receive buffer.
#[derive(Debug)]
pub(super) struct Assembler {
    ring: Ring,
    /// Offset of the first byte not read by the application.
    read: u64,
    /// Offset behind the last byte received in order.
    next: u64,
    /// Received ranges behind a gap.
    ahead: RangeSet,
    /// The range that changed last.
    recent: (u64, u64),
    limit: usize,
}

impl Assembler {
    pub(super) fn new(limit: usize) -> Self {
        Self { ring: Ring::default(), read: 0, next: 0, ahead: RangeSet::default(), recent: (0, 0), limit }
    }

    pub(super) fn next(&self) -> u64 {
        self.next
    }

    pub(super) fn ahead(&self) -> &RangeSet {
        &self.ahead
    }

    /// The range out of order that holds what came last, if it is still out of order.
    pub(super) fn recent(&self) -> Option<(u64, u64)> {
        self.ahead.as_slice().iter().copied().find(|r| r.0 <= self.recent.0 && self.recent.1 <= r.1)
    }

    /// Bytes in order and not read.
    pub(super) fn unread(&self) -> usize {
        (self.next - self.read) as usize
    }

    /// Bytes the sender may still send from `next` on.
    pub(super) fn free(&self) -> usize {
        self.limit.saturating_sub(self.unread())
    }

    /// Puts the bytes at `offset` in place. `slack` bytes beyond the limit are tolerated.
    pub(super) fn insert(&mut self, offset: u64, data: &[u8], slack: usize) -> Inserted {
        let end = offset + data.len() as u64;
        if end <= self.next {
            return Inserted::Duplicate;
        }
        if end - self.read > (self.limit + slack) as u64 {
            return Inserted::Overrun;
        }
        let start = offset.max(self.next);
        let data = &data[(start - offset) as usize..];
        let at = (start - self.read) as usize;
        if start > self.next {
            if self.ahead.len() >= MAX_RANGES && self.ahead.would_add(start, end) {
                return Inserted::Overrun;
            }
            let mut fresh = false;
            self.ahead.insert(start, end, |_, _| fresh = true);
            self.recent = (start, end);
            if !fresh {
                return Inserted::Duplicate;
            }
        }
        let used = self.ring.capacity();
        self.ring.reserve(used, at + data.len());
        self.ring.write(at, data);
        if start > self.next {
            return Inserted::OutOfOrder;
        }
        self.next = end;
        while let Some(&(a, b)) = self.ahead.as_slice().first() {
            if a > self.next {
                break;
            }
            self.next = self.next.max(b);
            self.ahead.remove_below(self.next);
        }
        Inserted::InOrder
    }

    /// Copies readable bytes out.
    pub(super) fn read(&mut self, buf: &mut [u8]) -> usize {
        let n = buf.len().min(self.unread());
        let (a, b) = self.ring.slices(0, n);
        buf[..a.len()].copy_from_slice(a);
        buf[a.len()..n].copy_from_slice(b);
        self.skip(n);
        n
    }

    /// Drops `n` readable bytes.
    fn skip(&mut self, n: usize) {
        self.ring.advance(n);
        self.read += n as u64;
    }

    /// Drops all that is readable; the bytes count as read.
    pub(super) fn discard(&mut self) {
        self.skip(self.unread());
        self.shrink();
    }

    /// Gives the memory of an empty buffer back.
    pub(super) fn shrink(&mut self) {
        if self.unread() == 0 && self.ahead.is_empty() {
            self.ring.release();
        }
    }
}
