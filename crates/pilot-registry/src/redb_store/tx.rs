//! The tables in redb, and how the rules read and write them inside one transaction.

use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr};

use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use rustc_hash::FxHashMap;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::presence::Mirror;
use crate::error::Fault;
use crate::model::{HandshakeRequest, HandshakeResponse, Network, Node, Presence, Statement};
use crate::tables::{Reads, Writes};

/// Node id → [`Node`] as JSON.
pub(super) const NODES: TableDefinition<u32, &[u8]> = TableDefinition::new("nodes");
/// Public key → node id.
pub(super) const KEYS: TableDefinition<&[u8; 32], u32> = TableDefinition::new("keys");
/// Hostname → node id.
pub(super) const HOSTNAMES: TableDefinition<&str, u32> = TableDefinition::new("hostnames");
/// Live node id → last seen, proved, source (IPv4 as mapped IPv6).
pub(super) const LIVE: TableDefinition<u32, (u64, bool, u128)> = TableDefinition::new("live");
/// (from, to) → 1 resolved, 2 spoken.
pub(super) const STATEMENTS: TableDefinition<(u32, u32), u8> = TableDefinition::new("statements");
/// (to, sequence) → [`HandshakeRequest`] as JSON.
pub(super) const REQUESTS: TableDefinition<(u32, u64), &[u8]> = TableDefinition::new("handshake_requests");
/// (to, sequence) → [`HandshakeResponse`] as JSON.
pub(super) const RESPONSES: TableDefinition<(u32, u64), &[u8]> = TableDefinition::new("handshake_responses");
/// Network id → [`Network`] as JSON.
pub(super) const NETWORKS: TableDefinition<u16, &[u8]> = TableDefinition::new("networks");
/// Counters and the format.
pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

/// Keys of [`META`].
pub(super) mod meta {
    pub(in super::super) const FORMAT: &str = "format";
    pub(in super::super) const NEXT_NODE: &str = "next_node";
    /// Absent in stores that never had a network of their own.
    pub(in super::super) const NEXT_NETWORK: &str = "next_network";
    pub(in super::super) const NEXT_SEQUENCE: &str = "next_sequence";
}

/// Any failure of the engine.
pub(super) fn fault(error: impl Display) -> Fault {
    Fault(error.to_string())
}

pub(super) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(bytes).map_err(|e| Fault(format!("unreadable record in {what}: {e}")))
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Fault> {
    serde_json::to_vec(value).map_err(fault)
}

pub(super) fn presence_row(p: &Presence) -> (u64, bool, u128) {
    let ip = match p.source {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    (p.last_seen, p.proved, u128::from(ip))
}

pub(super) fn row_presence((last_seen, proved, ip): (u64, bool, u128)) -> Presence {
    Presence { last_seen, proved, source: Ipv6Addr::from(ip).to_canonical() }
}

/// A snapshot of the last commit.
pub(super) struct ReadTx<'a> {
    pub(super) tx: ReadTransaction,
    pub(super) mirror: &'a Mirror,
}

/// An open write transaction. Presence changes reach the mirror only after the commit.
pub(super) struct WriteTx<'a> {
    pub(super) tx: WriteTransaction,
    pub(super) mirror: &'a Mirror,
    pub(super) presence: FxHashMap<u32, Option<Presence>>,
    pub(super) is_dirty: bool,
}

