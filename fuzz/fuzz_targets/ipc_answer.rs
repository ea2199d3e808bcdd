#![no_main]
//! Local socket answers.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Ok(answer) = pilot_wire::ipc::Answer::parse(input) {
        let mut out = Vec::new();
        if answer.emit(&mut out).is_ok() {
            assert_eq!(pilot_wire::ipc::Answer::parse(&out[4..]), Ok(answer));
        }
    }
});
