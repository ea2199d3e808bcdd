//! The local server: the door through which programs on this host use the daemon (specification 03, 07 §12).
//!
//! | File | Holds |
//! |---|---|
//! | `client` | what is kept of one client, all of it bounded |
//! | `replies` | the order of answers without request ids |
//! | `commands` | what each command does |
//! | `pump` | the way between the protocol core and a client's socket |
//! | `envelope` | requests signed for third parties |
//! | `texts` | error texts |
//! | `ext` | the extension: request ids, credit, half-close, calls into services |

mod client;
mod commands;
mod envelope;
mod ext;
mod pump;
mod replies;
mod texts;

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use pilot_env::{UnixListener, UnixStream};
use pilot_wire::SocketAddress;
use pilot_wire::frame::FrameDecoder;
use pilot_wire::ipc::Answer;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::engine::{ConnOwner, Incoming, PortOwner, Wakers};
use crate::node::Shared;
use client::Client;
use commands::Commands;
use ext::Verdict;

pub(crate) use ext::NodeMethods;

/// Programs connected at once (07 §12). A further one is told so and disconnected.
const MAX_CLIENTS: usize = 1024;
/// Bytes read from a client at once.
const READ_SIZE: usize = 256 * 1024;
/// How long a client that is dismissed may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause after a failed accept (out of descriptors, say), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The programs connected now.
#[derive(Default)]
pub(crate) struct Clients(
    Mutex<Vec<Arc<Client>>>,
    /// Datagrams that clients who have left were too slow for.
    AtomicU64,
);

/// Sums over all clients.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Queues {
    /// Bytes of replies and notices.
    pub(crate) frames: u64,
    /// Bytes sent on streams whose peers do not keep up.
    pub(crate) pending: u64,
    /// Bytes of datagrams.
    pub(crate) datagrams: u64,
    /// Datagrams dropped because their clients were too slow, since the start.
    pub(crate) datagrams_dropped: u64,
}

impl Clients {
    /// How many.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().len()
    }

    /// What waits in the queues of all clients together.
    pub(crate) fn queues(&self) -> Queues {
        let mut queues = Queues { datagrams_dropped: self.1.load(Ordering::Relaxed), ..Queues::default() };
        for client in self.0.lock().iter() {
            client.state.lock().add_queues(&mut queues);
        }
        queues
    }

    /// Tells every client's tasks to finish what they have to say and end.
    pub(crate) fn dismiss(&self) {
        let clients = self.0.lock().clone();
        for client in clients {
            client.update(|state| {
                ext::dismiss(state, true);
                state.gone = true;
            });
        }
    }

    /// Tells every client that streams which end from now on do so because the daemon ends.
    pub(crate) fn announce_end(&self) {
        let clients = self.0.lock().clone();
        for client in clients {
            client.update(|state| ext::dismiss(state, false));
        }
    }
}

/// A datagram for a port that nobody bound goes to every client, as it always did: `pilotctl listen` of the official
/// releases and their SDKs bind nothing and filter (06 §6.5). A bound port's datagrams go to its owner alone.
impl PortOwner for Clients {
    fn accepted(&self, _incoming: &Incoming, _wakers: &mut Wakers) -> Option<Arc<dyn ConnOwner>> {
        None
    }

    fn datagram(&self, src: SocketAddress, dst_port: u16, data: &[u8], wakers: &mut Wakers) {
        for client in self.0.lock().iter() {
            // Who has greeted gets what it asked for (L13).
            if client.state.lock().ext.is_none() {
                client.datagram(src, dst_port, data, wakers);
            }
        }
    }
}

/// Serves clients until the task is aborted.
pub(crate) async fn serve(node: Arc<Shared>, listener: UnixListener) {
    let own = node.env.user_id();
    loop {
        let stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a local client");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let uid = stream.peer().uid;
        // Root can read the daemon's memory anyway; anybody else has no business here.
        if uid != own && uid != 0 {
            tracing::warn!(uid, "refused a local client of another user");
            turn_away(stream, format!("permission denied: this daemon serves user {own}, not user {uid}")).await;
            continue;
        }
        if node.clients.len() >= MAX_CLIENTS {
            tracing::warn!(limit = MAX_CLIENTS, "refused a local client: too many are connected");
            turn_away(stream, format!("too many local clients (limit {MAX_CLIENTS})")).await;
            continue;
        }
        let client = Arc::new(Client::default());
        node.clients.0.lock().push(client.clone());
        let serving = serve_client(node.clone(), client, stream);
        node.spawn(serving);
    }
}

/// Tells a program why it is not served. It has just connected, so its socket has room for that.
async fn turn_away(mut stream: UnixStream, why: String) {
    let mut frame = Vec::new();
    if Answer::error(why).emit(&mut frame).is_ok() {
        let _ = tokio::time::timeout(ACCEPT_PAUSE, stream.write_all(&frame)).await;
    }
}

async fn serve_client(node: Arc<Shared>, client: Arc<Client>, stream: UnixStream) {
    let (read, write) = tokio::io::split(stream);
    {
        let reader = read_commands(&node, &client, read);
        let mut writer = std::pin::pin!(pump::run(&node.engine, &client, write));
        let told = tokio::select! {
            left = reader => left == Left::Told,
            _ = &mut writer => false,
        };
        if told {
            // What it was told should still reach it.
            client.update(|state| state.gone = true);
            let _ = tokio::time::timeout(FAREWELL, writer).await;
        }
    }
    node.clients.0.lock().retain(|other| !Arc::ptr_eq(other, &client));
    node.clients.1.fetch_add(client.state.lock().datagrams_dropped, Ordering::Relaxed);
    pump::depart(node.engine.clone(), client).await;
}

/// How reading ended.
#[derive(PartialEq, Eq)]
enum Left {
    /// The client has gone, or broke the framing, which ends without a word (03 §1).
    Silently,
    /// It broke a rule, and something is on the way to it that says which.
    Told,
}

/// Reads and does what a client says, until it leaves or breaks a rule.
async fn read_commands(node: &Arc<Shared>, client: &Arc<Client>, mut socket: impl AsyncRead + Unpin) -> Left {
    let commands = Commands::new(node.clone(), client.clone());
    let mut decoder = FrameDecoder::default();
    loop {
        poll_fn(|cx| {
            let mut state = client.state.lock();
            if state.accepts_input() {
                return Poll::Ready(());
            }
            state.reader = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        let buffer = decoder.buffer();
        buffer.reserve(READ_SIZE);
        match socket.read_buf(buffer).await {
            Ok(0) | Err(_) => return Left::Silently,
            Ok(_) => {}
        }
        loop {
            match decoder.next_frame() {
                Ok(Some(body)) => {
                    if commands.handle(body) == Verdict::Broken {
                        tracing::debug!("dropped a local client that broke a rule");
                        node.engine.pump();
                        return Left::Told;
                    }
                }
                Ok(None) => break,
                // Nothing behind it can be read; the client is dropped without a word (03 §1).
                Err(error) => {
                    tracing::debug!(%error, "dropped a local client");
                    node.engine.pump();
                    return Left::Silently;
                }
            }
        }
        client.update(|_| ());
        node.engine.pump();
    }
}
