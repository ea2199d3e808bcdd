//! Whole handshakes between nodes.

use std::collections::BTreeSet;

use super::*;

#[test]
fn a_request_waits_for_a_person_and_its_approval_makes_both_trust() {
    let mut net = Net::new(&[1, 2]);
    assert!(matches!(net.request(1, 2), Requested::Sending(_)));
    assert!(!net.trusts(1, 2) && !net.trusts(2, 1));
    assert_eq!(net.notices(2), ["handshake.received", "handshake.pending"]);
    assert!(net.log.iter().any(|(n, e)| *n == 1 && matches!(e, TrustEvent::RequestDone { result: Ok(()), .. })));
    assert!(net.place(1, &TrustEvent::ExpectAnswer).is_some());
    net.approve(2, 1);
    assert!(net.trusts(1, 2) && net.trusts(2, 1));
    assert_eq!(net.delivered, [(1, 2, Kind::Request), (2, 1, Kind::Accept)]);
    for (node, peer) in [(1, 2), (2, 1)] {
        assert_eq!(net.nodes[&node].trusted_node(peer).unwrap().key, Some(key(peer)), "the key is pinned");
        let persisted = net.log.iter().rposition(|(n, e)| *n == node && *e == TrustEvent::Persist).unwrap();
        let told = net.place(node, &TrustEvent::ReportTrust { node: peer }).unwrap();
        assert!(persisted < told, "on disk before the registry hears of it");
        assert!(net.place(node, &TrustEvent::Trusted { node: peer, key: Some(key(peer)) }).is_some());
    }
    assert!(net.nodes[&1].trusted_node(2).unwrap().mutual);
    assert!(!net.nodes[&2].trusted_node(1).unwrap().mutual, "as official daemons have it");
    assert_eq!(net.node(2).pending_count(), 0);
    // Asking again sends nothing.
    net.forget();
    assert_eq!(net.request(1, 2), Requested::AlreadyTrusted);
    assert!(net.delivered.is_empty() && net.log.is_empty());
}

#[test]
fn two_nodes_that_ask_each_other_trust_without_a_person() {
    let mut net = Net::new(&[1, 2]);
    net.request(1, 2);
    net.request(2, 1);
    assert!(net.trusts(1, 2) && net.trusts(2, 1));
    assert!(net.nodes[&2].trusted_node(1).unwrap().mutual);
    assert!(net.notices(2).contains(&"handshake.auto_approved"));
    assert_eq!(net.node(1).pending_count() + net.node(2).pending_count(), 0);

    // Crossing on the way, so that neither has seen the other's request when it asks.
    let mut net = Net::new(&[1, 2]);
    let at = net.at;
    net.node(1).request(at, 2, "").unwrap();
    net.node(2).request(at, 1, "").unwrap();
    net.carry();
    assert!(net.trusts(1, 2) && net.trusts(2, 1));
}

#[test]
fn when_no_stream_gets_through_everything_goes_through_the_registry() {
    let mut net = Net::new(&[1, 2]);
    net.direct = false;
    net.request(1, 2);
    assert!(net.log.iter().any(|(_, e)| matches!(e, TrustEvent::RelayRequest { node: 2, .. })));
    net.poll(2);
    assert_eq!(net.node(2).pending().next().unwrap().1.key, Some(key(1)), "the key is the registry's");
    assert_eq!(net.notices(2), ["handshake.received", "handshake.pending"], "relayed ones are announced too");
    net.approve(2, 1);
    assert!(!net.trusts(1, 2));
    net.poll(1);
    assert!(net.trusts(1, 2) && net.trusts(2, 1));
    assert_eq!(net.nodes[&1].trusted_node(2).unwrap().key, Some(key(2)));
    assert!(net.notices(1).contains(&"handshake.accepted"));
}

#[test]
fn a_request_that_gets_nowhere_says_so() {
    let mut net = Net::new(&[1]);
    net.registry = false;
    net.request(1, 2);
    let failed = net.log.iter().find_map(|(_, e)| match e {
        TrustEvent::RequestDone { result: Err(text), .. } => Some(text.clone()),
        _ => None,
    });
    assert_eq!(failed.as_deref(), Some("registry: request failed"));
}

#[test]
fn a_relayed_mutual_request_is_approved() {
    let mut net = Net::new(&[1, 2]);
    net.direct = false;
    net.request(1, 2);
    net.request(2, 1);
    net.poll(1);
    assert!(net.trusts(1, 2));
    net.poll(2);
    assert!(net.trusts(2, 1));
}

