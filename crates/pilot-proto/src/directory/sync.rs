//! What the registry should know about us, and when it is told: registration, heartbeat, polls, attributes, trust.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use pilot_wire::registry::{
    ErrorAnswer, Fields, LookupOk, NODE_NOT_FOUND, PollOk, RegisterOk, Request, SIGNATURE_FAILED,
};

use super::calls::{Asker, Attribute};
use super::session::Directory;
use super::{
    Call, DirectoryEvent, ENDPOINT_INTERVAL, FAST_POLL, FAST_POLL_FOR, HEARTBEAT_FAILURES, IDENTIFY,
    MAX_REPORTS_IN_FLIGHT, NOTIFY_BURST, NOTIFY_INTERVAL, REGISTER_RETRY, REGISTER_RETRY_MAX, STAY_AWAY, SYNC_RETRY,
};

/// A statement about trust that the registry should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Owed {
    /// That we trust the node, or that we do not any more.
    report: bool,
    /// When to say it; `None`: it was said, or is being said.
    due: Option<Instant>,
}

impl Owed {
    pub(super) fn is_due(&self) -> bool {
        self.due.is_some()
    }
}

/// What is due when. All times are about an open connection.
#[derive(Debug)]
pub(super) struct Sync {
    /// Whether we are registered as far as we know.
    pub(super) registered: bool,
    /// Whether the first request of this connection was answered, so that others may follow.
    pub(super) greeted: bool,
    /// When to register; `None`: not.
    register_due: Option<Instant>,
    register_pause: Duration,
    last_registered: Option<Instant>,
    heartbeat_due: Instant,
    heartbeat_failures: u32,
    /// When to ask what the registry holds about us.
    identify_due: Option<Instant>,
    /// Whether what is wanted is compared with the next answer to that: after a registration, not otherwise.
    compare: bool,
    poll_due: Option<Instant>,
    fast_until: Option<Instant>,
    /// Notifies that may still poll at once, and when that was last refilled.
    notify_tokens: u32,
    notify_refilled: Instant,
    /// After a deregistration by hand.
    away_until: Option<Instant>,
    hostname: Option<Instant>,
    visibility: Option<Instant>,
    tags: Option<Instant>,
    pub(super) trust: BTreeMap<u32, Owed>,
}

impl Sync {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            registered: false,
            greeted: false,
            register_due: Some(now),
            register_pause: REGISTER_RETRY,
            last_registered: None,
            heartbeat_due: now,
            heartbeat_failures: 0,
            identify_due: None,
            compare: false,
            poll_due: None,
            fast_until: None,
            notify_tokens: NOTIFY_BURST,
            notify_refilled: now,
            away_until: None,
            hostname: None,
            visibility: None,
            tags: None,
            trust: BTreeMap::new(),
        }
    }

    pub(super) fn connected(&mut self) {
        self.greeted = false;
        self.heartbeat_failures = 0;
    }

    /// A request of ours was lost with its connection: it is due again.
    pub(super) fn lost(&mut self, now: Instant, asker: &Asker) {
        match asker {
            Asker::Register => self.register_due = Some(now),
            Asker::Heartbeat => self.heartbeat_due = now,
            Asker::Identify => self.identify_due = Some(now),
            // Whether the inbox was emptied is not known; asking again is all that can be done.
            Asker::Poll => self.poll_due = Some(now),
            Asker::Attribute(which) => *self.attribute(*which) = Some(now),
            Asker::Trust(node, report) => {
                if let Some(owed) = self.trust.get_mut(node).filter(|owed| owed.report == *report) {
                    owed.due.get_or_insert(now);
                }
            }
            Asker::Call(_) | Asker::Rotation | Asker::Goodbye | Asker::Nobody => {}
        }
    }

    fn attribute(&mut self, which: Attribute) -> &mut Option<Instant> {
        match which {
            Attribute::Hostname => &mut self.hostname,
            Attribute::Visibility => &mut self.visibility,
            Attribute::Tags => &mut self.tags,
        }
    }

    /// Polls often from now on: an answer to a request of ours may come through the registry.
    pub(super) fn expect_answer(&mut self, now: Instant) {
        self.fast_until = Some(now + FAST_POLL_FOR);
        let soon = now + FAST_POLL;
        self.poll_due = Some(self.poll_due.map_or(soon, |due| due.min(soon)));
    }
}

