//! What the beacon guarantees against strangers, floods and time.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pilot_beacon::limits::{MAX_SYNC, NODE_TTL, TAKEOVER_AFTER};
use pilot_beacon::{Batch, Beacon, BeaconConfig, BeaconServer, NoWitness, Outbox, Witness};
use pilot_env::{Env, RecvBatch, Transmit};
use pilot_wire::beacon::BeaconMessage;
use proptest::prelude::*;

#[derive(Default)]
struct Known(Mutex<BTreeMap<u32, IpAddr>>);

impl Witness for Known {
    fn source_of(&self, node: u32) -> Option<IpAddr> {
        self.0.lock().get(&node).copied()
    }
}

struct Scene {
    beacon: Beacon,
    now: Instant,
    known: Known,
}

impl Scene {
    fn new(peers: &[SocketAddr]) -> Self {
        let beacon = Beacon::new(BeaconConfig { id: 1, peers: peers.to_vec() });
        Self { beacon, now: Env::real().now(), known: Known::default() }
    }

    fn send(&mut self, from: SocketAddr, message: &BeaconMessage<'_>) -> Vec<(SocketAddr, Vec<u8>)> {
        let mut datagram = Vec::new();
        message.emit(&mut datagram);
        let mut out = Outbox::default();
        self.beacon.handle(self.now, from, &datagram, &self.known, &mut out);
        out.batches(1, usize::MAX).into_iter().map(|b| (b.to, b.bytes.to_vec())).collect()
    }

    fn discover(&mut self, from: SocketAddr, node: u32) {
        let sent = self.send(from, &BeaconMessage::Discover { node });
        let mut reply = Vec::new();
        BeaconMessage::DiscoverReply { endpoint: from }.emit(&mut reply);
        assert_eq!(sent, [(from, reply)], "everybody is told its own endpoint");
    }

    fn relay(&mut self, from: SocketAddr, src: u32, dst: u32) -> Vec<(SocketAddr, Vec<u8>)> {
        self.send(from, &BeaconMessage::Relay { src, dst, frame: b"frame" })
    }
}

fn at(host: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([198, 51, 100, host], port))
}

#[test]
fn a_node_is_not_taken_over_from_another_address_while_it_lives() {
    let mut scene = Scene::new(&[]);
    scene.discover(at(1, 4000), 7);
    scene.discover(at(66, 4000), 7);
    scene.send(at(66, 4000), &BeaconMessage::PunchRequest { requester: 7, target: 7 });
    assert_eq!(scene.beacon.endpoint(scene.now, 7), Some(at(1, 4000)));
    assert_eq!(scene.beacon.counters().takeovers_refused, 2);
    // Its own NAT may give it another port.
    scene.discover(at(1, 4999), 7);
    assert_eq!(scene.beacon.endpoint(scene.now, 7), Some(at(1, 4999)));
    // Silent for long enough, it may have moved.
    scene.now += TAKEOVER_AFTER;
    scene.discover(at(2, 4000), 7);
    assert_eq!(scene.beacon.endpoint(scene.now, 7), Some(at(2, 4000)));
}

#[test]
fn a_node_that_the_registry_vouches_for_moves_at_once() {
    let mut scene = Scene::new(&[]);
    scene.discover(at(66, 4000), 7);
    scene.known.0.lock().insert(7, at(1, 0).ip());
    scene.discover(at(1, 4000), 7);
    assert_eq!(scene.beacon.endpoint(scene.now, 7), Some(at(1, 4000)));
    scene.discover(at(66, 4000), 7);
    assert_eq!(scene.beacon.endpoint(scene.now, 7), Some(at(1, 4000)));
}

#[test]
fn only_the_registered_endpoint_relays_in_a_nodes_name() {
    let mut scene = Scene::new(&[]);
    scene.discover(at(1, 4000), 7);
    scene.discover(at(2, 4000), 8);
    assert_eq!(scene.relay(at(1, 4000), 7, 8).len(), 1);
    assert!(scene.relay(at(66, 4000), 7, 8).is_empty());
    assert!(scene.relay(at(1, 4001), 7, 8).is_empty());
    assert!(scene.relay(at(1, 4000), 9, 8).is_empty());
    assert_eq!(scene.beacon.counters().foreign_sender, 3);
}

#[test]
fn a_node_that_asked_for_it_is_told_the_destination() {
    let mut scene = Scene::new(&[]);
    scene.discover(at(1, 4000), 7);
    scene.send(at(2, 4000), &BeaconMessage::DiscoverEx { node: 8 });
    let mut expected = Vec::new();
    BeaconMessage::RelayDeliverDest { src: 7, dst: 8, frame: b"frame" }.emit(&mut expected);
    assert_eq!(scene.relay(at(1, 4000), 7, 8), [(at(2, 4000), expected)]);
    // The plain form takes it back.
    scene.discover(at(2, 4000), 8);
    let mut expected = Vec::new();
    BeaconMessage::RelayDeliver { src: 7, frame: b"frame" }.emit(&mut expected);
    assert_eq!(scene.relay(at(1, 4000), 7, 8), [(at(2, 4000), expected)]);
}

