//! The connection to the registry: carries bytes and events between the session of [`pilot_proto::directory`] and the
//! network. What is asked when, what is asked again and what has taken too long is decided there.

use std::io;
use std::sync::Arc;

use pilot_env::tls::TlsConnector;
use pilot_env::{Env, NetStream};
use pilot_proto::directory::DirectoryEvent;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::Session;

/// Bytes read at once; answers are a few hundred bytes long.
const READ: usize = 16 * 1024;

/// Where the registry is.
#[derive(Clone)]
pub(crate) struct Target {
    /// `host:port`, resolved anew for each connection.
    pub(crate) address: String,
    /// TLS with a pinned certificate, or `None` for plain TCP.
    pub(crate) tls: Option<TlsConnector>,
}

/// Whether the registry can be reached now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// No connection was made yet.
    Idle,
    /// Connected.
    Connected,
    /// The last attempt failed, for this reason.
    Down(String),
}

/// An open connection. Writing has a task of its own, so that a registry that does not read cannot keep us from reading.
struct Connection {
    read: ReadHalf<NetStream>,
    write: mpsc::UnboundedSender<Vec<u8>>,
    writer: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.writer.abort();
    }
}

impl Connection {
    fn new(stream: NetStream) -> Self {
        let (read, half) = tokio::io::split(stream);
        // The session has a bounded number of requests under way, which bounds what waits here.
        let (write, queue) = mpsc::unbounded_channel();
        Self { read, write, writer: tokio::spawn(write_all(half, queue)) }
    }
}

/// Writes until the connection fails; the reading side notices too, or the session does when no answer comes.
async fn write_all(mut half: WriteHalf<NetStream>, mut queue: mpsc::UnboundedReceiver<Vec<u8>>) {
    while let Some(bytes) = queue.recv().await {
        if half.write_all(&bytes).await.is_err() || half.flush().await.is_err() {
            return;
        }
    }
    // What was written leaves before the end does.
    let _ = half.shutdown().await;
}

/// Runs the connection until the session is closed.
pub(super) async fn run(
    env: Env,
    target: Target,
    session: Arc<Session>,
    state: watch::Sender<LinkState>,
    events: mpsc::Sender<DirectoryEvent>,
) {
    let mut connection: Option<Connection> = None;
    let mut connecting = None;
    let mut buffer = Vec::with_capacity(READ);
    loop {
        loop {
            let (event, bytes) = session.with(|core, _| (core.poll_event(), core.poll_transmit()));
            if let (Some(bytes), Some(open)) = (bytes, &connection) {
                // A writer that has failed is noticed by the reader.
                let _ = open.write.send(bytes);
            }
            match event {
                None => break,
                Some(DirectoryEvent::Connect) => connecting = Some(Box::pin(connect(env.clone(), target.clone()))),
                Some(DirectoryEvent::Disconnect { reason }) => {
                    tracing::debug!(%reason, "leaving the registry");
                    (connection, connecting) = (None, None);
                    state.send_replace(LinkState::Down(reason));
                }
                Some(DirectoryEvent::Answer { id, result }) => session.answer(id, result),
                Some(DirectoryEvent::Closed) => return session.closed(),
                // The node is stopping when nobody takes them.
                Some(event) => drop(events.send(event).await),
            }
        }
        let deadline = session.with(|core, _| core.poll_timeout());
        let timer = env.sleep_until(deadline.unwrap_or_else(|| env.now()));
        tokio::select! {
            () = session.wake.notified() => {}
            () = session.moved.notified(), if connection.is_some() => {
                connection = None;
                lost(&session, &state, "the address of this host has changed".to_owned());
            }
            () = timer, if deadline.is_some() => session.with(|core, now| core.handle_timeout(now)),
            made = attempt(&mut connecting), if connecting.is_some() => {
                connecting = None;
                match made {
                    Ok(stream) => {
                        connection = Some(Connection::new(stream));
                        state.send_replace(LinkState::Connected);
                        session.with(|core, now| core.handle_connected(now));
                    }
                    Err(error) => {
                        let reason = format!("cannot reach the registry at {}: {error}", target.address);
                        lost(&session, &state, reason);
                    }
                }
            }
            got = read(&mut connection, &mut buffer), if connection.is_some() => match got {
                Ok(()) => session.with(|core, now| core.handle_data(now, &buffer)),
                Err(error) => {
                    connection = None;
                    lost(&session, &state, format!("lost the registry at {}: {error}", target.address));
                }
            },
        }
    }
}

fn lost(session: &Session, state: &watch::Sender<LinkState>, reason: String) {
    tracing::debug!("{reason}");
    session.with(|core, now| core.handle_disconnected(now, &reason));
    state.send_replace(LinkState::Down(reason));
}

/// The outcome of the attempt under way.
async fn attempt<F: Future<Output = io::Result<NetStream>> + Unpin>(
    connecting: &mut Option<F>,
) -> io::Result<NetStream> {
    match connecting {
        Some(connecting) => connecting.await,
        None => std::future::pending().await,
    }
}

async fn read(connection: &mut Option<Connection>, buffer: &mut Vec<u8>) -> io::Result<()> {
    let Some(open) = connection else { return std::future::pending().await };
    buffer.clear();
    match open.read.read_buf(buffer).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

async fn connect(env: Env, target: Target) -> io::Result<NetStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in env.resolve(&target.address).await? {
        match env.tcp_connect(addr).await {
            Ok(stream) => {
                return match &target.tls {
                    Some(tls) => tls.connect(stream).await,
                    None => Ok(stream),
                };
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}
