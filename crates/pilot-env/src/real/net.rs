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
    Ok(NetStream::tcp(stream, canonical(local), canonical(peer)))
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

/// Tables in which Linux lists the TCP connections of this network namespace.
const TABLES: [&str; 2] = ["/proc/net/tcp", "/proc/net/tcp6"];

/// The user who owns the end `local` of a connection of this host whose other end is `remote`.
pub(crate) fn tcp_user(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let wanted = (canonical(local), canonical(remote));
    for table in TABLES {
        use std::io::BufRead as _;
        let file = match std::fs::File::open(table) {
            Ok(file) => file,
            // A machine without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && table == TABLES[1] => continue,
            Err(error) => return Err(error),
        };
        for line in io::BufReader::new(file).lines() {
            if let Some((ends, user)) = tcp_line(&line?)
                && ends == wanted
            {
                return Ok(Some(user));
            }
        }
    }
    Ok(None)
}

/// Both ends and the owner out of a line of such a table. An end that its program has closed belongs to nobody any more:
/// it has no inode, and the user 0 that stands there means nothing.
fn tcp_line(line: &str) -> Option<((SocketAddr, SocketAddr), u32)> {
    let mut words = line.split_whitespace().skip(1);
    let (local, remote) = (tcp_end(words.next()?)?, tcp_end(words.next()?)?);
    // Behind the state, the queues, the timer and the retransmissions.
    let user = words.nth(4)?.parse().ok()?;
    // Behind a timeout.
    let inode = words.nth(1)?;
    (inode != "0").then_some(((local, remote), user))
}

/// `0100007F:1F90`: words of 32 bits as they lie in memory, then the port.
fn tcp_end(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |text: &str| u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes);
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(ip)?).into(),
        32 => {
            let mut bytes = [0; 16];
            for (i, bytes) in bytes.chunks_mut(4).enumerate() {
                bytes.copy_from_slice(&word(ip.get(i * 8..i * 8 + 8)?)?);
            }
            Ipv6Addr::from(bytes).into()
        }
        _ => return None,
    };
    Some(canonical(SocketAddr::new(ip, port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn lines_of_the_kernel_are_read() {
        let line =
            "   1: 0100007F:1F90 0200047F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 12345 1 0 20";
        let ends = ("127.0.0.1:8080".parse().unwrap(), "127.4.0.2:50000".parse().unwrap());
        assert_eq!(tcp_line(line), Some((ends, 1000)));
        let line = "0: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000001000000:0001 0A 0:0 0:0 0 7 0 1";
        let ends = ("127.0.0.1:8080".parse().unwrap(), "[::1]:1".parse().unwrap());
        assert_eq!(tcp_line(line), Some((ends, 7)));
        // Closed by its program: whose it was is not known, and it was not root's.
        let closed = "3: 0100007F:1F90 0200047F:C350 06 00000000:00000000 03:00000E12 00000000     0        0 0 3 0";
        assert_eq!(tcp_line(closed), None);
        for bad in ["", "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid", "0: x y"] {
            assert_eq!(tcp_line(bad), None, "{bad}");
        }
    }
}
