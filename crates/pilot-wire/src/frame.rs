//! Length-prefixed frames, used by the local socket (03 §1) and by the registry (04 §3): a big-endian `u32` and that
//! many bytes.

/// Largest body of a local-socket or registry frame, inclusive (03 §1, 04 §3).
pub const MAX_FRAME: usize = 1 << 20;
/// Bytes of the length prefix.
pub const PREFIX_LEN: usize = 4;
/// Consumed bytes that may stay at the front of the buffer before the rest is moved down.
const COMPACT_AT: usize = 64 * 1024;

/// Why a stream of bytes is not a stream of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The prefix, or the body to send, exceeds the limit. Nothing behind it can be read: close the connection.
    #[error("frame of {len} bytes exceeds the limit of {limit}")]
    TooLarge {
        /// Announced or given length.
        len: usize,
        /// The limit in force.
        limit: usize,
    },
}

impl FrameError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "frame_too_large",
        }
    }
}

/// Appends prefix and body.
///
/// # Errors
/// [`FrameError::TooLarge`] above [`MAX_FRAME`]; nothing is appended then.
pub fn emit(body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
    emit_with(out, |out| out.extend_from_slice(body))
}

/// Appends a frame whose body `write` appends, so that the body needs no buffer of its own.
///
/// # Errors
/// [`FrameError::TooLarge`] above [`MAX_FRAME`]; `out` is then as it was.
pub fn emit_with(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; PREFIX_LEN]);
    write(out);
    let len = out.len().saturating_sub(start + PREFIX_LEN);
    if len > MAX_FRAME {
        out.truncate(start);
        return Err(FrameError::TooLarge { len, limit: MAX_FRAME });
    }
    // `len` is at most 2^20, so the cast keeps the value.
    out[start..start + PREFIX_LEN].copy_from_slice(&(len as u32).to_be_bytes());
    Ok(())
}

/// Cuts received bytes into frames. Memory grows with the bytes received, never with the announced length.
///
/// Append received bytes to [`FrameDecoder::buffer`] (or call [`FrameDecoder::push`]), then call
/// [`FrameDecoder::next_frame`] until it returns `None`.
#[derive(Debug)]
pub struct FrameDecoder {
    buf: Vec<u8>,
    /// Bytes at the front that belong to frames already handed out.
    start: usize,
    limit: usize,
}

impl Default for FrameDecoder {
    fn default() -> Self {
        Self::new(MAX_FRAME)
    }
}

impl FrameDecoder {
    /// A decoder that refuses bodies above `limit` bytes (default [`MAX_FRAME`]).
    pub fn new(limit: usize) -> Self {
        Self { buf: Vec::new(), start: 0, limit }
    }

    /// The buffer to append received bytes to. Never remove or change what is in it.
    pub fn buffer(&mut self) -> &mut Vec<u8> {
        if self.start == self.buf.len() {
            self.buf.clear();
            self.start = 0;
        } else if self.start >= COMPACT_AT {
            self.buf.drain(..self.start);
            self.start = 0;
        }
        &mut self.buf
    }

    /// Appends received bytes.
    pub fn push(&mut self, received: &[u8]) {
        self.buffer().extend_from_slice(received);
    }

    /// Bytes received and not yet handed out.
    pub fn pending(&self) -> &[u8] {
        // `start` never exceeds the length: it only moves over complete frames.
        &self.buf[self.start..]
    }

    /// The body of the next complete frame, possibly empty.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`], decided on the prefix alone and repeated by every later call.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let rest = &self.buf[self.start..];
        let Some(prefix) = rest.first_chunk::<PREFIX_LEN>() else {
            return Ok(None);
        };
        let len = u32::from_be_bytes(*prefix) as usize;
        if len > self.limit {
            return Err(FrameError::TooLarge { len, limit: self.limit });
        }
        if rest.len() < PREFIX_LEN + len {
            return Ok(None);
        }
        let at = self.start + PREFIX_LEN;
        self.start = at + len;
        Ok(Some(&self.buf[at..at + len]))
    }
}
