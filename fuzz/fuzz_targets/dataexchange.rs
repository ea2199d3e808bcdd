#![no_main]
//! Frames of messages and files: nothing panics, and what parses reads back after writing.

use libfuzzer_sys::fuzz_target;
use pilot_wire::service::dataexchange::file::{FileHead, Piece};
use pilot_wire::service::dataexchange::message::{Tagged, Traced};
use pilot_wire::service::dataexchange::ours::{Capabilities, Receipt, Transfer};
use pilot_wire::service::dataexchange::record::{InboxFormat, Record};
use pilot_wire::service::dataexchange::reply::Reply;
use pilot_wire::service::dataexchange::tree::{self, Head};

fuzz_target!(|input: &[u8]| {
    if let Ok(tagged) = Tagged::parse(input) {
        let again = [&Tagged::emit_head(&tagged.tag, tagged.kind), tagged.body].concat();
        assert_eq!(Tagged::parse(&again).as_ref(), Ok(&tagged));
    }
    if let Ok(piece) = Piece::parse(input) {
        let _ = Piece::parse(&piece.emit());
    }
    let _ = Traced::parse(input);
    let (name, data) = FileHead::split(input);
    assert!(name.len() + data.len() <= input.len());
    if let Ok(said) = Capabilities::parse(input) {
        assert_eq!(Capabilities::parse(&said.emit()), Ok(said));
    }
    if let Ok(said) = Transfer::parse(input) {
        assert_eq!(Transfer::parse(&said.emit()).as_ref(), Ok(&said));
    }
    let _ = Receipt::parse(input);
    let _ = Reply::parse(input, 1, 1);
    if let Some(record) = Record::parse(input) {
        assert!(Record::parse(&record.emit(InboxFormat::Public)).is_some());
    }
    if let Ok(path) = tree::path(input) {
        assert!(!path.split('/').any(|part| matches!(part, "" | "." | "..")));
    }
    if let Some(Ok(head)) = input.first_chunk().map(|head| Head::parse(*head)) {
        assert_eq!(Head::parse(head.emit()), Ok(head));
    }
});