#[test]
fn relayed_requests_survive_a_registry_that_answers_no_lookup() {
    let mut net = Net::new(&[1, 2]);
    net.direct = false;
    net.request(1, 2);
    net.registry = false;
    net.poll(2);
    let (_, request) = net.node(2).pending().next().unwrap();
    assert_eq!(request.key, None);
    net.approve(2, 1);
    assert!(net.place(2, &TrustEvent::Trusted { node: 1, key: None }).is_some());
    // The key it first authenticates with is pinned then, and only then.
    net.node(2).handle_pinned(1, key(1));
    net.node(2).handle_pinned(1, key(3));
    assert_eq!(net.nodes[&2].trusted_node(1).unwrap().key, Some(key(1)));
}

#[test]
fn accepts_and_approvals_nobody_asked_for_do_nothing() {
    let mut net = Net::new(&[1, 2]);
    let at = net.at;
    let text = message(2, 1, Kind::Accept, at, |_| {});
    assert_eq!(net.node(1).handle_message(at, 2, Some(key(2)), &text), Err(Refusal::Unsolicited));
    net.inbox.entry(1).or_default().responses.push(WaitingResponse { from: 2, accept: true, timestamp: START });
    net.poll(1);
    assert!(!net.trusts(1, 2));
    assert!(net.log.is_empty(), "{:?}", net.log);
}

#[test]
fn a_relayed_approval_counts_for_ten_minutes_and_a_signed_one_for_as_long_as_a_person_may_take() {
    let late = RELAYED_ANSWER_WINDOW + secs(1);
    let mut net = Net::new(&[1, 2]);
    net.request(1, 2);
    net.wait(late);
    net.inbox.entry(1).or_default().responses.push(WaitingResponse { from: 2, accept: true, timestamp: START });
    net.poll(1);
    assert!(!net.trusts(1, 2), "nobody signed it");
    net.approve(2, 1);
    assert!(net.trusts(1, 2), "the peer itself said it");

    let mut net = Net::new(&[1, 2]);
    net.request(1, 2);
    net.wait(OUTGOING_LIFETIME);
    net.poll(1);
    let at = net.at;
    let text = message(2, 1, Kind::Accept, at, |_| {});
    assert_eq!(net.node(1).handle_message(at, 2, Some(key(2)), &text), Err(Refusal::Unsolicited));
}

#[test]
fn our_request_is_remembered_over_a_restart() {
    let mut net = Net::new(&[1, 2]);
    net.request(1, 2);
    let (at, file) = (net.at, net.node(1).to_bytes());
    let mut again = Trust::new(identity(1), 1, TrustConfig::default());
    again.load(at, &file).unwrap();
    net.nodes.insert(1, again);
    net.approve(2, 1);
    assert!(net.trusts(1, 2));
}

#[test]
fn a_rejection_reaches_the_requester_directly_and_by_relay() {
    let mut net = Net::new(&[1, 2]);
    net.request(1, 2);
    let at = net.at;
    assert!(net.node(2).reject(at, 1, "not now"));
    net.carry();
    assert_eq!(net.delivered.last(), Some(&(2, 1, Kind::Reject)));
    assert!(net.notices(1).contains(&"handshake.rejected_by_peer"));
    assert!(net.place(2, &TrustEvent::RelayRespond { node: 1, accept: false }).is_some());
    assert_eq!(net.node(2).pending_count(), 0);
    // An accept that comes after it answers nothing any more.
    let text = message(2, 1, Kind::Accept, at, |_| {});
    assert_eq!(net.node(1).handle_message(at, 2, Some(key(2)), &text), Err(Refusal::Unsolicited));
    // Rejecting nobody dials nobody.
    net.forget();
    assert!(!net.node(2).reject(at, 77, ""));
    net.carry();
    assert!(net.delivered.is_empty() && net.log.is_empty());
}

