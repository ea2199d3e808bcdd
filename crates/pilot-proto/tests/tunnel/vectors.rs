//! The recorded frames of official daemons, byte for byte.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_proto::crypto::{ExchangeKey, Scheme};
use pilot_proto::identity::Identity;
use pilot_proto::tunnel::{
    ExchangeError, KeySend, LocalKeys, OpenError, SchemeState, Sealed, Tunnel, TunnelConfig, Via,
};
use pilot_wire::tunnel::{AuthExchange, Datagram, Nonce, SECURE_HEADER_LEN, SecureHeader};
use serde_json::Value;

use crate::net::{Path, epoch, packet};

pub fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn bytes(v: &Value, key: &str) -> Vec<u8> {
    hex(v[key].as_str().unwrap_or_else(|| panic!("{key}")))
}

fn array<const N: usize>(v: &Value, key: &str) -> [u8; N] {
    bytes(v, key).try_into().unwrap()
}

fn frames() -> Value {
    serde_json::from_str(include_str!("../vectors/wire-tunnel-frames.json")).unwrap()
}

/// A party of a recorded exchange, all of whose secrets are known.
pub struct Party {
    pub node: u32,
    pub identity: Arc<Identity>,
    pub x25519: [u8; 32],
}

impl Party {
    pub fn new(node: u32, secret: u8) -> Self {
        Self { node, identity: Arc::new(Identity::from_seed([node as u8; 32])), x25519: [secret; 32] }
    }

    fn of(v: &Value, name: &str) -> Self {
        let v = &v["keys"][name];
        Self {
            node: v["node_id"].as_u64().unwrap() as u32,
            identity: Arc::new(Identity::from_seed(array(v, "ed25519_seed_hex"))),
            x25519: array(v, "x25519_private_hex"),
        }
    }

    pub fn tunnel(&self, now: Instant, peer: u32, cfg: &Arc<TunnelConfig>, prefix: [u8; 4], counter: u64) -> Tunnel {
        let local = Arc::new(LocalKeys::new(self.node, Arc::clone(&self.identity), 0));
        Tunnel::recorded(now, local, peer, cfg, &self.x25519, prefix, counter)
    }

    pub fn exchange(&self) -> AuthExchange {
        let x25519 = *ExchangeKey::from_private(&self.x25519).public();
        let signature = self.identity.sign(&AuthExchange::signed_bytes(self.node, &x25519));
        AuthExchange { node: self.node, x25519, ed25519: self.identity.public_key(), signature }
    }

    /// A tunnel that has the peer's key.
    pub fn paired(&self, now: Instant, peer: &Self, prefix: [u8; 4], counter: u64) -> Tunnel {
        let mut t = self.tunnel(now, peer.node, &Arc::default(), prefix, counter);
        t.handle_auth(now, Path::Direct.via(), &peer.exchange(), &peer.identity.public_key()).unwrap();
        t
    }
}

pub fn seal(t: &mut Tunnel, now: Instant, packet: &[u8]) -> Vec<u8> {
    let mut buf = vec![0; SECURE_HEADER_LEN];
    buf.extend_from_slice(packet);
    assert_eq!(t.seal(now, &mut buf, 0), Ok(Sealed::One));
    buf
}

#[test]
fn encrypted_frames_of_february_are_made_and_opened_byte_for_byte() {
    let v = frames();
    let now = epoch();
    let (a, b) = (Party::of(&v, "node_a"), Party::of(&v, "node_b"));
    let vectors = v["encrypted"].as_array().unwrap();
    assert_eq!(vectors.len(), 4);
    for e in vectors {
        let (from, to) = if e["direction"] == "a->b" { (&a, &b) } else { (&b, &a) };
        let (frame, plain) = (bytes(e, "frame_hex"), bytes(e, "plaintext_packet_hex"));
        let mut sender = from.paired(now, to, array(e, "nonce_prefix_hex"), e["counter"].as_u64().unwrap() - 1);
        sender.set_hint(Scheme::A);
        assert_eq!(seal(&mut sender, now, &plain), frame);
        let mut receiver = to.paired(now, from, [9; 4], 0);
        let mut buf = frame.clone();
        let opened = receiver.open(now, Path::Direct.via(), &mut buf).unwrap();
        assert_eq!(opened.packet, plain);
        assert!(opened.newest);
        assert_eq!(receiver.scheme(), SchemeState::Known(Scheme::A));
        assert_eq!(receiver.open(now, Path::Direct.via(), &mut frame.clone()), Err(OpenError::Replayed));
    }
}

