//! The store on disk: what was answered survives, what is damaged is refused, and the rules hold whatever is asked in
//! whatever order.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use common::key;
use pilot_env::{Env, RawFile};
use pilot_registry::domain::{Authority, Change, NewNetwork, Proof, Register, Resolved};
use pilot_registry::model::JoinRule;
use pilot_registry::{OpenError, RedbStore, Refusal, Store};
use proptest::prelude::*;

const NOW: u64 = 1_800_000_000;
const SOURCE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 1));
const NAMES: [&str; 4] = ["", "a", "b", "c"];
/// Keys and ids that the commands are about.
const KEYS: u8 = 6;

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(future)
}

fn registration(seed: u8, name: &str, is_proved: bool) -> Register {
    Register {
        key: key(seed),
        owner: String::new(),
        hostname: name.to_owned(),
        endpoint: Some(format!("203.0.113.{seed}:4000")),
        version: "1.0".to_owned(),
        relay_only: false,
        source: SOURCE,
        is_proved,
    }
}

/// One command: what, by whom, about whom, how.
type Command = (u8, u8, u8, bool);

fn commands(count: usize) -> impl Strategy<Value = Vec<Command>> {
    prop::collection::vec((0u8..18, 1..=KEYS, 1..=KEYS, any::<bool>()), 1..count)
}

/// The proof that key `seed` speaks for the node it belongs to now.
async fn proof(store: &RedbStore, seed: u8) -> Option<Proof> {
    let node = store.node_of_key(&key(seed)).await.unwrap()?;
    Some(Proof { node, key: key(seed), source: SOURCE })
}

async fn run(store: &RedbStore, at: u64, (what, who, other, flag): Command) -> Result<(), Refusal> {
    let name = NAMES[usize::from(other) % NAMES.len()];
    if what <= 2 {
        return store.register(at, registration(who, name, flag)).await.map(|_| ());
    }
    let Some(proof) = proof(store, who).await else { return Ok(()) };
    let peer = store.node_of_key(&key(other)).await.unwrap_or_default().unwrap_or(99);
    match what {
        3 => store.deregister(at, proof.node, Some(proof)).await.map(|_| ()),
        4 => store.set_hostname(at, proof, name.to_owned()).await,
        5 => store.set_visibility(proof, flag).await,
        6 => store.report_trust(proof, peer).await,
        7 => store.revoke_trust(proof, peer).await,
        8 => store.request_handshake(at, proof, peer, "hello".to_owned()).await,
        9 => store.respond_handshake(at, proof, peer, flag).await,
        10 if flag => store.poll_handshakes(proof).await.map(|_| ()),
        10 => {
            store.resolve(proof, peer).await?;
            // A statement that changes no answer is written behind it; this waits for it.
            store.flush().await
        }
        11 => store.update_polo_score(proof.node, i64::from(other)).await.map(|_| ()),
        _ => run_network(store, at, proof, peer, (what, other, flag)).await,
    }
}

/// A command about a network: the ids are small, so that they meet.
async fn run_network(
    store: &RedbStore,
    at: u64,
    proof: Proof,
    peer: u32,
    (what, other, flag): (u8, u8, bool),
) -> Result<(), Refusal> {
    let network = u16::from(other) % 3 + 1;
    match what {
        12 => {
            let rule = if flag { JoinRule::Open } else { JoinRule::Invite };
            let new = NewNetwork { name: format!("n{other}"), rule, token: String::new() };
            store.create_network(at, Authority::Node(proof), new).await.map(drop)
        }
        13 => store.join_network(at, proof, network, String::new()).await,
        14 if flag => store.leave_network(proof, network).await,
        14 => store.invite(at, proof, network, peer).await,
        15 => store.respond_invite(at, proof, network, flag).await,
        _ => {
            let change = match (what, flag) {
                (16, true) => Change::Kick(peer),
                (16, false) => Change::Promote(peer),
                (_, true) => Change::Transfer(peer),
                (_, false) => Change::Delete,
            };
            store.change_network(Authority::Node(proof), network, change).await.map(drop)
        }
    }
}

