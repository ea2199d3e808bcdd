//! Key exchanges: when to send one, what to make of one, and how a session that fell silent is healed (01 §9, §10, §23;
//! 07 §4.2).

use std::time::{Duration, Instant};

use pilot_wire::tunnel::{AUTH_LEN, AuthExchange, KeyExchange};

use super::types::limits;
use super::{ExchangeError, Failure, KeySend, Outgoing, Tunnel, TunnelEvent, Via};
use crate::identity::verify;

/// Why an exchange of ours runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    /// The application wants to send and nothing has opened yet.
    Wanted,
    /// The session fell silent.
    Heal,
    /// The session works and gets a fresh key.
    Rekey,
}

impl Reason {
    fn pauses(self) -> &'static [Duration] {
        match self {
            Self::Wanted => &limits::WANTED_PAUSES,
            Self::Heal => &limits::HEAL_PAUSES,
            Self::Rekey => &limits::REKEY_PAUSES,
        }
    }
}

/// An exchange of ours that is not finished.
pub(super) struct Exchange {
    reason: Reason,
    attempt: usize,
    next: Instant,
    /// When the first attempt is repeated over the relay.
    relay_copy: Option<Instant>,
    /// Serial of the first own key it sent.
    first_own: u32,
    /// Whether the peer answered the latest attempt.
    answered: bool,
}

impl Exchange {
    /// Whether a frame under this own key is what the exchange was for.
    pub(super) fn ends_with(&self, own: u32) -> bool {
        self.reason != Reason::Rekey || own >= self.first_own
    }
}

/// Probes under a session nothing has opened under yet.
pub(super) struct Probing {
    pub(super) session: u32,
    left: u8,
    next: Instant,
    send: KeySend,
}

/// The current session may be dead.
pub(super) struct Suspicion {
    again: Option<Instant>,
    deadline: Instant,
    /// Only the answer to a probe dispels it: the peer may be one that we can read and that cannot read us.
    pub(super) strict: bool,
}

/// Frames that open under no key, since one did.
#[derive(Default)]
pub(super) struct Unreadable {
    streak: u32,
    /// Their bytes since our last answer: an answer is never larger than what provoked it (D20).
    bytes: usize,
    answers: u32,
    next_answer: Option<Instant>,
    /// When keys were last exchanged without a frame having opened since.
    paired: Option<Instant>,
    since_paired: u32,
    reported: bool,
}

impl Unreadable {
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

/// A token bucket.
#[derive(Default)]
struct Bucket {
    used: u32,
    refilled: Option<Instant>,
}

impl Bucket {
    fn take(&mut self, now: Instant, burst: u32, refill: Duration) -> bool {
        let last = *self.refilled.get_or_insert(now);
        let earned = (now.saturating_duration_since(last).as_nanos() / refill.as_nanos()) as u32;
        if earned > 0 {
            self.used = self.used.saturating_sub(earned);
            // What is earned beyond a full bucket is lost, and so is the fraction then.
            self.refilled = Some(if self.used == 0 { now } else { last + refill * earned });
        }
        let ok = self.used < burst;
        self.used += u32::from(ok);
        ok
    }
}

/// What was sent when, for rate limits.
#[derive(Default)]
pub(super) struct Paced {
    direct: Option<Instant>,
    relay: Option<Instant>,
    replies: Bucket,
    verifies: Bucket,
    /// Exchanges whose signature was checked: key, signature, identity.
    verified: Vec<([u8; 32], [u8; 64], [u8; 32])>,
}

impl Paced {
    fn last(&self, via: Via) -> Option<Instant> {
        match via {
            Via::Direct(_) => self.direct,
            Via::Relay => self.relay,
        }
    }