#[test]
fn a_rejection_that_comes_late_does_not_undo_the_request_that_followed_it() {
    // It comes by relay as well, when the next poll does.
    let mut net = Net::new(&[1, 2]);
    net.request(1, 2);
    let at = net.at;
    assert!(net.node(2).reject(at, 1, "not now"));
    net.carry();
    net.request(1, 2);
    net.poll(1);
    net.approve(2, 1);
    assert!(net.trusts(1, 2) && net.trusts(2, 1));

    // And directly, after the second request has left.
    let mut net = Net::new(&[1, 2]);
    net.request(1, 2);
    net.wait(secs(2));
    net.request(1, 2);
    let at = net.at;
    let text = message(2, 1, Kind::Reject, at, |_| {});
    net.node(1).handle_message(at, 2, Some(key(2)), &text).unwrap();
    net.direct = false;
    net.approve(2, 1);
    net.poll(1);
    assert!(net.trusts(1, 2) && net.trusts(2, 1), "by relay");

    // Who has ended it meanwhile, or asked long ago, does not get it any more.
    for end in [true, false] {
        let mut net = Net::new(&[1, 2]);
        net.request(1, 2);
        net.request(1, 2);
        let at = net.at;
        let text = message(2, 1, Kind::Reject, at, |_| {});
        net.node(1).handle_message(at, 2, Some(key(2)), &text).unwrap();
        if end {
            assert!(net.node(1).revoke(at, 2).is_err());
        } else {
            net.wait(RELAYED_ANSWER_WINDOW);
        }
        net.approve(2, 1);
        net.poll(1);
        assert!(!net.trusts(1, 2), "{end}");
    }
}

#[test]
fn a_revocation_closes_the_gate_at_once_and_the_tunnel_after_the_message() {
    let mut net = Net::trusting();
    let at = net.at;
    net.node(1).revoke(at, 2).unwrap();
    let mut order = Vec::new();
    let mut sent = None;
    while let Some(event) = net.node(1).poll_event() {
        match event {
            TrustEvent::SendDirect { id, kind: Kind::Revoke, .. } => {
                sent = Some(id);
                order.push("message");
            }
            TrustEvent::Persist => order.push("disk"),
            TrustEvent::Untrusted { node: 2 } => order.push("gate"),
            TrustEvent::ForgetPeer { node: 2 } => order.push("tunnel"),
            TrustEvent::RevokeTrust { node: 2 } => order.push("registry"),
            _ => {}
        }
    }
    assert_eq!(order, ["disk", "gate", "message"], "the way stays open until the message has left");
    net.node(1).handle_sent(at, sent.unwrap(), true);
    net.carry();
    assert!(net.place(1, &TrustEvent::RevokeTrust { node: 2 }).is_some());
    assert!(net.place(1, &TrustEvent::ForgetPeer { node: 2 }).is_some());
}

#[test]
fn a_revocation_reaches_the_peer() {
    let mut net = Net::trusting();
    net.revoke(1, 2);
    assert!(!net.trusts(1, 2) && !net.trusts(2, 1));
    assert_eq!(net.notices(1), ["trust.revoked"]);
    assert_eq!(net.notices(2), ["trust.revoked_by_peer"]);
    for event in [TrustEvent::Untrusted { node: 1 }, TrustEvent::ForgetPeer { node: 1 }] {
        assert!(net.place(2, &event).is_some(), "{event:?}");
    }
    assert!(net.place(2, &TrustEvent::RevokeTrust { node: 1 }).is_some(), "or its report would undo it");
    let at = net.at;
    assert_eq!(net.node(1).revoke(at, 2), Err(TrustError::NotTrusted(2)));
    assert_eq!(net.node(1).revoke(at, 2).unwrap_err().to_string(), "node 2 was not trusted");
}

#[test]
fn the_tunnel_goes_in_two_seconds_even_when_the_message_hangs() {
    let mut net = Net::trusting();
    let at = net.at;
    net.node(1).revoke(at, 2).unwrap();
    while net.node(1).poll_event().is_some() {}
    assert_eq!(net.node(1).poll_timeout(), Some(at.now + TEARDOWN_DELAY));
    net.wait(TEARDOWN_DELAY);
    assert!(net.place(1, &TrustEvent::ForgetPeer { node: 2 }).is_some());
}

#[test]
fn an_undelivered_revocation_is_repeated_until_it_arrives() {
    let mut net = Net::trusting();
    net.direct = false;
    net.revoke(1, 2);
    assert!(net.trusts(2, 1), "it does not know yet");
    net.wait(secs(3600));
    assert!(net.trusts(2, 1));
    // A restart forgets nothing.
    let (at, file) = (net.at, net.node(1).to_bytes());
    let mut again = Trust::new(identity(1), 1, TrustConfig::default());
    again.load(at, &file).unwrap();
    again.announce();
    net.nodes.insert(1, again);
    net.carry();
    net.direct = true;
    net.wait(NOTICE_RETRY);
    assert!(!net.trusts(2, 1));
    net.forget();
    net.wait(secs(24 * 3600));
    assert!(net.delivered.is_empty(), "and then no more");
}

