//! The sum of the protocol: one UDP socket's worth of peers, tunnels, paths, streams and datagrams, without I/O.
//!
//! The driver owns the socket and the clock. It gives datagrams, time, answers of the registry and the wishes of
//! applications in, and takes datagrams, events and a deadline out. **After every mutation drain
//! [`Endpoint::poll_event`] and [`Endpoint::poll_transmit`] until both are empty, then re-arm the timer from
//! [`Endpoint::poll_timeout`].**
//!
//! Socket addresses are given in any form and come out canonical: an IPv4-mapped IPv6 address as IPv4. A driver with a
//! dual-stack socket maps them back when it sends.
//!
//! | File | Holds |
//! |---|---|
//! | `demux` | what a received datagram is and whose |
//! | `gate` | who reaches an application |
//! | `ports` | bound ports, ephemeral ports |
//! | `limits` | rate limits and bounded tables |

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Instant;

use pilot_wire::SocketAddress;

mod config;
mod events;
#[allow(dead_code, reason = "used by the demultiplexer")]
mod gate;
mod info;
#[allow(dead_code, reason = "used by the demultiplexer")]
mod limits;
#[allow(dead_code, reason = "used by the demultiplexer")]
mod ports;

pub use config::{Encryption, EndpointConfig, Limits};
pub use events::{
    BindError, ConnId, ConnectError, DatagramError, DialError, DialFailure, DirectoryCode, DirectoryFailure, Event,
    PeerRecord, RefusedReason, Tried, UnknownConn,
};
pub use gate::{DATA_PORT, HANDSHAKE_PORT};
pub use info::{ConnInfo, Counters, EndpointInfo, PeerInfo};
pub use ports::EPHEMERAL_FIRST;

use crate::path::BeaconClient;
use crate::stream::{CloseReason, ReadError, WriteError};
use gate::Gate;
use ports::Ports;

/// Datagrams for the socket: `len` bytes were appended to the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit {
    /// Where to, canonical (never IPv4-mapped).
    pub dst: SocketAddr,
    /// Bytes appended.
    pub len: usize,
    /// Every datagram is this long, the last may be shorter; `None` for a single datagram.
    pub segment_size: Option<usize>,
}

/// See the module.
pub struct Endpoint {
    node: u32,
    #[allow(dead_code, reason = "used by the demultiplexer")]
    networks: Vec<u16>,
    beacon: BeaconClient,
    gate: Gate,
    ports: Ports,
    events: VecDeque<Event>,
    counters: Counters,
}

impl Endpoint {
    /// An endpoint that has spoken to nobody yet.
    pub fn new(now: Instant, config: EndpointConfig) -> Self {
        let port_seed = u16::from_le_bytes([config.seed[0], config.seed[1]]);
        Self {
            node: config.node,
            networks: config.networks,
            beacon: BeaconClient::new(now, config.beacon, config.node),
            gate: Gate::new(&config.public_ports),
            ports: Ports::new(port_seed),
            events: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Our node id and networks, after a (re-)registration. Before the first one (node 0) no peer is served. A changed
    /// node id ends every session and connection.
    pub fn set_local_node(&mut self, now: Instant, node: u32, networks: &[u16]) {
        self.node = node;
        self.networks = networks.to_vec();
        self.beacon.set_node(now, node);
    }

    /// Changes the beacon; it is asked for our endpoint at once. Also to be called with the same address when the network
    /// of the host changed.
    pub fn set_beacon(&mut self, now: Instant, beacon: Option<SocketAddr>) {
        self.beacon.set_addr(now, beacon);
    }

    // Inputs.

    /// A datagram came in. It is decrypted in place.
    pub fn handle_datagram(&mut self, now: Instant, from: SocketAddr, datagram: &mut [u8]) {
        let _ = (now, from, datagram);
        self.counters.malformed += 1;
    }

    /// The time of [`Self::poll_timeout`] has come. Harmless when called early.
    pub fn handle_timeout(&mut self, now: Instant) {
        let _ = now;
    }

    /// Answers [`Event::NeedKey`].
    pub fn handle_peer_key(&mut self, now: Instant, node: u32, answer: Result<PeerRecord, DirectoryFailure>) {
        let _ = (now, node, answer);
    }

    /// Answers [`Event::NeedEndpoint`]. An empty list means: by relay only.
    pub fn handle_resolved(&mut self, now: Instant, node: u32, answer: Result<Vec<SocketAddr>, DirectoryFailure>) {
        let _ = (now, node, answer);
    }

    // The gate.

    /// Trusts a node under a pinned key; with `None` the key of its first authenticated session is pinned and told by
    /// [`Event::Pinned`].
    pub fn set_trusted(&mut self, now: Instant, node: u32, key: Option<[u8; 32]>) {
        let _ = now;
        self.gate.set_trusted(node, key);
    }

    /// Trusts a node no longer. Connections it would not be allowed to open any more are reset.
    pub fn remove_trusted(&mut self, now: Instant, node: u32) {
        let _ = now;
        self.gate.remove_trusted(node);
    }

    /// Whether we share a network other than 0 with a node.
    pub fn set_shared_network(&mut self, now: Instant, node: u32, shared: bool) {
        let _ = now;
        self.gate.set_shared(node, shared);
    }

    /// Opens a port to everybody, or closes it.
    pub fn set_public_port(&mut self, port: u16, open: bool) {
        self.gate.set_public(port, open);
    }

    // Ports and streams.

    /// Accepts streams on `port` from now on.
    ///
    /// # Errors
    /// [`BindError`] when somebody has the port.
    pub fn bind(&mut self, port: u16) -> Result<(), BindError> {
        self.ports.bind(port)
    }

    /// Accepts no more streams on `port`; accepted ones live on. Returns whether it was bound.
    pub fn unbind(&mut self, now: Instant, port: u16) -> bool {
        let _ = now;
        self.ports.unbind(port)
    }

    /// Dials. [`Event::Stream`] with `Connected` or [`Event::DialFailed`] follows; data may be written at once.
    ///
    /// # Errors
    /// [`ConnectError`] when the dial cannot even start.
    pub fn connect(&mut self, now: Instant, dst: SocketAddress) -> Result<ConnId, ConnectError> {
        let _ = now;
        Err(ConnectError::NotRegistered(dst))
    }

    /// Takes bytes to send; see [`WriteError`]. An unknown id answers like a connection reset by this side.
    ///
    /// # Errors
    /// [`WriteError::Blocked`] until [`StreamEvent::Writable`](crate::stream::StreamEvent::Writable).
    pub fn write(&mut self, now: Instant, conn: ConnId, data: &[u8]) -> Result<usize, WriteError> {
        let _ = (now, conn, data);
        Err(WriteError::Closed(CloseReason::Local))
    }

    /// Gives received bytes out; `Ok(0)` is the clean end. An unknown id answers like a connection reset by this side.
    ///
    /// # Errors
    /// [`ReadError::Blocked`] until [`StreamEvent::Readable`](crate::stream::StreamEvent::Readable).
    pub fn read(&mut self, now: Instant, conn: ConnId, buf: &mut [u8]) -> Result<usize, ReadError> {
        let _ = (now, conn, buf);
        Err(ReadError::Closed(CloseReason::Local))
    }

    /// Ends our direction: everything written is delivered, then the end.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn close(&mut self, now: Instant, conn: ConnId) -> Result<(), UnknownConn> {
        let _ = now;
        Err(UnknownConn(conn))
    }

    /// Ends both directions at once with RST. A dial in progress fails as cancelled and frees its port.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn reset(&mut self, now: Instant, conn: ConnId) -> Result<(), UnknownConn> {
        let _ = now;
        Err(UnknownConn(conn))
    }