    fn mark(&mut self, now: Instant, send: KeySend) {
        match send {
            KeySend::Direct | KeySend::Reply(Via::Direct(_)) => self.direct = Some(now),
            KeySend::Relay | KeySend::Reply(Via::Relay) => self.relay = Some(now),
            KeySend::Both | KeySend::Current => {
                self.direct = Some(now);
                self.relay = Some(now);
            }
        }
    }
}

fn due(at: Option<Instant>, now: Instant) -> bool {
    at.is_some_and(|at| at <= now)
}

impl Tunnel {
    /// The application wants to reach the peer: makes sure an exchange runs unless a session works. Cheap and idempotent.
    pub fn start(&mut self, now: Instant) {
        if self.exchange.is_some() || self.keys.confirmed() {
            return;
        }
        let rest = self.rest_until.filter(|at| *at > now);
        let mut exchange = self.new_exchange(Reason::Wanted, rest.unwrap_or(now));
        if let (Some(id), None) = (self.keys.current, rest) {
            // The peer's key is here already; perhaps it has ours too. Ask before exchanging again.
            exchange.next = now + limits::AUTH_INTERVAL;
            self.probe_session(now, id, KeySend::Current, 3);
        }
        self.exchange = Some(exchange);
        self.run_exchange(now);
    }

    fn new_exchange(&self, reason: Reason, next: Instant) -> Exchange {
        Exchange { reason, attempt: 0, next, relay_copy: None, first_own: u32::MAX, answered: false }
    }

    /// A fresh key for a session that works, or whose prefixes or frames are used up.
    pub(super) fn begin_rekey(&mut self, now: Instant) {
        if self.exchange.is_none() && self.rekey_rest_until.is_none_or(|at| at <= now) {
            self.exchange = Some(self.new_exchange(Reason::Rekey, now));
            self.run_exchange(now);
        }
    }

    /// Called per packet: cheap.
    pub(super) fn consider_rekey(&mut self, now: Instant) {
        let Some(s) = self.keys.current() else { return };
        if s.confirmed.is_none() || self.exchange.is_some() {
            return;
        }
        // The node with the smaller id begins, so that the two seldom cross (rule T8).
        let later = if self.local.node < self.peer { Duration::ZERO } else { self.cfg.rekey_after / 8 };
        let ours = self.greeting.peer.is_some();
        let old = now.saturating_duration_since(s.created) >= self.cfg.rekey_after + later;
        if s.frames() >= self.cfg.soft_frames || ours && (old || s.frames() >= self.cfg.rekey_frames) {
            self.begin_rekey(now);
        }
    }

    fn run_exchange(&mut self, now: Instant) {
        let Some(mut e) = self.exchange.take() else { return };
        if due(e.relay_copy, now) {
            e.relay_copy = None;
            self.send_auth(now, KeySend::Relay);
        }
        if e.next > now {
            self.exchange = Some(e);
            return;
        }
        let pauses = e.reason.pauses();
        let Some(pause) = pauses.get(e.attempt).copied() else {
            self.give_up(now, e.reason, e.attempt);
            return;
        };
        self.fresh_key(now);
        if let Some(own) = self.keys.own.last() {
            e.first_own = e.first_own.min(own.serial);
        }
        let first = e.attempt == 0;
        let send = match (e.reason, first) {
            (Reason::Wanted, true) => KeySend::Direct,
            (Reason::Heal | Reason::Rekey, true) => KeySend::Current,
            // Feb and everything through 1.17.0 accept an exchange only on the kind of path of the last one (07 rule 15).
            (_, false) => KeySend::Both,
        };
        e.relay_copy = (first && e.reason != Reason::Rekey).then(|| now + limits::RELAY_COPY);
        e.answered = false;
        e.attempt += 1;
        e.next = now + pause;
        self.exchange = Some(e);
        self.send_auth(now, send);
    }

    fn give_up(&mut self, now: Instant, reason: Reason, attempts: usize) {
        self.awaiting = None;
        match reason {
            Reason::Wanted => self.rest_until = Some(now + limits::EXCHANGE_REST),
            Reason::Heal => self.rest_until = Some(now + limits::HEAL_REST),
            Reason::Rekey => {
                self.rekey_rest_until = Some(now + limits::REKEY_REST);
                return;
            }
        }
        self.event(TunnelEvent::Failing(Failure::NoAnswer { attempts: attempts as u32 }));
    }

    /// Makes sure the newest own key has not been sent yet (01 rule 2).
    fn fresh_key(&mut self, now: Instant) {
        if self.keys.own.last().is_none_or(|k| k.sent.is_some()) {
            let local = std::sync::Arc::clone(&self.local);
            self.keys.fresh_own(now, local.node, &local.identity, &mut self.rng);
        }
    }

