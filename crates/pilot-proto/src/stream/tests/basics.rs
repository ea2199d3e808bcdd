//! The ordinary life of a stream.

use super::harness::*;
use crate::profile::PeerProfile;
use crate::stream::{CloseReason, State, StreamConfig, StreamEvent};

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(31) ^ (i >> 8)) as u8).collect()
}

const BELIEFS: [[PeerProfile; 2]; 4] = [
    [PeerProfile::cautious(), PeerProfile::cautious()],
    [PeerProfile::ours(), PeerProfile::ours()],
    [PeerProfile::cautious(), PeerProfile::ours()],
    [PeerProfile::ours(), PeerProfile::cautious()],
];

#[test]
fn both_ways_then_both_close_and_nothing_is_left() {
    for beliefs in BELIEFS {
        let mut pair = Pair::connected(beliefs, StreamConfig::default(), ms(5));
        let (a, b) = (pattern(300_000), pattern(200_001));
        pair.write_all(0, &a);
        pair.write_all(1, &b);
        pair.run(ms(3000));
        assert!(pair.ends[1].received == a, "{beliefs:?}");
        assert!(pair.ends[0].received == b, "{beliefs:?}");
        pair.close(0);
        pair.run(ms(100));
        pair.close(1);
        pair.run(ms(30_000));
        for end in &mut pair.ends {
            assert!(end.events.contains(&StreamEvent::Connected));
            assert!(end.events.contains(&StreamEvent::Finished), "{beliefs:?}");
            assert_eq!(end.events.last(), Some(&StreamEvent::Closed(CloseReason::Clean)));
            assert_eq!(end.conn.state(), State::Closed);
            assert!(end.conn.is_forgotten());
            assert_eq!(end.conn.poll_timeout(), None);
        }
    }
}

#[test]
fn half_close_between_our_own_leaves_the_other_direction_open() {
    let mut pair = Pair::connected([PeerProfile::ours(), PeerProfile::ours()], StreamConfig::default(), ms(5));
    pair.write_all(0, b"question");
    pair.close(0);
    pair.run(ms(500));
    assert_eq!(pair.ends[1].received, b"question");
    assert!(pair.ends[1].events.contains(&StreamEvent::Finished));
    assert_eq!(pair.ends[1].conn.state(), State::CloseWait);
    let answer = pattern(500_000);
    pair.write_all(1, &answer);
    pair.close(1);
    pair.run(ms(5000));
    assert!(pair.ends[0].received == answer);
    assert_eq!(pair.ends[0].conn.close_reason(), Some(CloseReason::Clean));
    assert_eq!(pair.ends[1].conn.close_reason(), Some(CloseReason::Clean));
}

#[test]
fn a_dial_nobody_answers_fails_after_doubling_pauses() {
    let cfg = StreamConfig::default();
    let limit = cfg.dial_timeout;
    let mut s = Scripted::dialling(PeerProfile::cautious(), cfg);
    let syns: Vec<u128> = s.pass(limit).iter().map(|p| p.0.as_millis()).collect();
    assert_eq!(syns, [250, 750, 1750, 3750, 7750, 15750, 23750]);
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::DialTimeout));
    assert!(s.end.conn.is_forgotten());
}
