//! How large a packet may be so that no IP fragment leaves (01 §22, 07 rule 21).

use std::net::SocketAddr;

use pilot_wire::beacon::RELAY_HEADER_LEN;
use pilot_wire::packet::HEADER_LEN;
use pilot_wire::tunnel::{SECURE_HEADER_LEN, TAG_LEN};

/// Bytes of an IP packet that every path is assumed to carry. Ethernet; most tunnels below it announce themselves by
/// smaller segments only to TCP, which is why old peers get 1,152-byte segments and not more.
pub const PATH_MTU: usize = 1_500;
/// Bytes of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// Bytes of an IPv6 header without extensions.
pub const IPV6_HEADER: usize = 40;
/// Bytes of a UDP header.
pub const UDP_HEADER: usize = 8;
/// Bytes around a packet payload in a `PILS` frame.
pub const SEALED_OVERHEAD: usize = SECURE_HEADER_LEN + HEADER_LEN + TAG_LEN;
/// Largest UDP payload over IPv4, and so of any datagram we send.
pub const UDP_MAX: usize = 65_507;
/// Payload that fits every path: by relay over IPv6.
pub const SMALLEST_LIMIT: usize = PATH_MTU - IPV6_HEADER - UDP_HEADER - RELAY_HEADER_LEN - SEALED_OVERHEAD;

/// Largest packet payload sent directly to `to` without an IP fragment leaving, in bytes.
///
/// `wide`: the peer said in its Hello that it takes large packets; only then may loopback, whose links carry 64 KiB, do more.
pub fn direct_limit(to: SocketAddr, wide: bool) -> usize {
    if wide && to.ip().to_canonical().is_loopback() {
        return UDP_MAX - SEALED_OVERHEAD;
    }
    let ip = if to.ip().to_canonical().is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
    PATH_MTU - ip - UDP_HEADER - SEALED_OVERHEAD
}

/// Largest packet payload by relay, in bytes. The beacon may reach the peer over IPv6 even where we reach the beacon
/// over IPv4, so the larger header counts; the relay header is longest on our leg.
pub const fn relay_limit() -> usize {
    SMALLEST_LIMIT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_frame_exceeds_the_mtu() {
        let v4: SocketAddr = "203.0.113.1:4000".parse().unwrap();
        let v6: SocketAddr = "[2001:db8::1]:4000".parse().unwrap();
        let mapped: SocketAddr = "[::ffff:203.0.113.1]:4000".parse().unwrap();
        assert_eq!(direct_limit(v4, true) + SEALED_OVERHEAD + UDP_HEADER + IPV4_HEADER, PATH_MTU);
        assert_eq!(direct_limit(v6, true) + SEALED_OVERHEAD + UDP_HEADER + IPV6_HEADER, PATH_MTU);
        assert_eq!(direct_limit(mapped, false), direct_limit(v4, false));
        assert_eq!(relay_limit(), 1373);
        const { assert!(SMALLEST_LIMIT >= 1_152) };
    }

    #[test]
    fn loopback_is_wide_only_for_peers_that_said_so() {
        let lo: SocketAddr = "127.0.0.1:4000".parse().unwrap();
        assert_eq!(direct_limit(lo, false), 1402);
        assert_eq!(direct_limit(lo, true), 65_437);
    }
}
