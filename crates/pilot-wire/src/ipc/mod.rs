//! Commands on the daemon's local socket (specification 03, 07 §12).
//!
//! A frame ([`crate::frame`]) holds an opcode and a payload. Frames of length zero are ignored by both sides. There are
//! no request ids: [`Request`] goes from client to daemon, [`Answer`] the other way, as an answer or pushed.

mod answer;
pub mod ext;
mod request;
pub mod text;

pub use answer::{Answer, AnswerError};
pub use request::{HandshakeCommand, NetworkCommand, Request, RequestError};

/// The only code in Error frames (03 §5).
pub const ERROR_CODE: u16 = 1;
/// Largest data of one Send: the frame limit less opcode and connection id (03 §2).
pub const MAX_SEND: usize = crate::frame::MAX_FRAME - 5;
/// Most tags SetTags takes (03 §10); the registry itself takes more.
pub const MAX_TAGS: usize = 3;
/// Longest wait of the handshake wait command, in milliseconds (07 §12).
pub const MAX_HANDSHAKE_WAIT_MS: u32 = 30_000;

/// Opcodes. Requests are odd, their answers even; pushed frames and Error are named in 03 §3.
pub mod op {
    /// Bind a port.
    pub const BIND: u8 = 0x01;
    /// Answer to [`BIND`].
    pub const BIND_OK: u8 = 0x02;
    /// Open a stream.
    pub const DIAL: u8 = 0x03;
    /// Answer to [`DIAL`].
    pub const DIAL_OK: u8 = 0x04;
    /// Pushed: a stream was accepted on a bound port.
    pub const ACCEPT: u8 = 0x05;
    /// Data for a stream; no answer.
    pub const SEND: u8 = 0x06;
    /// Pushed: data of a stream.
    pub const RECV: u8 = 0x07;
    /// Close a stream.
    pub const CLOSE: u8 = 0x08;
    /// Answer to [`CLOSE`], and pushed at the end of a stream.
    pub const CLOSE_OK: u8 = 0x09;
    /// Any request may be answered by it.
    pub const ERROR: u8 = 0x0A;
    /// Send a datagram; no answer.
    pub const SEND_TO: u8 = 0x0B;
    /// Pushed: a datagram.
    pub const RECV_FROM: u8 = 0x0C;
    /// Status of the daemon.
    pub const INFO: u8 = 0x0D;
    /// Answer to [`INFO`].
    pub const INFO_OK: u8 = 0x0E;
    /// Trust commands, see [`handshake`].
    pub const HANDSHAKE: u8 = 0x0F;
    /// Answer to [`HANDSHAKE`].
    pub const HANDSHAKE_OK: u8 = 0x10;
    /// Hostname to address.
    pub const RESOLVE_HOSTNAME: u8 = 0x11;
    /// Answer to [`RESOLVE_HOSTNAME`].
    pub const RESOLVE_HOSTNAME_OK: u8 = 0x12;
    /// Set or clear the own hostname.
    pub const SET_HOSTNAME: u8 = 0x13;
    /// Answer to [`SET_HOSTNAME`].
    pub const SET_HOSTNAME_OK: u8 = 0x14;
    /// Public or private.
    pub const SET_VISIBILITY: u8 = 0x15;
    /// Answer to [`SET_VISIBILITY`].
    pub const SET_VISIBILITY_OK: u8 = 0x16;
    /// Leave the registry.
    pub const DEREGISTER: u8 = 0x17;
    /// Answer to [`DEREGISTER`].
    pub const DEREGISTER_OK: u8 = 0x18;
    /// Replace the own tags.
    pub const SET_TAGS: u8 = 0x19;
    /// Answer to [`SET_TAGS`].
    pub const SET_TAGS_OK: u8 = 0x1A;
    /// Set or clear the webhook.
    pub const SET_WEBHOOK: u8 = 0x1B;
    /// Answer to [`SET_WEBHOOK`].
    pub const SET_WEBHOOK_OK: u8 = 0x1C;
    /// Task execution on or off; gone after 1.9.1.
    pub const SET_TASK_EXEC: u8 = 0x1D;
    /// Answer to [`SET_TASK_EXEC`].
    pub const SET_TASK_EXEC_OK: u8 = 0x1E;
    /// Network commands, see [`network`].
    pub const NETWORK: u8 = 0x1F;
    /// Answer to [`NETWORK`].
    pub const NETWORK_OK: u8 = 0x20;
    /// Short status.
    pub const HEALTH: u8 = 0x21;
    /// Answer to [`HEALTH`].
    pub const HEALTH_OK: u8 = 0x22;
    /// Managed networks, see [`managed`].
    pub const MANAGED: u8 = 0x23;
    /// Answer to [`MANAGED`].
    pub const MANAGED_OK: u8 = 0x24;
    /// New identity key.
    pub const ROTATE_KEY: u8 = 0x25;
    /// Answer to [`ROTATE_KEY`].
    pub const ROTATE_KEY_OK: u8 = 0x26;
    /// Datagram to a whole network.
    pub const BROADCAST: u8 = 0x29;
    /// Answer to [`BROADCAST`].
    pub const BROADCAST_OK: u8 = 0x2A;
    /// Abort running dials; no answer.
    pub const CANCEL: u8 = 0x2B;
    /// Prefer the direct path to a node.
    pub const PREFER_DIRECT: u8 = 0x2D;
    /// Answer to [`PREFER_DIRECT`].
    pub const PREFER_DIRECT_OK: u8 = 0x2E;
    /// Hand in a badge.
    pub const SUBMIT_BADGE: u8 = 0x2F;
    /// Answer to [`SUBMIT_BADGE`].
    pub const SUBMIT_BADGE_OK: u8 = 0x30;
    /// Enrol a recovery commitment.
    pub const ENROLL_RECOVERY: u8 = 0x31;
    /// Answer to [`ENROLL_RECOVERY`].
    pub const ENROLL_RECOVERY_OK: u8 = 0x32;
    /// Sign a request for a third party.
    pub const SIGN_ENVELOPE: u8 = 0x33;
    /// Answer to [`SIGN_ENVELOPE`].
    pub const SIGN_ENVELOPE_OK: u8 = 0x34;
    /// Verify a signed request.
    pub const VERIFY_ENVELOPE: u8 = 0x35;
    /// Answer to [`VERIFY_ENVELOPE`].
    pub const VERIFY_ENVELOPE_OK: u8 = 0x36;
    /// Release a port.
    pub const UNBIND: u8 = 0x37;
    /// Answer to [`UNBIND`].
    pub const UNBIND_OK: u8 = 0x38;
    /// As [`SEND_TO`], with an answer.
    pub const SEND_TO_CONFIRM: u8 = 0x39;
    /// Answer to [`SEND_TO_CONFIRM`].
    pub const SEND_TO_CONFIRM_OK: u8 = 0x3A;
    /// Extensions of our own start here (03 §14.1).
    pub const EXTENSION: u8 = 0x80;
}

