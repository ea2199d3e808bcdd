//! Client to daemon.

use serde_json::Value;

use super::{handshake, network, op, text};
use crate::addr::{Address, SocketAddress};
use crate::frame::{self, FrameError};
use crate::json;

/// A command. Data is borrowed from the frame.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Request<'a> {
    /// 0x01
    Bind {
        /// Exactly this port, 0 included.
        port: u16,
    },
    /// 0x03
    Dial {
        /// Where to.
        remote: SocketAddress,
    },
    /// 0x06
    Send {
        /// Connection id.
        conn: u32,
        /// Any number of bytes.
        data: &'a [u8],
    },
    /// 0x08
    Close {
        /// Connection id, known or not.
        conn: u32,
    },
    /// 0x0B
    SendTo {
        /// Where to.
        to: SocketAddress,
        /// The datagram.
        data: &'a [u8],
    },
    /// 0x0D
    Info,
    /// 0x0F
    Handshake(HandshakeCommand),
    /// 0x11
    ResolveHostname {
        /// Not empty.
        hostname: String,
    },
    /// 0x13
    SetHostname {
        /// Empty clears.
        hostname: String,
    },
    /// 0x15
    SetVisibility {
        /// Whether the endpoint is given to everybody.
        public: bool,
    },
    /// 0x17
    Deregister,
    /// 0x19
    SetTags {
        /// Empty clears. Not yet limited to [`super::MAX_TAGS`] when parsed.
        tags: Vec<String>,
    },
    /// 0x1B
    SetWebhook {
        /// Empty disables.
        url: String,
    },
    /// 0x1D
    SetTaskExec {
        /// On or off.
        enabled: bool,
    },
    /// 0x1F
    Network(NetworkCommand),
    /// 0x21
    Health,
    /// 0x23
    Managed {
        /// One of [`super::managed`], or any other byte.
        sub: u8,
        /// The rest, specific to the sub-command.
        rest: &'a [u8],
    },
    /// 0x25
    RotateKey,
    /// 0x29
    Broadcast {
        /// Target network.
        network: u16,
        /// Destination port.
        port: u16,
        /// Admin token.
        token: &'a [u8],
        /// The datagram.
        data: &'a [u8],
    },
    /// 0x2B
    Cancel,
    /// 0x2D
    PreferDirect {
        /// The peer.
        node: u32,
    },
    /// 0x2F, JSON
    SubmitBadge(&'a [u8]),
    /// 0x31, JSON
    EnrollRecovery(&'a [u8]),
    /// 0x33, JSON
    SignEnvelope(&'a [u8]),
    /// 0x35, JSON
    VerifyEnvelope(&'a [u8]),
    /// 0x37
    Unbind {
        /// A port of this client.
        port: u16,
    },
    /// 0x39
    SendToConfirm {
        /// Where to.
        to: SocketAddress,
        /// The datagram.
        data: &'a [u8],
    },
}

/// Trust commands (03 §9, 07 §12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HandshakeCommand {
    /// Ask a node for trust.
    Request {
        /// The peer.
        node: u32,
        /// May be empty.
        justification: String,
    },
    /// Approve a waiting request.
    Approve {
        /// The peer.
        node: u32,
    },
    /// Reject a waiting request.
    Reject {
        /// The peer.
        node: u32,
        /// May be empty.
        reason: String,
    },
    /// List waiting requests.
    Pending,
    /// List trusted nodes.
    Trusted,
    /// End trust.
    Revoke {
        /// The peer.
        node: u32,
    },
    /// Wait until a node is trusted.
    Wait {
        /// The peer.
        node: u32,
        /// Longest wait; the daemon cuts it to [`super::MAX_HANDSHAKE_WAIT_MS`].
        millis: u32,
    },
}

/// Network commands (07 §12).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkCommand {
    /// List networks.
    List,
    /// Join one.
    Join {
        /// Which.
        network: u16,
        /// May be empty.
        token: String,
    },
    /// Leave one.
    Leave {
        /// Which.
        network: u16,
    },
    /// List members.
    Members {
        /// Of which.
        network: u16,
    },
    /// Invite a node.
    Invite {
        /// To which.
        network: u16,
        /// Whom.
        node: u32,
    },
    /// Fetch invitations.
    PollInvites,
    /// Answer an invitation.
    Respond {
        /// To which.
        network: u16,
        /// Yes or no.
        accept: bool,
    },
}

/// Why a frame is no command. The text is what the Error frame says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// A frame without opcode; ignored by both sides rather than answered.
    #[error("empty frame")]
    Empty,
    /// The opcode is no request.
    #[error("{}", text::unknown_command(*.0))]
    UnknownCommand(u8),
    /// A fixed part is missing: command and part.
    #[error("{0}: {1}")]
    Missing(&'static str, &'static str),
    /// A sub-command nobody knows.
    #[error("{0}: unknown sub-command 0x{1:02X}")]
    UnknownSubCommand(&'static str, u8),
    /// The payload is not the JSON it should be.
    #[error("{0}: invalid JSON: {1}")]
    Json(&'static str, String),
}

impl RequestError {
    /// Stable name of the error.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Empty => "ipc_empty_frame",
            Self::UnknownCommand(_) => "ipc_unknown_command",
            Self::Missing(..) => "ipc_missing_field",
            Self::UnknownSubCommand(..) => "ipc_unknown_sub_command",
            Self::Json(..) => "ipc_invalid_json",
        }
    }
}

