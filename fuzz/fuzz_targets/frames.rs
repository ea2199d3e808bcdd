#![no_main]
//! The frame decoder, with the first byte as the size of the pieces.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&piece, input)) = input.split_first() else { return };
    let mut decoder = pilot_wire::frame::FrameDecoder::default();
    let mut total = 0;
    for chunk in input.chunks(usize::from(piece).max(1)) {
        decoder.push(chunk);
        while let Ok(Some(body)) = decoder.next_frame() {
            total += body.len() + pilot_wire::frame::PREFIX_LEN;
        }
    }
    assert!(total <= input.len());
});
