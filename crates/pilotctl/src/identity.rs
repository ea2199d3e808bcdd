//! The identity file, for the commands that work without a daemon. Whoever has it open holds the lock of its directory,
//! as a running daemon does, so that the two never change the key under each other.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use pilot_env::fs::parent;
use pilot_env::{Env, Lock, LockError};
use pilot_proto::identity::Identity;

use crate::errors::{CliError, Code};

/// An identity file has 175 bytes; a larger one is something else.
const MAX: u64 = 64 * 1024;
const FILE_MODE: u32 = 0o600;
const DIR_MODE: u32 = 0o700;

/// What to do where there is no identity.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make one.
    Make,
    /// It is an error.
    Fail,
}

/// Locks the directory and reads the identity.
///
/// # Errors
/// `already_exists` while a daemon runs with this identity; `not_found` without one; `internal` when it cannot be read.
pub(crate) fn open(path: &Path, missing: Missing) -> Result<(Lock, Identity), CliError> {
    let env = Env::real();
    let dir = parent(path);
    let failed = |what: &str, path: &Path, error: &dyn std::fmt::Display| {
        CliError::internal(format!("{what} {}: {error}", path.display()))
    };
    if missing == Missing::Make {
        env.fs().create_dir_all(dir, DIR_MODE).map_err(|error| failed("create", dir, &error))?;
    } else if !env.fs().exists(path) {
        return Err(CliError::new(Code::NotFound, format!("no identity at {}", path.display()))
            .hint("start the daemon once to make one: pilotctl daemon start"));
    }
    let lock_path = dir.join("node.lock");
    let lock = env.fs().lock(&lock_path).map_err(|error| match error {
        LockError::Held { pid } => {
            let who = pid.map_or_else(String::new, |pid| format!(" (pid {pid})"));
            CliError::new(Code::AlreadyExists, format!("a daemon{who} runs with the identity {}", path.display()))
                .hint("it keeps itself registered: pilotctl info; to work without it: pilotctl daemon stop")
        }
        LockError::Io(error) => failed("lock", &lock_path, &error),
    })?;
    match read(path)? {
        Some(identity) => Ok((lock, identity)),
        None => {
            let identity = Identity::from_seed(env.seed());
            write(path, &identity)?;
            Ok((lock, identity))
        }
    }
}

/// The identity in a file, if there is one.
///
/// # Errors
/// `internal` when the file cannot be read or holds something else.
pub(crate) fn read(path: &Path) -> Result<Option<Identity>, CliError> {
    let text = match Env::real().fs().read_limited(path, MAX) {
        Ok(text) => zeroize::Zeroizing::new(text),
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CliError::internal(format!("read {}: {error}", path.display()))),
    };
    Identity::from_file_text(&text)
        .map(Some)
        .map_err(|error| CliError::internal(format!("identity file {}: {error}", path.display())))
}

/// Writes an identity, synced, as a whole or not at all.
///
/// # Errors
/// `internal`
pub(crate) fn write(path: &Path, identity: &Identity) -> Result<(), CliError> {
    Env::real()
        .fs()
        .write_atomic(path, identity.to_file_text().as_bytes(), FILE_MODE)
        .map_err(|error| CliError::internal(format!("write {}: {error}", path.display())))
}

/// Where a new key waits until the registry has accepted it.
pub(crate) fn next(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    name.into()
}
