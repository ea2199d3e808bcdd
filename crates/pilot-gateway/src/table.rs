//! Which agent has which address of this host (05 §9.1). Pure: no sockets, no clock.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use pilot_wire::Address;

/// The subnet of official gateways. Its addresses have to be added to the loopback interface, which needs root.
pub const OFFICIAL_SUBNET: &str = "10.4.0.0/16";
/// A subnet that every user can use as it is.
pub const UNPRIVILEGED_SUBNET: &str = "127.4.0.0/16";
/// Most mappings. A further one is refused.
pub const MAX_MAPPINGS: usize = 4096;

/// A range of addresses, `10.4.0.0/16`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    network: IpAddr,
    prefix: u8,
}

/// Why an address cannot be mapped, or taken back. The words are those of the official gateway.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// Not `address/prefix`.
    #[error("parse subnet: invalid CIDR address: {0}")]
    Cidr(String),
    /// Every address is taken.
    #[error("subnet exhausted")]
    Exhausted,
    /// An address elsewhere.
    #[error("IP {0} not in subnet {1}")]
    Outside(IpAddr, Subnet),
    /// An address that another agent has.
    #[error("IP {0} already mapped")]
    Taken(IpAddr),
    /// An address that nobody has.
    #[error("no mapping for {0}")]
    Unknown(IpAddr),
    /// The table is full.
    #[error("{MAX_MAPPINGS} agents are mapped, which is the limit")]
    Full,
}

impl TableError {
    /// Stable name of the error.
    pub const fn code(&self) -> &'static str {
        match self {
            // As the official tool has it (06 §6.10).
            Self::Cidr(_) | Self::Outside(..) | Self::Exhausted | Self::Full | Self::Taken(_) => "internal",
            Self::Unknown(_) => "not_found",
        }
    }
}

/// An address as a number, and how many bits it has.
fn number(ip: IpAddr) -> (u128, u8) {
    match ip {
        IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
        IpAddr::V6(ip) => (u128::from(ip), 128),
    }
}

/// The mask of the host part.
fn host_mask(prefix: u8, bits: u8) -> u128 {
    let host = u32::from(bits.saturating_sub(prefix));
    1u128.checked_shl(host).map_or(u128::MAX, |bit| bit - 1)
}

impl Subnet {
    /// Whether the address lies in it.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let ((network, bits), (ip, ip_bits)) = (number(self.network), number(ip));
        bits == ip_bits && (network ^ ip) & !host_mask(self.prefix, bits) == 0
    }

    /// Whether all of its addresses belong to the loopback interface without anybody adding them.
    pub fn is_loopback(&self) -> bool {
        match self.network {
            IpAddr::V4(ip) => ip.is_loopback() && self.prefix >= 8,
            IpAddr::V6(ip) => ip.is_loopback() && self.prefix == 128,
        }
    }

    /// The address `offset` behind the first one, if it lies inside.
    fn at(&self, offset: u128) -> Option<IpAddr> {
        let (network, bits) = number(self.network);
        let ip = network.checked_add(offset)?;
        let ip = match bits {
            32 => IpAddr::V4(Ipv4Addr::from(u32::try_from(ip).ok()?)),
            _ => IpAddr::V6(Ipv6Addr::from(ip)),
        };
        self.contains(ip).then_some(ip)
    }
}

impl FromStr for Subnet {
    type Err = TableError;

    /// Bits behind the prefix are cleared.
    fn from_str(text: &str) -> Result<Self, TableError> {
        let bad = || TableError::Cidr(text.chars().take(64).collect());
        let (ip, prefix) = text.split_once('/').ok_or_else(bad)?;
        let ip: IpAddr = ip.parse().map_err(|_| bad())?;
        if prefix.is_empty() || prefix.len() > 3 || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let (number, bits) = number(ip);
        let prefix: u8 = prefix.parse().ok().filter(|prefix| *prefix <= bits).ok_or_else(bad)?;
        let network = number & !host_mask(prefix, bits);
        let network = match ip {
            // Clearing bits of a number of 32 bits leaves one.
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(network as u32)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(network)),
        };
        Ok(Self { network, prefix })
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// The mappings.
#[derive(Clone, Debug)]
pub struct Table {
    subnet: Subnet,
    /// Offset of the next address to try. The network's own address is left out.
    next: u128,
    by_ip: BTreeMap<IpAddr, Address>,
    by_address: BTreeMap<Address, IpAddr>,
}

impl Table {
    /// An empty table.
    pub fn new(subnet: Subnet) -> Self {
        Self { subnet, next: 1, by_ip: BTreeMap::new(), by_address: BTreeMap::new() }
    }

