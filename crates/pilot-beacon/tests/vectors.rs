//! Messages recorded from the reference beacon, in order. Where this beacon behaves differently on purpose, the table
//! [`DIFFERENCES`] says so and why.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use pilot_beacon::{Batch, Beacon, BeaconConfig, NoWitness, Outbox};
use serde_json::Value;

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

fn sent(out: &Outbox) -> BTreeMap<SocketAddr, Vec<String>> {
    let mut got: BTreeMap<SocketAddr, Vec<String>> = BTreeMap::new();
    for Batch { to, bytes, .. } in out.batches(1, usize::MAX) {
        got.entry(to).or_default().push(hex(bytes));
    }
    got
}

fn file() -> Value {
    serde_json::from_str(include_str!("vectors/wire-beacon.json")).unwrap()
}

/// Case, reason, and what is sent instead: destination and datagram.
type Difference = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const DIFFERENCES: &[Difference] = &[
    (
        "relay_sender_id_not_checked_claims_200_sent_by_300",
        "01 W9: frames are taken only from the sender's registered endpoint",
        &[],
    ),
    ("relay_does_not_register_sender_7777", "01 W9: a sender that never registered relays nothing", &[]),
    (
        "unhandled_type_0x08_ignored",
        "07 §8.1: DiscoverEx is answered like Discover",
        &[("127.0.0.1:45101", "02047f000001b02d")],
    ),
];

#[test]
fn recorded_messages_are_answered_as_by_the_reference() {
    let now = pilot_env::Env::real().now();
    let mut beacon = Beacon::new(BeaconConfig::default());
    let mut applied = 0;
    for case in file()["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let mut expected: BTreeMap<SocketAddr, Vec<String>> = BTreeMap::new();
        for (to, messages) in case["received"].as_object().unwrap() {
            for message in messages.as_array().into_iter().flatten() {
                expected.entry(to.parse().unwrap()).or_default().push(message.as_str().unwrap().to_owned());
            }
        }
        if let Some((.., instead)) = DIFFERENCES.iter().find(|(which, ..)| *which == name) {
            applied += 1;
            expected = instead.iter().map(|(to, hex)| (to.parse().unwrap(), vec![(*hex).to_owned()])).collect();
        }
        let mut out = Outbox::default();
        let from: SocketAddr = case["sent_from"].as_str().unwrap().parse().unwrap();
        beacon.handle(now, from, &unhex(case["sent_hex"].as_str().unwrap()), &NoWitness, &mut out);
        assert_eq!(sent(&out), expected, "{name}");
    }
    assert_eq!(applied, DIFFERENCES.len());
}

#[test]
fn gossip_is_sent_as_recorded() {
    let now = pilot_env::Env::real().now();
    let peer: SocketAddr = "127.0.0.1:45200".parse().unwrap();
    for row in file()["sync_sent"].as_array().unwrap() {
        let id = u32::try_from(row["beacon_id"].as_u64().unwrap()).unwrap();
        let mut beacon = Beacon::new(BeaconConfig { id, peers: vec![peer] });
        let mut out = Outbox::default();
        for node in row["local_nodes"].as_array().unwrap() {
            let node = u32::try_from(node.as_u64().unwrap()).unwrap();
            let message = [&[1][..], &node.to_be_bytes()].concat();
            beacon.handle(now, "127.0.0.1:9".parse::<SocketAddr>().unwrap(), &message, &NoWitness, &mut out);
        }
        out.clear();
        beacon.sync(now, &mut out);
        assert_eq!(sent(&out), [(peer, vec![row["frame_hex"].as_str().unwrap().to_owned()])].into(), "{row}");
    }
}

#[test]
fn gossip_of_a_peer_is_understood_as_recorded() {
    let now = pilot_env::Env::real().now();
    let peer: SocketAddr = "127.0.0.1:45200".parse().unwrap();
    let stranger: SocketAddr = "127.0.0.1:45201".parse().unwrap();
    let mut beacon = Beacon::new(BeaconConfig { id: 2, peers: vec![peer] });
    let mut out = Outbox::default();
    // The recorded beacon held this node itself.
    beacon.handle(now, "127.0.0.1:9".parse::<SocketAddr>().unwrap(), &unhex("01000001fc"), &NoWitness, &mut out);
    out.clear();
    for row in file()["sync_received"].as_array().unwrap() {
        let datagram = unhex(row["sent_hex"].as_str().unwrap());
        beacon.handle(now, stranger, &datagram, &NoWitness, &mut out);
        assert_eq!(beacon.remote_nodes(stranger), Vec::<u32>::new(), "01 W10: gossip of strangers is not believed");
        beacon.handle(now, peer, &datagram, &NoWitness, &mut out);
        let expected: Vec<u32> = row["remote_nodes_after"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|id| u32::try_from(id.as_u64().unwrap()).unwrap())
            .collect();
        assert_eq!(beacon.remote_nodes(peer), expected, "{row}");
    }
    assert!(out.is_empty());

    // Node 600 is behind the peer by the last row; node 100 registers here and relays to it.
    let vector = &file()["relay_forward"];
    let node: SocketAddr = "127.0.0.1:45101".parse().unwrap();
    beacon.handle(now, node, &unhex("0100000064"), &NoWitness, &mut out);
    out.clear();
    let frame = unhex(vector["sent_to_beacon_hex"].as_str().unwrap());
    beacon.handle(now, node, &frame, &NoWitness, &mut out);
    let forwarded = vector["forwarded_to_peer_beacon_hex"].as_str().unwrap().to_owned();
    assert_eq!(sent(&out), [(peer, vec![forwarded])].into());
    // Sent back by the peer, it goes nowhere: two beacons never bounce a frame (01 W10).
    out.clear();
    beacon.handle(now, peer, &frame, &NoWitness, &mut out);
    assert!(out.is_empty());
}
