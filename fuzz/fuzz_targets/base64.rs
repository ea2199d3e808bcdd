#![no_main]
//! Lenient base64.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(bytes) = pilot_wire::base64::decode(text) {
        assert_eq!(pilot_wire::base64::decode(&pilot_wire::base64::encode(&bytes)), Some(bytes));
    }
});
