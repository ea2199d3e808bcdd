//! The messages of networks (04 §13, 07 §9.3; docs/spec/networks.md N1 to N12).

use std::time::Duration;

use pilot_wire::registry::{
    Answer, Authority as Signed, InviteEntry, ListNodesOk, NetworkChange, NetworkEntry, NetworkPolicyOk, NodeEntry,
    PolicyChange,
};
use pilot_wire::{json, signed};

use super::handlers::PLAIN;
use super::{NetworkCreation, Registry, Session};
use crate::domain::{Authority, Change, Member, NewNetwork, is_same_secret};
use crate::error::Refusal;
use crate::limits::{COMMAND_LIFE, MAX_DESCRIPTION, MAX_MEMBERS, MAX_PORTS, MAX_TOKEN, MEMBERS_BYTES, cut};
use crate::model::{JoinRule, Network};
use crate::rules;

fn check_name(name: &str) -> Result<(), Refusal> {
    rules::check_network_name(name).map_err(Refusal::NetworkNameInvalid)
}

fn new_network(name: String, rule: &str, token: String) -> Result<NewNetwork, Refusal> {
    check_name(&name)?;
    let rule = JoinRule::parse(rule).ok_or_else(|| Refusal::JoinRuleInvalid(cut(rule, 40).to_owned()))?;
    match rule {
        JoinRule::Token if token.is_empty() => Err(Refusal::TokenUnusable("the join rule token needs one")),
        _ if token.len() > MAX_TOKEN => Err(Refusal::TokenUnusable("it is longer than 256 bytes")),
        JoinRule::Token => Ok(NewNetwork { name, rule, token }),
        // Kept, it would only look as if it protected something.
        _ if !token.is_empty() => Err(Refusal::TokenUnusable("only networks with the join rule token have one")),
        _ => Ok(NewNetwork { name, rule, token: String::new() }),
    }
}

fn policy(change: PolicyChange) -> Result<Change, Refusal> {
    let invalid = |text: String| Err(Refusal::PolicyInvalid(text));
    // Official tools send that for forms of the command which they do not know.
    if change.is_empty() {
        return invalid("the request names nothing to change (allowed_ports, max_members, description)".to_owned());
    }
    if change.allowed_ports.as_ref().is_some_and(|ports| ports.len() > MAX_PORTS) {
        return invalid(format!("it names more than {MAX_PORTS} ports"));
    }
    if change.max_members.is_some_and(|max| max as usize > MAX_MEMBERS) {
        return invalid(format!("max_members is above {MAX_MEMBERS}"));
    }
    if change.description.as_ref().is_some_and(|text| text.len() > MAX_DESCRIPTION) {
        return invalid(format!("its description is longer than {MAX_DESCRIPTION} bytes"));
    }
    Ok(Change::Policy { ports: change.allowed_ports, max_members: change.max_members, description: change.description })
}

pub(super) fn policy_of(network: Network) -> NetworkPolicyOk {
    NetworkPolicyOk {
        network: network.id,
        allowed_ports: network.allowed_ports,
        max_members: network.max_members,
        description: network.description,
    }
}

impl Registry {
    pub(super) async fn list_networks(&self) -> Result<Answer, Refusal> {
        let networks = self.store.list_networks().await?.into_iter().map(|(network, members)| NetworkEntry {
            id: network.id,
            name: network.name,
            members: usize::try_from(members).unwrap_or(usize::MAX),
            join_rule: network.join_rule,
            created: Some(network.created),
            enterprise: Some(false),
        });
        Ok(Answer::ListNetworks(networks.collect()))
    }

    /// As many members as fit one answer; the live ones first.
    pub(super) async fn list_nodes(&self, session: &Session, network: u16) -> Result<Answer, Refusal> {
        let mut answer = ListNodesOk { network, ..ListNodesOk::default() };
        let mut room = MEMBERS_BYTES;
        let (live, away): (Vec<Member>, Vec<Member>) =
            self.store.list_nodes(network).await?.into_iter().partition(|member| member.is_live);
        for member in live.into_iter().chain(away) {
            let is_live = member.is_live;
            let entry = self.member_entry(session, member);
            let size = json::to_vec(
                &Answer::ListNodes(ListNodesOk { network, nodes: vec![entry.clone()], ..ListNodesOk::default() })
                    .to_value(),
            )
            .len();
            if size > room {
                answer.truncated = true;
                break;
            }
            room -= size;
            if is_live { answer.nodes.push(entry) } else { answer.offline.push(entry) }
        }
        Ok(Answer::ListNodes(answer))
    }

    fn member_entry(&self, session: &Session, member: Member) -> NodeEntry {
        let Member { node, role, .. } = member;
        NodeEntry {
            node: node.id,
            real_addr: if node.public { self.address_of(session, &node).ok() } else { None },
            hostname: Some(node.hostname).filter(|name| !name.is_empty()),
            task_exec: node.task_exec,
            public: Some(node.public),
            version: Some(node.version).filter(|version| !version.is_empty()),
            role: Some(role.as_str().to_owned()),
        }
    }

