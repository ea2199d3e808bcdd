//! Beacon datagrams.

use std::net::SocketAddr;

use pilot_wire::beacon::{BeaconMessage, emit_sync};
use pilot_wire::tunnel::Datagram;

use super::{bytes, hex, load, number, rows, text};

fn emitted(message: &BeaconMessage<'_>) -> String {
    let mut out = Vec::new();
    message.emit(&mut out);
    hex(&out)
}

#[test]
fn punch_commands_encode_as_recorded() {
    for row in rows(&load("wire-beacon"), "punch_command") {
        let endpoint = SocketAddr::new(text(row, "ip").parse().unwrap(), number(row, "port") as u16);
        assert_eq!(emitted(&BeaconMessage::PunchCommand { endpoint }), text(row, "frame_hex"));
        let frame = bytes(text(row, "frame_hex"));
        let canonical = SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port());
        assert_eq!(BeaconMessage::parse(&frame), Some(BeaconMessage::PunchCommand { endpoint: canonical }));
    }
}

#[test]
fn every_answer_of_the_beacon_parses_and_re_encodes() {
    let mut seen = 0;
    for row in rows(&load("wire-beacon"), "cases") {
        for frames in row["received"].as_object().unwrap().values() {
            for frame in frames.as_array().into_iter().flatten() {
                let frame = bytes(frame.as_str().unwrap());
                let message = BeaconMessage::parse(&frame).unwrap_or_else(|| panic!("{row}"));
                assert_eq!(emitted(&message), hex(&frame));
                seen += 1;
            }
        }
        let sent = bytes(text(row, "sent_hex"));
        let name = text(row, "name");
        if name.contains("short") || name.contains("type_byte_only") {
            assert_eq!(BeaconMessage::parse(&sent), None, "{name}");
        }
    }
    assert!(seen > 10);
}

#[test]
fn sync_messages_encode_and_parse_as_recorded() {
    let file = load("wire-beacon");
    for row in rows(&file, "sync_sent") {
        let nodes: Vec<u32> =
            row["local_nodes"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect();
        let mut out = Vec::new();
        emit_sync(number(row, "beacon_id") as u32, &nodes, &mut out);
        assert_eq!(hex(&out), text(row, "frame_hex"));
        let Some(BeaconMessage::Sync { beacon, nodes: parsed }) = BeaconMessage::parse(&out) else {
            panic!("{row}");
        };
        assert_eq!(u64::from(beacon), number(row, "beacon_id"));
        assert_eq!(parsed.iter().collect::<Vec<_>>(), nodes);
    }
    let refused = rows(&file, "sync_received").iter().filter(|r| text(r, "name").contains("count_larger_than_body"));
    assert_eq!(refused.filter(|r| BeaconMessage::parse(&bytes(text(r, "sent_hex"))).is_none()).count(), 1);
}

#[test]
fn discover_replies_parse_as_recorded() {
    for row in rows(&load("wire-daemon-beacon"), "discover_reply_parse") {
        let input = bytes(text(row, "reply_hex"));
        let endpoint = match BeaconMessage::parse(&input) {
            Some(BeaconMessage::DiscoverReply { endpoint }) => Some(endpoint.to_string()),
            _ => None,
        };
        assert_eq!(endpoint.as_deref(), row["endpoint_text"].as_str(), "{row}");
    }
}

#[test]
fn what_a_daemon_sends_to_the_beacon_is_as_recorded() {
    let file = load("wire-daemon-beacon");
    let sends = &file["daemon_sends"];
    assert_eq!(emitted(&BeaconMessage::Discover { node: 42 }), sends["discover_hex"][0].as_str().unwrap());
    assert_eq!(
        emitted(&BeaconMessage::PunchRequest { requester: 42, target: 0x0102_0304 }),
        sends["punch_request_target_0x01020304_hex"][0].as_str().unwrap()
    );
    assert_eq!(
        emitted(&BeaconMessage::Relay { src: 42, dst: 43, frame: b"PILP" }),
        sends["relay_of_frame_PILP_to_node_43_hex"][0].as_str().unwrap()
    );
}

#[test]
fn a_daemon_tells_valid_beacon_input_from_invalid_as_recorded() {
    for row in rows(&load("wire-daemon-beacon"), "beacon_input") {
        let input = bytes(text(row, "input_hex"));
        let obeyed = row.as_object().unwrap().iter().any(|(key, frames)| {
            key.starts_with("sent_to_") && frames.as_array().is_some_and(|frames| !frames.is_empty())
        });
        let punch = matches!(Datagram::parse(&input), Some(Datagram::Beacon(BeaconMessage::PunchCommand { .. })));
        assert_eq!(punch, obeyed, "{row}");
    }
    for row in rows(&load("wire-daemon-beacon"), "relay_deliver") {
        let input = bytes(text(row, "input_hex"));
        let frame = match Datagram::parse(&input) {
            Some(Datagram::Beacon(BeaconMessage::RelayDeliver { src, frame })) if !frame.is_empty() => {
                Some(u64::from(src))
            }
            _ => None,
        };
        let marked = row["relay_mode_after"].as_bool().unwrap();
        assert_eq!(frame, marked.then(|| number(row, "source_node")), "{row}");
    }
}
