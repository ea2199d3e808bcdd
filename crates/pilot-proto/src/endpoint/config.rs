//! What an endpoint is made of: identity, policy and limits.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::identity::Identity;
use crate::stream::StreamConfig;

/// Whether packets may travel in clear (01 §23, "Plaintext peers").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encryption {
    /// Nothing leaves or enters in clear.
    #[default]
    Required,
    /// A peer that answers no key exchange for 3 s is spoken to in clear, and a node with which no session has ever
    /// existed is heard in clear. Anyone who can reach the socket can then speak in the name of such a node.
    AllowPlain,
    /// Everything in clear, for networks that encrypt below us. The gate then goes by the claimed node id.
    Off,
}

/// Sizes of tables and queues. Each says what happens when it is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Peers with tunnel state. Default 16,384 (07 §5.2). When full the peer unused longest goes; without an unused one new
    /// peers are refused.
    pub peers: usize,
    /// Connections in total. Default 65,536 (07 §7). When full: dials fail, SYNs are answered with RST.
    pub connections: usize,
    /// Connections per local port that peers opened. Default 1,024 (02 §11). When full SYNs are answered with RST.
    pub connections_per_port: usize,
    /// Connections of strangers waiting for the third packet, in total. Default 1,024. When full SYNs are dropped.
    pub half_open: usize,
    /// SYNs of strangers served per second, all together; up to 256 may come at once. Default 100 (02 §11). When over it
    /// SYNs are dropped.
    pub syn_rate: u32,
    /// Datagrams and control packets of one peer waiting for its tunnel. Default 64 (01 §12.1). When full the sender gets an
    /// error.
    pub pending_per_peer: usize,
    /// Events waiting for the driver. Default 65,536. When full incoming datagrams and notices are dropped and counted;
    /// events about connections are always kept (each connection has a bounded number of them).
    pub events: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            peers: 16_384,
            connections: 65_536,
            connections_per_port: 1_024,
            half_open: 1_024,
            syn_rate: 100,
            pending_per_peer: 64,
            events: 65_536,
        }
    }
}

/// Everything an [`Endpoint`](super::Endpoint) is told at birth.
#[derive(Clone)]
pub struct EndpointConfig {
    /// Our Ed25519 identity.
    pub identity: Arc<Identity>,
    /// Our node id, or 0 before registration: then only the beacon is spoken to.
    pub node: u32,
    /// Networks we are a member of; 0 is always implied.
    pub networks: Vec<u16>,
    /// Seed of every random number the endpoint draws.
    pub seed: [u8; 32],
    /// Unix time in seconds at construction; send counters start from it (01 rule 9).
    pub unix_secs: u64,
    /// Whether packets may travel in clear. Default: never.
    pub encrypt: Encryption,
    /// Whether peers of the February wire (scheme A) are spoken to. Default true (07 rule 7).
    pub allow_scheme_a: bool,
    /// The beacon, or `None`: no STUN, punching or relay then.
    pub beacon: Option<SocketAddr>,
    /// Whether ports are open without trust at start (`--public-ports`). Default none.
    pub public_ports: Vec<u16>,
    /// Stream behaviour.
    pub stream: StreamConfig,
    /// Sizes of tables.
    pub limits: Limits,
}

impl EndpointConfig {
    /// The defaults for a node that is not registered yet.
    pub fn new(identity: Arc<Identity>, seed: [u8; 32], unix_secs: u64) -> Self {
        Self {
            identity,
            node: 0,
            networks: Vec::new(),
            seed,
            unix_secs,
            encrypt: Encryption::default(),
            allow_scheme_a: true,
            beacon: None,
            public_ports: Vec::new(),
            stream: StreamConfig::default(),
            limits: Limits::default(),
        }
    }
}
