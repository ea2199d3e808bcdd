//! SOCKS5 (RFC 1928), as much as a proxy for TCP connections needs: no authentication, the command CONNECT.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The version.
pub const VERSION: u8 = 5;
/// The method "no authentication required".
pub const NO_AUTHENTICATION: u8 = 0x00;
/// The answer when none of the methods will do.
pub const NO_METHOD: u8 = 0xFF;
/// The command CONNECT.
pub const CONNECT: u8 = 0x01;
/// Longest message of a client, in bytes: a request with a name of 255 bytes.
pub const MAX_MESSAGE: usize = 4 + 1 + 255 + 2;

const IPV4: u8 = 0x01;
const NAME: u8 = 0x03;
const IPV6: u8 = 0x04;

/// Why bytes are not SOCKS5.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SocksError {
    /// Another version, or another protocol.
    #[error("not SOCKS5: the first byte is {0:#04x}")]
    Version(u8),
    /// An address type that does not exist.
    #[error("SOCKS5 address type {0:#04x} does not exist")]
    AddressType(u8),
    /// A name of no bytes, or not UTF-8.
    #[error("the SOCKS5 request names no host")]
    Name,
}

impl SocksError {
    /// Stable name of the error.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Version(_) => "socks_version",
            Self::AddressType(_) => "socks_address_type",
            Self::Name => "socks_name",
        }
    }
}

/// What to say to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reply {
    /// Connected.
    Succeeded = 0x00,
    /// The gateway cannot.
    GeneralFailure = 0x01,
    /// The gateway, or the peer, does not allow it.
    NotAllowed = 0x02,
    /// There is no way to the peer.
    NetworkUnreachable = 0x03,
    /// Nobody goes by that name, or the peer cannot be found.
    HostUnreachable = 0x04,
    /// Nothing listens on that port of the peer.
    ConnectionRefused = 0x05,
    /// The peer did not answer in time.
    TtlExpired = 0x06,
    /// Another command than CONNECT.
    CommandNotSupported = 0x07,
    /// An address type that does not exist.
    AddressTypeNotSupported = 0x08,
}

/// Which host a request means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// By address.
    Ip(IpAddr),
    /// By name, 1 to 255 bytes.
    Name(String),
}

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The command, [`CONNECT`] for one.
    pub command: u8,
    /// The host.
    pub host: Host,
    /// The port.
    pub port: u16,
}

/// Reads the methods a client offers, and how many bytes they took; `None` while bytes are missing.
///
/// # Errors
/// [`SocksError::Version`].
pub fn parse_greeting(input: &[u8]) -> Result<Option<(&[u8], usize)>, SocksError> {
    match *input {
        [version, ..] if version != VERSION => Err(SocksError::Version(version)),
        [_, count, ref rest @ ..] => {
            let count = usize::from(count);
            Ok(rest.get(..count).map(|methods| (methods, 2 + count)))
        }
        _ => Ok(None),
    }
}

/// The greeting of a client with one method.
pub fn greeting(method: u8) -> [u8; 3] {
    [VERSION, 1, method]
}

/// The method that the server chooses.
pub fn method(method: u8) -> [u8; 2] {
    [VERSION, method]
}