fn be16(b: &[u8]) -> Option<(u16, &[u8])> {
    b.split_first_chunk().map(|(n, rest)| (u16::from_be_bytes(*n), rest))
}

fn be32(b: &[u8]) -> Option<(u32, &[u8])> {
    b.split_first_chunk().map(|(n, rest)| (u32::from_be_bytes(*n), rest))
}

pub(super) fn socket_address(b: &[u8]) -> Option<(SocketAddress, &[u8])> {
    let (addr, rest) = b.split_first_chunk()?;
    let (port, rest) = be16(rest)?;
    Some((SocketAddress::new(Address::from_bytes(*addr), port), rest))
}

pub(super) fn put_socket_address(to: SocketAddress, out: &mut Vec<u8>) {
    out.extend_from_slice(&to.addr.to_bytes());
    out.extend_from_slice(&to.port.to_be_bytes());
}

impl<'a> Request<'a> {
    /// Parses the body of a frame (opcode and payload). Bytes behind fixed fields are ignored (03 §3).
    ///
    /// # Errors
    /// [`RequestError`], whose text goes into the Error frame.
    pub fn parse(body: &'a [u8]) -> Result<Self, RequestError> {
        let (&opcode, b) = body.split_first().ok_or(RequestError::Empty)?;
        let missing = |command, part| move || RequestError::Missing(command, part);
        Ok(match opcode {
            op::BIND => Self::Bind { port: be16(b).ok_or_else(missing("bind", "missing port"))?.0 },
            op::DIAL => Self::Dial { remote: socket_address(b).ok_or_else(missing("dial", "missing address/port"))?.0 },
            op::SEND => {
                let (conn, data) = be32(b).ok_or_else(missing("send", "missing conn_id"))?;
                Self::Send { conn, data }
            }
            op::CLOSE => Self::Close { conn: be32(b).ok_or_else(missing("close", "missing conn_id"))?.0 },
            op::SEND_TO => {
                let (to, data) = socket_address(b).ok_or_else(missing("sendto", "missing address/port"))?;
                Self::SendTo { to, data }
            }
            op::INFO => Self::Info,
            op::HANDSHAKE => Self::Handshake(HandshakeCommand::parse(b)?),
            op::RESOLVE_HOSTNAME if b.is_empty() => {
                return Err(RequestError::Missing("resolve_hostname", "missing hostname"));
            }
            op::RESOLVE_HOSTNAME => Self::ResolveHostname { hostname: json::text_lossy(b) },
            op::SET_HOSTNAME => Self::SetHostname { hostname: json::text_lossy(b) },
            op::SET_VISIBILITY => {
                Self::SetVisibility { public: *b.first().ok_or_else(missing("set_visibility", "missing value"))? == 1 }
            }
            op::DEREGISTER => Self::Deregister,
            op::SET_TAGS => Self::SetTags { tags: parse_tags(b)? },
            op::SET_WEBHOOK => Self::SetWebhook { url: json::text_lossy(b) },
            op::SET_TASK_EXEC => {
                Self::SetTaskExec { enabled: *b.first().ok_or_else(missing("set_task_exec", "missing value"))? == 1 }
            }
            op::NETWORK => Self::Network(NetworkCommand::parse(b)?),
            op::HEALTH => Self::Health,
            op::MANAGED => {
                let (&sub, rest) = b.split_first().ok_or_else(missing("managed", "missing sub-command"))?;
                Self::Managed { sub, rest }
            }
            op::ROTATE_KEY => Self::RotateKey,
            op::BROADCAST => broadcast(b).ok_or_else(missing("broadcast", "missing header"))?,
            op::CANCEL => Self::Cancel,
            op::PREFER_DIRECT => Self::PreferDirect {
                node: be32(b).ok_or_else(missing("prefer_direct", "payload must be 4 bytes (node_id)"))?.0,
            },
            op::SUBMIT_BADGE => Self::SubmitBadge(b),
            op::ENROLL_RECOVERY => Self::EnrollRecovery(b),
            op::SIGN_ENVELOPE => Self::SignEnvelope(b),
            op::VERIFY_ENVELOPE => Self::VerifyEnvelope(b),
            op::UNBIND => Self::Unbind { port: be16(b).ok_or_else(missing("unbind", "missing port"))?.0 },
            op::SEND_TO_CONFIRM => {
                let (to, data) = socket_address(b).ok_or_else(missing("sendto", "missing header"))?;
                Self::SendToConfirm { to, data }
            }
            other => return Err(RequestError::UnknownCommand(other)),
        })
    }

