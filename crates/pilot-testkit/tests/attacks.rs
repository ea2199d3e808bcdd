//! Raw datagrams thrown at a running daemon by somebody who can send to its port: nothing they carry takes effect, the
//! daemon stays up, and the traffic of others flows on.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)] // the attacker has plain sockets

use std::net::{SocketAddr, UdpSocket};
use std::time::Duration;

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};
use pilot_testkit::scheme_a::crypto::Keys;
use pilot_testkit::scheme_a::{FebOptions, FebPeer};
use pilot_wire::beacon::BeaconMessage;
use pilot_wire::packet::{Flags, Header, protocol};
use pilot_wire::tunnel::{AuthExchange, KeyExchange, MAGIC_PLAIN};
use pilot_wire::{Address, SocketAddress};

const LIMIT: Duration = Duration::from_secs(20);

/// Two daemons of ours that trust each other and talk, and an attacker on the same network.
struct Scene {
    rendezvous: RendezvousProcess,
    victim: Agent,
    friend: Agent,
    /// Where the victim's tunnel socket is.
    target: SocketAddr,
    attacker: UdpSocket,
}

impl Scene {
    fn new() -> Self {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let target = SocketAddr::new(rendezvous.registry().ip(), 4001);
        let options = |name: &str| AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
        let mut at_target = options("victim");
        at_target.listen = target;
        let victim = Agent::start(&ours(), &at_target).expect("victim");
        let friend = Agent::start(&ours(), &options("friend")).expect("friend");
        make_trust(&friend, &victim, LIMIT).expect("trust");
        let attacker = UdpSocket::bind(SocketAddr::new(target.ip(), 0)).expect("attacker");
        attacker.set_read_timeout(Some(Duration::from_millis(200))).expect("time-out");
        let scene = Self { rendezvous, victim, friend, target, attacker };
        scene.assert_unharmed_quietly();
        scene
    }

    fn throw(&self, datagram: &[u8]) {
        self.attacker.send_to(datagram, self.target).expect("send");
    }

    /// Everything the victim sent to the attacker.
    fn answers(&self) -> Vec<Vec<u8>> {
        let mut buf = vec![0; 65_536];
        let mut answers = Vec::new();
        while let Ok(len) = self.attacker.recv(&mut buf) {
            answers.push(buf[..len].to_vec());
        }
        answers
    }

    fn assert_unharmed_quietly(&self) {
        for (from, to) in [(&self.friend, &self.victim), (&self.victim, &self.friend)] {
            let answer = from.ctl(&["connect", to.address(), "7", "--message", "still fine"]).expect("connect");
            assert_eq!(answer["response"], "still fine");
        }
    }

    /// The victim runs, has not panicked, and talks to its friend both ways.
    fn assert_unharmed(&mut self) {
        assert!(self.victim.is_alive(), "the victim died:\n{}", self.victim.log());
        assert!(!self.victim.log().contains("panicked"), "the victim panicked:\n{}", self.victim.log());
        self.assert_unharmed_quietly();
    }

    fn header(&self, protocol: u8, flags: Flags, src_port: u16, dst_port: u16) -> Header {
        let src = SocketAddress::new(Address::backbone(self.friend.node()), src_port);
        let dst = SocketAddress::new(Address::backbone(self.victim.node()), dst_port);
        Header::new(protocol, flags, src, dst)
    }

    fn peer_endpoint(&self) -> String {
        let info = self.victim.ctl(&["info"]).expect("info");
        let peers = info["peer_list"].as_array().expect("peer_list");
        let friend = peers.iter().find(|p| p["node_id"] == self.friend.node()).expect("friend is a peer");
        friend["endpoint"].as_str().expect("endpoint").to_owned()
    }
}

/// Deterministic noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

fn plain(header: &Header, payload: &[u8]) -> Vec<u8> {
    let mut frame = MAGIC_PLAIN.to_vec();
    header.emit(payload, &mut frame).expect("packet");
    frame
}

