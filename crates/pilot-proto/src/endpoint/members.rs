//! Who shares a network other than 0 with us (04 §13; docs/spec/networks.md M1 to M6): what the registry said, how long
//! that counts, and what waits while it is asked.
//!
//! The registry is asked when somebody knocks of whom it has not said anything, and again every [`ASK_AFTER`] for as long as
//! there is a tunnel. What it said counts for [`VALID`] at the most: without a registry nobody stays a member for ever.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use pilot_wire::packet::{Packet, protocol};
use rustc_hash::FxHashMap;

use super::gate::Proof;
use super::limits::STRANGER_LOOKUPS;
use super::{Endpoint, Event};

/// What the registry said of a peer is asked again after this long, while there is a tunnel to it.
pub const ASK_AFTER: Duration = Duration::from_secs(20);
/// What the registry said counts this long when it does not answer any more.
pub const VALID: Duration = Duration::from_secs(300);
/// Somebody who shares no network is not asked about again for this long.
const STRANGER_FOR: Duration = Duration::from_secs(5);
/// A question without answer is asked again after this long.
const UNANSWERED: Duration = Duration::from_secs(10);
/// Nodes of which the registry's word is kept. When full, one that shares nothing is forgotten, or else a member without a
/// tunnel: the one asked about longest ago. While all are members with a tunnel, nobody new is asked about.
const NODES: usize = 8192;
/// Packets that wait for the registry's word. When full, the oldest is dropped, as the network may do, too.
const WAITING: usize = 64;
/// Those of one node; its further ones are dropped.
const WAITING_OF_NODE: usize = 4;
/// How long they wait.
const WAIT: Duration = Duration::from_secs(5);

/// What the registry says of a node that shares networks with us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Its Ed25519 key: who proves another is somebody else.
    pub key: [u8; 32],
    /// The networks we share, other than 0; not empty.
    pub networks: Vec<SharedNetwork>,
}

/// A network that we share with a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedNetwork {
    /// Which.
    pub id: u16,
    /// Ports on which its members reach each other; empty means all (07 §7).
    pub ports: Vec<u16>,
}

/// What a node is to us by its networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It shares a network that opens the port.
    Shared,
    /// The networks it shares do not open the port.
    Port,
    /// The member has another key.
    Key,
    /// It shares none, or nothing is known.
    Stranger,
}

#[derive(Debug, Default)]
struct Entry {
    /// `None`: it shares none, or nothing is known.
    membership: Option<Membership>,
    said: Option<Instant>,
    asked: Option<Instant>,
    /// Whether the registry did not answer when it was asked last.
    is_unanswered: bool,
}

/// A packet that waits for the registry's word on its sender.
#[derive(Debug)]
struct Waiting {
    node: u32,
    /// Under which key it came: who has the tunnel when the word is there may be somebody else.
    proof: Proof,
    packet: Vec<u8>,
    since: Instant,
}

impl Waiting {
    fn is_late(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= WAIT
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Whether we are in any network: if not, nobody is asked about.
    pub(super) is_any: bool,
    nodes: FxHashMap<u32, Entry>,
    waiting: VecDeque<Waiting>,
}

fn younger(at: Option<Instant>, now: Instant, age: Duration) -> bool {
    at.is_some_and(|at| now.saturating_duration_since(at) < age)
}

impl Members {
    /// What a node is to us; without a port, whether it is a member at all.
    pub(super) fn standing(&self, now: Instant, node: u32, proof: Proof, port: Option<u16>) -> Standing {
        let Some(entry) = self.nodes.get(&node) else { return Standing::Stranger };
        let Some(membership) = entry.membership.as_ref().filter(|_| younger(entry.said, now, VALID)) else {
            return Standing::Stranger;
        };
        if let Proof::Key(key) = proof
            && key != membership.key
        {
            return Standing::Key;
        }
        let open =
            |network: &SharedNetwork| port.is_none_or(|p| network.ports.is_empty() || network.ports.contains(&p));
        if membership.networks.iter().any(open) { Standing::Shared } else { Standing::Port }
    }

    /// Whether the registry might say something else than what stands here.
    fn is_worth_asking(&self, now: Instant, node: u32) -> bool {
        self.is_any && self.nodes.get(&node).is_none_or(|entry| !younger(entry.said, now, STRANGER_FOR))
    }

