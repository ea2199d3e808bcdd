//! The one seam to the outside world: clock, randomness, UDP batches, TCP and TLS, local sockets, files, arguments.
//!
//! Everything else in the workspace reaches the machine through an [`Env`], so that the same code runs on the real
//! machine ([`Env::real`]) and on a simulated one ([`Env::simulated`]) with virtual time, seeded randomness, an
//! in-memory network and a disk that forgets or tears what was not synced.
//!
//! ```no_run
//! # async fn demo() -> std::io::Result<()> {
//! let env = pilot_env::Env::real();
//! let started = env.now();
//! let socket = env.bind_udp("[::]:0".parse().unwrap())?;
//! env.fs().write_atomic(std::path::Path::new("/tmp/state.json"), b"{}", 0o600)?;
//! # let _ = (started, socket); Ok(()) }
//! ```
// This crate is the place that the forbidden methods of clippy.toml lead to.
#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

pub mod args;
mod env;
pub mod fs;
pub mod http;
pub mod net;
pub mod output;
pub mod places;
pub mod process;
mod real;
pub mod sim;
pub mod tls;
pub mod udp;
pub mod unix;

pub use env::Env;
pub use fs::{DirEntry, Fs, Lock, LockError, Metadata, RawFile};
pub use http::{HttpAnswer, HttpClient, HttpPost, HttpUrl};
pub use net::{ByteStream, NetStream, TcpListener};
pub use process::Process;
pub use sim::{Host, NetConditions, World};
pub use udp::{Arrival, RecvBatch, Transmit, UdpSocket};
pub use unix::{PeerCredentials, UnixListener, UnixStream};
