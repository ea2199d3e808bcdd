//! Peers of the old wire: both schemes, February's habits, plaintext where the operator allows it, recorded messages.

use std::time::Duration;

use pilot_wire::beacon::BeaconMessage;
use pilot_wire::packet::{Flags, protocol};
use pilot_wire::tunnel::{Datagram, MAGIC_PUNCH};
use serde_json::Value;

use super::harness::{BEACON, Net, addr, at};
use super::old::{Old, frame_payload};
use crate::crypto::Scheme;
use crate::endpoint::*;
use crate::tunnel::SchemeState;

const SECOND: Duration = Duration::from_secs(1);

fn with_old(scheme: Scheme) -> (Net, Old) {
    let mut net = Net::new();
    net.add(1);
    let old = Old::join(&mut net, 9, scheme);
    let now = net.now;
    net.nodes[0].ep.set_trusted(now, 9, Some(old.identity.public_key()));
    (net, old)
}

#[test]
fn an_old_dialler_of_either_scheme_is_served() {
    for scheme in [Scheme::A, Scheme::B] {
        let (mut net, mut old) = with_old(scheme);
        old.meet(&mut net, 0);
        let ports = (49_152, 7);
        let syn = old.segment(Flags::SYN, ports, 1, 0, 0);
        old.send(&mut net, 0, &syn, &[]);
        let (answer, _) = old.heard.iter().find(|(h, _)| h.flags == Flags::SYN | Flags::ACK).expect("SYN|ACK").clone();
        assert_eq!((answer.ack, answer.src, answer.dst), (1, at(1, 7), at(9, 49_152)));
        let data = old.segment(Flags::ACK, ports, 1, 1, answer.seq.wrapping_add(1));
        old.send(&mut net, 0, &data, b"hello");
        net.run(SECOND);
        old.listen(&net);
        assert_eq!(old.stream_bytes(49_152), b"hello");
        assert_eq!(net.peer(0, 9).scheme, SchemeState::Known(scheme));
        assert!(!net.peer(0, 9).hello);
    }
}

#[test]
fn first_packets_to_an_unknown_peer_travel_twice_and_never_in_clear() {
    let (mut net, mut old) = with_old(Scheme::A);
    net.record = true;
    let now = net.now;
    let conn = net.nodes[0].ep.connect(now, at(9, 7)).unwrap();
    net.run_ms(50);
    old.meet(&mut net, 0);
    old.listen(&net);
    let syn = old.heard.iter().find(|(h, _)| h.flags == Flags::SYN).expect("a SYN that scheme A opens").0;
    assert!(old.unreadable >= 1, "and its twin of scheme B");
    assert_eq!((syn.src.addr, syn.dst), (at(1, 0).addr, at(9, 7)));
    let mut answer = old.segment(Flags::SYN | Flags::ACK, (7, syn.src.port), 1, 0, syn.seq.wrapping_add(1));
    answer.window = 512;
    old.send(&mut net, 0, &answer, &[]);
    assert!(net.connected(0, conn));
    let before = old.unreadable;
    net.write(0, conn, &[1; 20_000]);
    net.run_ms(30);
    old.listen(&net);
    assert_eq!(old.unreadable, before, "one copy once the scheme is known");
    let clear = net.sent.iter().filter(|s| matches!(Datagram::parse(&s.2), Some(Datagram::Plain(_)))).count();
    assert_eq!(clear, 0);
    let longest = net.sent.iter().filter(|s| s.1 == old.addr).map(|s| s.2.len()).max().unwrap();
    assert!(frame_payload(longest) <= 1_152, "{longest}");
}

#[test]
fn an_operator_can_refuse_the_february_scheme() {
    let mut net = Net::new();
    let mut config = net.config(1, 1);
    config.allow_scheme_a = false;
    net.add_with(1, config);
    let mut old = Old::join(&mut net, 9, Scheme::A);
    let now = net.now;
    net.nodes[0].ep.set_trusted(now, 9, Some(old.identity.public_key()));
    old.meet(&mut net, 0);
    let syn = old.segment(Flags::SYN, (49_152, 7), 1, 0, 0);
    old.send(&mut net, 0, &syn, &[]);
    assert!(old.heard.is_empty());
    assert!(net.info(0).conns.is_empty());
}

