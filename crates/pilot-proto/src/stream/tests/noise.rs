//! Nothing a peer sends makes an end panic, grow without bound, or never come to rest.

use pilot_wire::packet::Flags;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::harness::*;
use crate::profile::PeerProfile;
use crate::stream::StreamConfig;

/// A number near something that matters, or anything.
fn near(rng: &mut StdRng, centre: u32) -> u32 {
    match rng.random_range(0..6) {
        0 => rng.random(),
        1 => centre,
        2 => centre.wrapping_add(0x8000_0000),
        3 => centre.wrapping_sub(rng.random_range(0..70_000)),
        _ => centre.wrapping_add(rng.random_range(0..70_000)),
    }
}

fn storm(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let rng = &mut rng;
    let profiles = [PeerProfile::cautious(), PeerProfile::ours()];
    let cfg = StreamConfig { send_buffer: 64 << 10, receive_buffer: 64 << 10, ..StreamConfig::default() };
    let profile = profiles[rng.random_range(0..2)];
    let mut s = match rng.random_range(0..3) {
        0 => Scripted::dialling(profile, cfg),
        1 => Scripted::half_open(profile, cfg),
        _ => Scripted::accepted(profile, cfg),
    };
    s.end.reads = rng.random_bool(0.7);
    let mut emitted = 0;
    for step in 0..400 {
        match rng.random_range(0..12) {
            0 => drop(s.end.conn.write(s.now, &vec![step as u8; rng.random_range(0..9000)])),
            1 => s.end.conn.set_profile(s.now, profiles[rng.random_range(0..2)]),
            2 => s.end.conn.set_segment_limit(rng.random_range(0..70_000)),
            3 if rng.random_bool(0.05) => s.end.conn.close(s.now),
            3 if rng.random_bool(0.02) => s.end.conn.detach(s.now),
            _ => {
                let flags = match rng.random_range(0..10) {
                    0 => rng.random_range(0..16),
                    1 => Flags::FIN.bits(),
                    2 => (Flags::FIN | Flags::ACK).bits(),
                    _ => Flags::ACK.bits(),
                };
                let base = OUR_ISN + 1;
                let (seq, ack) = (near(rng, s.seq), near(rng, base));
                let mut payload = vec![0; *[0, 1, 13, 100, 1152, 60_000].get(rng.random_range(0..6)).unwrap_or(&0)];
                if rng.random_bool(0.3) {
                    payload = b"SACK".to_vec();
                    payload.push(rng.random_range(0..6));
                    for _ in 0..rng.random_range(0..10) {
                        payload.extend_from_slice(&near(rng, base).to_be_bytes());
                    }
                }
                s.give(Flags::from_bits(flags), seq, ack, rng.random(), &payload);
            }
        }
        emitted += s.take().len();
        if rng.random_bool(0.3) {
            emitted += s.pass(ms(rng.random_range(0..2000))).len();
        }
        let stats = s.end.conn.stats();
        assert!(stats.recv_queue <= 256 << 10 && stats.ooo_buf <= 1024 && stats.send_queue <= 64 << 10, "{stats:?}");
    }
    s.end.reads = true;
    emitted += s.pass(ms(1_500_000)).len();
    assert!(emitted < 60_000, "{emitted} packets in answer to 400");
    assert!(s.end.conn.is_forgotten(), "seed {seed}: {:?}", s.end.conn);
    assert_eq!(s.end.conn.poll_timeout(), None);
}

#[test]
fn random_packets_do_no_harm() {
    for seed in 0..600 {
        storm(seed);
    }
}
