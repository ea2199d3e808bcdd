//! UDP of the real machine, on `quinn-udp`: GRO on receive, GSO on send.

use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;

use crate::udp::{
    MAX_SEGMENTS, RECV_BUFFER_LEN, RECV_BUFFERS, RecvBatch, SOCKET_BUFFER_LEN, Slot, Transmit, canonical, is_too_large,
    is_wildcard_v6, to_v6,
};

/// Pause after a read error that is not a peer's doing, so that a broken socket does not spin a processor.
const READ_ERROR_PAUSE: Duration = Duration::from_millis(50);

pub(crate) struct RealUdp {
    io: tokio::net::UdpSocket,
    state: UdpSocketState,
    local: SocketAddr,
    dual_stack: bool,
    /// The last receive call failed.
    failing: AtomicBool,
}

impl RealUdp {
    /// Binds. `[::]:port` is dual-stack; where the machine has no IPv6 it becomes `0.0.0.0:port`.
    pub(crate) fn bind(addr: SocketAddr) -> io::Result<Self> {
        match Self::bind_exact(addr) {
            Err(e) if is_wildcard_v6(&addr) && e.kind() != io::ErrorKind::AddrInUse => {
                tracing::debug!(error = %e, "no IPv6 on this machine; binding IPv4 only");
                Self::bind_exact(SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port())))
            }
            other => other,
        }
    }

    fn bind_exact(addr: SocketAddr) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        let dual_stack = addr.is_ipv6() && is_wildcard_v6(&addr);
        if addr.is_ipv6() {
            socket.set_only_v6(!dual_stack)?;
        }
        socket.bind(&addr.into())?;
        enlarge_buffers(&socket);
        socket.set_nonblocking(true)?;
        let socket: std::net::UdpSocket = socket.into();
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let local = socket.local_addr()?;
        Ok(Self {
            io: tokio::net::UdpSocket::from_std(socket)?,
            state,
            local,
            dual_stack,
            failing: AtomicBool::new(false),
        })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    pub(crate) fn max_segments(&self) -> usize {
        self.state.max_gso_segments().clamp(1, MAX_SEGMENTS)
    }

    #[cfg(target_os = "linux")]
    pub(crate) fn allow_fragments(&self) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let mut options = vec![(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT)];
        if self.local.is_ipv6() {
            options.push((libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_DONT));
        }
        for (level, option, value) in options {
            // SAFETY: the descriptor is open for the life of `self`, and the pointer and length describe `value`.
            let result = unsafe {
                libc::setsockopt(
                    self.io.as_raw_fd(),
                    level,
                    option,
                    (&raw const value).cast(),
                    libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4),
                )
            };
            if result != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    #[cfg(not(target_os = "linux"))]
    pub(crate) fn allow_fragments(&self) -> io::Result<()> {
        Ok(())
    }

    pub(crate) async fn recv(&self, batch: &mut RecvBatch) {
        loop {
            let result = self.io.async_io(Interest::READABLE, || self.recv_once(batch)).await;
            match result {
                Ok(()) if !batch.is_empty() => {
                    self.failing.store(false, Ordering::Relaxed);
                    return;
                }
                Ok(()) => {}
                Err(e) if is_stranger_error(&e) => {}
                Err(e) => {
                    self.failing.store(true, Ordering::Relaxed);
                    tracing::warn!(error = %e, "udp receive failed; trying again");
                    tokio::time::sleep(READ_ERROR_PAUSE).await;
                }
            }
        }
    }

    pub(crate) fn try_recv(&self, batch: &mut RecvBatch) -> bool {
        match self.io.try_io(Interest::READABLE, || self.recv_once(batch)) {
            Ok(()) => !batch.is_empty(),
            // What is wrong shows again in `recv`, which logs and waits.
            Err(_) => {
                batch.filled = 0;
                false
            }
        }
    }

    fn recv_once(&self, batch: &mut RecvBatch) -> io::Result<()> {
        batch.filled = 0;
        let mut metas = [RecvMeta::default(); RECV_BUFFERS];
        let count = {
            let mut chunks = batch.buffers.chunks_exact_mut(RECV_BUFFER_LEN);
            let mut slices: [IoSliceMut<'_>; RECV_BUFFERS] =
                std::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
            self.state.recv(UdpSockRef::from(&self.io), &mut slices, &mut metas)?
        };
        for (slot, meta) in batch.slots.iter_mut().zip(&metas[..count.min(RECV_BUFFERS)]) {
            let local = meta.dst_ip.filter(|_| self.local.ip().is_unspecified()).map(|ip| ip.to_canonical());
            *slot = Slot { from: canonical(meta.addr), local, len: meta.len, stride: meta.stride };
        }
        batch.filled = count.min(RECV_BUFFERS);
        Ok(())
    }

    fn destination(&self, addr: SocketAddr) -> SocketAddr {
        if self.dual_stack { to_v6(addr) } else { canonical(addr) }
    }

    pub(crate) fn try_send(&self, transmit: &Transmit<'_>, source: Option<IpAddr>) -> io::Result<()> {
        self.io.try_io(Interest::WRITABLE, || self.send_once(transmit, source))
    }

    pub(crate) async fn send(&self, transmit: &Transmit<'_>, source: Option<IpAddr>) -> io::Result<()> {
        self.io.async_io(Interest::WRITABLE, || self.send_once(transmit, source)).await
    }

    fn send_once(&self, transmit: &Transmit<'_>, source: Option<IpAddr>) -> io::Result<()> {
        let destination = self.destination(transmit.destination);
        let one = |contents: &[u8], segment_size: Option<usize>| {
            let t = quinn_udp::Transmit { destination, ecn: None, contents, segment_size, src_ip: source };
            match self.state.try_send(UdpSockRef::from(&self.io), &t) {
                // An ICMP error answered to an earlier datagram surfaces at the next send; the send itself may be
                // repeated at once.
                Err(e) if is_stranger_error(&e) => self.state.try_send(UdpSockRef::from(&self.io), &t),
                other => other,
            }
        };
        let batch = transmit.segment_size.filter(|size| *size < transmit.contents.len());
        match batch {
            None => one(transmit.contents, None),
            Some(size) if self.state.max_gso_segments() > 1 => match one(transmit.contents, Some(size)) {
                // The kernel or the interface refused segmentation; quinn-udp has noted it, send singly.
                Err(e) if e.kind() != io::ErrorKind::WouldBlock && self.state.max_gso_segments() == 1 => {
                    send_singly(transmit, &one)
                }
                // The interface takes less than a datagram: one by one they may leave as fragments.
                Err(e) if is_too_large(&e) => send_singly(transmit, &one),
                other => other,
            },
            Some(_) => send_singly(transmit, &one),
        }
    }
}

