//! One message to many (05 §11.1; docs/spec/networks.md W1 to W5): a datagram to every member of a network, or a stream to
//! every trusted node. Who was not reached is named.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use pilot_services::CallError;
use pilot_wire::{Address, SocketAddress};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Node, Shared};
use crate::engine::{DialFailed, NodeDatagrams, NodeStream};

/// Where broadcasts arrive unless another port is named.
pub(crate) const PORT: u16 = 1000;
/// Longest wait for one receiver unless told otherwise.
pub(crate) const PER_PEER: Duration = Duration::from_secs(10);
/// Longest that can be asked for.
pub(crate) const MAX_PER_PEER: Duration = Duration::from_secs(120);
/// Receivers served at the same time.
const AT_ONCE: usize = 16;
/// Broadcasts under way at once. Each asks the registry and dials every member.
const RUNNING: usize = 8;
/// Those together with the ones that wait for their turn; there is an error for more.
const ADMITTED: usize = 64;
/// Once the peer has the whole message, its end of the stream is waited for so long; whether it comes does not matter.
const END_WAIT: Duration = Duration::from_millis(500);
/// The echo service, which tells whether a member is there: it accepts or refuses.
const ECHO: u16 = 7;

/// One of those to be reached.
struct Receiver {
    address: Address,
    hostname: Option<String>,
    /// Why it cannot be reached, if that is known before trying.
    away: bool,
}

/// Whose turn it is to broadcast.
pub(super) struct Turns {
    admitted: Arc<Semaphore>,
    running: Semaphore,
}

impl Default for Turns {
    fn default() -> Self {
        Self { admitted: Arc::new(Semaphore::new(ADMITTED)), running: Semaphore::new(RUNNING) }
    }
}

impl Turns {
    fn take(&self) -> Result<Turn, CallError> {
        let full = |_| {
            CallError::new("too_many_broadcasts", format!("{ADMITTED} broadcasts of this node are under way already"))
                .hint("wait until they are through; network.broadcast and trust.broadcast answer then")
        };
        self.admitted.clone().try_acquire_owned().map(Turn).map_err(full)
    }
}