    /// The opcode.
    pub fn opcode(&self) -> u8 {
        match self {
            Self::Bind { .. } => op::BIND,
            Self::Dial { .. } => op::DIAL,
            Self::Send { .. } => op::SEND,
            Self::Close { .. } => op::CLOSE,
            Self::SendTo { .. } => op::SEND_TO,
            Self::Info => op::INFO,
            Self::Handshake(_) => op::HANDSHAKE,
            Self::ResolveHostname { .. } => op::RESOLVE_HOSTNAME,
            Self::SetHostname { .. } => op::SET_HOSTNAME,
            Self::SetVisibility { .. } => op::SET_VISIBILITY,
            Self::Deregister => op::DEREGISTER,
            Self::SetTags { .. } => op::SET_TAGS,
            Self::SetWebhook { .. } => op::SET_WEBHOOK,
            Self::SetTaskExec { .. } => op::SET_TASK_EXEC,
            Self::Network(_) => op::NETWORK,
            Self::Health => op::HEALTH,
            Self::Managed { .. } => op::MANAGED,
            Self::RotateKey => op::ROTATE_KEY,
            Self::Broadcast { .. } => op::BROADCAST,
            Self::Cancel => op::CANCEL,
            Self::PreferDirect { .. } => op::PREFER_DIRECT,
            Self::SubmitBadge(_) => op::SUBMIT_BADGE,
            Self::EnrollRecovery(_) => op::ENROLL_RECOVERY,
            Self::SignEnvelope(_) => op::SIGN_ENVELOPE,
            Self::VerifyEnvelope(_) => op::VERIFY_ENVELOPE,
            Self::Unbind { .. } => op::UNBIND,
            Self::SendToConfirm { .. } => op::SEND_TO_CONFIRM,
        }
    }

    /// Opcode of the success answer; `None` for the commands that have none (03 §4, 07 §12).
    pub fn answer_opcode(&self) -> Option<u8> {
        match self {
            Self::Send { .. } | Self::SendTo { .. } | Self::Cancel => None,
            _ => Some(self.opcode() + 1),
        }
    }

