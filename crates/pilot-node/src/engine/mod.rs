//! The runtime around the protocol core: one UDP socket, one timer, one lock.
//!
//! All state of the protocol is an [`Endpoint`] behind a mutex that is never held across an await. Whoever changes it (the
//! driver task with what arrived, an application with what it writes) does so in [`Engine::with`], which afterwards
//! hands events to their owners, and sends what became ready. So a write leaves the host on the writer's own thread,
//! without a task switch, while the driver task waits only for datagrams and the timer.
//!
//! Lock order: `sender`, then `core`, then whatever an owner holds inside its callbacks. Owners never take `core` inside
//! a callback.

mod datagrams;
mod listener;
mod stream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Waker;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pilot_env::{Env, RecvBatch, Transmit, UdpSocket};
use pilot_proto::endpoint::{ConnId, DialError, EPHEMERAL_FIRST, Endpoint, EndpointConfig, Event};
use pilot_proto::stream::StreamEvent;
use pilot_wire::SocketAddress;
use rustc_hash::FxHashMap;
use tokio::sync::{Notify, mpsc, watch};

use crate::events::EventBus;
use crate::events::reports::Reporter;

pub use datagrams::{NodeDatagram, NodeDatagrams};
pub use listener::NodeListener;
pub use stream::{DialFailed, NodeStream};

/// Notices waiting for the node's own tasks (registry questions, pins, refusals). When full the notice is dropped; the
/// endpoint asks again after 10 s.
const NOTICE_QUEUE: usize = 4096;
/// Bytes gathered for one send call.
const SEND_BUFFER: usize = 64 * 1024;
/// Longest sleep of the driver without a deadline from the core.
const IDLE_SLEEP: Duration = Duration::from_secs(60);

/// Tasks to wake once the core is unlocked. A wake-up may cost a system call, which nobody should wait for.
#[derive(Default)]
pub(crate) struct Wakers(Vec<Waker>);

impl Wakers {
    pub(crate) fn push(&mut self, waker: Option<Waker>) {
        self.0.extend(waker);
    }

    fn wake(self) {
        self.0.into_iter().for_each(Waker::wake);
    }
}

/// Whoever a connection belongs to. Called with the core locked: be quick, and do not call back into the engine.
pub(crate) trait ConnOwner: Send + Sync {
    /// The connection changed.
    fn stream_event(&self, conn: ConnId, event: StreamEvent, wakers: &mut Wakers);
    /// The dial that made the connection failed; the id is free again.
    fn dial_failed(&self, conn: ConnId, error: DialError, wakers: &mut Wakers);
    /// Somebody other than the owner ended the connection (an administrator by its number, or the node's shutdown).
    fn close_requested(&self, _conn: ConnId, _wakers: &mut Wakers) {}
}

/// Whoever a bound port belongs to. The same rule holds as for [`ConnOwner`].
pub(crate) trait PortOwner: Send + Sync {
    /// A peer opened a stream. `None` refuses it (it is then reset).
    fn accepted(&self, incoming: &Incoming, wakers: &mut Wakers) -> Option<Arc<dyn ConnOwner>>;
    /// A datagram came for the port.
    fn datagram(&self, src: SocketAddress, dst_port: u16, data: &[u8], wakers: &mut Wakers);
}

/// A stream that a peer opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Incoming {
    pub(crate) conn: ConnId,
    pub(crate) port: u16,
    pub(crate) remote: SocketAddress,
    pub(crate) local: SocketAddress,
}

/// Receives datagrams for ports that nobody bound.
pub(crate) type StrayDatagrams = Arc<dyn PortOwner>;

/// The endpoint and who owns what in it.
pub(crate) struct Core {
    pub(crate) endpoint: Endpoint,
    conns: FxHashMap<ConnId, Arc<dyn ConnOwner>>,
    ports: FxHashMap<u16, Arc<dyn PortOwner>>,
    /// Ports that only receive datagrams: the answers to those that their owners sent.
    datagram_ports: FxHashMap<u16, Arc<dyn PortOwner>>,
    strays: Option<StrayDatagrams>,
    /// When the driver will next look at the clock.
    armed: Option<Instant>,
    notices: mpsc::Sender<Event>,
    bus: Arc<EventBus>,
    reporter: Reporter,
    /// Streams refused because the application did not accept them in time.
    pub(crate) accept_drops: u64,
    wakers: Wakers,
}

