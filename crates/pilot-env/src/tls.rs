//! TLS 1.2 and 1.3 over any byte stream: a client that pins one certificate by its fingerprint, and a server
//! (04 §17). Names and chains are not looked at: the pin is the whole trust.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, ServerConfig, SignatureScheme};

use crate::net::NetStream;

/// SHA-256 over the DER of the certificate that a server shows first.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// The fingerprint of a certificate.
    pub fn of(certificate_der: &[u8]) -> Self {
        Self(sha256(certificate_der))
    }
}

fn sha256(data: &[u8]) -> [u8; 32] {
    // rustls's provider hashes for its own transcript; the same code serves here.
    let hash =
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13().map(|suite| suite.common.hash_provider.hash(data));
    let mut out = [0; 32];
    if let Some(hash) = hash {
        // SHA-256 is 32 bytes by definition, so the two lengths agree.
        out.copy_from_slice(hash.as_ref());
    }
    out
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A fingerprint text that is not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a certificate fingerprint is 64 hexadecimal digits (SHA-256 of the certificate); colons and upper case are fine"
)]
pub struct BadFingerprint;

impl FromStr for Fingerprint {
    type Err = BadFingerprint;

    /// Reads hexadecimal digits in either case, with or without colons between bytes.
    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let digits: Vec<u8> = text
            .trim()
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()).ok_or(BadFingerprint))
            .collect::<Result<_, _>>()?;
        let bytes: Vec<u8> = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        if digits.len() != 64 {
            return Err(BadFingerprint);
        }
        bytes.try_into().map(Self).map_err(|_| BadFingerprint)
    }
}

#[derive(Debug)]
struct PinVerifier {
    pin: Fingerprint,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let got = Fingerprint::of(end_entity);
        if got == self.pin {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General(format!("certificate fingerprint mismatch: got {got}, want {}", self.pin)))
    }

    // The pin says whose certificate it is; these two say that the server holds its key.
    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }
    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The client side of TLS with one pinned certificate.
#[derive(Clone)]
pub struct TlsConnector(tokio_rustls::TlsConnector);

impl TlsConnector {
    /// A client that accepts exactly the certificate with this fingerprint.
    ///
    /// # Errors
    /// Only when the cryptographic provider lacks both TLS 1.2 and 1.3, which this build does not.
    pub fn pinned(pin: Fingerprint) -> io::Result<Self> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = Arc::new(PinVerifier { pin, provider: provider.clone() });
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        Ok(Self(tokio_rustls::TlsConnector::from(Arc::new(config))))
    }

    /// A client that trusts the certificate authorities of this machine. Without any, every handshake fails.
    ///
    /// # Errors
    /// Only when the cryptographic provider lacks both TLS 1.2 and 1.3, which this build does not.
    pub fn system() -> io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let found = rustls_native_certs::load_native_certs();
        let (_, unusable) = roots.add_parsable_certificates(found.certs);
        if unusable > 0 || !found.errors.is_empty() {
            tracing::debug!(unusable, errors = ?found.errors, "some certificates of this machine cannot be used");
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(tokio_rustls::TlsConnector::from(Arc::new(config))))
    }

    /// As [`TlsConnector::connect`], for a server that is known by its name or address.
    ///
    /// # Errors
    /// `InvalidInput` for a name that cannot be one; otherwise what the stream or the handshake reports.
    pub async fn connect_to(&self, name: &str, stream: NetStream) -> io::Result<NetStream> {
        let (local, peer) = (stream.local_addr(), stream.peer_addr());
        let name = ServerName::try_from(name.to_owned())
            .map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, format!("server name: {e}")))?;
        let tls = self.0.connect(name, stream).await?;
        Ok(NetStream::new(Box::new(tls), local, peer))
    }

    /// Performs the handshake on a connected stream.
    ///
    /// # Errors
    /// `InvalidData` with `certificate fingerprint mismatch: got …, want …` when the pin does not match; otherwise what
    /// the stream or the handshake reports.
    pub async fn connect(&self, stream: NetStream) -> io::Result<NetStream> {
        let (local, peer) = (stream.local_addr(), stream.peer_addr());
        let tls = self.0.connect(ServerName::IpAddress(peer.ip().into()), stream).await?;
        Ok(NetStream::new(Box::new(tls), local, peer))
    }
}

/// The server side of TLS.
#[derive(Clone)]
pub struct TlsAcceptor {
    acceptor: tokio_rustls::TlsAcceptor,
    fingerprint: Fingerprint,
}

impl TlsAcceptor {
    /// A server with the certificates and key of two PEM texts.
    ///
    /// # Errors
    /// `InvalidData` when a text holds no certificate or no key, or the two do not belong together.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> io::Result<Self> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(certificates)
            .collect::<Result<_, _>>()
            .map_err(|e| invalid(format!("certificate: {e}")))?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| invalid(format!("private key: {e}")))?;
        let first = chain.first().ok_or_else(|| invalid("no certificate in the PEM text".to_owned()))?;
        let fingerprint = Fingerprint::of(first);
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .map_err(|e| invalid(format!("certificate and key: {e}")))?;
        Ok(Self { acceptor: tokio_rustls::TlsAcceptor::from(Arc::new(config)), fingerprint })
    }

    /// What clients pin.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// Performs the handshake on an accepted stream. Has no deadline of its own.
    ///
    /// # Errors
    /// What the stream or the handshake reports.
    pub async fn accept(&self, stream: NetStream) -> io::Result<NetStream> {
        let (local, peer) = (stream.local_addr(), stream.peer_addr());
        Ok(NetStream::new(Box::new(self.acceptor.accept(stream).await?), local, peer))
    }
}
