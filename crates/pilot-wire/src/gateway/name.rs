//! Destinations as TCP programs can write them: `<hostname>.pilot`, and addresses in forms that a URL can hold.

use std::fmt;
use std::str::FromStr;

use crate::addr::Address;

/// What a host in a URL ends with when it means an agent.
pub const SUFFIX: &str = ".pilot";
/// Longest registered hostname, in bytes (04 §9).
const MAX_LABEL: usize = 63;
/// Longest text looked at, in bytes: that of a host in the domain name system.
const MAX_HOST: usize = 255;

/// Whom a host names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Destination {
    /// An address.
    Address(Address),
    /// A hostname registered at the registry, in lower case.
    Hostname(String),
}

/// Why a host names no agent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// It belongs to another network than ours.
    #[error("{0:?} is not on the Pilot network")]
    Foreign(String),
    /// It ends in `.pilot`, and what stands before that is neither a hostname nor an address.
    #[error("{0:?} is neither <hostname>.pilot nor an address such as 0000.0000.0005.pilot")]
    Malformed(String),
}

impl NameError {
    /// Stable name of the error.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Foreign(_) => "not_pilot",
            Self::Malformed(_) => "bad_name",
        }
    }

    /// What to do about it.
    pub const fn hint(&self) -> &'static str {
        "write <hostname>.pilot, NNNN.HHHH.LLLL.pilot or N:NNNN.HHHH.LLLL"
    }
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// `N:NNNN.HHHH.LLLL`, with `-` or `.` for the colon and the dots, and with or without the leading decimal network.
fn address(text: &str) -> Option<Address> {
    if let Ok(address) = text.parse() {
        return Some(address);
    }
    let groups: Vec<&str> = text.split(['.', '-']).collect();
    let (network, [a, b, c]) = match groups[..] {
        [n, a, b, c] => (Some(n), [a, b, c]),
        [a, b, c] => (None, [a, b, c]),
        _ => return None,
    };
    // The one form that is read everywhere else decides about digits and the double network.
    let network = match network {
        Some(network) => network.to_owned(),
        None if a.len() == 4 => u16::from_str_radix(a, 16).ok()?.to_string(),
        None => return None,
    };
    format!("{network}:{a}.{b}.{c}").parse().ok()
}

fn is_hostname(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty()
        && text.len() <= MAX_LABEL
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

impl FromStr for Destination {
    type Err = NameError;

    /// Reads a host. Case does not matter, nor does one dot at the end. An address goes before a hostname that looks like
    /// one, so that nobody can register himself into another's address.
    fn from_str(text: &str) -> Result<Self, NameError> {
        if text.len() > MAX_HOST {
            return Err(NameError::Foreign(shown(text)));
        }
        let host = text.to_ascii_lowercase();
        // A URL holds it in brackets where it has colons.
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host);
        if let Ok(address) = host.parse() {
            return Ok(Self::Address(address));
        }
        let host = host.strip_suffix('.').unwrap_or(host);
        let Some(name) = host.strip_suffix(SUFFIX) else { return Err(NameError::Foreign(shown(text))) };
        match address(name) {
            Some(address) => Ok(Self::Address(address)),
            None if is_hostname(name) => Ok(Self::Hostname(name.to_owned())),
            None => Err(NameError::Malformed(shown(text))),
        }
    }
}

impl fmt::Display for Destination {
    /// As a host of a URL.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(name) => write!(f, "{name}{SUFFIX}"),
            Self::Address(Address { network, node }) => {
                write!(f, "{network:04x}.{:04x}.{:04x}{SUFFIX}", node >> 16, node & 0xFFFF)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_an_address_means_the_address() {
        let five = Destination::Address(Address { network: 1, node: 0x00AB_0005 });
        for host in [
            "1:0001.00AB.0005",
            "[1:0001.00ab.0005]",
            "0001.00AB.0005.pilot",
            "0001.00ab.0005.PILOT.",
            "1.0001.00ab.0005.pilot",
            "1-0001.00ab.0005.pilot",
            "1-0001-00ab-0005.pilot",
            "0001-00ab-0005.pilot",
            "1:0001.00ab.0005.pilot",
        ] {
            assert_eq!(host.parse(), Ok(five.clone()), "{host}");
        }
        assert_eq!(five.to_string(), "0001.00ab.0005.pilot");
    }

    #[test]
    fn hostnames_end_in_pilot_and_nothing_else_is_ours() {
        for (host, name) in [("bob.pilot", "bob"), ("Web-7.Pilot.", "web-7"), ("5.pilot", "5")] {
            assert_eq!(host.parse(), Ok(Destination::Hostname(name.to_owned())), "{host}");
        }
        for host in ["example.org", "127.0.0.1", "[::1]", "localhost", "bob", "pilot", "bob.pilot.example.org", "", "."]
        {
            assert!(matches!(host.parse::<Destination>(), Err(NameError::Foreign(_))), "{host}");
        }
        let long = format!("{}.pilot", "a".repeat(64));
        for host in [".pilot", "-a.pilot", "a-.pilot", "a_b.pilot", "www.bob.pilot", "a b.pilot", "bob\0.pilot", &long]
        {
            assert!(matches!(host.parse::<Destination>(), Err(NameError::Malformed(_))), "{host:?}");
        }
        // Two networks that differ, and groups that are none, are no addresses; dots are in no hostname.
        for host in ["2.0001.00ab.0005.pilot", "001.00ab.0005.pilot", "+001.00ab.0005.pilot"] {
            assert!(host.parse::<Destination>().is_err(), "{host}");
        }
    }
}
