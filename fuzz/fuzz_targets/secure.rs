#![no_main]
//! Secure channel: records and authentication frames.

use libfuzzer_sys::fuzz_target;
use pilot_wire::service::secure::{Auth, Record, emit_record};

fuzz_target!(|input: &[u8]| {
    if let Ok(Some((record, used))) = Record::parse(input) {
        if let Some((ciphertext, tag)) = record.parts() {
            let mut out = Vec::new();
            emit_record(&record.nonce, ciphertext, tag, &mut out);
            assert_eq!(out, input[..used]);
        }
    }
    if let Some(auth) = Auth::parse(input) {
        assert_eq!(auth.emit()[..], *input);
    }
});
