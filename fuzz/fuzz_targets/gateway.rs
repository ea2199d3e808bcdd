#![no_main]
//! What the gateway reads from programs: no panic, and what parses reads back after writing.

use libfuzzer_sys::fuzz_target;
use pilot_wire::gateway::name::Destination;
use pilot_wire::gateway::{control, socks};

fuzz_target!(|input: &[u8]| {
    if let Ok(Some((methods, used))) = socks::parse_greeting(input) {
        assert_eq!(used, methods.len() + 2);
    }
    if let Ok(Some((request, used))) = socks::Request::parse(input) {
        assert!(used <= socks::MAX_MESSAGE);
        let bytes = request.emit().expect("a name that was read");
        assert_eq!(socks::Request::parse(&bytes), Ok(Some((request, bytes.len()))));
    }
    if let Ok(request) = control::Request::parse(input) {
        assert_eq!(control::Request::parse(&request.emit()), Ok(request));
    }
    let _ = control::Answer::parse(input);
    if let Ok(text) = std::str::from_utf8(input) {
        if let Ok(destination) = text.parse::<Destination>() {
            assert_eq!(destination.to_string().parse(), Ok(destination));
        }
    }
});
