//! A way to the network: the daemon of this host, or a node inside the program.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pilot::{Address, Driver, Embedded, Options, Pilot, SocketAddress};
use pilot_wire::json;
use pyo3::prelude::*;
use serde_json::Value;
use tokio::sync::OwnedMutexGuard;

use crate::convert::Json;
use crate::errors::{Failure, Kind};
use crate::op::{Op, seconds};
use crate::runtime::Owned;
use crate::scope::Scope;
use crate::services;
use crate::stream::{Data, Listener, Stream, within};

/// Longest JSON taken from Python, as deep and long as the local socket takes.
const MAX_JSON: usize = 1 << 20;

pub(crate) enum Backend {
    Driver(Driver),
    Node(Embedded),
}

impl Backend {
    pub(crate) fn pilot(&self) -> &dyn Pilot {
        match self {
            Self::Driver(driver) => driver,
            Self::Node(node) => node,
        }
    }

    /// What only a daemon's connection has.
    fn driver(&self, what: &str) -> Result<&Driver, Failure> {
        match self {
            Self::Driver(driver) => Ok(driver),
            Self::Node(_) => Err(Failure::new(
                Kind::Unsupported,
                "not_in_a_node",
                format!("{what}: only through a daemon, not with a node inside the program"),
            )
            .hint("what can be set is set when the node is made: pilot.Node(...)")),
        }
    }

    /// Whether the daemon, or the node inside, is one of ours.
    pub(crate) fn is_ours(&self) -> bool {
        match self {
            Self::Driver(driver) => driver.daemon().is_some(),
            Self::Node(_) => true,
        }
    }

    /// Whether the daemon is there.
    pub(crate) fn is_connected(&self) -> bool {
        match self {
            Self::Driver(driver) => matches!(driver.connection_state(), pilot::ConnectionState::Connected { .. }),
            Self::Node(_) => true,
        }
    }

    /// An address, `N:…`; a node id; or a host name, with or without `.pilot`.
    pub(crate) async fn resolve(&self, target: &str) -> Result<Address, Failure> {
        if let Ok(address) = target.parse() {
            return Ok(address);
        }
        if let Ok(node) = target.parse() {
            return Ok(Address { network: 0, node });
        }
        let name = target.strip_suffix(".pilot").unwrap_or(target);
        if name.is_empty() || name.contains([':', '/', ' ']) {
            return Err(Failure::argument(format!("{target:?} is neither an address nor a host name"))
                .hint("addresses look like 0:0000.0000.0005, host names like bob or bob.pilot"));
        }
        Ok(self.pilot().resolve(name).await?)
    }

    /// The same with a port behind a colon.
    async fn resolve_with_port(&self, target: &str) -> Result<SocketAddress, Failure> {
        if let Ok(address) = target.parse() {
            return Ok(address);
        }
        let parsed = target.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        let Some((host, port)) = parsed.filter(|_| target.parse::<Address>().is_err()) else {
            return Err(Failure::argument(format!("parse address: {target:?} has no port"))
                .hint("write the port behind it: 0:0000.0000.0005:1000, or bob:1000"));
        };
        Ok(SocketAddress::new(self.resolve(host).await?, port))
    }
}

pub(crate) struct Shared {
    backend: Mutex<Option<Arc<Backend>>>,
    scope: Arc<Scope>,
    /// Held until a datagram is handed out or given back, so that one given back goes to whoever waits already.
    receiving: Arc<tokio::sync::Mutex<()>>,
    /// Datagrams that were given back.
    datagrams: Mutex<VecDeque<pilot::Datagram>>,
}

impl Shared {
    /// The backend, for as long as it is open.
    pub(crate) fn open(&self) -> Result<Arc<Backend>, Failure> {
        self.backend.lock().clone().ok_or_else(|| Failure::closed("the connection to the network was closed"))
    }

    /// Does something with the backend, until it is closed.
    pub(crate) async fn with<T, F>(&self, work: impl FnOnce(Arc<Backend>) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let backend = self.open()?;
        tokio::select! {
            biased;
            done = work(backend) => done,
            () = self.scope.closing.cancelled() => Err(Failure::closed("the connection to the network was closed")),
        }
    }

