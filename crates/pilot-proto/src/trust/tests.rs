//! Nodes and a registry on paper: messages are carried by hand, time is an argument.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::handshake::{Kind, Message};
use pilot_wire::registry::{PollOk, WaitingRequest, WaitingResponse};
use pilot_wire::{base64, signed};
use serde_json::{Value, json};

use super::*;
use crate::identity::Identity;

mod files;
mod peers;
mod random;
mod verdicts;

/// Seconds since 1970 at which every test starts.
const START: u64 = 1_767_225_600;

fn identity(node: u32) -> Arc<Identity> {
    Arc::new(Identity::from_seed([node as u8; 32]))
}

fn key(node: u32) -> [u8; 32] {
    identity(node).public_key()
}

/// Some nodes, ways between them, and a registry.
struct Net {
    at: Moment,
    nodes: BTreeMap<u32, Trust>,
    /// Whether streams to port 444 get through.
    direct: bool,
    /// Whether the registry can be asked.
    registry: bool,
    /// Its inboxes.
    inbox: BTreeMap<u32, PollOk>,
    /// Everything but the messages, by node, in order.
    log: Vec<(u32, TrustEvent)>,
    /// Messages that were delivered.
    delivered: Vec<(u32, u32, Kind)>,
    networks: BTreeMap<u32, Vec<u16>>,
}

impl Net {
    fn new(nodes: &[u32]) -> Self {
        // The one place where a test takes a clock; all times are relative to it.
        #[allow(clippy::disallowed_methods)]
        let now = Instant::now();
        let make = |node: &u32| (*node, Trust::new(identity(*node), *node, TrustConfig::default()));
        Self {
            at: Moment { now, unix: Duration::from_secs(START) },
            nodes: nodes.iter().map(make).collect(),
            direct: true,
            registry: true,
            inbox: BTreeMap::new(),
            log: Vec::new(),
            delivered: Vec::new(),
            networks: BTreeMap::new(),
        }
    }

    fn node(&mut self, node: u32) -> &mut Trust {
        self.nodes.get_mut(&node).unwrap()
    }

    fn policy(&mut self, node: u32, approval: Approval) {
        self.node(node).set_config(TrustConfig { approval });
    }

    fn wait(&mut self, duration: Duration) {
        let end = self.at.now + duration;
        while let Some((node, when)) =
            self.nodes.iter().filter_map(|(n, t)| t.poll_timeout().map(|w| (*n, w))).min_by_key(|(_, w)| *w)
            && when <= end
        {
            self.at.unix += when.saturating_duration_since(self.at.now);
            self.at.now = self.at.now.max(when);
            let at = self.at;
            self.node(node).handle_timeout(at);
            self.carry();
        }
        self.at.unix += end.saturating_duration_since(self.at.now);
        self.at.now = end;
    }

    /// Carries everything until nothing moves.
    fn carry(&mut self) {
        let ids: Vec<u32> = self.nodes.keys().copied().collect();
        for _ in 0..1000 {
            let Some((from, event)) = ids.iter().find_map(|id| self.node(*id).poll_event().map(|event| (*id, event)))
            else {
                return;
            };
            self.perform(from, event);
        }
        panic!("the nodes never come to rest: {:?}", self.delivered);
    }

    fn perform(&mut self, from: u32, event: TrustEvent) {
        let at = self.at;
        match event.clone() {
            TrustEvent::SendDirect { id, node, kind, message } => {
                let delivered = self.direct && self.nodes.contains_key(&node);
                if delivered {
                    self.delivered.push((from, node, kind));
                    // What a node says of a message is its own business; the sender only learns that it arrived.
                    let _ = self.node(node).handle_message(at, from, Some(key(from)), &message);
                }
                self.node(from).handle_sent(at, id, delivered);
            }
            TrustEvent::RelayRequest { id, node, justification } => {
                let result = if self.registry && self.nodes.contains_key(&node) {
                    let request = WaitingRequest { from, justification, timestamp: at.unix.as_secs() };
                    self.inbox.entry(node).or_default().requests.push(request);
                    Ok(())
                } else {
                    Err("registry: request failed".to_owned())
                };
                self.node(from).handle_relayed(id, result);
                self.log.push((from, event));
            }
            TrustEvent::RelayRespond { node, accept } => {
                let response = WaitingResponse { from, accept, timestamp: at.unix.as_secs() };
                self.inbox.entry(node).or_default().responses.push(response);
                self.log.push((from, event));
            }
            TrustEvent::Lookup { node } => {
                let identity =
                    PeerIdentity { key: key(node), networks: self.networks.get(&node).cloned().unwrap_or_default() };
                let known = self.registry && self.nodes.contains_key(&node);
                self.node(from).handle_lookup(at, node, known.then_some(&identity));
            }
            event => self.log.push((from, event)),
        }
    }

