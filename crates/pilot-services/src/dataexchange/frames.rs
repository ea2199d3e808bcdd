//! Frames over a stream: with a limit on time, on length, and on the memory that all streams together may hold.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use pilot_wire::service::dataexchange::{HEADER_LEN, Header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// Longest pause between two frames (07 §11.2). A stream that stays silent longer is closed.
pub(super) const IDLE: Duration = Duration::from_secs(120);
/// Time a frame may take, however short it is (05 §15.22).
const FRAME_TIME: Duration = Duration::from_secs(60);
/// Slowest pace of a long frame, bytes per second.
const SLOWEST: u64 = 16 * 1024;
/// Bytes taken from the stream at once.
const PIECE: usize = 64 * 1024;
/// Bytes of one permit of the budget.
const UNIT: usize = 4096;
/// Memory for frames that are arriving, over all streams: 128 MiB.
const BUDGET: usize = 128 << 20;

/// Memory that all streams share.
#[derive(Clone)]
pub(super) struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET / UNIT)))
    }
}

/// Why a body was not read.
pub(super) enum BodyError {
    /// All memory is taken. The rest of the body has not been read.
    Busy,
    /// The stream failed, or was too slow.
    Io(io::Error),
}

impl From<io::Error> for BodyError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// A body in memory, and the share of the budget it holds.
pub(super) struct Body {
    bytes: Vec<u8>,
    _permits: Vec<OwnedSemaphorePermit>,
}

impl std::ops::Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

fn slow() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the peer stopped in the middle of a frame")
}

/// How long a body of this length may take.
pub(super) fn time_for(len: u64) -> Duration {
    FRAME_TIME + Duration::from_secs(len / SLOWEST)
}

/// Reads type and length; `None` at the end of the stream. Waits at most `limit` for the first byte.
pub(super) async fn header(stream: &mut (impl AsyncRead + Unpin), limit: Duration) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_LEN];
    let first = timeout(limit, stream.read(&mut bytes)).await;
    let n = match first.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no frame came")))? {
        0 => return Ok(None),
        n => n,
    };
    let rest = bytes.get_mut(n..).unwrap_or_default();
    timeout(FRAME_TIME, stream.read_exact(rest)).await.map_err(|_| slow())??;
    Ok(Some(Header::parse(bytes)))
}

/// Reads a body piece by piece: memory is taken as bytes arrive, not as the header promises.
pub(super) async fn body(stream: &mut (impl AsyncRead + Unpin), len: u32, budget: &Budget) -> Result<Body, BodyError> {
    let mut body = Body { bytes: Vec::new(), _permits: Vec::new() };
    let reading = async {
        let mut left = len as usize;
        while left > 0 {
            let n = left.min(PIECE);
            // A piece has at most 16 units.
            let units = n.div_ceil(UNIT) as u32;
            let permit = budget.0.clone().try_acquire_many_owned(units).map_err(|_| BodyError::Busy)?;
            body._permits.push(permit);
            let start = body.bytes.len();
            body.bytes.resize(start + n, 0);
            stream.read_exact(body.bytes.get_mut(start..).unwrap_or_default()).await?;
            left -= n;
        }
        Ok::<_, BodyError>(())
    };
    timeout(time_for(u64::from(len)), reading).await.map_err(|_| BodyError::Io(slow()))??;
    Ok(body)
}

/// Reads and forgets a body.
pub(super) async fn skip(stream: &mut (impl AsyncRead + Unpin), len: u64) -> io::Result<()> {
    let mut rest = stream.take(len);
    let copied = timeout(time_for(len), tokio::io::copy(&mut rest, &mut tokio::io::sink())).await;
    if copied.map_err(|_| slow())?? == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

/// Writes bytes, which the peer must take within the time of a frame.
pub(super) async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    let writing = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    let refused = || io::Error::new(io::ErrorKind::TimedOut, "the peer does not take what is sent");
    timeout(time_for(bytes.len() as u64), writing).await.map_err(|_| refused())?
}
