//! Keys: our own X25519 keys, the peer's, and the sessions that follow from their pairs.
//!
//! Every own key is made for this peer alone and lives from one exchange to the next (W14). A session belongs to one pair
//! of an own key and a peer key; it is *confirmed* once a frame has opened under it.

use std::time::Instant;

use pilot_wire::tunnel::AuthExchange;
use rand::RngCore as _;
use rand::rngs::StdRng;
use zeroize::Zeroizing;

use super::types::limits;
use crate::crypto::{AeadKey, CryptoError, ExchangeKey, Scheme};
use crate::identity::Identity;

/// An X25519 key of ours, made for this peer.
pub(super) struct OwnKey {
    pub(super) serial: u32,
    pub(super) key: ExchangeKey,
    /// The exchange that carries it, signed once.
    pub(super) exchange: AuthExchange,
    pub(super) sent: Option<Instant>,
}

impl OwnKey {
    fn new(serial: u32, node: u32, identity: &Identity, private: &[u8; 32]) -> Self {
        let key = ExchangeKey::from_private(private);
        let x25519 = *key.public();
        let signature = identity.sign(&AuthExchange::signed_bytes(node, &x25519));
        let exchange = AuthExchange { node, x25519, ed25519: identity.public_key(), signature };
        Self { serial, key, exchange, sent: None }
    }
}

impl OwnKey {
    /// Signs the exchange with another identity.
    fn sign_again(&mut self, node: u32, identity: &Identity) {
        let x25519 = *self.key.public();
        let signature = identity.sign(&AuthExchange::signed_bytes(node, &x25519));
        self.exchange = AuthExchange { node, x25519, ed25519: identity.public_key(), signature };
    }
}

/// The keys of one pair.
pub(super) struct Session {
    /// Grows with every session made: a greater one is newer.
    pub(super) id: u32,
    /// Serial of the own key.
    pub(super) own: u32,
    /// The peer's X25519 key.
    pub(super) peer: [u8; 32],
    /// The identity that signed for it; `None` for an anonymous exchange.
    pub(super) identity: Option<[u8; 32]>,
    a: AeadKey,
    b: AeadKey,
    pub(super) created: Instant,
    /// When the first frame opened.
    pub(super) confirmed: Option<Instant>,
    pub(super) sealed: u64,
    pub(super) opened: u64,
    pub(super) expires: Option<Instant>,
    /// When the last frame opened.
    pub(super) last: Option<Instant>,
    /// Prefix of the last frame that opened.
    pub(super) prefix: Option<[u8; 4]>,
    /// Order of arrival of the peer's key.
    peer_serial: u32,
    /// Which of two pairs is the newer one. Where each side brought a newer key of its own, that of the node with the
    /// smaller id decides, so that both sides order the same pairs the same way (rule T5).
    pub(super) rank: (u32, u32),
}

impl Session {
    pub(super) fn key(&self, scheme: Scheme) -> &AeadKey {
        match scheme {
            Scheme::A => &self.a,
            Scheme::B => &self.b,
        }
    }

    /// Frames under this key in both directions.
    pub(super) fn frames(&self) -> u64 {
        self.sealed.saturating_add(self.opened)
    }
}

/// A key of the peer while it is being paired.
struct PeerKey {
    key: [u8; 32],
    identity: Option<[u8; 32]>,
    expires: Option<Instant>,
    /// Order of arrival.
    serial: u32,
}

/// All keys towards one peer. Bounded: [`limits::MAX_OWN_KEYS`] × [`limits::MAX_PEER_KEYS`] sessions.
#[derive(Default)]
pub(super) struct Keys {
    /// Oldest first; the last one is what an exchange of ours carries.
    pub(super) own: Vec<OwnKey>,
    pub(super) sessions: Vec<Session>,
    /// Id of the session that seals.
    pub(super) current: Option<u32>,
    /// Whether our node id is the smaller one.
    own_first: bool,
    retired: Vec<[u8; 32]>,
    next_own: u32,
    next_peer: u32,
    next_session: u32,
}

