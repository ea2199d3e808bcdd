//! What anybody on the network can do, and what a peer can do that he should not. One test per weakness of the reference
//! that concerns the tunnel (01 §25, 07 §18).

use std::sync::Arc;
use std::time::Duration;

use pilot_proto::crypto::Scheme;
use pilot_proto::identity::Identity;
use pilot_proto::tunnel::{
    ExchangeError, Failure, OpenError, SchemeState, SealError, Tunnel, TunnelConfig, TunnelEvent, limits,
};
use pilot_wire::packet::{Flags, Header, protocol};
use pilot_wire::tunnel::{AuthExchange, Datagram, Nonce, SECURE_HEADER_LEN};
use pilot_wire::{Address, SocketAddress};

use crate::net::{A, B, Net, Path, epoch, identity, node_id, packet, pong};
use crate::official::Version;
use crate::vectors::{Party, seal, sealed};

/// A genuine exchange of a node with any key, as an attacker may have recorded it long ago.
fn recorded_exchange(who: usize, key: u8) -> Vec<u8> {
    let mut out = Vec::new();
    Party { node: node_id(who), identity: identity(who), x25519: [key; 32] }.exchange().emit(&mut out);
    out
}

/// Sends numbers both ways every 100 ms; says how many of each were lost.
fn traffic(net: &mut Net, rounds: u32, mut each: impl FnMut(&mut Net)) -> (usize, usize) {
    let base = 1_000_000 + (net.log.len() as u32) * 1000;
    for i in 0..rounds {
        net.send(A, base + i);
        net.send(B, base + 500_000 + i);
        each(net);
        net.run_ms(100);
    }
    net.run_ms(500);
    let missing = |got: Vec<u32>, base: u32| (base..base + rounds).filter(|n| !got.contains(n)).count();
    (missing(net.delivered(B), base), missing(net.delivered(A), base + 500_000))
}

#[test]
fn a_replayed_exchange_of_a_replaced_key_is_refused() {
    // W3, D5.
    let mut net = Net::new(1);
    assert!(net.talks(500));
    let old = net.frames(B, b"PILA");
    net.restart(B);
    traffic(&mut net, 30, |_| {});
    assert!(net.talks(500));
    let generation = net.tunnel(A).status().generation;
    let refused = net.tunnel(A).status().stats.auth_refused;
    let since = net.now;
    for frame in &old {
        net.attack(A, Path::Direct, frame);
        net.attack(A, Path::Relay, frame);
    }
    assert_eq!(net.tunnel(A).status().stats.auth_refused - refused, 2 * old.len() as u64);
    assert_eq!(net.key_frames(A, since), 0);
    assert_eq!(traffic(&mut net, 20, |_| {}), (0, 0));
    assert_eq!(net.tunnel(A).status().generation, generation);
}

#[test]
fn a_replayed_exchange_that_was_never_seen_does_not_stop_a_working_session() {
    // W3, D5, rule 5.
    let mut net = Net::new(2);
    assert!(net.talks(500));
    let mut key = 100;
    let lost = traffic(&mut net, 100, |net| {
        key = if key == 250 { 100 } else { key + 1 };
        net.attack(A, Path::Direct, &recorded_exchange(B, key));
        net.attack(A, Path::Relay, &recorded_exchange(B, key));
    });
    assert_eq!(lost, (0, 0));
    assert_eq!(net.tunnel(A).status().generation, 1);
    let frames = net.key_frames(A, net.start);
    assert!(frames <= 22, "{frames} answers in 10 s over two paths");
}

#[test]
fn a_peer_restarts_amid_a_flood_of_replayed_exchanges() {
    let mut net = Net::new(3);
    assert!(net.talks(500));
    net.restart(B);
    let mut key = 100;
    let begin = net.now;
    let _ = traffic(&mut net, 60, |net| {
        key = if key == 250 { 100 } else { key + 1 };
        net.attack(A, Path::Direct, &recorded_exchange(B, key));
    });
    assert!(net.now.duration_since(begin) < Duration::from_secs(8));
    assert!(net.talks(500), "both read each other although the flood went on until now");
}

