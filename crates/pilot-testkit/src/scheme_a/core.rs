//! The February daemon as a state machine without I/O: key exchanges, peer table, packets, streams.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::Result;
use pilot_wire::beacon::BeaconMessage;
use pilot_wire::packet::{Flags, Header, Packet, protocol};
use pilot_wire::tunnel::{AuthExchange, Datagram, MAGIC_PLAIN};
use pilot_wire::{Address, SocketAddress};

use super::crypto::{Keys, OpenFailure, Session, verify};
use super::stream::{Conn, Out, State};

/// Packets February keeps per peer while there is no session (01 §12).
const PENDING: usize = 64;
/// First ephemeral port (02 §6).
const FIRST_EPHEMERAL: u16 = 49_152;

/// How a frame came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// From a UDP source.
    Direct(SocketAddr),
    /// Out of a relay delivery.
    Relay,
}

/// What February asks its registry, synchronously, inside the reader (01 §9.1, W20).
pub trait Directory: Send {
    /// The Ed25519 key of a node.
    fn key(&mut self, node: u32) -> Option<[u8; 32]>;
    /// The endpoint of a node.
    fn resolve(&mut self, node: u32) -> Option<SocketAddr>;
}

/// What was seen, for tests that count packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// `PILA` received, valid or not.
    pub auth_received: u64,
    /// `PILA` sent.
    pub auth_sent: u64,
    /// `PILK` received.
    pub key_received: u64,
    /// `PILT` received: plaintext our node must never send.
    pub plain_received: u64,
    /// `PILS` received.
    pub secure_received: u64,
    /// Frames that opened.
    pub opened: u64,
    /// Frames that did not open. One per doubled packet is by design (07 rule 3).
    pub unreadable: u64,
    /// Frames the window refused: the `security.nonce_replay` event.
    pub replays: u64,
    /// FIN packets received, FIN|ACK included.
    pub fins_received: u64,
    /// Stream packets received.
    pub stream_received: u64,
    /// Control packets received.
    pub control_received: u64,
    /// Largest stream payload received, in bytes.
    pub largest_segment: usize,
}

enum CachedKey {
    /// Aliases the receive buffer at the position of a frame that came this way (01 §9.1).
    AliasDirect,
    AliasRelay,
}

/// The daemon.
pub struct FebCore {
    node: u32,
    keys: Keys,
    directory: Box<dyn Directory>,
    prefixes: Box<dyn FnMut() -> [u8; 4] + Send>,
    beacon: Option<SocketAddr>,
    endpoints: BTreeMap<u32, SocketAddr>,
    relayed: BTreeSet<u32>,
    sessions: BTreeMap<u32, Session>,
    key_cache: BTreeMap<u32, CachedKey>,
    pending: BTreeMap<u32, VecDeque<Vec<u8>>>,
    listening: BTreeSet<u16>,
    conns: BTreeMap<u32, Conn>,
    accepted: VecDeque<u32>,
    datagrams: Vec<(SocketAddress, u16, Vec<u8>)>,
    pongs: Vec<(Header, Vec<u8>)>,
    handshakes: Vec<(u32, String)>,
    seen_auth: BTreeMap<u32, Vec<u8>>,
    next_conn: u32,
    next_port: u16,
    out: Vec<(SocketAddr, Vec<u8>)>,
    /// Counts.
    pub counters: Counters,
}

impl FebCore {
    /// A daemon with its keys. `prefixes` draws nonce prefixes.
    pub fn new(
        node: u32,
        keys: Keys,
        beacon: Option<SocketAddr>,
        directory: Box<dyn Directory>,
        prefixes: Box<dyn FnMut() -> [u8; 4] + Send>,
    ) -> Self {
        Self {
            node,
            keys,
            directory,
            prefixes,
            beacon,
            endpoints: BTreeMap::new(),
            relayed: BTreeSet::new(),
            sessions: BTreeMap::new(),
            key_cache: BTreeMap::new(),
            pending: BTreeMap::new(),
            listening: BTreeSet::from([7, 444]),
            conns: BTreeMap::new(),
            accepted: VecDeque::new(),
            datagrams: Vec::new(),
            pongs: Vec::new(),
            handshakes: Vec::new(),
            seen_auth: BTreeMap::new(),
            next_conn: 1,
            next_port: FIRST_EPHEMERAL,
            out: Vec::new(),
            counters: Counters::default(),
        }
    }