    async fn close(&self, limit: Duration) {
        let deadline = tokio::time::Instant::now() + limit;
        self.scope.end(limit).await;
        let Some(mut backend) = self.backend.lock().take() else { return };
        self.datagrams.lock().clear();
        // Whoever still works with it ends at the token.
        let alone = loop {
            match Arc::try_unwrap(backend) {
                Ok(alone) => break alone,
                Err(_) if tokio::time::Instant::now() >= deadline => return,
                Err(shared) => backend = shared,
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        match alone {
            Backend::Driver(driver) => drop(driver),
            Backend::Node(node) => node.shutdown(deadline.saturating_duration_since(tokio::time::Instant::now())).await,
        }
    }
}

/// The connection to the network.
#[pyclass(frozen, module = "pilot._pilot")]
pub(crate) struct Network(pub(crate) Owned<Arc<Shared>>);

impl Network {
    pub(crate) fn new(backend: Backend) -> Self {
        Self(Owned::new(Arc::new(Shared {
            backend: Mutex::new(Some(Arc::new(backend))),
            scope: Scope::new(),
            receiving: Arc::default(),
            datagrams: Mutex::default(),
        })))
    }

    pub(crate) fn shared(&self) -> PyResult<Arc<Shared>> {
        Ok(Arc::clone(self.0.get()?))
    }
}

/// JSON from Python.
pub(crate) fn parse(text: &str) -> Result<Value, Failure> {
    if text.len() > MAX_JSON {
        return Err(Failure::argument(format!("{} bytes of JSON are too many (at most {MAX_JSON})", text.len())));
    }
    json::parse(text.as_bytes()).map_err(|error| Failure::argument(format!("not JSON: {error}")))
}

/// Connects to a daemon.
#[pyfunction]
#[pyo3(signature = (path, reconnect, patience, wait, extension))]
pub(crate) fn connect(
    path: Option<PathBuf>,
    reconnect: bool,
    patience: Option<f64>,
    wait: f64,
    extension: bool,
) -> PyResult<Op> {
    let mut options = Options::default().reconnect(reconnect).extension(extension);
    if let Some(patience) = seconds(patience)? {
        options = options.patience(patience);
    }
    options = options.wait_for_daemon(seconds(Some(wait))?.unwrap_or(Duration::MAX));
    Ok(Op::new(async move {
        let paths = path.map_or_else(pilot::default_sockets, |path| vec![path]);
        let mut refused: Option<pilot::Error> = None;
        let last = paths.len().saturating_sub(1);
        for (index, path) in paths.iter().enumerate() {
            // Only the last one is worth waiting for.
            let options = if index == last { options.clone() } else { options.clone().wait_for_daemon(Duration::ZERO) };
            match Driver::connect_with(path, options).await {
                Ok(driver) => return Ok(Network::new(Backend::Driver(driver))),
                Err(error) => refused = Some(refused.filter(|first| first.code() != "not_running").unwrap_or(error)),
            }
        }
        Err(refused.map_or_else(|| Failure::internal("no socket to try"), Failure::from))
    }))
}

/// Where a daemon is looked for, in order.
#[pyfunction]
pub(crate) fn default_sockets() -> Vec<PathBuf> {
    pilot::default_sockets()
}

/// A datagram for Python: data, address and port of the sender, own port.
struct Datagram(pilot::Datagram, OwnedMutexGuard<()>);

impl<'py> IntoPyObject<'py> for Datagram {
    type Target = pyo3::types::PyTuple;
    type Output = Bound<'py, pyo3::types::PyTuple>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Self::Output> {
        let pilot::Datagram { from, port, data } = self.0;
        (Data(data), from.addr.to_string(), from.port, port).into_pyobject(py)
    }
}

#[pymethods]
impl Network {
    /// One of the questions and settings that answer JSON; `args` is a JSON object.
    fn ask(&self, method: &str, args: &str) -> PyResult<Op> {
        let (shared, method, args) = (self.shared()?, method.to_owned(), parse(args)?);
        Ok(Op::new(
            async move { shared.with(|backend| async move { ask(&backend, &method, &args).await.map(Json) }).await },
        ))
    }

