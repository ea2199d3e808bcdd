//! Requests without sockets, signed or not.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use parking_lot::Mutex;
use pilot_env::Env;
use pilot_registry::{Notifier, RedbStore, Registry, RegistryConfig, Session, Store};
use pilot_wire::{base64, json as wire_json};
use serde_json::{Value, json};

pub(crate) fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

pub(crate) fn key(seed: u8) -> [u8; 32] {
    pair(seed).public_key().as_ref().try_into().unwrap()
}

pub(crate) fn key_text(seed: u8) -> String {
    base64::encode(&key(seed))
}

pub(crate) fn sign(seed: u8, text: &str) -> String {
    base64::encode(pair(seed).sign(text.as_bytes()).as_ref())
}

/// Remembers who was told that something waits.
#[derive(Default)]
pub(crate) struct Told(pub(crate) Mutex<Vec<u32>>);

impl Notifier for Told {
    fn handshake_waiting(&self, node: u32) {
        self.0.lock().push(node);
    }
}

/// A registry and one connection per source address.
pub(crate) struct Peers {
    pub(crate) registry: Arc<Registry>,
    pub(crate) told: Arc<Told>,
    sessions: BTreeMap<SocketAddr, Session>,
}

impl Peers {
    pub(crate) fn new() -> Self {
        let env = Env::real();
        let now = env.unix().as_secs();
        Self::over(env, Arc::new(RedbStore::in_memory(now, None).unwrap()), RegistryConfig::default())
    }

    pub(crate) fn over(env: Env, store: Arc<dyn Store>, config: RegistryConfig) -> Self {
        let told = Arc::new(Told::default());
        let registry = Arc::new(Registry::new(env, store, config, Some(told.clone())));
        Self { registry, told, sessions: BTreeMap::new() }
    }

    /// The answer, or `None` when the connection is closed without one.
    pub(crate) async fn send(&mut self, source: SocketAddr, body: &[u8]) -> Option<Value> {
        let local = "192.0.2.250:9000".parse().unwrap();
        let session = self.sessions.entry(source).or_insert_with(|| Session::new(source, local));
        let reply = self.registry.answer(session, body).await.ok();
        reply.map(|reply| reply.answer.to_value())
    }

    /// The connections of an address are gone.
    pub(crate) fn disconnect(&mut self, host: u8) {
        self.sessions.remove(&addr(host));
    }

    pub(crate) async fn ask(&mut self, source: SocketAddr, request: &Value) -> Value {
        self.send(source, &wire_json::to_vec(request)).await.expect("an answer")
    }

    /// As `ask` from 203.0.113.`host`.
    pub(crate) async fn from(&mut self, host: u8, request: Value) -> Value {
        self.ask(addr(host), &request).await
    }

    /// Registers key `seed` unsigned from 203.0.113.`host`; gives the answer.
    pub(crate) async fn register(&mut self, host: u8, seed: u8) -> Value {
        self.from(host, json!({"type": "register", "public_key": key_text(seed), "listen_addr": ":4000"})).await
    }

    /// Registers key `seed` and proves it with a heartbeat; gives the id.
    pub(crate) async fn join(&mut self, host: u8, seed: u8) -> u32 {
        let answer = self.register(host, seed).await;
        let node = u32::try_from(answer["node_id"].as_u64().unwrap_or_else(|| panic!("{answer}"))).unwrap();
        assert_eq!(self.heartbeat(host, seed, node).await["type"], "heartbeat_ok");
        node
    }

    pub(crate) async fn heartbeat(&mut self, host: u8, seed: u8, node: u32) -> Value {
        let signature = sign(seed, &format!("heartbeat:{node}"));
        self.from(host, json!({"type": "heartbeat", "node_id": node, "signature": signature})).await
    }

    pub(crate) async fn lookup(&mut self, node: u32) -> Value {
        self.from(250, json!({"type": "lookup", "node_id": node})).await
    }

    pub(crate) async fn resolve(&mut self, host: u8, seed: u8, requester: u32, node: u32) -> Value {
        let signature = sign(seed, &format!("resolve:{requester}:{node}"));
        let request = json!({"type": "resolve", "requester_id": requester, "node_id": node, "signature": signature});
        self.from(host, request).await
    }

    /// A message signed by `node_id` over `<type>:<node_id>` with further fields.
    pub(crate) async fn signed(&mut self, host: u8, seed: u8, kind: &str, node: u32, fields: Value) -> Value {
        let mut request = fields;
        request["type"] = kind.into();
        request["node_id"] = node.into();
        request["signature"] = sign(seed, &format!("{kind}:{node}")).into();
        self.from(host, request).await
    }

    /// A message about a peer, signed over `<word>:<node>:<peer>`.
    pub(crate) async fn about(&mut self, host: u8, seed: u8, kind: &str, node: u32, peer: u32, fields: Value) -> Value {
        let word = match kind {
            "request_handshake" => "handshake",
            "respond_handshake" => "respond",
            other => other,
        };
        let mut request = fields;
        request["type"] = kind.into();
        let (own, other) =
            if kind == "request_handshake" { ("from_node_id", "to_node_id") } else { ("node_id", "peer_id") };
        request[own] = node.into();
        request[other] = peer.into();
        request["signature"] = sign(seed, &format!("{word}:{node}:{peer}")).into();
        self.from(host, request).await
    }
}

pub(crate) fn addr(host: u8) -> SocketAddr {
    SocketAddr::from(([203, 0, 113, host], 50_000))
}
