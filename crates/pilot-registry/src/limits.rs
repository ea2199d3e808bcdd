//! Every limit of the registry: unit, default, reason, section of the specification.

use std::time::Duration;

/// Silence after which a node is no longer live (04 §2). Heartbeats come every 30 to 65 s.
pub const STALE_AFTER: Duration = Duration::from_secs(180);
/// How often silent nodes are looked for (04 §2).
pub const REAP_EVERY: Duration = Duration::from_secs(60);
/// How often last-seen times are written to the store. They are no promise: after a crash every node that was live has
/// [`STALE_AFTER`] to show itself again.
pub const FLUSH_EVERY: Duration = Duration::from_secs(60);
/// How long the name of a departed node is kept for it (04 §24.13). A week outlasts holidays and repairs; a name nobody
/// comes back for is free again after it.
pub const HOSTNAME_GRACE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Handshake requests waiting for one node (04 §2).
pub const MAX_REQUESTS: usize = 100;
/// Handshake responses waiting for one node; the oldest makes room (04 §24.22).
pub const MAX_RESPONSES: usize = 200;
/// Justification kept of a handshake request, in bytes; longer ones are cut (04 §24.22).
pub const MAX_JUSTIFICATION: usize = 4096;
/// Bytes of handshake entries in one poll reply as JSON; the rest waits for the next poll (04 §24.23). A reply must stay
/// below 2^20 bytes.
pub const POLL_BYTES: usize = 900 * 1024;
/// Statements one node may make about others. Statements by resolving are dropped silently above it, others refused.
pub const MAX_STATEMENTS: u32 = 20_000;
/// Owner text kept, in bytes; longer ones are cut.
pub const MAX_OWNER: usize = 256;
/// Version text kept, in bytes; longer ones are cut.
pub const MAX_VERSION: usize = 64;
/// Identities in one store. Ids are 32 bits wide; this leaves room and keeps a flood from using them up.
pub const MAX_IDENTITIES: u64 = 100_000_000;
/// Largest magnitude of a polo score (04 §24.7).
pub const MAX_SCORE: i64 = 1_000_000_000;
/// Networks besides network 0. A list of all of them must fit one answer below 2^20 bytes, and newer daemons ask for it
/// every five minutes.
pub const MAX_NETWORKS: usize = 4096;
/// Networks that one node owns by its own command.
pub const MAX_OWNED: usize = 16;
/// Networks besides 0 that one node is in.
pub const MAX_NETWORKS_OF_NODE: usize = 64;
/// Members of one network; its policy can set less.
pub const MAX_MEMBERS: usize = 2000;
/// Bytes of members in one answer as JSON; what does not fit is left out, and said so.
pub const MEMBERS_BYTES: usize = 900 * 1024;
/// Invitations that wait for one node.
pub const MAX_INVITES: usize = 100;
/// Unanswered invitations of one network.
pub const MAX_INVITED: usize = 256;
/// How long an invitation waits for its answer.
pub const INVITE_LIFE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Join token, in bytes.
pub const MAX_TOKEN: usize = 256;
/// Ports in a policy. None means all.
pub const MAX_PORTS: usize = 64;
/// Description in a policy, in bytes.
pub const MAX_DESCRIPTION: usize = 512;
/// How far the time in a signed command may be from the registry's.
pub const COMMAND_LIFE: Duration = Duration::from_secs(300);
/// Signed commands of one node that are remembered, so that nobody gives them again; older ones are refused.
pub const COMMANDS_OF_NODE: usize = 64;
/// Nodes whose signed commands are remembered; what is older than the newest of a forgotten one is refused.
pub const COMMAND_NODES: usize = 8192;
/// Beacons listed at the same time (04 §24.11).
pub const MAX_BEACONS: usize = 256;
/// How long a beacon stays listed without refresh (04 §2).
pub const BEACON_TTL: Duration = Duration::from_secs(60);
/// Writes waiting for the disk. Above it a request is answered with `busy`.
pub const MAX_QUEUE: usize = 65_536;
/// Writes that share one sync.
pub const MAX_BATCH: usize = 1024;
/// Memory that the store uses to cache pages of the file, in bytes.
pub const CACHE_BYTES: usize = 64 << 20;

/// A complete message must arrive within this time of the previous one (04 §2).
pub const READ_TIMEOUT: Duration = Duration::from_secs(300);
/// A reply must be taken within this time (04 §24.24).
pub const WRITE_TIMEOUT: Duration = Duration::from_secs(20);
/// A TLS handshake must be complete within this time.
pub const TLS_TIMEOUT: Duration = Duration::from_secs(15);
/// Replies to pipelined requests are gathered up to this many bytes before they are written.
pub const GATHER_BYTES: usize = 64 * 1024;
/// Messages up to this many bytes are received without asking for room. Real ones have a few hundred.
pub const SMALL_MESSAGE: usize = 16 * 1024;
/// Bytes that larger messages may take together while they arrive; further ones wait for room.
pub const LARGE_BYTES: usize = 128 << 20;
/// Node keys one connection can have proved; the oldest is forgotten first. A daemon has one.
pub const MAX_PROVED: usize = 256;
/// Provisional registrations one connection can hold; the oldest is forgotten first.
pub const MAX_PROVISIONAL: usize = 64;
/// Sources the rate limiters keep apart. Above it new sources share one bucket.
pub const MAX_SOURCES: usize = 100_000;
/// Pause after a failed accept (out of file descriptors, say) (04 §24.25).
pub const ACCEPT_BACKOFF: Duration = Duration::from_millis(200);

/// Cuts a text to at most `max` bytes at a character boundary.
pub fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
