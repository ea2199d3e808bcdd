//! Requests signed for third parties (07 §12): a text that names who asks, when, what for and whom, and an Ed25519
//! signature over it.
//!
//! `pilot-req-v1|<net 4 hex><node 8 hex>|<unix>|<nonce 16 hex>|<sha256 64 hex>|<audience>`

use std::fmt;
use std::str::FromStr;

use crate::addr::Address;

/// What every envelope of this form begins with.
const PREFIX: &str = "pilot-req-v1";
/// Longest audience, in bytes.
pub const MAX_AUDIENCE: usize = 64;
/// Seconds a clock may be off, unless a verifier says otherwise.
pub const MAX_SKEW: u64 = 300;

/// The text that is signed, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Who asks.
    pub address: Address,
    /// When, Unix seconds.
    pub unix: u64,
    /// Never the same twice.
    pub nonce: u64,
    /// SHA-256 of what is asked, 64 hex digits.
    pub body_hash: String,
    /// Whom it is meant for.
    pub audience: String,
}

/// Why a text is no envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnvelopeError {
    /// The parts are not those of an envelope.
    #[error("not an envelope of the form pilot-req-v1|address|time|nonce|hash|audience")]
    Form,
    /// The audience.
    #[error("the audience must be 1 to 64 of a-z 0-9 . -")]
    Audience,
    /// The hash.
    #[error("body_hash must be 64 hexadecimal digits in lower case")]
    BodyHash,
}

impl EnvelopeError {
    /// Stable name of the error.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Form => "envelope_form",
            Self::Audience => "envelope_audience",
            Self::BodyHash => "envelope_body_hash",
        }
    }
}

fn is_hex(text: &str, len: usize) -> bool {
    text.len() == len && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Whether the audience and the hash may stand in an envelope.
///
/// # Errors
/// [`EnvelopeError::Audience`], [`EnvelopeError::BodyHash`].
pub fn check(audience: &str, body_hash: &str) -> Result<(), EnvelopeError> {
    let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-');
    if audience.is_empty() || audience.len() > MAX_AUDIENCE || !audience.bytes().all(valid) {
        return Err(EnvelopeError::Audience);
    }
    if is_hex(body_hash, 64) { Ok(()) } else { Err(EnvelopeError::BodyHash) }
}

impl fmt::Display for Envelope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, unix, nonce, body_hash, audience } = self;
        write!(f, "{PREFIX}|{:04x}{:08x}|{unix}|{nonce:016x}|{body_hash}|{audience}", address.network, address.node)
    }
}

impl FromStr for Envelope {
    type Err = EnvelopeError;

    /// Reads the one form that is written: what parses is, written again, the same text.
    fn from_str(text: &str) -> Result<Self, EnvelopeError> {
        let mut parts = text.split('|');
        let mut part = || parts.next().ok_or(EnvelopeError::Form);
        let (prefix, address, unix, nonce, body_hash, audience) =
            (part()?, part()?, part()?, part()?, part()?, part()?);
        if prefix != PREFIX || parts.next().is_some() || !is_hex(address, 12) || !is_hex(nonce, 16) {
            return Err(EnvelopeError::Form);
        }
        check(audience, body_hash)?;
        let hex = |text: &str| u64::from_str_radix(text, 16).map_err(|_| EnvelopeError::Form);
        let address = hex(address)?;
        let envelope = Self {
            // Twelve digits: sixteen bits of network, thirty-two of node.
            address: Address { network: (address >> 32) as u16, node: address as u32 },
            unix: unix.parse().map_err(|_| EnvelopeError::Form)?,
            nonce: hex(nonce)?,
            body_hash: body_hash.to_owned(),
            audience: audience.to_owned(),
        };
        if envelope.to_string() == text { Ok(envelope) } else { Err(EnvelopeError::Form) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Envelope {
        Envelope {
            address: Address { network: 1, node: 0xAB },
            unix: 1_780_000_000,
            nonce: 0x0123_4567_89AB_CDEF,
            body_hash: "0f".repeat(32),
            audience: "api.example-1".to_owned(),
        }
    }

    #[test]
    fn the_text_is_that_of_the_specification() {
        let text = format!("pilot-req-v1|0001000000ab|1780000000|0123456789abcdef|{}|api.example-1", "0f".repeat(32));
        assert_eq!(sample().to_string(), text);
        assert_eq!(text.parse(), Ok(sample()));
    }

    #[test]
    fn what_is_not_exactly_that_form_is_refused() {
        let text = sample().to_string();
        for (from, to) in [
            ("pilot-req-v1", "pilot-req-v2"),
            ("0001000000ab", "0001000000AB"),
            ("0001000000ab", "01000000ab"),
            ("1780000000", "+1780000000"),
            ("1780000000", "01780000000"),
            ("1780000000", "-1"),
            ("0123456789abcdef", "123456789abcdef"),
            ("0f0f", "0F0F"),
            ("0f0f", "0f"),
            ("api.example-1", ""),
            ("api.example-1", "API"),
            ("api.example-1", "a|b"),
            ("api.example-1", &"a".repeat(65)),
        ] {
            assert!(text.replacen(from, to, 1).parse::<Envelope>().is_err(), "{from} -> {to}");
        }
        assert!("".parse::<Envelope>().is_err());
    }
}
