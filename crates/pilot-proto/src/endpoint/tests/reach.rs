//! Who reaches whom, and what a dial that does not get through says.

use std::time::Duration;

use pilot_wire::{Address, SocketAddress};

use super::harness::{Net, at, identity};
use crate::endpoint::*;
use crate::stream::{CloseReason, StreamEvent};

const SECOND: Duration = Duration::from_secs(1);

fn strangers() -> Net {
    let mut net = Net::new();
    net.add(1);
    net.add(2);
    net
}

fn refusals(net: &Net, n: usize) -> Vec<(u32, u16, RefusedReason)> {
    net.nodes[n]
        .events
        .iter()
        .filter_map(|e| match e {
            Event::Refused { node, port, reason, .. } => Some((*node, *port, *reason)),
            _ => None,
        })
        .collect()
}

#[test]
fn a_stranger_is_dropped_silently_and_learns_the_likely_cause_within_seconds() {
    let mut net = strangers();
    let conn = net.dial(0, 1, 7);
    let took = net.decide(0, conn, 10 * SECOND);
    let error = net.dial_error(0, conn).unwrap();
    assert_eq!(error.code(), "untrusted");
    assert!(took < 6 * SECOND, "{took:?}");
    assert!(error.hint().contains("pilotctl handshake 0:0000.0000.0002"));
    let text = error.to_string();
    assert!(
        text.starts_with("dial 0:0000.0000.0002:7: ") && text.contains("resolved; tried direct 203.0.113.2:4000"),
        "{text}"
    );
    assert_eq!(refusals(&net, 1), vec![(1, 7, RefusedReason::Untrusted)]);
    assert!(net.info(1).counters.refused >= 3);
    assert!(!net.nodes[1].events.iter().any(|e| matches!(e, Event::Accepted { .. })));
    assert!(net.info(1).conns.is_empty());
}

#[test]
fn one_sided_trust_opens_one_side_only() {
    let mut net = strangers();
    let now = net.now;
    net.nodes[1].ep.set_trusted(now, 1, Some(identity(1).public_key()));
    net.echo(0, 1, b"they trust us", SECOND);
    let back = net.dial(1, 0, 7);
    net.decide(1, back, 10 * SECOND);
    assert_eq!(net.dial_error(1, back).unwrap().code(), "untrusted");
}

#[test]
fn the_handshake_port_is_open_to_strangers() {
    let mut net = strangers();
    net.nodes[1].ep.bind(444).unwrap();
    let conn = net.dial(0, 1, 444);
    net.decide(0, conn, SECOND);
    net.run(SECOND);
    assert!(net.connected(0, conn));
    assert!(net.nodes[1].events.iter().any(|e| matches!(e, Event::Accepted { port: 444, .. })));
}

#[test]
fn a_public_port_is_open_and_its_neighbour_is_not() {
    let mut net = strangers();
    net.nodes[1].ep.set_public_port(7, true);
    net.nodes[1].ep.bind(8).unwrap();
    net.echo(0, 1, b"public", SECOND);
    let now = net.now;
    net.nodes[0].ep.send_datagram(now, 1, at(2, 8), b"x").unwrap();
    net.nodes[0].ep.send_datagram(now, 1, at(2, 7), b"y").unwrap();
    net.run(SECOND);
    assert_eq!(net.info(1).counters.datagrams_in, 1);
    assert_eq!(refusals(&net, 1), vec![(1, 8, RefusedReason::Untrusted)]);
}

fn shared(network: u16, node: u32, ports: &[u16]) -> Membership {
    let networks = vec![SharedNetwork { id: network, ports: ports.to_vec() }];
    Membership { key: identity(node).public_key(), networks }
}

/// Two nodes in network 9, of which only the second has heard of the first's membership when asked.
fn members() -> Net {
    let mut net = strangers();
    let now = net.now;
    for (n, id) in [(0, 1), (1, 2)] {
        net.nodes[n].ep.set_local_node(now, id, &[9]);
    }
    net.nodes[1].members.insert(1, shared(9, 1, &[]));
    net
}

