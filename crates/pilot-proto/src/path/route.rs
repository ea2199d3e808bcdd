//! Which way packets to one peer take.
//!
//! A way counts as proven when a frame that advanced the peer's window came over it, or when a probe sent over it was
//! answered. Packets follow the proven way, direct before relay. A direct way that stops answering is left only after the
//! relay has answered a probe, and is returned to only after a probe over it was answered; each time it fails again it is
//! left alone for twice as long, so paths do not flap (07 §16 items 15 to 21).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use smallvec::SmallVec;

use super::beacon::{canonical, plausible};

/// Direct addresses kept per peer. When full the one not proven longest goes.
pub const CANDIDATES: usize = 4;
/// Send silence after which a peer in use is probed: keeps NAT mappings and the peer's own watchdog quiet (07 rule 25).
pub const KEEPALIVE: Duration = Duration::from_secs(25);
/// Between two probes that prove the direct way while data flows over it.
pub const VALIDATE_EVERY: Duration = Duration::from_secs(15);
/// How long an answer may take before the probe counts as missed: twice a satellite's round trip.
pub const PROBE_WAIT: Duration = Duration::from_millis(1_500);
/// Between two rounds of probes on every way.
pub const PROBE_EVERY: Duration = Duration::from_millis(500);
/// Sent without any answer for this long, the peer is probed on every way.
pub const SUSPECT_AFTER: Duration = Duration::from_secs(2);
/// The relay counts as working this long after it brought something.
const RELAY_FRESH: Duration = Duration::from_secs(3);
/// Missed direct probes in a row before the relay may take over.
pub const MISSES_TO_LEAVE: u32 = 2;
/// Longest pause between two attempts to leave the relay (07 §6.3).
pub const DIRECT_ATTEMPT_MAX: Duration = Duration::from_secs(15);
/// Between two questions to the registry for a peer's endpoint while its direct way does not work (01 rule 19).
pub const RESOLVE_EVERY: Duration = Duration::from_secs(30);
/// How long a direct way that failed is left alone at first; doubles with each failure up to [`HOLD_MAX`].
pub const HOLD_FIRST: Duration = Duration::from_secs(15);
/// Longest time a failed direct way is left alone.
pub const HOLD_MAX: Duration = Duration::from_secs(240);
/// A direct way that held this long is forgiven its failures.
pub const FORGIVE_AFTER: Duration = Duration::from_secs(600);
/// While nothing is proven, packets change between direct and relay this often.
pub const ALTERNATE: Duration = Duration::from_millis(400);
/// Between two looks at a healthy peer in use (07 §6.1: a sweep every 5 s).
pub const SWEEP: Duration = Duration::from_secs(5);
/// Between two looks at a peer that owes an answer.
const WATCH: Duration = Duration::from_millis(250);
/// Probes whose answer is still waited for. When full the oldest counts as missed.
/// Four rounds of every candidate and the relay.
const PROBES: usize = 4 * (CANDIDATES + 1);

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// To the peer's address.
    Direct(SocketAddr),
    /// Through the beacon.
    Relay,
}

/// What a [`PeerPath`] wants done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PathAction {
    /// Seal a `pathprobe.v1` with this sequence number and send it this way (07 §6.2).
    Probe {
        /// Where to.
        way: Way,
        /// The probe's sequence number, which its answer repeats.
        seq: u32,
    },
    /// Ask the beacon for a punch.
    Punch,
    /// Ask the registry for the endpoint.
    Resolve,
}

/// An answered probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// Whether the way for our packets changed.
    pub changed: bool,
    /// When the probe was sent.
    pub sent: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Probe {
    seq: u32,
    way: Way,
    sent: Instant,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    addr: SocketAddr,
    at: Instant,
}