    /// The application has gone: nobody will read or write any more. Written bytes are still delivered, then the
    /// connection ends and its id is free. **Every connection is kept until this is called**, except failed dials.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn release(&mut self, now: Instant, conn: ConnId) -> Result<(), UnknownConn> {
        let _ = now;
        Err(UnknownConn(conn))
    }

    /// Whether small writes leave at once.
    ///
    /// # Errors
    /// [`UnknownConn`].
    pub fn set_nodelay(&mut self, now: Instant, conn: ConnId, nodelay: bool) -> Result<(), UnknownConn> {
        let _ = (now, nodelay);
        Err(UnknownConn(conn))
    }

    /// Sends one datagram from `src_port`. It waits for the tunnel if need be.
    ///
    /// # Errors
    /// [`DatagramError`]; nothing has left then.
    pub fn send_datagram(
        &mut self,
        now: Instant,
        src_port: u16,
        dst: SocketAddress,
        data: &[u8],
    ) -> Result<(), DatagramError> {
        let _ = (now, src_port, data);
        Err(DatagramError::NotRegistered(dst))
    }

    /// Drops the session, path and connections of a peer (revocation, after the notice left).
    pub fn forget_peer(&mut self, now: Instant, node: u32) {
        let _ = (now, node);
    }

    /// Tries at once to reach a peer without the relay.
    pub fn prefer_direct(&mut self, now: Instant, node: u32) {
        let _ = (now, node);
    }

    // Outputs.

    /// Appends the next datagrams to `buf`: all for one destination, at most `max_datagrams`, equally long but the last.
    /// The caller clears `buf`.
    pub fn poll_transmit(&mut self, now: Instant, buf: &mut Vec<u8>, max_datagrams: usize) -> Option<Transmit> {
        let _ = max_datagrams;
        let start = buf.len();
        let dst = match self.beacon.poll_transmit(now)? {
            crate::path::BeaconSend::Message(message) => {
                message.emit(buf);
                self.beacon.addr()?
            }
            crate::path::BeaconSend::Punch(to) => {
                buf.extend_from_slice(&pilot_wire::tunnel::MAGIC_PUNCH);
                self.counters.punches_sent += 1;
                to
            }
        };
        Some(Transmit { dst, len: buf.len() - start, segment_size: None })
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Self::handle_timeout`] is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.beacon.poll_timeout()
    }

    /// A snapshot for status output.
    pub fn info(&self, now: Instant) -> EndpointInfo {
        EndpointInfo {
            node: self.node,
            counters: self.counters,
            peers: Vec::new(),
            conns: Vec::new(),
            ports: self.ports.list(),
            public_ports: self.gate.public_ports(),
            beacon: self.beacon.addr(),
            observed: self.beacon.observed(),
            beacon_seen: self.beacon.replied_at().map(|t| now.saturating_duration_since(t)),
        }
    }
}
