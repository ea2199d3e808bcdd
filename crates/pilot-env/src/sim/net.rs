//! The simulated network: datagrams with delay, loss, duplication and corruption; byte streams without.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rand::Rng;
use tokio::io::DuplexStream;
use tokio::sync::{Notify, mpsc};

use super::{Host, NetConditions, USER_ID, World};
use crate::net::NetStream;
use crate::udp::{RECV_BUFFER_LEN, RECV_BUFFERS, RecvBatch, Slot, Transmit};
use crate::unix::{PeerCredentials, StreamKind, UnixStream};

/// Bytes in flight on a simulated byte stream, each way.
const STREAM_BUFFER: usize = 256 * 1024;
/// Connections waiting to be accepted.
const BACKLOG: usize = 128;
/// First port handed out for "any port".
const FIRST_FREE_PORT: u16 = 20_000;

#[derive(Default)]
pub(crate) struct Network {
    pub(crate) conditions: NetConditions,
    pub(crate) blocked: BTreeSet<(IpAddr, IpAddr)>,
    udp: BTreeMap<SocketAddr, Arc<Inbox>>,
    tcp: BTreeMap<SocketAddr, mpsc::Sender<NetStream>>,
    unix: BTreeMap<(IpAddr, PathBuf), mpsc::Sender<UnixStream>>,
    sequence: u64,
}

impl Network {
    fn free_port(&self, ip: IpAddr) -> io::Result<u16> {
        (FIRST_FREE_PORT..=u16::MAX)
            .find(|port| {
                let addr = SocketAddr::new(ip, *port);
                !self.udp.contains_key(&addr) && !self.tcp.contains_key(&addr)
            })
            .ok_or_else(|| io::ErrorKind::AddrInUse.into())
    }

    fn bind_address(&self, host: &Host, addr: SocketAddr) -> io::Result<SocketAddr> {
        let ip = host.route(addr).ip();
        if ip != host.address {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        }
        let port = if addr.port() == 0 { self.free_port(ip)? } else { addr.port() };
        Ok(SocketAddr::new(ip, port))
    }
}

struct Delivery {
    due: Instant,
    sequence: u64,
    from: SocketAddr,
    data: Vec<u8>,
}

impl PartialEq for Delivery {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Delivery {}
impl PartialOrd for Delivery {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Delivery {
    // Reversed: the heap gives the earliest first.
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (other.due, other.sequence).cmp(&(self.due, self.sequence))
    }
}

#[derive(Default)]
struct Inbox {
    queue: Mutex<BinaryHeap<Delivery>>,
    arrived: Notify,
}

pub(crate) struct SimUdp {
    world: World,
    host: IpAddr,
    local: SocketAddr,
    inbox: Arc<Inbox>,
}

impl SimUdp {
    pub(crate) fn bind(host: &Host, addr: SocketAddr) -> io::Result<Self> {
        let mut network = host.world.0.network.lock();
        let local = network.bind_address(host, addr)?;
        if network.udp.contains_key(&local) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let inbox = Arc::new(Inbox::default());
        network.udp.insert(local, inbox.clone());
        Ok(Self { world: host.world.clone(), host: host.address, local, inbox })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) async fn recv(&self, batch: &mut RecvBatch) {
        loop {
            // Registered before looking, so that an arrival in between is not missed.
            let arrived = self.inbox.arrived.notified();
            if self.try_recv(batch) {
                return;
            }
            let due = self.inbox.queue.lock().peek().map(|delivery| delivery.due);
            match due {
                Some(due) => {
                    tokio::select! { () = arrived => {} () = tokio::time::sleep_until(due.into()) => {} }
                }
                None => arrived.await,
            }
        }
    }

    pub(crate) fn try_recv(&self, batch: &mut RecvBatch) -> bool {
        let now = tokio::time::Instant::now().into_std();
        let mut queue = self.inbox.queue.lock();
        batch.filled = 0;
        while batch.filled < RECV_BUFFERS && queue.peek().is_some_and(|delivery| delivery.due <= now) {
            let Some(delivery) = queue.pop() else { break };
            let start = batch.filled * RECV_BUFFER_LEN;
            let len = delivery.data.len().min(RECV_BUFFER_LEN);
            batch.buffers[start..start + len].copy_from_slice(&delivery.data[..len]);
            batch.slots[batch.filled] = Slot { from: delivery.from, local: None, len, stride: len.max(1) };
            batch.filled += 1;
        }
        batch.filled > 0
    }

