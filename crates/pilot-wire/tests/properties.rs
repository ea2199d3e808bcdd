//! No parser panics on any input, and what is written reads back as it was.

use pilot_wire::beacon::BeaconMessage;
use pilot_wire::frame::FrameDecoder;
use pilot_wire::gateway::name::Destination;
use pilot_wire::gateway::{control, socks};
use pilot_wire::handshake::{Kind, Message};
use pilot_wire::hello::{Features, Hello, HelloError, MAX_LEN, MAX_SOFTWARE};
use pilot_wire::ipc::ext::{ClientFrame, DaemonFrame, Problem};
use pilot_wire::ipc::{Answer, Request};
use pilot_wire::packet::Packet;
use pilot_wire::registry::binary::Frame;
use pilot_wire::sack::Blocks;
use pilot_wire::service::{event_log, events, nameserver, secure, tasks};
use pilot_wire::tunnel::Datagram;
use pilot_wire::{base64, json, registry};
use proptest::prelude::*;
use serde_json::{Value, json};

/// JSON values as the protocol uses them.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_filter("finite", |n| n.is_finite()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 32, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(any::<String>(), inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// Bytes that look like a format often enough to reach behind its first check.
fn near_miss() -> impl Strategy<Value = Vec<u8>> {
    let heads: Vec<&'static [u8]> = vec![
        b"",
        b"PILT",
        b"PILS",
        b"PILK",
        b"PILA",
        b"PILP",
        b"SACK",
        b"PLH1",
        b"{\"type\":",
        b"[[",
        b"\"\\ud8",
        b"\x00\x00\x00",
    ];
    (prop::sample::select(heads), prop::collection::vec(any::<u8>(), 0..200))
        .prop_map(|(head, tail)| [head, tail.as_slice()].concat())
}

