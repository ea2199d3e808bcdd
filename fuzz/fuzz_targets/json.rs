#![no_main]
//! JSON: what parses keeps its text once written.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(value) = pilot_wire::json::parse(input) {
        let text = pilot_wire::json::to_vec(&value);
        let again = pilot_wire::json::parse(&text).expect("what we write is JSON");
        assert_eq!(pilot_wire::json::to_vec(&again), text);
    }
});
