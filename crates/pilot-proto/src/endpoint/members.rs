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
/// Nodes of which the registry's word is kept. When full, the one asked about longest ago is forgotten, and asked about
/// again when it knocks.
const NODES: usize = 8192;
/// Packets that wait for the registry's word. When full, the oldest is dropped, as the network may do, too.
const WAITING: usize = 64;
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
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Members {
    /// Whether we are in any network: if not, nobody is asked about.
    pub(super) is_any: bool,
    nodes: FxHashMap<u32, Entry>,
    /// A packet, of whom, and since when it waits.
    waiting: VecDeque<(u32, Vec<u8>, Instant)>,
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

    /// Makes room for one more node.
    fn make_room(&mut self) {
        if self.nodes.len() >= NODES
            && let Some(oldest) = self.nodes.iter().min_by_key(|(_, e)| e.said.max(e.asked)).map(|(node, _)| *node)
        {
            self.nodes.remove(&oldest);
        }
    }

    /// Takes the registry's word; whether it takes away what was granted before.
    fn set(&mut self, now: Instant, node: u32, membership: Option<Membership>) -> bool {
        if !self.nodes.contains_key(&node) {
            self.make_room();
        }
        let entry = self.nodes.entry(node).or_default();
        entry.asked = None;
        entry.said = Some(now);
        let before = std::mem::replace(&mut entry.membership, membership);
        match (before, &entry.membership) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(before), Some(now)) => before != *now,
        }
    }

    fn take_waiting(&mut self, now: Instant, node: u32) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        self.waiting.retain_mut(|(of, packet, since)| {
            let is_late = now.saturating_duration_since(*since) >= WAIT;
            if *of == node && !is_late {
                taken.push(std::mem::take(packet));
            }
            *of != node && !is_late
        });
        taken
    }
}

impl Endpoint {
    /// Keeps a packet that the gate would refuse until the registry has said whether its sender shares a network with us.
    /// False when there is nothing to ask.
    pub(super) fn ask_membership(&mut self, now: Instant, node: u32, packet: &Packet<'_>) -> bool {
        if !self.gate.members.is_worth_asking(now, node) {
            return false;
        }
        let is_asked = self.gate.members.nodes.get(&node).is_some_and(|entry| younger(entry.asked, now, UNANSWERED));
        if !is_asked {
            let is_known = self.gate.members.nodes.get(&node).is_some_and(|entry| entry.membership.is_some());
            if !is_known && !self.stranger_lookups.take(now, STRANGER_LOOKUPS) {
                return false;
            }
            self.gate.members.make_room();
            self.gate.members.nodes.entry(node).or_default().asked = Some(now);
            self.events.push_back(Event::NeedMembership { node });
        }
        let mut bytes = Vec::with_capacity(pilot_wire::packet::HEADER_LEN + packet.payload.len());
        if packet.header.emit(packet.payload, &mut bytes).is_ok() {
            let waiting = &mut self.gate.members.waiting;
            if waiting.len() >= WAITING {
                waiting.pop_front();
            }
            waiting.push_back((node, bytes, now));
        }
        true
    }

    /// The registry's word on a node: the networks it shares with us, or `None` when it shares none. Connections that it
    /// would not be allowed to open any more are reset.
    pub fn handle_membership(&mut self, now: Instant, node: u32, membership: Option<Membership>) {
        if !self.gate.members.is_any {
            return;
        }
        let membership = membership.filter(|m| !m.networks.is_empty());
        let is_gone = membership.is_none();
        if self.gate.members.set(now, node, membership) {
            if is_gone {
                self.gate.remove_replies(node);
            }
            self.reset_disallowed(now, node);
        }
        let waiting = self.gate.members.take_waiting(now, node);
        let Some(slot) = self.peers.find(node) else { return };
        for bytes in waiting {
            let Ok(packet) = Packet::parse(&bytes) else { continue };
            match packet.header.protocol {
                protocol::STREAM => self.handle_segment(now, slot, &packet),
                protocol::DATAGRAM => self.handle_peer_datagram(now, slot, &packet),
                _ => {}
            }
        }
        self.service_peer(now, slot);
    }

    /// The registry did not answer [`Event::NeedMembership`]: what it said before still counts.
    pub fn handle_membership_unknown(&mut self, node: u32) {
        if let Some(entry) = self.gate.members.nodes.get_mut(&node) {
            entry.asked = None;
        }
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
            if entry.membership.is_some() && has_tunnel && !younger(entry.said, now, ASK_AFTER) {
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

    /// The nodes whose networks we know to share: they are asked about again when ours change.
    pub fn members(&self) -> Vec<u32> {
        self.gate.members.nodes.iter().filter(|(_, entry)| entry.membership.is_some()).map(|(node, _)| *node).collect()
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
        assert!(!members.set(t, 5, membership(9, &[])));
        assert_eq!(members.standing(t, 5, key, Some(7)), Standing::Shared);
        assert_eq!(members.standing(t, 5, Proof::Key([2; 32]), Some(7)), Standing::Key);
        assert_eq!(members.standing(t, 6, key, Some(7)), Standing::Stranger);
        assert_eq!(members.standing(t + VALID, 5, key, Some(7)), Standing::Stranger);
        assert!(members.set(t, 5, membership(9, &[80])));
        assert_eq!(members.standing(t, 5, key, Some(7)), Standing::Port);
        assert_eq!(members.standing(t, 5, key, Some(80)), Standing::Shared);
        assert_eq!(members.standing(t, 5, key, None), Standing::Shared);
        assert!(members.set(t, 5, None));
        assert_eq!(members.standing(t, 5, key, Some(80)), Standing::Stranger);
        // A stranger is not asked about with every packet; a node in no network asks about nobody.
        assert!(!members.is_worth_asking(t, 5));
        assert!(members.is_worth_asking(t + STRANGER_FOR, 5));
        members.is_any = false;
        assert!(!members.is_worth_asking(t + STRANGER_FOR, 5));
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let t = origin();
        let mut members = Members { is_any: true, ..Members::default() };
        for node in 1..=NODES as u32 + 10 {
            members.set(t + Duration::from_millis(u64::from(node)), node, membership(9, &[]));
        }
        assert_eq!(members.nodes.len(), NODES);
        assert!(!members.nodes.contains_key(&10) && members.nodes.contains_key(&11), "the oldest word goes first");
    }
}
