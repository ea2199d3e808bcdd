//! Echo (port 7): what comes in goes back, chunk by chunk, unframed (specification 05 §4). It is what `ping`, `bench` and
//! `traceroute` talk to.
//!
//! One exception, as in official daemons since 1.10.5 (07 §7): a chunk of exactly twelve bytes `TRCE` and 8 more is
//! answered with these twelve and the server's clock in nanoseconds.

use std::io;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{Context, Service, Serving, Stream};

/// The port.
pub const PORT: u16 = 7;
/// First bytes of a time request.
pub const TRACE_MAGIC: [u8; 4] = *b"TRCE";
/// Length of a time request: magic and 8 bytes of the asker's choice.
pub const TRACE_REQUEST_LEN: usize = 12;
/// Length of its answer: the request and 8 bytes of nanoseconds since the Unix epoch, big-endian.
pub const TRACE_ANSWER_LEN: usize = 20;
/// Bytes read at once; they are written back before more is read, so a slow reader slows its own stream only.
const CHUNK: usize = 64 * 1024;

/// The echo service.
#[derive(Debug, Clone, Copy, Default)]
pub struct Echo;

impl Service for Echo {
    fn name(&self) -> &'static str {
        "echo"
    }

    fn port(&self) -> u16 {
        PORT
    }

    fn serve(&self, stream: Box<dyn Stream>, context: Context) -> Serving {
        Box::pin(serve(stream, context))
    }
}

async fn serve(mut stream: Box<dyn Stream>, context: Context) -> io::Result<()> {
    let mut buf = vec![0; CHUNK];
    loop {
        let n = stream.read(&mut buf).await?;
        let chunk = buf.get(..n).unwrap_or_default();
        if chunk.is_empty() {
            return stream.shutdown().await;
        }
        if n == TRACE_REQUEST_LEN && chunk.starts_with(&TRACE_MAGIC) {
            let nanos = u64::try_from((context.unix)().as_nanos()).unwrap_or(u64::MAX);
            // One write, so that the answer travels in one piece.
            let answer = [chunk, &nanos.to_be_bytes()].concat();
            stream.write_all(&answer).await?;
        } else {
            stream.write_all(chunk).await?;
        }
    }
}

/// A request for the server's clock with a mark of the asker's choice.
pub fn trace_request(mark: [u8; 8]) -> [u8; TRACE_REQUEST_LEN] {
    let mut request = [0; TRACE_REQUEST_LEN];
    request[..4].copy_from_slice(&TRACE_MAGIC);
    request[4..].copy_from_slice(&mark);
    request
}

/// The server's clock, in nanoseconds since the Unix epoch, from the answer to [`trace_request`]. `None` when the answer
/// is a plain echo, as official daemons through 1.9.1 send it.
pub fn trace_answer(answer: &[u8], mark: [u8; 8]) -> Option<u64> {
    let answer: &[u8; TRACE_ANSWER_LEN] = answer.try_into().ok()?;
    let (request, nanos) = answer.split_first_chunk::<TRACE_REQUEST_LEN>()?;
    (*request == trace_request(mark)).then(|| nanos.try_into().ok().map(u64::from_be_bytes))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::time::Duration;

    fn context() -> Context {
        Context { remote: Default::default(), unix: Arc::new(|| Duration::from_nanos(123_456_789_012)) }
    }

    #[tokio::test]
    async fn what_comes_in_goes_back_until_the_end() {
        let (mut client, server) = tokio::io::duplex(1024);
        let serving = tokio::spawn(Echo.serve(Box::new(server), context()));
        let data: Vec<u8> = (0..200_000u32).map(|i| i as u8).collect();
        let (mut read, mut write) = tokio::io::split(&mut client);
        let mut got = Vec::new();
        let send = async {
            write.write_all(&data).await.unwrap();
            write.shutdown().await.unwrap();
        };
        tokio::join!(send, async { read.read_to_end(&mut got).await.unwrap() });
        assert_eq!(got, data);
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_time_request_is_answered_with_the_clock_and_other_text_is_not() {
        let (mut client, server) = tokio::io::duplex(1024);
        tokio::spawn(Echo.serve(Box::new(server), context()));
        client.write_all(&trace_request(*b"12345678")).await.unwrap();
        let mut answer = [0; TRACE_ANSWER_LEN];
        client.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer[..12], b"TRCE12345678");
        assert_eq!(trace_answer(&answer, *b"12345678"), Some(123_456_789_012));
        assert_eq!(trace_answer(&answer, *b"87654321"), None);
        assert_eq!(trace_answer(&answer[..12], *b"12345678"), None);
        client.write_all(b"TRCE1234567").await.unwrap();
        let mut plain = [0; 11];
        client.read_exact(&mut plain).await.unwrap();
        assert_eq!(&plain, b"TRCE1234567");
    }
}
