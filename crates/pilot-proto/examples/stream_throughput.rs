//! How fast two connections move bytes back to back on one core, without crypto and sockets.
//!
//! `cargo run --release -p pilot-proto --example stream_throughput [MEGABYTES]`. The rate is per second on the wall; on a busy
//! machine divide the bytes by the user time of the process instead.
#![allow(clippy::disallowed_methods)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_proto::profile::PeerProfile;
use pilot_proto::stream::{Connection, StreamConfig};
use pilot_wire::addr::{Address, SocketAddress};
use pilot_wire::packet::Packet;

/// Packets per turn, as one GSO send would carry.
const BATCH: usize = 48;

fn pump(now: Instant, from: &mut Connection, to: &mut Connection, buf: &mut Vec<u8>, ends: &mut Vec<usize>) -> usize {
    buf.clear();
    ends.clear();
    while ends.len() < BATCH && from.poll_transmit(now, buf) {
        ends.push(buf.len());
    }
    let mut start = 0;
    for &end in &*ends {
        if let Ok(p) = Packet::parse(&buf[start..end]) {
            to.handle_segment(now, &p.header, p.payload);
        }
        start = end;
    }
    ends.len()
}

fn run(label: &str, profile: PeerProfile, segment: usize, total: usize) {
    let cfg = Arc::new(StreamConfig::default());
    let (a, b) = (SocketAddress::new(Address::backbone(1), 5), SocketAddress::new(Address::backbone(2), 6));
    let started = Instant::now();
    let mut now = started;
    let mut tx = Connection::dial(now, &cfg, profile, a, b, 7);
    let mut syn = Vec::new();
    tx.poll_transmit(now, &mut syn);
    let Ok(syn) = Packet::parse(&syn) else { return };
    let mut rx = Connection::accept(now, &cfg, profile, b, a, &syn.header, 9);
    tx.set_segment_limit(segment);
    rx.set_segment_limit(segment);
    let data = vec![7; 256 * 1024];
    let mut sink = vec![0; 256 * 1024];
    let (mut buf, mut ends) = (Vec::with_capacity(1 << 20), Vec::new());
    let (mut written, mut read, mut packets) = (0, 0, 0);
    while read < total {
        while written < total {
            match tx.write(now, &data[..data.len().min(total - written)]) {
                Ok(n) => written += n,
                Err(_) => break,
            }
        }
        let sent = pump(now, &mut tx, &mut rx, &mut buf, &mut ends);
        while let Ok(n) = rx.read(now, &mut sink) {
            read += n;
            if n == 0 {
                break;
            }
        }
        let acks = pump(now, &mut rx, &mut tx, &mut buf, &mut ends);
        packets += sent + acks;
        while tx.poll_event().is_some() || rx.poll_event().is_some() {}
        now = Instant::now();
        if sent + acks == 0 {
            // Nothing to do but wait; the clock of the run may jump, the one on the wall decides.
            now += Duration::from_millis(1);
        }
        for c in [&mut tx, &mut rx] {
            if c.poll_timeout().is_some_and(|at| at <= now) {
                c.handle_timeout(now);
            }
        }
    }
    let t = started.elapsed().as_secs_f64();
    println!(
        "{label:28} {:7.0} MB/s  {:5.2} M packets/s  {} repeats",
        total as f64 / t / 1e6,
        packets as f64 / t / 1e6,
        tx.stats().retransmits + tx.stats().fast_retx
    );
}

fn main() {
    let total = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(2_000_usize) * 1_000_000;
    run("ours, 1400-byte segments", PeerProfile::ours(), 1400, total);
    run("ours, 8900-byte segments", PeerProfile::ours(), 8900, total);
    run("ours, 60000-byte segments", PeerProfile::ours(), 60_000, total);
    run("unknown peer, 1152 bytes", PeerProfile::cautious(), 1400, total / 10);
}