    /// Opens a stream to `address:port` or `name:port`.
    #[pyo3(signature = (target, timeout))]
    fn dial(&self, target: &str, timeout: Option<f64>) -> PyResult<Op> {
        let (shared, target, limit) = (self.shared()?, target.to_owned(), seconds(timeout)?);
        Ok(Op::new(async move {
            let dialled = shared.with(|backend| async move {
                let dialling = async {
                    let to = backend.resolve_with_port(&target).await?;
                    Ok(backend.pilot().dial(to).await?)
                };
                within("dial", limit, dialling).await
            });
            Ok(Stream::new(dialled.await?, &shared.scope))
        })
        .light())
    }

    /// Binds a port.
    fn listen(&self, port: u16) -> PyResult<Op> {
        let shared = self.shared()?;
        Ok(Op::new(async move {
            let listener = shared.with(|backend| async move { Ok(backend.pilot().listen(port).await?) }).await?;
            Ok(Listener::new(listener, &shared.scope))
        }))
    }

    /// Opens a stream to a method of a service of the node.
    fn open(&self, method: &str, args: &str) -> PyResult<Op> {
        let (shared, method, args) = (self.shared()?, method.to_owned(), parse(args)?);
        Ok(Op::new(async move {
            let opened = shared.with(|backend| async move { Ok(backend.pilot().open(&method, &args).await?) });
            Ok(Stream::new(opened.await?, &shared.scope))
        }))
    }

    /// Sends a datagram to `address:port` or `name:port`.
    fn send_to(&self, target: &str, data: &[u8]) -> PyResult<Op> {
        let (shared, target, data) = (self.shared()?, target.to_owned(), data.to_vec());
        Ok(Op::new(async move {
            let sending = |backend: Arc<Backend>| async move {
                let to = backend.resolve_with_port(&target).await?;
                Ok(backend.pilot().send_to(to, &data).await?)
            };
            shared.with(sending).await
        }))
    }

    /// The next datagram: data, address and port of the sender, own port.
    fn recv_from(&self) -> PyResult<Op> {
        let shared = self.shared()?;
        let again = Arc::clone(&shared);
        let work = async move {
            let all = &shared;
            let receiving = |backend: Arc<Backend>| async move {
                let turn = Arc::clone(&all.receiving).lock_owned().await;
                if let Some(datagram) = all.datagrams.lock().pop_front() {
                    return Ok(Datagram(datagram, turn));
                }
                Ok(Datagram(backend.pilot().recv_from().await?, turn))
            };
            shared.with(receiving).await
        };
        Ok(Op::returning(work, move |Datagram(datagram, _turn)| again.datagrams.lock().push_front(datagram)).light())
    }

    /// The address behind a target.
    fn resolve(&self, target: &str) -> PyResult<Op> {
        let (shared, target) = (self.shared()?, target.to_owned());
        Ok(Op::new(async move {
            shared.with(|backend| async move { Ok(backend.resolve(&target).await?.to_string()) }).await
        }))
    }

    /// What happens at the node.
    fn events(&self, kinds: Vec<String>) -> PyResult<Op> {
        let shared = self.shared()?;
        Ok(Op::new(async move {
            let subscribing = |backend: Arc<Backend>| async move {
                let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
                Ok(backend.pilot().events(&kinds).await?)
            };
            Ok(services::Events::new(shared.with(subscribing).await?, &shared.scope))
        }))
    }

    /// Sends a message; `args` has `target`, `type`, and may have `message_id`, `reply_to`.
    fn send_message(&self, args: &str, data: &[u8]) -> PyResult<Op> {
        let (shared, args, data) = (self.shared()?, parse(args)?, data.to_vec());
        Ok(Op::new(async move {
            shared.with(|backend| async move { services::send_message(&backend, &args, data).await.map(Json) }).await
        }))
    }

