//! Client to daemon.

use super::{ExtError, Fields, op};
use crate::addr::SocketAddress;
use crate::frame::{self, FrameError};

/// A frame of a client. Data is borrowed from the frame; JSON is not yet read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ClientFrame<'a> {
    /// 0x80: the first frame of the extension.
    Greet {
        /// The highest version the client speaks, at least 1.
        version: u16,
        /// Bytes the daemon may send on each new stream before the client grants more.
        credit: u32,
        /// JSON object about the client, or nothing.
        about: &'a [u8],
    },
    /// 0x81
    Bind {
        /// Request.
        request: u32,
        /// Exactly this port.
        port: u16,
        /// Streams that wait for an Accept, at most; 0 takes no streams.
        backlog: u16,
        /// Whether the port's datagrams are wanted.
        datagrams: bool,
    },
    /// 0x82
    Unbind {
        /// Request.
        request: u32,
        /// A port of this client.
        port: u16,
    },
    /// 0x83
    Accept {
        /// Request.
        request: u32,
        /// A port of this client.
        port: u16,
    },
    /// 0x84
    Dial {
        /// Request.
        request: u32,
        /// Where to.
        remote: SocketAddress,
        /// Given up after this many milliseconds; 0: the daemon's own limit.
        timeout_ms: u32,
    },
    /// 0x85; has no answer of its own.
    Cancel {
        /// The request to give up.
        request: u32,
    },
    /// 0x86
    SendDatagram {
        /// Request.
        request: u32,
        /// A port of this client that takes datagrams, or 0: one that the daemon chooses for this client.
        port: u16,
        /// Where to.
        to: SocketAddress,
        /// The datagram.
        data: &'a [u8],
    },
    /// 0x87
    Call {
        /// Request.
        request: u32,
        /// Which method.
        method: &'a str,
        /// JSON; nothing means `null`.
        params: &'a [u8],
    },
    /// 0x88
    Open {
        /// Request.
        request: u32,
        /// Which method.
        method: &'a str,
        /// JSON; nothing means `null`.
        params: &'a [u8],
    },
    /// 0x90
    Data {
        /// Which stream.
        stream: u32,
        /// Its bytes.
        data: &'a [u8],
    },
    /// 0x91
    Credit {
        /// Which stream.
        stream: u32,
        /// Further bytes the daemon may send.
        bytes: u32,
    },
    /// 0x92
    Finish {
        /// Request.
        request: u32,
        /// Which stream.
        stream: u32,
        /// Whether to end both directions where the peer knows no half-close.
        both: bool,
    },
    /// 0x93
    Close {
        /// Which stream.
        stream: u32,
    },
    /// 0x94
    Reset {
        /// Which stream.
        stream: u32,
    },
}

impl<'a> ClientFrame<'a> {
    /// Parses the body of a frame (opcode and payload). Bytes behind fixed fields are ignored.
    ///
    /// # Errors
    /// [`ExtError`]; it names the request that can be told of it.
    pub fn parse(body: &'a [u8]) -> Result<Self, ExtError> {
        let mut f = Fields::new(body)?;
        Ok(match f.op {
            op::GREET => {
                let version = f.u16()?;
                if version == 0 {
                    return Err(f.invalid("versions start at 1"));
                }
                Self::Greet { version, credit: f.u32()?, about: f.rest }
            }
            op::BIND => {
                let (request, port, backlog) = (f.request()?, f.u16()?, f.u16()?);
                Self::Bind { request, port, backlog, datagrams: f.u8()? & 1 != 0 }
            }
            op::UNBIND => Self::Unbind { request: f.request()?, port: f.u16()? },
            op::ACCEPT => Self::Accept { request: f.request()?, port: f.u16()? },
            op::DIAL => Self::Dial { request: f.request()?, remote: f.address()?, timeout_ms: f.u32()? },
            op::CANCEL => Self::Cancel { request: f.request()? },
            op::SEND_DATAGRAM => {
                let (request, port, to) = (f.request()?, f.u16()?, f.address()?);
                Self::SendDatagram { request, port, to, data: f.rest }
            }
            op::CALL => Self::Call { request: f.request()?, method: f.method()?, params: f.rest },
            op::OPEN => Self::Open { request: f.request()?, method: f.method()?, params: f.rest },
            op::DATA => Self::Data { stream: f.u32()?, data: f.rest },
            op::CREDIT => Self::Credit { stream: f.u32()?, bytes: f.u32()? },
            op::FINISH => Self::Finish { request: f.request()?, stream: f.u32()?, both: f.u8()? & 1 != 0 },
            op::CLOSE => Self::Close { stream: f.u32()? },
            op::RESET => Self::Reset { stream: f.u32()? },
            other => return Err(ExtError::Unknown(other)),
        })
    }

