#![no_main]
//! The extension of the local socket, both directions.

use libfuzzer_sys::fuzz_target;
use pilot_wire::ipc::ext::{ClientFrame, DaemonFrame};

fuzz_target!(|input: &[u8]| {
    if let Ok(frame) = ClientFrame::parse(input) {
        let mut out = Vec::new();
        if frame.emit(&mut out).is_ok() {
            assert_eq!(ClientFrame::parse(&out[4..]), Ok(frame));
        }
    }
    if let Ok(frame) = DaemonFrame::parse(input) {
        let mut out = Vec::new();
        if frame.emit(&mut out).is_ok() {
            assert_eq!(DaemonFrame::parse(&out[4..]), Ok(frame));
        }
    }
});
