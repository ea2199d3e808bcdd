//! The registry's certificate: given, or made once and kept beside the store, so that what clients pinned stays right
//! after a restart (04 §17, §24.40).

use std::io;
use std::path::{Path, PathBuf};

use pilot_env::Env;
use pilot_env::tls::TlsAcceptor;
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};

use crate::StartError;

/// Largest PEM file read, in bytes.
const MAX_PEM: u64 = 1 << 20;

/// How the registry speaks TLS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Tls {
    /// Plain TCP.
    #[default]
    Off,
    /// A certificate of our own making, kept beside the store as `<store>.tls.pem` (mode 0600); without a store it lasts
    /// as long as the process.
    SelfSigned,
    /// PEM files.
    Files {
        /// Certificate chain, the server's first.
        certificate: PathBuf,
        /// Private key.
        key: PathBuf,
    },
}

pub(crate) fn acceptor(env: &Env, tls: &Tls, store: Option<&Path>) -> Result<Option<TlsAcceptor>, StartError> {
    match tls {
        Tls::Off => Ok(None),
        Tls::Files { certificate, key } => {
            let read = |path: &PathBuf| {
                let content = env.fs().read_limited(path, MAX_PEM);
                content.map_err(|error| StartError::Tls { path: path.clone(), error })
            };
            let acceptor = TlsAcceptor::from_pem(&read(certificate)?, &read(key)?);
            acceptor.map(Some).map_err(|error| StartError::Tls { path: certificate.clone(), error })
        }
        Tls::SelfSigned => {
            let path = store.map(|store| {
                let mut name = store.as_os_str().to_owned();
                name.push(".tls.pem");
                PathBuf::from(name)
            });
            let shown = path.clone().unwrap_or_else(|| "self-signed certificate".into());
            self_signed(env, path.as_deref()).map(Some).map_err(|error| StartError::Tls { path: shown, error })
        }
    }
}

/// The certificate kept at `path`, or a new one, which is kept there before it is used.
fn self_signed(env: &Env, path: Option<&Path>) -> io::Result<TlsAcceptor> {
    let pem = match path {
        None => make()?,
        Some(path) => match env.fs().read_limited(path, MAX_PEM) {
            Ok(pem) => pem,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let pem = make()?;
                env.fs().write_atomic(path, &pem, 0o600)?;
                pem
            }
            Err(error) => return Err(error),
        },
    };
    TlsAcceptor::from_pem(&pem, &pem)
}

/// Certificate and key in one PEM text: ECDSA P-256, and the subject, names and usages of the official server.
fn make() -> io::Result<Vec<u8>> {
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()])
        .map_err(io::Error::other)?;
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Pilot Protocol");
    params.distinguished_name = name;
    // Clients trust the fingerprint and nothing else, so the certificate never needs to expire under them.
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2120, 1, 1);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    Ok(format!("{}{}", certificate.pem(), key.serialize_pem()).into_bytes())
}
