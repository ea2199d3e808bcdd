//! Our node beside the February peer: data both ways, and quiet afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs};
use pilot_testkit::scheme_a::{FebOptions, FebPeer};

const LIMIT: Duration = Duration::from_secs(20);

fn february(rendezvous: &RendezvousProcess, seed: u8) -> FebPeer {
    FebPeer::start(&FebOptions {
        registry: rendezvous.registry(),
        beacon: Some(rendezvous.beacon()),
        listen: SocketAddr::new(rendezvous.registry().ip(), 0),
        seed,
        hostname: format!("feb-{seed}"),
        public: true,
    })
    .expect("February peer registers")
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
}

/// Without this, a quiet node in the tests below would prove nothing: two of these peers are as loud as the real ones.
#[test]
fn two_february_peers_exchange_data_and_then_storm() {
    isolated("two_february_peers_exchange_data_and_then_storm", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let (a, b) = (february(&rendezvous, 1), february(&rendezvous, 2));
        let conn = a.dial(b.node(), 7, LIMIT).expect("dial");
        let data = pattern(300_000);
        a.write(conn, &data);
        assert_eq!(a.read_exact(conn, data.len(), LIMIT).expect("echo"), data);
        a.close(conn);
        std::thread::sleep(Duration::from_millis(500));
        let (fins_a, fins_b) = (a.counters().fins_received, b.counters().fins_received);
        assert!(fins_a > 100 && fins_b > 100, "{fins_a} and {fins_b} FINs: no storm");
        assert!(b.counters().plain_received > 0, "the first packets travel in clear");
    });
}
