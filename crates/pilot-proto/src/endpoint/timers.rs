//! One deadline per connection and peer, in one ordered queue.
//!
//! A deadline that moves later stays where it is and fires early once, which costs less than moving it with every packet;
//! one that moves earlier is moved. So there is at most one entry per owner, and every operation is O(log n).

use std::collections::BTreeSet;
use std::time::Instant;

/// Whose deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Owner {
    Conn(usize),
    Peer(usize),
}

#[derive(Debug, Default)]
pub(super) struct Timers {
    queue: BTreeSet<(Instant, Owner)>,
}

impl Timers {
    /// Makes `owner` fire no later than `at`. `armed` is the owner's note of its entry.
    pub(super) fn arm(&mut self, owner: Owner, armed: &mut Option<Instant>, at: Option<Instant>) {
        let Some(at) = at else { return };
        if armed.is_some_and(|t| t <= at) {
            return;
        }
        self.disarm(owner, armed);
        self.queue.insert((at, owner));
        *armed = Some(at);
    }

    /// Removes the owner's entry.
    pub(super) fn disarm(&mut self, owner: Owner, armed: &mut Option<Instant>) {
        if let Some(old) = armed.take() {
            self.queue.remove(&(old, owner));
        }
    }

    /// The next owner whose time has come. The owner forgets its note.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Owner> {
        let (at, owner) = *self.queue.first()?;
        if at > now {
            return None;
        }
        self.queue.pop_first();
        Some(owner)
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    #[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn an_owner_has_one_entry_that_only_moves_earlier() {
        let t = Instant::now();
        let at = |ms| t + Duration::from_millis(ms);
        let (mut timers, mut armed) = (Timers::default(), None);
        timers.arm(Owner::Conn(1), &mut armed, Some(at(50)));
        timers.arm(Owner::Conn(1), &mut armed, Some(at(90)));
        assert_eq!(timers.next(), Some(at(50)));
        timers.arm(Owner::Conn(1), &mut armed, Some(at(20)));
        timers.arm(Owner::Conn(1), &mut armed, None);
        assert_eq!((timers.next(), timers.queue.len()), (Some(at(20)), 1));
        assert_eq!(timers.pop(at(19)), None);
        assert_eq!(timers.pop(at(20)), Some(Owner::Conn(1)));
        assert_eq!(timers.next(), None);
    }
}
