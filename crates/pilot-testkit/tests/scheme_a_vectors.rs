//! The scripted February peer sends, byte for byte, what the recorded daemons sent.
#![allow(clippy::disallowed_methods)] // a starting point for time that the test then counts itself

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilot_testkit::scheme_a::FebCore;
use pilot_testkit::scheme_a::core::Directory;
use pilot_testkit::scheme_a::crypto::{Keys, Session, open_with};
use serde_json::Value;

const DIRECT: &str = include_str!("vectors/wire-trace-direct.json");
const LIVE: &str = include_str!("vectors/drift-tunnel-live.json");
const WINDOW: &str = include_str!("vectors/wire-replay-window.json");

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("vector file is JSON")
}

fn unhex(v: &Value) -> Vec<u8> {
    let text = v.as_str().expect("hex text");
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex digit")).collect()
}

fn key32(v: &Value) -> [u8; 32] {
    unhex(v).try_into().expect("32 bytes")
}

struct Fixed {
    keys: Vec<(u32, [u8; 32])>,
    endpoint: Option<SocketAddr>,
}

impl Directory for Fixed {
    fn key(&mut self, node: u32) -> Option<[u8; 32]> {
        self.keys.iter().find(|(n, _)| *n == node).map(|(_, k)| *k)
    }
    fn resolve(&mut self, _node: u32) -> Option<SocketAddr> {
        self.endpoint
    }
}

/// A daemon of the trace, drawing the prefixes that were drawn then.
fn daemon(trace: &Value, own: u32, endpoint: Option<SocketAddr>, beacon: SocketAddr, prefixes: &[&str]) -> FebCore {
    let keys = |node: u32| {
        let private = key32(&trace["x25519_private_hex"][format!("node{node}")]);
        Keys::new(&[node as u8; 32], &private).expect("keys")
    };
    let directory = Fixed { keys: [1, 2].map(|n| (n, keys(n).identity())).to_vec(), endpoint };
    let mut prefixes: Vec<[u8; 4]> =
        prefixes.iter().map(|p| u32::from_str_radix(p, 16).expect("prefix").to_be_bytes()).rev().collect();
    let draw = move || prefixes.pop().expect("another session than the trace has");
    FebCore::new(own, keys(own), Some(beacon), Box::new(directory), Box::new(draw))
}

fn events<'a>(trace: &'a Value, node: &'a str, dir: &'a str) -> Vec<&'a Value> {
    let all = trace["events"].as_array().expect("events");
    let start_up = |e: &Value| e["summary"].as_str().is_some_and(|s| s.starts_with("Discover"));
    all.iter().filter(|e| e["node"] == node && e["dir"] == dir && !start_up(e)).collect()
}

fn hex_frames(frames: Vec<(SocketAddr, Vec<u8>)>) -> Vec<String> {
    frames.iter().map(|(_, f)| f.iter().map(|b| format!("{b:02x}")).collect()).collect()
}

/// The order of punches and of the answers of two threads is chance; everything else is not.
fn without_punches(frames: impl IntoIterator<Item = String>) -> Vec<String> {
    frames.into_iter().filter(|f| f != "50494c50").collect()
}

#[test]
fn acceptor_repeats_the_recorded_exchange_byte_for_byte() {
    let trace = json(DIRECT);
    let beacon: SocketAddr = "127.0.0.1:49536".parse().expect("address");
    let mut core = daemon(&trace, 1, None, beacon, &["00000001", "07bf9a07", "502034db"]);
    let now = Instant::now();
    let mut sent = Vec::new();
    for e in events(&trace, "node1", "rx") {
        let from = e["peer_addr"].as_str().and_then(|a| a.parse().ok()).expect("source");
        core.handle(now, from, &unhex(&e["frame_hex"]));
        sent.extend(core.drain());
    }
    let recorded = events(&trace, "node1", "tx");
    let recorded = without_punches(recorded.iter().map(|e| e["frame_hex"].as_str().expect("hex").to_owned()));
    assert_eq!(without_punches(hex_frames(sent)), recorded);
    assert!(core.counters.fins_received >= 2, "the storm is part of the trace");
}

