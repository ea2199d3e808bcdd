//! Reads the official registry's snapshot file (04 §15.3), so that its nodes keep their addresses here.
//!
//! What the official server lets happen and this registry does not is put right: a key has one id (the lowest), an id one
//! key (its current one), a hostname one holder. Everything left out is listed in [`Snapshot::notes`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use pilot_wire::base64;
use serde::Deserialize;

use crate::limits::{MAX_JUSTIFICATION, MAX_OWNER, MAX_REQUESTS, MAX_RESPONSES, MAX_SCORE, MAX_STATEMENTS, cut};
use crate::model::{HandshakeRequest, HandshakeResponse, Network, Node, Presence, Statement};
use crate::rules;

/// The content of a snapshot, checked and put in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Identities with their sign of life; `None` for departed ones.
    pub nodes: Vec<(Node, Option<Presence>)>,
    /// Keys and their ids.
    pub keys: Vec<([u8; 32], u32)>,
    /// Networks, 0 included.
    pub networks: Vec<Network>,
    /// Trust.
    pub statements: Vec<(u32, u32, Statement)>,
    /// Waiting requests by target.
    pub requests: Vec<(u32, HandshakeRequest)>,
    /// Waiting responses by target.
    pub responses: Vec<(u32, HandshakeResponse)>,
    /// The next id.
    pub next_node: u32,
    /// What was left out or changed, one line each.
    pub notes: Vec<String>,
}

/// Why a file is no snapshot.
#[derive(Debug, thiserror::Error)]
#[error("not an official registry snapshot: {0}")]
pub struct ImportError(String);

#[derive(Deserialize)]
struct File {
    next_node: u32,
    #[serde(default)]
    nodes: BTreeMap<String, FileNode>,
    #[serde(default)]
    networks: BTreeMap<String, FileNetwork>,
    #[serde(default)]
    trust_pairs: Vec<String>,
    #[serde(default)]
    pub_key_idx: BTreeMap<String, u32>,
    #[serde(default)]
    handshake_inbox: BTreeMap<String, Vec<FileRequest>>,
    #[serde(default)]
    handshake_responses: BTreeMap<String, Vec<FileResponse>>,
}

#[derive(Deserialize)]
struct FileNode {
    id: u32,
    #[serde(default)]
    owner: String,
    #[serde(default)]
    public_key: String,
    #[serde(default)]
    real_addr: String,
    #[serde(default)]
    networks: Option<Vec<u16>>,
    #[serde(default)]
    public: bool,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default)]
    polo_score: i64,
    #[serde(default)]
    task_exec: bool,
}

#[derive(Deserialize)]
struct FileNetwork {
    id: u16,
    #[serde(default)]
    name: String,
    #[serde(default)]
    join_rule: String,
    #[serde(default)]
    token: String,
    #[serde(default)]
    members: Option<Vec<u32>>,
    #[serde(default)]
    created: String,
}

#[derive(Deserialize)]
struct FileRequest {
    from_node_id: u32,
    #[serde(default)]
    justification: String,
    #[serde(default)]
    timestamp: String,
}

#[derive(Deserialize)]
struct FileResponse {
    from_node_id: u32,
    #[serde(default)]
    accept: bool,
    #[serde(default)]
    timestamp: String,
}

fn unix(text: &str) -> Option<u64> {
    text.parse::<jiff::Timestamp>().ok().and_then(|t| u64::try_from(t.as_second()).ok())
}

impl Snapshot {
    /// Reads a snapshot; `now` is in Unix seconds. Every node in it counts as seen now, because the file does not say when
    /// a node was last seen (04 §8.3).
    ///
    /// # Errors
    /// [`ImportError`] when the text is not a snapshot at all.
    pub fn read(text: &[u8], now: u64) -> Result<Self, ImportError> {
        let file: File = serde_json::from_slice(text).map_err(|e| ImportError(e.to_string()))?;
        let mut out = Self { next_node: file.next_node.max(1), ..Self::default() };
        let mut owner_of_key: BTreeMap<[u8; 32], u32> = BTreeMap::new();
        let mut names = BTreeSet::new();
        let mut sorted: Vec<FileNode> = file.nodes.into_values().collect();
        sorted.sort_by_key(|node| node.id);
        for node in sorted {
            out.take_node(node, now, &mut owner_of_key, &mut names);
        }
        out.take_departed_keys(&file.pub_key_idx, now, &mut owner_of_key);
        // `state` searches by id.
        out.nodes.sort_by_key(|(node, _)| node.id);
        let known: BTreeSet<u32> = out.nodes.iter().map(|(node, _)| node.id).collect();
        out.take_networks(file.networks, now);
        out.take_trust(&file.trust_pairs, &known);
        for (to, list) in file.handshake_inbox {
            let Some(to) = to.parse().ok().filter(|to| known.contains(to)) else { continue };
            out.requests.extend(list.into_iter().filter(|r| known.contains(&r.from_node_id)).take(MAX_REQUESTS).map(
                |r| {
                    let justification = cut(&r.justification, MAX_JUSTIFICATION).to_owned();
                    (
                        to,
                        HandshakeRequest { from: r.from_node_id, justification, at: unix(&r.timestamp).unwrap_or(now) },
                    )
                },
            ));
        }
        for (to, list) in file.handshake_responses {
            let Some(to) = to.parse().ok().filter(|to| known.contains(to)) else { continue };
            out.responses.extend(list.into_iter().filter(|r| known.contains(&r.from_node_id)).take(MAX_RESPONSES).map(
                |r| {
                    let at = unix(&r.timestamp).unwrap_or(now);
                    (to, HandshakeResponse { from: r.from_node_id, accept: r.accept, at })
                },
            ));
        }
        out.state_requests();
        out.keys = owner_of_key.into_iter().collect();
        Ok(out)
    }