fn was_reset(net: &Net, n: usize, conn: ConnId) -> bool {
    let reset = StreamEvent::Closed(CloseReason::Reset);
    net.nodes[n].events.iter().any(|e| matches!(e, Event::Stream { conn: c, event } if *c == conn && *event == reset))
}

#[test]
fn members_of_a_network_talk_without_trust_and_the_registry_is_asked_who_they_are() {
    let mut net = members();
    let started = net.now;
    // The packet that made us ask is not lost: no retransmission is needed.
    let conn = net.echo(0, 1, b"hello", SECOND);
    assert!(net.now - started < SECOND);
    assert_eq!(net.nodes[1].asked_members, [1]);
    assert!(refusals(&net, 1).is_empty());
    // A datagram to the address in the network arrives, too.
    net.nodes[1].ep.bind(80).unwrap();
    let (now, to) = (net.now, SocketAddress::new(Address { network: 9, node: 2 }, 80));
    net.nodes[0].ep.send_datagram(now, 1, to, b"x").unwrap();
    net.run(SECOND);
    assert_eq!(net.info(1).counters.datagrams_in, 1);
    assert!(!was_reset(&net, 0, conn));
}

#[test]
fn a_stranger_to_our_networks_is_refused_and_not_asked_about_for_every_packet() {
    let mut net = members();
    net.nodes[1].members.clear();
    let conn = net.dial(0, 1, 7);
    net.decide(0, conn, 10 * SECOND);
    assert_eq!(net.dial_error(0, conn).unwrap().code(), "untrusted");
    assert_eq!(refusals(&net, 1), vec![(1, 7, RefusedReason::Untrusted)]);
    assert!(net.nodes[1].asked_members.len() <= 2, "{:?}", net.nodes[1].asked_members);
    // Who is in no network asks about nobody.
    let mut net = strangers();
    let conn = net.dial(0, 1, 7);
    net.decide(0, conn, 10 * SECOND);
    assert!(net.nodes[1].asked_members.is_empty());
}

#[test]
fn a_membership_that_ends_ends_its_streams() {
    let mut net = members();
    let conn = net.echo(0, 1, b"x", SECOND);
    // Asked again once the word is old enough, and only then.
    let now = net.now;
    assert!(net.nodes[1].ep.review_memberships(now).is_empty());
    net.run(ASK_AFTER);
    let now = net.now;
    assert_eq!(net.nodes[1].ep.review_memberships(now), [1]);
    net.nodes[1].ep.handle_membership(now, 1, Some(shared(9, 1, &[])));
    net.run(SECOND);
    assert!(!was_reset(&net, 0, conn));
    let now = net.now;
    net.nodes[1].members.clear();
    net.nodes[1].ep.handle_membership(now, 1, None);
    net.run(SECOND);
    assert!(was_reset(&net, 0, conn));
    // A peer that answered a dial within the last minute is given longer.
    net.run(60 * SECOND);
    let again = net.dial(0, 1, 7);
    net.decide(0, again, 10 * SECOND);
    assert_eq!(net.dial_error(0, again).unwrap().code(), "untrusted");
}

#[test]
fn a_network_that_we_leave_is_shared_no_longer_at_once() {
    let mut net = members();
    let conn = net.echo(0, 1, b"x", SECOND);
    let now = net.now;
    net.nodes[1].ep.set_local_node(now, 2, &[9, 10]);
    net.run(SECOND);
    assert!(!was_reset(&net, 0, conn), "joining another changes nothing");
    let now = net.now;
    net.nodes[1].ep.set_local_node(now, 2, &[10]);
    net.run(SECOND);
    assert!(was_reset(&net, 0, conn));
}

