//! Direct, punched, relayed; what happens when a way dies, comes back, or moves.

use std::time::Duration;

use super::harness::{BEACON, Net, addr};
use crate::endpoint::*;

const SECOND: Duration = Duration::from_secs(1);

fn net() -> Net {
    let mut net = Net::with_beacon();
    net.add(1);
    net.add(2);
    net.trust(0, 1);
    net.run(SECOND);
    net
}

#[test]
fn the_beacon_tells_our_endpoint_once() {
    let mut net = net();
    net.run(60 * SECOND);
    let seen: Vec<_> =
        net.nodes[0].events.iter().filter(|e| matches!(e, Event::ObservedEndpoint(_))).cloned().collect();
    assert_eq!(seen.len(), 1);
    assert_eq!(net.info(0).observed, Some(addr("203.0.113.1:4000")));
    assert!(net.info(0).beacon_seen.unwrap() <= 30 * SECOND);
}

#[test]
fn with_a_dead_direct_way_the_relay_answers_within_about_a_second() {
    let mut net = net();
    net.block(0, 1);
    let conn = net.dial(0, 1, 7);
    let took = net.decide(0, conn, 5 * SECOND);
    assert!(net.connected(0, conn) && took <= Duration::from_millis(1_200), "{took:?}");
    let data: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
    net.echo_on(0, conn, &data, 30 * SECOND);
    let peer = net.peer(0, 2);
    assert!(peer.relay && peer.authenticated);
    assert_eq!(peer.datagram_limit, 1_373);
}

#[test]
fn relayed_frames_fit_the_path_too() {
    let mut net = net();
    net.block(0, 1);
    net.record = true;
    net.echo(0, 1, &vec![1; 100_000], 30 * SECOND);
    let longest = net.sent.iter().filter(|s| s.1 == addr(BEACON)).map(|s| s.2.len()).max().unwrap();
    assert!(longest <= 1_500 - 48, "{longest}");
}

#[test]
fn a_way_that_heals_is_taken_again_during_a_transfer() {
    let mut net = net();
    net.block(0, 1);
    let conn = net.echo(0, 1, b"x", 5 * SECOND);
    assert!(net.peer(0, 2).relay);
    net.unblock_all();
    net.echo_on(0, conn, &vec![5; 400_000], 30 * SECOND);
    net.run(20 * SECOND);
    assert!(!net.peer(0, 2).relay && !net.peer(1, 1).relay);
    net.echo_on(0, conn, &vec![6; 400_000], 30 * SECOND);
    assert!(!net.peer(0, 2).relay);
}

#[test]
fn a_direct_way_that_dies_in_mid_stream_is_left_for_the_relay() {
    let mut net = net();
    let conn = net.echo(0, 1, b"x", SECOND);
    assert!(!net.peer(0, 2).relay);
    net.block(0, 1);
    net.echo_on(0, conn, &vec![9; 50_000], 40 * SECOND);
    assert!(net.peer(0, 2).relay && net.peer(1, 1).relay);
}

#[test]
fn a_direct_way_dead_in_one_direction_is_left_for_the_relay() {
    let mut net = net();
    let conn = net.echo(0, 1, b"x", SECOND);
    let (a, b) = (net.nodes[0].addr, net.nodes[1].addr);
    net.blocked.insert((a, b));
    net.echo_on(0, conn, &vec![9; 50_000], 40 * SECOND);
    assert!(net.peer(0, 2).relay);
}

#[test]
fn a_flapping_way_is_not_followed_back_and_forth() {
    let mut net = net();
    let conn = net.echo(0, 1, b"x", SECOND);
    // Dead for 20 s, alive for 20 s, for ten minutes.
    for _ in 0..15 {
        net.block(0, 1);
        net.write(0, conn, b"1");
        net.run(20 * SECOND);
        net.unblock_all();
        net.write(0, conn, b"2");
        net.run(20 * SECOND);
    }
    let changes = net.nodes[0].events.iter().filter(|e| matches!(e, Event::PathChanged { .. })).count();
    assert!((2..=14).contains(&changes), "{changes} changes in ten minutes");
}

#[test]
fn the_endpoint_follows_frames_of_a_peer_that_moved() {
    let mut net = net();
    let conn = net.echo(0, 1, b"x", SECOND);
    let moved = addr("198.51.100.77:9999");
    net.nodes[0].addr = moved;
    net.echo_on(0, conn, b"from elsewhere", 10 * SECOND);
    assert_eq!(net.peer(1, 1).endpoint, Some(moved));
    assert!(!net.peer(1, 1).relay);
}