#[test]
fn dialler_repeats_the_recorded_exchange_byte_for_byte() {
    let trace = json(DIRECT);
    let beacon: SocketAddr = "127.0.0.1:49536".parse().expect("address");
    let peer: SocketAddr = "127.0.0.1:49025".parse().expect("address");
    let mut core = daemon(&trace, 2, Some(peer), beacon, &["9fe2737c"]);
    let now = Instant::now();
    let conn = core.dial(now, 1, 7);
    let mut sent = core.drain();
    let mut wrote = false;
    let mut closed = false;
    for e in events(&trace, "node2", "rx") {
        let t = e["t_ms"].as_u64().expect("time");
        if t >= 67 && !wrote {
            core.conn(conn).expect("stream").write(b"hello");
            core.tick(now);
            wrote = true;
        }
        if t >= 68 && !closed {
            core.close(conn);
            closed = true;
        }
        sent.extend(core.drain());
        let from = e["peer_addr"].as_str().and_then(|a| a.parse().ok()).expect("source");
        core.handle(now, from, &unhex(&e["frame_hex"]));
        sent.extend(core.drain());
    }
    let recorded = events(&trace, "node2", "tx");
    let recorded = without_punches(recorded.iter().map(|e| e["frame_hex"].as_str().expect("hex").to_owned()));
    let sent = without_punches(hex_frames(sent));
    let common = recorded.len().min(sent.len());
    assert_eq!(sent[..common], recorded[..common]);
    assert!(recorded.len() - common <= 1, "the last frame of the trace may answer one that was not recorded");
    assert_eq!(core.counters.replays, 1, "the SYN|ACK under the second prefix is refused as a replay");
}

#[test]
fn live_frames_of_the_february_daemon_open_and_seal_the_same() {
    let live = json(LIVE);
    let case = &live["cases"][0];
    let me = &case["test_peer"];
    let keys = Keys::new(&key32(&me["ed25519_seed"]), &key32(&me["x25519_priv"])).expect("keys");
    assert_eq!(keys.x25519(), key32(&me["x25519_pub"]));
    assert_eq!(keys.identity(), key32(&me["ed25519_pub"]));
    let key = keys.derive(&key32(&case["daemon_x25519_pub_hex"])).expect("shared key");
    assert_eq!(key, key32(&case["key_scheme_A_hex"]));
    let mut session = Session::new(&key, [0; 32], [0xAA, 0xBB, 0xCC, 0xDD]).expect("session");
    let (mut sealed, mut opened) = (0, 0);
    for step in case["steps"].as_array().expect("steps") {
        for frame in step["sent"].as_array().into_iter().flatten() {
            if frame["magic"] == "PILS" {
                let recorded = unhex(&frame["frame_hex"]);
                // Not every frame of the conversation was kept.
                let counter = u64::from_be_bytes(recorded[12..20].try_into().expect("counter"));
                session.set_counter(counter - 1);
                assert_eq!(session.seal(2, &unhex(&frame["inner_packet_hex"])), recorded);
                sealed += 1;
            }
        }
        for frame in step["received"].as_array().into_iter().flatten() {
            if frame["magic"] == "PILS" {
                let plain = open_with(&key, &unhex(&frame["frame_hex"])).expect("frame opens");
                assert_eq!(plain, unhex(&frame["inner_packet_hex"]));
                opened += 1;
            }
        }
    }
    assert!(sealed >= 5 && opened >= 4, "{sealed} sealed, {opened} opened");
}

#[test]
fn newer_daemons_frames_do_not_open_under_the_february_key() {
    let live = json(LIVE);
    for case in live["cases"].as_array().expect("cases").iter().skip(1) {
        let me = &case["test_peer"];
        let keys = Keys::new(&key32(&me["ed25519_seed"]), &key32(&me["x25519_priv"])).expect("keys");
        let key = keys.derive(&key32(&case["daemon_x25519_pub_hex"])).expect("shared key");
        assert_eq!(key, key32(&case["key_scheme_A_hex"]));
        let mut tried = 0;
        for step in case["steps"].as_array().expect("steps") {
            for frame in step["received"].as_array().into_iter().flatten().filter(|f| f["magic"] == "PILS") {
                assert!(open_with(&key, &unhex(&frame["frame_hex"])).is_err());
                tried += 1;
            }
        }
        assert!(tried > 0, "no frame in {}", case["daemon_version"]);
    }
}