    /// Where its addresses come from.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// Gives an agent an address: the one it has, else the one asked for, else the next that is free. An address that was
    /// taken back is not given out again unless asked for. True when the mapping is new.
    ///
    /// # Errors
    /// [`TableError`].
    pub fn map(&mut self, address: Address, asked: Option<IpAddr>) -> Result<(IpAddr, bool), TableError> {
        if let Some(ip) = self.by_address.get(&address) {
            return Ok((*ip, false));
        }
        if self.by_ip.len() >= MAX_MAPPINGS {
            return Err(TableError::Full);
        }
        let ip = match asked {
            Some(ip) if !self.subnet.contains(ip) => return Err(TableError::Outside(ip, self.subnet)),
            Some(ip) if self.by_ip.contains_key(&ip) => return Err(TableError::Taken(ip)),
            Some(ip) => ip,
            None => loop {
                let ip = self.subnet.at(self.next).ok_or(TableError::Exhausted)?;
                self.next += 1;
                if !self.by_ip.contains_key(&ip) {
                    break ip;
                }
            },
        };
        self.by_ip.insert(ip, address);
        self.by_address.insert(address, ip);
        Ok((ip, true))
    }

    /// Takes an address back; whose it was.
    ///
    /// # Errors
    /// [`TableError::Unknown`].
    pub fn unmap(&mut self, ip: IpAddr) -> Result<Address, TableError> {
        let address = self.by_ip.remove(&ip).ok_or(TableError::Unknown(ip))?;
        self.by_address.remove(&address);
        Ok(address)
    }

    /// Whose an address is.
    pub fn agent(&self, ip: IpAddr) -> Option<Address> {
        self.by_ip.get(&ip).copied()
    }

