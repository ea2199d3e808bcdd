#![no_main]
//! Registry requests: what parses reads back after writing.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(request) = pilot_wire::registry::Request::parse(input) {
        let text = pilot_wire::json::to_vec(&request.to_value());
        assert_eq!(pilot_wire::registry::Request::parse(&text), Ok(request));
    }
});
