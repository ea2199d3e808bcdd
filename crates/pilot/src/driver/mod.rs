//! The connection of an application to its daemon.

mod calls;
mod core;
mod listen;
mod options;
mod place;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use pilot_env::Env;
use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::ClientFrame;
use pilot_wire::ipc::{Request, text};
use serde_json::Value;

pub(crate) use self::core::Core;
pub(crate) use self::listen::Binding;
pub use self::options::{ConnectionState, ConnectionStates, Options};
pub use self::place::{DEFAULT_SOCKET, SOCKET_VARIABLE, default_sockets};
use crate::datagram::Datagram;
use crate::error::Error;
use crate::extended::EXTENSION;
use crate::extended::events::Events;
use crate::listener::Listener;
use crate::plain::link::{Link, Reply, Transport};
use crate::plain::stream::PlainStream;
use crate::stream::Stream;

/// An application's connection to the daemon of its host. Cheap to clone; clones share it.
///
/// Works with our daemon and with every official one. Ours serves the extended local socket: everything goes over one
/// connection, each stream has credit of its own, ends say why. With an official daemon every dialled stream and every
/// listener has a socket of its own, so that a slow reader holds back only its own peer, a dial that takes long delays
/// nothing else, and closing a listener frees its port; only the streams accepted from one listener share a socket.
///
/// **Restarts.** When the daemon goes away the driver connects again by itself (pauses of 50 ms, doubling to 2 s) and says
/// so in [`connection_states`](Self::connection_states). Meanwhile:
///
/// * listeners are bound again, and `accept` goes on;
/// * calls wait for the daemon, at most [`Options::patience`]; those that are safe to repeat (questions, settings, dials)
///   are sent again when it went away under them, the others fail with [`Error::Disconnected`];
/// * streams end: reads give what had arrived, then [`CloseReason::DaemonGone`](crate::CloseReason::DaemonGone);
/// * subscriptions to events go on, with a notice in between.
///
/// Nothing else here has a time limit: wrap calls in [`tokio::time::timeout`]; a dial that is dropped is given up by the
/// daemon.
///
/// ```no_run
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// use pilot::Driver;
/// use tokio::io::{AsyncReadExt, AsyncWriteExt};
///
/// let driver = Driver::connect_default().await?;
/// println!("this node is {}", driver.info().await?["address"]);
/// let mut stream = driver.dial_text("0:0000.0000.0002:7").await?;
/// stream.write_all(b"hello").await?;
/// let mut echo = [0; 5];
/// stream.read_exact(&mut echo).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Driver {
    core: Arc<Core>,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("path", &self.core.path()).finish_non_exhaustive()
    }
}

impl Driver {
    /// Connects to the daemon of this user: at the first of [`default_sockets`] where one answers.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let driver = pilot::Driver::connect_default().await?;
    /// println!("{}", driver.info().await?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Connect`] when no daemon answers at any of them.
    pub async fn connect_default() -> Result<Self, Error> {
        Self::connect_default_with(Options::default()).await
    }

    /// As [`connect_default`](Self::connect_default), with [`Options`].
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let driver = pilot::Driver::connect_default_with(pilot::Options::default().reconnect(false)).await?;
    /// # drop(driver);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Connect`] when no daemon answers at any of them.
    pub async fn connect_default_with(options: Options) -> Result<Self, Error> {
        let places = default_sockets();
        let mut refused = None;
        for place in &places {
            match Self::connect_with(place, options.clone()).await {
                Err(error) if is_absent(&error) => {}
                // A daemon that refuses says more than the places where there is none.
                Err(error) => {
                    refused.get_or_insert(error);
                }
                connected => return connected,
            }
        }
        Err(refused.unwrap_or_else(|| {
            let path = places.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(", ");
            Error::Connect { path, why: "no daemon answers".into() }
        }))
    }

    /// Connects to the daemon at a socket.
    ///
    /// ```no_run
    /// # use pilot::Driver;
    /// # async fn example() -> Result<(), pilot::Error> {
    /// let driver = Driver::connect("/tmp/pilot.sock").await?;
    /// # drop(driver);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Connect`] when no daemon answers there.
    pub async fn connect(path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_with(path, Options::default()).await
    }

    /// As [`connect`](Self::connect), in an environment that may be a simulated one.
    ///
    /// ```no_run
    /// # async fn example(simulated: pilot_env::Env) -> Result<(), Box<dyn std::error::Error>> {
    /// let driver = pilot::Driver::connect_in(simulated, "/tmp/pilot.sock").await?;
    /// # drop(driver);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Connect`] when no daemon answers there.
    pub async fn connect_in(env: Env, path: impl AsRef<Path>) -> Result<Self, Error> {
        Self::connect_with(path, Options::default().env(env)).await
    }

