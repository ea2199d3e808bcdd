#![no_main]
//! Nameserver: what parses reads back after writing.

use libfuzzer_sys::fuzz_target;
use pilot_wire::service::nameserver::{Reply, Request};

fuzz_target!(|input: &[u8]| {
    if let Ok(request) = Request::parse(input) {
        assert_eq!(Request::parse(request.emit().as_bytes()), Ok(request));
    }
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = Reply::parse(text).map(|reply| reply.emit());
    }
});