    fn send_auth(&mut self, now: Instant, send: KeySend) {
        if self.keys.own.is_empty() {
            self.fresh_key(now);
        }
        self.paced.mark(now, send);
        self.push(Outgoing::Auth { send });
    }

    /// A `PILA` frame arrived. `expected` is the peer's Ed25519 key from the registry or pinned, looked up by value and off
    /// the receive path (01 rule 7).
    ///
    /// # Errors
    /// [`ExchangeError`]; nothing has changed then.
    pub fn handle_auth(
        &mut self,
        now: Instant,
        via: Via,
        frame: &AuthExchange,
        expected: &[u8; 32],
    ) -> Result<(), ExchangeError> {
        let result = self.check_auth(now, frame, expected);
        match result {
            Ok(()) => self.accept_key(now, via, frame.x25519, Some(*expected)),
            Err(e) => {
                self.stats.auth_refused += 1;
                Err(e)
            }
        }
    }

    fn check_auth(&mut self, now: Instant, frame: &AuthExchange, expected: &[u8; 32]) -> Result<(), ExchangeError> {
        if frame.node != self.peer {
            return Err(ExchangeError::WrongNode);
        }
        if frame.ed25519 != *expected {
            return Err(ExchangeError::ForeignKey);
        }
        if self.keys.is_retired(&frame.x25519) {
            return Err(ExchangeError::Stale);
        }
        let seen = (frame.x25519, frame.signature, frame.ed25519);
        if self.paced.verified.contains(&seen) {
            return Ok(());
        }
        if !self.paced.verifies.take(now, limits::VERIFY_BURST, limits::VERIFY_REFILL) {
            return Err(ExchangeError::RateLimited);
        }
        let signed = AuthExchange::signed_bytes(frame.node, &frame.x25519);
        if !verify(expected, &signed, &frame.signature) {
            return Err(ExchangeError::Signature);
        }
        if self.paced.verified.len() >= limits::MAX_PEER_KEYS {
            self.paced.verified.remove(0);
        }
        self.paced.verified.push(seen);
        Ok(())
    }

    /// A `PILK` frame of a node that has a registered key: a request for our exchange. Its key is not used (07 rule 9).
    pub fn handle_key_request(&mut self, now: Instant, via: Via) {
        self.reply(now, via, limits::AUTH_INTERVAL);
    }

    /// A `PILK` frame of a node without a registered key: an unauthenticated session, if configured (W11).
    ///
    /// # Errors
    /// [`ExchangeError::Anonymous`] unless configured; the others as for `PILA`.
    pub fn handle_anonymous(&mut self, now: Instant, via: Via, frame: &KeyExchange) -> Result<(), ExchangeError> {
        let authenticated = self.keys.sessions.iter().any(|s| s.identity.is_some());
        let refused = if frame.node != self.peer {
            Some(ExchangeError::WrongNode)
        } else if !self.cfg.allow_anonymous || authenticated {
            Some(ExchangeError::Anonymous)
        } else if self.keys.is_retired(&frame.x25519) {
            Some(ExchangeError::Stale)
        } else if !self.paced.verifies.take(now, limits::VERIFY_BURST, limits::VERIFY_REFILL) {
            Some(ExchangeError::RateLimited)
        } else {
            None
        };
        if let Some(e) = refused {
            self.stats.auth_refused += 1;
            return Err(e);
        }
        self.accept_key(now, via, frame.x25519, None)
    }

    /// A key of the peer that may be believed.
    fn accept_key(
        &mut self,
        now: Instant,
        via: Via,
        peer: [u8; 32],
        identity: Option<[u8; 32]>,
    ) -> Result<(), ExchangeError> {
        if self.keys.own.is_empty() {
            self.fresh_key(now);
        }
        let known = self.keys.sessions.iter().any(|s| s.peer == peer);
        if known {
            for s in self.keys.sessions.iter_mut().filter(|s| s.peer == peer) {
                s.identity = identity.or(s.identity);
            }
        } else if self.keys.add_peer(now, peer, identity).is_err() {
            self.stats.auth_refused += 1;
            return Err(ExchangeError::LowOrder);
        }
        self.stats.auth_accepted += 1;
        if !known {
            self.unreadable.paired = Some(now);
            self.unreadable.since_paired = 0;
            self.unreadable.reported = false;
        }
        let id = self.keys.newest_with(&peer);
        let confirmed = id.and_then(|id| self.keys.session(id)).is_some_and(|s| s.confirmed.is_some());
        self.reply(now, via, if confirmed { limits::AUTH_INTERVAL_CONFIRMED } else { limits::AUTH_INTERVAL });
        if let Some(e) = &mut self.exchange
            && !e.answered
        {
            // Give the probe time before the next attempt; once per attempt, so that nobody can hold it back.
            e.answered = true;
            e.relay_copy = None;
            e.next = e.next.max(now + limits::AUTH_INTERVAL);
        }
        if let Some(id) = id {
            self.choose(now, via, id);
        }
        Ok(())
    }