#[test]
fn an_exchange_signed_by_somebody_else_is_refused_after_any_history() {
    // W1, D4.
    let mut net = Net::new(4);
    assert!(net.talks(500));
    let mallory = Party { node: node_id(B), identity: Arc::new(Identity::from_seed([99; 32])), x25519: [9; 32] };
    let mut frame = mallory.exchange();
    let now = net.now;
    let expected = identity(B).public_key();
    for path in [Path::Direct, Path::Relay, Path::Direct] {
        let t = net.tunnel(A);
        assert_eq!(t.handle_auth(now, path.via(), &frame, &expected), Err(ExchangeError::ForeignKey));
        // With the right key in the frame the signature gives it away.
        let named = AuthExchange { ed25519: expected, ..frame };
        assert_eq!(t.handle_auth(now, path.via(), &named, &expected), Err(ExchangeError::Signature));
        frame.signature[5] ^= 1;
    }
    assert_eq!(traffic(&mut net, 10, |_| {}), (0, 0));
    assert_eq!(net.tunnel(A).peer_key(), Some(expected));
}

#[test]
fn a_rotated_identity_key_is_followed_once_the_registry_names_it() {
    // W22, rule 7.
    let now = epoch();
    let us = Party::new(1, 10);
    let old = Party::new(2, 20);
    let new = Party { identity: Arc::new(Identity::from_seed([77; 32])), ..Party::new(2, 21) };
    let mut t = us.paired(now, &old, [1; 4], 0);
    let nonce = |counter| Nonce { prefix: [8; 4], counter };
    let mut f = sealed(&old, &us, Scheme::B, nonce(1), &packet(2, 1, 1));
    t.open(now, Path::Direct.via(), &mut f).unwrap();
    assert_eq!(t.peer_key(), Some(old.identity.public_key()));
    let key = new.identity.public_key();
    assert_eq!(
        t.handle_auth(now, Path::Direct.via(), &new.exchange(), &old.identity.public_key()),
        Err(ExchangeError::ForeignKey)
    );
    t.handle_auth(now, Path::Direct.via(), &new.exchange(), &key).unwrap();
    assert_eq!(t.peer_key(), Some(old.identity.public_key()), "nothing has opened under the new one");
    let mut f = sealed(&new, &us, Scheme::B, nonce(2), &packet(2, 1, 2));
    t.open(now, Path::Direct.via(), &mut f).unwrap();
    assert_eq!(t.peer_key(), Some(key));
    let mut late = sealed(&old, &us, Scheme::B, nonce(3), &packet(2, 1, 3));
    assert_eq!(t.open(now, Path::Direct.via(), &mut late), Err(OpenError::Unreadable), "the old identity is gone");
}

#[test]
fn nothing_leaves_in_clear_before_there_is_a_session() {
    // W2, W12, W26.
    let mut net = Net::new(5);
    net.faults.loss = 1.0;
    for i in 0..40 {
        net.send(A, i);
        net.run_ms(250);
    }
    assert!(net.log.iter().all(|s| s.frame.starts_with(b"PILA")));
    let mut buf = vec![0; SECURE_HEADER_LEN];
    buf.extend_from_slice(&packet(1, 2, 3));
    let before = buf.clone();
    let now = net.now;
    assert_eq!(net.tunnel(A).seal(now, &mut buf, 0), Err(SealError::NoSession));
    assert_eq!(buf, before);
}

#[test]
fn forged_frames_move_no_window() {
    // W4, rule 11.
    let mut net = Net::new(6);
    assert!(net.talks(500));
    let genuine = net.frames(B, b"PILS").pop().unwrap();
    let lost = traffic(&mut net, 20, |net| {
        for (at, value) in [(12, 0xFF), (19, 0xFF), (30, 1), (8, 0x55)] {
            let mut forged = genuine.clone();
            forged[at] ^= value;
            net.attack(A, Path::Direct, &forged);
        }
    });
    assert_eq!(lost, (0, 0));
    assert_eq!(net.tunnel(A).status().generation, 1);
}

#[test]
fn garbage_that_names_a_quiet_peer_buys_few_probes_and_no_exchange() {
    // 07 §16 item 7.
    let mut net = Net::new(7);
    assert!(net.talks(500));
    net.run_ms(60_000);
    let mut garbage = net.frames(B, b"PILS").pop().unwrap();
    let (since, before) = (net.now, net.log.len());
    for i in 0..6000u32 {
        garbage[12..16].copy_from_slice(&(i + 1).to_be_bytes());
        net.attack(A, Path::Direct, &garbage);
        net.run_ms(10);
    }
    assert_eq!(net.key_frames(A, since) + net.key_frames(B, since), 0);
    let sent = net.log[before..].len();
    assert!(sent <= 60, "{sent} frames in a minute of garbage");
    assert_eq!(net.tunnel(A).status().generation, 1);
    assert!(net.talks(500));
}

