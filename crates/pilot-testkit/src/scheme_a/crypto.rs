//! Keys, sessions and the replay window of February (01 §8, §11), independent of `pilot-proto`.

use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey as VerifyKey};

/// Label of the key derivation (01 §8).
const KEY_LABEL: &[u8] = b"pilot-tunnel-v1:";
/// Counters the replay window covers (01 §11).
const WINDOW: u64 = 256;

/// The keys of one process: Ed25519 identity and the single X25519 pair.
pub struct Keys {
    identity: Ed25519KeyPair,
    exchange: PrivateKey,
    x25519: [u8; 32],
}

impl Keys {
    /// Keys from two 32-byte secrets.
    pub fn new(identity_seed: &[u8; 32], x25519_private: &[u8; 32]) -> Result<Self> {
        let identity =
            Ed25519KeyPair::from_seed_unchecked(identity_seed).map_err(|_| anyhow!("identity seed refused"))?;
        let exchange =
            PrivateKey::from_private_key(&X25519, x25519_private).map_err(|_| anyhow!("X25519 key refused"))?;
        let public = exchange.compute_public_key().map_err(|_| anyhow!("X25519 public key"))?;
        let x25519 = public.as_ref().try_into().context("X25519 public key length")?;
        Ok(Self { identity, exchange, x25519 })
    }

    /// Ed25519 public key.
    pub fn identity(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.identity.public_key().as_ref());
        out
    }

    /// X25519 public key.
    pub fn x25519(&self) -> [u8; 32] {
        self.x25519
    }

    /// Ed25519 signature over `message`.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.identity.sign(message).as_ref());
        out
    }

    /// The AES key shared with the owner of `peer`; refused when the shared secret is all zero.
    pub fn derive(&self, peer: &[u8; 32]) -> Result<[u8; 32]> {
        agree(&self.exchange, UnparsedPublicKey::new(&X25519, peer), anyhow!("low-order X25519 key"), |shared| {
            let mut text = KEY_LABEL.to_vec();
            text.extend_from_slice(shared);
            let mut key = [0; 32];
            key.copy_from_slice(digest(&SHA256, &text).as_ref());
            Ok(key)
        })
    }
}

/// Whether `signature` over `message` is the key owner's.
pub fn verify(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    VerifyKey::new(&ED25519, key).verify(message, signature).is_ok()
}

/// Session object: built anew on every accepted key exchange.
pub struct Session {
    key: LessSafeKey,
    /// The peer's X25519 key this session belongs to.
    pub peer_x25519: [u8; 32],
    prefix: [u8; 4],
    counter: u64,
    max: u64,
    seen: [bool; WINDOW as usize],
}

/// Why a frame was not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenFailure {
    /// The window refused the counter.
    Replay,
    /// The tag is wrong; the window has moved all the same.
    Unreadable,
}

impl Session {
    /// A session under `key`, sending with `prefix` from counter 1.
    pub fn new(key: &[u8; 32], peer_x25519: [u8; 32], prefix: [u8; 4]) -> Result<Self> {
        let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, key).map_err(|_| anyhow!("AES key"))?);
        Ok(Self { key, peer_x25519, prefix, counter: 0, max: 0, seen: [false; WINDOW as usize] })
    }

    /// Makes the next frame carry `counter` + 1.
    pub fn set_counter(&mut self, counter: u64) {
        self.counter = counter;
    }

    /// The highest counter recorded.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// A complete `PILS` frame around `packet`.
    pub fn seal(&mut self, node: u32, packet: &[u8]) -> Vec<u8> {
        self.counter = self.counter.wrapping_add(1);
        let mut nonce = [0; 12];
        nonce[..4].copy_from_slice(&self.prefix);
        nonce[4..].copy_from_slice(&self.counter.to_be_bytes());
        let mut body = packet.to_vec();
        // Sealing fails only for plaintexts near 64 GiB.
        self.key
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut body)
            .expect("packet fits AES-GCM");
        let mut frame = b"PILS".to_vec();
        frame.extend_from_slice(&node.to_be_bytes());
        frame.extend_from_slice(&nonce);
        frame.extend_from_slice(&body);
        frame
    }

    /// Opens a `PILS` frame: record the counter, then decrypt, in February's wrong order.
    pub fn open(&mut self, frame: &[u8]) -> Result<Vec<u8>, OpenFailure> {
        let nonce: [u8; 12] = frame.get(8..20).and_then(|b| b.try_into().ok()).ok_or(OpenFailure::Unreadable)?;
        let counter =
            u64::from_be_bytes([nonce[4], nonce[5], nonce[6], nonce[7], nonce[8], nonce[9], nonce[10], nonce[11]]);
        if !self.check_and_record(counter) {
            return Err(OpenFailure::Replay);
        }
        let mut body = frame[20..].to_vec();
        match self.key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut body) {
            Ok(plain) => Ok(plain.to_vec()),
            Err(_) => {
                self.seen[(counter % WINDOW) as usize] = false;
                Err(OpenFailure::Unreadable)
            }
        }
    }

    /// The replay rule of 01 §11, word for word.
    fn check_and_record(&mut self, c: u64) -> bool {
        let slot = (c % WINDOW) as usize;
        if self.max == 0 || c > self.max {
            if self.max != 0 && c - self.max >= WINDOW {
                self.seen = [false; WINDOW as usize];
            } else if self.max != 0 {
                for n in self.max..c {
                    self.seen[((n + 1) % WINDOW) as usize] = false;
                }
            }
            self.max = c;
            self.seen[slot] = true;
            return true;
        }
        if self.max - c >= WINDOW || self.seen[slot] {
            return false;
        }
        self.seen[slot] = true;
        true
    }
}

/// A frame opened with a bare key: for tests that read traces.
pub fn open_with(key: &[u8; 32], frame: &[u8]) -> Result<Vec<u8>> {
    ensure!(frame.len() >= 36, "frame too short");
    let mut session = Session::new(key, [0; 32], [0; 4])?;
    session.open(frame).map_err(|e| anyhow!("{e:?}"))
}
