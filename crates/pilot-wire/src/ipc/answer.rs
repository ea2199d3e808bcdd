//! Daemon to client.

use serde_json::Value;

use super::request::{put_socket_address, socket_address};
use super::{ERROR_CODE, op};
use crate::addr::SocketAddress;
use crate::frame::{self, FrameError};
use crate::json;

/// An answer or a pushed frame. Data is borrowed from the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Answer<'a> {
    /// 0x02
    BindOk {
        /// As asked for.
        port: u16,
    },
    /// 0x04
    DialOk {
        /// The new connection.
        conn: u32,
    },
    /// 0x05, pushed
    Accept {
        /// The bound port.
        local_port: u16,
        /// The new connection.
        conn: u32,
        /// Who dialled.
        remote: SocketAddress,
    },
    /// 0x07, pushed
    Recv {
        /// Connection id.
        conn: u32,
        /// At least one byte.
        data: &'a [u8],
    },
    /// 0x09, answer and pushed
    CloseOk {
        /// Connection id.
        conn: u32,
    },
    /// 0x0A
    Error {
        /// Always [`ERROR_CODE`] from a daemon; 0 when the frame was too short to hold one.
        code: u16,
        /// What went wrong; empty from an empty frame.
        text: String,
    },
    /// 0x0C, pushed
    RecvFrom {
        /// Who sent it.
        from: SocketAddress,
        /// To which port.
        port: u16,
        /// At least one byte.
        data: &'a [u8],
    },
    /// 0x38
    UnbindOk {
        /// As asked for.
        port: u16,
    },
    /// 0x3A
    SendToConfirmOk,
    /// Every answer that is JSON text.
    Json {
        /// Its opcode.
        op: u8,
        /// The text, not yet read.
        body: &'a [u8],
    },
}

/// Why a frame is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AnswerError {
    /// A frame without opcode; ignored.
    #[error("empty frame")]
    Empty,
    /// An opcode no daemon sends.
    #[error("unknown answer 0x{0:02X}")]
    Unknown(u8),
    /// A fixed part is missing.
    #[error("answer 0x{0:02X} is too short")]
    Short(u8),
}

impl AnswerError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "ipc_empty_frame",
            Self::Unknown(_) => "ipc_unknown_answer",
            Self::Short(_) => "ipc_short_answer",
        }
    }
}

fn chunk16(b: &[u8]) -> Option<(u16, &[u8])> {
    b.split_first_chunk().map(|(n, rest)| (u16::from_be_bytes(*n), rest))
}

fn chunk32(b: &[u8]) -> Option<(u32, &[u8])> {
    b.split_first_chunk().map(|(n, rest)| (u32::from_be_bytes(*n), rest))
}

/// Whether the answer with this opcode carries JSON.
fn is_json(opcode: u8) -> bool {
    matches!(
        opcode,
        op::INFO_OK
            | op::HANDSHAKE_OK
            | op::RESOLVE_HOSTNAME_OK
            | op::SET_HOSTNAME_OK
            | op::SET_VISIBILITY_OK
            | op::DEREGISTER_OK
            | op::SET_TAGS_OK
            | op::SET_WEBHOOK_OK
            | op::SET_TASK_EXEC_OK
            | op::NETWORK_OK
            | op::HEALTH_OK
            | op::MANAGED_OK
            | op::ROTATE_KEY_OK
            | op::BROADCAST_OK
            | op::PREFER_DIRECT_OK
            | op::SUBMIT_BADGE_OK
            | op::ENROLL_RECOVERY_OK
            | op::SIGN_ENVELOPE_OK
            | op::VERIFY_ENVELOPE_OK
    )
}

