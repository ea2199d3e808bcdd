//! Networks other than 0: who is in them, who may say so, and who is invited (04 §13, docs/spec/networks.md N1 to N12).
//!
//! Membership stands in two places that change together: the network's list gives the order of joining, the node's list
//! answers whether two nodes share a network. Roles stand in the network.

use super::{Proof, live, proved};
use crate::error::{Fault, Refusal};
use crate::limits::{
    INVITE_LIFE, MAX_INVITED, MAX_INVITES, MAX_MEMBERS, MAX_NETWORKS, MAX_NETWORKS_OF_NODE, MAX_OWNED,
};
use crate::model::{Invite, JoinRule, Network, Node, Role};
use crate::tables::{Reads, Writes};

/// Who commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// A node, by its signature.
    Node(Proof),
    /// Whoever has the registry's admin token, in the name of a node or of none (0).
    Admin(u32),
}

/// What is commanded; texts are valid already ([`crate::rules`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The network ceases to exist.
    Delete,
    /// It gets another name.
    Rename(String),
    /// A member is put out.
    Kick(u32),
    /// A member becomes an administrator.
    Promote(u32),
    /// An administrator becomes a member.
    Demote(u32),
    /// A member becomes the owner, and the owner an administrator.
    Transfer(u32),
    /// Its policy changes; what is absent stays.
    Policy {
        /// Empty means all.
        ports: Option<Vec<u16>>,
        /// 0 means as many as fit.
        max_members: Option<u32>,
        /// Free text.
        description: Option<String>,
    },
}

/// A network to be made; texts are valid already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewNetwork {
    /// Its name.
    pub name: String,
    /// Its rule.
    pub rule: JoinRule,
    /// Its token, for the rule `token`.
    pub token: String,
}

/// A member as lists show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Who.
    pub node: Node,
    /// As what.
    pub role: Role,
    /// Whether it is live.
    pub is_live: bool,
}

/// A network other than 0.
fn existing(t: &impl Reads, id: u16, what: &'static str) -> Result<Network, Refusal> {
    if id == 0 {
        return Err(Refusal::Backbone(what));
    }
    t.network(id)?.ok_or(Refusal::NetworkNotFound(id))
}

fn not_member(node: u32, network: u16) -> Refusal {
    Refusal::NotMember { node, network }
}

/// All members of a network other than 0, in order of joining. Ids that no node has are left out.
///
/// # Errors
/// [`Refusal::BackboneListing`], [`Refusal::NetworkNotFound`].
pub fn list_nodes(t: &impl Reads, network: u16) -> Result<Vec<Member>, Refusal> {
    if network == 0 {
        return Err(Refusal::BackboneListing);
    }
    let network = t.network(network)?.ok_or(Refusal::NetworkNotFound(network))?;
    let mut members = Vec::new();
    for id in &network.members {
        if let Some(node) = t.node(*id)? {
            let role = network.role(*id).unwrap_or(Role::Member);
            members.push(Member { node, role, is_live: t.presence(*id)?.is_some() });
        }
    }
    Ok(members)
}

/// What a node is in a network.
///
/// # Errors
/// [`Refusal::NetworkNotFound`], [`Refusal::NotMember`].
pub fn member_role(t: &impl Reads, network: u16, node: u32) -> Result<Role, Refusal> {
    let found = t.network(network)?.ok_or(Refusal::NetworkNotFound(network))?;
    if network == 0 && t.presence(node)?.is_some() {
        return Ok(Role::Member);
    }
    found.role(node).ok_or(not_member(node, network))
}

fn check_name(t: &impl Reads, name: &str, own: Option<u16>) -> Result<usize, Refusal> {
    let networks = t.networks()?;
    if networks.iter().any(|n| n.name == name && Some(n.id) != own) {
        return Err(Refusal::NetworkNameTaken(name.to_owned()));
    }
    Ok(networks.len())
}

/// The id of the next network: none is used again before all others have been.
fn free_id(t: &impl Reads) -> Result<u16, Refusal> {
    let first = t.next_network()?;
    let mut id = first;
    loop {
        if id != 0 && t.network(id)?.is_none() {
            return Ok(id);
        }
        id = id.wrapping_add(1);
        if id == first {
            return Err(Refusal::TooManyNetworks("no network id is free".to_owned()));
        }
    }
}

/// Whether a node may own one more network.
fn check_owned(t: &impl Reads, owner: &Node) -> Result<(), Refusal> {
    let mut owned = 0;
    for id in owner.networks.iter().flatten() {
        owned += usize::from(t.network(*id)?.is_some_and(|network| network.owner == owner.id));
    }
    if owned >= MAX_OWNED {
        return Err(Refusal::TooManyNetworks(format!("node {} owns {MAX_OWNED} already", owner.id)));
    }
    Ok(())
}