impl Core {
    /// Makes `owner` the owner of a connection.
    pub(crate) fn own(&mut self, conn: ConnId, owner: Arc<dyn ConnOwner>) {
        self.conns.insert(conn, owner);
    }

    /// The application has gone: written bytes are still delivered, then the connection ends.
    pub(crate) fn release(&mut self, now: Instant, conn: ConnId) {
        self.conns.remove(&conn);
        // A dial that failed is unknown already.
        let _ = self.endpoint.release(now, conn);
    }

    /// Ends a connection, whoever owns it. Returns whether it exists.
    pub(crate) fn close_any(&mut self, now: Instant, conn: ConnId) -> bool {
        let known = self.endpoint.close(now, conn).is_ok();
        if let Some(owner) = self.conns.get(&conn) {
            owner.close_requested(conn, &mut self.wakers);
        }
        known
    }

    /// Ends every connection in an orderly way.
    pub(crate) fn close_all(&mut self, now: Instant) {
        let conns: Vec<ConnId> = self.conns.keys().copied().collect();
        for conn in conns {
            self.close_any(now, conn);
        }
    }

    /// Whether bytes that applications wrote still have to reach their peers.
    pub(crate) fn undelivered(&self, now: Instant) -> bool {
        self.endpoint.info(now).conns.iter().any(|conn| conn.stats.send_queue > 0)
    }

    /// A source port for datagrams whose answers go to `owner`. `None` when all are taken.
    pub(crate) fn bind_datagrams(&mut self, start: u16, owner: Arc<dyn PortOwner>) -> Option<u16> {
        let count = u16::MAX - EPHEMERAL_FIRST + 1;
        let port = (0..count)
            .map(|i| EPHEMERAL_FIRST + (start % count + i) % count)
            .find(|port| !self.ports.contains_key(port) && !self.datagram_ports.contains_key(port))?;
        self.datagram_ports.insert(port, owner);
        Some(port)
    }

    /// Frees a source port for datagrams.
    pub(crate) fn unbind_datagrams(&mut self, port: u16) {
        self.datagram_ports.remove(&port);
    }

    /// Gives a port to `owner`.
    pub(crate) fn bind(
        &mut self,
        port: u16,
        owner: Arc<dyn PortOwner>,
    ) -> Result<(), pilot_proto::endpoint::BindError> {
        self.endpoint.bind(port)?;
        self.ports.insert(port, owner);
        Ok(())
    }

    /// Frees a port. Streams accepted on it live on.
    pub(crate) fn unbind(&mut self, now: Instant, port: u16) {
        self.endpoint.unbind(now, port);
        self.ports.remove(&port);
    }

    /// Who gets datagrams for ports that nobody bound.
    pub(crate) fn set_strays(&mut self, strays: Option<StrayDatagrams>) {
        self.strays = strays;
    }

    fn dispatch(&mut self, now: Instant) {
        let mut wakers = std::mem::take(&mut self.wakers);
        while let Some(event) = self.endpoint.poll_event() {
            self.reporter.report(&self.bus, &event);
            match event {
                Event::Stream { conn, event } => {
                    if let Some(owner) = self.conns.get(&conn) {
                        owner.stream_event(conn, event, &mut wakers);
                    }
                }
                Event::Accepted { conn, port, remote, local } => {
                    let incoming = Incoming { conn, port, remote, local };
                    match self.ports.get(&port).and_then(|owner| owner.accepted(&incoming, &mut wakers)) {
                        Some(owner) => {
                            self.conns.insert(conn, owner);
                        }
                        None => {
                            self.accept_drops += 1;
                            let _ = self.endpoint.reset(now, conn);
                            let _ = self.endpoint.release(now, conn);
                        }
                    }
                }
                Event::DialFailed { conn, error } => {
                    if let Some(owner) = self.conns.remove(&conn) {
                        owner.dial_failed(conn, error, &mut wakers);
                    }
                }
                Event::Datagram { src, dst_port, data } => {
                    let bound = self.ports.get(&dst_port).or_else(|| self.datagram_ports.get(&dst_port));
                    if let Some(owner) = bound.or(self.strays.as_ref()) {
                        owner.datagram(src, dst_port, &data, &mut wakers);
                    }
                }
                Event::Ended(_) => {}
                other => {
                    if self.notices.try_send(other).is_err() {
                        tracing::debug!("the node is too busy for a notice of the endpoint; it will be repeated");
                    }
                }
            }
        }
        self.wakers = wakers;
    }
}

