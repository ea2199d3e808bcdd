//! Base64 as the registry reads it (04 §6): standard alphabet with padding; line breaks inside are skipped and non-zero
//! trailing bits accepted; other alphabets, missing padding and any other character are refused.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// The lenient reader, which is also the canonical writer.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_allow_trailing_bits(true)
        .with_decode_padding_mode(DecodePaddingMode::RequireCanonical),
);

/// Longest text that is decoded, in bytes; keys take 44 and signatures 88.
pub const MAX_TEXT: usize = 4096;

/// Decodes leniently. `None` for anything the registry refuses and for texts above [`MAX_TEXT`].
pub fn decode(text: &str) -> Option<Vec<u8>> {
    if text.len() > MAX_TEXT {
        return None;
    }
    if text.bytes().any(|b| b == b'\r' || b == b'\n') {
        let joined: Vec<u8> = text.bytes().filter(|b| *b != b'\r' && *b != b'\n').collect();
        LENIENT.decode(joined).ok()
    } else {
        LENIENT.decode(text).ok()
    }
}

/// Decodes exactly `N` bytes: 32 of a key, 64 of a signature.
pub fn decode_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    decode(text)?.try_into().ok()
}

/// Encodes in the canonical form.
pub fn encode(bytes: &[u8]) -> String {
    LENIENT.encode(bytes)
}

/// Decodes a text of up to `limit` bytes: payloads are longer than keys.
pub fn decode_up_to(text: &str, limit: usize) -> Option<Vec<u8>> {
    Some(text).filter(|text| text.len() <= limit).and_then(|text| LENIENT.decode(text).ok())
}
