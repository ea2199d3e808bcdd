//! Handles: numbers that count up from 1 and are never used again (06 §15.5), so that one that is stale or made up is an
//! error and nothing else.
//!
//! A process that forks inherits numbers without the threads behind them: in the child they are all unknown.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use pilot_sdk::{Deadlines, Driver, Listener, Stream};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{Mutex as AsyncMutex, RwLock};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::process::Process;

/// How long the daemon has to confirm that a port is free.
const CLOSE_WAIT: Duration = Duration::from_secs(2);

/// A connection to a daemon.
pub(crate) struct DriverHandle {
    /// Gone once it is closed: handles of its streams and ports may outlive it, its socket must not.
    driver: Mutex<Option<Driver>>,
    /// Cancelled when it is closed: whatever waits, ends.
    pub(crate) closed: CancellationToken,
    children: Mutex<Vec<Weak<Conn>>>,
    doors: Mutex<Vec<Weak<Door>>>,
}

/// A bound port.
pub(crate) struct Door {
    /// Those who accept share it; closing takes it away from them.
    pub(crate) listener: RwLock<Option<Listener>>,
    pub(crate) closed: CancellationToken,
    pub(crate) driver: Arc<DriverHandle>,
}

/// A stream. Both directions are used at once, from different threads.
pub(crate) struct Conn {
    pub(crate) read: AsyncMutex<Option<ReadHalf<Stream>>>,
    pub(crate) write: AsyncMutex<Option<WriteHalf<Stream>>>,
    pub(crate) deadlines: Deadlines,
    pub(crate) closed: CancellationToken,
}

/// What a handle stands for.
#[derive(Clone)]
pub(crate) enum Object {
    Driver(Arc<DriverHandle>),
    Door(Arc<Door>),
    Conn(Arc<Conn>),
}

/// The handle for an object.
pub(crate) fn insert(object: Object) -> u64 {
    // Not of one process: a forked child must not give the number of an object of its parent to one of its own. 2^64
    // handles outlast every process.
    static LAST: AtomicU64 = AtomicU64::new(0);
    let handle = LAST.fetch_add(1, Ordering::Relaxed) + 1;
    Process::current().handles.lock().insert(handle, object);
    handle
}

pub(crate) fn remove(handle: u64) -> Option<Object> {
    Process::current().handles.lock().remove(&handle)
}

fn find(handle: u64) -> Option<Object> {
    Process::current().handles.lock().get(&handle).cloned()
}

pub(crate) fn driver(handle: u64) -> Result<Arc<DriverHandle>, String> {
    match find(handle) {
        Some(Object::Driver(driver)) => Ok(driver),
        Some(_) => Err("handle is not a Driver".into()),
        None => Err("invalid driver handle".into()),
    }
}

pub(crate) fn door(handle: u64) -> Result<Arc<Door>, String> {
    match find(handle) {
        Some(Object::Door(door)) => Ok(door),
        Some(_) => Err("handle is not a Listener".into()),
        None => Err("invalid listener handle".into()),
    }
}

pub(crate) fn conn(handle: u64) -> Result<Arc<Conn>, String> {
    match find(handle) {
        Some(Object::Conn(conn)) => Ok(conn),
        Some(_) => Err("handle is not a Conn".into()),
        None => Err("invalid conn handle".into()),
    }
}

impl DriverHandle {
    pub(crate) fn new(driver: Driver) -> Self {
        Self {
            driver: Mutex::new(Some(driver)),
            closed: CancellationToken::new(),
            children: Mutex::default(),
            doors: Mutex::default(),
        }
    }

    /// The driver, unless it was closed between the look-up of the handle and now.
    pub(crate) fn driver(&self) -> Option<Driver> {
        self.driver.lock().clone()
    }

    /// A stream of this driver, which ends with it; `None` when the driver was closed meanwhile, and the stream is too.
    pub(crate) async fn adopt(&self, stream: Stream) -> Option<Arc<Conn>> {
        let deadlines = stream.deadlines();
        let (read, write) = tokio::io::split(stream);
        let conn = Arc::new(Conn {
            read: AsyncMutex::new(Some(read)),
            write: AsyncMutex::new(Some(write)),
            deadlines,
            closed: self.closed.child_token(),
        });
        {
            let mut children = self.children.lock();
            if children.len() >= 64 && children.len().is_power_of_two() {
                children.retain(|child| child.strong_count() > 0);
            }
            children.push(Arc::downgrade(&conn));
        }
        // After it was added: whoever closes from here on finds it there.
        if self.closed.is_cancelled() {
            conn.close().await;
            return None;
        }
        Some(conn)
    }

    /// The same for a port.
    pub(crate) async fn open_door(self: &Arc<Self>, listener: Listener) -> Option<Arc<Door>> {
        let door = Arc::new(Door {
            listener: RwLock::new(Some(listener)),
            closed: self.closed.child_token(),
            driver: self.clone(),
        });
        {
            let mut doors = self.doors.lock();
            doors.retain(|door| door.strong_count() > 0);
            doors.push(Arc::downgrade(&door));
        }
        if self.closed.is_cancelled() {
            door.close().await;
            return None;
        }
        Some(door)
    }

    /// Ends whatever waits, and lets go of everything that holds the socket.
    pub(crate) async fn close(&self) {
        self.closed.cancel();
        let children = std::mem::take(&mut *self.children.lock());
        for conn in children.iter().filter_map(Weak::upgrade) {
            conn.close().await;
        }
        let doors = std::mem::take(&mut *self.doors.lock());
        // All at once: a daemon that does not answer is waited for once.
        let mut closing = JoinSet::new();
        for door in doors.iter().filter_map(Weak::upgrade) {
            closing.spawn(async move { door.close().await });
        }
        closing.join_all().await;
        // The last of it: with this the socket is closed.
        self.driver.lock().take();
    }
}

impl Conn {
    /// Ends what waits. What was written before is sent, then the stream ends in both directions.
    pub(crate) async fn close(&self) {
        self.closed.cancel();
        let read = self.read.lock().await.take();
        let write = self.write.lock().await.take();
        if let (Some(read), Some(write)) = (read, write) {
            // Dropping it closes it, and nothing waits for the peer.
            drop(read.unsplit(write));
        }
    }
}

impl Door {
    pub(crate) async fn close(&self) {
        self.closed.cancel();
        // Who waits in accept has been told, and lets go of it.
        let listener = self.listener.write().await.take();
        if let Some(listener) = listener {
            // The port is free when this returns, unless the daemon does not answer; then it is free as soon as it does.
            let _ = tokio::time::timeout(CLOSE_WAIT, listener.close()).await;
        }
    }
}
