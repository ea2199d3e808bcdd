//! The registry and the session of real nodes, byte for byte, without sockets: what a node sends is understood here,
//! and what is answered is understood there.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Peers, addr};
use pilot_proto::directory::{Call, CallError, CallId, Directory, DirectoryConfig, DirectoryEvent};
use pilot_proto::identity::Identity;
use pilot_proto::trust::{Approval, Moment, NOTICE_RETRY, PeerIdentity, Trust, TrustConfig, TrustEvent};
use pilot_wire::frame::{self, FrameDecoder};
use pilot_wire::registry::{Fields, LookupOk};
use pilot_wire::{base64, json};

type Answered = Result<Fields, CallError>;

struct Node {
    seed: u8,
    directory: Directory,
    trust: Trust,
    decoder: FrameDecoder,
    /// Lookups the trust asked for, and relayed requests, by question.
    lookups: BTreeMap<CallId, u32>,
    relays: BTreeMap<CallId, pilot_proto::trust::SendId>,
    answers: BTreeMap<CallId, Answered>,
    events: Vec<DirectoryEvent>,
}

/// Nodes whose streams never get through, so that everything goes through the registry.
struct World {
    peers: Peers,
    nodes: Vec<Node>,
    now: Instant,
    unix: Duration,
}

impl World {
    fn new(peers: Peers, count: u8) -> Self {
        let env = pilot_env::Env::real();
        let (now, unix) = (env.now(), env.unix());
        let node = |seed: u8| {
            let identity = Arc::new(Identity::from_seed([seed; 32]));
            let config = DirectoryConfig::new(identity.clone());
            Node {
                seed,
                directory: Directory::new(now, config, [seed; 32]),
                trust: Trust::new(identity, 0, TrustConfig::default()),
                decoder: FrameDecoder::default(),
                lookups: BTreeMap::new(),
                relays: BTreeMap::new(),
                answers: BTreeMap::new(),
                events: Vec::new(),
            }
        };
        Self { peers, nodes: (1..=count).map(node).collect(), now, unix }
    }

    fn moment(&self) -> Moment {
        Moment { now: self.now, unix: self.unix }
    }

    async fn start(&mut self) {
        for i in 0..self.nodes.len() {
            let listen = format!("203.0.113.{}:4000", self.nodes[i].seed);
            self.nodes[i].directory.set_listen_addr(self.now, &listen);
            self.carry().await;
        }
    }

    /// Carries everything until nothing moves.
    async fn carry(&mut self) {
        for _ in 0..1000 {
            let mut moved = false;
            for i in 0..self.nodes.len() {
                moved |= self.step(i).await;
            }
            if !moved {
                return;
            }
        }
        panic!("never comes to rest");
    }

    async fn step(&mut self, i: usize) -> bool {
        let (now, at) = (self.now, self.moment());
        let node = &mut self.nodes[i];
        if let Some(event) = node.directory.poll_event() {
            match event {
                DirectoryEvent::Connect => node.directory.handle_connected(now),
                DirectoryEvent::Identified { node: id, ref networks, .. } => node.trust.set_local_node(id, networks),
                DirectoryEvent::Poll(ref poll) => node.trust.handle_poll(at, poll),
                DirectoryEvent::Answer { id, result } => self.answered(i, id, result),
                event => node.events.push(event),
            }
            return true;
        }
        if let Some(event) = node.trust.poll_event() {
            match event {
                TrustEvent::SendDirect { id, .. } => node.trust.handle_sent(at, id, false),
                TrustEvent::RelayRequest { id, node: to, justification } => {
                    let call = node.directory.call(now, Call::RequestHandshake { node: to, justification });
                    node.relays.insert(call, id);
                }
                TrustEvent::RelayRespond { node: to, accept } => {
                    node.directory.call(now, Call::RespondHandshake { node: to, accept });
                }
                TrustEvent::ReportTrust { node: peer } => node.directory.report_trust(now, peer),
                TrustEvent::RevokeTrust { node: peer } => node.directory.revoke_trust(now, peer),
                TrustEvent::Lookup { node: peer } => {
                    let call = node.directory.call(now, Call::Lookup { node: peer });
                    node.lookups.insert(call, peer);
                }
                _ => {}
            }
            return true;
        }
        let Some(bytes) = node.directory.poll_transmit() else { return false };
        node.decoder.push(&bytes);
        let source = addr(node.seed);
        while let Some(body) = self.nodes[i].decoder.next_frame().unwrap().map(<[u8]>::to_vec) {
            let answer = self.peers.send(source, &body).await.expect("the connection stays open");
            let mut out = Vec::new();
            frame::emit(&json::to_vec(&answer), &mut out).unwrap();
            self.nodes[i].directory.handle_data(now, &out);
        }
        true
    }

