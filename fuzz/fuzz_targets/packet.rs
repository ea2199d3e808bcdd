#![no_main]
//! Packets: what parses re-encodes to the same bytes, trailing ones apart.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(packet) = pilot_wire::packet::Packet::parse(input) {
        let mut out = Vec::new();
        packet.header.emit(packet.payload, &mut out).expect("a parsed payload fits its length field");
        assert_eq!(out, input[..out.len()]);
    }
});
