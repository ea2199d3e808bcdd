//! The third door: an HTTP proxy. CONNECT becomes a stream; a request with a whole URL (`GET http://bob.pilot/`) is sent
//! over a stream of its own, without what concerns only this connection (RFC 9110 §7.6.1).
//!
//! hyper reads and writes HTTP; nothing but heads is held, bodies pass as fast as the slower side takes them.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::uri::{Authority, PathAndQuery};
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri, client::conn::http1 as client};
use hyper_util::rt::{TokioIo, TokioTimer};
use pilot_env::http::innermost;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use crate::dial::{Cause, Refusal};
use crate::gateway::{Guest, Shared};
use crate::relay::{Client, Debt, relay};

/// The head of a request must be complete within this time; so long, too, may a kept connection be idle.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// Longest head of a request or an answer, bytes. (It is also what is buffered of a body.)
const MAX_HEAD: usize = 64 * 1024;
/// Header lines of a head.
const MAX_HEADERS: usize = 128;
/// Longest wait for the head of an answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(300);
/// What this proxy calls itself.
const NAME: &str = "pilot-gateway";
/// Headers that concern one connection only.
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
];

type Body = BoxBody<Bytes, hyper::Error>;

/// A body that the client waits for. However it was asked for, it must not look whole when it is not: a client of HTTP/1.0
/// knows no other end than that of the connection.
struct Owed {
    body: Body,
    /// Whose it is; nobody's, where a tunnel follows, which has a debt of its own.
    debt: Option<Arc<Debt>>,
}

impl hyper::body::Body for Owed {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Err(_))) = frame {
            // It stays owed.
            self.debt = None;
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Owed {
    /// hyper drops a body when it has taken all that the client shall get of it, or with the connection, and nothing is
    /// flushed any more then.
    fn drop(&mut self) {
        if let Some(debt) = &self.debt {
            debt.said();
        }
    }
}

/// Serves one connection.
pub(crate) async fn serve(shared: Arc<Shared>, guest: Guest) {
    let Guest { client, permission, slot } = guest;
    let (activity, debt, own) = (Arc::clone(client.activity()), Arc::clone(client.debt()), client.local_addr());
    // Held by the tunnel that a CONNECT leaves behind, too.
    let slot = Arc::new(slot);
    let service = service_fn(move |request| {
        let (shared, slot, permission) = (Arc::clone(&shared), Arc::clone(&slot), permission.clone());
        let debt = Arc::clone(&debt);
        debt.owe();
        async move {
            let tunnel = request.method() == Method::CONNECT;
            let answered = match permission {
                Ok(()) => answer(&shared, request, own, slot).await,
                Err(refusal) => Err(refusal),
            };
            let debt = (!tunnel || answered.is_err()).then_some(debt);
            let answer = answered.unwrap_or_else(|refusal| {
                shared.refused(&refusal);
                refuse(&refusal)
            });
            Ok::<_, Infallible>(answer.map(|body| Owed { body, debt }))
        }
    });
    let serving = server::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .half_close(true)
        .preserve_header_case(true)
        .serve_connection(TokioIo::new(client), service)
        .with_upgrades();
    tokio::select! {
        // A client that breaks the protocol has been answered, or has gone.
        served = serving => if let Err(error) = served {
            tracing::debug!(%error, "an HTTP connection ended early");
        },
        () = activity.idle() => tracing::debug!("an idle HTTP connection was closed"),
    }
}

async fn answer(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    own: SocketAddr,
    slot: Arc<OwnedSemaphorePermit>,
) -> Result<Response<Body>, Refusal> {
    if request.method() == Method::CONNECT {
        return connect(shared, request, slot).await;
    }
    let scheme = request.uri().scheme_str().map(str::to_owned);
    match (scheme.as_deref(), request.uri().authority().cloned()) {
        (Some("http"), Some(authority)) => forward(shared, request, &authority).await,
        (Some(_), _) => Err(Refusal::new(
            Cause::Malformed,
            format!("{} cannot be fetched: this proxy speaks http", request.uri()),
            "programs reach https:// through CONNECT",
        )),
        (None, _) => own_page(&request, own),
    }
}

/// Makes a tunnel.
async fn connect(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    slot: Arc<OwnedSemaphorePermit>,
) -> Result<Response<Body>, Refusal> {
    let target = request.uri().authority().cloned();
    let port = target.as_ref().and_then(Authority::port_u16);
    let (Some(target), Some(port)) = (target, port) else {
        let hint = "write CONNECT bob.pilot:443 HTTP/1.1";
        return Err(Refusal::new(Cause::Malformed, "CONNECT names no host and port", hint));
    };
    let to = shared.destination(target.host())?;
    let stream = shared.dialer.dial(&to, port).await?;
    let upgrade = hyper::upgrade::on(&mut request);
    shared.spawn(async move {
        let _slot = slot;
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => return tracing::debug!(%error, "a client left before its tunnel stood"),
        };
        // It is what was given to hyper.
        let Ok(parts) = upgraded.downcast::<TokioIo<Client>>() else { return };
        if let Err(error) = relay(parts.io.into_inner(), &parts.read_buf, stream).await {
            tracing::debug!(%error, "a tunnel ended early");
        }
    });
    Ok(Response::new(empty()))
}