#[test]
fn a_peer_that_still_talks_to_us_is_told_at_once() {
    let mut net = Net::trusting();
    net.direct = false;
    net.revoke(1, 2);
    // Tried at 0, 10 and 30 s; the next time would be at 70 s.
    net.wait(secs(45));
    net.direct = true;
    let at = net.at;
    net.node(1).handle_refused(at, 2);
    net.carry();
    assert!(!net.trusts(2, 1));
    net.forget();
    net.node(1).handle_refused(at, 2);
    net.node(1).handle_refused(at, 99);
    net.carry();
    assert!(net.delivered.is_empty(), "once is enough, and strangers are not told anything");
}

#[test]
fn a_revocation_that_never_arrives_is_given_up_after_a_week() {
    let mut net = Net::trusting();
    net.direct = false;
    net.revoke(1, 2);
    net.wait(NOTICE_LIFETIME + NOTICE_RETRY_MAX);
    net.direct = true;
    net.wait(secs(24 * 3600));
    assert!(net.delivered.is_empty());
}

#[test]
fn a_revocation_holds_against_every_policy_until_a_person_asks_again() {
    let mut net = Net::trusting();
    net.policy(1, Approval { all: true, keys: BTreeSet::from([key(2)]), hook: true, ..Approval::default() });
    net.revoke(1, 2);
    net.wait(REVOKE_COOLDOWN * 2);
    net.request(2, 1);
    assert!(!net.trusts(1, 2), "a person ended it; a person decides");
    assert_eq!(net.node(1).pending_count(), 1);
    net.approve(1, 2);
    assert!(net.trusts(1, 2) && net.trusts(2, 1));

    let mut net = Net::trusting();
    net.policy(2, Approval { all: true, ..Approval::default() });
    net.revoke(1, 2);
    net.request(1, 2);
    assert!(!net.trusts(2, 1), "the peer that was revoked waits for five minutes");
    net.wait(REVOKE_COOLDOWN + secs(1));
    net.request(1, 2);
    assert!(net.trusts(2, 1));
}

#[test]
fn a_node_that_lost_its_trust_gets_it_back_by_asking() {
    let mut net = Net::trusting();
    net.wait(ACCEPT_INTERVAL);
    net.nodes.insert(1, Trust::new(identity(1), 1, TrustConfig::default()));
    net.request(1, 2);
    assert!(net.trusts(1, 2));
    assert_eq!(net.delivered, [(1, 2, Kind::Request), (2, 1, Kind::Accept)]);
    // But nobody can make us send one accept after the other.
    net.forget();
    net.wait(secs(1));
    for i in 0..10 {
        let at = net.at;
        let text = message(1, 2, Kind::Request, at, |m| m.justification = i.to_string());
        net.node(2).handle_message(at, 1, Some(key(1)), &text).unwrap();
        net.carry();
    }
    assert!(net.delivered.is_empty(), "{:?}", net.delivered);
    net.wait(ACCEPT_INTERVAL);
    let at = net.at;
    let text = message(1, 2, Kind::Request, at, |_| {});
    net.node(2).handle_message(at, 1, Some(key(1)), &text).unwrap();
    net.carry();
    assert_eq!(net.delivered, [(2, 1, Kind::Accept)]);
}

#[test]
fn another_key_under_a_trusted_id_waits_for_a_person() {
    let mut net = Net::trusting();
    net.policy(1, Approval { all: true, ..Approval::default() });
    // The registry gave id 2 to node 3's key, and its tunnel proves that.
    let at = net.at;
    let text = message(3, 1, Kind::Request, at, |m| {
        m.node = 2;
        m.signature = base64::encode(&identity(3).sign(signed::handshake(2, 1).as_bytes()));
    });
    net.node(1).handle_message(at, 2, Some(key(3)), &text).unwrap();
    net.carry();
    assert_eq!(net.nodes[&1].trusted_node(2).unwrap().key, Some(key(2)), "the pin stands");
    assert_eq!(net.node(1).pending().next().unwrap().1.key, Some(key(3)));
    let revoke = message(3, 1, Kind::Revoke, at, |m| {
        m.node = 2;
        m.signature = base64::encode(&identity(3).sign(signed::handshake(2, 1).as_bytes()));
    });
    assert_eq!(net.node(1).handle_message(at, 2, Some(key(3)), &revoke), Err(Refusal::KeyMismatch));
    assert!(net.node(1).approve(at, 2).unwrap());
    assert_eq!(net.nodes[&1].trusted_node(2).unwrap().key, Some(key(3)), "until a person says otherwise");
}

