//! Application protocols, server and client side together, over any stream of bytes. One file per service.
//!
//! A service is a room of its own: the daemon serves it, or an application does, with the same trait [`Service`]. To add
//! one, write its file, implement [`Service`] in it, and name it in [`builtin`].

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use pilot_wire::SocketAddress;
use tokio::io::{AsyncRead, AsyncWrite};

pub mod echo;

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
}

/// The services a daemon offers unless told otherwise.
pub fn builtin() -> Vec<Arc<dyn Service>> {
    vec![Arc::new(echo::Echo)]
}
