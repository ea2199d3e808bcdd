//! What the gateway reads from programs on its host: names of destinations, SOCKS5, and its control socket
//! (docs/spec/gateway.md).

pub mod control;
pub mod name;
pub mod socks;
