//! Application protocols, server and client side together, over any stream of bytes. One file per service.
//!
//! A service is a room of its own: the daemon serves it, or an application does, with the same trait [`Service`]. To add
//! one, write its file, implement [`Service`] in it ([`Offer`] too, when it keeps state), and name it in [`builtin`].

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pilot_wire::SocketAddress;
use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(test)]
#[path = "../../pilot-testkit/tests/support/compatibility.rs"]
mod compatibility;
pub mod dataexchange;
pub mod echo;
pub mod events;
mod host;
pub mod nameserver;
pub mod secure;
pub mod tasks;

pub use host::{
    CallError, Calling, Dialing, Events, Host, LocalMethods, Network, NoEvents, Offer, Opening, Scoring, Serve, Work,
};

/// A stream as services see it.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Stream for T {}

/// What a service may know about the stream it serves.
#[derive(Clone)]
pub struct Context {
    /// Who opened the stream; the node number is that of the authenticated tunnel.
    pub remote: SocketAddress,
    /// Time since the Unix epoch.
    pub unix: Arc<dyn Fn() -> Duration + Send + Sync>,
}

/// The work of one stream.
pub type Serving = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

/// One service on one port.
pub trait Service: Send + Sync + 'static {
    /// Name in logs and flags (`-no-<name>`).
    fn name(&self) -> &'static str;
    /// The port it is served on.
    fn port(&self) -> u16;
    /// Serves one stream until it ends. Dropping the future gives the stream up.
    fn serve(&self, stream: Box<dyn Stream>, context: Context) -> Serving;
    /// Work to be done beside the streams for as long as the node runs: retries, expiry. Asked for once.
    fn work(&self) -> Option<Work> {
        None
    }
    /// What it offers to programs on the same host.
    fn local(&self) -> Option<Arc<dyn LocalMethods>> {
        None
    }
}

/// The services a daemon offers unless told otherwise.
pub fn builtin() -> Vec<Arc<dyn Offer>> {
    vec![
        Arc::new(echo::Echo),
        Arc::new(dataexchange::DataExchange::default()),
        Arc::new(events::EventStream),
        Arc::new(tasks::TaskService),
    ]
}
