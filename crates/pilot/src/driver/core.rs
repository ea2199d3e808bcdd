//! The connection of a driver and what keeps it up.
//!
//! A task watches the control socket and connects again when the daemon has gone; calls wait for it a while
//! ([`Options::patience`]). What belongs to a socket (streams, waiting requests) ends with it; what belongs to the driver
//! (listeners, the queue of datagrams) goes on with the next.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use pilot_env::places::connect_checked;
use tokio::sync::watch;

use super::options::{ConnectionState, FIRST_PAUSE, LAST_PAUSE, Options};
use crate::datagram::{DatagramQueue, Feed};
use crate::error::{Error, system_text};
use crate::extended::{Greeted, greet};
use crate::plain::link::{Link, Transport};

/// Times a call that may be repeated is sent again after the daemon went away under it.
const REPEATS: u32 = 3;
/// How long a daemon has to answer the greeting. It answers in microseconds; one that is stopped or stuck never does.
const GREETING_WAIT: Duration = Duration::from_secs(15);

pub(crate) struct Core {
    /// Where further sockets come from; absent over a transport the caller brought.
    path: Option<PathBuf>,
    options: Options,
    control: Mutex<Link>,
    state: watch::Sender<ConnectionState>,
    pub(crate) datagrams: Arc<DatagramQueue>,
    /// The daemon does not know the confirmed datagram.
    pub(crate) plain_datagrams: AtomicBool,
}

impl Core {
    /// Connects to the daemon at a path.
    pub(crate) async fn connect(path: PathBuf, options: Options) -> Result<Arc<Self>, Error> {
        let patient = async {
            let mut pause = FIRST_PAUSE;
            loop {
                match open(&options, &path, options.extension).await {
                    Err(Error::Connect { .. }) if !options.wait.is_zero() => {}
                    other => return other,
                }
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(LAST_PAUSE);
            }
        };
        let link = if options.wait.is_zero() {
            patient.await?
        } else {
            match tokio::time::timeout(options.wait, patient).await {
                Ok(link) => link?,
                // The last try says what is wrong.
                Err(_) => open(&options, &path, options.extension).await?,
            }
        };
        let reconnect = options.reconnect;
        let core = Self::new(Some(path), options, link);
        tokio::spawn(keep(Arc::downgrade(&core), core.link().gone(), reconnect));
        Ok(core)
    }

    /// Goes over one transport for good.
    pub(crate) fn over(transport: impl Transport) -> Arc<Self> {
        let options = Options::default().reconnect(false).extension(false);
        let core = Self::new(None, options, Link::start(transport));
        tokio::spawn(keep(Arc::downgrade(&core), core.link().gone(), false));
        core
    }

    fn new(path: Option<PathBuf>, options: Options, link: Link) -> Arc<Self> {
        let datagrams = Arc::new(DatagramQueue::default());
        link.set_datagrams(Feed::control(Arc::clone(&datagrams)));
        let state = watch::Sender::new(ConnectionState::Connected { extended: link.ext().is_some() });
        let control = Mutex::new(link);
        Arc::new(Self { path, options, control, state, datagrams, plain_datagrams: AtomicBool::new(false) })
    }

    pub(crate) fn path(&self) -> Option<&PathBuf> {
        self.path.as_ref()
    }

    pub(crate) fn states(&self) -> watch::Receiver<ConnectionState> {
        self.state.subscribe()
    }

    /// Whether the driver connects again.
    pub(crate) fn reconnects(&self) -> bool {
        self.options.reconnect
    }

    pub(crate) fn patience(&self) -> Duration {
        self.options.patience
    }

    /// The control socket as it is, perhaps of a daemon that has gone.
    pub(crate) fn link(&self) -> Link {
        self.control.lock().clone()
    }

    /// The control socket. While the daemon is away this waits, at most as long as the program's patience.
    pub(crate) async fn session(&self, op: &'static str) -> Result<Link, Error> {
        match tokio::time::timeout(self.options.patience, self.next_session()).await {
            Ok(Some(link)) => Ok(link),
            Ok(None) | Err(_) => Err(Error::Disconnected { op }),
        }
    }

