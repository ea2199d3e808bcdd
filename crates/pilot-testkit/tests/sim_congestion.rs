//! How well a stream uses a path: bottlenecks with bounded queues, on the simulated network.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_proto::profile::PeerProfile;
use pilot_proto::stream::{Connection, StreamConfig};
use pilot_testkit::sim::{Conditions, SimHost, SimNet};
use pilot_wire::addr::{Address, SocketAddress};
use pilot_wire::packet::Packet;

/// One end that writes zeros for ever, or reads and counts.
struct Bulk {
    conn: Option<Connection>,
    peer: SocketAddr,
    profile: PeerProfile,
    segment: usize,
    writes: bool,
    received: u64,
    buf: Vec<u8>,
}

impl Bulk {
    fn work(&mut self, now: Instant) {
        let Some(conn) = &mut self.conn else { return };
        while conn.poll_event().is_some() {}
        if self.writes {
            while conn.write(now, &self.buf).is_ok() {}
        }
        while let Ok(n) = conn.read(now, &mut self.buf) {
            if n == 0 {
                break;
            }
            self.received += n as u64;
        }
    }
}

impl SimHost for Bulk {
    fn handle_datagram(&mut self, now: Instant, _from: SocketAddr, datagram: &mut [u8]) {
        let Ok(p) = Packet::parse(datagram) else { return };
        match &mut self.conn {
            Some(conn) => conn.handle_segment(now, &p.header, p.payload),
            None => {
                let cfg = Arc::new(StreamConfig::default());
                let mut conn = Connection::accept(now, &cfg, self.profile, p.header.dst, p.header.src, &p.header, 5);
                conn.set_segment_limit(self.segment);
                self.conn = Some(conn);
            }
        }
        self.work(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some(conn) = &mut self.conn {
            conn.handle_timeout(now);
        }
        self.work(now);
    }

    fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SocketAddr> {
        self.work(now);
        let conn = self.conn.as_mut()?;
        conn.poll_transmit(now, out).then_some(self.peer)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.conn.as_ref().and_then(Connection::poll_timeout)
    }
}

struct Outcome {
    /// Payload bytes per second.
    goodput: f64,
    /// Repeats per segment sent.
    repeats: f64,
    /// Smoothed round trip at the end.
    rtt: Duration,
}

fn transfer(profile: PeerProfile, segment: usize, path: Conditions, time: Duration) -> Outcome {
    let mut net = SimNet::new(1);
    let at: [SocketAddr; 2] = [([10, 0, 0, 1], 1).into(), ([10, 0, 0, 2], 1).into()];
    let streams = [1, 2].map(|n| SocketAddress::new(Address::backbone(n), 9));
    let now = net.now();
    let mut dialled = Connection::dial(now, &Arc::new(StreamConfig::default()), profile, streams[0], streams[1], 77);
    dialled.set_segment_limit(segment);
    for (i, conn) in [Some(dialled), None].into_iter().enumerate() {
        let host = Bulk { conn, peer: at[1 - i], profile, segment, writes: i == 0, received: 0, buf: vec![0; 1 << 16] };
        net.add(at[i], host);
    }
    let back = Conditions { delay: path.delay, ..Conditions::default() };
    net.set_conditions(0, 1, path);
    net.set_conditions(1, 0, back);
    while net.step(now + time) {}
    let stats = net.host(0).conn.as_ref().expect("it dialled").stats();
    let outcome = Outcome {
        goodput: net.host(1).received as f64 / time.as_secs_f64(),
        repeats: (stats.retransmits + stats.fast_retx) as f64 / stats.segs_sent.max(1) as f64,
        rtt: Duration::from_micros(stats.srtt_us),
    };
    println!(
        "{:7.1} MB/s, {:.3} % repeats, rtt {:?}, {stats:?}",
        outcome.goodput / 1e6,
        outcome.repeats * 100.0,
        outcome.rtt
    );
    outcome
}

fn path(rate: u64, delay: Duration, queue: usize, loss: f64) -> Conditions {
    Conditions { rate: Some(rate), delay, queue, loss, ..Conditions::default() }
}

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_long_path_with_a_queue_of_one_round_trip_is_filled() {
    // 100 Mbit/s, 30 ms: 375 kB.
    let o = transfer(PeerProfile::ours(), 1400, path(12_500_000, 15 * MS, 375_000, 0.0), 20_000 * MS);
    assert!(o.goodput > 0.85 * 12_500_000.0, "{} B/s", o.goodput);
    assert!(o.repeats < 0.03, "{}", o.repeats);
}

#[test]
fn a_shallow_queue_is_still_used_well() {
    let o = transfer(PeerProfile::ours(), 1400, path(12_500_000, 15 * MS, 60_000, 0.0), 20_000 * MS);
    assert!(o.goodput > 0.6 * 12_500_000.0, "{} B/s", o.goodput);
    assert!(o.repeats < 0.05, "{}", o.repeats);
}

#[test]
fn a_fast_short_path_with_the_usual_socket_buffer_is_not_choked() {
    for segment in [1400, 16_000] {
        let o = transfer(PeerProfile::ours(), segment, path(500_000_000, MS / 20, 212_992, 0.0), 2000 * MS);
        assert!(o.goodput > 0.8 * 500_000_000.0, "{} B/s", o.goodput);
    }
}

#[test]
fn random_loss_hurts_but_does_not_stall() {
    let o = transfer(PeerProfile::ours(), 1400, path(12_500_000, 15 * MS, 375_000, 0.01), 20_000 * MS);
    assert!(o.goodput > 400_000.0, "{} B/s", o.goodput);
}

#[test]
fn an_unknown_peer_gets_all_that_128_segments_allow() {
    let o = transfer(PeerProfile::cautious(), 1400, path(12_500_000, 15 * MS, 375_000, 0.0), 10_000 * MS);
    let most = 128.0 * 1152.0 / 0.032;
    assert!(o.goodput > 0.85 * most, "{} of {most} B/s", o.goodput);
}
