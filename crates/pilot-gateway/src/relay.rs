//! Bytes between a TCP connection and a stream, both ways, each side as fast as the other takes them.
//!
//! The end of one direction is passed on alone, so that a program may close its direction and read the answer. Where the
//! peer cannot do that, its stream is left open for what it still sends, for a limited time. What ends otherwise than in
//! order reaches the TCP program as a reset, never as an orderly end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pilot::{Stream, StreamError};
use pilot_env::{Env, NetStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

/// Bytes taken at once, in each direction.
const CHUNK: usize = 64 * 1024;
/// Longest silence of the client once the peer has ended.
const HALF_CLOSED_LIMIT: Duration = Duration::from_secs(60);
/// Longest silence of a peer that cannot be told that the client has ended.
const UNTOLD_LIMIT: Duration = Duration::from_secs(300);

/// When bytes last passed, and how long none may pass.
pub(crate) struct Activity {
    env: Env,
    state: Mutex<(Instant, Duration)>,
}

impl Activity {
    pub(crate) fn new(env: Env, limit: Duration) -> Arc<Self> {
        let state = Mutex::new((env.now(), limit));
        Arc::new(Self { env, state })
    }

    fn touch(&self) {
        self.state.lock().0 = self.env.now();
    }

    /// From now on a shorter silence is enough.
    fn hurry(&self, limit: Duration) {
        let mut state = self.state.lock();
        state.0 = self.env.now();
        state.1 = state.1.min(limit);
    }

    /// Waits until nothing has passed for too long.
    pub(crate) async fn idle(&self) {
        loop {
            let (last, limit) = *self.state.lock();
            let now = self.env.now();
            let until = last + limit;
            if now >= until {
                return;
            }
            // The limit may shrink meanwhile; half a minute late is early enough.
            self.env.sleep((until - now).min(HALF_CLOSED_LIMIT / 2)).await;
        }
    }
}

/// Whether a client still waits for something. If so, a connection that is dropped, for whatever reason, ends with a reset:
/// an orderly end would say that this was all.
#[derive(Default)]
pub(crate) struct Debt(AtomicU8);

impl Debt {
    const NONE: u8 = 0;
    /// Something is missing.
    const OWED: u8 = 1;
    /// Everything was handed over and may still be in a buffer above the connection.
    const SAID: u8 = 2;

    /// From now on the client waits for something.
    pub(crate) fn owe(&self) {
        self.0.store(Self::OWED, Ordering::Relaxed);
    }

    /// It was handed over; the next flush has carried it out.
    pub(crate) fn said(&self) {
        self.0.store(Self::SAID, Ordering::Relaxed);
    }

    fn flushed(&self) {
        let _ = self.0.compare_exchange(Self::SAID, Self::NONE, Ordering::Relaxed, Ordering::Relaxed);
    }

    fn settle(&self) {
        self.0.store(Self::NONE, Ordering::Relaxed);
    }

    fn is_open(&self) -> bool {
        self.0.load(Ordering::Relaxed) != Self::NONE
    }
}

/// The TCP side. Whatever passes is activity.
pub(crate) struct Client {
    stream: NetStream,
    activity: Arc<Activity>,
    debt: Arc<Debt>,
}

impl Client {
    /// A client that waits for nothing yet.
    pub(crate) fn new(stream: NetStream, activity: Arc<Activity>) -> Self {
        Self { stream, activity, debt: Arc::default() }
    }

    pub(crate) fn activity(&self) -> &Arc<Activity> {
        &self.activity
    }

    pub(crate) fn debt(&self) -> &Arc<Debt> {
        &self.debt
    }

    /// Our end's address.
    pub(crate) fn local_addr(&self) -> SocketAddr {
        self.stream.local_addr()
    }

    /// Ends it with a reset.
    pub(crate) fn reset(self) {
        self.debt.owe();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.debt.is_open() {
            self.stream.reset_on_drop();
        }
    }
}

impl AsyncRead for Client {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(cx, buf);
        if buf.filled().len() > before {
            self.activity.touch();
        }
        result
    }
}

impl AsyncWrite for Client {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, buf);
        if result.is_ready() {
            self.activity.touch();
        }
        result
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if result.is_ready() {
            self.activity.touch();
        }
        result
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_flush(cx);
        if let Poll::Ready(Ok(())) = result {
            self.debt.flushed();
        }
        result
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.stream).poll_shutdown(cx);
        if let Poll::Ready(Ok(())) = result {
            self.debt.settle();
        }
        result
    }
}