impl Directory {
    /// The address to register, as the beacon saw it or as configured. Nothing is registered before it is known. A
    /// change registers again, at most once in [`ENDPOINT_INTERVAL`].
    pub fn set_listen_addr(&mut self, now: Instant, listen_addr: &str) {
        if listen_addr.is_empty() || listen_addr == self.listen_addr {
            return;
        }
        self.listen_addr = listen_addr.to_owned();
        if self.sync.away_until.is_none() {
            let soonest = self.sync.last_registered.map_or(now, |last| (last + ENDPOINT_INTERVAL).max(now));
            self.sync.register_due = Some(self.sync.register_due.map_or(soonest, |due| due.min(soonest)));
        }
        self.run(now);
    }

    /// Polls every [`FAST_POLL`] for [`FAST_POLL_FOR`]: we have asked somebody for trust.
    pub fn expect_answer(&mut self, now: Instant) {
        self.sync.expect_answer(now);
        self.run(now);
    }

    /// The beacon says that a handshake message waits (07 §8.1). Notifies beyond a burst poll once per
    /// [`NOTIFY_INTERVAL`].
    pub fn handle_notify(&mut self, now: Instant) {
        let refill = now.saturating_duration_since(self.sync.notify_refilled).as_secs() / NOTIFY_INTERVAL.as_secs();
        if refill > 0 {
            let refill = u32::try_from(refill).unwrap_or(u32::MAX);
            self.sync.notify_tokens = self.sync.notify_tokens.saturating_add(refill).min(NOTIFY_BURST);
            self.sync.notify_refilled = now;
        }
        let when = if self.sync.notify_tokens > 0 {
            self.sync.notify_tokens -= 1;
            now
        } else {
            now + NOTIFY_INTERVAL
        };
        self.poll_at(now, when);
    }

    /// Polls now: somebody wants to see what waits.
    pub fn poll_handshakes(&mut self, now: Instant) {
        self.poll_at(now, now);
    }

    fn poll_at(&mut self, now: Instant, when: Instant) {
        self.sync.poll_due = Some(self.sync.poll_due.map_or(when, |due| due.min(when)));
        self.run(now);
    }

    /// We trust this node: the registry is told now, and again whenever it has forgotten us.
    pub fn report_trust(&mut self, now: Instant, node: u32) {
        self.owe(now, node, true);
    }

    /// We do not trust this node any more: the registry is told until it has answered.
    pub fn revoke_trust(&mut self, now: Instant, node: u32) {
        self.owe(now, node, false);
    }

    fn owe(&mut self, now: Instant, node: u32, report: bool) {
        self.trust_mut().insert(node, Owed { report, due: Some(now) });
        self.run(now);
    }

    /// The first request of a connection: a heartbeat when we are registered, else the registration.
    pub(super) fn greet(&mut self, now: Instant) {
        if self.sync.greeted || self.is_in_flight(|a| matches!(a, Asker::Register | Asker::Heartbeat)) {
            return;
        }
        if self.sync.away_until.is_some() {
            self.sync.greeted = true;
        } else if self.sync.registered && self.sync.register_due.is_none_or(|due| due > now) {
            self.send(now, Asker::Heartbeat, self.heartbeat_request());
        } else if !self.listen_addr.is_empty() && self.sync.register_due.is_some_and(|due| due <= now) {
            self.register(now);
        } else {
            // We cannot or may not register yet; questions need not wait for that.
            self.sync.greeted = true;
        }
    }

    /// The earliest time at which something can be sent. What waits for an answer, or for room, is woken by the answer.
    pub(super) fn sync_due(&self) -> Option<Instant> {
        let sync = &self.sync;
        if !sync.greeted || !self.has_room() || self.rotation_holds() || self.is_in_flight(|a| *a == Asker::Register) {
            return None;
        }
        if sync.away_until.is_some() {
            return sync.away_until;
        }
        let register = sync.register_due.filter(|_| !self.listen_addr.is_empty());
        if !sync.registered {
            return register;
        }
        let heartbeat = (!self.is_in_flight(|a| *a == Asker::Heartbeat)).then_some(sync.heartbeat_due);
        let poll = sync.poll_due.filter(|_| !self.is_in_flight(|a| *a == Asker::Poll));
        let reports = self.count_in_flight(|a| matches!(a, Asker::Trust(..)));
        let trust = sync.trust.values().filter_map(|owed| owed.due).filter(|_| reports < MAX_REPORTS_IN_FLIGHT).min();
        [register, heartbeat, poll, trust, sync.identify_due, sync.hostname, sync.visibility, sync.tags]
            .into_iter()
            .flatten()
            .min()
    }

    fn register(&mut self, now: Instant) {
        self.sync.register_due = None;
        self.send(now, Asker::Register, self.register_request());
    }

