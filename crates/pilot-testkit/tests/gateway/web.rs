//! A small web server on port 80 of an agent, written by hand so that it can misbehave as well.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use pilot::{Driver, Stream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Bytes of `/big`.
pub(crate) const BIG: usize = 3_000_000;
/// Bytes offered by `/endless`.
pub(crate) const ENDLESS: u64 = 64 << 20;

/// What it has seen and done.
#[derive(Default)]
pub(crate) struct Seen {
    /// Bytes of `/endless` that were taken.
    pub(crate) written: AtomicU64,
    /// The last request's head.
    pub(crate) head: std::sync::Mutex<String>,
}

pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 251 + i) as u8).collect()
}

/// Serves until the task is dropped.
pub(crate) async fn serve(driver: &Driver, seen: Arc<Seen>) {
    let listener = driver.listen(80).await.expect("port 80");
    tokio::spawn(async move {
        while let Ok(stream) = listener.accept().await {
            let seen = Arc::clone(&seen);
            tokio::spawn(async move { drop(answer(stream, seen).await) });
        }
    });
}

async fn answer(mut stream: Stream, seen: Arc<Seen>) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    seen.head.lock().unwrap().clone_from(&head);
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let path = head.split(' ').nth(1).unwrap_or_default();
    let page = |body: &str| {
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .into_bytes()
    };
    match path {
        "/" => stream.write_all(&page("<html><body><p id=who>hello from bob</p></body></html>")).await?,
        "/big" => {
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {BIG}\r\n\r\n").as_bytes()).await?;
            stream.write_all(&pattern(BIG)).await?;
        }
        // No length: the end of the stream is the end of the page.
        "/open" => stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nuntil the end").await?,
        "/count" => {
            let mut body = vec![0; length.unwrap_or(0)];
            stream.read_exact(&mut body).await?;
            stream.write_all(&page(&format!("{} {}", body.len(), body == pattern(body.len())))).await?;
        }
        // The same, and it never comes; or it does, and is none.
        "/unended" | "/broken" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nonly this").await?;
            if path == "/broken" {
                stream.wait_delivered().await?;
                stream.reset();
                return Ok(());
            }
            // Until the other end is gone.
            stream.read_to_end(&mut Vec::new()).await?;
        }
        // Promises more than it sends.
        "/cut" => stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this").await?,
        "/endless" => {
            stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {ENDLESS}\r\n\r\n").as_bytes()).await?;
            let chunk = [7; 16 * 1024];
            while seen.written.load(Ordering::Relaxed) < ENDLESS {
                stream.write_all(&chunk).await?;
                seen.written.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        }
        _ => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await?,
    }
    stream.close().await
}