/// The stream, whose shutdown ends the own direction alone, or nothing where the peer cannot do that. Dropped before
/// [`Peer::close`] it ends with a reset, so that the agent does not take for whole what the client has not ended.
struct Peer {
    /// There until it is closed.
    stream: Option<Stream>,
    /// Whether the peer knows that the client has ended.
    untold: Arc<AtomicBool>,
}

impl Peer {
    fn stream(&mut self) -> io::Result<Pin<&mut Stream>> {
        self.stream.as_mut().map(Pin::new).ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Ends it in order.
    fn close(mut self) {
        drop(self.stream.take());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(stream) = self.stream.take() {
            stream.reset();
        }
    }
}

impl AsyncRead for Peer {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_read(cx, buf)
    }
}

impl AsyncWrite for Peer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.stream()?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let error = match self.stream()?.poll_close_write(cx) {
            Poll::Ready(Err(error)) => error,
            other => return other,
        };
        match StreamError::of(&error) {
            Some(StreamError::HalfCloseUnsupported(_)) => {
                self.untold.store(true, Ordering::Relaxed);
                Poll::Ready(Ok(()))
            }
            Some(StreamError::Closed) => Poll::Ready(Ok(())),
            _ => Poll::Ready(Err(error)),
        }
    }
}

/// Carries bytes until both directions have ended. `early` is what was read of the client already.
///
/// # Errors
/// Why it ended otherwise than in order; both ends have been reset then. So they are when this is given up half way.
pub(crate) async fn relay(client: Client, early: &[u8], peer: Stream) -> io::Result<()> {
    let activity = Arc::clone(client.activity());
    client.debt().owe();
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let untold = Arc::new(AtomicBool::new(false));
    let (mut from_peer, mut to_peer) = tokio::io::split(Peer { stream: Some(peer), untold: Arc::clone(&untold) });
    // Set once the peer's direction has ended in order: what the client still sends has nowhere to go then.
    let answered = AtomicBool::new(false);
    let up = async {
        let sent = async {
            to_peer.write_all(early).await?;
            pump(&mut from_client, &mut to_peer).await
        };
        let ended = match sent.await {
            Ok(()) => Ok(()),
            Err(Broken::Source(error)) => return Err(error),
            // The peer takes no more. Its own direction tells whether that is in order: until it has, and so that the
            // end of an answer is not lost to a reset, what comes from the client is dropped.
            Err(Broken::Sink(error)) => match drop_all(&mut from_client).await {
                Err(error) => Err(error),
                Ok(()) if answered.load(Ordering::Relaxed) => Ok(()),
                Ok(()) => Err(error),
            },
        };
        if untold.load(Ordering::Relaxed) {
            activity.hurry(UNTOLD_LIMIT);
        }
        ended
    };
    let down = async {
        match pump(&mut from_peer, &mut to_client).await {
            Ok(()) => {}
            Err(Broken::Source(error) | Broken::Sink(error)) => return Err(error),
        }
        answered.store(true, Ordering::Relaxed);
        activity.hurry(HALF_CLOSED_LIMIT);
        Ok(())
    };
    let outcome = tokio::select! {
        both = async { tokio::try_join!(up, down) } => both.map(drop),
        () = activity.idle() => match answered.load(Ordering::Relaxed) {
            // The peer has said everything, and the client had time to read it.
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "nothing passed for too long")),
        },
    };
    match &outcome {
        Ok(()) => from_peer.unsplit(to_peer).close(),
        Err(_) => from_client.unsplit(to_client).reset(),
    }
    outcome
}

/// Which side failed.
enum Broken {
    Source(io::Error),
    Sink(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Sink(error)
    }
}

/// Carries one direction to its end, and the end.
async fn pump(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Broken> {
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = from.read(&mut chunk).await.map_err(Broken::Source)?;
        if n == 0 {
            to.shutdown().await?;
            return Ok(());
        }
        to.write_all(chunk.get(..n).unwrap_or_default()).await?;
        to.flush().await?;
    }
}

async fn drop_all(from: &mut (impl AsyncRead + Unpin)) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    while from.read(&mut chunk).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn silence_is_measured_from_the_last_byte_and_a_shorter_limit_counts_at_once() {
        let env = Env::simulated(1);
        let activity = Activity::new(env.clone(), Duration::from_secs(3600));
        let began = env.now();
        env.sleep(Duration::from_secs(3000)).await;
        activity.touch();
        activity.idle().await;
        assert_eq!((env.now() - began).as_secs(), 6600);
        activity.hurry(HALF_CLOSED_LIMIT);
        let began = env.now();
        activity.idle().await;
        assert_eq!((env.now() - began).as_secs(), 60);
    }
}