    /// Sends what is due on a connection that was greeted.
    pub(super) fn synchronise(&mut self, now: Instant) {
        if let Some(away) = self.sync.away_until {
            if away > now {
                return;
            }
            self.sync.away_until = None;
            self.sync.register_due = Some(now);
        }
        let due = |when: Option<Instant>| when.is_some_and(|when| when <= now);
        let registering = self.is_in_flight(|a| *a == Asker::Register);
        if due(self.sync.register_due) && !registering && !self.listen_addr.is_empty() && self.has_room() {
            self.register(now);
        }
        if !self.sync.registered || self.is_in_flight(|a| *a == Asker::Register) {
            return;
        }
        if self.sync.heartbeat_due <= now && !self.is_in_flight(|a| *a == Asker::Heartbeat) && self.has_room() {
            self.send(now, Asker::Heartbeat, self.heartbeat_request());
        }
        if due(self.sync.poll_due) && !self.is_in_flight(|a| *a == Asker::Poll) && self.has_room() {
            self.sync.poll_due = None;
            self.send(now, Asker::Poll, self.poll_request());
        }
        if due(self.sync.identify_due) && self.has_room() {
            self.sync.identify_due = None;
            self.send(now, Asker::Identify, Request::Lookup { node: self.node });
        }
        for which in [Attribute::Hostname, Attribute::Visibility, Attribute::Tags] {
            if due(*self.sync.attribute(which)) && self.has_room() {
                *self.sync.attribute(which) = None;
                if let Some(call) = self.wanted(which) {
                    let request = self.call_request(&call);
                    self.send(now, Asker::Attribute(which), request);
                }
            }
        }
        self.report_due(now);
    }

    fn report_due(&mut self, now: Instant) {
        let room = MAX_REPORTS_IN_FLIGHT.saturating_sub(self.count_in_flight(|a| matches!(a, Asker::Trust(..))));
        let owed: Vec<(u32, bool)> = self
            .sync
            .trust
            .iter()
            .filter(|(_, owed)| owed.due.is_some_and(|due| due <= now))
            .map(|(node, owed)| (*node, owed.report))
            .take(room)
            .collect();
        for (node, report) in owed {
            if !self.has_room() {
                return;
            }
            if let Some(owed) = self.sync.trust.get_mut(&node) {
                owed.due = None;
            }
            self.send(now, Asker::Trust(node, report), self.trust_request(node, report));
        }
    }

    /// The command that makes a wanted attribute true.
    fn wanted(&self, which: Attribute) -> Option<Call> {
        match which {
            Attribute::Hostname => self.config.hostname.clone().map(|hostname| Call::SetHostname { hostname }),
            Attribute::Visibility => self.config.public.map(|public| Call::SetVisibility { public }),
            Attribute::Tags => self.config.tags.clone().map(|tags| Call::SetTags { tags }),
        }
    }

    /// A command of the node has succeeded: what it set is wanted from now on.
    pub(super) fn call_succeeded(&mut self, now: Instant, call: &Call, fields: &Fields) {
        match call {
            Call::SetHostname { hostname } => self.config.hostname = Some(hostname.clone()),
            Call::SetVisibility { public } => self.config.public = Some(*public),
            // As the registry stored them: it strips a leading `#`.
            Call::SetTags { .. } => self.config.tags = Some(fields.strings("tags")),
            Call::Deregister => {
                self.sync.registered = false;
                self.sync.register_due = None;
                self.sync.poll_due = None;
                self.sync.away_until = Some(now + STAY_AWAY);
            }
            _ => {}
        }
    }

    /// The answer to a request of our own.
    pub(super) fn handle_own_answer(&mut self, now: Instant, asker: Asker, result: Result<Fields, ErrorAnswer>) {
        match (asker, result) {
            (Asker::Register, Ok(fields)) => self.registered(now, &fields),
            (Asker::Register, Err(error)) => self.registration_failed(now, error.text),
            (Asker::Heartbeat, result) => self.heartbeat_answered(now, result.err()),
            (Asker::Identify, Ok(fields)) => self.identified(now, &fields),
            (Asker::Poll, result) => {
                if let Ok(fields) = result {
                    self.emit(DirectoryEvent::Poll(PollOk::from_fields(&fields)));
                }
                if self.sync.fast_until.is_some_and(|until| now + FAST_POLL <= until) {
                    self.sync.poll_due = Some(now + FAST_POLL);
                }
            }
            (Asker::Attribute(which), Err(error)) => {
                *self.sync.attribute(which) = Some(now + SYNC_RETRY);
                let request = match which {
                    Attribute::Hostname => "set_hostname",
                    Attribute::Visibility => "set_visibility",
                    Attribute::Tags => "set_tags",
                };
                self.emit(DirectoryEvent::AttributeRefused { request, text: error.text });
            }
            (Asker::Trust(node, report), result) => self.trust_answered(now, node, report, result.is_ok()),
            (Asker::Identify, Err(_)) => self.unidentified(now),
            (Asker::Attribute(_) | Asker::Call(_) | Asker::Rotation | Asker::Goodbye | Asker::Nobody, _) => {}
        }
    }