    /// Who gives a command: the holder of the admin token, or a node that signed it a moment ago.
    async fn authority(
        &self,
        session: &mut Session,
        by: &Signed,
        change: &NetworkChange,
    ) -> Result<Authority, Refusal> {
        if !by.admin_token.is_empty() {
            let (ip, now) = (session.source().ip(), self.env.now());
            if !self.guesses.lock().take(ip, now) {
                return Err(Refusal::TooOften { what: "use a token", source_ip: ip });
            }
            if !is_same_secret(&self.config.admin_token.0, &by.admin_token) {
                return Err(Refusal::AdminTokenInvalid);
            }
            self.guesses.lock().give_back(ip, now);
            return Ok(Authority::Admin(by.node));
        }
        // Before the signature is looked at: an old one proves nothing, also not whose connection this is.
        let now = self.env.unix();
        let away = now.abs_diff(Duration::from_secs(by.timestamp));
        if !by.signature.is_empty() && away > COMMAND_LIFE {
            return Err(Refusal::SignatureExpired(away.as_secs()));
        }
        let text = signed::network_command(by.node, change, by.timestamp);
        let proof = self.authorize(session, by.node, &text, &by.signature, &PLAIN).await?;
        // Also when it is refused below: what is not allowed now may be in a minute.
        if !self.commands.lock().take(now.as_secs(), by.node, by.timestamp, &text) {
            return Err(Refusal::SignatureUsed);
        }
        Ok(Authority::Node(proof))
    }

    pub(super) async fn change_network(
        &self,
        session: &mut Session,
        by: &Signed,
        change: NetworkChange,
    ) -> Result<Answer, Refusal> {
        let by = self.authority(session, by, &change).await?;
        let (request, network, target) = (change.kind(), change.network(), change.target());
        let change = match change {
            NetworkChange::Create { name, join_rule, token } => {
                return self.create_network(session, by, new_network(name, &join_rule, token)?).await;
            }
            NetworkChange::Delete { .. } => Change::Delete,
            NetworkChange::Rename { name, .. } => {
                check_name(&name)?;
                Change::Rename(name)
            }
            NetworkChange::Kick { target, .. } => Change::Kick(target),
            NetworkChange::Promote { target, .. } => Change::Promote(target),
            NetworkChange::Demote { target, .. } => Change::Demote(target),
            NetworkChange::Transfer { target, .. } => Change::Transfer(target),
            NetworkChange::SetPolicy { policy: change, .. } => policy(change)?,
        };
        let sets_policy = matches!(change, Change::Policy { .. });
        let renames = matches!(change, Change::Rename(_));
        let changed = self.store.change_network(by, network, change).await?;
        if sets_policy {
            return Ok(Answer::PolicySet(policy_of(changed.network)));
        }
        Ok(Answer::NetworkChanged {
            request,
            network,
            target,
            name: renames.then_some(changed.network.name),
            role: changed.role.map(|role| role.as_str()),
        })
    }

    async fn create_network(&self, session: &Session, by: Authority, new: NewNetwork) -> Result<Answer, Refusal> {
        if let Authority::Node(_) = by {
            if self.creation() == NetworkCreation::Admin {
                return Err(Refusal::AdminTokenRequired);
            }
            let ip = session.source().ip();
            if !self.new_networks.lock().take(ip, self.env.now()) {
                return Err(Refusal::TooOften { what: "create a network", source_ip: ip });
            }
        }
        let network = self.store.create_network(self.now(), by, new).await?;
        Ok(Answer::NetworkCreated {
            network: network.id,
            name: network.name,
            join_rule: network.join_rule,
            owner: network.owner,
        })
    }

    /// Who may make networks.
    fn creation(&self) -> NetworkCreation {
        match self.config.network_creation {
            NetworkCreation::Default if self.config.admin_token.0.is_empty() => NetworkCreation::Anyone,
            NetworkCreation::Default => NetworkCreation::Admin,
            chosen => chosen,
        }
    }

    pub(super) async fn join_network(
        &self,
        session: &mut Session,
        node: u32,
        network: u16,
        token: String,
        signature: &str,
    ) -> Result<Answer, Refusal> {
        let text = signed::join_network(node, network);
        let proof = self.authorize(session, node, &text, signature, &PLAIN).await?;
        // A wrong token costs; guessing must not be quicker with many connections.
        let (ip, now) = (session.source().ip(), self.env.now());
        let guesses = !token.is_empty();
        if guesses && !self.guesses.lock().take(ip, now) {
            return Err(Refusal::TooOften { what: "use a token", source_ip: ip });
        }
        let joined = self.store.join_network(self.now(), proof, network, token).await;
        if guesses && !matches!(joined, Err(Refusal::NetworkTokenInvalid(_))) {
            self.guesses.lock().give_back(ip, now);
        }
        joined.map(|()| Answer::NetworkJoined { network, node })
    }

    pub(super) async fn invite(
        &self,
        session: &mut Session,
        (inviter, network, target): (u32, u16, u32),
        signature: &str,
    ) -> Result<Answer, Refusal> {
        let text = signed::invite(inviter, network, target);
        let proof = self.authorize(session, inviter, &text, signature, &PLAIN).await?;
        self.store.invite(self.now(), proof, network, target).await?;
        Ok(Answer::Invited { inviter, network, target })
    }

    pub(super) async fn poll_invites(
        &self,
        session: &mut Session,
        node: u32,
        signature: &str,
    ) -> Result<Answer, Refusal> {
        let proof = self.authorize(session, node, &signed::poll_invites(node), signature, &PLAIN).await?;
        let invites = self.store.invites(self.now(), proof).await?;
        Ok(Answer::Invites(
            invites
                .into_iter()
                .map(|(invite, name)| InviteEntry {
                    network: invite.network,
                    inviter: invite.by,
                    timestamp: invite.at,
                    name,
                })
                .collect(),
        ))
    }

    pub(super) async fn respond_invite(
        &self,
        session: &mut Session,
        (node, network, accept): (u32, u16, bool),
        signature: &str,
    ) -> Result<Answer, Refusal> {
        let text = signed::respond_invite(node, network);
        let proof = self.authorize(session, node, &text, signature, &PLAIN).await?;
        self.store.respond_invite(self.now(), proof, network, accept).await?;
        Ok(Answer::InviteAnswered { node, network, accept })
    }
}
