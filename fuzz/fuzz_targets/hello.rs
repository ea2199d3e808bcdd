#![no_main]
//! Hello: what parses reads back after writing.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(hello) = pilot_wire::hello::Hello::parse(input) {
        let mut out = Vec::new();
        hello.emit(&mut out);
        assert_eq!(pilot_wire::hello::Hello::parse(&out), Ok(hello));
    }
});
