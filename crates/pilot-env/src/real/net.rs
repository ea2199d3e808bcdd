//! TCP of the real machine.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use socket2::{Domain, Protocol, Socket, Type};

use crate::net::NetStream;
use crate::udp::{canonical, is_wildcard_v6};

/// Connections waiting to be accepted.
const BACKLOG: i32 = 1024;

fn wrap(stream: tokio::net::TcpStream) -> io::Result<NetStream> {
    stream.set_nodelay(true)?;
    let (local, peer) = (stream.local_addr()?, stream.peer_addr()?);
    Ok(NetStream::new(Box::new(stream), canonical(local), canonical(peer)))
}

pub(crate) async fn connect(addr: SocketAddr) -> io::Result<NetStream> {
    wrap(tokio::net::TcpStream::connect(addr).await?)
}

pub(crate) async fn accept(listener: &tokio::net::TcpListener) -> io::Result<NetStream> {
    wrap(listener.accept().await?.0)
}

/// Listens. `[::]:port` is dual-stack; where the machine has no IPv6 it becomes `0.0.0.0:port`.
pub(crate) fn listen(addr: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    match listen_exact(addr) {
        Err(e) if is_wildcard_v6(&addr) && e.kind() != io::ErrorKind::AddrInUse => {
            listen_exact(SocketAddr::from((Ipv4Addr::UNSPECIFIED, addr.port())))
        }
        other => other,
    }
}

fn listen_exact(addr: SocketAddr) -> io::Result<tokio::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!is_wildcard_v6(&addr))?;
    }
    // A restarted server must get its port back while old connections are in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    tokio::net::TcpListener::from_std(socket.into())
}

/// Resolves `host:port` (also `:port`, meaning this host).
pub(crate) async fn resolve(target: &str) -> io::Result<Vec<SocketAddr>> {
    let target = target.strip_prefix(':').map_or_else(|| target.to_owned(), |port| format!("127.0.0.1:{port}"));
    Ok(tokio::net::lookup_host(target).await?.collect())
}

/// The own address of datagrams to `addr`: what the kernel gives a socket that is connected there.
pub(crate) fn source_toward(addr: SocketAddr) -> io::Result<IpAddr> {
    let any: IpAddr = if addr.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0))?;
    socket.connect(addr)?;
    Ok(socket.local_addr()?.ip().to_canonical())
}