    fn registered(&mut self, now: Instant, fields: &Fields) {
        let Some(ok) = RegisterOk::from_fields(fields).filter(|ok| ok.node != 0) else {
            return self.registration_failed(now, "registry gave no node id".to_owned());
        };
        let changed = self.node != 0 && self.node != ok.node;
        let known = self.sync.last_registered.is_some() && !changed && self.sync.registered;
        self.node = ok.node;
        self.sync.greeted = true;
        self.sync.registered = true;
        self.sync.register_pause = REGISTER_RETRY;
        self.sync.last_registered = Some(now);
        self.sync.heartbeat_failures = 0;
        self.sync.heartbeat_due = now + self.jittered(self.config.heartbeat);
        self.sync.identify_due = Some(now);
        self.sync.compare = true;
        self.sync.poll_due = Some(now);
        // The registry may have lost its state; a new endpoint of a known node is no sign of that.
        if !known {
            for owed in self.sync.trust.values_mut().filter(|owed| owed.report) {
                owed.due = Some(now);
            }
        }
        self.emit(DirectoryEvent::Registered { node: ok.node, changed, observed: ok.observed_addr });
    }

    fn registration_failed(&mut self, now: Instant, text: String) {
        self.sync.greeted = true;
        let pause = self.sync.register_pause;
        self.sync.register_pause = (pause * 2).min(REGISTER_RETRY_MAX);
        self.sync.register_due = Some(now + self.jittered(pause));
        self.emit(DirectoryEvent::RegistrationRefused { text });
    }

    fn heartbeat_answered(&mut self, now: Instant, error: Option<ErrorAnswer>) {
        let greeting = !self.sync.greeted;
        match error {
            None => {
                self.sync.greeted = true;
                self.sync.heartbeat_failures = 0;
                self.sync.heartbeat_due = now + self.jittered(self.config.heartbeat);
                self.sync.poll_due.get_or_insert(now);
            }
            Some(error) => {
                self.sync.heartbeat_failures += 1;
                let forgotten = error.text.contains(NODE_NOT_FOUND) || error.text.contains(SIGNATURE_FAILED);
                // The first heartbeat on a new connection asks whether the registry still knows us: a refusal, whatever
                // its words, most likely means that it was restarted.
                if forgotten || greeting || self.sync.heartbeat_failures >= HEARTBEAT_FAILURES {
                    self.sync.registered = false;
                    self.sync.register_due = Some(now);
                } else {
                    self.sync.heartbeat_due = now + self.jittered(self.config.heartbeat);
                }
            }
        }
    }

    fn identified(&mut self, now: Instant, fields: &Fields) {
        let Some(lookup) = LookupOk::from_fields(fields) else {
            return self.unidentified(now);
        };
        self.sync.identify_due = Some(now + self.jittered(IDENTIFY));
        if std::mem::take(&mut self.sync.compare) {
            let want = |differs: bool| differs.then_some(now);
            let hostname = lookup.hostname.clone().unwrap_or_default();
            self.sync.hostname = want(self.config.hostname.as_ref().is_some_and(|wanted| *wanted != hostname));
            self.sync.visibility = want(self.config.public.is_some_and(|wanted| wanted != lookup.public));
            self.sync.tags = want(self.config.tags.as_ref().is_some_and(|wanted| *wanted != lookup.tags));
        }
        self.emit(DirectoryEvent::Identified {
            node: self.node,
            networks: lookup.networks.unwrap_or_default(),
            hostname: lookup.hostname,
            public: lookup.public,
        });
    }

    /// The registry does not say what it holds about us: then all that is wanted is set.
    fn unidentified(&mut self, now: Instant) {
        self.sync.identify_due = Some(now + self.jittered(IDENTIFY));
        if std::mem::take(&mut self.sync.compare) {
            self.sync.hostname = self.config.hostname.is_some().then_some(now);
            self.sync.visibility = self.config.public.is_some().then_some(now);
            self.sync.tags = self.config.tags.is_some().then_some(now);
        }
    }

    fn trust_answered(&mut self, now: Instant, node: u32, report: bool, ok: bool) {
        let Some(owed) = self.sync.trust.get_mut(&node).filter(|owed| owed.report == report) else {
            return;
        };
        if !report {
            // Refused means that there was nothing to revoke.
            if owed.due.is_none() {
                self.sync.trust.remove(&node);
            }
        } else if !ok && owed.due.is_none() {
            owed.due = Some(now + SYNC_RETRY);
        }
    }
}