/// Sends a request on and its answer back.
async fn forward(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    authority: &Authority,
) -> Result<Response<Body>, Refusal> {
    let port = match (authority.port_u16(), authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, a)| a))
    {
        (Some(port), _) => port,
        // `bob.pilot:` is a port of no digits; `bob.pilot:99999` is none at all.
        (None, text) if text == authority.host() || text.ends_with(':') => 80,
        (None, text) => return Err(Refusal::new(Cause::Malformed, format!("{text} has no valid port"), "")),
    };
    let to = shared.destination(authority.host())?;
    let stream = shared.dialer.dial(&to, port).await?;
    let broken = |error: hyper::Error| {
        let why = innermost(&error);
        Refusal::new(Cause::Unreachable, format!("{to}, port {port}: the agent's answer broke off: {why}"), "")
    };
    let shaking =
        client::Builder::new().preserve_header_case(true).max_headers(MAX_HEADERS).handshake(TokioIo::new(stream));
    let (mut sender, connection) = shaking.await.map_err(broken)?;
    // It ends with the exchange: when the answer has been passed on, or the client has left.
    shared.spawn(async move { drop(connection.await) });
    let sending = sender.send_request(outgoing(request, authority)?);
    let answer = match timeout(ANSWER_LIMIT, sending).await {
        Ok(answer) => answer.map_err(broken)?,
        Err(_) => {
            let message = format!("{to}, port {port}: no answer within {} s", ANSWER_LIMIT.as_secs());
            return Err(Refusal::new(Cause::TimedOut, message, ""));
        }
    };
    let (mut head, body) = answer.into_parts();
    clean(&mut head.headers);
    head.headers.append(header::VIA, HeaderValue::from_static("1.1 pilot-gateway"));
    Ok(Response::from_parts(head, body.boxed()))
}

/// The request as the agent gets it.
fn outgoing(request: Request<Incoming>, authority: &Authority) -> Result<Request<Body>, Refusal> {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().cloned().filter(|path| !path.as_str().is_empty());
    let path = match path {
        Some(path) if !(head.method == Method::OPTIONS && path == "/") => path,
        None if head.method != Method::OPTIONS => PathAndQuery::from_static("/"),
        // OPTIONS of a URL without a path asks the server itself (RFC 9112 §3.2.4).
        _ => PathAndQuery::from_static("*"),
    };
    head.uri = Uri::from(path);
    head.version = hyper::Version::HTTP_11;
    clean(&mut head.headers);
    head.headers.remove(header::EXPECT);
    // The URL decides whom it is for, and not a Host header that may say something else (RFC 9112 §3.2.2).
    let host = authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host);
    let host = HeaderValue::from_str(host)
        .map_err(|_| Refusal::new(Cause::Malformed, "the host of the URL cannot be a Host header", ""))?;
    head.headers.insert(header::HOST, host);
    head.headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    head.headers.append(header::VIA, HeaderValue::from_static("1.1 pilot-gateway"));
    Ok(Request::from_parts(head, body.boxed()))
}