    /// As [`connect`](Self::connect), with [`Options`].
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let options = pilot::Options::default().reconnect(false);
    /// let driver = pilot::Driver::connect_with("/tmp/pilot.sock", options).await?;
    /// # drop(driver);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Connect`] when no daemon answers there in the time given.
    pub async fn connect_with(path: impl AsRef<Path>, options: Options) -> Result<Self, Error> {
        Ok(Self { core: Core::connect(path.as_ref().to_path_buf(), options).await? })
    }

    /// Uses a connected transport, over which everything then goes, with the protocol of February 2026: a slow reader can
    /// hold back the others (up to 32 MiB are kept unread), a listener's port stays bound on old daemons, and when the
    /// transport ends, so does the driver. Must be called within a tokio runtime.
    ///
    /// ```no_run
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let socket = tokio::net::UnixStream::connect("/tmp/pilot.sock").await?;
    /// let driver = pilot::Driver::over(socket);
    /// # drop(driver);
    /// # Ok(()) }
    /// ```
    pub fn over(transport: impl Transport) -> Self {
        Self { core: Core::over(transport) }
    }

    /// How it stands with the daemon.
    ///
    /// ```no_run
    /// # fn example(driver: pilot::Driver) {
    /// println!("{}", driver.connection_state().code());
    /// # }
    /// ```
    pub fn connection_state(&self) -> ConnectionState {
        self.core.states().borrow().clone()
    }

    /// The same, to be followed as it changes.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// let mut states = driver.connection_states();
    /// println!("{:?}", states.next().await);
    /// # Ok(()) }
    /// ```
    pub fn connection_states(&self) -> ConnectionStates {
        ConnectionStates { rx: self.core.states(), first: true }
    }

    /// What the daemon said of itself when the connection was made: an object with `daemon` (name and version),
    /// `limits`, `features`, `methods`. `None` from a daemon that does not serve the extended local socket.
    ///
    /// ```no_run
    /// # fn example(driver: pilot::Driver) {
    /// match driver.daemon() {
    ///     Some(about) => println!("{}", about["daemon"]),
    ///     None => println!("a daemon without the extension"),
    /// }
    /// # }
    /// ```
    pub fn daemon(&self) -> Option<Value> {
        self.core.link().ext().map(|ext| ext.about().clone())
    }

    // --- Streams -------------------------------------------------------------------------------------------------

    /// Opens a stream to a port of a peer. The daemon gives up by itself after about half a minute.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// let stream = driver.dial("0:0000.0000.0002:1000".parse()?).await?;
    /// println!("connected from {}", stream.local_addr());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] with a code such as `connection_refused`, `untrusted`, `no_answer` and a hint; from an official
    /// daemon [`Error::Daemon`] with its words: `connection refused`, `dial timeout`, `resolve node N: …`.
    pub async fn dial(&self, to: SocketAddress) -> Result<Stream, Error> {
        let mut repeats = 0;
        loop {
            match self.dial_once(to).await {
                // Nothing is left of a dial when the daemon goes away, so that it is safe to repeat.
                Err(error) if self.core.again(&error, &mut repeats).await => {}
                other => return other,
            }
        }
    }

    async fn dial_once(&self, to: SocketAddress) -> Result<Stream, Error> {
        const OP: &str = "dial";
        let session = self.core.session(OP).await?;
        if session.ext().is_some() {
            return session.open(OP, |request| ClientFrame::Dial { request, remote: to, timeout_ms: 0 }).await;
        }
        let link = self.core.another().await?;
        match link.request(OP, &Request::Dial { remote: to }).await? {
            Reply::Dialled(conn, cell) => {
                let channel = PlainStream::new(link, conn, cell);
                Ok(Stream::new(Box::new(channel), SocketAddress::default(), to))
            }
            Reply::Json(_) | Reply::Done => Err(Error::InvalidDialResponse),
        }
    }

    /// Opens a stream to an address in text form, `N:NNNN.HHHH.LLLL:PORT`.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// let stream = driver.dial_text("0:0000.0000.0002:1000").await?;
    /// # drop(stream);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Address`], and as [`dial`](Self::dial).
    pub async fn dial_text(&self, to: &str) -> Result<Stream, Error> {
        self.dial(to.parse()?).await
    }

