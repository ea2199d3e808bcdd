//! Things that take time.
//!
//! An [`Op`] is made by every method that waits. `wait` runs it on the calling thread, without the interpreter's lock.
//! `start` runs it on the runtime, or polls it when it is light; when it is done, or can go on, its number goes to a
//! [`Bell`], whose file descriptor an event loop watches; `result` takes what came of it. `cancel` gives it up: the future
//! is dropped, and what it had already taken (bytes, an accepted stream) goes back to where the next one finds it.

use std::future::Future;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use parking_lot::Mutex;
use pyo3::prelude::*;
use tokio::task::AbortHandle;

use crate::errors::{Failure, Kind};
use crate::runtime::{Owned, runtime};

/// How often a thread that waits looks for signals (Ctrl-C).
const SIGNALS: Duration = Duration::from_millis(50);

/// What came of an operation.
pub(crate) trait Outcome: Send {
    /// Hands it to Python.
    fn give(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>>;
    /// Nobody wants it any more.
    fn back(self: Box<Self>);
}

struct Plain<T>(T);

impl<T> Outcome for Plain<T>
where
    T: Send + for<'py> IntoPyObject<'py>,
{
    fn give(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        give(self.0, py)
    }

    fn back(self: Box<Self>) {}
}

fn give<T: for<'py> IntoPyObject<'py>>(value: T, py: Python<'_>) -> PyResult<Py<PyAny>> {
    use pyo3::BoundObject as _;
    let object = value.into_pyobject(py).map_err(Into::into)?;
    Ok(object.into_any().unbind())
}

struct Returnable<T, B>(T, B);

impl<T, B> Outcome for Returnable<T, B>
where
    T: Send + for<'py> IntoPyObject<'py>,
    B: FnOnce(T) + Send,
{
    fn give(self: Box<Self>, py: Python<'_>) -> PyResult<Py<PyAny>> {
        give(self.0, py)
    }

    fn back(self: Box<Self>) {
        (self.1)(self.0);
    }
}

type Result_ = Result<Box<dyn Outcome>, Failure>;
type Work = Pin<Box<dyn Future<Output = Result_> + Send>>;

enum State {
    New(Work),
    Running(AbortHandle),
    Done(Result_),
    Over,
}

/// An operation.
#[pyclass(frozen, module = "pilot._pilot")]
pub(crate) struct Op {
    state: Owned<Arc<Mutex<State>>>,
    id: u64,
    light: bool,
}

static NEXT: AtomicU64 = AtomicU64::new(1);

impl Op {
    /// An operation whose result is dropped when nobody takes it.
    pub(crate) fn new<T>(work: impl Future<Output = Result<T, Failure>> + Send + 'static) -> Self
    where
        T: Send + for<'py> IntoPyObject<'py> + 'static,
    {
        Self::boxed(async move { work.await.map(|value| Box::new(Plain(value)) as Box<dyn Outcome>) })
    }

    /// An operation whose result goes `back` when nobody takes it.
    pub(crate) fn returning<T>(
        work: impl Future<Output = Result<T, Failure>> + Send + 'static,
        back: impl FnOnce(T) + Send + 'static,
    ) -> Self
    where
        T: Send + for<'py> IntoPyObject<'py> + 'static,
    {
        Self::boxed(async move { work.await.map(|value| Box::new(Returnable(value, back)) as Box<dyn Outcome>) })
    }

    fn boxed(work: impl Future<Output = Result_> + Send + 'static) -> Self {
        let work = AssertUnwindSafe(work)
            .catch_unwind()
            .map(|done| done.unwrap_or_else(|_| Err(Failure::internal("the operation panicked"))));
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        Self { state: Owned::new(Arc::new(Mutex::new(State::New(Box::pin(work))))), id, light: false }
    }

    /// Of what only waits and never works for long. It is then polled by the thread of the event loop itself, and what it
    /// waits for rings the bell: no task of the runtime stands between, which would cost two changes of threads.
    pub(crate) fn light(mut self) -> Self {
        self.light = true;
        self
    }
}

fn used() -> Failure {
    Failure::new(Kind::Other, "internal", "the operation was started, or is over")
}

#[pymethods]
impl Op {
    /// Waits for it on this thread.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        let state = self.state.get()?;
        let State::New(mut work) = std::mem::replace(&mut *state.lock(), State::Over) else {
            return Err(used().into());
        };
        let deadline = deadline(timeout)?;
        let runtime = runtime()?;
        loop {
            let slice = deadline.map_or(SIGNALS, |at| at.saturating_duration_since(Instant::now()).min(SIGNALS));
            let done = py.detach(|| runtime.block_on(async { tokio::time::timeout(slice, &mut work).await }));
            if let Ok(done) = done {
                return done?.give(py);
            }
            if let Err(signal) = py.check_signals() {
                let _inside = runtime.enter();
                drop(work);
                return Err(signal);
            }
            if deadline.is_some_and(|at| Instant::now() >= at) {
                let _inside = runtime.enter();
                drop(work);
                return Err(Failure::timeout("wait").into());
            }
        }
    }

