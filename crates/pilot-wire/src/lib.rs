//! Every format of the Pilot Protocol that crosses a process boundary: parse and emit, nothing else.
//!
//! No sockets, clocks, randomness or async live here. Parsing never panics and never allocates more than its input
//! justifies. All integers on the wire are big-endian.
//!
//! | Module | Format | Specification |
//! |---|---|---|
//! | [`addr`] | addresses and socket addresses | 01 §2 |
//! | [`packet`] | the 34-byte header and its CRC-32 | 01 §4, §5 |
//! | [`tunnel`] | datagrams between daemons | 01 §6, §7 |
//! | [`beacon`] | datagrams to and from the beacon | 01 §15, 07 §8 |
//! | [`sack`] | selective acknowledgements | 02 §15 |
//! | [`hello`] | what our daemons tell each other about themselves | docs/spec/hello.md |
//! | [`frame`] | length-prefixed frames of the local socket and the registry | 03 §1, 04 §3 |
//! | [`json`] | JSON text as the official programs read and write it | 03 §8, 04 §4 |
//! | [`base64`] | base64 as the registry reads it | 04 §6 |
//! | [`envelope`] | requests signed for third parties | 07 §12 |
//! | [`signed`] | the texts that are signed | 04 §6, 07 §9.2 |
//! | [`ipc`] | local socket commands | 03, 07 §12 |
//! | [`registry`] | registry requests and answers | 04, 07 §9 |
//! | [`handshake`] | trust messages on port 444 | 05 §3.2 |
//! | [`service`] | frames and files of the application protocols | 05, 07 §11 |
//! | [`gateway`] | names of destinations, SOCKS5, the control socket of the gateway | docs/spec/gateway.md |
//! | [`time`] | RFC 3339 times and time stamps in file names | 05 §1.1 |

pub mod addr;
pub mod base64;
pub mod beacon;
pub mod envelope;
pub mod frame;
pub mod gateway;
pub mod handshake;
pub mod hello;
pub mod ipc;
pub mod json;
pub mod packet;
pub mod registry;
pub mod sack;
pub mod service;
pub mod signed;
pub mod time;
pub mod tunnel;

pub use addr::{Address, SocketAddress};
