//! A scripted peer with the wire of February 2026 (specification 07 §1, "Feb"), as a black box.
//!
//! It is written from the specification alone and shares nothing with `pilot-proto`: its key derivation, sessions,
//! replay window and streams are its own, faults included, so that what our node does with it shows what our node
//! would do with the real thing:
//!
//! * one X25519 key per process, AES key = SHA-256 of a label and the shared secret, no associated data (01 §8);
//! * a `PILA` before every packet while there is no session, and the packet itself in clear (01 §12);
//! * every accepted `PILA` resets prefix, counter and replay window, and one with the same key gets no answer (01 §9.1);
//! * the expected identity key is an alias into the receive buffer after the first exchange (01 §9.1, W1);
//! * counters are recorded before a frame is opened, in one window for all prefixes (01 §11);
//! * initial sequence number 0, segments of 4096 bytes, ACK delayed by 40 ms, empty control packets answered (02);
//! * a FIN ends the stream whatever is missing, and every FIN, FIN|ACK included, is answered with FIN|ACK (02 §20).
//!
//! [`core`] is free of I/O; [`peer`] runs it on a UDP socket with a registry connection.

pub mod core;
pub mod crypto;
pub mod peer;
pub mod stream;

pub use self::core::{Counters, FebCore};
pub use self::peer::{FebOptions, FebPeer};
