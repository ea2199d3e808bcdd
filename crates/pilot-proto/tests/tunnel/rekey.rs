//! Fresh keys for working sessions, and how the two schemes are chosen (01 rule 5, W14; 07 rules 1 to 7, 12).

use std::sync::Arc;
use std::time::Duration;

use pilot_proto::crypto::Scheme;
use pilot_proto::tunnel::{OpenError, SchemeState, Sealed, Tunnel, TunnelConfig};
use pilot_wire::tunnel::{Nonce, SECURE_HEADER_LEN};

use crate::net::{A, B, Net, Path, epoch, packet};
use crate::official::Version;
use crate::vectors::{Party, sealed};

fn often() -> TunnelConfig {
    TunnelConfig { rekey_after: Duration::from_secs(10), ..TunnelConfig::default() }
}

#[test]
fn two_of_ours_change_keys_under_load_without_losing_or_doubling_a_packet() {
    for seed in 0..6 {
        let mut net = Net::with(seed, often());
        net.faults.jitter = Duration::from_millis(60);
        let rounds = 3000u32;
        for i in 0..rounds {
            net.send(A, i);
            net.send(B, 100_000 + i);
            net.run_ms(20);
        }
        net.run_ms(1000);
        for (who, base) in [(A, 100_000), (B, 0)] {
            let mut got = net.delivered(who);
            got.sort_unstable();
            assert_eq!(got, (base..base + rounds).collect::<Vec<_>>(), "seed {seed}");
            assert!(!net.ours(who).errors.contains(&OpenError::Unreadable), "seed {seed}");
            let status = net.tunnel(who).status();
            assert!((5..=8).contains(&status.generation), "{}", status.generation);
        }
        let frames = net.key_frames(A, net.start) + net.key_frames(B, net.start);
        assert!(frames <= 30, "{frames} key exchanges in a minute of fast rekeying");
    }
}

#[test]
fn keys_change_under_loss_too_and_the_session_never_breaks() {
    for seed in 0..10 {
        let mut net = Net::with(seed, often());
        assert!(net.talks(500));
        net.faults.loss = 0.2;
        net.faults.jitter = Duration::from_millis(40);
        for i in 0..1200 {
            net.send(A, i);
            net.send(B, 100_000 + i);
            net.run_ms(50);
        }
        for who in [A, B] {
            let got = net.delivered(who).len();
            assert!(got > 850, "seed {seed}: {got} of 1200 at 20 % loss");
            assert!(net.tunnel(who).status().generation >= 4, "seed {seed}");
            let unreadable = net.ours(who).errors.iter().filter(|e| **e == OpenError::Unreadable).count();
            assert!(unreadable <= 10, "seed {seed}: {unreadable}");
        }
    }
}

#[test]
fn an_idle_session_is_not_rekeyed_by_itself() {
    let mut net = Net::with(3, often());
    assert!(net.talks(500));
    net.run_ms(1000);
    let frames = net.log.len();
    net.run_ms(600_000);
    assert_eq!(net.log.len(), frames);
    assert!(net.talks(500), "and works after ten minutes");
}

#[test]
fn official_peers_get_a_fresh_key_only_when_the_old_one_is_used_up() {
    for version in [Version::Feb, Version::V172, Version::V118] {
        let mut net = Net::with_official(4, version);
        assert!(net.talks(3000));
        let since = net.now;
        for i in 0..1300 {
            net.send(A, i);
            net.send(B, 100_000 + i);
            net.run_ms(1000);
        }
        assert_eq!(net.key_frames(A, since), 0, "{version:?}");
        assert_eq!(net.delivered(A).len(), 1301);
    }
}

#[test]
fn february_reads_the_second_copy_without_an_alarm() {
    // 07 rule 3: B first, then A, the same prefix and counter.
    let mut net = Net::with_official(5, Version::Feb);
    net.send(A, 1);
    net.run_ms(500);
    assert_eq!(net.delivered(B), [1]);
    assert_eq!(net.official().replay_events, 0);
    assert_eq!(net.tunnel(A).scheme(), SchemeState::Known(Scheme::A));
    let frames = net.frames(A, b"PILS");
    assert!(frames.chunks(2).take(1).all(|pair| pair[0][..20] == pair[1][..20] && pair[0] != pair[1]));
    let before = frames.len();
    net.send(A, 2);
    net.run_ms(100);
    assert_eq!(net.frames(A, b"PILS").len(), before + 1, "one frame once the scheme is known");
}

