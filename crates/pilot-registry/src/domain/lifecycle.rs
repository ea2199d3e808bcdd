//! Coming, staying and going (04 §8).

use std::net::IpAddr;

use super::{Proof, proved};
use crate::error::Refusal;
use crate::limits::{HOSTNAME_GRACE, MAX_IDENTITIES, MAX_OWNER, MAX_VERSION, cut};
use crate::model::{Node, Presence};
use crate::tables::{Reads, Writes};

/// A registration whose texts are already validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Register {
    /// Ed25519 public key.
    pub key: [u8; 32],
    /// Owner text, may be empty.
    pub owner: String,
    /// A valid hostname, or empty.
    pub hostname: String,
    /// `ip:port`, when there is a usable one.
    pub endpoint: Option<String>,
    /// Version of the daemon, may be empty.
    pub version: String,
    /// Whether peers are to get the beacon's address.
    pub relay_only: bool,
    /// Where it came from.
    pub source: IpAddr,
    /// Whether the holder of the key is known to have sent it: it is signed, or came on a connection on which the key
    /// was proved.
    pub is_proved: bool,
}

/// What came of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The id of the key.
    pub node: u32,
    /// The hostname asked for, when the node has it now.
    pub hostname: Option<String>,
    /// True when nothing changed yet: the key's holder lives elsewhere. [`register`] again with
    /// [`Register::is_proved`] once a validly signed request of this node arrives on the same connection.
    pub is_provisional: bool,
}

/// Registers a key. One key has one id for ever; nothing but the key moves a node (04 §24.1, §24.2).
///
/// # Errors
/// [`Refusal::Full`].
pub fn register(t: &mut impl Writes, now: u64, cmd: &Register) -> Result<Registration, Refusal> {
    let Some(id) = t.node_of_key(&cmd.key)? else {
        return create(t, now, cmd);
    };
    let Some(mut node) = t.node(id)? else {
        // The key index points to stored identities only; a store that says otherwise is damaged.
        return Err(crate::error::Fault(format!("key of node {id} has no identity")).into());
    };
    let before = t.presence(id)?;
    // A change to a node that lives elsewhere waits for a signature.
    let is_elsewhere = before.is_some_and(|p| p.proved && p.source != cmd.source);
    if is_elsewhere && !cmd.is_proved {
        return Ok(Registration { node: id, hostname: None, is_provisional: true });
    }
    // Nobody names a live node but the node itself.
    let may_name = cmd.is_proved || before.is_none();
    let hostname = if may_name { free_hostname(t, now, id, &cmd.hostname)? } else { None };

    node.endpoint.clone_from(&cmd.endpoint);
    node.relay_only = cmd.relay_only;
    cut(&cmd.version, MAX_VERSION).clone_into(&mut node.version);
    if node.owner.is_empty() {
        cut(&cmd.owner, MAX_OWNER).clone_into(&mut node.owner);
    }
    if before.is_none() {
        forget_lost_hostname(t, &mut node)?;
        node.departed = None;
    }
    if let Some(name) = &hostname {
        take_hostname(t, &mut node, name)?;
    }
    t.put_node(&node)?;
    let proved = cmd.is_proved || before.is_some_and(|p| p.proved);
    t.put_presence(id, Some(Presence { last_seen: now, proved, source: cmd.source }))?;
    Ok(Registration { node: id, hostname, is_provisional: false })
}

fn create(t: &mut impl Writes, now: u64, cmd: &Register) -> Result<Registration, Refusal> {
    let id = t.next_node()?;
    let next = id.checked_add(1).filter(|next| u64::from(*next) <= MAX_IDENTITIES).ok_or(Refusal::Full)?;
    let hostname = free_hostname(t, now, id, &cmd.hostname)?;

    let mut node = Node::new(id, cmd.key, now);
    node.endpoint.clone_from(&cmd.endpoint);
    node.relay_only = cmd.relay_only;
    cut(&cmd.version, MAX_VERSION).clone_into(&mut node.version);
    cut(&cmd.owner, MAX_OWNER).clone_into(&mut node.owner);
    t.set_next_node(next)?;
    t.put_key(&cmd.key, id)?;
    if let Some(name) = &hostname {
        take_hostname(t, &mut node, name)?;
    }
    t.put_node(&node)?;
    t.put_presence(id, Some(Presence { last_seen: now, proved: cmd.is_proved, source: cmd.source }))?;
    Ok(Registration { node: id, hostname, is_provisional: false })
}

