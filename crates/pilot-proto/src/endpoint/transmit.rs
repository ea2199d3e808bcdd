//! From packets to datagrams: whose turn it is, which way, sealed in place, batched.
//!
//! Peers take turns by batch, the connections of a peer by packet. A batch goes to one destination and holds frames of one
//! length (the last may be shorter), so that the kernel can cut one large send into datagrams. A frame that does not fit
//! the batch under way waits in the stash and leaves next.

use std::time::Instant;

use pilot_wire::beacon::{BeaconMessage, RELAY_HEADER_LEN};
use pilot_wire::packet::{Flags, HEADER_LEN, Header, Packet};
use pilot_wire::tunnel::{AUTH_LEN, MAGIC_PLAIN, MAGIC_PUNCH, SECURE_HEADER_LEN};

use super::conns::Origin;
use super::peers::{Link, Outgoing};
use super::{Endpoint, Transmit};
use crate::path::{BeaconSend, Way};
use crate::tunnel::{KeySend, Sealed, Via};

/// Most datagrams in one batch: what Linux takes in one segmented send.
pub const MAX_BATCH: usize = 64;
/// Most bytes in one batch: the largest UDP payload.
pub const MAX_BATCH_BYTES: usize = 65_507;
/// Packets to ourselves handled in one go, so that two local streams cannot keep the caller for ever.
const LOCAL_PACKETS: usize = 256;

/// The way of a batch, and whether packets without a way of their own take it.
#[derive(Clone, Copy)]
struct Lane {
    way: Way,
    usual: bool,
}

/// What one step added to the batch.
enum Step {
    /// One frame from this index on.
    Frame(usize),
    /// Two frames of equal length: the scheme of the peer is unknown.
    Twin(usize),
    /// Something was dropped; try again.
    Skip,
    /// Nothing to send, or not this way.
    Done,
}