#[test]
fn an_answer_to_a_frame_without_a_session_is_never_larger_than_what_provoked_it() {
    // W16, D20.
    let mut net = Net::new(8);
    assert!(net.talks(500));
    net.restart(A);
    let mut frame = net.frames(B, b"PILS").pop().unwrap();
    frame.truncate(70);
    let (since, mut received) = (net.log.len(), 0);
    for i in 0..3000u32 {
        frame[12..16].copy_from_slice(&(i + 1).to_be_bytes());
        net.attack(A, Path::Direct, &frame);
        received += frame.len();
        let sent: usize = net.log[since..].iter().filter(|s| s.from == A).map(|s| s.frame.len()).sum();
        assert!(sent <= received, "{sent} bytes out for {received} in");
        net.nodes[B] = Box::new(crate::official::Official::new(B, Version::Feb, 7));
        net.run_ms(20);
    }
    let keys = net.log[since..].iter().filter(|s| s.from == A && s.frame.starts_with(b"PILA")).count();
    assert!((2..=10).contains(&keys), "{keys} exchanges in a minute");
}

#[test]
fn a_flood_of_key_requests_gets_one_answer_a_second_and_installs_nothing() {
    // W11, 07 rule 9.
    let mut net = Net::new(9);
    net.faults.loss = 1.0;
    let mut pilk = Vec::new();
    pilot_wire::tunnel::KeyExchange { node: node_id(B), x25519: [3; 32] }.emit(&mut pilk);
    for _ in 0..1000 {
        net.attack(A, Path::Direct, &pilk);
        net.run_ms(10);
    }
    assert!(!net.tunnel(A).can_seal());
    let frames = net.key_frames(A, net.start);
    assert!((2..=11).contains(&frames), "{frames} answers in 10 s");
}

#[test]
fn a_flood_of_bad_signatures_costs_a_bounded_number_of_checks() {
    // W16, 07 §16 item 11.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    let mut t = us.tunnel(now, 2, &Arc::default(), [0; 4], 0);
    let mut frame = peer.exchange();
    frame.signature[0] ^= 1;
    let key = peer.identity.public_key();
    let mut checked = 0;
    for i in 0..500u16 {
        frame.x25519[..2].copy_from_slice(&i.to_be_bytes());
        let got = t.handle_auth(now, Path::Direct.via(), &frame, &key);
        checked += u32::from(got == Err(ExchangeError::Signature));
        assert!(matches!(got, Err(ExchangeError::Signature | ExchangeError::RateLimited)));
    }
    assert_eq!(checked, limits::VERIFY_BURST);
    let later = now + Duration::from_secs(1);
    assert_eq!(t.handle_auth(later, Path::Direct.via(), &peer.exchange(), &key), Ok(()));
    let mut out = Vec::new();
    assert!(t.poll_transmit(later, &mut out).is_some());
    assert!(t.poll_transmit(later, &mut out).is_none(), "refused exchanges are not answered");
}

#[test]
fn frames_of_our_own_that_come_back_are_not_the_peer() {
    // W13, rule 12: one key for both directions; under scheme A the node id is not bound.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    for scheme in [Scheme::A, Scheme::B] {
        let mut t = us.paired(now, &peer, [4; 4], 0);
        t.set_hint(scheme);
        let mut back = seal(&mut t, now, &packet(1, 2, 5));
        back[4..8].copy_from_slice(&2u32.to_be_bytes());
        let want = if scheme == Scheme::A { OpenError::Source } else { OpenError::Unreadable };
        assert_eq!(t.open(now, Path::Direct.via(), &mut back), Err(want));
        assert!(!t.status().authenticated);
        assert_eq!(t.status().last_opened, None);
        assert_eq!(t.scheme(), SchemeState::Hinted(scheme));
    }
}

