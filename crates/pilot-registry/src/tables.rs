//! What the rules of [`crate::domain`] need from a store: typed tables inside one transaction.

use crate::error::Fault;
use crate::model::{HandshakeRequest, HandshakeResponse, Network, Node, Presence, Statement};

/// Reading. All methods fail only when the store does.
#[allow(clippy::missing_errors_doc)]
pub trait Reads {
    /// An identity, live or departed.
    fn node(&self, id: u32) -> Result<Option<Node>, Fault>;
    /// The identity of a key.
    fn node_of_key(&self, key: &[u8; 32]) -> Result<Option<u32>, Fault>;
    /// The identity that holds a hostname, live or departed.
    fn node_of_hostname(&self, name: &str) -> Result<Option<u32>, Fault>;
    /// Sign of life; `None` when the node is not live.
    fn presence(&self, id: u32) -> Result<Option<Presence>, Fault>;
    /// What one node said about another.
    fn statement(&self, from: u32, to: u32) -> Result<Option<Statement>, Fault>;
    /// Waiting requests with their sequence numbers, in order.
    fn requests(&self, to: u32) -> Result<Vec<(u64, HandshakeRequest)>, Fault>;
    /// Waiting responses with their sequence numbers, in order.
    fn responses(&self, to: u32) -> Result<Vec<(u64, HandshakeResponse)>, Fault>;
    /// A network.
    fn network(&self, id: u16) -> Result<Option<Network>, Fault>;
    /// All networks by id.
    fn networks(&self) -> Result<Vec<Network>, Fault>;
    /// The id the next new identity gets.
    fn next_node(&self) -> Result<u32, Fault>;
    /// Where the search for the id of the next network begins.
    fn next_network(&self) -> Result<u16, Fault>;
    /// How many nodes are live.
    fn live_count(&self) -> Result<u64, Fault>;
}

/// Writing. The rules check everything first and write only when nothing can be refused any more, because many requests
/// share one transaction.
#[allow(clippy::missing_errors_doc)]
pub trait Writes: Reads {
    /// Stores an identity.
    fn put_node(&mut self, node: &Node) -> Result<(), Fault>;
    /// Points a key to an identity.
    fn put_key(&mut self, key: &[u8; 32], id: u32) -> Result<(), Fault>;
    /// Forgets a key.
    fn remove_key(&mut self, key: &[u8; 32]) -> Result<(), Fault>;
    /// Points a hostname to an identity.
    fn put_hostname(&mut self, name: &str, id: u32) -> Result<(), Fault>;
    /// Frees a hostname.
    fn remove_hostname(&mut self, name: &str) -> Result<(), Fault>;
    /// Records a sign of life, `None` departure.
    fn put_presence(&mut self, id: u32, presence: Option<Presence>) -> Result<(), Fault>;
    /// Records a statement, `None` takes it back.
    fn put_statement(&mut self, from: u32, to: u32, statement: Option<Statement>) -> Result<(), Fault>;
    /// Appends a request.
    fn push_request(&mut self, to: u32, request: &HandshakeRequest) -> Result<(), Fault>;
    /// Removes a request.
    fn remove_request(&mut self, to: u32, sequence: u64) -> Result<(), Fault>;
    /// Appends a response.
    fn push_response(&mut self, to: u32, response: &HandshakeResponse) -> Result<(), Fault>;
    /// Removes a response.
    fn remove_response(&mut self, to: u32, sequence: u64) -> Result<(), Fault>;
    /// Stores a network.
    fn put_network(&mut self, network: &Network) -> Result<(), Fault>;
    /// Forgets a network.
    fn remove_network(&mut self, id: u16) -> Result<(), Fault>;
    /// Sets where the search for the id of the next network begins.
    fn set_next_network(&mut self, id: u16) -> Result<(), Fault>;
    /// Sets the id of the next new identity.
    fn set_next_node(&mut self, id: u32) -> Result<(), Fault>;
}