/// What a node says of its networks is what the networks say of it, and roles belong to members.
async fn check_networks(store: &RedbStore) {
    let mut seen: BTreeSet<(u32, u16)> = BTreeSet::new();
    let mut invited: BTreeSet<(u32, u16)> = BTreeSet::new();
    for (network, count) in store.list_networks().await.unwrap() {
        if network.id == 0 {
            continue;
        }
        let unique: BTreeSet<u32> = network.members.iter().copied().collect();
        assert_eq!((unique.len(), unique.len() as u64), (network.members.len(), count), "{network:?}");
        assert!(network.owner == 0 || unique.contains(&network.owner), "{network:?}");
        assert!(network.admins.iter().all(|id| unique.contains(id) && *id != network.owner), "{network:?}");
        assert!(network.invited.iter().all(|id| !unique.contains(id)), "{network:?}");
        seen.extend(unique.iter().map(|id| (*id, network.id)));
        invited.extend(network.invited.iter().map(|id| (*id, network.id)));
    }
    for id in 1..=u32::from(KEYS) {
        // Departed nodes cannot be looked up; their memberships show when they are listed.
        let Ok(node) = store.lookup(id).await else { continue };
        let own: BTreeSet<(u32, u16)> = node.networks.iter().flatten().filter(|n| **n != 0).map(|n| (id, *n)).collect();
        assert_eq!(own, seen.iter().copied().filter(|(who, _)| *who == id).collect(), "{node:?}");
        let waiting: BTreeSet<(u32, u16)> = node.invites.iter().map(|invite| (id, invite.network)).collect();
        assert_eq!(waiting, invited.iter().copied().filter(|(who, _)| *who == id).collect(), "{node:?}");
    }
}

/// Everything that can be seen of the store.
async fn observe(store: &RedbStore) -> BTreeMap<String, String> {
    let mut seen = BTreeMap::new();
    for seed in 1..=KEYS {
        seen.insert(format!("key {seed}"), format!("{:?}", store.node_of_key(&key(seed)).await.unwrap()));
        seen.insert(format!("node {seed}"), format!("{:?}", store.lookup(u32::from(seed)).await));
        for peer in 1..=KEYS {
            let trust = store.check_trust(u32::from(seed), u32::from(peer)).await.unwrap();
            seen.insert(format!("trust {seed} {peer}"), trust.to_string());
        }
    }
    seen.insert("networks".to_owned(), format!("{:?}", store.list_networks().await.unwrap()));
    for name in NAMES {
        seen.insert(format!("name {name}"), format!("{:?}", store.resolve_hostname(name).await.map(|n| n.id)));
    }
    seen
}

/// A file that dies after some operations, as in a power cut: what was written before and not synced is uncertain.
struct Dying {
    file: Box<dyn RawFile>,
    left: Arc<AtomicI64>,
}

impl Dying {
    fn step(&self) -> io::Result<()> {
        if self.left.fetch_sub(1, Ordering::SeqCst) > 0 { Ok(()) } else { Err(io::Error::other("power cut")) }
    }
}

impl RawFile for Dying {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(offset, buf)
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.step()?;
        self.file.write_at(offset, data)
    }
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.step()?;
        self.file.set_len(len)
    }
    fn sync(&self) -> io::Result<()> {
        self.step()?;
        self.file.sync()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// A power cut at any moment loses nothing that was answered, and leaves the command in hand whole or undone.
    #[test]
    fn what_was_answered_survives_a_power_cut(seed: u64, steps in 1i64..400, list in commands(60)) {
        block_on(async {
            let env = Env::simulated(seed);
            let path = Path::new("/var/registry.redb");
            drop(RedbStore::open(&env, path, NOW, None).unwrap());
            let twin = RedbStore::in_memory(NOW, None).unwrap();

            let left = Arc::new(AtomicI64::new(i64::MAX));
            let file = Dying { file: env.fs().open(path).unwrap(), left: left.clone() };
            let store = RedbStore::open_file(path, Box::new(file), NOW).unwrap();
            left.store(steps, Ordering::SeqCst);
            let mut allowed = vec![observe(&store).await];
            for command in list {
                let outcome = run(&store, NOW, command).await;
                let expected = run(&twin, NOW, command).await;
                let now = observe(&twin).await;
                if let Err(Refusal::Internal(_)) = outcome {
                    allowed.push(now);
                    break;
                }
                assert_eq!(outcome, expected, "{command:?}");
                allowed = vec![now];
            }
            // The machine stops here: nothing is closed in order.
            std::mem::forget(store);
            env.sim().unwrap().crash_disk();
            let store = RedbStore::open(&env, path, NOW, None).unwrap();
            let found = observe(&store).await;
            assert!(allowed.contains(&found), "found {found:#?}\nallowed {allowed:#?}");
        });
    }

    /// One key keeps one address, a name has one holder, trust takes two, both sides of a membership agree, and restarts
    /// change nothing.
    #[test]
    fn the_rules_hold_in_any_order(list in commands(120)) {
        block_on(async {
            let env = Env::simulated(1);
            let path = Path::new("registry.redb");
            let mut store = RedbStore::open(&env, path, NOW, None).unwrap();
            let mut addresses: BTreeMap<u8, u32> = BTreeMap::new();
            let mut said: BTreeSet<(u32, u32)> = BTreeSet::new();
            for (i, command) in list.into_iter().enumerate() {
                let at = NOW + i as u64;
                let (what, who, other, flag) = command;
                let ids = (addresses.get(&who).copied(), addresses.get(&other).copied());
                let before = observe(&store).await;
                let outcome = run(&store, at, command).await;
                if let (Err(refusal), false) = (&outcome, what == 10) {
                    assert!(!matches!(refusal, Refusal::Internal(_)), "{refusal}");
                    assert_eq!(before, observe(&store).await, "a refused command changes nothing: {command:?}");
                }
                for seed in 1..=KEYS {
                    if let Some(id) = store.node_of_key(&key(seed)).await.unwrap() {
                        assert_eq!(*addresses.entry(seed).or_insert(id), id, "key {seed} keeps its address");
                    } else {
                        assert!(!addresses.contains_key(&seed), "a key is never forgotten");
                    }
                }
                if let (Ok(()), (Some(a), Some(b))) = (&outcome, ids) {
                    match what {
                        6 | 8 => { said.insert((a, b)); }
                        9 if flag => { said.insert((a, b)); }
                        10 if !flag && a != b => { said.insert((a, b)); }
                        7 => { said.remove(&(a, b)); said.remove(&(b, a)); }
                        _ => {}
                    }
                }
                let ids: BTreeSet<u32> = addresses.values().copied().collect();
                assert_eq!(ids.len(), addresses.len(), "no two keys share an address");
                for a in &ids {
                    for b in &ids {
                        let both = said.contains(&(*a, *b)) && said.contains(&(*b, *a));
                        let share = match (store.lookup(*a).await, store.lookup(*b).await) {
                            (Ok(a), Ok(b)) => a.shares_network(&b),
                            _ => false,
                        };
                        let expected = both || share;
                        assert_eq!(store.check_trust(*a, *b).await.unwrap(), expected, "{a} {b}");
                    }
                    if let Ok(node) = store.lookup(*a).await
                        && !node.hostname.is_empty()
                    {
                        assert_eq!(store.resolve_hostname(&node.hostname).await.unwrap().id, *a, "a name has one holder");
                    }
                }
                check_networks(&store).await;
                if i % 40 == 39 {
                    let before = observe(&store).await;
                    store.flush().await.unwrap();
                    drop(store);
                    store = RedbStore::open(&env, path, at, None).unwrap();
                    assert_eq!(before, observe(&store).await, "a restart changes nothing");
                }
            }
        });
    }
}

