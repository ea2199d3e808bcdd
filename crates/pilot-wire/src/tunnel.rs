//! Datagrams between daemons: `PILT`, `PILS`, `PILK`, `PILA`, `PILP` (specification 01 §6, §7).

use crate::beacon::BeaconMessage;

/// Plaintext packet.
pub const MAGIC_PLAIN: [u8; 4] = *b"PILT";
/// Encrypted packet.
pub const MAGIC_SECURE: [u8; 4] = *b"PILS";
/// Anonymous key exchange.
pub const MAGIC_KEY: [u8; 4] = *b"PILK";
/// Authenticated key exchange.
pub const MAGIC_AUTH: [u8; 4] = *b"PILA";
/// Hole punch.
pub const MAGIC_PUNCH: [u8; 4] = *b"PILP";

/// Bytes of a `PILS` frame before the ciphertext: magic, sender node, nonce.
pub const SECURE_HEADER_LEN: usize = 20;
/// Bytes of the AES-GCM tag behind the ciphertext.
pub const TAG_LEN: usize = 16;
/// Bytes of a `PILA` frame.
pub const AUTH_LEN: usize = 136;
/// Bytes of a `PILK` frame.
pub const KEY_LEN: usize = 40;
/// The text before node id and key in the signed message of `PILA`.
pub const AUTH_SIGNED_PREFIX: [u8; 4] = *b"auth";

/// The 12-byte nonce of a `PILS` frame: a random prefix and a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Nonce {
    /// Drawn by the sender; tells its frames from the peer's under the shared key.
    pub prefix: [u8; 4],
    /// Counts up from 1; 0 is never valid.
    pub counter: u64,
}

impl Nonce {
    /// The form that goes on the wire and into AES-GCM.
    pub const fn to_bytes(self) -> [u8; 12] {
        let c = self.counter.to_be_bytes();
        let p = self.prefix;
        [p[0], p[1], p[2], p[3], c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]
    }

    /// Reads the wire form.
    pub const fn from_bytes(b: [u8; 12]) -> Self {
        Self {
            prefix: [b[0], b[1], b[2], b[3]],
            counter: u64::from_be_bytes([b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11]]),
        }
    }
}

/// A `PILA` frame (01 §7.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AuthExchange {
    /// Sender node id.
    pub node: u32,
    /// Sender X25519 public key.
    pub x25519: [u8; 32],
    /// Sender Ed25519 public key.
    pub ed25519: [u8; 32],
    /// Ed25519 signature over [`AuthExchange::signed_bytes`].
    pub signature: [u8; 64],
}

impl AuthExchange {
    /// The 40 signed bytes: `auth`, node id, X25519 key.
    pub fn signed_bytes(node: u32, x25519: &[u8; 32]) -> [u8; 40] {
        let mut out = [0; 40];
        out[..4].copy_from_slice(&AUTH_SIGNED_PREFIX);
        out[4..8].copy_from_slice(&node.to_be_bytes());
        out[8..].copy_from_slice(x25519);
        out
    }

    /// Appends the 136-byte frame.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC_AUTH);
        out.extend_from_slice(&self.node.to_be_bytes());
        out.extend_from_slice(&self.x25519);
        out.extend_from_slice(&self.ed25519);
        out.extend_from_slice(&self.signature);
    }
}

/// A `PILK` frame (01 §7.3). Between daemons of 1.13 and later it is a request for the receiver's `PILA` (07 rule 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyExchange {
    /// Sender node id.
    pub node: u32,
    /// Sender X25519 public key.
    pub x25519: [u8; 32],
}

impl KeyExchange {
    /// Appends the 40-byte frame.
    pub fn emit(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&MAGIC_KEY);
        out.extend_from_slice(&self.node.to_be_bytes());
        out.extend_from_slice(&self.x25519);
    }
}

/// The clear part of a `PILS` frame (01 §7.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecureHeader {
    /// Sender node id.
    pub node: u32,
    /// Nonce.
    pub nonce: Nonce,
}

impl SecureHeader {
    /// The 20 bytes before the ciphertext.
    pub fn to_bytes(&self) -> [u8; SECURE_HEADER_LEN] {
        let mut out = [0; SECURE_HEADER_LEN];
        out[..4].copy_from_slice(&MAGIC_SECURE);
        out[4..8].copy_from_slice(&self.node.to_be_bytes());
        out[8..].copy_from_slice(&self.nonce.to_bytes());
        out
    }
}

/// What a datagram on the tunnel socket is (01 §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    /// A beacon message: first byte below 0x10.
    Beacon(BeaconMessage<'a>),
    /// `PILA`.
    Auth(AuthExchange),
    /// `PILK`.
    Key(KeyExchange),
    /// `PILS`: clear header; the ciphertext and tag start at [`SECURE_HEADER_LEN`] of the datagram.
    Secure(SecureHeader),
    /// `PILP`.
    Punch,
    /// `PILT`: the bytes of a packet, at least a header long.
    Plain(&'a [u8]),
}

fn array<const N: usize>(b: &[u8], at: usize) -> Option<[u8; N]> {
    b.get(at..at + N)?.try_into().ok()
}

impl<'a> Datagram<'a> {
    /// Tells datagrams apart. `None` is what 01 §6 drops: empty, unknown or too short for its kind. Trailing bytes of
    /// key exchanges are ignored.
    pub fn parse(b: &'a [u8]) -> Option<Self> {
        if *b.first()? < 0x10 {
            return BeaconMessage::parse(b).map(Self::Beacon);
        }
        let node = || array::<4>(b, 4).map(u32::from_be_bytes);
        match array::<4>(b, 0)? {
            MAGIC_AUTH => Some(Self::Auth(AuthExchange {
                node: node()?,
                x25519: array(b, 8)?,
                ed25519: array(b, 40)?,
                signature: array(b, 72)?,
            })),
            MAGIC_KEY => Some(Self::Key(KeyExchange { node: node()?, x25519: array(b, 8)? })),
            MAGIC_SECURE if b.len() >= SECURE_HEADER_LEN + TAG_LEN => {
                Some(Self::Secure(SecureHeader { node: node()?, nonce: Nonce::from_bytes(array(b, 8)?) }))
            }
            MAGIC_PUNCH => Some(Self::Punch),
            MAGIC_PLAIN if b.len() >= 4 + crate::packet::HEADER_LEN => Some(Self::Plain(&b[4..])),
            _ => None,
        }
    }
}