    fn answered(&mut self, i: usize, id: CallId, result: Answered) {
        let at = self.moment();
        let node = &mut self.nodes[i];
        if let Some(peer) = node.lookups.remove(&id) {
            let identity = result.ok().and_then(|f| LookupOk::from_fields(&f)).and_then(|lookup| {
                let key = base64::decode_array(&lookup.public_key)?;
                Some(PeerIdentity { key, networks: lookup.networks.unwrap_or_default() })
            });
            node.trust.handle_lookup(at, peer, identity.as_ref());
        } else if let Some(send) = node.relays.remove(&id) {
            node.trust.handle_relayed(send, result.map(|_| ()).map_err(|error| error.to_string()));
        } else {
            node.answers.insert(id, result);
        }
    }

    async fn ask(&mut self, i: usize, call: Call) -> Answered {
        let id = self.nodes[i].directory.call(self.now, call);
        self.carry().await;
        self.nodes[i].answers.remove(&id).expect("an answer")
    }

    async fn poll(&mut self, i: usize) {
        self.nodes[i].directory.poll_handshakes(self.now);
        self.carry().await;
    }

    fn id(&self, i: usize) -> u32 {
        self.nodes[i].directory.node()
    }

    async fn advance(&mut self, duration: Duration) {
        self.now += duration;
        self.unix += duration;
        for node in &mut self.nodes {
            node.directory.handle_timeout(self.now);
        }
        self.carry().await;
    }
}

#[tokio::test]
async fn nodes_register_and_set_what_they_want() {
    let mut world = World::new(Peers::new(), 2);
    world.start().await;
    assert_eq!((world.id(0), world.id(1)), (1, 2));
    world.ask(0, Call::SetHostname { hostname: "alice".to_owned() }).await.unwrap();
    world.ask(0, Call::SetTags { tags: vec!["#web".to_owned()] }).await.unwrap();
    world.ask(0, Call::SetVisibility { public: true }).await.unwrap();
    let found = world.ask(1, Call::ResolveHostname { hostname: "alice".to_owned() }).await.unwrap();
    assert_eq!(found.u32("node_id"), 1);
    let alice = LookupOk::from_fields(&world.ask(1, Call::Lookup { node: 1 }).await.unwrap()).unwrap();
    assert_eq!((alice.tags, alice.version.as_deref()), (vec!["web".to_owned()], Some(env!("CARGO_PKG_VERSION"))));
    assert_eq!(alice.real_addr.as_deref(), Some("203.0.113.1:4000"));
    let taken = world.ask(1, Call::SetHostname { hostname: "alice".to_owned() }).await.unwrap_err();
    assert!(taken.is_refusal(), "{taken}");
    assert!(world.nodes.iter().all(|n| n.events.iter().all(|e| !matches!(e, DirectoryEvent::Disconnect { .. }))));
}

