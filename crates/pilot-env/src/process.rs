//! Other processes of this machine, as far as the system tells.

use std::path::{Path, PathBuf};

/// A process as it was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// Its command line, the program first. Bytes that are no UTF-8 are replaced.
    pub args: Vec<String>,
    /// Where its relative paths start, as this process sees it.
    pub(crate) cwd: PathBuf,
    /// Where its absolute paths start, as this process sees it: it may live in a container.
    pub(crate) root: PathBuf,
}

impl Process {
    /// The last part of the program's name.
    pub fn program(&self) -> &str {
        self.args.first().map_or("", |program| program.rsplit('/').next().unwrap_or(program))
    }

    /// Whether a path that this process was given names the same file as one of ours.
    pub fn means(&self, theirs: &str, ours: &Path) -> bool {
        let theirs = match Path::new(theirs).strip_prefix("/") {
            Ok(inside) => self.root.join(inside),
            Err(_) => self.cwd.join(theirs),
        };
        crate::real::process::is_same_file(&theirs, ours)
    }
}
