//! Health and metrics over HTTP, for those who ask for it: `/healthz` (the process lives and its driver turns), `/readyz`
//! (it is registered and can be reached; JSON with reasons when not), `/metrics` (Prometheus).
//!
//! It listens on loopback unless an operator says otherwise in so many words, answers only requests that name an address
//! or an allowed host (a web page whose name suddenly means 127.0.0.1 gets nothing), and gives nobody more than a few
//! seconds and kilobytes.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use pilot_env::{Env, NetStream};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, prometheus_text, text};
use prometheus_client::registry::{Registry, Unit};
use serde_json::{Map, Value, json};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::log::{self, LEVELS};
use crate::node::{Metrics, Monitor};

/// Connections served at once; further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 32;
/// A request's head must be complete within this time …
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// … and the connection over within this.
const CONNECTION_LIMIT: Duration = Duration::from_secs(15);
/// Memory of one connection, bytes: the smallest that the HTTP library takes.
const MAX_BUFFER: usize = 8 * 1024;
/// Header lines of a request.
const MAX_HEADERS: usize = 64;
/// Scrapes within this time get the same text: a scrape looks at every stream.
const SAMPLE_AGE: Duration = Duration::from_secs(1);
/// Pause after a failed accept.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Where it listens and to whom it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    /// Address; port 0 is any.
    pub(super) addr: SocketAddr,
    /// Names that requests may call this host by, besides `localhost` and addresses.
    pub(super) hosts: Vec<String>,
}