#[test]
fn plaintext_never_reaches_a_stream_or_a_service() {
    isolated("plaintext_never_reaches_a_stream_or_a_service", &[need_programs], || {
        let mut scene = Scene::new();
        let conns = || scene.victim.ctl(&["info"]).expect("info")["connections"].clone();
        let before = conns();
        for port in [7, 444, 1000, 1001] {
            for flags in [Flags::SYN, Flags::ACK, Flags::FIN, Flags::RST] {
                scene.throw(&plain(&scene.header(protocol::STREAM, flags, 50_000, port), b"injected"));
            }
            scene.throw(&plain(&scene.header(protocol::DATAGRAM, Flags::NONE, 50_000, port), b"injected"));
        }
        scene.throw(&plain(&scene.header(protocol::CONTROL, Flags::NONE, 5, 0), b"ping"));
        let answers = scene.answers();
        assert!(answers.is_empty(), "{} answers to plaintext", answers.len());
        assert_eq!(conns(), before, "a stream was opened by plaintext");
        scene.assert_unharmed();
    });
}

#[test]
fn beacon_messages_from_anybody_else_do_nothing() {
    isolated("beacon_messages_from_anybody_else_do_nothing", &[need_programs], || {
        let mut scene = Scene::new();
        let bystander = UdpSocket::bind(SocketAddr::new(scene.target.ip(), 0)).expect("bystander");
        bystander.set_read_timeout(Some(Duration::from_millis(500))).expect("time-out");
        let endpoint = bystander.local_addr().expect("address");
        let own = scene.victim.ctl(&["info"]).expect("info")["endpoint"].clone();
        let friend_at = scene.peer_endpoint();
        let auth = foreign_auth(scene.friend.node());
        for message in [
            BeaconMessage::PunchCommand { endpoint },
            BeaconMessage::DiscoverReply { endpoint },
            BeaconMessage::RelayDeliver { src: scene.friend.node(), frame: &auth },
            BeaconMessage::RelayDeliver { src: 77, frame: b"PILSgarbage" },
            BeaconMessage::RelayDeliverDest { src: scene.friend.node(), dst: scene.victim.node(), frame: &auth },
            BeaconMessage::Notify { kind: 1 },
        ] {
            let mut datagram = Vec::new();
            message.emit(&mut datagram);
            for _ in 0..50 {
                scene.throw(&datagram);
            }
        }
        assert!(bystander.recv(&mut [0; 100]).is_err(), "the victim was made to send to a bystander");
        assert!(scene.answers().is_empty());
        assert_eq!(scene.victim.ctl(&["info"]).expect("info")["endpoint"], own, "a stranger moved our endpoint");
        assert_eq!(scene.peer_endpoint(), friend_at, "a stranger moved a peer's endpoint");
        scene.assert_unharmed();
    });
}

/// A `PILA` for `node`, well formed and signed, but by somebody else.
fn foreign_auth(node: u32) -> Vec<u8> {
    let keys = Keys::new(&[0x66; 32], &[0x55; 32]).expect("keys");
    let x25519 = keys.x25519();
    let exchange = AuthExchange {
        node,
        x25519,
        ed25519: keys.identity(),
        signature: keys.sign(&AuthExchange::signed_bytes(node, &x25519)),
    };
    let mut frame = Vec::new();
    exchange.emit(&mut frame);
    frame
}

