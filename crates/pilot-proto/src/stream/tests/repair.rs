//! Loss detection by itself: which segments count as arrived, lost, or lost again.

use std::time::{Duration, Instant};

use super::harness::*;
use crate::profile::PeerProfile;
use crate::stream::scoreboard::{Delivered, Scoreboard};
use crate::stream::{CloseReason, StreamConfig};
use pilot_wire::packet::Flags;

const LEN: u64 = 1000;
const RTT: Duration = Duration::from_millis(50);

fn board(now: Instant, segments: u64) -> Scoreboard {
    let mut board = Scoreboard::default();
    for n in 0..segments {
        board.on_sent(now, n * LEN, LEN as usize);
    }
    board
}

fn select(board: &mut Scoreboard, now: Instant, from: u64, to: u64) -> u64 {
    let mut delivered = Delivered::default();
    board.select(now, from, to, Some(RTT), &mut delivered);
    delivered.bytes
}

#[test]
fn a_range_that_covers_part_of_a_segment_does_not_mark_it() {
    let now = start();
    let mut board = board(now, 6);
    assert_eq!(select(&mut board, now, 2 * LEN, 4 * LEN), 2 * LEN);
    assert_eq!(select(&mut board, now, 5 * LEN, 5 * LEN + 500), 0);
    assert_eq!(select(&mut board, now, 4 * LEN + 1, 6 * LEN), LEN, "only the whole one counts");
    assert_eq!(select(&mut board, now, 2 * LEN, 4 * LEN), 0, "a repeated range says nothing new");
    assert_eq!(board.in_flight(), 3 * LEN);
}

#[test]
fn a_lost_repeat_is_found_without_a_time_out() {
    let now = start();
    let mut board = board(now, 5);
    select(&mut board, now + RTT, LEN, 5 * LEN);
    assert!(board.detect(now + RTT, RTT).newest.is_some());
    assert_eq!(board.next_lost(), Some((0, LEN as usize)));
    board.on_repeated(now + RTT, 0, LEN as usize);
    // More is sent behind the repeat and arrives; the repeat does not.
    for n in 5..9 {
        board.on_sent(now + RTT, n * LEN, LEN as usize);
    }
    assert_eq!(board.next_lost(), None);
    select(&mut board, now + 2 * RTT, 5 * LEN, 9 * LEN);
    assert!(board.detect(now + 2 * RTT, RTT).newest.is_some());
    assert_eq!(board.next_lost(), Some((0, LEN as usize)));
}

#[test]
fn two_segments_overtaken_are_given_time_and_then_repeated() {
    let now = start();
    let mut board = board(now, 3);
    select(&mut board, now + RTT, 2 * LEN, 3 * LEN);
    let losses = board.detect(now + RTT, RTT);
    assert!(losses.newest.is_none());
    let at = losses.next_check.expect("it looks again");
    assert!(at > now + RTT && at < now + 2 * RTT);
    assert!(board.detect(at, RTT).newest.is_some());
}

#[test]
fn a_path_that_reorders_is_given_more_time() {
    let mut now = start();
    let mut board = board(now, 0);
    let mut next = 0;
    let mut repeats = 0;
    for _ in 0..8 {
        for n in 0..8 {
            board.on_sent(now, next + n * LEN, LEN as usize);
        }
        now += RTT;
        // Five later segments arrive first; the first one just after its repeat has left.
        select(&mut board, now, next + LEN, next + 6 * LEN);
        board.detect(now, RTT);
        if let Some((offset, len)) = board.next_lost() {
            board.on_repeated(now, offset, len);
            repeats += 1;
        }
        next += 8 * LEN;
        board.acknowledge(now + RTT / 10, next, Some(RTT), &mut Delivered::default());
    }
    assert!(repeats <= 2, "{repeats} needless repeats");
}

#[test]
fn a_report_that_is_taken_back_is_forgotten_after_a_time_out() {
    let now = start();
    let mut board = board(now, 4);
    select(&mut board, now, 0, 2 * LEN);
    assert!(board.on_timeout(), "the head was reported and never acknowledged");
    let mut repeated = Vec::new();
    while let Some((offset, len)) = board.next_lost() {
        board.on_repeated(now, offset, len);
        repeated.push(offset);
    }
    assert_eq!(repeated, [0, LEN, 2 * LEN, 3 * LEN]);
}

#[test]
fn an_end_acknowledged_one_way_stays_so_when_the_profile_changes() {
    let mut s = Scripted::accepted(PeerProfile::ours(), StreamConfig::default());
    s.give(Flags::FIN, 1, 0, 0, b"");
    let out = s.take();
    assert_eq!((out[0].flags, out[0].ack), (Flags::ACK, 2), "acknowledged; our direction stays open");
    s.end.conn.set_profile(s.now, PeerProfile::cautious());
    s.write(b"more");
    s.pass(ms(50));
    s.acks(OUR_ISN + 5);
    s.end.conn.close(s.now);
    // The answer is repeated until it is acknowledged, because the peer no longer repeats its FIN.
    let fins = s.pass(ms(3000)).iter().filter(|p| p.1.flags == Flags::FIN | Flags::ACK).count();
    assert!(fins > 1, "{fins}");
    s.give(Flags::ACK, 2, OUR_ISN + 6, 512, b"");
    s.take();
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Clean));
}
