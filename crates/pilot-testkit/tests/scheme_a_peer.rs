//! Our node beside the February peer: data both ways, whatever that peer does; and quiet afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use pilot::Driver;
use pilot_testkit::agent::{Agent, AgentOptions};
use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};
use pilot_testkit::scheme_a::core::Counters;
use pilot_testkit::scheme_a::stream::State;
use pilot_testkit::scheme_a::{FebOptions, FebPeer};
use pilot_wire::packet::{Flags, Header, protocol};
use pilot_wire::{Address, SocketAddress};

const LIMIT: Duration = Duration::from_secs(20);
/// Largest segment towards a peer of the old wire (07 rule 21).
const SEGMENT: usize = 1152;

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

/// Our daemon and a February peer that trust each other.
struct Scene {
    _rendezvous: RendezvousProcess,
    ours: Agent,
    feb: FebPeer,
}

impl Scene {
    fn new() -> Self {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), "ours").public();
        let ours = Agent::start(&ours(), &options).expect("our daemon");
        let feb = february(&rendezvous, 3);
        feb.send_handshake(ours.node(), "handshake_request", LIMIT).expect("request");
        ours.wait("request of the February peer", LIMIT, |me| {
            let pending = me.ctl(&["pending"])?;
            Ok(pending["pending"].as_array().is_some_and(|l| l.iter().any(|p| p["node_id"] == feb.node())))
        })
        .expect("pending");
        ours.ctl(&["approve", &feb.node().to_string()]).expect("approve");
        ours.wait_trusts(feb.node(), LIMIT).expect("trust");
        feb.wait("accept", LIMIT, |core| core.handshakes().contains(&(ours.node(), "handshake_accept".to_owned())))
            .expect("accept message");
        feb.report_trust(ours.node()).expect("report");
        Self { _rendezvous: rendezvous, ours, feb }
    }

    fn address(&self) -> String {
        Address::backbone(self.feb.node()).to_string()
    }

    fn ours_echoes_at_feb(&self, text: &str) {
        let answer = self.ours.ctl(&["connect", &self.address(), "7", "--message", text]).expect("connect");
        assert_eq!(answer["response"], text);
    }

    fn feb_echoes_at_ours(&self, len: usize) {
        let conn = self.feb.dial(self.ours.node(), 7, LIMIT).expect("dial");
        let data = pattern(len);
        self.feb.write(conn, &data);
        assert!(self.feb.read_exact(conn, len, LIMIT).expect("echo") == data, "echo differs");
        self.feb.close(conn);
    }

    /// What arrives at the peer during `time`, with nothing going on.
    fn idle(&self, time: Duration) -> (Counters, Counters) {
        // The tail of what went before: a delayed ACK, a FIN.
        std::thread::sleep(Duration::from_millis(300));
        let before = self.feb.counters();
        std::thread::sleep(time);
        (before, self.feb.counters())
    }

    fn assert_quiet(&self) {
        let (before, after) = self.idle(Duration::from_secs(1));
        let secure = after.secure_received - before.secure_received;
        let auth = after.auth_received - before.auth_received;
        assert!(secure <= 4 && auth <= 1, "{secure} frames and {auth} key exchanges in a quiet second");
    }

    /// A packet of the peer's to our node, ports as given.
    fn header(&self, protocol: u8, flags: Flags, src_port: u16, dst_port: u16) -> Header {
        let src = SocketAddress::new(Address::backbone(self.feb.node()), src_port);
        let dst = SocketAddress::new(Address::backbone(self.ours.node()), dst_port);
        Header::new(protocol, flags, src, dst)
    }
}

