//! One interface to the network for programs that may run beside a daemon or carry a node inside.

use std::time::Duration;

use async_trait::async_trait;
use pilot_wire::ipc::NetworkCommand;
use pilot_wire::registry::NetworkChange;
use pilot_wire::{Address, SocketAddress, base64};
use serde_json::{Value, json};

use crate::datagram::Datagram;
use crate::driver::Driver;
use crate::error::Error;
use crate::extended::events::Events;
use crate::listener::Listener;
use crate::stream::Stream;

/// What a program can do on the network, through the daemon of its host ([`Driver`]) or a node of its own
/// ([`Embedded`](crate::Embedded)). Code written against it runs with either.
///
/// JSON answers are those of the local socket (03 §8 to §10).
///
/// ```no_run
/// use pilot::Pilot;
///
/// async fn greet(network: &dyn Pilot, whom: &str) -> Result<(), Box<dyn std::error::Error>> {
///     let address = network.resolve(whom).await?;
///     let mut stream = network.dial(pilot::SocketAddress::new(address, 1000)).await?;
///     tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello").await?;
///     stream.close().await?;
///     Ok(())
/// }
/// ```
#[async_trait]
pub trait Pilot: Send + Sync {
    /// The own address; node 0 before the first registration.
    async fn address(&self) -> Result<Address, Error>;
    /// Opens a stream to a port of a peer.
    async fn dial(&self, to: SocketAddress) -> Result<Stream, Error>;
    /// Binds a port for streams, and its datagrams for [`recv_from`](Self::recv_from).
    async fn listen(&self, port: u16) -> Result<Listener, Error>;

    /// Sends a datagram.
    async fn send_to(&self, to: SocketAddress, data: &[u8]) -> Result<(), Error>;
    /// The next datagram: answers to those sent, and those to ports listened on. Cancel safe.
    async fn recv_from(&self) -> Result<Datagram, Error>;

    /// The status of the node.
    async fn info(&self) -> Result<Value, Error>;
    /// A short status: `status` is `ok` while the registry has the node.
    async fn health(&self) -> Result<Value, Error>;

    /// The node behind a host name: `address`, `hostname`, `node_id`, `public`.
    async fn resolve_hostname(&self, hostname: &str) -> Result<Value, Error>;
    /// The address behind a host name.
    async fn resolve(&self, hostname: &str) -> Result<Address, Error> {
        let found = self.resolve_hostname(hostname).await?;
        Ok(found["address"].as_str().unwrap_or_default().parse()?)
    }
    /// Sets the own host name; the empty one clears it.
    async fn set_hostname(&self, hostname: &str) -> Result<Value, Error>;
    /// Shows the endpoint to everybody, or only to trusted nodes.
    async fn set_visibility(&self, public: bool) -> Result<Value, Error>;
    /// Replaces the own tags, three at most; none clears them.
    async fn set_tags(&self, tags: &[&str]) -> Result<Value, Error>;

    /// Asks a node for trust. Says nothing about the answer: [`wait_trusted`](Self::wait_trusted).
    async fn handshake(&self, node: u32, justification: &str) -> Result<Value, Error>;
    /// Grants a waiting request.
    async fn approve(&self, node: u32) -> Result<Value, Error>;
    /// Refuses a waiting request.
    async fn reject(&self, node: u32, reason: &str) -> Result<Value, Error>;
    /// Ends trust in a node.
    async fn revoke(&self, node: u32) -> Result<Value, Error>;
    /// Requests that wait: `pending`, a list.
    async fn pending(&self) -> Result<Value, Error>;
    /// Trusted nodes: `trusted`, a list.
    async fn trusted(&self) -> Result<Value, Error>;
    /// Waits until a node is trusted, at most half a minute: `node_id`, `trusted`.
    async fn wait_trusted(&self, node: u32, limit: Duration) -> Result<Value, Error>;

    /// Signs a request for a third party as this node: `envelope`, `signature`, `address` (07 §12).
    async fn sign_request(&self, audience: &str, body_hash: &[u8; 32]) -> Result<Value, Error>;
    /// Verifies a request that some node has signed: `valid`, `reason`, and what was signed. `max_skew` is how far the
    /// signer's clock may be off; `None` means 300 s.
    async fn verify_request(&self, envelope: &str, signature: &str, max_skew: Option<Duration>)
    -> Result<Value, Error>;

