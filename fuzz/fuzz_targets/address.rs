#![no_main]
//! Addresses and socket addresses: what parses prints to a text that parses to the same.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(addr) = text.parse::<pilot_wire::Address>() {
        assert_eq!(addr.to_string().parse(), Ok(addr));
    }
    if let Ok(addr) = text.parse::<pilot_wire::SocketAddress>() {
        assert_eq!(addr.to_string().parse(), Ok(addr));
    }
});
