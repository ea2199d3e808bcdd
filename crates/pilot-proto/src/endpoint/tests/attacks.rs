//! Raw datagrams of people who mean harm: what they reach, and what they cost.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_wire::beacon::BeaconMessage;
use pilot_wire::packet::{Flags, protocol};
use pilot_wire::tunnel::{AuthExchange, Nonce, SecureHeader};
use rand::rngs::StdRng;
use rand::{Rng as _, RngCore as _, SeedableRng as _};

use super::harness::{BEACON, Net, addr, at, identity};
use super::old::Old;
use crate::crypto::Scheme;
use crate::endpoint::peers::LOOKUPS;
use crate::endpoint::*;
use crate::stream::{CloseReason, StreamEvent};

const SECOND: Duration = Duration::from_secs(1);
const MALLORY: &str = "192.0.2.66:6666";

/// Two nodes with a stream between them, and what they said on the wire.
fn talking() -> (Net, ConnId) {
    let mut net = Net::with_beacon();
    net.add(1);
    net.add(2);
    net.trust(0, 1);
    net.run(SECOND);
    net.record = true;
    let conn = net.echo(0, 1, b"before", SECOND);
    net.run(SECOND);
    (net, conn)
}

fn unharmed(net: &mut Net, conn: ConnId) {
    net.echo_on(0, conn, b"as if nothing had happened", SECOND);
    let (a, b) = (net.nodes[0].addr, net.nodes[1].addr);
    assert_eq!((net.peer(0, 2).endpoint, net.peer(1, 1).endpoint), (Some(b), Some(a)));
    assert!(!net.peer(0, 2).relay && !net.peer(1, 1).relay);
}

fn emitted(message: &BeaconMessage<'_>) -> Vec<u8> {
    let mut out = Vec::new();
    message.emit(&mut out);
    out
}

#[test]
fn packets_in_clear_are_dropped_without_an_answer() {
    let (mut net, conn) = talking();
    let mut forger = Old::join(&mut net, 9, Scheme::B);
    forger.node = 1;
    let seen: Vec<SocketAddr> = vec![net.nodes[0].addr, addr(MALLORY)];
    let before = net.sent.len();
    for from in seen {
        for flags in [Flags::SYN, Flags::ACK, Flags::RST, Flags::FIN] {
            let h = forger.segment(flags, (49_152, 7), 2, 1, 1);
            let frame = forger.plain(&h, b"inject");
            net.inject(from, net.nodes[1].addr, &frame);
        }
        let h = forger.header(protocol::DATAGRAM, Flags::NONE, 1, 2, 9);
        let frame = forger.plain(&h, b"inject");
        net.inject(from, net.nodes[1].addr, &frame);
    }
    net.run_ms(50);
    assert_eq!(net.sent.len(), before);
    assert_eq!(net.info(1).counters.plaintext_dropped, 10);
    assert_eq!(net.info(1).counters.datagrams_in, 0);
    unharmed(&mut net, conn);
}

#[test]
fn beacon_messages_from_elsewhere_move_nothing_and_aim_nothing() {
    let (mut net, conn) = talking();
    let victim = addr("192.0.2.1:53");
    let messages = [
        BeaconMessage::PunchCommand { endpoint: victim },
        BeaconMessage::DiscoverReply { endpoint: victim },
        BeaconMessage::RelayDeliver { src: 2, frame: b"PILS" },
        BeaconMessage::RelayDeliver { src: 77, frame: b"PILAxxxxxxxx" },
        BeaconMessage::Notify { kind: 1 },
    ];
    let before = net.sent.len();
    for _ in 0..200 {
        for message in &messages {
            net.inject(addr(MALLORY), net.nodes[0].addr, &emitted(message));
        }
    }
    net.run_ms(500);
    assert_eq!(net.sent.len(), before);
    assert_eq!(net.info(0).counters.foreign_beacon, 1_000);
    assert_eq!(net.info(0).observed, Some(net.nodes[0].addr));
    assert!(!net.nodes[0].events.iter().any(|e| matches!(e, Event::HandshakeWaiting)));
    unharmed(&mut net, conn);
}

