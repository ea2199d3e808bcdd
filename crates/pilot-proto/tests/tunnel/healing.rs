//! Whatever is lost and whoever starts again: the tunnel heals within seconds and without a storm of key exchanges
//! (07 §16 items 1 to 6, 10; 01 W17 to W19).

use std::time::Duration;

use pilot_proto::crypto::Scheme;
use pilot_proto::tunnel::{Failure, SchemeState, TunnelEvent};

use crate::net::{A, B, Net, Path};
use crate::official::Version;

const VERSIONS: [Version; 3] = [Version::Feb, Version::V172, Version::V118];

/// Sends from one side every 250 ms until something arrives at the other; says after how many milliseconds.
fn until_delivered(net: &mut Net, from: usize, limit_ms: u64) -> Option<u64> {
    let begin = net.now;
    let before = net.delivered(1 - from).len();
    let mut number = 10_000 * (before as u32 + 1);
    while net.now.duration_since(begin) < Duration::from_millis(limit_ms) {
        net.send(from, number);
        number += 1;
        net.run_ms(250);
        if net.delivered(1 - from).len() > before {
            return Some(net.now.duration_since(begin).as_millis() as u64);
        }
    }
    None
}

#[test]
fn a_lost_first_exchange_is_repeated_without_another_packet() {
    let mut net = Net::new(2);
    net.faults.loss = 1.0;
    net.send(A, 1);
    net.run_ms(900);
    net.faults.loss = 0.0;
    net.run_ms(300);
    assert_eq!(net.delivered(B), [1]);
}

#[test]
fn a_lost_answer_heals_with_every_release() {
    for version in VERSIONS {
        let mut lost = Net::with_official(3, version);
        lost.send(A, 1);
        lost.run_ms(9);
        lost.faults.loss = 1.0;
        lost.run_ms(500);
        // The peer has our key and thinks that all is well.
        assert!(lost.key_frames(B, lost.start) > 0);
        lost.faults.loss = 0.0;
        lost.run_ms(2000);
        assert_eq!(lost.delivered(B).first(), Some(&1), "{version:?}");
    }
}

#[test]
fn either_side_of_two_restarts_and_either_speaks_first() {
    for (restarted, first) in [(A, A), (A, B), (B, A), (B, B)] {
        let mut net = Net::new(4);
        assert!(net.talks(500));
        net.run_ms(60_000);
        net.restart(restarted);
        let since = net.now;
        let ms = until_delivered(&mut net, first, 8000).expect("heals");
        assert!(ms <= 3000, "restarted {restarted} first {first}: {ms} ms");
        assert!(net.talks(1500));
        net.run_ms(60_000);
        let frames = net.key_frames(A, since) + net.key_frames(B, since);
        assert!(frames <= 12, "{frames} key exchanges for one restart");
    }
}

#[test]
fn both_sides_restart() {
    let mut net = Net::new(5);
    assert!(net.talks(500));
    net.restart(A);
    net.restart(B);
    assert!(net.talks(1500));
}

#[test]
fn an_official_peer_restarts_and_either_speaks_first() {
    for version in VERSIONS {
        for first in [A, B] {
            let mut net = Net::with_official(6, version);
            assert!(net.talks(3000), "{version:?}");
            net.run_ms(30_000);
            net.restart_official(version);
            let since = net.now;
            let ms = until_delivered(&mut net, first, 10_000);
            assert!(ms.is_some_and(|ms| ms <= 6000), "{version:?} first {first}: {ms:?}");
            assert!(net.talks(6000));
            net.run_ms(60_000);
            let frames = net.key_frames(A, since);
            assert!(frames <= 12, "{version:?} first {first}: {frames} key exchanges of ours");
        }
    }
}

#[test]
fn we_restart_and_an_official_peer_goes_on_with_its_old_key() {
    for version in VERSIONS {
        for first in [A, B] {
            let mut net = Net::with_official(7, version);
            assert!(net.talks(3000));
            net.run_ms(30_000);
            net.restart(A);
            let ms = until_delivered(&mut net, first, 10_000);
            assert!(ms.is_some_and(|ms| ms <= 6000), "{version:?} first {first}: {ms:?}");
            assert!(net.talks(6000), "{version:?} first {first}");
        }
    }
}

#[test]
fn a_peer_that_forgot_the_session_but_not_its_key_is_answered() {
    for version in VERSIONS {
        let mut net = Net::with_official(8, version);
        assert!(net.talks(3000));
        net.run_ms(10_000);
        net.official().forget();
        assert!(until_delivered(&mut net, B, 5000).is_some(), "{version:?}");
    }
}