    /// Makes room for one more node. False when only members with a tunnel are left: nobody would look any more whether
    /// one of them is still a member.
    fn make_room(&mut self, has_tunnel: impl Fn(u32) -> bool) -> bool {
        if self.nodes.len() < NODES {
            return true;
        }
        let may_go = |node: u32, entry: &Entry| entry.membership.is_none() || !has_tunnel(node);
        let candidates = self.nodes.iter().filter(|(node, entry)| may_go(**node, entry));
        let oldest = candidates.min_by_key(|(_, entry)| (entry.membership.is_some(), entry.said.max(entry.asked)));
        let oldest = oldest.map(|(node, _)| *node);
        oldest.is_some_and(|node| self.nodes.remove(&node).is_some())
    }

    /// What is known of a node, with room made for one that is new.
    fn entry(&mut self, node: u32, has_tunnel: impl Fn(u32) -> bool) -> Option<&mut Entry> {
        if !self.nodes.contains_key(&node) && !self.make_room(has_tunnel) {
            return None;
        }
        Some(self.nodes.entry(node).or_default())
    }

    /// Takes the registry's word; whether it takes away what was granted before.
    fn set(
        &mut self,
        now: Instant,
        node: u32,
        membership: Option<Membership>,
        has_tunnel: impl Fn(u32) -> bool,
    ) -> bool {
        // Without room it stays a stranger.
        let Some(entry) = self.entry(node, has_tunnel) else { return false };
        entry.asked = None;
        entry.is_unanswered = false;
        entry.said = Some(now);
        let before = std::mem::replace(&mut entry.membership, membership);
        match (before, &entry.membership) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(now)) => before != *now,
        }
    }

    /// Lets a packet wait. One too many of the same node is dropped.
    fn wait(&mut self, now: Instant, node: u32, proof: Proof, packet: Vec<u8>) {
        self.waiting.retain(|waiting| !waiting.is_late(now));
        if self.waiting.iter().filter(|waiting| waiting.node == node).count() >= WAITING_OF_NODE {
            return;
        }
        if self.waiting.len() >= WAITING {
            self.waiting.pop_front();
        }
        self.waiting.push_back(Waiting { node, proof, packet, since: now });
    }

    fn take_waiting(&mut self, now: Instant, node: u32) -> Vec<(Proof, Vec<u8>)> {
        let mut taken = Vec::new();
        self.waiting.retain_mut(|waiting| {
            let is_late = waiting.is_late(now);
            if waiting.node == node && !is_late {
                taken.push((waiting.proof, std::mem::take(&mut waiting.packet)));
            }
            waiting.node != node && !is_late
        });
        taken
    }
}

impl Endpoint {
    /// Keeps a packet that the gate would refuse until the registry has said whether its sender shares a network with us.
    /// False when there is nothing to ask.
    pub(super) fn ask_membership(&mut self, now: Instant, node: u32, proof: Proof, packet: &Packet<'_>) -> bool {
        if !self.gate.members.is_worth_asking(now, node) {
            return false;
        }
        let known = self.gate.members.nodes.get(&node);
        let is_asked = known.is_some_and(|entry| younger(entry.asked, now, UNANSWERED));
        if is_asked && known.is_some_and(|entry| entry.is_unanswered) {
            return false;
        }
        if !is_asked {
            let is_member = known.is_some_and(|entry| entry.membership.is_some());
            if !is_member && !self.stranger_lookups.take(now, STRANGER_LOOKUPS) {
                return false;
            }
            let peers = &self.peers;
            let Some(entry) = self.gate.members.entry(node, |node| peers.find(node).is_some()) else { return false };
            entry.asked = Some(now);
            entry.is_unanswered = false;
            self.events.push_back(Event::NeedMembership { node });
        }
        let mut bytes = Vec::with_capacity(pilot_wire::packet::HEADER_LEN + packet.payload.len());
        if packet.header.emit(packet.payload, &mut bytes).is_ok() {
            self.gate.members.wait(now, node, proof, bytes);
        }
        true
    }