#[tokio::test]
async fn private_nodes_come_to_trust_each_other_through_the_registry_alone() {
    let mut world = World::new(Peers::new(), 2);
    world.start().await;
    let denied = world.ask(0, Call::Resolve { node: 2 }).await.unwrap_err();
    assert!(denied.is_refusal(), "{denied}");
    let at = world.moment();
    world.nodes[0].trust.request(at, 2, "please").unwrap();
    world.carry().await;
    assert_eq!(*world.peers.told.0.lock(), [2], "the beacon can say so at once");
    world.poll(1).await;
    let (from, request) = world.nodes[1].trust.pending().next().expect("a request waits");
    assert_eq!((from, request.justification.as_str()), (1, "please"));
    assert_eq!(request.key, Some(common::key(1)), "the key came from the lookup");
    assert!(world.nodes[1].trust.approve(at, 1).unwrap());
    world.carry().await;
    world.poll(0).await;
    for (i, peer) in [(0, 2), (1, 1)] {
        assert_eq!(world.nodes[i].trust.trusted_node(peer).unwrap().key, Some(common::key(peer as u8)));
        let resolved = world.ask(i, Call::Resolve { node: peer }).await.unwrap();
        assert_eq!(resolved.string("real_addr"), format!("203.0.113.{peer}:4000"));
    }
    // The end of trust closes the way again.
    let at = world.moment();
    world.nodes[0].trust.revoke(at, 2).unwrap();
    world.carry().await;
    // It could not be told directly: after the next attempt the registry hears of it all the same.
    world.nodes[0].trust.handle_timeout(Moment { now: at.now + NOTICE_RETRY, ..at });
    world.carry().await;
    let denied = world.ask(1, Call::Resolve { node: 1 }).await.unwrap_err();
    assert!(denied.is_refusal(), "{denied}");
}

#[tokio::test]
async fn two_requests_that_cross_need_no_person() {
    let mut world = World::new(Peers::new(), 2);
    world.start().await;
    let at = world.moment();
    world.nodes[0].trust.request(at, 2, "").unwrap();
    world.nodes[1].trust.request(at, 1, "").unwrap();
    world.carry().await;
    world.poll(0).await;
    world.poll(1).await;
    assert!(world.nodes[0].trust.is_trusted(2) && world.nodes[1].trust.is_trusted(1));
    assert!(world.ask(0, Call::Resolve { node: 2 }).await.is_ok());
}

#[tokio::test]
async fn a_policy_answers_a_relayed_request() {
    let mut world = World::new(Peers::new(), 2);
    world.nodes[1].trust.set_config(TrustConfig { approval: Approval { all: true, ..Approval::default() } });
    world.start().await;
    let at = world.moment();
    world.nodes[0].trust.request(at, 2, "").unwrap();
    world.carry().await;
    world.poll(1).await;
    world.poll(0).await;
    assert!(world.nodes[0].trust.is_trusted(2) && world.nodes[1].trust.is_trusted(1));
}

#[tokio::test]
async fn a_registry_that_lost_its_store_is_told_everything_again() {
    let mut world = World::new(Peers::new(), 2);
    world.start().await;
    for i in [0, 1] {
        world.ask(i, Call::SetHostname { hostname: format!("node-{i}") }).await.unwrap();
    }
    let at = world.moment();
    world.nodes[0].trust.request(at, 2, "").unwrap();
    world.nodes[1].trust.request(at, 1, "").unwrap();
    world.carry().await;
    world.poll(0).await;
    world.poll(1).await;
    world.peers = Peers::new();
    world.advance(Duration::from_secs(30)).await;
    world.advance(Duration::from_secs(30)).await;
    assert!(world.nodes.iter().all(|node| node.directory.is_registered()));
    assert_eq!((world.id(0), world.id(1)), (1, 2));
    let found = world.ask(1, Call::ResolveHostname { hostname: "node-0".to_owned() }).await.unwrap();
    assert_eq!(found.u32("node_id"), 1);
    // A report about a peer that was not back yet is repeated later.
    world.advance(Duration::from_secs(300)).await;
    assert!(world.ask(0, Call::Resolve { node: 2 }).await.is_ok());
}
