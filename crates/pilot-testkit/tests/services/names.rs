//! The nameserver between real daemons, by its commands.

use pilot_testkit::agent::{Agent, AgentOptions, make_trust};
use pilot_testkit::isolate::isolated;
use pilot_testkit::programs::{RendezvousProcess, need_programs, ours};

use super::TRUST_LIMIT;

#[test]
fn names_are_registered_and_found_and_belong_to_who_came_first() {
    isolated("names::names_are_registered_and_found_and_belong_to_who_came_first", &[need_programs], || {
        let rendezvous = RendezvousProcess::start().expect("rendezvous");
        let options = |name: &str| AgentOptions::new(rendezvous.registry(), rendezvous.beacon(), name).public();
        let server = Agent::start(&ours(), &options("names").flag("-nameserver")).expect("daemon");
        let alice = Agent::start(&ours(), &options("alice")).expect("daemon");
        let mallory = Agent::start(&ours(), &options("mallory")).expect("daemon");
        for agent in [&alice, &mallory] {
            make_trust(agent, &server, TRUST_LIMIT).expect("trust");
        }
        alice.ctl(&["config", "--set", "nameserver=names"]).expect("config");

        let done = alice.ctl(&["nsregister", "printer"]).expect("register");
        assert_eq!((&done["registered"], &done["server"]), (&true.into(), &server.address().into()), "{done}");
        let found = mallory.ctl(&["nslookup", "printer", "--server", "names"]).expect("look up");
        assert_eq!(found["address"], alice.address(), "{found}");

        let taken = mallory.run(&["--json", "nsregister", "printer", "--server", "names"]).expect("run");
        assert!(!taken.status.success() && taken.stderr.contains("\"permission_denied\""), "{taken:?}");
        let found = alice.ctl(&["nslookup", "printer"]).expect("look up");
        assert_eq!(found["address"], alice.address(), "{found}");

        alice.ctl(&["nsregister", "web", "--type", "S", "--port", "80"]).expect("register");
        let services = mallory.ctl(&["nslookup", "0", "80", "--type", "S", "--server", "names"]).expect("look up");
        assert_eq!(
            services["services"],
            serde_json::json!([{ "name": "web", "address": alice.address(), "port": 80 }]),
            "{services}"
        );
        let unknown = alice.run(&["--json", "nslookup", "nobody"]).expect("run");
        assert!(!unknown.status.success() && unknown.stderr.contains("\"not_found\""), "{unknown:?}");
    });
}