#[test]
fn frames_nobody_can_read_end_a_dial_early_and_say_so() {
    // The peer takes our exchange and answers in a third scheme.
    let (mut net, mut old) = with_old(Scheme::B);
    let now = net.now;
    let conn = net.nodes[0].ep.connect(now, at(9, 7)).unwrap();
    net.run_ms(50);
    old.meet(&mut net, 0);
    for _ in 0..400 {
        if net.dial_error(0, conn).is_some() {
            break;
        }
        let pila = old.pila();
        net.inject(old.addr, net.nodes[0].addr, &pila);
        let h = old.ping(1);
        let mut frame = old.seal(&h, &[0; 100]);
        let last = frame.len() - 1;
        frame[last] ^= 1;
        net.inject(old.addr, net.nodes[0].addr, &frame);
        net.run_ms(100);
        old.listen(&net);
    }
    assert_eq!(net.dial_error(0, conn).expect("the dial fails").code(), "unreadable");
}

#[test]
fn a_ping_and_a_path_probe_are_answered_and_nothing_else_is() {
    let (mut net, mut old) = with_old(Scheme::B);
    let now = net.now;
    net.nodes[0].ep.remove_trusted(now, 9);
    old.meet(&mut net, 0);
    let control = |flags, sport, dport| {
        let mut h = old.header(protocol::CONTROL, flags, sport, 1, dport);
        h.seq = 41;
        h
    };
    let cases = [
        (control(Flags::NONE, 0, 0), &b"pathprobe.v1"[..], true),
        (control(Flags::NONE, 5, 0), &b""[..], true),
        (control(Flags::NONE, 5, 0), &b"abc"[..], true),
        (control(Flags::NONE, 0, 0), &b""[..], false),
        (control(Flags::ACK, 5, 0), &b"abc"[..], false),
        (control(Flags::ACK, 0, 0), &b"pathprobe.v1"[..], false),
        (control(Flags::NONE, 5, 6), &b"abc"[..], false),
    ];
    // The first frame that opens is followed by our Hello; let that pass.
    old.send(&mut net, 0, &cases[3].0, b"");
    net.run(30 * SECOND);
    old.listen(&net);
    for (header, payload, answered) in cases {
        old.heard.clear();
        old.send(&mut net, 0, &header, payload);
        let pong: Vec<_> = old
            .heard
            .iter()
            .filter(|(h, _)| h.protocol == protocol::CONTROL && h.src.port == 0 && h.seq == 41)
            .collect();
        assert_eq!(pong.len(), usize::from(answered), "{header:?}");
        if let Some((h, p)) = pong.first() {
            assert_eq!((h.flags, h.ack, h.dst.port, p.as_slice()), (Flags::ACK, 42, header.src.port, payload));
        }
    }
}

#[test]
fn a_keepalive_without_a_name_counts_as_life_and_no_more() {
    let (mut net, mut old) = with_old(Scheme::B);
    old.meet(&mut net, 0);
    let mut h = old.header(protocol::CONTROL, Flags::NONE, 0, 1, 0);
    h.src = at(0, 0);
    old.send(&mut net, 0, &h, b"");
    assert!(net.peer(0, 9).last_opened.is_some());
    assert_eq!(net.info(0).counters.misaddressed, 0);
}

#[test]
fn plaintext_peers_are_served_only_where_the_operator_allows_it() {
    for (mode, served) in [(Encryption::Required, false), (Encryption::AllowPlain, true), (Encryption::Off, true)] {
        let mut net = Net::new();
        let mut config = net.config(1, 1);
        config.encrypt = mode;
        net.add_with(1, config);
        let mut old = Old::join(&mut net, 9, Scheme::B);
        let now = net.now;
        net.nodes[0].ep.set_trusted(now, 9, Some(old.identity.public_key()));
        let syn = old.segment(Flags::SYN, (49_152, 7), 1, 0, 0);
        let frame = old.plain(&syn, &[]);
        net.inject(old.addr, net.nodes[0].addr, &frame);
        net.run_ms(100);
        old.listen(&net);
        assert_eq!(old.heard.iter().any(|(h, _)| h.flags == Flags::SYN | Flags::ACK), served, "{mode:?}");
        assert_eq!(net.info(0).counters.plaintext_dropped, u64::from(!served));
        if !served {
            assert!(net.astray.is_empty() && net.info(0).peers.is_empty());
        }
    }
}

