//! A session against a registry on paper: every request is read from the bytes and answered by hand.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::frame::FrameDecoder;
use pilot_wire::registry::{Answer, LookupOk, PollOk, Register, RegisterOk, Request, WaitingRequest, WaitingResponse};
use pilot_wire::{base64, signed};

use super::*;
use crate::identity::verify;

mod random;
mod rotation;

struct Pair {
    now: Instant,
    start: Instant,
    directory: Directory,
    decoder: FrameDecoder,
    events: Vec<DirectoryEvent>,
    connects: usize,
    /// Requests sent and not answered.
    requests: VecDeque<Request>,
}

const SEED: [u8; 32] = [1; 32];

fn identity() -> Arc<Identity> {
    Arc::new(Identity::from_seed(SEED))
}

impl Pair {
    fn new(config: DirectoryConfig) -> Self {
        // The one place where a test takes a clock; all times are relative to it.
        #[allow(clippy::disallowed_methods)]
        let now = Instant::now();
        let mut pair = Self {
            now,
            start: now,
            directory: Directory::new(now, config, [3; 32]),
            decoder: FrameDecoder::default(),
            events: Vec::new(),
            connects: 0,
            requests: VecDeque::new(),
        };
        pair.drain();
        pair
    }

    /// Connected, registered as node 7, identified, and quiet.
    fn registered(config: DirectoryConfig) -> Self {
        let mut pair = Self::new(config);
        pair.directory.set_listen_addr(pair.now, "198.51.100.7:4000");
        pair.connect();
        pair.settle(7);
        pair.events.clear();
        pair
    }

    fn plain() -> Self {
        Self::registered(DirectoryConfig::new(identity()))
    }

