//! The main path between two hosts, over a link with an MTU of 1500 bytes that drops IP fragments.

use std::time::Duration;

use pilot_testkit::agent::{Agent, AgentOptions, Release, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::lab::{Lab, needed};
use pilot_testkit::official::{NEWEST, Official, need_newest};
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};

const LIMIT: Duration = Duration::from_secs(75);

fn main_path(left: &Release, right: &Release) {
    let lab = Lab::new().expect("lab");
    let rendezvous = RendezvousProcess::start_at(lab.left.ip(), None, |c| lab.left.place(c)).expect("rendezvous");
    lab.left.on(|| rendezvous.wait_ready()).expect("host").expect("rendezvous accepts");
    let start = |release: &Release, host: &pilot_testkit::lab::Host, name: &str| {
        let mut options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name);
        options.listen.set_ip(host.ip());
        Agent::start_at(release, &options, |c| host.place(c)).expect("daemon")
    };
    let a = start(left, &lab.left, "left");
    let b = start(right, &lab.right, "right");
    // Both private, as by default: the request goes through the registry.
    make_trust(&a, &b, LIMIT).expect("trust");
    for (from, to) in [(&a, &b), (&b, &a)] {
        let ping = from.ctl(&["ping", to.address(), "--count", "1"]).expect("ping");
        assert_eq!(ping["results"][0]["bytes"], 6, "{ping}");
        let bench = from.ctl(&["bench", to.address(), "5"]).expect("bench");
        assert_eq!(bench["recv_bytes"], 5 << 20, "{bench}");
        println!("bench node {} to node {}: {bench}", from.node(), to.node());
    }
    assert_eq!(lab.fragments_dropped().expect("counter"), 0, "IP fragments left a host");
}

#[test]
fn two_hosts_talk_over_a_link_that_drops_fragments() {
    isolated("two_hosts_talk_over_a_link_that_drops_fragments", &[need_programs, needed], || {
        main_path(&ours(), &ours());
    });
}

#[test]
fn an_official_host_talks_over_a_link_that_drops_fragments() {
    isolated("an_official_host_talks_over_a_link_that_drops_fragments", &[need_programs, needed, need_newest], || {
        main_path(&ours(), &Official::obtain(NEWEST).expect("release").release());
    });
}
