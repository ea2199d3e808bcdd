//! The SDK against scripted daemons: what is written on the socket, and what becomes of what comes back.

mod datagrams;
mod driver;
mod extended;
mod fake;
mod reconnect;
mod vectors;
