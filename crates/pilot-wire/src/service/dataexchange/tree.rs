//! A directory in one run of bytes (docs/spec/messages.md §7): the magic, entries of head, path and data, and an end that
//! counts them. Only directories and plain files can be written down, and only below the directory itself.

use super::{Fields, Malformed};

/// First bytes of the run.
pub const MAGIC: [u8; 8] = *b"PLTTREE1";
/// Bytes of an entry's head: kind, flags, path length, data length.
pub const HEAD_LEN: usize = 1 + 1 + 2 + 8;
/// Longest path, in bytes.
pub const MAX_PATH: usize = 1024;
/// Deepest nesting.
pub const MAX_DEPTH: usize = 64;
/// Most entries of one directory tree.
pub const MAX_ENTRIES: u64 = 1_000_000;

/// The head of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A directory.
    Dir {
        /// Bytes of the path, which follows.
        path_len: u16,
    },
    /// A file.
    File {
        /// Its owner may execute it.
        executable: bool,
        /// Bytes of the path, which follows.
        path_len: u16,
        /// Bytes of the data, which follows the path.
        len: u64,
    },
    /// Nothing follows.
    End {
        /// Entries before it.
        entries: u64,
    },
}

impl Head {
    /// Reads the head of an entry.
    ///
    /// # Errors
    /// [`Malformed`] for an unknown kind or flag, and for a length that is out of bounds.
    pub fn parse(bytes: [u8; HEAD_LEN]) -> Result<Self, Malformed> {
        let mut fields = Fields(&bytes);
        let read = (|| {
            let [kind, flags] = fields.array()?;
            let (path_len, len) = (fields.u16()?, fields.u64()?);
            let has_path = (1..=MAX_PATH).contains(&usize::from(path_len));
            match (kind, flags) {
                (0, 0) if path_len == 0 && len <= MAX_ENTRIES => Some(Self::End { entries: len }),
                (1, 0) if has_path && len == 0 => Some(Self::Dir { path_len }),
                (2, 0 | 1) if has_path => Some(Self::File { executable: flags == 1, path_len, len }),
                _ => None,
            }
        })();
        read.ok_or(Malformed { what: "tree entry" })
    }

    /// The bytes.
    pub fn emit(self) -> [u8; HEAD_LEN] {
        let (kind, flags, path_len, len) = match self {
            Self::End { entries } => (0, 0, 0, entries),
            Self::Dir { path_len } => (1, 0, path_len, 0),
            Self::File { executable, path_len, len } => (2, u8::from(executable), path_len, len),
        };
        let mut out = [0; HEAD_LEN];
        out[0] = kind;
        out[1] = flags;
        out[2..4].copy_from_slice(&path_len.to_be_bytes());
        out[4..].copy_from_slice(&len.to_be_bytes());
        out
    }
}

/// Reads a path: parts joined by `/`, none of them empty, `.` or `..`, at most 255 bytes each, without control characters
/// and backslashes, at most [`MAX_DEPTH`] of them.
///
/// # Errors
/// [`Malformed`] for anything else: nothing that is read can lead out of the directory.
pub fn path(bytes: &[u8]) -> Result<&str, Malformed> {
    let good_part = |part: &str| {
        !matches!(part, "" | "." | "..")
            && part.len() <= super::file::MAX_NAME
            && !part.chars().any(|c| c.is_control() || c == '\\')
    };
    std::str::from_utf8(bytes)
        .ok()
        .filter(|text| text.len() <= MAX_PATH && text.split('/').count() <= MAX_DEPTH && text.split('/').all(good_part))
        .ok_or(Malformed { what: "tree path" })
}