    fn connect(&mut self) {
        self.decoder = FrameDecoder::default();
        self.requests.clear();
        self.directory.handle_connected(self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(event) = self.directory.poll_event() {
            match event {
                DirectoryEvent::Connect => self.connects += 1,
                event => self.events.push(event),
            }
        }
        while let Some(bytes) = self.directory.poll_transmit() {
            self.decoder.push(&bytes);
        }
        while let Some(body) = self.decoder.next_frame().unwrap() {
            self.requests.push_back(Request::parse(body).unwrap());
        }
    }

    fn next(&mut self) -> Request {
        self.requests.pop_front().expect("a request was sent")
    }

    fn reply(&mut self, answer: &Answer) {
        let mut bytes = Vec::new();
        answer.emit(&mut bytes).unwrap();
        // A prefix and a body often arrive apart (04 §3).
        self.directory.handle_data(self.now, &bytes[..4]);
        self.directory.handle_data(self.now, &bytes[4..]);
        self.drain();
    }

    /// Answers everything as a registry that knows us as `node` does, until nothing is asked.
    fn settle(&mut self, node: u32) {
        while let Some(request) = self.requests.pop_front() {
            let answer = ordinary(node, &request);
            self.reply(&answer);
        }
    }

    /// Lets time pass; timers fire when due. Connections asked for are made and requests are answered.
    fn run(&mut self, duration: Duration, node: u32) -> Vec<(Duration, Request)> {
        let end = self.now + duration;
        let mut log = Vec::new();
        for _ in 0..10_000 {
            let Some(when) = self.directory.poll_timeout().filter(|when| *when <= end) else {
                self.now = end;
                return log;
            };
            assert!(when >= self.now || self.directory.poll_timeout().is_some());
            self.now = self.now.max(when);
            self.directory.handle_timeout(self.now);
            self.drain();
            while let Some(request) = self.requests.pop_front() {
                log.push((self.now - self.start, request.clone()));
                self.reply(&ordinary(node, &request));
            }
        }
        panic!("the session spins: {log:?}");
    }

    fn advance(&mut self, duration: Duration) {
        self.now += duration;
        self.directory.handle_timeout(self.now);
        self.drain();
    }

    fn take_answers(&mut self) -> Vec<(CallId, Result<Fields, CallError>)> {
        let mut answers = Vec::new();
        self.events.retain(|event| match event {
            DirectoryEvent::Answer { id, result } => {
                answers.push((*id, result.clone()));
                false
            }
            _ => true,
        });
        answers
    }
}

fn ordinary(node: u32, request: &Request) -> Answer {
    match request {
        Request::Register(r) => Answer::Register(RegisterOk {
            node,
            public_key: r.public_key.clone(),
            observed_addr: Some(r.listen_addr.clone()),
            ..RegisterOk::default()
        }),
        Request::Heartbeat { .. } => Answer::Heartbeat { time: 1 },
        Request::Lookup { node } => Answer::Lookup(LookupOk {
            node: *node,
            networks: Some(vec![0, 5]),
            public_key: base64::encode(&[9; 32]),
            ..LookupOk::default()
        }),
        Request::PollHandshakes { .. } => Answer::Poll(PollOk::default()),
        Request::Deregister { .. } => Answer::Deregister,
        Request::SetHostname { node, hostname, .. } => Answer::SetHostname { node: *node, hostname: hostname.clone() },
        Request::SetVisibility { node, public, .. } => Answer::SetVisibility { node: *node, public: *public },
        Request::SetTags { node, tags, .. } => Answer::SetTags { node: *node, tags: tags.clone() },
        Request::ReportTrust { .. } => Answer::ReportTrust,
        Request::RevokeTrust { .. } => Answer::RevokeTrust,
        Request::RequestHandshake { .. } => Answer::RequestHandshake,
        Request::ResolveHostname { .. } => Answer::error("request failed", None),
        other => panic!("no ordinary answer to {other:?}"),
    }
}

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

#[test]
fn it_registers_signed_and_then_asks_what_the_registry_holds() {
    let mut config = DirectoryConfig::new(identity());
    config.owner = "alice@example.com".to_owned();
    config.version = "9.9".to_owned();
    let mut pair = Pair::new(config);
    assert_eq!(pair.connects, 1);
    pair.connect();
    assert!(pair.requests.is_empty(), "nothing is registered before the address is known");
    pair.directory.set_listen_addr(pair.now, "198.51.100.7:4000");
    pair.drain();
    let Request::Register(register) = pair.next() else { panic!() };
    assert_eq!(register.listen_addr, "198.51.100.7:4000");
    assert_eq!(register.owner, "alice@example.com");
    assert_eq!(register.version.as_deref(), Some("9.9"));
    let signature = base64::decode_array(&register.signature).unwrap();
    let text = signed::register(&register.listen_addr, &register.public_key);
    assert!(verify(&identity().public_key(), text.as_bytes(), &signature));
    pair.reply(&ordinary(7, &Request::Register(register)));
    assert_eq!(pair.directory.node(), 7);
    assert!(pair.events.contains(&DirectoryEvent::Registered {
        node: 7,
        changed: false,
        observed: Some("198.51.100.7:4000".to_owned())
    }));
    let asked: Vec<String> = pair.requests.iter().map(|r| r.kind().to_owned()).collect();
    assert_eq!(asked, ["poll_handshakes", "lookup"], "pipelined");
    pair.settle(7);
    assert!(pair.events.iter().any(|e| matches!(
        e,
        DirectoryEvent::Identified { node: 7, networks, .. } if *networks == [0, 5]
    )));
}

#[test]
fn it_sets_only_what_differs() {
    let mut config = DirectoryConfig::new(identity());
    config.hostname = Some("alice".to_owned());
    config.public = Some(false);
    config.tags = Some(vec!["web".to_owned()]);
    let mut pair = Pair::new(config);
    pair.directory.set_listen_addr(pair.now, "198.51.100.7:4000");
    pair.connect();
    let mut set = Vec::new();
    while let Some(request) = pair.requests.pop_front() {
        if request.kind().starts_with("set_") {
            set.push(request.kind().to_owned());
        }
        pair.reply(&ordinary(7, &request));
    }
    assert_eq!(set, ["set_hostname", "set_tags"], "it was private already");
    let later = pair.run(secs(600), 7);
    assert!(!later.iter().any(|(_, r)| r.kind().starts_with("set_")), "not again without a reason");
}

#[test]
fn heartbeats_are_jittered_and_followed_by_a_poll() {
    let mut pair = Pair::plain();
    let log = pair.run(secs(600), 7);
    let beats: Vec<Duration> = log.iter().filter(|(_, r)| r.kind() == "heartbeat").map(|(t, _)| *t).collect();
    let polls = log.iter().filter(|(_, r)| r.kind() == "poll_handshakes").count();
    assert!((20..=25).contains(&beats.len()), "{}", beats.len());
    assert_eq!(polls, beats.len());
    let lookups = log.iter().filter(|(_, r)| matches!(r, Request::Lookup { node: 7 })).count();
    assert!((1..=3).contains(&lookups), "our networks may change: {lookups}");
    assert_eq!(log.len(), 2 * beats.len() + lookups, "nothing else is asked: {log:?}");
    let pauses: Vec<Duration> = beats.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(pauses.iter().all(|p| (secs(24)..=secs(30)).contains(p)), "{pauses:?}");
    assert!(pauses.windows(2).any(|w| w[0] != w[1]), "{pauses:?}");
}

#[test]
fn it_registers_again_at_once_when_the_registry_says_it_has_forgotten_us() {
    for text in ["node 7: node not found", "signature verification failed"] {
        let mut pair = Pair::plain();
        pair.directory.report_trust(pair.now, 9);
        pair.drain();
        pair.settle(7);
        pair.advance(secs(30));
        assert_eq!(pair.next().kind(), "heartbeat");
        pair.reply(&Answer::error(text, None));
        let Request::Register(_) = pair.next() else { panic!() };
        pair.reply(&ordinary(8, &Request::Register(Register::default())));
        assert!(
            pair.events.iter().any(|e| matches!(e, DirectoryEvent::Registered { node: 8, changed: true, .. })),
            "{:?}",
            pair.events
        );
        let Some(report) = pair.requests.iter().find(|r| r.kind() == "report_trust") else { panic!() };
        assert!(matches!(report, Request::ReportTrust { node: 8, peer: 9, .. }), "with the new id");
    }
}

#[test]
fn it_registers_again_after_three_refusals_without_a_reason() {
    let mut pair = Pair::plain();
    for beat in 1..=3 {
        pair.advance(secs(30));
        assert_eq!(pair.next().kind(), "heartbeat", "{beat}");
        assert!(pair.requests.is_empty());
        pair.reply(&Answer::error("request failed", None));
    }
    assert_eq!(pair.next().kind(), "register");
}

#[test]
fn a_refused_registration_is_tried_again_ever_more_rarely() {
    let mut pair = Pair::new(DirectoryConfig::new(identity()));
    pair.directory.set_listen_addr(pair.now, "198.51.100.7:4000");
    pair.connect();
    let mut attempts = Vec::new();
    for _ in 0..6 {
        assert_eq!(pair.next().kind(), "register");
        attempts.push(pair.now);
        pair.reply(&Answer::error("rate limited", None));
        assert!(pair.requests.is_empty());
        pair.now = pair.directory.poll_timeout().unwrap();
        pair.directory.handle_timeout(pair.now);
        pair.drain();
    }
    let pauses: Vec<u64> = attempts.windows(2).map(|w| (w[1] - w[0]).as_millis() as u64).collect();
    for (pause, full) in pauses.iter().zip([5000, 10_000, 20_000, 40_000, 60_000]) {
        assert!((full * 8 / 10..=full).contains(pause), "{pauses:?}");
    }
    assert!(pair.events.contains(&DirectoryEvent::RegistrationRefused { text: "rate limited".to_owned() }));
}

#[test]
fn questions_are_pipelined_and_answers_matched_in_order() {
    let mut pair = Pair::plain();
    let a = pair.directory.call(pair.now, Call::Lookup { node: 1 });
    let b = pair.directory.call(pair.now, Call::Resolve { node: 2 });
    let c = pair.directory.call(pair.now, Call::Lookup { node: 3 });
    pair.drain();
    assert_eq!(pair.requests.len(), 3);
    let Request::Resolve { node: 2, requester: 7, signature } = &pair.requests[1] else { panic!() };
    let signature = base64::decode_array(signature).unwrap();
    assert!(verify(&identity().public_key(), b"resolve:7:2", &signature));
    pair.reply(&ordinary(7, &Request::Lookup { node: 1 }));
    pair.reply(&Answer::error("request failed", Some("denied")));
    pair.reply(&ordinary(7, &Request::Lookup { node: 3 }));
    let answers = pair.take_answers();
    assert_eq!(answers.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [a, b, c]);
    assert_eq!(answers[0].1.as_ref().unwrap().u32("node_id"), 1);
    let refused = answers[1].1.as_ref().unwrap_err();
    assert_eq!(refused.to_string(), "registry: request failed");
    assert_eq!(refused, &CallError::Refused { text: "request failed".to_owned(), code: Some("denied".to_owned()) });
    assert_eq!(answers[2].1.as_ref().unwrap().u32("node_id"), 3);
}

#[test]
fn only_harmless_questions_are_sent_again_after_a_lost_connection() {
    let mut pair = Pair::plain();
    let lookup = pair.directory.call(pair.now, Call::Lookup { node: 1 });
    let request = Call::RequestHandshake { node: 2, justification: "hi".to_owned() };
    let handshake = pair.directory.call(pair.now, request);
    pair.drain();
    assert_eq!(pair.requests.len(), 2);
    pair.directory.handle_disconnected(pair.now, "reset by peer");
    pair.drain();
    let answers = pair.take_answers();
    assert_eq!(answers, [(handshake, Err(CallError::Lost { reason: "reset by peer".to_owned() }))]);
    let connects = pair.connects;
    pair.advance(secs(1));
    assert_eq!(pair.connects, connects + 1);
    pair.connect();
    assert_eq!(pair.next().kind(), "heartbeat", "a known node asks first whether it still is");
    assert!(pair.requests.is_empty(), "nothing follows before the answer");
    pair.reply(&Answer::Heartbeat { time: 1 });
    assert!(matches!(pair.requests[0], Request::Lookup { node: 1 }));
    pair.settle(7);
    assert_eq!(pair.take_answers()[0].0, lookup);
}

#[test]
fn a_restarted_registry_is_noticed_with_the_first_request() {
    let mut pair = Pair::plain();
    pair.directory.handle_disconnected(pair.now, "closed");
    pair.advance(secs(1));
    pair.connect();
    assert_eq!(pair.next().kind(), "heartbeat");
    pair.reply(&Answer::error("request failed", None));
    assert_eq!(pair.next().kind(), "register", "whatever its words");
}

#[test]
fn a_silent_registry_is_given_up_and_connected_again() {
    let mut pair = Pair::plain();
    let id = pair.directory.call(pair.now, Call::Lookup { node: 1 });
    pair.drain();
    pair.advance(ANSWER_TIMEOUT);
    assert!(pair.events.contains(&DirectoryEvent::Disconnect { reason: "no answer in time".to_owned() }));
    assert!(pair.events.contains(&DirectoryEvent::Online(false)));
    // The question waits for a new connection, but not for ever.
    pair.advance(secs(1));
    assert_eq!(pair.take_answers().len(), 1, "ten seconds without a connection are too many");
    assert_eq!(id, CallId(1));
}

#[test]
fn a_trickle_of_answers_keeps_the_connection_but_not_a_question_past_its_deadline() {
    let mut pair = Pair::plain();
    let ids: Vec<CallId> = (1..=4).map(|node| pair.directory.call(pair.now, Call::Lookup { node })).collect();
    pair.drain();
    for node in 1..=2 {
        pair.advance(secs(7));
        pair.reply(&ordinary(7, &Request::Lookup { node }));
    }
    pair.advance(secs(1));
    let answers = pair.take_answers();
    assert_eq!(answers.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
    assert_eq!(answers[2].1, Err(CallError::Timeout));
    // The late answers are matched with nobody; the next question still gets its own.
    let next = pair.directory.call(pair.now, Call::Lookup { node: 99 });
    pair.drain();
    for node in [3, 4, 99] {
        pair.reply(&ordinary(7, &Request::Lookup { node }));
    }
    let answers = pair.take_answers();
    assert_eq!(answers.len(), 1);
    assert_eq!((answers[0].0, answers[0].1.as_ref().unwrap().u32("node_id")), (next, 99));
}

#[test]
fn without_a_registry_questions_fail_soon_and_connecting_backs_off() {
    let mut pair = Pair::new(DirectoryConfig::new(identity()));
    pair.directory.set_listen_addr(pair.now, "198.51.100.7:4000");
    pair.directory.call(pair.now, Call::Lookup { node: 1 });
    let mut attempts = vec![pair.now];
    for _ in 0..9 {
        pair.directory.handle_disconnected(pair.now, "connection refused");
        loop {
            pair.now = pair.directory.poll_timeout().unwrap();
            let before = pair.connects;
            pair.directory.handle_timeout(pair.now);
            pair.drain();
            if pair.connects > before {
                break;
            }
        }
        attempts.push(pair.now);
    }
    let answers = pair.take_answers();
    assert_eq!(answers[0].1, Err(CallError::Offline { reason: "connection refused".to_owned() }));
    let last = *attempts.last().unwrap() - attempts[attempts.len() - 2];
    assert!(last >= secs(24) && last <= RECONNECT_MAX, "{last:?}");
    // A question brings the next attempt forward.
    pair.directory.handle_disconnected(pair.now, "connection refused");
    pair.now += secs(2);
    let before = pair.connects;
    pair.directory.call(pair.now, Call::Lookup { node: 1 });
    pair.drain();
    assert_eq!(pair.connects, before + 1);
}

#[test]
fn a_connection_that_takes_too_long_is_given_up() {
    let mut pair = Pair::new(DirectoryConfig::new(identity()));
    pair.advance(CONNECT_TIMEOUT);
    assert!(matches!(pair.events.last(), Some(DirectoryEvent::Disconnect { .. })), "{:?}", pair.events);
}

#[test]
fn an_answer_of_another_kind_ends_the_connection() {
    let mut pair = Pair::plain();
    pair.directory.call(pair.now, Call::Lookup { node: 1 });
    pair.drain();
    pair.reply(&Answer::Heartbeat { time: 1 });
    assert!(matches!(pair.events.last(), Some(DirectoryEvent::Online(false))), "{:?}", pair.events);
    assert!(pair.take_answers().is_empty(), "the question is asked again on the next connection");

    for garbage in [&b"\0\0\0\x02[]"[..], b"\0\0\0\x01x", b"\xff\xff\xff\xff", b"\0\0\0\x02{}"] {
        let mut pair = Pair::plain();
        pair.directory.handle_data(pair.now, garbage);
        pair.drain();
        assert!(pair.events.iter().any(|e| matches!(e, DirectoryEvent::Disconnect { .. })), "{garbage:?}");
    }
}

#[test]
fn polls_are_frequent_while_an_answer_is_expected() {
    let mut pair = Pair::plain();
    pair.directory.call(pair.now, Call::RequestHandshake { node: 2, justification: String::new() });
    pair.drain();
    pair.settle(7);
    let asked = pair.now - pair.start;
    let log = pair.run(secs(300), 7);
    let polls: Vec<Duration> = log.iter().filter(|(_, r)| r.kind() == "poll_handshakes").map(|(t, _)| *t).collect();
    let fast = polls.iter().filter(|t| **t <= asked + FAST_POLL_FOR).count();
    assert!((55..=70).contains(&fast), "{fast}");
    assert!(polls.len() - fast < 12, "then as often as heartbeats: {}", polls.len());
}

#[test]
fn notifies_poll_at_once_but_not_without_limit() {
    let mut pair = Pair::plain();
    let mut polls = Vec::new();
    for _ in 0..100 {
        pair.directory.handle_notify(pair.now);
        pair.drain();
        while let Some(request) = pair.requests.pop_front() {
            polls.push(pair.now);
            pair.reply(&ordinary(7, &request));
        }
        pair.advance(Duration::from_millis(100));
        while let Some(request) = pair.requests.pop_front() {
            polls.push(pair.now);
            pair.reply(&ordinary(7, &request));
        }
    }
    assert_eq!(polls.iter().filter(|t| **t - pair.start < secs(1)).count(), 3, "a burst");
    assert!((4..=6).contains(&polls.len()), "then one per five seconds: {}", polls.len());
}

#[test]
fn relayed_handshakes_are_handed_over() {
    let mut pair = Pair::plain();
    pair.directory.poll_handshakes(pair.now);
    pair.drain();
    let Request::PollHandshakes { node: 7, signature } = pair.next() else { panic!() };
    let signature = base64::decode_array(&signature).unwrap();
    assert!(verify(&identity().public_key(), b"poll_handshakes:7", &signature));
    let poll = PollOk {
        requests: vec![WaitingRequest { from: 2, justification: "hi".to_owned(), timestamp: 5 }],
        responses: vec![WaitingResponse { from: 3, accept: true, timestamp: 6 }],
    };
    pair.reply(&Answer::Poll(poll.clone()));
    assert_eq!(pair.events, [DirectoryEvent::Poll(poll)]);
}

#[test]
fn trust_is_reported_once_and_a_revocation_until_it_is_answered() {
    let mut pair = Pair::plain();
    for node in 100..140 {
        pair.directory.report_trust(pair.now, node);
    }
    pair.drain();
    assert_eq!(pair.requests.len(), MAX_REPORTS_IN_FLIGHT);
    let call = pair.directory.call(pair.now, Call::Lookup { node: 1 });
    pair.drain();
    assert_eq!(pair.requests.len(), MAX_REPORTS_IN_FLIGHT + 1, "reports leave room for questions");
    pair.settle(7);
    assert_eq!(pair.take_answers()[0].0, call);
    assert_eq!(pair.directory.reports_owed(), 0);
    let log = pair.run(secs(900), 7);
    assert!(!log.iter().any(|(_, r)| r.kind() == "report_trust"));

    pair.directory.revoke_trust(pair.now, 100);
    pair.drain();
    assert!(matches!(pair.next(), Request::RevokeTrust { node: 7, peer: 100, .. }));
    pair.directory.handle_disconnected(pair.now, "gone");
    let log = {
        pair.advance(secs(1));
        pair.connect();
        let mut log = Vec::new();
        while let Some(request) = pair.requests.pop_front() {
            log.push(request.clone());
            pair.reply(&ordinary(7, &request));
        }
        log
    };
    assert!(log.iter().any(|r| matches!(r, Request::RevokeTrust { peer: 100, .. })), "{log:?}");
    assert!(!log.iter().any(|r| matches!(r, Request::ReportTrust { .. })), "the registry still knows the others");
    assert_eq!(pair.directory.reports_owed(), 0);
}

#[test]
fn a_refused_report_is_tried_again_later_and_a_refused_revocation_is_not() {
    let mut pair = Pair::plain();
    pair.directory.report_trust(pair.now, 100);
    pair.directory.revoke_trust(pair.now, 101);
    pair.drain();
    assert_eq!(pair.requests.len(), 2);
    pair.requests.clear();
    pair.reply(&Answer::error("node not found", None));
    pair.reply(&Answer::error("request failed", None));
    let log = pair.run(secs(1000), 7);
    let again: Vec<&Request> = log.iter().map(|(_, r)| r).filter(|r| r.kind().contains("trust")).collect();
    assert!(matches!(again[..], [Request::ReportTrust { peer: 100, .. }]), "{again:?}");
}

#[test]
fn an_endpoint_that_flaps_does_not_flood_the_registry() {
    let mut pair = Pair::plain();
    let mut log = Vec::new();
    for i in 0..200u32 {
        pair.directory.set_listen_addr(pair.now, &format!("198.51.100.7:{}", 4000 + i % 2));
        pair.drain();
        pair.settle(7);
        log.extend(pair.run(Duration::from_millis(100), 7));
    }
    let registrations = log.iter().filter(|(_, r)| r.kind() == "register").count();
    assert!((1..=5).contains(&registrations), "{registrations}");
    assert!(!log.iter().any(|(_, r)| r.kind() == "report_trust"));
}

#[test]
fn what_was_set_by_hand_survives_a_registry_that_forgets() {
    let mut pair = Pair::plain();
    pair.directory.call(pair.now, Call::SetHostname { hostname: "bob".to_owned() });
    pair.directory.call(pair.now, Call::SetVisibility { public: true });
    pair.directory.call(pair.now, Call::SetTags { tags: vec!["api".to_owned()] });
    pair.drain();
    pair.settle(7);
    pair.advance(secs(30));
    pair.next();
    pair.reply(&Answer::error("node not found", None));
    let mut kinds = Vec::new();
    while let Some(request) = pair.requests.pop_front() {
        kinds.push(request.kind().to_owned());
        pair.reply(&ordinary(7, &request));
    }
    for kind in ["register", "set_hostname", "set_visibility", "set_tags"] {
        assert!(kinds.iter().any(|k| k == kind), "{kind} in {kinds:?}");
    }
}

#[test]
fn after_a_deregistration_by_hand_it_stays_away_for_a_while() {
    let mut pair = Pair::plain();
    pair.directory.call(pair.now, Call::Deregister);
    pair.drain();
    pair.settle(7);
    let left = pair.now - pair.start;
    let log = pair.run(secs(200), 7);
    let (when, first) = &log[0];
    assert_eq!(first.kind(), "register");
    assert_eq!(*when - left, STAY_AWAY);
}

#[test]
fn a_shutdown_deregisters_and_ends_within_its_deadline() {
    let mut pair = Pair::plain();
    let waiting = pair.directory.call(pair.now, Call::Lookup { node: 1 });
    pair.drain();
    pair.directory.shutdown(pair.now);
    pair.drain();
    assert_eq!(pair.requests.iter().map(|r| r.kind()).collect::<Vec<_>>(), ["lookup", "deregister"]);
    let late = pair.directory.call(pair.now, Call::Lookup { node: 2 });
    pair.drain();
    assert_eq!(pair.take_answers(), [(late, Err(CallError::Closed))]);
    pair.reply(&ordinary(7, &Request::Lookup { node: 1 }));
    assert_eq!(pair.take_answers()[0].0, waiting);
    pair.reply(&Answer::Deregister);
    assert_eq!(pair.events.last(), Some(&DirectoryEvent::Closed));
    assert_eq!(pair.directory.poll_timeout(), None);

    let mut pair = Pair::plain();
    pair.directory.shutdown(pair.now);
    pair.advance(SHUTDOWN_TIMEOUT);
    assert_eq!(pair.events.last(), Some(&DirectoryEvent::Closed), "without an answer too");

    let mut pair = Pair::new(DirectoryConfig::new(identity()));
    pair.directory.shutdown(pair.now);
    pair.drain();
    assert_eq!(pair.events.last(), Some(&DirectoryEvent::Closed), "and without a connection");
}

#[test]
fn too_many_questions_fail_rather_than_pile_up() {
    let mut pair = Pair::new(DirectoryConfig::new(identity()));
    for node in 0..MAX_QUEUED as u32 {
        pair.directory.call(pair.now, Call::Lookup { node });
    }
    pair.drain();
    assert!(pair.take_answers().is_empty());
    let id = pair.directory.call(pair.now, Call::Lookup { node: 1 });
    pair.drain();
    assert_eq!(pair.take_answers(), [(id, Err(CallError::Busy))]);
    pair.directory.set_listen_addr(pair.now, "198.51.100.7:4000");
    pair.connect();
    let mut sent = 0;
    while let Some(request) = pair.requests.pop_front() {
        sent += usize::from(request.kind() == "lookup");
        assert!(pair.requests.len() < MAX_IN_FLIGHT);
        pair.reply(&ordinary(7, &request));
    }
    assert!(sent >= MAX_QUEUED);
    assert_eq!(pair.take_answers().len(), MAX_QUEUED);
}
