//! Trust messages on port 444.

use pilot_wire::handshake::{HandshakeError, Kind, MAX_LEN, Message};
use pilot_wire::{base64, signed};
use serde_json::Value;

use super::{bytes, load, number, rows, text};

#[test]
fn messages_parse_and_re_encode_to_the_same_bytes() {
    let file = load("services-handshake");
    for row in rows(&file, "messages") {
        let wire = bytes(text(row, "wire_hex"));
        assert_eq!(wire, text(row, "wire_utf8").as_bytes());
        let message = Message::parse(&wire).unwrap_or_else(|e| panic!("{row}: {e}"));
        assert_eq!(message.emit().unwrap(), wire, "{}", row["name"]);
        assert_eq!(u64::from(message.node), number(&file, "node_a"));
        assert_eq!(message.timestamp.unsigned_abs(), number(&file, "timestamp"));
        assert_eq!(message.public_key, text(&file, "public_key_a_base64"));
        let kind = text(row, "name").split(' ').next().unwrap();
        assert!(message.kind.as_str().ends_with(kind), "{row}");
    }
}

#[test]
fn signed_texts_are_as_recorded() {
    let file = load("services-handshake");
    let texts: Vec<&str> = rows(&file, "signatures").iter().map(|row| text(row, "challenge")).collect();
    assert_eq!(
        texts,
        [
            signed::handshake(41, 42),
            signed::respond(41, 42),
            signed::report_trust(41, 42),
            signed::revoke_trust(41, 42),
            signed::poll_handshakes(41),
            signed::handshake(u32::MAX, 1),
        ]
    );
    for row in rows(&file, "signatures") {
        assert!(base64::decode_array::<64>(text(row, "signature_base64")).is_some());
    }
}

/// The receive verdicts as far as the format decides them; trust decides the rest.
#[test]
fn received_shapes_parse_or_fail_as_recorded() {
    let file = load("services-handshake");
    let (mut read, mut refused) = (0, 0);
    for row in rows(&file, "verdicts") {
        let name = text(row, "name");
        let shape = text(row, "message_shape").replace("<receiver clock + timestamp_offset_s>", "1767225600");
        let parsed = Message::parse(shape.as_bytes());
        let malformed = [
            "node_id negative",
            "node_id 4294967296",
            "node_id as string",
            "node_id 41.0 written as float literal",
            "two objects in one segment",
            "not JSON",
            "unknown type",
            "empty object",
        ];
        if malformed.contains(&name) {
            assert!(text(row, "result").starts_with("no state change"), "{row}");
            assert!(parsed.is_err(), "read {name}");
            refused += 1;
        } else {
            let message = parsed.unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!((message.node, message.timestamp), (41, 1_767_225_600), "{name}");
            read += 1;
        }
    }
    assert_eq!((read, refused), (24, 8));
}

#[test]
fn a_message_that_would_not_fit_one_segment_is_refused() {
    let file = load("services-handshake");
    let mut message = Message::parse(&bytes(text(&rows(&file, "messages")[0], "wire_hex"))).unwrap();
    message.justification = "x".repeat(3800);
    let fits = message.emit().unwrap();
    assert!(fits.len() <= MAX_LEN);
    message.justification = "x".repeat(3800 + MAX_LEN - fits.len());
    assert_eq!(message.emit().unwrap().len(), MAX_LEN);
    message.justification.push('x');
    assert_eq!(message.emit(), Err(HandshakeError::TooLong(MAX_LEN + 1)));
    // Escapes count: one character takes six bytes.
    message.justification = "<".repeat(800);
    assert!(matches!(message.emit(), Err(HandshakeError::TooLong(_))));
}

#[test]
fn the_replay_text_covers_known_fields_only() {
    let text = br#"{"extra":1,"TYPE":"handshake_reject","node_id":7,"reason":"no"}"#;
    let message = Message::parse(text).unwrap();
    assert_eq!(message.kind, Kind::Reject);
    let expected = concat!(
        r#"{"type":"handshake_reject","node_id":7,"public_key":"","justification":"","#,
        r#""signature":"","reason":"no","timestamp":0}"#
    );
    assert_eq!(String::from_utf8(message.canonical()).unwrap(), expected);
    let value: Value = serde_json::from_str(expected).unwrap();
    assert_eq!(Message::parse(&serde_json::to_vec(&value).unwrap()), Ok(message));
}
