#![no_main]
//! Selective acknowledgements.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Some(blocks) = pilot_wire::sack::Blocks::parse_exact(input) {
        let mut out = Vec::new();
        blocks.emit(&mut out);
        assert_eq!(out, input);
    }
});
