//! The PID file, for init systems that want one. Written once the node runs, removed when it ends.

use std::path::PathBuf;

use pilot_env::Env;

use crate::error::NodeError;

/// Everybody may know the number.
const FILE_MODE: u32 = 0o644;
const DIR_MODE: u32 = 0o755;

/// Removes the file when dropped, if it is still ours.
pub(super) struct PidFile {
    env: Env,
    path: PathBuf,
    content: String,
}

impl PidFile {
    /// Writes our number; a missing directory is made.
    pub(super) fn write(env: &Env, path: PathBuf) -> Result<Self, NodeError> {
        // As everybody writes it: decimal, without a newline (06 §10).
        let content = std::process::id().to_string();
        let written = env
            .fs()
            .create_dir_all(pilot_env::fs::parent(&path), DIR_MODE)
            .and_then(|()| env.fs().write_atomic(&path, content.as_bytes(), FILE_MODE));
        match written {
            Ok(()) => Ok(Self { env: env.clone(), path, content }),
            Err(source) => Err(NodeError::PidFile { path, source }),
        }
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        let found = self.env.fs().read_limited(&self.path, 64);
        if found.is_ok_and(|found| found == self.content.as_bytes()) {
            // What cannot be removed is stale, and whoever reads it checks.
            let _ = self.env.fs().remove_file(&self.path);
        }
    }
}