    /// Datagrams to send.
    pub fn drain(&mut self) -> Vec<(SocketAddr, Vec<u8>)> {
        std::mem::take(&mut self.out)
    }

    /// Opens a port for [`FebCore::accept`].
    pub fn listen(&mut self, port: u16) {
        self.listening.insert(port);
    }

    /// The next stream somebody opened to a port other than 7.
    pub fn accept(&mut self) -> Option<u32> {
        self.accepted.pop_front()
    }

    /// Puts a stream back for the next [`FebCore::accept`] of the script.
    pub fn requeue(&mut self, id: u32) {
        self.accepted.push_back(id);
    }

    /// Records a trust message from `peer`.
    pub fn note_handshake(&mut self, peer: u32, kind: &str) {
        self.handshakes.push((peer, kind.to_owned()));
    }

    /// Trust messages received so far: sender and type.
    pub fn handshakes(&self) -> &[(u32, String)] {
        &self.handshakes
    }

    /// A stream by id.
    pub fn conn(&mut self, id: u32) -> Option<&mut Conn> {
        self.conns.get_mut(&id)
    }

    /// Streams from or to `port` that are being opened or open: ports and state.
    pub fn open_streams(&self, port: u16) -> Vec<String> {
        let lives = |c: &&Conn| matches!(c.state, State::SynSent | State::Established);
        let open = self.conns.values().filter(lives).filter(|c| c.local.port == port || c.remote.port == port);
        open.map(|c| format!("{}:{} {:?}", c.local.port, c.remote.port, c.state)).collect()
    }

    /// Datagrams (protocol 2) received so far: source, destination port, data.
    pub fn take_datagrams(&mut self) -> Vec<(SocketAddress, u16, Vec<u8>)> {
        std::mem::take(&mut self.datagrams)
    }

    /// Control packets with ACK received so far: answers to pings.
    pub fn take_pongs(&mut self) -> Vec<(Header, Vec<u8>)> {
        std::mem::take(&mut self.pongs)
    }

    /// The last `PILA` of `node` that was accepted, for a script that replays it.
    pub fn seen_auth(&self, node: u32) -> Option<Vec<u8>> {
        self.seen_auth.get(&node).cloned()
    }

    /// Whether there is a session with `node`.
    pub fn has_session(&self, node: u32) -> bool {
        self.sessions.contains_key(&node)
    }

    /// Own address on the backbone.
    pub fn address(&self) -> Address {
        Address::backbone(self.node)
    }

    /// A `PILA` of these keys.
    pub fn auth_frame(&self) -> Vec<u8> {
        let x25519 = self.keys.x25519();
        let exchange = AuthExchange {
            node: self.node,
            x25519,
            ed25519: self.keys.identity(),
            signature: self.keys.sign(&AuthExchange::signed_bytes(self.node, &x25519)),
        };
        let mut frame = Vec::new();
        exchange.emit(&mut frame);
        frame
    }

    /// Sends one `PILA` to a node, as at every packet without a session.
    pub fn send_auth(&mut self, node: u32) {
        self.counters.auth_sent += 1;
        let frame = self.auth_frame();
        self.send_frame(node, frame);
    }

    /// Forgets the session with `node` but not the keys, as after a revocation (01 §13.3).
    pub fn forget(&mut self, node: u32) {
        self.sessions.remove(&node);
        self.endpoints.remove(&node);
    }

    /// New X25519 key, all state gone: a restart of the process. Streams die silently.
    pub fn restart(&mut self, keys: Keys) {
        self.keys = keys;
        self.sessions.clear();
        self.endpoints.clear();
        self.key_cache.clear();
        self.relayed.clear();
        self.pending.clear();
        self.conns.clear();
        self.accepted.clear();
        self.next_port = FIRST_EPHEMERAL;
    }

    /// Sends a frame over the path February has for the node: relay when its flag is set, else the stored endpoint.
    pub fn send_frame(&mut self, node: u32, frame: Vec<u8>) {
        if self.relayed.contains(&node)
            && let Some(beacon) = self.beacon
        {
            let mut wrapped = Vec::new();
            BeaconMessage::Relay { src: self.node, dst: node, frame: &frame }.emit(&mut wrapped);
            self.out.push((beacon, wrapped));
        } else if let Some(&endpoint) = self.endpoints.get(&node) {
            self.out.push((endpoint, frame));
        }
    }