    /// The registry's word on a node: the networks it shares with us, or `None` when it shares none. Of those that we have
    /// left since it was asked nothing counts. Connections that it would not be allowed to open any more are reset.
    pub fn handle_membership(&mut self, now: Instant, node: u32, membership: Option<Membership>) {
        if !self.gate.members.is_any {
            return;
        }
        let own = &self.networks;
        let membership = membership.and_then(|mut membership| {
            membership.networks.retain(|network| own.contains(&network.id));
            (!membership.networks.is_empty()).then_some(membership)
        });
        let is_gone = membership.is_none();
        let peers = &self.peers;
        if self.gate.members.set(now, node, membership, |node| peers.find(node).is_some()) {
            if is_gone {
                self.gate.remove_replies(node);
            }
            self.reset_disallowed(now, node);
        }
        self.judge_waiting(now, node);
    }

    /// The registry did not answer [`Event::NeedMembership`]: what it said before still counts, and what waits is judged
    /// by that. It is asked again after 10 s at the soonest.
    pub fn handle_membership_unknown(&mut self, now: Instant, node: u32) {
        if let Some(entry) = self.gate.members.nodes.get_mut(&node) {
            // From now on, not from the question: a registry that takes long to fail is not asked more often for that.
            entry.asked = Some(now);
            entry.is_unanswered = true;
            self.judge_waiting(now, node);
        }
    }

    /// Lets what waited for the registry's word on a node come to the gate again.
    fn judge_waiting(&mut self, now: Instant, node: u32) {
        let waiting = self.gate.members.take_waiting(now, node);
        let Some(slot) = self.peers.find(node) else { return };
        for (proof, bytes) in waiting {
            if self.proof(slot) != Some(proof) {
                self.counters.refused += 1;
                continue;
            }
            let Ok(packet) = Packet::parse(&bytes) else { continue };
            match packet.header.protocol {
                protocol::STREAM => self.handle_segment(now, slot, &packet),
                protocol::DATAGRAM => self.handle_peer_datagram(now, slot, &packet),
                _ => {}
            }
        }
        self.service_peer(now, slot);
    }

    /// Ends memberships that the registry has not confirmed for [`VALID`], forgets those without a tunnel, and names the
    /// nodes about which the registry should be asked again.
    pub fn review_memberships(&mut self, now: Instant) -> Vec<u32> {
        let (mut due, mut lapsed) = (Vec::new(), Vec::new());
        let peers = &self.peers;
        self.gate.members.nodes.retain(|node, entry| {
            let has_tunnel = peers.find(*node).is_some();
            if entry.membership.is_some() && !younger(entry.said, now, VALID) {
                entry.membership = None;
                lapsed.push(*node);
            }
            let is_asked = younger(entry.asked, now, UNANSWERED);
            if entry.membership.is_some() && has_tunnel && !is_asked && !younger(entry.said, now, ASK_AFTER) {
                entry.asked = Some(now);
                entry.is_unanswered = false;
                due.push(*node);
            }
            has_tunnel || younger(entry.said.max(entry.asked), now, VALID)
        });
        for node in lapsed {
            self.gate.remove_replies(node);
            self.reset_disallowed(now, node);
        }
        due
    }

    /// We have joined or left a network: what we left is shared with nobody from now on, and who was a stranger may be none
    /// any more.
    pub(super) fn own_networks_changed(&mut self, now: Instant) {
        let own = &self.networks;
        let members = &mut self.gate.members;
        members.is_any = own.iter().any(|network| *network != 0);
        let mut lost = Vec::new();
        members.nodes.retain(|node, entry| {
            let Some(membership) = &mut entry.membership else { return false };
            let before = membership.networks.len();
            membership.networks.retain(|network| own.contains(&network.id));
            if membership.networks.len() < before {
                lost.push((*node, membership.networks.is_empty()));
            }
            !membership.networks.is_empty()
        });
        for (node, is_gone) in lost {
            if is_gone {
                self.gate.remove_replies(node);
            }
            self.reset_disallowed(now, node);
        }
    }
}

