//! A ring of bytes addressed relative to its head, which grows on demand.
//!
//! Both buffers of a stream sit on it: bytes are copied in once and out once, and nothing is allocated per packet.

/// Smallest allocation, bytes.
const MIN_CAPACITY: usize = 4096;

/// The ring. How much of it is in use is the owner's knowledge; positions are relative to the head.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Zero bytes or a power of two.
    bytes: Vec<u8>,
    head: usize,
}

impl Ring {
    /// Bytes allocated.
    pub(super) fn capacity(&self) -> usize {
        self.bytes.len()
    }

    /// Makes room for `need` bytes, keeping the first `used`.
    pub(super) fn reserve(&mut self, used: usize, need: usize) {
        if need <= self.bytes.len() {
            return;
        }
        let mut grown = vec![0; need.next_power_of_two().max(MIN_CAPACITY)];
        let (a, b) = self.slices(0, used);
        grown[..a.len()].copy_from_slice(a);
        grown[a.len()..a.len() + b.len()].copy_from_slice(b);
        self.bytes = grown;
        self.head = 0;
    }

    /// Where position `at` lies. The capacity is a power of two; an empty ring has no positions.
    fn index(&self, at: usize) -> usize {
        (self.head + at) & (self.bytes.len().wrapping_sub(1))
    }

    /// Writes `data` at `at`. The owner has reserved `at + data.len()` bytes.
    pub(super) fn write(&mut self, at: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let start = self.index(at);
        let first = data.len().min(self.bytes.len() - start);
        self.bytes[start..start + first].copy_from_slice(&data[..first]);
        self.bytes[..data.len() - first].copy_from_slice(&data[first..]);
    }

    /// The `len` bytes at `at`, in at most two pieces.
    pub(super) fn slices(&self, at: usize, len: usize) -> (&[u8], &[u8]) {
        if len == 0 {
            return (&[], &[]);
        }
        let start = self.index(at);
        let first = len.min(self.bytes.len() - start);
        (&self.bytes[start..start + first], &self.bytes[..len - first])
    }

    /// Drops `n` bytes at the head.
    pub(super) fn advance(&mut self, n: usize) {
        if !self.bytes.is_empty() {
            self.head = self.index(n);
        }
    }

    /// Gives the memory back. The owner holds no byte in it.
    pub(super) fn release(&mut self) {
        *self = Self::default();
    }
}
