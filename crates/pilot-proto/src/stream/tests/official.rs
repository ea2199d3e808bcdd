//! One end against the quirks of the official daemons (02 §27 and the rows of §29).

use pilot_wire::packet::{Flags, Header, protocol};

use super::harness::*;
use crate::profile::PeerProfile;
use crate::stream::{CloseReason, ReadError, State, StreamConfig, StreamEvent, SynVerdict, WriteError};

const FIN_ACK: Flags = Flags::from_bits(6);

fn unknown() -> Scripted {
    Scripted::accepted(PeerProfile::cautious(), StreamConfig::default())
}

fn kinds(packets: &[Seen]) -> Vec<u8> {
    packets.iter().map(|p| p.flags.bits()).collect()
}

#[test]
fn a_storm_of_fin_acks_is_met_with_near_silence_whoever_closed() {
    for we_close in [false, true] {
        let mut s = unknown();
        s.pass(ms(50));
        if we_close {
            s.end.conn.close(s.now);
        } else {
            s.give(Flags::FIN, 1, 0, 0, b"");
        }
        let fin = s.take();
        assert_eq!(kinds(&fin), [if we_close { Flags::FIN } else { FIN_ACK }.bits()]);
        let mut answers = Vec::new();
        for _ in 0..5000 {
            s.give(FIN_ACK, 1, OUR_ISN + 2, 0, b"");
            answers.extend(s.take());
            answers.extend(s.pass(ms(1)).into_iter().map(|p| p.1));
        }
        assert!(answers.len() <= 16, "{} answers to 5000 FIN|ACKs", answers.len());
        assert!(answers.iter().all(|p| !p.flags.contains(Flags::FIN)), "a FIN|ACK was answered with a FIN");
        assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Clean));
        s.pass(ms(20_000));
        assert!(s.end.conn.is_forgotten(), "the storm kept TIME_WAIT alive");
    }
}

#[test]
fn a_repeated_fin_is_answered_again() {
    let mut s = unknown();
    s.give(Flags::FIN, 1, 0, 0, b"");
    s.pass(ms(100));
    for _ in 0..3 {
        s.give(Flags::FIN, 1, 0, 0, b"");
        let answer = s.take();
        assert_eq!(kinds(&answer), [FIN_ACK.bits()]);
        assert_eq!((answer[0].seq, answer[0].ack), (OUR_ISN + 1, 2));
        s.pass(ms(1000));
    }
}

#[test]
fn a_lost_fin_is_repeated_until_the_peer_has_forgotten() {
    let mut s = unknown();
    s.write(b"x");
    s.pass(ms(40));
    s.acks(OUR_ISN + 2);
    s.end.conn.close(s.now);
    let fins = s.pass(ms(60_000));
    assert!(fins.len() >= 5 && fins.iter().all(|p| p.1.flags == Flags::FIN && p.1.seq == OUR_ISN + 2), "{fins:?}");
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Clean));
    assert!(s.end.conn.is_forgotten());
}

#[test]
fn a_syn_on_a_living_connection_gets_the_original_numbers_or_means_a_restart() {
    let mut s = unknown();
    s.data(b"0123456789");
    s.write(b"answer");
    s.pass(ms(100));
    let mut syn = Header::new(protocol::STREAM, Flags::SYN, s.end.conn.remote(), s.end.conn.local());
    syn.window = 512;
    assert_eq!(s.end.conn.classify_syn(s.now, &syn), SynVerdict::Repeat);
    s.give(Flags::SYN, 0, 0, 512, b"");
    let answer = s.take();
    assert_eq!((answer[0].flags, answer[0].seq, answer[0].ack), (Flags::SYN | Flags::ACK, OUR_ISN, 1));
    s.acks(OUR_ISN + 7);
    s.pass(ms(5000));
    assert_eq!(s.end.conn.classify_syn(s.now, &syn), SynVerdict::Restart);
    syn.seq = 77;
    assert_eq!(s.end.conn.classify_syn(s.now, &syn), SynVerdict::Restart);
    s.give(Flags::SYN, 0, 0, 512, b"");
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::PeerRestarted));
    assert!(s.take().is_empty());
}