/// Route choice for one peer.
#[derive(Debug)]
pub struct PeerPath {
    candidates: SmallVec<[Candidate; CANDIDATES]>,
    direct: Option<SocketAddr>,
    direct_since: Instant,
    relay: bool,
    relay_only: bool,
    hint: Option<Way>,
    last_opened: Option<Instant>,
    last_sent: Option<Instant>,
    unanswered: Option<Instant>,
    probes: SmallVec<[Probe; PROBES]>,
    next_seq: u32,
    probed: Option<Instant>,
    validated: Option<Instant>,
    misses: u32,
    relay_proven: Option<Instant>,
    next_probe: Option<Instant>,
    next_direct: Option<Instant>,
    direct_pause: Duration,
    hold: Duration,
    hold_until: Option<Instant>,
    resolved_at: Option<Instant>,
    rtt: Option<Duration>,
    /// When [`Self::handle_timeout`] has something to do again.
    tick: Option<Instant>,
}

impl PeerPath {
    fn arm(&mut self, at: Instant) {
        self.tick = Some(self.tick.map_or(at, |t| t.min(at)));
    }

    /// Nothing known. `first_seq` starts the probe numbers; draw it at random, it makes answers hard to guess.
    pub fn new(now: Instant, first_seq: u32) -> Self {
        Self {
            candidates: SmallVec::new(),
            direct: None,
            direct_since: now,
            relay: false,
            relay_only: false,
            hint: None,
            last_opened: None,
            last_sent: None,
            unanswered: None,
            probes: SmallVec::new(),
            next_seq: first_seq,
            probed: None,
            validated: None,
            misses: 0,
            relay_proven: None,
            next_probe: None,
            next_direct: None,
            direct_pause: Duration::from_secs(1),
            hold: Duration::ZERO,
            hold_until: None,
            resolved_at: None,
            rtt: None,
            tick: None,
        }
    }

    /// The way the next packet takes, or `None` when there is none. `beacon`: whether a relay is configured.
    pub fn way(&self, now: Instant, beacon: bool) -> Option<Way> {
        let relay = beacon.then_some(Way::Relay);
        if self.relay || self.relay_only {
            return relay.or(self.direct.map(Way::Direct));
        }
        if let Some(addr) = self.direct {
            return Some(Way::Direct(addr));
        }
        let direct = match self.hint {
            Some(Way::Direct(addr)) => Some(addr),
            _ => self.candidates.first().map(|c| c.addr),
        }
        .map(Way::Direct);
        let (first, second) = match self.hint {
            Some(Way::Relay) => (relay, direct),
            _ => (direct, relay),
        };
        let waited = self.unanswered.map_or(Duration::ZERO, |t| now.saturating_duration_since(t));
        let turn = waited.as_millis() / ALTERNATE.as_millis();
        if turn % 2 == 1 { second.or(first) } else { first.or(second) }
    }

    /// Direct addresses worth a key exchange, the proven one first.
    pub fn direct_targets(&self) -> SmallVec<[SocketAddr; CANDIDATES]> {
        let mut out: SmallVec<[SocketAddr; CANDIDATES]> = SmallVec::new();
        if self.relay_only {
            return out;
        }
        let hint = match self.hint {
            Some(Way::Direct(addr)) => Some(addr),
            _ => None,
        };
        for addr in self.direct.into_iter().chain(hint).chain(self.candidates.iter().map(|c| c.addr)) {
            if !out.contains(&addr) && out.len() < CANDIDATES {
                out.push(addr);
            }
        }
        out
    }

