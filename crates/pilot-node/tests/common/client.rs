//! A program on the local socket that speaks frames by hand.

use std::path::Path;
use std::time::Duration;

use pilot_env::{Env, UnixStream};
use pilot_wire::frame::FrameDecoder;
use pilot_wire::ipc::{Answer, Request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{PATIENCE, patient};

pub struct Client {
    pub socket: UnixStream,
    decoder: FrameDecoder,
}

impl Client {
    pub async fn connect(path: &Path) -> Self {
        Self { socket: Env::real().unix_connect(path).await.unwrap(), decoder: FrameDecoder::default() }
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        patient(self.socket.write_all(bytes)).await.unwrap();
    }

    pub async fn send(&mut self, request: &Request<'_>) {
        let mut frame = Vec::new();
        request.emit(&mut frame).unwrap();
        self.write(&frame).await;
    }

    /// The next frame without its prefix, or `None` when the daemon has closed the socket.
    pub async fn next_or_end(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(body) = self.decoder.next_frame().unwrap() {
                return Some(body.to_vec());
            }
            let buffer = self.decoder.buffer();
            buffer.reserve(64 * 1024);
            if tokio::time::timeout(PATIENCE, self.socket.read_buf(buffer)).await.expect("no frame came").ok()? == 0 {
                return None;
            }
        }
    }

    pub async fn next(&mut self) -> Vec<u8> {
        self.next_or_end().await.expect("the daemon closed the socket")
    }

    /// Whether nothing comes for a moment.
    pub async fn is_quiet(&mut self) -> bool {
        tokio::time::timeout(Duration::from_millis(100), self.next_or_end()).await.is_err()
    }

    /// Sends a request and returns the next frame that answers it: pushed frames are skipped.
    pub async fn ask(&mut self, request: &Request<'_>) -> Vec<u8> {
        self.send(request).await;
        loop {
            let body = self.next().await;
            match Answer::parse(&body).unwrap() {
                Answer::Accept { .. } | Answer::Recv { .. } | Answer::RecvFrom { .. } => {}
                _ => return body,
            }
        }
    }

    /// Sends a request that is answered with JSON.
    pub async fn ask_json(&mut self, request: &Request<'_>) -> serde_json::Value {
        let body = self.ask(request).await;
        match Answer::parse(&body).unwrap() {
            Answer::Json { body, .. } => serde_json::from_slice(body).unwrap(),
            other => panic!("no JSON: {other:?}"),
        }
    }
}
