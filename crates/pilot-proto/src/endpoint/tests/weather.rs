//! Whole endpoints in random weather: loss, copies, paths that break and heal, restarts. A failing seed is printed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::harness::Net;
use crate::endpoint::*;

const SECOND: Duration = Duration::from_secs(1);

fn storm(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut net = Net::with_beacon();
    net.add(1);
    net.add(2);
    net.trust(0, 1);
    net.latency = Duration::from_millis(rng.random_range(0..80));
    net.run(SECOND);
    let loss = rng.random_range(0.0..0.12);
    let mut dice = StdRng::seed_from_u64(seed ^ 0xABCD);
    net.filter = Some(Box::new(move |_, _, _| !dice.random_bool(loss)));
    for round in 0..4u8 {
        match rng.random_range(0..6) {
            0 => net.block(0, 1),
            1 => net.unblock_all(),
            2 => {
                let (a, b) = (net.nodes[0].addr, net.nodes[1].addr);
                net.blocked.insert((a, b));
            }
            3 => {
                net.restart(rng.random_range(0..2), round.wrapping_mul(31) ^ seed as u8);
                net.trust(0, 1);
            }
            4 => net.nodes[0].addr.set_port(5_000 + u16::from(round)),
            _ => net.run(Duration::from_secs(rng.random_range(0..400))),
        }
        let (from, to) = if rng.random_bool(0.5) { (0, 1) } else { (1, 0) };
        let data: Vec<u8> = (0..rng.random_range(1..40_000u32)).map(|i| (i ^ u32::from(round)) as u8).collect();
        let through = (0..4).any(|_| exchange(&mut net, from, to, &data));
        assert!(through, "seed {seed}, round {round}: four attempts failed");
    }
    net.filter = None;
    net.unblock_all();
    net.run(20 * SECOND);
    for n in 0..2 {
        let ids: Vec<ConnId> = net.info(n).conns.iter().map(|c| c.id).collect();
        let now = net.now;
        for id in ids {
            let _ = net.nodes[n].ep.release(now, id);
        }
    }
    net.run(Duration::from_secs(600));
    for n in 0..2 {
        assert!(net.info(n).conns.is_empty() && net.info(n).peers.is_empty(), "seed {seed}: node {n} keeps something");
    }
}

/// Dials and has `data` echoed; false when the dial fails or the peer gives the connection up on the way, as it may when
/// its half of the handshake took too long.
fn exchange(net: &mut Net, from: usize, to: usize, data: &[u8]) -> bool {
    let conn = net.dial(from, to, 7);
    net.decide(from, conn, 60 * SECOND);
    if !net.connected(from, conn) {
        return false;
    }
    net.write(from, conn, data);
    for _ in 0..24_000 {
        let got = net.nodes[from].received.get(&conn);
        if got.is_some_and(|got| got.len() >= data.len()) {
            assert_eq!(got.map(Vec::as_slice), Some(data));
            net.close(from, conn);
            return true;
        }
        if net.closed(from, conn) {
            return false;
        }
        net.run_ms(5);
    }
    panic!("neither echoed nor closed within two minutes");
}

#[test]
fn streams_get_through_any_weather_and_nothing_is_left_behind() {
    for seed in 0..150 {
        if std::panic::catch_unwind(|| storm(seed)).is_err() {
            panic!("seed {seed} fails: give it alone to `storm` to replay it");
        }
    }
}