impl<'a> Answer<'a> {
    /// An Error frame with the only code there is.
    pub fn error(text: impl Into<String>) -> Answer<'static> {
        Answer::Error { code: ERROR_CODE, text: text.into() }
    }

    /// Parses the body of a frame (opcode and payload).
    ///
    /// # Errors
    /// [`AnswerError`]; a client ignores such a frame.
    pub fn parse(body: &'a [u8]) -> Result<Self, AnswerError> {
        let (&opcode, b) = body.split_first().ok_or(AnswerError::Empty)?;
        let short = AnswerError::Short(opcode);
        Ok(match opcode {
            op::BIND_OK => Self::BindOk { port: chunk16(b).ok_or(short)?.0 },
            op::UNBIND_OK => Self::UnbindOk { port: chunk16(b).ok_or(short)?.0 },
            op::DIAL_OK => Self::DialOk { conn: chunk32(b).ok_or(short)?.0 },
            op::CLOSE_OK => Self::CloseOk { conn: chunk32(b).ok_or(short)?.0 },
            op::ACCEPT => {
                let (local_port, b) = chunk16(b).ok_or(short)?;
                let (conn, b) = chunk32(b).ok_or(short)?;
                Self::Accept { local_port, conn, remote: socket_address(b).ok_or(short)?.0 }
            }
            op::RECV => {
                let (conn, data) = chunk32(b).ok_or(short)?;
                Self::Recv { conn, data }
            }
            op::RECV_FROM => {
                let (from, b) = socket_address(b).ok_or(short)?;
                let (port, data) = chunk16(b).ok_or(short)?;
                Self::RecvFrom { from, port, data }
            }
            op::ERROR => match chunk16(b) {
                Some((code, text)) => Self::Error { code, text: json::text_lossy(text) },
                None => Self::Error { code: 0, text: String::new() },
            },
            op::SEND_TO_CONFIRM_OK => Self::SendToConfirmOk,
            other if is_json(other) => Self::Json { op: other, body: b },
            other => return Err(AnswerError::Unknown(other)),
        })
    }

    /// The opcode.
    pub fn opcode(&self) -> u8 {
        match self {
            Self::BindOk { .. } => op::BIND_OK,
            Self::DialOk { .. } => op::DIAL_OK,
            Self::Accept { .. } => op::ACCEPT,
            Self::Recv { .. } => op::RECV,
            Self::CloseOk { .. } => op::CLOSE_OK,
            Self::Error { .. } => op::ERROR,
            Self::RecvFrom { .. } => op::RECV_FROM,
            Self::UnbindOk { .. } => op::UNBIND_OK,
            Self::SendToConfirmOk => op::SEND_TO_CONFIRM_OK,
            Self::Json { op, .. } => *op,
        }
    }

    /// Appends the complete frame, prefix included.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when the client would give the daemon up for it.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        frame::emit_with(out, |out| {
            out.push(self.opcode());
            match self {
                Self::BindOk { port } | Self::UnbindOk { port } => out.extend_from_slice(&port.to_be_bytes()),
                Self::DialOk { conn } | Self::CloseOk { conn } => out.extend_from_slice(&conn.to_be_bytes()),
                Self::Accept { local_port, conn, remote } => {
                    out.extend_from_slice(&local_port.to_be_bytes());
                    out.extend_from_slice(&conn.to_be_bytes());
                    put_socket_address(*remote, out);
                }
                Self::Recv { conn, data } => {
                    out.extend_from_slice(&conn.to_be_bytes());
                    out.extend_from_slice(data);
                }
                Self::Error { code, text } => {
                    out.extend_from_slice(&code.to_be_bytes());
                    out.extend_from_slice(text.as_bytes());
                }
                Self::RecvFrom { from, port, data } => {
                    put_socket_address(*from, out);
                    out.extend_from_slice(&port.to_be_bytes());
                    out.extend_from_slice(data);
                }
                Self::SendToConfirmOk => {}
                Self::Json { body, .. } => out.extend_from_slice(body),
            }
        })
    }
}

impl Answer<'_> {
    /// Appends the complete frame of a JSON answer, keys sorted, without a text in between.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] above the frame limit.
    pub fn emit_json(op: u8, value: &Value, out: &mut Vec<u8>) -> Result<(), FrameError> {
        frame::emit_with(out, |out| {
            out.push(op);
            json::write_value(value, out);
        })
    }
}