proptest! {
    #[test]
    fn no_parser_panics(input in near_miss()) {
        let _ = Datagram::parse(&input);
        let _ = socks::parse_greeting(&input);
        let _ = socks::Request::parse(&input);
        let _ = control::Request::parse(&input);
        let _ = control::Answer::parse(&input);
        let _ = String::from_utf8_lossy(&input).parse::<Destination>();
        let _ = BeaconMessage::parse(&input);
        let _ = Packet::parse(&input);
        let _ = Blocks::parse_lenient(&input);
        let _ = Hello::parse(&input);
        let _ = json::parse(&input);
        let _ = json::parse_prefix(&input);
        let _ = Message::parse(&input);
        let _ = events::Frame::parse(&input);
        let _ = events::Message::parse(&input);
        let _ = events::Offer::parse(&input);
        let _ = event_log::parse_record(&input);
        let _ = nameserver::Request::parse(&input);
        let _ = nameserver::Reply::parse(&String::from_utf8_lossy(&input));
        let _ = secure::Record::parse(&input);
        let _ = secure::Auth::parse(&input);
        let _ = tasks::Frame::parse(&input);
        let _ = tasks::Submit::parse(&input);
        let _ = tasks::Response::parse(&input);
        let _ = tasks::StatusUpdate::parse(&input);
        let _ = tasks::Results::parse(&input);
        let _ = tasks::TaskFile::parse(&input);
        let _ = event_log::Header::parse(&input);
        let _ = registry::Request::parse(&input);
        let _ = Frame::parse(&input);
        let _ = registry::binary::detect(&input);
        let _ = Request::parse(&input);
        let _ = Answer::parse(&input);
        let text = String::from_utf8_lossy(&input);
        let _ = base64::decode(&text);
        let _ = text.parse::<pilot_wire::SocketAddress>();
        let mut decoder = FrameDecoder::default();
        decoder.push(&input);
        while let Ok(Some(_)) = decoder.next_frame() {}
    }

    #[test]
    fn ipc_requests_that_parse_re_encode_to_an_equal_request(input in prop::collection::vec(any::<u8>(), 1..64)) {
        if let Ok(request) = Request::parse(&input) {
            let mut out = Vec::new();
            request.emit(&mut out).unwrap();
            prop_assert_eq!(Request::parse(&out[4..]).unwrap(), request);
        }
        if let Ok(answer) = Answer::parse(&input) {
            let mut out = Vec::new();
            answer.emit(&mut out).unwrap();
            prop_assert_eq!(Answer::parse(&out[4..]).unwrap(), answer);
        }
    }

    #[test]
    fn extension_frames_that_parse_re_encode_to_an_equal_frame(
        opcode in 0x80u8..=0xFF,
        rest in prop::collection::vec(any::<u8>(), 0..64),
        name in "[a-z0-9._-]{1,9}",
    ) {
        let named = [&[opcode, 0, 0, 0, 7, name.len() as u8][..], name.as_bytes(), &rest].concat();
        for input in [[&[opcode][..], &rest].concat(), named] {
            let mut out = Vec::new();
            if let Ok(frame) = ClientFrame::parse(&input) {
                frame.emit(&mut out).unwrap();
                prop_assert_eq!(ClientFrame::parse(&out[4..]).unwrap(), frame);
            }
            out.clear();
            if let Ok(frame) = DaemonFrame::parse(&input) {
                frame.emit(&mut out).unwrap();
                prop_assert_eq!(DaemonFrame::parse(&out[4..]).unwrap(), frame);
            }
        }
    }

    #[test]
    fn problems_say_on_the_other_side_what_was_said(
        stream in any::<u32>(),
        delivered in any::<u64>(),
        (code, message, hint) in any::<(String, String, String)>(),
    ) {
        let frame = DaemonFrame::Closed { stream, delivered, problem: Problem { code, message, hint } };
        let mut out = Vec::new();
        frame.emit(&mut out).unwrap();
        prop_assert_eq!(DaemonFrame::parse(&out[4..]).unwrap(), frame);
    }

    #[test]
    fn json_survives_writing_and_reading(value in value()) {
        let text = json::to_vec(&value);
        prop_assert!(!text.iter().any(|b| matches!(b, b'<' | b'>' | b'&' | b'\n')));
        let read = json::parse(&text).unwrap();
        // Floats that are whole numbers are written as integers; their text stays the same from then on.
        prop_assert_eq!(json::to_vec(&read), text.clone());
        // An independent reader agrees that it is JSON.
        prop_assert!(serde_json::from_slice::<Value>(&text).is_ok());
    }

    #[test]
    fn json_agrees_with_an_independent_reader(input in near_miss()) {
        if let Ok(theirs) = serde_json::from_slice::<Value>(&input) {
            prop_assert_eq!(json::parse(&input).unwrap(), theirs);
        }
    }

    #[test]
    fn frames_come_out_as_they_went_in_whatever_the_split(
        bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..300), 0..20),
        cut in 1usize..97,
    ) {
        let mut wire = Vec::new();
        for body in &bodies {
            pilot_wire::frame::emit(body, &mut wire).unwrap();
        }
        let mut decoder = FrameDecoder::default();
        let mut read = Vec::new();
        for chunk in wire.chunks(cut) {
            decoder.push(chunk);
            while let Some(body) = decoder.next_frame().unwrap() {
                read.push(body.to_vec());
            }
        }
        prop_assert_eq!(read, bodies);
        prop_assert!(decoder.pending().is_empty());
    }

    #[test]
    fn handshake_messages_read_back_as_written(
        node in any::<u32>(), justification in "\\PC{0,200}", reason in any::<String>(), timestamp in any::<i64>(),
        kind in prop::sample::select(vec![Kind::Request, Kind::Accept, Kind::Reject, Kind::Revoke]),
    ) {
        let message = Message {
            kind, node, public_key: base64::encode(&[7; 32]), justification, signature: base64::encode(&[9; 64]), reason,
            timestamp,
        };
        prop_assert_eq!(Message::parse(&message.canonical()).unwrap(), message);
    }

    #[test]
    fn hellos_read_back_as_written(
        numbers in prop::array::uniform8(prop::option::of(any::<u32>())), bits in any::<u64>(), reply in any::<bool>(),
        software in prop::option::of("\\PC{0,16}"),
        unknown in prop::collection::vec((64u8.., prop::collection::vec(any::<u8>(), 0..20)), 0..8),
    ) {
        let small = |n: Option<u32>| n.map(|n| n as u16);
        let hello = Hello {
            generation: small(numbers[0]), max_segment: numbers[1], segments_in_flight: numbers[2],
            window_unit: numbers[3], sack_ranges: small(numbers[4]), max_datagram: numbers[5],
            ack_delay_ms: small(numbers[6]), idle_timeout_secs: numbers[7], features: Features::from_bits(bits),
            software, reply,
        };
        let mut out = Vec::new();
        hello.emit(&mut out);
        // Fields of a later version are skipped.
        for (tag, value) in unknown {
            out.push(tag);
            out.extend((value.len() as u16).to_be_bytes());
            out.extend(value);
        }
        prop_assert_eq!(Hello::parse(&out).unwrap(), hello);
    }

    #[test]
    fn base64_decodes_what_it_encodes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(base64::decode(&base64::encode(&bytes)).unwrap(), bytes);
    }
}

