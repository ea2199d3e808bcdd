//! Hello: telling a peer of our own kind what we can do (`docs/spec/hello.md`, rules H1 to H10).

use std::time::Instant;

use pilot_wire::hello::Hello;
use pilot_wire::packet::{Flags, Header, protocol};

use super::types::limits;
use super::{CONTROL_PORT, Outgoing, SchemeState, Tunnel, TunnelEvent};
use crate::crypto::Scheme;

/// Hello within one life of the peer.
#[derive(Default)]
pub(super) struct Greeting {
    /// What the peer said.
    pub(super) peer: Option<Hello>,
    /// The peer's X25519 key this life began with.
    pub(super) key: Option<[u8; 32]>,
    sent: usize,
    pub(super) next: Option<Instant>,
    answers: u8,
    answered: Option<Instant>,
}

impl Tunnel {
    /// The first frame of a new life of the peer has opened (H3).
    pub(super) fn greet(&mut self, now: Instant, key: Option<[u8; 32]>) {
        let before = std::mem::replace(&mut self.greeting, Greeting { key, ..Greeting::default() });
        if before.peer.is_some() {
            self.event(TunnelEvent::HelloLost);
        }
        self.greeting.next = Some(now);
        self.run_greeting(now);
    }

    /// Whether the first Hello to this life of the peer may still be answered: after a second without one, official peers
    /// are taken for what they are.
    pub fn may_greet(&self) -> bool {
        self.greeting.peer.is_none() && self.greeting.next.is_some() && self.greeting.sent <= 1
    }

    pub(super) fn run_greeting(&mut self, now: Instant) {
        if self.greeting.next.is_none_or(|at| at > now) {
            return;
        }
        let pause = limits::HELLO_PAUSES.get(self.greeting.sent).copied();
        self.greeting.next = pause.map(|p| now + p);
        if pause.is_some() {
            self.greeting.sent += 1;
            self.push(Outgoing::Hello { reply: false });
        }
    }

    /// A control packet has opened. Takes those on [`CONTROL_PORT`] (Hello, and the answers to our probes, which have
    /// done their work by opening) and says whether it was one.
    pub fn handle_control(&mut self, now: Instant, header: &Header, payload: &[u8]) -> bool {
        if header.protocol != protocol::CONTROL || header.dst.port != CONTROL_PORT {
            return false;
        }
        // H4: authenticated, under the key that is in use, and not the echo of a probe.
        let current = self.keys.current().filter(|s| s.confirmed.is_some() && s.identity.is_some());
        let in_use = current.is_some_and(|s| self.last_session == Some(s.id));
        if header.src.port == 0 && header.flags.contains(Flags::ACK) && in_use {
            self.answered(now);
        }
        if header.src.port != CONTROL_PORT || !header.flags.contains(Flags::ACK) || !in_use {
            return true;
        }
        let Ok(hello) = Hello::parse(payload) else {
            return true;
        };
        let ask = !hello.reply;
        self.greeting.next = None;
        // H7: one of ours speaks B; a doubled first packet whose second copy came first may have said otherwise.
        if self.scheme != SchemeState::Known(Scheme::B) {
            self.scheme = SchemeState::Known(Scheme::B);
            self.event(TunnelEvent::Scheme(Scheme::B));
        }
        if self.greeting.peer.as_ref().is_none_or(|known| !same(known, &hello)) {
            self.event(TunnelEvent::Hello(Box::new(hello.clone())));
            self.greeting.peer = Some(hello);
        }
        let rested =
            self.greeting.answered.is_none_or(|at| now.saturating_duration_since(at) >= limits::HELLO_ANSWER_INTERVAL);
        if ask && rested && self.greeting.answers < limits::MAX_HELLO_ANSWERS {
            self.greeting.answers += 1;
            self.greeting.answered = Some(now);
            self.push(Outgoing::Hello { reply: true });
        }
        true
    }
}

/// Whether two Hellos say the same, however they came.
fn same(a: &Hello, b: &Hello) -> bool {
    Hello { reply: false, ..a.clone() } == Hello { reply: false, ..b.clone() }
}
