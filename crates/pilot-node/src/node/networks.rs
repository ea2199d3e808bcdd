//! Networks other than 0 (04 §13; docs/spec/networks.md): which we are in, who shares them, and what is commanded about
//! them. The registry has the last word on all of it; what it said is kept for a bounded time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pilot_proto::directory::Call;
use pilot_proto::endpoint::{ASK_AFTER, Membership, SharedNetwork};
use pilot_services::Events as _;
use pilot_wire::base64;
use pilot_wire::registry::{ListNodesOk, LookupOk, NetworkChange};
use serde_json::{Map, Value};

use super::Shared;
use crate::directory::DirectoryError;

/// How often memberships are looked through for those that are to be confirmed, or have ended.
const REVIEW: Duration = Duration::from_secs(5);
/// Questions about memberships under way at once.
const QUESTIONS: usize = 16;
/// Networks whose policies are kept; one node is in fewer.
const POLICIES: usize = 128;

/// What is known of our networks.
#[derive(Default)]
pub(crate) struct Networks {
    /// When the registry last said which networks we are in. Held while it is asked, so that its answers are taken in the
    /// order of the questions.
    own: tokio::sync::Mutex<Option<Instant>>,
    /// Ports that the policies of networks open, and when the registry said so.
    policies: Mutex<BTreeMap<u16, (Instant, Vec<u16>)>>,
}

impl Shared {
    /// Asks the registry which networks we are in, unless it said so within `age`.
    pub(super) async fn refresh_networks(&self, age: Duration) -> Result<(), DirectoryError> {
        let node = self.node();
        if node == 0 {
            return Err(DirectoryError::NotRegistered);
        }
        let mut said = self.networks.own.lock().await;
        let now = self.env.now();
        if said.is_some_and(|at| now.saturating_duration_since(at) < age) {
            return Ok(());
        }
        let found = self.directory.lookup(node).await?;
        *said = Some(now);
        let networks = found.networks.unwrap_or_default().into_iter().filter(|network| *network != 0).collect();
        self.take_networks(node, networks);
        Ok(())
    }

    /// The registry says that these are our networks.
    fn take_networks(&self, node: u32, networks: Vec<u16>) {
        let before = {
            let mut status = self.status.lock();
            std::mem::replace(&mut status.networks, networks.clone())
        };
        if before == networks {
            return;
        }
        self.trust.set_local_node(node, &networks);
        self.engine.with(|core, now| core.endpoint.set_local_node(now, node, &networks));
        let tell = |name: &'static str, network: u16| {
            let mut data = Map::new();
            data.insert("network_id".to_owned(), network.into());
            self.events.emit(name, data);
        };
        for network in networks.iter().filter(|network| !before.contains(network)) {
            tracing::info!(network, "joined a network");
            tell("network.joined", *network);
        }
        for network in before.iter().filter(|network| !networks.contains(network)) {
            tracing::info!(network, "no longer in a network");
            tell("network.left", *network);
        }
    }

    /// The ports that the policy of a network opens; empty means all.
    pub(super) async fn policy(&self, network: u16) -> Result<Vec<u16>, DirectoryError> {
        let now = self.env.now();
        let kept = self.networks.policies.lock().get(&network).cloned();
        if let Some((said, ports)) = &kept
            && now.saturating_duration_since(*said) < ASK_AFTER
        {
            return Ok(ports.clone());
        }
        let ports = match self.directory.network_policy(network).await {
            Ok(policy) => policy.allowed_ports,
            // February's registry knows no policies.
            Err(DirectoryError::Refused { code: None, .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let mut policies = self.networks.policies.lock();
        if policies.len() >= POLICIES {
            policies.clear();
        }
        policies.insert(network, (now, ports.clone()));
        Ok(ports)
    }

    /// Which networks a node shares with us, by what the registry says of it.
    pub(super) async fn shared_with(&self, found: &LookupOk) -> Result<Option<Membership>, DirectoryError> {
        let own = self.status.lock().networks.clone();
        let Some(key) = base64::decode_array(&found.public_key) else { return Ok(None) };
        let mut networks = Vec::new();
        for id in found.networks.iter().flatten().filter(|network| own.contains(network)) {
            networks.push(SharedNetwork { id: *id, ports: self.policy(*id).await? });
        }
        Ok((!networks.is_empty()).then_some(Membership { key, networks }))
    }

    /// Tells the endpoint which networks a node shares with us.
    pub(super) async fn find_membership(&self, node: u32) {
        match self.ask_membership(node).await {
            Ok(membership) => self.engine.with(|core, now| core.endpoint.handle_membership(now, node, membership)),
            Err(error) => {
                tracing::debug!(node, %error, "the registry does not say which networks a node is in");
                self.engine.with(|core, _| core.endpoint.handle_membership_unknown(node));
            }
        }
    }

    async fn ask_membership(&self, node: u32) -> Result<Option<Membership>, DirectoryError> {
        self.refresh_networks(ASK_AFTER).await?;
        match self.directory.lookup(node).await {
            Ok(found) => self.shared_with(&found).await,
            // Everybody may look up everybody: it does not exist, or has departed.
            Err(error) if error.is_final() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A command about membership, after which we know what it has changed.
    pub(crate) async fn network(&self, call: Call) -> Result<Value, DirectoryError> {
        let answer = self.directory.network(call).await?;
        // It has happened, whether or not this succeeds; the next review asks again.
        if let Err(error) = self.refresh_networks(Duration::ZERO).await {
            tracing::debug!(%error, "cannot see our networks after a command about one");
        }
        Ok(answer)
    }

    /// A command that needs a right in the network, signed now.
    pub(crate) async fn change_network(&self, change: NetworkChange) -> Result<Value, DirectoryError> {
        let at = self.env.unix().as_secs();
        if let NetworkChange::SetPolicy { network, .. } = &change {
            self.networks.policies.lock().remove(network);
        }
        self.network(Call::ChangeNetwork { change, at }).await
    }

    /// The members of a network, those that are away included where the registry tells them.
    pub(crate) async fn members(&self, network: u16) -> Result<ListNodesOk, DirectoryError> {
        match self.directory.list_nodes(network).await? {
            Value::Object(map) => Ok(ListNodesOk::from_fields(network, &pilot_wire::registry::Fields(map))),
            _ => Err(DirectoryError::Incomplete("list_nodes")),
        }
    }
}

/// The registry has said what it holds about us.
pub(super) async fn identified(shared: Arc<Shared>, networks: Vec<u16>) {
    let known = shared.status.lock().networks.clone();
    let differs = !networks.iter().filter(|network| **network != 0).eq(known.iter());
    // Asked again, because this answer may be older than what a command has told us.
    if differs && let Err(error) = shared.refresh_networks(Duration::ZERO).await {
        tracing::debug!(%error, "cannot see our networks");
    }
}

/// Confirms memberships for as long as the node runs.
pub(super) async fn review(shared: Arc<Shared>) {
    let limit = Arc::new(tokio::sync::Semaphore::new(QUESTIONS));
    loop {
        shared.env.sleep(REVIEW).await;
        let due = shared.engine.with(|core, now| core.endpoint.review_memberships(now));
        for node in due {
            // The semaphore is never closed.
            let Ok(permit) = limit.clone().acquire_owned().await else { return };
            let asking = shared.clone();
            shared.spawn(async move {
                asking.find_membership(node).await;
                drop(permit);
            });
        }
    }
}
