//! What applications import to talk over Pilot.
//!
//! A daemon on the same host owns the tunnels; [`Driver`] talks to it over its Unix socket. Any official daemon will do;
//! ours serves more, and what an official one cannot do fails by name. With the feature `node` a program can carry a node
//! inside; [`Pilot`] is the interface to either.
//!
//! ```no_run
//! use pilot::Driver;
//! use tokio::io::{AsyncReadExt, AsyncWriteExt};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let driver = Driver::connect_default().await?;
//! let mut stream = driver.dial_text("0:0000.0000.0002:1000").await?;
//! stream.write_all(b"hello").await?;
//! stream.shutdown().await?;
//! let mut answer = String::new();
//! stream.read_to_string(&mut answer).await?;
//! # Ok(()) }
//! ```
//!
//! The other side accepts:
//!
//! ```no_run
//! # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
//! let listener = driver.listen(1000).await?;
//! loop {
//!     let mut stream = listener.accept().await?;
//!     tokio::spawn(async move {
//!         let (mut read, mut write) = tokio::io::split(&mut stream);
//!         tokio::io::copy(&mut read, &mut write).await
//!     });
//! }
//! # }
//! ```
//!
//! Datagrams need no stream and promise nothing:
//!
//! ```no_run
//! # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
//! driver.send_to("0:0000.0000.0002:5000".parse()?, b"ping").await?;
//! let datagram = driver.recv_from().await?;
//! println!("{} bytes from {} to port {}", datagram.data.len(), datagram.from, datagram.port);
//! # Ok(()) }
//! ```
//!
//! Peers accept each other's streams once they trust each other:
//!
//! ```no_run
//! # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
//! let bob = driver.resolve_hostname("bob").await?;
//! let node = bob["node_id"].as_u64().ok_or("no node id")? as u32;
//! driver.handshake(node, "we work on the same dataset").await?;
//! # Ok(()) }
//! ```

mod datagram;
mod deadline;
mod driver;
#[cfg(feature = "node")]
mod embedded;
mod error;
mod extended;
mod listener;
mod pilot;
mod plain;
mod stream;

pub use datagram::Datagram;
pub use deadline::Deadlines;
pub use driver::{
    ConnectionState, ConnectionStates, DEFAULT_SOCKET, Driver, Options, SOCKET_VARIABLE, default_sockets,
};
#[cfg(feature = "node")]
pub use embedded::Embedded;
pub use error::{CloseReason, Error, HalfCloseLack, StreamError};
pub use extended::events::{Event, Events};
pub use listener::Listener;
pub use pilot::Pilot;
#[cfg(feature = "node")]
#[doc(no_inline)]
pub use pilot_node as node;
pub use pilot_wire::ipc::NetworkCommand;
pub use pilot_wire::registry::{NetworkChange, PolicyChange};
pub use pilot_wire::{Address, SocketAddress};
pub use plain::link::Transport;
pub use stream::Stream;