impl Request {
    /// Reads a request, and how many bytes it took; `None` while bytes are missing.
    ///
    /// # Errors
    /// [`SocksError`].
    pub fn parse(input: &[u8]) -> Result<Option<(Self, usize)>, SocksError> {
        let (command, kind, rest) = match *input {
            [version, ..] if version != VERSION => return Err(SocksError::Version(version)),
            [_, command, _reserved, kind, ref rest @ ..] => (command, kind, rest),
            _ => return Ok(None),
        };
        let (host, rest) = match kind {
            IPV4 => match rest.split_first_chunk::<4>() {
                Some((ip, rest)) => (Host::Ip(Ipv4Addr::from(*ip).into()), rest),
                None => return Ok(None),
            },
            IPV6 => match rest.split_first_chunk::<16>() {
                Some((ip, rest)) => (Host::Ip(Ipv6Addr::from(*ip).into()), rest),
                None => return Ok(None),
            },
            NAME => {
                let Some((len, rest)) = rest.split_first() else { return Ok(None) };
                let Some((name, rest)) = rest.split_at_checked(usize::from(*len)) else { return Ok(None) };
                match std::str::from_utf8(name) {
                    Ok(name) if !name.is_empty() => (Host::Name(name.to_owned()), rest),
                    _ => return Err(SocksError::Name),
                }
            }
            other => return Err(SocksError::AddressType(other)),
        };
        let Some((port, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
        let request = Self { command, host, port: u16::from_be_bytes(*port) };
        Ok(Some((request, input.len() - rest.len())))
    }

    /// The wire form; `None` when the name is not 1 to 255 bytes.
    pub fn emit(&self) -> Option<Vec<u8>> {
        let mut out = vec![VERSION, self.command, 0];
        match &self.host {
            Host::Ip(ip) => emit_ip(*ip, &mut out),
            Host::Name(name) => {
                out.extend([NAME, u8::try_from(name.len()).ok().filter(|len| *len > 0)?]);
                out.extend_from_slice(name.as_bytes());
            }
        }
        out.extend(self.port.to_be_bytes());
        Some(out)
    }
}

fn emit_ip(ip: IpAddr, out: &mut Vec<u8>) {
    match ip {
        IpAddr::V4(ip) => {
            out.push(IPV4);
            out.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(IPV6);
            out.extend(ip.octets());
        }
    }
}

impl Reply {
    /// The wire form. `bound` is the gateway's end of the connection; all zeros say nothing.
    pub fn emit(self, bound: SocketAddr) -> Vec<u8> {
        let mut out = vec![VERSION, self as u8, 0];
        emit_ip(bound.ip(), &mut out);
        out.extend(bound.port().to_be_bytes());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_standard() {
        assert_eq!(parse_greeting(b"\x05\x02\x00\x02rest"), Ok(Some((&b"\x00\x02"[..], 4))));
        assert_eq!(parse_greeting(b"\x05\x00"), Ok(Some((&b""[..], 2))));
        assert_eq!(parse_greeting(b"\x04\x01"), Err(SocksError::Version(4)));
        assert_eq!(parse_greeting(b"GET / HTTP/1.1\r\n"), Err(SocksError::Version(b'G')));
        let named = Request { command: CONNECT, host: Host::Name("bob.pilot".to_owned()), port: 80 };
        let bytes = b"\x05\x01\x00\x03\x09bob.pilot\x00\x50";
        assert_eq!(named.emit().as_deref(), Some(&bytes[..]));
        assert_eq!(Request::parse(&[&bytes[..], b"more"].concat()), Ok(Some((named, bytes.len()))));
        let by_ip = Request { command: 2, host: Host::Ip([10, 4, 0, 1].into()), port: 443 };
        assert_eq!(Request::parse(b"\x05\x02\x00\x01\x0a\x04\x00\x01\x01\xbb"), Ok(Some((by_ip, 10))));
        let bound = SocketAddr::from(([127, 0, 0, 1], 1080));
        assert_eq!(Reply::HostUnreachable.emit(bound), b"\x05\x04\x00\x01\x7f\x00\x00\x01\x04\x38");
    }

    #[test]
    fn what_is_cut_short_is_waited_for_and_what_is_wrong_is_refused() {
        for host in [Host::Name("b".to_owned()), Host::Ip([1, 2, 3, 4].into()), Host::Ip(Ipv6Addr::LOCALHOST.into())] {
            let bytes = Request { command: CONNECT, host, port: 7 }.emit().unwrap();
            for len in 0..bytes.len() {
                assert_eq!(Request::parse(&bytes[..len]), Ok(None), "{len}");
            }
            assert!(bytes.len() <= MAX_MESSAGE);
        }
        assert_eq!(Request::parse(b"\x05\x01\x00\x02\x00"), Err(SocksError::AddressType(2)));
        assert_eq!(Request::parse(b"\x05\x01\x00\x03\x00\x00\x50"), Err(SocksError::Name));
        assert_eq!(Request::parse(b"\x05\x01\x00\x03\x01\xff\x00\x50"), Err(SocksError::Name));
        let long = Request { command: CONNECT, host: Host::Name("a".repeat(256)), port: 1 };
        assert_eq!(long.emit(), None);
    }
}