macro_rules! reads {
    () => {
        fn node(&self, id: u32) -> Result<Option<Node>, Fault> {
            let table = self.tx.open_table(NODES).map_err(fault)?;
            let row = table.get(id).map_err(fault)?;
            row.map(|bytes| decode("nodes", bytes.value())).transpose()
        }

        fn node_of_key(&self, key: &[u8; 32]) -> Result<Option<u32>, Fault> {
            let table = self.tx.open_table(KEYS).map_err(fault)?;
            let row = table.get(key).map_err(fault)?;
            Ok(row.map(|id| id.value()))
        }

        fn node_of_hostname(&self, name: &str) -> Result<Option<u32>, Fault> {
            let table = self.tx.open_table(HOSTNAMES).map_err(fault)?;
            let row = table.get(name).map_err(fault)?;
            Ok(row.map(|id| id.value()))
        }

        fn statement(&self, from: u32, to: u32) -> Result<Option<Statement>, Fault> {
            let table = self.tx.open_table(STATEMENTS).map_err(fault)?;
            let row = table.get((from, to)).map_err(fault)?;
            Ok(row.map(|kind| if kind.value() >= 2 { Statement::Spoken } else { Statement::Resolved }))
        }

        fn requests(&self, to: u32) -> Result<Vec<(u64, HandshakeRequest)>, Fault> {
            let table = self.tx.open_table(REQUESTS).map_err(fault)?;
            inbox("handshake_requests", &table, to)
        }

        fn responses(&self, to: u32) -> Result<Vec<(u64, HandshakeResponse)>, Fault> {
            let table = self.tx.open_table(RESPONSES).map_err(fault)?;
            inbox("handshake_responses", &table, to)
        }

        fn network(&self, id: u16) -> Result<Option<Network>, Fault> {
            let table = self.tx.open_table(NETWORKS).map_err(fault)?;
            let row = table.get(id).map_err(fault)?;
            row.map(|bytes| decode("networks", bytes.value())).transpose()
        }

        fn networks(&self) -> Result<Vec<Network>, Fault> {
            let table = self.tx.open_table(NETWORKS).map_err(fault)?;
            let rows = table.iter().map_err(fault)?;
            rows.map(|row| decode("networks", row.map_err(fault)?.1.value())).collect()
        }

        fn next_network(&self) -> Result<u16, Fault> {
            let table = self.tx.open_table(META).map_err(fault)?;
            match table.get(meta::NEXT_NETWORK).map_err(fault)? {
                Some(next) => u16::try_from(next.value()).map_err(fault),
                // Behind those that came with an import.
                None => Ok(self.networks()?.iter().map(|network| network.id).max().unwrap_or(0).wrapping_add(1)),
            }
        }

        fn next_node(&self) -> Result<u32, Fault> {
            let table = self.tx.open_table(META).map_err(fault)?;
            let row = table.get(meta::NEXT_NODE).map_err(fault)?;
            let next = row.map(|next| next.value()).ok_or_else(|| Fault("no counter of node ids".into()))?;
            u32::try_from(next).map_err(fault)
        }
    };
}

fn inbox<T: DeserializeOwned>(
    what: &str,
    table: &impl ReadableTable<(u32, u64), &'static [u8]>,
    to: u32,
) -> Result<Vec<(u64, T)>, Fault> {
    let rows = table.range((to, 0)..=(to, u64::MAX)).map_err(fault)?;
    rows.map(|row| {
        let (key, value) = row.map_err(fault)?;
        Ok((key.value().1, decode(what, value.value())?))
    })
    .collect()
}

impl Reads for ReadTx<'_> {
    reads!();

    fn presence(&self, id: u32) -> Result<Option<Presence>, Fault> {
        Ok(self.mirror.get(id))
    }

    fn live_count(&self) -> Result<u64, Fault> {
        Ok(self.mirror.len())
    }
}

impl Reads for WriteTx<'_> {
    reads!();

    fn presence(&self, id: u32) -> Result<Option<Presence>, Fault> {
        Ok(match self.presence.get(&id) {
            Some(changed) => *changed,
            None => self.mirror.get(id),
        })
    }

    fn live_count(&self) -> Result<u64, Fault> {
        Ok(self.mirror.len())
    }
}

impl WriteTx<'_> {
    fn push<T: Serialize>(
        &mut self,
        table: TableDefinition<(u32, u64), &[u8]>,
        to: u32,
        value: &T,
    ) -> Result<(), Fault> {
        self.is_dirty = true;
        let bytes = encode(value)?;
        let mut meta = self.tx.open_table(META).map_err(fault)?;
        let sequence = meta.get(meta::NEXT_SEQUENCE).map_err(fault)?.map_or(0, |row| row.value());
        meta.insert(meta::NEXT_SEQUENCE, sequence + 1).map_err(fault)?;
        let mut table = self.tx.open_table(table).map_err(fault)?;
        table.insert((to, sequence), bytes.as_slice()).map_err(fault)?;
        Ok(())
    }

    fn pull(&mut self, table: TableDefinition<(u32, u64), &[u8]>, to: u32, sequence: u64) -> Result<(), Fault> {
        self.is_dirty = true;
        self.tx.open_table(table).map_err(fault)?.remove((to, sequence)).map_err(fault)?;
        Ok(())
    }

    /// Sets a counter or the format.
    pub(super) fn set_meta(&mut self, key: &str, value: u64) -> Result<(), Fault> {
        self.is_dirty = true;
        self.tx.open_table(META).map_err(fault)?.insert(key, value).map_err(fault)?;
        Ok(())
    }
}

