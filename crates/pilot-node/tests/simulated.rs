//! The same nodes on a simulated network: virtual time, loss, delay and reordering, power cuts, all from one seed.

use std::path::PathBuf;
use std::time::Duration;

use pilot_env::{Env, NetConditions, World};
use pilot_node::{Node, NodeConfig};
use pilot_rendezvous::{Rendezvous, RendezvousConfig};
use pilot_wire::{Address, SocketAddress};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Longest wait for anything, in virtual time.
const PATIENCE: Duration = Duration::from_secs(300);

async fn patient<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.expect("took too long")
}

async fn rendezvous(env: Env) -> Rendezvous {
    let mut config = RendezvousConfig::loopback();
    config.registry_addr = "0.0.0.0:9000".parse().unwrap();
    config.beacon_addr = "0.0.0.0:9001".parse().unwrap();
    Rendezvous::start(env, config).await.unwrap()
}

async fn node(env: &Env) -> Node {
    let config = NodeConfig {
        registry: "10.0.0.1:9000".to_owned(),
        beacon: Some("10.0.0.1:9001".to_owned()),
        listen: "0.0.0.0:4000".parse().unwrap(),
        identity: Some(PathBuf::from("/home/pilot/identity.json")),
        ..NodeConfig::default()
    };
    patient(Node::start(env.clone(), config)).await.unwrap()
}

async fn befriend(a: &Node, b: &Node) {
    let (one, other) = (a.address().node, b.address().node);
    patient(a.trust().request(other, "simulated".to_owned())).await.unwrap();
    patient(async {
        while !b.trust().pending().iter().any(|request| request["node_id"] == one) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    patient(b.trust().approve(one)).await.unwrap();
    assert!(a.trust().wait(other, PATIENCE).await);
}

/// Seeds of one run; each takes a fraction of a second of real time.
const SEEDS: u64 = 24;

#[test]
fn a_transfer_survives_loss_reordering_and_a_power_cut_keeps_what_was_promised() {
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().start_paused(true).build().unwrap().block_on(transfer_and_power_cut(seed));
    }
}

async fn transfer_and_power_cut(seed: u64) {
    let world = World::new(seed);
    let host = |n: u8| world.host([10, 0, 0, n].into());
    let (server, alice, bob) = (host(1), host(2), host(3));
    let _rendezvous = rendezvous(server).await;
    let (a, b) = (node(&alice).await, node(&bob).await);
    befriend(&a, &b).await;
    world.set_conditions(NetConditions {
        latency: Duration::from_millis(15),
        jitter: Duration::from_millis(5),
        loss: 0.02,
        duplicate: 0.01,
        corrupt: 0.01,
        ..NetConditions::default()
    });
    let echo = SocketAddress::new(Address::backbone(b.address().node), 7);
    let stream = patient(a.dial(echo)).await.unwrap();
    let data: Vec<u8> = (0..300_000u32).map(|i| (i / 3) as u8).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let mut back = Vec::new();
    let send = async {
        write.write_all(&data).await.unwrap();
        write.shutdown().await.unwrap();
    };
    patient(async { tokio::join!(send, async { read.read_to_end(&mut back).await.unwrap() }) }).await;
    assert!(back == data);
    drop((read, write));

    // Bob loses power. The approval was acknowledged, so it is on his disk; and he is still himself.
    let (id, key) = (b.address(), b.public_key());
    drop(b);
    tokio::time::sleep(Duration::from_secs(1)).await;
    bob.sim().unwrap().crash_disk();
    let b = node(&bob).await;
    patient(b.registered()).await;
    assert_eq!((b.address(), b.public_key()), (id, key));
    assert!(b.trust().is_trusted(a.address().node), "an acknowledged approval was forgotten");
}

fn in_virtual_time(work: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_all().start_paused(true).build().unwrap().block_on(work);
}

#[test]
fn a_request_fetched_from_the_registry_survives_a_power_cut() {
    // 07 §16 item 42: the registry hands a message out once, so it is on disk before anybody hears of it.
    in_virtual_time(async {
        let world = World::new(42);
        let (server, one, two) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into(), [10, 0, 0, 3].into());
        let _rendezvous = rendezvous(world.host(server)).await;
        let (alice, bob) = (world.host(one), world.host(two));
        // There is no way but the registry's.
        world.block(one, two);
        world.block(two, one);
        let (a, b) = (node(&alice).await, node(&bob).await);
        let asks = a.address().node;
        patient(a.trust().request(b.address().node, "please".to_owned())).await.unwrap();
        let waits = |node: &Node| node.trust().pending().iter().any(|request| request["node_id"] == asks);
        patient(async {
            while !waits(&b) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await;
        bob.sim().unwrap().crash_disk();
        drop(b);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let b = node(&bob).await;
        assert!(waits(&b), "a request that was shown is forgotten");
        patient(b.trust().approve(asks)).await.unwrap();
        assert!(a.trust().wait(b.address().node, PATIENCE).await);
    });
}

#[test]
fn a_name_that_a_full_disk_would_forget_is_not_acknowledged() {
    in_virtual_time(async {
        let world = World::new(11);
        let _rendezvous = rendezvous(world.host([10, 0, 0, 1].into())).await;
        let host = world.host([10, 0, 0, 2].into());
        let a = node(&host).await;
        let disk = host.sim().unwrap().sim_disk();
        disk.set_capacity(0);
        let error = patient(a.set_hostname("first")).await.unwrap_err();
        assert_eq!(error.code(), "not_saved", "{error}");
        assert!(error.to_string().contains("would forget it"), "{error}");
        disk.set_capacity(u64::MAX);
        patient(a.set_hostname("second")).await.unwrap();
        host.sim().unwrap().crash_disk();
        drop(a);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let a = node(&host).await;
        assert_eq!(a.info()["hostname"], "second");
    });
}

#[test]
fn a_beacon_that_forgot_everybody_is_told_again_with_the_registry() {
    // The nodes ask a beacon every 25 s; nobody is relayed to until they have.
    in_virtual_time(async {
        let world = World::new(7);
        let host = |n: u8| world.host([10, 0, 0, n].into());
        let (server, alice, bob) = (host(1), host(2), host(3));
        let first = rendezvous(server.clone()).await;
        let nodes = (node(&alice).await, node(&bob).await);
        let known = async |rendezvous: &Rendezvous| {
            while rendezvous.beacon().node_count() < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        patient(known(&first)).await;
        first.shutdown().await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let again = rendezvous(server).await;
        let quick = tokio::time::timeout(Duration::from_secs(12), known(&again)).await;
        assert!(quick.is_ok(), "the beacon knows {} of 2 nodes", again.beacon().node_count());
        drop(nodes);
    });
}