/// Answers to pings: ours from port 0 to port 0. Hello has ports of its own.
fn pongs(feb: &FebPeer) -> Vec<(Header, Vec<u8>)> {
    let mut pongs = feb.with(|core, _| core.take_pongs());
    pongs.retain(|(h, _)| h.src.port == 0 && h.dst.port == 0);
    pongs
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

#[test]
fn data_flows_both_ways_with_a_february_peer_and_then_it_is_quiet() {
    isolated("data_flows_both_ways_with_a_february_peer_and_then_it_is_quiet", &[need_programs], || {
        let scene = Scene::new();
        scene.ours_echoes_at_feb("hello february");
        scene.feb_echoes_at_ours(500_000);
        let bench = scene.ours.ctl(&["bench", &scene.address(), "1"]).expect("bench");
        assert_eq!((&bench["sent_bytes"], &bench["recv_bytes"]), (&(1 << 20).into(), &(1 << 20).into()));
        scene.assert_quiet();
        let seen = scene.feb.counters();
        assert_eq!(seen.plain_received, 0, "our node never sends plaintext");
        assert!(seen.largest_segment <= SEGMENT, "segment of {} bytes", seen.largest_segment);
        assert_eq!(seen.replays, 0, "no frame looked like a replay, resets included");
        assert!(scene.feb.with(|core, _| core.has_session(scene.ours.node())));
    });
}

#[test]
fn repeated_key_exchanges_change_nothing_and_are_not_answered_in_kind() {
    isolated("repeated_key_exchanges_change_nothing_and_are_not_answered_in_kind", &[need_programs], || {
        let scene = Scene::new();
        let conn = scene.feb.dial(scene.ours.node(), 7, LIMIT).expect("dial");
        let before = scene.feb.counters().auth_received;
        for round in 0..20 {
            for _ in 0..10 {
                scene.feb.with(|core, _| core.send_auth(scene.ours.node()));
            }
            let data = pattern(10_000 + round);
            scene.feb.write(conn, &data);
            assert_eq!(scene.feb.read_exact(conn, data.len(), LIMIT).expect("echo"), data);
        }
        let answers = scene.feb.counters().auth_received - before;
        assert!(answers <= 20, "{answers} answers to 200 repeats");
        assert_eq!(scene.feb.counters().replays, 0, "our counters never went back");
        scene.feb.close(conn);
        scene.assert_quiet();
    });
}

#[test]
fn a_february_peer_that_restarts_is_reached_again_from_either_side() {
    isolated("a_february_peer_that_restarts_is_reached_again_from_either_side", &[need_programs], || {
        let scene = Scene::new();
        scene.ours_echoes_at_feb("before");
        scene.feb.restart().expect("restart");
        scene.feb_echoes_at_ours(20_000);
        scene.ours_echoes_at_feb("it spoke first");
        scene.feb.restart().expect("restart");
        scene.ours_echoes_at_feb("we spoke first");
        scene.feb_echoes_at_ours(20_000);
        scene.assert_quiet();
    });
}

#[test]
fn fins_and_fin_acks_are_never_answered_twice() {
    isolated("fins_and_fin_acks_are_never_answered_twice", &[need_programs], || {
        let scene = Scene::new();
        scene.feb_echoes_at_ours(1_000);
        scene.ours_echoes_at_feb("closing soon");
        let (before, after) = scene.idle(Duration::from_secs(1));
        assert!(after.fins_received - before.fins_received <= 1, "a FIN storm");
        // FIN|ACK for streams that never were, or are long gone.
        let before = scene.feb.counters();
        for port in 0..200 {
            let mut fin = scene.header(protocol::STREAM, Flags::FIN | Flags::ACK, 50_000 + port, 7);
            (fin.seq, fin.ack) = (u32::from(port), 1);
            scene.feb.with(|core, _| core.send_packet(&fin, &[]));
        }
        std::thread::sleep(Duration::from_millis(500));
        let answers = scene.feb.counters().stream_received - before.stream_received;
        assert_eq!(answers, 0, "FIN|ACK of unknown streams were answered");
        scene.ours_echoes_at_feb("still here");
    });
}

#[test]
fn control_packets_do_not_start_a_loop_and_a_path_probe_is_answered() {
    isolated("control_packets_do_not_start_a_loop_and_a_path_probe_is_answered", &[need_programs], || {
        let scene = Scene::new();
        scene.ours_echoes_at_feb("session up");
        scene.feb.with(|core, _| core.take_pongs());
        for flags in [Flags::NONE, Flags::ACK, Flags::ACK] {
            let ping = scene.header(protocol::CONTROL, flags, 0, 0);
            scene.feb.with(|core, _| core.send_packet(&ping, &[]));
        }
        std::thread::sleep(Duration::from_millis(500));
        let answers = pongs(&scene.feb);
        assert!(answers.is_empty(), "an empty or ACK control packet was answered: {answers:?}");

        scene.feb.with(|core, _| core.take_pongs());
        let mut probe = scene.header(protocol::CONTROL, Flags::NONE, 0, 0);
        probe.seq = 77;
        scene.feb.with(|core, _| core.send_packet(&probe, b"pathprobe.v1"));
        std::thread::sleep(Duration::from_millis(800));
        let pongs = pongs(&scene.feb);
        assert_eq!(pongs.len(), 1, "the path probe of newer releases has one answer, also when the peer answers that");
        let (pong, payload) = &pongs[0];
        assert_eq!((pong.seq, pong.ack, payload.as_slice()), (77, 78, &b"pathprobe.v1"[..]));
    });
}

/// February ends a stream at FIN, whatever is missing, so ours must hold it back (02 §27.6, 07 rule 23).
#[test]
fn a_stream_we_close_arrives_whole_before_its_end() {
    isolated("a_stream_we_close_arrives_whole_before_its_end", &[need_programs], || {
        let scene = Scene::new();
        scene.feb.with(|core, _| core.listen(5000));
        let data = pattern(700_000);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        runtime.block_on(async {
            use tokio::io::AsyncWriteExt as _;
            let driver = Driver::connect(scene.ours.socket()).await.expect("driver");
            let to = SocketAddress::new(Address::backbone(scene.feb.node()), 5000);
            let mut stream = driver.dial(to).await.expect("dial");
            stream.write_all(&data).await.expect("write");
            stream.close().await.expect("close");
        });
        let mut conn = None;
        let ended = scene.feb.wait("the end of the stream", LIMIT, |core| {
            conn = conn.or_else(|| core.accept());
            conn.and_then(|id| core.conn(id)).is_some_and(|c| c.state == State::TimeWait)
        });
        ended.expect("FIN");
        scene.feb.with(|core, _| {
            let conn = conn.and_then(|id| core.conn(id)).expect("stream");
            assert!(!conn.fin_ahead_of_data, "FIN overtook data");
            assert!(conn.received == data, "{} of {} bytes, or others", conn.total_received, data.len());
        });
        scene.assert_quiet();
    });
}
