//! The registry's store: every method is one command of the domain, carried out as one transaction.
//!
//! A command that was answered with `Ok` is durable, except signs of life, which are written now and then. `now` is in
//! Unix seconds and never goes back. The rules themselves are in [`crate::domain`].

use async_trait::async_trait;

use crate::domain::{Authority, Change, Changed, Member, NewNetwork, Proof, Register, Registration, Resolved};
use crate::error::Refusal;
use crate::model::{HandshakeRequest, HandshakeResponse, Invite, Network, Node, Role};

/// See the module. All methods can also fail with [`Refusal::Internal`] and [`Refusal::Busy`].
#[async_trait]
#[allow(clippy::missing_errors_doc)]
pub trait Store: Send + Sync + 'static {
    /// The id of a key, live or departed.
    async fn node_of_key(&self, key: &[u8; 32]) -> Result<Option<u32>, Refusal>;
    /// A live node.
    async fn lookup(&self, node: u32) -> Result<Node, Refusal>;
    /// The live node of a hostname.
    async fn resolve_hostname(&self, name: &str) -> Result<Node, Refusal>;
    /// All networks with their number of members.
    async fn list_networks(&self) -> Result<Vec<(Network, u64)>, Refusal>;
    /// Members of a network.
    async fn list_nodes(&self, network: u16) -> Result<Vec<Member>, Refusal>;
    /// What a node is in a network.
    async fn member_role(&self, network: u16, node: u32) -> Result<Role, Refusal>;
    /// One network.
    async fn network(&self, id: u16) -> Result<Network, Refusal>;
    /// Whether two nodes trust each other.
    async fn check_trust(&self, node: u32, peer: u32) -> Result<bool, Refusal>;

    /// Registers a key.
    async fn register(&self, now: u64, cmd: Register) -> Result<Registration, Refusal>;
    /// Replaces a key.
    async fn rotate_key(&self, now: u64, proof: Proof, new_key: [u8; 32]) -> Result<(), Refusal>;
    /// Takes a node off the network; says whether it was there.
    async fn deregister(&self, now: u64, node: u32, proof: Option<Proof>) -> Result<bool, Refusal>;
    /// A sign of life.
    async fn heartbeat(&self, now: u64, proof: Proof) -> Result<(), Refusal>;
    /// A signed request was seen: the holder of the key is behind the registration, if it came from the same source.
    fn confirm(&self, proof: &Proof);
    /// Takes nodes off the network that were silent for [`crate::limits::STALE_AFTER`]; says how many.
    async fn reap(&self, now: u64) -> Result<usize, Refusal>;
    /// Writes signs of life that are not on disk yet.
    async fn flush(&self) -> Result<(), Refusal>;

    /// Names a node.
    async fn set_hostname(&self, now: u64, proof: Proof, name: String) -> Result<(), Refusal>;
    /// Shows or hides a node's endpoint.
    async fn set_visibility(&self, proof: Proof, public: bool) -> Result<(), Refusal>;
    /// Replaces a node's tags.
    async fn set_tags(&self, proof: Proof, tags: Vec<String>) -> Result<(), Refusal>;
    /// Sets a node's task flag.
    async fn set_task_exec(&self, proof: Proof, enabled: bool) -> Result<(), Refusal>;
    /// Adds to a score; gives the new one.
    async fn update_polo_score(&self, node: u32, delta: i64) -> Result<i64, Refusal>;
    /// Sets a score; gives what it is now.
    async fn set_polo_score(&self, node: u32, score: i64) -> Result<i64, Refusal>;

    /// Asks for an endpoint.
    async fn resolve(&self, proof: Proof, target: u32) -> Result<Resolved, Refusal>;
    /// Asks for the endpoints of two nodes; gives the asker's own and the other's.
    async fn punch(&self, proof: Proof, a: u32, b: u32) -> Result<(Node, Resolved), Refusal>;
    /// States trust.
    async fn report_trust(&self, proof: Proof, peer: u32) -> Result<(), Refusal>;
    /// Takes trust back.
    async fn revoke_trust(&self, proof: Proof, peer: u32) -> Result<(), Refusal>;
    /// Leaves a handshake request.
    async fn request_handshake(&self, now: u64, proof: Proof, to: u32, text: String) -> Result<(), Refusal>;
    /// Takes what waits.
    async fn poll_handshakes(&self, proof: Proof) -> Result<(Vec<HandshakeRequest>, Vec<HandshakeResponse>), Refusal>;
    /// Answers a handshake request.
    async fn respond_handshake(&self, now: u64, proof: Proof, peer: u32, accept: bool) -> Result<(), Refusal>;

    /// Makes a network.
    async fn create_network(&self, now: u64, by: Authority, new: NewNetwork) -> Result<Network, Refusal>;
    /// Changes a network or its members.
    async fn change_network(&self, by: Authority, network: u16, change: Change) -> Result<Changed, Refusal>;
    /// Joins a network.
    async fn join_network(&self, now: u64, proof: Proof, network: u16, token: String) -> Result<(), Refusal>;
    /// Leaves a network.
    async fn leave_network(&self, proof: Proof, network: u16) -> Result<(), Refusal>;
    /// Invites a node to a network.
    async fn invite(&self, now: u64, proof: Proof, network: u16, target: u32) -> Result<(), Refusal>;
    /// What a node is invited to, with names.
    async fn invites(&self, now: u64, proof: Proof) -> Result<Vec<(Invite, String)>, Refusal>;
    /// Answers an invitation.
    async fn respond_invite(&self, now: u64, proof: Proof, network: u16, accept: bool) -> Result<(), Refusal>;

    /// Where the holder of a node's key was last seen to come from, for a live node that has proved its key.
    fn source_of(&self, node: u32) -> Option<std::net::IpAddr>;
    /// How many nodes are live.
    fn live_count(&self) -> u64;
    /// False after the store has failed to write.
    fn is_healthy(&self) -> bool;
}
