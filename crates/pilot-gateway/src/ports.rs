//! Which ports a mapped address listens on, and where they lead.

use std::fmt;

/// The ports of an address unless told otherwise, in this order (05 §9.1).
pub const DEFAULT_PORTS: &str = "80,443,1000,1001,1002,7,8080,8443";
/// Most ports of one address.
const MAX_PORTS: usize = 64;
/// Most ports of all mapped addresses, those that cannot be listened on included.
pub(crate) const MAX_LISTENED: usize = 8192;

/// A port of this host and the port of the agent it leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortPair {
    /// On this host.
    pub local: u16,
    /// At the agent.
    pub remote: u16,
}

impl fmt::Display for PortPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.local == self.remote {
            true => write!(f, "{}", self.local),
            false => write!(f, "{}:{}", self.local, self.remote),
        }
    }
}

/// Reads a list: `80,8080`, or `8080:80` where the port of this host and that of the agent differ.
///
/// # Errors
/// Names the word that is none, a port of this host that stands there twice, or that there are too many.
pub fn parse_ports(text: &str) -> Result<Vec<PortPair>, String> {
    let mut pairs: Vec<PortPair> = Vec::new();
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let number = |text: &str| -> Result<u16, String> {
            match text.parse::<u16>() {
                Ok(port) if port > 0 && text.bytes().all(|b| b.is_ascii_digit()) => Ok(port),
                _ => Err(format!("invalid port {word:?}: write a number from 1 to 65535, or LOCAL:REMOTE")),
            }
        };
        let pair = match word.split_once(':') {
            Some((local, remote)) => PortPair { local: number(local)?, remote: number(remote)? },
            None => PortPair { local: number(word)?, remote: number(word)? },
        };
        if pairs.iter().any(|other| other.local == pair.local) {
            return Err(format!("invalid port {word:?}: port {} of this host is in the list already", pair.local));
        }
        pairs.push(pair);
    }
    match pairs.len() {
        0 => Err("no ports: give at least one, such as 80 or 8080:80".to_owned()),
        n if n > MAX_PORTS => Err(format!("{n} ports are too many (at most {MAX_PORTS})")),
        _ => Ok(pairs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_ports_is_read_or_its_bad_word_named() {
        let local = |text: &str| parse_ports(text).unwrap().iter().map(|pair| pair.local).collect::<Vec<_>>();
        assert_eq!(local(DEFAULT_PORTS), [80, 443, 1000, 1001, 1002, 7, 8080, 8443]);
        assert_eq!(parse_ports("8080:80, 7").unwrap()[0], PortPair { local: 8080, remote: 80 });
        for bad in ["", ",", "0", "x", "80,x", "65536", "80:", ":80", "+80", "80,80", "80,80:90", "1:2:3"] {
            assert!(parse_ports(bad).is_err(), "{bad}");
        }
        let many = (1..=65).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
        assert!(parse_ports(&many).unwrap_err().contains("at most 64"));
    }
}