/// Makes a network. Whoever makes it owns it and is its first member; one made with the admin token in nobody's name has
/// no owner.
///
/// # Errors
/// [`Refusal::NetworkNameTaken`], [`Refusal::TooManyNetworks`]; as for every proved command.
pub fn create_network(t: &mut impl Writes, now: u64, by: &Authority, new: &NewNetwork) -> Result<Network, Refusal> {
    let owner = match by {
        Authority::Node(proof) => Some(proved(t, proof)?),
        Authority::Admin(0) => None,
        Authority::Admin(node) => Some(live(t, *node)?),
    };
    // Network 0 counts as one, so there is room for that many besides it.
    if check_name(t, &new.name, None)? > MAX_NETWORKS {
        return Err(Refusal::TooManyNetworks(format!("this registry has {MAX_NETWORKS}")));
    }
    if let Some(owner) = &owner {
        check_room_of(owner)?;
        if matches!(by, Authority::Node(_)) {
            check_owned(t, owner)?;
        }
    }
    let id = free_id(t)?;
    let mut network = Network {
        id,
        name: new.name.clone(),
        join_rule: new.rule.as_str().to_owned(),
        token: new.token.clone(),
        created: now,
        ..Network::default()
    };
    t.set_next_network(id.wrapping_add(1))?;
    if let Some(mut owner) = owner {
        network.owner = owner.id;
        enter(t, &mut network, &mut owner)?;
    } else {
        t.put_network(&network)?;
    }
    Ok(network)
}

fn check_room_of(node: &Node) -> Result<(), Refusal> {
    let count = node.networks.iter().flatten().filter(|n| **n != 0).count();
    if count >= MAX_NETWORKS_OF_NODE {
        return Err(Refusal::TooManyNetworks(format!("node {} is in {MAX_NETWORKS_OF_NODE} already", node.id)));
    }
    Ok(())
}

/// Both lists, and the invitation is used up. The caller has checked that there is room.
fn enter(t: &mut impl Writes, network: &mut Network, node: &mut Node) -> Result<(), Refusal> {
    network.members.push(node.id);
    network.invited.retain(|id| *id != node.id);
    node.networks.get_or_insert_with(|| vec![0]).push(network.id);
    node.invites.retain(|invite| invite.network != network.id);
    t.put_network(network)?;
    Ok(t.put_node(node)?)
}

fn remove(t: &mut impl Writes, network: &mut Network, node: u32) -> Result<(), Refusal> {
    network.members.retain(|id| *id != node);
    network.admins.retain(|id| *id != node);
    if network.owner == node {
        network.owner = 0;
    }
    t.put_network(network)?;
    if let Some(mut node) = t.node(node)? {
        node.networks.iter_mut().for_each(|list| list.retain(|id| *id != network.id));
        t.put_node(&node)?;
    }
    Ok(())
}

fn check_room_in(network: &Network) -> Result<(), Refusal> {
    let max = match network.max_members {
        0 => MAX_MEMBERS,
        max => MAX_MEMBERS.min(max as usize),
    };
    if network.members.len() >= max {
        return Err(Refusal::NetworkFull { network: network.id, max });
    }
    Ok(())
}

/// Joins a network: one that is open, one whose token is known, or one that has invited the node.
///
/// # Errors
/// [`Refusal::AlreadyMember`], [`Refusal::NetworkTokenInvalid`], [`Refusal::NotInvited`], [`Refusal::NetworkFull`],
/// [`Refusal::TooManyNetworks`], [`Refusal::NetworkNotFound`]; as for every proved command.
pub fn join_network(t: &mut impl Writes, now: u64, proof: &Proof, id: u16, token: &str) -> Result<(), Refusal> {
    let mut node = proved(t, proof)?;
    let mut network = match id {
        0 => return Err(Refusal::AlreadyMember { node: node.id, network: 0 }),
        id => existing(t, id, "join")?,
    };
    if network.role(node.id).is_some() {
        return Err(Refusal::AlreadyMember { node: node.id, network: id });
    }
    let is_invited = node.invites.iter().any(|invite| invite.network == id && invite.is_valid(now));
    if !is_invited {
        match JoinRule::parse(&network.join_rule) {
            Some(JoinRule::Open) => {}
            Some(JoinRule::Token) if is_same_secret(&network.token, token) => {}
            Some(JoinRule::Token) => return Err(Refusal::NetworkTokenInvalid(id)),
            // A rule that only an imported file can hold lets nobody in.
            Some(JoinRule::Invite) | None => return Err(Refusal::NotInvited { network: id, node: node.id }),
        }
    }
    check_room_in(&network)?;
    check_room_of(&node)?;
    enter(t, &mut network, &mut node)
}

