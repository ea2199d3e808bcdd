//! A scripted daemon at the other end of a transport.

use pilot::{Driver, Transport};
use pilot_env::{Env, UnixListener};
use pilot_wire::frame::FrameDecoder;
use pilot_wire::ipc::Answer;
use pilot_wire::ipc::ext::{ClientFrame, DaemonFrame, Opened, Problem};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The daemon's end.
pub(crate) struct Fake {
    io: Box<dyn Transport>,
    decoder: FrameDecoder,
    /// Bytes the driver takes of a new stream, as it said in its greeting.
    pub(crate) window: u32,
}

/// A driver and the daemon it talks to, `space` bytes apart.
pub(crate) fn pair(space: usize) -> (Driver, Fake) {
    let (ours, theirs) = tokio::io::duplex(space);
    (Driver::over(ours), Fake::new(theirs))
}

/// A driver that reaches its daemon by path, and so over several sockets: the first, and where the others come in.
pub(crate) async fn by_path(dir: &std::path::Path) -> (Driver, Fake, UnixListener) {
    let path = dir.join("pilot.sock");
    let door = Env::real().unix_listen(&path, 0o600).unwrap();
    let (driver, control) = tokio::join!(Driver::connect(&path), old_control(&door));
    (driver.unwrap(), control, door)
}

/// The control socket of a daemon that does not know the greeting.
pub(crate) async fn old_control(door: &UnixListener) -> Fake {
    let mut control = Fake::new(door.accept().await.unwrap());
    let greet = control.frame().await.unwrap();
    assert_eq!(greet[0], 0x80, "{}", hex(&greet));
    control.push(Answer::error("unknown command: 0x80")).await;
    control
}

impl Fake {
    pub(crate) fn new(io: impl Transport) -> Self {
        Self { io: Box::new(io), decoder: FrameDecoder::default(), window: 0 }
    }

    /// The body of the next frame, or `None` at the end.
    pub(crate) async fn frame(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(body) = self.decoder.next_frame().unwrap() {
                return Some(body.to_vec());
            }
            let mut chunk = vec![0; 64 * 1024];
            match self.io.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(n) => self.decoder.push(&chunk[..n]),
            }
        }
    }

    pub(crate) async fn expect(&mut self, hex: &str) {
        let body = self.frame().await.unwrap();
        assert_eq!(self::hex(&body), hex);
    }

    pub(crate) async fn push(&mut self, answer: Answer<'_>) {
        let mut out = Vec::new();
        answer.emit(&mut out).unwrap();
        self.io.write_all(&out).await.unwrap();
    }

    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

pub(crate) fn unhex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// A driver on a daemon that serves the extension, and that daemon's end.
pub(crate) async fn extended(dir: &std::path::Path, credit: u32) -> (Driver, Fake, UnixListener) {
    let path = dir.join("pilot.sock");
    let door = Env::real().unix_listen(&path, 0o600).unwrap();
    let (driver, daemon) = tokio::join!(Driver::connect(&path), greeted(&door, credit));
    (driver.unwrap(), daemon, door)
}

/// The next socket of a driver, greeted.
pub(crate) async fn greeted(door: &UnixListener, credit: u32) -> Fake {
    let mut fake = Fake::new(door.accept().await.unwrap());
    let greet = fake.frame().await.unwrap();
    let Ok(ClientFrame::Greet { version: 1, credit: window, .. }) = ClientFrame::parse(&greet) else {
        panic!("{}", hex(&greet));
    };
    fake.window = window;
    let about = br#"{"daemon":"scripted","address":"0:0000.0000.0001","methods":["health"]}"#;
    fake.say(DaemonFrame::Greeting { version: 1, credit, about }).await;
    fake
}

impl Fake {
    /// Sends a frame of the extension.
    pub(crate) async fn say(&mut self, frame: DaemonFrame<'_>) {
        let mut out = Vec::new();
        frame.emit(&mut out).unwrap();
        self.io.write_all(&out).await.unwrap();
    }

    /// The next frame of the extension as its debug text without the data, and its request number.
    pub(crate) async fn hear(&mut self) -> (String, u32) {
        Self::read(&self.frame().await.expect("the driver has left"))
    }

    /// The same of a frame at hand.
    pub(crate) fn read(body: &[u8]) -> (String, u32) {
        let frame = ClientFrame::parse(body).unwrap_or_else(|error| panic!("{error}: {}", hex(body)));
        match frame {
            ClientFrame::Bind { request, port, datagrams, .. } => (format!("bind {port} {datagrams}"), request),
            ClientFrame::Unbind { request, port } => (format!("unbind {port}"), request),
            ClientFrame::Accept { request, port } => (format!("accept {port}"), request),
            ClientFrame::Dial { request, remote, .. } => (format!("dial {remote}"), request),
            ClientFrame::Cancel { request } => ("cancel".into(), request),
            ClientFrame::SendDatagram { request, port, to, data } => {
                (format!("datagram {port} {to} {}", String::from_utf8_lossy(data)), request)
            }
            ClientFrame::Call { request, method, params } => {
                (format!("call {method} {}", String::from_utf8_lossy(params)), request)
            }
            ClientFrame::Open { request, method, params } => {
                (format!("open {method} {}", String::from_utf8_lossy(params)), request)
            }
            ClientFrame::Data { stream, data } => (format!("data {stream} {}", data.len()), 0),
            ClientFrame::Credit { stream, bytes } => (format!("credit {stream} {bytes}"), 0),
            ClientFrame::Finish { request, stream, both } => (format!("finish {stream} {both}"), request),
            ClientFrame::Close { stream } => (format!("close {stream}"), 0),
            other => (format!("{other:?}"), 0),
        }
    }

    /// Expects a frame; gives its request number.
    pub(crate) async fn heard(&mut self, wanted: &str) -> u32 {
        let (text, request) = self.hear().await;
        assert_eq!(text, wanted);
        request
    }

    /// Expects a frame and opens a stream for it.
    pub(crate) async fn open(&mut self, wanted: &str, stream: u32) {
        let request = self.heard(wanted).await;
        self.opened(request, stream).await;
    }

    /// Opens a stream for a request.
    pub(crate) async fn opened(&mut self, request: u32, stream: u32) {
        let remote = "0:0000.0000.0002:1000".parse().unwrap();
        let opened = Opened { stream, conn: 70 + stream, local_port: 49_152, remote };
        self.say(DaemonFrame::Opened { request, opened, about: b"" }).await;
    }

    /// Says that a request failed.
    pub(crate) async fn refuse(&mut self, request: u32, code: &str, hint: &str) {
        let problem = Problem::new(code, format!("{code} it is")).hint(hint);
        self.say(DaemonFrame::Failed { request, problem }).await;
    }
}
