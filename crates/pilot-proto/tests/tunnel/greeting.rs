//! Hello between two of ours (`docs/spec/hello.md`), and official daemons that must not notice.

use std::time::Duration;

use pilot_proto::crypto::Scheme;
use pilot_proto::tunnel::{SchemeState, TunnelConfig, TunnelEvent, limits};
use pilot_wire::hello::Hello;

use crate::net::{A, B, Net};
use crate::official::Version;

fn config() -> TunnelConfig {
    TunnelConfig {
        hello: Hello { generation: Some(1), max_segment: Some(9000), ..Hello::default() },
        ..TunnelConfig::default()
    }
}

fn hellos(net: &mut Net, who: usize) -> Vec<Hello> {
    let events = &net.ours(who).events;
    events.iter().filter_map(|e| if let TunnelEvent::Hello(h) = e { Some((**h).clone()) } else { None }).collect()
}

#[test]
fn both_learn_what_the_other_can_do_within_two_round_trips_and_say_it_once() {
    let mut net = Net::with(1, config());
    net.send(A, 1);
    net.run_ms(80);
    for who in [A, B] {
        let heard = hellos(&mut net, who);
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0].max_segment, Some(9000));
        assert_eq!(net.tunnel(who).hello().and_then(|h| h.generation), Some(1));
    }
    let frames = net.log.len();
    net.run_ms(60_000);
    assert_eq!(net.log.len(), frames);
}

#[test]
fn a_lost_hello_is_repeated() {
    for seed in 0..40 {
        let mut net = Net::with(seed, config());
        net.faults.loss = 0.2;
        for i in 0..60 {
            net.send(A, i);
            net.send(B, 100 + i);
            net.run_ms(250);
        }
        net.faults.loss = 0.0;
        net.run_ms(10_000);
        let heard = [A, B].map(|who| net.tunnel(who).hello().is_some());
        assert_eq!(heard, [true, true], "seed {seed}");
    }
}

#[test]
fn a_peer_that_starts_again_is_greeted_again_and_careful_rules_hold_meanwhile() {
    let mut net = Net::with(3, config());
    assert!(net.talks(500));
    net.restart(B);
    for i in 0..20 {
        net.send(A, i);
        net.run_ms(200);
    }
    let events: Vec<_> = net
        .ours(A)
        .events
        .iter()
        .filter(|e| matches!(e, TunnelEvent::Hello(_) | TunnelEvent::HelloLost))
        .map(|e| matches!(e, TunnelEvent::HelloLost))
        .collect();
    assert_eq!(events, [false, true, false], "Hello, lost, Hello");
}

#[test]
fn a_new_key_of_the_same_life_needs_no_new_hello() {
    let mut net = Net::with(4, TunnelConfig { rekey_after: Duration::from_secs(5), ..config() });
    for i in 0..400 {
        net.send(A, i);
        net.send(B, 1000 + i);
        net.run_ms(100);
    }
    assert!(net.tunnel(A).status().generation >= 4);
    for who in [A, B] {
        assert_eq!(hellos(&mut net, who).len(), 1);
        assert!(!net.ours(who).events.contains(&TunnelEvent::HelloLost));
    }
}

#[test]
fn two_of_ours_always_end_with_scheme_b_whichever_copy_came_first() {
    for seed in 0..60 {
        let mut net = Net::with(seed, config());
        net.faults.jitter = Duration::from_millis(50);
        net.faults.loss = 0.2;
        for i in 0..20 {
            net.send(A, i);
            net.send(B, 100 + i);
            net.run_ms(250);
        }
        net.faults.loss = 0.0;
        net.run_ms(10_000);
        if [A, B].iter().all(|who| net.tunnel(*who).hello().is_some()) {
            for who in [A, B] {
                assert_eq!(net.tunnel(who).scheme(), SchemeState::Known(Scheme::B), "seed {seed}");
            }
        }
    }
}

#[test]
fn official_daemons_do_not_notice_hello() {
    for version in [Version::Feb, Version::V172, Version::V118] {
        let mut net = Net::with_official(5, version);
        assert!(net.talks(3000));
        net.run_ms(30_000);
        assert!(net.tunnel(A).hello().is_none());
        let frames = net.log.len();
        net.run_ms(60_000);
        assert_eq!(net.log.len(), frames, "{version:?}: nobody goes on about it");
        assert!(net.talks(500));
    }
}

#[test]
fn a_peer_that_asks_again_and_again_is_answered_a_bounded_number_of_times() {
    use crate::net::{Path, epoch};
    use crate::vectors::{Party, sealed};
    use pilot_proto::tunnel::CONTROL_PORT;
    use pilot_wire::packet::{Flags, Header, protocol};
    use pilot_wire::tunnel::Nonce;
    use pilot_wire::{Address, SocketAddress};

    let mut now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    let mut t = us.paired(now, &peer, [4; 4], 0);
    let mut body = Vec::new();
    Hello::default().emit(&mut body);
    let at = |node| SocketAddress::new(Address::backbone(node), CONTROL_PORT);
    let header = Header::new(protocol::CONTROL, Flags::ACK, at(2), at(1));
    let mut plain = Vec::new();
    header.emit(&body, &mut plain).unwrap();
    let mut out = Vec::new();
    while t.poll_transmit(now, &mut out).is_some() {}
    let mut sent = 0;
    for counter in 1..=600 {
        let mut frame = sealed(&peer, &us, Scheme::B, Nonce { prefix: [8; 4], counter }, &plain);
        t.open(now, Path::Direct.via(), &mut frame).unwrap();
        assert!(t.handle_control(now, &header, &body));
        while t.poll_transmit(now, &mut out).is_some() {
            sent += 1;
        }
        now += Duration::from_millis(100);
        t.handle_timeout(now);
    }
    assert_eq!(sent, 1 + u32::from(limits::MAX_HELLO_ANSWERS), "our own and the answers");
}