    /// The opcode.
    pub const fn opcode(&self) -> u8 {
        match self {
            Self::Greet { .. } => op::GREET,
            Self::Bind { .. } => op::BIND,
            Self::Unbind { .. } => op::UNBIND,
            Self::Accept { .. } => op::ACCEPT,
            Self::Dial { .. } => op::DIAL,
            Self::Cancel { .. } => op::CANCEL,
            Self::SendDatagram { .. } => op::SEND_DATAGRAM,
            Self::Call { .. } => op::CALL,
            Self::Open { .. } => op::OPEN,
            Self::Data { .. } => op::DATA,
            Self::Credit { .. } => op::CREDIT,
            Self::Finish { .. } => op::FINISH,
            Self::Close { .. } => op::CLOSE,
            Self::Reset { .. } => op::RESET,
        }
    }

    /// Appends the complete frame, prefix included. A method name is cut to 255 bytes, which no daemon takes.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] above the frame limit; `out` is then as it was.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        frame::emit_with(out, |out| {
            out.push(self.opcode());
            self.payload(out);
        })
    }

    fn payload(&self, out: &mut Vec<u8>) {
        match *self {
            Self::Greet { version, credit, about } => {
                out.extend_from_slice(&version.to_be_bytes());
                out.extend_from_slice(&credit.to_be_bytes());
                out.extend_from_slice(about);
            }
            Self::Bind { request, port, backlog, datagrams } => {
                out.extend_from_slice(&request.to_be_bytes());
                out.extend_from_slice(&port.to_be_bytes());
                out.extend_from_slice(&backlog.to_be_bytes());
                out.push(u8::from(datagrams));
            }
            Self::Unbind { request, port } | Self::Accept { request, port } => {
                out.extend_from_slice(&request.to_be_bytes());
                out.extend_from_slice(&port.to_be_bytes());
            }
            Self::Dial { request, remote, timeout_ms } => {
                out.extend_from_slice(&request.to_be_bytes());
                put_address(remote, out);
                out.extend_from_slice(&timeout_ms.to_be_bytes());
            }
            Self::Cancel { request } => out.extend_from_slice(&request.to_be_bytes()),
            Self::SendDatagram { request, port, to, data } => {
                out.extend_from_slice(&request.to_be_bytes());
                out.extend_from_slice(&port.to_be_bytes());
                put_address(to, out);
                out.extend_from_slice(data);
            }
            Self::Call { request, method, params } | Self::Open { request, method, params } => {
                out.extend_from_slice(&request.to_be_bytes());
                let name = &method.as_bytes()[..method.len().min(usize::from(u8::MAX))];
                out.push(name.len() as u8);
                out.extend_from_slice(name);
                out.extend_from_slice(params);
            }
            Self::Data { stream, data } => {
                out.extend_from_slice(&stream.to_be_bytes());
                out.extend_from_slice(data);
            }
            Self::Credit { stream, bytes } => {
                out.extend_from_slice(&stream.to_be_bytes());
                out.extend_from_slice(&bytes.to_be_bytes());
            }
            Self::Finish { request, stream, both } => {
                out.extend_from_slice(&request.to_be_bytes());
                out.extend_from_slice(&stream.to_be_bytes());
                out.push(u8::from(both));
            }
            Self::Close { stream } | Self::Reset { stream } => out.extend_from_slice(&stream.to_be_bytes()),
        }
    }
}

pub(super) fn put_address(to: SocketAddress, out: &mut Vec<u8>) {
    out.extend_from_slice(&to.addr.to_bytes());
    out.extend_from_slice(&to.port.to_be_bytes());
}
