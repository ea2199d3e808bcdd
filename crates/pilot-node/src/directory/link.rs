//! The connection to the registry: requests go out as they come, answers come back in the same order (04 §3).
//!
//! It is made when needed, kept, and made again after a failure, ever more slowly while the registry does not answer.
//! Every request has a deadline, and there is a bound on how many wait, so that a registry that hangs costs nobody
//! more than that (07 §16 item 38).

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use pilot_env::tls::TlsConnector;
use pilot_env::{Env, NetStream};
use pilot_wire::frame::FrameDecoder;
use pilot_wire::registry::{ErrorAnswer, Fields, Request, parse_body};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot, watch};

use super::DirectoryError;

/// Time for one answer.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Time to connect, TLS handshake included (04 §18.1).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// First pause after a failed connection; doubled each time.
const RETRY_FIRST: Duration = Duration::from_millis(500);
/// Longest such pause.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Requests waiting or under way. A further one fails at once.
pub(super) const QUEUE: usize = 256;
/// Requests sent ahead of their answers.
const PIPELINE: usize = 32;

/// Where the registry is.
#[derive(Clone)]
pub(crate) struct Target {
    /// `host:port`, resolved anew for each connection.
    pub(crate) address: String,
    /// TLS with a pinned certificate, or `None` for plain TCP.
    pub(crate) tls: Option<TlsConnector>,
}

/// One request and where its answer goes.
pub(super) struct Job {
    pub(super) request: Request,
    pub(super) answer: oneshot::Sender<Result<Fields, DirectoryError>>,
    pub(super) deadline: Instant,
    /// Sent once on a connection that broke.
    pub(super) retried: bool,
}

impl Job {
    fn fail(self, error: DirectoryError) {
        // Nobody waits any more for an answer nobody takes.
        let _ = self.answer.send(Err(error));
    }
}

/// Whether the registry can be reached now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkState {
    /// No connection was made yet.
    Idle,
    /// Connected; the number counts connections.
    Connected(u64),
    /// The last attempt failed, for this reason.
    Down(String),
}

/// Runs the connection until every handle is gone.
pub(super) async fn run(env: Env, target: Target, mut jobs: mpsc::Receiver<Job>, state: watch::Sender<LinkState>) {
    let mut waiting: VecDeque<Job> = VecDeque::new();
    let mut pause = RETRY_FIRST;
    let mut connections = 0;
    loop {
        if waiting.is_empty() {
            match jobs.recv().await {
                Some(job) => waiting.push_back(job),
                None => return,
            }
        }
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, connect(&env, &target));
        let stream = match connecting.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(stream) => stream,
            Err(error) => {
                let text = format!("cannot reach the registry at {}: {error}", target.address);
                tracing::debug!("{text}");
                state.send_replace(LinkState::Down(text.clone()));
                fail_all(&mut waiting, &mut jobs, &text);
                env.sleep(pause + jitter(&env, pause)).await;
                // What came meanwhile could not have been answered either.
                fail_all(&mut waiting, &mut jobs, &text);
                pause = (pause * 2).min(RETRY_MAX);
                continue;
            }
        };
        connections += 1;
        pause = RETRY_FIRST;
        state.send_replace(LinkState::Connected(connections));
        let broken = match converse(&env, stream, &mut jobs, &mut waiting).await {
            Ok(()) => return,
            Err(error) => error,
        };
        let text = format!("lost the registry at {}: {broken}", target.address);
        tracing::debug!("{text}");
        state.send_replace(LinkState::Down(text.clone()));
        let now = env.now();
        for mut job in std::mem::take(&mut waiting) {
            // A request may have been carried out although its answer was lost, so only harmless ones are repeated.
            if job.retried || job.deadline <= now || !job.request.is_idempotent() {
                job.fail(DirectoryError::Unavailable(text.clone()));
            } else {
                job.retried = true;
                waiting.push_back(job);
            }
        }
    }
}

fn jitter(env: &Env, pause: Duration) -> Duration {
    pause.mul_f64((env.random_u64() % 256) as f64 / 1024.0)
}

fn fail_all(waiting: &mut VecDeque<Job>, jobs: &mut mpsc::Receiver<Job>, text: &str) {
    let fail = |job: Job| job.fail(DirectoryError::Unavailable(text.to_owned()));
    waiting.drain(..).for_each(fail);
    while let Ok(job) = jobs.try_recv() {
        fail(job);
    }
}

async fn connect(env: &Env, target: &Target) -> io::Result<NetStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in env.resolve(&target.address).await? {
        match env.tcp_connect(addr).await {
            Ok(stream) => {
                return match &target.tls {
                    Some(tls) => tls.connect(stream).await,
                    None => Ok(stream),
                };
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Exchanges messages over one connection. `Ok` when no more requests can come; an error when the connection is of no
/// more use. Unanswered requests are then in `waiting`.
async fn converse(
    env: &Env,
    stream: NetStream,
    jobs: &mut mpsc::Receiver<Job>,
    waiting: &mut VecDeque<Job>,
) -> io::Result<()> {
    let (mut read, mut write) = tokio::io::split(stream);
    let mut decoder = FrameDecoder::default();
    let mut out = Vec::new();
    for job in waiting.iter() {
        emit(&job.request, &mut out)?;
    }
    loop {
        if !out.is_empty() {
            let writing = tokio::time::timeout(ANSWER_TIMEOUT, write.write_all(&out));
            writing.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
            out.clear();
        }
        let deadline = waiting.front().map(|job| job.deadline);
        let timer = env.sleep_until(deadline.unwrap_or_else(|| env.now()));
        let buffer = decoder.buffer();
        buffer.reserve(16 * 1024);
        tokio::select! {
            job = jobs.recv(), if waiting.len() < PIPELINE => {
                let Some(job) = job else { return Ok(()) };
                emit(&job.request, &mut out)?;
                waiting.push_back(job);
            }
            got = read.read_buf(buffer) => {
                if got? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                take_answers(&mut decoder, waiting)?;
            }
            () = timer, if deadline.is_some() => {
                // Later answers could not be told from this one, so the connection is given up with it.
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
            }
        }
    }
}

fn emit(request: &Request, out: &mut Vec<u8>) -> io::Result<()> {
    request.emit(out).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))
}

fn take_answers(decoder: &mut FrameDecoder, waiting: &mut VecDeque<Job>) -> io::Result<()> {
    let invalid = |e: &dyn std::fmt::Display| io::Error::new(io::ErrorKind::InvalidData, e.to_string());
    while let Some(body) = decoder.next_frame().map_err(|e| invalid(&e))? {
        let fields = parse_body(body).map_err(|e| invalid(&e))?;
        let Some(job) = waiting.pop_front() else {
            return Err(invalid(&"an answer without a request"));
        };
        let result = match ErrorAnswer::from_fields(&fields) {
            Some(error) => Err(DirectoryError::Refused { text: error.text, code: error.code }),
            None => Ok(fields),
        };
        let _ = job.answer.send(result);
    }
    Ok(())
}
