//! Accepting streams on a port, whichever way they reach this program.

use std::fmt;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream as Streams;
use futures_util::future::BoxFuture;
use pilot_wire::SocketAddress;

use crate::error::Error;
use crate::stream::Stream;

/// Streams that wait to be accepted; further ones are refused. More than the 64 of the official driver: hundreds of peers
/// may come within one turn of the accepting task (07 §16.31).
pub(crate) const BACKLOG: usize = 1024;

/// One way to a bound port. Dropping it frees the port.
pub(crate) trait Door: Send + Sync {
    /// The next stream, or why none will come (now, or for good). The task that asked last is woken.
    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<Result<Stream, Error>>;
    /// Ready when the node has been away for longer than the program wants to wait.
    fn lost(&self) -> BoxFuture<'_, Error>;
    /// Frees the port; ready when the node has done so.
    fn close(&mut self) -> BoxFuture<'static, ()>;
}

/// A bound port. Streams that peers open to it are handed out by [`accept`](Self::accept), or one by one as a
/// [`futures` stream](futures_util::Stream).
///
/// Up to 1024 streams wait to be accepted; what has arrived on them meanwhile is kept, their end included. Closing or
/// dropping the listener frees the port, on official daemons before 1.13 once the streams accepted from it are closed
/// as well: these have no command for it, so the port lives as long as the socket (03 §6.1).
///
/// After a restart of the daemon the port is bound again, and `accept` goes on; see [`Driver`](crate::Driver).
///
/// ```no_run
/// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
/// let listener = driver.listen(1000).await?;
/// loop {
///     let mut stream = listener.accept().await?;
///     println!("{} connected", stream.peer_addr());
///     tokio::spawn(async move {
///         let (mut read, mut write) = tokio::io::split(&mut stream);
///         tokio::io::copy(&mut read, &mut write).await
///     });
/// }
/// # }
/// ```
pub struct Listener {
    door: Box<dyn Door>,
    local: SocketAddress,
    /// Whose turn it is to wait: a door remembers one task, so that those that gave up leave nothing behind.
    turn: tokio::sync::Mutex<()>,
}

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listener").field("port", &self.local.port).finish_non_exhaustive()
    }
}

impl Listener {
    pub(crate) fn new(door: Box<dyn Door>, local: SocketAddress) -> Self {
        Self { door, local, turn: tokio::sync::Mutex::new(()) }
    }

    /// The port.
    ///
    /// ```no_run
    /// # fn example(listener: pilot::Listener) {
    /// println!("dial port {}", listener.port());
    /// # }
    /// ```
    pub fn port(&self) -> u16 {
        self.local.port
    }

    /// The own address and the port; the address is 0 where the daemon does not tell it unasked (old and official
    /// ones).
    ///
    /// ```no_run
    /// # fn example(listener: pilot::Listener) {
    /// println!("others dial {}", listener.local_addr());
    /// # }
    /// ```
    pub fn local_addr(&self) -> SocketAddress {
        self.local
    }

    /// The next stream. Cancel safe. Several tasks may wait; each stream goes to one of them.
    ///
    /// ```no_run
    /// # async fn example(listener: pilot::Listener) -> Result<(), Box<dyn std::error::Error>> {
    /// let stream = listener.accept().await?;
    /// println!("{} is here", stream.peer_addr());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the daemon has been away for longer than
    /// [`Options::patience`](crate::Options::patience); the next call waits again. [`Error::ListenerClosed`] when it is
    /// gone and the driver does not reconnect. When another program has taken the port while the daemon was restarting,
    /// the daemon's refusal; the listener is of no more use then.
    pub async fn accept(&self) -> Result<Stream, Error> {
        let next = async {
            let _turn = self.turn.lock().await;
            poll_fn(|cx| self.door.poll_accept(cx)).await
        };
        tokio::select! {
            biased;
            next = next => next,
            lost = self.door.lost() => Err(lost),
        }
    }

    /// Frees the port and closes the streams nobody has accepted. Accepted ones live on.
    ///
    /// ```no_run
    /// # async fn example(listener: pilot::Listener) -> Result<(), Box<dyn std::error::Error>> {
    /// let last = listener.accept().await?;
    /// listener.close().await;
    /// drop(last); // lived on until here
    /// # Ok(()) }
    /// ```
    pub async fn close(mut self) {
        self.door.close().await;
    }
}

/// Waits through restarts of the daemon, however long they take. Ends with the first error that is final.
impl Streams for Listener {
    type Item = Stream;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Stream>> {
        self.door.poll_accept(cx).map(Result::ok)
    }
}
