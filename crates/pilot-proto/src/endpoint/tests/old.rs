//! A peer written by hand, with one scheme and known keys: plays February, an attacker, or both.

use std::net::SocketAddr;
use std::sync::Arc;

use pilot_wire::packet::{Flags, HEADER_LEN, Header, Packet, protocol};
use pilot_wire::tunnel::{AuthExchange, Datagram, MAGIC_PLAIN, Nonce, SECURE_HEADER_LEN, SecureHeader, TAG_LEN};

use super::harness::{Net, addr, at, identity};
use crate::crypto::{AeadKey, ExchangeKey, Scheme};
use crate::identity::Identity;

pub(super) struct Old {
    pub(super) node: u32,
    pub(super) addr: SocketAddr,
    pub(super) identity: Arc<Identity>,
    pub(super) scheme: Scheme,
    exchange: ExchangeKey,
    aead: Option<AeadKey>,
    pub(super) counter: u64,
    /// What opened, in order.
    pub(super) heard: Vec<(Header, Vec<u8>)>,
    /// Frames that did not open.
    pub(super) unreadable: usize,
    pub(super) exchanges: usize,
    taken: usize,
}

impl Old {
    /// Joins the directory of `net` as `node` at 203.0.113.`node`:4000.
    pub(super) fn join(net: &mut Net, node: u32, scheme: Scheme) -> Self {
        let address = addr(&format!("203.0.113.{node}:4000"));
        net.directory.insert(
            node,
            super::harness::Entry { key: Ok(identity(node).public_key()), endpoint: Ok(vec![address]), version: false },
        );
        Self {
            node,
            addr: address,
            identity: identity(node),
            scheme,
            exchange: ExchangeKey::from_private(&[node as u8 ^ 0x55; 32]),
            aead: None,
            counter: 0,
            heard: Vec::new(),
            unreadable: 0,
            exchanges: 0,
            taken: 0,
        }
    }

    pub(super) fn new_key(&mut self, private: u8) {
        self.exchange = ExchangeKey::from_private(&[private; 32]);
    }

    pub(super) fn pila(&self) -> Vec<u8> {
        self.pila_signed_by(&self.identity)
    }

    pub(super) fn pila_signed_by(&self, signer: &Identity) -> Vec<u8> {
        let x25519 = *self.exchange.public();
        let signature = signer.sign(&AuthExchange::signed_bytes(self.node, &x25519));
        let mut out = Vec::new();
        AuthExchange { node: self.node, x25519, ed25519: signer.public_key(), signature }.emit(&mut out);
        out
    }

    pub(super) fn header(&self, proto: u8, flags: Flags, sport: u16, dst: u32, dport: u16) -> Header {
        Header::new(proto, flags, at(self.node, sport), at(dst, dport))
    }

    /// A `PILS` frame with the next counter.
    pub(super) fn seal(&mut self, header: &Header, payload: &[u8]) -> Vec<u8> {
        self.counter += 1;
        self.seal_at(self.counter, header, payload)
    }

    pub(super) fn seal_at(&self, counter: u64, header: &Header, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        header.emit(payload, &mut packet).unwrap();
        let nonce = Nonce { prefix: [self.node as u8, 1, 2, 3], counter };
        let aad = self.node.to_be_bytes();
        let aad: &[u8] = if self.scheme == Scheme::B { &aad } else { &[] };
        let tag = self.aead.as_ref().expect("a session").seal(nonce.to_bytes(), aad, &mut packet).unwrap();
        let mut out = SecureHeader { node: self.node, nonce }.to_bytes().to_vec();
        out.extend_from_slice(&packet);
        out.extend_from_slice(&tag);
        out
    }

    pub(super) fn plain(&self, header: &Header, payload: &[u8]) -> Vec<u8> {
        let mut out = MAGIC_PLAIN.to_vec();
        header.emit(payload, &mut out).unwrap();
        out
    }

    /// Reads what came to this peer since the last call. Key exchanges make a session.
    pub(super) fn listen(&mut self, net: &Net) {
        let new: Vec<Vec<u8>> =
            net.astray.iter().skip(self.taken).filter(|f| f.1 == self.addr).map(|f| f.2.clone()).collect();
        self.taken = net.astray.len();
        for frame in new {
            match Datagram::parse(&frame) {
                Some(Datagram::Auth(auth)) => {
                    self.exchanges += 1;
                    self.aead = Some(self.exchange.agree(&auth.x25519).unwrap().aead(self.scheme));
                }
                Some(Datagram::Secure(h)) => {
                    let body = &frame[SECURE_HEADER_LEN..];
                    let (cipher, tag) = body.split_at(body.len() - TAG_LEN);
                    let aad = h.node.to_be_bytes();
                    let aad: &[u8] = if self.scheme == Scheme::B { &aad } else { &[] };
                    let mut plain = vec![0; cipher.len()];
                    let opened = self
                        .aead
                        .as_ref()
                        .is_some_and(|key| key.open(h.nonce.to_bytes(), aad, cipher, tag, &mut plain).is_ok());
                    match Packet::parse(&plain) {
                        Ok(packet) if opened => self.heard.push((packet.header, packet.payload.to_vec())),
                        _ => self.unreadable += 1,
                    }
                }
                Some(Datagram::Plain(bytes)) => {
                    let packet = Packet::parse(bytes).unwrap();
                    self.heard.push((packet.header, packet.payload.to_vec()));
                }
                _ => {}
            }
        }
    }

    pub(super) fn send(&mut self, net: &mut Net, to: usize, header: &Header, payload: &[u8]) {
        let frame = self.seal(header, payload);
        net.inject(self.addr, net.nodes[to].addr, &frame);
        net.run_ms(50);
        self.listen(net);
    }

    pub(super) fn meet(&mut self, net: &mut Net, to: usize) {
        let frame = self.pila();
        net.inject(self.addr, net.nodes[to].addr, &frame);
        net.run_ms(50);
        self.listen(net);
        assert!(self.aead.is_some(), "the node answers a key exchange");
    }

    /// A stream packet.
    pub(super) fn segment(&self, flags: Flags, ports: (u16, u16), dst: u32, seq: u32, ack: u32) -> Header {
        let mut h = self.header(protocol::STREAM, flags, ports.0, dst, ports.1);
        h.seq = seq;
        h.ack = ack;
        h.window = 512;
        h
    }

    pub(super) fn ping(&self, dst: u32) -> Header {
        let mut h = self.header(protocol::CONTROL, Flags::NONE, 9, dst, 0);
        h.seq = 77;
        h
    }

    /// Stream payload bytes heard on a port pair, in the order of their numbers.
    pub(super) fn stream_bytes(&self, local_port: u16) -> Vec<u8> {
        let mut parts: Vec<(u32, &Vec<u8>)> = self
            .heard
            .iter()
            .filter(|(h, p)| h.protocol == protocol::STREAM && h.dst.port == local_port && !p.is_empty())
            .filter(|(_, p)| pilot_wire::sack::Blocks::parse_exact(p).is_none())
            .map(|(h, p)| (h.seq, p))
            .collect();
        parts.sort_by_key(|p| p.0);
        parts.dedup_by_key(|p| p.0);
        parts.into_iter().flat_map(|p| p.1.clone()).collect()
    }
}

/// The longest frame payload of a packet.
pub(super) const fn frame_payload(frame: usize) -> usize {
    frame - SECURE_HEADER_LEN - HEADER_LEN - TAG_LEN
}
