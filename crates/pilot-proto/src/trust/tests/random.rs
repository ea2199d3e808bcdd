//! Random histories of three nodes, with streams, registry and restarts coming and going.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Request(u32, u32),
    Approve(u32, u32),
    Reject(u32, u32),
    Revoke(u32, u32),
    Poll(u32),
    Refused(u32, u32),
    Wait(u64),
    Direct(bool),
    Registry(bool),
    Restart(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let pair = (1u32..4, 1u32..4).prop_filter("two nodes", |(a, b)| a != b);
    prop_oneof![
        4 => pair.clone().prop_map(|(a, b)| Step::Request(a, b)),
        4 => pair.clone().prop_map(|(a, b)| Step::Approve(a, b)),
        1 => pair.clone().prop_map(|(a, b)| Step::Reject(a, b)),
        2 => pair.clone().prop_map(|(a, b)| Step::Revoke(a, b)),
        3 => (1u32..4).prop_map(Step::Poll),
        1 => pair.prop_map(|(a, b)| Step::Refused(a, b)),
        3 => (0u64..900).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Direct),
        1 => any::<bool>().prop_map(Step::Registry),
        1 => (1u32..4).prop_map(Step::Restart),
    ]
}

impl Net {
    fn restart(&mut self, node: u32) {
        let at = self.at;
        // What is past its lifetime is not taken over.
        self.node(node).forget_old(at);
        let file = self.node(node).to_bytes();
        let mut again = Trust::new(identity(node), node, TrustConfig::default());
        again.load(at, &file).unwrap();
        assert_eq!(again.to_bytes(), file, "the file holds everything it should");
        again.announce();
        self.nodes.insert(node, again);
    }
}

proptest! {
    #[test]
    fn trust_needs_the_will_of_its_owner_and_two_wills_make_trust(steps in prop::collection::vec(step(), 1..60)) {
        let mut net = Net::new(&[1, 2, 3]);
        // Who has asked for or approved whom, since last ending it.
        let mut willing = std::collections::BTreeSet::new();
        for step in steps {
            let at = net.at;
            match step {
                Step::Request(a, b) => {
                    net.node(a).request(at, b, "please").unwrap();
                    willing.insert((a, b));
                }
                Step::Approve(a, b) => {
                    if net.node(a).approve(at, b).unwrap() {
                        willing.insert((a, b));
                    }
                }
                Step::Reject(a, b) => {
                    net.node(a).reject(at, b, "no");
                }
                Step::Revoke(a, b) => {
                    let _ = net.node(a).revoke(at, b);
                    willing.remove(&(a, b));
                }
                Step::Poll(a) => net.poll(a),
                Step::Refused(a, b) => net.node(a).handle_refused(at, b),
                Step::Wait(seconds) => net.wait(secs(seconds)),
                Step::Direct(on) => net.direct = on,
                Step::Registry(on) => net.registry = on,
                Step::Restart(a) => net.restart(a),
            }
            net.carry();
            for (node, trust) in &net.nodes {
                for (peer, entry) in trust.trusted() {
                    prop_assert!(willing.contains(&(*node, peer)), "{node} trusts {peer} against its will");
                    prop_assert!(entry.key.is_none_or(|pinned| pinned == key(peer)));
                    prop_assert!(!trust.pending().any(|(waiting, _)| waiting == peer), "{peer} waits and is trusted");
                }
            }
        }
        // Whatever came before: when everything works and both ask, both trust.
        (net.direct, net.registry) = (true, true);
        net.wait(REPLAY_LIFETIME + REVOKE_COOLDOWN);
        for (a, b) in [(1, 2), (2, 3), (3, 1)] {
            net.request(a, b);
            net.wait(ACCEPT_INTERVAL);
            net.request(b, a);
            prop_assert!(net.trusts(a, b) && net.trusts(b, a), "{a} and {b}");
            net.wait(ACCEPT_INTERVAL);
        }
        // And when one of them ends it, the other learns of it.
        net.revoke(1, 2);
        prop_assert!(!net.trusts(1, 2) && !net.trusts(2, 1));
    }

    #[test]
    fn no_message_and_no_file_makes_a_node_panic(
        text in prop::collection::vec(any::<u8>(), 0..300), node in any::<u32>(), timestamp in any::<i64>(), kind in 0..4,
    ) {
        let mut net = Net::new(&[1]);
        let at = net.at;
        let _ = net.node(1).handle_message(at, node, Some(key(2)), &text);
        let kind = [Kind::Request, Kind::Accept, Kind::Reject, Kind::Revoke][kind as usize];
        let text = message(2, 1, kind, at, |m| m.timestamp = timestamp);
        let _ = net.node(1).handle_message(at, 2, Some(key(2)), &text);
        let _ = net.node(1).load(at, &text);
        let _ = parse_rfc3339(&String::from_utf8_lossy(&text));
    }
}
