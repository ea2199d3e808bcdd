//! HTTP/1.1 requests to other people's servers: webhooks. Over the machine's own TCP and TLS, so that they work on a
//! simulated machine too; hyper speaks the protocol.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{AUTHORIZATION, HOST, LOCATION, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request, Uri};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use crate::Env;
use crate::tls::TlsConnector;

/// Bytes of an answer read to keep the connection; a longer one costs a new connection.
const MAX_ANSWER: usize = 64 * 1024;

type Connection = SendRequest<Full<Bytes>>;

/// Sends requests, one after the other over a connection that is kept. Cheap to clone.
///
/// Proxies of the environment are not used, and redirects are not followed.
#[derive(Clone)]
pub struct HttpClient(Arc<Inner>);

struct Inner {
    env: Env,
    user_agent: String,
    tls: TlsConnector,
    /// The last connection, and whom it leads to.
    kept: Mutex<Option<(String, Connection)>>,
}

/// A request with a body.
#[derive(Debug, Clone)]
pub struct HttpPost<'a> {
    /// `http://…` or `https://…`.
    pub url: &'a HttpUrl,
    /// Name and value of each header.
    pub headers: &'a [(&'static str, String)],
    /// What is sent.
    pub body: Vec<u8>,
    /// Longest wait for the whole answer.
    pub timeout: Duration,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpAnswer {
    /// The status, 100 to 599.
    pub status: u16,
    /// Where a redirect points.
    pub location: Option<String>,
    /// Seconds the server asks to wait (`Retry-After`).
    pub retry_after: Option<u64>,
}

/// The address of a web server and a path on it. Shown, it is only scheme, host and port: the rest may hold secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct HttpUrl {
    uri: Uri,
    secure: bool,
    host: String,
    port: u16,
    /// `user:password` of the URL.
    user: Option<String>,
}

impl HttpUrl {
    /// Reads a URL.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let without_fragment = text.split('#').next().unwrap_or_default();
        let uri: Uri = without_fragment.parse().map_err(|e| format!("{e}"))?;
        let secure = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err("its scheme is not http or https".to_owned()),
        };
        let authority = uri.authority().ok_or("it names no host")?;
        let host = authority.host().to_owned();
        if host.is_empty() {
            return Err("it names no host".to_owned());
        }
        let port = authority.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let user = authority.as_str().rsplit_once('@').map(|(user, _)| user.to_owned());
        Ok(Self { secure, host, port, user, uri })
    }

    /// `host:port`, without a port that goes without saying.
    fn authority(&self) -> String {
        match (self.secure, self.port) {
            (true, 443) | (false, 80) => self.host.clone(),
            (_, port) => format!("{}:{port}", self.host),
        }
    }
}

impl fmt::Display for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.secure { "https" } else { "http" }, self.authority())
    }
}

impl fmt::Debug for HttpUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl HttpClient {
    pub(crate) fn new(env: Env, user_agent: &str) -> io::Result<Self> {
        let tls = TlsConnector::system()?;
        Ok(Self(Arc::new(Inner { env, user_agent: user_agent.to_owned(), tls, kept: Mutex::new(None) })))
    }

    /// Sends a request and waits for the answer.
    ///
    /// # Errors
    /// The reason in one line, without anything of the URL but its host. `TimedOut` when the time is up.
    pub async fn post(&self, post: HttpPost<'_>) -> io::Result<HttpAnswer> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        tokio::time::timeout(post.timeout, self.send(&post)).await.map_err(late)?
    }

    async fn send(&self, post: &HttpPost<'_>) -> io::Result<HttpAnswer> {
        let request = self.request(post)?;
        let whom = post.url.to_string();
        let kept = self.0.kept.lock().take().filter(|(to, connection)| *to == whom && connection.is_ready());
        let reused = kept.is_some();
        let mut connection = match kept {
            Some((_, connection)) => connection,
            None => self.connect(post.url).await?,
        };
        let mut answer = connection.send_request(request.clone()).await;
        if reused && answer.is_err() {
            // The server closed the connection meanwhile: that says nothing about a new one.
            connection = self.connect(post.url).await?;
            answer = connection.send_request(request).await;
        }
        let (head, body) = answer.map_err(|e| io::Error::other(innermost(&e)))?.into_parts();
        if Limited::new(body, MAX_ANSWER).collect().await.is_ok() {
            *self.0.kept.lock() = Some((whom, connection));
        }
        let header = |name| head.headers.get(name).and_then(|value| value.to_str().ok());
        Ok(HttpAnswer {
            status: head.status.as_u16(),
            location: header(LOCATION).map(str::to_owned),
            retry_after: header(RETRY_AFTER).and_then(|value| value.parse().ok()),
        })
    }

    fn request(&self, post: &HttpPost<'_>) -> io::Result<Request<Full<Bytes>>> {
        let path = post.url.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, post.url.authority())
            .header(USER_AGENT, &self.0.user_agent);
        if let Some(user) = &post.url.user {
            let credentials = base64::engine::general_purpose::STANDARD.encode(user);
            request = request.header(AUTHORIZATION, format!("Basic {credentials}"));
        }
        for (name, value) in post.headers {
            request = request.header(*name, value);
        }
        request.body(Full::new(Bytes::from(post.body.clone()))).map_err(io::Error::other)
    }

    async fn connect(&self, url: &HttpUrl) -> io::Result<Connection> {
        let bare = url.host.trim_start_matches('[').trim_end_matches(']');
        let target = if bare.contains(':') { format!("[{bare}]:{}", url.port) } else { format!("{bare}:{}", url.port) };
        let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{bare} has no address"));
        for address in self.0.env.resolve(&target).await? {
            let stream = match self.0.env.tcp_connect(address).await {
                Ok(stream) if url.secure => self.0.tls.connect_to(bare, stream).await,
                other => other,
            };
            match stream {
                Ok(stream) => {
                    let (connection, driver) =
                        handshake(TokioIo::new(stream)).await.map_err(|e| io::Error::other(innermost(&e)))?;
                    // It ends when the connection is dropped or closed by the server.
                    tokio::spawn(async move { drop(driver.await) });
                    return Ok(connection);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// The innermost cause of an error, which is the one that helps.
pub fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_web_addresses_are_taken() {
        for good in ["http://127.0.0.1:80/hook?x=1", "https://example.org", "http://[::1]:8080/x#part"] {
            assert!(HttpUrl::parse(good).is_ok(), "{good}");
        }
        for bad in ["ftp://example.org", "file:///etc/passwd", "example.org", "http://", "unix:/x", "", "http://a b"] {
            assert!(HttpUrl::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shown_urls_hold_no_secret() {
        let url = HttpUrl::parse("https://user:pass@example.org:8443/path/secret?token=1").unwrap();
        assert_eq!(url.to_string(), "https://example.org:8443");
        assert_eq!(format!("{url:?}"), "https://example.org:8443");
        assert_eq!(HttpUrl::parse("http://example.org/x").unwrap().to_string(), "http://example.org");
    }
}