fn open_error(env: &Env, path: &Path) -> OpenError {
    RedbStore::open(env, path, NOW, None).err().expect("the store opened")
}

#[test]
fn what_is_no_store_is_refused_and_left_alone() {
    block_on(async {
        let env = Env::simulated(1);
        let path = Path::new("/data/registry.redb");
        env.fs().create_dir_all(path.parent().unwrap(), 0o700).unwrap();
        let cases: [(&[u8], &str); 5] = [
            (b"", "store_corrupt"),
            (b"this is not a store", "store_corrupt"),
            (&[0x5A; 8192], "store_corrupt"),
            (b"redb\x1A\x0A\xA9\x0D\x0A and nothing else", "store_corrupt"),
            (b" {\"next_node\":5}", "store_is_snapshot"),
        ];
        for (content, code) in cases {
            env.fs().write_atomic(path, content, 0o600).unwrap();
            let error = open_error(&env, path);
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains("/data/registry.redb"), "{error}");
            assert_eq!(env.fs().read(path).unwrap(), content);
        }
    });
}

#[test]
fn a_store_is_used_by_one_process_at_a_time() {
    block_on(async {
        let env = Env::simulated(1);
        let path = Path::new("/data/registry.redb");
        let first = RedbStore::open(&env, path, NOW, None).unwrap();
        assert_eq!(open_error(&env, path).code(), "store_locked");
        drop(first);
        RedbStore::open(&env, path, NOW, None).unwrap();
    });
}

#[test]
fn a_crash_while_a_store_is_made_leaves_none_or_a_whole_one() {
    for seed in 0..200 {
        block_on(async {
            let env = Env::simulated(seed);
            let path = Path::new("/data/registry.redb");
            std::mem::forget(RedbStore::open(&env, path, NOW, None).unwrap());
            env.sim().unwrap().crash_disk();
            let store = RedbStore::open(&env, path, NOW, None).unwrap();
            assert_eq!(store.node_of_key(&key(1)).await.unwrap(), None);
        });
    }
}