    /// Whether the pair that an exchange brought seals from now on, or is only probed (01 rule 5).
    fn choose(&mut self, now: Instant, via: Via, id: u32) {
        if self.keys.current == Some(id) {
            return;
        }
        let wanted = self.exchange.is_some();
        if self.keys.confirmed() && self.suspicion.is_none() && !self.healing() {
            // It works: the newcomer has to open a frame first.
            self.probe_session(now, id, KeySend::Reply(via), 2);
            return;
        }
        let ready = self.keys.current.is_none();
        self.keys.adopt(id);
        if ready {
            self.event(TunnelEvent::Ready);
        }
        if wanted {
            self.probe_session(now, id, KeySend::Reply(via), 3);
        }
    }

    /// Whether an answer under the current key is overdue although it was asked for.
    pub(super) fn in_doubt(&self) -> bool {
        self.suspicion.as_ref().is_some_and(|s| s.again.is_none()) || self.healing()
    }

    fn healing(&self) -> bool {
        self.exchange.as_ref().is_some_and(|e| e.reason == Reason::Heal)
    }

    /// Our exchange as an answer, unless one went that way a moment ago (01 rule 3).
    fn reply(&mut self, now: Instant, via: Via, interval: Duration) {
        let recent = self.paced.last(via).is_some_and(|at| now.saturating_duration_since(at) < interval);
        if !recent && self.paced.replies.take(now, limits::REPLY_BURST, limits::REPLY_REFILL) {
            self.send_auth(now, KeySend::Reply(via));
        }
    }

    /// Sends a probe under a session and `more` of them later, until a frame opens under it.
    pub(super) fn probe_session(&mut self, now: Instant, session: u32, send: KeySend, probes: u8) {
        if self.probing.as_ref().is_some_and(|p| p.session == session) {
            return;
        }
        self.probing = Some(Probing { session, left: probes, next: now, send });
        self.run_probing(now);
    }

    fn run_probing(&mut self, now: Instant) {
        let Some(p) = &mut self.probing else { return };
        if p.next > now {
            return;
        }
        let (session, send) = (p.session, p.send);
        p.left = p.left.saturating_sub(1);
        p.next = now + limits::PROBE_INTERVAL;
        if p.left == 0 {
            self.probing = None;
        }
        self.push(Outgoing::Probe { session, send });
    }

    /// A peer that is not ours is asked now and then, while in use, whether it still reads us: a forged counter closes the
    /// window of old releases (W4), a replayed exchange of ours changes their key (D5), and neither stops their frames
    /// from opening here. Called per packet: cheap.
    pub(super) fn consider_proof(&mut self, now: Instant) {
        if self.greeting.peer.is_some() || !self.keys.confirmed() {
            return;
        }
        let since = *self.proved.get_or_insert(now);
        if now.saturating_duration_since(since) >= self.prove_pause {
            self.suspect(now, true);
        }
    }

    /// The peer answered a probe.
    pub(super) fn answered(&mut self, now: Instant) {
        self.proved = Some(now);
        self.prove_pause = limits::PROVE_PAUSE;
        self.suspicion = None;
    }

    fn suspect(&mut self, now: Instant, strict: bool) {
        if self.suspicion.is_some() || self.exchange.is_some() {
            return;
        }
        if let Some(session) = self.keys.current {
            self.suspicion = Some(Suspicion {
                again: Some(now + limits::PROBE_INTERVAL),
                deadline: now + limits::SUSPECT_PATIENCE,
                strict,
            });
            self.push(Outgoing::Probe { session, send: KeySend::Current });
        }
    }