#[test]
fn our_key_exchange_is_the_recorded_one() {
    let v = frames();
    let now = epoch();
    let (a, b) = (Party::of(&v, "node_a"), Party::of(&v, "node_b"));
    for (from, to, recorded) in [(&a, &b, &v["key_exchange"][0]), (&b, &a, &v["key_exchange"][1])] {
        let mut t = from.tunnel(now, to.node, &Arc::default(), [0; 4], 0);
        t.start(now);
        let mut out = Vec::new();
        assert_eq!(t.poll_transmit(now, &mut out), Some(KeySend::Direct));
        assert_eq!(out, bytes(recorded, "pila_hex"));
    }
}

#[test]
fn key_exchanges_are_received_as_recorded_except_that_anonymous_ones_are_refused() {
    let v = frames();
    let now = epoch();
    let (a, b) = (Party::of(&v, "node_a"), Party::of(&v, "node_b"));
    let via = Path::Direct.via();
    let mut seen = 0;
    for case in v["receive_key_exchange"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let frame = bytes(case, "frame_hex");
        let mut t = b.tunnel(now, a.node, &Arc::default(), [0; 4], 0);
        let registered = match name {
            "pila_valid_but_node_not_in_registry" | "pilk_peer_not_in_registry" | "pilk_with_trailing_bytes" => None,
            "pila_registry_has_other_key" => Some([7; 32]),
            _ => Some(a.identity.public_key()),
        };
        let mut installed = case["installed"].as_bool().unwrap();
        let result = match (Datagram::parse(&frame), registered) {
            (Some(Datagram::Auth(f)), Some(key)) => {
                if f.node != a.node {
                    t = b.tunnel(now, f.node, &Arc::default(), [0; 4], 0);
                }
                Some(t.handle_auth(now, via, &f, &key))
            }
            (Some(Datagram::Key(_)), Some(_)) => {
                t.handle_key_request(now, via);
                assert!(!t.can_seal());
                None
            }
            (Some(Datagram::Key(f)), None) => {
                assert_eq!(t.handle_anonymous(now, via, &f), Err(ExchangeError::Anonymous), "{name}");
                assert!(!t.can_seal());
                let cfg = Arc::new(TunnelConfig { allow_anonymous: true, ..TunnelConfig::default() });
                t = b.tunnel(now, a.node, &cfg, [0; 4], 0);
                Some(t.handle_anonymous(now, via, &f))
            }
            // Without a registered key the endpoint has nothing to check an exchange against, and drops it.
            (Some(Datagram::Auth(_)), None) | (None, _) => {
                assert!(!installed, "{name}");
                seen += 1;
                continue;
            }
            other => panic!("{name}: {other:?}"),
        };
        let error = match name {
            "pila_registry_has_other_key" => Some(ExchangeError::ForeignKey),
            "pila_signature_last_byte_flipped"
            | "pila_node_id_changed_to_43_same_key_registered_for_43"
            | "pila_x25519_key_bit_flipped" => Some(ExchangeError::Signature),
            "pila_valid_signature_but_all_zero_x25519_key" => Some(ExchangeError::LowOrder),
            _ => None,
        };
        if result.is_none() {
            installed = false;
        }
        assert_eq!(result.and_then(Result::err), error, "{name}");
        assert_eq!(t.can_seal(), installed, "{name}");
        assert!(!t.status().authenticated, "{name}: nothing has opened yet");
        let mut out = Vec::new();
        let sent = t.poll_transmit(now, &mut out);
        if let Some(reply) = case["reply_hex"].as_str() {
            assert_eq!((sent, out), (Some(KeySend::Reply(via)), hex(reply)), "{name}");
        } else if result.is_some() {
            assert_eq!(sent, None, "{name}");
        }
        seen += 1;
    }
    assert_eq!(seen, 13);
}