    /// The address that an agent has.
    pub fn ip(&self, address: Address) -> Option<IpAddr> {
        self.by_address.get(&address).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn vectors() -> Value {
        serde_json::from_str(include_str!("../tests/vectors/services-gateway.json")).unwrap()
    }

    fn table(subnet: &str) -> Table {
        Table::new(subnet.parse().unwrap())
    }

    /// The addresses of this many automatic mappings, until the first error.
    fn automatic(table: &mut Table, count: u32) -> (Vec<String>, Option<String>) {
        let mut given = Vec::new();
        for node in 1..=count {
            match table.map(Address::backbone(node), None) {
                Ok((ip, new)) => {
                    assert!(new);
                    given.push(ip.to_string());
                }
                Err(error) => return (given, Some(error.to_string())),
            }
        }
        (given, None)
    }

    #[test]
    fn addresses_are_given_out_as_the_vectors_say() {
        let vectors = vectors();
        let mut compared = 0;
        for case in vectors["allocation"].as_array().unwrap() {
            let subnet = case["subnet"].as_str().unwrap();
            if let Some(error) = case["error"].as_str() {
                assert_eq!(subnet.parse::<Subnet>().unwrap_err().to_string(), error);
                continue;
            }
            let (given, error) = automatic(&mut table(subnet), 5);
            match subnet {
                // The reference starts at .1 wherever the network lies, and finds nothing here; the fix of 05 §15.44
                // starts behind the network's own address.
                "10.4.0.4/30" => assert_eq!(given, ["10.4.0.5", "10.4.0.6", "10.4.0.7"]),
                "192.168.7.128/25" => assert_eq!(given[0], "192.168.7.129"),
                _ => {
                    let expected = case["assigned"].as_array().cloned().unwrap_or_default();
                    assert_eq!(
                        given.iter().map(|ip| Value::from(ip.as_str())).collect::<Vec<_>>(),
                        expected,
                        "{subnet}"
                    );
                    assert_eq!(error.as_deref(), case["then_error"].as_str(), "{subnet}");
                    compared += 1;
                }
            }
        }
        assert!(compared >= 8, "{compared}");
        let (given, error) = automatic(&mut table("10.4.0.0/24"), 300);
        let exhausted = &vectors["exhaust_/24"];
        assert_eq!((given.len() as u64, given.last().unwrap().as_str()), (255, exhausted["last"].as_str().unwrap()));
        assert_eq!(error.as_deref(), exhausted["error"].as_str());
        let (given, _) = automatic(&mut table("10.4.0.0/16"), 258);
        for case in vectors["sequence_past_255_in_/16"].as_array().unwrap() {
            assert_eq!(given[case["n"].as_u64().unwrap() as usize - 1], case["ip"].as_str().unwrap());
        }
        let ports = crate::parse_ports(crate::DEFAULT_PORTS).unwrap();
        let ports: Vec<Value> = ports.iter().map(|pair| pair.local.into()).collect();
        assert_eq!(&ports, vectors["default_ports_in_order"].as_array().unwrap());
    }

    #[test]
    fn operations_end_as_the_vectors_say() {
        let mut table = table("10.4.0.0/16");
        for case in vectors()["operations_in_order"].as_array().unwrap() {
            let result = match case["op"].as_str().unwrap() {
                "unmap" => table.unmap(case["ip"].as_str().unwrap().parse().unwrap()).map(|_| None),
                _ => {
                    let node = case["node"].as_u64().unwrap() as u32;
                    let asked = case["requested_ip"].as_str().unwrap();
                    let asked = (!asked.is_empty()).then(|| asked.parse().unwrap());
                    table.map(Address::backbone(node), asked).map(|(ip, _)| Some(ip.to_string()))
                }
            };
            match (result, case["error"].as_str()) {
                (Err(error), Some(expected)) => assert_eq!(error.to_string(), expected),
                (Ok(ip), None) => assert_eq!(ip.as_deref(), case["result_ip"].as_str(), "{case}"),
                (result, _) => panic!("{case}: {result:?}"),
            }
        }
    }

    #[test]
    fn subnets_that_need_no_rights_are_known_and_the_table_has_an_end() {
        for (subnet, is) in [
            ("127.4.0.0/16", true),
            ("127.0.0.0/8", true),
            ("0.0.0.0/0", false),
            ("10.4.0.0/16", false),
            ("::1/128", true),
        ] {
            assert_eq!(subnet.parse::<Subnet>().unwrap().is_loopback(), is, "{subnet}");
        }
        for bad in ["", "/", "10.4.0.0/", "10.4.0.0/33", "10.4.0.0/+8", "10.4.0.0/016x", "fd00::/129", "a/8"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
        let (given, error) = automatic(&mut table("10.0.0.0/8"), 5000);
        assert_eq!((given.len(), error), (MAX_MAPPINGS, Some(TableError::Full.to_string())));
        // The last address there is.
        let (given, error) = automatic(&mut table("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127"), 3);
        assert_eq!((given.len(), error.as_deref()), (1, Some("subnet exhausted")));
    }

    proptest! {
        #[test]
        fn both_directions_agree_and_every_address_lies_inside(
            ops in prop::collection::vec((0..12u32, prop::option::of(0..40u8), any::<bool>()), 0..80),
        ) {
            let mut table = table("127.4.0.0/28");
            for (node, asked, unmap) in ops {
                let asked = asked.map(|last| IpAddr::from([127, 4, 0, last]));
                match (unmap, asked) {
                    (true, Some(ip)) => drop(table.unmap(ip)),
                    _ => drop(table.map(Address::backbone(node), asked)),
                }
                prop_assert_eq!(table.by_ip.len(), table.by_address.len());
                for (ip, address) in &table.by_ip {
                    prop_assert!(table.subnet.contains(*ip));
                    prop_assert_eq!(table.ip(*address), Some(*ip));
                }
            }
        }
    }
}
