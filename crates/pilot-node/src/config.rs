//! What a node is told at start.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pilot_env::tls::Fingerprint;
use pilot_proto::endpoint::{Encryption, Limits};
use pilot_proto::stream::StreamConfig;
use pilot_proto::trust::Approval;
use pilot_services::Offer;

use crate::webhook::WebhookTarget;

/// Registry on this host: no built-in default points at anybody else's.
pub const DEFAULT_REGISTRY: &str = "127.0.0.1:9000";
/// Beacon on this host.
pub const DEFAULT_BEACON: &str = "127.0.0.1:9001";
/// Time between heartbeats (02 §24).
pub const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(30);

/// Settings of a [`Node`](crate::Node).
#[derive(Clone)]
pub struct NodeConfig {
    /// Registry, `host:port`. Default [`DEFAULT_REGISTRY`].
    pub registry: String,
    /// Certificate to pin when the registry speaks TLS; `None` is plain TCP (default).
    pub registry_fingerprint: Option<Fingerprint>,
    /// Beacon, `host:port`; `None` turns discovery, punching and relay off. Default [`DEFAULT_BEACON`].
    pub beacon: Option<String>,
    /// Address of the tunnel socket. Default `[::]:0`: any port, IPv6 and IPv4.
    pub listen: SocketAddr,
    /// Local socket, or `None` for a node without one (a library user needs none). Default `None`.
    pub socket: Option<PathBuf>,
    /// A second local socket, for official programs that look only there. It is opened when nothing is at its path, or a
    /// socket of our own that nobody serves; otherwise the node says so in its log and does without. Default `None`.
    pub shared_socket: Option<PathBuf>,
    /// Whether the directory of `socket` has to be this user's alone. Default false.
    pub private_socket: bool,
    /// Fixed public `host:port` to register instead of what the beacon sees. Default `None`.
    pub endpoint: Option<String>,
    /// Whether packets may travel in clear. Default: never.
    pub encrypt: Encryption,
    /// Whether peers of the February wire are spoken to. Default true.
    pub allow_scheme_a: bool,
    /// Identity file; its directory also holds trust and what is remembered of peers. `None`: a new identity every
    /// start, nothing remembered. Default `None`.
    pub identity: Option<PathBuf>,
    /// Owner text or e-mail, told to the registry. Default empty.
    pub owner: String,
    /// Version shown in the status and told to the registry. Default [`crate::VERSION`].
    pub version: String,
    /// Hostname to claim, or empty. Default empty.
    pub hostname: String,
    /// Whether everybody may learn the endpoint from the registry. Default false.
    pub public: bool,
    /// Time between heartbeats. Default [`DEFAULT_KEEPALIVE`].
    pub keepalive: Duration,
    /// Ports open to everybody, trusted or not. 444 always is. Default none.
    pub public_ports: Vec<u16>,
    /// Which trust requests are approved without a person. Default: mutual ones only.
    pub approval: Approval,
    /// Program that decides about trust requests when `approval.hook` is set: it is run with the environment variables
    /// `PILOT_NODE_ID`, `PILOT_ADDRESS`, `PILOT_PUBLIC_KEY` and `PILOT_JUSTIFICATION`; exit status 0 within 30 s approves,
    /// anything else leaves the request waiting.
    pub approval_hook: Option<PathBuf>,
    /// Where events are posted. Default: nowhere.
    pub webhook: Option<WebhookTarget>,
    /// File with the key that signs what is posted, read at start and by `set-webhook`; without its final newline.
    /// Default: unsigned.
    pub webhook_secret_file: Option<PathBuf>,
    /// Services offered on their ports. Default [`pilot_services::builtin`].
    pub services: Vec<Arc<dyn Offer>>,
    /// Stream behaviour.
    pub stream: StreamConfig,
    /// Sizes of tables.
    pub limits: Limits,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            registry: DEFAULT_REGISTRY.to_owned(),
            registry_fingerprint: None,
            beacon: Some(DEFAULT_BEACON.to_owned()),
            listen: SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
            socket: None,
            shared_socket: None,
            private_socket: false,
            endpoint: None,
            encrypt: Encryption::default(),
            allow_scheme_a: true,
            identity: None,
            owner: String::new(),
            version: crate::VERSION.to_owned(),
            hostname: String::new(),
            public: false,
            keepalive: DEFAULT_KEEPALIVE,
            public_ports: Vec::new(),
            approval: Approval::default(),
            approval_hook: None,
            webhook: None,
            webhook_secret_file: None,
            services: pilot_services::builtin(),
            stream: StreamConfig::default(),
            limits: Limits::default(),
        }
    }
}
