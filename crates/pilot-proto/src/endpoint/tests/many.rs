//! Many peers, many datagrams, and one bad way among good ones.

use std::collections::HashSet;
use std::time::Duration;

use super::harness::{BEACON, Entry, Net, addr, at, identity};
use crate::endpoint::*;

const SECOND: Duration = Duration::from_secs(1);

fn pair() -> Net {
    let mut net = Net::with_beacon();
    net.add(1);
    net.add(2);
    net.trust(0, 1);
    net.run(SECOND);
    net
}

#[test]
fn hundreds_of_unreachable_peers_do_not_keep_a_first_packet_waiting() {
    let mut net = pair();
    let now = net.now;
    for node in 1_000..1_400 {
        let endpoint = addr(&format!("198.18.{}.{}:4000", node / 256, node % 256));
        let key = identity(node).public_key();
        net.directory.insert(node, Entry { key: Ok(key), endpoint: Ok(vec![endpoint]), version: false });
        net.nodes[0].ep.send_datagram(now, 1, at(node, 9), b"anybody").unwrap();
    }
    net.run_ms(100);
    net.echo(0, 1, b"the one that is there", SECOND);
}

#[test]
fn ten_thousand_former_peers_cost_nothing() {
    let mut net = pair();
    let now = net.now;
    for node in 1_000..11_000 {
        net.nodes[0].ep.send_datagram(now, 1, at(node, 9), b"anybody").unwrap();
    }
    net.run(SECOND);
    assert!(net.info(0).peers.len() >= 10_000);
    net.run(Duration::from_secs(600));
    assert!(net.info(0).peers.is_empty(), "{} peers are left", net.info(0).peers.len());
    let before = net.datagrams;
    net.run(Duration::from_secs(300));
    // Both nodes ask the beacon every 25 s, and it answers; the last second may belong to either side.
    assert!(net.datagrams - before <= 2 * 2 * 13, "{} datagrams in five idle minutes", net.datagrams - before);
}

#[test]
fn twenty_thousand_datagrams_use_up_no_port() {
    let mut net = pair();
    net.echo(0, 1, b"a session first", SECOND);
    for burst in 0..500 {
        let now = net.now;
        for _ in 0..40 {
            net.nodes[0].ep.send_datagram(now, 50_000 + burst, at(2, 9), b"x").unwrap();
        }
        net.run_ms(15);
    }
    net.run(SECOND);
    let came = net.nodes[1].events.iter().filter(|e| matches!(e, Event::Datagram { .. })).count();
    assert_eq!(came, 20_000);
    net.echo(0, 1, b"a dial still finds a port", SECOND);
}

#[test]
fn one_peer_with_a_dead_way_is_healed_and_the_others_are_left_alone() {
    let mut net = pair();
    net.add(3);
    net.trust(0, 2);
    net.run(SECOND);
    let (lame, sound) = (net.echo(0, 1, b"x", SECOND), net.echo(0, 2, b"x", SECOND));
    net.run(SECOND);
    assert!(!net.peer(0, 2).relay && !net.peer(0, 3).relay);
    net.nodes[0].events.clear();
    net.block(0, 1);
    for _ in 0..20 {
        net.echo_on(0, lame, b"by another way", 15 * SECOND);
        net.echo_on(0, sound, b"undisturbed", SECOND / 10);
        net.run_ms(500);
    }
    assert!(net.peer(0, 2).relay && !net.peer(0, 3).relay);
    let moved = |e: &&Event| matches!(e, Event::PathChanged { node: 3, .. });
    assert_eq!(net.nodes[0].events.iter().filter(moved).count(), 0, "the sound peer was moved");
}

#[test]
fn two_nodes_behind_stateful_firewalls_meet_directly_in_a_second_and_stay_so() {
    let mut net = pair();
    let mut opened = HashSet::new();
    let beacon = addr(BEACON);
    net.filter = Some(Box::new(move |from, to, _| {
        opened.insert((from, to));
        from == beacon || to == beacon || opened.contains(&(to, from))
    }));
    let conn = net.echo(0, 1, b"first word", SECOND);
    net.run(SECOND);
    for (n, other) in [(0, 2), (1, 1)] {
        assert!(!net.peer(n, other).relay, "node {} still relays", n + 1);
    }
    net.nodes[0].events.clear();
    net.echo_on(0, conn, &vec![7; 2_000_000], 30 * SECOND);
    let moved = |e: &&Event| matches!(e, Event::PathChanged { .. });
    assert_eq!(net.nodes[0].events.iter().filter(moved).count(), 0, "the way changed during a transfer");
}