#[test]
fn an_answer_from_an_old_connection_is_reset_and_the_dial_goes_on() {
    let mut s = Scripted::dialling(PeerProfile::cautious(), StreamConfig::default());
    s.give(Flags::SYN | Flags::ACK, 500, 900, 512, b"");
    let out = s.take();
    assert_eq!(kinds(&out), [Flags::RST.bits(), Flags::SYN.bits()]);
    assert_eq!((out[0].seq, out[1].seq), (900, OUR_ISN));
    assert_eq!(s.end.conn.state(), State::SynSent);
    for _ in 0..10 {
        s.give(Flags::SYN | Flags::ACK, 500, 900, 512, b"");
    }
    assert!(s.take().len() <= 4, "every stale answer gets a RST and a SYN");
    s.give(Flags::SYN | Flags::ACK, 0, OUR_ISN + 1, 512, b"");
    assert_eq!(s.end.conn.state(), State::Established);
}

#[test]
fn acknowledgements_keep_a_floor_and_ride_on_data() {
    let mut s = unknown();
    s.data(b"one");
    s.data(b"two");
    let acks = s.pass(ms(100));
    assert_eq!(acks.len(), 1);
    assert!(acks[0].0 >= ms(1), "acknowledged after {:?}", acks[0].0);
    assert_eq!(acks[0].1.ack, 7);
    // Data received while we send is acknowledged by what we send, and only by it.
    s.data(b"three");
    s.write(b"answer");
    let out = s.pass(ms(60));
    assert_eq!((out.len(), out[0].1.ack, out[0].1.payload.as_slice()), (1, 12, &b"answer"[..]), "{out:?}");
}

#[test]
fn a_fin_ahead_of_missing_data_waits_for_it() {
    let mut s = unknown();
    s.give(Flags::FIN, 11, 0, 0, b"");
    let out = s.take();
    assert_eq!((out[0].flags, out[0].ack), (Flags::ACK, 1), "acknowledged up to the gap");
    assert!(!s.end.events.contains(&StreamEvent::Finished));
    s.pass(ms(5000));
    s.give(Flags::ACK, 1, OUR_ISN + 1, 512, b"0123456789");
    let out = s.take();
    assert_eq!(s.end.received, b"0123456789");
    assert!(s.end.events.contains(&StreamEvent::Finished));
    assert_eq!((out[0].flags, out[0].ack), (FIN_ACK, 12));
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Clean));
}

#[test]
fn missing_data_before_a_fin_is_given_up_as_truncated() {
    let mut s = unknown();
    s.data(b"first");
    s.give(Flags::FIN, 100, 0, 0, b"");
    s.pass(ms(14_000));
    assert_eq!(s.end.conn.close_reason(), None);
    s.pass(ms(2000));
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Truncated));
    assert_eq!(s.end.received, b"first");
    let now = s.now;
    assert_eq!(s.end.conn.read(now, &mut [0; 8]), Err(ReadError::Closed(CloseReason::Truncated)));
}

#[test]
fn our_fin_waits_for_our_data() {
    let mut s = unknown();
    s.pass(ms(50));
    s.write(b"last words");
    s.end.conn.close(s.now);
    let out = s.pass(ms(3000));
    assert!(out.len() > 1 && out.iter().all(|p| p.1.payload == b"last words"), "{out:?}");
    s.acks(OUR_ISN + 11);
    let out = s.take();
    assert_eq!((out[0].flags, out[0].seq), (Flags::FIN, OUR_ISN + 11));
}

#[test]
fn an_official_answer_to_our_fin_says_nothing_of_the_data_before_it() {
    let mut s = unknown();
    s.pass(ms(50));
    s.write(b"last words");
    s.end.conn.close(s.now);
    // The peer answers, but not to the data: at last the FIN goes out ahead of it.
    let mut fins = 0;
    while fins == 0 {
        s.acks(OUR_ISN + 1);
        fins = s.pass(ms(500)).iter().filter(|p| p.1.flags.contains(Flags::FIN)).count();
    }
    s.give(FIN_ACK, 1, OUR_ISN + 12, 0, b"");
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Truncated));
    assert_eq!(s.end.conn.delivered(), 0, "nobody has acknowledged it");
    let later = s.pass(ms(20_000));
    assert!(later.iter().all(|p| p.1.flags == Flags::ACK && p.1.payload.is_empty()), "{later:?}");
    assert!(s.end.conn.is_forgotten());
}