    /// The networks of the registry: `networks`, a list of `id`, `name`, `join_rule`, `members`.
    async fn networks(&self) -> Result<Value, Error> {
        self.call("network.list", &json!({})).await
    }
    /// The members of a network: `nodes`, and `offline` for those that are away.
    async fn members(&self, network: u16) -> Result<Value, Error> {
        self.call("network.members", &json!({ "network": network })).await
    }
    /// Joins a network; the token may be empty. Members talk without a handshake.
    async fn join_network(&self, network: u16, token: &str) -> Result<Value, Error> {
        self.call("network.join", &json!({ "network": network, "token": token })).await
    }
    /// Leaves a network.
    async fn leave_network(&self, network: u16) -> Result<Value, Error> {
        self.call("network.leave", &json!({ "network": network })).await
    }
    /// Invites a node to a network.
    async fn invite(&self, network: u16, node: u32) -> Result<Value, Error> {
        self.call("network.invite", &json!({ "network": network, "node": node })).await
    }
    /// Invitations that wait for this node: `invites`, a list.
    async fn invites(&self) -> Result<Value, Error> {
        self.call("network.invites", &json!({})).await
    }
    /// Answers an invitation.
    async fn respond_invite(&self, network: u16, accept: bool) -> Result<Value, Error> {
        self.call("network.respond", &json!({ "network": network, "accept": accept })).await
    }
    /// Creates a network, or does with one what its owner may; signed by the node. Daemons of ours only.
    async fn change_network(&self, change: &NetworkChange) -> Result<Value, Error> {
        let (method, params) = change_call(change);
        self.call(method, &params).await
    }
    /// Sends a datagram to every other member of a network: `members`, `sent`, and by name who was not reached, `failed`.
    /// Each has `limit` to show that it is there. Daemons of ours only.
    async fn broadcast(&self, network: u16, port: u16, data: &[u8], limit: Duration) -> Result<Value, Error> {
        let mut params = broadcast_params(port, data, limit);
        params["network"] = network.into();
        self.call("network.broadcast", &params).await
    }
    /// Writes to a stream to every trusted node; answers as [`broadcast`](Self::broadcast). Daemons of ours only.
    async fn broadcast_trusted(&self, port: u16, data: &[u8], limit: Duration) -> Result<Value, Error> {
        self.call("trust.broadcast", &broadcast_params(port, data, limit)).await
    }

    /// Calls a method that a service of the node offers to local programs.
    async fn call(&self, method: &str, params: &Value) -> Result<Value, Error>;
    /// Opens a stream to such a method.
    async fn open(&self, method: &str, params: &Value) -> Result<Stream, Error>;
    /// What happens at the node, as it happens: all kinds, or those named (by prefix when ending in `.*`).
    async fn events(&self, kinds: &[&str]) -> Result<Events, Error>;
}

fn broadcast_params(port: u16, data: &[u8], limit: Duration) -> Value {
    let limit = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    json!({ "port": port, "data": base64::encode(data), "timeout_ms": limit })
}

/// The call behind a command about a network.
fn change_call(change: &NetworkChange) -> (&'static str, Value) {
    use NetworkChange as C;
    let about = |network: u16, target: u32| json!({ "network": network, "node": target });
    match change {
        C::Create { name, join_rule, token } => {
            ("network.create", json!({ "name": name, "join_rule": join_rule, "token": token }))
        }
        C::Delete { network } => ("network.delete", json!({ "network": network })),
        C::Rename { network, name } => ("network.rename", json!({ "network": network, "name": name })),
        C::Kick { network, target } => ("network.kick", about(*network, *target)),
        C::Promote { network, target } => ("network.promote", about(*network, *target)),
        C::Demote { network, target } => ("network.demote", about(*network, *target)),
        C::Transfer { network, target } => ("network.transfer", about(*network, *target)),
        C::SetPolicy { network, policy } => (
            "network.set_policy",
            json!({
                "network": network,
                "allowed_ports": policy.allowed_ports,
                "max_members": policy.max_members,
                "description": policy.description,
            }),
        ),
    }
}

