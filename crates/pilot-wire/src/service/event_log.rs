//! The files in which a broker of ours keeps its latest events (docs/spec/events.md): a header, then records. A record
//! that was torn by a crash does not match its checksum; reading ends before it.

use super::events::{Event, MAX_MESSAGE};

/// First bytes of a file.
pub const MAGIC: [u8; 8] = *b"PILOTRG1";
/// Bytes of the header.
pub const HEADER_LEN: usize = 36;
/// Bytes in front of a record's event.
pub const RECORD_HEADER: usize = 8;

/// What a file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Which store the numbers count in.
    pub store: u64,
    /// Events in later files, and events whose record a crash took, may have numbers up to this one.
    pub reserved: u64,
    /// Events up to this number are kept no more.
    pub lost: u64,
}

impl Header {
    /// Reads a header; `None` when it is none, or damaged.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let header = bytes.get(..HEADER_LEN)?;
        let (content, sum) = header.split_last_chunk::<4>()?;
        let (magic, numbers) = content.split_first_chunk::<8>()?;
        let (store, numbers) = numbers.split_first_chunk::<8>()?;
        let (reserved, lost) = numbers.split_first_chunk::<8>()?;
        let intact = *magic == MAGIC && crc32fast::hash(content) == u32::from_be_bytes(*sum);
        let [store, reserved, lost] = [*store, *reserved, lost.try_into().ok()?].map(u64::from_be_bytes);
        intact.then_some(Self { store, reserved, lost })
    }

    /// The header.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(&MAGIC);
        out[8..16].copy_from_slice(&self.store.to_be_bytes());
        out[16..24].copy_from_slice(&self.reserved.to_be_bytes());
        out[24..32].copy_from_slice(&self.lost.to_be_bytes());
        let sum = crc32fast::hash(&out[..32]);
        out[32..].copy_from_slice(&sum.to_be_bytes());
        out
    }
}

/// Appends a record.
pub fn emit_record(event: &Event<'_>, out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEADER]);
    if event.emit_body(out).is_err() {
        // An event that is too large never reached the broker's store.
        out.truncate(start);
        return;
    }
    let sum = crc32fast::hash(&out[start + RECORD_HEADER..]);
    let length = (out.len() - start - RECORD_HEADER) as u32;
    out[start..start + 4].copy_from_slice(&length.to_be_bytes());
    out[start + 4..start + RECORD_HEADER].copy_from_slice(&sum.to_be_bytes());
}

/// The record that begins `bytes`, and its length; `None` at the end, and before a torn record.
pub fn parse_record(bytes: &[u8]) -> Option<(Event<'_>, usize)> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*length) as usize;
    if length > MAX_MESSAGE {
        return None;
    }
    let body = rest.get(..length)?;
    if crc32fast::hash(body) != u32::from_be_bytes(*sum) {
        return None;
    }
    Some((Event::parse(body).ok()?, RECORD_HEADER + length))
}
