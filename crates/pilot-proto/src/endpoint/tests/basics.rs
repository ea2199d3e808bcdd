//! Two endpoints and a directory: dial, echo, close, datagrams, limits.

use std::time::Duration;

use super::harness::{Net, addr, at, identity};
use crate::crypto::Scheme;
use crate::endpoint::*;
use crate::stream::{CloseReason, StreamEvent};
use crate::tunnel::SchemeState;

const SECOND: Duration = Duration::from_secs(1);

fn pair() -> Net {
    let mut net = Net::new();
    net.add(1);
    net.add(2);
    net.trust(0, 1);
    net
}

#[test]
fn a_dial_takes_two_round_trips_and_echo_works() {
    let mut net = pair();
    let conn = net.dial(0, 1, 7);
    let took = net.decide(0, conn, SECOND);
    assert!(took <= Duration::from_millis(85), "{took:?}");
    net.echo_on(0, conn, b"hello", SECOND);
    let peer = net.peer(0, 2);
    assert!(peer.encrypted && peer.authenticated && peer.trusted && !peer.relay && peer.hello);
    assert_eq!(peer.scheme, SchemeState::Known(Scheme::B));
    assert_eq!(peer.key, Some(identity(2).public_key()));
}

#[test]
fn half_a_megabyte_comes_back_whole_and_both_ends_close_cleanly() {
    let mut net = pair();
    let data: Vec<u8> = (0..500_000u32).map(|i| (i * 31 % 251) as u8).collect();
    let conn = net.echo(0, 1, &data, 30 * SECOND);
    net.close(0, conn);
    net.run(SECOND);
    assert!(net.nodes[0].finished.contains(&conn));
    let now = net.now;
    net.nodes[0].ep.release(now, conn).unwrap();
    let served = net.info(1).conns[0].id;
    net.nodes[1].ep.release(now, served).unwrap();
    net.run(30 * SECOND);
    assert!(net.info(0).conns.is_empty() && net.info(1).conns.is_empty());
    let closed = |n: usize, c| {
        net.nodes[n]
            .events
            .iter()
            .any(|e| matches!(e, Event::Stream { conn, event: StreamEvent::Closed(CloseReason::Clean) } if *conn == c))
    };
    assert!(closed(0, conn) && closed(1, served));
}

#[test]
fn after_a_close_the_line_falls_silent() {
    let mut net = pair();
    let conn = net.echo(0, 1, b"x", SECOND);
    net.close(0, conn);
    net.run(2 * SECOND);
    let before = net.datagrams;
    net.run(10 * SECOND);
    assert!(net.datagrams - before <= 2, "{} datagrams after close", net.datagrams - before);
}

#[test]
fn frames_never_exceed_a_1500_byte_path() {
    let mut net = pair();
    net.record = true;
    net.echo(0, 1, &vec![7; 300_000], 30 * SECOND);
    let longest = net.sent.iter().map(|(_, _, b)| b.len()).max().unwrap();
    assert!(longest <= 1_500 - 28, "{longest}");
    assert!(longest > 1_300, "peers that said Hello fill the path: {longest}");
}

