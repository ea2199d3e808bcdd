//! The handle through which code reaches the machine.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use rand::TryRngCore;

use crate::fs::Fs;
use crate::net::{self, NetStream, TcpListener};
use crate::process::Process;
use crate::real;
use crate::sim::Host;
use crate::udp::{self, UdpSocket};
use crate::unix::{ListenerKind, UnixListener, UnixStream};

/// Clock, randomness, sockets and files of one machine. Cheap to clone; all clones are the same machine.
#[derive(Clone)]
pub struct Env(Kind);

#[derive(Clone)]
enum Kind {
    Real,
    Sim(Arc<Host>),
}

impl Env {
    /// The machine this process runs on.
    pub fn real() -> Self {
        Self(Kind::Real)
    }

    /// A simulated machine (127.0.0.1 on a network of its own) whose every accident follows from `seed`. To be used
    /// inside a tokio runtime whose time is paused. For several machines on one network see [`crate::World`].
    pub fn simulated(seed: u64) -> Self {
        crate::sim::World::new(seed).host(std::net::Ipv4Addr::LOCALHOST.into())
    }

    pub(crate) fn from_host(host: Arc<Host>) -> Self {
        Self(Kind::Sim(host))
    }

    /// The simulated machine behind this handle, for tests that crash it or cut its network.
    pub fn sim(&self) -> Option<&Arc<Host>> {
        match &self.0 {
            Kind::Real => None,
            Kind::Sim(host) => Some(host),
        }
    }

    /// The monotonic clock.
    pub fn now(&self) -> Instant {
        match &self.0 {
            Kind::Real => Instant::now(),
            Kind::Sim(_) => tokio::time::Instant::now().into_std(),
        }
    }