    fn poll(&mut self, node: u32) {
        let (at, poll) = (self.at, self.inbox.remove(&node).unwrap_or_default());
        self.node(node).handle_poll(at, &poll);
        self.carry();
    }

    fn request(&mut self, from: u32, to: u32) -> Requested {
        let at = self.at;
        let requested = self.node(from).request(at, to, "please").unwrap();
        self.carry();
        requested
    }

    fn approve(&mut self, node: u32, peer: u32) {
        let at = self.at;
        assert!(self.node(node).approve(at, peer).unwrap(), "nothing to approve");
        self.carry();
    }

    fn revoke(&mut self, node: u32, peer: u32) {
        let at = self.at;
        self.node(node).revoke(at, peer).unwrap();
        self.carry();
    }

    /// Two nodes that trust each other.
    fn trusting() -> Self {
        let mut net = Self::new(&[1, 2]);
        net.request(1, 2);
        net.approve(2, 1);
        assert!(net.trusts(1, 2) && net.trusts(2, 1));
        net.forget();
        net
    }

    fn trusts(&self, node: u32, peer: u32) -> bool {
        self.nodes[&node].is_trusted(peer)
    }

    fn forget(&mut self) {
        self.log.clear();
        self.delivered.clear();
        self.inbox.clear();
    }

    /// Where in the log a node did something.
    fn place(&self, node: u32, event: &TrustEvent) -> Option<usize> {
        self.log.iter().position(|(n, e)| n == &node && e == event)
    }

    fn notices(&self, node: u32) -> Vec<&'static str> {
        let of = self.log.iter().filter(|(n, _)| *n == node);
        of.filter_map(|(_, e)| match e {
            TrustEvent::Notice { notice, .. } => Some(notice.event()),
            _ => None,
        })
        .collect()
    }
}

/// A message from `from` to `to` as its genuine sender makes it, with changes.
fn message(from: u32, to: u32, kind: Kind, at: Moment, change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message {
        kind,
        node: from,
        public_key: identity(from).public_key_base64(),
        justification: String::new(),
        signature: base64::encode(&identity(from).sign(signed::handshake(from, to).as_bytes())),
        reason: String::new(),
        timestamp: at.unix.as_secs() as i64,
    };
    change(&mut message);
    message.canonical()
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn parsed(text: &[u8]) -> Value {
    serde_json::from_slice(text).unwrap()
}

#[test]
fn times_are_written_and_read_as_rfc_3339() {
    for (unix, text) in [
        (0, "1970-01-01T00:00:00Z"),
        (951_782_400, "2000-02-29T00:00:00Z"),
        (1_772_187_072, "2026-02-27T10:11:12Z"),
        (4_102_444_799, "2099-12-31T23:59:59Z"),
    ] {
        assert_eq!(format_rfc3339(unix), text);
        assert_eq!(parse_rfc3339(text), Some(unix));
    }
    assert_eq!(parse_rfc3339("2026-02-27T12:11:12.987654321+02:00"), Some(1_772_187_072));
    assert_eq!(parse_rfc3339("2026-02-27T04:41:12-05:30"), Some(1_772_187_072));
    assert_eq!(format_rfc3339(u64::MAX), "9999-12-31T23:59:59Z");
    for bad in [
        "",
        "2026-02-27",
        "2026-02-27T10:11:12",
        "2026-13-27T10:11:12Z",
        "2026-02-27T10:11:12+2",
        "0001-01-01T00:00:00Z",
        "2026-02-27T10:11Z",
        "2026-02-27T1é:11:12Z",
    ] {
        assert_eq!(parse_rfc3339(bad), None, "{bad}");
    }
    // Every day of four centuries, forth and back.
    for day in (0..146_097).map(|day| day * 86_400 + 43_199) {
        assert_eq!(parse_rfc3339(&format_rfc3339(day)), Some(day));
    }
}

#[test]
fn webhook_data_has_the_official_keys() {
    assert_eq!(Notice::Approved.data(2), json!({"peer_node_id": 2}));
    assert_eq!(
        Notice::Pending { justification: "please".to_owned() }.data(2),
        json!({"justification": "please", "peer_node_id": 2})
    );
    assert_eq!(Notice::AutoApproved { reason: "mutual" }.data(2), json!({"peer_node_id": 2, "reason": "mutual"}));
    assert_eq!(
        Notice::Rejected { reason: "not now".to_owned() }.data(500),
        json!({"peer_node_id": 500, "reason": "not now"})
    );
}
