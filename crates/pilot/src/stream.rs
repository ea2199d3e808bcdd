//! A reliable stream to a peer, whichever way it reaches this program.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use pilot_wire::SocketAddress;
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use crate::deadline::{Deadlines, Timer};
use crate::error::{CloseReason, StreamError};

/// How long [`Stream::close`] waits for the daemon to confirm.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// One way to a stream: over the February protocol, over the extended one, or inside this process. Dropping it closes
/// the stream: what was written is still delivered.
pub(crate) trait Channel: Send + Sync {
    /// Puts what has arrived into `out`, which is empty. It stays empty at the end of the stream.
    fn poll_fill(&mut self, cx: &mut Context<'_>, out: &mut Vec<u8>) -> Poll<io::Result<()>>;
    /// Takes bytes to send; never 0 of some.
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;
    /// Waits until everything taken is with the node.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ends the own direction where the peer can do that, and both where it cannot, after everything written.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ends the own direction alone, or fails with [`StreamError::HalfCloseUnsupported`] and does nothing.
    fn poll_close_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Closes both directions, discarding what still arrives, and waits until the node has confirmed.
    fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ends both directions at once, so that the peer sees a reset and not an end. Nothing where the node cannot be told:
    /// dropping the channel then closes it.
    fn reset(&mut self) {}
    /// How it ended, if it has.
    fn close_reason(&self) -> Option<CloseReason>;
    /// Bytes the peer's node has confirmed, where that is known.
    fn delivered(&self) -> Option<u64>;
    /// Waits until the peer's node has everything taken so far; the number of bytes it has then.
    fn poll_delivered(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<u64>>;
    /// The node's number for the connection.
    fn id(&self) -> u32;
}

/// A reliable, ordered, encrypted stream of bytes to an application on another node.
///
/// Implements [`AsyncRead`], [`AsyncBufRead`] and [`AsyncWrite`], so whatever runs over a TCP connection runs over it.
///
/// * **Writing.** A finished write is in the hands of the own node, not of the peer; [`delivered`](Self::delivered) says
///   how much has arrived. Writers wait while the node has as much as it takes (256 KiB over an old local socket, the
///   credit of the stream over the extended one).
/// * **Reading.** What is not read is held back at the peer: at most about 512 KiB are kept here.
/// * **Closing.** `shutdown` and [`close`](Self::close) hand over everything written first. Dropping the stream closes
///   it as well. After `shutdown` reading goes on to the end of the stream. Toward peers without half-close `shutdown`
///   ends both directions; [`close_write`](Self::close_write) tells that apart.
/// * **Ending.** A read gives 0 bytes at the end the peer made. Whatever else ends a stream is an error, with a
///   [`StreamError`] inside. Official daemons do not tell a reset from an end (03 §6.6): there every end looks like the
///   peer's, and [`close_reason`](Self::close_reason) is [`CloseReason::Untold`].
/// * **Restarts.** A stream does not outlive the daemon: reads and writes then fail with
///   [`CloseReason::DaemonGone`], after what had arrived.
///
/// Bounds: about 1.3 MiB of buffers in the worst case.
///
/// ```no_run
/// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// let mut stream = driver.dial_text("0:0000.0000.0002:1000").await?;
/// stream.write_all(b"question").await?;
/// stream.shutdown().await?;
/// let mut answer = Vec::new();
/// stream.read_to_end(&mut answer).await?;
/// println!("{} said {} bytes: {:?}", stream.peer_addr(), answer.len(), stream.close_reason());
/// # Ok(()) }
/// ```
pub struct Stream {
    channel: Box<dyn Channel>,
    local: SocketAddress,
    peer: SocketAddress,
    /// Taken from the channel and partly read.
    front: Vec<u8>,
    read: usize,
    deadlines: Deadlines,
    read_timer: Timer,
    write_timer: Timer,
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("id", &self.id()).field("peer", &self.peer).finish_non_exhaustive()
    }
}

impl Stream {
    pub(crate) fn new(channel: Box<dyn Channel>, local: SocketAddress, peer: SocketAddress) -> Self {
        let deadlines = Deadlines::default();
        let (read_timer, write_timer) = (deadlines.read_timer(), deadlines.write_timer());
        Self { channel, local, peer, front: Vec::new(), read: 0, deadlines, read_timer, write_timer }
    }

    /// The peer and its port: as dialled, or where an accepted stream comes from.
    ///
    /// ```no_run
    /// # fn example(stream: pilot::Stream) {
    /// println!("from {}", stream.peer_addr());
    /// # }
    /// ```
    pub fn peer_addr(&self) -> SocketAddress {
        self.peer
    }

    /// The same as [`peer_addr`](Self::peer_addr).
    ///
    /// ```no_run
    /// # fn example(stream: pilot::Stream) {
    /// assert_eq!(stream.remote(), stream.peer_addr());
    /// # }
    /// ```
    pub fn remote(&self) -> SocketAddress {
        self.peer
    }

