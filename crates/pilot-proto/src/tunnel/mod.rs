//! The tunnel to one peer: key exchange, sessions, replay protection, both wire schemes at once, Hello.
//!
//! [`Tunnel`] holds everything about keys with one peer and nothing about paths: it says what to send and how
//! ([`KeySend`]), the endpoint knows where. It is deterministic: time is an argument, randomness a seed.
//!
//! | Method | Kind |
//! |---|---|
//! | [`Tunnel::handle_auth`], [`Tunnel::handle_key_request`], [`Tunnel::open`], [`Tunnel::handle_control`], [`Tunnel::handle_timeout`] | something happened |
//! | [`Tunnel::start`], [`Tunnel::seal`] | the application wants something |
//! | [`Tunnel::poll_transmit`], [`Tunnel::poll_event`], [`Tunnel::poll_timeout`] | drained by the caller after each of the above |
//!
//! # How it stays up
//!
//! - A key exchange alone never disables a session that works: it makes a *candidate*, which is probed, and sealing
//!   switches when the first frame opens under it (01 rule 5).
//! - Every exchange of ours carries a fresh X25519 key, and the newest few stay valid, because answers cross (01 rule 2).
//! - A session is *suspect* when a packet that wants an answer gets none, or when frames of the peer do not open. It is
//!   probed with a control packet that every version answers (07 rule 20); only if that too stays unanswered a new
//!   exchange begins.
//! - The peer is called authenticated only after a frame has opened (D2).
//!
//! Where the specification leaves a choice, `docs/spec/tunnel.md` says what we chose (rules T1…), and
//! `docs/spec/hello.md` defines Hello (rules H1…).

mod data;
mod exchange;
mod greeting;
mod session;
mod types;
mod window;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use pilot_wire::hello::Hello;
use rand::rngs::StdRng;
use rand::{RngCore as _, SeedableRng as _};

pub use data::{CONTROL_PORT, PROBE_PAYLOAD};
use exchange::{Exchange, Paced, Probing, Suspicion, Unreadable};
use greeting::Greeting;
use session::Keys;
pub use types::{
    ExchangeError, Failure, KeySend, LocalKeys, OpenError, Opened, SchemeState, SealError, Sealed, TunnelConfig,
    TunnelEvent, TunnelStats, TunnelStatus, Via, limits,
};
use window::Windows;

use crate::crypto::Scheme;
use crate::identity::Identity;

/// A frame of the tunnel's own that waits to be polled. Built only then, with the counter of that moment.
enum Outgoing {
    /// Our key exchange with the newest own key.
    Auth { send: KeySend },
    /// A control packet every version answers, under this session.
    Probe { session: u32, send: KeySend },
    /// Our Hello.
    Hello { reply: bool },
    /// The second copy of a doubled frame.
    Bytes { frame: Vec<u8>, send: KeySend },
}

/// All key state with one peer.
pub struct Tunnel {
    local: Arc<LocalKeys>,
    cfg: Arc<TunnelConfig>,
    peer: u32,
    rng: StdRng,
    keys: Keys,
    windows: Windows,
    /// Prefix of what we seal; the same under every key until the peer uses it too (01 rule 13).
    prefix: [u8; 4],
    /// Counter of the last frame sealed. Never goes back, whatever the key (01 rule 9, 07 rule 11).
    counter: u64,
    scheme: SchemeState,
    /// Since when packets are sealed without knowing the scheme.
    unsure_since: Option<Instant>,
    exchange: Option<Exchange>,
    /// No exchange begins by itself before this.
    rest_until: Option<Instant>,
    rekey_rest_until: Option<Instant>,
    probing: Option<Probing>,
    suspicion: Option<Suspicion>,
    suspect_rest_until: Option<Instant>,
    /// When the peer last showed that it reads us, and how long that is believed.
    proved: Option<Instant>,
    prove_pause: std::time::Duration,
    /// When the first packet that wants an answer was sealed since the last frame opened.
    awaiting: Option<Instant>,
    unreadable: Unreadable,
    paced: Paced,
    greeting: Greeting,
    generation: u64,
    last_opened: Option<Instant>,
    /// Session of the last frame that opened.
    last_session: Option<u32>,
    replay_event: Option<Instant>,
    /// When the peer was last shown a newer pair than the one it uses.
    shown: Option<Instant>,
    /// Since when it has used nothing but older pairs.
    behind_since: Option<Instant>,
    outgoing: VecDeque<Outgoing>,
    events: VecDeque<TunnelEvent>,
    stats: TunnelStats,
    /// For frames too large for the stack; grows to the largest one seen.
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel")
            .field("peer", &self.peer)
            .field("scheme", &self.scheme)
            .field("generation", &self.generation)
            .field("confirmed", &self.keys.confirmed())
            .field("keys", &self.keys)
            .finish_non_exhaustive()
    }
}