#[test]
fn no_fin_follows_a_handshake_within_30_ms() {
    let mut s = unknown();
    s.end.conn.close(s.now);
    let out = s.pass(ms(100));
    assert_eq!((out[0].0, out[0].1.flags), (ms(30), Flags::FIN));
}

#[test]
fn data_that_looks_like_a_list_of_ranges_is_sent_so_that_it_does_not() {
    let mut s = unknown();
    let text = b"SACK\x01abcdefgh, and more text";
    s.write(text);
    let out = s.take();
    let pieces: Vec<&[u8]> = out.iter().map(|p| p.payload.as_slice()).collect();
    assert_eq!(pieces, [&text[..1], &text[1..]]);
    // And it is repeated with the same boundaries.
    let repeats: Vec<Vec<u8>> = s.pass(ms(3000)).into_iter().map(|p| p.1.payload).collect();
    assert!(!repeats.is_empty() && repeats.iter().all(|p| pieces.contains(&p.as_slice())), "{repeats:?}");
}

#[test]
fn received_data_is_a_list_of_ranges_only_if_the_ranges_can_be() {
    let list = |left: u32, right: u32| {
        let mut p = b"SACK\x01".to_vec();
        p.extend_from_slice(&left.to_be_bytes());
        p.extend_from_slice(&right.to_be_bytes());
        p
    };
    let mut s = unknown();
    s.write(&[7; 5000]);
    s.take();
    // Ranges beyond what was sent, upside down, below the packet's own number, or with a byte too many: data.
    let mut expected = Vec::new();
    for data in [list(OUR_ISN + 2, OUR_ISN + 9000), list(OUR_ISN + 9, OUR_ISN + 2), list(OUR_ISN - 5, OUR_ISN + 5)] {
        s.data(&data);
        expected.extend(data);
    }
    let mut long = list(OUR_ISN + 1153, OUR_ISN + 2305);
    long.push(0);
    s.data(&long);
    expected.extend(long);
    s.take();
    assert_eq!(s.end.received, expected);
    // A list that a newer acknowledgement has overtaken is no data.
    s.acks(OUR_ISN + 1 + 4608);
    s.give(Flags::ACK, s.seq, OUR_ISN + 1, 512, &list(OUR_ISN + 1153, OUR_ISN + 2305));
    s.take();
    assert_eq!(s.end.received, expected);
}

#[test]
fn a_silent_peer_is_tried_for_a_minute_with_doubling_pauses() {
    let mut s = unknown();
    s.write(b"hello");
    let out = s.pass(ms(90_000));
    let times: Vec<u128> = out.iter().map(|p| p.0.as_millis()).collect();
    let pauses: Vec<u128> = times.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(pauses.windows(2).take(5).all(|w| w[1] >= w[0]), "{times:?}");
    assert!((50_000..75_000).contains(times.last().expect("it tried")), "{times:?}");
    assert_eq!(out.last().expect("it tried").1.flags, Flags::RST);
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Timeout));
    assert!(s.end.conn.is_forgotten());
}

#[test]
fn an_official_keepalive_is_answered_once_with_a_number_one_too_low() {
    let mut s = unknown();
    s.data(b"x");
    s.pass(ms(30_000));
    s.give(Flags::ACK, 2, OUR_ISN + 1, 0, b"");
    let out = s.take();
    assert_eq!((out.len(), out[0].flags, out[0].ack), (1, Flags::ACK, 1));
    assert!(out[0].window > 0);
    // Its window of 0 closes nothing.
    s.write(b"still open");
    assert_eq!(s.take().len(), 1);
    s.acks(OUR_ISN + 11);
    s.give(Flags::ACK, 2, OUR_ISN + 11, 0, b"");
    assert!(s.take().is_empty(), "keepalives in a row are answered sparingly");
}

