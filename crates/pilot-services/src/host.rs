//! What a service may ask of the node that hosts it, and what it offers to programs on the same host.

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;

use pilot_env::Env;
use pilot_wire::{Address, SocketAddress};
use serde_json::{Map, Value};

use crate::{Service, Serving, Stream};

/// Takes reports of what happened: for webhooks, and for local programs that follow events (05 §10.3).
pub trait Events: Send + Sync + 'static {
    /// Reports an event. Never waits: who does not keep up misses events, and is told how many.
    fn emit(&self, name: &'static str, data: Map<String, Value>);
}

/// Drops every report.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoEvents;

impl Events for NoEvents {
    fn emit(&self, _name: &'static str, _data: Map<String, Value>) {}
}

/// A dial on its way. Dropping it gives the dial up.
pub type Dialing = Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, CallError>> + Send>>;

/// A question about a polo score on its way (05 §7.6).
pub type Scoring = Pin<Box<dyn Future<Output = Result<i64, CallError>> + Send>>;

/// The network as a service sees it.
pub trait Network: Send + Sync + 'static {
    /// Our address; node 0 before the first registration.
    fn address(&self) -> Address;
    /// Opens a stream to a port of a peer.
    fn dial(&self, remote: SocketAddress) -> Dialing;
    /// Node ids that we trust.
    fn trusted(&self) -> Vec<u32>;
    /// The polo score of a node at the registry.
    fn score(&self, node: u32) -> Scoring {
        let _ = node;
        Box::pin(async { Err(CallError::new("registry_unavailable", "no registry is known here")) })
    }
    /// Changes the polo score of a node at the registry and answers the new one. Code `registry_unavailable` means that
    /// nothing was changed.
    fn add_score(&self, node: u32, delta: i64) -> Scoring {
        let _ = (node, delta);
        Box::pin(async { Err(CallError::new("registry_unavailable", "no registry is known here")) })
    }
}

/// The surroundings of a service.
#[derive(Clone)]
pub struct Host {
    /// Clock, randomness and files.
    pub env: Env,
    /// Directory of the node (`~/.pilot`), or `None` for a node that keeps nothing on disk.
    pub dir: Option<PathBuf>,
    /// Where events are reported.
    pub events: Arc<dyn Events>,
    /// The network.
    pub network: Arc<dyn Network>,
}

/// Why an operation on behalf of a local program failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct CallError {
    /// Stable name: `not_found`, `invalid_argument`, `peer_offline`, …
    pub code: String,
    /// What, where and why.
    pub message: String,
    /// What to do about it, or empty.
    pub hint: String,
}

impl CallError {
    /// An error without a hint.
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), message: message.into(), hint: String::new() }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }
}

/// A call of a local program on its way.
pub type Calling = Pin<Box<dyn Future<Output = Result<Value, CallError>> + Send>>;

/// What a service offers to programs on the same host, through the local socket. Methods are named
/// `<service>.<verb>` (`outbox.list`).
pub trait LocalMethods: Send + Sync + 'static {
    /// The names of all methods, of both kinds.
    fn methods(&self) -> &'static [&'static str];
    /// Does something and answers. Dropping the future gives it up where that is still possible.
    fn call(&self, method: &str, args: Value) -> Calling {
        drop(args);
        let error = CallError::new("unknown_method", format!("{method} cannot be called"));
        Box::pin(async move { Err(error) })
    }
    /// Serves a local stream: for payloads of any size, and for following what happens. The answer of the opening is
    /// given by the future's first stage: an `Err` refuses the stream, `Ok` serves it.
    fn open(&self, method: &str, args: Value) -> Opening {
        drop(args);
        let error = CallError::new("unknown_method", format!("{method} cannot be opened as a stream"));
        Box::pin(async move { Err(error) })
    }
}

/// Serves the local stream that was opened.
pub type Serve = Box<dyn FnOnce(Box<dyn Stream>) -> Serving + Send>;
/// A local stream about to be opened.
pub type Opening = Pin<Box<dyn Future<Output = Result<Serve, CallError>> + Send>>;

/// Work that goes on for as long as the node runs.
pub type Work = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A service on offer: opened once for each node that serves it.
pub trait Offer: Send + Sync + 'static {
    /// Name in logs and flags (`-no-<name>`).
    fn name(&self) -> &'static str;
    /// Prepares the service: reads what it keeps on disk, repairs what a crash left behind.
    ///
    /// # Errors
    /// Says what is wrong and what to do; the node then does not start.
    fn open(&self, host: &Host) -> Result<Arc<dyn Service>, CallError>;
}

/// A service without state of its own is its own offer.
impl<S: Service + Clone> Offer for S {
    fn name(&self) -> &'static str {
        Service::name(self)
    }

    fn open(&self, _host: &Host) -> Result<Arc<dyn Service>, CallError> {
        Ok(Arc::new(self.clone()))
    }
}
