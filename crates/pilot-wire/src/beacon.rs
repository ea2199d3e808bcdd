//! Datagrams to and from the beacon (specification 01 §15, 07 §8.1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of a Relay message before the frame.
pub const RELAY_HEADER_LEN: usize = 9;
/// Bytes of a RelayDeliver message before the frame.
pub const RELAY_DELIVER_HEADER_LEN: usize = 5;

/// Message types, the first byte.
pub mod kind {
    /// node → beacon: who am I.
    pub const DISCOVER: u8 = 0x01;
    /// beacon → node: your public endpoint.
    pub const DISCOVER_REPLY: u8 = 0x02;
    /// node → beacon: help me reach a node.
    pub const PUNCH_REQUEST: u8 = 0x03;
    /// beacon → node: send punches there.
    pub const PUNCH_COMMAND: u8 = 0x04;
    /// node → beacon, beacon → beacon: carry a frame.
    pub const RELAY: u8 = 0x05;
    /// beacon → node: a carried frame.
    pub const RELAY_DELIVER: u8 = 0x06;
    /// beacon → beacon: the nodes I hold.
    pub const SYNC: u8 = 0x07;
    /// node → beacon: as DISCOVER, and asks for RELAY_DELIVER_DEST.
    pub const DISCOVER_EX: u8 = 0x08;
    /// beacon → node: a carried frame with its destination.
    pub const RELAY_DELIVER_DEST: u8 = 0x09;
    /// beacon → node: something waits at the registry.
    pub const NOTIFY: u8 = 0x0A;
}

/// Notify kind 1: a handshake message waits at the registry (07 §8.1).
pub const NOTIFY_HANDSHAKE: u8 = 1;

/// A beacon message. Longer input than a message needs is accepted and the rest ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BeaconMessage<'a> {
    /// 0x01
    Discover {
        /// Sender, 0 before registration.
        node: u32,
    },
    /// 0x02
    DiscoverReply {
        /// Where the beacon saw the datagram come from.
        endpoint: SocketAddr,
    },
    /// 0x03
    PunchRequest {
        /// Who asks.
        requester: u32,
        /// Who is to be reached.
        target: u32,
    },
    /// 0x04
    PunchCommand {
        /// Where to send punches.
        endpoint: SocketAddr,
    },
    /// 0x05
    Relay {
        /// Sender node.
        src: u32,
        /// Destination node.
        dst: u32,
        /// A tunnel frame, possibly empty.
        frame: &'a [u8],
    },
    /// 0x06
    RelayDeliver {
        /// Sender node as the relay message claimed.
        src: u32,
        /// A tunnel frame, possibly empty.
        frame: &'a [u8],
    },
    /// 0x07
    Sync {
        /// Gossiping beacon.
        beacon: u32,
        /// Its nodes.
        nodes: NodeList<'a>,
    },
    /// 0x08
    DiscoverEx {
        /// Sender, 0 before registration.
        node: u32,
    },
    /// 0x09
    RelayDeliverDest {
        /// Sender node as the relay message claimed.
        src: u32,
        /// Destination node.
        dst: u32,
        /// A tunnel frame, possibly empty.
        frame: &'a [u8],
    },
    /// 0x0A
    Notify {
        /// What waits; [`NOTIFY_HANDSHAKE`].
        kind: u8,
    },
}

/// The node ids of a Sync message, read in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeList<'a>(&'a [u8]);

impl<'a> NodeList<'a> {
    /// How many ids there are.
    pub fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ids in message order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + 'a {
        self.0.chunks_exact(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]]))
    }
}

fn be32(b: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(b.get(at..at + 4)?.try_into().ok()?))
}

/// Reads an endpoint: IP length (4 or 16), address, port (01 §15.2). IPv4-mapped addresses become IPv4.
pub fn parse_endpoint(b: &[u8]) -> Option<SocketAddr> {
    let len = usize::from(*b.first()?);
    let ip = match len {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(b.get(1..5)?).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(b.get(1..17)?).ok()?)).to_canonical(),
        _ => return None,
    };
    let port = b.get(1 + len..3 + len)?;
    Some(SocketAddr::new(ip, u16::from_be_bytes([port[0], port[1]])))
}

