//! The main path over IPv6, and between agents of different IP versions, as real processes.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::lab::{Host, Lab, needed};
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};

const LIMIT: Duration = Duration::from_secs(75);

/// The socket address in a field of an answer.
fn socket_address(value: &serde_json::Value) -> SocketAddr {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no socket address: {value}"))
}

/// Where the daemon says it can be reached.
fn endpoint(agent: &Agent) -> SocketAddr {
    socket_address(&agent.ctl(&["info"]).expect("info")["endpoint"])
}

/// What `from` knows of its tunnel to `to`.
fn tunnel(from: &Agent, to: &Agent) -> serde_json::Value {
    let peers = from.ctl(&["peers"]).expect("peers");
    let list = peers["peers"].as_array().expect("list");
    list.iter().find(|p| p["node_id"] == to.node()).unwrap_or_else(|| panic!("no such peer: {peers}")).clone()
}

fn talk_both_ways(a: &Agent, b: &Agent) {
    for (from, to) in [(a, b), (b, a)] {
        let ping = from.ctl(&["ping", to.address(), "--count", "1"]).expect("ping");
        assert_eq!(ping["results"][0]["bytes"], 6, "{ping}");
        let bench = from.ctl(&["bench", to.address(), "5"]).expect("bench");
        assert_eq!(bench["recv_bytes"], 5 << 20, "{bench}");
        println!("bench node {} to node {}: {bench}", from.node(), to.node());
    }
}

/// The agents reach each other straight at the endpoint each one names.
fn assert_direct(a: &Agent, b: &Agent) {
    for (from, to) in [(a, b), (b, a)] {
        let tunnel = tunnel(from, to);
        assert_eq!(socket_address(&tunnel["endpoint"]), endpoint(to), "{tunnel}");
        assert_eq!(tunnel["relay"], false, "{tunnel}");
        assert_eq!(tunnel["encrypted"], true, "{tunnel}");
    }
}

#[test]
fn agents_on_ipv6_only_trust_each_other_and_talk() {
    isolated("agents_on_ipv6_only_trust_each_other_and_talk", &[need_programs], || {
        let rendezvous = RendezvousProcess::start_at(Ipv6Addr::LOCALHOST.into(), None, |_| {}).expect("rendezvous");
        rendezvous.wait_ready().expect("rendezvous accepts");
        let start = |name: &str| {
            let options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name);
            Agent::start(&ours(), &options).expect("daemon")
        };
        let (alice, bob) = (start("alice"), start("bob"));
        for agent in [&alice, &bob] {
            assert_eq!(endpoint(agent).ip(), Ipv6Addr::LOCALHOST);
        }
        make_trust(&alice, &bob, LIMIT).expect("trust");
        talk_both_ways(&alice, &bob);
        assert_direct(&alice, &bob);
    });
}

/// A rendezvous on `[::]`, which serves both versions.
fn dual_stack_rendezvous() -> RendezvousProcess {
    let rendezvous = RendezvousProcess::start_at(Ipv6Addr::UNSPECIFIED.into(), None, |_| {}).expect("rendezvous");
    rendezvous.wait_ready().expect("rendezvous accepts");
    rendezvous
}

/// An agent that listens on `listen` and finds the rendezvous at `sees`.
fn start(rendezvous: &RendezvousProcess, name: &str, sees: IpAddr, listen: IpAddr) -> Agent {
    let at = |port| SocketAddr::new(sees, port);
    let mut options = AgentOptions::new(at(rendezvous.registry().port()), at(rendezvous.beacon().port()), name);
    options.listen.set_ip(listen);
    let agent = Agent::start(&ours(), &options).expect("daemon");
    // As people write them: never an IPv4 address in the guise of an IPv6 one.
    assert_eq!(endpoint(&agent).ip(), sees);
    agent
}

/// An agent with IPv4 only, and one with both that registers over the version of `sees`.
fn mixed(sees: IpAddr) {
    let rendezvous = dual_stack_rendezvous();
    let old = start(&rendezvous, "old", Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into());
    let dual = start(&rendezvous, "dual", sees, Ipv6Addr::UNSPECIFIED.into());
    make_trust(&old, &dual, LIMIT).expect("trust");
    // The one without IPv6 speaks first: the harder direction.
    talk_both_ways(&old, &dual);
    if sees.is_ipv4() {
        assert_direct(&old, &dual);
    }
}

#[test]
fn agents_without_a_common_ip_version_talk_by_relay() {
    isolated("agents_without_a_common_ip_version_talk_by_relay", &[need_programs], || {
        let rendezvous = dual_stack_rendezvous();
        let old = start(&rendezvous, "old", Ipv4Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into());
        let new = start(&rendezvous, "new", Ipv6Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        make_trust(&old, &new, LIMIT).expect("trust");
        talk_both_ways(&old, &new);
        for (from, to) in [(&old, &new), (&new, &old)] {
            let tunnel = tunnel(from, to);
            assert_eq!(tunnel["relay"], true, "{tunnel}");
        }
    });
}

#[test]
fn an_agent_on_ipv4_only_talks_to_one_on_both_that_registered_over_ipv4() {
    isolated("an_agent_on_ipv4_only_talks_to_one_on_both_that_registered_over_ipv4", &[need_programs], || {
        mixed(Ipv4Addr::LOCALHOST.into());
    });
}

#[test]
fn an_agent_on_ipv4_only_talks_to_one_on_both_that_registered_over_ipv6() {
    isolated("an_agent_on_ipv4_only_talks_to_one_on_both_that_registered_over_ipv6", &[need_programs], || {
        mixed(Ipv6Addr::LOCALHOST.into());
    });
}

#[test]
fn two_hosts_talk_over_ipv6_on_a_link_that_drops_fragments() {
    isolated("two_hosts_talk_over_ipv6_on_a_link_that_drops_fragments", &[need_programs, needed], || {
        let lab = Lab::new().expect("lab");
        let at = lab.left.ipv6();
        let rendezvous = RendezvousProcess::start_at(at, None, |c| lab.left.place(c)).expect("rendezvous");
        lab.left.on(|| rendezvous.wait_ready()).expect("host").expect("rendezvous accepts");
        let start = |host: &Host, name: &str| {
            let mut options = AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name);
            options.listen.set_ip(host.ipv6());
            Agent::start_at(&ours(), &options, |c| host.place(c)).expect("daemon")
        };
        let (left, right) = (start(&lab.left, "left"), start(&lab.right, "right"));
        assert_eq!((endpoint(&left).ip(), endpoint(&right).ip()), (lab.left.ipv6(), lab.right.ipv6()));
        make_trust(&left, &right, LIMIT).expect("trust");
        talk_both_ways(&left, &right);
        assert_direct(&left, &right);
        assert_eq!(lab.fragments_dropped().expect("counter"), 0, "IP fragments left a host");
    });
}
