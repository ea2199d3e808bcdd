//! Faults that official daemons had (07 §16, items 24 to 37), each as the behaviour that must not come back.

use std::sync::Arc;

use pilot_wire::packet::{Flags, Header, protocol};

use super::harness::*;
use crate::profile::PeerProfile;
use crate::stream::{CloseReason, Connection, State, StreamConfig};

const BELIEFS: [PeerProfile; 2] = [PeerProfile::cautious(), PeerProfile::ours()];

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i.wrapping_mul(167) ^ (i >> 7)) as u8).collect()
}

/// Loses every `n`-th packet that carries data.
fn lossy(n: usize) -> Fault {
    let mut count = 0;
    Box::new(move |_, p| {
        count += usize::from(!p.payload.is_empty());
        !p.payload.is_empty() && count % n == 0
    })
}

#[test]
fn no_byte_is_lost_in_any_order_of_closing_under_loss() {
    for profile in BELIEFS {
        for order in [[0, 1], [1, 0]] {
            let mut pair = Pair::connected([profile, profile], StreamConfig::default(), ms(10));
            pair.fault = lossy(5);
            let (a, b) = (bytes(40_000), bytes(30_000));
            pair.write_all(0, &a);
            pair.write_all(1, &b);
            if profile.half_close {
                pair.close(order[0]);
                pair.close(order[1]);
            } else {
                pair.run(ms(20_000));
                pair.close(order[0]);
                pair.run(ms(2));
                pair.close(order[1]);
            }
            pair.run(ms(90_000));
            assert!(pair.ends[1].received == a && pair.ends[0].received == b);
            for end in &pair.ends {
                assert_eq!(end.conn.close_reason(), Some(CloseReason::Clean));
                assert!(end.conn.is_forgotten());
            }
        }
    }
}

#[test]
fn after_the_close_the_wire_falls_silent() {
    for profile in BELIEFS {
        let mut pair = Pair::connected([profile, profile], StreamConfig::default(), ms(1));
        pair.write_all(0, b"hello");
        pair.run(ms(500));
        pair.log.clear();
        pair.close(0);
        pair.close(1);
        pair.run(ms(100_000));
        assert!(pair.log.len() <= 8, "{} packets to part", pair.log.len());
    }
}

#[test]
fn a_path_that_drops_large_packets_passes_large_streams() {
    for profile in BELIEFS {
        let mut pair = Pair::connected([profile, profile], StreamConfig::default(), ms(5));
        // 1,500 bytes of link less IPv4, UDP, sealed frame, relay header and packet header.
        pair.fault = Box::new(|_, p| p.payload.len() > 1500 - 20 - 8 - 36 - 9 - 34);
        let data = bytes(1_000_000);
        pair.write_all(0, &data);
        pair.run(ms(20_000));
        assert!(pair.ends[1].received == data);
        assert_eq!(pair.ends[0].conn.stats().retransmits, 0);
    }
}

#[test]
fn a_reader_that_stalls_resumes_without_loss() {
    for profile in BELIEFS {
        for stall in [ms(1500), ms(30_000), ms(240_000)] {
            let cfg = StreamConfig { receive_buffer: 64 << 10, ..StreamConfig::default() };
            let mut pair = Pair::connected([profile, profile], cfg, ms(5));
            pair.ends[1].reads = false;
            let data = bytes(600_000);
            pair.write_all(0, &data);
            pair.run(stall);
            assert!(pair.ends[1].conn.stats().recv_queue <= (128 << 10) + 4096);
            pair.ends[1].reads = true;
            pair.run(ms(60_000));
            assert!(pair.ends[1].received == data, "{} of {} after {stall:?}", pair.ends[1].received.len(), data.len());
        }
    }
}

#[test]
fn two_per_cent_loss_at_30_ms_finishes_and_the_time_out_recovers() {
    for profile in BELIEFS {
        let mut pair = Pair::connected([profile, profile], StreamConfig::default(), ms(15));
        pair.fault = lossy(50);
        let data = bytes(5_000_000);
        let from = pair.now;
        pair.write_all(0, &data);
        while pair.ends[1].received.len() < data.len() {
            pair.run(ms(100));
            assert!(pair.now - from < ms(90_000), "{} bytes in 90 s", pair.ends[1].received.len());
        }
        assert!(pair.ends[1].received == data);
        let stats = pair.ends[0].conn.stats();
        assert!(stats.retransmits < 20, "repairs wait for time-outs: {stats:?}");
        // What is written now is repaired as fast as at the start.
        pair.fault = Box::new(|_, _| false);
        pair.run(ms(2000));
        pair.log.clear();
        let mut first = true;
        pair.fault = Box::new(move |i, p| i == 0 && !p.payload.is_empty() && std::mem::take(&mut first));
        pair.write_all(0, b"one more");
        pair.run(ms(250));
        assert!(pair.sent_by(0).len() >= 2, "the loss of a lone segment was not repaired within 250 ms");
    }
}

#[test]
fn a_megabyte_in_one_write_and_an_immediate_close_arrives() {
    for profile in BELIEFS {
        let mut pair = Pair::connected([profile, profile], StreamConfig::default(), ms(5));
        let data = bytes(1 << 20);
        assert_eq!(pair.ends[0].conn.write(pair.now, &data), Ok(data.len()));
        pair.close(0);
        pair.run(ms(20_000));
        assert!(pair.ends[1].received == data);
        pair.close(1);
        pair.run(ms(20_000));
        for end in &pair.ends {
            assert_eq!(end.conn.close_reason(), Some(CloseReason::Clean));
        }
    }
}