    /// As [`dial`](Self::dial), given up after `limit`.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// use std::time::Duration;
    /// let to = "0:0000.0000.0002:1000".parse()?;
    /// match driver.dial_timeout(to, Duration::from_secs(3)).await {
    ///     Err(error) if error.code() == "timeout" => println!("not today"),
    ///     other => drop(other?),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Timeout`], and as [`dial`](Self::dial).
    pub async fn dial_timeout(&self, to: SocketAddress, limit: Duration) -> Result<Stream, Error> {
        tokio::time::timeout(limit, self.dial(to)).await.unwrap_or(Err(Error::Timeout { op: "dial" }))
    }

    /// Binds a port. Exactly that port: 0 is a port like any other. Datagrams to it come out of
    /// [`recv_from`](Self::recv_from). (From an official daemon they share the listener's socket, so they wait, and get
    /// lost, behind an accepted stream that is not read.)
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// let listener = driver.listen(1000).await?;
    /// let stream = listener.accept().await?;
    /// println!("{} connected", stream.peer_addr());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] with code `port_in_use`; from an official daemon [`Error::Daemon`]: `port N already bound`.
    pub async fn listen(&self, port: u16) -> Result<Listener, Error> {
        let mut repeats = 0;
        loop {
            match listen::bind(&self.core, port).await {
                Err(error) if self.core.again(&error, &mut repeats).await => {}
                Err(error) => return Err(error),
                Ok(bound) => return Ok(listen::listener(Arc::clone(&self.core), port, bound)),
            }
        }
    }

    /// Closes any stream of the daemon by its id, as [`info`](Self::info) lists them in `conn_list`, whoever opened it. An
    /// id that no stream has does no harm.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// for conn in driver.info().await?["conn_list"].as_array().into_iter().flatten() {
    ///     driver.disconnect(conn["id"].as_u64().unwrap_or_default() as u32).await?;
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the daemon is gone.
    pub async fn disconnect(&self, conn: u32) -> Result<(), Error> {
        self.core.session("disconnect").await?;
        // A socket of its own: the answer looks like the notice that a stream has ended.
        let link = self.core.another().await?;
        link.request("disconnect", &Request::Close { conn }).await.map(|_| ())
    }

    // --- Datagrams -----------------------------------------------------------------------------------------------

    /// Sends a datagram. Our daemon and official ones from 1.17 on say whether it has left; older ones do not, and what
    /// they refuse shows up in [`datagram_failure`](Self::datagram_failure) later.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// driver.send_to("0:0000.0000.0002:5000".parse()?, b"ping").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Refused`] or [`Error::Daemon`] with the daemon's reason, [`Error::TooLarge`] above the local frame.
    pub async fn send_to(&self, to: SocketAddress, data: &[u8]) -> Result<(), Error> {
        const OP: &str = "sendto";
        let link = self.core.session(OP).await?;
        if link.ext().is_some() {
            let send = link.ask(OP, |request| ClientFrame::SendDatagram { request, port: 0, to, data })?;
            return send.await.map(|_| ());
        }
        if !self.core.plain_datagrams.load(Ordering::Relaxed) {
            let request = Request::SendToConfirm { to, data };
            match link.request(OP, &request).await {
                Err(Error::Daemon { text, .. }) if text == text::unknown_command(request.opcode()) => {
                    self.core.plain_datagrams.store(true, Ordering::Relaxed);
                }
                other => return other.map(|_| ()),
            }
        }
        link.send(OP, &Request::SendTo { to, data })
    }

    /// Whether the daemon says if a datagram has left; known after the first one was sent.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// driver.send_to("0:0000.0000.0002:5000".parse()?, b"ping").await?;
    /// println!("told if it left: {}", driver.confirms_datagrams());
    /// # Ok(()) }
    /// ```
    pub fn confirms_datagrams(&self) -> bool {
        !self.core.plain_datagrams.load(Ordering::Relaxed)
    }

    /// The next datagram: answers to those sent from here, and those to the ports of this driver's listeners. (An
    /// official daemon gives every datagram for any port to every program.) Cancel safe. Up to 256 are kept; newer ones
    /// are dropped.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// let listener = driver.listen(5000).await?;
    /// let datagram = driver.recv_from().await?;
    /// println!("{} bytes from {} to port {}", datagram.data.len(), datagram.from, datagram.port);
    /// # drop(listener);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Disconnected`] when the daemon has been away for longer than [`Options::patience`]; the next call waits
    /// again.
    pub async fn recv_from(&self) -> Result<Datagram, Error> {
        tokio::select! {
            biased;
            datagram = self.core.datagrams.next() => Ok(datagram),
            lost = self.core.lost("recv") => Err(lost),
        }
    }

