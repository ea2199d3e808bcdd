//! Files. Everything durable is written through [`Fs`], whose simulated twin forgets or tears what was not synced.
//!
//! Calls block for as long as the disk takes; a sync may take milliseconds. Asynchronous code calls them from a
//! blocking task or a thread of its own.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Name inside the directory.
    pub name: std::ffi::OsString,
    /// What it is.
    pub metadata: Metadata,
}

/// What is known of a file without opening it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Metadata {
    /// True for a directory.
    pub is_dir: bool,
    /// True for a plain file (not a link, socket or device).
    pub is_file: bool,
    /// Length in bytes.
    pub len: u64,
    /// Permission bits (`0o600` and the like).
    pub mode: u32,
    /// Last change, since the Unix epoch.
    pub modified: Duration,
}

/// An open file. Writes are durable only after [`RawFile::sync`].
pub trait RawFile: Send + Sync {
    /// Reads at an offset until `buf` is full or the file ends; returns the bytes read.
    ///
    /// # Errors
    /// The operating system's.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize>;
    /// Writes all of `data` at an offset, growing the file as needed.
    ///
    /// # Errors
    /// The operating system's.
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()>;
    /// Writes all of `data` at the end.
    ///
    /// # Errors
    /// The operating system's.
    fn append(&self, data: &[u8]) -> io::Result<()> {
        self.write_at(self.len()?, data)
    }
    /// Length in bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn len(&self) -> io::Result<u64>;
    /// True when the file has no bytes.
    ///
    /// # Errors
    /// The operating system's.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Cuts or extends (with zeros) to a length.
    ///
    /// # Errors
    /// The operating system's.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Returns once everything written is on stable storage.
    ///
    /// # Errors
    /// The operating system's. After a failed sync it is unknown what is stored.
    fn sync(&self) -> io::Result<()>;
}

/// An exclusive lock, held until dropped. The operating system releases it when the process dies.
pub struct Lock {
    _held: Box<dyn Send + Sync>,
}

impl Lock {
    pub(crate) fn new(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl std::fmt::Debug for Lock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lock")
    }
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else holds it.
    #[error("locked by another process{}", .pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Held {
        /// The holder, as it wrote into the lock file.
        pid: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A file system. Paths are as the operating system understands them.
pub trait Fs: Send + Sync {
    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` when it does not exist; else the operating system's.
    fn open(&self, path: &Path) -> io::Result<Box<dyn RawFile>>;
    /// Opens an existing file for reading only.
    ///
    /// # Errors
    /// `NotFound` when it does not exist; else the operating system's.
    fn open_read(&self, path: &Path) -> io::Result<Box<dyn RawFile>>;
    /// Opens a file for reading and writing, creating it with `mode` when missing; its content is kept.
    /// The new name is durable only after [`Fs::sync_dir`] of its directory.
    ///
    /// # Errors
    /// The operating system's.
    fn open_or_create(&self, path: &Path, mode: u32) -> io::Result<Box<dyn RawFile>>;
    /// Creates a file that must not exist yet (`AlreadyExists` otherwise).
    ///
    /// # Errors
    /// The operating system's.
    fn create_new(&self, path: &Path, mode: u32) -> io::Result<Box<dyn RawFile>>;
    /// The content of a file. Reads at most `limit` bytes and fails with `InvalidData` when there are more.
    ///
    /// # Errors
    /// `NotFound`, `InvalidData`, or the operating system's.
    fn read_limited(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// Renames within one file system, replacing the target. Durable only after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// The operating system's.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// As [`Fs::rename`], but never replaces anything. Directories can be renamed, too.
    ///
    /// # Errors
    /// `AlreadyExists` when something has the new name; else the operating system's.
    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Bytes that can still be written on the file system that holds a directory.
    ///
    /// # Errors
    /// `NotFound`, or the operating system's.
    fn available(&self, dir: &Path) -> io::Result<u64>;
    /// Removes a file (or link, or socket; not a directory). Durable only after [`Fs::sync_dir`].
    ///
    /// # Errors
    /// The operating system's.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Creates one directory.
    ///
    /// # Errors
    /// `AlreadyExists`, or the operating system's.
    fn create_dir(&self, path: &Path, mode: u32) -> io::Result<()>;
    /// Removes a directory and all in it.
    ///
    /// # Errors
    /// The operating system's.
    fn remove_dir_all(&self, path: &Path) -> io::Result<()>;
    /// Makes names created, renamed or removed in a directory durable.
    ///
    /// # Errors
    /// The operating system's.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// What is at a path; links are not followed.
    ///
    /// # Errors
    /// `NotFound`, or the operating system's.
    fn metadata(&self, path: &Path) -> io::Result<Metadata>;
    /// The entries of a directory, sorted by name.
    ///
    /// # Errors
    /// The operating system's.
    fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;
    /// Takes an exclusive lock on a lock file (created with mode 0600, never removed) and writes our process id into it.
    ///
    /// # Errors
    /// [`LockError::Held`] at once when another process, or another holder in this one, has it.
    fn lock(&self, path: &Path) -> Result<Lock, LockError>;

    /// The content of a file of at most 64 MiB (use [`Fs::read_limited`] where a bound is known).
    ///
    /// # Errors
    /// As [`Fs::read_limited`].
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.read_limited(path, 64 << 20)
    }

    /// True when something is at the path.
    fn exists(&self, path: &Path) -> bool {
        self.metadata(path).is_ok()
    }

    /// Replaces the content of a file durably and in one step: after a crash at any instant the file holds the old
    /// content or the new one, whole. When this returns, it is the new one. The file has exactly `mode`.
    ///
    /// # Errors
    /// The operating system's; the old content is then still there.
    fn write_atomic(&self, path: &Path, data: &[u8], mode: u32) -> io::Result<()> {
        let dir = parent(path);
        let temporary = temporary_name(path)?;
        // Left behind by a crash in the middle of an earlier call.
        match self.remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let written = (|| {
            let file = self.create_new(&temporary, mode)?;
            file.write_at(0, data)?;
            file.sync()?;
            self.rename(&temporary, path)
        })();
        if let Err(e) = written {
            let _ = self.remove_file(&temporary);
            return Err(e);
        }
        self.sync_dir(dir)
    }

    /// Creates a directory and its missing parents, each with `mode`, durably. Nothing happens when it exists.
    ///
    /// # Errors
    /// The operating system's; `NotADirectory` when something else is in the way.
    fn create_dir_all(&self, path: &Path, mode: u32) -> io::Result<()> {
        if path.as_os_str().is_empty() {
            return Ok(());
        }
        match self.create_dir(path, mode) {
            Ok(()) => self.sync_dir(parent(path)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                self.create_dir_all(parent(path), mode)?;
                match self.create_dir(path, mode) {
                    Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
                    _ => self.sync_dir(parent(path)),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match self.list(path) {
                Ok(_) => Ok(()),
                Err(e) => Err(e),
            },
            Err(e) => Err(e),
        }
    }
}

/// The directory that holds a path.
pub fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

fn temporary_name(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "path names no file"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".tmp");
    Ok(path.with_file_name(temporary))
}
