//! Daemon to client.

use super::client::put_address;
use super::{ExtError, Fields, Problem, op};
use crate::addr::SocketAddress;
use crate::frame::{self, FrameError};

/// A stream that is there now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Its number on this socket.
    pub stream: u32,
    /// Its number in the daemon, as in status output; 0 for a stream to a service inside the daemon.
    pub conn: u32,
    /// Our port.
    pub local_port: u16,
    /// The other end; all zero for a service inside the daemon.
    pub remote: SocketAddress,
}

/// A frame of the daemon. Data is borrowed from the frame; JSON is not yet read.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DaemonFrame<'a> {
    /// 0xC0
    Greeting {
        /// The version spoken from here on.
        version: u16,
        /// Bytes the client may send on each new stream before the daemon grants more.
        credit: u32,
        /// JSON object: `daemon`, `limits`, `features`, `methods`, …
        about: &'a [u8],
    },
    /// 0xC1
    Done {
        /// Which request.
        request: u32,
    },
    /// 0xC2
    Failed {
        /// Which request; 0: the client broke a rule, and the daemon closes the socket.
        request: u32,
        /// Why.
        problem: Problem,
    },
    /// 0xC3
    Opened {
        /// Which request.
        request: u32,
        /// The stream.
        opened: Opened,
        /// JSON that the service answered, or nothing.
        about: &'a [u8],
    },
    /// 0xC4
    Result {
        /// Which request.
        request: u32,
        /// JSON.
        body: &'a [u8],
    },
    /// 0xC5, pushed
    Datagram {
        /// To which of our ports.
        port: u16,
        /// Who sent it.
        from: SocketAddress,
        /// Datagrams for this client that were dropped since the one before.
        missed: u32,
        /// Its bytes.
        data: &'a [u8],
    },
    /// 0xD0
    Received {
        /// Which stream.
        stream: u32,
        /// Its bytes.
        data: &'a [u8],
    },
    /// 0xD1
    Granted {
        /// Which stream.
        stream: u32,
        /// Further bytes the client may send.
        bytes: u32,
    },
    /// 0xD2
    Finished {
        /// Which stream.
        stream: u32,
    },
    /// 0xD3
    Stopped {
        /// Which stream.
        stream: u32,
        /// Bytes of the client that are known to have arrived.
        delivered: u64,
        /// Why.
        problem: Problem,
    },
    /// 0xD4
    Closed {
        /// Which stream.
        stream: u32,
        /// Bytes of the client that are known to have arrived.
        delivered: u64,
        /// Why.
        problem: Problem,
    },
}

impl<'a> DaemonFrame<'a> {
    /// Parses the body of a frame (opcode and payload). Bytes behind fixed fields are ignored.
    ///
    /// # Errors
    /// [`ExtError`]; a client ignores unknown opcodes and gives the daemon up for the others.
    pub fn parse(body: &'a [u8]) -> Result<Self, ExtError> {
        let mut f = Fields::new(body)?;
        Ok(match f.op {
            op::GREETING => Self::Greeting { version: f.u16()?, credit: f.u32()?, about: f.rest },
            op::DONE => Self::Done { request: f.u32()? },
            op::FAILED => Self::Failed { request: f.u32()?, problem: f.problem()? },
            op::OPENED => {
                let (request, stream, conn) = (f.u32()?, f.u32()?, f.u32()?);
                let (local_port, remote) = (f.u16()?, f.address()?);
                Self::Opened { request, opened: Opened { stream, conn, local_port, remote }, about: f.rest }
            }
            op::RESULT => Self::Result { request: f.u32()?, body: f.rest },
            op::DATAGRAM => {
                let (port, from, missed) = (f.u16()?, f.address()?, f.u32()?);
                Self::Datagram { port, from, missed, data: f.rest }
            }
            op::RECEIVED => Self::Received { stream: f.u32()?, data: f.rest },
            op::GRANTED => Self::Granted { stream: f.u32()?, bytes: f.u32()? },
            op::FINISHED => Self::Finished { stream: f.u32()? },
            op::STOPPED => Self::Stopped { stream: f.u32()?, delivered: f.u64()?, problem: f.problem()? },
            op::CLOSED => Self::Closed { stream: f.u32()?, delivered: f.u64()?, problem: f.problem()? },
            other => return Err(ExtError::Unknown(other)),
        })
    }

