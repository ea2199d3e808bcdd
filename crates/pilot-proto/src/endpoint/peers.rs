//! The table of peers, and what is known of nodes that are not peers yet.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pilot_wire::tunnel::AuthExchange;
use rustc_hash::FxHashMap;
use slab::Slab;
use smallvec::SmallVec;

use super::events::{DirectoryFailure, PeerRecord};
use super::limits::{Bucket, Lru};
use crate::path::{PeerPath, Way};
use crate::profile::PeerProfile;
use crate::tunnel::{Tunnel, Via};

/// A peer is in use this long after the last application packet (07 rule 25).
pub(super) const IN_USE: Duration = Duration::from_secs(120);
/// A peer without connections is dropped this long after anything came or went (07 rule 26).
pub(super) const REAP_AFTER: Duration = Duration::from_secs(300);
/// A failed question for a key is not repeated for this long (07 §5.2).
pub(super) const NEGATIVE: Duration = Duration::from_secs(3);
/// A question without answer is asked again after this long.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Nodes whose keys are known or asked for. When full the one looked up longest ago is forgotten.
pub(super) const LOOKUPS: usize = 4_096;
/// Frames of one node kept while its key is asked for; the newest ones replace the oldest.
pub(super) const WAITING: usize = 2;

/// A packet of our own making, or a datagram, that waits to be sealed.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    /// Header and payload.
    pub(super) packet: Vec<u8>,
    /// The way it must take; `None` for the way everything takes.
    pub(super) way: Option<Way>,
    /// Whether the peer should answer it.
    pub(super) asks: bool,
    /// When it becomes pointless.
    pub(super) expires: Instant,
}

/// How packets reach a peer.
pub(super) enum Link {
    /// Sealed.
    Tunnel(Box<Tunnel>),
    /// In clear, as the operator allowed.
    Plain,
    /// This very node.
    Own,
}

pub(super) struct Peer {
    pub(super) node: u32,
    pub(super) link: Link,
    pub(super) path: PeerPath,
    pub(super) record: Option<PeerRecord>,
    pub(super) profile: PeerProfile,
    /// Takes packets larger than an Ethernet path carries.
    pub(super) wide: bool,
    /// Whether a session has ever existed: then the peer is never heard in clear again.
    pub(super) secure_once: bool,
    /// Connections with this peer.
    pub(super) conns: usize,
    /// Slots of dials that are neither connected nor failed.
    pub(super) dialling: Vec<usize>,
    /// Slots of connections that may have packets.
    pub(super) ready_conns: VecDeque<usize>,
    /// Packets that wait to be sealed.
    pub(super) out: VecDeque<Outgoing>,
    /// Stands in the list of peers that may have something to send.
    pub(super) ready: bool,
    pub(super) armed: Option<Instant>,
    /// Last application packet, either way.
    pub(super) used: Option<Instant>,
    /// Last frame, either way.
    pub(super) touched: Instant,
    /// When the peer last answered a SYN of ours.
    pub(super) syn_answered: Option<Instant>,
    pub(super) resolved: bool,
    pub(super) punched: bool,
    pub(super) via_relay: bool,
    pub(super) last_probe: Option<Instant>,
    pub(super) rst: Bucket,
    pub(super) pong: Bucket,
    /// The last key exchange frame of ours, for addresses learned after it was sent.
    pub(super) key_frame: Vec<u8>,
    /// The next key exchange goes to the direct addresses, too.
    pub(super) exchange_direct: bool,
    /// Since when a session is wanted and missing.
    pub(super) want_since: Option<Instant>,
    /// When it was last pursued: punch, resolve, deadlines of dials.
    pub(super) pursued: Option<Instant>,
}

impl Peer {
    pub(super) fn tunnel(&self) -> Option<&Tunnel> {
        match &self.link {
            Link::Tunnel(t) => Some(t),
            _ => None,
        }
    }

    pub(super) fn tunnel_mut(&mut self) -> Option<&mut Tunnel> {
        match &mut self.link {
            Link::Tunnel(t) => Some(t),
            _ => None,
        }
    }

    /// Whether packets can leave now.
    pub(super) fn can_send(&self) -> bool {
        match &self.link {
            Link::Tunnel(t) => t.can_seal(),
            Link::Plain | Link::Own => true,
        }
    }

    pub(super) fn in_use(&self, now: Instant) -> bool {
        self.conns > 0 || self.used.is_some_and(|t| now.saturating_duration_since(t) < IN_USE)
    }
}

#[derive(Default)]
pub(super) struct Peers {
    slots: Slab<Peer>,
    nodes: FxHashMap<u32, usize>,
}

impl Peers {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn insert(&mut self, peer: Peer) -> usize {
        let node = peer.node;
        let slot = self.slots.insert(peer);
        self.nodes.insert(node, slot);
        slot
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Peer> {
        let peer = self.slots.try_remove(slot)?;
        self.nodes.remove(&peer.node);
        Some(peer)
    }

    pub(super) fn find(&self, node: u32) -> Option<usize> {
        self.nodes.get(&node).copied()
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Peer> {
        self.slots.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Peer> {
        self.slots.get_mut(slot)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Peer)> {
        self.slots.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Peer)> {
        self.slots.iter_mut()
    }
}

/// Something of a node whose key is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Waiting {
    /// Its key exchange.
    Auth(Via, AuthExchange),
    /// Its request for ours.
    Request(Via),
    /// A frame of a session we do not have.
    Stranger(Via),
}

/// What the registry said, or was asked, about a node's key.
#[derive(Debug, Default)]
pub(super) struct Lookup {
    pub(super) known: Option<PeerRecord>,
    pub(super) asked: Option<Instant>,
    pub(super) failed: Option<(Instant, DirectoryFailure)>,
    pub(super) waiting: SmallVec<[Waiting; WAITING]>,
}

impl Lookup {
    pub(super) fn wait(&mut self, what: Waiting) {
        if self.waiting.len() >= WAITING {
            self.waiting.remove(0);
        }
        self.waiting.push(what);
    }

    /// Whether the registry should be asked now.
    pub(super) fn should_ask(&self, now: Instant) -> bool {
        let recent = |t: &Instant, d| now.saturating_duration_since(*t) < d;
        !self.asked.as_ref().is_some_and(|t| recent(t, ASK_AGAIN))
            && !self.failed.as_ref().is_some_and(|(t, _)| recent(t, NEGATIVE))
    }
}

pub(super) type Lookups = Lru<u32, Lookup>;
