//! Local sockets of the real machine.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::FlockOperation;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::unix::{PeerCredentials, StreamKind, UnixStream};

/// Clients waiting to be accepted.
const BACKLOG: i32 = 256;
/// How long two daemons that start at the same time wait for each other before the later one goes on regardless.
const START_LOCK_WAIT: Duration = Duration::from_secs(1);

pub(crate) struct RealUnixListener {
    listener: tokio::net::UnixListener,
    path: PathBuf,
    /// Device and inode of our socket file: only that file is ours to remove.
    id: Option<(u64, u64)>,
}

fn file_id(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

fn in_use(path: &Path) -> io::Error {
    let text = format!("another daemon is serving {}; stop it or choose another socket path", path.display());
    io::Error::new(io::ErrorKind::AddrInUse, text)
}

/// Whether somebody serves a socket. Never waits: one whose backlog is full says `WouldBlock`.
pub(crate) fn probe(path: &Path) -> io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

impl RealUnixListener {
    pub(crate) fn bind(path: &Path, mode: u32) -> io::Result<Self> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        if !parent.exists() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
        }
        // Two daemons starting at once would both find a stale socket, and one would remove the other's new one. The
        // lock is held only until the socket listens, and is a courtesy: a directory may not be lockable.
        let _lock = start_lock(parent);
        match std::fs::symlink_metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
            Ok(meta) if !meta.file_type().is_socket() => {
                let text = format!("{} exists and is not a socket; it was left alone", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Ok(meta) => match probe(path) {
                Ok(()) => return Err(in_use(path)),
                // SAFETY: the call has no conditions and cannot fail.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused && meta.uid() != unsafe { libc::geteuid() } => {
                    let text = format!("{} was left by user {}; it was left alone", path.display(), meta.uid());
                    return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
                }
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path)?,
                // Its backlog is full, so somebody is there.
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Err(in_use(path)),
                Err(e) => return Err(e),
            },
        }
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        // On Linux the mode of the unbound socket becomes the mode of the file, so there is no moment in which others
        // may connect.
        let descriptor = socket.as_raw_fd();
        // SAFETY: the descriptor is open for the life of `socket`.
        unsafe { libc::fchmod(descriptor, mode as libc::mode_t) };
        socket.bind(&SockAddr::unix(path)?)?;
        let id = file_id(path);
        if std::fs::metadata(path)?.permissions().mode() & 0o777 != mode {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        }
        socket.listen(BACKLOG)?;
        socket.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(socket.into())?;
        Ok(Self { listener, path: path.to_owned(), id })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        wrap(self.listener.accept().await?.0)
    }
}

impl Drop for RealUnixListener {
    fn drop(&mut self) {
        if self.id.is_some() && file_id(&self.path) == self.id {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn start_lock(parent: &Path) -> Option<File> {
    let dir = File::open(parent).ok()?;
    let step = Duration::from_millis(20);
    let mut waited = Duration::ZERO;
    while rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
        if waited >= START_LOCK_WAIT {
            return None;
        }
        std::thread::sleep(step);
        waited += step;
    }
    Some(dir)
}

fn wrap(stream: tokio::net::UnixStream) -> io::Result<UnixStream> {
    let credentials = stream.peer_cred()?;
    let peer = PeerCredentials { uid: credentials.uid(), pid: credentials.pid().and_then(|p| u32::try_from(p).ok()) };
    Ok(UnixStream { inner: StreamKind::Real(stream), peer })
}

pub(crate) async fn connect(path: &Path) -> io::Result<UnixStream> {
    wrap(tokio::net::UnixStream::connect(path).await?)
}
