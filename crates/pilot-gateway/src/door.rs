//! Who is let in, and how many at once.
//!
//! A connection gets a place only once it is known that its owner may have one: another user of this host must not be able
//! to take them all. Those who may not are told so in a few places of their own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pilot_env::Env;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::dial::{Cause, Refusal};

/// Connections whose owner is being looked up. Further ones wait in the queue of their listener: it takes milliseconds.
const LOOKUPS: usize = 16;
/// Connections of those who may not use the gateway, while they are told so. Further ones are reset.
const STRANGERS: usize = 32;
/// Shortest time between two lines about connections that were turned away.
const LINE_PAUSE: Duration = Duration::from_secs(1);

/// Lets a line pass now and then.
#[derive(Default)]
pub(crate) struct Throttle(Mutex<(Option<Instant>, u64)>);

impl Throttle {
    /// How many were held back since the last line, when it is time for another.
    pub(crate) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock();
        if state.0.is_some_and(|last| now.saturating_duration_since(last) < LINE_PAUSE) {
            state.1 += 1;
            return None;
        }
        state.0 = Some(now);
        Some(std::mem::take(&mut state.1))
    }
}

/// Decides about connections.
pub(crate) struct Doorman {
    env: Env,
    allow_remote: bool,
    allow_users: bool,
    users: BTreeSet<u32>,
    /// For the message.
    user: u32,
    max_connections: usize,
    places: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    turned_away: AtomicU64,
    lines: Throttle,
}

/// What the doorman says to a connection.
pub(crate) struct Entry {
    pub(crate) permission: Result<(), Refusal>,
    /// Given back when the connection ends.
    pub(crate) place: OwnedSemaphorePermit,
}

impl Doorman {
    pub(crate) fn new(env: Env, users: &[u32], (allow_remote, allow_users): (bool, bool), places: usize) -> Self {
        Self {
            env,
            allow_remote,
            allow_users,
            user: users.first().copied().unwrap_or(0),
            users: users.iter().copied().collect(),
            max_connections: places,
            places: Arc::new(Semaphore::new(places)),
            lookups: Arc::new(Semaphore::new(LOOKUPS)),
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            turned_away: AtomicU64::new(0),
            lines: Throttle::default(),
        }
    }

    /// Connections that have a place.
    pub(crate) fn connections(&self) -> usize {
        self.max_connections.saturating_sub(self.places.available_permits())
    }

    pub(crate) fn turned_away(&self) -> u64 {
        self.turned_away.load(Ordering::Relaxed)
    }

    /// A turn to be looked at. Wait for it before a further connection is accepted.
    pub(crate) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.lookups).acquire_owned().await.ok()
    }

    /// Whether the connection of `peer` to our address `own` may come in.
    ///
    /// # Errors
    /// Why it is turned away at once.
    pub(crate) async fn admit(
        &self,
        (peer, own): (SocketAddr, SocketAddr),
        turn: OwnedSemaphorePermit,
    ) -> Result<Entry, String> {
        let local = is_local(peer, own);
        if !local && !self.allow_remote {
            return Err(self.turn_away(peer, format!("{peer} is another machine; --allow-remote would let it in")));
        }
        let permission = if self.allow_users || !local { Ok(()) } else { self.permission(peer, own).await };
        drop(turn);
        let (semaphore, what, most) = match &permission {
            Ok(()) => (&self.places, "connections are open", self.max_connections),
            Err(_) => (&self.strangers, "connections of users who may not use this gateway are open", STRANGERS),
        };
        match Arc::clone(semaphore).try_acquire_owned() {
            Ok(place) => Ok(Entry { permission, place }),
            Err(_) => Err(self.turn_away(peer, format!("{most} {what}, which is the limit"))),
        }
    }

    fn turn_away(&self, peer: SocketAddr, why: String) -> String {
        self.turned_away.fetch_add(1, Ordering::Relaxed);
        // Whoever is turned away could fill a disk with lines about it.
        if let Some(others) = self.lines.pass(self.env.now()) {
            tracing::warn!(%peer, why, others, "a connection was turned away");
        }
        why
    }

    /// Whether the owner of a connection may use the gateway: the daemon behind it serves its own user only.
    async fn permission(&self, peer: SocketAddr, own: SocketAddr) -> Result<(), Refusal> {
        let env = self.env.clone();
        let owner = tokio::task::spawn_blocking(move || env.tcp_user(peer, own)).await;
        let whose = match owner {
            Ok(Ok(Some(user))) if user == 0 || self.users.contains(&user) => return Ok(()),
            Ok(Ok(Some(user))) => format!("the connection belongs to user {user}"),
            Ok(Ok(None)) => "the system does not tell whose the connection is".to_owned(),
            Ok(Err(error)) => format!("the system does not tell whose the connection is: {error}"),
            Err(_) => "the gateway is stopping".to_owned(),
        };
        Err(Refusal::new(
            Cause::Forbidden,
            format!("{whose}, and this gateway serves user {} only", self.user),
            "start it with --allow-users to let every user of this host in",
        ))
    }
}

