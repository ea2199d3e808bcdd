#![no_main]
//! Tasks: frames, their bodies and files. What parses reads back after writing.

use libfuzzer_sys::fuzz_target;
use pilot_wire::service::tasks::{Frame, Response, Results, StatusUpdate, Submit, TaskFile};

fuzz_target!(|input: &[u8]| {
    if let Ok(Some((frame, used))) = Frame::parse(input) {
        assert_eq!(frame.emit().unwrap(), input[..used]);
    }
    if let Ok(value) = Submit::parse(input) {
        assert_eq!(Submit::parse(&value.emit()), Ok(value));
    }
    if let Ok(value) = Response::parse(input) {
        assert_eq!(Response::parse(&value.emit()), Ok(value));
    }
    if let Ok(value) = StatusUpdate::parse(input) {
        assert_eq!(StatusUpdate::parse(&value.emit()), Ok(value));
    }
    if let Ok(value) = Results::parse(input) {
        assert_eq!(Results::parse(&value.emit()), Ok(value));
    }
    if let Ok(value) = TaskFile::parse(input) {
        assert_eq!(TaskFile::parse(&value.emit()), Ok(value));
    }
});
