//! How fast two endpoints move one stream between them in memory, encryption on, on one core.
//!
//! `cargo run --release -p pilot-proto --example endpoint_throughput -- [MEGABYTES] [loopback]`
//!
//! With `loopback` both have loopback addresses, where peers that said so in Hello send large segments.

#![allow(clippy::disallowed_methods, reason = "this program measures time")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use pilot_proto::endpoint::{ConnId, Endpoint, EndpointConfig, Event, PeerRecord};
use pilot_proto::identity::Identity;
use pilot_wire::{Address, SocketAddress};

struct Side {
    ep: Endpoint,
    addr: SocketAddr,
    conn: Option<ConnId>,
    received: u64,
}

fn side(now: Instant, node: u32, loopback: bool) -> Side {
    let identity = |n: u32| Arc::new(Identity::from_seed([n as u8; 32]));
    let mut config = EndpointConfig::new(identity(node), [node as u8; 32], 1_800_000_000);
    config.node = node;
    let mut ep = Endpoint::new(now, config);
    let other = 3 - node;
    ep.set_trusted(now, other, Some(identity(other).public_key()));
    ep.bind(7).expect("a free port");
    Side { ep, addr: address(node, loopback), conn: None, received: 0 }
}

fn address(node: u32, loopback: bool) -> SocketAddr {
    let net = if loopback { [127, 0, 0] } else { [203, 0, 113] };
    SocketAddr::from(([net[0], net[1], net[2], node as u8], 4_000))
}

fn events(side: &mut Side, now: Instant, loopback: bool, buf: &mut [u8]) {
    while let Some(event) = side.ep.poll_event() {
        match event {
            Event::NeedKey { node } => {
                let ed25519 = Identity::from_seed([node as u8; 32]).public_key();
                side.ep.handle_peer_key(now, node, Ok(PeerRecord { ed25519, version_known: true }));
            }
            Event::NeedEndpoint { node } => side.ep.handle_resolved(now, node, Ok(vec![address(node, loopback)])),
            Event::Accepted { conn, .. } => side.conn = Some(conn),
            Event::DialFailed { error, .. } => panic!("{error}"),
            _ => {}
        }
    }
    if let Some(conn) = side.conn {
        while let Ok(len) = side.ep.read(now, conn, buf) {
            if len == 0 {
                break;
            }
            side.received += len as u64;
        }
    }
}

/// Moves datagrams from one side to the other; returns how many.
fn carry(from: &mut Side, to: &mut Side, now: Instant, wire: &mut Vec<u8>) -> u64 {
    let mut count = 0;
    // A bounded share, as a socket buffer would hold.
    for _ in 0..16 {
        wire.clear();
        let Some(t) = from.ep.poll_transmit(now, wire, 64) else { break };
        assert_eq!(t.dst, to.addr);
        let size = t.segment_size.unwrap_or(t.len);
        for datagram in wire.chunks_mut(size) {
            to.ep.handle_datagram(now, from.addr, datagram);
            count += 1;
        }
    }
    count
}

fn main() {
    let mut args = std::env::args().skip(1);
    let megabytes: u64 = args.next().and_then(|a| a.parse().ok()).unwrap_or(500);
    let loopback = args.next().is_some();
    let total = megabytes * 1_000_000;
    let mut now = Instant::now();
    let (mut a, mut b) = (side(now, 1, loopback), side(now, 2, loopback));
    let to = SocketAddress::new(Address::backbone(2), 7);
    let conn = a.ep.connect(now, to).expect("a dial");
    let data = vec![0x5A; 256 << 10];
    let mut buf = vec![0; 256 << 10];
    let mut wire = Vec::with_capacity(70_000);
    let (mut written, mut datagrams) = (0, 0);
    let start = Instant::now();
    while b.received < total {
        now = Instant::now();
        while written < total {
            let chunk = data.len().min((total - written) as usize);
            match a.ep.write(now, conn, &data[..chunk]) {
                Ok(len) => written += len as u64,
                Err(_) => break,
            }
        }
        datagrams += carry(&mut a, &mut b, now, &mut wire);
        events(&mut b, now, loopback, &mut buf);
        datagrams += carry(&mut b, &mut a, now, &mut wire);
        events(&mut a, now, loopback, &mut buf);
        for side in [&mut a, &mut b] {
            if side.ep.poll_timeout().is_some_and(|t| t <= now) {
                side.ep.handle_timeout(now);
            }
        }
    }
    let took = start.elapsed().as_secs_f64();
    let stats = a.ep.info(now);
    println!(
        "{megabytes} MB in {took:.3} s: {:.0} MB/s, {datagrams} datagrams, {:?}",
        total as f64 / 1e6 / took,
        stats.conns.first().map(|c| (c.stats.retransmits, c.stats.fast_retx, c.stats.cong_win))
    );
}
