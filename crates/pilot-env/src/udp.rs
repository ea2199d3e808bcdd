//! UDP in batches: one receive call yields many datagrams, one send call emits many.
//!
//! A [`UdpSocket`] never fails for what a stranger did: connection-refused and other ICMP errors are swallowed, and a
//! read error never ends reception (07 §16 item 22).

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::real::udp::RealUdp;
use crate::sim::net::SimUdp;

/// Bytes of one receive buffer: the largest batch the kernel can coalesce (64 KiB).
pub const RECV_BUFFER_LEN: usize = 64 * 1024;
/// Receive buffers filled by one call. Worst case memory of a [`RecvBatch`]: `RECV_BUFFERS * RECV_BUFFER_LEN` = 1 MiB.
pub const RECV_BUFFERS: usize = 16;
/// Socket buffer asked of the kernel, bytes each way. Large, because a sender's window may arrive in one burst (07 §7:
/// official daemons ask for 4 MiB). What the kernel grants may be less.
pub const SOCKET_BUFFER_LEN: usize = 8 * 1024 * 1024;
/// Largest number of datagrams in one send call (Linux UDP_MAX_SEGMENTS).
pub const MAX_SEGMENTS: usize = 64;
/// Largest total of one send call in bytes; above it the kernel refuses the batch.
pub const MAX_BATCH_LEN: usize = 65_000;

/// One send call: `contents` is cut into datagrams of `segment_size` bytes (the last may be shorter).
#[derive(Debug, Clone, Copy)]
pub struct Transmit<'a> {
    /// Where every datagram of the batch goes.
    pub destination: SocketAddr,
    /// The datagrams, one behind the other.
    pub contents: &'a [u8],
    /// Length of each datagram but the last; `None` when `contents` is a single datagram.
    pub segment_size: Option<usize>,
}

impl Transmit<'_> {
    /// The separate datagrams of this batch.
    pub fn datagrams(&self) -> impl Iterator<Item = &[u8]> {
        // An empty datagram is legal, but `chunks` of an empty slice yields nothing.
        let size = self.segment_size.unwrap_or(self.contents.len()).max(1);
        let single_empty = self.contents.is_empty().then_some(self.contents);
        single_empty.into_iter().chain(self.contents.chunks(size))
    }
}

/// Where a datagram came from, and which of the host's addresses it was sent to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The sender.
    pub from: SocketAddr,
    /// The own address, where the socket listens on all of them; `None` where there is no choice.
    pub local: Option<IpAddr>,
}

impl From<SocketAddr> for Arrival {
    fn from(from: SocketAddr) -> Self {
        Self { from, local: None }
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) from: SocketAddr,
    pub(crate) local: Option<IpAddr>,
    pub(crate) len: usize,
    pub(crate) stride: usize,
}

/// Reusable receive memory and the datagrams of the last receive call.
pub struct RecvBatch {
    pub(crate) buffers: Box<[u8]>,
    pub(crate) slots: [Slot; RECV_BUFFERS],
    pub(crate) filled: usize,
}

impl Default for RecvBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl RecvBatch {
    /// Allocates the receive memory (1 MiB, touched only as it is used).
    pub fn new() -> Self {
        let empty = Slot { from: SocketAddr::from(([0, 0, 0, 0], 0)), local: None, len: 0, stride: 1 };
        Self {
            buffers: vec![0; RECV_BUFFERS * RECV_BUFFER_LEN].into_boxed_slice(),
            slots: [empty; RECV_BUFFERS],
            filled: 0,
        }
    }

    /// The datagrams of the last successful receive call, each with its source address. IPv4 sources are always given
    /// as IPv4, also on a dual-stack socket.
    pub fn datagrams_mut(&mut self) -> impl Iterator<Item = (SocketAddr, &mut [u8])> {
        self.arrivals_mut().map(|(arrival, datagram)| (arrival.from, datagram))
    }

    /// The same with the own address each was sent to, for a server that answers from there.
    pub fn arrivals_mut(&mut self) -> impl Iterator<Item = (Arrival, &mut [u8])> {
        let slots = &self.slots;
        self.buffers.chunks_exact_mut(RECV_BUFFER_LEN).take(self.filled).enumerate().flat_map(move |(i, buffer)| {
            let slot = slots[i];
            let (data, _) = buffer.split_at_mut(slot.len.min(RECV_BUFFER_LEN));
            let arrival = Arrival { from: slot.from, local: slot.local };
            data.chunks_mut(slot.stride.max(1)).map(move |datagram| (arrival, datagram))
        })
    }

    /// True when the last receive call brought nothing.
    pub fn is_empty(&self) -> bool {
        self.filled == 0
    }
}

/// A UDP socket, real or simulated. All methods take `&self`: one task may receive while others send.
pub struct UdpSocket(pub(crate) Kind);

