//! The bytes that clients exchange: a pattern that every reader can check, and the little protocol of the clients'
//! own services.

use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use pilot::Stream;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes checked or written at once.
const CHUNK: usize = 16 * 1024;
/// First byte of a request to a client's service.
const MAGIC: u8 = 0xC7;
/// Length of a request.
const REQUEST_LEN: usize = 22;

/// Bytes other than the ones sent: no disturbance excuses them.
#[derive(Debug, thiserror::Error)]
#[error("{got:#04x} instead of {want:#04x} at byte {at} of stream pattern {seed:#x}")]
pub(super) struct Wrong {
    seed: u64,
    at: u64,
    got: u8,
    want: u8,
}

/// The byte at `at` of the pattern `seed`.
fn word(seed: u64, index: u64) -> [u8; 8] {
    let mut z = seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (z ^ (z >> 31)).to_le_bytes()
}

/// Fills `out` with the pattern from `at` on.
pub(super) fn fill(seed: u64, at: u64, out: &mut [u8]) {
    let mut current = (u64::MAX, [0; 8]);
    for (position, byte) in (at..).zip(out) {
        if current.0 != position / 8 {
            current = (position / 8, word(seed, position / 8));
        }
        *byte = current.1[(position % 8) as usize];
    }
}

/// Compares `data` with the pattern from `at` on.
pub(super) fn check(seed: u64, at: u64, data: &[u8]) -> Result<(), Wrong> {
    let mut want = vec![0; data.len()];
    fill(seed, at, &mut want);
    match data.iter().zip(&want).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(i) => Err(Wrong { seed, at: at + i as u64, got: data[i], want: want[i] }),
    }
}

/// Writes `len` bytes of the pattern from `at` on, counting in `sent`.
pub(super) async fn write(
    to: &mut (impl AsyncWrite + Unpin),
    seed: u64,
    at: u64,
    len: u64,
    sent: &mut u64,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < len {
        let n = usize::try_from((len - done).min(CHUNK as u64))?;
        fill(seed, at + done, &mut buffer[..n]);
        to.write_all(&buffer[..n]).await.with_context(|| format!("write at byte {done} of {len}"))?;
        done += n as u64;
        *sent += n as u64;
    }
    to.flush().await.context("flush")
}

/// Reads `len` bytes and compares them, counting in `received`.
pub(super) async fn read(
    from: &mut (impl AsyncRead + Unpin),
    seed: u64,
    at: u64,
    len: u64,
    received: &mut u64,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut done = 0;
    while done < len {
        let n = usize::try_from((len - done).min(CHUNK as u64))?;
        let n = from.read(&mut buffer[..n]).await.with_context(|| format!("read at byte {done} of {len}"))?;
        ensure!(n > 0, "the stream ended after {done} of {len} bytes");
        check(seed, at + done, &buffer[..n])?;
        done += n as u64;
        *received += n as u64;
    }
    Ok(())
}

/// Reads what is left, compares it and expects the end.
pub(super) async fn read_end(
    from: &mut (impl AsyncRead + Unpin),
    seed: u64,
    mut at: u64,
    received: &mut u64,
) -> Result<u64> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = from.read(&mut buffer).await.context("read to the end")?;
        if n == 0 {
            return Ok(at);
        }
        check(seed, at, &buffer[..n])?;
        at += n as u64;
        *received += n as u64;
    }
}

/// Sends through an echo and back, both directions at once.
pub(super) async fn round_trip(
    stream: &mut Stream,
    seed: u64,
    at: u64,
    len: u64,
    sent: &mut u64,
    received: &mut u64,
) -> Result<()> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    tokio::try_join!(write(&mut writer, seed, at, len, sent), read(&mut reader, seed, at, len, received)).map(|_| ())
}

/// What a client's service is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// Send everything back until the stream ends.
    Echo = 1,
    /// Send `len` bytes and close.
    Push = 2,
    /// Read `len` bytes, answer with one byte, wait for the end.
    Pull = 3,
    /// The same, beginning to read late.
    Slow = 4,
    /// Read `len` bytes, answer with one byte and close first.
    PullClose = 5,
    /// Go away at once, with data unread.
    Vanish = 6,
}

/// A request to a client's service.
#[derive(Clone, Copy, Debug)]
pub(super) struct Request {
    /// What to do.
    pub(super) mode: Mode,
    /// Pattern.
    pub(super) seed: u64,
    /// Bytes.
    pub(super) len: u64,
    /// Pause of [`Mode::Slow`], milliseconds.
    pub(super) pause: u32,
}