impl std::fmt::Debug for Keys {
    /// Pairs by rank, `*` the one that seals, `+` those that have opened a frame.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mark = |s: &Session| {
            (if Some(s.id) == self.current { "*" } else { "" }, if s.confirmed.is_some() { "+" } else { "" })
        };
        f.debug_list()
            .entries(self.sessions.iter().map(|s| {
                let (current, opened) = mark(s);
                format!("{:?}{current}{opened}", s.rank)
            }))
            .finish()
    }
}

impl Keys {
    pub(super) fn new(own_first: bool) -> Self {
        Self { own_first, ..Self::default() }
    }

    pub(super) fn current(&self) -> Option<&Session> {
        let id = self.current?;
        self.sessions.iter().find(|s| s.id == id)
    }

    pub(super) fn session(&self, id: u32) -> Option<&Session> {
        self.sessions.iter().find(|s| s.id == id)
    }

    pub(super) fn session_mut(&mut self, id: u32) -> Option<&mut Session> {
        self.sessions.iter_mut().find(|s| s.id == id)
    }

    /// Whether the current session has opened a frame.
    pub(super) fn confirmed(&self) -> bool {
        self.current().is_some_and(|s| s.confirmed.is_some())
    }

    /// Whether we lead: of two pairs both sides hold, the node with the smaller id says which is used (rule T5).
    pub(super) fn leads(&self) -> bool {
        self.own_first
    }

    /// Whether an exchange with this key would bring back one that was replaced.
    pub(super) fn is_retired(&self, peer: &[u8; 32]) -> bool {
        self.retired.contains(peer)
    }

    /// The newest session of the newest own key and this peer key.
    pub(super) fn newest_with(&self, peer: &[u8; 32]) -> Option<u32> {
        let own = self.own.last()?.serial;
        self.sessions.iter().find(|s| s.own == own && s.peer == *peer).map(|s| s.id)
    }

    /// Makes a fresh own key and pairs it with every peer key, so that frames under it open even if the answer to its
    /// exchange is lost.
    pub(super) fn fresh_own(&mut self, now: Instant, node: u32, identity: &Identity, rng: &mut StdRng) {
        let mut private = Zeroizing::new([0u8; 32]);
        rng.fill_bytes(private.as_mut_slice());
        self.add_own(now, node, identity, &private);
    }

    /// Our own identity has changed.
    pub(super) fn sign_again(&mut self, node: u32, identity: &Identity) {
        self.own.iter_mut().for_each(|key| key.sign_again(node, identity));
    }

    /// The peer's identity has changed, as its old key has said.
    pub(super) fn rename_peer(&mut self, old: [u8; 32], new: [u8; 32]) {
        for session in self.sessions.iter_mut().filter(|session| session.identity == Some(old)) {
            session.identity = Some(new);
        }
    }

    /// The same with a given private key.
    pub(super) fn add_own(&mut self, now: Instant, node: u32, identity: &Identity, private: &[u8; 32]) {
        if self.own.len() >= limits::MAX_OWN_KEYS {
            let in_use = self.current().map(|s| s.own);
            // The newest key and the one in use stay; with room for more than two, another one is always there.
            if let Some(at) = self.own[..self.own.len() - 1].iter().position(|k| Some(k.serial) != in_use) {
                let gone = self.own.remove(at).serial;
                self.drop_sessions(|s| s.own == gone);
            }
        }
        self.next_own += 1;
        let serial = self.next_own;
        self.own.push(OwnKey::new(serial, node, identity, private));
        let in_use = self.current().map(|s| s.peer);
        let mut peers: Vec<PeerKey> = Vec::new();
        // Newest first: its life is the one that counts, older pairs of the same peer key may be on their way out.
        for s in self.sessions.iter().rev() {
            if !peers.iter().any(|p| p.key == s.peer) {
                let expires = s.expires.filter(|_| Some(s.peer) != in_use);
                peers.push(PeerKey { key: s.peer, identity: s.identity, expires, serial: s.peer_serial });
            }
        }
        for peer in peers {
            // Low-order keys never got this far.
            let _ = self.pair(now, serial, &peer);
        }
    }