#[test]
fn a_peer_that_uses_our_prefix_makes_us_draw_another() {
    // W13, rule 13.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    let mut t = us.paired(now, &peer, [4; 4], 0);
    t.set_hint(Scheme::B);
    assert_eq!(seal(&mut t, now, &packet(1, 2, 5))[8..12], [4; 4]);
    let nonce = Nonce { prefix: [4; 4], counter: 1000 };
    let mut frame = sealed(&peer, &us, Scheme::B, nonce, &packet(2, 1, 6));
    assert!(t.open(now, Path::Direct.via(), &mut frame).is_ok());
    let next = seal(&mut t, now, &packet(1, 2, 7));
    assert_ne!(next[8..12], [4; 4]);
    assert_eq!(u64::from_be_bytes(next[12..20].try_into().unwrap()), 2, "the counter goes on");
}

#[test]
fn packets_from_or_for_other_nodes_and_of_other_versions_are_dropped_without_a_trace() {
    // W7, D8, W37; 07 rules 17 to 19.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    let mut t = us.paired(now, &peer, [4; 4], 0);
    let mut counter = 0;
    let mut open = |t: &mut Tunnel, plain: &[u8]| {
        counter += 1;
        let nonce = Nonce { prefix: [8; 4], counter };
        t.open(now, Path::Direct.via(), &mut sealed(&peer, &us, Scheme::B, nonce, plain)).map(|o| o.packet.to_vec())
    };
    assert_eq!(open(&mut t, &packet(3, 1, 1)), Err(OpenError::Source));
    assert_eq!(open(&mut t, &packet(2, 9, 1)), Err(OpenError::Destination));
    let mut other = packet(2, 1, 1);
    other[0] = 0x20;
    assert_eq!(open(&mut t, &other), Err(OpenError::Version));
    assert!(!t.status().authenticated && t.status().last_opened.is_none());
    assert_eq!(t.status().stats.misaddressed, 3);
    // The empty keepalive of 1.9 to 1.12.0 comes from node 0 (07 rule 18); nothing else may.
    let zero = SocketAddress::new(Address::backbone(0), 0);
    let to = SocketAddress::new(Address::backbone(1), 0);
    let mut keepalive = Vec::new();
    Header::new(protocol::CONTROL, Flags::NONE, zero, to).emit(&[], &mut keepalive).unwrap();
    assert_eq!(open(&mut t, &keepalive), Ok(keepalive.clone()));
    let mut loud = Vec::new();
    Header::new(protocol::CONTROL, Flags::NONE, zero, to).emit(b"x", &mut loud).unwrap();
    assert_eq!(open(&mut t, &loud), Err(OpenError::Source));
    assert!(t.status().authenticated);
}

#[test]
fn answers_to_our_probes_and_hellos_are_never_answered() {
    // W5.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    let mut t = us.paired(now, &peer, [4; 4], 0);
    let mut out = Vec::new();
    while t.poll_transmit(now, &mut out).is_some() {}
    let own = SocketAddress::new(Address::backbone(1), pilot_proto::tunnel::CONTROL_PORT);
    let them = SocketAddress::new(Address::backbone(2), 0);
    let probe = Header::new(protocol::CONTROL, Flags::NONE, own, them);
    for counter in 1..=50 {
        let echo = pong(&probe, b"pathprobe.v1");
        let nonce = Nonce { prefix: [8; 4], counter };
        let mut frame = sealed(&peer, &us, Scheme::A, nonce, &echo);
        t.open(now, Path::Direct.via(), &mut frame).unwrap();
        let h = Header::peek(&echo).unwrap();
        assert!(t.handle_control(now, &h, b"pathprobe.v1"));
    }
    let mut sent = 0;
    while t.poll_transmit(now, &mut out).is_some() {
        sent += 1;
    }
    assert_eq!(sent, 1, "one Hello for the first frame, and nothing for the echoes");
}

#[test]
fn every_peer_sees_another_key_and_no_key_is_sent_twice_in_a_row() {
    // W14.
    let mut net = Net::new(10);
    net.faults.loss = 1.0;
    net.send(A, 1);
    net.run_ms(20_000);
    let mut keys: Vec<Vec<u8>> = net.frames(A, b"PILA").iter().map(|f| f[8..40].to_vec()).collect();
    let sent = keys.len();
    keys.sort();
    keys.dedup();
    assert!(keys.len() >= 5 && sent <= 2 * keys.len(), "{} keys in {sent} frames", keys.len());
    let mut other = Party::new(1, 0).tunnel(net.now, 9, &Arc::default(), [0; 4], 0);
    other.start(net.now);
    let mut out = Vec::new();
    other.poll_transmit(net.now, &mut out);
    assert!(!keys.contains(&out[8..40].to_vec()));
}