/// A frame with keys of `from` and `to`, not made by a tunnel.
pub fn sealed(from: &Party, to: &Party, scheme: Scheme, nonce: Nonce, packet: &[u8]) -> Vec<u8> {
    let peer = ExchangeKey::from_private(&to.x25519);
    let key = ExchangeKey::from_private(&from.x25519).agree(peer.public()).unwrap().aead(scheme);
    let header = SecureHeader { node: from.node, nonce };
    let mut frame = header.to_bytes().to_vec();
    frame.extend_from_slice(packet);
    let node = from.node.to_be_bytes();
    let aad: &[u8] = if scheme == Scheme::A { &[] } else { &node };
    let tag = key.seal(nonce.to_bytes(), aad, &mut frame[SECURE_HEADER_LEN..]).unwrap();
    frame.extend_from_slice(&tag);
    frame
}

/// A frame of `from` with any counter.
fn frame_with(from: &Party, to: &Party, counter: u64, authentic: bool) -> Vec<u8> {
    let nonce = Nonce { prefix: [0xC0; 4], counter };
    let mut frame = sealed(from, to, Scheme::A, nonce, &packet(from.node, to.node, 1));
    let last = frame.len() - 1;
    frame[last] ^= u8::from(!authentic);
    frame
}

#[test]
fn counters_are_judged_as_recorded_but_forged_ones_change_nothing_and_zero_is_refused() {
    let v: Value = serde_json::from_str(include_str!("../vectors/wire-replay-window.json")).unwrap();
    let keys = frames();
    let (a, b) = (Party::of(&keys, "node_a"), Party::of(&keys, "node_b"));
    let sequences = v["sequences"].as_array().unwrap();
    assert_eq!(sequences.len(), 11);
    for sequence in sequences {
        let name = sequence["name"].as_str().unwrap();
        let now = epoch();
        let mut t = b.paired(now, &a, [9; 4], 0);
        let (mut seen, mut max) = (Vec::new(), 0u64);
        for (i, step) in sequence["steps"].as_array().unwrap().iter().enumerate() {
            let counter: u64 = step["counter"].as_str().unwrap().parse().unwrap();
            let authentic = step["authentic"].as_bool().unwrap();
            let recorded = step["delivered"].as_bool().unwrap();
            let mut frame = frame_with(&a, &b, counter, authentic);
            let got = t.open(now, Path::Direct.via(), &mut frame);
            // What is safe: every authentic frame once, however far others have run ahead (our window is larger).
            let safe = authentic && counter != 0 && !seen.contains(&counter);
            assert_eq!(got.is_ok(), safe, "{name} step {i}: {got:?}");
            if !name.starts_with("forged_") && counter != 0 && (max <= counter || max - counter < 256) {
                assert_eq!(got.is_ok(), recorded, "{name} step {i}");
            }
            if safe {
                seen.push(counter);
                max = max.max(counter);
            }
        }
    }
}

#[test]
fn counters_beyond_the_window_are_refused() {
    let keys = frames();
    let (a, b) = (Party::of(&keys, "node_a"), Party::of(&keys, "node_b"));
    let now = epoch();
    let mut t = b.paired(now, &a, [9; 4], 0);
    let mut open = |c| t.open(now, Path::Direct.via(), &mut frame_with(&a, &b, c, true)).map(|o| o.newest);
    assert_eq!(open(20_000), Ok(true));
    assert_eq!(open(20_000 - 8191), Ok(false));
    assert_eq!(open(20_000 - 8192), Err(OpenError::Replayed));
    assert_eq!(open(28_191), Ok(true));
    assert_eq!(open(20_000), Err(OpenError::Replayed));
    assert_eq!(open(20_001), Ok(false));
}