#[test]
fn small_writes_do_not_wait_for_acknowledgements() {
    for profile in BELIEFS {
        let mut pair = Pair::connected([profile, profile], StreamConfig::default(), ms(1));
        let from = pair.now;
        for round in 1..=50 {
            // A header and a body in two writes, answered when both are there.
            pair.write_all(0, b"head");
            pair.run(ms(0));
            pair.write_all(0, b"body");
            pair.run(ms(1));
            assert_eq!(pair.ends[1].received.len(), round * 8);
            pair.write_all(1, b"answer");
            pair.run(ms(1));
            assert_eq!(pair.ends[0].received.len(), round * 6);
        }
        assert_eq!(pair.now - from, ms(100), "an exchange takes one round trip");
        // With coalescing on, a small write behind a small one waits, but only milliseconds and never in the writer.
        pair.ends[0].conn.set_nodelay(false);
        let before = pair.ends[1].received.len();
        pair.run(ms(500));
        for byte in [b"a", b"b", b"c"] {
            pair.write_all(0, byte);
            pair.run(ms(0));
        }
        pair.run(ms(7));
        assert_eq!(pair.ends[1].received.len(), before + 3);
    }
}

#[test]
fn streams_of_48_kilobyte_chunks_do_not_pause_between_chunks() {
    for profile in BELIEFS {
        let mut pair = Pair::connected([profile, profile], StreamConfig::default(), ms(1));
        let from = pair.now;
        for n in 1..=40 {
            pair.write_all(0, &bytes(48 << 10));
            while pair.ends[1].received.len() < n * (48 << 10) {
                pair.run(ms(1));
            }
            pair.write_all(1, b"ok");
            pair.run(ms(1));
        }
        assert!(pair.now - from < ms(600), "40 chunks took {:?}", pair.now - from);
    }
}

#[test]
fn dials_of_both_ends_at_once_on_the_same_ports_meet() {
    let now = start();
    let cfg = Arc::new(StreamConfig::default());
    let (a, b) = (address(1, 700), address(2, 800));
    let mut ends = [
        Connection::dial(now, &cfg, PeerProfile::ours(), a, b, 100),
        Connection::dial(now, &cfg, PeerProfile::ours(), b, a, 0x7FFF_FFFF),
    ];
    let take = |c: &mut Connection| {
        let mut out = Vec::new();
        let mut packets = Vec::new();
        while c.poll_transmit(now, &mut out) {
            packets.push(std::mem::take(&mut out));
        }
        packets
    };
    for _ in 0..4 {
        let sent = [take(&mut ends[0]), take(&mut ends[1])];
        for (i, packets) in sent.iter().enumerate() {
            for p in packets {
                let p = pilot_wire::packet::Packet::parse(p).expect("valid");
                ends[1 - i].handle_segment(now, &p.header, p.payload);
            }
        }
    }
    assert_eq!([ends[0].state(), ends[1].state()], [State::Established; 2]);
    assert_eq!(ends[0].write(now, b"hi"), Ok(2));
    for p in take(&mut ends[0]) {
        let p = pilot_wire::packet::Packet::parse(&p).expect("valid");
        ends[1].handle_segment(now, &p.header, p.payload);
    }
    let mut buf = [0; 8];
    assert_eq!(ends[1].read(now, &mut buf), Ok(2));
}

#[test]
fn no_timer_and_no_packet_survives_the_end() {
    for profile in BELIEFS {
        let mut s = Scripted::accepted(profile, StreamConfig::default());
        s.data(b"owes an acknowledgement");
        let seq = s.seq;
        s.give(Flags::RST, seq, 0, 0, b"");
        assert!(s.pass(ms(100_000)).is_empty());
        assert_eq!(s.end.conn.poll_timeout(), None);
        assert!(s.end.conn.is_forgotten());
    }
}

#[test]
fn an_application_that_leaves_is_no_burden() {
    // The peer goes on sending: it is reset when the linger time is over, and memory stays empty meanwhile.
    let mut s = Scripted::accepted(PeerProfile::ours(), StreamConfig::default());
    s.data(b"unread");
    s.end.reads = false;
    s.end.conn.detach(s.now);
    let mut out = Vec::new();
    for _ in 0..40 {
        s.data(&[1; 1000]);
        out.extend(s.pass(ms(1000)));
        assert_eq!(s.end.conn.stats().recv_queue, 0);
    }
    assert_eq!(out.last().map(|p| p.1.flags), Some(Flags::RST));
    assert!(s.end.conn.is_forgotten());
}

#[test]
fn a_forged_storm_of_repeats_costs_no_memory() {
    let mut s = Scripted::accepted(PeerProfile::cautious(), StreamConfig::default());
    for n in 0..20_000_u32 {
        // Single bytes, each behind its own hole.
        s.give(Flags::ACK, 3 + n * 2, OUR_ISN + 1, 512, b"x");
    }
    assert!(s.end.conn.stats().ooo_buf <= 1024);
    let syn = Header::new(protocol::STREAM, Flags::SYN, s.end.conn.remote(), s.end.conn.local());
    for _ in 0..1000 {
        s.end.conn.handle_segment(s.now, &syn, b"");
    }
    assert!(s.take().len() <= 6);
}