#[test]
fn a_node_that_ever_had_a_session_is_never_heard_in_clear() {
    let mut net = Net::new();
    let mut config = net.config(1, 1);
    config.encrypt = Encryption::AllowPlain;
    net.add_with(1, config);
    net.add(2);
    net.trust(0, 1);
    net.echo(1, 0, b"x", 5 * SECOND);
    let mut forger = Old::join(&mut net, 9, Scheme::B);
    forger.node = 2;
    let syn = forger.segment(Flags::SYN, (1, 7), 1, 0, 0);
    let frame = forger.plain(&syn, &[]);
    let conns = net.info(0).conns.len();
    net.inject(net.nodes[1].addr, net.nodes[0].addr, &frame);
    net.run_ms(100);
    assert_eq!((net.info(0).conns.len(), net.info(0).counters.plaintext_dropped), (conns, 1));
}

#[test]
fn two_plaintext_nodes_talk() {
    let mut net = Net::new();
    for id in [1, 2] {
        let mut config = net.config(id, id as u8);
        config.encrypt = Encryption::Off;
        net.add_with(id, config);
    }
    net.trust(0, 1);
    net.echo(0, 1, &[7; 50_000], 10 * SECOND);
    assert!(!net.peer(0, 2).encrypted);
}

#[test]
fn a_direct_way_in_clear_is_kept_while_it_works() {
    // 07 D19: whatever is believed counts as life, not only a frame that opens.
    let mut net = Net::with_beacon();
    for id in [1, 2] {
        let mut config = net.config(id, id as u8);
        config.encrypt = Encryption::Off;
        net.add_with(id, config);
    }
    net.trust(0, 1);
    net.run(SECOND);
    let conn = net.echo(0, 1, b"x", 5 * SECOND);
    net.record = true;
    for _ in 0..60 {
        net.run(10 * SECOND);
        net.echo_on(0, conn, b"still here", 5 * SECOND);
        assert!(!net.peer(0, 2).relay && !net.peer(1, 1).relay);
    }
    let beacon = addr(super::harness::BEACON);
    let to_beacon = net.sent.iter().filter(|s| s.1 == beacon);
    let relayed = to_beacon.filter(|s| matches!(BeaconMessage::parse(&s.2), Some(BeaconMessage::Relay { .. })));
    assert_eq!(relayed.count(), 0);
}

