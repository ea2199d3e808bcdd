//! Error texts of the local socket (03 §5). Programs tell failures apart by how a text begins, so each begins with the
//! official words; what we know beyond them follows.

use pilot_proto::endpoint::{ConnectError, DatagramError, DialError, DialFailure};
use pilot_proto::stream::CloseReason;
use pilot_wire::ipc::text;

/// A failed dial.
pub(super) fn dial_error(error: &DialError) -> String {
    let node = error.remote.addr.node;
    match error.failure {
        DialFailure::Refused => text::CONNECTION_REFUSED.to_owned(),
        DialFailure::NodeNotFound | DialFailure::ResolveDenied | DialFailure::RegistryUnavailable => {
            let why = if error.detail.is_empty() { text::REGISTRY_FAILED } else { &error.detail };
            text::resolve_node(node, why)
        }
        DialFailure::Cancelled => "dial cancelled".to_owned(),
        // The official word first, then what is known and what to do.
        _ => format!("{}: {error}; {}", text::DIAL_TIMEOUT, error.hint()),
    }
}

/// A dial that could not start.
pub(super) fn connect_error(error: &ConnectError) -> String {
    format!("dial: {error}")
}

/// A dialled stream that closed before it opened.
pub(super) fn dial_closed(reason: CloseReason) -> String {
    match reason {
        CloseReason::Refused | CloseReason::Reset => text::CONNECTION_REFUSED.to_owned(),
        CloseReason::Local => "dial cancelled".to_owned(),
        _ => text::DIAL_TIMEOUT.to_owned(),
    }
}

/// A datagram that was not sent. `limit` is the longest the protocol itself can carry.
pub(super) fn datagram_error(error: &DatagramError) -> String {
    match error {
        DatagramError::TooLarge { len, .. } if *len > 65_535 => text::payload_too_large(*len),
        DatagramError::TooLarge { .. } => format!("sendto: message too long: {error}"),
        DatagramError::Broadcast => text::NO_BROADCAST.to_owned(),
        DatagramError::Unreachable { dst, detail } => {
            format!("sendto: {}", text::resolve_node(dst.addr.node, detail))
        }
        other => format!("sendto: {other}"),
    }
}
