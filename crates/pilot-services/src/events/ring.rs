//! The latest events, kept in memory for replay, and the retained values of topics.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use pilot_wire::SocketAddress;
use pilot_wire::service::events::Event;

/// Bytes of events kept for replay, topics included. The newest event is kept whatever its size.
pub const RING_BYTES: usize = 8 << 20;
/// Events kept for replay.
pub const RING_EVENTS: usize = 65_536;
/// Topics with a retained value. A further one is refused.
pub const RETAINED_TOPICS: usize = 4096;
/// Bytes of retained values, topics included. What does not fit is refused.
pub const RETAINED_BYTES: usize = 8 << 20;

/// One event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Number in the store.
    pub(super) number: u64,
    /// Milliseconds since the Unix epoch.
    pub(super) time_ms: u64,
    /// Published with the wish to be retained.
    pub(super) retained: bool,
    /// Who published it.
    pub(super) from: SocketAddress,
    /// Topic.
    pub(super) topic: Bytes,
    /// Payload.
    pub(super) payload: Bytes,
}

impl Entry {
    /// As it travels.
    pub(super) fn event(&self, replayed: bool) -> Event<'_> {
        Event {
            number: self.number,
            time_ms: self.time_ms,
            retained: self.retained,
            replayed,
            from: self.from,
            topic: &self.topic,
            payload: &self.payload,
        }
    }

    pub(super) fn from_event(event: &Event<'_>) -> Self {
        Self {
            number: event.number,
            time_ms: event.time_ms,
            retained: event.retained,
            from: event.from,
            topic: Bytes::copy_from_slice(event.topic),
            payload: Bytes::copy_from_slice(event.payload),
        }
    }

    pub(super) fn size(&self) -> usize {
        self.topic.len() + self.payload.len()
    }
}

/// What is kept.
#[derive(Default)]
pub(super) struct Ring {
    events: VecDeque<Arc<Entry>>,
    bytes: usize,
    retained: BTreeMap<Bytes, Arc<Entry>>,
    retained_bytes: usize,
    /// Number of the newest event that is no longer kept; 0 when all are.
    pub(super) lost_through: u64,
    /// Number of the newest event; 0 when there was none.
    pub(super) newest: u64,
}

impl Ring {
    /// Number of the oldest event kept; 0 when there is none.
    pub(super) fn oldest(&self) -> u64 {
        self.events.front().map_or(0, |entry| entry.number)
    }

    /// Takes an event whose number is above all others.
    pub(super) fn push(&mut self, entry: Arc<Entry>) {
        self.newest = entry.number;
        self.bytes += entry.size();
        self.events.push_back(entry);
        while self.events.len() > 1 && (self.bytes > RING_BYTES || self.events.len() > RING_EVENTS) {
            if let Some(gone) = self.events.pop_front() {
                self.bytes -= gone.size();
                self.lost_through = gone.number;
            }
        }
    }

    /// Makes an event the retained value of its topic; an empty payload ends it. False when there is no room.
    pub(super) fn retain(&mut self, entry: &Arc<Entry>) -> bool {
        let before = self.retained.get(&entry.topic).map_or(0, |old| old.size());
        if entry.payload.is_empty() {
            self.retained.remove(&entry.topic);
            self.retained_bytes -= before;
            return true;
        }
        let is_new = !self.retained.contains_key(&entry.topic);
        let after = self.retained_bytes - before + entry.size();
        if after > RETAINED_BYTES || is_new && self.retained.len() >= RETAINED_TOPICS {
            return false;
        }
        self.retained_bytes = after;
        self.retained.insert(entry.topic.clone(), entry.clone());
        true
    }

    /// Events with numbers above `number`, oldest first.
    pub(super) fn after(&self, number: u64) -> impl Iterator<Item = &Arc<Entry>> {
        let start = self.events.partition_point(|entry| entry.number <= number);
        self.events.range(start..)
    }

    /// Retained values of topics behind `topic`, in the order of topics.
    pub(super) fn retained_after(&self, topic: Option<&Bytes>) -> impl Iterator<Item = &Arc<Entry>> + use<'_> {
        let start = topic.map_or(Bound::Unbounded, |topic| Bound::Excluded(&topic[..]));
        self.retained.range::<[u8], _>((start, Bound::Unbounded)).map(|(_, entry)| entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64, topic: &str, payload: &[u8]) -> Arc<Entry> {
        Arc::new(Entry {
            number,
            time_ms: 0,
            retained: true,
            from: SocketAddress::default(),
            topic: Bytes::copy_from_slice(topic.as_bytes()),
            payload: Bytes::copy_from_slice(payload),
        })
    }

    #[test]
    fn the_oldest_go_first_and_it_is_known_how_far() {
        let mut ring = Ring::default();
        for number in 1..=RING_EVENTS as u64 + 3 {
            ring.push(entry(number, "t", b""));
        }
        assert_eq!((ring.oldest(), ring.lost_through), (4, 3));
        ring.push(entry(1 << 20, "t", &vec![0; RING_BYTES + 1]));
        assert_eq!((ring.oldest(), ring.events.len()), (1 << 20, 1));
        assert_eq!(ring.after(70_000).count(), 1);
        assert_eq!(ring.after(1 << 20).count(), 0);
    }

    #[test]
    fn one_value_is_retained_for_each_topic_within_limits() {
        let mut ring = Ring::default();
        assert!(
            ring.retain(&entry(1, "a", b"1"))
                && ring.retain(&entry(2, "a", b"22"))
                && ring.retain(&entry(3, "b", b"3"))
        );
        let kept: Vec<u64> = ring.retained_after(None).map(|e| e.number).collect();
        assert_eq!(kept, [2, 3]);
        assert_eq!(ring.retained_after(Some(&Bytes::from_static(b"a"))).count(), 1);
        assert!(!ring.retain(&entry(4, "c", &vec![0; RETAINED_BYTES])));
        assert!(ring.retain(&entry(5, "a", b"")));
        assert_eq!((ring.retained_after(None).count(), ring.retained_bytes), (1, 2));
        for number in 10..10 + RETAINED_TOPICS as u64 - 1 {
            assert!(ring.retain(&entry(number, &number.to_string(), b"x")));
        }
        assert!(!ring.retain(&entry(9999, "one more", b"x")));
    }
}
