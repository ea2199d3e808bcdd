#![no_main]
//! Local socket requests.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(request) = pilot_wire::ipc::Request::parse(input) {
        let mut out = Vec::new();
        if request.emit(&mut out).is_ok() {
            assert_eq!(pilot_wire::ipc::Request::parse(&out[4..]), Ok(request));
        }
    }
});
