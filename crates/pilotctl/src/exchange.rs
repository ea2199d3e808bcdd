//! One message to a peer and its answer.

use std::io;
use std::time::Duration;

use pilot::Stream;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use crate::go::Span;

/// Longest answer that is kept, in bytes.
pub(crate) const MAX_ANSWER: usize = 64 << 20;
/// An answer is over when nothing more came for three times as long as its first byte took, within these bounds.
const QUIET_LEAST: Duration = Duration::from_millis(50);
const QUIET_MOST: Duration = Duration::from_millis(500);
/// Shortest time a peer has to take the next part of a message.
const WRITE_LEAST: Duration = Duration::from_secs(1);
/// Bytes given to the stream at once.
const CHUNK: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The message could not be written.
    Write(io::Error),
    /// The answer could not be read.
    Read(io::Error),
    /// Nothing came in time.
    Timeout,
}

/// Writes a message and reads the answer until its end, or until nothing more comes: an echo never ends.
///
/// Writing and reading go on at the same time, so that a peer that answers while it reads stalls neither side. The
/// limit covers the wait for the first byte of the answer, and each pause while the peer does not take the message.
///
/// # Errors
/// [`Failure`] says which half failed.
pub(crate) async fn exchange(stream: &mut Stream, message: &[u8], limit: Span) -> Result<Vec<u8>, Failure> {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut rest = message;
    let mut answer = Vec::new();
    let mut started = Instant::now();
    let mut quiet = None;
    let mut last = started;
    loop {
        let deadline = match quiet {
            _ if !rest.is_empty() => last + limit.wait().max(WRITE_LEAST),
            Some(quiet) => last + quiet,
            None => started + limit.wait(),
        };
        // A limit of zero or less has expired before anything can come; a timer would take a turn to notice.
        if rest.is_empty() && quiet.is_none() && Instant::now() >= deadline {
            return Err(Failure::Timeout);
        }
        tokio::select! {
            biased;
            written = to.write(&rest[..rest.len().min(CHUNK)]), if !rest.is_empty() => {
                rest = &rest[written.map_err(Failure::Write)?..];
                // The clock of the answer runs from the last byte of the question.
                started = Instant::now();
                last = started;
            }
            () = sleep_until(deadline) => {
                return if answer.is_empty() || !rest.is_empty() { Err(Failure::Timeout) } else { Ok(answer) };
            }
            read = from.read_buf(&mut answer) => {
                if read.map_err(Failure::Read)? == 0 || answer.len() >= MAX_ANSWER {
                    return Ok(answer);
                }
                last = Instant::now();
                quiet.get_or_insert_with(|| ((last - started) * 3).clamp(QUIET_LEAST, QUIET_MOST));
            }
        }
    }
}

/// Reads one message of at most `most` bytes: until its end, or until nothing more comes.
///
/// # Errors
/// Those of reading; `UnexpectedEof` when the peer closes without a byte.
pub(crate) async fn message(stream: &mut Stream, most: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    loop {
        let read = if data.is_empty() {
            stream.read_buf(&mut data).await?
        } else {
            match tokio::time::timeout(QUIET_LEAST, stream.read_buf(&mut data)).await {
                Ok(read) => read?,
                Err(_) => return Ok(data),
            }
        };
        match read {
            0 if data.is_empty() => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "EOF")),
            0 => return Ok(data),
            _ if data.len() >= most => {
                data.truncate(most);
                return Ok(data);
            }
            _ => {}
        }
    }
}
