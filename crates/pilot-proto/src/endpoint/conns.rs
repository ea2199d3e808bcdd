//! The table of connections: by slot, by id, by port pair.

use std::time::Instant;

use pilot_wire::SocketAddress;
use rustc_hash::FxHashMap;
use slab::Slab;

use super::events::ConnId;
use crate::stream::Connection;

/// What tells the connections of a node apart. The network half of an address does not: an official peer answers a dial
/// to a network address from its own (02 §12.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tuple {
    pub(super) node: u32,
    pub(super) remote_port: u16,
    pub(super) local_port: u16,
}

/// How far a dial has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dial {
    pub(super) started: Instant,
    /// When the first SYN left.
    pub(super) first_syn: Option<Instant>,
    /// When the last SYN left.
    pub(super) last_syn: Option<Instant>,
    /// SYNs sent.
    pub(super) syns: u32,
    /// SYNs behind which a probe was answered while the SYN was not.
    pub(super) ignored: u32,
}

/// Where a connection comes from, and whether its application knows it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Origin {
    /// Dialled by us; connected or failed is still open.
    Dialling(Dial),
    /// Dialled by us and connected.
    Dialled,
    /// Opened by the peer; the third packet is missing.
    HalfOpen {
        /// The peer is past the gate for every port, so the connection does not count against the half-open limit.
        admitted: bool,
    },
    /// Opened by the peer and given to the application.
    Accepted,
}

pub(super) struct Conn {
    pub(super) id: ConnId,
    pub(super) stream: Connection,
    pub(super) peer: usize,
    pub(super) tuple: Tuple,
    pub(super) local: SocketAddress,
    pub(super) remote: SocketAddress,
    pub(super) origin: Origin,
    pub(super) opened: Instant,
    /// The event that accounts for its end has been raised.
    pub(super) end_told: bool,
    /// The application has gone, or never knew the connection.
    pub(super) released: bool,
    /// Counts against the limit of its port; not once it only waits for late packets.
    pub(super) counted: bool,
    /// Stands in its peer's list of connections that may have packets.
    pub(super) ready: bool,
    pub(super) armed: Option<Instant>,
}

#[derive(Default)]
pub(super) struct Conns {
    slots: Slab<Conn>,
    ids: FxHashMap<u32, usize>,
    tuples: FxHashMap<Tuple, usize>,
    last_id: u32,
    pub(super) half_open: usize,
}

impl Conns {
    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds a connection made by `make`, which learns its id.
    pub(super) fn insert(&mut self, make: impl FnOnce(ConnId) -> Conn) -> usize {
        loop {
            self.last_id = self.last_id.wrapping_add(1);
            if self.last_id != 0 && !self.ids.contains_key(&self.last_id) {
                break;
            }
        }
        let conn = make(ConnId(self.last_id));
        if matches!(conn.origin, Origin::HalfOpen { admitted: false }) {
            self.half_open += 1;
        }
        let tuple = conn.tuple;
        let slot = self.slots.insert(conn);
        self.ids.insert(self.last_id, slot);
        self.tuples.insert(tuple, slot);
        slot
    }

    pub(super) fn remove(&mut self, slot: usize) -> Option<Conn> {
        let conn = self.slots.try_remove(slot)?;
        self.ids.remove(&conn.id.0);
        if self.tuples.get(&conn.tuple) == Some(&slot) {
            self.tuples.remove(&conn.tuple);
        }
        self.leave_half_open(conn.origin);
        Some(conn)
    }

    /// Makes room for a new connection on the same port pair.
    pub(super) fn vacate(&mut self, slot: usize) {
        if let Some(conn) = self.slots.get(slot)
            && self.tuples.get(&conn.tuple) == Some(&slot)
        {
            self.tuples.remove(&conn.tuple);
        }
    }

    /// To be called when a connection is half-open no longer.
    pub(super) fn leave_half_open(&mut self, was: Origin) {
        if matches!(was, Origin::HalfOpen { admitted: false }) {
            self.half_open = self.half_open.saturating_sub(1);
        }
    }

    pub(super) fn get(&self, slot: usize) -> Option<&Conn> {
        self.slots.get(slot)
    }

    pub(super) fn get_mut(&mut self, slot: usize) -> Option<&mut Conn> {
        self.slots.get_mut(slot)
    }

    pub(super) fn by_id(&self, id: ConnId) -> Option<usize> {
        self.ids.get(&id.0).copied()
    }

    pub(super) fn by_tuple(&self, tuple: &Tuple) -> Option<usize> {
        self.tuples.get(tuple).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (usize, &Conn)> {
        self.slots.iter()
    }

    /// Slots of every connection with a peer.
    pub(super) fn of_peer(&self, peer: usize) -> Vec<usize> {
        self.slots.iter().filter(|(_, c)| c.peer == peer).map(|(slot, _)| slot).collect()
    }
}
