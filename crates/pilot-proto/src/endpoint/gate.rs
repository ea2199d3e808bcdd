//! The gate: whose streams and datagrams reach an application (07 §7 "SYN to private node", ARCHITECTURE invariant 5).
//!
//! Every node, public or private, takes them only from a peer whose tunnel key is the pinned key of a mutually trusted
//! node, or who shares a network other than 0 ([`super::members`]). Open to everybody: port 444 (the trust handshake), ports the operator
//! opened, and for five minutes after our own dial or handshake ports 1001 and 444 to that peer, so that it can reply.
//! Path probes and pings never come here.

use std::time::{Duration, Instant};

use rustc_hash::{FxHashMap, FxHashSet};

use super::events::RefusedReason;
use super::limits::Lru;
use super::members::{Members, Standing};

/// The trust handshake: open to all that should be able to ask for trust (02 §8).
pub const HANDSHAKE_PORT: u16 = 444;
/// Data exchange: where the answer to a first message arrives (07 §7 "reply window").
pub const DATA_PORT: u16 = 1001;
/// How long a peer we dialled may reply (07 §7).
pub(super) const REPLY_WINDOW: Duration = Duration::from_secs(300);
/// Peers that may reply (07 §7). When full the one dialled longest ago is forgotten.
pub(super) const REPLY_PEERS: usize = 4_096;

#[derive(Debug)]
pub(crate) struct Gate {
    trusted: FxHashMap<u32, Option<[u8; 32]>>,
    pub(super) members: Members,
    public: FxHashSet<u16>,
    replies: Lru<u32, Instant>,
}

/// How a peer has proven who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// A frame opened under a key bound to this Ed25519 key.
    Key([u8; 32]),
    /// Not at all: it speaks in clear, and the operator allowed that.
    Claimed,
}

impl Gate {
    pub(crate) fn new(public_ports: &[u16]) -> Self {
        Self {
            trusted: FxHashMap::default(),
            members: Members::default(),
            public: public_ports.iter().copied().collect(),
            replies: Lru::new(REPLY_PEERS),
        }
    }

    pub(crate) fn set_trusted(&mut self, node: u32, key: Option<[u8; 32]>) {
        self.trusted.insert(node, key);
    }

    pub(crate) fn remove_trusted(&mut self, node: u32) {
        self.trusted.remove(&node);
        self.replies.remove(&node);
    }

    pub(crate) fn is_trusted(&self, node: u32) -> bool {
        self.trusted.contains_key(&node)
    }

    /// The pinned key of a trusted node.
    pub(crate) fn pinned(&self, node: u32) -> Option<[u8; 32]> {
        self.trusted.get(&node).copied().flatten()
    }

    /// Pins the key of a trusted node that has none yet. Returns whether it did.
    pub(crate) fn pin(&mut self, node: u32, key: [u8; 32]) -> bool {
        match self.trusted.get_mut(&node) {
            Some(pin @ None) => {
                *pin = Some(key);
                true
            }
            _ => false,
        }
    }

    /// A node shares no network with us any more: what it was open to beside that ends, too.
    pub(crate) fn remove_replies(&mut self, node: u32) {
        self.replies.remove(&node);
    }

    pub(crate) fn set_public(&mut self, port: u16, open: bool) {
        if open {
            self.public.insert(port);
        } else {
            self.public.remove(&port);
        }
    }

    pub(crate) fn public_ports(&self) -> Vec<u16> {
        let mut ports: Vec<u16> = self.public.iter().copied().collect();
        ports.sort_unstable();
        ports
    }

    /// We dialled this node: it may reply for a while.
    pub(crate) fn open_reply_window(&mut self, now: Instant, node: u32) {
        self.replies.insert(node, now + REPLY_WINDOW);
    }

    /// Whether the node is trusted under the key it has proven.
    pub(crate) fn trusts(&self, node: u32, proof: Proof) -> bool {
        match (self.trusted.get(&node), proof) {
            (Some(Some(pinned)), Proof::Key(key)) => *pinned == key,
            (Some(_), Proof::Claimed) => true,
            // Pinned at its first authenticated frame; until then nobody has checked this key for this trust.
            (Some(None), Proof::Key(_)) | (None, _) => false,
        }
    }