    /// The proven direct address, or the likeliest one.
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.direct.or_else(|| self.direct_targets().first().copied())
    }

    /// Whether packets go through the beacon.
    pub fn is_relay(&self) -> bool {
        self.relay || self.relay_only
    }

    /// The proven direct address, unless the relay is used.
    pub fn proven_direct(&self) -> Option<SocketAddr> {
        if self.is_relay() { None } else { self.direct }
    }

    /// When a frame last opened.
    pub fn last_opened(&self) -> Option<Instant> {
        self.last_opened
    }

    /// Round trip of the last answered probe.
    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    /// Whether the registry's answer is still missing or old.
    pub fn wants_resolve(&self, now: Instant) -> bool {
        self.direct.is_none() && self.resolved_at.is_none_or(|t| now.saturating_duration_since(t) >= RESOLVE_EVERY)
    }

    /// The registry was asked.
    pub fn resolve_asked(&mut self, now: Instant) {
        self.resolved_at = Some(now);
    }

    /// The registry's answer. An empty list means a node that is reached by relay only.
    pub fn on_resolved(&mut self, now: Instant, addrs: &[SocketAddr], beacon: Option<SocketAddr>) {
        self.resolved_at = Some(now);
        // A relay-only node is registered with the beacon's own address (07 §8.2).
        let own = addrs.iter().filter(|a| plausible(**a, None) && Some(canonical(**a)) != beacon);
        let (mut any, mut news) = (false, false);
        for addr in own.take(CANDIDATES) {
            news |= !self.candidates.iter().any(|c| c.addr == canonical(*addr));
            self.add_candidate(now, *addr);
            any = true;
        }
        self.relay_only = !any && beacon.is_some() && self.direct.is_none();
        if news && self.is_relay() {
            self.attempt_soon(now);
        }
    }

    /// An address at which the peer may be.
    pub fn add_candidate(&mut self, now: Instant, addr: SocketAddr) {
        let addr = canonical(addr);
        if let Some(known) = self.candidates.iter_mut().find(|c| c.addr == addr) {
            known.at = now;
            return;
        }
        if self.candidates.len() >= CANDIDATES {
            let oldest = (0..self.candidates.len()).min_by_key(|&i| self.candidates[i].at).unwrap_or(0);
            self.candidates.remove(oldest);
        }
        self.candidates.push(Candidate { addr, at: now });
    }

    /// A key exchange of the peer was accepted. It says where to answer while nothing is proven, and no more: it can be
    /// replayed from anywhere (01 rule 14).
    pub fn on_key_exchange(&mut self, way: Way) {
        if self.direct.is_none() && !self.relay && (self.hint.is_none() || matches!(way, Way::Direct(_))) {
            self.hint = Some(way);
        }
    }

    /// A frame opened. `advanced`: it moved the peer's window forward, so it is not a copy of something older. Returns
    /// whether the way for our packets changed.
    pub fn on_opened(&mut self, now: Instant, way: Way, advanced: bool) -> bool {
        self.last_opened = Some(now);
        if !advanced {
            return false;
        }
        match way {
            Way::Direct(addr) => {
                if !self.is_relay() {
                    self.unanswered = None;
                }
                if self.held(now) {
                    self.add_candidate(now, addr);
                    return false;
                }
                self.prove_direct(now, addr)
            }
            Way::Relay => {
                self.relay_proven = Some(now);
                if self.is_relay() {
                    self.unanswered = None;
                } else if self.direct.is_none() {
                    self.unanswered = None;
                    self.relay = true;
                    self.direct_pause = Duration::from_secs(1);
                    self.next_direct = Some(now);
                    self.arm(now);
                    return true;
                } else if self.validated.is_none_or(|t| now.saturating_duration_since(t) >= PROBE_WAIT) {
                    // The peer believes the direct way to us is dead. Ours to it may be, too.
                    self.next_probe.get_or_insert(now);
                    self.arm(now);
                }
                false
            }
        }
    }

    fn relay_works(&self, now: Instant) -> bool {
        self.relay_proven.is_some_and(|t| now.saturating_duration_since(t) < RELAY_FRESH)
    }

    fn held(&self, now: Instant) -> bool {
        self.hold_until.is_some_and(|t| now < t)
    }

    fn prove_direct(&mut self, now: Instant, addr: SocketAddr) -> bool {
        self.add_candidate(now, addr);
        let changed = self.direct != Some(addr) || self.is_relay();
        if changed {
            self.direct = Some(addr);
            self.direct_since = now;
            self.relay = false;
            self.relay_only = false;
            self.misses = 0;
            self.unanswered = None;
            self.next_direct = None;
            self.next_probe = Some(now);
            self.arm(now);
        }
        changed
    }

    /// The answer to probe `seq` came. `None` for an unknown number.
    pub fn on_pong(&mut self, now: Instant, seq: u32) -> Option<Pong> {
        let at = self.probes.iter().position(|p| p.seq == seq)?;
        let probe = self.probes.remove(at);
        self.rtt = Some(now.saturating_duration_since(probe.sent));
        let changed = self.answered(now, probe);
        Some(Pong { changed, sent: probe.sent })
    }

    fn answered(&mut self, now: Instant, probe: Probe) -> bool {
        match probe.way {
            Way::Direct(addr) => {
                // Answers to older probes of this way say as much as this one.
                self.probes.retain(|p| p.way != probe.way || p.sent > probe.sent);
                self.misses = 0;
                self.validated = Some(now);
                if !self.is_relay() {
                    self.unanswered = None;
                    if self.direct == Some(addr) {
                        if now.saturating_duration_since(self.direct_since) >= FORGIVE_AFTER {
                            self.hold = Duration::ZERO;
                        }
                        return false;
                    }
                }
                // A way under suspicion is better than a relay that brings nothing.
                if self.held(now) && self.relay_works(now) {
                    return false;
                }
                self.prove_direct(now, addr)
            }
            Way::Relay => {
                self.relay_proven = Some(now);
                if self.is_relay() {
                    self.unanswered = None;
                    return false;
                }
                self.maybe_leave_direct(now)
            }
        }
    }

    /// Leaves the direct way when it missed probes and the relay has answered since.
    fn maybe_leave_direct(&mut self, now: Instant) -> bool {
        if self.is_relay() || self.misses < MISSES_TO_LEAVE || !self.relay_works(now) {
            return false;
        }
        self.relay = true;
        self.misses = 0;
        self.unanswered = None;
        self.hold = if self.hold.is_zero() { HOLD_FIRST } else { (self.hold * 2).min(HOLD_MAX) };
        self.hold_until = Some(now + self.hold);
        self.next_direct = Some(now + self.hold);
        self.direct_pause = DIRECT_ATTEMPT_MAX;
        true
    }

    /// Our own address changed: asks the peer over the way in use, so that it learns the new one from what it opens.
    pub fn on_moved(&mut self, now: Instant) {
        self.next_probe = Some(now);
        self.arm(now);
    }

    /// A packet left. `asks`: the peer should answer it (SYN, data, probe).
    pub fn on_sent(&mut self, now: Instant, asks: bool) {
        self.last_sent = Some(now);
        if asks && self.unanswered.is_none() {
            self.unanswered = Some(now);
            self.arm(now + SUSPECT_AFTER);
        }
        if self.tick.is_none() {
            self.arm(now + SWEEP);
        }
    }

    /// A probe behind a SYN, the way the SYN went: its answer shows that the peer lives and ignores the SYN.
    pub fn probe_behind_syn(&mut self, now: Instant, beacon: bool) -> Option<(Way, u32)> {
        let way = self.way(now, beacon)?;
        let mut out = Vec::new();
        self.probe(now, way, &mut out);
        Some((way, self.next_seq.wrapping_sub(1)))
    }

    /// Starts at once: the operator or a dial wants the direct way.
    pub fn prefer_direct(&mut self, now: Instant) {
        self.relay_only = false;
        self.hold = Duration::ZERO;
        self.hold_until = None;
        self.attempt_soon(now);
    }

    /// The beacon has just opened the way to `addr`, on both sides: a probe there, if the relay is used and the address was
    /// not probed a moment ago. It asks for no further punch, or one would follow the other for ever.
    pub fn probe_punched(&mut self, now: Instant, addr: SocketAddr) -> Option<u32> {
        let way = Way::Direct(canonical(addr));
        let recent = |p: &Probe| p.way == way && now.saturating_duration_since(p.sent) < PROBE_EVERY;
        if !self.relay || self.held(now) || self.probes.iter().any(recent) {
            return None;
        }
        let mut out = Vec::new();
        self.probe(now, way, &mut out);
        Some(self.next_seq.wrapping_sub(1))
    }

    fn attempt_soon(&mut self, now: Instant) {
        if !self.held(now) {
            self.direct_pause = Duration::from_secs(1);
            self.next_direct = Some(now);
            self.arm(now);
        }
    }

    fn probe(&mut self, now: Instant, way: Way, out: &mut Vec<PathAction>) {
        if self.probes.len() >= PROBES {
            self.probes.remove(0);
        }
        let seq = self.next_seq;
        self.next_seq = self.next_seq.wrapping_add(1);
        self.probes.push(Probe { seq, way, sent: now });
        self.arm(now + PROBE_WAIT);
        out.push(PathAction::Probe { way, seq });
    }

    /// What is due. `in_use`: application packets in the last two minutes or an open stream (07 rule 25); a peer not in
    /// use is left alone. `session`: packets can be sealed. Returns whether the way for our packets changed.
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        in_use: bool,
        session: bool,
        beacon: bool,
        out: &mut Vec<PathAction>,
    ) -> bool {
        self.tick = None;
        let direct = self.proven_direct();
        let mut missed = false;
        self.probes.retain(|p| {
            let late = now.saturating_duration_since(p.sent) >= PROBE_WAIT;
            missed |= late && direct.is_some_and(|d| p.way == Way::Direct(d));
            !late
        });
        self.misses += u32::from(missed);
        let changed = self.maybe_leave_direct(now);
        if !in_use {
            self.next_probe = None;
            self.next_direct = None;
            self.unanswered = None;
            self.misses = 0;
            return changed;
        }
        if session {
            self.watch(now, beacon, out);
            self.attempt_direct(now, out);
        }
        let busy = self.unanswered.is_some() || self.misses > 0 || !self.probes.is_empty();
        self.arm(now + if busy { WATCH } else { SWEEP });
        for at in [self.next_probe, self.next_direct.max(self.hold_until).filter(|_| self.relay)].into_iter().flatten()
        {
            self.arm(at.max(now + Duration::from_millis(10)));
        }
        changed
    }

    /// Probes the way in use when it is due, and every way when it does not answer.
    fn watch(&mut self, now: Instant, beacon: bool, out: &mut Vec<PathAction>) {
        let since = |t: Option<Instant>| t.map_or(Duration::MAX, |t| now.saturating_duration_since(t));
        let silent = self.unanswered.is_some_and(|t| now.saturating_duration_since(t) >= SUSPECT_AFTER);
        let suspect = silent || self.misses > 0;
        let way = self.way(now, beacon);
        let quiet = since(self.last_sent) >= KEEPALIVE;
        let stale = self.proven_direct().is_some()
            && since(self.validated.max(Some(self.direct_since))) >= VALIDATE_EVERY
            && since(self.last_sent) < VALIDATE_EVERY;
        let due = self.next_probe.is_some_and(|t| t <= now);
        if !(due || (self.next_probe.is_none() && (suspect || quiet || stale))) {
            return;
        }
        if let Some(last) = self.probed.filter(|t| now.saturating_duration_since(*t) < PROBE_EVERY) {
            // A probe must have the time to be missed before others push it out.
            self.next_probe = Some(last + PROBE_EVERY);
            return;
        }
        self.probed = Some(now);
        self.next_probe = None;
        if suspect {
            for addr in self.direct_targets() {
                self.probe(now, Way::Direct(addr), out);
            }
            if beacon {
                self.probe(now, Way::Relay, out);
            }
            self.next_probe = Some(now + PROBE_EVERY);
            if since(self.resolved_at) >= RESOLVE_EVERY {
                self.resolved_at = Some(now);
                out.extend([PathAction::Resolve, PathAction::Punch]);
            }
        } else if let Some(way) = way {
            self.probe(now, way, out);
        }
    }

    /// Tries to leave the relay.
    fn attempt_direct(&mut self, now: Instant, out: &mut Vec<PathAction>) {
        if !self.relay || self.held(now) || self.next_direct.is_some_and(|t| now < t) {
            return;
        }
        if self.resolved_at.is_none_or(|t| now.saturating_duration_since(t) >= RESOLVE_EVERY) {
            self.resolved_at = Some(now);
            out.push(PathAction::Resolve);
        }
        out.push(PathAction::Punch);
        for addr in self.direct_targets() {
            self.probe(now, Way::Direct(addr), out);
        }
        self.next_direct = Some(now + self.direct_pause);
        self.direct_pause = (self.direct_pause * 2).min(DIRECT_ATTEMPT_MAX);
    }

    /// When [`Self::handle_timeout`] should be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.tick
    }
}
