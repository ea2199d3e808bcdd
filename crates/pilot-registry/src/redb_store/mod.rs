//! The default store: redb, one file, every write synced before its answer leaves.

mod backend;
mod open;
mod presence;
mod queue;
mod tx;

use std::net::IpAddr;
use std::sync::Arc;

use async_trait::async_trait;

use self::queue::Engine;
use crate::domain::{self, Authority, Change, Changed, Member, NewNetwork, Proof, Register, Registration, Resolved};
use crate::error::Refusal;
use crate::limits::STALE_AFTER;
use crate::model::{HandshakeRequest, HandshakeResponse, Invite, Network, Node, Role, Statement};
use crate::store::Store;
use crate::tables::{Reads, Writes};

/// Newest format of the file.
pub const FORMAT: u64 = 1;

/// A [`Store`] in one redb file, or in memory. See [`RedbStore::open`] and [`RedbStore::in_memory`].
#[derive(Clone)]
pub struct RedbStore {
    engine: Arc<Engine>,
}

#[async_trait]
impl Store for RedbStore {
    async fn node_of_key(&self, key: &[u8; 32]) -> Result<Option<u32>, Refusal> {
        self.engine.read(|t| Ok(t.node_of_key(key)?))
    }

    async fn lookup(&self, node: u32) -> Result<Node, Refusal> {
        self.engine.read(|t| domain::live(t, node))
    }

    async fn resolve_hostname(&self, name: &str) -> Result<Node, Refusal> {
        self.engine.read(|t| domain::resolve_hostname(t, name))
    }

    async fn list_networks(&self) -> Result<Vec<(Network, u64)>, Refusal> {
        self.engine.read(|t| domain::list_networks(t))
    }

    async fn list_nodes(&self, network: u16) -> Result<Vec<Member>, Refusal> {
        self.engine.read(|t| domain::list_nodes(t, network))
    }

    async fn member_role(&self, network: u16, node: u32) -> Result<Role, Refusal> {
        self.engine.read(|t| domain::member_role(t, network, node))
    }

    async fn network(&self, id: u16) -> Result<Network, Refusal> {
        self.engine.read(|t| domain::network(t, id))
    }

    async fn check_trust(&self, node: u32, peer: u32) -> Result<bool, Refusal> {
        self.engine.read(|t| domain::check_trust(t, node, peer))
    }

    async fn register(&self, now: u64, cmd: Register) -> Result<Registration, Refusal> {
        self.engine.write(move |t| domain::register(t, now, &cmd)).await
    }

