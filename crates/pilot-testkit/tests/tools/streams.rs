//! Our command line and driver with the official daemons of two releases: people may change one before the other.

use std::time::Duration;

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::official::{NEWEST, OLDER, Official, need_newest, need_older};
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};

/// Long enough for one heartbeat of an official daemon (65 s), at which it fetches what waits for it.
const TRUST_LIMIT: Duration = Duration::from_secs(75);

#[test]
fn our_pilotctl_drives_official_daemons() {
    isolated("streams::our_pilotctl_drives_official_daemons", &[need_programs, need_newest, need_older], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let start = |version: &str, name: &str| {
            let mut mixed = Official::obtain(version).expect("release").release();
            mixed.ctl = ours().ctl;
            mixed.label = format!("official {version} under our pilotctl");
            let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
            Agent::start(&mixed, &options).expect("daemon")
        };
        let newest = start(NEWEST, "newest");
        let older = start(OLDER, "older");
        make_trust(&newest, &older, TRUST_LIMIT).expect("trust");
        // No streams of megabytes: between themselves these two lose them (07 §16), and the matrix has `bench`.
        for (from, to) in [(&newest, &older), (&older, &newest)] {
            let ping = from.ctl(&["ping", to.address(), "--count", "2"]).expect("ping");
            assert!(
                ping["results"].as_array().is_some_and(|all| all.iter().all(|probe| probe["bytes"] == 6)),
                "{ping}"
            );
            // More than one segment, so that the answer comes in several frames.
            let long = "0123456789".repeat(2_000);
            let answer = from.ctl(&["connect", to.address(), "7", "--message", &long]).expect("connect");
            assert_eq!(answer["response"], long.as_str());
            assert_eq!(from.ctl(&["find", "older"]).expect("find")["address"], older.address());
            assert_eq!(from.ctl(&["peers"]).expect("peers")["total"], 1);
            assert_eq!(from.ctl(&["trust"]).expect("trust")["trusted"].as_array().map(Vec::len), Some(1));
            // The port is free again for the next command, on a daemon that knows no Unbind too.
            for _ in 0..2 {
                let heard = from.ctl(&["recv", "3000", "--timeout", "200ms"]).expect("recv");
                assert_eq!(heard["timeout"], true);
            }
        }
    });
}
