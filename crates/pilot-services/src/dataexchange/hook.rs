//! The hook: a program of the operator that is run for each message that arrives.
//!
//! It is run directly, never through a shell. The message's file is its standard input, the particulars are in its
//! environment. What it does not get to, or fails at, is still in the inbox.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use pilot_env::Env;
use pilot_wire::service::dataexchange::record::{self, Record};
use tokio::io::AsyncWriteExt;
use tokio::sync::Semaphore;

use super::inbox::Arrival;

/// Programs that run at once.
const RUNNING: usize = 4;
/// Messages that wait for their turn. Beyond that the hook is not run; the message stays in the inbox.
const WAITING: usize = 1024;
/// A hook that takes longer is ended.
const LIMIT: Duration = Duration::from_secs(30);

/// Runs the program.
#[derive(Clone)]
pub(crate) struct Hook {
    env: Env,
    program: Arc<Path>,
    running: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Hook {
    pub(crate) fn new(env: &Env, program: &Path) -> Self {
        Self {
            env: env.clone(),
            program: program.into(),
            running: Arc::new(Semaphore::new(RUNNING)),
            waiting: Arc::new(Semaphore::new(WAITING)),
        }
    }

    /// Runs the program for a message, in the background. To be called inside the runtime.
    pub(crate) fn run(&self, path: PathBuf, arrival: Arrival) {
        let Ok(place) = self.waiting.clone().try_acquire_owned() else {
            tracing::warn!(message = %arrival.name, limit = WAITING, "the inbox hook is too slow; not run for a message");
            return;
        };
        let this = self.clone();
        tokio::spawn(async move {
            if let Ok(_turn) = this.running.clone().acquire_owned().await {
                this.run_now(&path, &arrival).await;
            }
            drop(place);
        });
    }

    async fn run_now(&self, path: &Path, arrival: &Arrival) {
        let program = self.program.display();
        let (env, file) = (self.env.clone(), path.to_owned());
        let read = tokio::task::spawn_blocking(move || env.fs().read_limited(&file, record::MAX_FILE)).await;
        // Cleared away already: nothing to be told.
        let Ok(Ok(text)) = read else { return };
        let payload = Record::parse(&text).map(|record| record.payload).unwrap_or_default();
        let mut command = tokio::process::Command::new(self.program.as_os_str());
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env("PILOT_EVENT", "message.received")
            .env("PILOT_FROM", arrival.from.to_string())
            .env("PILOT_TYPE", arrival.kind.label())
            .env("PILOT_BYTES", arrival.bytes.to_string())
            .env("PILOT_FILE", path)
            .env("PILOT_MESSAGE_ID", arrival.message_id.as_deref().unwrap_or_default())
            .env("PILOT_REPLY_TO", arrival.reply_to.as_deref().unwrap_or_default())
            .kill_on_drop(true);
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                tracing::warn!(%program, %error, "cannot run the inbox hook");
                return;
            }
        };
        let running = async {
            if let Some(mut stdin) = child.stdin.take() {
                // A hook need not read its input.
                let _ = stdin.write_all(&payload).await;
            }
            child.wait().await
        };
        match tokio::time::timeout(LIMIT, running).await {
            Ok(Ok(status)) if status.success() => {}
            Ok(Ok(status)) => tracing::warn!(%program, %status, message = %arrival.name, "the inbox hook failed"),
            Ok(Err(error)) => tracing::warn!(%program, %error, "cannot wait for the inbox hook"),
            Err(_) => tracing::warn!(%program, message = %arrival.name, "the inbox hook took too long; ended"),
        }
    }
}