#[test]
fn idle_connections_live_and_dead_ones_do_not() {
    for profile in [PeerProfile::cautious(), PeerProfile::ours()] {
        let mut pair = Pair::connected([profile, profile], StreamConfig::default(), ms(20));
        pair.write_all(0, b"hello");
        pair.run(ms(1000));
        pair.log.clear();
        pair.run(ms(3_600_000));
        assert_eq!(pair.ends[0].conn.state(), State::Established);
        assert!(pair.log.len() < 250, "{} packets in an idle hour", pair.log.len());
        pair.fault = Box::new(|_, _| true);
        pair.run(ms(200_000));
        for end in &pair.ends {
            assert_eq!(end.conn.close_reason(), Some(CloseReason::IdleTimeout));
        }
    }
}

#[test]
fn what_is_written_before_the_answer_to_a_dial_is_sent_after_it() {
    let mut s = Scripted::dialling(PeerProfile::cautious(), StreamConfig::default());
    s.write(b"early");
    assert!(s.take().is_empty());
    s.give(Flags::SYN | Flags::ACK, 0, OUR_ISN + 1, 512, b"");
    let out = s.take();
    assert_eq!((out.len(), out[0].ack, out[0].payload.as_slice()), (1, 1, &b"early"[..]));
}

#[test]
fn what_is_written_and_closed_before_the_answer_to_a_dial_is_delivered() {
    let mut s = Scripted::dialling(PeerProfile::ours(), StreamConfig::default());
    s.write(b"all of it");
    s.end.conn.close(s.now);
    assert_eq!(s.end.conn.state(), State::SynSent);
    s.give(Flags::SYN | Flags::ACK, 0, OUR_ISN + 1, 512, b"");
    let out = s.take();
    assert_eq!(kinds(&out), [Flags::ACK.bits(), FIN_ACK.bits()]);
    assert_eq!((out[0].payload.as_slice(), out[1].seq), (&b"all of it"[..], OUR_ISN + 10));
}

#[test]
fn an_incoming_connection_needs_the_third_packet_and_is_soon_forgotten_without() {
    let mut s = Scripted::half_open(PeerProfile::cautious(), StreamConfig::default());
    s.give(Flags::ACK, 1, OUR_ISN + 77, 512, b"forged");
    assert!(s.take().is_empty());
    assert!(s.end.events.is_empty(), "an application heard of it: {:?}", s.end.events);
    let out = s.pass(ms(11_000));
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::AcceptTimeout));
    assert!(out.iter().filter(|p| p.1.flags == Flags::SYN | Flags::ACK).count() < 15);
    let mut s = Scripted::half_open(PeerProfile::cautious(), StreamConfig::default());
    s.give(Flags::ACK, 1, OUR_ISN + 1, 512, b"data as third packet");
    s.take();
    assert_eq!(s.end.events.first(), Some(&StreamEvent::Connected));
    assert_eq!(s.end.received, b"data as third packet");
}

#[test]
fn a_number_never_sent_is_not_acknowledged_to_us() {
    let mut s = unknown();
    s.write(b"12345");
    s.take();
    s.give(Flags::ACK, 1, OUR_ISN + 1000, 512, b"and data with it");
    s.take();
    assert_eq!(s.end.conn.stats().invalid, 1);
    assert_eq!(s.end.conn.stats().unacked, 1);
    assert!(s.end.received.is_empty());
    s.acks(OUR_ISN + 6);
    assert_eq!(s.end.conn.stats().unacked, 0);
}

#[test]
fn resets_and_fins_outside_the_window_are_ignored() {
    let mut s = Scripted::accepted(PeerProfile::ours(), StreamConfig::default());
    s.data(b"x");
    for seq in [0, 1, 0x9000_0000, 100_000_000] {
        s.give(Flags::RST, seq, 0, 0, b"");
        s.give(Flags::FIN, seq, 0, 0, b"");
    }
    assert_eq!(s.end.conn.state(), State::Established);
    assert_eq!(s.end.conn.stats().invalid, 8);
    s.give(Flags::RST, 2, 0, 0, b"");
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Reset));
    // An official reset is all zero.
    let mut s = unknown();
    s.data(b"x");
    s.give(Flags::RST, 5_000_000, 7, 0, b"");
    assert_eq!(s.end.conn.state(), State::Established);
    s.give(Flags::RST, 0, 0, 0, b"");
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Reset));
    let mut s = Scripted::dialling(PeerProfile::cautious(), StreamConfig::default());
    s.give(Flags::RST, 0, 0, 0, b"");
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Refused));
}