/// The running server.
pub(super) struct Server {
    addr: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Server {
    /// Listens.
    pub(super) fn start(env: &Env, options: Options, monitor: Monitor, log: Arc<log::Stats>) -> io::Result<Self> {
        let listener = env.tcp_listen(options.addr)?;
        let addr = listener.local_addr()?;
        let mut registry = Registry::default();
        registry.register_collector(Box::new(monitor.clone()));
        registry.register_collector(Box::new(LogMetrics(log)));
        let site = Site { env: env.clone(), monitor, hosts: options.hosts, registry, sample: Mutex::default() };
        let (site, stop, tasks) = (Arc::new(site), CancellationToken::new(), TaskTracker::new());
        let (stopped, spawner, env) = (stop.clone(), tasks.clone(), env.clone());
        tasks.spawn(async move {
            let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
            loop {
                // The semaphore is never closed.
                let Ok(slot) = slots.clone().acquire_owned().await else { return };
                let accepted = tokio::select! {
                    () = stopped.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                match accepted {
                    Ok(stream) => {
                        let (site, stopped) = (site.clone(), stopped.clone());
                        spawner.spawn(async move {
                            let _slot = slot;
                            let serving = tokio::time::timeout(CONNECTION_LIMIT, serve(site, stream));
                            stopped.run_until_cancelled(serving).await;
                        });
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept an HTTP connection");
                        env.sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        });
        Ok(Self { addr, stop, tasks })
    }

    /// Where it listens.
    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends it.
    pub(super) async fn shutdown(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn serve(site: Arc<Site>, stream: NetStream) {
    let service = service_fn(move |request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.answer(&request).await) }
    });
    let serving = http1::Builder::new()
        .keep_alive(false)
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_BUFFER)
        .serve_connection(TokioIo::new(stream), service);
    // A client that breaks the protocol has been answered, or has gone.
    let _ = serving.await;
}

/// What is served.
struct Site {
    env: Env,
    monitor: Monitor,
    hosts: Vec<String>,
    registry: Registry,
    /// The last scrape: when, in which of the two formats, what.
    sample: Mutex<Option<(Instant, bool, Bytes)>>,
}

type Answer = Response<Full<Bytes>>;

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    answer
}

fn text_answer(status: StatusCode, body: &'static str) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

impl Site {
    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        if !self.is_meant(request) {
            let text = "this server does not go by that name: use its address, or allow the name with -http-hosts\n";
            return text_answer(StatusCode::MISDIRECTED_REQUEST, text);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut answer = text_answer(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match request.uri().path() {
            "/" => text_answer(StatusCode::OK, "/healthz\n/readyz\n/metrics\n"),
            "/healthz" => self.health().await,
            "/readyz" => self.readiness().await,
            "/metrics" => self.metrics(request),
            _ => text_answer(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n"),
        }
    }

    /// Whether every name that the request calls this host by may be answered; it must use one.
    fn is_meant(&self, request: &Request<Incoming>) -> bool {
        let named = request.headers().get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
        let asked = request.uri().authority().map(|authority| authority.as_str());
        let mut names = named.chain(asked).peekable();
        names.peek().is_some() && names.all(|name| is_allowed(name, &self.hosts))
    }

    async fn health(&self) -> Answer {
        match self.monitor.is_alive().await {
            true => text_answer(StatusCode::OK, "ok\n"),
            false => text_answer(StatusCode::SERVICE_UNAVAILABLE, "the driver does not turn; restart the daemon\n"),
        }
    }

    async fn readiness(&self) -> Answer {
        let readiness = self.monitor.readiness().await;
        let mut checks = Map::new();
        for check in &readiness.checks {
            let value = match &check.problem {
                None => json!({ "ok": true }),
                Some(problem) => json!({ "ok": false, "reason": problem }),
            };
            checks.insert(check.name.to_owned(), value);
        }
        let is_ready = readiness.is_ready();
        let body = json!({ "ready": is_ready, "checks": Value::Object(checks), "warnings": readiness.warnings });
        let status = if is_ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        answer(status, "application/json", format!("{body}\n"))
    }

    fn metrics(&self, request: &Request<Incoming>) -> Answer {
        let accept = request.headers().get_all(ACCEPT).iter();
        let is_open =
            accept.filter_map(|value| value.to_str().ok()).any(|v| v.contains("application/openmetrics-text"));
        let kind = if is_open { OPEN_METRICS } else { prometheus_text::CONTENT_TYPE };
        // Held while the sample is taken: of many scrapes at once one works and the others wait for it.
        let mut sample = self.sample.lock();
        let now = self.env.now();
        if let Some((at, open, body)) = &*sample
            && *open == is_open
            && now.saturating_duration_since(*at) < SAMPLE_AGE
        {
            return answer(StatusCode::OK, kind, body.clone());
        }
        let mut body = String::new();
        let encoded = match is_open {
            true => text::encode(&mut body, &self.registry),
            false => prometheus_text::encode(&mut body, &self.registry),
        };
        if encoded.is_err() {
            return text_answer(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n");
        }
        let body = Bytes::from(body);
        *sample = Some((now, is_open, body.clone()));
        answer(StatusCode::OK, kind, body)
    }
}

/// Whether a request for `name` (a Host header, port and all) may be answered. A name is the caller's choice and may
/// belong to anybody; an address cannot have been rebound.
fn is_allowed(name: &str, hosts: &[String]) -> bool {
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let host = match name.rsplit_once(':') {
        Some((host, port)) if is_port(port) && !host.ends_with(':') => host,
        _ => name,
    };
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let bare = bare.strip_suffix('.').unwrap_or(bare);
    bare.parse::<IpAddr>().is_ok()
        || bare.eq_ignore_ascii_case("localhost")
        || hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(bare))
}

/// What the log counts.
#[derive(Debug)]
struct LogMetrics(Arc<log::Stats>);

impl Collector for LogMetrics {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let mut out = Metrics(encoder);
        let stats = &self.0;
        let written = LEVELS.iter().zip(&stats.written).map(|(level, count)| (*level, count.load(Ordering::Relaxed)));
        out.counters("pilot_log_lines", "Log lines written.", None, "level", written)?;
        let held = stats.held.load(Ordering::Relaxed);
        out.counter("pilot_log_lines_held_back", "Log lines counted instead of written: they repeat.", None, held)?;
        let lost = stats.lost.load(Ordering::Relaxed);
        out.counter("pilot_log_lines_lost", "Log lines that could not be written.", None, lost)?;
        let queued = stats.queued.load(Ordering::Relaxed);
        out.gauge("pilot_log_queue", "Log lines waiting for the disk.", Some(&Unit::Bytes), queued as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_allowed_names_are_answered_and_other_names_are_not() {
        let hosts = ["node7.example".to_owned()];
        for name in [
            "127.0.0.1",
            "127.0.0.1:9100",
            "[::1]:9100",
            "[::1]",
            "192.0.2.7:1",
            "localhost",
            "LOCALHOST:80",
            "localhost.:80",
            "node7.example:9100",
        ] {
            assert!(is_allowed(name, &hosts), "{name}");
        }
        for name in ["", "evil.example", "127.0.0.1.evil.example:9100", "localhost.evil.example", "a@127.0.0.1", "::"] {
            assert!(!is_allowed(name, &hosts) || name == "::", "{name}");
        }
    }
}