    /// The control socket of a daemon that is there, or `None` when none will come.
    pub(crate) async fn next_session(&self) -> Option<Link> {
        let mut states = self.state.subscribe();
        loop {
            let link = self.link();
            if !link.is_down() {
                return Some(link);
            }
            if *states.borrow_and_update() == ConnectionState::Disconnected {
                return None;
            }
            // When the new socket came in between, the state has changed since it was looked at.
            if !self.link().is_down() {
                continue;
            }
            states.changed().await.ok()?;
        }
    }

    /// A socket for one purpose, or the only one there is.
    pub(crate) async fn another(&self) -> Result<Link, Error> {
        match &self.path {
            Some(path) => open(&self.options, path, false).await,
            None => Ok(self.link()),
        }
    }

    /// Whether a call that the daemon went away under is to be sent again. Waits a moment where that helps.
    pub(crate) async fn again(&self, error: &Error, repeats: &mut u32) -> bool {
        if !error.is_disconnected() || !self.options.reconnect || *repeats >= REPEATS {
            return false;
        }
        *repeats += 1;
        // The daemon may be gone without the control socket knowing it yet.
        tokio::time::sleep(FIRST_PAUSE).await;
        true
    }

    /// Ready when the daemon has been away for as long as the program's patience.
    pub(crate) async fn lost(&self, op: &'static str) -> Error {
        let mut states = self.state.subscribe();
        let connected = |state: &ConnectionState| matches!(state, ConnectionState::Connected { .. });
        loop {
            // The sender lives as long as `self`, so waiting cannot fail.
            let _ = states.wait_for(|state| !connected(state)).await;
            let settled = states.wait_for(|state| connected(state) || *state == ConnectionState::Disconnected);
            match tokio::time::timeout(self.options.patience, settled).await {
                Ok(Ok(state)) if connected(&state) => {}
                _ => return Error::Disconnected { op },
            }
        }
    }
}

/// Opens a socket, with the greeting or without.
async fn open(options: &Options, path: &std::path::Path, extension: bool) -> Result<Link, Error> {
    let failed = |error: &io::Error| Error::Connect { path: path.display().to_string(), why: system_text(error) };
    let mut stream = connect_checked(&options.env, path).await.map_err(|error| failed(&error))?;
    let greeted = if extension {
        match tokio::time::timeout(GREETING_WAIT, greet(&mut stream)).await {
            Ok(greeted) => greeted.map_err(|error| failed(&error))?,
            Err(_) => {
                let why = "the daemon accepts the connection and does not answer".to_owned();
                return Err(Error::Connect { path: path.display().to_string(), why });
            }
        }
    } else {
        Greeted::default()
    };
    Ok(Link::start_greeted(stream, greeted))
}

/// Connects again whenever the daemon has gone, until nobody wants it any more.
async fn keep(core: Weak<Core>, gone: impl Future<Output = ()> + Send + 'static, reconnect: bool) {
    let mut gone: BoxFuture<'static, ()> = Box::pin(gone);
    loop {
        gone.await;
        // The socket itself is the driver's alone: held here, it would outlive the driver.
        match restore(&core, reconnect).await {
            Some(next) => gone = next,
            None => return,
        }
    }
}

/// One outage: returns when the new control socket goes, or `None` when there will not be one.
async fn restore(core: &Weak<Core>, reconnect: bool) -> Option<BoxFuture<'static, ()>> {
    if !reconnect {
        let core = core.upgrade()?;
        core.state.send_replace(ConnectionState::Disconnected);
        return None;
    }
    let mut pause = FIRST_PAUSE;
    let mut why = "the daemon closed the connection".to_owned();
    for attempt in 0u32.. {
        let (options, path) = {
            let core = core.upgrade()?;
            tracing::debug!(attempt, why, "waiting for the daemon");
            core.state.send_replace(ConnectionState::Reconnecting { attempt, why });
            (core.options.clone(), core.path.clone()?)
        };
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
        match open(&options, &path, options.extension).await {
            Ok(link) => {
                let core = core.upgrade()?;
                tracing::debug!(attempt, extended = link.ext().is_some(), "connected to the daemon again");
                link.set_datagrams(Feed::control(Arc::clone(&core.datagrams)));
                // It may be another daemon than before.
                core.plain_datagrams.store(false, Ordering::Relaxed);
                let (gone, extended) = (link.gone(), link.ext().is_some());
                *core.control.lock() = link;
                core.state.send_replace(ConnectionState::Connected { extended });
                return Some(Box::pin(gone));
            }
            Err(error) => why = error.to_string(),
        }
    }
    None
}