/// Takes away what concerns only the connection it came over.
fn clean(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        headers.remove(name);
    }
    headers.remove("proxy-connection");
    headers.remove("keep-alive");
}

/// What the proxy itself serves: the file that tells browsers to use it for agents and for nothing else. `proxy` is the
/// address at which this client has reached it, and so can again.
fn own_page<B>(request: &Request<B>, proxy: SocketAddr) -> Result<Response<Body>, Refusal> {
    let is_get = matches!(*request.method(), Method::GET | Method::HEAD);
    match (is_get, request.uri().path()) {
        (true, "/proxy.pac") => {
            let text = format!(
                "function FindProxyForURL(url, host) {{\n  return dnsDomainIs(host, \".pilot\") ? \"PROXY {proxy}\" : \
                 \"DIRECT\";\n}}\n"
            );
            let mut page = Response::new(full(text));
            let kind = HeaderValue::from_static("application/x-ns-proxy-autoconfig");
            page.headers_mut().insert(header::CONTENT_TYPE, kind);
            Ok(page)
        }
        _ => Err(Refusal::new(
            Cause::Malformed,
            "this is a proxy to agents, not a web server",
            "ask for a whole URL, such as curl --proxy http://127.0.0.1:PORT http://bob.pilot/",
        )),
    }
}

fn empty() -> Body {
    full("")
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed()
}

/// An answer with the reason, for people and, in `Proxy-Status` (RFC 9209), for programs.
fn refuse(refusal: &Refusal) -> Response<Body> {
    let hint = if refusal.hint.is_empty() { String::new() } else { format!("{}\n", refusal.hint) };
    let mut answer = Response::new(full(format!("{}\n{hint}", refusal.message)));
    *answer.status_mut() = refusal.status();
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // A text of a structured field: printable ASCII, two characters escaped.
    let details: String = refusal
        .message
        .chars()
        .map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' })
        .flat_map(|c| matches!(c, '"' | '\\').then_some('\\').into_iter().chain([c]))
        .collect();
    let status = format!("{NAME}; error={}; details=\"{details}\"", refusal.proxy_error());
    if let Ok(status) = HeaderValue::from_str(&status) {
        headers.insert("proxy-status", status);
    }
    // Who may not use the gateway shall not keep a place in it either.
    if refusal.status() == StatusCode::BAD_REQUEST || refusal.cause == Cause::Forbidden {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_concerns_one_connection_goes_no_further() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Hop"),
            ("connection", "x-other"),
            ("x-hop", "1"),
            ("x-other", "1"),
            ("proxy-authorization", "secret"),
            ("proxy-connection", "keep-alive"),
            ("keep-alive", "timeout=5"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "h2c"),
            ("te", "trailers"),
            ("x-end", "kept"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        clean(&mut headers);
        assert_eq!(
            headers.iter().collect::<Vec<_>>(),
            [(&"x-end".parse().unwrap(), &HeaderValue::from_static("kept"))]
        );
    }

    #[test]
    fn a_browser_is_told_the_address_that_it_can_reach() {
        let request = Request::get("/proxy.pac").body(()).unwrap();
        let page = own_page(&request, "192.0.2.7:3128".parse().unwrap()).unwrap();
        let page = tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(page.into_body().collect());
        assert!(String::from_utf8_lossy(&page.unwrap().to_bytes()).contains("\"PROXY 192.0.2.7:3128\""));
    }

    #[test]
    fn whom_it_does_not_serve_keeps_no_connection() {
        let refusal = Refusal::new(Cause::Forbidden, "somebody else", "");
        assert_eq!(refuse(&refusal).headers()[header::CONNECTION], "close");
        let refusal = Refusal::new(Cause::NotFound, "nobody", "");
        assert_eq!(refuse(&refusal).headers().get(header::CONNECTION), None);
    }

    #[test]
    fn a_refusal_is_told_to_people_and_programs() {
        let refusal = Refusal::new(Cause::TimedOut, "bob \"the\" böse\\", "try later");
        let answer = refuse(&refusal);
        assert_eq!(answer.status(), 504);
        let status = answer.headers()["proxy-status"].to_str().unwrap();
        assert_eq!(status, r#"pilot-gateway; error=connection_timeout; details="bob \"the\" b?se\\""#);
    }
}