#[test]
fn entries_expire_and_come_back() {
    let peer = at(200, 9001);
    let mut scene = Scene::new(&[peer]);
    scene.discover(at(1, 4000), 7);
    scene.discover(at(2, 4000), 8);
    let mut sync = Vec::new();
    pilot_wire::beacon::emit_sync(3, &[100], &mut sync);
    scene.beacon.handle(scene.now, peer, &sync, &NoWitness, &mut Outbox::default());
    assert_eq!(scene.beacon.remote_nodes(peer), [100]);
    scene.now += NODE_TTL;
    assert!(scene.relay(at(1, 4000), 7, 8).is_empty(), "the destination expired before the sweep too");
    scene.beacon.sweep(scene.now);
    assert_eq!(scene.beacon.node_count(), 0);
    assert_eq!(scene.beacon.remote_nodes(peer), Vec::<u32>::new());
    scene.discover(at(1, 4000), 7);
    scene.discover(at(2, 4000), 8);
    assert_eq!(scene.relay(at(1, 4000), 7, 8).len(), 1);
}

#[test]
fn a_flood_is_cut_off_and_spares_others() {
    let mut scene = Scene::new(&[]);
    scene.discover(at(2, 4000), 8);
    scene.discover(at(1, 4000), 7);
    let mut relayed = 0;
    for _ in 0..50_000 {
        relayed += scene.relay(at(66, 1), 66, 8).len();
        relayed += scene.relay(at(1, 4000), 7, 8).len();
    }
    assert_eq!(relayed, 10_000, "one second's allowance of node 7, nothing of the stranger");
    scene.discover(at(3, 4000), 9);
    assert_eq!(scene.relay(at(3, 4000), 9, 8).len(), 1);
    let replies: usize = (0..50_000).map(|_| scene.send(at(66, 1), &BeaconMessage::Discover { node: 66 }).len()).sum();
    assert_eq!(replies, 2000);
    // One node is not punched more often than a dial needs.
    let punches: usize = (0..500)
        .map(|i| scene.send(at(3, 4000), &BeaconMessage::PunchRequest { requester: 9, target: 7 + i % 2 }).len())
        .sum();
    assert_eq!(punches, 2 * 100);
    scene.now += Duration::from_secs(1);
    assert_eq!(scene.relay(at(1, 4000), 7, 8).len(), 1);
}

#[test]
fn gossip_names_at_most_what_fits_a_datagram() {
    let peer = at(200, 9001);
    let mut scene = Scene::new(&[peer]);
    for node in 1..=20_000u32 {
        let host = SocketAddr::from(([10, 0, (node >> 8) as u8, node as u8], 4000));
        scene.discover(host, node);
    }
    let mut out = Outbox::default();
    scene.beacon.sync(scene.now, &mut out);
    assert_eq!(out.total(), 7 + 4 * MAX_SYNC);
    assert!(out.total() <= 65_507);
}

#[test]
fn equal_datagrams_to_one_destination_leave_as_one_batch() {
    let mut scene = Scene::new(&[]);
    scene.discover(at(1, 4000), 7);
    scene.discover(at(2, 4000), 8);
    let mut out = Outbox::default();
    for frame in [&[0u8; 100][..], &[1; 100], &[2; 100], &[3; 40], &[4; 100]] {
        let mut datagram = Vec::new();
        BeaconMessage::Relay { src: 7, dst: 8, frame }.emit(&mut datagram);
        scene.beacon.handle(scene.now, at(1, 4000), &datagram, &scene.known, &mut out);
    }
    let lens: Vec<(usize, usize)> = out.batches(64, 65_000).iter().map(|b| (b.bytes.len(), b.size)).collect();
    assert_eq!(lens, [(3 * 105 + 45, 105), (105, 105)]);
    let lens: Vec<usize> = out.batches(2, 65_000).iter().map(|b| b.bytes.len()).collect();
    assert_eq!(lens, [210, 150, 105]);
    let lens: Vec<usize> = out.batches(64, 220).iter().map(|b| b.bytes.len()).collect();
    assert_eq!(lens, [210, 150, 105]);
    // What leaves in fragments leaves alone.
    out.clear();
    for frame in [[0; 4175], [1; 4175]] {
        let mut datagram = Vec::new();
        BeaconMessage::Relay { src: 7, dst: 8, frame: &frame }.emit(&mut datagram);
        scene.beacon.handle(scene.now, at(1, 4000), &datagram, &scene.known, &mut out);
    }
    let lens: Vec<usize> = out.batches(64, 65_000).iter().map(|b| b.bytes.len()).collect();
    assert_eq!(lens, [4180, 4180]);
}