/// What is on its way to the socket.
struct Sender {
    buf: Vec<u8>,
    /// A batch the socket had no room for.
    blocked: Option<(SocketAddr, usize, Option<usize>)>,
}

/// See the module.
pub(crate) struct Engine {
    env: Env,
    socket: UdpSocket,
    core: Mutex<Core>,
    sender: Mutex<Sender>,
    /// Something may be waiting in `poll_transmit`.
    dirty: AtomicBool,
    /// Wakes the driver: an earlier deadline, or a send that is blocked.
    wake: Notify,
    send_errors: AtomicU64,
    /// Rounds of the driver: it is alive when this moves after a wake-up.
    turns: watch::Sender<u64>,
}

impl Engine {
    /// An engine on a bound socket. Notices for the node's own tasks come out of the receiver.
    pub(crate) fn new(
        env: Env,
        socket: UdpSocket,
        config: EndpointConfig,
        bus: Arc<EventBus>,
    ) -> (Arc<Self>, mpsc::Receiver<Event>) {
        let (notices, receiver) = mpsc::channel(NOTICE_QUEUE);
        let core = Core {
            endpoint: Endpoint::new(env.now(), config),
            conns: FxHashMap::default(),
            ports: FxHashMap::default(),
            datagram_ports: FxHashMap::default(),
            strays: None,
            armed: None,
            notices,
            bus,
            reporter: Reporter::default(),
            accept_drops: 0,
            wakers: Wakers::default(),
        };
        let engine = Self {
            env,
            socket,
            core: Mutex::new(core),
            sender: Mutex::new(Sender { buf: Vec::with_capacity(SEND_BUFFER), blocked: None }),
            dirty: AtomicBool::new(false),
            wake: Notify::new(),
            send_errors: AtomicU64::new(0),
            turns: watch::Sender::new(0),
        };
        (Arc::new(engine), receiver)
    }

