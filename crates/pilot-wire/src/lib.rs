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

pub mod addr;
pub mod beacon;
pub mod packet;
pub mod sack;
pub mod tunnel;

pub use addr::{Address, SocketAddress};
