//! The connection: opening, pipelining, deadlines, loss.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use pilot_wire::frame::FrameDecoder;
use pilot_wire::registry::{ErrorAnswer, Fields, Request, parse_body};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::calls::Asker;
use super::rotation::Rotation;
use super::sync::Sync;
use super::{
    ANSWER_TIMEOUT, CALL_TIMEOUT, CONNECT_TIMEOUT, Call, CallError, CallId, DirectoryConfig, DirectoryEvent, JITTER,
    MAX_IN_FLIGHT, MAX_QUEUED, OFFLINE_CALL_TIMEOUT, RECONNECT, RECONNECT_MAX, RECONNECT_ON_DEMAND, SHUTDOWN_TIMEOUT,
};

/// A question that waits for its turn or its answer.
#[derive(Clone, Debug)]
pub(super) struct Question {
    id: CallId,
    call: Call,
    asked: Instant,
}

#[derive(Debug)]
struct InFlight {
    asker: Asker,
    request: Request,
    question: Option<Question>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    /// No connection; the next attempt is made then.
    Down { retry: Instant },
    /// The driver is opening one.
    Connecting { since: Instant },
    /// There is one.
    Up,
    /// There will be none any more.
    Closed,
}

/// The registry session of one node. See the [module](super).
#[derive(Debug)]
pub struct Directory {
    pub(super) config: DirectoryConfig,
    /// Our id, 0 before the first registration.
    pub(super) node: u32,
    /// `host:port` we register; empty until known.
    pub(super) listen_addr: String,
    pub(super) sync: Sync,
    pub(super) rotation: Option<Rotation>,
    link: Link,
    /// Attempts since the last answer.
    attempts: u32,
    last_attempt: Option<Instant>,
    /// Why there is no connection.
    down_reason: String,
    decoder: FrameDecoder,
    out: Vec<u8>,
    in_flight: VecDeque<InFlight>,
    /// When the oldest request in flight became the oldest.
    waiting_since: Instant,
    queue: VecDeque<Question>,
    next_call: u64,
    closing: Option<Instant>,
    online: bool,
    events: VecDeque<DirectoryEvent>,
    rng: StdRng,
}

impl Directory {
    /// A session that connects at once. `seed` drives the jitter.
    pub fn new(now: Instant, config: DirectoryConfig, seed: [u8; 32]) -> Self {
        let mut this = Self {
            node: config.node,
            listen_addr: String::new(),
            sync: Sync::new(now),
            rotation: config.next_identity.clone().map(Rotation::interrupted),
            config,
            link: Link::Down { retry: now },
            attempts: 0,
            last_attempt: None,
            down_reason: "not connected yet".to_owned(),
            decoder: FrameDecoder::default(),
            out: Vec::new(),
            in_flight: VecDeque::new(),
            waiting_since: now,
            queue: VecDeque::new(),
            next_call: 1,
            closing: None,
            online: false,
            events: VecDeque::new(),
            rng: StdRng::from_seed(seed),
        };
        this.run(now);
        this
    }

    /// Our id, 0 before the first registration.
    pub fn node(&self) -> u32 {
        self.node
    }

    /// Whether the registry answers.
    pub fn is_online(&self) -> bool {
        self.online
    }

    /// Whether we are registered as far as we know.
    pub fn is_registered(&self) -> bool {
        self.sync.registered
    }

    /// Asks the registry something; [`DirectoryEvent::Answer`] follows in every case.
    pub fn call(&mut self, now: Instant, call: Call) -> CallId {
        let id = CallId(self.next_call);
        self.next_call += 1;
        if self.closing.is_some() || self.link == Link::Closed {
            self.answer(id, Err(CallError::Closed));
        } else if self.queue.len() >= MAX_QUEUED {
            self.answer(id, Err(CallError::Busy));
        } else {
            if matches!(call, Call::RequestHandshake { .. }) {
                self.sync.expect_answer(now);
            }
            self.queue.push_back(Question { id, call, asked: now });
            // Somebody waits: try again sooner than planned.
            if let Link::Down { retry } = &mut self.link {
                let soonest = self.last_attempt.map_or(now, |last| (last + RECONNECT_ON_DEMAND).max(now));
                *retry = (*retry).min(soonest);
            }
            self.run(now);
        }
        id
    }

    /// The connection asked for is there.
    pub fn handle_connected(&mut self, now: Instant) {
        if !matches!(self.link, Link::Connecting { .. }) {
            return;
        }
        self.link = Link::Up;
        self.decoder = FrameDecoder::default();
        self.out.clear();
        self.sync.connected();
        self.run(now);
    }

    /// The connection could not be opened, or has ended.
    pub fn handle_disconnected(&mut self, now: Instant, reason: &str) {
        if matches!(self.link, Link::Connecting { .. } | Link::Up) {
            self.lost(now, reason);
            self.run(now);
        }
    }