#[test]
fn json_is_read_as_the_official_programs_read_it() {
    let parse = |text: &[u8]| json::parse(text);
    assert_eq!(parse(b"\"\xff\xe2\x82\""), Ok(json!("\u{fffd}\u{fffd}\u{fffd}")));
    assert_eq!(parse(br#""\ud83d\ude00 \ud83d \ud83dA \udc00""#), Ok(json!("😀 \u{fffd} \u{fffd}A \u{fffd}")));
    assert_eq!(parse(br#"{"a":1,"a":2}"#), Ok(json!({"a": 2})));
    assert_eq!(parse(b" \t\r\n[ ] "), Ok(json!([])));
    for bad in [
        &b""[..],
        b" ",
        b"\xef\xbb\xbf{}",
        b"{}x",
        b"[1,]",
        b"{\"a\":1,}",
        b"01",
        b"1.",
        b".5",
        b"-",
        b"1e999",
        b"1e",
        b"nul",
        b"+1",
        b"\"\n\"",
        b"\"\\x\"",
        b"\"\\u12g4\"",
        b"{1:2}",
        b"[1 2]",
        b"'a'",
        b"NaN",
        b"{\"a\" 1}",
    ] {
        assert!(parse(bad).is_err(), "{:?}", String::from_utf8_lossy(bad));
    }
    assert_eq!(json::parse_prefix(b" {} rest"), Ok((json!({}), 3)));
    assert_eq!(json::parse_prefix(b"{\"a\":"), Err(json::JsonError::UnexpectedEnd));
}

#[test]
fn deep_nesting_is_accepted_to_the_limit_without_exhausting_the_stack() {
    let nested = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
    assert!(json::parse(&nested(json::MAX_DEPTH)).is_ok());
    assert_eq!(json::parse(&nested(json::MAX_DEPTH + 1)), Err(json::JsonError::TooDeep));
    assert!(json::parse(&vec![b'['; 1 << 20]).is_err());
    let objects = ["{\"a\":".repeat(500), "[1,{}]".to_owned(), "}".repeat(500)].concat();
    assert!(json::parse(objects.as_bytes()).is_ok());
    assert!(json::parse(&objects.as_bytes()[..objects.len() - 1]).is_err());
    assert!(json::parse(objects.replace("[1,{}]", "[1,{1}]").as_bytes()).is_err());
}

#[test]
fn floats_print_as_the_official_programs_print_them() {
    let texts: Vec<String> = [5.0, -7.0, 0.1, 1e20, 1e21, 1.5e-7, 1e-6, 123_456_789.5, -0.0, 0.0]
        .iter()
        .map(|n| json::float_text(*n))
        .collect();
    assert_eq!(
        texts,
        ["5", "-7", "0.1", "100000000000000000000", "1e+21", "1.5e-7", "0.000001", "123456789.5", "-0", "0"]
    );
}

#[test]
fn hellos_are_bounded() {
    let field = |tag: u8, value: &[u8]| [&[tag, 0, value.len() as u8], value].concat();
    let hello = |fields: Vec<Vec<u8>>| [b"PLH1".to_vec(), fields.concat()].concat();
    assert_eq!(Hello::parse(b"PLH2"), Err(HelloError::Magic));
    assert_eq!(Hello::parse(b"PLH1"), Ok(Hello::default()));
    assert_eq!(Hello::parse(b"PLH1\x01\x00"), Err(HelloError::Truncated(4)));
    assert_eq!(Hello::parse(b"PLH1\x01\x00\x02\x00"), Err(HelloError::Truncated(4)));
    assert_eq!(Hello::parse(&hello(vec![field(99, &[]); 65])), Err(HelloError::TooManyFields));
    assert_eq!(Hello::parse(&hello(vec![field(99, &[0; 200]); 6])), Err(HelloError::TooLong(4 + 6 * 203)));
    // Any known width is read, an unknown one skipped, the last of repeated fields counts.
    let parsed = Hello::parse(&hello(vec![field(2, &[1]), field(2, &[0, 0, 4, 0]), field(2, &[1, 2, 3])])).unwrap();
    assert_eq!(parsed.max_segment, Some(1024));
    let parsed = Hello::parse(&hello(vec![field(1, &[0, 1, 0, 0])])).unwrap();
    assert_eq!(parsed.generation, Some(u16::MAX), "a larger offer is clamped");
    let mut out = Vec::new();
    Hello { software: Some("ä".repeat(60)), ..Hello::default() }.emit(&mut out);
    let software = Hello::parse(&out).unwrap().software.unwrap();
    assert_eq!(software, "ä".repeat(MAX_SOFTWARE / 2));
    assert!(out.len() < MAX_LEN);
}

proptest! {
    #[test]
    fn events_and_their_records_read_back_as_they_were(
        topic in prop::collection::vec(any::<u8>(), 0..40), payload in prop::collection::vec(any::<u8>(), 0..200),
        numbers in any::<(u64, u64, u32, u16)>(), flags in any::<(bool, bool)>(), more in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let from = pilot_wire::SocketAddress::new(pilot_wire::Address::backbone(numbers.2), numbers.3);
        let event = events::Event {
            number: numbers.0, time_ms: numbers.1, retained: flags.0, replayed: flags.1, from, topic: &topic, payload: &payload,
        };
        let mut out = Vec::new();
        events::Message::Event(event).emit(&mut out).unwrap();
        let length = out.len();
        out.extend_from_slice(&more);
        prop_assert_eq!(events::Message::parse(&out), Ok(Some((events::Message::Event(event), length))));
        let mut out = Vec::new();
        event_log::emit_record(&event, &mut out);
        let length = out.len();
        out.extend_from_slice(&more);
        prop_assert_eq!(event_log::parse_record(&out), Some((event, length)));
        let mut out = Vec::new();
        events::Frame { topic: &topic, payload: &payload }.emit(&mut out).unwrap();
        let length = out.len();
        out.extend_from_slice(&more);
        let frame = events::Frame { topic: &topic, payload: &payload };
        prop_assert_eq!(events::Frame::parse(&out), Ok(Some((frame, length))));
    }

    #[test]
    fn a_socks_request_reads_back_however_it_is_cut(
        command: u8, name in "[!-~]{1,255}", ip: [u8; 16], kind in 0..3u8, port: u16, cut in 0..300usize, tail: Vec<u8>,
    ) {
        let host = match kind {
            0 => socks::Host::Name(name),
            1 => socks::Host::Ip(std::net::Ipv6Addr::from(ip).into()),
            _ => socks::Host::Ip([ip[0], ip[1], ip[2], ip[3]].into()),
        };
        let request = socks::Request { command, host, port };
        let mut bytes = request.emit().unwrap();
        let whole = bytes.len();
        if cut < whole {
            prop_assert_eq!(socks::Request::parse(&bytes[..cut]), Ok(None));
        }
        bytes.extend(tail);
        prop_assert_eq!(socks::Request::parse(&bytes), Ok(Some((request, whole))));
    }

    #[test]
    fn a_destination_reads_back_as_written(network: u16, node: u32, name in "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?") {
        let address = Destination::Address(pilot_wire::Address { network, node });
        prop_assert_eq!(address.to_string().parse::<Destination>(), Ok(address.clone()));
        prop_assert_eq!(pilot_wire::Address { network, node }.to_string().parse::<Destination>(), Ok(address));
        let parsed = format!("{name}.pilot").parse::<Destination>();
        // A name that looks like an address is one; every other is itself.
        if !matches!(parsed, Ok(Destination::Address(_))) {
            prop_assert_eq!(parsed, Ok(Destination::Hostname(name)));
        }
    }
}