#[test]
fn key_exchanges_of_others_and_old_ones_move_no_session() {
    isolated("key_exchanges_of_others_and_old_ones_move_no_session", &[need_programs], || {
        let mut scene = Scene::new();
        let friend_at = scene.peer_endpoint();
        // Signed by a foreign key, for a known node, for an unknown one, for the victim itself.
        for node in [scene.friend.node(), 0xDEAD_BEEF, scene.victim.node(), 0] {
            for _ in 0..20 {
                scene.throw(&foreign_auth(node));
                let mut anonymous = Vec::new();
                KeyExchange { node, x25519: [9; 32] }.emit(&mut anonymous);
                scene.throw(&anonymous);
            }
        }
        let answers = scene.answers();
        assert!(!answers.iter().any(|a| a.starts_with(b"PILS")), "a session came of a foreign key exchange");
        assert!(answers.len() <= 12, "{} answers to 160 forged exchanges", answers.len());
        assert_eq!(scene.peer_endpoint(), friend_at);
        scene.assert_unharmed();

        // A genuine one, replayed from elsewhere after its owner has gone on to a new key.
        let feb = FebPeer::start(&FebOptions {
            registry: scene.rendezvous.registry(),
            beacon: Some(scene.rendezvous.beacon()),
            listen: SocketAddr::new(scene.target.ip(), 0),
            seed: 9,
            hostname: "feb".into(),
            public: true,
        })
        .expect("February peer");
        let old = feb.with(|core, _| core.auth_frame());
        let talk = |feb: &FebPeer| {
            let conn = feb.dial(scene.victim.node(), 444, LIMIT).expect("port 444 is open to all");
            feb.close(conn);
        };
        talk(&feb);
        feb.restart().expect("new key");
        talk(&feb);
        let reads = feb.counters().opened;
        for _ in 0..50 {
            scene.throw(&old);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert!(!scene.answers().iter().any(|a| a.starts_with(b"PILS")), "the replayer was taken for the owner");
        talk(&feb);
        assert!(feb.counters().opened > reads, "the owner's session still works");
        scene.assert_unharmed();
    });
}

#[test]
fn forged_counters_move_no_window() {
    isolated("forged_counters_move_no_window", &[need_programs], || {
        let mut scene = Scene::new();
        let mut noise = Noise(42);
        for counter in [u64::MAX, u64::MAX - 1, 1 << 63, 1 << 62, 0, 1].into_iter().cycle().take(3_000) {
            let mut frame = b"PILS".to_vec();
            frame.extend_from_slice(&scene.friend.node().to_be_bytes());
            frame.extend_from_slice(&noise.bytes(4));
            frame.extend_from_slice(&counter.to_be_bytes());
            frame.extend_from_slice(&noise.bytes(60));
            scene.throw(&frame);
        }
        let answers = scene.answers();
        assert!(answers.len() <= 20, "{} answers to 3000 forged frames", answers.len());
        scene.assert_unharmed();
    });
}

#[test]
fn oversized_truncated_and_random_datagrams_are_dropped() {
    isolated("oversized_truncated_and_random_datagrams_are_dropped", &[need_programs], || {
        let mut scene = Scene::new();
        let mut noise = Noise(7);
        let auth = foreign_auth(scene.friend.node());
        for len in 0..auth.len() {
            scene.throw(&auth[..len]);
        }
        let frame = plain(&scene.header(protocol::STREAM, Flags::SYN, 50_000, 7), b"");
        for len in 0..frame.len() {
            scene.throw(&frame[..len]);
        }
        let magics: [&[u8]; 6] = [b"PILA", b"PILK", b"PILS", b"PILT", b"PILP", b"PILX"];
        for round in 0..4_000 {
            let len = (noise.next() % 1500) as usize;
            let mut datagram = match round % 8 {
                n @ 0..=5 => magics[n].to_vec(),
                6 => vec![(noise.next() % 16) as u8],
                _ => Vec::new(),
            };
            datagram.extend(noise.bytes(len));
            scene.throw(&datagram);
        }
        for magic in magics {
            let mut datagram = magic.to_vec();
            datagram.resize(65_507, 0xA5);
            for _ in 0..50 {
                scene.throw(&datagram);
            }
        }
        scene.assert_unharmed();
    });
}

#[test]
fn a_flood_of_syns_from_an_authenticated_peer_is_bounded() {
    isolated("a_flood_of_syns_from_an_authenticated_peer_is_bounded", &[need_programs], || {
        let mut scene = Scene::new();
        let feb = FebPeer::start(&FebOptions {
            registry: scene.rendezvous.registry(),
            beacon: Some(scene.rendezvous.beacon()),
            listen: SocketAddr::new(scene.target.ip(), 0),
            seed: 9,
            hostname: "feb".into(),
            public: true,
        })
        .expect("February peer");
        let conn = feb.dial(scene.victim.node(), 444, LIMIT).expect("port 444 is open to all");
        feb.close(conn);
        let before = feb.counters();
        for port in 0..5_000_u16 {
            // 444 is open to it, 7 and 9 are not: the gate drops those in silence.
            let dst = [444, 7, 9][usize::from(port) % 3];
            let src = SocketAddress::new(Address::backbone(feb.node()), 10_000 + port);
            let dst = SocketAddress::new(Address::backbone(scene.victim.node()), dst);
            let syn = Header::new(protocol::STREAM, Flags::SYN, src, dst);
            feb.with(|core, _| core.send_packet(&syn, &[]));
            if port % 64 == 0 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        std::thread::sleep(Duration::from_millis(500));
        let answered = feb.counters().stream_received - before.stream_received;
        assert!(answered < 1_000, "{answered} answers to 5000 SYNs");
        let info = scene.victim.ctl(&["info"]).expect("info");
        let streams = info["conn_list"].as_array().expect("conn_list").len();
        assert!(streams < 500, "{streams} streams after a flood");
        scene.assert_unharmed();
    });
}
