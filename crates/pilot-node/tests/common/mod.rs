//! A whole network in this process, on loopback.
#![allow(dead_code, unreachable_pub, reason = "every test program uses its own part")]

pub mod client;

use std::path::PathBuf;
use std::time::Duration;

use pilot_env::Env;
use pilot_node::{Node, NodeConfig};
use pilot_rendezvous::{Rendezvous, RendezvousConfig};
use pilot_wire::{Address, SocketAddress};
use tempfile::TempDir;

/// Longest wait for anything in a test; far more than it takes.
pub const PATIENCE: Duration = Duration::from_secs(90);

pub struct Net {
    pub rendezvous: Rendezvous,
}

impl Net {
    pub async fn new() -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_env("PILOT_LOG"))
            .with_test_writer()
            .try_init();
        Self { rendezvous: Rendezvous::start(Env::real(), RendezvousConfig::loopback()).await.unwrap() }
    }

    pub fn config(&self) -> NodeConfig {
        NodeConfig {
            registry: self.rendezvous.registry_addr().to_string(),
            beacon: Some(self.rendezvous.beacon_addr().to_string()),
            listen: "127.0.0.1:0".parse().unwrap(),
            ..NodeConfig::default()
        }
    }

    pub async fn node(&self) -> TestNode {
        self.node_with(|_| ()).await
    }

    pub async fn node_with(&self, change: impl FnOnce(&mut NodeConfig)) -> TestNode {
        let home = TempDir::new().unwrap();
        let mut config = self.config();
        config.identity = Some(home.path().join("identity.key"));
        config.socket = Some(home.path().join("pilot.sock"));
        change(&mut config);
        let node = Node::start(Env::real(), config.clone()).await.unwrap();
        TestNode { node, config, home }
    }
}

pub struct TestNode {
    pub node: Node,
    pub config: NodeConfig,
    pub home: TempDir,
}

impl TestNode {
    pub fn id(&self) -> u32 {
        self.node.address().node
    }

    pub fn at(&self, port: u16) -> SocketAddress {
        SocketAddress::new(Address::backbone(self.id()), port)
    }

    pub fn socket(&self) -> PathBuf {
        self.home.path().join("pilot.sock")
    }

    /// Stops the node in an orderly way and starts it again from its directory.
    pub async fn restart(self) -> Self {
        let Self { node, config, home } = self;
        node.shutdown(Duration::from_secs(5)).await;
        let node = Node::start(Env::real(), config.clone()).await.unwrap();
        Self { node, config, home }
    }
}

/// Makes two nodes trust each other, the second one by approval.
pub async fn befriend(a: &TestNode, b: &TestNode) {
    patient(a.node.trust().request(b.id(), "hello".to_owned())).await.unwrap();
    until(|| b.node.trust().pending().iter().any(|request| request["node_id"] == a.id())).await;
    b.node.trust().approve(a.id()).await.unwrap();
    assert!(a.node.trust().wait(b.id(), PATIENCE).await);
    assert!(b.node.trust().is_trusted(a.id()));
}

/// Waits, but not for ever.
pub async fn patient<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("took too long")
}

/// Waits until something is true.
pub async fn until(test: impl Fn() -> bool) {
    patient(async {
        while !test() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}