    /// Sends one packet by the rule of 01 §12: sealed, or in clear with a `PILA` and queued.
    pub fn send_packet(&mut self, header: &Header, payload: &[u8]) {
        let node = header.dst.addr.node;
        let mut packet = Vec::new();
        if header.emit(payload, &mut packet).is_err() {
            return;
        }
        let own = self.node;
        if let Some(session) = self.sessions.get_mut(&node) {
            let frame = session.seal(own, &packet);
            self.send_frame(node, frame);
            return;
        }
        self.send_auth(node);
        let queue = self.pending.entry(node).or_default();
        queue.push_back(packet.clone());
        while queue.len() > PENDING {
            queue.pop_front();
        }
        let mut plain = MAGIC_PLAIN.to_vec();
        plain.extend_from_slice(&packet);
        self.send_frame(node, plain);
    }

    /// Opens a stream to `port` of `node`; it resolves the node first when it has no endpoint.
    pub fn dial(&mut self, now: Instant, node: u32, port: u16) -> u32 {
        self.reach(node);
        let local = SocketAddress::new(self.address(), self.next_port);
        self.next_port += 1;
        let mut out = Vec::new();
        let conn = Conn::dial(now, local, SocketAddress::new(Address::backbone(node), port), &mut out);
        let id = self.next_conn;
        self.next_conn += 1;
        self.conns.insert(id, conn);
        self.flush(out);
        id
    }

    /// Resolves a node that has no endpoint yet, and asks for a way to it.
    fn reach(&mut self, node: u32) {
        if !self.endpoints.contains_key(&node)
            && let Some(endpoint) = self.directory.resolve(node)
        {
            if let Some(beacon) = self.beacon {
                let mut punch = Vec::new();
                BeaconMessage::PunchRequest { requester: self.node, target: node }.emit(&mut punch);
                self.out.push((beacon, punch));
            }
            self.endpoints.insert(node, endpoint);
            self.send_auth(node);
        }
    }