#[test]
fn a_damaged_store_is_refused_or_harmless() {
    block_on(async {
        let env = Env::simulated(1);
        let path = Path::new("/registry.redb");
        let store = RedbStore::open(&env, path, NOW, None).unwrap();
        for seed in 1..=40 {
            store.register(NOW, registration(seed, "", true)).await.unwrap();
        }
        drop(store);
        let whole = env.fs().read(path).unwrap();
        let mut refused = 0;
        // Cut short.
        for len in [10, 100, 4096, whole.len() / 2, whole.len() - 4096] {
            env.fs().write_atomic(path, &whole[..len], 0o600).unwrap();
            let error = open_error(&env, path);
            assert_eq!(error.code(), "store_corrupt", "cut to {len}: {error}");
            assert!(env.fs().read(path).unwrap() == whole[..len], "cut to {len}: a refused file was changed");
        }
        // A page overwritten: the store is refused, or it opens with its content. A damaged page of the very last commit
        // looks like a torn write, so that one commit may be taken back.
        let used = whole.chunks(4096).enumerate().filter(|(_, page)| page.iter().any(|b| *b != 0));
        let used: Vec<usize> = used.map(|(i, _)| i).collect();
        for page in used.iter().copied().take(60) {
            let mut damaged = whole.clone();
            damaged[page * 4096..(page + 1) * 4096].fill(0xA5);
            env.fs().write_atomic(path, &damaged, 0o600).unwrap();
            match RedbStore::open(&env, path, NOW, None) {
                Err(error) => {
                    refused += 1;
                    assert_eq!(error.code(), "store_corrupt", "page {page}: {error}");
                    assert!(env.fs().read(path).unwrap() == damaged, "page {page}: a refused file was changed");
                }
                Ok(store) => {
                    for seed in 1..=39 {
                        let id = store.node_of_key(&key(seed)).await;
                        assert_eq!(id, Ok(Some(u32::from(seed))), "page {page}");
                    }
                }
            }
        }
        assert!(refused > 0);
        // A single bit, anywhere: noticed, or where nothing is kept.
        let clean = {
            env.fs().write_atomic(path, &whole, 0o600).unwrap();
            observe(&RedbStore::open(&env, path, NOW, None).unwrap()).await
        };
        let mut at = 0;
        while at < whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1 << (at % 8);
            env.fs().write_atomic(path, &damaged, 0o600).unwrap();
            match RedbStore::open(&env, path, NOW, None) {
                Err(error) => {
                    assert_eq!(error.code(), "store_corrupt", "bit at {at}: {error}");
                    assert!(env.fs().read(path).unwrap() == damaged, "bit at {at}: a refused file was changed");
                }
                Ok(store) => assert_eq!(observe(&store).await, clean, "bit at {at}"),
            }
            at += if damaged[at] == 1 << (at % 8) { 4099 } else { 97 };
        }
        env.fs().write_atomic(path, &whole, 0o600).unwrap();
        RedbStore::open(&env, path, NOW, None).unwrap();
    });
}

#[tokio::test]
async fn a_store_on_the_real_disk_is_private_and_keeps_its_content() {
    let env = Env::real();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/registry.redb");
    let store = RedbStore::open(&env, &path, NOW, None).unwrap();
    for seed in 1..=3 {
        assert_eq!(store.register(NOW, registration(seed, "", true)).await.unwrap().node, u32::from(seed));
    }
    drop(store);
    assert_eq!(env.fs().metadata(&path).unwrap().mode & 0o777, 0o600);
    let store = RedbStore::open(&env, &path, NOW, None).unwrap();
    assert_eq!(store.lookup(3).await.unwrap().public_key, key(3));
    assert_eq!(store.register(NOW, registration(4, "", true)).await.unwrap().node, 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_made_at_once_share_syncs_and_all_count() {
    let env = Env::real();
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&env, &dir.path().join("r.redb"), NOW, None).unwrap();
    let tasks: Vec<_> = (1..=200u8)
        .map(|seed| {
            let store = store.clone();
            tokio::spawn(async move { store.register(NOW, registration(seed, "", true)).await.unwrap().node })
        })
        .collect();
    let mut ids = BTreeSet::new();
    for task in tasks {
        ids.insert(task.await.unwrap());
    }
    assert_eq!(ids, (1..=200).collect());
    assert_eq!(store.live_count(), 200);
}

#[tokio::test]
async fn asking_for_a_public_endpoint_is_remembered_without_waiting() {
    let store = RedbStore::in_memory(NOW, None).unwrap();
    for seed in 1..=2 {
        store.register(NOW, registration(seed, "", true)).await.unwrap();
    }
    let (a, b) = (proof(&store, 1).await.unwrap(), proof(&store, 2).await.unwrap());
    store.set_visibility(b, true).await.unwrap();
    assert!(matches!(store.resolve(a, 2).await.unwrap(), Resolved::Shown(_)));
    // Node 1 has spoken about node 2; now node 2 asks back.
    assert!(matches!(store.resolve(b, 1).await.unwrap(), Resolved::Shown(_)));
    assert!(store.check_trust(1, 2).await.unwrap());
}