    /// Appends the complete frame, prefix included.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`] when the daemon would drop the client for it.
    pub fn emit(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        frame::emit_with(out, |out| {
            out.push(self.opcode());
            self.payload(out);
        })
    }

    fn payload(&self, out: &mut Vec<u8>) {
        match self {
            Self::Bind { port } | Self::Unbind { port } => out.extend_from_slice(&port.to_be_bytes()),
            Self::Dial { remote } => put_socket_address(*remote, out),
            Self::Send { conn, data } => {
                out.extend_from_slice(&conn.to_be_bytes());
                out.extend_from_slice(data);
            }
            Self::Close { conn } => out.extend_from_slice(&conn.to_be_bytes()),
            Self::SendTo { to, data } | Self::SendToConfirm { to, data } => {
                put_socket_address(*to, out);
                out.extend_from_slice(data);
            }
            Self::Info | Self::Deregister | Self::Health | Self::RotateKey | Self::Cancel => {}
            Self::Handshake(command) => command.payload(out),
            Self::ResolveHostname { hostname: text } | Self::SetHostname { hostname: text } => {
                out.extend_from_slice(text.as_bytes());
            }
            Self::SetWebhook { url } => out.extend_from_slice(url.as_bytes()),
            Self::SetVisibility { public: on } | Self::SetTaskExec { enabled: on } => out.push(u8::from(*on)),
            Self::SetTags { tags } => json::write_value(&Value::from(tags.clone()), out),
            Self::Network(command) => command.payload(out),
            Self::Managed { sub, rest } => {
                out.push(*sub);
                out.extend_from_slice(rest);
            }
            Self::Broadcast { network, port, token, data } => {
                out.extend_from_slice(&network.to_be_bytes());
                out.extend_from_slice(&port.to_be_bytes());
                let token = &token[..token.len().min(usize::from(u16::MAX))];
                out.extend_from_slice(&(token.len() as u16).to_be_bytes());
                out.extend_from_slice(token);
                out.extend_from_slice(data);
            }
            Self::PreferDirect { node } => out.extend_from_slice(&node.to_be_bytes()),
            Self::SubmitBadge(b) | Self::EnrollRecovery(b) | Self::SignEnvelope(b) | Self::VerifyEnvelope(b) => {
                out.extend_from_slice(b);
            }
        }
    }
}

/// Header of 0x29: network, port, token length, token.
fn broadcast(b: &[u8]) -> Option<Request<'_>> {
    let (network, b) = be16(b)?;
    let (port, b) = be16(b)?;
    let (len, b) = be16(b)?;
    let (token, data) = b.split_at_checked(usize::from(len))?;
    Some(Request::Broadcast { network, port, token, data })
}