#[test]
fn all_holes_a_list_shows_are_filled_at_once() {
    let mut s = unknown();
    s.write(&[1; 1152 * 10]);
    assert_eq!(s.take().len(), 10);
    s.pass(ms(20));
    let edge = |n: u32| OUR_ISN + 1 + 1152 * n;
    let mut list = b"SACK\x03".to_vec();
    for (l, r) in [(edge(1), edge(3)), (edge(4), edge(5)), (edge(6), edge(10))] {
        list.extend_from_slice(&l.to_be_bytes());
        list.extend_from_slice(&r.to_be_bytes());
    }
    s.give(Flags::ACK, 1, edge(0), 512, &list);
    let repeats: Vec<u32> = s.take().iter().map(|p| p.seq).collect();
    assert_eq!(repeats, [edge(0), edge(3), edge(5)]);
}

#[test]
fn three_empty_duplicates_help_an_official_sender_and_only_it() {
    for (profile, duplicates) in [(PeerProfile::cautious(), 3), (PeerProfile::ours(), 0)] {
        let mut s = Scripted::accepted(profile, StreamConfig::default());
        let mut out = Vec::new();
        for n in 1..8_u32 {
            s.give(Flags::ACK, 1 + 100 * n, OUR_ISN + 1, 512, &[0; 100]);
            out.extend(s.take());
        }
        let empty = out.iter().filter(|p| p.payload.is_empty()).count();
        let lists = out.iter().filter(|p| p.payload.starts_with(b"SACK")).count();
        assert_eq!((empty, lists), (duplicates, 7));
        assert!(out.iter().all(|p| p.ack == 1));
    }
}

#[test]
fn empty_duplicates_do_not_shrink_our_window() {
    let mut s = unknown();
    s.write(&[1; 5000]);
    s.take();
    let before = s.end.conn.stats().cong_win;
    for _ in 0..10 {
        s.give(Flags::ACK, 1, OUR_ISN + 1, 512, b"");
    }
    assert!(s.take().is_empty());
    assert_eq!(s.end.conn.stats().cong_win, before);
    assert_eq!(s.end.conn.stats().dup_acks, 10);
}

#[test]
fn a_window_of_zero_is_closed_and_probed_with_one_byte() {
    let mut s = unknown();
    s.write(b"first");
    s.take();
    s.give(Flags::ACK, 1, OUR_ISN + 6, 0, b"");
    s.write(b"second");
    assert!(s.take().is_empty());
    let probes = s.pass(ms(600));
    assert_eq!(probes.len(), 1);
    assert_eq!((probes[0].0, probes[0].1.payload.len()), (ms(500), 1));
    // The probe was taken and the window opened.
    s.give(Flags::ACK, 1, OUR_ISN + 7, 4, b"");
    assert_eq!(s.take()[0].payload, b"econd");
}

#[test]
fn a_window_that_stays_closed_ends_the_wait() {
    let mut s = unknown();
    s.write(b"first");
    s.take();
    s.give(Flags::ACK, 1, OUR_ISN + 6, 0, b"");
    s.write(b"second");
    for _ in 0..400 {
        s.give(Flags::ACK, 1, OUR_ISN + 6, 0, b"");
        s.pass(ms(1000));
    }
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Timeout));
    let now = s.now;
    assert_eq!(s.end.conn.write(now, b"x"), Err(WriteError::Closed(CloseReason::Timeout)));
}

