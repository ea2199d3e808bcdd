//! The log file: rotated when it has grown to its size, a fixed number of old ones kept, so that logs never take more
//! than `(keep + 1) * max_bytes` of the disk, whatever happens.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use pilot_env::{Env, RawFile};

/// Logs may name nodes and hostnames: for this user only (06 §10).
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// Where the log goes and how large it gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileOptions {
    /// The file. Old ones are beside it with `.1` (the newest) and so on behind the name.
    pub(crate) path: PathBuf,
    /// Size at which a new one is begun, bytes.
    pub(crate) max_bytes: u64,
    /// Old files kept.
    pub(crate) keep: u32,
}

pub(super) struct LogFile {
    env: Env,
    options: FileOptions,
    file: Option<Box<dyn RawFile>>,
}

impl LogFile {
    /// Opens the file, whose directory is made when missing.
    pub(super) fn open(env: &Env, options: FileOptions) -> io::Result<Self> {
        let mut this = Self { env: env.clone(), options, file: None };
        this.env.fs().create_dir_all(pilot_env::fs::parent(&this.options.path), DIR_MODE)?;
        this.reopen()?;
        Ok(this)
    }

    /// Opens the file again: somebody else may have moved it away.
    pub(super) fn reopen(&mut self) -> io::Result<()> {
        self.file = Some(self.env.fs().open_or_create(&self.options.path, FILE_MODE)?);
        Ok(())
    }

    /// Appends whole lines.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.file.is_none() {
            self.reopen()?;
        }
        let Some(file) = &self.file else { return Ok(()) };
        let len = file.len()?;
        if len > 0 && len.saturating_add(lines.len() as u64) > self.options.max_bytes {
            self.rotate()?;
        }
        match &self.file {
            Some(file) => file.append(lines),
            None => Ok(()),
        }
    }

    fn old(&self, number: u32) -> PathBuf {
        numbered(&self.options.path, number)
    }

    /// Begins a new file. Where the old one cannot be put aside it is emptied: the bound holds before the history does.
    fn rotate(&mut self) -> io::Result<()> {
        let fs = self.env.fs();
        let keep = self.options.keep;
        let moved = keep > 0 && {
            for number in (1..keep).rev() {
                // A gap in the row is nothing unusual.
                let _ = fs.rename(&self.old(number), &self.old(number + 1));
            }
            fs.rename(&self.options.path, &self.old(1)).is_ok()
        };
        if moved {
            self.file = None;
            return self.reopen();
        }
        match &self.file {
            Some(file) => file.set_len(0),
            None => Ok(()),
        }
    }
}

/// `pilot.log.1` and so on.
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(format!(".{number}"));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(dir: &Path, keep: u32) -> FileOptions {
        FileOptions { path: dir.join("logs").join("pilot.log"), max_bytes: 1000, keep }
    }

    fn total(dir: &Path) -> (usize, u64) {
        let entries = Env::real().fs().list(&dir.join("logs")).unwrap();
        (entries.len(), entries.iter().map(|entry| entry.metadata.len).sum())
    }

    #[test]
    fn size_and_number_of_files_are_bounded_and_the_newest_lines_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(&Env::real(), options(dir.path(), 2)).unwrap();
        for i in 0..1000 {
            log.write(format!("line {i:04}\n").as_bytes()).unwrap();
        }
        let (files, bytes) = total(dir.path());
        assert_eq!(files, 3);
        assert!(bytes <= 3000, "{bytes}");
        let read = |name: &str| {
            let text = Env::real().fs().read(&dir.path().join("logs").join(name)).unwrap();
            String::from_utf8(text).unwrap()
        };
        let all = [read("pilot.log.2"), read("pilot.log.1"), read("pilot.log")].concat();
        let numbers: Vec<u32> = all.lines().map(|line| line["line ".len()..].parse().unwrap()).collect();
        assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "in order, whole, nothing missing");
        assert_eq!(numbers.last(), Some(&999));
        let mode = Env::real().fs().metadata(&dir.path().join("logs/pilot.log")).unwrap().mode;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn without_old_files_the_bound_holds_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let mut log = LogFile::open(&Env::real(), options(dir.path(), 0)).unwrap();
        for _ in 0..1000 {
            log.write(b"0123456789\n").unwrap();
        }
        let (files, bytes) = total(dir.path());
        assert_eq!(files, 1);
        assert!(bytes <= 1000, "{bytes}");
    }

    #[test]
    fn a_file_that_was_moved_away_is_opened_anew() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path(), 1);
        let mut log = LogFile::open(&Env::real(), options.clone()).unwrap();
        log.write(b"before\n").unwrap();
        let fs = pilot_env::Env::real();
        fs.fs().rename(&options.path, &dir.path().join("taken")).unwrap();
        log.reopen().unwrap();
        log.write(b"after\n").unwrap();
        assert_eq!(fs.fs().read(&options.path).unwrap(), b"after\n");
    }
}
