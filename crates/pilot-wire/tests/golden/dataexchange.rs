//! Messages and files on port 1001.

use pilot_wire::service::dataexchange::file::{FileHead, Piece, What};
use pilot_wire::service::dataexchange::message::{Tagged, Traced};
use pilot_wire::service::dataexchange::record::{InboxFormat, Record};
use pilot_wire::service::dataexchange::reply::{self, Reply};
use pilot_wire::service::dataexchange::{
    self as dx, FILE, HEADER_LEN, Header, LEGACY_MAX_BODY, MessageType, TAGGED, TEXT, frame,
};
use serde_json::Value;

use super::{bytes, load, number, rows, text};

fn split(wire: &[u8]) -> (Header, &[u8]) {
    let (head, body) = wire.split_at(HEADER_LEN);
    (Header::parse(head.try_into().unwrap()), body)
}

#[test]
fn frames_and_acknowledgements_are_those_of_february() {
    let file = load("services-dataexchange");
    for row in rows(&file, "frames") {
        let wire = bytes(text(row, "wire_hex"));
        let (header, body) = split(&wire);
        assert_eq!((u64::from(header.kind), header.len as usize), (number(row, "type"), body.len()), "{row}");
        let data = bytes(text(row, "decoded_payload_hex"));
        if header.kind == FILE {
            let name = text(row, "decoded_filename").as_bytes();
            assert_eq!(FileHead::split(body), (name, data.as_slice()), "{row}");
            let head = FileHead::emit(name).unwrap();
            assert_eq!(frame(FILE, &[&head, &data]).unwrap(), wire, "{row}");
        } else {
            assert_eq!(frame(header.kind, &[&data]).unwrap(), wire, "{row}");
        }
        let (ack, bytes) = (text(row, "ack_text"), data.len() as u64);
        assert_eq!(reply::ack(header.kind, bytes, false), ack, "{row}");
        let known = MessageType::from_wire(header.kind).is_some() || header.kind == FILE;
        let expected = if known {
            Reply::Stored { duplicate: false }
        } else {
            Reply::UnknownType { kind: header.kind, acknowledged: true }
        };
        assert_eq!(Reply::parse(ack.as_bytes(), header.kind, bytes), expected, "{row}");
    }
}

#[test]
fn malformed_frames_are_judged_as_in_february() {
    let file = load("services-dataexchange");
    for row in rows(&file, "decode_edge_cases") {
        let wire = bytes(text(row, "wire_hex"));
        let Some(head) = wire.first_chunk::<HEADER_LEN>() else { continue };
        let header = Header::parse(*head);
        match row["error"].as_str() {
            Some("unexpected EOF") => assert!((header.len as usize) > wire.len() - HEADER_LEN, "{row}"),
            Some(error) => {
                let refused = header.check(LEGACY_MAX_BODY).unwrap_err().to_string();
                assert!(refused.starts_with(error), "{refused}: {row}");
            }
            None => {
                let (name, data) = FileHead::split(&wire[HEADER_LEN..]);
                assert_eq!(name, text(row, "filename").as_bytes(), "{row}");
                assert_eq!(data, bytes(text(row, "payload_hex")), "{row}");
            }
        }
    }
}

#[test]
fn messages_on_disk_are_those_of_february() {
    let file = load("services-dataexchange");
    for row in rows(&file, "inbox_files") {
        let record = Record {
            kind: MessageType::from_wire(number(row, "type") as u32).unwrap(),
            from: text(row, "from").to_owned(),
            payload: bytes(text(row, "payload_hex")),
            received_at: std::time::Duration::from_secs(1_772_187_072),
            message_id: None,
            reply_to: None,
            wants_receipt: false,
        };
        let expected = text(row, "file_utf8").replace("<RFC3339 local time, whole seconds>", "2026-02-27T10:11:12Z");
        // The same character, escaped by the official writer where it stands for a damaged byte.
        let expected = expected.replace("\\ufffd", "\u{fffd}");
        let written = String::from_utf8(record.emit(InboxFormat::February)).unwrap();
        // A payload that is no text is kept beside the damaged one.
        let lossless = format!(",\"data_b64\":\"{}\"", pilot_wire::base64::encode(&record.payload));
        assert_eq!(written.replace(&lossless, ""), expected);
        assert_eq!(written.contains(&lossless), std::str::from_utf8(&record.payload).is_err());
        for format in [InboxFormat::Public, InboxFormat::February, InboxFormat::Newest] {
            assert_eq!(Record::parse(&record.emit(format)).as_ref(), Some(&record));
        }
    }
}

