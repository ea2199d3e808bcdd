//! Datagrams of applications (02 §21).
//!
//! A datagram is sent once and may be lost. A peer that re-sends packets after a new key exchange (07 rule 13) can make one
//! arrive twice; applications must expect that.

use std::time::{Duration, Instant};

use pilot_wire::packet::{Flags, Header, Packet, protocol};
use pilot_wire::{Address, SocketAddress};

use super::peers::Link;
use super::{DatagramError, Endpoint, Event};
use crate::path::{Way, sizes};

/// A datagram waits this long for its tunnel; 07 §5.2 drops such queues after two minutes, an application has long
/// repeated itself by then.
const DATAGRAM_LIFE: Duration = Duration::from_secs(10);

impl Endpoint {
    /// Whether anything is known of the way to a node; otherwise a datagram to it waits for the registry.
    pub fn knows(&self, node: u32) -> bool {
        node == self.node || self.peers.find(node).is_some()
    }

    /// Sends one datagram from `src_port`. It waits up to 10 s for the tunnel if need be.
    ///
    /// # Errors
    /// [`DatagramError`]; nothing has left then.
    pub fn send_datagram(
        &mut self,
        now: Instant,
        src_port: u16,
        dst: SocketAddress,
        data: &[u8],
    ) -> Result<(), DatagramError> {
        if self.node == 0 {
            return Err(DatagramError::NotRegistered(dst));
        }
        if dst.addr.is_broadcast() {
            return Err(DatagramError::Broadcast);
        }
        if dst.addr.node == 0 {
            return Err(DatagramError::InvalidAddress(dst));
        }
        if data.is_empty() {
            return Err(DatagramError::Empty(dst));
        }
        let slot = self.ensure_peer(now, dst.addr.node).ok_or(DatagramError::TooManyPeers(dst))?;
        let max = self.payload_limit(now, slot);
        if data.len() > max {
            return Err(DatagramError::TooLarge { dst, len: data.len(), max });
        }
        let Some(peer) = self.peers.get_mut(slot) else { return Err(DatagramError::TooManyPeers(dst)) };
        if !peer.can_send()
            && peer.conns == 0
            && let Some(failure) = self.lookups.peek(&dst.addr.node).and_then(|l| l.failed.as_ref())
            && now.saturating_duration_since(failure.0) < super::peers::NEGATIVE
        {
            return Err(DatagramError::Unreachable { dst, detail: failure.1.text.clone() });
        }
        peer.used = Some(now);
        let src = SocketAddress::new(self.source_for(dst.addr), src_port);
        let header = Header::new(protocol::DATAGRAM, Flags::NONE, src, dst);
        if !self.send_packet(now, slot, &header, data, None, false, DATAGRAM_LIFE) {
            return Err(DatagramError::QueueFull(dst));
        }
        self.counters.datagrams_out += 1;
        self.want_session(now, slot);
        Ok(())
    }

    /// Our address on the network of `dst`, or on the backbone when we are no member of it.
    pub(super) fn source_for(&self, dst: Address) -> Address {
        let network = if self.networks.contains(&dst.network) { dst.network } else { 0 };
        Address { network, node: self.node }
    }

    /// Largest packet payload that reaches the peer unfragmented now.
    pub(super) fn payload_limit(&self, now: Instant, slot: usize) -> usize {
        let Some(peer) = self.peers.get(slot) else { return sizes::SMALLEST_LIMIT };
        if matches!(peer.link, Link::Own) {
            return pilot_wire::packet::MAX_PAYLOAD;
        }
        match peer.path.way(now, self.beacon.addr().is_some()) {
            // Only a way that has proven itself may have its own size.
            Some(Way::Direct(addr)) if peer.path.proven_direct() == Some(addr) => sizes::direct_limit(addr, peer.wide),
            _ => sizes::SMALLEST_LIMIT,
        }
    }

    pub(super) fn handle_peer_datagram(&mut self, now: Instant, slot: usize, packet: &Packet<'_>) {
        if packet.payload.is_empty() || !self.passes_gate(now, slot, packet) {
            return;
        }
        if self.events.len() >= self.limits.events {
            self.counters.events_dropped += 1;
            return;
        }
        self.counters.datagrams_in += 1;
        self.events.push_back(Event::Datagram {
            src: packet.header.src,
            dst_port: packet.header.dst.port,
            data: packet.payload.to_vec(),
        });
    }
}