#[test]
fn a_peer_that_comes_back_as_another_release_is_followed() {
    let mut net = Net::with_official(9, Version::Feb);
    assert!(net.talks(3000));
    assert_eq!(net.tunnel(A).scheme(), SchemeState::Known(Scheme::A));
    for (version, scheme) in [(Version::V118, Scheme::B), (Version::Feb, Scheme::A), (Version::V172, Scheme::B)] {
        net.run_ms(5000);
        net.restart_official(version);
        assert!(until_delivered(&mut net, A, 15_000).is_some(), "{version:?}");
        assert!(net.talks(6000));
        assert_eq!(net.tunnel(A).remembered_scheme(), Some(scheme));
        assert!(net.ours(A).events.contains(&TunnelEvent::Scheme(scheme)));
    }
}

#[test]
fn a_dead_peer_gets_few_exchanges_and_the_application_hears_of_it() {
    let mut net = Net::new(10);
    net.faults.loss = 1.0;
    let begin = net.now;
    for number in 0..240 {
        net.send(A, number);
        net.run_ms(250);
    }
    let frames = net.key_frames(A, begin);
    assert!(frames <= 30, "{frames} key exchanges in a minute");
    assert!(net.ours(A).events.iter().any(|e| matches!(e, TunnelEvent::Failing(Failure::NoAnswer { .. }))));
}

#[test]
fn a_session_that_dies_in_use_is_noticed_and_given_a_bounded_number_of_exchanges() {
    for version in VERSIONS {
        let mut net = Net::with_official(11, version);
        assert!(net.talks(3000));
        net.faults.loss = 1.0;
        let since = net.now;
        for number in 0..240 {
            net.send(A, number);
            net.run_ms(250);
        }
        assert!(net.ours(A).events.iter().any(|e| matches!(e, TunnelEvent::Failing(Failure::NoAnswer { .. }))));
        assert!(net.key_frames(A, since) <= 30, "{}", net.key_frames(A, since));
        net.faults.loss = 0.0;
        assert!(until_delivered(&mut net, A, 5000).is_some());
        assert!(net.talks(20_000), "{version:?}");
    }
}

#[test]
fn one_way_datagrams_to_a_silent_but_live_peer_cost_a_probe_now_and_then_and_no_exchange() {
    for version in VERSIONS {
        let mut net = Net::with_official(12, version);
        assert!(net.talks(3000));
        net.run_ms(5000);
        let (since, before) = (net.now, net.log.len());
        for number in 0..600 {
            net.send(A, number);
            net.run_ms(100);
        }
        assert_eq!(net.key_frames(A, since), 0, "{version:?}");
        let extra = net.log[before..].iter().filter(|s| s.from == A).count() - 600;
        assert!(extra <= 40, "{extra} probes in a minute");
    }
}

#[test]
fn two_nodes_that_begin_at_once_agree() {
    for seed in 0..20 {
        let mut net = Net::new(seed);
        net.faults.jitter = Duration::from_millis(40);
        net.send(A, 1);
        net.send(B, 2);
        net.run_ms(1200);
        assert_eq!((net.delivered(B), net.delivered(A)), (vec![1], vec![2]), "seed {seed}");
        let since = net.now;
        net.run_ms(60_000);
        assert_eq!(net.key_frames(A, since) + net.key_frames(B, since), 0, "seed {seed}");
    }
}

#[test]
fn slow_paths_do_not_make_two_nodes_answer_each_other_for_ever() {
    for delay in [600, 1200, 2000, 2800] {
        let mut net = Net::new(13);
        net.faults.delay = Duration::from_millis(delay);
        net.send(A, 1);
        net.send(B, 2);
        net.run_ms(30_000);
        assert_eq!((net.delivered(B), net.delivered(A)), (vec![1], vec![2]), "delay {delay} ms");
        let since = net.now;
        net.run_ms(60_000);
        let frames = net.key_frames(A, since) + net.key_frames(B, since);
        assert!(frames <= 2, "delay {delay} ms: {frames} key exchanges in a quiet minute");
    }
}

#[test]
fn old_releases_are_reached_although_they_accept_only_the_kind_of_path_of_the_last_exchange() {
    // 07 rule 15, 01 §9.1.
    for version in [Version::Feb, Version::V172] {
        for (cut_direct, first) in [(true, A), (true, B), (false, A), (false, B)] {
            let mut net = Net::with_official(14, version);
            net.faults.direct = !cut_direct;
            net.faults.relay = cut_direct;
            if cut_direct {
                net.ours(A).path = Path::Relay;
            }
            assert!(until_delivered(&mut net, A, 5000).is_some(), "{version:?}");
            net.faults.direct = true;
            net.faults.relay = true;
            net.restart(A);
            let ms = until_delivered(&mut net, first, 10_000);
            assert!(ms.is_some(), "{version:?} by relay {cut_direct} first {first}");
            assert!(net.talks(6000), "{version:?} by relay {cut_direct} first {first}");
        }
    }
}
