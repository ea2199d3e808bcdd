//! Ways to a peer: direct, punched or by relay, and how large a packet fits on them.
//!
//! [`PeerPath`] chooses the way for one peer from what has been proven on each: a frame that opened, a probe that was
//! answered. [`BeaconClient`] speaks to the beacon: who am I (STUN), help me reach a node (punch). Nothing here holds keys
//! or sockets; [`crate::endpoint`] carries out the [`PathAction`]s.
//!
//! Rules: 01 rules 14 to 19, 07 §4.4 and §6, 07 §16 items 15 to 21.

pub mod beacon;
pub mod route;
pub mod sizes;

pub use beacon::{BeaconClient, BeaconSend};
pub use route::{PathAction, PeerPath, Pong, Way};