#[test]
fn an_answer_that_is_older_than_our_leaving_opens_nothing() {
    let mut net = members();
    net.nodes[1].members_later = true;
    let conn = net.dial(0, 1, 7);
    net.run(SECOND);
    assert_eq!(net.nodes[1].asked_members, [1]);
    let now = net.now;
    net.nodes[1].ep.set_local_node(now, 2, &[10]);
    net.nodes[1].ep.handle_membership(now, 1, Some(shared(9, 1, &[])));
    net.decide(0, conn, 10 * SECOND);
    assert_eq!(net.dial_error(0, conn).unwrap().code(), "untrusted");
    assert!(!net.nodes[1].events.iter().any(|e| matches!(e, Event::Accepted { .. })));
}

#[test]
fn what_waited_for_the_registrys_word_counts_only_under_the_key_it_came_with() {
    for is_same in [true, false] {
        let mut net = members();
        net.nodes[1].members_later = true;
        net.dial(0, 1, 7);
        net.run_ms(200);
        if !is_same {
            // The dialler hears nothing, so what is accepted can only be what has waited.
            assert!(net.nodes[1].ep.set_waiting_key([9; 32]) > 0);
        }
        net.block(0, 1);
        let (now, refused) = (net.now, net.info(1).counters.refused);
        net.nodes[1].ep.handle_membership(now, 1, Some(shared(9, 1, &[])));
        net.settle();
        let conns = net.info(1).conns.len();
        assert_eq!(conns, usize::from(is_same), "{is_same}");
        assert_eq!(net.info(1).counters.refused > refused, !is_same);
    }
}

#[test]
fn a_registry_that_does_not_answer_is_not_asked_for_every_packet_and_what_waits_is_judged() {
    let mut net = members();
    net.nodes[1].members.insert(1, shared(9, 1, &[80]));
    let conn = net.dial(0, 1, 7);
    net.decide(0, conn, 10 * SECOND);
    assert_eq!(refusals(&net, 1), vec![(1, 7, RefusedReason::NetworkPolicy)]);
    // A member, but the port is closed, and now the registry is gone.
    net.nodes[1].members_unanswered = true;
    net.run(10 * SECOND);
    let (asked, refused) = (net.nodes[1].asked_members.len(), net.info(1).counters.refused);
    for _ in 0..20 {
        net.dial(0, 1, 7);
        net.run_ms(100);
    }
    let questions = net.nodes[1].asked_members.len() - asked;
    assert!(questions <= 1, "{questions} questions in two seconds");
    assert!(net.info(1).counters.refused >= refused + 20, "{}", net.info(1).counters.refused - refused);
    // It is asked again after a while.
    net.nodes[1].members_unanswered = false;
    net.nodes[1].members.insert(1, shared(9, 1, &[7]));
    net.run(10 * SECOND);
    net.echo(0, 1, b"x", 5 * SECOND);
}

#[test]
fn without_a_registry_nobody_stays_a_member_for_ever() {
    let mut net = members();
    let conn = net.echo(0, 1, b"x", SECOND);
    net.nodes[1].members_unanswered = true;
    for _ in 0..=VALID.as_secs() / 10 {
        net.run(10 * SECOND);
        let now = net.now;
        for node in net.nodes[1].ep.review_memberships(now) {
            net.nodes[1].ep.handle_membership_unknown(now, node);
        }
    }
    assert!(was_reset(&net, 0, conn));
    let again = net.dial(0, 1, 7);
    net.decide(0, again, 40 * SECOND);
    assert_eq!(net.dial_error(0, again).unwrap().code(), "untrusted");
}

#[test]
fn the_policy_of_a_network_says_which_ports_are_open() {
    let mut net = members();
    net.nodes[1].members.insert(1, shared(9, 1, &[80]));
    let conn = net.dial(0, 1, 7);
    net.decide(0, conn, 10 * SECOND);
    assert!(net.dial_error(0, conn).is_some());
    assert_eq!(refusals(&net, 1), vec![(1, 7, RefusedReason::NetworkPolicy)]);
    net.nodes[1].members.insert(1, shared(9, 1, &[80, 7]));
    net.run(6 * SECOND);
    net.echo(0, 1, b"x", 2 * SECOND);
}

