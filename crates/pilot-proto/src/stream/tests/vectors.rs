//! The golden vectors of the transport, where our rules are those of the reference; where they differ on purpose the
//! test says how.

use std::time::Duration;

use pilot_wire::packet::{Flags, Packet};
use serde_json::Value;

use super::harness::*;
use crate::profile::PeerProfile;
use crate::stream::StreamConfig;
use crate::stream::assembler::Assembler;
use crate::stream::rtt::RttEstimator;
use crate::stream::seq::{to_offset, to_wire};

fn vectors(name: &str) -> Value {
    let text = match name {
        "state" => include_str!("../../../tests/vectors/transport-state.json"),
        "sack" => include_str!("../../../tests/vectors/transport-sack.json"),
        _ => include_str!("../../../tests/vectors/transport-exchanges.json"),
    };
    serde_json::from_str(text).expect("the vectors are JSON")
}

fn number(v: &Value) -> u64 {
    v.as_u64().expect("a number")
}

fn list(v: &Value) -> &[Value] {
    v.as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn round_trip_estimates_and_time_outs_are_those_of_the_reference() {
    let v = vectors("state");
    for case in list(&v["rtt"]) {
        let mut rtt = RttEstimator::new(Duration::from_secs(1), Duration::from_millis(200), Duration::from_secs(10));
        for step in list(&case["steps"]) {
            rtt.sample(Duration::from_nanos(number(&step["sample_ns"])));
            assert_eq!(rtt.smoothed().unwrap_or_default().as_nanos(), number(&step["srtt_ns"]).into(), "{case}");
            assert_eq!(rtt.variation().as_nanos(), number(&step["rttvar_ns"]).into(), "{case}");
            assert_eq!(rtt.rto().as_nanos(), number(&step["rto_ns"]).into(), "{case}");
        }
    }
}

#[test]
fn sequence_numbers_compare_across_the_wrap() {
    let v = vectors("state");
    for case in list(&v["sequence_compare"]) {
        let (a, b) = (number(&case["a"]) as u32, number(&case["b"]) as u32);
        // With `b` as the number of a byte far into the stream, `a` is after it exactly when its offset is.
        let reference = 1 << 40;
        let initial = b.wrapping_sub(1).wrapping_sub(reference as u32);
        assert_eq!(to_wire(initial, reference), b);
        let offset = to_offset(initial, reference, a);
        assert_eq!(offset > reference as i64, case["after"] == true, "{case}");
        assert_eq!(offset >= reference as i64, case["after_or_equal"] == true, "{case}");
    }
}

#[test]
fn reassembly_acknowledges_and_reports_like_the_reference_or_better() {
    let v = vectors("sack");
    for script in list(&v["receiver_reassembly"]) {
        if script["steps"].is_null() {
            continue;
        }
        let name = script["name"].as_str().expect("named");
        let first = number(&script["initial_expected_seq"]) as u32;
        let mut input = Assembler::new(4 << 20);
        for step in list(&script["steps"]) {
            let seq = number(&step["in_seq"]) as u32;
            let len = number(&step["in_len"]) as usize;
            let offset = to_offset(first.wrapping_sub(1), input.next(), seq);
            if let Ok(offset) = u64::try_from(offset) {
                input.insert(offset, &vec![0; len], 0);
            }
            let ack = to_wire(first.wrapping_sub(1), input.next());
            let blocks: Vec<Vec<u64>> = input
                .ahead()
                .as_slice()
                .iter()
                .take(4)
                .map(|r| vec![to_wire(first.wrapping_sub(1), r.0).into(), to_wire(first.wrapping_sub(1), r.1).into()])
                .collect();
            let (their_ack, theirs) = (number(&step["cumulative_ack"]) as u32, &step["sack_blocks"]);
            if name.contains("overlap") {
                // The reference drops what overlaps, or keeps it for good; we keep the new part (02 §29 row 34).
                assert!(ack.wrapping_sub(their_ack) as i32 >= 0, "{name}: {step}");
                continue;
            }
            assert_eq!(ack, their_ack, "{name}: {step}");
            assert_eq!(
                serde_json::json!(blocks),
                if theirs.is_null() { serde_json::json!([]) } else { theirs.clone() }
            );
        }
    }
}

/// The scripted peer's frames of an exchange are given to our end in the role of the reference. What the reference
/// answered is compared by kind, payload length, and acknowledgement relative to the start.
fn replay(name: &str) -> (Scripted, Vec<Seen>, Vec<Seen>) {
    let v = vectors("exchanges");
    let exchange = list(&v["exchanges"]).iter().find(|e| e["name"] == name).expect("the exchange exists");
    let mut s = Scripted::half_open(PeerProfile::cautious(), StreamConfig::default());
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    let mut at = 0;
    for frame in list(&exchange["frames"]) {
        let hex = frame["udp_payload_hex"].as_str().expect("hex");
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).expect("hex")).collect();
        let packet = Packet::parse(&bytes[4..]).expect("a packet behind the magic");
        let t = number(&frame["t_ms"]);
        for (_, seen) in s.pass(ms(t.saturating_sub(at))) {
            ours.push(seen);
        }
        at = at.max(t);
        let h = packet.header;
        if frame["dir"] == "ref>peer" {
            let seen =
                Seen { flags: h.flags, seq: h.seq, ack: h.ack, window: h.window, payload: packet.payload.into() };
            theirs.push(seen);
        } else if h.flags != Flags::SYN || at > 0 {
            // Our numbers start at OUR_ISN, the reference's at 0.
            s.give(h.flags, h.seq, if h.ack == 0 { 0 } else { h.ack.wrapping_add(OUR_ISN) }, h.window, packet.payload);
        }
    }
    ours.extend(s.pass(ms(200)).into_iter().map(|p| p.1));
    (s, theirs, ours)
}

#[test]
fn a_duplicate_syn_is_answered_before_and_after_data() {
    let (_, theirs, ours) = replay("duplicate SYN");
    let answers = |mut flags: Vec<Seen>| {
        flags.retain(|p| p.flags == Flags::SYN | Flags::ACK);
        flags.len()
    };
    // The first SYN|ACK of ours was taken when the connection was made. Ours always carry the original numbers.
    assert_eq!(answers(ours.clone()) + 1, answers(theirs));
    for p in ours.iter().filter(|p| p.flags.contains(Flags::SYN)) {
        assert_eq!((p.seq, p.ack), (OUR_ISN, 1));
    }
}

#[test]
fn reordering_is_reported_with_the_same_ranges() {
    let (s, theirs, ours) = replay("reordering, SACK and an old duplicate");
    let lists = |packets: Vec<Seen>| -> Vec<Vec<u8>> {
        packets.into_iter().map(|p| p.payload).filter(|p| p.starts_with(b"SACK")).collect()
    };
    assert_eq!(lists(ours.clone()), lists(theirs));
    assert_eq!(s.end.received.len(), 40);
    assert_eq!(ours.last().expect("something was sent").ack, 41);
}

#[test]
fn the_peers_close_is_answered_with_one_fin_ack() {
    let (s, theirs, ours) = replay("incoming connection to the echo service, peer closes");
    let fins: Vec<&Seen> = ours.iter().filter(|p| p.flags.contains(Flags::FIN)).collect();
    let reference = theirs.iter().find(|p| p.flags.contains(Flags::FIN)).expect("it answers");
    assert_eq!(fins.len(), 1);
    assert_eq!((fins[0].flags, fins[0].ack), (reference.flags, reference.ack));
    assert_eq!(s.end.received.len(), 6);
}