#[test]
fn nothing_is_called_authenticated_before_a_frame_has_opened() {
    // D2.
    let mut net = Net::with_official(11, Version::Future);
    net.send(A, 1);
    for i in 0..12 {
        net.run_ms(250);
        net.send(B, i);
    }
    let status = net.tunnel(A).status();
    assert!(status.encrypted && !status.authenticated, "{status:?}");
    assert_eq!((status.peer_key, status.established, status.generation), (None, None, 0));
}

#[test]
fn a_peer_with_an_unknown_scheme_is_reported_within_seconds() {
    // D1, D3.
    let mut net = Net::with_official(12, Version::Future);
    net.send(A, 1);
    for i in 0..16 {
        net.run_ms(250);
        net.send(B, i);
    }
    let failing = |e: &TunnelEvent| matches!(e, TunnelEvent::Failing(Failure::Unreadable { frames }) if *frames >= 5);
    assert_eq!(net.ours(A).events.iter().filter(|e| failing(e)).count(), 1);
}

#[test]
fn old_frames_stay_refused_after_the_peer_repeated_its_exchange() {
    // D6, W3: every frame ever recorded is replayed after each exchange; each number arrives once.
    for version in [Version::Feb, Version::V172, Version::V118] {
        let mut net = Net::with_official(13, version);
        assert!(net.talks(3000));
        let exchange = net.official().exchange();
        for round in 0..6 {
            net.attack(A, Path::Direct, &exchange);
            let ours = net.frames(A, b"PILA").pop().unwrap();
            net.attack(B, Path::Direct, &ours);
            net.run_ms(50);
            net.send(B, 500 + round);
            net.run_ms(50);
            for frame in net.frames(B, b"PILS") {
                net.attack(A, Path::Direct, &frame);
                net.attack(A, Path::Relay, &frame);
            }
        }
        net.run_ms(3000);
        let mut got = net.delivered(A);
        for round in 0..6 {
            assert!(got.contains(&(500 + round)), "{version:?} round {round}");
        }
        let all = got.len();
        got.sort_unstable();
        got.dedup();
        assert_eq!(got.len(), all, "{version:?}: a frame was delivered twice");
    }
}

#[test]
fn a_peer_that_starts_again_at_one_under_the_same_key_is_read_at_once() {
    // W19, D7; 07 rule 10.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    let mut t = us.paired(now, &peer, [4; 4], 0);
    for life in 0..6u8 {
        for counter in [1, 2, 3, 900] {
            let nonce = Nonce { prefix: [8, 8, 8, life], counter };
            let mut frame = sealed(&peer, &us, Scheme::A, nonce, &packet(2, 1, 1));
            assert!(t.open(now, Path::Direct.via(), &mut frame.clone()).is_ok(), "life {life} counter {counter}");
            assert_eq!(t.open(now, Path::Direct.via(), &mut frame), Err(OpenError::Replayed));
        }
    }
}

#[test]
fn prefixes_are_given_up_for_good_and_too_many_of_them_bring_a_fresh_key() {
    // 07 rule 10.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    let mut t = us.paired(now, &peer, [4; 4], 0);
    let frame =
        |n: u8, counter| sealed(&peer, &us, Scheme::A, Nonce { prefix: [8, 8, 8, n], counter }, &packet(2, 1, 1));
    let mut out = Vec::new();
    while t.poll_transmit(now, &mut out).is_some() {}
    let mut refused = 0;
    for n in 0..80u8 {
        refused += u32::from(t.open(now, Path::Direct.via(), &mut frame(n, 5)).is_err());
    }
    assert_eq!(refused, 16, "64 prefixes fit");
    for n in 0..80u8 {
        assert!(t.open(now, Path::Direct.via(), &mut frame(n, 5)).is_err(), "prefix {n} was replayed");
    }
    out.clear();
    let mut exchanges = 0;
    while t.poll_transmit(now, &mut out).is_some() {
        exchanges += usize::from(out.starts_with(b"PILA"));
        out.clear();
    }
    assert_eq!(exchanges, 1, "a fresh key was asked for");
}

