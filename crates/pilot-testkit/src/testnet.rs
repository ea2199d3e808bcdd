//! A whole network in one process: our rendezvous and nodes on real loopback sockets, each node with a local socket for
//! drivers.
//!
//! ```no_run
//! # use pilot_testkit::testnet::TestNet;
//! # async fn example() -> anyhow::Result<()> {
//! let net = TestNet::new(2).await?;
//! net.befriend(0, 1).await?;
//! let driver = net.driver(0).await?;
//! let stream = driver.dial(net.at(1, 7)).await?;
//! # drop(stream);
//! # Ok(())
//! # }
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use pilot::Driver;
use pilot_env::Env;
use pilot_node::{Node, NodeConfig};
use pilot_rendezvous::{Rendezvous, RendezvousConfig};
use pilot_wire::{Address, SocketAddress};

/// Longest wait for anything; far more than it takes.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Time a node gets to end its streams.
const SHUTDOWN: Duration = Duration::from_secs(5);

/// The network. Dropping it ends everything at once; [`TestNet::shutdown`] does it in order.
pub struct TestNet {
    rendezvous: Rendezvous,
    members: Vec<Member>,
}

struct Member {
    node: Node,
    config: NodeConfig,
    home: tempfile::TempDir,
}

impl TestNet {
    /// A rendezvous and `n` nodes with homes of their own, registered, private, trusting nobody.
    pub async fn new(n: usize) -> Result<Self> {
        let rendezvous = Rendezvous::start(Env::real(), RendezvousConfig::loopback()).await?;
        let mut net = Self { rendezvous, members: Vec::new() };
        for _ in 0..n {
            net.add(|_| ()).await?;
        }
        Ok(net)
    }

    /// One more node, after `change` to its settings. Returns its index.
    pub async fn add(&mut self, change: impl FnOnce(&mut NodeConfig)) -> Result<usize> {
        let home = tempfile::Builder::new().prefix("testnet").tempdir()?;
        let mut config = self.config(home.path());
        change(&mut config);
        let node = Node::start(Env::real(), config.clone()).await?;
        patient("registration", node.registered()).await?;
        self.members.push(Member { node, config, home });
        Ok(self.members.len() - 1)
    }

    /// The settings of a node in this network, with its files in `home`.
    pub fn config(&self, home: &Path) -> NodeConfig {
        NodeConfig {
            registry: self.rendezvous.registry_addr().to_string(),
            beacon: Some(self.rendezvous.beacon_addr().to_string()),
            listen: ([127, 0, 0, 1], 0).into(),
            identity: Some(home.join("identity.key")),
            socket: Some(home.join("pilot.sock")),
            ..NodeConfig::default()
        }
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// The rendezvous.
    pub fn rendezvous(&self) -> &Rendezvous {
        &self.rendezvous
    }

    /// A node by index.
    pub fn node(&self, i: usize) -> &Node {
        &self.members[i].node
    }

    /// Its id.
    pub fn id(&self, i: usize) -> u32 {
        self.node(i).address().node
    }

    /// A port of it.
    pub fn at(&self, i: usize, port: u16) -> SocketAddress {
        SocketAddress::new(Address::backbone(self.id(i)), port)
    }

    /// Its local socket.
    pub fn socket(&self, i: usize) -> PathBuf {
        self.members[i].home.path().join("pilot.sock")
    }

    /// A driver on its local socket.
    pub async fn driver(&self, i: usize) -> Result<Driver> {
        Ok(patient("driver", Driver::connect(self.socket(i))).await??)
    }

    /// Lets two nodes trust each other: `a` asks, `b` approves.
    pub async fn befriend(&self, a: usize, b: usize) -> Result<()> {
        let (from, to) = (self.node(a).trust(), self.node(b).trust());
        from.request(self.id(b), "test network".to_owned()).await?;
        until("the request", || to.pending().iter().any(|r| r["node_id"] == self.id(a))).await?;
        to.approve(self.id(a)).await?;
        ensure!(from.wait(self.id(b), PATIENCE).await, "node {a} does not trust node {b}");
        ensure!(to.is_trusted(self.id(a)), "node {b} does not trust node {a}");
        Ok(())
    }

    /// Lets everybody trust everybody.
    pub async fn befriend_all(&self) -> Result<()> {
        for a in 0..self.len() {
            for b in a + 1..self.len() {
                self.befriend(a, b).await?;
            }
        }
        Ok(())
    }

    /// Stops a node in order and starts it again on its home.
    pub async fn restart(&mut self, i: usize) -> Result<()> {
        let Member { node, config, home } = self.members.remove(i);
        node.shutdown(SHUTDOWN).await;
        let node = Node::start(Env::real(), config.clone()).await?;
        patient("registration", node.registered()).await?;
        self.members.insert(i, Member { node, config, home });
        Ok(())
    }

    /// Stops everything in order.
    pub async fn shutdown(self) {
        for member in self.members {
            member.node.shutdown(SHUTDOWN).await;
        }
        self.rendezvous.shutdown().await;
    }
}

/// Waits for `work`, but not for ever.
pub async fn patient<T>(what: &str, work: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(PATIENCE, work).await.with_context(|| format!("waited {PATIENCE:?} for: {what}"))
}

/// Waits until `test` holds.
pub async fn until(what: &str, test: impl Fn() -> bool) -> Result<()> {
    let deadline = tokio::time::sleep(PATIENCE);
    tokio::pin!(deadline);
    while !test() {
        tokio::select! {
            () = &mut deadline => bail!("waited {PATIENCE:?} for: {what}"),
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
        }
    }
    Ok(())
}