#[test]
fn replay_window_decides_as_recorded() {
    let vectors = json(WINDOW);
    let mut steps = 0;
    for case in vectors["sequences"].as_array().expect("sequences") {
        let mut receiver = Session::new(&[7; 32], [0; 32], [0; 4]).expect("session");
        let mut sender = Session::new(&[7; 32], [0; 32], [1; 4]).expect("session");
        for step in case["steps"].as_array().expect("steps") {
            let number = |v: &Value| v.as_str().and_then(|t| t.parse::<u64>().ok()).expect("number");
            let counter = number(&step["counter"]);
            sender.set_counter(counter.wrapping_sub(1));
            let mut frame = sender.seal(1, b"packet");
            if step["authentic"] == false {
                *frame.last_mut().expect("tag") ^= 1;
            }
            let what = format!("{} counter {counter}", case["name"]);
            assert_eq!(receiver.open(&frame).is_ok(), step["delivered"].as_bool().expect("delivered"), "{what}");
            assert_eq!(receiver.max(), number(&step["max_after"]), "{what}");
            steps += 1;
        }
    }
    assert!(steps > 50);
}

#[test]
fn a_dial_that_nobody_answers_ends() {
    let trace = json(DIRECT);
    let beacon: SocketAddr = "127.0.0.1:49536".parse().expect("address");
    let mut core = daemon(&trace, 2, Some(beacon), beacon, &[]);
    let mut now = Instant::now();
    let conn = core.dial(now, 1, 7);
    for _ in 0..200 {
        now += Duration::from_millis(500);
        core.tick(now);
    }
    assert_eq!(core.conn(conn).map(|c| c.state), Some(pilot_testkit::scheme_a::stream::State::Closed));
}

#[test]
fn every_frame_of_every_trace_opens_and_is_what_was_noted() {
    let traces = [
        DIRECT,
        include_str!("vectors/wire-trace-relay-fallback.json"),
        include_str!("vectors/wire-trace-datagram-first-contact.json"),
        include_str!("vectors/wire-trace-plaintext-to-encrypted.json"),
    ];
    let (mut secure, mut plain) = (0, 0);
    for trace in traces.map(json) {
        let private = |node: &str| trace["x25519_private_hex"].get(node).map(key32);
        let key = private("node1").zip(private("node2")).map(|(a, b)| {
            let keys = |private| Keys::new(&[0; 32], &private).expect("keys");
            keys(a).derive(&keys(b).x25519()).expect("shared key")
        });
        for event in trace["events"].as_array().expect("events") {
            let frame = unhex(&event["frame_hex"]);
            let summary = event["summary"].as_str().expect("summary");
            // Relayed frames travel behind the 9 (to the beacon) or 5 bytes (from it) of the relay header.
            let inner = match frame.first() {
                Some(5) => &frame[9..],
                Some(6) => &frame[5..],
                _ => &frame[..],
            };
            let packet = match inner.get(..4) {
                Some(b"PILS") => {
                    secure += 1;
                    open_with(&key.expect("a secure frame needs keys"), inner).expect("frame opens")
                }
                Some(b"PILT") => {
                    plain += 1;
                    inner[4..].to_vec()
                }
                _ => continue,
            };
            let packet = pilot_wire::packet::Packet::parse(&packet).expect("packet");
            assert!(summary.contains(&format!("seq={} ack={}", packet.header.seq, packet.header.ack)), "{summary}");
            assert!(summary.contains(&format!("len={}", packet.payload.len())), "{summary}");
        }
    }
    assert_eq!((secure, plain), (56, 37), "frames that the traces hold");
}