#[test]
fn a_dial_in_clear_begins_after_three_seconds_without_an_exchange() {
    let mut net = Net::new();
    let mut config = net.config(1, 1);
    config.encrypt = Encryption::AllowPlain;
    net.add_with(1, config);
    let mut old = Old::join(&mut net, 9, Scheme::B);
    let now = net.now;
    net.nodes[0].ep.connect(now, at(9, 7)).unwrap();
    net.run_ms(2_900);
    old.listen(&net);
    assert!(old.heard.is_empty());
    net.run_ms(3_000);
    old.listen(&net);
    assert!(old.heard.iter().any(|(h, _)| h.flags == Flags::SYN));
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

/// `wire-daemon-beacon.json` was recorded from a daemon that believes everybody. Ours does what it did when the message comes
/// from its beacon, except that a relay delivery changes nothing before its frame has authenticated (01 rule 15); from
/// anywhere else nothing happens.
#[test]
fn recorded_beacon_messages_have_safe_outcomes() {
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/wire-daemon-beacon.json")).unwrap();
    let beacon = addr("127.0.0.1:45510");
    for (source, believed) in [(beacon, true), (addr("127.0.0.1:6666"), false)] {
        for case in vectors["beacon_input"].as_array().unwrap() {
            let mut net = Net::new();
            net.beacon = Some(beacon);
            net.add(42);
            net.run_ms(100);
            net.record = true;
            net.inject(source, net.nodes[0].addr, &hex(case["input_hex"].as_str().unwrap()));
            net.run(SECOND);
            for to in ["127.0.0.1:45511", "[::1]:45511"] {
                let field = format!("sent_to_{to}");
                let expected = if believed { case[&field].as_array().map_or(0, Vec::len) } else { 0 };
                let punches = net.sent.iter().filter(|s| s.1 == addr(to) && s.2 == MAGIC_PUNCH).count();
                assert_eq!(punches, expected, "{} {to} from {source}", case["name"]);
            }
            assert!(net.sent.iter().all(|s| s.2 == MAGIC_PUNCH), "{}", case["name"]);
        }
        for case in vectors["relay_deliver"].as_array().unwrap() {
            let mut net = Net::new();
            net.beacon = Some(beacon);
            net.add(42);
            net.run_ms(100);
            net.record = true;
            net.inject(source, net.nodes[0].addr, &hex(case["input_hex"].as_str().unwrap()));
            net.run(SECOND);
            assert!(net.sent.is_empty() && net.info(0).peers.is_empty(), "{}", case["name"]);
        }
    }
}

/// Every recorded frame of four conversations between February daemons, thrown at a node that has the identity of one of
/// them. Their keys are not its keys, so nothing may open; their packets in clear may not count; their genuine key exchanges
/// are answered, within limits.
#[test]
fn recorded_conversations_replayed_raw_are_harmless() {
    let traces = [
        include_str!("../../../tests/vectors/wire-trace-direct.json"),
        include_str!("../../../tests/vectors/wire-trace-relay-fallback.json"),
        include_str!("../../../tests/vectors/wire-trace-datagram-first-contact.json"),
        include_str!("../../../tests/vectors/wire-trace-plaintext-to-encrypted.json"),
    ];
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for trace in traces {
        let trace: Value = serde_json::from_str(trace).unwrap();
        for event in trace["events"].as_array().unwrap() {
            let text =
                event["hex"].as_str().or_else(|| event["frame_hex"].as_str()).or_else(|| event["data_hex"].as_str());
            frames.extend(text.map(hex));
        }
    }
    assert!(frames.len() > 100, "{} frames read", frames.len());
    let mut net = Net::with_beacon();
    net.add(1);
    net.run(SECOND);
    let peer = Old::join(&mut net, 2, Scheme::A);
    let now = net.now;
    net.nodes[0].ep.set_trusted(now, 2, Some(peer.identity.public_key()));
    net.record = true;
    for frame in &frames {
        net.inject(peer.addr, net.nodes[0].addr, frame);
        net.inject(addr(super::harness::BEACON), net.nodes[0].addr, frame);
        net.run_ms(10);
    }
    net.run(60 * SECOND);
    let info = net.info(0);
    assert!(info.conns.is_empty() && info.counters.datagrams_in == 0 && info.counters.pkts_recv == 0);
    assert!(info.counters.plaintext_dropped > 0 && info.counters.unreadable > 0);
    let answers = net.sent.iter().filter(|s| s.1 == peer.addr).count();
    assert!((1..=60).contains(&answers), "{answers} answers to {} frames", frames.len());
}

#[test]
fn what_we_send_to_the_beacon_is_what_was_recorded() {
    let vectors: Value = serde_json::from_str(include_str!("../../../tests/vectors/wire-daemon-beacon.json")).unwrap();
    let sends = &vectors["daemon_sends"];
    let mut net = Net::with_beacon();
    net.record = true;
    net.add(42);
    let old = Old::join(&mut net, 0x0102_0304 & 0xFF, Scheme::B);
    net.directory.insert(0x0102_0304, net.directory[&old.node].clone());
    let now = net.now;
    net.nodes[0].ep.connect(now, at(0x0102_0304, 7)).unwrap();
    net.run_ms(600);
    let to_beacon: Vec<_> =
        net.sent.iter().filter(|s| s.1 == addr(super::harness::BEACON)).map(|s| s.2.clone()).collect();
    assert!(to_beacon.contains(&hex(sends["discover_hex"][0].as_str().unwrap())));
    assert!(to_beacon.contains(&hex(sends["punch_request_target_0x01020304_hex"][0].as_str().unwrap())));
    let relayed =
        |b: &Vec<u8>| matches!(BeaconMessage::parse(b), Some(BeaconMessage::Relay { src: 42, dst: 0x0102_0304, .. }));
    assert!(to_beacon.iter().any(relayed));
}

/// Old releases take our key exchange only on the kind of path on which they learned our identity key (07 rule 15). One
/// that learned it directly, relays to us, and did not notice our restart hears nothing but what comes directly.
#[test]
fn an_old_peer_that_relays_to_us_after_our_restart_gets_our_exchange_directly_too() {
    for trusted in [true, false] {
        let mut net = Net::with_beacon();
        net.add(1);
        let mut old = Old::join(&mut net, 9, Scheme::B);
        net.run_ms(1_000);
        old.meet(&mut net, 0);
        net.restart(0, 100);
        if trusted {
            let now = net.now;
            net.nodes[0].ep.set_trusted(now, 9, Some(old.identity.public_key()));
        }
        net.run_ms(1_000);
        let before = old.exchanges;
        let header = old.segment(Flags::SYN, (50_000, 7), 1, 0, 0);
        let frame = old.seal(&header, &[]);
        let mut delivery = Vec::new();
        BeaconMessage::RelayDeliver { src: 9, frame: &frame }.emit(&mut delivery);
        net.inject(addr(BEACON), net.nodes[0].addr, &delivery);
        net.run_ms(1_000);
        old.listen(&net);
        assert!(old.exchanges > before, "trusted: {trusted}");
    }
}
