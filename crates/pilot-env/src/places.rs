//! Where a daemon and the programs of its host meet (`docs/spec/local-socket.md`, L41 to L43).
//!
//! A socket in a directory that only its user may enter cannot be impersonated. Official programs know only
//! `/tmp/pilot.sock`, so that is a second place, looked at with suspicion.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::{Env, UnixStream};

/// Where official programs look for their daemon (03 §1).
pub const SHARED_SOCKET: &str = "/tmp/pilot.sock";
/// Environment variable with another path for [`SHARED_SOCKET`]; empty: no shared socket at all.
pub const SHARED_VARIABLE: &str = "PILOT_SHARED_SOCKET";
/// Longest path of a socket, in bytes (the system's limit less its terminator).
const MAX_PATH: usize = 107;
/// The places of one user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketPlaces {
    runtime: Option<PathBuf>,
    home: Option<PathBuf>,
    shared: Option<PathBuf>,
}

impl SocketPlaces {
    /// Those of this process: `XDG_RUNTIME_DIR`, `HOME`, [`SHARED_VARIABLE`].
    pub fn of_process() -> Self {
        let path = |name| std::env::var_os(name).map(PathBuf::from);
        let dir = |name| path(name).filter(|dir| dir.is_absolute());
        let shared = path(SHARED_VARIABLE).unwrap_or_else(|| PathBuf::from(SHARED_SOCKET));
        Self::new(dir("XDG_RUNTIME_DIR"), dir("HOME"), Some(shared).filter(|path| !path.as_os_str().is_empty()))
    }

    /// A runtime directory, a home directory, and the place that others know, each of which may be absent.
    pub fn new(runtime: Option<PathBuf>, home: Option<PathBuf>, shared: Option<PathBuf>) -> Self {
        Self { runtime, home, shared }
    }

    fn in_runtime(&self) -> Option<PathBuf> {
        self.runtime.as_ref().map(|dir| dir.join("pilot/pilot.sock")).filter(|path| fits(path))
    }

    fn in_home(&self) -> Option<PathBuf> {
        self.home.as_ref().map(|dir| dir.join(".pilot/pilot.sock")).filter(|path| fits(path))
    }

    /// Where a daemon listens: in the runtime directory, if there is one of ours, else at home. `None` when no path fits
    /// (sockets have short ones).
    pub fn private(&self, env: &Env) -> Option<PathBuf> {
        let usable = self.runtime.as_deref().is_some_and(|dir| check_dir(dir, env.user_id()).is_ok());
        self.in_runtime().filter(|_| usable).or_else(|| self.in_home())
    }

    /// Where it listens besides, for official programs.
    pub fn shared(&self) -> Option<&Path> {
        self.shared.as_deref()
    }

    /// Where programs look, first things first.
    pub fn candidates(&self) -> Vec<PathBuf> {
        [self.in_runtime(), self.in_home(), self.shared.clone()].into_iter().flatten().collect()
    }

    /// The first place that a daemon of this user or of root serves. Does not wait.
    pub fn find(&self, env: &Env) -> Option<PathBuf> {
        let own = env.user_id();
        self.candidates().into_iter().find(|path| {
            let ours = |uid| uid == own || uid == 0;
            std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket() && ours(meta.uid()))
                && crate::real::unix::probe(path).is_ok()
        })
    }
}

fn fits(path: &Path) -> bool {
    path.as_os_str().len() <= MAX_PATH
}

/// Connects to a local socket, unless somebody else could have put it there: whoever is first at a path in a directory
/// like `/tmp` could answer in the daemon's name (03 §16.8). Served must it be by this user or by root; root itself may go
/// anywhere.
///
/// # Errors
/// One that names the other user, else as [`Env::unix_connect`].
pub async fn connect_checked(env: &Env, path: &Path) -> io::Result<UnixStream> {
    let stream = env.unix_connect(path).await?;
    let (uid, own) = (stream.peer().uid, env.user_id());
    if uid == own || uid == 0 || own == 0 {
        return Ok(stream);
    }
    let text = format!("{} is served by user {uid}, not by user {own}", path.display());
    Err(io::Error::other(text))
}

/// Whether nobody but this user can put anything into a directory.
pub(crate) fn check_dir(dir: &Path, own: u32) -> io::Result<()> {
    let metadata = std::fs::symlink_metadata(dir)?;
    let wrong = if !metadata.is_dir() {
        "is not a directory".to_owned()
    } else if metadata.uid() != own {
        format!("belongs to user {}, not to user {own}", metadata.uid())
    } else if metadata.mode() & 0o022 != 0 {
        format!("can be written to by others (mode {:03o})", metadata.mode() & 0o777)
    } else {
        return Ok(());
    };
    Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{} {wrong}", dir.display())))
}
