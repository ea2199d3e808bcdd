//! The packet: a 34-byte header, CRC-32 and payload (specification 01 §4, §5).

use std::ops::{BitOr, BitOrAssign};

use crate::addr::{Address, SocketAddress};

/// Bytes of the header.
pub const HEADER_LEN: usize = 34;
/// The only protocol version there is.
pub const VERSION: u8 = 1;
/// Largest payload the length field can name.
pub const MAX_PAYLOAD: usize = 65_535;

/// The low nibble of the first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// No flag.
    pub const NONE: Self = Self(0);
    /// Opens a stream.
    pub const SYN: Self = Self(0x1);
    /// The acknowledgement number counts.
    pub const ACK: Self = Self(0x2);
    /// The sender has no more data.
    pub const FIN: Self = Self(0x4);
    /// The stream is gone.
    pub const RST: Self = Self(0x8);

    /// From the low nibble; the high one is ignored.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits & 0x0F)
    }

    /// The four bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Flags {
    type Output = Self;
    fn bitor(self, rhs: Self) -> Self {
        Self(self.0 | rhs.0)
    }
}

impl BitOrAssign for Flags {
    fn bitor_assign(&mut self, rhs: Self) {
        self.0 |= rhs.0;
    }
}

/// The protocol byte. Values other than these three are dropped by the router (01 §4.4).
pub mod protocol {
    /// Reliable stream.
    pub const STREAM: u8 = 1;
    /// Datagram.
    pub const DATAGRAM: u8 = 2;
    /// Control (ping, path probe, keepalive).
    pub const CONTROL: u8 = 3;
}

/// Every header field but length and checksum, which follow from the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Version nibble; [`VERSION`] in everything we send.
    pub version: u8,
    /// Flags nibble.
    pub flags: Flags,
    /// One of [`protocol`], or any other byte as received.
    pub protocol: u8,
    /// Source address and port.
    pub src: SocketAddress,
    /// Destination address and port.
    pub dst: SocketAddress,
    /// Sequence number of the first payload byte.
    pub seq: u32,
    /// Next byte expected from the receiver of this packet.
    pub ack: u32,
    /// Receive window, in segments (02 §18).
    pub window: u16,
}

impl Header {
    /// A header of version 1 with every number zero.
    pub fn new(protocol: u8, flags: Flags, src: SocketAddress, dst: SocketAddress) -> Self {
        Self { version: VERSION, flags, protocol, src, dst, seq: 0, ack: 0, window: 0 }
    }

    /// The header of bytes that are known to be a packet (they have just been sealed or opened): neither length nor
    /// checksum is judged. `None` for fewer bytes than a header.
    pub fn peek(b: &[u8]) -> Option<Self> {
        (b.len() >= HEADER_LEN).then(|| Self::read(b))
    }

    /// `b` holds at least a header.
    fn read(b: &[u8]) -> Self {
        Self {
            version: b[0] >> 4,
            flags: Flags::from_bits(b[0]),
            protocol: b[1],
            src: SocketAddress::new(address(b, 4), be16(b, 16)),
            dst: SocketAddress::new(address(b, 10), be16(b, 18)),
            seq: be32(b, 20),
            ack: be32(b, 24),
            window: be16(b, 28),
        }
    }

    /// Appends header and payload, checksum filled in.
    ///
    /// # Errors
    /// [`PacketError::PayloadTooLarge`] above [`MAX_PAYLOAD`] bytes; nothing is appended then.
    pub fn emit(&self, payload: &[u8], out: &mut Vec<u8>) -> Result<(), PacketError> {
        let start = out.len();
        self.begin(payload.len(), out)?;
        out.extend_from_slice(payload);
        finish_checksum(&mut out[start..]);
        Ok(())
    }

    /// Appends only the header for a payload of `len` bytes with a zero checksum. The caller appends the payload and
    /// then calls [`finish_checksum`] on the whole packet; this saves a copy on the fast path.
    ///
    /// # Errors
    /// [`PacketError::PayloadTooLarge`] above [`MAX_PAYLOAD`] bytes; nothing is appended then.
    pub fn begin(&self, len: usize, out: &mut Vec<u8>) -> Result<(), PacketError> {
        let Ok(len16) = u16::try_from(len) else {
            return Err(PacketError::PayloadTooLarge(len));
        };
        let mut h = [0u8; HEADER_LEN];
        h[0] = (self.version << 4) | self.flags.bits();
        h[1] = self.protocol;
        h[2..4].copy_from_slice(&len16.to_be_bytes());
        h[4..10].copy_from_slice(&self.src.addr.to_bytes());
        h[10..16].copy_from_slice(&self.dst.addr.to_bytes());
        h[16..18].copy_from_slice(&self.src.port.to_be_bytes());
        h[18..20].copy_from_slice(&self.dst.port.to_be_bytes());
        h[20..24].copy_from_slice(&self.seq.to_be_bytes());
        h[24..28].copy_from_slice(&self.ack.to_be_bytes());
        h[28..30].copy_from_slice(&self.window.to_be_bytes());
        out.extend_from_slice(&h);
        Ok(())
    }
}

/// Fills in the checksum of a packet whose checksum field is zero. Shorter input than a header is left alone.
pub fn finish_checksum(packet: &mut [u8]) {
    if packet.len() >= HEADER_LEN {
        let sum = crc32fast::hash(packet);
        packet[30..34].copy_from_slice(&sum.to_be_bytes());
    }
}

/// A parsed packet that borrows its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The header.
    pub header: Header,
    /// The payload, exactly as long as the length field said.
    pub payload: &'a [u8],
}

/// Why bytes are not a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PacketError {
    /// Fewer bytes than a header.
    #[error("packet too short: {0} bytes (min 34)")]
    TooShort(usize),
    /// Fewer bytes than the length field announces.
    #[error("packet truncated: have {have} bytes, need {need}")]
    Truncated {
        /// Bytes given.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The CRC-32 differs.
    #[error("checksum mismatch")]
    Checksum,
    /// A payload the length field cannot name.
    #[error("payload too large: {0} bytes (max 65535)")]
    PayloadTooLarge(usize),
}

fn be16(b: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([b[at], b[at + 1]])
}

fn be32(b: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]])
}

fn address(b: &[u8], at: usize) -> Address {
    Address { network: be16(b, at), node: be32(b, at + 2) }
}

impl<'a> Packet<'a> {
    /// Parses in the order of 01 §4.4: length, announced length, checksum. Bytes behind the packet are ignored; the
    /// version, flags, protocol, addresses and ports are not judged.
    ///
    /// # Errors
    /// [`PacketError`] says which check failed.
    pub fn parse(b: &'a [u8]) -> Result<Self, PacketError> {
        if b.len() < HEADER_LEN {
            return Err(PacketError::TooShort(b.len()));
        }
        let need = HEADER_LEN + usize::from(be16(b, 2));
        if b.len() < need {
            return Err(PacketError::Truncated { have: b.len(), need });
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&b[..30]);
        crc.update(&[0; 4]);
        crc.update(&b[HEADER_LEN..need]);
        if crc.finalize() != be32(b, 30) {
            return Err(PacketError::Checksum);
        }
        Ok(Self { header: Header::read(b), payload: &b[HEADER_LEN..need] })
    }
}