/// A JSON array of strings, or `null`; a `null` element is an empty string, as the official reader has it.
fn parse_tags(b: &[u8]) -> Result<Vec<String>, RequestError> {
    let bad = |why: String| RequestError::Json("set_tags", why);
    match json::parse(b).map_err(|error| bad(error.to_string()))? {
        Value::Null => Ok(Vec::new()),
        Value::Array(list) => list
            .into_iter()
            .map(|item| match item {
                Value::String(tag) => Ok(tag),
                Value::Null => Ok(String::new()),
                other => Err(bad(format!("a tag is a {}, not a string", kind(&other)))),
            })
            .collect(),
        other => Err(bad(format!("expected an array of strings, found a {}", kind(&other)))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

impl HandshakeCommand {
    fn parse(b: &[u8]) -> Result<Self, RequestError> {
        let (&sub, b) = b.split_first().ok_or(RequestError::Missing("handshake", "missing sub-command"))?;
        let node = |command| be32(b).ok_or(RequestError::Missing(command, "missing node_id"));
        Ok(match sub {
            handshake::REQUEST => {
                let (node, rest) = node("handshake request")?;
                Self::Request { node, justification: json::text_lossy(rest) }
            }
            handshake::APPROVE => Self::Approve { node: node("handshake approve")?.0 },
            handshake::REJECT => {
                let (node, rest) = node("handshake reject")?;
                Self::Reject { node, reason: json::text_lossy(rest) }
            }
            handshake::PENDING => Self::Pending,
            handshake::TRUSTED => Self::Trusted,
            handshake::REVOKE => Self::Revoke { node: node("handshake revoke")?.0 },
            handshake::WAIT => {
                let (node, rest) = node("handshake wait")?;
                let (millis, _) = be32(rest).ok_or(RequestError::Missing("handshake wait", "missing timeout"))?;
                Self::Wait { node, millis }
            }
            other => return Err(RequestError::UnknownSubCommand("handshake", other)),
        })
    }

    fn payload(&self, out: &mut Vec<u8>) {
        let (sub, node, rest): (u8, Option<u32>, &[u8]) = match self {
            Self::Request { node, justification } => (handshake::REQUEST, Some(*node), justification.as_bytes()),
            Self::Approve { node } => (handshake::APPROVE, Some(*node), &[]),
            Self::Reject { node, reason } => (handshake::REJECT, Some(*node), reason.as_bytes()),
            Self::Pending => (handshake::PENDING, None, &[]),
            Self::Trusted => (handshake::TRUSTED, None, &[]),
            Self::Revoke { node } => (handshake::REVOKE, Some(*node), &[]),
            Self::Wait { node, millis } => (handshake::WAIT, Some(*node), &millis.to_be_bytes()),
        };
        out.push(sub);
        if let Some(node) = node {
            out.extend_from_slice(&node.to_be_bytes());
        }
        out.extend_from_slice(rest);
    }
}

impl NetworkCommand {
    fn parse(b: &[u8]) -> Result<Self, RequestError> {
        let (&sub, b) = b.split_first().ok_or(RequestError::Missing("network", "missing sub-command"))?;
        let net = |command| be16(b).ok_or(RequestError::Missing(command, "missing network_id"));
        Ok(match sub {
            network::LIST => Self::List,
            network::JOIN => {
                let (network, token) = net("network join")?;
                Self::Join { network, token: json::text_lossy(token) }
            }
            network::LEAVE => Self::Leave { network: net("network leave")?.0 },
            network::MEMBERS => Self::Members { network: net("network members")?.0 },
            network::INVITE => {
                let (network, rest) = net("network invite")?;
                let (node, _) = be32(rest).ok_or(RequestError::Missing("network invite", "missing node_id"))?;
                Self::Invite { network, node }
            }
            network::POLL_INVITES => Self::PollInvites,
            network::RESPOND => {
                let (network, rest) = net("network respond")?;
                let accept = rest.first().ok_or(RequestError::Missing("network respond", "missing value"))?;
                Self::Respond { network, accept: *accept == 1 }
            }
            other => return Err(RequestError::UnknownSubCommand("network", other)),
        })
    }

    fn payload(&self, out: &mut Vec<u8>) {
        let (sub, net) = match self {
            Self::List => (network::LIST, None),
            Self::Join { network, .. } => (network::JOIN, Some(*network)),
            Self::Leave { network } => (network::LEAVE, Some(*network)),
            Self::Members { network } => (network::MEMBERS, Some(*network)),
            Self::Invite { network, .. } => (network::INVITE, Some(*network)),
            Self::PollInvites => (network::POLL_INVITES, None),
            Self::Respond { network, .. } => (network::RESPOND, Some(*network)),
        };
        out.push(sub);
        if let Some(net) = net {
            out.extend_from_slice(&net.to_be_bytes());
        }
        match self {
            Self::Join { token, .. } => out.extend_from_slice(token.as_bytes()),
            Self::Invite { node, .. } => out.extend_from_slice(&node.to_be_bytes()),
            Self::Respond { accept, .. } => out.push(u8::from(*accept)),
            _ => {}
        }
    }
}
