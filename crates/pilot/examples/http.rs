//! HTTP over Pilot, unchanged: axum serves a `Listener`, hyper fetches through a `Stream`.
//!
//! ```text
//! cargo run -p pilot --example http -- serve                            # on the host of one agent
//! cargo run -p pilot --example http -- fetch 0:0000.0000.0002 /         # on the host of another that it trusts
//! ```
//!
//! Both use the daemon of this user, or the one at `PILOT_SOCKET`.
#![allow(dead_code, unreachable_pub)] // A test includes this file, and uses other parts of it than `main` does.

use std::io;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path};
use axum::http::header::CONNECTION;
use axum::http::{Request, Response};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use pilot::{Driver, Listener, Pilot, SocketAddress, Stream};

/// Where HTTP is served.
pub const PORT: u16 = 80;

/// A listener as axum wants it. This is all that HTTP needs to run over Pilot.
pub struct Door(pub Listener);

impl axum::serve::Listener for Door {
    type Io = Stream;
    type Addr = SocketAddress;

    async fn accept(&mut self) -> (Stream, SocketAddress) {
        loop {
            match self.0.accept().await {
                Ok(stream) => {
                    let peer = stream.peer_addr();
                    return (stream, peer);
                }
                Err(error) => {
                    eprintln!("accept: {error}");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddress> {
        Ok(self.0.local_addr())
    }
}

/// An application like any other.
pub fn application() -> Router {
    Router::new()
        .route("/", get(|| async { "hello over Pilot\n" }))
        .route("/bytes/{count}", get(|Path(count): Path<usize>| async move { pattern(count) }))
        .route("/count", post(|body: Bytes| async move { body.len().to_string() }))
        .route("/bye", get(|| async { ([(CONNECTION, "close")], "bye\n").into_response() }))
        .layer(DefaultBodyLimit::disable())
}

/// As many bytes as asked for, the same ones every time.
pub fn pattern(count: usize) -> Bytes {
    (0..count).map(|i| (i % 251) as u8).collect::<Vec<_>>().into()
}

/// A client on one connection, which it keeps alive.
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
    host: String,
}

impl Client {
    /// Connects to the HTTP port of a node.
    pub async fn connect(
        network: &dyn Pilot,
        to: SocketAddress,
    ) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let stream = network.dial(to).await?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender, host: to.addr.to_string() })
    }

    /// Sends a request and reads the whole answer.
    pub async fn ask(&mut self, method: &str, path: &str, body: Bytes) -> Result<Response<Bytes>, hyper::Error> {
        self.sender.ready().await?;
        let request = Request::builder().method(method).uri(path).header("host", &self.host).body(Full::new(body));
        let request = request.expect("method and path come from this program");
        let (head, body): (_, Incoming) = self.sender.send_request(request).await?.into_parts();
        Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
    }

    /// The body behind a path.
    pub async fn get(&mut self, path: &str) -> Result<Bytes, hyper::Error> {
        Ok(self.ask("GET", path, Bytes::new()).await?.into_body())
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let driver = Driver::connect_default().await?;
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["serve"] => {
            let listener = driver.listen(PORT).await?;
            println!("serving http://{}/", Pilot::address(&driver).await?);
            axum::serve(Door(listener), application()).await?;
        }
        ["fetch", address, path] => {
            let to = SocketAddress::new(address.parse()?, PORT);
            let answer = Client::connect(&driver, to).await?.ask("GET", path, Bytes::new()).await?;
            eprintln!("{}", answer.status());
            io::Write::write_all(&mut io::stdout(), answer.body())?;
        }
        _ => eprintln!("usage: http serve | http fetch ADDRESS PATH"),
    }
    Ok(())
}