#[test]
fn a_stale_registry_endpoint_costs_no_time_when_the_punch_names_the_right_one() {
    let mut net = net();
    net.directory.get_mut(&2).unwrap().endpoint = Ok(vec![addr("192.0.2.9:1")]);
    net.echo(0, 1, b"x", 2 * SECOND);
    net.run(10 * SECOND);
    let peer = net.peer(0, 2);
    assert!(!peer.relay, "{peer:?}");
    assert_eq!(peer.endpoint, Some(net.nodes[1].addr));
}

#[test]
fn a_node_registered_with_the_beacons_address_is_reached_by_relay() {
    let mut net = net();
    net.directory.get_mut(&2).unwrap().endpoint = Ok(vec![addr(BEACON)]);
    net.block(0, 1);
    net.echo(0, 1, b"x", 2 * SECOND);
    assert!(net.peer(0, 2).relay);
}

#[test]
fn a_relayed_peer_costs_few_punches() {
    let mut net = net();
    net.block(0, 1);
    net.latency = Duration::from_millis(1);
    net.echo(0, 1, b"x", 5 * SECOND);
    net.record = true;
    net.run(60 * SECOND);
    let requests = net.sent.iter().filter(|s| s.1 == addr(BEACON) && s.2.first() == Some(&3)).count();
    assert!((2..=30).contains(&requests), "{requests} punch requests in a minute");
    assert!(net.sent.len() <= 500, "{} datagrams in a minute", net.sent.len());
}

#[test]
fn prefer_direct_leaves_the_relay_at_once() {
    let mut net = net();
    net.block(0, 1);
    net.echo(0, 1, b"x", 5 * SECOND);
    net.run(60 * SECOND);
    net.unblock_all();
    let now = net.now;
    net.nodes[0].ep.prefer_direct(now, 2);
    net.run(SECOND);
    assert!(!net.peer(0, 2).relay);
}

#[test]
fn an_idle_stream_keeps_its_path_alive_and_costs_little() {
    let mut net = net();
    let conn = net.echo(0, 1, b"x", SECOND);
    net.run(5 * SECOND);
    let before = net.datagrams;
    net.run(Duration::from_secs(600));
    let spent = net.datagrams - before;
    assert!(net.peer(0, 2).last_opened.unwrap() <= 30 * SECOND);
    assert!((40..=300).contains(&spent), "{spent} datagrams in ten idle minutes");
    net.echo_on(0, conn, b"still here", SECOND);
}

#[test]
fn either_side_may_restart_and_either_side_may_speak_first() {
    for (restarted, speaker) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let mut net = net();
        net.echo(0, 1, b"before", SECOND);
        net.echo(1, 0, b"before", SECOND);
        net.run(SECOND);
        net.restart(restarted, 100 + restarted as u8);
        net.trust(0, 1);
        net.echo(speaker, 1 - speaker, b"after", 10 * SECOND);
        net.run(SECOND);
        net.echo(1 - speaker, speaker, b"and back", 10 * SECOND);
    }
}

#[test]
fn both_sides_may_restart_at_once() {
    let mut net = net();
    net.echo(0, 1, b"before", SECOND);
    net.restart(0, 100);
    net.restart(1, 101);
    net.trust(0, 1);
    net.echo(0, 1, b"after", 10 * SECOND);
}

#[test]
fn every_single_lost_datagram_of_a_first_contact_is_survived() {
    for lost in 0..14 {
        for by_relay in [false, true] {
            let mut net = net();
            if by_relay {
                net.block(0, 1);
            }
            let mut seen = 0;
            net.filter = Some(Box::new(move |_, _, _| {
                seen += 1;
                seen != lost + 1
            }));
            net.echo(0, 1, b"hello", 8 * SECOND);
        }
    }
}

#[test]
fn both_sides_may_dial_at_once() {
    let mut net = net();
    let a = net.dial(0, 1, 7);
    let b = net.dial(1, 0, 7);
    net.decide(0, a, 2 * SECOND);
    net.decide(1, b, 2 * SECOND);
    assert!(net.connected(0, a) && net.connected(1, b));
    net.echo_on(0, a, b"a", SECOND);
    net.echo_on(1, b, b"b", SECOND);
}
