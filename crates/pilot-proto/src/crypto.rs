//! The cryptography of the tunnel: X25519, the two key derivations, AES-256-GCM (specification 01 §8, 07 §5.1).
//!
//! Nothing here draws randomness: private keys and nonces are arguments. Secrets are wiped when dropped.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::{digest, hmac};
use zeroize::{Zeroize as _, Zeroizing};

/// Bytes of every key handled here.
pub const KEY_LEN: usize = 32;
/// Bytes of an AES-GCM nonce.
pub const NONCE_LEN: usize = 12;
/// Bytes of an AES-GCM tag.
pub const TAG_LEN: usize = 16;

/// What the keys of tunnels are for: with a colon in front of the shared secret in scheme A (01 §8), the HKDF info of
/// scheme B (07 §5.1).
const LABEL: &[u8] = b"pilot-tunnel-v1";

/// How a peer derives its tunnel key and what it authenticates beside the packet (07 §5.1). The frames do not name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// The reference of February 2026: one SHA-256, no associated data.
    A,
    /// Every official binary since 30 March 2026: HKDF-SHA256, sender node id as associated data.
    B,
}

impl Scheme {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// `"A"` or `"B"`, as status shows it and stores remember it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::B => "B",
        }
    }

    /// Reads [`Scheme::as_str`].
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "A" => Some(Self::A),
            "B" => Some(Self::B),
            _ => None,
        }
    }
}

/// Why a key agreement or an AEAD operation was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CryptoError {
    /// The peer's X25519 key is a low-order point: the shared secret would be all zero (01 §8).
    #[error("the peer's X25519 key is a low-order point")]
    LowOrder,
    /// The tag does not match: other key, other scheme, or a changed frame.
    #[error("the frame does not open under this key")]
    Open,
    /// The AEAD refused to encrypt.
    #[error("the packet could not be encrypted")]
    Seal,
}

/// An X25519 key pair.
pub struct ExchangeKey {
    private: PrivateKey,
    public: [u8; KEY_LEN],
}

impl std::fmt::Debug for ExchangeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ExchangeKey").field(&self.public).finish()
    }
}

impl ExchangeKey {
    /// From 32 random bytes; X25519 clamps them, so every value is valid.
    pub fn from_private(private: &[u8; KEY_LEN]) -> Self {
        // X25519 accepts every 32-byte string; the only other failure is memory exhaustion.
        #[allow(clippy::expect_used)]
        let private = PrivateKey::from_private_key(&X25519, private).expect("32 bytes are an X25519 key");
        #[allow(clippy::expect_used)]
        let computed = private.compute_public_key().expect("an X25519 key has a public half");
        let mut public = [0; KEY_LEN];
        public.copy_from_slice(computed.as_ref());
        Self { private, public }
    }

    /// The half that travels in `PILA`.
    pub fn public(&self) -> &[u8; KEY_LEN] {
        &self.public
    }

    /// The shared secret with a peer's public key.
    ///
    /// # Errors
    /// [`CryptoError::LowOrder`] when the result is all zero.
    pub fn agree(&self, peer: &[u8; KEY_LEN]) -> Result<SharedSecret, CryptoError> {
        let peer = UnparsedPublicKey::new(&X25519, peer);
        agree(&self.private, peer, CryptoError::LowOrder, |secret| {
            let mut out = Zeroizing::new([0u8; KEY_LEN]);
            if secret.len() != KEY_LEN || secret.iter().all(|b| *b == 0) {
                return Err(CryptoError::LowOrder);
            }
            out.copy_from_slice(secret);
            Ok(SharedSecret(out))
        })
    }
}

/// The result of X25519, never all zero. Wiped when dropped.
pub struct SharedSecret(Zeroizing<[u8; KEY_LEN]>);

impl SharedSecret {
    /// The AES-256 key of a tunnel in a scheme.
    pub fn derive(&self, scheme: Scheme) -> Zeroizing<[u8; KEY_LEN]> {
        self.derive_for(scheme, LABEL)
    }

    /// The AES-256 key of a scheme for another use than tunnels, named by its label (05 §8.1, 07 §11.4).
    pub fn derive_for(&self, scheme: Scheme, label: &[u8]) -> Zeroizing<[u8; KEY_LEN]> {
        let mut key = Zeroizing::new([0u8; KEY_LEN]);
        match scheme {
            Scheme::A => {
                let mut hash = digest::Context::new(&digest::SHA256);
                hash.update(label);
                hash.update(b":");
                hash.update(self.0.as_slice());
                key.copy_from_slice(hash.finish().as_ref());
            }
            Scheme::B => {
                let extract = hmac::Key::new(hmac::HMAC_SHA256, &[]);
                let prk = hmac::sign(&extract, self.0.as_slice());
                let expand = hmac::Key::new(hmac::HMAC_SHA256, prk.as_ref());
                let mut block = hmac::Context::with_key(&expand);
                block.update(label);
                block.update(&[1]);
                key.copy_from_slice(block.sign().as_ref());
            }
        }
        key
    }

    /// The AES-256-GCM key of a scheme, ready for use.
    pub fn aead(&self, scheme: Scheme) -> AeadKey {
        AeadKey::new(&self.derive(scheme))
    }

    /// The raw secret, for tests against vectors.
    pub fn as_bytes(&self) -> &[u8; KEY_LEN] {
        &self.0
    }
}

/// An expanded AES-256-GCM key. Making one costs far more than using it, so a session keeps it.
pub struct AeadKey(LessSafeKey);

impl std::fmt::Debug for AeadKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AeadKey")
    }
}

impl AeadKey {
    /// Expands a key.
    pub fn new(key: &[u8; KEY_LEN]) -> Self {
        // AES-256 takes every 32-byte key; the only other failure is memory exhaustion.
        #[allow(clippy::expect_used)]
        let unbound = UnboundKey::new(&AES_256_GCM, key).expect("32 bytes are an AES-256 key");
        Self(LessSafeKey::new(unbound))
    }

    /// Encrypts in place and returns the tag. The caller never repeats a nonce under one key.
    ///
    /// # Errors
    /// [`CryptoError::Seal`] beyond the limits of AES-GCM, which no packet reaches.
    pub fn seal(&self, nonce: [u8; NONCE_LEN], aad: &[u8], data: &mut [u8]) -> Result<[u8; TAG_LEN], CryptoError> {
        let tag = self
            .0
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), Aad::from(aad), data)
            .map_err(|_| CryptoError::Seal)?;
        let mut out = [0; TAG_LEN];
        out.copy_from_slice(tag.as_ref());
        Ok(out)
    }

    /// Checks and decrypts `ciphertext` into `out`, which must be as long. The ciphertext stays as it was, so that a
    /// frame can be tried under another key.
    ///
    /// # Errors
    /// [`CryptoError::Open`] when the tag does not match or the lengths differ; `out` then holds nothing of the packet.
    pub fn open(
        &self,
        nonce: [u8; NONCE_LEN],
        aad: &[u8],
        ciphertext: &[u8],
        tag: &[u8],
        out: &mut [u8],
    ) -> Result<(), CryptoError> {
        if out.len() != ciphertext.len() || tag.len() != TAG_LEN {
            return Err(CryptoError::Open);
        }
        self.0.open_separate_gather(Nonce::assume_unique_for_key(nonce), Aad::from(aad), ciphertext, tag, out).map_err(
            |_| {
                out.zeroize();
                CryptoError::Open
            },
        )
    }
}
