//! Sealing and opening on the fast path: no allocation per packet, and how fast it is (printed, not judged).

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use pilot_proto::crypto::{ExchangeKey, Scheme};
use pilot_proto::identity::Identity;
use pilot_proto::tunnel::{LocalKeys, Sealed, Tunnel, TunnelConfig, Via};
use pilot_wire::packet::{Flags, Header, protocol};
use pilot_wire::tunnel::{AuthExchange, SECURE_HEADER_LEN};
use pilot_wire::{Address, SocketAddress};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system allocator unchanged; only a counter of the thread is touched beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's promises are those the system allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

fn tunnel(node: u32, peer: u32, now: Instant) -> Tunnel {
    let identity = |n: u32| Arc::new(Identity::from_seed([n as u8; 32]));
    let key = |n: u32| [n as u8 + 40; 32];
    let local = Arc::new(LocalKeys::new(node, identity(node), 0));
    let cfg = Arc::new(TunnelConfig::default());
    let mut t = Tunnel::recorded(now, local, peer, &cfg, &key(node), [node as u8; 4], 0);
    let x25519 = *ExchangeKey::from_private(&key(peer)).public();
    let them = identity(peer);
    let signature = them.sign(&AuthExchange::signed_bytes(peer, &x25519));
    let exchange = AuthExchange { node: peer, x25519, ed25519: them.public_key(), signature };
    t.handle_auth(now, via(), &exchange, &them.public_key()).unwrap();
    t.set_hint(Scheme::B);
    t
}

fn via() -> Via {
    Via::Direct(SocketAddr::from(([127, 0, 0, 1], 4000)))
}

/// A stream segment with this much payload.
fn segment(from: u32, to: u32, payload: usize) -> Vec<u8> {
    let at = |n| SocketAddress::new(Address::backbone(n), 7);
    let mut out = Vec::new();
    Header::new(protocol::STREAM, Flags::ACK, at(from), at(to)).emit(&vec![0x5A; payload], &mut out).unwrap();
    out
}

#[test]
#[allow(clippy::disallowed_methods)]
fn packets_are_sealed_and_opened_without_an_allocation() {
    let now = Instant::now();
    let (mut a, mut b) = (tunnel(1, 2, now), tunnel(2, 1, now));
    for payload in [0, 1152, 4096] {
        let packet = segment(1, 2, payload);
        let back = segment(2, 1, 0);
        let mut buf = Vec::with_capacity(16 * 1024);
        let mut round = |a: &mut Tunnel, b: &mut Tunnel, packet: &[u8]| {
            buf.clear();
            buf.resize(SECURE_HEADER_LEN, 0);
            buf.extend_from_slice(packet);
            assert_eq!(a.seal(now, &mut buf, 0), Ok(Sealed::One));
            assert_eq!(b.open(now, via(), &mut buf).unwrap().packet.len(), packet.len());
        };
        // Warm up: both have heard each other, windows and queues exist.
        for _ in 0..10 {
            round(&mut a, &mut b, &packet);
            round(&mut b, &mut a, &back);
        }
        while a.poll_event().is_some() || b.poll_event().is_some() {}
        let packets = if cfg!(debug_assertions) { 20_000 } else { 400_000 };
        let (before, began) = (allocations(), Instant::now());
        for _ in 0..packets {
            round(&mut a, &mut b, &packet);
        }
        let (used, took) = (allocations() - before, began.elapsed());
        let rate = f64::from(packets) * payload as f64 / took.as_secs_f64() / 1e6;
        let each = took.as_nanos() as f64 / f64::from(packets);
        println!("seal + open, {payload} bytes of payload: {rate:.0} MB/s, {each:.0} ns per packet");
        assert_eq!(used, 0, "{used} allocations for {packets} packets of {payload} bytes");
    }
}