impl Endpoint {
    /// Appends the next datagrams to `buf`: all for one destination, at most `max_datagrams`, equally long but the last.
    /// The caller clears `buf`.
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>, max_datagrams: usize) -> Option<Transmit> {
        let start = buf.len();
        loop {
            if let Some((dst, frame)) = self.stash.pop_front() {
                buf.extend_from_slice(&frame);
                return Some(Transmit { dst, len: buf.len() - start, segment_size: None });
            }
            if let Some(send) = self.beacon.poll_transmit(now) {
                let dst = match send {
                    BeaconSend::Message(message) => {
                        message.emit(buf);
                        self.beacon.addr()?
                    }
                    BeaconSend::Punch(to) => {
                        buf.extend_from_slice(&MAGIC_PUNCH);
                        self.counters.punches_sent += 1;
                        to
                    }
                };
                return Some(Transmit { dst, len: buf.len() - start, segment_size: None });
            }
            let slot = self.ready.pop_front()?;
            let Some(peer) = self.peers.get_mut(slot) else { continue };
            peer.ready = false;
            if matches!(peer.link, Link::Own) {
                self.deliver_locally(now, slot);
                continue;
            }
            if self.key_frames(now, slot) {
                self.mark_ready(slot);
                continue;
            }
            if let Some(transmit) = self.batch(now, slot, buf, max_datagrams.clamp(1, MAX_BATCH)) {
                self.mark_ready(slot);
                return Some(transmit);
            }
            buf.truncate(start);
            self.arm_peer(slot);
        }
    }

    /// Puts the tunnel's own frames into the stash. Returns whether there were any.
    fn key_frames(&mut self, now: Instant, slot: usize) -> bool {
        let mut any = false;
        let mut frame = Vec::new();
        loop {
            frame.clear();
            let Some(peer) = self.peers.get_mut(slot) else { return any };
            let Some(tunnel) = peer.tunnel_mut() else { return any };
            let Some(send) = tunnel.poll_transmit(now, &mut frame) else { return any };
            any = true;
            // Only a key exchange may go to addresses that nobody has proven: it says nothing secret.
            let exchange = frame.len() == AUTH_LEN;
            if exchange {
                peer.key_frame.clone_from(&frame);
            }
            let current = peer.path.way(now, self.beacon.addr().is_some());
            let targets = peer.path.direct_targets();
            let mut ways: smallvec::SmallVec<[Way; 6]> = smallvec::SmallVec::new();
            let direct = |ways: &mut smallvec::SmallVec<[Way; 6]>| {
                let most = if exchange { targets.len() } else { 1 };
                ways.extend(targets.iter().take(most).map(|a| Way::Direct(*a)));
            };
            match send {
                KeySend::Direct => {
                    direct(&mut ways);
                    if ways.is_empty() {
                        ways.push(Way::Relay);
                    }
                }
                KeySend::Relay => ways.push(Way::Relay),
                KeySend::Both => {
                    direct(&mut ways);
                    ways.push(Way::Relay);
                }
                KeySend::Reply(Via::Direct(addr)) => ways.push(Way::Direct(addr)),
                KeySend::Reply(Via::Relay) => ways.push(Way::Relay),
                KeySend::Current => ways.extend(current),
            }
            if exchange && std::mem::take(&mut peer.exchange_direct) && !matches!(send, KeySend::Direct | KeySend::Both)
            {
                direct(&mut ways);
            }
            for way in ways {
                self.stash_frame(now, slot, way, &frame);
            }
        }
    }

    /// One frame of a peer's, on its way in the stash.
    fn stash_frame(&mut self, now: Instant, slot: usize, way: Way, frame: &[u8]) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let (dst, datagram) = match way {
            Way::Direct(addr) => (addr, frame.to_vec()),
            Way::Relay => {
                let Some(beacon) = self.beacon.addr() else { return };
                peer.via_relay = true;
                let mut datagram = Vec::with_capacity(RELAY_HEADER_LEN + frame.len());
                BeaconMessage::Relay { src: self.node, dst: peer.node, frame }.emit(&mut datagram);
                (beacon, datagram)
            }
        };
        peer.path.on_sent(now, false);
        peer.touched = now;
        self.counters.pkts_sent += 1;
        self.counters.bytes_sent += datagram.len() as u64;
        self.stash.push_back((dst, datagram));
    }

    /// Fills one batch with packets of a peer.
    fn batch(&mut self, now: Instant, slot: usize, buf: &mut Vec<u8>, max: usize) -> Option<Transmit> {
        let peer = self.peers.get(slot)?;
        if !peer.can_send() {
            return None;
        }
        let has_beacon = self.beacon.addr();
        let usual = peer.path.way(now, has_beacon.is_some());
        // Answers to probes leave on the way the probe came; a batch takes one way only.
        let way = peer.out.front().and_then(|o| o.way).or(usual)?;
        let dst = match (way, has_beacon) {
            (Way::Direct(addr), _) => addr,
            (Way::Relay, Some(beacon)) => beacon,
            (Way::Relay, None) => {
                self.peers.get_mut(slot)?.out.retain(|o| o.way != Some(Way::Relay));
                return self.batch(now, slot, buf, max);
            }
        };
        let lane = Lane { way, usual: usual == Some(way) };
        let start = buf.len();
        let mut size = 0;
        let mut count = 0;
        while count < max {
            // A frame no longer than the first must fit.
            if count > 0 && (buf.len() - start) + size > MAX_BATCH_BYTES {
                break;
            }
            let (at, twin) = match self.step(now, slot, lane, buf) {
                Step::Frame(at) => (at, false),
                Step::Twin(at) => (at, true),
                Step::Skip => continue,
                Step::Done => break,
            };
            let len = buf.len() - at;
            self.counters.pkts_sent += 1;
            self.counters.bytes_sent += len as u64;
            if count == 0 {
                size = len;
                count = 1;
                if twin {
                    break;
                }
                continue;
            }
            if len > size || twin {
                self.stash.push_front((dst, buf.split_off(at)));
                if twin && let Some(second) = self.twin.take() {
                    self.stash.insert(1, (dst, second));
                }
                break;
            }
            count += 1;
            if len < size {
                break;
            }
        }
        if count == 0 {
            return None;
        }
        if let Some(second) = self.twin.take() {
            self.stash.push_front((dst, second));
        }
        let peer = self.peers.get_mut(slot)?;
        peer.touched = now;
        peer.via_relay |= way == Way::Relay;
        let len = buf.len() - start;
        Some(Transmit { dst, len, segment_size: (count > 1).then_some(size) })
    }

    /// Appends the next frame of a peer, complete. The second copy of a doubled frame goes to `self.twin`.
    fn step(&mut self, now: Instant, slot: usize, lane: Lane, buf: &mut Vec<u8>) -> Step {
        let way = lane.way;
        let frame_at = buf.len();
        let Some(peer) = self.peers.get_mut(slot) else { return Step::Done };
        if way == Way::Relay {
            BeaconMessage::Relay { src: self.node, dst: peer.node, frame: &[] }.emit(buf);
        }
        let sealed_at = buf.len();
        let plain = matches!(peer.link, Link::Plain);
        if plain {
            buf.extend_from_slice(&MAGIC_PLAIN);
        } else {
            buf.resize(sealed_at + SECURE_HEADER_LEN, 0);
        }
        let packet_at = buf.len();
        let mut asks = false;
        let mut syn_of = None;
        match peer.out.front() {
            Some(front) if front.expires <= now => {
                peer.out.pop_front();
                buf.truncate(frame_at);
                return Step::Skip;
            }
            Some(front) if front.way.map_or(!lane.usual, |w| w != way) => {
                buf.truncate(frame_at);
                return Step::Done;
            }
            Some(_) => {
                if let Some(Outgoing { packet, asks: a, .. }) = peer.out.pop_front() {
                    buf.extend_from_slice(&packet);
                    asks = a;
                }
            }
            None => {
                let next = if lane.usual { peer.ready_conns.pop_front() } else { None };
                let Some(at) = next else {
                    buf.truncate(frame_at);
                    return Step::Done;
                };
                let Some(conn) = self.conns.get_mut(at) else {
                    buf.truncate(frame_at);
                    return Step::Skip;
                };
                conn.ready = false;
                if !conn.stream.poll_transmit(now, buf) {
                    buf.truncate(frame_at);
                    // It may wait for its pace, or be over.
                    self.settle_conn(now, at);
                    return Step::Skip;
                }
                conn.ready = true;
                peer.ready_conns.push_back(at);
                let bare = buf.len() == packet_at + HEADER_LEN;
                let flags = match (bare, buf.get(packet_at..).and_then(Header::peek)) {
                    (true, Some(h)) => h.flags,
                    _ => Flags::NONE,
                };
                asks = !bare || flags.contains(Flags::SYN) || flags.contains(Flags::FIN);
                peer.used = Some(now);
                if flags.contains(Flags::SYN) && matches!(conn.origin, Origin::Dialling(_)) {
                    syn_of = Some(at);
                }
            }
        }
        let Some(peer) = self.peers.get_mut(slot) else { return Step::Done };
        peer.path.on_sent(now, asks);
        let mut step = Step::Frame(frame_at);
        if let Link::Tunnel(tunnel) = &mut peer.link {
            match tunnel.seal(now, buf, sealed_at) {
                Ok(Sealed::One) => {}
                Ok(Sealed::Twin { second }) => {
                    let frame = buf.split_off(second);
                    let mut twin = Vec::with_capacity(RELAY_HEADER_LEN + frame.len());
                    match way {
                        Way::Relay => {
                            BeaconMessage::Relay { src: self.node, dst: peer.node, frame: &frame }.emit(&mut twin)
                        }
                        Way::Direct(_) => twin = frame,
                    }
                    self.twin = Some(twin);
                    step = Step::Twin(frame_at);
                }
                Err(error) => {
                    // The packet is lost; streams repeat theirs once there is a key again.
                    tracing::debug!(node = peer.node, code = error.code(), "packet not sealed");
                    buf.truncate(frame_at);
                    return Step::Skip;
                }
            }
        }
        if let Some(at) = syn_of {
            self.syn_sent(now, at);
        }
        step
    }

    /// After a connection had nothing to send: its deadline, and whether it is over.
    fn settle_conn(&mut self, now: Instant, at: usize) {
        let Some(conn) = self.conns.get_mut(at) else { return };
        if conn.released && conn.stream.is_forgotten() {
            self.remove_conn(at);
            return;
        }
        let _ = now;
        let deadline = conn.stream.poll_timeout();
        self.timers.arm(super::timers::Owner::Conn(at), &mut conn.armed, deadline);
    }

    /// Packets to our own node never leave it.
    fn deliver_locally(&mut self, now: Instant, slot: usize) {
        for _ in 0..LOCAL_PACKETS {
            let mut packet = Vec::new();
            let Some(peer) = self.peers.get_mut(slot) else { return };
            if let Some(out) = peer.out.pop_front() {
                packet = out.packet;
            } else if let Some(at) = peer.ready_conns.pop_front() {
                let Some(conn) = self.conns.get_mut(at) else { continue };
                conn.ready = false;
                if !conn.stream.poll_transmit(now, &mut packet) {
                    self.settle_conn(now, at);
                    continue;
                }
                conn.ready = true;
                peer.ready_conns.push_back(at);
            } else {
                return;
            }
            if let Ok(parsed) = Packet::parse(&packet) {
                self.handle_packet(now, slot, Way::Relay, parsed);
            }
        }
        self.mark_ready(slot);
    }
}