    /// Why an earlier datagram was not sent, as far as an old daemon tells; each reason is given once.
    ///
    /// ```no_run
    /// # fn example(driver: pilot::Driver) {
    /// while let Some(why) = driver.datagram_failure() {
    ///     eprintln!("a datagram was not sent: {why}");
    /// }
    /// # }
    /// ```
    pub fn datagram_failure(&self) -> Option<String> {
        self.core.datagrams.take_failure()
    }

    /// Datagrams dropped because [`recv_from`](Self::recv_from) was not called in time, here or in the daemon.
    ///
    /// ```no_run
    /// # fn example(driver: pilot::Driver) {
    /// println!("{} datagrams came too fast", driver.datagrams_dropped());
    /// # }
    /// ```
    pub fn datagrams_dropped(&self) -> u64 {
        self.core.datagrams.dropped()
    }

    // --- Services of the daemon ----------------------------------------------------------------------------------

    async fn extended(&self, op: &'static str) -> Result<Link, Error> {
        let link = self.core.session(op).await?;
        if link.ext().is_none() {
            return Err(Error::Unsupported { op, what: EXTENSION });
        }
        Ok(link)
    }

    /// Calls a method of the daemon with JSON parameters (`null` for none). Which there are: `methods` in
    /// [`daemon`](Self::daemon), or the method `methods`.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// let answer = driver.call("connections", &serde_json::json!({ "limit": 10 })).await?;
    /// println!("{} connections", answer["total"]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] (code `unsupported_by_daemon`) when the daemon does not serve the extended local socket;
    /// [`Error::Refused`] with the code of the method, `unknown_method` when there is none; [`Error::Disconnected`] when
    /// the daemon went away: what the call began may have been done.
    pub async fn call(&self, method: &str, params: &Value) -> Result<Value, Error> {
        let link = self.extended("call").await?;
        link.call("call", method, params).await
    }

    /// Opens a stream to a service inside the daemon, with JSON parameters.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), Box<dyn std::error::Error>> {
    /// use tokio::io::AsyncBufReadExt;
    /// let stream = driver.open("events", &serde_json::json!({ "kinds": ["trust.*"] })).await?;
    /// let mut lines = stream.lines();
    /// while let Some(line) = lines.next_line().await? {
    ///     println!("{line}");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn open(&self, method: &str, params: &Value) -> Result<Stream, Error> {
        Ok(self.open_said(method, params).await?.0)
    }

    /// As [`open`](Self::open), once more when the daemon goes away meanwhile: for what does no harm twice.
    pub(crate) async fn open_repeatedly(&self, method: &str, params: &Value) -> Result<Stream, Error> {
        let mut repeats = 0;
        loop {
            match self.open(method, params).await {
                Err(error) if self.core.again(&error, &mut repeats).await => {}
                other => return other,
            }
        }
    }

    /// As [`open`](Self::open), with what the service said first (`null` when it said nothing).
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// let (stream, said) = driver.open_said("mail.get", &serde_json::json!({ "id": 7 })).await?;
    /// println!("{} bytes follow", said["size"]);
    /// # drop(stream);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn open_said(&self, method: &str, params: &Value) -> Result<(Stream, Value), Error> {
        let link = self.extended("open").await?;
        let params = pilot_wire::json::to_vec(params);
        link.open_said("open", |request| ClientFrame::Open { request, method, params: &params }).await
    }

    /// What happens in the daemon, as it happens. `kinds` selects by name, or by prefix when it ends in `.*`; none means
    /// all. Goes on when the daemon restarts.
    ///
    /// ```no_run
    /// # async fn example(driver: pilot::Driver) -> Result<(), pilot::Error> {
    /// let mut events = driver.events(&["trust.*"]).await?;
    /// loop {
    ///     let event = events.next().await?;
    ///     println!("{} at {}: {:?}", event.kind, event.at, event.data);
    /// }
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`call`](Self::call).
    pub async fn events(&self, kinds: &[&str]) -> Result<Events, Error> {
        Events::subscribe(self.clone(), kinds).await
    }
}

/// Whether there is no socket, or one that nobody serves.
fn is_absent(error: &Error) -> bool {
    matches!(error, Error::Connect { why, .. } if why == "no such file or directory" || why == "connection refused")
}