    /// The address of the tunnel socket.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.socket.local_addr()
    }

    /// Send calls that the operating system refused (unreachable network, too large for the path).
    pub(crate) fn send_errors(&self) -> u64 {
        self.send_errors.load(Ordering::Relaxed)
    }

    /// Whether the driver makes a round within `limit` after being woken. Takes no lock: it tells of a core that somebody
    /// holds for ever, too.
    pub(crate) async fn is_turning(&self, limit: Duration) -> bool {
        let mut turns = self.turns.subscribe();
        turns.mark_unchanged();
        self.wake.notify_one();
        // The sender lives in `self`.
        matches!(tokio::time::timeout(limit, turns.changed()).await, Ok(Ok(())))
    }

    /// Whether reception from the network fails now.
    pub(crate) fn is_receive_failing(&self) -> bool {
        self.socket.is_failing()
    }

    /// Notices that wait for the node's own tasks, and how many may.
    pub(crate) fn notices(&self) -> (usize, usize) {
        let core = self.core.lock();
        let (most, room) = (core.notices.max_capacity(), core.notices.capacity());
        (most - room, most)
    }

    /// Changes the core, hands out the events this caused, and sends what became ready.
    pub(crate) fn with<R>(&self, change: impl FnOnce(&mut Core, Instant) -> R) -> R {
        let result = self.with_unsent(change);
        self.pump();
        result
    }

    /// As [`Engine::with`], but nothing is sent: for several changes in a row, followed by [`Engine::pump`].
    pub(crate) fn with_unsent<R>(&self, change: impl FnOnce(&mut Core, Instant) -> R) -> R {
        let now = self.env.now();
        let mut core = self.core.lock();
        let result = change(&mut core, now);
        core.dispatch(now);
        let deadline = core.endpoint.poll_timeout();
        let earlier = deadline.is_some_and(|at| core.armed.is_none_or(|armed| at < armed));
        if earlier {
            core.armed = deadline;
        }
        let wakers = std::mem::take(&mut core.wakers);
        drop(core);
        self.dirty.store(true, Ordering::Release);
        if earlier {
            self.wake.notify_one();
        }
        wakers.wake();
        result
    }

    /// Looks at the core without changing it.
    pub(crate) fn look<R>(&self, look: impl FnOnce(&Core, Instant) -> R) -> R {
        let now = self.env.now();
        look(&self.core.lock(), now)
    }

    /// Sends what waits in the core. When somebody else is sending, they send ours too.
    pub(crate) fn pump(&self) {
        loop {
            let Some(mut sender) = self.sender.try_lock() else { return };
            while sender.blocked.is_none() && self.dirty.swap(false, Ordering::AcqRel) {
                self.send_all(&mut sender);
            }
            let blocked = sender.blocked.is_some();
            drop(sender);
            if blocked {
                self.wake.notify_one();
                return;
            }
            // Work that arrived between the last look and the unlock found the lock taken and relies on us.
            if !self.dirty.load(Ordering::Acquire) {
                return;
            }
        }
    }

    fn send_all(&self, sender: &mut Sender) {
        let limit = self.socket.max_segments();
        loop {
            sender.buf.clear();
            let now = self.env.now();
            let Some(transmit) = self.core.lock().endpoint.poll_transmit(now, &mut sender.buf, limit) else { return };
            let contents = sender.buf.get(..transmit.len).unwrap_or_default();
            let batch = Transmit { destination: transmit.dst, contents, segment_size: transmit.segment_size };
            match self.socket.try_send(&batch) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    sender.blocked = Some((transmit.dst, transmit.len, transmit.segment_size));
                    return;
                }
                Err(e) => self.note_send_error(transmit.dst, &e),
            }
        }
    }

    fn note_send_error(&self, to: SocketAddr, error: &io::Error) {
        self.send_errors.fetch_add(1, Ordering::Relaxed);
        // To the protocol it is a lost datagram.
        tracing::debug!(%to, %error, "udp send failed");
    }

    /// Waits for room in the socket and sends the blocked batch.
    async fn send_blocked(&self) {
        let taken = {
            let mut sender = self.sender.lock();
            match sender.blocked {
                Some(blocked) => Some((blocked, std::mem::take(&mut sender.buf))),
                None => None,
            }
        };
        let Some(((destination, len, segment_size), buf)) = taken else { return };
        let batch = Transmit { destination, contents: buf.get(..len).unwrap_or_default(), segment_size };
        if let Err(e) = self.socket.send(&batch).await {
            self.note_send_error(destination, &e);
        }
        let mut sender = self.sender.lock();
        sender.buf = buf;
        sender.blocked = None;
        drop(sender);
        self.dirty.store(true, Ordering::Release);
        self.pump();
    }

    /// Receives and keeps time until the task is aborted. Exactly one task runs it.
    pub(crate) async fn drive(self: Arc<Self>) {
        let mut batch = RecvBatch::new();
        loop {
            self.turns.send_modify(|turns| *turns += 1);
            let now = self.env.now();
            let deadline = {
                let mut core = self.core.lock();
                core.armed = core.endpoint.poll_timeout();
                core.armed
            };
            if deadline.is_some_and(|at| at <= now) {
                self.with(|core, now| core.endpoint.handle_timeout(now));
                // Let others in before looking again, should the core keep asking for "now".
                tokio::task::yield_now().await;
            }
            let sleep = self.env.sleep_until(deadline.unwrap_or(now + IDLE_SLEEP));
            tokio::select! {
                () = self.socket.recv(&mut batch) => self.received(&mut batch),
                () = self.wake.notified() => self.send_blocked().await,
                () = sleep => {}
            }
        }
    }

    fn received(&self, batch: &mut RecvBatch) {
        self.with(|core, now| {
            for (from, datagram) in batch.datagrams_mut() {
                core.endpoint.handle_datagram(now, from, datagram);
            }
        });
    }
}
