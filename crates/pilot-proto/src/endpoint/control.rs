//! Control packets: answers to pings and path probes, our own probes, Hello (01 §5, 07 §6, 07 rule 20).

use std::time::{Duration, Instant};

use pilot_wire::packet::{Flags, Header, Packet, protocol};
use pilot_wire::{Address, SocketAddress};

use super::peers::Outgoing;
use super::{Endpoint, limits};
use crate::path::Way;

/// Payload of a path probe (07 §6.2).
pub const PROBE: &[u8] = b"pathprobe.v1";
/// Source port of the probe behind a SYN. It is answered the way the peer's SYN|ACK takes, not the way it came, so that its
/// answer says that the SYN|ACK would have arrived, too. Official daemons answer every probe that way.
const SYN_PROBE_PORT: u16 = 0x5053;
/// An answer to a control packet that could not leave for this long is pointless.
const ANSWER_LIFE: Duration = Duration::from_secs(2);

impl Endpoint {
    pub(super) fn handle_control(&mut self, now: Instant, slot: usize, way: Way, packet: &Packet<'_>) {
        let h = packet.header;
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if let Some(tunnel) = peer.tunnel_mut()
            && tunnel.handle_control(now, &h, packet.payload)
        {
            return;
        }
        if h.flags.contains(Flags::ACK) {
            if packet.payload == PROBE && h.ack == h.seq.wrapping_add(1) {
                self.handle_pong(now, slot, h.seq);
            }
            return;
        }
        if h.dst.port != 0 || (packet.payload.is_empty() && h.src.port == 0) {
            return;
        }
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if !peer.pong.take(now, limits::PONG_PER_NODE) {
            return;
        }
        let mut pong = Header::new(protocol::CONTROL, Flags::ACK, SocketAddress::new(h.dst.addr, 0), h.src);
        pong.seq = h.seq;
        pong.ack = h.seq.wrapping_add(1);
        let way = (h.src.port != SYN_PROBE_PORT).then_some(way);
        self.send_packet(now, slot, &pong, packet.payload, way, false, ANSWER_LIFE);
    }

    fn handle_pong(&mut self, now: Instant, slot: usize, seq: u32) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let Some(pong) = peer.path.on_pong(now, seq) else { return };
        if pong.changed {
            self.path_changed(now, slot);
        }
        self.dial_probe_answered(now, slot, pong.sent);
    }

    /// Queues a probe the path asked for, or one behind a SYN.
    pub(super) fn send_probe(&mut self, now: Instant, slot: usize, way: Way, seq: u32, behind_syn: bool) {
        let Some(peer) = self.peers.get(slot) else { return };
        let port = if behind_syn { SYN_PROBE_PORT } else { 0 };
        let own = SocketAddress::new(Address::backbone(self.node), port);
        let to = SocketAddress::new(Address::backbone(peer.node), 0);
        let mut probe = Header::new(protocol::CONTROL, Flags::NONE, own, to);
        probe.seq = seq;
        self.send_packet(now, slot, &probe, PROBE, Some(way), true, ANSWER_LIFE);
    }

    /// Queues a packet of our own making. When the queue is full the packet is dropped: every such packet is one that
    /// may be lost. Returns whether it was queued.
    #[allow(clippy::too_many_arguments, reason = "one packet and how it travels")]
    pub(super) fn send_packet(
        &mut self,
        now: Instant,
        slot: usize,
        header: &Header,
        payload: &[u8],
        way: Option<Way>,
        asks: bool,
        life: Duration,
    ) -> bool {
        let limit = self.limits.pending_per_peer;
        let max = self.payload_limit(now, slot);
        let Some(peer) = self.peers.get_mut(slot) else { return false };
        if peer.out.len() >= limit || payload.len() > max {
            return false;
        }
        let mut packet = Vec::with_capacity(pilot_wire::packet::HEADER_LEN + payload.len());
        if header.emit(payload, &mut packet).is_err() {
            return false;
        }
        peer.out.push_back(Outgoing { packet, way, asks, expires: now + life });
        self.mark_ready(slot);
        true
    }
}