impl Tunnel {
    /// A tunnel without keys. `seed` must be random and used once: prefixes and private keys follow from it.
    pub fn new(local: Arc<LocalKeys>, peer: u32, cfg: &Arc<TunnelConfig>, seed: [u8; 32]) -> Self {
        let mut rng = StdRng::from_seed(seed);
        let mut prefix = [0; 4];
        rng.fill_bytes(&mut prefix);
        let counter = local.counter_start;
        let own_first = local.node < peer;
        Self {
            local,
            cfg: Arc::clone(cfg),
            peer,
            rng,
            keys: Keys::new(own_first),
            windows: Windows::default(),
            prefix,
            counter,
            scheme: SchemeState::Unknown,
            unsure_since: None,
            exchange: None,
            rest_until: None,
            rekey_rest_until: None,
            probing: None,
            suspicion: None,
            suspect_rest_until: None,
            proved: None,
            prove_pause: limits::PROVE_PAUSE,
            awaiting: None,
            unreadable: Unreadable::default(),
            paced: Paced::default(),
            greeting: Greeting::default(),
            generation: 0,
            last_opened: None,
            last_session: None,
            replay_event: None,
            shown: None,
            behind_since: None,
            outgoing: VecDeque::new(),
            events: VecDeque::new(),
            stats: TunnelStats::default(),
            scratch: Vec::new(),
        }
    }

    /// A tunnel whose first own key, prefix and last counter are given, to replay recorded exchanges byte for byte. Never
    /// for traffic: a nonce used twice under one key gives it away.
    #[doc(hidden)]
    pub fn recorded(
        now: Instant,
        local: Arc<LocalKeys>,
        peer: u32,
        cfg: &Arc<TunnelConfig>,
        x25519: &[u8; 32],
        prefix: [u8; 4],
        counter: u64,
    ) -> Self {
        let mut tunnel = Self::new(local, peer, cfg, *x25519);
        tunnel.prefix = prefix;
        tunnel.counter = counter;
        let local = Arc::clone(&tunnel.local);
        tunnel.keys.add_own(now, local.node, &local.identity, x25519);
        tunnel
    }

    /// The peer's node id.
    pub fn peer(&self) -> u32 {
        self.peer
    }

    /// Whether packets can be sealed.
    pub fn can_seal(&self) -> bool {
        self.keys.current.is_some()
    }

    /// Whether a frame has opened under the current key.
    pub fn is_confirmed(&self) -> bool {
        self.keys.confirmed()
    }

    /// What is known of the peer's scheme.
    pub fn scheme(&self) -> SchemeState {
        self.scheme
    }

    /// The scheme to remember beside node id and identity key (07 rule 5): only one that was seen.
    pub fn remembered_scheme(&self) -> Option<Scheme> {
        match self.scheme {
            SchemeState::Known(s) => Some(s),
            SchemeState::Unknown | SchemeState::Hinted(_) => None,
        }
    }

    /// Gives a remembered scheme, or B for a peer that registered with a version (07 rules 5 and 6). A hint for sending
    /// only; ignored once the scheme is known.
    pub fn set_hint(&mut self, scheme: Scheme) {
        if !matches!(self.scheme, SchemeState::Known(_)) && (scheme == Scheme::B || self.cfg.allow_scheme_a) {
            self.scheme = SchemeState::Hinted(scheme);
        }
    }

    /// The identity key behind the current session, once a frame has opened under it. The gate compares this.
    pub fn peer_key(&self) -> Option<[u8; 32]> {
        self.keys.current().filter(|s| s.confirmed.is_some()).and_then(|s| s.identity)
    }

    /// Our own identity key has been replaced: exchanges are signed with the new one from now on. Sessions go on.
    pub fn set_identity(&mut self, identity: Arc<Identity>) {
        self.local = Arc::new(LocalKeys { identity, ..(*self.local).clone() });
        self.keys.sign_again(self.local.node, &self.local.identity);
    }

    /// The peer's identity key has been replaced, which its old key has vouched for. Sessions go on under the new one.
    pub fn rename_peer(&mut self, old: [u8; 32], new: [u8; 32]) {
        self.keys.rename_peer(old, new);
    }

    /// What the peer said in its Hello, if it is one of ours.
    pub fn hello(&self) -> Option<&Hello> {
        self.greeting.peer.as_ref()
    }

    /// For status output.
    pub fn status(&self) -> TunnelStatus {
        let current = self.keys.current();
        TunnelStatus {
            encrypted: current.is_some(),
            authenticated: self.peer_key().is_some(),
            scheme: self.scheme,
            hello: self.greeting.peer.is_some(),
            generation: self.generation,
            peer_key: self.peer_key(),
            established: current.and_then(|s| s.confirmed),
            last_opened: self.last_opened,
            stats: self.stats,
        }
    }

    /// The next event, oldest first.
    pub fn poll_event(&mut self) -> Option<TunnelEvent> {
        self.events.pop_front()
    }

    fn event(&mut self, event: TunnelEvent) {
        if self.events.len() >= limits::MAX_EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    fn push(&mut self, frame: Outgoing) {
        if self.outgoing.len() < limits::MAX_OUTGOING {
            self.outgoing.push_back(frame);
        }
    }

    /// Draws a prefix no frame of the peer has carried (01 rule 13).
    fn redraw_prefix(&mut self) {
        loop {
            let mut prefix = [0; 4];
            self.rng.fill_bytes(&mut prefix);
            if prefix != self.prefix && !self.windows.knows(prefix) {
                self.prefix = prefix;
                return;
            }
        }
    }
}