    /// The own end. What the daemon does not tell is 0: an old one gives neither the own address nor the port of a
    /// dialled stream (03 §12).
    ///
    /// ```no_run
    /// # fn example(stream: pilot::Stream) {
    /// println!("arrived at {}", stream.local_addr());
    /// # }
    /// ```
    pub fn local_addr(&self) -> SocketAddress {
        self.local
    }

    /// The port an accepted stream arrived on; 0 for a dialled one whose port the daemon does not say.
    ///
    /// ```no_run
    /// # fn example(stream: pilot::Stream) {
    /// println!("arrived at port {}", stream.local_port());
    /// # }
    /// ```
    pub fn local_port(&self) -> u16 {
        self.local.port
    }

    /// The node's number for the connection, as in `conn_list` of the status.
    ///
    /// ```no_run
    /// # async fn example(stream: pilot::Stream, driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// let status = driver.info().await?;
    /// let all = status["conn_list"].as_array().map_or(&[][..], Vec::as_slice);
    /// let of_this = all.iter().find(|entry| entry["id"] == stream.id());
    /// println!("{of_this:?}");
    /// # Ok(()) }
    /// ```
    pub fn id(&self) -> u32 {
        self.channel.id()
    }

    /// How the stream ended, or `None` while it has not.
    ///
    /// ```no_run
    /// # fn example(stream: pilot::Stream) {
    /// if let Some(reason) = stream.close_reason() {
    ///     println!("it is over: {reason}");
    /// }
    /// # }
    /// ```
    pub fn close_reason(&self) -> Option<CloseReason> {
        self.channel.close_reason()
    }

    /// How many of the bytes written the peer's node has confirmed, as far as is known without asking: final once
    /// [`close_reason`](Self::close_reason) is there. `None` when nothing is known yet, and from daemons that do not tell
    /// (old and official ones). [`wait_delivered`](Self::wait_delivered) asks.
    ///
    /// ```no_run
    /// # fn example(stream: pilot::Stream) {
    /// if let Some(bytes) = stream.delivered() {
    ///     println!("the peer's node has {bytes} bytes");
    /// }
    /// # }
    /// ```
    pub fn delivered(&self) -> Option<u64> {
        self.channel.delivered()
    }

    /// The deadlines, to move them while another task waits.
    ///
    /// ```no_run
    /// # async fn example(mut stream: pilot::Stream, now: std::time::Instant) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::AsyncReadExt;
    ///
    /// let deadlines = stream.deadlines();
    /// let reading = tokio::spawn(async move { stream.read_u8().await });
    /// deadlines.set_read(Some(now)); // enough: the read above ends with `TimedOut`
    /// assert!(reading.await?.is_err());
    /// # Ok(()) }
    /// ```
    pub fn deadlines(&self) -> Deadlines {
        self.deadlines.clone()
    }

    /// When reads give up with `TimedOut`; `None` means never. See [`Deadlines`].
    ///
    /// ```no_run
    /// # async fn example(mut stream: pilot::Stream, now: std::time::Instant) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::AsyncReadExt;
    ///
    /// stream.set_read_deadline(Some(now + std::time::Duration::from_secs(5)));
    /// let first = stream.read_u8().await?;
    /// stream.set_read_deadline(None);
    /// # let _ = first;
    /// # Ok(()) }
    /// ```
    pub fn set_read_deadline(&self, at: Option<Instant>) {
        self.deadlines.set_read(at);
    }

    /// When writes, flushes and `shutdown` give up with `TimedOut`.
    ///
    /// ```no_run
    /// # async fn example(mut stream: pilot::Stream, now: std::time::Instant) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::AsyncWriteExt;
    ///
    /// stream.set_write_deadline(Some(now + std::time::Duration::from_secs(5)));
    /// stream.write_all(b"report").await?;
    /// # Ok(()) }
    /// ```
    pub fn set_write_deadline(&self, at: Option<Instant>) {
        self.deadlines.set_write(at);
    }

    /// Both deadlines.
    ///
    /// ```no_run
    /// # fn example(stream: pilot::Stream, now: std::time::Instant) {
    /// // The whole conversation may take a minute.
    /// stream.set_deadline(Some(now + std::time::Duration::from_secs(60)));
    /// # }
    /// ```
    pub fn set_deadline(&self, at: Option<Instant>) {
        self.deadlines.set(at);
    }

    /// Waits until the peer's node has everything written so far, in order, and returns how many bytes that is. What the
    /// program there does with them is a matter between the programs.
    ///
    /// ```no_run
    /// # async fn example(mut stream: pilot::Stream) -> std::io::Result<()> {
    /// use tokio::io::AsyncWriteExt;
    /// stream.write_all(b"an order").await?;
    /// println!("{} bytes have arrived", stream.wait_delivered().await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Unsupported` with [`StreamError::DeliveryUntold`] when the daemon does not tell; why the stream ended, when it
    /// did so before; `TimedOut` at the write deadline.
    pub async fn wait_delivered(&mut self) -> io::Result<u64> {
        poll_fn(|cx| {
            let delivered = match self.channel.poll_flush(cx) {
                Poll::Ready(Ok(())) => self.channel.poll_delivered(cx),
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                Poll::Pending => Poll::Pending,
            };
            self.or_deadline(delivered, cx)
        })
        .await
    }

