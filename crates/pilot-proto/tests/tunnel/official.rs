//! Official daemons as the specification describes them, faults included, for the other end of a test network: February
//! (01 §8 to §13), 1.7.2 and 1.18.0 (07 §2.5, §5).

use std::any::Any;
use std::time::{Duration, Instant};

use pilot_proto::crypto::{AeadKey, ExchangeKey, Scheme};
use pilot_proto::identity::verify;
use pilot_wire::packet::{Packet, protocol};
use pilot_wire::tunnel::{AuthExchange, Datagram, KeyExchange, Nonce, SECURE_HEADER_LEN, SecureHeader};

use crate::net::{Node, Outgoing, Path, identity, node_id, packet, pong, wants_pong};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    Feb,
    V172,
    V118,
    /// A release to come that derives its key in yet another way.
    Future,
}

impl Version {
    pub fn scheme(self) -> Scheme {
        if self == Self::Feb { Scheme::A } else { Scheme::B }
    }

    /// Re-derives from a repeated exchange: new prefix, counter and window.
    fn resets(self) -> bool {
        self != Self::V118
    }
}

struct Session {
    theirs: [u8; 32],
    key: AeadKey,
    prefix: [u8; 4],
    counter: u64,
    max: u64,
    seen: Vec<u64>,
    made: Instant,
    failures: u32,
    replays: u32,
    opened: Option<Instant>,
}

pub struct Official {
    pub version: Version,
    who: usize,
    life: u8,
    key: ExchangeKey,
    session: Option<Session>,
    pub relay: bool,
    draws: u32,
    pub delivered: Vec<u32>,
    waiting: Vec<u32>,
    rekeyed: Option<Instant>,
    replied: Option<Instant>,
    /// 1.18.0 repeats an unanswered exchange every 4 s, 5 times.
    retry: Option<(Instant, u32)>,
    /// The window refused a frame it had not opened: what 1.18.0 reports.
    pub replay_events: u32,
    pub unreadable: u32,
    /// Answers probes.
    pub alive: bool,
    /// The kind of path the last exchange was accepted on: through 1.17.0 only that kind is accepted later, because the
    /// identity key is cached as a view into the receive buffer (01 §9.1).
    accepted: Option<Path>,
}

impl Official {
    pub fn new(who: usize, version: Version, life: u8) -> Self {
        let key = ExchangeKey::from_private(&[0x40 + life * 2 + who as u8; 32]);
        Self {
            version,
            who,
            life,
            key,
            session: None,
            relay: false,
            draws: 0,
            delivered: Vec::new(),
            waiting: Vec::new(),
            rekeyed: None,
            replied: None,
            retry: None,
            replay_events: 0,
            unreadable: 0,
            alive: true,
            accepted: None,
        }
    }

    pub fn exchange(&self) -> Vec<u8> {
        let id = identity(self.who);
        let node = node_id(self.who);
        let x25519 = *self.key.public();
        let signature = id.sign(&AuthExchange::signed_bytes(node, &x25519));
        let mut out = Vec::new();
        AuthExchange { node, x25519, ed25519: id.public_key(), signature }.emit(&mut out);
        out
    }

    /// Trust was revoked: the session is forgotten, the key is not (01 §13.3).
    pub fn forget(&mut self) {
        self.session = None;
    }

    fn path(&self) -> Path {
        if self.relay { Path::Relay } else { Path::Direct }
    }

    fn derive(&mut self, now: Instant, theirs: [u8; 32]) {
        self.draws += 1;
        let mut key = self.key.agree(&theirs).unwrap().aead(self.version.scheme());
        if self.version == Version::Future {
            key = AeadKey::new(&[7; 32]);
        }
        let mark = self.draws as u8;
        self.session = Some(Session {
            theirs,
            key,
            prefix: [0xEE, self.who as u8, self.life, mark],
            counter: 0,
            max: 0,
            seen: Vec::new(),
            made: now,
            failures: 0,
            replays: 0,
            opened: None,
        });
    }

    fn seal(&mut self, plain: &[u8], out: &mut Outgoing) {
        let (path, scheme, node) = (self.path(), self.version.scheme(), node_id(self.who));
        let Some(s) = &mut self.session else { return };
        s.counter += 1;
        let header = SecureHeader { node, nonce: Nonce { prefix: s.prefix, counter: s.counter } };
        let mut frame = header.to_bytes().to_vec();
        frame.extend_from_slice(plain);
        let aad: &[u8] = if scheme == Scheme::A { &[] } else { &node.to_be_bytes() };
        let tag = s.key.seal(header.nonce.to_bytes(), aad, &mut frame[SECURE_HEADER_LEN..]).unwrap();
        frame.extend_from_slice(&tag);
        out.push((path, frame));
    }