#[test]
fn policies_approve_what_they_name_and_nothing_else() {
    let shared = |listed| NetworkApproval::Listed(BTreeSet::from([listed]));
    let keys = |node| BTreeSet::from([key(node)]);
    for (approval, reason) in [
        (Approval { all: true, ..Approval::default() }, Some("all")),
        (Approval { keys: keys(1), ..Approval::default() }, Some("key_list")),
        (Approval { keys: keys(3), ..Approval::default() }, None),
        (Approval { networks: NetworkApproval::Any, ..Approval::default() }, Some("same_network")),
        (Approval { networks: shared(7), ..Approval::default() }, Some("same_network")),
        (Approval { networks: shared(8), ..Approval::default() }, None),
        (Approval { networks: shared(0), ..Approval::default() }, None),
    ] {
        for direct in [true, false] {
            let mut net = Net::new(&[1, 2]);
            net.direct = direct;
            net.networks.insert(1, vec![0, 7]);
            net.node(2).set_local_node(2, &[0, 7, 8]);
            net.policy(2, approval.clone());
            net.request(1, 2);
            if !direct {
                net.poll(2);
            }
            let approved = net.log.iter().find_map(|(_, e)| match e {
                TrustEvent::Notice { notice: Notice::AutoApproved { reason }, .. } => Some(*reason),
                _ => None,
            });
            assert_eq!(approved, reason, "{approval:?}");
            assert_eq!(net.trusts(2, 1), reason.is_some());
            assert_eq!(net.node(2).pending_count(), usize::from(reason.is_none()));
            if reason == Some("same_network") {
                assert_eq!(net.nodes[&2].trusted_node(1).unwrap().network, 7);
            }
            net.poll(1);
            assert_eq!(net.trusts(1, 2), reason.is_some(), "the requester hears of it, direct: {direct}");
        }
    }
}

#[test]
fn a_hook_decides_and_anything_but_yes_leaves_it_to_a_person() {
    for answer in [true, false] {
        let mut net = Net::new(&[1, 2]);
        net.policy(2, Approval { hook: true, ..Approval::default() });
        net.request(1, 2);
        let asked = net.log.iter().find_map(|(_, e)| match e {
            TrustEvent::AskHook { id, node: 1, key, justification } => Some((*id, *key, justification.clone())),
            _ => None,
        });
        let (id, asked_key, justification) = asked.unwrap();
        assert_eq!((asked_key, justification.as_str()), (Some(key(1)), "please"));
        assert_eq!(net.node(2).pending_count(), 1, "visible while the hook runs");
        let at = net.at;
        net.node(2).handle_hook(at, id, answer);
        net.carry();
        assert_eq!((net.trusts(1, 2), net.trusts(2, 1)), (answer, answer));
        assert_eq!(net.node(2).pending_count(), usize::from(!answer));
        // A late or repeated answer changes nothing.
        net.node(2).handle_hook(at, id, true);
        net.carry();
        assert_eq!(net.trusts(2, 1), answer);
    }
}

#[test]
fn no_two_messages_to_a_node_are_identical() {
    let mut net = Net::new(&[1]);
    let at = net.at;
    let mut texts = BTreeSet::new();
    for _ in 0..5 {
        net.node(1).request(at, 2, "same").unwrap();
        while let Some(event) = net.node(1).poll_event() {
            if let TrustEvent::SendDirect { message, .. } = event {
                let timestamp = Message::parse(&message).unwrap().timestamp;
                assert!((timestamp - START as i64) < MAX_LEAD.as_secs() as i64);
                assert!(texts.insert(message), "a replay");
            }
        }
    }
    assert_eq!(texts.len(), 5);
}

