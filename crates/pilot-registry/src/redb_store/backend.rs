//! redb over a file of the environment, so that a simulated disk can forget and tear it; and over a file that is only
//! looked at.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use pilot_env::RawFile;

/// Reads until `out` is full.
fn read_exact(file: &dyn RawFile, offset: u64, out: &mut [u8]) -> io::Result<()> {
    let mut done = 0;
    while done < out.len() {
        match file.read_at(offset + done as u64, &mut out[done..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => done += n,
        }
    }
    Ok(())
}

pub(super) struct FileBackend(pub(super) Arc<dyn RawFile>);

impl fmt::Debug for FileBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileBackend")
    }
}

impl redb::StorageBackend for FileBackend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_exact(&*self.0, offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(offset, data)
    }
}

/// Bytes of one piece that [`Overlay`] keeps.
const PIECE: u64 = 4096;

/// A file that is never written: changes stay in memory. A store is checked through it, because the engine writes while
/// it opens (it marks the file as in use, and repairs it after a crash).
pub(super) struct Overlay {
    file: Arc<dyn RawFile>,
    state: Mutex<Changes>,
}

struct Changes {
    len: u64,
    /// How much of the file still shows through: a file once cut does not get its old bytes back.
    shown: u64,
    pieces: BTreeMap<u64, Box<[u8; PIECE as usize]>>,
}

impl Overlay {
    pub(super) fn new(file: Arc<dyn RawFile>) -> io::Result<Self> {
        let len = file.len()?;
        Ok(Self { file, state: Mutex::new(Changes { len, shown: len, pieces: BTreeMap::new() }) })
    }

    /// What the file holds of the piece at `index`, zeros beyond its end.
    fn piece(&self, state: &Changes, index: u64) -> io::Result<Box<[u8; PIECE as usize]>> {
        let mut piece = Box::new([0; PIECE as usize]);
        let start = index * PIECE;
        // At most a piece, so the cast keeps the value.
        let n = state.shown.saturating_sub(start).min(PIECE) as usize;
        read_exact(&*self.file, start, &mut piece[..n])?;
        Ok(piece)
    }

    /// Calls `f` with each piece that a range touches: its index, the range inside it, and the range of the request.
    fn split(
        offset: u64,
        len: usize,
        mut f: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + done as u64;
            let inside = (at % PIECE) as usize;
            let n = (PIECE as usize - inside).min(len - done);
            f(at / PIECE, inside..inside + n, done..done + n)?;
            done += n;
        }
        Ok(())
    }
}

impl fmt::Debug for Overlay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Overlay")
    }
}

impl redb::StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().len)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > state.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Self::split(offset, out.len(), |index, inside, wanted| {
            match state.pieces.get(&index) {
                Some(piece) => out[wanted].copy_from_slice(&piece[inside]),
                None => out[wanted].copy_from_slice(&self.piece(&state, index)?[inside]),
            }
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if len < state.len {
            let cut = len % PIECE;
            if cut != 0 {
                let index = len / PIECE;
                let mut piece = match state.pieces.remove(&index) {
                    Some(piece) => piece,
                    None => self.piece(&state, index)?,
                };
                piece[cut as usize..].fill(0);
                state.pieces.insert(index, piece);
            }
            state.pieces.retain(|index, _| index * PIECE < len);
            state.shown = state.shown.min(len);
        }
        state.len = len;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock();
        state.len = state.len.max(offset + data.len() as u64);
        Self::split(offset, data.len(), |index, inside, given| {
            let mut piece = match state.pieces.remove(&index) {
                Some(piece) => piece,
                None => self.piece(&state, index)?,
            };
            piece[inside].copy_from_slice(&data[given]);
            state.pieces.insert(index, piece);
            Ok(())
        })
    }
}
