//! What a node says about itself, and its score (04 §9.3, §9.5).

use super::lifecycle::{hostname_holder, take_hostname};
use super::{Proof, live, proved};
use crate::error::Refusal;
use crate::limits::MAX_SCORE;
use crate::tables::Writes;

/// Gives a node a (valid) hostname; empty takes it away. The old name is free at once.
///
/// # Errors
/// [`Refusal::HostnameTaken`], or as for every proved command.
pub fn set_hostname(t: &mut impl Writes, now: u64, proof: &Proof, name: &str) -> Result<(), Refusal> {
    let mut node = proved(t, proof)?;
    if !name.is_empty()
        && let Some(holder) = hostname_holder(t, now, node.id, name)?
    {
        return Err(Refusal::HostnameTaken { name: name.to_owned(), holder });
    }
    take_hostname(t, &mut node, name)?;
    Ok(t.put_node(&node)?)
}

/// Shows or hides a node's endpoint.
///
/// # Errors
/// As for every proved command.
pub fn set_visibility(t: &mut impl Writes, proof: &Proof, public: bool) -> Result<(), Refusal> {
    let mut node = proved(t, proof)?;
    node.public = public;
    Ok(t.put_node(&node)?)
}

/// Replaces a node's (valid) tags.
///
/// # Errors
/// As for every proved command.
pub fn set_tags(t: &mut impl Writes, proof: &Proof, tags: &[String]) -> Result<(), Refusal> {
    let mut node = proved(t, proof)?;
    node.tags = tags.to_vec();
    Ok(t.put_node(&node)?)
}

/// Says whether a node executes tasks.
///
/// # Errors
/// As for every proved command.
pub fn set_task_exec(t: &mut impl Writes, proof: &Proof, enabled: bool) -> Result<(), Refusal> {
    let mut node = proved(t, proof)?;
    node.task_exec = enabled;
    Ok(t.put_node(&node)?)
}

/// Adds to a node's score, within the bounds. It is no sign of life (04 §24.7).
///
/// # Errors
/// [`Refusal::NodeNotFound`].
pub fn update_polo_score(t: &mut impl Writes, node: u32, delta: i64) -> Result<i64, Refusal> {
    let score = live(t, node)?.polo_score.saturating_add(delta);
    set_polo_score(t, node, score)
}

/// Sets a node's score, within the bounds.
///
/// # Errors
/// [`Refusal::NodeNotFound`].
pub fn set_polo_score(t: &mut impl Writes, node: u32, score: i64) -> Result<i64, Refusal> {
    let mut node = live(t, node)?;
    node.polo_score = score.clamp(-MAX_SCORE, MAX_SCORE);
    t.put_node(&node)?;
    Ok(node.polo_score)
}