/// Compares two secrets in a time that tells nothing of either; an empty one is no secret.
pub fn is_same_secret(kept: &str, given: &str) -> bool {
    use aws_lc_rs::{constant_time, digest};
    let digest = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
    !kept.is_empty() && constant_time::verify_slices_are_equal(digest(kept).as_ref(), digest(given).as_ref()).is_ok()
}

/// Leaves a network. Its owner hands it over or deletes it instead.
///
/// # Errors
/// [`Refusal::NotMember`], [`Refusal::OwnerStays`], [`Refusal::NetworkNotFound`]; as for every proved command.
pub fn leave_network(t: &mut impl Writes, proof: &Proof, id: u16) -> Result<(), Refusal> {
    let node = proved(t, proof)?;
    let mut network = existing(t, id, "leave")?;
    match network.role(node.id) {
        None => Err(not_member(node.id, id)),
        Some(Role::Owner) => Err(Refusal::OwnerStays { network: id, what: "leave" }),
        Some(_) => remove(t, &mut network, node.id),
    }
}

/// Invites a node. Into an open network every member may, into others its owner and administrators.
///
/// # Errors
/// [`Refusal::NotMember`], [`Refusal::NotAllowed`], [`Refusal::AlreadyMember`], [`Refusal::TooManyInvites`],
/// [`Refusal::NodeNotFound`], [`Refusal::NetworkNotFound`]; as for every proved command.
pub fn invite(t: &mut impl Writes, now: u64, proof: &Proof, id: u16, target: u32) -> Result<(), Refusal> {
    let inviter = proved(t, proof)?;
    let mut network = existing(t, id, "invite to")?;
    let role = network.role(inviter.id).ok_or(not_member(inviter.id, id))?;
    if role == Role::Member && JoinRule::parse(&network.join_rule) != Some(JoinRule::Open) {
        return Err(Refusal::NotAllowed { network: id, needs: "owner or an administrator" });
    }
    if network.role(target).is_some() {
        return Err(Refusal::AlreadyMember { node: target, network: id });
    }
    // One that is away is told when it comes back.
    let mut node = t.node(target)?.ok_or(Refusal::NodeNotFound(target))?;
    node.invites.retain(|invite| invite.network != id && invite.is_valid(now));
    if node.invites.len() >= MAX_INVITES {
        return Err(Refusal::TooManyInvites(format!("{MAX_INVITES} wait for node {target}")));
    }
    if !network.invited.contains(&target) {
        if network.invited.len() >= MAX_INVITED {
            forget_expired(t, now, &mut network)?;
        }
        if network.invited.len() >= MAX_INVITED {
            return Err(Refusal::TooManyInvites(format!("network {id} has {MAX_INVITED} unanswered ones")));
        }
        network.invited.push(target);
        t.put_network(&network)?;
    }
    node.invites.push(Invite { network: id, by: inviter.id, at: now });
    Ok(t.put_node(&node)?)
}

/// Drops from a network's list whoever's invitation has lapsed.
fn forget_expired(t: &impl Reads, now: u64, network: &mut Network) -> Result<(), Fault> {
    let mut kept = Vec::new();
    for id in &network.invited {
        let node = t.node(*id)?;
        let waits = |node: &Node| node.invites.iter().any(|i| i.network == network.id && i.is_valid(now));
        if node.as_ref().is_some_and(waits) {
            kept.push(*id);
        }
    }
    network.invited = kept;
    Ok(())
}

/// The invitations that wait for a node, oldest first, with the networks' names. They stay until they are answered.
///
/// # Errors
/// As for every proved command.
pub fn invites(t: &impl Reads, now: u64, proof: &Proof) -> Result<Vec<(Invite, String)>, Refusal> {
    let node = proved(t, proof)?;
    let mut list = Vec::new();
    for invite in node.invites {
        if invite.is_valid(now)
            && let Some(network) = t.network(invite.network)?
        {
            list.push((invite, network.name));
        }
    }
    Ok(list)
}

/// Answers an invitation; accepting joins.
///
/// # Errors
/// [`Refusal::InviteNotFound`]; as [`join_network`].
pub fn respond_invite(t: &mut impl Writes, now: u64, proof: &Proof, id: u16, accept: bool) -> Result<(), Refusal> {
    let mut node = proved(t, proof)?;
    if !node.invites.iter().any(|invite| invite.network == id && invite.is_valid(now)) {
        return Err(Refusal::InviteNotFound(id));
    }
    if accept {
        return join_network(t, now, proof, id, "");
    }
    node.invites.retain(|invite| invite.network != id);
    t.put_node(&node)?;
    if let Some(mut network) = t.network(id)? {
        network.invited.retain(|target| *target != node.id);
        t.put_network(&network)?;
    }
    Ok(())
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The network as it is now, or was before it was deleted.
    pub network: Network,
    /// What the member concerned is now.
    pub role: Option<Role>,
}