    /// Time since the Unix epoch; may jump when the machine's clock is set.
    pub fn unix(&self) -> Duration {
        match &self.0 {
            Kind::Real => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO),
            Kind::Sim(host) => host.unix(),
        }
    }

    /// Sleeps until an instant of [`Env::now`].
    pub async fn sleep_until(&self, at: Instant) {
        tokio::time::sleep_until(at.into()).await;
    }

    /// Sleeps for a while.
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    /// Fills a buffer with random bytes fit for keys.
    ///
    /// # Panics
    /// When the operating system has no randomness to give: nothing safe can be done without it.
    pub fn fill_random(&self, buf: &mut [u8]) {
        match &self.0 {
            Kind::Real => match rand::rngs::OsRng.try_fill_bytes(buf) {
                Ok(()) => {}
                Err(e) => panic!("the operating system gives no random bytes: {e}"),
            },
            Kind::Sim(host) => host.fill_random(buf),
        }
    }

    /// A fresh seed for a state machine.
    pub fn seed(&self) -> [u8; 32] {
        let mut seed = [0; 32];
        self.fill_random(&mut seed);
        seed
    }

    /// A random number.
    pub fn random_u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill_random(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A client for HTTP requests.
    ///
    /// # Errors
    /// When the system's certificates cannot be used.
    pub fn http_client(&self, user_agent: &str) -> io::Result<crate::HttpClient> {
        crate::HttpClient::new(self.clone(), user_agent)
    }

    /// The file system.
    pub fn fs(&self) -> &dyn Fs {
        match &self.0 {
            Kind::Real => &real::fs::RealFs,
            Kind::Sim(host) => host.disk(),
        }
    }

    /// Binds a UDP socket with large buffers. `[::]:port` serves IPv6 and IPv4; where there is no IPv6 it serves IPv4.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`, or the operating system's.
    pub fn bind_udp(&self, addr: SocketAddr) -> io::Result<UdpSocket> {
        match &self.0 {
            Kind::Real => Ok(UdpSocket(udp::Kind::Real(real::udp::RealUdp::bind(addr)?))),
            Kind::Sim(host) => Ok(UdpSocket(udp::Kind::Sim(host.bind_udp(addr)?))),
        }
    }

    /// Resolves `host:port`; an empty host means this machine's loopback.
    ///
    /// # Errors
    /// `InvalidInput` when there is no port; the resolver's.
    pub async fn resolve(&self, target: &str) -> io::Result<Vec<SocketAddr>> {
        match &self.0 {
            Kind::Real => real::net::resolve(target).await,
            Kind::Sim(host) => host.resolve(target),
        }
    }

    /// The own address from which datagrams to `addr` leave now, by the routes of the host. Sends nothing.
    ///
    /// # Errors
    /// The operating system's, such as `NetworkUnreachable` while there is no route.
    pub fn source_toward(&self, addr: SocketAddr) -> io::Result<IpAddr> {
        match &self.0 {
            Kind::Real => real::net::source_toward(addr),
            Kind::Sim(host) => Ok(host.address()),
        }
    }

    /// Connects by TCP. Has no deadline of its own: wrap it in `tokio::time::timeout`. Cancel safe.
    ///
    /// # Errors
    /// The operating system's.
    pub async fn tcp_connect(&self, addr: SocketAddr) -> io::Result<NetStream> {
        match &self.0 {
            Kind::Real => real::net::connect(addr).await,
            Kind::Sim(host) => host.tcp_connect(addr).await,
        }
    }

    /// Listens for TCP. `[::]:port` serves IPv6 and IPv4; where there is no IPv6 it serves IPv4.
    ///
    /// # Errors
    /// `AddrInUse`, `AddrNotAvailable`, or the operating system's.
    pub fn tcp_listen(&self, addr: SocketAddr) -> io::Result<TcpListener> {
        match &self.0 {
            Kind::Real => Ok(TcpListener(net::Kind::Real(real::net::listen(addr)?))),
            Kind::Sim(host) => Ok(TcpListener(net::Kind::Sim(host.tcp_listen(addr)?))),
        }
    }

    /// The user who owns the end `local` of a TCP connection whose other end is `remote`, when both are on this host; `None`
    /// when the system knows of no such end. Reads the system's table of connections: not for a thread that must not wait.
    ///
    /// # Errors
    /// Where the system has no such table.
    pub fn tcp_user(&self, local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
        match &self.0 {
            Kind::Real => real::net::tcp_user(local, remote),
            Kind::Sim(_) => Ok(Some(crate::sim::USER_ID)),
        }
    }

    /// Connects to a local socket.
    ///
    /// # Errors
    /// `NotFound`, `ConnectionRefused`, `PermissionDenied`, or the operating system's.
    pub async fn unix_connect(&self, path: &Path) -> io::Result<UnixStream> {
        match &self.0 {
            Kind::Real => real::unix::connect(path).await,
            Kind::Sim(host) => host.unix_connect(path),
        }
    }

    /// Listens on a local socket whose file has `mode` from the start. A stale socket file is replaced; its directory is
    /// created with mode 0700 when missing.
    ///
    /// # Errors
    /// `AddrInUse` when a live daemon serves the path; `AlreadyExists` when something other than a socket is there
    /// (both leave it alone); else the operating system's.
    pub fn unix_listen(&self, path: &Path, mode: u32) -> io::Result<UnixListener> {
        match &self.0 {
            Kind::Real => Ok(UnixListener(ListenerKind::Real(real::unix::RealUnixListener::bind(path, mode)?))),
            Kind::Sim(host) => Ok(UnixListener(ListenerKind::Sim(host.unix_listen(path)?))),
        }
    }

    /// Processor time this process has used; `None` on the simulated machine.
    pub fn cpu_time(&self) -> Option<Duration> {
        match &self.0 {
            Kind::Real => real::process::cpu_time(),
            Kind::Sim(_) => None,
        }
    }

    /// The other processes of this machine that we may know of: Linux tells all of them, other systems and the simulated
    /// machine none.
    pub fn processes(&self) -> Vec<Process> {
        match &self.0 {
            Kind::Real => real::process::others(),
            Kind::Sim(_) => Vec::new(),
        }
    }

    /// As [`Env::unix_listen`], in a directory that nobody else may write to: it is made with mode 0700 when missing, and
    /// refused when it is a link, somebody else's, or open to others.
    ///
    /// # Errors
    /// `PermissionDenied` names what is wrong with the directory; else as [`Env::unix_listen`].
    pub fn unix_listen_private(&self, path: &Path, mode: u32) -> io::Result<UnixListener> {
        if let (Kind::Real, Some(dir)) = (&self.0, path.parent()) {
            if !dir.exists() {
                self.fs().create_dir_all(dir, 0o700)?;
            }
            crate::places::check_dir(dir, self.user_id())?;
        }
        self.unix_listen(path, mode)
    }

    /// The user this process acts as.
    pub fn user_id(&self) -> u32 {
        match &self.0 {
            // SAFETY: the call has no conditions and cannot fail.
            Kind::Real => unsafe { libc::geteuid() },
            Kind::Sim(_) => crate::sim::USER_ID,
        }
    }
}
