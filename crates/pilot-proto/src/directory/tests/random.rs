//! Random connections, answers and questions.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Milliseconds.
    Wait(u64),
    Connected,
    Disconnected,
    Answer,
    Refuse(usize),
    Garbage(Vec<u8>),
    Ask(u8),
    Notify,
    Expect,
    Report(u32, bool),
    Move(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0u64..20_000).prop_map(Step::Wait),
        4 => Just(Step::Connected),
        1 => Just(Step::Disconnected),
        12 => Just(Step::Answer),
        2 => (0usize..3).prop_map(Step::Refuse),
        1 => prop::collection::vec(any::<u8>(), 1..40).prop_map(Step::Garbage),
        5 => any::<u8>().prop_map(Step::Ask),
        1 => Just(Step::Notify),
        1 => Just(Step::Expect),
        2 => (0u32..5, any::<bool>()).prop_map(|(n, report)| Step::Report(n, report)),
        1 => (1u16..4).prop_map(Step::Move),
    ]
}

/// What the driver has.
#[derive(Debug, PartialEq)]
enum Driver {
    Nothing,
    Opening,
    Open,
}

struct Run {
    pair: Pair,
    driver: Driver,
    answers: BTreeMap<CallId, usize>,
    closed: bool,
}

impl Run {
    /// Takes what the session wants, checking that it makes sense.
    fn drain(&mut self) {
        let pair = &mut self.pair;
        while let Some(event) = pair.directory.poll_event() {
            assert!(!self.closed, "{event:?} after the end");
            match event {
                DirectoryEvent::Connect => {
                    assert_eq!(self.driver, Driver::Nothing, "a second connection");
                    self.driver = Driver::Opening;
                }
                DirectoryEvent::Disconnect { .. } => {
                    assert_ne!(self.driver, Driver::Nothing, "no connection to close");
                    self.driver = Driver::Nothing;
                }
                DirectoryEvent::Answer { id, .. } => *self.answers.entry(id).or_default() += 1,
                DirectoryEvent::Closed => self.closed = true,
                _ => {}
            }
        }
        while let Some(bytes) = pair.directory.poll_transmit() {
            assert_eq!(self.driver, Driver::Open, "bytes without a connection");
            pair.decoder.push(&bytes);
        }
        while let Some(body) = pair.decoder.next_frame().unwrap() {
            pair.requests.push_back(Request::parse(body).unwrap());
        }
        assert!(pair.requests.len() <= MAX_IN_FLIGHT + 1, "too many in flight");
    }

    fn answer(&mut self, answer: &Answer) {
        let mut bytes = Vec::new();
        answer.emit(&mut bytes).unwrap();
        self.pair.directory.handle_data(self.pair.now, &bytes);
        self.drain();
    }

    /// Lets time pass; a timer that fires without effect must not be due again at once.
    fn wait(&mut self, duration: Duration) {
        let end = self.pair.now + duration;
        for _ in 0..10_000 {
            let Some(when) = self.pair.directory.poll_timeout().filter(|when| *when <= end) else {
                self.pair.now = end;
                return;
            };
            self.pair.now = self.pair.now.max(when);
            self.pair.directory.handle_timeout(self.pair.now);
            self.drain();
        }
        panic!("the timer spins");
    }
}

fn question(which: u8) -> Call {
    let node = u32::from(which);
    match which % 8 {
        0 => Call::Lookup { node },
        1 => Call::SetHostname { hostname: format!("h{which}") },
        2 => Call::SetVisibility { public: which > 99 },
        3 => Call::SetTags { tags: vec![format!("t{which}")] },
        4 => Call::RequestHandshake { node, justification: String::new() },
        5 => Call::ResolveHostname { hostname: "x".to_owned() },
        6 => Call::Lookup { node: 1 },
        _ => Call::Deregister,
    }
}

proptest! {
    #[test]
    fn every_question_is_answered_once_whatever_the_connection_does(steps in prop::collection::vec(step(), 1..120)) {
        let mut config = DirectoryConfig::new(identity());
        config.hostname = Some("me".to_owned());
        config.public = Some(true);
        let mut pair = Pair::new(config);
        pair.connects = 0;
        let mut run = Run { pair, driver: Driver::Opening, answers: BTreeMap::new(), closed: false };
        run.pair.directory.set_listen_addr(run.pair.now, "198.51.100.7:4000");
        let mut asked = Vec::new();
        for step in steps {
            let now = run.pair.now;
            match step {
                Step::Wait(millis) => run.wait(Duration::from_millis(millis)),
                Step::Connected if run.driver == Driver::Opening => {
                    run.driver = Driver::Open;
                    run.pair.decoder = FrameDecoder::default();
                    run.pair.requests.clear();
                    run.pair.directory.handle_connected(now);
                }
                Step::Disconnected if run.driver != Driver::Nothing => {
                    run.driver = Driver::Nothing;
                    run.pair.directory.handle_disconnected(now, "gone");
                }
                Step::Answer if run.driver == Driver::Open => {
                    if let Some(request) = run.pair.requests.pop_front() {
                        run.answer(&ordinary(7, &request));
                    }
                }
                Step::Refuse(which) if run.driver == Driver::Open => {
                    if run.pair.requests.pop_front().is_some() {
                        let text = ["request failed", "node not found", "signature verification failed"][which];
                        run.answer(&Answer::error(text, None));
                    }
                }
                Step::Garbage(bytes) if run.driver == Driver::Open => run.pair.directory.handle_data(now, &bytes),
                Step::Ask(which) => asked.push(run.pair.directory.call(now, question(which))),
                Step::Notify => run.pair.directory.handle_notify(now),
                Step::Expect => run.pair.directory.expect_answer(now),
                Step::Report(node, true) => run.pair.directory.report_trust(now, node),
                Step::Report(node, false) => run.pair.directory.revoke_trust(now, node),
                Step::Move(port) => run.pair.directory.set_listen_addr(now, &format!("198.51.100.7:{port}")),
                Step::Connected | Step::Disconnected | Step::Answer | Step::Refuse(_) | Step::Garbage(_) => {}
            }
            run.drain();
        }
        // Within their deadline all are answered, connection or not.
        run.wait(CALL_TIMEOUT + CONNECT_TIMEOUT);
        for id in &asked {
            prop_assert_eq!(run.answers.get(id), Some(&1), "{:?}", id);
        }
        run.pair.directory.shutdown(run.pair.now);
        run.drain();
        run.wait(SHUTDOWN_TIMEOUT);
        prop_assert!(run.closed);
        prop_assert_eq!(run.pair.directory.poll_timeout(), None);
        prop_assert_eq!(run.answers.len(), asked.len(), "and nothing else was");
    }
}