impl Writes for WriteTx<'_> {
    fn put_node(&mut self, node: &Node) -> Result<(), Fault> {
        self.is_dirty = true;
        let bytes = encode(node)?;
        self.tx.open_table(NODES).map_err(fault)?.insert(node.id, bytes.as_slice()).map_err(fault)?;
        Ok(())
    }

    fn put_key(&mut self, key: &[u8; 32], id: u32) -> Result<(), Fault> {
        self.is_dirty = true;
        self.tx.open_table(KEYS).map_err(fault)?.insert(key, id).map_err(fault)?;
        Ok(())
    }

    fn remove_key(&mut self, key: &[u8; 32]) -> Result<(), Fault> {
        self.is_dirty = true;
        self.tx.open_table(KEYS).map_err(fault)?.remove(key).map_err(fault)?;
        Ok(())
    }

    fn put_hostname(&mut self, name: &str, id: u32) -> Result<(), Fault> {
        self.is_dirty = true;
        self.tx.open_table(HOSTNAMES).map_err(fault)?.insert(name, id).map_err(fault)?;
        Ok(())
    }

    fn remove_hostname(&mut self, name: &str) -> Result<(), Fault> {
        self.is_dirty = true;
        self.tx.open_table(HOSTNAMES).map_err(fault)?.remove(name).map_err(fault)?;
        Ok(())
    }

    fn put_presence(&mut self, id: u32, presence: Option<Presence>) -> Result<(), Fault> {
        self.is_dirty = true;
        let mut table = self.tx.open_table(LIVE).map_err(fault)?;
        match &presence {
            Some(p) => table.insert(id, presence_row(p)).map_err(fault)?,
            None => table.remove(id).map_err(fault)?,
        };
        self.presence.insert(id, presence);
        Ok(())
    }

    fn put_statement(&mut self, from: u32, to: u32, statement: Option<Statement>) -> Result<(), Fault> {
        self.is_dirty = true;
        let mut table = self.tx.open_table(STATEMENTS).map_err(fault)?;
        match statement {
            Some(Statement::Resolved) => table.insert((from, to), 1).map_err(fault)?,
            Some(Statement::Spoken) => table.insert((from, to), 2).map_err(fault)?,
            None => table.remove((from, to)).map_err(fault)?,
        };
        Ok(())
    }

    fn push_request(&mut self, to: u32, request: &HandshakeRequest) -> Result<(), Fault> {
        self.push(REQUESTS, to, request)
    }

    fn remove_request(&mut self, to: u32, sequence: u64) -> Result<(), Fault> {
        self.pull(REQUESTS, to, sequence)
    }

    fn push_response(&mut self, to: u32, response: &HandshakeResponse) -> Result<(), Fault> {
        self.push(RESPONSES, to, response)
    }

    fn remove_response(&mut self, to: u32, sequence: u64) -> Result<(), Fault> {
        self.pull(RESPONSES, to, sequence)
    }

    fn put_network(&mut self, network: &Network) -> Result<(), Fault> {
        self.is_dirty = true;
        let bytes = encode(network)?;
        self.tx.open_table(NETWORKS).map_err(fault)?.insert(network.id, bytes.as_slice()).map_err(fault)?;
        Ok(())
    }

    fn remove_network(&mut self, id: u16) -> Result<(), Fault> {
        self.is_dirty = true;
        self.tx.open_table(NETWORKS).map_err(fault)?.remove(id).map_err(fault)?;
        Ok(())
    }

    fn set_next_network(&mut self, id: u16) -> Result<(), Fault> {
        self.set_meta(meta::NEXT_NETWORK, u64::from(id))
    }

    fn set_next_node(&mut self, id: u32) -> Result<(), Fault> {
        self.set_meta(meta::NEXT_NODE, u64::from(id))
    }
}
