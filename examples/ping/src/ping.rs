//! Ping (port 1004): when did the other side get this, and how long did it take?
//!
//! The request is a mark of 8 bytes, the answer that mark and the server's clock: 8 bytes, nanoseconds since the Unix epoch,
//! big-endian. A stream carries any number of them, one after the other.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{Context, Service, Serving, Stream};

/// The port.
pub const PORT: u16 = 1004;
/// Bytes of a request: the mark.
pub const REQUEST_LEN: usize = 8;
/// Bytes of an answer: the mark and the clock.
pub const ANSWER_LEN: usize = 16;
/// Longest wait for a request. Whoever is silent for longer is let go.
const REQUEST_WAIT: Duration = Duration::from_secs(60);

/// An answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// That of the request.
    pub mark: [u8; REQUEST_LEN],
    /// When the request had arrived, by the server's clock: nanoseconds since the Unix epoch.
    pub received_at: u64,
}

impl Answer {
    /// Reads the wire form.
    pub fn parse(bytes: [u8; ANSWER_LEN]) -> Self {
        let [a, b, c, d, e, f, g, h, time @ ..] = bytes;
        Self { mark: [a, b, c, d, e, f, g, h], received_at: u64::from_be_bytes(time) }
    }

    /// The wire form.
    pub fn emit(self) -> [u8; ANSWER_LEN] {
        let mut bytes = [0; ANSWER_LEN];
        let (mark, time) = bytes.split_at_mut(REQUEST_LEN);
        mark.copy_from_slice(&self.mark);
        time.copy_from_slice(&self.received_at.to_be_bytes());
        bytes
    }
}

/// The service. It keeps nothing, so it is its own offer.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ping;

impl Service for Ping {
    fn name(&self) -> &'static str {
        "ping"
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn serve(&self, stream: Box<dyn Stream>, context: Context) -> Serving {
        Box::pin(serve(stream, context))
    }
}

async fn serve(mut stream: Box<dyn Stream>, context: Context) -> io::Result<()> {
    loop {
        let mut mark = [0; REQUEST_LEN];
        match tokio::time::timeout(REQUEST_WAIT, stream.read_exact(&mut mark)).await {
            Ok(Ok(_)) => {}
            // The end between two requests, or in the middle of one: nobody waits for an answer.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return stream.shutdown().await,
            Ok(Err(error)) => return Err(error),
            Err(_) => return stream.shutdown().await,
        }
        let received_at = u64::try_from((context.unix)().as_nanos()).unwrap_or(u64::MAX);
        stream.write_all(&Answer { mark, received_at }.emit()).await?;
        stream.flush().await?;
    }
}

/// Asks once, over a stream to [`PORT`].
///
/// # Errors
/// The stream's; `InvalidData` when the answer is not that to this request.
pub async fn ask<S>(stream: &mut S, mark: [u8; REQUEST_LEN]) -> io::Result<Answer>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&mark).await?;
    stream.flush().await?;
    let mut bytes = [0; ANSWER_LEN];
    stream.read_exact(&mut bytes).await?;
    match Answer::parse(bytes) {
        answer if answer.mark == mark => Ok(answer),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the answer is to another request")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn context() -> Context {
        Context { remote: Default::default(), unix: Arc::new(|| Duration::from_nanos(1_234_567_890_123)) }
    }

    #[test]
    fn an_answer_is_the_mark_and_the_clock() {
        let answer = Answer { mark: *b"12345678", received_at: 0x0102_0304_0506_0708 };
        assert_eq!(&answer.emit(), b"12345678\x01\x02\x03\x04\x05\x06\x07\x08");
        assert_eq!(Answer::parse(answer.emit()), answer);
    }

    #[tokio::test]
    async fn each_request_of_a_stream_is_answered_until_its_end() {
        let (mut client, server) = tokio::io::duplex(64);
        let serving = tokio::spawn(Ping.serve(Box::new(server), context()));
        for mark in [*b"firstone", *b"secondly"] {
            assert_eq!(ask(&mut client, mark).await.unwrap(), Answer { mark, received_at: 1_234_567_890_123 });
        }
        client.write_all(b"half").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_answer_to_something_else_is_an_error() {
        let (mut client, mut server) = tokio::io::duplex(64);
        server.write_all(&Answer { mark: [0; 8], received_at: 1 }.emit()).await.unwrap();
        let error = ask(&mut client, [1; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_client_is_let_go() {
        let (mut client, server) = tokio::io::duplex(64);
        let serving = tokio::spawn(Ping.serve(Box::new(server), context()));
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        serving.await.unwrap().unwrap();
    }
}