#[test]
fn live_frames_of_three_releases_are_made_and_opened() {
    let v: Value = serde_json::from_str(include_str!("../vectors/drift-tunnel-live.json")).unwrap();
    let cases = v["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 3);
    let (mut made, mut opened) = (0, 0);
    for case in cases {
        let version = case["daemon_version"].as_str().unwrap();
        let scheme = if case["scheme"].as_str().unwrap().starts_with('A') { Scheme::A } else { Scheme::B };
        let us = &case["test_peer"];
        let own = Party {
            node: us["node_id"].as_u64().unwrap() as u32,
            identity: Arc::new(Identity::from_seed(array(us, "ed25519_seed"))),
            x25519: array(us, "x25519_priv"),
        };
        let peer = case["daemon_node_id"].as_u64().unwrap() as u32;
        let now = epoch();
        let via = Path::Direct.via();
        let mut t = own.tunnel(now, peer, &Arc::default(), [0xAA, 0xBB, 0xCC, 0xDD], 0);
        let mut theirs = None;
        for step in case["steps"].as_array().unwrap() {
            for sent in step["sent"].as_array().unwrap() {
                let frame = bytes(sent, "frame_hex");
                let (Some(Datagram::Secure(h)), Some(theirs)) = (Datagram::parse(&frame), &theirs) else { continue };
                let mut sender = own.tunnel(now, peer, &Arc::default(), h.nonce.prefix, h.nonce.counter - 1);
                let theirs: &AuthExchange = theirs;
                sender.handle_auth(now, via, theirs, &theirs.ed25519).unwrap();
                sender.set_hint(scheme);
                assert_eq!(seal(&mut sender, now, &bytes(sent, "inner_packet_hex")), frame, "{version}");
                made += 1;
            }
            for received in step["received"].as_array().unwrap() {
                let mut frame = bytes(received, "frame_hex");
                match Datagram::parse(&frame) {
                    Some(Datagram::Auth(f)) => {
                        theirs = Some(f);
                        t.handle_auth(now, via, &f, &f.ed25519).unwrap();
                    }
                    Some(Datagram::Secure(_)) => {
                        let plain = t.open(now, via, &mut frame).unwrap();
                        assert_eq!(plain.packet, bytes(received, "inner_packet_hex"), "{version}");
                        assert_eq!(t.scheme(), SchemeState::Known(scheme), "{version}");
                        opened += 1;
                    }
                    other => panic!("{version}: {other:?}"),
                }
            }
        }
        assert!(t.status().authenticated);
    }
    assert!(made >= 18 && opened >= 14, "made {made}, opened {opened}");
}

#[test]
fn every_frame_of_the_february_traces_opens_once_although_its_daemons_start_their_counters_again() {
    let mut opened = 0;
    for (text, least) in [
        (include_str!("../vectors/wire-trace-direct.json"), 10),
        (include_str!("../vectors/wire-trace-relay-fallback.json"), 15),
        (include_str!("../vectors/wire-trace-datagram-first-contact.json"), 2),
        (include_str!("../vectors/wire-trace-plaintext-to-encrypted.json"), 0),
    ] {
        let v: Value = serde_json::from_str(text).unwrap();
        let party = |who: u32| Party {
            node: who,
            identity: Arc::new(Identity::from_seed([who as u8; 32])),
            x25519: array(&v["x25519_private_hex"], &format!("node{who}")),
        };
        let before = opened;
        for (who, from) in [(1, 2), (2, 1)] {
            let mut now = epoch();
            let (us, them) = (party(who), party(from));
            let mut t = us.tunnel(now, from, &Arc::default(), [5; 4], 0);
            for event in v["events"].as_array().unwrap() {
                if event["node"] != format!("node{who}") || event["dir"] != "rx" {
                    continue;
                }
                now += Duration::from_millis(1);
                let frame = bytes(event, "frame_hex");
                let (via, mut frame) = match frame.first() {
                    Some(6) => (Via::Relay, frame[5..].to_vec()),
                    _ => (Path::Direct.via(), frame),
                };
                match Datagram::parse(&frame) {
                    Some(Datagram::Auth(f)) => {
                        t.handle_auth(now, via, &f, &them.identity.public_key()).unwrap();
                    }
                    Some(Datagram::Secure(_)) => {
                        let plain = t.open(now, via, &mut frame).unwrap();
                        assert_eq!(plain.packet, bytes(event, "decrypted_packet_hex"));
                        opened += 1;
                    }
                    _ => {}
                }
            }
        }
        assert!(opened - before >= least, "{} frames", opened - before);
    }
}