#[test]
fn a_member_under_another_key_is_nobody() {
    let mut net = members();
    let other = Membership { key: [9; 32], ..shared(9, 1, &[]) };
    net.nodes[1].members.insert(1, other);
    let conn = net.dial(0, 1, 7);
    net.decide(0, conn, 10 * SECOND);
    assert!(net.dial_error(0, conn).is_some());
    assert_eq!(refusals(&net, 1), vec![(1, 7, RefusedReason::KeyMismatch)]);
}

#[test]
fn a_peer_we_dialled_may_reply_on_the_data_port() {
    let mut net = strangers();
    net.nodes[0].ep.bind(1001).unwrap();
    net.nodes[1].ep.bind(444).unwrap();
    let before = net.dial(1, 0, 1001);
    net.decide(1, before, 10 * SECOND);
    assert_eq!(net.dial_error(1, before).unwrap().code(), "untrusted");
    let ours = net.dial(0, 1, 444);
    net.decide(0, ours, SECOND);
    let reply = net.dial(1, 0, 1001);
    net.decide(1, reply, SECOND);
    assert!(net.connected(1, reply));
}

#[test]
fn revoked_trust_ends_streams_and_refuses_new_ones() {
    let mut net = strangers();
    net.trust(0, 1);
    let conn = net.echo(0, 1, b"x", SECOND);
    let now = net.now;
    net.nodes[1].ep.remove_trusted(now, 1);
    net.run(SECOND);
    let reset = |e: &Event| matches!(e, Event::Stream { conn: c, event: StreamEvent::Closed(CloseReason::Reset) } if *c == conn);
    assert!(net.nodes[0].events.iter().any(reset));
    let again = net.dial(0, 1, 7);
    net.decide(0, again, 40 * SECOND);
    assert!(net.dial_error(0, again).is_some());
}

#[test]
fn a_forgotten_peer_can_come_back() {
    let mut net = strangers();
    net.trust(0, 1);
    let conn = net.echo(0, 1, b"x", SECOND);
    let now = net.now;
    net.nodes[0].ep.forget_peer(now, 2);
    net.settle();
    assert!(net.info(0).peers.is_empty() && net.info(0).conns.is_empty());
    assert!(
        net.nodes[0]
            .events
            .iter()
            .any(|e| matches!(e, Event::Stream { conn: c, event: StreamEvent::Closed(_) } if *c == conn))
    );
    net.echo(0, 1, b"y", 10 * SECOND);
}

#[test]
fn the_key_of_a_trusted_node_is_pinned_when_it_first_proves_it() {
    let mut net = strangers();
    let now = net.now;
    net.nodes[1].ep.set_trusted(now, 1, None);
    net.echo(0, 1, b"x", 5 * SECOND);
    let pinned = net.nodes[1].events.iter().find_map(|e| match e {
        Event::Pinned { node, key } => Some((*node, *key)),
        _ => None,
    });
    assert_eq!(pinned, Some((1, identity(1).public_key())));
}

#[test]
fn a_registry_that_lies_about_a_trusted_peer_changes_nothing() {
    let mut net = strangers();
    net.trust(0, 1);
    for node in [1, 2] {
        net.directory.get_mut(&node).unwrap().key = Ok([9; 32]);
    }
    net.echo(0, 1, b"pinned keys win", SECOND);
}

#[test]
fn trusted_peers_are_reached_while_the_registry_is_down_if_an_address_is_known() {
    let mut net = Net::with_beacon();
    net.add(1);
    net.add(2);
    net.trust(0, 1);
    for node in [1, 2] {
        let entry = net.directory.get_mut(&node).unwrap();
        entry.key = Err(DirectoryCode::Unavailable);
        entry.endpoint = Err(DirectoryCode::Unavailable);
    }
    net.run(SECOND);
    net.echo(0, 1, b"by relay and punch", 5 * SECOND);
}