/// Sub-commands of [`op::HANDSHAKE`].
pub mod handshake {
    /// Ask a node for trust.
    pub const REQUEST: u8 = 0x01;
    /// Approve a waiting request.
    pub const APPROVE: u8 = 0x02;
    /// Reject a waiting request.
    pub const REJECT: u8 = 0x03;
    /// List waiting requests.
    pub const PENDING: u8 = 0x04;
    /// List trusted nodes.
    pub const TRUSTED: u8 = 0x05;
    /// End trust.
    pub const REVOKE: u8 = 0x06;
    /// Wait until a node is trusted.
    pub const WAIT: u8 = 0x07;
}

/// Sub-commands of [`op::NETWORK`].
pub mod network {
    /// List networks.
    pub const LIST: u8 = 1;
    /// Join a network.
    pub const JOIN: u8 = 2;
    /// Leave a network.
    pub const LEAVE: u8 = 3;
    /// List members.
    pub const MEMBERS: u8 = 4;
    /// Invite a node.
    pub const INVITE: u8 = 5;
    /// Fetch invitations.
    pub const POLL_INVITES: u8 = 6;
    /// Answer an invitation.
    pub const RESPOND: u8 = 7;
}

/// Sub-commands of [`op::MANAGED`].
pub mod managed {
    /// Score a node; April 2026 only.
    pub const SCORE: u8 = 1;
    /// Status.
    pub const STATUS: u8 = 2;
    /// Rankings; April 2026 only.
    pub const RANKINGS: u8 = 3;
    /// Run a cycle.
    pub const CYCLE: u8 = 4;
    /// Policy.
    pub const POLICY: u8 = 5;
    /// Member tags.
    pub const MEMBER_TAGS: u8 = 6;
    /// Reconcile.
    pub const RECONCILE: u8 = 7;
}