#[test]
fn datagrams_arrive_once_and_name_their_source() {
    let mut net = pair();
    let now = net.now;
    net.nodes[0].ep.send_datagram(now, 5000, at(2, 9), b"first contact").unwrap();
    net.run(SECOND);
    let got: Vec<_> = net.nodes[1]
        .events
        .iter()
        .filter_map(|e| match e {
            Event::Datagram { src, dst_port, data } => Some((*src, *dst_port, data.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(got, vec![(at(1, 5000), 9, b"first contact".to_vec())]);
}

#[test]
fn a_datagram_too_large_for_the_path_is_an_error_and_leaves_nothing() {
    let mut net = pair();
    net.echo(0, 1, b"x", SECOND);
    net.run(SECOND);
    let limit = net.peer(0, 2).datagram_limit;
    assert_eq!(limit, 1_402);
    net.record = true;
    let now = net.now;
    let error = net.nodes[0].ep.send_datagram(now, 1, at(2, 9), &vec![0; limit + 1]).unwrap_err();
    assert_eq!((error.code(), net.sent.len()), ("datagram_too_large", 0));
    assert!(error.to_string().contains("1403") && error.to_string().contains("1402"));
    net.nodes[0].ep.send_datagram(now, 1, at(2, 9), &vec![0; limit]).unwrap();
    net.settle();
    assert_eq!(net.sent.iter().map(|s| s.2.len()).max(), Some(1_500 - 28));
    net.run(SECOND);
    assert_eq!(net.info(1).counters.datagrams_in, 1);
}

#[test]
fn datagrams_say_what_is_wrong_with_them() {
    let mut net = pair();
    let now = net.now;
    let ep = &mut net.nodes[0].ep;
    let code = |r: Result<(), DatagramError>| r.unwrap_err().code();
    assert_eq!(code(ep.send_datagram(now, 1, at(0xFFFF_FFFF, 9), b"x")), "broadcast");
    assert_eq!(code(ep.send_datagram(now, 1, at(0, 9), b"x")), "invalid_address");
    assert_eq!(code(ep.send_datagram(now, 1, at(2, 9), b"")), "empty_datagram");
    for _ in 0..64 {
        ep.send_datagram(now, 1, at(9, 9), b"x").unwrap();
    }
    assert_eq!(code(ep.send_datagram(now, 1, at(9, 9), b"x")), "queue_full");
}

#[test]
fn a_node_talks_to_itself_without_a_datagram() {
    let mut net = Net::new();
    net.add(1);
    net.record = true;
    net.echo(0, 0, &vec![3; 200_000], SECOND);
    assert!(net.sent.is_empty());
}

#[test]
fn an_unbound_port_refuses_a_trusted_peer_at_once() {
    let mut net = pair();
    let conn = net.dial(0, 1, 99);
    let took = net.decide(0, conn, SECOND);
    let error = net.dial_error(0, conn).unwrap();
    assert_eq!(error.failure, DialFailure::Refused);
    assert!(took <= Duration::from_millis(100), "{took:?}");
    assert!(net.info(0).conns.is_empty());
}

#[test]
fn a_cancelled_dial_frees_its_port_and_is_told_once() {
    let mut net = pair();
    net.block(0, 1);
    let conn = net.dial(0, 1, 7);
    let now = net.now;
    net.nodes[0].ep.reset(now, conn).unwrap();
    net.settle();
    assert_eq!(net.dial_error(0, conn).unwrap().code(), "cancelled");
    assert!(net.info(0).conns.is_empty());
    assert!(net.nodes[0].ep.reset(now, conn).is_err());
}

#[test]
fn two_hundred_and_fifty_six_parallel_dials_all_succeed() {
    let mut net = pair();
    let conns: Vec<_> = (0..256).map(|_| net.dial(0, 1, 7)).collect();
    net.run(3 * SECOND);
    for conn in conns {
        assert!(net.connected(0, conn), "{:?}", net.dial_error(0, conn));
    }
}

#[test]
fn a_stream_is_accepted_only_after_the_third_packet() {
    let mut net = pair();
    net.echo(0, 1, b"x", SECOND);
    let (a, b) = (net.nodes[0].addr, net.nodes[1].addr);
    let accepted = |net: &Net| net.nodes[1].events.iter().filter(|e| matches!(e, Event::Accepted { .. })).count();
    assert_eq!(accepted(&net), 1);
    // Let the SYN through and nothing that follows it.
    let mut seen = 0;
    net.filter = Some(Box::new(move |from, to, _| {
        if (from, to) == (a, b) {
            seen += 1;
            return seen == 1;
        }
        true
    }));
    let conn = net.dial(0, 1, 7);
    net.run_ms(200);
    assert!(net.connected(0, conn));
    assert_eq!(accepted(&net), 1);
    net.filter = None;
    net.run(5 * SECOND);
    assert_eq!(accepted(&net), 2);
}

#[test]
fn nothing_is_left_of_a_peer_five_minutes_after_the_last_frame() {
    let mut net = pair();
    let conn = net.echo(0, 1, b"x", SECOND);
    net.close(0, conn);
    net.run(SECOND);
    let now = net.now;
    net.nodes[0].ep.release(now, conn).unwrap();
    let served = net.info(1).conns[0].id;
    net.nodes[1].ep.release(now, served).unwrap();
    net.run(Duration::from_secs(600));
    assert!(net.info(0).peers.is_empty() && net.info(1).peers.is_empty());
    let before = net.datagrams;
    net.run(Duration::from_secs(3_600));
    assert_eq!(net.datagrams, before, "former peers cost nothing");
    assert_eq!(net.nodes[0].ep.poll_timeout(), None);
    net.echo(0, 1, b"again", SECOND);
}

#[test]
fn a_datagram_that_never_finds_its_peer_is_forgotten_with_it() {
    let mut net = Net::new();
    net.add(1);
    net.add(2);
    net.block(0, 1);
    let now = net.now;
    net.nodes[0].ep.send_datagram(now, 1, at(2, 9), b"x").unwrap();
    net.run(Duration::from_secs(900));
    assert!(net.info(0).peers.is_empty());
    assert_eq!(net.nodes[0].ep.poll_timeout(), None);
    assert!(net.nodes[0].resolves <= 3, "{} questions for one datagram", net.nodes[0].resolves);
}

#[test]
fn ipv6_works_like_ipv4_with_its_own_limit() {
    let mut net = pair();
    for n in 0..2 {
        let address = addr(&format!("[2001:db8::{}]:4000", n + 1));
        net.nodes[n].addr = address;
        net.directory.get_mut(&(n as u32 + 1)).unwrap().endpoint = Ok(vec![address]);
    }
    net.record = true;
    net.echo(0, 1, &vec![4; 100_000], 5 * SECOND);
    assert_eq!(net.peer(0, 2).datagram_limit, 1_382);
    assert_eq!(net.peer(0, 2).endpoint, Some(net.nodes[1].addr));
    assert!(net.sent.iter().all(|s| s.2.len() <= 1_500 - 48));
}

#[test]
fn on_loopback_our_own_peers_get_large_segments_and_datagrams() {
    let mut net = pair();
    for n in 0..2 {
        let address = addr(&format!("127.0.0.1:400{n}"));
        net.nodes[n].addr = address;
        net.directory.get_mut(&(n as u32 + 1)).unwrap().endpoint = Ok(vec![address]);
    }
    let conn = net.echo(0, 1, b"x", SECOND);
    net.run(SECOND);
    net.record = true;
    net.echo_on(0, conn, &vec![4; 400_000], 5 * SECOND);
    let longest = net.sent.iter().map(|s| s.2.len()).max().unwrap();
    assert_eq!(longest, WIDE_SEGMENT + 70);
    let now = net.now;
    net.nodes[0].ep.send_datagram(now, 1, at(2, 9), &vec![1; 65_437]).unwrap();
    assert!(net.nodes[0].ep.send_datagram(now, 1, at(2, 9), &vec![1; 65_438]).is_err());
    net.run(SECOND);
    assert_eq!(net.info(1).counters.datagrams_in, 1);
}

#[test]
fn before_registration_nobody_is_served() {
    let mut net = Net::new();
    let mut config = net.config(1, 1);
    config.node = 0;
    net.add_with(1, config);
    net.add(2);
    let now = net.now;
    assert_eq!(net.nodes[0].ep.connect(now, at(2, 7)).unwrap_err().code(), "not_registered");
    net.nodes[0].ep.set_local_node(now, 1, &[]);
    net.trust(0, 1);
    net.echo(0, 1, b"x", SECOND);
}

#[test]
fn networks_other_than_0_are_answered_from_the_address_that_was_dialled() {
    let mut net = pair();
    let now = net.now;
    for node in &mut net.nodes {
        let id = node.id;
        node.ep.set_local_node(now, id, &[5]);
    }
    let to = pilot_wire::SocketAddress::new(pilot_wire::Address { network: 5, node: 2 }, 7);
    let conn = net.nodes[0].ep.connect(now, to).unwrap();
    net.decide(0, conn, SECOND);
    assert!(net.connected(0, conn));
    net.run(SECOND);
    let accepted = net.nodes[1].events.iter().find_map(|e| match e {
        Event::Accepted { local, remote, .. } => Some((local.addr.network, remote.addr.network)),
        _ => None,
    });
    assert_eq!(accepted, Some((5, 5)));
}