#[test]
fn punches_the_beacon_orders_are_few_and_go_nowhere_odd() {
    let (mut net, conn) = talking();
    let before = net.sent.len();
    for i in 0..2_000u32 {
        let endpoint = SocketAddr::from(([192, 0, (i >> 8) as u8, i as u8], 53));
        net.inject(addr(BEACON), net.nodes[0].addr, &emitted(&BeaconMessage::PunchCommand { endpoint }));
    }
    net.run(SECOND);
    let sent = net.sent.len() - before;
    assert!(sent <= 200, "{sent} datagrams for 2,000 commands");
    unharmed(&mut net, conn);
}

#[test]
fn a_replayed_key_exchange_moves_no_endpoint_and_breaks_no_session() {
    let (mut net, conn) = talking();
    let recorded: Vec<Vec<u8>> = net.sent.iter().filter(|s| s.2.starts_with(b"PILA")).map(|s| s.2.clone()).collect();
    assert!(recorded.len() >= 2);
    for _ in 0..5 {
        for pila in &recorded {
            for to in 0..2 {
                net.inject(addr(MALLORY), net.nodes[to].addr, pila);
                let deliver = BeaconMessage::RelayDeliver { src: 1, frame: pila };
                net.inject(addr(BEACON), net.nodes[to].addr, &emitted(&deliver));
            }
        }
        net.run(2 * SECOND);
    }
    unharmed(&mut net, conn);
}

#[test]
fn every_recorded_datagram_replayed_changes_nothing() {
    let (mut net, conn) = talking();
    let recorded = net.sent.clone();
    let delivered = net.info(1).counters.pkts_recv;
    for (_, to, bytes) in &recorded {
        net.inject(addr(MALLORY), *to, bytes);
    }
    net.run_ms(15);
    assert_eq!(net.info(1).counters.pkts_recv, delivered);
    net.run(5 * SECOND);
    unharmed(&mut net, conn);
}

#[test]
fn a_key_exchange_signed_by_somebody_else_is_refused_after_any_history() {
    let (mut net, conn) = talking();
    let mut forger = Old::join(&mut net, 9, Scheme::B);
    forger.node = 1;
    let foreign = identity(66);
    for round in 0..20u8 {
        forger.new_key(round + 1);
        // Signed with a foreign key that it names, and with a foreign key under the right name.
        let named = forger.pila_signed_by(&foreign);
        let mut lying = named.clone();
        lying[40..72].copy_from_slice(&identity(1).public_key());
        for from in [addr(MALLORY), net.nodes[0].addr] {
            net.inject(from, net.nodes[1].addr, &named);
            net.inject(from, net.nodes[1].addr, &lying);
        }
        net.run(SECOND);
    }
    let counters = net.info(1).counters;
    assert!(counters.exchange_failed >= 20, "{counters:?}");
    assert!(net.nodes[1].lookups <= 8, "the registry is not asked for each: {}", net.nodes[1].lookups);
    unharmed(&mut net, conn);
}

#[test]
fn forged_frames_with_huge_counters_silence_nobody() {
    let (mut net, conn) = talking();
    let sample =
        net.sent.iter().rev().find(|s| s.2.starts_with(b"PILS") && s.1 == net.nodes[1].addr).unwrap().2.clone();
    for i in 0..300u64 {
        let mut forged = sample.clone();
        forged[12..20].copy_from_slice(&(u64::MAX - i).to_be_bytes());
        net.inject(net.nodes[0].addr, net.nodes[1].addr, &forged);
        let mut garbage =
            SecureHeader { node: 1, nonce: Nonce { prefix: [9; 4], counter: u64::MAX } }.to_bytes().to_vec();
        garbage.extend_from_slice(&[i as u8; 80]);
        net.inject(addr(MALLORY), net.nodes[1].addr, &garbage);
    }
    net.run_ms(200);
    unharmed(&mut net, conn);
    net.run(20 * SECOND);
    unharmed(&mut net, conn);
}

