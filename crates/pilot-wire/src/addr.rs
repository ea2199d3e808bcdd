//! 48-bit addresses `N:NNNN.HHHH.LLLL` and socket addresses `N:NNNN.HHHH.LLLL:PORT` (specification 01 §2).

use std::fmt;
use std::str::FromStr;

/// Node part of the broadcast address of any network.
pub const BROADCAST_NODE: u32 = 0xFFFF_FFFF;

/// A virtual address: network (16 bits) and node (32 bits). Six bytes on the wire, network first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// Network id; 0 is the backbone.
    pub network: u16,
    /// Node id, unique over all networks.
    pub node: u32,
}

impl Address {
    /// Bytes of an address on the wire.
    pub const LEN: usize = 6;

    /// An address on network 0.
    pub const fn backbone(node: u32) -> Self {
        Self { network: 0, node }
    }

    /// The wire form.
    pub const fn to_bytes(self) -> [u8; 6] {
        let n = self.network.to_be_bytes();
        let h = self.node.to_be_bytes();
        [n[0], n[1], h[0], h[1], h[2], h[3]]
    }

    /// Reads the wire form.
    pub const fn from_bytes(b: [u8; 6]) -> Self {
        Self { network: u16::from_be_bytes([b[0], b[1]]), node: u32::from_be_bytes([b[2], b[3], b[4], b[5]]) }
    }

    /// Whether the node half is the broadcast value.
    pub const fn is_broadcast(self) -> bool {
        self.node == BROADCAST_NODE
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:04X}.{:04X}.{:04X}", self.network, self.network, self.node >> 16, self.node & 0xFFFF)
    }
}

/// Why a text is not an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// No `:` between network and groups.
    #[error("invalid address {0:?}: missing ':' after the network (expected N:NNNN.HHHH.LLLL)")]
    MissingColon(String),
    /// The decimal network is not a number from 0 to 65535.
    #[error("invalid address {0:?}: the network before ':' must be a decimal number from 0 to 65535")]
    Network(String),
    /// Not exactly three groups after the colon.
    #[error("invalid address {0:?}: expected three groups of four hex digits after ':'")]
    Groups(String),
    /// A group is not four hex digits.
    #[error("invalid address {0:?}: group {1:?} is not four hex digits")]
    Group(String, String),
    /// The hex network differs from the decimal one.
    #[error("invalid address {0:?}: network mismatch, {1} is not 0x{2}")]
    NetworkMismatch(String, u16, String),
    /// A socket address without a port.
    #[error("invalid socket address {0:?}: missing ':PORT'")]
    MissingPort(String),
    /// The port is not a number from 0 to 65535.
    #[error("invalid socket address {0:?}: the port must be a decimal number from 0 to 65535")]
    Port(String),
}

/// Longest piece of input repeated in an error.
fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// Decimal `u16`: ASCII digits only, any number of leading zeros (01 §2.3 step 2).
fn decimal_u16(text: &str) -> Option<u16> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = text.trim_start_matches('0');
    if digits.is_empty() { Some(0) } else { digits.parse().ok() }
}

/// Exactly four hex digits of either case.
fn hex_group(text: &str) -> Option<u16> {
    if text.len() != 4 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    u16::from_str_radix(text, 16).ok()
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (left, right) = text.split_once(':').ok_or_else(|| AddressError::MissingColon(shown(text)))?;
        let network = decimal_u16(left).ok_or_else(|| AddressError::Network(shown(text)))?;
        let mut groups = right.split('.');
        let (Some(a), Some(b), Some(c), None) = (groups.next(), groups.next(), groups.next(), groups.next()) else {
            return Err(AddressError::Groups(shown(text)));
        };
        let group = |g: &str| hex_group(g).ok_or_else(|| AddressError::Group(shown(text), shown(g)));
        let (hex_network, high, low) = (group(a)?, group(b)?, group(c)?);
        if hex_network != network {
            return Err(AddressError::NetworkMismatch(shown(text), network, a.to_owned()));
        }
        Ok(Self { network, node: u32::from(high) << 16 | u32::from(low) })
    }
}

/// An address and a virtual port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketAddress {
    /// The address.
    pub addr: Address,
    /// The virtual port, 0 to 65535.
    pub port: u16,
}

impl SocketAddress {
    /// Joins an address and a port.
    pub const fn new(addr: Address, port: u16) -> Self {
        Self { addr, port }
    }
}

impl fmt::Display for SocketAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.addr, self.port)
    }
}

impl FromStr for SocketAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let (addr, port) = text.rsplit_once(':').ok_or_else(|| AddressError::MissingPort(shown(text)))?;
        let addr = addr.parse()?;
        let port = decimal_u16(port).ok_or_else(|| AddressError::Port(shown(text)))?;
        Ok(Self { addr, port })
    }
}
