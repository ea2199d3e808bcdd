#![no_main]
//! Trust messages on port 444.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(message) = pilot_wire::handshake::Message::parse(input) {
        assert_eq!(pilot_wire::handshake::Message::parse(&message.canonical()), Ok(message));
    }
});