    /// Pairs a new peer key with every own key.
    ///
    /// # Errors
    /// [`CryptoError::LowOrder`]; nothing is kept then.
    pub(super) fn add_peer(
        &mut self,
        now: Instant,
        peer: [u8; 32],
        identity: Option<[u8; 32]>,
    ) -> Result<(), CryptoError> {
        let serials: Vec<u32> = self.own.iter().map(|k| k.serial).collect();
        if let Some(first) = self.own.first() {
            first.key.agree(&peer)?;
        }
        self.make_room_for_peer();
        self.next_peer += 1;
        let expires = Some(now + limits::CANDIDATE_LIFE);
        let peer = PeerKey { key: peer, identity, expires, serial: self.next_peer };
        for serial in serials {
            self.pair(now, serial, &peer)?;
        }
        Ok(())
    }

    /// Gives up the oldest peer key that is not in use when there are too many.
    fn make_room_for_peer(&mut self) {
        let in_use = self.current().map(|s| s.peer);
        let mut peers: Vec<[u8; 32]> = Vec::new();
        for s in &self.sessions {
            if !peers.contains(&s.peer) {
                peers.push(s.peer);
            }
        }
        if peers.len() >= limits::MAX_PEER_KEYS
            && let Some(oldest) = peers.into_iter().find(|p| Some(*p) != in_use)
        {
            self.drop_sessions(|s| s.peer == oldest);
        }
    }

    fn pair(&mut self, now: Instant, own: u32, peer: &PeerKey) -> Result<(), CryptoError> {
        let Some(key) = self.own.iter().find(|k| k.serial == own) else {
            return Ok(());
        };
        let shared = key.key.agree(&peer.key)?;
        self.next_session += 1;
        self.sessions.push(Session {
            id: self.next_session,
            own,
            peer: peer.key,
            identity: peer.identity,
            a: shared.aead(Scheme::A),
            b: shared.aead(Scheme::B),
            created: now,
            confirmed: None,
            sealed: 0,
            opened: 0,
            expires: peer.expires,
            last: None,
            prefix: None,
            peer_serial: peer.serial,
            rank: if self.own_first { (own, peer.serial) } else { (peer.serial, own) },
        });
        Ok(())
    }

    /// Makes a session that has opened a frame the one that seals. What came before keeps opening for
    /// [`limits::GRACE`]; keys of another identity go at once.
    pub(super) fn promote(&mut self, now: Instant, id: u32) {
        let Some(new) = self.session_mut(id) else { return };
        new.expires = None;
        let (peer, identity, rank) = (new.peer, new.identity, new.rank);
        self.current = Some(id);
        let until = now + limits::GRACE;
        for s in &mut self.sessions {
            if s.rank < rank {
                s.expires = Some(s.expires.map_or(until, |at| at.min(until)));
                if s.confirmed.is_some() && s.peer != peer && !self.retired.contains(&s.peer) {
                    self.retired.push(s.peer);
                }
            } else if s.peer == peer {
                s.expires = None;
            } else if s.id != id {
                let until = now + limits::CANDIDATE_LIFE;
                s.expires = Some(s.expires.map_or(until, |at| at.min(until)));
            }
        }
        if self.retired.len() > limits::MAX_RETIRED {
            self.retired.remove(0);
        }
        self.drop_sessions(|s| s.identity != identity);
    }

    /// Makes an unconfirmed session the one that seals, because there is none that works.
    pub(super) fn adopt(&mut self, id: u32) {
        self.current = Some(id);
    }

    /// Drops sessions that have expired, and own keys no session is left of. The current session and the newest own key stay.
    pub(super) fn expire(&mut self, now: Instant) {
        self.drop_sessions(|s| s.expires.is_some_and(|at| at <= now));
        if self.confirmed() {
            let newest = self.own.last().map(|k| k.serial);
            let sessions = &self.sessions;
            self.own.retain(|k| Some(k.serial) == newest || sessions.iter().any(|s| s.own == k.serial));
        }
    }

    /// The next moment at which [`Keys::expire`] has something to do.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.sessions.iter().filter(|s| Some(s.id) != self.current).filter_map(|s| s.expires).min()
    }

    fn drop_sessions(&mut self, gone: impl Fn(&Session) -> bool) {
        let current = self.current;
        self.sessions.retain(|s| Some(s.id) == current || !gone(s));
    }

    /// Id of the oldest session there is.
    pub(super) fn oldest_session(&self) -> Option<u32> {
        self.sessions.iter().map(|s| s.id).min()
    }
}
