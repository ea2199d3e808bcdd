//! One runtime for each process, and things that belong to the process that made them.

use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::sync::atomic::{AtomicPtr, Ordering};

use tokio::runtime::{Builder, Runtime};

use crate::errors::{Failure, Kind};

/// Threads that serve the network. Two, so that one busy connection delays no other; what scales does so by tasks.
const THREADS: usize = 2;

struct OfProcess {
    pid: u32,
    runtime: Runtime,
}

/// Never freed: what was made in a parent process must not be torn down in its child.
static RUNTIME: AtomicPtr<OfProcess> = AtomicPtr::new(std::ptr::null_mut());

/// The runtime of this process, started when it is first needed. After a fork the child gets one of its own.
///
/// # Errors
/// When the system has no thread left.
pub(crate) fn runtime() -> Result<&'static Runtime, Failure> {
    let pid = std::process::id();
    let there = RUNTIME.load(Ordering::Acquire);
    // SAFETY: the pointer is null or comes from `Box::into_raw` below, and is never freed.
    if let Some(of_process) = unsafe { there.as_ref() }
        && of_process.pid == pid
    {
        return Ok(&of_process.runtime);
    }
    let built = Builder::new_multi_thread().worker_threads(THREADS).thread_name("pilot").enable_all().build();
    let runtime = built.map_err(|error| {
        Failure::new(Kind::Other, "no_threads", format!("cannot start the threads of Pilot: {error}"))
            .hint("raise the limit of processes (ulimit -u), or end some")
    })?;
    let new = Box::into_raw(Box::new(OfProcess { pid, runtime }));
    let placed = RUNTIME.compare_exchange(there, new, Ordering::AcqRel, Ordering::Acquire);
    let used = match placed {
        Ok(_) => new,
        Err(other) => {
            // Another thread was quicker.
            // SAFETY: `new` comes from `Box::into_raw` and nobody else has seen it.
            drop(unsafe { Box::from_raw(new) });
            other
        }
    };
    // SAFETY: as above.
    unsafe { used.as_ref() }.map(|of_process| &of_process.runtime).ok_or_else(|| Failure::internal("no runtime"))
}

/// Something that lives on the runtime. In a child of the process that made it, it can neither be used nor be dropped:
/// its tasks are not there, and locks may have been held while the process forked.
pub(crate) struct Owned<T> {
    pid: u32,
    value: ManuallyDrop<T>,
}

impl<T> Owned<T> {
    pub(crate) fn new(value: T) -> Self {
        Self { pid: std::process::id(), value: ManuallyDrop::new(value) }
    }

    /// The value.
    ///
    /// # Errors
    /// Code `forked` in another process than the one that made it.
    pub(crate) fn get(&self) -> Result<&T, Failure> {
        if self.pid == std::process::id() {
            return Ok(&self.value);
        }
        Err(Failure::new(Kind::Other, "forked", "this object belongs to the parent process").hint(
            "connect after the fork: with multiprocessing use the start method \"spawn\", or connect in the child",
        ))
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            return;
        }
        // Some things say goodbye by a task when they are dropped.
        let _inside = runtime().ok().map(Runtime::enter);
        // SAFETY: dropped once, here, and not used afterwards.
        unsafe { ManuallyDrop::drop(&mut self.value) };
    }
}

/// Without the check, for what stays on the runtime anyway.
impl<T> Deref for Owned<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}