#[test]
fn a_peer_cannot_speak_for_others_or_to_others() {
    let mut net = Net::new();
    net.add(1);
    net.add(2);
    net.trust(0, 1);
    let mut evil = Old::join(&mut net, 9, Scheme::A);
    evil.meet(&mut net, 0);
    let mut as_two = evil.header(protocol::DATAGRAM, Flags::NONE, 1, 1, 9);
    as_two.src = at(2, 1);
    let to_three = evil.header(protocol::DATAGRAM, Flags::NONE, 1, 3, 9);
    let mut version_two = evil.header(protocol::DATAGRAM, Flags::NONE, 1, 1, 9);
    version_two.version = 2;
    let mut other_network = evil.header(protocol::DATAGRAM, Flags::NONE, 1, 1, 9);
    other_network.dst.addr.network = 5;
    let ping_three = evil.ping(3);
    for h in [as_two, to_three, version_two, other_network, ping_three] {
        evil.send(&mut net, 0, &h, b"abc");
    }
    let counters = net.info(0).counters;
    assert_eq!((counters.datagrams_in, counters.misaddressed, counters.refused), (0, 5, 0));
}

#[test]
fn ping_floods_are_answered_sparingly_and_pong_loops_do_not_start() {
    let mut net = Net::new();
    net.add(1);
    let mut evil = Old::join(&mut net, 9, Scheme::B);
    evil.meet(&mut net, 0);
    let h = evil.ping(1);
    for _ in 0..5_000 {
        let frame = evil.seal(&h, b"x");
        net.inject(evil.addr, net.nodes[0].addr, &frame);
    }
    net.run(SECOND);
    evil.listen(&net);
    let pongs = evil.heard.iter().filter(|(h, _)| h.src.port == 0).count();
    assert!((10..=80).contains(&pongs), "{pongs} answers to 5,000 pings");
    // Its own answers sent back at it.
    let before = net.astray.len();
    for _ in 0..100 {
        let mut pong = evil.ping(1);
        pong.flags = Flags::ACK;
        pong.src.port = 0;
        let frame = evil.seal(&pong, b"x");
        net.inject(evil.addr, net.nodes[0].addr, &frame);
    }
    net.run_ms(100);
    assert!(net.astray.len() - before <= 2);
}

#[test]
fn a_syn_flood_of_a_stranger_leaves_room_for_others() {
    let mut net = Net::new();
    net.add(1);
    net.nodes[0].ep.set_public_port(7, true);
    net.add(2);
    let mut evil = Old::join(&mut net, 9, Scheme::B);
    evil.meet(&mut net, 0);
    for port in 0..20_000u16 {
        let h = evil.segment(Flags::SYN, (port, 7), 1, 0, 0);
        let frame = evil.seal(&h, &[]);
        net.inject(evil.addr, net.nodes[0].addr, &frame);
    }
    net.run_ms(100);
    let conns = net.info(0).conns.len();
    assert!(conns <= 80, "{conns} half-open connections");
    assert!(net.info(0).counters.syn_limited >= 19_000);
    assert!(!net.nodes[0].events.iter().any(|e| matches!(e, Event::Accepted { .. })));
    net.echo(1, 0, b"me too", SECOND);
    net.run(30 * SECOND);
    assert!(net.info(0).conns.len() <= 2, "half-open ones are forgotten");
}

#[test]
fn no_port_takes_more_connections_than_its_limit() {
    let mut net = Net::new();
    let mut config = net.config(1, 1);
    config.limits.connections_per_port = 10;
    net.add_with(1, config);
    net.add(2);
    net.trust(0, 1);
    let conns: Vec<_> = (0..15).map(|_| net.dial(1, 0, 7)).collect();
    net.run(5 * SECOND);
    let up = conns.iter().filter(|c| net.connected(1, **c)).count();
    let refused =
        conns.iter().filter_map(|c| net.dial_error(1, *c)).filter(|e| e.failure == DialFailure::Refused).count();
    assert_eq!((up, refused), (10, 5));
}

#[test]
fn a_forged_reset_from_another_session_touches_nothing() {
    let (mut net, conn) = talking();
    let info = net.info(1).conns[0].clone();
    let mut evil = Old::join(&mut net, 9, Scheme::B);
    evil.meet(&mut net, 1);
    for flags in [Flags::RST, Flags::FIN, Flags::SYN] {
        let h = evil.segment(flags, (info.remote.port, info.local.port), 2, 1, 1);
        evil.send(&mut net, 1, &h, &[]);
    }
    unharmed(&mut net, conn);
    assert!(
        !net.nodes[0]
            .events
            .iter()
            .any(|e| matches!(e, Event::Stream { event: StreamEvent::Closed(CloseReason::Reset), .. }))
    );
}