fn send_singly(transmit: &Transmit<'_>, one: &impl Fn(&[u8], Option<usize>) -> io::Result<()>) -> io::Result<()> {
    let mut sent_any = false;
    for datagram in transmit.datagrams() {
        match one(datagram, None) {
            Ok(()) => sent_any = true,
            // Part of the batch is out: repeating it would duplicate, so the rest counts as lost on the way.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && sent_any => return Ok(()),
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Errors that another host causes through ICMP; they say nothing about this socket.
fn is_stranger_error(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset)
}

fn enlarge_buffers(socket: &Socket) {
    // Refusal is not an error: the kernel clamps to its own limit, and less only costs speed.
    for size in [SOCKET_BUFFER_LEN, SOCKET_BUFFER_LEN / 2] {
        let _ = socket.set_recv_buffer_size(size);
        let _ = socket.set_send_buffer_size(size);
        if socket.recv_buffer_size().is_ok_and(|got| got >= size) {
            break;
        }
    }
    force_buffers(socket);
}

/// With the privilege for it (CAP_NET_ADMIN) Linux grants more than its configured limit; without, nothing changes.
#[cfg(target_os = "linux")]
fn force_buffers(socket: &Socket) {
    use std::os::fd::AsRawFd;
    let size = libc::c_int::try_from(SOCKET_BUFFER_LEN).unwrap_or(libc::c_int::MAX);
    for option in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
        // SAFETY: the descriptor is open for the life of `socket`, and the pointer and length describe `size`.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const size).cast(),
                libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4),
            );
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn force_buffers(_socket: &Socket) {}