    pub(crate) fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let now = tokio::time::Instant::now().into_std();
        let mut network = self.world.0.network.lock();
        let mut rng = self.world.0.rng.lock();
        let mut to = transmit.destination;
        if to.ip().is_loopback() {
            to.set_ip(self.host);
        }
        for datagram in transmit.datagrams() {
            let conditions = network.conditions.clone();
            if datagram.len() > conditions.mtu {
                return Err(io::Error::from_raw_os_error(libc::EMSGSIZE));
            }
            if network.blocked.contains(&(self.host, to.ip())) || rng.random_bool(conditions.loss) {
                continue;
            }
            let copies = if rng.random_bool(conditions.duplicate) { 2 } else { 1 };
            for _ in 0..copies {
                let Some(inbox) = network.udp.get(&to).cloned() else { break };
                network.sequence += 1;
                let mut data = datagram.to_vec();
                if !data.is_empty() && rng.random_bool(conditions.corrupt) {
                    let at = rng.random_range(0..data.len());
                    data[at] ^= 1 << rng.random_range(0..8);
                }
                let jitter = conditions.jitter.mul_f64(rng.random::<f64>());
                let due = now + conditions.latency + jitter;
                let mut queue = inbox.queue.lock();
                if queue.len() < conditions.queue {
                    queue.push(Delivery { due, sequence: network.sequence, from: self.local, data });
                    inbox.arrived.notify_one();
                }
            }
        }
        Ok(())
    }
}

impl Drop for SimUdp {
    fn drop(&mut self) {
        self.world.0.network.lock().udp.remove(&self.local);
    }
}

pub(crate) struct SimTcpListener {
    world: World,
    local: SocketAddr,
    incoming: tokio::sync::Mutex<mpsc::Receiver<NetStream>>,
}

impl SimTcpListener {
    pub(crate) fn bind(host: &Host, addr: SocketAddr) -> io::Result<Self> {
        let mut network = host.world.0.network.lock();
        let local = network.bind_address(host, addr)?;
        if network.tcp.contains_key(&local) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let (sender, incoming) = mpsc::channel(BACKLOG);
        network.tcp.insert(local, sender);
        Ok(Self { world: host.world.clone(), local, incoming: tokio::sync::Mutex::new(incoming) })
    }

    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.local
    }

    pub(crate) async fn accept(&self) -> io::Result<NetStream> {
        self.incoming.lock().await.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for SimTcpListener {
    fn drop(&mut self) {
        self.world.0.network.lock().tcp.remove(&self.local);
    }
}

pub(crate) async fn tcp_connect(host: &Host, addr: SocketAddr) -> io::Result<NetStream> {
    let to = host.route(addr);
    let (latency, blocked, local) = {
        let network = host.world.0.network.lock();
        let blocked =
            network.blocked.contains(&(host.address, to.ip())) || network.blocked.contains(&(to.ip(), host.address));
        (network.conditions.latency, blocked, SocketAddr::new(host.address, network.free_port(host.address)?))
    };
    if blocked {
        // Nobody answers: as on a real network, the caller's own deadline ends it.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(latency * 2).await;
    let listener = host.world.0.network.lock().tcp.get(&to).cloned();
    let listener = listener.ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))?;
    let (ours, theirs): (DuplexStream, DuplexStream) = tokio::io::duplex(STREAM_BUFFER);
    let accepted = NetStream::new(Box::new(theirs), to, local);
    listener.send(accepted).await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
    Ok(NetStream::new(Box::new(ours), local, to))
}

pub(crate) struct SimUnixListener {
    world: World,
    key: (IpAddr, PathBuf),
    incoming: tokio::sync::Mutex<mpsc::Receiver<UnixStream>>,
}

impl SimUnixListener {
    pub(crate) fn bind(host: &Host, path: &Path) -> io::Result<Self> {
        let key = (host.address, path.to_owned());
        let mut network = host.world.0.network.lock();
        if network.unix.contains_key(&key) {
            let text = format!("another daemon is serving {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        let (sender, incoming) = mpsc::channel(BACKLOG);
        network.unix.insert(key.clone(), sender);
        Ok(Self { world: host.world.clone(), key, incoming: tokio::sync::Mutex::new(incoming) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.key.1
    }

    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        self.incoming.lock().await.recv().await.ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Drop for SimUnixListener {
    fn drop(&mut self) {
        self.world.0.network.lock().unix.remove(&self.key);
    }
}

pub(crate) fn unix_connect(host: &Host, path: &Path) -> io::Result<UnixStream> {
    let listener = host.world.0.network.lock().unix.get(&(host.address, path.to_owned())).cloned();
    let listener = listener.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
    let (ours, theirs) = tokio::io::duplex(STREAM_BUFFER);
    let peer = PeerCredentials { uid: USER_ID, pid: None };
    listener
        .try_send(UnixStream { inner: StreamKind::Sim(theirs), peer })
        .map_err(|_| io::Error::from(io::ErrorKind::ConnectionRefused))?;
    Ok(UnixStream { inner: StreamKind::Sim(ours), peer })
}