#[test]
fn floods_of_invented_nodes_fill_no_table_and_ask_the_registry_seldom() {
    let (mut net, conn) = talking();
    let liar = identity(66);
    let asked = net.nodes[0].lookups;
    for round in 0..10u32 {
        for i in 0..5_000u32 {
            let node = 1_000 + round * 5_000 + i;
            let signed = AuthExchange::signed_bytes(node, &[7; 32]);
            let mut pila = Vec::new();
            // One signature for all: these fail long before anybody checks it.
            let signature = if i == 0 { liar.sign(&signed) } else { [0; 64] };
            AuthExchange { node, x25519: [7; 32], ed25519: liar.public_key(), signature }.emit(&mut pila);
            let from = SocketAddr::from(([10, round as u8, (i >> 8) as u8, i as u8], 4_000));
            net.inject(from, net.nodes[0].addr, &pila);
            let mut pils = SecureHeader { node, nonce: Nonce { prefix: [1; 4], counter: 1 } }.to_bytes().to_vec();
            pils.extend_from_slice(&[0; 60]);
            net.inject(from, net.nodes[0].addr, &pils);
        }
        net.run(SECOND);
    }
    let spent = net.nodes[0].lookups - asked;
    assert!(spent <= 1_400, "{spent} questions in ten seconds");
    assert!(net.nodes[0].ep.lookups.len() <= LOOKUPS);
    assert_eq!(net.info(0).peers.len(), 1);
    unharmed(&mut net, conn);
}

#[test]
fn the_peer_table_has_a_limit_and_peers_in_use_keep_their_place() {
    let mut net = Net::new();
    let mut config = net.config(1, 1);
    config.limits.peers = 3;
    net.add_with(1, config);
    net.add(2);
    net.trust(0, 1);
    let conn = net.echo(0, 1, b"x", SECOND);
    for node in 10..30 {
        let mut old = Old::join(&mut net, node, Scheme::B);
        let pila = old.pila();
        net.inject(old.addr, net.nodes[0].addr, &pila);
        net.run(SECOND);
        old.listen(&net);
        assert!(net.info(0).peers.len() <= 3);
    }
    net.echo_on(0, conn, b"still", SECOND);
    let now = net.now;
    let ids: Vec<_> = (40..42).map(|n| net.nodes[0].ep.connect(now, at(n, 7))).collect();
    assert!(ids.iter().all(Result::is_ok), "idle peers give way");
}

#[test]
fn random_bytes_change_nothing() {
    let (mut net, conn) = talking();
    let mut rng = StdRng::seed_from_u64(7);
    let samples: Vec<Vec<u8>> = net.sent.iter().map(|s| s.2.clone()).collect();
    for i in 0..30_000 {
        let mut bytes = if i % 2 == 0 {
            let mut b = vec![0; rng.random_range(0..300)];
            rng.fill_bytes(&mut b);
            b
        } else {
            samples[rng.random_range(0..samples.len())].clone()
        };
        match rng.random_range(0..4) {
            0 if !bytes.is_empty() => {
                let at = rng.random_range(0..bytes.len());
                bytes[at] ^= 1 << rng.random_range(0..8);
            }
            1 => bytes.truncate(rng.random_range(0..=bytes.len())),
            2 => bytes.extend_from_slice(&[0xFF; 70_000][..rng.random_range(0..2_000)]),
            _ => {
                let magic = [b"PILA", b"PILK", b"PILS", b"PILT", b"PILP"][rng.random_range(0..5)];
                if bytes.len() >= 4 {
                    bytes[..4].copy_from_slice(magic);
                }
            }
        }
        let from = match rng.random_range(0..3) {
            0 => addr(MALLORY),
            1 => addr(BEACON),
            _ => net.nodes[0].addr,
        };
        net.inject(from, net.nodes[1].addr, &bytes);
        if i % 100 == 0 {
            net.run_ms(20);
        }
    }
    net.run(5 * SECOND);
    assert!(net.info(1).peers.len() <= 2);
    net.echo_on(0, conn, b"as if nothing had happened", 5 * SECOND);
}