    /// Ends the own direction and leaves the other open: the peer reads to the end and may go on writing.
    ///
    /// ```no_run
    /// # async fn example(mut stream: pilot::Stream) -> std::io::Result<()> {
    /// use pilot::StreamError;
    ///
    /// match stream.close_write().await {
    ///     Err(error) if StreamError::of(&error).is_some_and(|why| why.code() == "no_half_close") => {
    ///         println!("the peer needs another way to see the end");
    ///     }
    ///     other => other?,
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Unsupported` with [`StreamError::HalfCloseUnsupported`] when the peer, or the own daemon, cannot do that; the
    /// stream is then as it was, open in both directions. (`shutdown` never fails for this: it ends both.)
    pub async fn close_write(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_close_write(cx)).await
    }

    /// [`close_write`](Self::close_write) for those who poll.
    ///
    /// ```no_run
    /// # async fn example(mut stream: pilot::Stream) -> std::io::Result<()> {
    /// std::future::poll_fn(|cx| stream.poll_close_write(cx)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// The same.
    pub fn poll_close_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = self.channel.poll_close_write(cx);
        self.or_deadline(done, cx)
    }

    /// Hands over what was written, closes the stream in both directions and waits (at most 5 s) until the node has
    /// confirmed. What the peer still sends is discarded.
    ///
    /// ```no_run
    /// # async fn example(mut stream: pilot::Stream) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::AsyncWriteExt;
    ///
    /// stream.write_all(b"that is all").await?;
    /// stream.close().await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `BrokenPipe` or `ConnectionAborted` when the daemon is gone before it has confirmed: what was not delivered by then
    /// is lost. `TimedOut` when it does not confirm: the node goes on delivering for up to 15 s, and how that ends is not
    /// known here.
    pub async fn close(mut self) -> io::Result<()> {
        let confirmed = poll_fn(|cx| self.channel.poll_close(cx));
        let confirmed = tokio::time::timeout(CLOSE_WAIT, confirmed).await;
        confirmed.unwrap_or_else(|_| Err(StreamError::CloseTimeout.io()))
    }

    /// Ends the stream in both directions at once: the peer's reads and writes fail with [`CloseReason::Reset`], so that
    /// what was written so far is not taken for the whole. What the peer has not got yet may be lost. Does not wait.
    ///
    /// Nodes that cannot be told (old and official ones, and embedded ones) close the stream instead, as dropping it does.
    ///
    /// ```no_run
    /// # async fn example(mut stream: pilot::Stream, source: &mut (impl tokio::io::AsyncRead + Unpin)) {
    /// if tokio::io::copy(source, &mut stream).await.is_err() {
    ///     stream.reset(); // half a file is no file
    /// }
    /// # }
    /// ```
    pub fn reset(mut self) {
        self.channel.reset();
    }

    /// As `result`, unless it is not there yet and the write deadline has passed.
    fn or_deadline<T>(&mut self, result: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if result.is_pending() && self.write_timer.poll_expired(cx).is_ready() {
            return Poll::Ready(Err(StreamError::Deadline.io()));
        }
        result
    }

    fn unread(&self) -> &[u8] {
        // `read` only grows by what was handed out of `front`.
        self.front.get(self.read..).unwrap_or_default()
    }

    /// Makes `front` hold unread bytes, unless the stream has ended.
    fn poll_front(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.read < self.front.len() {
            return Poll::Ready(Ok(()));
        }
        self.front.clear();
        self.read = 0;
        self.channel.poll_fill(cx, &mut self.front)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        while out.remaining() > 0 {
            match self.poll_front(cx) {
                Poll::Ready(Ok(())) if self.unread().is_empty() => break,
                Poll::Ready(Ok(())) => {
                    let unread = self.unread();
                    let n = unread.len().min(out.remaining());
                    out.put_slice(&unread[..n]);
                    self.read += n;
                }
                // What was found is handed out first; the end or the wait comes with the next call.
                _ if out.filled().len() > before => break,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    ready!(self.read_timer.poll_expired(cx));
                    return Poll::Ready(Err(StreamError::Deadline.io()));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for Stream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        match this.poll_front(cx) {
            Poll::Ready(result) => result?,
            Poll::Pending => {
                ready!(this.read_timer.poll_expired(cx));
                return Poll::Ready(Err(StreamError::Deadline.io()));
            }
        }
        Poll::Ready(Ok(this.unread()))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.read = (self.read + amount).min(self.front.len());
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let written = self.channel.poll_write(cx, data);
        self.or_deadline(written, cx)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = self.channel.poll_flush(cx);
        self.or_deadline(flushed, cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let shut = self.channel.poll_shutdown(cx);
        self.or_deadline(shut, cx)
    }
}
