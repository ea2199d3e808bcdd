#![no_main]
//! Binary registry frames.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = pilot_wire::registry::binary::detect(input);
    if let Ok(frame) = pilot_wire::registry::binary::Frame::parse(input) {
        let mut out = Vec::new();
        if frame.emit(&mut out).is_ok() {
            assert_eq!(pilot_wire::registry::binary::Frame::parse(&out[4..]), Ok(frame));
        }
    }
});
