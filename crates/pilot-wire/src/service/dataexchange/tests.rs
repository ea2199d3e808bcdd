//! No parser panics on any input, and what is written reads back as it was.

use std::time::Duration;

use proptest::prelude::*;

use super::file::{FileHead, Piece, What};
use super::message::{Tag, Tagged, Traced, is_id};
use super::ours::{Capabilities, MAX_LEN, Receipt, Transfer};
use super::record::{InboxFormat, Record, arrival};
use super::reply::{self, Reply};
use super::tree::{self, Head};
use super::*;

fn id() -> impl Strategy<Value = Option<String>> {
    proptest::option::of("[A-Za-z0-9._:-]{1,128}")
}

fn what() -> impl Strategy<Value = (What<'static>, Vec<u8>)> {
    let bytes = || proptest::collection::vec(any::<u8>(), 0..200);
    prop_oneof![
        (any::<u64>(), any::<[u8; 32]>(), any::<u32>(), bytes())
            .prop_map(|(size, sha256, chunk, name)| (What::Init { size, sha256, chunk, name: &[] }, name)),
        (any::<u64>(), bytes()).prop_map(|(offset, data)| (What::Chunk { offset, data: &[] }, data)),
        any::<u64>().prop_map(|offset| (What::Ack { offset }, Vec::new())),
        any::<u64>().prop_map(|offset| (What::InitAck { offset }, Vec::new())),
        Just((What::Done, Vec::new())),
        (any::<u8>(), ".{0,100}").prop_map(|(status, text)| (What::Complete { status, text }, Vec::new())),
        ".{0,100}".prop_map(|text| (What::Abort { text }, Vec::new())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn no_parser_panics(body in proptest::collection::vec(any::<u8>(), 0..300), first in 0u8..9) {
        let body = [&[first][..], &body].concat();
        let _ = Tagged::parse(&body);
        let _ = Traced::parse(&body);
        let _ = Piece::parse(&body);
        let _ = FileHead::split(&body);
        let _ = Capabilities::parse(&body);
        let _ = Transfer::parse(&body);
        let _ = Receipt::parse(&body);
        let _ = Record::parse(&body);
        let _ = Reply::parse(&body, TEXT, 1);
        let _ = tree::path(&body);
        let _ = body.first_chunk().map(|head| Head::parse(*head));
        let _ = arrival(&String::from_utf8_lossy(&body));
    }

    #[test]
    fn pieces_read_back((what, bytes) in what(), id in any::<[u8; 16]>()) {
        let what = match what {
            What::Init { size, sha256, chunk, .. } => What::Init { size, sha256, chunk, name: &bytes },
            What::Chunk { offset, .. } => What::Chunk { offset, data: &bytes },
            other => other,
        };
        let piece = Piece { id, what };
        let body = piece.emit();
        prop_assert_eq!(Piece::parse(&body).unwrap(), piece);
    }

    #[test]
    fn tags_transfers_and_receipts_read_back(message_id in id(), reply_to in id(), flag in any::<bool>(), body in any::<Vec<u8>>()) {
        let tag = Tag { message_id: message_id.clone(), reply_to: reply_to.clone(), wants_receipt: flag };
        let frame = [&Tagged::emit_head(&tag, JSON), body.as_slice()].concat();
        prop_assert_eq!(Tagged::parse(&frame).unwrap(), Tagged { tag, kind: JSON, body: &body });
        let transfer = Transfer { message_id: message_id.clone(), reply_to, tree: flag };
        prop_assert_eq!(Transfer::parse(&transfer.emit()).unwrap(), transfer);
        if let Some(message_id) = message_id {
            let receipt = Receipt { message_id, read_at: 7 };
            prop_assert_eq!(Receipt::parse(&receipt.emit()).unwrap(), receipt);
        }
    }

    #[test]
    fn records_read_back_in_every_form(
        payload in prop_oneof![any::<Vec<u8>>(), any::<String>().prop_map(String::into_bytes)],
        (message_id, reply_to) in (id(), id()),
        (kind, wants_receipt) in (0usize..3, any::<bool>()),
    ) {
        let record = Record {
            kind: MessageType::ALL[kind],
            from: "0:0000.0000.0001".into(),
            payload,
            received_at: Duration::from_secs(1_772_187_072),
            message_id,
            reply_to,
            wants_receipt,
        };
        for format in [InboxFormat::Public, InboxFormat::February, InboxFormat::Newest] {
            let read = Record::parse(&record.emit(format));
            prop_assert_eq!(read.as_ref(), Some(&record));
        }
    }
}

#[test]
fn ids_are_bounded() {
    assert!(is_id("a") && is_id("Z9._:-") && is_id(&"x".repeat(128)));
    assert!(!is_id("") && !is_id("a b") && !is_id("é") && !is_id(&"x".repeat(129)) && !is_id("a\n") && !is_id("a/b"));
    let tagged = |header: &str| [&(header.len() as u16).to_be_bytes()[..], header.as_bytes(), &[0, 0, 0, 1]].concat();
    assert!(Tagged::parse(&tagged(r#"{"message_id":"../x"}"#)).is_err());
    assert!(Tagged::parse(&tagged(r#"{"message_id":7}"#)).is_err());
    assert!(Tagged::parse(&tagged("[]")).is_err());
    assert_eq!(Tagged::parse(&tagged(r#"{"message_id":"","later":1}"#)).unwrap().tag, Tag::default());
    assert!(Tagged::parse(&tagged(&format!("{{{}}}", " ".repeat(1023)))).is_err());
    assert!(Capabilities::parse(&vec![b' '; MAX_LEN + 1]).is_err());
}

#[test]
fn only_the_acknowledgement_of_what_was_sent_means_stored() {
    let parse = |text: &str| Reply::parse(text.as_bytes(), TEXT, 12);
    assert_eq!(parse("ACK TEXT 12 bytes"), Reply::Stored { duplicate: false });
    assert_eq!(parse("ACK TEXT 12 bytes (duplicate)"), Reply::Stored { duplicate: true });
    for other in [
        "",
        "ACK",
        "ACK TEXT",
        "ACK TEXT 1 bytes",
        "ACK JSON 12 bytes",
        "OK",
        "ack TEXT 12 bytes",
        "ACK TEXT 12 bytes.",
    ] {
        assert_eq!(parse(other), Reply::Other, "{other}");
    }
    assert_eq!(parse("ACK UNKNOWN(10) 67 bytes"), Reply::UnknownType { kind: 10, acknowledged: true });
    assert_eq!(parse(&reply::unsupported(10)), Reply::UnknownType { kind: 10, acknowledged: false });
    assert_eq!(parse(&reply::err(TEXT, "disk full")), Reply::Refused { reason: "disk full".into() });
    assert_eq!(parse("ERR"), Reply::Refused { reason: "ERR".into() });
}

#[test]
fn paths_of_a_tree_stay_inside() {
    for good in ["a", "a/b.txt", "…/é", ".hidden", "a..b"] {
        assert_eq!(tree::path(good.as_bytes()), Ok(good));
    }
    let long = ["x"; tree::MAX_DEPTH + 1].join("/");
    for bad in ["", "/a", "a/", "a//b", "..", "a/../b", "./a", "a\\b", "a\0", "a\nb", &"x".repeat(256), &long] {
        assert!(tree::path(bad.as_bytes()).is_err(), "{bad:?}");
    }
    assert!(tree::path(b"\xff").is_err());
}

#[test]
fn heads_of_a_tree_read_back() {
    for head in [
        Head::Dir { path_len: 3 },
        Head::File { executable: true, path_len: 1024, len: u64::MAX },
        Head::File { executable: false, path_len: 1, len: 0 },
        Head::End { entries: 9 },
    ] {
        assert_eq!(Head::parse(head.emit()), Ok(head));
    }
    for bad in [
        Head::Dir { path_len: 0 },
        Head::File { executable: false, path_len: 1025, len: 1 },
        Head::End { entries: tree::MAX_ENTRIES + 1 },
    ] {
        assert!(Head::parse(bad.emit()).is_err(), "{bad:?}");
    }
    assert!(Head::parse([3; tree::HEAD_LEN]).is_err());
}

#[test]
fn names_of_messages_tell_the_order_of_arrival() {
    let at = Duration::from_millis(1_772_187_072_345);
    let name = record::file_name(MessageType::Json, at, 7);
    assert_eq!(name, "JSON-20260227-101112.345-000007.json");
    assert_eq!(arrival(&name), Some((at, 7)));
    assert_eq!(arrival("TEXT-20260227-101112.345.json"), Some((at, 0)));
    assert_eq!(arrival("notes.json"), None);
}
