//! Secure channel (port 443 by convention): encryption over any stream, in the two forms of official libraries (05 §8,
//! 07 §11.4).
//!
//! The tunnel below is encrypted and authenticated already; this is for talking with programs that expect the channel.
//! Who dials chooses the form; who accepts learns it from the first record. Only the form with mutual authentication
//! protects against somebody in the middle. Records that are replayed, reordered, left out or reflected end the channel.

use std::collections::BTreeMap;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use parking_lot::Mutex;
use pilot_proto::crypto::{AeadKey, ExchangeKey, Scheme, SharedSecret};
use pilot_proto::identity::{Identity, verify};
use pilot_wire::service::secure::{AUTH_LEN, Auth, HELLO_LEN, Record, Role, emit_record, signed_text};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};

/// The port.
pub const PORT: u16 = 443;
/// Longest time for the handshake.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// Bytes of plaintext in one record that we send. Official receivers take more; small records keep memory small.
pub const CHUNK: usize = 64 << 10;
/// What the keys are for.
const LABEL: &[u8] = b"pilot-secure-v1";
/// Most by which the clocks of two sides may differ (07 §11.4).
const CLOCK_SLACK: u64 = 5;
/// How long, and how many, nonces of authentication are remembered.
const SEEN: (u64, usize) = (3600, 100_000);
/// Bytes read at once.
const READ: usize = 16 << 10;

/// The forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Of February 2026.
    February,
    /// Of libraries since 30 March 2026.
    Current,
}

impl Form {
    fn scheme(self) -> Scheme {
        match self {
            Self::February => Scheme::A,
            Self::Current => Scheme::B,
        }
    }

    /// What is authenticated beside the plaintext.
    fn aad(self, nonce: &[u8; 12]) -> &[u8] {
        match self {
            Self::February => &[],
            Self::Current => nonce.get(..4).unwrap_or_default(),
        }
    }
}

/// Nonces of authentication that have been used. One for all channels of a node.
#[derive(Debug, Default)]
pub struct Seen(Mutex<BTreeMap<[u8; 16], u64>>);

impl Seen {
    /// False when the nonce was there before, or there is no room to remember it.
    fn insert(&self, nonce: [u8; 16], now: u64) -> bool {
        let mut seen = self.0.lock();
        if seen.len() >= SEEN.1 {
            seen.retain(|_, at| now.saturating_sub(*at) < SEEN.0);
        }
        seen.len() < SEEN.1 && seen.insert(nonce, now).is_none_or(|at| now.saturating_sub(at) >= SEEN.0)
    }
}

/// Finds the public key of a node.
pub type FindKey = Arc<dyn Fn(u32) -> Option<[u8; 32]> + Send + Sync>;

