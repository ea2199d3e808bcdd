//! Local (Unix) stream sockets: the door between a daemon and the programs on its host.
//!
//! A listener creates its socket with restrictive mode from the start, never unlinks a socket that another live daemon
//! serves, and tells who is at the other end (03 §14.1, §16.8).

use std::io;
use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::real::unix::RealUnixListener;
use crate::sim::net::SimUnixListener;

/// Who is at the other end of a local socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerCredentials {
    /// User id of the process that connected.
    pub uid: u32,
    /// Its process id, where the system tells.
    pub pid: Option<u32>,
}

/// A connected local socket.
pub struct UnixStream {
    pub(crate) inner: StreamKind,
    pub(crate) peer: PeerCredentials,
}

pub(crate) enum StreamKind {
    Real(tokio::net::UnixStream),
    Sim(tokio::io::DuplexStream),
}

impl UnixStream {
    /// Who is at the other end.
    pub fn peer(&self) -> PeerCredentials {
        self.peer
    }
}

/// Runs the same call on whichever stream is inside.
macro_rules! each {
    ($self:ident, $stream:ident => $call:expr) => {
        match &mut $self.get_mut().inner {
            StreamKind::Real($stream) => $call,
            StreamKind::Sim($stream) => $call,
        }
    };
}

impl AsyncRead for UnixStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for UnixStream {
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
            StreamKind::Real(stream) => stream.is_write_vectored(),
            StreamKind::Sim(stream) => stream.is_write_vectored(),
        }
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_flush(cx))
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

/// A listening local socket. Dropping it removes the socket file, if the file is still this listener's own.
pub struct UnixListener(pub(crate) ListenerKind);

pub(crate) enum ListenerKind {
    Real(RealUnixListener),
    Sim(SimUnixListener),
}

impl UnixListener {
    /// The path listened on.
    pub fn path(&self) -> &Path {
        match &self.0 {
            ListenerKind::Real(listener) => listener.path(),
            ListenerKind::Sim(listener) => listener.path(),
        }
    }

    /// Waits for the next client. Cancel safe.
    ///
    /// # Errors
    /// The operating system's (out of descriptors, for one); the listener stays usable, so wait a little and go on.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        match &self.0 {
            ListenerKind::Real(listener) => listener.accept().await,
            ListenerKind::Sim(listener) => listener.accept().await,
        }
    }
}
