//! From a received datagram to a packet of a peer.
//!
//! Nothing here changes state for a datagram that has not proven where it comes from: beacon messages count only from the
//! beacon's address, key exchanges only with the expected signature, packets only when they open (invariant 2).

use std::net::SocketAddr;
use std::time::Instant;

use pilot_wire::beacon::{BeaconMessage, NOTIFY_HANDSHAKE, RELAY_DELIVER_HEADER_LEN};
use pilot_wire::packet::{Packet, VERSION, protocol};
use pilot_wire::tunnel::{AuthExchange, Datagram};

use super::peers::{Link, Waiting};
use super::{Encryption, Endpoint, Event, limits};
use crate::path::Way;
use crate::path::beacon::{Learned, canonical};
use crate::tunnel::{OpenError, Via};

pub(super) fn way_of(via: Via) -> Way {
    match via {
        Via::Direct(addr) => Way::Direct(addr),
        Via::Relay => Way::Relay,
    }
}

impl Endpoint {
    /// A datagram came in. It is decrypted in place.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        let from = canonical(from);
        match Datagram::parse(datagram) {
            Some(Datagram::Beacon(message)) => {
                if !self.beacon.is_beacon(from) {
                    self.counters.foreign_beacon += 1;
                    return;
                }
                match message {
                    BeaconMessage::RelayDeliver { src, .. } => {
                        let frame = datagram.get_mut(RELAY_DELIVER_HEADER_LEN..).unwrap_or_default();
                        self.handle_frame(now, Via::Relay, Some(src), frame);
                    }
                    BeaconMessage::Notify { kind: NOTIFY_HANDSHAKE } => {
                        if self.notices.arrived(now) {
                            self.notice(Event::HandshakeWaiting);
                        }
                    }
                    _ => self.handle_beacon(now, &message),
                }
            }
            Some(_) => self.handle_frame(now, Via::Direct(from), None, datagram),
            None => self.counters.malformed += 1,
        }
    }

    fn handle_beacon(&mut self, now: Instant, message: &BeaconMessage<'_>) {
        match self.beacon.handle(now, message) {
            Learned::Nothing => {}
            Learned::Observed(addr) => self.notice(Event::ObservedEndpoint(addr)),
            Learned::Candidate { node, endpoint } => {
                if let Some(slot) = self.peers.find(node) {
                    self.new_candidates(now, slot, &[endpoint]);
                }
            }
        }
    }

    /// A tunnel frame. `claimed`: the sender a relay header names, which must be the one inside.
    fn handle_frame(&mut self, now: Instant, via: Via, claimed: Option<u32>, frame: &mut [u8]) {
        let len = frame.len();
        let Some(parsed) = Datagram::parse(frame) else {
            self.counters.malformed += 1;
            return;
        };
        let node = match &parsed {
            Datagram::Auth(auth) => auth.node,
            Datagram::Key(key) => key.node,
            Datagram::Secure(header) => header.node,
            Datagram::Plain(bytes) => {
                return match Packet::parse(bytes) {
                    Ok(packet) if claimed.is_none_or(|c| c == packet.header.src.addr.node) => {
                        self.handle_plain(now, via, packet, len);
                    }
                    _ => self.counters.malformed += 1,
                };
            }
            // A punch has done its work in the NATs on its way. A beacon message inside a relayed frame is nothing.
            Datagram::Punch | Datagram::Beacon(_) => return,
        };
        // Frames in our own name are our own come back (01 W13); before registration nobody is served.
        if self.node == 0 || node == self.node || node == 0 || claimed.is_some_and(|c| c != node) {
            self.counters.malformed += 1;
            return;
        }
        if self.encrypt == Encryption::Off {
            self.counters.no_session += 1;
            return;
        }
        match parsed {
            Datagram::Auth(auth) => self.handle_auth(now, via, &auth),
            Datagram::Key(_) => self.handle_key_request(now, via, node),
            _ => self.handle_secure(now, via, node, frame),
        }
    }

    fn exchange_allowed(&mut self, now: Instant, via: Via, node: u32) -> bool {
        let own = match via {
            Via::Direct(from) => self.exchange_by_ip.take(now, from.ip()),
            Via::Relay => true,
        };
        let allowed = own
            && self.exchange_by_node.take(now, (node, via == Via::Relay))
            && self.exchange_global.take(now, limits::KEY_EXCHANGE_GLOBAL);
        self.counters.exchange_limited += u64::from(!allowed);
        allowed
    }

    fn handle_auth(&mut self, now: Instant, via: Via, auth: &AuthExchange) {
        if !self.exchange_allowed(now, via, auth.node) {
            return;
        }
        match self.expected_key(auth.node) {
            Some(key) if key == auth.ed25519 => self.accept_auth(now, via, auth),
            Some(_) => {
                self.counters.exchange_failed += 1;
                // The node may have a new key; the registry knows (01 rule 7).
                if self.requery.pass(now, auth.node) {
                    self.ask_key(now, auth.node, Some(Waiting::Auth(via, *auth)), true);
                }
            }
            None => self.ask_key(now, auth.node, Some(Waiting::Auth(via, *auth)), false),
        }
    }

    /// The signature of a key exchange is to be checked under the key in it, which is the expected one.
    pub(super) fn accept_auth(&mut self, now: Instant, via: Via, auth: &AuthExchange) {
        let Some(slot) = self.ensure_peer(now, auth.node) else { return };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if matches!(peer.link, Link::Plain) {
            self.restore_tunnel(now, slot);
        }
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let Some(tunnel) = peer.tunnel_mut() else { return };
        match tunnel.handle_auth(now, via, auth, &auth.ed25519) {
            Ok(()) => {
                peer.touched = now;
                peer.path.on_key_exchange(way_of(via));
            }
            Err(error) => {
                tracing::debug!(node = auth.node, code = error.code(), "key exchange refused");
                self.counters.exchange_failed += 1;
            }
        }
        self.service_peer(now, slot);
    }

    fn handle_key_request(&mut self, now: Instant, via: Via, node: u32) {
        if !self.exchange_allowed(now, via, node) {
            return;
        }
        if self.expected_key(node).is_none() {
            self.ask_key(now, node, Some(Waiting::Request(via)), false);
            return;
        }
        self.answer_key_request(now, via, node);
    }

    pub(super) fn answer_key_request(&mut self, now: Instant, via: Via, node: u32) {
        let Some(slot) = self.ensure_peer(now, node) else { return };
        if let Some(tunnel) = self.peers.get_mut(slot).and_then(|p| p.tunnel_mut()) {
            tunnel.handle_key_request(now, via);
        }
        self.service_peer(now, slot);
    }

    /// Whether frames of a session we do not have weighed as much as the answer. What the beacon relays goes back through
    /// the beacon, which nobody else can be made to pay for.
    fn stranger_paid(&mut self, via: Via, node: u32, len: usize) -> bool {
        match via {
            Via::Direct(from) => self.stranger_owed.pay((node, from), len, limits::STRANGER_COST),
            Via::Relay => true,
        }
    }

    fn handle_secure(&mut self, now: Instant, via: Via, node: u32, frame: &mut [u8]) {
        let len = frame.len();
        let Some(slot) = self.peers.find(node) else {
            self.counters.no_session += 1;
            // Perhaps we restarted and the peer did not notice. Answer only nodes that exist, seldom, and with no more
            // bytes than came (07 D20): whoever repeats a small frame has soon paid for the answer.
            if self.stranger_paid(via, node, len)
                && self.stranger_once.pass(now, node)
                && self.exchange_allowed(now, via, node)
            {
                if let Via::Direct(from) = via {
                    self.stranger_owed.spend(&(node, from));
                }
                match self.expected_key(node) {
                    Some(_) => self.greet_stranger(now, via, node),
                    None => self.ask_key(now, node, Some(Waiting::Stranger(via)), false),
                }
            }
            return;
        };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let Some(tunnel) = peer.tunnel_mut() else { return };
        let opened = match tunnel.open(now, via, frame) {
            Ok(opened) => opened,
            Err(error) => {
                match error {
                    OpenError::NoSession => self.counters.no_session += 1,
                    OpenError::Version | OpenError::Source | OpenError::Destination => self.counters.misaddressed += 1,
                    OpenError::Malformed | OpenError::WrongNode => self.counters.malformed += 1,
                    _ => self.counters.unreadable += 1,
                }
                self.service_peer(now, slot);
                return;
            }
        };
        let newest = opened.newest;
        let Ok(packet) = Packet::parse(opened.packet) else {
            self.counters.malformed += 1;
            return;
        };
        peer.touched = now;
        peer.want_since = None;
        peer.secure_once = true;
        let changed = peer.path.on_opened(now, way_of(via), newest);
        self.counters.pkts_recv += 1;
        self.counters.bytes_recv += len as u64;
        if changed {
            self.path_changed(now, slot);
        }
        self.tunnel_events(now, slot);
        self.handle_packet(now, slot, way_of(via), packet);
        self.service_peer(now, slot);
    }

    /// A frame of a session we do not have, of a node whose key is known: one key exchange back on the way it came.
    pub(super) fn greet_stranger(&mut self, now: Instant, via: Via, node: u32) {
        // The tunnel answers a frame it cannot open; an empty one gives it the reason to.
        let Some(slot) = self.ensure_peer(now, node) else { return };
        if let Some(tunnel) = self.peers.get_mut(slot).and_then(|p| p.tunnel_mut()) {
            tunnel.handle_key_request(now, via);
        }
        // Old releases take our exchange only on the kind of path on which they learned our key (07 rule 15): one that
        // relays to us may have learned it directly. So ask where it is, and the exchange goes there as well.
        if via == Via::Relay && self.may_seek(now, node) {
            self.seek(now, slot);
        }
        self.service_peer(now, slot);
    }

    /// Whether the registry may be asked where a node is that we have no wish of our own to reach.
    fn may_seek(&mut self, now: Instant, node: u32) -> bool {
        self.gate.is_trusted(node) || self.stranger_lookups.take(now, limits::STRANGER_LOOKUPS)
    }

    /// A packet in clear (01 §23 "Plaintext peers", W2).
    fn handle_plain(&mut self, now: Instant, via: Via, packet: Packet<'_>, len: usize) {
        let node = packet.header.src.addr.node;
        let secured = self.peers.find(node).and_then(|s| self.peers.get(s)).is_some_and(|p| p.secure_once);
        let allowed = match self.encrypt {
            Encryption::Required => false,
            Encryption::AllowPlain => !secured,
            Encryption::Off => true,
        };
        if !allowed || self.node == 0 || node == 0 || node == self.node {
            self.counters.plaintext_dropped += 1;
            return;
        }
        let Some(slot) = self.ensure_peer(now, node) else { return };
        let Some(peer) = self.peers.get_mut(slot) else { return };
        if let Link::Tunnel(tunnel) = &peer.link
            && !tunnel.can_seal()
        {
            peer.link = Link::Plain;
        }
        peer.touched = now;
        peer.want_since = None;
        // In clear there is nothing better to go by than where packets come from.
        let changed = peer.path.on_opened(now, way_of(via), true);
        self.counters.pkts_recv += 1;
        self.counters.bytes_recv += len as u64;
        if changed {
            self.path_changed(now, slot);
        }
        self.handle_packet(now, slot, way_of(via), packet);
        self.service_peer(now, slot);
    }

    /// A packet of a peer: opened, or in clear from a peer allowed to. Checks version and addresses (01 rule 12).
    pub(super) fn handle_packet(&mut self, now: Instant, slot: usize, way: Way, packet: Packet<'_>) {
        let Some(peer) = self.peers.get_mut(slot) else { return };
        let h = &packet.header;
        let nameless_keepalive = h.protocol == protocol::CONTROL
            && h.src.addr.node == 0
            && packet.payload.is_empty()
            && (h.src.port, h.dst.port) == (0, 0);
        let from_peer = h.src.addr.node == peer.node;
        let to_us =
            h.dst.addr.node == self.node && (h.dst.addr.network == 0 || self.networks.contains(&h.dst.addr.network));
        if h.version != VERSION || !(from_peer || nameless_keepalive) || !(to_us || nameless_keepalive) {
            self.counters.misaddressed += 1;
            return;
        }
        match h.protocol {
            protocol::STREAM => {
                peer.used = Some(now);
                self.handle_segment(now, slot, &packet);
            }
            protocol::DATAGRAM => {
                peer.used = Some(now);
                self.handle_peer_datagram(now, slot, &packet);
            }
            protocol::CONTROL => self.handle_control(now, slot, way, &packet),
            _ => self.counters.malformed += 1,
        }
    }
}
