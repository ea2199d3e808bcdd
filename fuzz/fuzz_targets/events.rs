#![no_main]
//! Event stream: frames, offers, welcomes, messages and the broker's records. What parses reads back after writing.

use libfuzzer_sys::fuzz_target;
use pilot_wire::service::event_log;
use pilot_wire::service::events::{Frame, Message, Offer, Welcome};

fuzz_target!(|input: &[u8]| {
    if let Ok(Some((frame, used))) = Frame::parse(input) {
        let mut out = Vec::new();
        frame.emit(&mut out).unwrap();
        assert_eq!(out, input[..used]);
        let _ = Welcome::parse(&frame, &[0; 16]);
        if let Some(offer) = Offer::parse(frame.payload) {
            assert_eq!(Offer::parse(&offer.emit()), Some(offer));
        }
    }
    if let Ok(Some((message, _))) = Message::parse(input) {
        let mut out = Vec::new();
        message.emit(&mut out).unwrap();
        assert!(Message::parse(&out).unwrap().is_some());
    }
    let _ = event_log::Header::parse(input);
    if let Some((event, used)) = event_log::parse_record(input) {
        let mut out = Vec::new();
        event_log::emit_record(&event, &mut out);
        assert_eq!(event_log::parse_record(&out).unwrap().0, event);
        assert!(used <= input.len());
    }
});
