//! A program that speaks the extension of the local socket.
#![allow(unreachable_pub, reason = "a module of a test program")]

use std::collections::VecDeque;
use std::path::Path;

use pilot_wire::SocketAddress;
use pilot_wire::ipc::ext::{ClientFrame, DaemonFrame, Opened, Problem};
use serde_json::{Value, json};

use crate::common::client::Client;

/// A frame of the daemon.
#[derive(Debug, Clone, PartialEq)]
pub enum Got {
    Done(u32),
    Failed(u32, Problem),
    Opened(u32, Opened),
    Result(u32, Value),
    Datagram {
        port: u16,
        from: SocketAddress,
        missed: u32,
        data: Vec<u8>,
    },
    Data(u32, Vec<u8>),
    Credit(u32, u32),
    Finished(u32),
    Stopped(u32, u64, Problem),
    Closed(u32, u64, Problem),
    /// A frame of the official socket.
    Official(Vec<u8>),
}

fn understand(body: &[u8]) -> Got {
    if body[0] < 0x80 {
        return Got::Official(body.to_vec());
    }
    match DaemonFrame::parse(body).unwrap() {
        DaemonFrame::Done { request } => Got::Done(request),
        DaemonFrame::Failed { request, problem } => Got::Failed(request, problem),
        DaemonFrame::Opened { request, opened, .. } => Got::Opened(request, opened),
        DaemonFrame::Result { request, body } => Got::Result(request, serde_json::from_slice(body).unwrap()),
        DaemonFrame::Datagram { port, from, missed, data } => Got::Datagram { port, from, missed, data: data.to_vec() },
        DaemonFrame::Received { stream, data } => Got::Data(stream, data.to_vec()),
        DaemonFrame::Granted { stream, bytes } => Got::Credit(stream, bytes),
        DaemonFrame::Finished { stream } => Got::Finished(stream),
        DaemonFrame::Stopped { stream, delivered, problem } => Got::Stopped(stream, delivered, problem),
        DaemonFrame::Closed { stream, delivered, problem } => Got::Closed(stream, delivered, problem),
        other => panic!("{other:?}"),
    }
}

pub struct ExtClient {
    pub raw: Client,
    pub greeting: Value,
    /// What the daemon takes on each new stream at once.
    pub initial: u32,
    last_request: u32,
    kept: VecDeque<Got>,
}