    async fn rotate_key(&self, now: u64, proof: Proof, new_key: [u8; 32]) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::rotate_key(t, now, &proof, &new_key)).await
    }

    async fn deregister(&self, now: u64, node: u32, proof: Option<Proof>) -> Result<bool, Refusal> {
        self.engine.write(move |t| domain::deregister(t, now, node, proof.as_ref())).await
    }

    async fn heartbeat(&self, now: u64, proof: Proof) -> Result<(), Refusal> {
        let presence = self.engine.read(|t| domain::heartbeat(t, now, &proof))?;
        self.engine.mirror.touch(proof.node, presence);
        Ok(())
    }

    fn confirm(&self, proof: &Proof) {
        self.engine.mirror.confirm(proof);
    }

    async fn reap(&self, now: u64) -> Result<usize, Refusal> {
        let limit = now.saturating_sub(STALE_AFTER.as_secs());
        let mut count = 0;
        // In pieces, so that a mass departure delays nobody for long.
        for silent in self.engine.mirror.silent_since(limit).chunks(256) {
            let silent = silent.to_vec();
            count += self
                .engine
                .write(move |t| {
                    let mut count = 0;
                    for id in silent {
                        // It may have shown itself since.
                        if t.presence(id)?.is_some_and(|p| p.last_seen < limit) && domain::depart(t, now, id)? {
                            count += 1;
                        }
                    }
                    Ok(count)
                })
                .await?;
        }
        Ok(count)
    }

    async fn flush(&self) -> Result<(), Refusal> {
        let mirror_engine = self.engine.clone();
        self.engine
            .write(move |t| {
                for (id, presence) in mirror_engine.mirror.take_dirty() {
                    // A change in this same transaction is newer.
                    if !t.presence.contains_key(&id) {
                        t.put_presence(id, Some(presence))?;
                    }
                }
                Ok(())
            })
            .await
    }

    async fn set_hostname(&self, now: u64, proof: Proof, name: String) -> Result<(), Refusal> {
        // 1.18.0 repeats its name every minute (07 D21): no write for what is so already.
        let unchanged = self.engine.read(|t| {
            Ok(domain::live(t, proof.node)
                .is_ok_and(|node| node.public_key == proof.key && node.hostname == name && !name.is_empty()))
        })?;
        if unchanged {
            return Ok(());
        }
        self.engine.write(move |t| domain::set_hostname(t, now, &proof, &name)).await
    }

    async fn set_visibility(&self, proof: Proof, public: bool) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::set_visibility(t, &proof, public)).await
    }

    async fn set_tags(&self, proof: Proof, tags: Vec<String>) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::set_tags(t, &proof, &tags)).await
    }

    async fn set_task_exec(&self, proof: Proof, enabled: bool) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::set_task_exec(t, &proof, enabled)).await
    }

    async fn update_polo_score(&self, node: u32, delta: i64) -> Result<i64, Refusal> {
        self.engine.write(move |t| domain::update_polo_score(t, node, delta)).await
    }

    async fn set_polo_score(&self, node: u32, score: i64) -> Result<i64, Refusal> {
        self.engine.write(move |t| domain::set_polo_score(t, node, score)).await
    }

    async fn resolve(&self, proof: Proof, target: u32) -> Result<Resolved, Refusal> {
        // Where asking changes neither the answer nor what is known, nothing waits for the disk.
        let (answer, is_stated) = self.engine.read(|t| {
            let requester = domain::live(t, proof.node)?;
            let shown = domain::live(t, target)?;
            let is_stated = t.statement(proof.node, target)?.is_some_and(|s| s >= Statement::Resolved);
            let may = requester.public_key == proof.key && domain::may_resolve(t, &requester, &shown)?;
            Ok((may.then(|| Resolved::Shown(Box::new(shown))), is_stated))
        })?;
        match answer {
            Some(answer) if is_stated => Ok(answer),
            Some(answer) => {
                self.engine.submit(move |t| domain::resolve(t, &proof, target))?;
                Ok(answer)
            }
            None => self.engine.write(move |t| domain::resolve(t, &proof, target)).await,
        }
    }

    async fn punch(&self, proof: Proof, a: u32, b: u32) -> Result<(Node, Resolved), Refusal> {
        self.engine.write(move |t| domain::punch(t, &proof, a, b)).await
    }

    async fn report_trust(&self, proof: Proof, peer: u32) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::report_trust(t, &proof, peer)).await
    }

    async fn revoke_trust(&self, proof: Proof, peer: u32) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::revoke_trust(t, &proof, peer)).await
    }

    async fn request_handshake(&self, now: u64, proof: Proof, to: u32, text: String) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::request_handshake(t, now, &proof, to, &text)).await
    }

    async fn poll_handshakes(&self, proof: Proof) -> Result<(Vec<HandshakeRequest>, Vec<HandshakeResponse>), Refusal> {
        // Most polls find nothing and write nothing.
        let waits = self.engine.read(|t| {
            let is_own = domain::live(t, proof.node)?.public_key == proof.key;
            Ok(!is_own || domain::has_waiting(t, proof.node)?)
        })?;
        if !waits {
            return Ok((Vec::new(), Vec::new()));
        }
        self.engine.write(move |t| domain::poll_handshakes(t, &proof)).await
    }

    async fn respond_handshake(&self, now: u64, proof: Proof, peer: u32, accept: bool) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::respond_handshake(t, now, &proof, peer, accept)).await
    }

    async fn create_network(&self, now: u64, by: Authority, new: NewNetwork) -> Result<Network, Refusal> {
        self.engine.write(move |t| domain::create_network(t, now, &by, &new)).await
    }

    async fn change_network(&self, by: Authority, network: u16, change: Change) -> Result<Changed, Refusal> {
        self.engine.write(move |t| domain::change_network(t, &by, network, &change)).await
    }

    async fn join_network(&self, now: u64, proof: Proof, network: u16, token: String) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::join_network(t, now, &proof, network, &token)).await
    }

    async fn leave_network(&self, proof: Proof, network: u16) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::leave_network(t, &proof, network)).await
    }

    async fn invite(&self, now: u64, proof: Proof, network: u16, target: u32) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::invite(t, now, &proof, network, target)).await
    }

    async fn invites(&self, now: u64, proof: Proof) -> Result<Vec<(Invite, String)>, Refusal> {
        self.engine.read(|t| domain::invites(t, now, &proof))
    }

    async fn respond_invite(&self, now: u64, proof: Proof, network: u16, accept: bool) -> Result<(), Refusal> {
        self.engine.write(move |t| domain::respond_invite(t, now, &proof, network, accept)).await
    }

    fn source_of(&self, node: u32) -> Option<IpAddr> {
        self.engine.mirror.get(node).filter(|p| p.proved).map(|p| p.source)
    }

    fn live_count(&self) -> u64 {
        self.engine.mirror.len()
    }

    fn is_healthy(&self) -> bool {
        self.engine.is_healthy()
    }
}