    /// Whether the node is somebody to us: trusted, or in a network with us.
    pub(crate) fn admits(&self, now: Instant, node: u32, proof: Proof) -> bool {
        self.trusts(node, proof) || self.members.standing(now, node, proof, None) == Standing::Shared
    }

    /// Whether a stream or datagram of `node` may come to `port`.
    pub(crate) fn check(&self, now: Instant, node: u32, proof: Proof, port: u16) -> Result<(), RefusedReason> {
        let replying =
            || matches!(port, DATA_PORT | HANDSHAKE_PORT) && self.replies.peek(&node).is_some_and(|until| now < *until);
        if port == HANDSHAKE_PORT || self.trusts(node, proof) || self.public.contains(&port) || replying() {
            return Ok(());
        }
        match self.members.standing(now, node, proof, Some(port)) {
            Standing::Shared => Ok(()),
            Standing::Port => Err(RefusedReason::NetworkPolicy),
            Standing::Key => Err(RefusedReason::KeyMismatch),
            Standing::Stranger if self.trusted.contains_key(&node) => Err(RefusedReason::KeyMismatch),
            Standing::Stranger => Err(RefusedReason::Untrusted),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Proof = Proof::Key([1; 32]);

    #[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_stranger_reaches_only_the_handshake() {
        let (t, gate) = (origin(), Gate::new(&[]));
        assert_eq!(gate.check(t, 5, KEY, 444), Ok(()));
        for port in [0, 7, 1000, 1001, 65_535] {
            assert_eq!(gate.check(t, 5, KEY, port), Err(RefusedReason::Untrusted));
        }
    }

    #[test]
    fn trust_is_bound_to_the_pinned_key() {
        let (t, mut gate) = (origin(), Gate::new(&[]));
        gate.set_trusted(5, Some([1; 32]));
        assert_eq!(gate.check(t, 5, KEY, 7), Ok(()));
        assert_eq!(gate.check(t, 5, Proof::Key([2; 32]), 7), Err(RefusedReason::KeyMismatch));
        assert_eq!(gate.check(t, 6, KEY, 7), Err(RefusedReason::Untrusted));
        gate.remove_trusted(5);
        assert_eq!(gate.check(t, 5, KEY, 7), Err(RefusedReason::Untrusted));
    }

    #[test]
    fn a_trust_without_key_takes_the_first_one_and_no_other() {
        let (t, mut gate) = (origin(), Gate::new(&[]));
        gate.set_trusted(5, None);
        assert!(gate.pin(5, [1; 32]));
        assert!(!gate.pin(5, [2; 32]));
        assert_eq!(gate.check(t, 5, KEY, 7), Ok(()));
        assert_eq!(gate.check(t, 5, Proof::Key([2; 32]), 7), Err(RefusedReason::KeyMismatch));
    }

    #[test]
    fn public_ports_are_open() {
        let (t, mut gate) = (origin(), Gate::new(&[80]));
        assert_eq!(gate.check(t, 5, KEY, 80), Ok(()));
        assert_eq!(gate.check(t, 5, KEY, 9), Err(RefusedReason::Untrusted));
        gate.set_public(80, false);
        assert_eq!(gate.check(t, 5, KEY, 80), Err(RefusedReason::Untrusted));
    }

    #[test]
    fn the_reply_window_opens_two_ports_for_five_minutes() {
        let (t, mut gate) = (origin(), Gate::new(&[]));
        gate.open_reply_window(t, 5);
        assert_eq!(gate.check(t, 5, KEY, 1001), Ok(()));
        assert_eq!(gate.check(t, 5, KEY, 1002), Err(RefusedReason::Untrusted));
        assert_eq!(gate.check(t + REPLY_WINDOW, 5, KEY, 1001), Err(RefusedReason::Untrusted));
    }

    #[test]
    fn reply_windows_are_bounded() {
        let (t, mut gate) = (origin(), Gate::new(&[]));
        for node in 1..20_000 {
            gate.open_reply_window(t, node);
        }
        assert_eq!(gate.replies.len(), REPLY_PEERS);
    }
}
