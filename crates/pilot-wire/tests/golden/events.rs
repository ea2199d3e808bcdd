//! Event stream on port 1002: frames of official programs, and the messages of our own brokers.

use pilot_wire::SocketAddress;
use pilot_wire::service::event_log::{self, Header};
use pilot_wire::service::events::{Event, Frame, MAX_PAYLOAD, MAX_TOPIC, Message, Offer, Welcome, Wishes};

use super::{bytes, hex, load, rows, text};

#[test]
fn frames_parse_and_re_encode_to_the_same_bytes() {
    let file = load("services-eventstream");
    for row in rows(&file, "events") {
        let wire = bytes(text(row, "wire_hex"));
        let (frame, used) = Frame::parse(&wire).unwrap().unwrap();
        assert_eq!(used, wire.len());
        assert_eq!(frame.topic, text(row, "topic").as_bytes());
        assert_eq!(hex(frame.payload), text(row, "payload_hex"));
        assert_eq!(Offer::parse(frame.payload), None);
        let mut out = Vec::new();
        frame.emit(&mut out).unwrap();
        assert_eq!(out, wire);
        for cut in 0..wire.len() {
            assert_eq!(Frame::parse(&wire[..cut]), Ok(None), "{cut}");
        }
        assert_eq!(Frame::length(&wire), Some(wire.len()));
    }
}

#[test]
fn malformed_frames_fail_in_the_official_words() {
    let file = load("services-eventstream");
    for row in rows(&file, "malformed") {
        let wire = bytes(text(row, "wire_hex"));
        match text(row, "error") {
            // What is cut short may still be completed; the end of the stream is the reader's to see.
            "unexpected EOF" => assert_eq!(Frame::parse(&wire), Ok(None), "{row}"),
            error => assert_eq!(Frame::parse(&wire).unwrap_err().to_string(), error),
        }
    }
    let too_long = Frame { topic: &[b't'; MAX_TOPIC + 1], payload: b"" };
    assert_eq!(too_long.emit(&mut Vec::new()).unwrap_err().to_string(), "topic too long: 1025");
    let too_large = Frame { topic: b"t", payload: &vec![0; MAX_PAYLOAD + 1] };
    assert_eq!(too_large.emit(&mut Vec::new()).unwrap_err().to_string(), "payload too large: 16777217");
}

#[test]
fn offers_welcomes_and_messages_have_the_specified_bytes() {
    let wishes = Wishes { ack: true, retain: false, replay: true, pattern: false, retained: true, publish_only: false };
    let offer = Offer { nonce: [0xA5; 16], wishes, since: 0x0102, store: 0x0304 };
    let bytes_of_offer = "50494c4f54455631a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a50000001500000000000001020000000000000304";
    assert_eq!(hex(&offer.emit()), bytes_of_offer);
    let longer = [&offer.emit()[..], b"for later versions"].concat();
    assert_eq!(Offer::parse(&longer), Some(offer));

    let welcome = Welcome { nonce: [0xA5; 16], granted: wishes, store: 7, oldest: 8, newest: 9 };
    let mut out = Vec::new();
    welcome.emit(&mut out);
    let expected = "00000000003450494c4f54455631a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a500000015000000000000000700000000000000080000000000000009";
    assert_eq!(hex(&out), expected);
    let (frame, _) = Frame::parse(&out).unwrap().unwrap();
    assert_eq!(Welcome::parse(&frame, &[0xA5; 16]), Some(welcome));
    // An event that somebody else published cannot pass for the answer to our offer.
    assert_eq!(Welcome::parse(&frame, &[0xA6; 16]), None);
    assert_eq!(Welcome::parse(&Frame { topic: b"t", ..frame }, &[0xA5; 16]), None);

    let from: SocketAddress = "0:0000.0001.000B:49152".parse().unwrap();
    let event =
        Event { number: 1, time_ms: 2, retained: true, replayed: false, from, topic: b"a/b", payload: b"\x00\xFF" };
    let messages = [
        (Message::Event(event), "0100000020000000000000000100000000000000020100000001000bc0000003612f6200ff"),
        (Message::Missed { count: 5 }, "02000000080000000000000005"),
        (Message::Ack { count: 3, number: 4 }, "030000001000000000000000030000000000000004"),
        (Message::CaughtUp, "0400000000"),
        (
            Message::Refused { code: "not_stored", text: "disk full" },
            "05000000140a6e6f745f73746f7265646469736b2066756c6c",
        ),
    ];
    for (message, begin) in messages {
        let mut out = Vec::new();
        message.emit(&mut out).unwrap();
        assert!(hex(&out).starts_with(begin), "{} {begin}", hex(&out));
        assert_eq!(Message::parse(&out), Ok(Some((message, out.len()))));
        for cut in 0..out.len() {
            assert_eq!(Message::parse(&out[..cut]), Ok(None));
        }
    }
    // A kind of a later version is passed over.
    assert_eq!(Message::parse(b"\x2A\x00\x00\x00\x01x"), Ok(Some((Message::Unknown(0x2A), 6))));
}

#[test]
fn a_torn_record_ends_a_file_and_a_damaged_header_is_none() {
    let header = Header { store: 9, reserved: 77, lost: 5 };
    assert_eq!(Header::parse(&header.emit()), Some(header));
    let mut damaged = header.emit();
    damaged[20] ^= 1;
    assert_eq!(Header::parse(&damaged), None);
    let from = SocketAddress::default();
    let event = Event { number: 1, time_ms: 2, retained: false, replayed: false, from, topic: b"t", payload: b"p" };
    let mut records = Vec::new();
    event_log::emit_record(&event, &mut records);
    let one = records.len();
    event_log::emit_record(&Event { number: 2, ..event }, &mut records);
    assert_eq!(event_log::parse_record(&records), Some((event, one)));
    for torn in one + 1..records.len() {
        assert_eq!(event_log::parse_record(&records[one..torn]), None);
    }
    for byte in one..records.len() {
        let mut damaged = records.clone();
        damaged[byte] ^= 0x10;
        assert_eq!(event_log::parse_record(&damaged[one..]), None, "{byte}");
    }
}