/// The right to broadcast once.
#[derive(Debug)]
pub(crate) struct Turn(#[allow(dead_code, reason = "given back when dropped")] OwnedSemaphorePermit);

struct Failure {
    code: &'static str,
    text: String,
}

impl Failure {
    fn new(code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    fn of_dial(error: &DialFailed) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

/// Gives up after a while, and says so.
async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = |_| Err(Failure::new("timeout", format!("{what}: no answer within {} ms", limit.as_millis())));
    tokio::time::timeout(limit, work).await.unwrap_or_else(late)
}

/// Sends to all, a few at a time, and tells how each went.
async fn fan_out<F: Future<Output = Result<(), Failure>>>(
    shared: &Shared,
    receivers: Vec<Receiver>,
    send: impl Fn(Address) -> F,
) -> Value {
    let one = |receiver: Receiver| {
        let started: Instant = shared.env.now();
        let sending = (!receiver.away).then(|| send(receiver.address));
        async move {
            let outcome = match sending {
                Some(sending) => sending.await,
                None => Err(Failure::new("offline", "the registry has not heard of it for a while")),
            };
            let ms = shared.env.now().saturating_duration_since(started).as_secs_f64() * 1e3;
            let mut line = json!({
                "node_id": receiver.address.node,
                "address": receiver.address.to_string(),
                "status": if outcome.is_ok() { "sent" } else if receiver.away { "offline" } else { "failed" },
                "ms": (ms * 1000.0).round() / 1000.0,
            });
            if let Some(hostname) = receiver.hostname {
                line["hostname"] = hostname.into();
            }
            if let Err(failure) = outcome {
                line["code"] = failure.code.into();
                line["error"] = failure.text.into();
            }
            line
        }
    };
    // In the order of the list, whoever is quickest.
    let results: Vec<Value> =
        futures_util::stream::iter(receivers.into_iter().map(one)).buffered(AT_ONCE).collect().await;
    let failed: Vec<Value> = results.iter().filter(|line| line["status"] != "sent").cloned().collect();
    json!({
        "members": results.len(),
        "sent": results.len() - failed.len(),
        "failed": failed,
        "results": results,
    })
}

/// Who was not reached, if anybody.
pub(crate) fn missed(mut told: Value) -> Result<Value, String> {
    let failed = told["failed"].as_array().map_or(&[][..], Vec::as_slice);
    let is_truncated = told["truncated"] == true;
    if failed.is_empty() && !is_truncated {
        told["ok"] = true.into();
        return Ok(told);
    }
    let mut parts = Vec::new();
    if !failed.is_empty() {
        let named = |line: &Value| format!("node {} ({})", line["node_id"], line["code"].as_str().unwrap_or_default());
        let names: Vec<String> = failed.iter().take(20).map(named).collect();
        let more = if failed.len() > 20 { ", …" } else { "" };
        parts.push(format!("{} of {} members not reached: {}{more}", failed.len(), told["members"], names.join(", ")));
    }
    if is_truncated {
        parts.push(format!("only {} members are known, because the registry's list was cut", told["members"]));
    }
    Err(parts.join("; "))
}

impl Node {
    /// Sends a datagram from the port of `datagrams` to every other member of a network, each of whom has `limit` (at most
    /// 120 s) to answer. The object has `members`, `sent`, `failed` and `results`, and `truncated` when the registry has
    /// not told all members (docs/spec/networks.md, W1 to W3).
    ///
    /// # Errors
    /// [`CallError`] with a stable code: `not_member`, `network_policy`, `backbone`, `too_many_broadcasts`,
    /// `invalid_argument` for an empty message, those of the registry.
    pub async fn broadcast(
        &self,
        network: u16,
        port: u16,
        limit: Duration,
        datagrams: &NodeDatagrams,
        data: &[u8],
    ) -> Result<Value, CallError> {
        if data.is_empty() {
            return Err(CallError::new("invalid_argument", "the message is empty"));
        }
        let turn = self.shared.broadcast_turn()?;
        let send = |to| datagrams.send_to(to, data).map_err(|error| error.to_string());
        let mut told = self.shared.broadcast(turn, network, port, limit.min(MAX_PER_PEER), send).await?;
        told["bytes"] = data.len().into();
        Ok(told)
    }

    /// As [`broadcast`](Self::broadcast), for those who do not look who was reached: not to reach everybody is an error.
    ///
    /// # Errors
    /// `not_reached`, whose text names them; those of [`broadcast`](Self::broadcast).
    pub async fn send_to_members(
        &self,
        to: SocketAddress,
        limit: Duration,
        datagrams: &NodeDatagrams,
        data: &[u8],
    ) -> Result<(), CallError> {
        let told = self.broadcast(to.addr.network, to.port, limit, datagrams, data).await?;
        missed(told).map(drop).map_err(not_reached)
    }
}

/// The error of those who were told only that somebody was missed.
pub(crate) fn not_reached(why: String) -> CallError {
    CallError::new("not_reached", why).hint("pilotctl broadcast names each")
}

impl Shared {
    /// The right to broadcast once.
    ///
    /// # Errors
    /// `too_many_broadcasts`
    pub(crate) fn broadcast_turn(&self) -> Result<Turn, CallError> {
        self.networks.turns.take()
    }

    /// Sends a datagram to every other member of a network. `send` lets it leave, from a source port of the caller's.
    ///
    /// # Errors
    /// When it is not for us to send there, or the registry cannot be asked who is a member.
    pub(crate) async fn broadcast(
        self: &Arc<Self>,
        turn: Turn,
        network: u16,
        port: u16,
        limit: Duration,
        send: impl Fn(SocketAddress) -> Result<(), String>,
    ) -> Result<Value, CallError> {
        let _turn = turn;
        // Never closed.
        let _running = self.networks.turns.running.acquire().await;
        if network == 0 {
            return Err(CallError::new("backbone", "broadcast not permitted on backbone network"));
        }
        let list = self.members(network).await.map_err(|error| CallError::new(error.code(), error.to_string()))?;
        let own = self.node();
        if !list.nodes.iter().any(|member| member.node == own) {
            let text = format!("broadcast denied: node {own} is not a member of network {network}");
            return Err(CallError::new("not_member", text).hint(format!("pilotctl network join {network}")));
        }
        let ports = self.policy(network).await.map_err(|error| CallError::new(error.code(), error.to_string()))?;
        if !ports.is_empty() && !ports.contains(&port) {
            let text = format!("network {network} does not allow port {port}, only {ports:?}");
            return Err(CallError::new("network_policy", text).hint("name one of them with --port"));
        }
        // Where the echo service is closed to members, a node that answers probes but no dial is there all the same.
        let is_echo_open = ports.is_empty() || ports.contains(&ECHO);
        let receiver = |away| {
            move |member: pilot_wire::registry::NodeEntry| Receiver {
                address: Address { network, node: member.node },
                hostname: member.hostname,
                away,
            }
        };
        let live = list.nodes.into_iter().filter(|member| member.node != own).map(receiver(false));
        let receivers = live.chain(list.offline.into_iter().map(receiver(true))).collect();
        let send = &send;
        let mut told = fan_out(self, receivers, |to| async move {
            within(limit, &format!("node {}", to.node), self.greet(to, is_echo_open)).await?;
            send(SocketAddress::new(to, port)).map_err(|text| Failure::new("datagram_failed", text))
        })
        .await;
        told["network_id"] = network.into();
        told["port"] = port.into();
        if list.truncated {
            told["truncated"] = true.into();
        }
        Ok(told)
    }

    /// Makes sure that a node is there and hears us. A datagram to a node that is gone would be lost without a word.
    async fn greet(self: &Arc<Self>, to: Address, is_echo_open: bool) -> Result<(), Failure> {
        // Official daemons answer a dial to a network address, too, but February's from another one (02 §12.1).
        let echo = SocketAddress::new(Address::backbone(to.node), ECHO);
        let dialling = self.engine.dial(echo).map_err(|error| Failure::new("dial_failed", error.to_string()))?;
        match dialling.await {
            Ok(stream) => {
                drop(stream);
                Ok(())
            }
            // It has no echo service, but it is there, and lets us in.
            Err(error) if error.code() == "refused" => Ok(()),
            Err(error) if error.code() == "untrusted" && !is_echo_open => Ok(()),
            Err(error) => Err(Failure::of_dial(&error)),
        }
    }

    /// Opens a stream to a port of every trusted node, and writes the message.
    pub(crate) async fn broadcast_trusted(
        self: &Arc<Self>,
        turn: Turn,
        port: u16,
        limit: Duration,
        data: &[u8],
    ) -> Value {
        let _turn = turn;
        let _running = self.networks.turns.running.acquire().await;
        let receiver = |node| Receiver { address: Address::backbone(node), hostname: None, away: false };
        let receivers = self.trust.trusted_nodes().into_iter().map(receiver).collect();
        let mut told = fan_out(self, receivers, |to| {
            let what = format!("node {}", to.node);
            async move {
                let stream = within(limit, &what, self.write_to(SocketAddress::new(to, port), data)).await?;
                ended(stream).await;
                Ok(())
            }
        })
        .await;
        told["port"] = port.into();
        told["bytes"] = data.len().into();
        told
    }

    /// The message over a stream of its own; done when the peer has all of it.
    async fn write_to(self: &Arc<Self>, to: SocketAddress, data: &[u8]) -> Result<NodeStream, Failure> {
        let dialling = self.engine.dial(to).map_err(|error| Failure::new("dial_failed", error.to_string()))?;
        let mut stream = dialling.await.map_err(|error| Failure::of_dial(&error))?;
        let lost = |error: std::io::Error| Failure::new("stream_failed", error.to_string());
        stream.write_all(data).await.map_err(lost)?;
        stream.shutdown().await.map_err(lost)?;
        let all = data.len() as u64;
        let delivered = std::future::poll_fn(|cx| stream.poll_delivered(cx, all)).await;
        if delivered < all {
            let text = format!("the peer took {delivered} of {all} bytes");
            return Err(Failure::new("stream_failed", text));
        }
        Ok(stream)
    }
}

/// Gives the peer a moment to end the stream in order, before it is dropped.
async fn ended(mut stream: NodeStream) {
    let reading = async {
        let mut ignored = [0; 1024];
        while matches!(stream.read(&mut ignored).await, Ok(n) if n > 0) {}
    };
    // It has the message, whatever it does now.
    let _ = tokio::time::timeout(END_WAIT, reading).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasts_under_way_are_bounded() {
        let turns = Turns::default();
        let mut taken: Vec<Turn> = (0..ADMITTED).map(|_| turns.take().unwrap()).collect();
        assert_eq!(turns.take().unwrap_err().code, "too_many_broadcasts");
        taken.pop();
        turns.take().unwrap();
    }

    #[test]
    fn a_list_that_was_cut_is_no_success() {
        let all = json!({ "members": 2, "failed": [] });
        assert_eq!(missed(all.clone()).unwrap()["ok"], true);
        let mut cut = all;
        cut["truncated"] = true.into();
        let why = missed(cut.clone()).unwrap_err();
        assert!(why.contains("only 2 members are known"), "{why}");
        cut["failed"] = json!([{ "node_id": 5, "code": "timeout" }]);
        let why = missed(cut).unwrap_err();
        assert!(why.contains("1 of 2 members not reached: node 5 (timeout)") && why.contains("only 2"), "{why}");
    }
}