    /// Closes a stream the way February does.
    pub fn close(&mut self, id: u32) {
        let mut out = Vec::new();
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.close(&mut out);
        }
        self.flush(out);
    }

    /// Switches the node to the relay for good, as the third dial timer does (01 §13.2).
    pub fn use_relay(&mut self, node: u32) {
        self.relayed.insert(node);
    }

    fn flush(&mut self, out: Vec<Out>) {
        for (header, payload) in out {
            self.send_packet(&header, &payload);
        }
    }

    /// Timers of all streams.
    pub fn tick(&mut self, now: Instant) {
        let mut out = Vec::new();
        for conn in self.conns.values_mut() {
            conn.tick(now, &mut out);
        }
        self.flush(out);
    }

    /// One datagram from the socket.
    pub fn handle(&mut self, now: Instant, from: SocketAddr, datagram: &[u8]) {
        match Datagram::parse(datagram) {
            Some(Datagram::Beacon(BeaconMessage::PunchCommand { endpoint })) => {
                for _ in 0..3 {
                    self.out.push((endpoint, b"PILP".to_vec()));
                }
            }
            Some(Datagram::Beacon(BeaconMessage::RelayDeliver { src, frame })) if !frame.is_empty() => {
                self.relayed.insert(src);
                if let Some(beacon) = self.beacon {
                    self.endpoints.entry(src).or_insert(beacon);
                }
                self.handle_frame(now, Via::Relay, frame);
            }
            Some(Datagram::Beacon(_)) | None => {}
            Some(_) => self.handle_frame(now, Via::Direct(from), datagram),
        }
    }

    fn handle_frame(&mut self, now: Instant, via: Via, frame: &[u8]) {
        match Datagram::parse(frame) {
            Some(Datagram::Auth(exchange)) => {
                self.counters.auth_received += 1;
                self.handle_auth(via, &exchange);
            }
            Some(Datagram::Key(_)) => self.counters.key_received += 1,
            Some(Datagram::Secure(header)) => {
                self.counters.secure_received += 1;
                let Some(session) = self.sessions.get_mut(&header.node) else { return };
                match session.open(frame) {
                    Ok(packet) => {
                        self.counters.opened += 1;
                        self.handle_packet(now, &packet);
                    }
                    Err(OpenFailure::Replay) => self.counters.replays += 1,
                    Err(OpenFailure::Unreadable) => self.counters.unreadable += 1,
                }
            }
            Some(Datagram::Plain(packet)) => {
                self.counters.plain_received += 1;
                self.handle_packet(now, packet);
            }
            _ => {}
        }
    }

    fn handle_auth(&mut self, via: Via, exchange: &AuthExchange) {
        let node = exchange.node;
        let expected = match (self.key_cache.get(&node), via) {
            (Some(CachedKey::AliasDirect), Via::Direct(_)) | (Some(CachedKey::AliasRelay), Via::Relay) => {
                exchange.ed25519
            }
            // The alias points at other bytes of this frame: never equal.
            (Some(_), _) => return,
            (None, _) => match self.directory.key(node) {
                Some(key) => key,
                None => return,
            },
        };
        let signed = AuthExchange::signed_bytes(node, &exchange.x25519);
        if exchange.ed25519 != expected || !verify(&expected, &signed, &exchange.signature) {
            return;
        }
        let Ok(session) = self.session_with(&exchange.x25519) else { return };
        let mut frame = Vec::new();
        exchange.emit(&mut frame);
        self.seen_auth.insert(node, frame);
        let old = self.sessions.insert(node, session);
        match via {
            Via::Direct(from) => {
                self.endpoints.insert(node, from);
                self.key_cache.insert(node, CachedKey::AliasDirect);
            }
            Via::Relay => {
                self.relayed.insert(node);
                self.key_cache.insert(node, CachedKey::AliasRelay);
            }
        }
        if old.is_none_or(|old| old.peer_x25519 != exchange.x25519) {
            self.send_auth(node);
        }
        let own = self.node;
        for packet in self.pending.remove(&node).unwrap_or_default() {
            if let Some(session) = self.sessions.get_mut(&node) {
                let frame = session.seal(own, &packet);
                self.send_frame(node, frame);
            }
        }
    }

    fn session_with(&mut self, x25519: &[u8; 32]) -> Result<Session> {
        Session::new(&self.keys.derive(x25519)?, *x25519, (self.prefixes)())
    }

    fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        let Ok(packet) = Packet::parse(packet) else { return };
        let h = packet.header;
        match h.protocol {
            protocol::STREAM => self.handle_stream(now, &h, packet.payload),
            protocol::DATAGRAM => self.datagrams.push((h.src, h.dst.port, packet.payload.to_vec())),
            protocol::CONTROL => {
                self.counters.control_received += 1;
                if h.flags.contains(Flags::ACK) {
                    self.pongs.push((h, packet.payload.to_vec()));
                }
                if h.dst.port == 0 {
                    let me = SocketAddress::new(self.address(), 0);
                    let mut pong = Header::new(protocol::CONTROL, Flags::ACK, me, h.src);
                    (pong.seq, pong.ack) = (h.seq, h.seq.wrapping_add(1));
                    self.send_packet(&pong, packet.payload);
                }
            }
            _ => {}
        }
    }

    fn handle_stream(&mut self, now: Instant, h: &Header, payload: &[u8]) {
        self.counters.stream_received += 1;
        self.counters.largest_segment = self.counters.largest_segment.max(payload.len());
        if h.flags.contains(Flags::FIN) {
            self.counters.fins_received += 1;
        }
        let mut out = Vec::new();
        let known = self
            .conns
            .iter()
            .filter(|(_, c)| c.state != State::Closed)
            .find(|(_, c)| c.local.port == h.dst.port && c.remote == h.src)
            .map(|(id, _)| *id);
        if let Some(id) = known {
            if let Some(conn) = self.conns.get_mut(&id) {
                conn.handle(now, h, payload, &mut out);
                // Echo (05 §4): bytes go back as they came.
                if conn.local.port == 7 && !conn.received.is_empty() {
                    let data = std::mem::take(&mut conn.received);
                    conn.write(&data);
                }
                conn.tick(now, &mut out);
            }
        } else if h.flags.contains(Flags::SYN) && !h.flags.contains(Flags::ACK) {
            if self.listening.contains(&h.dst.port) {
                let conn = Conn::accept(now, self.address(), h, &mut out);
                let id = self.next_conn;
                self.next_conn += 1;
                if h.dst.port != 7 {
                    self.accepted.push_back(id);
                }
                self.conns.insert(id, conn);
            } else {
                let me = SocketAddress::new(self.address(), h.dst.port);
                out.push((Header::new(protocol::STREAM, Flags::RST, me, h.src), Vec::new()));
            }
        }
        self.flush(out);
    }
}
