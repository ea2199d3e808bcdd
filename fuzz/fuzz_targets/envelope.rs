#![no_main]
//! Requests signed for third parties, and what a node says of its new key.

use libfuzzer_sys::fuzz_target;
use pilot_wire::envelope::Envelope;
use pilot_wire::handshake::Rotation;

fuzz_target!(|input: &str| {
    if let Ok(envelope) = input.parse::<Envelope>() {
        assert_eq!(envelope.to_string(), input);
    }
    if let Some(rotation) = Rotation::parse(input) {
        assert_eq!(Rotation::parse(&rotation.to_reason()), Some(rotation));
    }
});
