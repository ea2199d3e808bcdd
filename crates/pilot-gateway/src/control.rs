//! The control socket: how a running gateway is told what to do (docs/spec/gateway.md). One request and one answer for each
//! connection; the socket's directory and mode let only its user in, and the kernel says who is there.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use pilot_env::{Env, UnixListener, UnixStream};
use pilot_wire::gateway::control::{Answer, MAX_ANSWER, MAX_REQUEST, Request};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::error::GatewayError;
use crate::gateway::Shared;

/// Clients served at once; further ones wait in the socket's queue.
const MAX_CLIENTS: usize = 16;
/// A request must be complete within this time, and its answer taken.
const LINE_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait of a client for an answer: the gateway may have to ask the registry.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Where the control socket of a user's gateway is: `<home>/.pilot/gateway.sock`.
pub fn socket(home: &Path) -> PathBuf {
    home.join(".pilot").join("gateway.sock")
}

pub(crate) fn listen(env: &Env, path: &Path) -> Result<UnixListener, GatewayError> {
    env.unix_listen(path, 0o600).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => GatewayError::Running(path.to_owned()),
        _ => GatewayError::Control { path: path.to_owned(), source },
    })
}

pub(crate) async fn serve(shared: Arc<Shared>, listener: UnixListener) {
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = slots.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok(stream) => {
                let serving = client(shared.clone(), stream);
                shared.spawn(async move {
                    let _slot = slot;
                    serving.await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a control connection");
                shared.env.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn client(shared: Arc<Shared>, mut stream: UnixStream) {
    let (user, own) = (stream.peer().uid, shared.env.user_id());
    let mut stopping = false;
    let answer = if user != own && user != 0 {
        failed("permission_denied", format!("this gateway belongs to user {own}"), "")
    } else {
        match timeout(LINE_LIMIT, line(&mut stream, MAX_REQUEST)).await {
            Ok(Ok(line)) => match Request::parse(&line) {
                Ok(request) => {
                    stopping = request == Request::Stop;
                    handle(&shared, request).await
                }
                Err(error) => failed(error.code(), error.to_string(), ""),
            },
            Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
                failed("bad_request", error.to_string(), "")
            }
            // Gone, or silent: there is nobody to tell.
            Ok(Err(_)) | Err(_) => return,
        }
    };
    let told = async {
        stream.write_all(&answer.emit()).await?;
        stream.shutdown().await
    };
    let _ = timeout(LINE_LIMIT, told).await;
    // Not before the answer has left: the end takes this connection along.
    if stopping {
        shared.ask_to_stop();
    }
}

fn failed(code: &str, message: String, hint: &str) -> Answer {
    Answer::Failed { code: code.to_owned(), message, hint: hint.to_owned() }
}

async fn handle(shared: &Arc<Shared>, request: Request) -> Answer {
    let outcome = match request {
        Request::Map { target, ip } => shared.map(&target, ip).await,
        Request::Unmap { ip } => shared.unmap(ip).await,
        Request::List => Ok(shared.list()),
        Request::Stop => Ok(serde_json::json!({ "pid": std::process::id() })),
    };
    match outcome {
        Ok(data) => Answer::Done(data),
        Err(error) => failed(error.code(), error.to_string(), error.hint()),
    }
}

/// Reads a line of at most `most` bytes.
async fn line(from: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let n = from.read(&mut piece).await?;
        let piece = piece.get(..n).unwrap_or_default();
        line.extend_from_slice(piece);
        if line.len() > most {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a line of more than {most} bytes")));
        }
        if piece.contains(&b'\n') {
            return Ok(line);
        }
        if piece.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Asks the gateway that serves `path`.
///
/// # Errors
/// `NotFound` or `ConnectionRefused` when there is none; `TimedOut` when it does not answer; `InvalidData` when something
/// else does.
pub async fn ask(env: &Env, path: &Path, request: &Request) -> io::Result<Answer> {
    let asking = async {
        let mut stream = env.unix_connect(path).await?;
        stream.write_all(&request.emit()).await?;
        let line = line(&mut stream, MAX_ANSWER).await?;
        Answer::parse(&line).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    };
    timeout(ANSWER_LIMIT, asking).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