#[test]
fn refusals_are_told_at_most_every_ten_seconds_but_all_counted() {
    let mut net = Net::new();
    net.add(1);
    let mut evil = Old::join(&mut net, 9, Scheme::B);
    evil.meet(&mut net, 0);
    for _ in 0..100 {
        let h = evil.header(protocol::DATAGRAM, Flags::NONE, 1, 1, 9);
        evil.send(&mut net, 0, &h, b"x");
    }
    let told = net.nodes[0].events.iter().filter(|e| matches!(e, Event::Refused { .. })).count();
    assert_eq!((told, net.info(0).counters.refused), (1, 100));
}

/// A `PILS` frame of a session nobody has, `len` bytes long.
fn stray(node: u32, counter: u64, len: usize) -> Vec<u8> {
    let mut frame = SecureHeader { node, nonce: Nonce { prefix: [1; 4], counter } }.to_bytes().to_vec();
    frame.resize(len, 0);
    frame
}

#[test]
fn an_address_that_proves_nothing_never_gets_more_bytes_than_it_sent() {
    for (len, pause_ms) in [(70, 20), (70, 1_000), (70, 5_000), (135, 4_000), (136, 4_000), (1_400, 100)] {
        let mut net = Net::new();
        net.add(1);
        let nodes: Vec<u32> = (2..7).collect();
        for node in &nodes {
            Old::join(&mut net, *node, Scheme::B);
        }
        net.record = true;
        let victim = addr(MALLORY);
        let mut paid = 0;
        for counter in 0..40 {
            for node in &nodes {
                net.inject(victim, net.nodes[0].addr, &stray(*node, counter, len));
                paid += len;
                net.run_ms(pause_ms / 4);
                let cost: usize = net.sent.iter().filter(|s| s.1 == victim).map(|s| s.2.len()).sum();
                assert!(cost <= paid, "{cost} bytes for {paid} in frames of {len}");
            }
        }
        // It is not silence that keeps the balance: a peer that did not notice our restart is told.
        assert!(net.sent.iter().any(|s| s.1 == victim), "frames of {len} every {pause_ms} ms");
    }
}

#[test]
fn what_comes_by_relay_is_answered_at_its_first_frame() {
    let mut net = Net::with_beacon();
    net.add(1);
    net.run(SECOND);
    Old::join(&mut net, 2, Scheme::B);
    net.record = true;
    let frame = stray(2, 1, 70);
    net.inject(addr(BEACON), net.nodes[0].addr, &emitted(&BeaconMessage::RelayDeliver { src: 2, frame: &frame }));
    net.run_ms(100);
    assert!(net.sent.iter().any(|s| matches!(BeaconMessage::parse(&s.2), Some(BeaconMessage::Relay { dst: 2, .. }))));
}

#[test]
fn strays_of_many_nodes_from_one_address_are_answered_sparingly() {
    let mut net = Net::new();
    net.add(1);
    for node in 2..102 {
        Old::join(&mut net, node, Scheme::B);
    }
    net.record = true;
    for node in 2..102 {
        net.inject(addr(MALLORY), net.nodes[0].addr, &stray(node, 1, 1_400));
    }
    net.run_ms(100);
    let answers = net.sent.iter().filter(|s| s.1 == addr(MALLORY)).count();
    assert!((1..=10).contains(&answers), "{answers} answers");
}

#[test]
fn notices_of_the_beacon_come_three_at_once_and_then_one_per_five_seconds() {
    let mut net = Net::with_beacon();
    net.add(1);
    net.run(SECOND);
    let told = |net: &Net| net.nodes[0].events.iter().filter(|e| matches!(e, Event::HandshakeWaiting)).count();
    let notify = emitted(&BeaconMessage::Notify { kind: 1 });
    for _ in 0..1_000 {
        net.inject(addr(BEACON), net.nodes[0].addr, &notify);
    }
    net.run(SECOND);
    assert_eq!(told(&net), 3);
    // The ones that were too many are told as one, which is enough to look.
    net.run(60 * SECOND);
    assert_eq!(told(&net), 4);
    for _ in 0..100 {
        net.inject(addr(BEACON), net.nodes[0].addr, &notify);
        net.run(SECOND / 2);
    }
    assert!((10..=13).contains(&(told(&net) - 4)), "{} in 50 seconds", told(&net) - 4);
}
