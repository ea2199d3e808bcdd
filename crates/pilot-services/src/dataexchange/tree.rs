//! Directories in one run of bytes (docs/spec/messages.md §7): packing without a copy, unpacking without trust.
//!
//! Only directories and plain files travel; links are neither followed nor made. Every path is checked part by part before
//! anything is created, in a fresh directory that gets its name only when everything is in it and synced.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot_env::{Fs, RawFile};
use pilot_wire::service::dataexchange::Malformed;
use pilot_wire::service::dataexchange::tree::{self as format, HEAD_LEN, Head, MAGIC, MAX_ENTRIES};

use super::source::Source;

/// Bytes copied at once.
const PIECE: usize = 256 * 1024;

/// A directory or file below the directory to be sent. A directory comes before what is in it.
#[derive(Clone)]
pub enum Node {
    /// A directory.
    Dir {
        /// Its path below the directory, parts joined by `/`.
        path: String,
    },
    /// A file.
    File {
        /// Its path below the directory.
        path: String,
        /// Its owner may execute it.
        executable: bool,
        /// What is in it.
        source: Arc<dyn Source>,
    },
}

struct Run {
    start: u64,
    bytes: Vec<u8>,
    /// What follows the bytes.
    data: Option<Arc<dyn Source>>,
}

impl Run {
    fn data_start(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
}

/// A directory as a run of bytes, read from its files when it is asked for.
pub struct Packed {
    runs: Vec<Run>,
    len: u64,
}

impl Packed {
    /// Of everything below a directory.
    ///
    /// # Errors
    /// [`Malformed`] for a path that the format does not know, and for too many entries.
    pub fn new(nodes: Vec<Node>) -> Result<Self, Malformed> {
        let entries = nodes.len() as u64;
        if entries > MAX_ENTRIES {
            return Err(Malformed { what: "tree: more than 1000000 entries" });
        }
        let mut packed = Self { runs: Vec::new(), len: 0 };
        packed.push(MAGIC.to_vec(), None);
        for node in nodes {
            let path = match &node {
                Node::Dir { path } | Node::File { path, .. } => format::path(path.as_bytes())?.to_owned(),
            };
            // Checked: at most 1024 bytes.
            let path_len = path.len() as u16;
            let (head, data) = match node {
                Node::Dir { .. } => (Head::Dir { path_len }, None),
                Node::File { executable, source, .. } => {
                    (Head::File { executable, path_len, len: source.len() }, Some(source))
                }
            };
            packed.push([&head.emit()[..], path.as_bytes()].concat(), data);
        }
        packed.push(Head::End { entries }.emit().to_vec(), None);
        Ok(packed)
    }

    fn push(&mut self, bytes: Vec<u8>, data: Option<Arc<dyn Source>>) {
        let len = bytes.len() as u64 + data.as_ref().map_or(0, |data| data.len());
        self.runs.push(Run { start: self.len, bytes, data });
        self.len += len;
    }
}

impl Source for Packed {
    fn len(&self) -> u64 {
        self.len
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        let mut index = self.runs.partition_point(|run| run.start <= offset).saturating_sub(1);
        while filled < buf.len() {
            let Some(run) = self.runs.get(index) else { break };
            let at = offset + filled as u64;
            let rest = buf.get_mut(filled..).unwrap_or_default();
            if at < run.data_start() {
                let from = run.bytes.get(usize::try_from(at - run.start).unwrap_or(usize::MAX)..).unwrap_or_default();
                let n = from.len().min(rest.len());
                rest.get_mut(..n).unwrap_or_default().copy_from_slice(from.get(..n).unwrap_or_default());
                filled += n;
                continue;
            }
            let within = at - run.data_start();
            let left = run.data.as_ref().map_or(0, |data| data.len().saturating_sub(within));
            if left == 0 {
                index += 1;
                continue;
            }
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(rest.len());
            let n = match &run.data {
                Some(data) => data.read_at(within, rest.get_mut(..most).unwrap_or_default())?,
                None => 0,
            };
            if n == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "a file became shorter while it was sent"));
            }
            filled += n;
        }
        Ok(filled)
    }
}

/// Why a directory was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum UnpackError {
    /// It is not well-formed.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The disk.
    #[error(transparent)]
    Io(#[from] io::Error),
}

struct Reader<'a> {
    file: &'a dyn RawFile,
    at: u64,
    len: u64,
}

impl Reader<'_> {
    fn take(&mut self, buf: &mut [u8]) -> Result<(), UnpackError> {
        if self.len.saturating_sub(self.at) < buf.len() as u64 || self.file.read_at(self.at, buf)? != buf.len() {
            return Err(Malformed { what: "tree: it ends too early" }.into());
        }
        self.at += buf.len() as u64;
        Ok(())
    }
}

/// Unpacks a directory into a fresh one and syncs it, all but its own name.
pub(super) fn unpack(fs: &dyn Fs, file: &dyn RawFile, len: u64, to: &Path) -> Result<(), UnpackError> {
    match fs.remove_dir_all(to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    fs.create_dir(to, 0o700)?;
    let mut reader = Reader { file, at: 0, len };
    let mut magic = [0; MAGIC.len()];
    reader.take(&mut magic)?;
    if magic != MAGIC {
        return Err(Malformed { what: "tree: not a directory" }.into());
    }
    let mut dirs = BTreeSet::from([PathBuf::new()]);
    let mut buf = vec![0; PIECE];
    let mut count = 0;
    loop {
        let mut head = [0; HEAD_LEN];
        reader.take(&mut head)?;
        let (path_len, data) = match Head::parse(head)? {
            Head::End { entries } if entries == count && reader.at == len => break,
            Head::End { .. } => return Err(Malformed { what: "tree: wrong end" }.into()),
            Head::Dir { path_len } => (path_len, None),
            Head::File { executable, path_len, len } => (path_len, Some((executable, len))),
        };
        count += 1;
        if count > MAX_ENTRIES {
            return Err(Malformed { what: "tree: too many entries" }.into());
        }
        let mut path = vec![0; usize::from(path_len)];
        reader.take(&mut path)?;
        let path = PathBuf::from(format::path(&path)?);
        // What was not announced as a directory here is none: nothing is ever written through something else.
        if !path.parent().is_some_and(|parent| dirs.contains(parent)) {
            return Err(Malformed { what: "tree: entry outside of a directory" }.into());
        }
        match data {
            None => {
                fs.create_dir(&to.join(&path), 0o700)?;
                dirs.insert(path);
            }
            Some((executable, mut left)) => {
                let written = fs.create_new(&to.join(&path), if executable { 0o700 } else { 0o600 })?;
                let mut at = 0;
                while left > 0 {
                    let n = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
                    let piece = buf.get_mut(..n).unwrap_or_default();
                    reader.take(piece)?;
                    written.write_at(at, piece)?;
                    at += n as u64;
                    left -= n as u64;
                }
                written.sync()?;
            }
        }
    }
    for dir in dirs.iter().rev() {
        fs.sync_dir(&to.join(dir))?;
    }
    Ok(())
}
