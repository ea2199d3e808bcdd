//! The long-lived Ed25519 identity of a node and the file that holds it (specification 01 §21).
//!
//! The key signs registrations, key exchanges and trust messages. This module makes and checks signatures and reads and
//! writes the bytes of the identity file; the file itself is opened, synced and renamed by the node.

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use zeroize::Zeroizing;

/// Bytes of a seed.
pub const SEED_LEN: usize = 32;
/// Bytes of a public key.
pub const PUBLIC_KEY_LEN: usize = 32;
/// Bytes of a signature.
pub const SIGNATURE_LEN: usize = 64;
/// Bytes of the private key as the file holds it: seed, then public key.
pub const FILE_PRIVATE_KEY_LEN: usize = SEED_LEN + PUBLIC_KEY_LEN;

/// An Ed25519 key pair. The seed is wiped when it is dropped; it is never shown by `Debug`.
pub struct Identity {
    pair: Ed25519KeyPair,
    seed: Zeroizing<[u8; SEED_LEN]>,
    public: [u8; PUBLIC_KEY_LEN],
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", STANDARD.encode(self.public))
    }
}

impl Identity {
    /// Derives the key pair from 32 random bytes. Every seed is a valid one.
    pub fn from_seed(seed: [u8; SEED_LEN]) -> Self {
        let seed = Zeroizing::new(seed);
        // RFC 8032 defines a key pair for every 32-byte string; the only other failure is memory exhaustion.
        #[allow(clippy::expect_used)]
        let pair = Ed25519KeyPair::from_seed_unchecked(seed.as_slice()).expect("32 bytes are an Ed25519 seed");
        let mut public = [0; PUBLIC_KEY_LEN];
        public.copy_from_slice(pair.public_key().as_ref());
        Self { pair, seed, public }
    }

    /// The public key, which names this node to everybody.
    pub fn public_key(&self) -> [u8; PUBLIC_KEY_LEN] {
        self.public
    }

    /// The public key as JSON carries it everywhere: standard base64 with padding.
    pub fn public_key_base64(&self) -> String {
        STANDARD.encode(self.public)
    }

    /// The secret seed. The caller wipes its copy.
    pub fn seed(&self) -> [u8; SEED_LEN] {
        *self.seed
    }

    /// Signs (RFC 8032, deterministic, no prehash, no context).
    pub fn sign(&self, message: &[u8]) -> [u8; SIGNATURE_LEN] {
        let mut out = [0; SIGNATURE_LEN];
        out.copy_from_slice(self.pair.sign(message).as_ref());
        out
    }

    /// The exact text of an identity file: two-space indent, this key order, no newline at the end, 175 bytes.
    pub fn to_file_text(&self) -> Zeroizing<String> {
        let mut private = Zeroizing::new([0u8; FILE_PRIVATE_KEY_LEN]);
        private[..SEED_LEN].copy_from_slice(self.seed.as_slice());
        private[SEED_LEN..].copy_from_slice(&self.public);
        let private = Zeroizing::new(STANDARD.encode(private.as_slice()));
        Zeroizing::new(format!(
            "{{\n  \"private_key\": \"{}\",\n  \"public_key\": \"{}\"\n}}",
            private.as_str(),
            self.public_key_base64()
        ))
    }

    /// Reads the text of an identity file. Key names match in either case, unknown fields are ignored, white space is
    /// free; `identity.key` and `identity.json` have the same form in every release.
    ///
    /// # Errors
    /// [`IdentityError`] names what is wrong. Unlike the reference, a public key that does not belong to the seed is
    /// refused (01 §21): such a file would load and then sign wrongly.
    pub fn from_file_text(text: &[u8]) -> Result<Self, IdentityError> {
        let value: Value = serde_json::from_slice(text).map_err(|e| IdentityError::Json(e.to_string()))?;
        let Value::Object(fields) = value else {
            return Err(IdentityError::Json("the top level is not an object".into()));
        };
        let field = |name: &'static str| -> Result<Zeroizing<Vec<u8>>, IdentityError> {
            let value = fields
                .get(name)
                .or_else(|| fields.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v))
                .ok_or(IdentityError::Missing(name))?;
            let Value::String(text) = value else {
                return Err(IdentityError::NotText(name));
            };
            STANDARD.decode(text).map(Zeroizing::new).map_err(|_| IdentityError::Base64(name))
        };
        let private = field("private_key")?;
        let public = field("public_key")?;
        if private.len() != FILE_PRIVATE_KEY_LEN {
            return Err(IdentityError::Length {
                field: "private_key",
                have: private.len(),
                need: FILE_PRIVATE_KEY_LEN,
            });
        }
        if public.len() != PUBLIC_KEY_LEN {
            return Err(IdentityError::Length { field: "public_key", have: public.len(), need: PUBLIC_KEY_LEN });
        }
        if private[SEED_LEN..] != public[..] {
            return Err(IdentityError::PublicMismatch);
        }
        let mut seed = Zeroizing::new([0u8; SEED_LEN]);
        seed.copy_from_slice(&private[..SEED_LEN]);
        let identity = Self::from_seed(*seed);
        if identity.public[..] != public[..] {
            return Err(IdentityError::SeedMismatch);
        }
        Ok(identity)
    }
}

/// Whether `signature` is the signature of `message` under `public_key`. A malformed key verifies nothing.
pub fn verify(public_key: &[u8; PUBLIC_KEY_LEN], message: &[u8], signature: &[u8; SIGNATURE_LEN]) -> bool {
    UnparsedPublicKey::new(&ED25519, public_key).verify(message, signature).is_ok()
}

/// Why the text of an identity file is refused. The remedy is the same for all: restore the file from a backup, or move
/// it away to start with a new identity and therefore a new address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// Not a JSON object, or something follows it.
    #[error("identity file is not valid JSON: {0}")]
    Json(String),
    /// A field is absent.
    #[error("identity file has no field \"{0}\"")]
    Missing(&'static str),
    /// A field is not a JSON string.
    #[error("identity file: \"{0}\" is not a text")]
    NotText(&'static str),
    /// A field is not standard padded base64.
    #[error("identity file: \"{0}\" is not standard base64 with padding")]
    Base64(&'static str),
    /// A field decodes to the wrong number of bytes.
    #[error("identity file: \"{field}\" holds {have} bytes, expected {need}")]
    Length {
        /// Which field.
        field: &'static str,
        /// Bytes found.
        have: usize,
        /// Bytes expected.
        need: usize,
    },
    /// The two copies of the public key differ.
    #[error("identity file corrupted: public key does not match private key")]
    PublicMismatch,
    /// The public key does not follow from the seed.
    #[error("identity file corrupted: the seed does not belong to the public key")]
    SeedMismatch,
}

impl IdentityError {
    /// A stable name for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Json(_) => "identity_json",
            Self::Missing(_) => "identity_field_missing",
            Self::NotText(_) | Self::Base64(_) => "identity_encoding",
            Self::Length { .. } => "identity_length",
            Self::PublicMismatch | Self::SeedMismatch => "identity_corrupt",
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        "restore the identity file from a backup, or move it away to start with a new identity (and a new address)"
    }
}