    /// Sends a file; `args` has `target`, and may have `message_id`, `reply_to`, `filename`.
    fn send_file(&self, args: &str, path: PathBuf) -> PyResult<Op> {
        let (shared, args) = (self.shared()?, parse(args)?);
        Ok(Op::new(async move {
            shared.with(|backend| async move { services::send_file(&backend, &args, &path).await.map(Json) }).await
        }))
    }

    /// Publishes an event at a broker.
    fn publish(&self, target: &str, topic: &str, data: &[u8], retain: bool) -> PyResult<Op> {
        let (shared, target, topic, data) = (self.shared()?, target.to_owned(), topic.to_owned(), data.to_vec());
        Ok(Op::new(async move {
            let publishing = |backend: Arc<Backend>| async move {
                services::publish(&backend, &target, &topic, &data, retain).await.map(Json)
            };
            shared.with(publishing).await
        }))
    }

    /// Subscribes at a broker.
    #[pyo3(signature = (target, topic, since, retained, pattern))]
    fn subscribe(&self, target: &str, topic: &str, since: Option<u64>, retained: bool, pattern: bool) -> PyResult<Op> {
        let (shared, target, topic) = (self.shared()?, target.to_owned(), topic.to_owned());
        Ok(Op::new(async move {
            let subscribing = |backend: Arc<Backend>| async move {
                services::subscribe(&backend, &target, &topic, since, retained, pattern).await
            };
            Ok(services::Subscription::new(shared.with(subscribing).await?, &shared.scope))
        }))
    }

    /// Ends it: what waits gets an error, streams get up to `limit` seconds to hand over what was written.
    fn close(&self, limit: f64) -> PyResult<Op> {
        let (shared, limit) = (self.shared()?, seconds(Some(limit))?.unwrap_or(Duration::from_secs(3600)));
        Ok(Op::new(async move {
            // It goes on to its end also when nobody waits for that any more.
            let closing = tokio::spawn(async move { shared.close(limit).await });
            closing.await.map_err(|error| Failure::internal(format!("close: {error}")))
        }))
    }

    /// Closed on this side.
    #[getter]
    fn closed(&self) -> PyResult<bool> {
        Ok(self.0.get()?.scope.closing.is_cancelled())
    }

    /// What the daemon says of itself; `None` of an official one.
    #[getter]
    fn daemon(&self) -> PyResult<Option<Json>> {
        Ok(match &*self.0.get()?.open()? {
            Backend::Driver(driver) => driver.daemon().map(Json),
            Backend::Node(_) => None,
        })
    }

    /// How it stands with the daemon: `connected`, `reconnecting`, `disconnected`.
    #[getter]
    fn connection_state(&self) -> PyResult<&'static str> {
        Ok(match &*self.0.get()?.open()? {
            Backend::Driver(driver) => driver.connection_state().code(),
            Backend::Node(_) => "connected",
        })
    }

    /// Datagrams lost because nobody fetched them.
    #[getter]
    fn datagrams_dropped(&self) -> PyResult<u64> {
        Ok(match &*self.0.get()?.open()? {
            Backend::Driver(driver) => driver.datagrams_dropped(),
            Backend::Node(node) => node.datagrams_dropped(),
        })
    }
}

fn text<'a>(args: &'a Value, key: &str) -> Result<&'a str, Failure> {
    args.get(key).and_then(Value::as_str).ok_or_else(|| Failure::argument(format!("{key} must be a text")))
}

fn number<T: TryFrom<u64>>(args: &Value, key: &str) -> Result<T, Failure> {
    let number = args.get(key).and_then(Value::as_u64).and_then(|number| T::try_from(number).ok());
    number.ok_or_else(|| Failure::argument(format!("{key} is not a number in range")))
}

fn flag(args: &Value, key: &str) -> Result<bool, Failure> {
    args.get(key).and_then(Value::as_bool).ok_or_else(|| Failure::argument(format!("{key} must be true or false")))
}

fn span(args: &Value, key: &str) -> Result<Duration, Failure> {
    let limit = args.get(key).and_then(Value::as_f64);
    let limit = seconds(Some(limit.ok_or_else(|| Failure::argument(format!("{key} must be a number of seconds")))?))?;
    Ok(limit.unwrap_or(Duration::MAX))
}