    fn auth(&mut self, now: Instant, f: &AuthExchange, path: Path, out: &mut Outgoing) {
        let signed = AuthExchange::signed_bytes(f.node, &f.x25519);
        if f.ed25519 != identity(1 - self.who).public_key() || !verify(&f.ed25519, &signed, &f.signature) {
            return;
        }
        if path == Path::Relay {
            self.relay = true;
        }
        if self.version != Version::V118 && self.accepted.is_some_and(|p| p != path) {
            return;
        }
        self.accepted = Some(path);
        let same = self.session.as_ref().is_some_and(|s| s.theirs == f.x25519);
        let fresh = self.session.is_none();
        if !same || self.version.resets() {
            self.derive(now, f.x25519);
        }
        self.retry = None;
        let silent = self.version == Version::V118
            && self.session.as_ref().is_some_and(|s| {
                let since = s.opened.unwrap_or(s.made);
                now.duration_since(since) > Duration::from_secs(6)
            })
            && self.replied.is_none_or(|t| now.duration_since(t) >= Duration::from_secs(1));
        if fresh || !same || silent {
            self.replied = Some(now);
            out.push((self.path(), self.exchange()));
        }
        for number in std::mem::take(&mut self.waiting) {
            self.seal(&packet(node_id(self.who), node_id(1 - self.who), number), out);
        }
    }

    /// Counter only, as every release judges it.
    fn window(s: &mut Session, c: u64) -> bool {
        if s.max.saturating_sub(c) >= 256 || s.seen.contains(&c) {
            return false;
        }
        s.max = s.max.max(c);
        s.seen.push(c);
        let max = s.max;
        s.seen.retain(|x| max - x < 256);
        true
    }

    fn secure(&mut self, now: Instant, h: &SecureHeader, frame: &[u8]) -> Option<Vec<u8>> {
        let feb_order = self.version != Version::V118;
        let scheme = self.version.scheme();
        let s = self.session.as_mut()?;
        if feb_order && !Self::window(s, h.nonce.counter) {
            self.replay_events += 1;
            return None;
        }
        let (body, tag) = frame[SECURE_HEADER_LEN..].split_at(frame.len() - SECURE_HEADER_LEN - 16);
        let aad: &[u8] = if scheme == Scheme::A { &[] } else { &h.node.to_be_bytes() };
        let mut plain = vec![0; body.len()];
        if s.key.open(h.nonce.to_bytes(), aad, body, tag, &mut plain).is_err() {
            self.unreadable += 1;
            s.failures += 1;
            s.seen.retain(|c| *c != h.nonce.counter);
            return None;
        }
        if !feb_order && !Self::window(s, h.nonce.counter) {
            self.replay_events += 1;
            s.replays += 1;
            return None;
        }
        s.failures = 0;
        s.replays = 0;
        s.opened = Some(now);
        Some(plain)
    }

    /// 1.9.1 and later: ask for new keys, at most once per 3 s.
    fn ask(&mut self, now: Instant, out: &mut Outgoing) {
        if self.rekeyed.is_none_or(|t| now.duration_since(t) >= Duration::from_secs(3)) {
            self.rekeyed = Some(now);
            let key = KeyExchange { node: node_id(self.who), x25519: *self.key.public() };
            let mut pilk = Vec::new();
            key.emit(&mut pilk);
            out.push((self.path(), self.exchange()));
            out.push((self.path(), pilk));
        }
    }
}

impl Node for Official {
    fn receive(&mut self, now: Instant, path: Path, frame: &mut [u8], out: &mut Outgoing) {
        if path == Path::Relay {
            self.relay = true;
        }
        match Datagram::parse(frame) {
            Some(Datagram::Auth(f)) => self.auth(now, &f, path, out),
            Some(Datagram::Key(_)) => out.push((self.path(), self.exchange())),
            Some(Datagram::Secure(h)) => {
                let Some(plain) = self.secure(now, &h, frame) else {
                    if self.version == Version::V118 {
                        let age = |s: &Session| now.duration_since(s.made);
                        let drop = self.session.as_ref().is_some_and(|s| {
                            s.failures >= 5 && age(s) > Duration::from_secs(3)
                                || s.replays >= 5 && age(s) > Duration::from_secs(1)
                        });
                        if drop {
                            self.session = None;
                        }
                        if self.session.is_none() {
                            self.ask(now, out);
                        }
                    }
                    return;
                };
                let Ok(p) = Packet::parse(&plain) else { return };
                if p.header.protocol == protocol::DATAGRAM {
                    self.delivered.push(u32::from_be_bytes(p.payload.try_into().unwrap()));
                } else if self.alive && wants_pong(&p.header, p.payload) {
                    let answer = pong(&p.header, p.payload);
                    self.seal(&answer, out);
                }
            }
            _ => {}
        }
    }

    fn send(&mut self, now: Instant, number: u32, out: &mut Outgoing) {
        if self.session.is_some() {
            self.seal(&packet(node_id(self.who), node_id(1 - self.who), number), out);
            return;
        }
        self.waiting.push(number);
        out.push((self.path(), self.exchange()));
        if self.version == Version::V118 {
            out.push((Path::Relay, self.exchange()));
            self.retry = Some((now + Duration::from_secs(4), 5));
        }
    }

    fn timeout(&mut self, now: Instant, out: &mut Outgoing) {
        if let Some((at, left)) = self.retry
            && at <= now
        {
            out.push((Path::Direct, self.exchange()));
            out.push((Path::Relay, self.exchange()));
            self.retry = (left > 1).then(|| (now + Duration::from_secs(4), left - 1));
        }
    }

    fn next(&self) -> Option<Instant> {
        self.retry.map(|(at, _)| at)
    }

    fn delivered(&self) -> &[u32] {
        &self.delivered
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}
