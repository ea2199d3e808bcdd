//! Sequence numbers: 32 bits on the wire, 64-bit stream offsets inside.
//!
//! Offset 0 is the first data byte, whose number on the wire is the initial sequence number plus one. Offsets never
//! wrap, so no comparison inside a connection has to be serial; the only place that is, is here (02 §5).

/// The number on the wire of `offset` in a stream whose SYN had number `initial`.
pub(super) fn to_wire(initial: u32, offset: u64) -> u32 {
    initial.wrapping_add(1).wrapping_add(offset as u32)
}

/// The offset nearest to `reference` that has the number `seq`; negative for numbers before the first data byte (−1 is
/// the SYN itself).
pub(super) fn to_offset(initial: u32, reference: u64, seq: u32) -> i64 {
    let distance = seq.wrapping_sub(to_wire(initial, reference)) as i32;
    reference as i64 + i64::from(distance)
}