/// Mutual authentication. Both sides must have agreed on it: the first record does not show it.
#[derive(Clone)]
pub struct Authentication {
    /// Who we are.
    pub node: u32,
    /// Our key.
    pub identity: Arc<Identity>,
    /// The keys of others.
    pub find_key: FindKey,
    /// Now, Unix seconds.
    pub unix: u64,
    /// Random, of this channel.
    pub nonce: [u8; 16],
    /// Nonces seen before.
    pub seen: Arc<Seen>,
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecureError {
    /// The stream failed.
    #[error("secure channel: {0}")]
    Io(#[from] io::Error),
    /// The handshake took too long.
    #[error("secure channel: no handshake within 10s")]
    Timeout,
    /// The peer's key is worth nothing.
    #[error("secure channel: the peer's X25519 key is a low-order point")]
    LowOrder,
    /// The peer is not who it should be.
    #[error("secure channel: {0}")]
    Unauthenticated(&'static str),
}

impl SecureError {
    /// Stable name.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Io(_) => "secure_io",
            Self::Timeout => "secure_timeout",
            Self::LowOrder => "secure_low_order",
            Self::Unauthenticated(_) => "secure_unauthenticated",
        }
    }
}

/// A channel. It reads and writes plaintext. An error ends it for good.
pub struct SecureStream<S> {
    stream: S,
    role: Role,
    secret: SharedSecret,
    /// The form and its key; `None` until the first record of a dialler shows it.
    known: Option<(Form, AeadKey)>,
    sent: u64,
    received: u64,
    incoming: BytesMut,
    plain: BytesMut,
    outgoing: BytesMut,
    ended: bool,
    /// Waits to write until the form is known.
    writer: Option<Waker>,
    peer: Option<u32>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> SecureStream<S> {
    /// Begins a channel as the side that dialled. `private` are 32 random bytes, used once.
    ///
    /// # Errors
    /// [`SecureError`].
    pub async fn connect(
        stream: S,
        private: &[u8; 32],
        form: Form,
        authentication: Option<Authentication>,
    ) -> Result<Self, SecureError> {
        Self::begin(stream, private, Role::Client, Some(form), authentication).await
    }

    /// Begins a channel as the side that was dialled. Without a form the first record decides; until then writing waits.
    ///
    /// # Errors
    /// [`SecureError`].
    pub async fn accept(
        stream: S,
        private: &[u8; 32],
        form: Option<Form>,
        authentication: Option<Authentication>,
    ) -> Result<Self, SecureError> {
        // Authentication came with the current form, and the accepting side speaks first.
        let form = form.or(authentication.as_ref().map(|_| Form::Current));
        Self::begin(stream, private, Role::Server, form, authentication).await
    }

    async fn begin(
        mut stream: S,
        private: &[u8; 32],
        role: Role,
        form: Option<Form>,
        authentication: Option<Authentication>,
    ) -> Result<Self, SecureError> {
        let key = ExchangeKey::from_private(private);
        let handshake = async {
            let mut theirs = [0; HELLO_LEN];
            if role == Role::Client {
                stream.write_all(key.public()).await?;
                stream.flush().await?;
            }
            stream.read_exact(&mut theirs).await?;
            let secret = key.agree(&theirs).map_err(|_| SecureError::LowOrder)?;
            if role == Role::Server {
                stream.write_all(key.public()).await?;
                stream.flush().await?;
            }
            let known = form.map(|form| (form, AeadKey::new(&secret.derive_for(form.scheme(), LABEL))));
            let mut channel = Self {
                stream,
                role,
                secret,
                known,
                sent: 0,
                received: 0,
                incoming: BytesMut::new(),
                plain: BytesMut::new(),
                outgoing: BytesMut::new(),
                ended: false,
                writer: None,
                peer: None,
            };
            if let Some(authentication) = authentication {
                channel.authenticate(&authentication, key.public(), &theirs).await?;
            }
            Ok(channel)
        };
        tokio::time::timeout(HANDSHAKE_WAIT, handshake).await.unwrap_or(Err(SecureError::Timeout))
    }

    /// The node on the other side, when it has authenticated itself.
    pub fn peer(&self) -> Option<u32> {
        self.peer
    }

    /// The form, once it is known.
    pub fn form(&self) -> Option<Form> {
        self.known.as_ref().map(|(form, _)| *form)
    }

    async fn authenticate(
        &mut self,
        own: &Authentication,
        key: &[u8; 32],
        theirs: &[u8; 32],
    ) -> Result<(), SecureError> {
        let signature = own.identity.sign(&signed_text(own.node, key, own.unix, &own.nonce));
        let frame = Auth { node: own.node, unix: own.unix, nonce: own.nonce, signature }.emit();
        if self.role == Role::Server {
            self.write_all(&frame).await?;
            self.flush().await?;
        }
        let mut answer = [0; AUTH_LEN];
        self.read_exact(&mut answer).await?;
        let auth = Auth::parse(&answer).ok_or(SecureError::Unauthenticated("no authentication"))?;
        if auth.unix.abs_diff(own.unix) > CLOCK_SLACK {
            return Err(SecureError::Unauthenticated("the clocks differ by more than 5 s"));
        }
        if auth.node == own.node {
            return Err(SecureError::Unauthenticated("the peer claims to be us"));
        }
        let public = (own.find_key)(auth.node).ok_or(SecureError::Unauthenticated("unknown node"))?;
        if !verify(&public, &signed_text(auth.node, theirs, auth.unix, &auth.nonce), &auth.signature) {
            return Err(SecureError::Unauthenticated("the signature is wrong"));
        }
        if !own.seen.insert(auth.nonce, own.unix) {
            return Err(SecureError::Unauthenticated("the authentication was used before"));
        }
        if self.role == Role::Client {
            self.write_all(&frame).await?;
            self.flush().await?;
        }
        self.peer = Some(auth.node);
        Ok(())
    }
}

fn broken(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl<S> SecureStream<S> {
    /// Opens the record in front, if it is whole. True when there was one.
    fn open_record(&mut self) -> io::Result<bool> {
        let parsed = Record::parse(&self.incoming);
        let Some((record, used)) = parsed.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))? else {
            return Ok(false);
        };
        if record.nonce != self.role.other().nonce(self.received + 1) {
            return Err(broken("a record is replayed, reordered, missing, or comes from ourselves"));
        }
        let (ciphertext, tag) = record.parts().ok_or_else(|| broken("decrypt: a record without a tag"))?;
        let mut out = vec![0; ciphertext.len()];
        let opened = |form: Form, key: &AeadKey, out: &mut [u8]| {
            key.open(record.nonce, form.aad(&record.nonce), ciphertext, tag, out).is_ok()
        };
        let is_open = match &self.known {
            Some((form, key)) => opened(*form, key, &mut out),
            None => {
                let mut found = false;
                for form in [Form::Current, Form::February] {
                    let key = AeadKey::new(&self.secret.derive_for(form.scheme(), LABEL));
                    if opened(form, &key, &mut out) {
                        self.known = Some((form, key));
                        found = true;
                        break;
                    }
                }
                found
            }
        };
        if !is_open {
            return Err(broken("decrypt: message authentication failed"));
        }
        self.received += 1;
        self.incoming.advance(used);
        self.plain.extend_from_slice(&out);
        if let Some(writer) = self.writer.take() {
            writer.wake();
        }
        Ok(true)
    }

