//! Networks other than 0 (04 §13; docs/spec/networks.md): which we are in, who shares them, and what is commanded about
//! them. The registry has the last word on all of it; what it said is kept for a bounded time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pilot_proto::directory::Call;
use pilot_proto::endpoint::{ASK_AFTER, Membership, SharedNetwork};
use pilot_services::Events as _;
use pilot_wire::base64;
use pilot_wire::registry::{ListNodesOk, LookupOk, NetworkChange};
use serde_json::{Map, Value};

use super::{Shared, Status, broadcast};
use crate::directory::DirectoryError;

/// How often memberships are looked through for those that are to be confirmed, or have ended.
const REVIEW: Duration = Duration::from_secs(5);
/// Questions about memberships under way at once.
const QUESTIONS: usize = 16;
/// Networks whose policies are kept; one node is in fewer.
const POLICIES: usize = 128;

/// What the registry has said of a network's policy.
#[derive(Clone)]
struct Policy {
    /// Open to members; empty means all.
    ports: Vec<u16>,
    /// When it was said; `None` when it is to be asked again.
    said: Option<Instant>,
}

/// What is known of our networks.
#[derive(Default)]
pub(crate) struct Networks {
    /// When the registry last said which networks we are in. Held while it is asked, so that its answers are taken in the
    /// order of the questions.
    own: tokio::sync::Mutex<Option<Instant>>,
    policies: Mutex<BTreeMap<u16, Policy>>,
    /// Held from a change of what stands in the status until the trust and the endpoint know it, so that they are told in
    /// the order of the changes.
    told: Mutex<()>,
    /// The time of the last command that we signed, in Unix seconds.
    signed_at: AtomicU64,
    /// Who may broadcast.
    pub(super) turns: broadcast::Turns,
}

/// A time for the next command: now, or the one after the last command's, because a registry takes two with the same
/// words and time for one that is given again (docs/spec/networks.md, N4). It runs at most a minute ahead.
fn time_to_sign(last: u64, now: u64) -> u64 {
    now.max(last.saturating_add(1).min(now.saturating_add(60)))
}

/// The ports that are open when the registry does not say what the policy is.
fn without_policy(kept: Option<Vec<u16>>, error: DirectoryError) -> Result<Vec<u16>, DirectoryError> {
    match (kept, &error) {
        // A refusal without a reason does not lift what is known.
        (Some(ports), DirectoryError::Refused { code: None, .. }) => Ok(ports),
        // February's registry knows no policies. That is not kept: another one may answer next.
        (None, error) if error.is_unknown_request() => Ok(Vec::new()),
        _ => Err(error),
    }
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
        let mut before = Vec::new();
        self.tell_networks(node, |status| {
            before = std::mem::replace(&mut status.networks, networks.clone());
            before != networks
        });
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

    /// Changes the status, and if that says so, tells the trust and the endpoint our number and our networks by it.
    pub(super) fn tell_networks(&self, node: u32, change: impl FnOnce(&mut Status) -> bool) {
        let _told = self.networks.told.lock();
        let networks = {
            let mut status = self.status.lock();
            if !change(&mut status) {
                return;
            }
            status.networks.clone()
        };
        self.trust.set_local_node(node, &networks);
        self.engine.with(|core, now| core.endpoint.set_local_node(now, node, &networks));
    }

    /// The ports that the policy of a network opens; empty means all.
    pub(super) async fn policy(&self, network: u16) -> Result<Vec<u16>, DirectoryError> {
        let now = self.env.now();
        let kept = self.networks.policies.lock().get(&network).cloned();
        if let Some(Policy { said: Some(said), ports }) = &kept
            && now.saturating_duration_since(*said) < ASK_AFTER
        {
            return Ok(ports.clone());
        }
        let ports = match self.directory.network_policy(network).await {
            Ok(policy) => policy.allowed_ports,
            Err(error) => return without_policy(kept.map(|kept| kept.ports), error),
        };
        let mut policies = self.networks.policies.lock();
        if policies.len() >= POLICIES {
            let own = self.status.lock().networks.clone();
            policies.retain(|network, _| own.contains(network));
        }
        policies.insert(network, Policy { ports: ports.clone(), said: Some(now) });
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
                self.engine.with(|core, now| core.endpoint.handle_membership_unknown(now, node));
            }
        }
    }

    async fn ask_membership(&self, node: u32) -> Result<Option<Membership>, DirectoryError> {
        self.refresh_networks(ASK_AFTER).await?;
        match self.directory.lookup(node).await {
            Ok(found) => self.shared_with(&found).await,
            // It does not exist, or has departed.
            Err(error) if error.is_not_found() => Ok(None),
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
        let now = self.env.unix().as_secs();
        let last = self
            .networks
            .signed_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |last| Some(time_to_sign(last, now)));
        let at = time_to_sign(last.unwrap_or_else(|last| last), now);
        let changed = match &change {
            NetworkChange::SetPolicy { network, .. } => Some(*network),
            _ => None,
        };
        let answer = self.network(Call::ChangeNetwork { change, at }).await;
        if let Some(network) = changed
            && let Some(kept) = self.networks.policies.lock().get_mut(&network)
        {
            kept.said = None;
        }
        answer
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_lifts_no_policy_and_counts_as_none_only_from_a_registry_that_knows_none() {
        let refused = |text: &str, code: Option<&str>| DirectoryError::Refused {
            text: text.to_owned(),
            code: code.map(str::to_owned),
        };
        for text in ["request failed", "rate limited", "network not found"] {
            assert_eq!(without_policy(Some(vec![80]), refused(text, None)), Ok(vec![80]), "{text}");
        }
        assert_eq!(without_policy(None, refused("request failed", None)), Ok(vec![]));
        assert_eq!(without_policy(None, refused("request failed", Some("unknown_type"))), Ok(vec![]));
        for error in [
            refused("rate limited", None),
            refused("request failed", Some("internal")),
            DirectoryError::Lost("request failed".to_owned()),
            DirectoryError::Unreadable("get_network_policy", "allowed_ports is a list of ports".to_owned()),
        ] {
            assert_eq!(without_policy(None, error.clone()), Err(error));
        }
    }

    #[test]
    fn commands_of_one_second_have_times_of_their_own() {
        let mut last = 0;
        let times: Vec<u64> = (0..5)
            .map(|_| {
                last = time_to_sign(last, 1000);
                last
            })
            .collect();
        assert_eq!(times, [1000, 1001, 1002, 1003, 1004]);
        assert_eq!(time_to_sign(last, 2000), 2000);
        // Never so far ahead that the registry would not take it, also after the clock was set back.
        assert_eq!(time_to_sign(9_000_000, 1000), 1060);
    }
}
