//! The log of a program in the background: it takes no more of the disk than twice its size, whatever is written to it.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

/// Size at which a new file is begun, bytes.
const MAX_BYTES: u64 = 1 << 20;

/// Opens a log for this user alone, at its end.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Writes whole lines; the old file is kept beside the new one, with `.1` behind its name.
pub(crate) struct LogFile {
    path: PathBuf,
    file: File,
}

impl LogFile {
    pub(crate) fn open(path: PathBuf) -> io::Result<Self> {
        Ok(Self { file: open(&path)?, path })
    }

    fn begin_anew(&mut self) -> io::Result<()> {
        let mut old = OsString::from(&self.path);
        old.push(".1");
        match fs::rename(&self.path, old) {
            Ok(()) => self.file = open(&self.path)?,
            // The bound holds before the history does.
            Err(_) => self.file.set_len(0)?,
        }
        Ok(())
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.file.metadata()?.len().saturating_add(line.len() as u64) > MAX_BYTES {
            self.begin_anew()?;
        }
        self.file.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_takes_no_more_than_twice_its_size_and_keeps_the_newest_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gateway.log");
        let mut log = LogFile::open(path.clone()).unwrap();
        let line = |number: u32| format!("{number:08} {}\n", "x".repeat(4086));
        for number in 0..1000 {
            log.write_all(line(number).as_bytes()).unwrap();
        }
        let sizes: Vec<u64> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).collect();
        assert!(sizes.len() == 2 && sizes.iter().all(|size| *size <= MAX_BYTES), "{sizes:?}");
        assert!(fs::read_to_string(&path).unwrap().ends_with(&line(999)));
    }
}