#[cfg(test)]
impl Endpoint {
    /// What waits came under another key than the one that has the tunnel now.
    pub(super) fn set_waiting_key(&mut self, key: [u8; 32]) -> usize {
        let waiting = &mut self.gate.members.waiting;
        waiting.iter_mut().for_each(|waiting| waiting.proof = Proof::Key(key));
        waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn membership(id: u16, ports: &[u16]) -> Option<Membership> {
        Some(Membership { key: [1; 32], networks: vec![SharedNetwork { id, ports: ports.to_vec() }] })
    }

    #[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    #[test]
    fn a_member_passes_under_its_key_on_the_ports_of_the_network_and_not_for_ever() {
        let (t, key) = (origin(), Proof::Key([1; 32]));
        let mut members = Members { is_any: true, ..Members::default() };
        assert_eq!(members.standing(t, 5, key, Some(7)), Standing::Stranger);
        assert!(!members.set(t, 5, membership(9, &[]), |_| false));
        assert_eq!(members.standing(t, 5, key, Some(7)), Standing::Shared);
        assert_eq!(members.standing(t, 5, Proof::Key([2; 32]), Some(7)), Standing::Key);
        assert_eq!(members.standing(t, 6, key, Some(7)), Standing::Stranger);
        assert_eq!(members.standing(t + VALID, 5, key, Some(7)), Standing::Stranger);
        assert!(members.set(t, 5, membership(9, &[80]), |_| false));
        assert_eq!(members.standing(t, 5, key, Some(7)), Standing::Port);
        assert_eq!(members.standing(t, 5, key, Some(80)), Standing::Shared);
        assert_eq!(members.standing(t, 5, key, None), Standing::Shared);
        assert!(members.set(t, 5, None, |_| false));
        assert_eq!(members.standing(t, 5, key, Some(80)), Standing::Stranger);
        // A stranger is not asked about with every packet; a node in no network asks about nobody.
        assert!(!members.is_worth_asking(t, 5));
        assert!(members.is_worth_asking(t + STRANGER_FOR, 5));
        members.is_any = false;
        assert!(!members.is_worth_asking(t + STRANGER_FOR, 5));
    }

    fn full(t: Instant) -> Members {
        let mut members = Members { is_any: true, ..Members::default() };
        for node in 1..=NODES as u32 {
            members.set(t + Duration::from_millis(u64::from(node)), node, membership(9, &[]), |_| true);
        }
        assert_eq!(members.nodes.len(), NODES);
        members
    }

    #[test]
    fn a_new_node_takes_the_place_of_a_stranger_or_of_a_member_without_a_tunnel() {
        let (t, later) = (origin(), Duration::from_secs(100));
        let mut members = full(t);
        members.set(t + later, 500, None, |_| true);
        assert!(members.entry(10_000, |_| true).is_some());
        assert!(!members.nodes.contains_key(&500), "the only stranger goes, though it was spoken of last");
        members.set(t + later, 10_000, membership(9, &[]), |_| true);
        assert!(members.entry(10_001, |node| node != 11 && node != 12).is_some());
        assert!(!members.nodes.contains_key(&11) && members.nodes.contains_key(&12), "the oldest word goes first");
        assert_eq!(members.nodes.len(), NODES);
    }

    #[test]
    fn nobody_takes_the_place_of_a_member_with_a_tunnel() {
        let t = origin();
        let mut members = full(t);
        assert!(members.entry(10_000, |_| true).is_none());
        assert!(!members.set(t, 10_000, membership(9, &[]), |_| true));
        assert_eq!(members.standing(t, 10_000, Proof::Key([1; 32]), None), Standing::Stranger);
        // One that is in the table needs no room, and what ends its membership is noticed.
        assert!(members.entry(1, |_| false).is_some_and(|entry| entry.membership.is_some()));
        assert!(members.set(t, 1, None, |_| false));
        assert_eq!(members.nodes.len(), NODES);
    }

    #[test]
    fn one_node_does_not_take_the_room_of_those_who_wait() {
        let (t, proof) = (origin(), Proof::Key([1; 32]));
        let mut members = Members::default();
        members.wait(t, 5, proof, vec![0]);
        for packet in 0..100 {
            members.wait(t, 6, proof, vec![packet]);
        }
        assert_eq!(members.waiting.len(), 1 + WAITING_OF_NODE);
        for node in 100..200 {
            members.wait(t, node, proof, vec![0]);
        }
        assert_eq!(members.waiting.len(), WAITING);
        // What has waited too long makes room.
        members.wait(t + WAIT, 6, proof, vec![7]);
        assert_eq!(members.take_waiting(t + WAIT, 6), [(proof, vec![7])]);
        assert!(members.waiting.is_empty());
    }
}
