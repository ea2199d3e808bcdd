//! The registry on TCP, with or without TLS (04 §3, §14, §17, §24): framing, deadlines, limits and housekeeping.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;
use pilot_env::tls::TlsAcceptor;
use pilot_env::{Env, NetStream, TcpListener};
use pilot_wire::frame::{self, FrameDecoder};
use pilot_wire::registry::Answer;
use rustc_hash::FxHashMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::limiter::Bucket;
use crate::limits::{
    ACCEPT_BACKOFF, GATHER_BYTES, LARGE_BYTES, READ_TIMEOUT, REAP_EVERY, SMALL_MESSAGE, TLS_TIMEOUT, WRITE_TIMEOUT,
};
use crate::service::{Registry, Session};

/// Settings of the server's sockets.
#[derive(Clone)]
pub struct ServerConfig {
    /// Where to listen.
    pub listen: SocketAddr,
    /// TLS, or plain TCP.
    pub tls: Option<TlsAcceptor>,
    /// Connections in total; default 20,000 (about 10 KiB each). Further ones are closed at once.
    pub max_connections: usize,
    /// Connections from one address; default 2,000: 500 daemons of four connections behind one NAT.
    pub max_per_source: usize,
}

impl ServerConfig {
    /// Plain TCP with the default limits.
    pub fn new(listen: SocketAddr) -> Self {
        Self { listen, tls: None, max_connections: 20_000, max_per_source: 2_000 }
    }
}

/// A running registry server.
pub struct RegistryServer {
    addr: SocketAddr,
    registry: Arc<Registry>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Shared {
    registry: Arc<Registry>,
    config: ServerConfig,
    stop: CancellationToken,
    connections: Mutex<Connections>,
    /// Bytes that messages above [`SMALL_MESSAGE`] may take together.
    large: Arc<Semaphore>,
}

#[derive(Default)]
struct Connections {
    total: usize,
    by_source: FxHashMap<IpAddr, usize>,
}

/// One counted connection; dropping it uncounts it, also when its task panics.
struct Admission {
    shared: Arc<Shared>,
    source: IpAddr,
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut connections = self.shared.connections.lock();
        connections.total = connections.total.saturating_sub(1);
        if let Some(count) = connections.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                connections.by_source.remove(&self.source);
            }
        }
    }
}

impl RegistryServer {
    /// Starts to listen.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn start(env: &Env, registry: Arc<Registry>, config: ServerConfig) -> io::Result<Self> {
        let listener = env.tcp_listen(config.listen)?;
        let addr = listener.local_addr()?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let shared = Arc::new(Shared {
            registry: registry.clone(),
            config,
            stop: stop.clone(),
            connections: Mutex::default(),
            large: Arc::new(Semaphore::new(LARGE_BYTES)),
        });
        tasks.spawn(accept(listener, shared, tasks.clone()));
        tasks.spawn(keep_house(registry.clone(), stop.clone()));
        Ok(Self { addr, registry, stop, tasks })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The registry behind it.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    /// Stops listening, lets requests in hand be answered, and writes what is not on disk.
    pub async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        if let Err(refusal) = self.registry.store().flush().await {
            tracing::error!("last signs of life were not written: {refusal}");
        }
    }
}

async fn keep_house(registry: Arc<Registry>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = registry.env().sleep(REAP_EVERY) => {}
        }
        if let Err(refusal) = registry.tick().await {
            tracing::error!("housekeeping failed: {refusal}");
        }
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>, tasks: TaskTracker) {
    loop {
        let stream = tokio::select! {
            () = shared.stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(stream) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed; going on");
                    shared.registry.env().sleep(ACCEPT_BACKOFF).await;
                    continue;
                }
            },
        };
        if let Some(admission) = admit(&shared, stream.peer_addr().ip().to_canonical()) {
            // A panic ends this one connection.
            tasks.spawn(connection(stream, admission));
        }
    }
}