    fn take_node(
        &mut self,
        from: FileNode,
        now: u64,
        owner_of_key: &mut BTreeMap<[u8; 32], u32>,
        names: &mut BTreeSet<String>,
    ) {
        let Some(key) = base64::decode_array::<32>(&from.public_key) else {
            self.notes.push(format!("node {}: left out, its public key is unreadable", from.id));
            return;
        };
        let is_repeated = self.nodes.last().is_some_and(|(node, _)| node.id == from.id);
        if from.id == 0 || from.id == u32::MAX || is_repeated {
            self.notes.push(format!("node {}: left out, its id is unusable", from.id));
            return;
        }
        if let Some(first) = owner_of_key.get(&key) {
            self.notes.push(format!("node {}: left out, its key belongs to node {first}", from.id));
            return;
        }
        owner_of_key.insert(key, from.id);
        self.next_node = self.next_node.max(from.id + 1);
        let mut node = Node::new(from.id, key, now);
        cut(&from.owner, MAX_OWNER).clone_into(&mut node.owner);
        let source = from.real_addr.parse::<std::net::SocketAddr>().ok();
        node.endpoint = source.filter(|a| a.port() != 0).map(|a| a.to_string());
        node.networks = from.networks;
        node.public = from.public;
        node.tags = rules::check_tags(from.tags.iter().map(String::as_str)).unwrap_or_default();
        node.polo_score = from.polo_score.clamp(-MAX_SCORE, MAX_SCORE);
        node.task_exec = from.task_exec;
        if rules::check_hostname(&from.hostname).is_ok() && !from.hostname.is_empty() {
            if names.insert(from.hostname.clone()) {
                node.hostname = from.hostname;
            } else {
                self.notes.push(format!("node {}: hostname {} belongs to another node", from.id, from.hostname));
            }
        }
        let source = source.map_or(IpAddr::from([0, 0, 0, 0]), |a| a.ip().to_canonical());
        self.nodes.push((node, Some(Presence { last_seen: now, proved: true, source })));
    }

    /// Keys of departed nodes keep their ids.
    fn take_departed_keys(
        &mut self,
        index: &BTreeMap<String, u32>,
        now: u64,
        owner_of_key: &mut BTreeMap<[u8; 32], u32>,
    ) {
        let mut taken: BTreeSet<u32> = self.nodes.iter().map(|(node, _)| node.id).collect();
        for (text, id) in index {
            let Some(key) = base64::decode_array::<32>(text) else {
                self.notes.push(format!("a key of node {id}: left out, it is unreadable"));
                continue;
            };
            if owner_of_key.get(&key) == Some(id) {
                continue;
            }
            if owner_of_key.contains_key(&key) || *id == 0 || *id == u32::MAX || !taken.insert(*id) {
                self.notes.push(format!("an old or repeated key of node {id}: left out"));
                continue;
            }
            owner_of_key.insert(key, *id);
            self.next_node = self.next_node.max(*id + 1);
            let mut node = Node::new(*id, key, now);
            node.departed = Some(now);
            self.nodes.push((node, None));
        }
    }

    fn take_networks(&mut self, networks: BTreeMap<String, FileNetwork>, now: u64) {
        for network in networks.into_values() {
            self.networks.push(Network {
                id: network.id,
                name: network.name,
                join_rule: network.join_rule,
                token: network.token,
                // Network 0 is everybody.
                members: if network.id == 0 { Vec::new() } else { network.members.unwrap_or_default() },
                created: unix(&network.created).unwrap_or(now),
                ..Network::default()
            });
        }
    }

    fn take_trust(&mut self, pairs: &[String], known: &BTreeSet<u32>) {
        let mut statements = BTreeSet::new();
        for pair in pairs {
            let ids = pair.split_once(':').and_then(|(a, b)| Some((a.parse::<u32>().ok()?, b.parse::<u32>().ok()?)));
            match ids {
                Some((a, b)) if known.contains(&a) && known.contains(&b) => {
                    statements.insert((a, b));
                    statements.insert((b, a));
                }
                _ => self.notes.push(format!("trust pair {:?}: left out, a node is unknown", cut(pair, 40))),
            }
        }
        for (from, to) in statements {
            self.state(from, to);
        }
    }

    /// A waiting request is a statement of the one who asks.
    fn state_requests(&mut self) {
        let spoken: BTreeSet<(u32, u32)> = self.statements.iter().map(|(from, to, _)| (*from, *to)).collect();
        let asked: BTreeSet<(u32, u32)> = self.requests.iter().map(|(to, request)| (request.from, *to)).collect();
        for (from, to) in asked.difference(&spoken) {
            self.state(*from, *to);
        }
    }

    fn state(&mut self, from: u32, to: u32) {
        if let Ok(at) = self.nodes.binary_search_by_key(&from, |(node, _)| node.id)
            && let Some((node, _)) = self.nodes.get_mut(at)
            && node.statements < MAX_STATEMENTS
        {
            node.statements += 1;
            self.statements.push((from, to, Statement::Spoken));
        }
    }
}