impl ExtClient {
    pub async fn connect(path: &Path, credit: u32) -> Self {
        let mut raw = Client::connect(path).await;
        let mut frame = Vec::new();
        ClientFrame::Greet { version: 7, credit, about: br#"{"client":"test"}"# }.emit(&mut frame).unwrap();
        raw.write(&frame).await;
        let body = raw.next().await;
        let DaemonFrame::Greeting { version: 1, credit: initial, about } = DaemonFrame::parse(&body).unwrap() else {
            panic!("no greeting: {body:?}");
        };
        let greeting = serde_json::from_slice(about).unwrap();
        Self { raw, greeting, initial, last_request: 0, kept: VecDeque::new() }
    }

    pub fn number(&mut self) -> u32 {
        self.last_request += 1;
        self.last_request
    }

    pub async fn send(&mut self, frame: ClientFrame<'_>) {
        let mut out = Vec::new();
        frame.emit(&mut out).unwrap();
        self.raw.write(&out).await;
    }

    /// The next frame, kept ones first.
    pub async fn next(&mut self) -> Got {
        match self.kept.pop_front() {
            Some(got) => got,
            None => understand(&self.raw.next().await),
        }
    }

    /// The first frame that `pick` takes; others are kept for later, in order.
    pub async fn find<T>(&mut self, pick: impl Fn(&Got) -> Option<T>) -> T {
        let mut at = 0;
        loop {
            while at < self.kept.len() {
                if let Some(found) = pick(&self.kept[at]) {
                    self.kept.remove(at);
                    return found;
                }
                at += 1;
            }
            let got = understand(&self.raw.next().await);
            self.kept.push_back(got);
        }
    }

    /// What has come and was not asked for yet.
    pub fn kept(&self) -> impl Iterator<Item = &Got> {
        self.kept.iter()
    }

    /// The answer to a request.
    pub async fn answer(&mut self, request: u32) -> Got {
        self.find(|got| match got {
            Got::Done(id) | Got::Failed(id, _) | Got::Opened(id, _) | Got::Result(id, _) if *id == request => {
                Some(got.clone())
            }
            _ => None,
        })
        .await
    }

    /// Expects Done.
    pub async fn done(&mut self, request: u32) {
        assert_eq!(self.answer(request).await, Got::Done(request));
    }

    /// Expects Failed, and gives the code.
    pub async fn code(&mut self, request: u32) -> String {
        match self.answer(request).await {
            Got::Failed(_, problem) => {
                assert!(!problem.message.is_empty());
                problem.code
            }
            other => panic!("did not fail: {other:?}"),
        }
    }

    /// Expects Opened.
    pub async fn opened(&mut self, request: u32) -> Opened {
        match self.answer(request).await {
            Got::Opened(_, opened) => opened,
            other => panic!("not opened: {other:?}"),
        }
    }

    pub async fn bind(&mut self, port: u16, backlog: u16, datagrams: bool) {
        let request = self.number();
        self.send(ClientFrame::Bind { request, port, backlog, datagrams }).await;
        self.done(request).await;
    }

    pub async fn start_dial(&mut self, remote: SocketAddress, timeout_ms: u32) -> u32 {
        let request = self.number();
        self.send(ClientFrame::Dial { request, remote, timeout_ms }).await;
        request
    }

    pub async fn dial(&mut self, remote: SocketAddress) -> u32 {
        let request = self.start_dial(remote, 0).await;
        self.opened(request).await.stream
    }

    pub async fn start_accept(&mut self, port: u16) -> u32 {
        let request = self.number();
        self.send(ClientFrame::Accept { request, port }).await;
        request
    }

    pub async fn data(&mut self, stream: u32, data: &[u8]) {
        self.send(ClientFrame::Data { stream, data }).await;
    }

    pub async fn credit(&mut self, stream: u32, bytes: u32) {
        self.send(ClientFrame::Credit { stream, bytes }).await;
    }

    pub async fn start_finish(&mut self, stream: u32) -> u32 {
        let request = self.number();
        self.send(ClientFrame::Finish { request, stream, both: false }).await;
        request
    }

    pub async fn finish(&mut self, stream: u32) {
        let request = self.start_finish(stream).await;
        self.done(request).await;
    }

    pub async fn start_call(&mut self, method: &str, params: &Value) -> u32 {
        let request = self.number();
        let params = params.to_string();
        self.send(ClientFrame::Call { request, method, params: params.as_bytes() }).await;
        request
    }

    pub async fn call(&mut self, method: &str, params: &Value) -> Value {
        let request = self.start_call(method, params).await;
        match self.answer(request).await {
            Got::Result(_, value) => value,
            other => panic!("{method}: {other:?}"),
        }
    }

    pub async fn start_open(&mut self, method: &str, params: &Value) -> u32 {
        let request = self.number();
        let params = params.to_string();
        self.send(ClientFrame::Open { request, method, params: params.as_bytes() }).await;
        request
    }

    pub async fn open(&mut self, method: &str, params: &Value) -> u32 {
        let request = self.start_open(method, params).await;
        self.opened(request).await.stream
    }

    /// Waits until `at_least` bytes have arrived.
    pub async fn delivered(&mut self, stream: u32, at_least: u64) -> u64 {
        let answer = self.call("delivered", &json!({ "stream": stream, "at_least": at_least })).await;
        answer["delivered"].as_u64().unwrap()
    }

    /// Reads `len` bytes of a stream.
    pub async fn read(&mut self, stream: u32, len: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while all.len() < len {
            let part = self
                .find(|got| match got {
                    Got::Data(id, data) if *id == stream => Some(data.clone()),
                    Got::Finished(id) | Got::Closed(id, ..) if *id == stream => panic!("{got:?}"),
                    _ => None,
                })
                .await;
            all.extend(part);
        }
        assert_eq!(all.len(), len, "a frame goes beyond what was expected");
        all
    }

    /// Reads a stream to its end, granting more all the time.
    pub async fn read_to_end(&mut self, stream: u32) -> Vec<u8> {
        let mut all = Vec::new();
        loop {
            let part = self
                .find(|got| match got {
                    Got::Data(id, data) if *id == stream => Some(data.clone()),
                    Got::Finished(id) if *id == stream => Some(Vec::new()),
                    Got::Closed(id, ..) if *id == stream => panic!("no orderly end: {got:?}"),
                    _ => None,
                })
                .await;
            if part.is_empty() {
                return all;
            }
            self.credit(stream, part.len() as u32).await;
            all.extend(part);
        }
    }

    /// How a stream ends: bytes delivered, and the code.
    pub async fn closed(&mut self, stream: u32) -> (u64, String) {
        self.find(|got| match got {
            Got::Closed(id, delivered, problem) if *id == stream => Some((*delivered, problem.code.clone())),
            _ => None,
        })
        .await
    }

    /// Sends all of `data` as credit comes in.
    pub async fn write_all(&mut self, stream: u32, data: &[u8]) {
        let mut credit = self.initial as usize;
        let mut rest = data;
        while !rest.is_empty() {
            if credit == 0 {
                credit += self
                    .find(|got| match got {
                        Got::Credit(id, bytes) if *id == stream => Some(*bytes as usize),
                        Got::Closed(id, ..) | Got::Stopped(id, ..) if *id == stream => panic!("{got:?}"),
                        _ => None,
                    })
                    .await;
            }
            let n = rest.len().min(credit).min(60_000);
            self.data(stream, &rest[..n]).await;
            credit -= n;
            rest = &rest[n..];
        }
    }

    /// Whether nothing comes for a moment.
    pub async fn is_quiet(&mut self) -> bool {
        self.kept.is_empty() && self.raw.is_quiet().await
    }
}
