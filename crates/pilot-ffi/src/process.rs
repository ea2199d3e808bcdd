//! What belongs to one process: the threads that serve it, its handles, its daemon.
//!
//! A forked child has none of its parent's threads, and what one of them had locked stays locked in it for ever. So it
//! shares nothing with its parent: each process has its own from its first call on, and what was the parent's is neither
//! looked at nor dropped, which would speak to the parent's daemon over sockets that both have.

use std::collections::HashMap;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use parking_lot::Mutex;
use pilot_node::Node;
use tokio::runtime::{Builder, Runtime};

use crate::handles::Object;

/// Threads that serve all calls; each call waits on the thread of its caller.
const WORKERS: usize = 2;

pub(crate) struct Process {
    id: u32,
    runtime: Mutex<Option<&'static Runtime>>,
    /// What each handle stands for.
    pub(crate) handles: Mutex<HashMap<u64, Object>>,
    /// The daemon inside.
    pub(crate) embedded: tokio::sync::Mutex<Option<Node>>,
}

impl Process {
    /// The process that runs now.
    pub(crate) fn current() -> &'static Self {
        static CURRENT: AtomicPtr<Process> = AtomicPtr::new(ptr::null_mut());
        let id = std::process::id();
        let before = CURRENT.load(Ordering::Acquire);
        // SAFETY: null, or from `Box::into_raw` below and never freed.
        if let Some(process) = unsafe { before.as_ref() }
            && process.id == id
        {
            return process;
        }
        let own = Box::into_raw(Box::new(Self {
            id,
            runtime: Mutex::new(None),
            handles: Mutex::default(),
            embedded: tokio::sync::Mutex::const_new(None),
        }));
        let current = match CURRENT.compare_exchange(before, own, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => own,
            Err(quicker) => {
                // SAFETY: from `Box::into_raw` above, and nobody has seen it.
                drop(unsafe { Box::from_raw(own) });
                quicker
            }
        };
        // SAFETY: not null: this thread or a quicker one has put one of this process there.
        unsafe { &*current }
    }

    /// Its runtime, started when it is first needed.
    pub(crate) fn runtime(&self) -> Result<&'static Runtime, String> {
        let mut slot = self.runtime.lock();
        if let Some(runtime) = *slot {
            return Ok(runtime);
        }
        let built = Builder::new_multi_thread().worker_threads(WORKERS).thread_name("libpilot").enable_all().build();
        let built = built.map_err(|error| format!("cannot start threads: {error}"))?;
        Ok(slot.insert(Box::leak(Box::new(built))))
    }
}