    fn seal(&mut self, data: &[u8]) -> io::Result<()> {
        let Some((form, key)) = &self.known else { return Err(io::ErrorKind::NotConnected.into()) };
        self.sent += 1;
        let nonce = self.role.nonce(self.sent);
        let mut sealed = data.to_vec();
        let tag = key.seal(nonce, form.aad(&nonce), &mut sealed).map_err(|_| broken("the record cannot be sealed"))?;
        let mut out = Vec::with_capacity(sealed.len() + 32);
        emit_record(&nonce, &sealed, &tag, &mut out);
        self.outgoing.extend_from_slice(&out);
        Ok(())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> SecureStream<S> {
    fn poll_drain(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            let n = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.outgoing))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.outgoing.advance(n);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_plain(&mut self, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        loop {
            if !self.plain.is_empty() || self.ended {
                return Poll::Ready(Ok(()));
            }
            // A record may be empty.
            if self.open_record()? {
                continue;
            }
            self.incoming.reserve(READ);
            let mut chunk = [0; READ];
            let mut buf = ReadBuf::new(&mut chunk);
            ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buf))?;
            if buf.filled().is_empty() {
                if !self.incoming.is_empty() {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                self.ended = true;
            }
            self.incoming.extend_from_slice(buf.filled());
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for SecureStream<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Err(error) = ready!(self.poll_plain(cx)) {
            // Nothing behind a broken record can be trusted.
            self.ended = true;
            self.incoming.clear();
            return Poll::Ready(Err(error));
        }
        let n = self.plain.len().min(out.remaining());
        out.put_slice(&self.plain.split_to(n));
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for SecureStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.known.is_none() {
            self.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        ready!(self.poll_drain(cx))?;
        let chunk = data.get(..data.len().min(CHUNK)).unwrap_or_default();
        self.seal(chunk)?;
        // What does not fit leaves with the next call.
        if let Poll::Ready(Err(error)) = self.poll_drain(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(chunk.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
#[path = "secure_tests.rs"]
mod tests;