pub(crate) enum Kind {
    Real(RealUdp),
    Sim(SimUdp),
}

impl UdpSocket {
    /// The address the socket is bound to.
    pub fn local_addr(&self) -> SocketAddr {
        match &self.0 {
            Kind::Real(socket) => socket.local_addr(),
            Kind::Sim(socket) => socket.local_addr(),
        }
    }

    /// Waits for datagrams and receives as many as one call yields. Never fails: errors of the operating system are
    /// logged, waited out and retried. Cancel safe.
    pub async fn recv(&self, batch: &mut RecvBatch) {
        match &self.0 {
            Kind::Real(socket) => socket.recv(batch).await,
            Kind::Sim(socket) => socket.recv(batch).await,
        }
    }

    /// Receives what is waiting now, if anything. Returns whether the batch holds datagrams.
    pub fn try_recv(&self, batch: &mut RecvBatch) -> bool {
        match &self.0 {
            Kind::Real(socket) => socket.try_recv(batch),
            Kind::Sim(socket) => socket.try_recv(batch),
        }
    }

    /// Sends a batch now.
    ///
    /// # Errors
    /// `WouldBlock` when the socket buffer is full (see [`UdpSocket::send`]); otherwise the error of the operating
    /// system, such as a datagram larger than the path allows ([`is_too_large`]) or an unreachable network.
    pub fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.try_send_from(transmit, None)
    }

    /// [`UdpSocket::try_send`] from one of the host's addresses: an answer must come from where the question went to,
    /// or the asker and the translators on the way do not take it for one. `None` leaves the choice to the routes.
    ///
    /// # Errors
    /// As [`UdpSocket::try_send`].
    pub fn try_send_from(&self, transmit: &Transmit<'_>, source: Option<IpAddr>) -> io::Result<()> {
        match &self.0 {
            Kind::Real(socket) => socket.try_send(transmit, source),
            Kind::Sim(socket) => socket.try_send(transmit),
        }
    }

    /// Sends a batch, waiting for room in the socket buffer. Cancel safe.
    ///
    /// # Errors
    /// As [`UdpSocket::try_send`] without `WouldBlock`.
    pub async fn send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.send_from(transmit, None).await
    }

    /// [`UdpSocket::send`] from one of the host's addresses, as [`UdpSocket::try_send_from`]. Cancel safe.
    ///
    /// # Errors
    /// As [`UdpSocket::send`].
    pub async fn send_from(&self, transmit: &Transmit<'_>, source: Option<IpAddr>) -> io::Result<()> {
        match &self.0 {
            Kind::Real(socket) => socket.send(transmit, source).await,
            Kind::Sim(socket) => socket.try_send(transmit),
        }
    }

    /// Lets the kernel cut datagrams larger than the path into IP fragments instead of refusing them: for a relay, whose
    /// senders do not know the path of the receiver. Such datagrams must not be sent in batches.
    ///
    /// # Errors
    /// The operating system's.
    pub fn allow_fragments(&self) -> io::Result<()> {
        match &self.0 {
            Kind::Real(socket) => socket.allow_fragments(),
            Kind::Sim(_) => Ok(()),
        }
    }

    /// Whether the last receive call failed for a reason that is not a peer's doing. Reception is tried again all the
    /// while; the next datagram ends this state.
    pub fn is_failing(&self) -> bool {
        match &self.0 {
            Kind::Real(socket) => socket.is_failing(),
            Kind::Sim(_) => false,
        }
    }

    /// How many datagrams one send call may carry (1 when the kernel cannot segment).
    pub fn max_segments(&self) -> usize {
        match &self.0 {
            Kind::Real(socket) => socket.max_segments(),
            Kind::Sim(_) => MAX_SEGMENTS,
        }
    }
}

/// Whether a send failed because a datagram is larger than the path or the protocol allows.
pub fn is_too_large(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EMSGSIZE)
}

/// The address as a dual-stack (IPv6) socket wants it.
pub(crate) fn to_v6(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) => SocketAddr::V6(SocketAddrV6::new(v4.ip().to_ipv6_mapped(), v4.port(), 0, 0)),
        v6 => v6,
    }
}

/// The address as people write it: IPv4-mapped IPv6 becomes IPv4.
pub(crate) fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V6(v6) => match v6.ip().to_canonical() {
            IpAddr::V4(v4) => SocketAddr::new(IpAddr::V4(v4), v6.port()),
            IpAddr::V6(_) => addr,
        },
        v4 => v4,
    }
}

/// True for `[::]`, which is bound dual-stack.
pub(crate) fn is_wildcard_v6(addr: &SocketAddr) -> bool {
    matches!(addr.ip(), IpAddr::V6(ip) if ip == Ipv6Addr::UNSPECIFIED)
}
