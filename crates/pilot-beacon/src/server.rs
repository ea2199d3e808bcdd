//! The beacon on one UDP socket. Everything it sends leaves from the socket it listens on, and from
//! that address of the host to which the receiver speaks (07 rule 27).

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use pilot_env::Env;
use pilot_env::udp::{MAX_BATCH_LEN, RecvBatch, Transmit, UdpSocket};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::beacon::{Batch, Beacon, BeaconConfig, Counters, Outbox, Witness};
use crate::limits::{SWEEP_EVERY, SYNC_EVERY};

/// A running beacon.
pub struct BeaconServer {
    handle: BeaconHandle,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A way to talk to a running beacon from elsewhere in the process. Cheap to clone.
#[derive(Clone)]
pub struct BeaconHandle(Arc<Shared>);

struct Shared {
    env: Env,
    socket: UdpSocket,
    beacon: Mutex<Beacon>,
}

impl BeaconHandle {
    /// Where the beacon listens.
    pub fn addr(&self) -> SocketAddr {
        self.0.socket.local_addr()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.0.beacon.lock().counters()
    }

    /// How many nodes the beacon holds.
    pub fn node_count(&self) -> usize {
        self.0.beacon.lock().node_count()
    }

    /// Tells a node that a handshake message waits at the registry. Does not block; the node polls anyway when this is
    /// lost.
    pub fn notify(&self, node: u32) {
        let mut out = Outbox::default();
        self.0.beacon.lock().notify(self.0.env.now(), node, &mut out);
        for Batch { to, source, bytes, .. } in out.batches(1, MAX_BATCH_LEN) {
            let transmit = Transmit { destination: to, contents: bytes, segment_size: None };
            if let Err(error) = self.0.socket.try_send_from(&transmit, source) {
                tracing::debug!(destination = %to, %error, "notification not sent");
            }
        }
    }
}

impl BeaconServer {
    /// Binds the socket and starts to serve.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn start(env: &Env, listen: SocketAddr, config: BeaconConfig, witness: Arc<dyn Witness>) -> io::Result<Self> {
        let shared = Self::bind(env, listen, config)?;
        Ok(Self::serve(shared, witness))
    }

    /// Binds the socket only, so that its handle can be given to the witness before serving begins.
    ///
    /// # Errors
    /// When the address cannot be bound.
    pub fn bind(env: &Env, listen: SocketAddr, config: BeaconConfig) -> io::Result<BeaconHandle> {
        let socket = env.bind_udp(listen)?;
        // Old daemons send segments of 4,096 bytes (02 §13), which fit their path in fragments only.
        socket.allow_fragments()?;
        Ok(BeaconHandle(Arc::new(Shared { env: env.clone(), socket, beacon: Mutex::new(Beacon::new(config)) })))
    }

    /// Serves on a bound socket.
    pub fn serve(handle: BeaconHandle, witness: Arc<dyn Witness>) -> Self {
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        tasks.spawn(receive(handle.0.clone(), witness, stop.clone()));
        tasks.spawn(keep_house(handle.0.clone(), stop.clone()));
        Self { handle, stop, tasks }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.handle.addr()
    }

    /// A handle for others.
    pub fn handle(&self) -> BeaconHandle {
        self.handle.clone()
    }

    /// Stops.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn receive(shared: Arc<Shared>, witness: Arc<dyn Witness>, stop: CancellationToken) {
    let mut batch = RecvBatch::new();
    let mut out = Outbox::default();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.socket.recv(&mut batch) => {}
        }
        let now = shared.env.now();
        {
            let mut beacon = shared.beacon.lock();
            for (from, datagram) in batch.arrivals_mut() {
                beacon.handle(now, from, datagram, &*witness, &mut out);
            }
        }
        // One task receives and sends, so frames of a flow keep their order.
        send(&shared.socket, &out).await;
        out.clear();
    }
}

async fn send(socket: &UdpSocket, out: &Outbox) {
    for Batch { to, source, bytes, size } in out.batches(socket.max_segments(), MAX_BATCH_LEN) {
        let segment_size = (bytes.len() > size).then_some(size);
        let transmit = Transmit { destination: to, contents: bytes, segment_size };
        if let Err(error) = socket.send_from(&transmit, source).await {
            tracing::debug!(destination = %to, %error, "datagram not sent");
        }
    }
}

async fn keep_house(shared: Arc<Shared>, stop: CancellationToken) {
    let mut swept = shared.env.now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = shared.env.sleep(SYNC_EVERY) => {}
        }
        let now = shared.env.now();
        let mut out = Outbox::default();
        {
            let mut beacon = shared.beacon.lock();
            beacon.sync(now, &mut out);
            if now.saturating_duration_since(swept) >= SWEEP_EVERY {
                beacon.sweep(now);
                swept = now;
            }
        }
        send(&shared.socket, &out).await;
    }
}
