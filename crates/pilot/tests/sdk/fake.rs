//! A scripted daemon at the other end of a transport.

use pilot::{Driver, Transport};
use pilot_env::{Env, UnixListener};
use pilot_wire::frame::FrameDecoder;
use pilot_wire::ipc::Answer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The daemon's end.
pub(crate) struct Fake {
    io: Box<dyn Transport>,
    decoder: FrameDecoder,
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
        Self { io: Box::new(io), decoder: FrameDecoder::default() }
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