fn admit(shared: &Arc<Shared>, source: IpAddr) -> Option<Admission> {
    let mut connections = shared.connections.lock();
    let own = connections.by_source.get(&source).copied().unwrap_or(0);
    if connections.total >= shared.config.max_connections || own >= shared.config.max_per_source {
        tracing::debug!(%source, "too many connections");
        return None;
    }
    connections.total += 1;
    connections.by_source.insert(source, own + 1);
    Some(Admission { shared: shared.clone(), source })
}

async fn connection(stream: NetStream, admission: Admission) {
    let shared = admission.shared.clone();
    let peer = stream.peer_addr();
    let stream = match &shared.config.tls {
        None => stream,
        Some(tls) => match timeout(TLS_TIMEOUT, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return tracing::debug!(%peer, %error, "TLS handshake failed"),
            Err(_) => return tracing::debug!(%peer, "TLS handshake timed out"),
        },
    };
    if let Err(error) = serve(stream, &shared).await {
        tracing::debug!(%peer, %error, "connection closed");
    }
}

async fn serve(mut stream: NetStream, shared: &Shared) -> io::Result<()> {
    let registry = &shared.registry;
    let mut session = Session::new(stream.peer_addr(), stream.local_addr());
    let rate = registry.config().requests_per_connection;
    let mut bucket = Bucket::new(rate, registry.env().now());
    let mut decoder = FrameDecoder::default();
    let mut received = vec![0u8; 8 * 1024];
    let mut out = Vec::new();
    let mut held: Option<OwnedSemaphorePermit> = None;
    loop {
        // Everything complete is answered before more is read, so memory is bounded by one message and one read.
        while let Some(body) = decoder.next_frame().map_err(io::Error::other)? {
            let now = registry.env().now();
            let wait = bucket.pace(rate, now).max(registry.pace(session.source().ip()));
            if !wait.is_zero() {
                registry.env().sleep(wait).await;
            }
            let reply = registry.answer(&mut session, body).await.map_err(io::Error::other)?;
            emit(&reply.answer, &mut out);
            if reply.is_last {
                send(&mut stream, &mut out).await?;
                return stream.shutdown().await;
            }
            if out.len() >= GATHER_BYTES {
                send(&mut stream, &mut out).await?;
            }
        }
        if held.take().is_some() && decoder.pending().is_empty() {
            // Gives the memory of the large message back.
            decoder = FrameDecoder::default();
        }
        send(&mut stream, &mut out).await?;
        // The window is one message's, not one read's: a sender of single bytes does not get more time.
        let message = async {
            // Held until the message is complete and read.
            let mut room = None;
            loop {
                let n = stream.read(&mut received).await?;
                if n == 0 {
                    return Ok::<_, io::Error>(None);
                }
                decoder.push(&received[..n]);
                let Some(len) = announced(decoder.pending()) else { continue };
                if len > frame::MAX_FRAME || decoder.pending().len() >= frame::PREFIX_LEN + len {
                    return Ok(Some(room));
                }
                if len > SMALL_MESSAGE && room.is_none() {
                    // Not more than 2^20, so the cast keeps the value; the semaphore is never closed.
                    room = shared.large.clone().acquire_many_owned(len as u32).await.ok();
                }
            }
        };
        tokio::select! {
            () = shared.stop.cancelled() => return Ok(()),
            done = timeout(READ_TIMEOUT, message) => match done {
                Ok(Ok(Some(room))) => held = room,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            },
        }
    }
}

/// The length of the message whose beginning has been received.
fn announced(pending: &[u8]) -> Option<usize> {
    pending.first_chunk::<{ frame::PREFIX_LEN }>().map(|prefix| u32::from_be_bytes(*prefix) as usize)
}

fn emit(answer: &Answer, out: &mut Vec<u8>) {
    if answer.emit(out).is_err() {
        // Only listings can grow so large. The error is a few dozen bytes, so it always fits.
        let _ = Answer::error("request failed: too many entries for one answer", Some("too_large")).emit(out);
    }
}

async fn send(stream: &mut NetStream, out: &mut Vec<u8>) -> io::Result<()> {
    if out.is_empty() {
        return Ok(());
    }
    let sent = timeout(WRITE_TIMEOUT, async {
        stream.write_all(out).await?;
        stream.flush().await
    });
    sent.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    out.clear();
    Ok(())
}
