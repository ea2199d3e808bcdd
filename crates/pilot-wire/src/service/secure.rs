//! Secure channel on port 443 (05 §8, 07 §11.4): records and the frame of mutual authentication. Keys are not handled here.

/// Bytes of the X25519 key that each side sends first, the client before the server.
pub const HELLO_LEN: usize = 32;
/// Bytes of a nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of a tag.
pub const TAG_LEN: usize = 16;
/// Largest record behind its length field.
pub const MAX_RECORD: usize = 16 << 20;
/// Bytes of an authentication frame.
pub const AUTH_LEN: usize = 92;
/// Text in front of what is signed.
const AUTH_LABEL: &[u8] = b"pilot-secure-auth:";

/// Who sends a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Who accepted the stream.
    Server,
    /// Who dialled.
    Client,
}

impl Role {
    /// The first bytes of its nonces; in the newer form also the associated data.
    pub const fn prefix(self) -> [u8; 4] {
        match self {
            Self::Server => [0, 0, 0, 1],
            Self::Client => [0, 0, 0, 2],
        }
    }

    /// The other side.
    pub const fn other(self) -> Self {
        match self {
            Self::Server => Self::Client,
            Self::Client => Self::Server,
        }
    }

    /// The nonce of its record with this counter; the first counter is 1.
    pub fn nonce(self, counter: u64) -> [u8; NONCE_LEN] {
        let mut nonce = [0; NONCE_LEN];
        nonce[..4].copy_from_slice(&self.prefix());
        nonce[4..].copy_from_slice(&counter.to_be_bytes());
        nonce
    }
}

/// Why bytes are no record. The words are those of the official receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecureError {
    /// No room for a nonce.
    #[error("encrypted message too short")]
    TooShort,
    /// Above [`MAX_RECORD`].
    #[error("encrypted message too large: {0} bytes")]
    TooLarge(usize),
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Nonce.
    pub nonce: [u8; NONCE_LEN],
    /// Ciphertext, then tag; shorter than a tag only from a broken peer.
    pub sealed: &'a [u8],
}

impl<'a> Record<'a> {
    /// The record that begins `buf`, and its length; `None` when there is only part of it yet.
    ///
    /// # Errors
    /// [`SecureError`], as soon as the length can be read.
    pub fn parse(buf: &'a [u8]) -> Result<Option<(Self, usize)>, SecureError> {
        let Some((length, rest)) = buf.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*length) as usize;
        if length < NONCE_LEN {
            return Err(SecureError::TooShort);
        }
        if length > MAX_RECORD {
            return Err(SecureError::TooLarge(length));
        }
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let Some((nonce, sealed)) = body.split_first_chunk::<NONCE_LEN>() else { return Err(SecureError::TooShort) };
        Ok(Some((Self { nonce: *nonce, sealed }, 4 + length)))
    }

    /// What was encrypted and its tag; `None` when there is no room for a tag.
    pub fn parts(&self) -> Option<(&'a [u8], &'a [u8; TAG_LEN])> {
        self.sealed.split_last_chunk::<TAG_LEN>()
    }
}

/// Appends a record of these parts.
pub fn emit_record(nonce: &[u8; NONCE_LEN], ciphertext: &[u8], tag: &[u8; TAG_LEN], out: &mut Vec<u8>) {
    // Callers seal pieces far below the limit, so the cast is lossless.
    let length = (NONCE_LEN + ciphertext.len() + TAG_LEN) as u32;
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(nonce);
    out.extend_from_slice(ciphertext);
    out.extend_from_slice(tag);
}

/// The content of the first record of each side in the form with mutual authentication.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Auth {
    /// Who it is.
    pub node: u32,
    /// Its clock, Unix seconds.
    pub unix: u64,
    /// Random.
    pub nonce: [u8; 16],
    /// Ed25519 over [`signed_text`].
    pub signature: [u8; 64],
}

impl Auth {
    /// Reads a frame; `None` when its length is wrong.
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (node, rest) = bytes.split_first_chunk::<4>()?;
        let (unix, rest) = rest.split_first_chunk::<8>()?;
        let (nonce, rest) = rest.split_first_chunk::<16>()?;
        let signature: &[u8; 64] = rest.try_into().ok()?;
        let (node, unix) = (u32::from_be_bytes(*node), u64::from_be_bytes(*unix));
        Some(Self { node, unix, nonce: *nonce, signature: *signature })
    }

    /// The frame.
    pub fn emit(&self) -> [u8; AUTH_LEN] {
        let mut out = [0; AUTH_LEN];
        out[..4].copy_from_slice(&self.node.to_be_bytes());
        out[4..12].copy_from_slice(&self.unix.to_be_bytes());
        out[12..28].copy_from_slice(&self.nonce);
        out[28..].copy_from_slice(&self.signature);
        out
    }
}

/// What a side signs: who it is, the X25519 key it sent, its clock and its nonce.
pub fn signed_text(node: u32, key: &[u8; HELLO_LEN], unix: u64, nonce: &[u8; 16]) -> Vec<u8> {
    [AUTH_LABEL, &node.to_be_bytes(), key, &unix.to_be_bytes(), nonce].concat()
}