proptest! {
    /// Whatever strangers send, nothing but a reply to themselves leaves, and nobody's entry changes.
    #[test]
    fn garbage_moves_nobody(datagrams in prop::collection::vec((0u8..6, prop::collection::vec(any::<u8>(), 0..40)), 1..60)) {
        let mut scene = Scene::new(&[at(200, 9001)]);
        scene.discover(at(100, 4000), 7);
        for (host, datagram) in datagrams {
            let from = at(host, 1000);
            let mut out = Outbox::default();
            scene.beacon.handle(scene.now, from, &datagram, &scene.known, &mut out);
            for Batch { to, bytes, .. } in out.batches(1, usize::MAX) {
                // Punch commands reach those who were asked for, and only they do.
                prop_assert!(to == from || bytes[0] == 4 || bytes[0] == 6 || bytes[0] == 9);
            }
            prop_assert_eq!(scene.beacon.endpoint(scene.now, 7), Some(at(100, 4000)));
        }
    }
}

#[tokio::test]
async fn frames_of_one_flow_keep_their_order_and_leave_from_the_listening_socket() {
    let env = Env::real();
    let listen: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let server = BeaconServer::start(&env, listen, BeaconConfig::default(), Arc::new(NoWitness)).unwrap();
    let beacon = server.addr();
    let (a, b) = (env.bind_udp(listen).unwrap(), env.bind_udp(listen).unwrap());
    let mut batch = RecvBatch::new();
    for (socket, node) in [(&a, 7u32), (&b, 8)] {
        let mut message = Vec::new();
        BeaconMessage::Discover { node }.emit(&mut message);
        socket.send(&Transmit { destination: beacon, contents: &message, segment_size: None }).await.unwrap();
        socket.recv(&mut batch).await;
        assert!(batch.datagrams_mut().all(|(from, _)| from == beacon));
    }
    server.handle().notify(8);
    let mut next = 0u32;
    let mut notified = false;
    while next < 500 {
        // A window of ten: nothing is lost on loopback, so order is what is tested.
        for i in next..next + 10 {
            let mut message = Vec::new();
            BeaconMessage::Relay { src: 7, dst: 8, frame: &i.to_be_bytes() }.emit(&mut message);
            a.send(&Transmit { destination: beacon, contents: &message, segment_size: None }).await.unwrap();
        }
        let end = next + 10;
        while next < end {
            b.recv(&mut batch).await;
            for (from, datagram) in batch.datagrams_mut() {
                assert_eq!(from, beacon);
                match BeaconMessage::parse(datagram) {
                    Some(BeaconMessage::RelayDeliver { src: 7, frame }) => {
                        assert_eq!(frame, next.to_be_bytes());
                        next += 1;
                    }
                    Some(BeaconMessage::Notify { kind: 1 }) => notified = true,
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    assert!(notified);
    assert_eq!(server.handle().counters().relayed, 500);
    server.shutdown().await;
}

/// A daemon takes beacon messages from no other address than the one it was given (07 rule 27), and a host with several
/// would by itself answer from whichever is nearest.
#[tokio::test]
async fn a_beacon_on_every_address_speaks_to_each_node_from_the_one_that_node_uses() {
    for (listen, own) in [("0.0.0.0:0", ["127.0.0.2", "127.0.0.3"]), ("[::]:0", ["127.0.0.2", "127.0.0.3"])] {
        let env = Env::real();
        let server =
            BeaconServer::start(&env, listen.parse().unwrap(), BeaconConfig::default(), Arc::new(NoWitness)).unwrap();
        let own = own.map(|ip| SocketAddr::new(ip.parse().unwrap(), server.addr().port()));
        let nodes = [(7u32, own[0]), (8, own[1])].map(|(node, beacon)| {
            let socket = env.bind_udp("127.0.0.1:0".parse().unwrap()).unwrap();
            (node, beacon, socket)
        });
        let mut batch = RecvBatch::new();
        for (node, beacon, socket) in &nodes {
            let mut message = Vec::new();
            BeaconMessage::Discover { node: *node }.emit(&mut message);
            socket.send(&Transmit { destination: *beacon, contents: &message, segment_size: None }).await.unwrap();
            socket.recv(&mut batch).await;
            assert!(batch.datagrams_mut().all(|(from, _)| from == *beacon), "the answer comes from elsewhere");
        }
        // What one node causes reaches the other from the address the other knows.
        let (_, beacon, socket) = &nodes[0];
        for message in [
            BeaconMessage::PunchRequest { requester: 7, target: 8 },
            BeaconMessage::Relay { src: 7, dst: 8, frame: b"frame" },
        ] {
            let mut bytes = Vec::new();
            message.emit(&mut bytes);
            socket.send(&Transmit { destination: *beacon, contents: &bytes, segment_size: None }).await.unwrap();
        }
        server.handle().notify(8);
        let (_, beacon, socket) = &nodes[1];
        let mut came = 0;
        while came < 3 {
            socket.recv(&mut batch).await;
            for (from, _) in batch.datagrams_mut() {
                assert_eq!(from, *beacon, "listening on {listen}");
                came += 1;
            }
        }
        server.shutdown().await;
    }
}
