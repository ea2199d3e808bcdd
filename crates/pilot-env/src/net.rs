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
    pub(crate) inner: Box<dyn ByteStream>,
    pub(crate) local: SocketAddr,
    pub(crate) peer: SocketAddr,
}

impl NetStream {
    /// Wraps a stream made elsewhere (TLS over a [`NetStream`], a test's in-memory pipe).
    pub fn new(inner: Box<dyn ByteStream>, local: SocketAddr, peer: SocketAddr) -> Self {
        Self { inner, local, peer }
    }

    /// Our end's address.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// The other end's address (IPv4 is given as IPv4, also on a dual-stack listener).
    pub fn peer_addr(&self) -> SocketAddr {
        self.peer
    }
}

impl AsyncRead for NetStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl AsyncWrite for NetStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
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