#[test]
fn messages_on_disk_are_those_of_another_recording() {
    let file = load("cli-files");
    let mut seen = 0;
    for row in rows(&file, "files").iter().filter(|row| text(row, "path").starts_with("inbox/")) {
        let expected = text(row, "text").replace("<rfc3339>", "2026-02-27T10:11:12Z");
        let (kind, payload): (_, &[u8]) = match text(row, "path").starts_with("inbox/TEXT") {
            true => (MessageType::Text, b"hello bob"),
            false => (MessageType::Binary, b"\xff\xfeA"),
        };
        let record = Record {
            kind,
            from: "0:0000.0000.0001".to_owned(),
            payload: payload.to_vec(),
            received_at: std::time::Duration::from_secs(1_772_187_072),
            message_id: None,
            reply_to: None,
            wants_receipt: false,
        };
        let written = String::from_utf8(record.emit(InboxFormat::February)).unwrap();
        let lossless = format!(",\"data_b64\":\"{}\"", pilot_wire::base64::encode(payload));
        assert_eq!(written.replace(&lossless, ""), expected.replace("\\ufffd", "\u{fffd}"));
        seen += 1;
    }
    assert_eq!(seen, 2);
}

#[test]
fn messages_on_disk_are_those_of_newer_daemons() {
    let file = load("drift-dataexchange");
    let files = file["inbox_files_1_18_0"].as_object().unwrap();
    assert!(!files.is_empty());
    for (name, content) in files {
        let content = content.as_str().unwrap();
        let record = Record::parse(content.as_bytes()).unwrap();
        assert_eq!(String::from_utf8(record.emit(InboxFormat::Newest)).unwrap(), content);
        let (at, number) = dx::record::arrival(name).unwrap();
        assert_eq!(dx::record::file_name(record.kind, at, number), *name);
    }
}

/// Every frame of a recorded stream, with the bytes that were recorded of it.
fn frames(file: &Value) -> Vec<(u32, usize, Vec<u8>)> {
    let mut out = Vec::new();
    for sequence in rows(file, "sequences") {
        for stream in rows(sequence, "streams") {
            for frame in stream["frames"].as_array().unwrap() {
                let hex = frame["payload_hex"].as_str().or(frame["payload_prefix_hex"].as_str()).unwrap();
                out.push((number(frame, "type") as u32, number(frame, "length") as usize, bytes(hex)));
            }
        }
    }
    out
}

#[test]
fn recorded_conversations_parse_and_re_encode_to_the_same_bytes() {
    let file = load("drift-dataexchange");
    let (mut tagged, mut pieces) = (0, 0);
    for (kind, len, body) in frames(&file) {
        match kind {
            TAGGED => {
                let message = Tagged::parse(&body).unwrap();
                assert_eq!([&Tagged::emit_head(&message.tag, message.kind), message.body].concat(), body);
                assert!(message.tag.message_id.is_some());
                if message.kind == dx::TRACE {
                    let traced = Traced::parse(message.body).unwrap();
                    assert_eq!(
                        [&Traced::emit_head(traced.kind, traced.sent_ns)[..], traced.body].concat(),
                        message.body
                    );
                    assert_eq!((traced.kind, traced.body), (TEXT, &b"tr"[..]));
                }
                tagged += 1;
            }
            dx::FILESTREAM => {
                let piece = Piece::parse(&body).unwrap();
                assert_eq!(piece.emit(), body);
                if let What::Chunk { offset, .. } = piece.what {
                    let head = Piece::chunk_head(piece.id, offset);
                    assert!(body.starts_with(&head));
                } else {
                    assert_eq!(body.len(), len);
                }
                if let What::Init { sha256, chunk, .. } = piece.what {
                    assert_eq!((&sha256[..16], chunk), (&piece.id[..], dx::file::CHUNK));
                }
                pieces += 1;
            }
            _ => {}
        }
    }
    assert!(tagged > 5 && pieces > 10, "{tagged} tagged messages, {pieces} pieces");
}