/// Whether a connection comes from this host: from a loopback address, or from the very address it goes to, as the kernel
/// chooses for an address of our own. (Linux takes packets for every own address from every interface.)
fn is_local(peer: SocketAddr, own: SocketAddr) -> bool {
    peer.ip().is_loopback() || peer.ip() == own.ip()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_is_local() {
        let is = |peer: &str, own: &str| is_local(peer.parse().unwrap(), own.parse().unwrap());
        assert!(is("127.0.0.1:5", "127.4.0.1:80") && is("10.4.0.1:5", "10.4.0.1:80") && is("[::1]:5", "[::1]:80"));
        assert!(!is("10.4.0.2:5", "10.4.0.1:80") && !is("192.0.2.7:5", "127.0.0.1:80"));
    }

    #[test]
    fn one_line_a_second_says_how_many_it_stands_for() {
        let (throttle, start) = (Throttle::default(), Env::simulated(1).now());
        assert_eq!(throttle.pass(start), Some(0));
        for ms in 1..100 {
            assert_eq!(throttle.pass(start + Duration::from_millis(ms * 10)), None);
        }
        assert_eq!(throttle.pass(start + LINE_PAUSE), Some(99));
        assert_eq!(throttle.pass(start + 3 * LINE_PAUSE), Some(0));
    }

    /// A connection from this host.
    fn connection() -> (SocketAddr, SocketAddr) {
        (([127, 0, 0, 1], 5000).into(), ([127, 0, 0, 1], 1080).into())
    }

    #[tokio::test]
    async fn strangers_take_no_places_and_only_a_few_of_their_own() {
        let env = Env::simulated(1);
        let doorman = Doorman::new(env.clone(), &[env.user_id() + 1], (false, false), 2);
        let mut entries = Vec::new();
        for _ in 0..STRANGERS {
            let turn = doorman.turn().await.unwrap();
            let entry = doorman.admit(connection(), turn).await.unwrap();
            assert_eq!(entry.permission.as_ref().unwrap_err().cause, Cause::Forbidden);
            entries.push(entry);
        }
        let turn = doorman.turn().await.unwrap();
        assert!(doorman.admit(connection(), turn).await.is_err());
        assert_eq!((doorman.connections(), doorman.turned_away()), (0, 1));
        entries.clear();
        let turn = doorman.turn().await.unwrap();
        assert!(doorman.admit(connection(), turn).await.is_ok());

        // Those who may have the places, and no more than there are.
        let doorman = Doorman::new(env.clone(), &[env.user_id()], (false, false), 2);
        for _ in 0..2 {
            let turn = doorman.turn().await.unwrap();
            let entry = doorman.admit(connection(), turn).await.unwrap();
            assert_eq!(entry.permission, Ok(()));
            entries.push(entry);
        }
        let turn = doorman.turn().await.unwrap();
        let why = doorman.admit(connection(), turn).await.err().unwrap();
        assert_eq!((doorman.connections(), why), (2, "2 connections are open, which is the limit".to_owned()));
    }
}