    /// The opcode.
    pub const fn opcode(&self) -> u8 {
        match self {
            Self::Greeting { .. } => op::GREETING,
            Self::Done { .. } => op::DONE,
            Self::Failed { .. } => op::FAILED,
            Self::Opened { .. } => op::OPENED,
            Self::Result { .. } => op::RESULT,
            Self::Datagram { .. } => op::DATAGRAM,
            Self::Received { .. } => op::RECEIVED,
            Self::Granted { .. } => op::GRANTED,
            Self::Finished { .. } => op::FINISHED,
            Self::Stopped { .. } => op::STOPPED,
            Self::Closed { .. } => op::CLOSED,
        }
    }

    /// Appends the complete frame, prefix included.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] above the frame limit; `out` is then as it was.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        frame::emit_with(out, |out| {
            out.push(self.opcode());
            self.payload(out);
        })
    }

    /// Appends a data frame whose bytes `fill` puts into the buffer it is given, `room` bytes long, saying how many; with
    /// none of them nothing is appended. So received data is copied once.
    pub fn emit_received(stream: u32, room: usize, out: &mut Vec<u8>, fill: impl FnOnce(&mut [u8]) -> usize) {
        let start = out.len();
        let mut filled = 0;
        let emitted = frame::emit_with(out, |out| {
            out.push(op::RECEIVED);
            out.extend_from_slice(&stream.to_be_bytes());
            let at = out.len();
            out.resize(at + room.min(super::MAX_DATA), 0);
            filled = fill(&mut out[at..]).min(out.len() - at);
            out.truncate(at + filled);
        });
        if emitted.is_err() || filled == 0 {
            out.truncate(start);
        }
    }

    fn payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::Greeting { version, credit, about } => {
                out.extend_from_slice(&version.to_be_bytes());
                out.extend_from_slice(&credit.to_be_bytes());
                out.extend_from_slice(about);
            }
            Self::Done { request } => out.extend_from_slice(&request.to_be_bytes()),
            Self::Failed { request, problem } => {
                out.extend_from_slice(&request.to_be_bytes());
                problem.emit(out);
            }
            Self::Opened { request, opened, about } => {
                out.extend_from_slice(&request.to_be_bytes());
                out.extend_from_slice(&opened.stream.to_be_bytes());
                out.extend_from_slice(&opened.conn.to_be_bytes());
                out.extend_from_slice(&opened.local_port.to_be_bytes());
                put_address(opened.remote, out);
                out.extend_from_slice(about);
            }
            Self::Result { request, body } => {
                out.extend_from_slice(&request.to_be_bytes());
                out.extend_from_slice(body);
            }
            Self::Datagram { port, from, missed, data } => {
                out.extend_from_slice(&port.to_be_bytes());
                put_address(*from, out);
                out.extend_from_slice(&missed.to_be_bytes());
                out.extend_from_slice(data);
            }
            Self::Received { stream, data } => {
                out.extend_from_slice(&stream.to_be_bytes());
                out.extend_from_slice(data);
            }
            Self::Granted { stream, bytes } => {
                out.extend_from_slice(&stream.to_be_bytes());
                out.extend_from_slice(&bytes.to_be_bytes());
            }
            Self::Finished { stream } => out.extend_from_slice(&stream.to_be_bytes()),
            Self::Stopped { stream, delivered, problem } | Self::Closed { stream, delivered, problem } => {
                out.extend_from_slice(&stream.to_be_bytes());
                out.extend_from_slice(&delivered.to_be_bytes());
                problem.emit(out);
            }
        }
    }
}
