//! Group commit: writes wait in one queue, and all that wait share the next transaction and its one sync.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use pilot_env::Lock;
use redb::Database;
use rustc_hash::FxHashMap;
use tokio::sync::oneshot;

use super::presence::Mirror;
use super::tx::{ReadTx, WriteTx, fault};
use crate::error::{Fault, Refusal};
use crate::limits::{MAX_BATCH, MAX_QUEUE};

/// Runs after the commit.
type Completion = Box<dyn FnOnce() + Send>;
/// One command. A fault ends the whole transaction.
type Job = Box<dyn FnOnce(&mut WriteTx<'_>) -> Result<Completion, Fault> + Send>;

/// A database with its mirror and its queue.
pub(super) struct Engine {
    pub(super) db: Database,
    pub(super) mirror: Mirror,
    queue: Mutex<Queue>,
    is_failed: AtomicBool,
    /// Keeps other processes away from the file for as long as it is open. Dropped after the database, by its place here.
    _lock: Option<Lock>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    is_running: bool,
}

impl Engine {
    pub(super) fn new(db: Database, lock: Option<Lock>) -> Self {
        Self { db, mirror: Mirror::default(), queue: Mutex::default(), is_failed: AtomicBool::new(false), _lock: lock }
    }

    pub(super) fn is_healthy(&self) -> bool {
        !self.is_failed.load(Ordering::Relaxed)
    }

    /// Reads the last commit.
    pub(super) fn read<T>(&self, f: impl FnOnce(&ReadTx<'_>) -> Result<T, Refusal>) -> Result<T, Refusal> {
        use redb::ReadableDatabase as _;
        let tx = self.db.begin_read().map_err(fault)?;
        f(&ReadTx { tx, mirror: &self.mirror })
    }

    /// Writes. Returns after the commit.
    pub(super) async fn write<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&mut WriteTx<'_>) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Refusal> {
        let answer = self.submit(f)?;
        // A dropped sender means that the transaction failed.
        answer.await.unwrap_or_else(|_| Err(Fault("the store failed to write".into()).into()))
    }

    /// Queues a write. What is queued later sees its effect.
    pub(super) fn submit<T: Send + 'static>(
        self: &Arc<Self>,
        f: impl FnOnce(&mut WriteTx<'_>) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<oneshot::Receiver<Result<T, Refusal>>, Refusal> {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |tx| match f(tx) {
            Err(Refusal::Internal(fault)) => Err(fault),
            outcome => Ok(Box::new(move || {
                // Nobody waits for an answer whose connection is gone.
                let _ = sender.send(outcome);
            })),
        });
        let mut queue = self.queue.lock();
        if queue.jobs.len() >= MAX_QUEUE {
            return Err(Refusal::Busy);
        }
        queue.jobs.push_back(job);
        if !queue.is_running {
            queue.is_running = true;
            let engine = self.clone();
            tokio::task::spawn_blocking(move || engine.drain());
        }
        Ok(receiver)
    }

    /// Commits batch after batch until the queue is empty.
    fn drain(self: Arc<Self>) {
        loop {
            let batch: Vec<Job> = {
                let mut queue = self.queue.lock();
                let count = queue.jobs.len().min(MAX_BATCH);
                queue.jobs.drain(..count).collect()
            };
            let completions = match catch_unwind(AssertUnwindSafe(|| self.run(batch))) {
                Ok(Ok(completions)) => completions,
                Ok(Err(fault)) => {
                    self.is_failed.store(true, Ordering::Relaxed);
                    tracing::error!(%fault, "the registry's store failed to write; its answers are withheld");
                    Vec::new()
                }
                Err(_) => {
                    self.is_failed.store(true, Ordering::Relaxed);
                    tracing::error!("a registry transaction panicked; it was given up");
                    Vec::new()
                }
            };
            let is_done = {
                let mut queue = self.queue.lock();
                queue.is_running = !queue.jobs.is_empty();
                !queue.is_running
            };
            if is_done {
                // Who has the last answer may close the store, and then it must be closed.
                drop(self);
                return completions.into_iter().for_each(|done| done());
            }
            completions.into_iter().for_each(|done| done());
        }
    }

    fn run(&self, batch: Vec<Job>) -> Result<Vec<Completion>, Fault> {
        let tx = self.db.begin_write().map_err(fault)?;
        let mut tx = WriteTx { tx, mirror: &self.mirror, presence: FxHashMap::default(), is_dirty: false };
        let mut completions = Vec::with_capacity(batch.len());
        for job in batch {
            completions.push(job(&mut tx)?);
        }
        if tx.is_dirty {
            tx.tx.commit().map_err(fault)?;
            self.mirror.apply(tx.presence);
        } else {
            tx.tx.abort().map_err(fault)?;
        }
        Ok(completions)
    }

    /// Writes in the calling thread; for opening and importing.
    pub(super) fn write_now<T>(&self, f: impl FnOnce(&mut WriteTx<'_>) -> Result<T, Fault>) -> Result<T, Fault> {
        let tx = self.db.begin_write().map_err(fault)?;
        let mut tx = WriteTx { tx, mirror: &self.mirror, presence: FxHashMap::default(), is_dirty: false };
        let value = f(&mut tx)?;
        tx.tx.commit().map_err(fault)?;
        self.mirror.apply(tx.presence);
        Ok(value)
    }
}
