//! Bytes written and not yet acknowledged: a range of the stream, cut into segments only when transmitted.

use super::ring::Ring;

/// The send buffer.
#[derive(Debug)]
pub(super) struct SendBuffer {
    ring: Ring,
    /// Offset of the first byte held.
    start: u64,
    len: usize,
    limit: usize,
}

impl SendBuffer {
    pub(super) fn new(limit: usize) -> Self {
        Self { ring: Ring::default(), start: 0, len: 0, limit }
    }

    /// Takes as much of `data` as fits; how much is the answer.
    pub(super) fn write(&mut self, data: &[u8]) -> usize {
        let n = data.len().min(self.limit - self.len);
        self.ring.reserve(self.len, self.len + n);
        self.ring.write(self.len, &data[..n]);
        self.len += n;
        n
    }

    /// Offset behind the last byte held.
    pub(super) fn end(&self) -> u64 {
        self.start + self.len as u64
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn free(&self) -> usize {
        self.limit - self.len
    }

    /// Drops everything below `offset`.
    pub(super) fn acknowledge(&mut self, offset: u64) {
        let n = (offset.saturating_sub(self.start) as usize).min(self.len);
        self.ring.advance(n);
        self.start += n as u64;
        self.len -= n;
    }

    /// `len` bytes from `offset` on; fewer when the buffer does not hold them.
    pub(super) fn slices(&self, offset: u64, len: usize) -> (&[u8], &[u8]) {
        let at = (offset.saturating_sub(self.start) as usize).min(self.len);
        self.ring.slices(at, len.min(self.len - at))
    }

    /// Gives the memory of an empty buffer back.
    pub(super) fn shrink(&mut self) {
        if self.len == 0 {
            self.ring.release();
        }
    }

    /// Drops everything.
    pub(super) fn clear(&mut self) {
        self.start = self.end();
        self.len = 0;
        self.ring.release();
    }
}