/// Appends an endpoint; IPv4-mapped addresses are written as IPv4.
pub fn emit_endpoint(endpoint: SocketAddr, out: &mut Vec<u8>) {
    match endpoint.ip().to_canonical() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(16);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&endpoint.port().to_be_bytes());
}

impl<'a> BeaconMessage<'a> {
    /// Parses one datagram; `None` for an unknown type or a message too short for its type.
    pub fn parse(b: &'a [u8]) -> Option<Self> {
        Some(match *b.first()? {
            kind::DISCOVER => Self::Discover { node: be32(b, 1)? },
            kind::DISCOVER_REPLY => Self::DiscoverReply { endpoint: parse_endpoint(&b[1..])? },
            kind::PUNCH_REQUEST => Self::PunchRequest { requester: be32(b, 1)?, target: be32(b, 5)? },
            kind::PUNCH_COMMAND => Self::PunchCommand { endpoint: parse_endpoint(&b[1..])? },
            kind::RELAY => Self::Relay { src: be32(b, 1)?, dst: be32(b, 5)?, frame: &b[9..] },
            kind::RELAY_DELIVER => Self::RelayDeliver { src: be32(b, 1)?, frame: &b[5..] },
            kind::SYNC => {
                let beacon = be32(b, 1)?;
                let count = usize::from(u16::from_be_bytes(b.get(5..7)?.try_into().ok()?));
                Self::Sync { beacon, nodes: NodeList(b.get(7..7 + 4 * count)?) }
            }
            kind::DISCOVER_EX => Self::DiscoverEx { node: be32(b, 1)? },
            kind::RELAY_DELIVER_DEST => Self::RelayDeliverDest { src: be32(b, 1)?, dst: be32(b, 5)?, frame: &b[9..] },
            kind::NOTIFY => Self::Notify { kind: *b.get(1)? },
            _ => return None,
        })
    }

    /// Appends the message.
    pub fn emit(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Discover { node } => emit_ids(kind::DISCOVER, &[node], out),
            Self::DiscoverReply { endpoint } => {
                out.push(kind::DISCOVER_REPLY);
                emit_endpoint(endpoint, out);
            }
            Self::PunchRequest { requester, target } => emit_ids(kind::PUNCH_REQUEST, &[requester, target], out),
            Self::PunchCommand { endpoint } => {
                out.push(kind::PUNCH_COMMAND);
                emit_endpoint(endpoint, out);
            }
            Self::Relay { src, dst, frame } => {
                emit_ids(kind::RELAY, &[src, dst], out);
                out.extend_from_slice(frame);
            }
            Self::RelayDeliver { src, frame } => {
                emit_ids(kind::RELAY_DELIVER, &[src], out);
                out.extend_from_slice(frame);
            }
            Self::Sync { beacon, nodes } => {
                emit_ids(kind::SYNC, &[beacon], out);
                out.extend_from_slice(&(nodes.len() as u16).to_be_bytes());
                out.extend_from_slice(nodes.0);
            }
            Self::DiscoverEx { node } => emit_ids(kind::DISCOVER_EX, &[node], out),
            Self::RelayDeliverDest { src, dst, frame } => {
                emit_ids(kind::RELAY_DELIVER_DEST, &[src, dst], out);
                out.extend_from_slice(frame);
            }
            Self::Notify { kind: what } => out.extend_from_slice(&[kind::NOTIFY, what]),
        }
    }
}

fn emit_ids(kind: u8, ids: &[u32], out: &mut Vec<u8>) {
    out.push(kind);
    for id in ids {
        out.extend_from_slice(&id.to_be_bytes());
    }
}

/// Appends a Sync message for at most 65,535 of the ids.
pub fn emit_sync(beacon: u32, nodes: &[u32], out: &mut Vec<u8>) {
    let count = u16::try_from(nodes.len()).unwrap_or(u16::MAX);
    emit_ids(kind::SYNC, &[beacon], out);
    out.extend_from_slice(&count.to_be_bytes());
    for id in nodes.iter().take(usize::from(count)) {
        out.extend_from_slice(&id.to_be_bytes());
    }
}
