//! Datagrams between daemons.

use pilot_wire::beacon::BeaconMessage;
use pilot_wire::packet::Packet;
use pilot_wire::tunnel::{AuthExchange, Datagram, KeyExchange, MAGIC_PLAIN, SECURE_HEADER_LEN, TAG_LEN};

use super::{bytes, hex, load, number, rows, text};

#[test]
fn key_exchanges_parse_and_re_encode() {
    for row in rows(&load("wire-tunnel-frames"), "key_exchange") {
        let pila = bytes(text(row, "pila_hex"));
        let Some(Datagram::Auth(auth)) = Datagram::parse(&pila) else { panic!("{row}") };
        let mut out = Vec::new();
        auth.emit(&mut out);
        assert_eq!(hex(&out), text(row, "pila_hex"));
        if let Some(signed) = row["signed_message_hex"].as_str() {
            assert_eq!(hex(&AuthExchange::signed_bytes(auth.node, &auth.x25519)), signed);
        }
        if let Some(pilk) = row["pilk_hex"].as_str() {
            let frame = bytes(pilk);
            let Some(Datagram::Key(key)) = Datagram::parse(&frame) else { panic!("{row}") };
            assert_eq!(key, KeyExchange { node: auth.node, x25519: auth.x25519 });
            let mut out = Vec::new();
            key.emit(&mut out);
            assert_eq!(hex(&out), pilk);
        }
    }
}

#[test]
fn received_key_exchanges_are_frames_or_too_short_as_recorded() {
    for row in rows(&load("wire-tunnel-frames"), "receive_key_exchange") {
        let frame = bytes(text(row, "frame_hex"));
        let parsed = Datagram::parse(&frame);
        if text(row, "name").contains("short") || text(row, "name").contains("truncated") {
            assert_eq!(parsed, None, "{row}");
        } else {
            assert!(matches!(parsed, Some(Datagram::Auth(_) | Datagram::Key(_))), "{row}");
        }
    }
}

#[test]
fn encrypted_frames_have_the_recorded_header() {
    for row in rows(&load("wire-tunnel-frames"), "encrypted") {
        let frame = bytes(text(row, "frame_hex"));
        let Some(Datagram::Secure(header)) = Datagram::parse(&frame) else { panic!("{row}") };
        assert_eq!(hex(&header.to_bytes()), hex(&frame[..SECURE_HEADER_LEN]));
        assert_eq!(header.nonce.counter, number(row, "counter"));
        assert_eq!(hex(&header.nonce.to_bytes()), text(row, "nonce_hex"));
        assert_eq!(hex(&header.nonce.prefix), text(row, "nonce_prefix_hex"));
        let plain = bytes(text(row, "plaintext_packet_hex"));
        assert_eq!(frame.len(), SECURE_HEADER_LEN + plain.len() + TAG_LEN);
        assert!(Packet::parse(&plain).is_ok(), "{row}");
    }
}

#[test]
fn plaintext_and_punch_frames_are_as_recorded() {
    let file = load("wire-tunnel-frames");
    let frame = bytes(text(&file["plaintext"], "frame_hex"));
    let packet = bytes(text(&file["plaintext"], "packet_hex"));
    assert_eq!(Datagram::parse(&frame), Some(Datagram::Plain(&packet)));
    assert_eq!(frame, [&MAGIC_PLAIN[..], &packet].concat());
    assert!(Packet::parse(&packet).is_ok());
    assert_eq!(Datagram::parse(&bytes(text(&file["punch"], "frame_hex"))), Some(Datagram::Punch));
}

#[test]
fn every_frame_of_the_traces_is_recognised() {
    for name in ["direct", "datagram-first-contact", "plaintext-to-encrypted", "relay-fallback"] {
        for event in rows(&load(&format!("wire-trace-{name}")), "events") {
            let frame = bytes(text(event, "frame_hex"));
            let summary = text(event, "summary");
            let parsed = Datagram::parse(&frame).unwrap_or_else(|| panic!("{name}: {event}"));
            let kind = match parsed {
                Datagram::Beacon(BeaconMessage::Discover { .. }) => "Discover ",
                Datagram::Beacon(BeaconMessage::DiscoverReply { .. }) => "DiscoverReply",
                Datagram::Beacon(BeaconMessage::PunchRequest { .. }) => "PunchRequest",
                Datagram::Beacon(BeaconMessage::PunchCommand { .. }) => "PunchCommand",
                Datagram::Beacon(BeaconMessage::RelayDeliver { .. }) => "RelayDeliver",
                Datagram::Beacon(BeaconMessage::Relay { .. }) => "Relay",
                Datagram::Beacon(_) => "no beacon message of February",
                Datagram::Auth(_) => "PILA",
                Datagram::Key(_) => "PILK",
                Datagram::Secure(_) => "PILS",
                Datagram::Punch => "PILP",
                Datagram::Plain(packet) => {
                    assert!(Packet::parse(packet).is_ok(), "{event}");
                    "PILT"
                }
            };
            assert!(summary.contains(kind), "{summary} is not {kind}");
        }
    }
}
