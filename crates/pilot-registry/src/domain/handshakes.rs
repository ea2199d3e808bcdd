//! Handshakes relayed between nodes that cannot reach each other yet (04 §12).

use super::trust::{check_room, state};
use super::{Proof, live, proved};
use crate::error::Refusal;
use crate::limits::{MAX_JUSTIFICATION, MAX_REQUESTS, MAX_RESPONSES, POLL_BYTES, cut};
use crate::model::{HandshakeRequest, HandshakeResponse, Statement};
use crate::tables::{Reads, Writes};

/// Leaves a request for `to`, and states that the sender wants to trust it.
///
/// # Errors
/// [`Refusal::NodeNotFound`], [`Refusal::InboxFull`], [`Refusal::AlreadyPending`]; as for every proved command.
pub fn request_handshake(
    t: &mut impl Writes,
    now: u64,
    proof: &Proof,
    to: u32,
    justification: &str,
) -> Result<(), Refusal> {
    let from = proved(t, proof)?;
    live(t, to)?;
    let waiting = t.requests(to)?;
    if waiting.iter().any(|(_, request)| request.from == from.id) {
        return Err(Refusal::AlreadyPending(from.id));
    }
    if waiting.len() >= MAX_REQUESTS {
        return Err(Refusal::InboxFull(to));
    }
    check_room(t, &from, to)?;
    let justification = cut(justification, MAX_JUSTIFICATION).to_owned();
    t.push_request(to, &HandshakeRequest { from: from.id, justification, at: now })?;
    state(t, from.id, to, Statement::Spoken)?;
    Ok(())
}

/// Whether anything waits for a node.
///
/// # Errors
/// Only when the store fails.
pub fn has_waiting(t: &impl Reads, node: u32) -> Result<bool, Refusal> {
    Ok(!t.requests(node)?.is_empty() || !t.responses(node)?.is_empty())
}

/// Hands out what waits for a node, oldest first, as much as fits one reply; the rest stays for the next poll.
///
/// # Errors
/// As for every proved command.
pub fn poll_handshakes(
    t: &mut impl Writes,
    proof: &Proof,
) -> Result<(Vec<HandshakeRequest>, Vec<HandshakeResponse>), Refusal> {
    let node = proved(t, proof)?.id;
    // Responses are small and at most MAX_RESPONSES, so they always fit.
    let mut room = POLL_BYTES;
    let mut responses = Vec::new();
    for (sequence, response) in t.responses(node)? {
        t.remove_response(node, sequence)?;
        room = room.saturating_sub(80);
        responses.push(response);
    }
    let mut requests = Vec::new();
    for (sequence, request) in t.requests(node)? {
        // One byte becomes at most six in JSON.
        let size = 80 + 6 * request.justification.len();
        if size > room {
            break;
        }
        room -= size;
        t.remove_request(node, sequence)?;
        requests.push(request);
    }
    Ok((requests, responses))
}

/// Leaves an answer for the one who asked; accepting states trust. Only who has asked, or reported trust, can be
/// answered (04 §24.4). Answering again is fine: daemons do.
///
/// # Errors
/// [`Refusal::NodeNotFound`], [`Refusal::NoRequest`]; as for every proved command.
pub fn respond_handshake(t: &mut impl Writes, now: u64, proof: &Proof, peer: u32, accept: bool) -> Result<(), Refusal> {
    let node = proved(t, proof)?;
    live(t, peer)?;
    if t.statement(peer, node.id)? != Some(Statement::Spoken) {
        return Err(Refusal::NoRequest(peer));
    }
    if accept {
        check_room(t, &node, peer)?;
    }
    let waiting = t.responses(peer)?;
    let excess = (waiting.len() + 1).saturating_sub(MAX_RESPONSES);
    for (i, (sequence, response)) in waiting.iter().enumerate() {
        let is_repeated = response.from == node.id && response.accept == accept;
        if is_repeated || i < excess {
            t.remove_response(peer, *sequence)?;
        }
    }
    t.push_response(peer, &HandshakeResponse { from: node.id, accept, at: now })?;
    if accept {
        state(t, node.id, peer, Statement::Spoken)?;
    }
    Ok(())
}