/// Seals one packet; says the schemes of the frames that came out.
fn schemes(t: &mut Tunnel, now: std::time::Instant, us: &Party, peer: &Party) -> Vec<Scheme> {
    let mut buf = vec![0; SECURE_HEADER_LEN];
    buf.extend_from_slice(&packet(1, 2, 1));
    let frames = match t.seal(now, &mut buf, 0).unwrap() {
        Sealed::One => vec![buf],
        Sealed::Twin { second } => {
            let later = buf.split_off(second);
            vec![buf, later]
        }
    };
    let probe = |frame: &Vec<u8>| {
        let cfg = |allow| Arc::new(TunnelConfig { allow_scheme_a: allow, ..TunnelConfig::default() });
        let mut strict = peer.tunnel(now, 1, &cfg(false), [0; 4], 0);
        strict.handle_auth(now, Path::Direct.via(), &us.exchange(), &us.identity.public_key()).unwrap();
        if strict.open(now, Path::Direct.via(), &mut frame.clone()).is_ok() { Scheme::B } else { Scheme::A }
    };
    frames.iter().map(probe).collect()
}

#[test]
fn packets_are_doubled_for_ten_seconds_and_then_alternate() {
    // 07 rules 3 and 4.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    let mut t = us.paired(now, &peer, [4; 4], 0);
    assert_eq!(schemes(&mut t, now, &us, &peer), [Scheme::B, Scheme::A]);
    assert_eq!(schemes(&mut t, now + Duration::from_millis(9900), &us, &peer), [Scheme::B, Scheme::A]);
    let late = now + Duration::from_millis(10_100);
    let mut seen: Vec<Scheme> = (0..4).flat_map(|_| schemes(&mut t, late, &us, &peer)).collect();
    assert_eq!(seen.len(), 4);
    assert!(seen[0] != seen[1] && seen[1] != seen[2]);
    seen.dedup();
    assert_eq!(seen.len(), 4);
}

#[test]
fn a_remembered_scheme_is_used_at_once_and_doubted_when_nothing_comes_back() {
    // 07 rules 5 and 6.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    for scheme in [Scheme::A, Scheme::B] {
        let mut t = us.paired(now, &peer, [4; 4], 0);
        t.set_hint(scheme);
        assert_eq!(t.remembered_scheme(), None, "a hint is not knowledge");
        assert_eq!(schemes(&mut t, now, &us, &peer), [scheme]);
        let later = now + Duration::from_millis(2500);
        assert_eq!(schemes(&mut t, later, &us, &peer), [Scheme::B, Scheme::A]);
        // Receiving always tries both.
        let mut f = sealed(&peer, &us, scheme.other(), Nonce { prefix: [8; 4], counter: 1 }, &packet(2, 1, 1));
        assert!(t.open(later, Path::Direct.via(), &mut f).is_ok());
        assert_eq!(t.remembered_scheme(), Some(scheme.other()));
        assert_eq!(schemes(&mut t, later, &us, &peer), [scheme.other()]);
    }
}

#[test]
fn an_operator_can_forbid_scheme_a() {
    // 07 rule 7.
    let now = epoch();
    let (us, peer) = (Party::new(1, 10), Party::new(2, 20));
    let cfg = Arc::new(TunnelConfig { allow_scheme_a: false, ..TunnelConfig::default() });
    let mut t = us.tunnel(now, 2, &cfg, [4; 4], 0);
    t.handle_auth(now, Path::Direct.via(), &peer.exchange(), &peer.identity.public_key()).unwrap();
    t.set_hint(Scheme::A);
    assert_eq!(schemes(&mut t, now, &us, &peer), [Scheme::B]);
    let nonce = Nonce { prefix: [8; 4], counter: 1 };
    let mut f = sealed(&peer, &us, Scheme::A, nonce, &packet(2, 1, 1));
    assert_eq!(t.open(now, Path::Direct.via(), &mut f), Err(OpenError::Unreadable));
    let mut f = sealed(&peer, &us, Scheme::B, nonce, &packet(2, 1, 1));
    assert!(t.open(now, Path::Direct.via(), &mut f).is_ok());
}

#[test]
fn a_remembered_scheme_that_is_wrong_costs_no_more_than_a_round_trip() {
    for (version, hint) in [(Version::Feb, Scheme::B), (Version::V118, Scheme::A)] {
        let mut net = Net::with_official(6, version);
        net.tunnel(A).set_hint(hint);
        net.send(A, 1);
        net.run_ms(100);
        net.send(A, 2);
        net.run_ms(100);
        assert!(net.delivered(B).contains(&2), "{version:?}");
        assert_eq!(net.tunnel(A).remembered_scheme(), Some(version.scheme()));
    }
}