    fn run_suspicion(&mut self, now: Instant) {
        let Some(s) = &mut self.suspicion else { return };
        if s.deadline <= now {
            if s.strict {
                // Peers that answer no probes at all are asked ever more seldom.
                self.proved = Some(now);
                self.prove_pause = (self.prove_pause * 4).min(limits::PROVE_PAUSE_MAX);
            }
            self.suspicion = None;
            self.awaiting = None;
            if self.exchange.is_none() && self.rest_until.is_none_or(|at| at <= now) {
                self.exchange = Some(self.new_exchange(Reason::Heal, now));
                self.run_exchange(now);
            }
        } else if due(s.again, now) {
            s.again = None;
            if let Some(session) = self.keys.current {
                self.push(Outgoing::Probe { session, send: KeySend::Current });
            }
        }
    }

    /// A frame of the peer opened under no key (01 rule 6, 07 §16 items 3 and 4).
    pub(super) fn note_unreadable(&mut self, now: Instant, via: Via, bytes: usize) {
        self.stats.unreadable += 1;
        let u = &mut self.unreadable;
        u.streak = u.streak.saturating_add(1);
        u.bytes = u.bytes.saturating_add(bytes);
        if let Some(paired) = u.paired {
            u.since_paired = u.since_paired.saturating_add(1);
            let frames = u.since_paired;
            let late = now.saturating_duration_since(paired) >= limits::FAILING_AFTER;
            if !u.reported && frames >= limits::FAILING_FRAMES && late {
                u.reported = true;
                self.event(TunnelEvent::Failing(Failure::Unreadable { frames }));
            }
        }
        if self.exchange.is_some() || self.suspicion.is_some() {
            return;
        }
        if self.keys.confirmed() {
            let quiet = self.last_opened.is_none_or(|at| now.saturating_duration_since(at) >= limits::SUSPECT_QUIET);
            let rested = self.suspect_rest_until.is_none_or(|at| at <= now);
            if quiet && rested && self.unreadable.streak >= limits::UNREADABLE_SUSPECT {
                self.suspect_rest_until = Some(now + limits::SUSPECT_REST);
                self.suspect(now, false);
            }
            return;
        }
        let u = &mut self.unreadable;
        let recent = self.paced.last(via).is_some_and(|at| now.saturating_duration_since(at) < limits::AUTH_INTERVAL);
        if u.bytes < AUTH_LEN || recent || u.next_answer.is_some_and(|at| at > now) {
            return;
        }
        let pause = limits::UNREADABLE_FIRST * 2u32.saturating_pow(u.answers.min(8));
        u.next_answer = Some(now + pause.min(limits::UNREADABLE_MAX));
        u.bytes = 0;
        u.answers += 1;
        let send = match (u.answers % 2 == 1, via) {
            (true, via) => KeySend::Reply(via),
            (false, Via::Direct(_)) => KeySend::Relay,
            (false, Via::Relay) => KeySend::Direct,
        };
        self.fresh_key(now);
        self.send_auth(now, send);
    }

    /// The next moment [`Tunnel::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let idle = self.exchange.is_none() && self.suspicion.is_none() && self.keys.confirmed();
        [
            self.keys.next_expiry(),
            self.greeting.next,
            self.probing.as_ref().map(|p| p.next),
            self.suspicion.as_ref().map(|s| s.again.map_or(s.deadline, |at| at.min(s.deadline))),
            self.exchange.as_ref().map(|e| e.relay_copy.map_or(e.next, |at| at.min(e.next))),
            self.awaiting.filter(|_| idle).map(|at| at + limits::SILENCE),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if due(self.keys.next_expiry(), now) {
            self.keys.expire(now);
            if let Some(oldest) = self.keys.oldest_session() {
                self.windows.forget_before(oldest);
            }
        }
        self.run_greeting(now);
        self.run_probing(now);
        self.run_suspicion(now);
        let silent = self.awaiting.is_some_and(|at| now.saturating_duration_since(at) >= limits::SILENCE);
        if silent && self.keys.confirmed() && self.suspicion.is_none() && self.exchange.is_none() {
            self.awaiting = None;
            self.suspect(now, false);
        }
        self.run_exchange(now);
    }
}
