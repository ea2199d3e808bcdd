//! Points in time at which reads and writes of a stream give up.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use parking_lot::Mutex;
use tokio::time::Sleep;

/// One direction's deadline.
#[derive(Default)]
struct Point {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    at: Option<Instant>,
    /// Whoever waits, to look again when the deadline moves.
    waiting: Option<Waker>,
}

impl Point {
    fn set(&self, at: Option<Instant>) {
        let mut inner = self.inner.lock();
        inner.at = at;
        if let Some(waker) = inner.waiting.take() {
            waker.wake();
        }
    }
}

/// The deadlines of a [`Stream`](crate::Stream), to move them while a task waits for it. Cheap to clone.
///
/// Moving a deadline never interrupts a read or write that has time left under the new one; `None` means none. What has
/// arrived is handed out even after the deadline.
///
/// ```no_run
/// # async fn example(mut stream: pilot::Stream, now: std::time::Instant) -> std::io::Result<()> {
/// use std::time::Duration;
/// use tokio::io::AsyncReadExt;
///
/// let deadlines = stream.deadlines();
/// deadlines.set_read(Some(now + Duration::from_secs(5)));
/// let reading = tokio::spawn(async move { stream.read_u8().await });
/// // It may take longer after all.
/// deadlines.set_read(Some(now + Duration::from_secs(60)));
/// match reading.await? {
///     Err(error) if error.kind() == std::io::ErrorKind::TimedOut => println!("nothing came for a minute"),
///     other => println!("{other:?}"),
/// }
/// # Ok(()) }
/// ```
#[derive(Clone, Default)]
pub struct Deadlines {
    read: Arc<Point>,
    write: Arc<Point>,
}

impl fmt::Debug for Deadlines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at = |point: &Point| point.inner.lock().at;
        f.debug_struct("Deadlines").field("read", &at(&self.read)).field("write", &at(&self.write)).finish()
    }
}

impl Deadlines {
    /// When reads give up.
    ///
    /// ```no_run
    /// # fn example(deadlines: pilot::Deadlines, now: std::time::Instant) {
    /// deadlines.set_read(Some(now + std::time::Duration::from_secs(5)));
    /// # }
    /// ```
    pub fn set_read(&self, at: Option<Instant>) {
        self.read.set(at);
    }

    /// When writes, flushes and `shutdown` give up. Bytes of a write that gave up were not taken.
    ///
    /// ```no_run
    /// # fn example(deadlines: pilot::Deadlines) {
    /// deadlines.set_write(None); // writes may take as long as they need
    /// # }
    /// ```
    pub fn set_write(&self, at: Option<Instant>) {
        self.write.set(at);
    }

    /// Both.
    ///
    /// ```no_run
    /// # fn example(deadlines: pilot::Deadlines, now: std::time::Instant) {
    /// deadlines.set(Some(now)); // whatever waits, ends
    /// # }
    /// ```
    pub fn set(&self, at: Option<Instant>) {
        self.set_read(at);
        self.set_write(at);
    }

    pub(crate) fn read_timer(&self) -> Timer {
        Timer { point: Arc::clone(&self.read), armed: None, sleep: None }
    }

    pub(crate) fn write_timer(&self) -> Timer {
        Timer { point: Arc::clone(&self.write), armed: None, sleep: None }
    }
}

/// Watches one deadline on behalf of the task that polls a stream.
pub(crate) struct Timer {
    point: Arc<Point>,
    /// What `sleep` is set to.
    armed: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    /// Ready when the deadline has passed. Wakes the task when it passes or moves.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let at = {
            let mut inner = self.point.inner.lock();
            if !inner.waiting.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                inner.waiting = Some(cx.waker().clone());
            }
            inner.at
        };
        let Some(at) = at else {
            self.sleep = None;
            self.armed = None;
            return Poll::Pending;
        };
        if self.armed != Some(at) {
            let until = tokio::time::Instant::from_std(at);
            match &mut self.sleep {
                Some(sleep) => sleep.as_mut().reset(until),
                None => self.sleep = Some(Box::pin(tokio::time::sleep_until(until))),
            }
            self.armed = Some(at);
        }
        match &mut self.sleep {
            Some(sleep) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}
