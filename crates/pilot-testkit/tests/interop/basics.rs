//! What the matrix leaves out: official daemons among themselves, and the official command line with our daemon.

use std::time::Duration;

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::official::{NEWEST, OLDER, Official, need_newest, need_older};
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};

/// Long enough for the slowest official path (one heartbeat of 65 s); a run that works takes a few seconds.
const TRUST_LIMIT: Duration = Duration::from_secs(75);

/// Ping and a message to echo, from `a` to `b`.
fn say_hello(a: &Agent, b: &Agent) {
    let ping = a.ctl(&["ping", b.address(), "--count", "2"]).expect("ping");
    let results = ping["results"].as_array().expect("results");
    assert_eq!(results.len(), 2, "{ping}");
    assert!(results.iter().all(|r| r["bytes"] == 6 && r["error"].is_null()), "{ping}");

    let answer = a.ctl(&["connect", b.address(), "7", "--message", "hello over there"]).expect("connect");
    assert_eq!(answer["response"], "hello over there");
}

/// The same, and 5 MB of echo.
fn talk(a: &Agent, b: &Agent) {
    say_hello(a, b);
    let bench = a.ctl(&["bench", b.address(), "5"]).expect("bench");
    assert_eq!(bench["sent_bytes"], 5 << 20, "{bench}");
    assert_eq!(bench["recv_bytes"], 5 << 20, "{bench}");
    println!("bench node {} to node {}: {bench}", a.node(), b.node());
}

#[test]
fn two_official_daemons_talk_through_our_rendezvous() {
    isolated(
        "basics::two_official_daemons_talk_through_our_rendezvous",
        &[need_programs, need_newest, need_older],
        || {
            let rendezvous = RendezvousProcess::start().expect("rendezvous");
            let start = |version: &str, name: &str| {
                let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
                Agent::start(&Official::obtain(version).expect("release").release(), &options).expect("daemon")
            };
            let newest = start(NEWEST, "newest");
            let older = start(OLDER, "older");
            make_trust(&newest, &older, TRUST_LIMIT).expect("trust");
            // No more than that: between themselves they lose streams on a busy machine (07 §16).
            say_hello(&newest, &older);
            say_hello(&older, &newest);
        },
    );
}

#[test]
fn official_pilotctl_drives_our_daemon() {
    isolated("basics::official_pilotctl_drives_our_daemon", &[need_programs, need_newest, need_older], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let start = |version: &str, name: &str| {
            let mut mixed = ours();
            mixed.ctl = Official::obtain(version).expect("release").release().ctl;
            mixed.label = format!("ours under pilotctl {version}");
            let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name);
            Agent::start(&mixed, &options).expect("daemon")
        };
        let newest = start(NEWEST, "newest");
        let older = start(OLDER, "older");
        make_trust(&newest, &older, TRUST_LIMIT).expect("trust");
        talk(&newest, &older);
        talk(&older, &newest);
        for agent in [&newest, &older] {
            let found = agent.ctl(&["find", "older"]).expect("find");
            assert_eq!(found["address"], older.address());
            assert!(agent.ctl(&["peers"]).expect("peers")["total"].as_u64().is_some_and(|n| n >= 1));
            agent.ctl(&["connections"]).expect("connections");
            agent.ctl(&["health"]).expect("health");
            agent.ctl(&["set-hostname", &format!("{}-2", agent.node())]).expect("set-hostname");
        }
    });
}