impl Request {
    /// As bytes.
    pub(super) fn bytes(&self) -> [u8; REQUEST_LEN] {
        let mut out = [0; REQUEST_LEN];
        out[0] = MAGIC;
        out[1] = self.mode as u8;
        out[2..10].copy_from_slice(&self.seed.to_le_bytes());
        out[10..18].copy_from_slice(&self.len.to_le_bytes());
        out[18..].copy_from_slice(&self.pause.to_le_bytes());
        out
    }

    fn parse(bytes: &[u8; REQUEST_LEN]) -> Result<Self> {
        let mode = match (bytes[0], bytes[1]) {
            (MAGIC, 1) => Mode::Echo,
            (MAGIC, 2) => Mode::Push,
            (MAGIC, 3) => Mode::Pull,
            (MAGIC, 4) => Mode::Slow,
            (MAGIC, 5) => Mode::PullClose,
            (MAGIC, 6) => Mode::Vanish,
            (a, b) => bail!(anyhow!(Wrong { seed: 0, at: 0, got: a, want: MAGIC }).context(format!("mode {b}"))),
        };
        Ok(Self {
            mode,
            seed: u64::from_le_bytes(bytes[2..10].try_into()?),
            len: u64::from_le_bytes(bytes[10..18].try_into()?),
            pause: u32::from_le_bytes(bytes[18..].try_into()?),
        })
    }
}

/// The other side: serves one stream. An error that is no [`Wrong`] says only that the dialler went away.
pub(super) async fn serve(stream: &mut Stream) -> Result<()> {
    let mut request = [0; REQUEST_LEN];
    stream.read_exact(&mut request).await?;
    let request = Request::parse(&request)?;
    let mut count = 0;
    match request.mode {
        Mode::Echo => {
            let mut buffer = vec![0; CHUNK];
            let mut at = 0;
            loop {
                let n = stream.read(&mut buffer).await?;
                if n == 0 {
                    stream.shutdown().await?;
                    return Ok(());
                }
                check(request.seed, at, &buffer[..n])?;
                at += n as u64;
                stream.write_all(&buffer[..n]).await?;
            }
        }
        Mode::Push => {
            write(stream, request.seed, 0, request.len, &mut count).await?;
            stream.shutdown().await?;
        }
        Mode::Pull | Mode::Slow | Mode::PullClose => {
            if request.mode == Mode::Slow {
                tokio::time::sleep(Duration::from_millis(request.pause.into())).await;
            }
            read(stream, request.seed, 0, request.len, &mut count).await?;
            stream.write_all(&[MAGIC]).await?;
            if request.mode != Mode::PullClose {
                ensure!(stream.read(&mut [0]).await? == 0, "more than was announced");
            }
            stream.shutdown().await?;
        }
        Mode::Vanish => {}
    }
    Ok(())
}

/// The dialler's side of [`Mode::Pull`] and its kin, after the request: sends, and waits for the confirmation.
pub(super) async fn deliver(stream: &mut Stream, request: &Request, sent: &mut u64) -> Result<()> {
    write(stream, request.seed, 0, request.len, sent).await?;
    let mut confirmation = [0];
    stream.read_exact(&mut confirmation).await.context("confirmation")?;
    ensure!(confirmation == [MAGIC], Wrong { seed: request.seed, at: 0, got: confirmation[0], want: MAGIC });
    Ok(())
}

/// A datagram that can be checked.
pub(super) fn datagram(seed: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; 8 + len];
    data[..8].copy_from_slice(&seed.to_le_bytes());
    fill(seed, 0, &mut data[8..]);
    data
}

/// Checks a datagram.
pub(super) fn check_datagram(data: &[u8]) -> Result<()> {
    let (seed, pattern) = data.split_first_chunk::<8>().context("a datagram shorter than its seed")?;
    Ok(check(u64::from_le_bytes(*seed), 0, pattern)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_changed_byte_is_found_wherever_it_is() {
        let mut data = vec![0; 100];
        fill(7, 13, &mut data);
        assert!(check(7, 13, &data).is_ok());
        assert!(check(7, 14, &data).is_err());
        for i in 0..data.len() {
            data[i] ^= 1;
            assert_eq!(check(7, 13, &data).expect_err("changed").at, 13 + i as u64);
            data[i] ^= 1;
        }
    }

    #[test]
    fn requests_survive_the_way() {
        for mode in [Mode::Echo, Mode::Push, Mode::Pull, Mode::Slow, Mode::PullClose, Mode::Vanish] {
            let request = Request { mode, seed: u64::MAX - 5, len: 1 << 40, pause: 77 };
            let back = Request::parse(&request.bytes()).expect("parse");
            assert_eq!((back.mode, back.seed, back.len, back.pause), (mode, u64::MAX - 5, 1 << 40, 77));
        }
        assert!(Request::parse(&[0; REQUEST_LEN]).is_err());
    }
}
