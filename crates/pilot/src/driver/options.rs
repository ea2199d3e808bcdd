//! What a driver is told when it connects, and what it says about its connection.

use std::fmt;
use std::time::Duration;

use pilot_env::Env;
use tokio::sync::watch;

/// First pause before the daemon is tried again; doubled up to [`LAST_PAUSE`].
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// Longest pause between two attempts.
pub(crate) const LAST_PAUSE: Duration = Duration::from_secs(2);
/// How long calls wait for a daemon that is away.
const PATIENCE: Duration = Duration::from_secs(30);

/// How a [`Driver`](crate::Driver) behaves toward its daemon.
///
/// ```no_run
/// # async fn example() -> Result<(), pilot::Error> {
/// use std::time::Duration;
/// use pilot::{Driver, Options};
///
/// // For a service that may start before the daemon does.
/// let options = Options::default().wait_for_daemon(Duration::from_secs(60));
/// let driver = Driver::connect_with("/run/user/1000/pilot/pilot.sock", options).await?;
/// # drop(driver); Ok(()) }
/// ```
#[derive(Clone)]
pub struct Options {
    pub(crate) env: Env,
    pub(crate) reconnect: bool,
    pub(crate) patience: Duration,
    pub(crate) wait: Duration,
    pub(crate) extension: bool,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("reconnect", &self.reconnect)
            .field("patience", &self.patience)
            .field("wait_for_daemon", &self.wait)
            .field("extension", &self.extension)
            .finish_non_exhaustive()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { env: Env::real(), reconnect: true, patience: PATIENCE, wait: Duration::ZERO, extension: true }
    }
}

impl Options {
    /// The environment to connect in. Default: the real one.
    ///
    /// ```
    /// # fn example(simulated: pilot_env::Env) {
    /// let options = pilot::Options::default().env(simulated);
    /// # drop(options); }
    /// ```
    #[must_use]
    pub fn env(mut self, env: Env) -> Self {
        self.env = env;
        self
    }

    /// Whether to connect again when the daemon restarts. Default: yes. A program that does one thing and ends is
    /// better off without: its calls then fail at once.
    ///
    /// ```
    /// let one_shot = pilot::Options::default().reconnect(false);
    /// # drop(one_shot);
    /// ```
    #[must_use]
    pub fn reconnect(mut self, on: bool) -> Self {
        self.reconnect = on;
        self
    }

    /// How long calls wait for a daemon that is away before they fail with
    /// [`Error::Disconnected`](crate::Error::Disconnected). The driver goes on trying; the next call waits anew.
    /// Default: 30 s.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// // An update of the daemon may take two minutes.
    /// let options = pilot::Options::default().patience(Duration::from_secs(120));
    /// # drop(options);
    /// ```
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long connecting waits for a daemon that does not answer yet. Default: not at all.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let options = pilot::Options::default().wait_for_daemon(Duration::from_secs(60));
    /// # drop(options);
    /// ```
    #[must_use]
    pub fn wait_for_daemon(mut self, limit: Duration) -> Self {
        self.wait = limit;
        self
    }

    /// Whether to use the extended local socket where the daemon serves it. Default: yes. Off, everything goes over the
    /// protocol of February 2026.
    ///
    /// ```
    /// let as_of_old = pilot::Options::default().extension(false);
    /// # drop(as_of_old);
    /// ```
    #[must_use]
    pub fn extension(mut self, on: bool) -> Self {
        self.extension = on;
        self
    }
}

/// How it stands with the daemon.
///
/// ```no_run
/// # async fn example(driver: pilot::Driver) {
/// use pilot::ConnectionState;
///
/// let mut states = driver.connection_states();
/// while let Some(state) = states.next().await {
///     match state {
///         ConnectionState::Connected { extended } => println!("connected (extended: {extended})"),
///         ConnectionState::Reconnecting { attempt, why } => println!("attempt {attempt}: {why}"),
///         other => println!("{other:?}"),
///     }
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ConnectionState {
    /// The daemon answers.
    Connected {
        /// Whether it serves the extended local socket.
        extended: bool,
    },
    /// The daemon went away and is tried again and again, with pauses of 50 ms, doubling to 2 s.
    Reconnecting {
        /// Attempts made since.
        attempt: u32,
        /// What came of the last one.
        why: String,
    },
    /// The daemon went away, and the driver does not reconnect. Final.
    Disconnected,
}

impl ConnectionState {
    /// Stable name: `connected`, `reconnecting`, `disconnected`.
    ///
    /// ```
    /// assert_eq!(pilot::ConnectionState::Disconnected.code(), "disconnected");
    /// ```
    pub fn code(&self) -> &'static str {
        match self {
            Self::Connected { .. } => "connected",
            Self::Reconnecting { .. } => "reconnecting",
            Self::Disconnected => "disconnected",
        }
    }
}

/// The states of a driver's connection as they change; see [`ConnectionState`]. Who does not look sees the latest.
///
/// ```no_run
/// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
/// let mut states = driver.connection_states();
/// tokio::spawn(async move {
///     while let Some(state) = states.next().await {
///         eprintln!("daemon: {}", state.code());
///     }
/// });
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct ConnectionStates {
    pub(crate) rx: watch::Receiver<ConnectionState>,
    pub(crate) first: bool,
}

impl ConnectionStates {
    /// The state now at the first call, then the next one that differs. `None` once nothing will change any more: the
    /// state is final, or the driver and everything made from it are gone. Cancel safe.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut states = driver.connection_states();
    /// let now = states.next().await;
    /// let then = states.next().await;
    /// println!("{now:?}, then {then:?}");
    /// # Ok(()) }
    /// ```
    pub async fn next(&mut self) -> Option<ConnectionState> {
        if !std::mem::take(&mut self.first) {
            if *self.rx.borrow() == ConnectionState::Disconnected {
                return None;
            }
            self.rx.changed().await.ok()?;
        }
        Some(self.rx.borrow_and_update().clone())
    }
}
