//! Two agents find each other, trust each other and talk, as real processes on loopback.

use std::time::Duration;

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};

const LIMIT: Duration = Duration::from_secs(30);

fn pair(rendezvous: &RendezvousProcess) -> (Agent, Agent) {
    let start = |name: &str| {
        let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name);
        Agent::start(&ours(), &options).expect("daemon")
    };
    (start("alice"), start("bob"))
}

fn echoes(from: &Agent, to: &Agent, text: &str) {
    let answer = from.ctl(&["connect", to.address(), "7", "--message", text]).expect("connect");
    assert_eq!(answer["response"], text);
}

/// The error of a command that must fail.
fn refused(agent: &Agent, args: &[&str]) -> serde_json::Value {
    let outcome = agent.run(&[&["--json"], args].concat()).expect("pilotctl");
    assert!(!outcome.status.success(), "pilotctl {args:?} succeeded: {}", outcome.stdout);
    let last = outcome.stderr.lines().last().unwrap_or_default();
    serde_json::from_str(last).unwrap_or_else(|e| panic!("pilotctl {args:?}: {e}: {}", outcome.stderr))
}

#[test]
fn two_private_agents_trust_each_other_and_talk() {
    isolated("two_private_agents_trust_each_other_and_talk", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let (alice, bob) = pair(&rendezvous);

        alice.ctl(&["handshake", "bob", "we work together"]).expect("handshake");
        bob.wait("the request", LIMIT, |bob| {
            let pending = bob.ctl(&["pending"])?;
            Ok(pending["pending"].as_array().is_some_and(|list| {
                list.iter().any(|p| p["node_id"] == alice.node() && p["justification"] == "we work together")
            }))
        })
        .expect("pending");
        assert!(!bob.trusts(alice.node()).expect("trust"), "a request alone gives no trust");
        bob.ctl(&["approve", &alice.node_text()]).expect("approve");
        bob.wait_trusts(alice.node(), LIMIT).expect("bob trusts");
        alice.wait_trusts(bob.node(), LIMIT).expect("alice trusts");

        let found = alice.ctl(&["find", "bob"]).expect("find");
        assert_eq!(found["address"], bob.address());
        for (from, to) in [(&alice, &bob), (&bob, &alice)] {
            let ping = from.ctl(&["ping", to.address(), "--count", "2"]).expect("ping");
            assert!(ping["results"].as_array().is_some_and(|r| r.iter().all(|r| r["bytes"] == 6)), "{ping}");
            echoes(from, to, "hello");
            let bench = from.ctl(&["bench", to.address(), "5"]).expect("bench");
            assert_eq!(bench["recv_bytes"], 5 << 20, "{bench}");
            println!("{bench}");
        }

        std::thread::scope(|scope| {
            let received = scope.spawn(|| bob.ctl(&["recv", "1000", "--timeout", "20s"]));
            // `recv` binds the port; until then a connect is refused.
            alice
                .wait("bob's port 1000", LIMIT, |alice| {
                    let args = ["send", bob.address(), "1000", "--data", "for you", "--timeout", "5s"];
                    Ok(alice.run(&args)?.status.success())
                })
                .expect("send");
            let received = received.join().expect("thread").expect("recv");
            assert_eq!(received["messages"][0]["data"], "for you", "{received}");
        });

        let peers = alice.ctl(&["peers"]).expect("peers");
        let peer = &peers["peers"][0];
        assert_eq!((&peer["encrypted"], &peer["authenticated"]), (&true.into(), &true.into()), "{peers}");
    });
}

#[test]
fn strangers_get_no_stream_and_are_told_the_likely_cause() {
    isolated("strangers_get_no_stream_and_are_told_the_likely_cause", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let options = |name: &str| AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
        let alice = Agent::start(&ours(), &options("alice")).expect("alice");
        let bob = Agent::start(&ours(), &options("bob")).expect("bob");
        // Public means visible, not open.
        let error = refused(&alice, &["connect", bob.address(), "7", "--message", "let me in"]);
        assert!(error.to_string().contains("trust"), "{error}");
        assert!(error.to_string().contains("handshake"), "the remedy is missing: {error}");
        assert_eq!(bob.ctl(&["info"]).expect("info")["connections"], 0);
    });
}

#[test]
fn revoked_trust_reaches_the_peer_and_holds() {
    isolated("revoked_trust_reaches_the_peer_and_holds", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let (alice, bob) = pair(&rendezvous);
        make_trust(&alice, &bob, LIMIT).expect("trust");
        echoes(&alice, &bob, "before");
        bob.ctl(&["untrust", &alice.node_text()]).expect("untrust");
        alice.wait("the revocation", LIMIT, |alice| Ok(!alice.trusts(bob.node())?)).expect("revocation");
        refused(&alice, &["connect", bob.address(), "7", "--message", "after"]);
        refused(&bob, &["connect", alice.address(), "7", "--message", "after"]);
        // And back again, if both want it.
        make_trust(&alice, &bob, LIMIT).expect("trust again");
        echoes(&alice, &bob, "again");
    });
}

#[test]
fn a_daemon_that_crashes_keeps_address_and_trust() {
    isolated("a_daemon_that_crashes_keeps_address_and_trust", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let (mut alice, mut bob) = pair(&rendezvous);
        make_trust(&alice, &bob, LIMIT).expect("trust");
        echoes(&alice, &bob, "before");
        let before = alice.address().to_owned();
        alice.crash_and_restart().expect("restart");
        assert_eq!(alice.address(), before);
        assert!(alice.trusts(bob.node()).expect("trust"));
        // The survivor speaks first: the harder direction.
        echoes(&bob, &alice, "survivor first");
        echoes(&alice, &bob, "and back");
        bob.crash_and_restart().expect("restart");
        echoes(&bob, &alice, "restarted first");
        echoes(&alice, &bob, "and back");
    });
}

#[test]
fn known_peers_are_served_while_the_registry_is_down_and_addresses_survive_it() {
    isolated("known_peers_are_served_while_the_registry_is_down_and_addresses_survive_it", &[need_programs], || {
        let store = tempfile::tempdir().expect("directory");
        let store = store.path().join("registry.redb");
        let loopback = std::net::IpAddr::from([127, 0, 0, 1]);
        let start = || {
            let rendezvous = RendezvousProcess::start_at(loopback, Some(&store), |_| {}).expect("rendezvous");
            rendezvous.wait_ready().expect("rendezvous accepts");
            rendezvous
        };
        let mut rendezvous = start();
        let (mut alice, bob) = pair(&rendezvous);
        make_trust(&alice, &bob, LIMIT).expect("trust");
        echoes(&alice, &bob, "before");

        rendezvous.kill().expect("kill");
        echoes(&alice, &bob, "registry down");
        let before = alice.address().to_owned();
        alice.crash_and_restart().expect("a daemon starts without its registry");
        assert_eq!(alice.address(), before);

        let _again = start();
        let carol = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), "carol");
        let carol = Agent::start(&ours(), &carol).expect("carol");
        assert!(carol.node() != alice.node() && carol.node() != bob.node(), "an address was given twice");
        alice
            .wait("bob after the registry came back", LIMIT, |alice| {
                let args = ["connect", bob.address(), "7", "--message", "after", "--timeout", "5s"];
                Ok(alice.run(&args)?.status.success())
            })
            .expect("talk again");
    });
}
