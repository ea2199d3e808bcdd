//! What was opened through a connection to the network, and ends with it: streams, listeners, subscriptions. Python may
//! hold on to their objects for as long as it likes; the peer must not wait for the garbage collector.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Something that can be ended from outside.
pub(crate) trait Ends: Send + Sync {
    /// Ends it, in order where that is possible; a second time it does nothing.
    fn end(self: Arc<Self>) -> BoxFuture<'static, ()>;
}

/// Everything opened through one connection.
pub(crate) struct Scope {
    /// Wakes whoever waits for something.
    pub(crate) closing: CancellationToken,
    /// `None` once it has ended.
    open: Mutex<Option<HashMap<u64, Weak<dyn Ends>>>>,
    next: AtomicU64,
}

/// A place in the scope, given back when it is dropped.
pub(crate) struct Entry {
    scope: Weak<Scope>,
    id: u64,
}

impl Drop for Entry {
    fn drop(&mut self) {
        if let Some(scope) = self.scope.upgrade()
            && let Some(open) = scope.open.lock().as_mut()
        {
            open.remove(&self.id);
        }
    }
}

impl Scope {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            closing: CancellationToken::new(),
            open: Mutex::new(Some(HashMap::new())),
            next: AtomicU64::new(1),
        })
    }

    /// Adds something that keeps its entry. What comes too late is ended at once.
    pub(crate) fn add<T: Ends + 'static>(self: &Arc<Self>, make: impl FnOnce(Entry) -> T) -> Arc<T> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let made = Arc::new(make(Entry { scope: Arc::downgrade(self), id }));
        let weak: Weak<dyn Ends> = Arc::<T>::downgrade(&made);
        if let Some(open) = self.open.lock().as_mut() {
            open.insert(id, weak);
            return made;
        }
        if let Ok(runtime) = crate::runtime::runtime() {
            runtime.spawn(Arc::clone(&made).end());
        }
        made
    }

    /// Ends everything, which may take up to `limit`.
    pub(crate) async fn end(&self, limit: Duration) {
        self.closing.cancel();
        let open = self.open.lock().take();
        let open: Vec<_> = open.iter().flatten().filter_map(|(_, one)| one.upgrade()).collect();
        // What is not over by then ends when it is dropped here.
        let _ = tokio::time::timeout(limit, join_all(open.into_iter().map(Ends::end))).await;
    }
}
