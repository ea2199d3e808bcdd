//! Who has said what about whom, and who therefore may learn whose endpoint (04 §11, §24.3).
//!
//! A statement is directed. Two nodes trust each other when both have spoken: by a report, a handshake request or an
//! accepting response, or by asking for the other's endpoint, which tells the other where the asker is anyway.

use super::{Proof, live, proved};
use crate::error::Refusal;
use crate::limits::MAX_STATEMENTS;
use crate::model::{Node, Statement};
use crate::tables::{Reads, Writes};

/// Whether both have spoken about each other.
///
/// # Errors
/// Only when the store fails.
pub fn is_trusted(t: &impl Reads, a: u32, b: u32) -> Result<bool, Refusal> {
    Ok(t.statement(a, b)?.is_some() && t.statement(b, a)?.is_some())
}

/// Whether `requester` may learn the endpoint of `target`, both live (04 §11).
///
/// # Errors
/// Only when the store fails.
pub fn may_resolve(t: &impl Reads, requester: &Node, target: &Node) -> Result<bool, Refusal> {
    Ok(target.public || requester.shares_network(target) || is_trusted(t, requester.id, target.id)?)
}

/// Adds a statement unless one as strong is there. `false` when the node has spoken about too many others.
pub(super) fn state(t: &mut impl Writes, from: u32, to: u32, said: Statement) -> Result<bool, Refusal> {
    match t.statement(from, to)? {
        Some(before) if before >= said => return Ok(true),
        Some(_) => {}
        None => {
            let Some(mut node) = t.node(from)?.filter(|node| node.statements < MAX_STATEMENTS) else {
                return Ok(false);
            };
            node.statements += 1;
            t.put_node(&node)?;
        }
    }
    t.put_statement(from, to, Some(said))?;
    Ok(true)
}

/// Refuses where [`state`] would answer `false`. Reads only.
pub(super) fn check_room(t: &impl Reads, node: &Node, to: u32) -> Result<(), Refusal> {
    if node.statements >= MAX_STATEMENTS && t.statement(node.id, to)?.is_none() {
        return Err(Refusal::TooManyStatements(node.id));
    }
    Ok(())
}

/// Takes statements back in both directions.
fn unstate(t: &mut impl Writes, from: u32, to: u32) -> Result<(), Refusal> {
    if t.statement(from, to)?.is_none() {
        return Ok(());
    }
    t.put_statement(from, to, None)?;
    if let Some(mut node) = t.node(from)? {
        node.statements = node.statements.saturating_sub(1);
        t.put_node(&node)?;
    }
    Ok(())
}

/// States that the node trusts the peer.
///
/// # Errors
/// [`Refusal::NodeNotFound`] when the peer is not live; as for every proved command.
pub fn report_trust(t: &mut impl Writes, proof: &Proof, peer: u32) -> Result<(), Refusal> {
    let node = proved(t, proof)?;
    live(t, peer)?;
    check_room(t, &node, peer)?;
    state(t, node.id, peer, Statement::Spoken)?;
    Ok(())
}

/// Takes back what either of the two has said about the other.
///
/// # Errors
/// [`Refusal::NoTrust`] when neither has spoken; as for every proved command.
pub fn revoke_trust(t: &mut impl Writes, proof: &Proof, peer: u32) -> Result<(), Refusal> {
    let node = proved(t, proof)?.id;
    if t.statement(node, peer)?.is_none() && t.statement(peer, node)?.is_none() {
        return Err(Refusal::NoTrust(node, peer));
    }
    unstate(t, node, peer)?;
    unstate(t, peer, node)
}

/// Whether two nodes may talk: they trust each other, or share a network other than 0. Newer official daemons ask this
/// before they take a stream of a node that they do not trust themselves (07 §7).
///
/// # Errors
/// Only when the store fails.
pub fn check_trust(t: &impl Reads, node: u32, peer: u32) -> Result<bool, Refusal> {
    let shares = || match (live(t, node), live(t, peer)) {
        (Ok(node), Ok(peer)) => node.shares_network(&peer),
        _ => false,
    };
    Ok(is_trusted(t, node, peer)? || shares())
}

/// What came of asking for an endpoint. A refusal is an outcome here, because the statement made by asking stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// The target shows its endpoint.
    Shown(Box<Node>),
    /// It does not.
    Refused(Refusal),
}

/// Asks for the endpoint of `target`. Asking is a statement about it.
///
/// # Errors
/// As for every proved command; [`Refusal::NodeNotFound`] for the target.
pub fn resolve(t: &mut impl Writes, proof: &Proof, target: u32) -> Result<Resolved, Refusal> {
    let requester = proved(t, proof)?;
    let target = live(t, target)?;
    if requester.id != target.id {
        // Above the limit asking just says nothing.
        state(t, requester.id, target.id, Statement::Resolved)?;
    }
    Ok(if may_resolve(t, &requester, &target)? {
        Resolved::Shown(Box::new(target))
    } else {
        Resolved::Refused(Refusal::Private(target.id))
    })
}

/// Asks for the endpoints of two nodes, of which the asker is one, by the rule for [`resolve`] (04 §24.5).
///
/// # Errors
/// [`Refusal::NotParticipant`]; as [`resolve`].
pub fn punch(t: &mut impl Writes, proof: &Proof, a: u32, b: u32) -> Result<(Node, Resolved), Refusal> {
    let other = match (proof.node == a, proof.node == b) {
        (true, _) => b,
        (_, true) => a,
        _ => return Err(Refusal::NotParticipant),
    };
    let own = proved(t, proof)?;
    if own.id == other {
        return Ok((own.clone(), Resolved::Shown(Box::new(own))));
    }
    let resolved = resolve(t, proof, other)?;
    Ok((own, resolved))
}
