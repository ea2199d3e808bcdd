//! Every limit of the beacon: unit, default, reason, section of the specification.

use std::time::Duration;

/// A node that was not heard for this long is not delivered to any more (01 W29, 07 §8.1).
pub const NODE_TTL: Duration = Duration::from_secs(600);
/// A node that was not heard for this long is not gossiped any more, and what a silent peer beacon gossiped is forgotten
/// (01 W29).
pub const GOSSIP_TTL: Duration = Duration::from_secs(120);
/// Until it was silent for this long, a node's entry is not taken over by another IP (01 W9). Official daemons refresh
/// every 30 to 65 s.
pub const TAKEOVER_AFTER: Duration = Duration::from_secs(70);
/// How often the nodes held are gossiped to peer beacons (01 §17.1).
pub const SYNC_EVERY: Duration = Duration::from_secs(10);
/// How often expired entries are removed.
pub const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// Nodes held (07 §8.1). Further ones get a reply, but nothing is relayed to them.
pub const MAX_NODES: usize = 500_000;
/// Nodes known through peer beacons.
pub const MAX_REMOTE: usize = 500_000;
/// Ids of one Sync: what fits an IPv4 datagram (01 §17.1).
pub const MAX_SYNC: usize = 16_375;
/// Sources told apart by the limiter; further ones share one allowance.
pub const MAX_SOURCES: usize = 100_000;
/// Discover and punch messages of one source IP: per second, and at once. Many daemons may share a NAT.
pub const CONTROL_RATE: (f64, f64) = (1000.0, 2000.0);
/// Frames relayed for one node: per second, and at once. Newer official beacons allow 4,000 (07 §8.1); this carries about
/// 11 MB/s.
pub const RELAY_RATE: (f64, f64) = (10_000.0, 10_000.0);
/// Punch commands and notifications sent to one node: per second, and at once. A dial asks for a few.
pub const POKE_RATE: (f64, f64) = (20.0, 50.0);
/// Bytes of a datagram up to which several leave in one system call: what an IPv4 packet of 1,500 bytes carries. Larger ones
/// leave as IP fragments, which the kernel does not batch.
pub const MAX_BATCHED: usize = 1_472;