#[test]
fn a_sender_that_takes_zero_for_unlimited_is_held_by_its_acknowledgement() {
    let cfg = StreamConfig { receive_buffer: 64 * 1024, ..StreamConfig::default() };
    let mut s = Scripted::accepted(PeerProfile::cautious(), cfg);
    s.end.reads = false;
    let mut last = None;
    let mut sent = 0;
    // It obeys a window of n segments as it understands it: less than n × 4096 bytes unacknowledged before each.
    let mut acked = 1;
    let mut allowed = 16 * 4096;
    while s.seq - acked < allowed {
        s.data(&[5; 1152]);
        sent += 1152;
        for (_, p) in s.pass(ms(10)) {
            assert!(p.window >= 1, "0 was advertised: {p:?}");
            acked = acked.max(p.ack);
            allowed = u32::from(p.window) * 4096;
            last = Some(p);
        }
        assert!(sent < 200_000, "the sender is never held");
    }
    let last = last.expect("it acknowledged");
    assert!(last.payload.starts_with(b"SACK"), "{last:?}");
    assert!(last.ack < s.seq, "the last segments are reported, not acknowledged");
    assert_eq!(s.end.conn.stats().overrun, 0);
    // Reading lets it go on with an acknowledgement that advances.
    s.end.reads = true;
    let out = s.take();
    assert_eq!((out[0].ack, out[0].payload.len()), (s.seq, 0));
    assert_eq!(s.end.received.len(), sent);
}

#[test]
fn the_receive_buffer_is_bounded_in_bytes() {
    let cfg = StreamConfig { receive_buffer: 64 * 1024, ..StreamConfig::default() };
    let mut s = Scripted::accepted(PeerProfile::cautious(), cfg);
    s.end.reads = false;
    for _ in 0..200 {
        s.data(&[5; 60_000]);
    }
    let stats = s.end.conn.stats();
    assert!(stats.recv_queue <= 128 * 1024, "{stats:?}");
    assert!(stats.overrun > 190);
}

#[test]
fn toward_an_unknown_peer_segments_are_short_few_and_keep_their_boundaries() {
    let mut s = unknown();
    s.end.conn.set_segment_limit(9000);
    s.give(Flags::ACK, 1, OUR_ISN + 1, 512, b"");
    s.write(&[9; 2_000_000]);
    let mut sent = Vec::new();
    let mut una = OUR_ISN + 1;
    for _ in 0..400 {
        let out = s.take();
        assert!(out.iter().all(|p| p.payload.len() <= 1152));
        sent.extend(out.iter().map(|p| p.seq.wrapping_add(p.payload.len() as u32)));
        let flying = sent.iter().filter(|end| end.wrapping_sub(una) as i32 > 0).count();
        assert!(flying <= 128, "{flying} segments in flight");
        let Some(next) = sent.iter().copied().filter(|end| end.wrapping_sub(una) as i32 > 0).min() else { break };
        una = next;
        s.now += ms(1);
        s.acks(una);
    }
    assert!(sent.len() > 300);
    // The path shrinks: what was sent is repeated as it was, what is new is smaller.
    s.end.conn.set_segment_limit(500);
    let repeats: Vec<usize> = s.pass(ms(20_000)).iter().map(|p| p.1.payload.len()).collect();
    assert!(repeats.contains(&1152) && repeats.iter().all(|len| *len == 1152 || *len <= 500), "{repeats:?}");
}

#[test]
fn toward_our_own_a_repeat_is_cut_to_the_path_as_it_is_now() {
    let mut s = Scripted::accepted(PeerProfile::ours(), StreamConfig::default());
    s.write(&[9; 1152]);
    assert_eq!(s.take()[0].payload.len(), 1152);
    s.end.conn.set_segment_limit(500);
    let repeats: Vec<usize> = s.pass(ms(1500)).iter().map(|p| p.1.payload.len()).collect();
    assert_eq!(repeats.first(), Some(&500), "{repeats:?}");
    assert!(repeats.iter().all(|len| *len <= 500));
}

#[test]
fn a_reset_ends_everything_at_once() {
    let mut s = unknown();
    s.data(b"x");
    s.write(b"y");
    s.end.conn.reset(s.now);
    let out = s.pass(ms(60_000));
    assert_eq!((out.len(), out[0].1.flags), (1, Flags::RST), "only the RST leaves: {out:?}");
    assert_eq!(s.end.conn.close_reason(), Some(CloseReason::Local));
    assert_eq!(s.end.conn.poll_timeout(), None);
    assert!(s.end.conn.is_forgotten());
}