#[test]
fn an_unknown_node_fails_at_once() {
    let mut net = strangers();
    let now = net.now;
    let conn = net.nodes[0].ep.connect(now, at(77, 7)).unwrap();
    let took = net.decide(0, conn, SECOND);
    assert_eq!(net.dial_error(0, conn).unwrap().code(), "node_not_found");
    assert!(took <= Duration::from_millis(10));
    // The failure is remembered for 3 s: no second question.
    let asked = net.nodes[0].lookups;
    let now = net.now;
    let again = net.nodes[0].ep.connect(now, at(77, 7)).unwrap();
    net.run_ms(100);
    assert_eq!(net.nodes[0].lookups, asked);
    assert_eq!(net.dial_error(0, again).unwrap().code(), "node_not_found");
}

#[test]
fn a_private_node_that_the_registry_hides_fails_at_once_with_the_registrys_words() {
    let mut net = strangers();
    net.directory.get_mut(&2).unwrap().endpoint = Err(DirectoryCode::Denied);
    let conn = net.dial(0, 1, 7);
    net.decide(0, conn, SECOND);
    let error = net.dial_error(0, conn).unwrap();
    assert_eq!(error.code(), "resolve_denied");
    assert!(error.to_string().contains("registry: request failed"), "{error}");
}

#[test]
fn a_silent_host_is_reported_after_ten_seconds_with_everything_that_was_tried() {
    let mut net = Net::with_beacon();
    net.add(1);
    net.add(2);
    net.run(SECOND);
    net.block(0, 1);
    let two = net.nodes[1].addr;
    net.filter = Some(Box::new(move |from, _, _| from != two));
    let conn = net.dial(0, 1, 7);
    let took = net.decide(0, conn, 15 * SECOND);
    let error = net.dial_error(0, conn).unwrap();
    assert_eq!(error.code(), "no_answer");
    assert!(took <= 12 * SECOND, "{took:?}");
    let text = error.to_string();
    for part in ["resolved", "direct 203.0.113.2:4000", "punched", "relay", "never seen"] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn a_peer_with_another_key_than_the_registry_says_is_named_as_such() {
    let mut net = strangers();
    net.directory.get_mut(&2).unwrap().key = Ok([9; 32]);
    let conn = net.dial(0, 1, 7);
    net.decide(0, conn, 15 * SECOND);
    assert_eq!(net.dial_error(0, conn).unwrap().code(), "key_mismatch");
}

#[test]
fn a_node_with_a_new_key_is_served_once_the_registry_knows_it() {
    let mut net = strangers();
    net.trust(0, 1);
    let now = net.now;
    net.nodes[0].ep.remove_trusted(now, 2);
    net.directory.get_mut(&2).unwrap().key = Ok([9; 32]);
    net.nodes[0].ep.handle_peer_key(now, 2, Ok(PeerRecord { ed25519: [9; 32], version_known: true }));
    let failed = net.dial(0, 1, 7);
    net.decide(0, failed, 15 * SECOND);
    assert!(net.dial_error(0, failed).is_some());
    net.directory.get_mut(&2).unwrap().key = Ok(identity(2).public_key());
    net.run(15 * SECOND);
    net.echo(0, 1, b"new key", 15 * SECOND);
}

#[test]
fn a_dial_under_way_when_trust_ends_is_told_so() {
    let mut net = strangers();
    net.trust(0, 1);
    let conn = net.dial(0, 1, 7);
    let now = net.now;
    net.nodes[0].ep.forget_peer(now, 2);
    net.settle();
    assert!(matches!(net.dial_error(0, conn), Some(e) if e.failure == DialFailure::UntrustedLikely));
}