    /// Bytes from the registry.
    pub fn handle_data(&mut self, now: Instant, data: &[u8]) {
        if self.link != Link::Up {
            return;
        }
        self.decoder.push(data);
        while self.link == Link::Up {
            let fields = match self.decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(body)) => parse_body(body).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if let Err(reason) = fields.and_then(|fields| self.handle_answer(now, fields)) {
                self.drop_connection(now, &reason);
            }
        }
        self.run(now);
    }

    /// A timer has fired.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.link {
            Link::Connecting { since } if since + CONNECT_TIMEOUT <= now => {
                self.drop_connection(now, "connecting took too long");
            }
            Link::Up if !self.in_flight.is_empty() && self.waiting_since + ANSWER_TIMEOUT <= now => {
                self.drop_connection(now, "no answer in time");
            }
            _ => {}
        }
        self.expire_questions(now);
        if self.closing.is_some_and(|deadline| deadline <= now) {
            self.finish_closing();
        }
        self.run(now);
    }

    /// When to call [`Directory::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let link = match self.link {
            Link::Closed => return None,
            Link::Down { retry } => Some(retry),
            Link::Connecting { since } => Some(since + CONNECT_TIMEOUT),
            Link::Up if self.in_flight.is_empty() => None,
            Link::Up => Some(self.waiting_since + ANSWER_TIMEOUT),
        };
        let asked = self.in_flight.iter().filter_map(|f| f.question.as_ref());
        let sent = asked.map(|q| q.asked + CALL_TIMEOUT);
        let queued = self.queue.iter().map(|q| self.question_deadline(q));
        let sync = (self.link == Link::Up && self.closing.is_none()).then(|| self.sync_due()).flatten();
        link.into_iter().chain(sent).chain(queued).chain(sync).chain(self.closing).min()
    }

    /// Bytes to write to the connection, `None` when there are none.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        (self.link == Link::Up && !self.out.is_empty()).then(|| std::mem::take(&mut self.out))
    }

    /// The next event; call until `None` after every input.
    pub fn poll_event(&mut self) -> Option<DirectoryEvent> {
        self.events.pop_front()
    }

    /// Deregisters and closes; [`DirectoryEvent::Closed`] follows within [`SHUTDOWN_TIMEOUT`].
    pub fn shutdown(&mut self, now: Instant) {
        if self.closing.is_some() || self.link == Link::Closed {
            return;
        }
        for question in std::mem::take(&mut self.queue) {
            self.answer(question.id, Err(CallError::Closed));
        }
        if self.link == Link::Up && self.sync.registered {
            self.closing = Some(now + SHUTDOWN_TIMEOUT);
            self.send(now, Asker::Goodbye, self.deregister_request());
        } else {
            self.finish_closing();
        }
    }

    pub(super) fn emit(&mut self, event: DirectoryEvent) {
        self.events.push_back(event);
    }

    pub(super) fn answer(&mut self, id: CallId, result: Result<Fields, CallError>) {
        self.emit(DirectoryEvent::Answer { id, result });
    }

    /// A duration, up to [`JITTER`] shorter.
    pub(super) fn jittered(&mut self, duration: Duration) -> Duration {
        duration.mul_f64(1.0 - JITTER * self.rng.random::<f64>())
    }

    /// Whether a request of this kind is under way.
    pub(super) fn is_in_flight(&self, asker: impl Fn(&Asker) -> bool) -> bool {
        self.in_flight.iter().any(|f| asker(&f.asker))
    }

    /// How many requests of this kind are under way.
    pub(super) fn count_in_flight(&self, asker: impl Fn(&Asker) -> bool) -> usize {
        self.in_flight.iter().filter(|f| asker(&f.asker)).count()
    }

    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    pub(super) fn has_room(&self) -> bool {
        self.in_flight.len() < MAX_IN_FLIGHT
    }

    pub(super) fn send(&mut self, now: Instant, asker: Asker, request: Request) {
        self.send_for(now, asker, request, None);
    }

    fn send_for(&mut self, now: Instant, asker: Asker, request: Request, question: Option<Question>) {
        if let Err(error) = request.emit(&mut self.out) {
            // Only the texts of a question can be this long; our own requests are short.
            if let Some(question) = question {
                let refused = CallError::Refused { text: error.to_string(), code: Some(error.code().to_owned()) };
                self.answer(question.id, Err(refused));
            }
            return;
        }
        if self.in_flight.is_empty() {
            self.waiting_since = now;
        }
        self.in_flight.push_back(InFlight { asker, request, question });
    }

    /// Does what can be done now.
    pub(super) fn run(&mut self, now: Instant) {
        match self.link {
            Link::Down { retry } if retry <= now => {
                self.link = Link::Connecting { since: now };
                self.last_attempt = Some(now);
                self.emit(DirectoryEvent::Connect);
            }
            Link::Up if self.closing.is_none() => {
                if self.run_rotation(now) {
                    return;
                }
                self.greet(now);
                if self.sync.greeted {
                    while self.has_room()
                        && let Some(question) = self.queue.pop_front()
                    {
                        let request = self.call_request(&question.call);
                        self.send_for(now, Asker::Call(question.id), request, Some(question));
                    }
                    self.synchronise(now);
                }
            }
            _ => {}
        }
    }

    /// One answer, for the oldest request. An error means that the connection can no longer be understood.
    fn handle_answer(&mut self, now: Instant, fields: Fields) -> Result<(), String> {
        let Some(sent) = self.in_flight.pop_front() else {
            return Err("answer without a request".to_owned());
        };
        self.waiting_since = now;
        let result = match ErrorAnswer::from_fields(&fields) {
            Some(error) => Err(error),
            None => {
                let kind = fields.text("type").unwrap_or_default();
                if kind.strip_suffix("_ok") != Some(sent.request.kind()) {
                    // Whose answer it is cannot be known; everything behind it would be misread.
                    self.in_flight.push_front(sent);
                    return Err(format!("unexpected answer {:?}", kind.chars().take(64).collect::<String>()));
                }
                Ok(fields)
            }
        };
        self.attempts = 0;
        if !self.online {
            self.online = true;
            self.emit(DirectoryEvent::Online(true));
        }
        match (sent.asker, sent.question) {
            (Asker::Call(id), Some(question)) => {
                if let Ok(fields) = &result {
                    self.call_succeeded(now, &question.call, fields);
                }
                let refused = |e: ErrorAnswer| CallError::Refused { text: e.text, code: e.code };
                self.answer(id, result.map_err(refused));
            }
            (Asker::Goodbye, _) => self.finish_closing(),
            (Asker::Rotation, _) => self.rotation_answered(result),
            (asker, _) => self.handle_own_answer(now, asker, result),
        }
        Ok(())
    }

    fn drop_connection(&mut self, now: Instant, reason: &str) {
        self.emit(DirectoryEvent::Disconnect { reason: reason.to_owned() });
        self.lost(now, reason);
    }

    /// There is no connection any more: what may be sent again goes back to where it came from.
    fn lost(&mut self, now: Instant, reason: &str) {
        self.out.clear();
        self.down_reason = reason.chars().take(200).collect();
        let pause = RECONNECT.saturating_mul(1 << self.attempts.min(16)).min(RECONNECT_MAX);
        self.attempts = self.attempts.saturating_add(1);
        self.link = Link::Down { retry: now + self.jittered(pause) };
        if self.online {
            self.online = false;
            self.emit(DirectoryEvent::Online(false));
        }
        self.rotation_lost();
        let mut again = VecDeque::new();
        for sent in std::mem::take(&mut self.in_flight) {
            match (sent.asker, sent.question) {
                (Asker::Call(_), Some(question)) if sent.request.is_idempotent() => again.push_back(question),
                (Asker::Call(id), _) => self.answer(id, Err(CallError::Lost { reason: self.down_reason.clone() })),
                (asker, _) => self.sync.lost(now, &asker),
            }
        }
        again.append(&mut self.queue);
        self.queue = again;
        if self.closing.is_some() {
            self.finish_closing();
        }
    }

    fn question_deadline(&self, question: &Question) -> Instant {
        let patience = if self.link == Link::Up { CALL_TIMEOUT } else { OFFLINE_CALL_TIMEOUT };
        question.asked + patience
    }

    fn expire_questions(&mut self, now: Instant) {
        let late: Vec<CallId> = self.queue.iter().filter(|q| self.question_deadline(q) <= now).map(|q| q.id).collect();
        self.queue.retain(|q| !late.contains(&q.id));
        for id in late {
            let error = if self.link == Link::Up {
                CallError::Timeout
            } else {
                CallError::Offline { reason: self.down_reason.clone() }
            };
            self.answer(id, Err(error));
        }
        let mut late = Vec::new();
        for sent in &mut self.in_flight {
            if sent.question.as_ref().is_some_and(|q| q.asked + CALL_TIMEOUT <= now)
                && let Some(question) = sent.question.take()
            {
                // Its place stays, so that later answers are matched rightly.
                sent.asker = Asker::Nobody;
                late.push(question.id);
            }
        }
        for id in late {
            self.answer(id, Err(CallError::Timeout));
        }
    }

    fn finish_closing(&mut self) {
        if self.link == Link::Closed {
            return;
        }
        if matches!(self.link, Link::Up | Link::Connecting { .. }) {
            self.emit(DirectoryEvent::Disconnect { reason: "shutting down".to_owned() });
        }
        for sent in std::mem::take(&mut self.in_flight) {
            if let Some(question) = sent.question {
                self.answer(question.id, Err(CallError::Closed));
            }
        }
        self.link = Link::Closed;
        self.closing = None;
        self.out.clear();
        self.emit(DirectoryEvent::Closed);
    }

    /// Trust reports still owed, by node; for status.
    pub fn reports_owed(&self) -> usize {
        self.sync.trust.values().filter(|owed| owed.is_due()).count()
    }

    pub(super) fn trust_mut(&mut self) -> &mut BTreeMap<u32, super::sync::Owed> {
        &mut self.sync.trust
    }
}
