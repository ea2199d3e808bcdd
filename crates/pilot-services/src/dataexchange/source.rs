//! What is sent, wherever it is: in memory, in a file, packed from a directory.

use std::io;
use std::sync::Arc;

use bytes::Bytes;

/// Bytes that can be read at any offset. Reading blocks for as long as the disk takes.
pub trait Source: Send + Sync + 'static {
    /// How many there are.
    fn len(&self) -> u64;
    /// True when there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Reads at an offset until `buf` is full or the end; returns the bytes read.
    ///
    /// # Errors
    /// The file system's.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
}

impl Source for Bytes {
    fn len(&self) -> u64 {
        self.as_ref().len() as u64
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.get(start..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        let (to, from) = (buf.get_mut(..n).unwrap_or_default(), rest.get(..n).unwrap_or_default());
        to.copy_from_slice(from);
        Ok(n)
    }
}

/// An open file, as long as it was when it was opened.
pub(super) struct OpenFile {
    pub(super) file: Box<dyn pilot_env::RawFile>,
    pub(super) len: u64,
}

impl Source for OpenFile {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX).min(buf.len());
        self.file.read_at(offset, buf.get_mut(..most).unwrap_or_default())
    }
}

/// Reads exactly the bytes of a range, in the background.
///
/// # Errors
/// `UnexpectedEof` when the source has become shorter; the file system's.
pub(super) async fn read(source: &Arc<dyn Source>, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let source = source.clone();
    let reading = move || {
        let mut buf = vec![0; len];
        let n = source.read_at(offset, &mut buf)?;
        if n == len {
            Ok(buf)
        } else {
            Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it became shorter while it was sent"))
        }
    };
    super::server::blocking(reading).await?
}
