//! Byte streams between hosts: TCP, and TLS on top of it (see [`crate::tls`]).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sim::net::SimTcpListener;

/// Anything that carries bytes both ways.
pub trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> ByteStream for T {}

/// A connected byte stream with the addresses of both ends. TCP_NODELAY is set.
pub struct NetStream {
    inner: Inner,
    local: SocketAddr,
    peer: SocketAddr,
}

enum Inner {
    Tcp(tokio::net::TcpStream),
    Other(Box<dyn ByteStream>),
}

impl NetStream {
    /// Wraps a stream made elsewhere (TLS over a [`NetStream`], a test's in-memory pipe).
    pub fn new(inner: Box<dyn ByteStream>, local: SocketAddr, peer: SocketAddr) -> Self {
        Self { inner: Inner::Other(inner), local, peer }
    }

    pub(crate) fn tcp(stream: tokio::net::TcpStream, local: SocketAddr, peer: SocketAddr) -> Self {
        Self { inner: Inner::Tcp(stream), local, peer }
    }

    /// Our end's address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The other end's address (IPv4 is given as IPv4, also on a dual-stack listener).
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }

    /// Makes the end of a TCP connection a reset rather than an orderly one, for when it is dropped. Nothing changes for
    /// other streams.
    pub fn reset_on_drop(&self) {
        if let Inner::Tcp(stream) = &self.inner {
            // Where the system does not do it, the end is an orderly one.
            let _ = socket2::SockRef::from(stream).set_linger(Some(std::time::Duration::ZERO));
        }
    }
}

/// Runs the same call on whichever stream is inside.
macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().inner {
            Inner::Tcp($stream) => $call,
            Inner::Other($stream) => $call,
        }
    };
}

impl AsyncRead for NetStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for NetStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }
    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }
    fn is_write_vectored(&self) -> bool {
        match &self.inner {
            Inner::Tcp(stream) => stream.is_write_vectored(),
            Inner::Other(stream) => stream.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A listening TCP socket, real or simulated.
pub struct TcpListener(pub(crate) Kind);

pub(crate) enum Kind {
    Real(tokio::net::TcpListener),
    Sim(SimTcpListener),
}

impl TcpListener {
    /// The address listened on.
    ///
    /// # Errors
    /// Only the operating system's.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match &self.0 {
            Kind::Real(listener) => listener.local_addr(),
            Kind::Sim(listener) => Ok(listener.local_addr()),
        }
    }

    /// Waits for the next connection. Cancel safe.
    ///
    /// # Errors
    /// The operating system's (out of descriptors, for one); the listener stays usable, so wait a little and go on.
    pub async fn accept(&self) -> io::Result<NetStream> {
        match &self.0 {
            Kind::Real(listener) => crate::real::net::accept(listener).await,
            Kind::Sim(listener) => listener.accept().await,
        }
    }
}
