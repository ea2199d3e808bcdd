//! The rules of the directory, as functions over the tables of one transaction: no clock, no sockets, no storage engine.
//!
//! Every command checks everything it can refuse before it writes anything, because many commands share one transaction.
//! `now` is in Unix seconds.

mod attributes;
mod handshakes;
mod lifecycle;
mod networks;
mod trust;

pub use attributes::{set_hostname, set_polo_score, set_tags, set_task_exec, set_visibility, update_polo_score};
pub use handshakes::{has_waiting, poll_handshakes, request_handshake, respond_handshake};
pub use lifecycle::{Register, Registration, depart, deregister, heartbeat, register, rotate_key};
pub use networks::{
    Authority, Change, Changed, Member, NewNetwork, change_network, create_network, invite, invites, is_same_secret,
    join_network, leave_network, list_nodes, member_role, respond_invite,
};
pub use trust::{Resolved, check_trust, is_trusted, may_resolve, punch, report_trust, resolve, revoke_trust};

use std::net::IpAddr;

use crate::error::{Fault, Refusal, SIGNATURE_FAILED};
use crate::model::{Network, Node};
use crate::tables::Reads;

/// Evidence that the holder of a node's key made a request: a signature verified under `key`. Every command that takes
/// one checks that `key` still is the node's key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Proof {
    /// Whose request it is.
    pub node: u32,
    /// The key it verified under.
    pub key: [u8; 32],
    /// Where it came from.
    pub source: IpAddr,
}

/// The identity of a live node.
///
/// # Errors
/// [`Refusal::NodeNotFound`] when it is unknown or departed.
pub fn live(t: &impl Reads, id: u32) -> Result<Node, Refusal> {
    match (t.presence(id)?, t.node(id)?) {
        (Some(_), Some(node)) => Ok(node),
        _ => Err(Refusal::NodeNotFound(id)),
    }
}

/// The live node that a proof speaks for.
fn proved(t: &impl Reads, proof: &Proof) -> Result<Node, Refusal> {
    let node = live(t, proof.node)?;
    if node.public_key == proof.key { Ok(node) } else { Err(SIGNATURE_FAILED) }
}

/// The live node that holds a hostname.
///
/// # Errors
/// [`Refusal::HostnameNotFound`].
pub fn resolve_hostname(t: &impl Reads, name: &str) -> Result<Node, Refusal> {
    if name.is_empty() {
        return Err(Refusal::HostnameRequired);
    }
    let not_found = || Refusal::HostnameNotFound(crate::limits::cut(name, 80).to_owned());
    let id = t.node_of_hostname(name)?.ok_or_else(not_found)?;
    live(t, id).map_err(|refusal| if matches!(refusal, Refusal::NodeNotFound(_)) { not_found() } else { refusal })
}

/// A network and its number of members. Network 0 has every live node.
fn with_members(t: &impl Reads, network: Network) -> Result<(Network, u64), Fault> {
    let members = if network.id == 0 { t.live_count()? } else { network.members.len() as u64 };
    Ok((network, members))
}

/// All networks with their number of members.
///
/// # Errors
/// Only when the store fails.
pub fn list_networks(t: &impl Reads) -> Result<Vec<(Network, u64)>, Refusal> {
    Ok(t.networks()?.into_iter().map(|network| with_members(t, network)).collect::<Result<_, _>>()?)
}

/// A network, for its policy.
///
/// # Errors
/// [`Refusal::NetworkNotFound`].
pub fn network(t: &impl Reads, id: u16) -> Result<Network, Refusal> {
    t.network(id)?.ok_or(Refusal::NetworkNotFound(id))
}