async fn ask(backend: &Backend, method: &str, args: &Value) -> Result<Value, Failure> {
    let pilot = backend.pilot();
    let answer = match method {
        "info" => pilot.info().await,
        "health" => pilot.health().await,
        "resolve_hostname" => pilot.resolve_hostname(text(args, "hostname")?).await,
        "set_hostname" => pilot.set_hostname(text(args, "hostname")?).await,
        "set_visibility" => pilot.set_visibility(flag(args, "public")?).await,
        "set_tags" => {
            let tags: Option<Vec<&str>> =
                args["tags"].as_array().and_then(|tags| tags.iter().map(Value::as_str).collect());
            pilot.set_tags(&tags.ok_or_else(|| Failure::argument("tags must be a list of texts"))?).await
        }
        "handshake" => pilot.handshake(number(args, "node_id")?, text(args, "justification")?).await,
        "approve" => pilot.approve(number(args, "node_id")?).await,
        "reject" => pilot.reject(number(args, "node_id")?, text(args, "reason")?).await,
        "revoke" => pilot.revoke(number(args, "node_id")?).await,
        "pending" => pilot.pending().await,
        "trusted" => pilot.trusted().await,
        "wait_trusted" => pilot.wait_trusted(number(args, "node_id")?, span(args, "timeout")?).await,
        "sign_request" => {
            let hash = pilot_wire::base64::decode_array::<32>(text(args, "body_hash")?);
            let hash = hash.ok_or_else(|| Failure::argument("body_hash must have 32 bytes (SHA-256)"))?;
            pilot.sign_request(text(args, "audience")?, &hash).await
        }
        "verify_request" => {
            let skew = if args["max_skew"].is_null() { None } else { Some(span(args, "max_skew")?) };
            pilot.verify_request(text(args, "envelope")?, text(args, "signature")?, skew).await
        }
        "network_list" => pilot.networks().await,
        "network_members" => pilot.members(number(args, "network_id")?).await,
        "network_join" => pilot.join_network(number(args, "network_id")?, text(args, "token")?).await,
        "network_leave" => pilot.leave_network(number(args, "network_id")?).await,
        "network_invite" => pilot.invite(number(args, "network_id")?, number(args, "node_id")?).await,
        "network_poll_invites" => pilot.invites().await,
        "network_respond_invite" => pilot.respond_invite(number(args, "network_id")?, flag(args, "accept")?).await,
        "broadcast" => {
            let data = pilot_wire::base64::decode(text(args, "data")?);
            let data = data.ok_or_else(|| Failure::argument("data is too long for a datagram"))?;
            let (port, limit) = (number(args, "port")?, span(args, "timeout")?);
            pilot.broadcast(number(args, "network_id")?, port, &data, limit).await
        }
        "call" => pilot.call(text(args, "method")?, &args["args"]).await,
        "rotate_key" => match backend {
            Backend::Driver(driver) => driver.rotate_key().await,
            Backend::Node(node) => {
                let rotated = node.rotate_key().await;
                return rotated.map_err(|why| Failure::new(Kind::Refused, "rotation_failed", why));
            }
        },
        "deregister" => backend.driver(method)?.deregister().await,
        "set_webhook" => backend.driver(method)?.set_webhook(text(args, "url")?).await,
        "set_task_exec" => backend.driver(method)?.set_task_exec(flag(args, "enabled")?).await,
        "prefer_direct" => backend.driver(method)?.prefer_direct(number(args, "node_id")?).await,
        "disconnect" => {
            return match backend {
                Backend::Driver(driver) => {
                    Ok(driver.disconnect(number(args, "conn_id")?).await.map(|()| Value::Null)?)
                }
                Backend::Node(node) => {
                    let conn: u32 = number(args, "conn_id")?;
                    Ok(node.call("disconnect", &serde_json::json!({ "connection": conn })).await?)
                }
            };
        }
        other => return Err(Failure::internal(format!("no method {other}"))),
    };
    Ok(answer?)
}