    /// Starts it, or goes on with it. With a number: the bell will ring with it, and then this is to be called again.
    /// Without: it is done, and `result` has what came of it.
    fn start(&self, bell: &Bell) -> PyResult<Option<u64>> {
        let state = self.state.get()?;
        let inner = bell.0.clone();
        let runtime = runtime()?;
        let mut locked = state.lock();
        let mut work = match std::mem::replace(&mut *locked, State::Over) {
            State::New(work) => work,
            State::Done(done) => {
                *locked = State::Done(done);
                return Ok(None);
            }
            other => {
                *locked = other;
                return Err(used().into());
            }
        };
        if self.light {
            let _inside = runtime.enter();
            let waker = Waker::from(Arc::new(Ringer { bell: inner, id: self.id }));
            return Ok(match work.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(done) => {
                    *locked = State::Done(done);
                    None
                }
                Poll::Pending => {
                    *locked = State::New(work);
                    Some(self.id)
                }
            });
        }
        let (shared, id) = (Arc::clone(state), self.id);
        let task = runtime.spawn(async move {
            let done = work.await;
            let mut state = shared.lock();
            if matches!(*state, State::Running(_)) {
                *state = State::Done(done);
                drop(state);
                inner.ring(id);
            } else {
                drop(state);
                if let Ok(outcome) = done {
                    outcome.back();
                }
            }
        });
        // The task cannot have looked yet: the lock is held.
        *locked = State::Running(task.abort_handle());
        Ok(Some(id))
    }

    /// What came of it, once.
    fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let state = self.state.get()?;
        let taken = {
            let mut locked = state.lock();
            match std::mem::replace(&mut *locked, State::Over) {
                State::Done(done) => done,
                other => {
                    *locked = other;
                    return Err(used().into());
                }
            }
        };
        taken?.give(py)
    }

    /// Gives it up. Nothing that had arrived is lost.
    fn cancel(&self) -> PyResult<()> {
        let state = self.state.get()?;
        // Some things say goodbye by a task when they are dropped.
        let _inside = runtime()?.enter();
        give_up(state);
        Ok(())
    }
}

fn give_up(state: &Mutex<State>) {
    let before = std::mem::replace(&mut *state.lock(), State::Over);
    match before {
        State::Running(task) => task.abort(),
        State::Done(Ok(outcome)) => outcome.back(),
        State::New(_) | State::Done(Err(_)) | State::Over => {}
    }
}

impl Drop for Op {
    fn drop(&mut self) {
        if let Ok(state) = self.state.get() {
            let _inside = runtime().ok().map(tokio::runtime::Runtime::enter);
            give_up(state);
        }
    }
}

/// A moment from seconds given in Python.
pub(crate) fn deadline(timeout: Option<f64>) -> Result<Option<Instant>, Failure> {
    Ok(match seconds(timeout)? {
        Some(span) => Instant::now().checked_add(span),
        None => None,
    })
}

/// Seconds given in Python; `None` means no limit, and so does infinity.
pub(crate) fn seconds(timeout: Option<f64>) -> Result<Option<Duration>, Failure> {
    match timeout {
        None => Ok(None),
        Some(seconds) if seconds == f64::INFINITY => Ok(None),
        Some(seconds) if seconds.is_nan() => Err(Failure::argument("a time-out is not a number")),
        Some(seconds) => Ok(Some(Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX))),
    }
}

struct Rung {
    /// Written to when the list was empty.
    ring: UnixStream,
    done: Mutex<Vec<u64>>,
}

/// Rings a bell with the number of an operation that can go on.
struct Ringer {
    bell: Arc<Rung>,
    id: u64,
}

impl Wake for Ringer {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.bell.ring(self.id);
    }
}

impl Rung {
    fn ring(&self, id: u64) {
        let mut done = self.done.lock();
        done.push(id);
        if done.len() == 1 {
            // One byte at a time is under way, so that this neither blocks nor fails; without a reader nobody listens.
            let _ = (&self.ring).write(&[1]);
        }
    }
}

/// Tells an event loop which operations are done.
#[pyclass(frozen, module = "pilot._pilot")]
pub(crate) struct Bell(Arc<Rung>, UnixStream);

#[pymethods]
impl Bell {
    #[new]
    fn new() -> PyResult<Self> {
        let (ring, listen) = UnixStream::pair()?;
        ring.set_nonblocking(true)?;
        listen.set_nonblocking(true)?;
        Ok(Self(Arc::new(Rung { ring, done: Mutex::new(Vec::new()) }), listen))
    }

    /// The descriptor to watch for reading.
    fn fileno(&self) -> i32 {
        self.1.as_raw_fd()
    }

    /// The numbers of the operations that are done.
    fn drain(&self) -> Vec<u64> {
        let mut done = self.0.done.lock();
        // Within the lock, so that the byte belongs to what is taken.
        let mut byte = [0; 8];
        let _ = (&self.1).read(&mut byte);
        std::mem::take(&mut *done)
    }
}
