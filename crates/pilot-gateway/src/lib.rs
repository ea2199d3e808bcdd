//! Lets ordinary TCP programs (curl, a browser) reach agents (05 §9, docs/spec/gateway.md).
//!
//! Three doors, all on this host: addresses of its own for agents that are mapped, whose ports lead to the same ports of
//! the agent; a SOCKS5 proxy; an HTTP proxy. Only agents are behind them, never the internet. Nothing of it is visible to
//! peers: each TCP connection becomes one stream (each HTTP request, for a plain one).
//!
//! | Module | Is |
//! |---|---|
//! | [`table`] | which agent has which address; pure |
//! | `dial` | from a name to a stream, with reasons |
//! | `door` | who is let in, and how many |
//! | `relay` | bytes between a TCP connection and a stream |
//! | `mapped`, `socks`, `http` | the doors |
//! | `alias` | addresses of the loopback interface |
//! | `control` | how a running gateway is told what to do |
//! | `gateway` | all of it together |
//! | [`program`] | the program `pilot-gateway` |

mod alias;
pub mod control;
mod dial;
mod door;
mod error;
mod gateway;
mod http;
mod mapped;
mod ports;
pub mod program;
mod relay;
mod socks;
pub mod table;

pub use error::GatewayError;
pub use gateway::{Gateway, GatewayConfig};
pub use ports::{DEFAULT_PORTS, PortPair, parse_ports};