/// Carries out a command about a network (N5 says who may give which).
///
/// # Errors
/// [`Refusal::NotMember`], [`Refusal::NotAllowed`], [`Refusal::OwnerStays`], [`Refusal::NetworkNameTaken`],
/// [`Refusal::TooManyNetworks`], [`Refusal::NetworkNotFound`]; as for every proved command.
pub fn change_network(t: &mut impl Writes, by: &Authority, id: u16, change: &Change) -> Result<Changed, Refusal> {
    let proven = match by {
        Authority::Node(proof) => Some(proved(t, proof)?.id),
        Authority::Admin(_) => None,
    };
    let mut network = existing(t, id, "change")?;
    let role = match proven {
        Some(node) => Some(network.role(node).ok_or(not_member(node, id))?),
        None => None,
    };
    // The admin token stands above every role.
    let may = |least: Role| role.is_none_or(|role| role >= least);
    let owner_only = || {
        if may(Role::Owner) { Ok(()) } else { Err(Refusal::NotAllowed { network: id, needs: "owner" }) }
    };
    let role_of = |network: &Network, node: u32| network.role(node).ok_or(not_member(node, id));
    let mut now_role = None;
    match change {
        Change::Kick(target) => {
            let needs = "owner or an administrator";
            if !may(Role::Admin) {
                return Err(Refusal::NotAllowed { network: id, needs });
            }
            let theirs = role_of(&network, *target)?;
            if theirs == Role::Owner && role.is_some() {
                return Err(Refusal::OwnerStays { network: id, what: "be put out of" });
            }
            // Administrators do not put each other out.
            if role.is_some_and(|own| own <= theirs) {
                return Err(Refusal::NotAllowed { network: id, needs: "owner" });
            }
            remove(t, &mut network, *target)?;
            return Ok(Changed { network, role: None });
        }
        Change::Delete => {
            owner_only()?;
            for member in network.members.clone() {
                if let Some(mut node) = t.node(member)? {
                    node.networks.iter_mut().for_each(|list| list.retain(|n| *n != id));
                    t.put_node(&node)?;
                }
            }
            for target in &network.invited {
                if let Some(mut node) = t.node(*target)? {
                    node.invites.retain(|invite| invite.network != id);
                    t.put_node(&node)?;
                }
            }
            t.remove_network(id)?;
            return Ok(Changed { network, role: None });
        }
        Change::Rename(name) => {
            owner_only()?;
            check_name(t, name, Some(id))?;
            network.name.clone_from(name);
        }
        Change::Promote(target) => {
            owner_only()?;
            match role_of(&network, *target)? {
                Role::Owner => return Err(Refusal::OwnerStays { network: id, what: "be promoted in" }),
                Role::Admin => {}
                Role::Member => network.admins.push(*target),
            }
            now_role = Some(Role::Admin);
        }
        Change::Demote(target) => {
            owner_only()?;
            if role_of(&network, *target)? == Role::Owner {
                return Err(Refusal::OwnerStays { network: id, what: "be demoted in" });
            }
            network.admins.retain(|admin| admin != target);
            now_role = Some(Role::Member);
        }
        Change::Transfer(target) => {
            owner_only()?;
            role_of(&network, *target)?;
            if proven.is_some() && network.owner != *target {
                check_owned(t, &t.node(*target)?.ok_or(Refusal::NodeNotFound(*target))?)?;
            }
            let before = std::mem::replace(&mut network.owner, *target);
            network.admins.retain(|admin| admin != target);
            if before != *target && network.members.contains(&before) {
                network.admins.push(before);
            }
            now_role = Some(Role::Owner);
        }
        Change::Policy { ports, max_members, description } => {
            owner_only()?;
            ports.iter().for_each(|ports| network.allowed_ports.clone_from(ports));
            max_members.iter().for_each(|max| network.max_members = *max);
            description.iter().for_each(|text| network.description.clone_from(text));
        }
    }
    t.put_network(&network)?;
    Ok(Changed { network, role: now_role })
}

impl Invite {
    /// Whether it can still be accepted.
    pub fn is_valid(&self, now: u64) -> bool {
        now < self.at.saturating_add(INVITE_LIFE.as_secs())
    }
}