#[test]
fn impossible_requests_are_refused_with_a_reason() {
    let mut net = Net::new(&[1]);
    let at = net.at;
    let trust = net.node(1);
    assert_eq!(trust.request(at, 1, ""), Err(TrustError::OwnNode(1)));
    assert_eq!(trust.request(at, 0, ""), Err(TrustError::NoNode));
    assert_eq!(trust.request(at, 2, &"x".repeat(1025)), Err(TrustError::JustificationTooLong(1025)));
    // 1024 characters that each take six bytes once escaped.
    assert!(matches!(trust.request(at, 2, &"<".repeat(1024)), Err(TrustError::Message(_))));
    assert_eq!(trust.poll_event(), None, "nothing has changed");
    for node in 10..10 + MAX_OUTGOING as u32 {
        trust.request(at, node, "").unwrap();
    }
    assert!(matches!(trust.request(at, 9, ""), Err(TrustError::TooMany { .. })));
    let mut unregistered = Trust::new(identity(1), 0, TrustConfig::default());
    assert_eq!(unregistered.request(at, 2, ""), Err(TrustError::NotRegistered));
}

#[test]
fn each_revocation_is_sent_whatever_became_of_the_one_before() {
    let mut net = Net::trusting();
    let at = net.at;
    net.node(1).revoke(at, 2).unwrap();
    let sent = |net: &mut Net| {
        let mut sent = Vec::new();
        while let Some(event) = net.node(1).poll_event() {
            if let TrustEvent::SendDirect { id, kind: Kind::Revoke, .. } = event {
                sent.push(id);
            }
        }
        sent
    };
    let first = sent(&mut net);
    // It hangs, the peer asks again, is approved, and trust ends once more.
    let text = message(2, 1, Kind::Request, at, |_| {});
    net.node(1).handle_message(at, 2, Some(key(2)), &text).unwrap();
    assert!(net.node(1).approve(at, 2).unwrap());
    net.node(1).revoke(at, 2).unwrap();
    let second = sent(&mut net);
    assert_eq!((first.len(), second.len()), (1, 1));
    net.node(1).handle_sent(at, first[0], true);
    net.node(1).handle_sent(at, second[0], false);
    assert_eq!(net.node(1).poll_timeout(), Some(at.now + NOTICE_RETRY), "the second is repeated");
}

#[test]
fn who_asks_again_keeps_its_tunnel_and_hears_of_no_revocation_that_waits() {
    let mut net = Net::trusting();
    let at = net.at;
    net.node(1).revoke(at, 2).unwrap();
    let text = message(2, 1, Kind::Request, at, |_| {});
    net.node(1).handle_message(at, 2, Some(key(2)), &text).unwrap();
    let mut events = Vec::new();
    while let Some(event) = net.node(1).poll_event() {
        events.push(event);
    }
    assert!(events.iter().any(|event| matches!(event, TrustEvent::Withdraw { node: 2, .. })), "{events:?}");
    assert!(events.contains(&TrustEvent::RevokeTrust { node: 2 }), "{events:?}");
    net.wait(TEARDOWN_DELAY);
    assert_eq!(net.place(1, &TrustEvent::ForgetPeer { node: 2 }), None);
    net.wait(secs(3600));
    assert!(net.delivered.is_empty(), "{:?}", net.delivered);
    assert_eq!(net.node(1).pending_count(), 1);
}

#[test]
fn a_relayed_request_from_before_the_revocation_does_not_spare_the_peer_its_message() {
    let mut net = Net::trusting();
    net.direct = false;
    net.revoke(1, 2);
    let at = net.at;
    let relayed = |timestamp| PollOk {
        requests: vec![WaitingRequest { from: 2, justification: "please".to_owned(), timestamp }],
        ..PollOk::default()
    };
    net.node(1).handle_poll(at, &relayed(START - 60));
    net.carry();
    net.direct = true;
    net.wait(NOTICE_RETRY);
    assert_eq!(net.delivered, [(1, 2, Kind::Revoke)]);
    // One from after it does.
    let mut net = Net::trusting();
    net.direct = false;
    net.revoke(1, 2);
    net.node(1).handle_poll(at, &relayed(START + 60));
    net.carry();
    net.direct = true;
    net.wait(secs(3600));
    assert!(net.delivered.is_empty());
}

#[test]
fn the_registry_helps_to_find_a_peer_until_it_has_heard() {
    let mut net = Net::trusting();
    net.direct = false;
    net.revoke(1, 2);
    net.wait(NOTICE_RETRY - secs(1));
    let told = TrustEvent::RevokeTrust { node: 2 };
    assert_eq!(net.place(1, &told), None, "one attempt");
    net.wait(secs(2));
    assert!(net.place(1, &told).is_some(), "it does not wait for ever");
}
