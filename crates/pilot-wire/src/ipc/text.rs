//! Texts of Error frames (03 §5, 07 §12). Scripts and tools tell failures apart by them, so each is written once.

use std::fmt::Display;

/// `connection refused`
pub const CONNECTION_REFUSED: &str = "connection refused";
/// `dial timeout`
pub const DIAL_TIMEOUT: &str = "dial timeout";
/// Send on a stream that is closing.
pub const NOT_ESTABLISHED: &str = "send: connection not established";
/// Send on a stream that has gone.
pub const CONNECTION_CLOSED: &str = "send: connection closed";
/// Unbind of a port of somebody else, or of nobody.
pub const UNBIND_NOT_OWNED: &str = "unbind: port is not owned by this client";
/// More than [`super::MAX_TAGS`] tags.
pub const TOO_MANY_TAGS: &str = "set_tags: maximum 3 tags allowed";
/// A datagram to every node.
pub const NO_BROADCAST: &str = "sendto: broadcast is not available — custom networks are WIP";
/// What a registry failure looks like when the registry hides its reason.
pub const REGISTRY_FAILED: &str = "registry: request failed";

/// `unknown command: 0xNN`
pub fn unknown_command(op: u8) -> String {
    format!("unknown command: 0x{op:02X}")
}

/// `port N already bound`
pub fn already_bound(port: u16) -> String {
    format!("port {port} already bound")
}

/// `connection N not found`
pub fn connection_not_found(conn: u32) -> String {
    format!("connection {conn} not found")
}

/// `resolve node N: …`
pub fn resolve_node(node: u32, why: impl Display) -> String {
    format!("resolve node {node}: {why}")
}

/// `send: no tunnel to node N`
pub fn no_tunnel(node: u32) -> String {
    format!("send: no tunnel to node {node}")
}

/// `sendto: marshal: payload too large: N bytes (max 65535)`
pub fn payload_too_large(len: usize) -> String {
    format!("sendto: marshal: payload too large: {len} bytes (max 65535)")
}

/// `handshake revoke: node N was not trusted`
pub fn was_not_trusted(node: u32) -> String {
    format!("handshake revoke: node {node} was not trusted")
}

/// `registry: …`, the form in which a registry's own error text is passed on.
pub fn registry(why: impl Display) -> String {
    format!("registry: {why}")
}

/// Whether an Error text belongs to an earlier Send or SendTo rather than to a waiting request (03 §14.2).
pub fn is_asynchronous(text: &str) -> bool {
    text.starts_with("send:")
        || text.starts_with("sendto:")
        || text
            .strip_prefix("connection ")
            .and_then(|rest| rest.strip_suffix(" not found"))
            .is_some_and(|id| !id.is_empty() && id.bytes().all(|b| b.is_ascii_digit()))
}
