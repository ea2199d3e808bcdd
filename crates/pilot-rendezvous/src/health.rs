//! `GET /healthz`: 200 `ok`, or 503 `unhealthy` once the store has failed (01 §18). Anything else is 404.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use pilot_env::{Env, NetStream};
use pilot_registry::Store;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A request must be complete, and its answer taken, within this time.
const DEADLINE: Duration = Duration::from_secs(5);
/// Longest request head, in bytes.
const MAX_HEAD: usize = 8 * 1024;
/// Requests served at the same time; further ones wait in the listener's queue.
const MAX_CONCURRENT: usize = 64;

pub(crate) struct HealthServer {
    addr: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl HealthServer {
    pub(crate) fn start(env: &Env, listen: SocketAddr, store: Arc<dyn Store>) -> io::Result<Self> {
        let listener = env.tcp_listen(listen)?;
        let addr = listener.local_addr()?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let (stopped, spawner, env) = (stop.clone(), tasks.clone(), env.clone());
        tasks.spawn(async move {
            let slots = Arc::new(Semaphore::new(MAX_CONCURRENT));
            loop {
                // The semaphore is never closed.
                let Ok(slot) = slots.clone().acquire_owned().await else { return };
                let accepted = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok(stream) => {
                        let store = store.clone();
                        spawner.spawn(async move {
                            let _slot = slot;
                            let _ = timeout(DEADLINE, answer(stream, &*store)).await;
                        });
                    }
                    Err(_) => env.sleep(Duration::from_millis(200)).await,
                }
            }
        });
        Ok(Self { addr, stop, tasks })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn answer(mut stream: NetStream, store: &dyn Store) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        let mut piece = [0u8; 1024];
        let n = stream.read(&mut piece).await?;
        if n == 0 || head.len() + n > MAX_HEAD {
            return Ok(());
        }
        head.extend_from_slice(&piece[..n]);
    }
    let path = head.split(|b| *b == b' ').nth(1).unwrap_or_default();
    let (status, body) = match path {
        b"/healthz" if store.is_healthy() => ("200 OK", "ok"),
        b"/healthz" => ("503 Service Unavailable", "unhealthy"),
        _ => ("404 Not Found", "404 page not found\n"),
    };
    let text = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}