#[async_trait]
impl Pilot for Driver {
    async fn address(&self) -> Result<Address, Error> {
        let info = Driver::info(self).await?;
        Ok(info["address"].as_str().unwrap_or_default().parse()?)
    }

    async fn dial(&self, to: SocketAddress) -> Result<Stream, Error> {
        Driver::dial(self, to).await
    }

    async fn listen(&self, port: u16) -> Result<Listener, Error> {
        Driver::listen(self, port).await
    }

    async fn send_to(&self, to: SocketAddress, data: &[u8]) -> Result<(), Error> {
        Driver::send_to(self, to, data).await
    }

    async fn recv_from(&self) -> Result<Datagram, Error> {
        Driver::recv_from(self).await
    }

    async fn info(&self) -> Result<Value, Error> {
        Driver::info(self).await
    }

    async fn health(&self) -> Result<Value, Error> {
        Driver::health(self).await
    }

    async fn resolve_hostname(&self, hostname: &str) -> Result<Value, Error> {
        Driver::resolve_hostname(self, hostname).await
    }

    async fn set_hostname(&self, hostname: &str) -> Result<Value, Error> {
        Driver::set_hostname(self, hostname).await
    }

    async fn set_visibility(&self, public: bool) -> Result<Value, Error> {
        Driver::set_visibility(self, public).await
    }

    async fn set_tags(&self, tags: &[&str]) -> Result<Value, Error> {
        Driver::set_tags(self, tags).await
    }

    async fn handshake(&self, node: u32, justification: &str) -> Result<Value, Error> {
        Driver::handshake(self, node, justification).await
    }

    async fn approve(&self, node: u32) -> Result<Value, Error> {
        Driver::approve(self, node).await
    }

    async fn reject(&self, node: u32, reason: &str) -> Result<Value, Error> {
        Driver::reject(self, node, reason).await
    }

    async fn revoke(&self, node: u32) -> Result<Value, Error> {
        Driver::revoke(self, node).await
    }

    async fn pending(&self) -> Result<Value, Error> {
        Driver::pending(self).await
    }

    async fn trusted(&self) -> Result<Value, Error> {
        Driver::trusted(self).await
    }

    async fn wait_trusted(&self, node: u32, limit: Duration) -> Result<Value, Error> {
        Driver::wait_trusted(self, node, limit).await
    }

    async fn sign_request(&self, audience: &str, body_hash: &[u8; 32]) -> Result<Value, Error> {
        Driver::sign_request(self, audience, body_hash).await
    }

    async fn verify_request(
        &self,
        envelope: &str,
        signature: &str,
        max_skew: Option<Duration>,
    ) -> Result<Value, Error> {
        Driver::verify_request(self, envelope, signature, max_skew, false).await
    }

    // By the commands that official daemons have, too.

    async fn networks(&self) -> Result<Value, Error> {
        self.network(NetworkCommand::List).await
    }

    async fn members(&self, network: u16) -> Result<Value, Error> {
        self.network(NetworkCommand::Members { network }).await
    }

    async fn join_network(&self, network: u16, token: &str) -> Result<Value, Error> {
        self.network(NetworkCommand::Join { network, token: token.to_owned() }).await
    }

    async fn leave_network(&self, network: u16) -> Result<Value, Error> {
        self.network(NetworkCommand::Leave { network }).await
    }

    async fn invite(&self, network: u16, node: u32) -> Result<Value, Error> {
        self.network(NetworkCommand::Invite { network, node }).await
    }

    async fn invites(&self) -> Result<Value, Error> {
        self.network(NetworkCommand::PollInvites).await
    }

    async fn respond_invite(&self, network: u16, accept: bool) -> Result<Value, Error> {
        self.network(NetworkCommand::Respond { network, accept }).await
    }

    async fn call(&self, method: &str, params: &Value) -> Result<Value, Error> {
        Driver::call(self, method, params).await
    }

    async fn open(&self, method: &str, params: &Value) -> Result<Stream, Error> {
        Driver::open(self, method, params).await
    }

    async fn events(&self, kinds: &[&str]) -> Result<Events, Error> {
        Driver::events(self, kinds).await
    }
}