#[test]
fn counters_never_go_back_and_no_nonce_is_used_twice_under_a_key() {
    // Rule 9, 07 rule 11.
    let mut net = Net::with(14, TunnelConfig { rekey_after: Duration::from_secs(5), ..TunnelConfig::default() });
    net.faults.jitter = Duration::from_millis(30);
    traffic(&mut net, 300, |_| {});
    assert!(net.tunnel(A).status().generation >= 4);
    let mut last = 0;
    let mut twins = 0;
    for frame in net.frames(A, b"PILS") {
        let Some(Datagram::Secure(h)) = Datagram::parse(&frame) else { panic!("not a frame") };
        assert!(h.nonce.counter >= last, "{} after {last}", h.nonce.counter);
        twins += u32::from(h.nonce.counter == last);
        last = h.nonce.counter;
    }
    assert!(last >> 32 == 1_750_000_000, "starts at the wall clock");
    assert!(twins <= 40, "{twins} doubled frames");
}

#[test]
fn a_used_up_key_is_replaced_and_never_overrun() {
    // 01 rule 9, W14.
    let cfg = TunnelConfig { soft_frames: 200, hard_frames: 400, ..TunnelConfig::default() };
    let mut net = Net::with(15, cfg.clone());
    assert_eq!(traffic(&mut net, 300, |_| {}), (0, 0));
    assert!(net.tunnel(A).status().generation >= 3);
    // Where no exchange gets through, sealing stops.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    let mut t = us.tunnel(now, 2, &Arc::new(cfg), [4; 4], 0);
    t.handle_auth(now, Path::Direct.via(), &peer.exchange(), &peer.identity.public_key()).unwrap();
    t.set_hint(Scheme::B);
    let mut sealed_frames = 0;
    loop {
        let mut buf = vec![0; SECURE_HEADER_LEN];
        buf.extend_from_slice(&packet(1, 2, 1));
        match t.seal(now, &mut buf, 0) {
            Ok(_) => sealed_frames += 1,
            Err(e) => break assert_eq!(e, SealError::Exhausted),
        }
        assert!(sealed_frames <= 400);
    }
    assert_eq!(sealed_frames, 400);
}

#[test]
fn a_release_silenced_by_a_forged_counter_is_noticed_although_it_goes_on_talking() {
    // W4 at the other end: the peer records counters before it opens frames.
    for version in [Version::Feb, Version::V172] {
        let mut net = Net::with_official(16, version);
        assert!(net.talks(3000));
        let mut forged = net.frames(A, b"PILS").pop().unwrap();
        forged[12..20].copy_from_slice(&u64::MAX.to_be_bytes());
        net.attack(B, Path::Direct, &forged);
        let begin = net.delivered(B).len();
        let mut waited = 0;
        while net.delivered(B).len() == begin {
            net.send(A, 700_000 + waited);
            net.send(B, 800_000 + waited);
            net.run_ms(100);
            waited += 1;
            assert!(waited < 250, "{version:?} stays deaf");
        }
        assert!(net.talks(500));
    }
}

#[test]
fn an_official_peer_whose_key_a_replayed_exchange_of_ours_put_back_is_won_back() {
    // D5 at the other end.
    for version in [Version::Feb, Version::V172, Version::V118] {
        let mut net = Net::with_official(17, version);
        assert!(net.talks(3000));
        let old = net.frames(A, b"PILA")[0].clone();
        net.restart(A);
        traffic(&mut net, 60, |_| {});
        assert!(net.talks(500), "{version:?}");
        net.attack(B, Path::Direct, &old);
        traffic(&mut net, 250, |_| {});
        assert!(net.talks(500), "{version:?}");
    }
}

#[test]
fn replays_are_reported_once_a_second_and_ordinary_first_contacts_never() {
    // 01 §13.4, `security.nonce_replay`.
    for seed in 0..40 {
        let mut net = Net::new(seed);
        net.faults.jitter = Duration::from_millis(60);
        traffic(&mut net, 30, |_| {});
        for who in [A, B] {
            let alarms = net.ours(who).events.iter().filter(|e| matches!(e, TunnelEvent::NonceReplay { .. })).count();
            assert_eq!(alarms, 0, "seed {seed}: a doubled packet raised an alarm");
        }
        if seed == 0 {
            net.run_ms(15_000);
            let old = net.frames(B, b"PILS")[20].clone();
            for _ in 0..45 {
                net.attack(A, Path::Direct, &old);
                net.run_ms(100);
            }
            let alarms = net.ours(A).events.iter().filter(|e| matches!(e, TunnelEvent::NonceReplay { .. })).count();
            assert_eq!(alarms, 5);
        }
    }
}