/// The name, if it is not empty and node `id` may have it. Reads only.
pub(super) fn free_hostname(t: &impl Reads, now: u64, id: u32, name: &str) -> Result<Option<String>, Refusal> {
    if name.is_empty() || hostname_holder(t, now, id, name)?.is_some() {
        return Ok(None);
    }
    Ok(Some(name.to_owned()))
}

/// Who keeps node `id` from having a name: another live node, or one that departed within the grace period.
pub(super) fn hostname_holder(t: &impl Reads, now: u64, id: u32, name: &str) -> Result<Option<u32>, Refusal> {
    let Some(holder) = t.node_of_hostname(name)?.filter(|holder| *holder != id) else {
        return Ok(None);
    };
    let is_kept = match t.node(holder)?.and_then(|node| node.departed) {
        Some(departed) => now < departed.saturating_add(HOSTNAME_GRACE.as_secs()),
        None => true,
    };
    Ok(is_kept.then_some(holder))
}

/// Gives a name that [`free_hostname`] found free to a node and frees its old one. The caller stores the node.
pub(super) fn take_hostname(t: &mut impl Writes, node: &mut Node, name: &str) -> Result<(), Refusal> {
    if node.hostname == name {
        return Ok(());
    }
    if !node.hostname.is_empty() {
        t.remove_hostname(&node.hostname)?;
    }
    if !name.is_empty() {
        t.put_hostname(name, node.id)?;
    }
    name.clone_into(&mut node.hostname);
    Ok(())
}

/// A returning node has its name no more when somebody took it after the grace period.
fn forget_lost_hostname(t: &impl Writes, node: &mut Node) -> Result<(), Refusal> {
    if !node.hostname.is_empty() && t.node_of_hostname(&node.hostname)? != Some(node.id) {
        node.hostname.clear();
    }
    Ok(())
}

/// Puts a new key in place of the old one. Only the new key belongs to the node afterwards.
///
/// # Errors
/// [`Refusal::KeyInUse`] when the new key has an address already (04 §24.9), or as for every proved command.
pub fn rotate_key(t: &mut impl Writes, now: u64, proof: &Proof, new_key: &[u8; 32]) -> Result<(), Refusal> {
    let mut node = proved(t, proof)?;
    match t.node_of_key(new_key)? {
        Some(id) if id != node.id => return Err(Refusal::KeyInUse),
        _ => {}
    }
    t.remove_key(&node.public_key)?;
    t.put_key(new_key, node.id)?;
    node.public_key = *new_key;
    node.key_since = now;
    t.put_node(&node)?;
    // The old key has vouched for the new one.
    t.put_presence(node.id, Some(Presence { last_seen: now, proved: true, source: proof.source }))?;
    Ok(())
}

/// Checks a heartbeat and says what the sign of life is. The caller keeps it; nothing is written here.
///
/// # Errors
/// As for every proved command.
pub fn heartbeat(t: &impl Reads, now: u64, proof: &Proof) -> Result<Presence, Refusal> {
    proved(t, proof)?;
    // Somebody who never proved the key has registered it elsewhere in the meantime: the true holder is told to register
    // again, which puts its endpoint back.
    if t.presence(proof.node)?.is_some_and(|p| !p.proved && p.source != proof.source) {
        return Err(Refusal::NodeNotFound(proof.node));
    }
    Ok(Presence { last_seen: now, proved: true, source: proof.source })
}

/// Takes a node off the network by its own wish. An unknown or departed node is fine (04 §9.1).
///
/// # Errors
/// As for every proved command, when the node is live.
pub fn deregister(t: &mut impl Writes, now: u64, node: u32, proof: Option<&Proof>) -> Result<bool, Refusal> {
    if t.presence(node)?.is_none() {
        return Ok(false);
    }
    let proof = proof.filter(|p| p.node == node).ok_or(crate::error::SIGNATURE_REQUIRED)?;
    proved(t, proof)?;
    depart(t, now, node)
}

/// Takes a node off the network: it is invisible, its endpoint and visibility are gone. Its id, key, tags, score, task
/// flag, memberships and trust stay, and its hostname for the grace period, unless it never proved to hold its key.
/// Says whether it was live.
///
/// # Errors
/// Only when the store fails.
pub fn depart(t: &mut impl Writes, now: u64, id: u32) -> Result<bool, Refusal> {
    let (Some(presence), Some(mut node)) = (t.presence(id)?, t.node(id)?) else {
        return Ok(false);
    };
    if !presence.proved && !node.hostname.is_empty() {
        t.remove_hostname(&node.hostname)?;
        node.hostname.clear();
    }
    node.departed = Some(now);
    node.public = false;
    node.endpoint = None;
    t.put_node(&node)?;
    t.put_presence(id, None)?;
    Ok(true)
}
