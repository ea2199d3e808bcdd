//! The client of the beacon: STUN on the tunnel socket itself, and requests to punch (01 §15, §19, rules 15 to 17).

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use pilot_wire::beacon::BeaconMessage;

/// Between two Discovers once the beacon has answered. NAT mappings for UDP live 30 s at the shortest (01 rule 16).
pub const DISCOVER_EVERY: Duration = Duration::from_secs(25);
/// First repeat of an unanswered Discover; doubles up to [`DISCOVER_EVERY`].
pub const DISCOVER_FIRST_RETRY: Duration = Duration::from_millis(500);
/// Between two changes of the observed endpoint that are told: NAT pools must not look like endless moves (07 §16.16).
pub const OBSERVED_EVERY: Duration = Duration::from_secs(10);
/// How long the answer to one punch request is waited for before the next request leaves: answers name no node, so only
/// one request may be outstanding (01 rule 17).
pub const PUNCH_ANSWER_WAIT: Duration = Duration::from_millis(400);
/// Nodes waiting for their punch request. When full the request is not made; dialling repeats it anyway.
pub const PUNCH_QUEUE: usize = 256;
/// Offsets of the three punches that answer a punch command. Spread, because the other side's NAT opens some time
/// after ours (01 W25).
pub const PUNCH_OFFSETS: [Duration; 3] = [Duration::ZERO, Duration::from_millis(150), Duration::from_millis(450)];
/// Punches waiting for their time. When full further commands are ignored.
pub const PUNCHES_WAITING: usize = 192;

/// A datagram for the beacon client's caller to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BeaconSend {
    /// A message to the beacon.
    Message(BeaconMessage<'static>),
    /// A `PILP` frame to an address.
    Punch(SocketAddr),
}

/// What the caller learns from a beacon message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learned {
    /// Nothing.
    Nothing,
    /// Our endpoint as the beacon sees it has changed.
    Observed(SocketAddr),
    /// `node` can probably be reached at `endpoint`.
    Candidate {
        /// The node of the outstanding punch request.
        node: u32,
        /// The address the beacon named.
        endpoint: SocketAddr,
    },
}

/// State towards one beacon. Without a beacon address it does nothing.
#[derive(Debug)]
pub struct BeaconClient {
    addr: Option<SocketAddr>,
    node: u32,
    observed: Option<SocketAddr>,
    told_at: Option<Instant>,
    replied_at: Option<Instant>,
    retry: Duration,
    next_discover: Option<Instant>,
    waiting: VecDeque<u32>,
    outstanding: Option<(u32, Instant)>,
    punches: Vec<(Instant, SocketAddr)>,
}

impl BeaconClient {
    /// A client of `addr`, asking in the name of `node`.
    pub fn new(now: Instant, addr: Option<SocketAddr>, node: u32) -> Self {
        let mut client = Self {
            addr: None,
            node,
            observed: None,
            told_at: None,
            replied_at: None,
            retry: DISCOVER_FIRST_RETRY,
            next_discover: None,
            waiting: VecDeque::new(),
            outstanding: None,
            punches: Vec::new(),
        };
        client.set_addr(now, addr);
        client
    }

    /// The beacon.
    pub fn addr(&self) -> Option<SocketAddr> {
        self.addr
    }

    /// Our endpoint as the beacon sees it.
    pub fn observed(&self) -> Option<SocketAddr> {
        self.observed
    }

    /// When the beacon last answered.
    pub fn replied_at(&self) -> Option<Instant> {
        self.replied_at
    }

    /// Changes the beacon and asks it at once.
    pub fn set_addr(&mut self, now: Instant, addr: Option<SocketAddr>) {
        let addr = addr.map(canonical);
        if addr != self.addr {
            self.addr = addr;
            self.replied_at = None;
            self.outstanding = None;
            self.waiting.clear();
            self.punches.clear();
        }
        self.discover_soon(now);
    }

    /// Changes the name we ask in and tells the beacon at once.
    pub fn set_node(&mut self, now: Instant, node: u32) {
        if self.node != node {
            self.node = node;
            self.discover_soon(now);
        }
    }

    /// Asks the beacon now, and quickly again until it answers.
    pub fn discover_soon(&mut self, now: Instant) {
        self.retry = DISCOVER_FIRST_RETRY;
        self.next_discover = self.addr.map(|_| now);
    }

    /// The host has another address: asks now, and what the answer says is told at once.
    pub fn on_moved(&mut self, now: Instant) {
        self.told_at = None;
        self.discover_soon(now);
    }

    /// Whether datagrams from `from` are the beacon's.
    pub fn is_beacon(&self, from: SocketAddr) -> bool {
        self.addr == Some(from)
    }

    /// Wants a punch towards `node`; asked as soon as no other request is outstanding.
    pub fn request_punch(&mut self, node: u32) {
        let pending = self.outstanding.is_some_and(|(n, _)| n == node) || self.waiting.contains(&node);
        if self.addr.is_some() && self.node != 0 && !pending && self.waiting.len() < PUNCH_QUEUE {
            self.waiting.push_back(node);
        }
    }

    /// A message that came from the beacon's address. Relay deliveries and notices are the caller's.
    pub fn handle(&mut self, now: Instant, message: &BeaconMessage<'_>) -> Learned {
        match *message {
            BeaconMessage::DiscoverReply { endpoint } if plausible(endpoint, None) => {
                self.replied_at = Some(now);
                self.retry = DISCOVER_FIRST_RETRY;
                self.next_discover = Some(now + DISCOVER_EVERY);
                let quiet = self.told_at.is_some_and(|t| now.saturating_duration_since(t) < OBSERVED_EVERY);
                if self.observed == Some(endpoint) {
                    return Learned::Nothing;
                }
                if quiet {
                    // Told when it is still so by then.
                    self.next_discover = self.told_at.map(|t| t + OBSERVED_EVERY);
                    return Learned::Nothing;
                }
                self.observed = Some(endpoint);
                self.told_at = Some(now);
                Learned::Observed(endpoint)
            }
            BeaconMessage::PunchCommand { endpoint } if plausible(endpoint, self.addr) => {
                if self.punches.len() + PUNCH_OFFSETS.len() <= PUNCHES_WAITING {
                    self.punches.extend(PUNCH_OFFSETS.iter().map(|&offset| (now + offset, endpoint)));
                }
                match self.outstanding.take() {
                    Some((node, _)) => Learned::Candidate { node, endpoint },
                    None => Learned::Nothing,
                }
            }
            _ => Learned::Nothing,
        }
    }

    /// The next datagram to send, if one is due.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<BeaconSend> {
        self.addr?;
        if self.next_discover.is_some_and(|t| t <= now) {
            let answered = self.replied_at.is_some_and(|t| now.saturating_duration_since(t) <= 2 * DISCOVER_EVERY);
            let wait = if answered && self.retry == DISCOVER_FIRST_RETRY { Duration::from_secs(2) } else { self.retry };
            self.retry = (self.retry * 2).min(DISCOVER_EVERY);
            self.next_discover = Some(now + wait);
            return Some(BeaconSend::Message(BeaconMessage::Discover { node: self.node }));
        }
        if self.outstanding.is_some_and(|(_, at)| now.saturating_duration_since(at) >= PUNCH_ANSWER_WAIT) {
            self.outstanding = None;
        }
        if self.outstanding.is_none()
            && let Some(target) = self.waiting.pop_front()
        {
            self.outstanding = Some((target, now));
            return Some(BeaconSend::Message(BeaconMessage::PunchRequest { requester: self.node, target }));
        }
        let due = self.punches.iter().position(|(at, _)| *at <= now)?;
        Some(BeaconSend::Punch(self.punches.swap_remove(due).1))
    }

    /// When [`Self::poll_transmit`] has something again.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.addr?;
        let request = match (self.outstanding, self.waiting.is_empty()) {
            (Some((_, at)), false) => Some(at + PUNCH_ANSWER_WAIT),
            _ => None,
        };
        let punch = self.punches.iter().map(|(at, _)| *at).min();
        [self.next_discover, request, punch].into_iter().flatten().min()
    }

    /// Whether something could be sent at once, without a timer.
    pub fn is_ready(&self) -> bool {
        self.addr.is_some() && self.outstanding.is_none() && !self.waiting.is_empty()
    }
}

/// IPv4-mapped addresses become IPv4, so that one host has one name.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// Whether a frame may be sent to an address that others named. Multicast, broadcast and unspecified addresses never;
/// the beacon itself never; loopback only when the beacon is on loopback, too (01 W8: a punch command aims datagrams).
pub fn plausible(addr: SocketAddr, beacon: Option<SocketAddr>) -> bool {
    let addr = canonical(addr);
    let ip = addr.ip();
    let aimless = ip.is_unspecified()
        || ip.is_multicast()
        || match ip {
            IpAddr::V4(v4) => v4.is_broadcast() || v4.octets()[0] == 0,
            IpAddr::V6(_) => false,
        };
    let inside = ip.is_loopback() && beacon.is_some_and(|b| !b.ip().is_loopback());
    addr.port() != 0 && !aimless && !inside && beacon != Some(addr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[allow(clippy::disallowed_methods, reason = "an origin for virtual time")]
    fn origin() -> Instant {
        Instant::now()
    }

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn client(t: Instant) -> BeaconClient {
        BeaconClient::new(t, Some(addr("198.51.100.1:9001")), 7)
    }

    fn drain(c: &mut BeaconClient, now: Instant) -> Vec<BeaconSend> {
        std::iter::from_fn(|| c.poll_transmit(now)).collect()
    }

    #[test]
    fn discover_is_repeated_until_answered_and_then_every_25_s() {
        let t = origin();
        let mut c = client(t);
        let mut sent = Vec::new();
        for ms in 0..60_000u64 {
            let now = t + Duration::from_millis(ms);
            sent.extend(drain(&mut c, now).iter().map(|_| ms));
        }
        assert_eq!(&sent[..6], &[0, 500, 1_500, 3_500, 7_500, 15_500]);
        let now = t + Duration::from_secs(60);
        let reply = BeaconMessage::DiscoverReply { endpoint: addr("203.0.113.9:4000") };
        assert_eq!(c.handle(now, &reply), Learned::Observed(addr("203.0.113.9:4000")));
        assert_eq!(c.handle(now, &reply), Learned::Nothing);
        assert_eq!(c.poll_timeout(), Some(now + DISCOVER_EVERY));
    }

    #[test]
    fn a_flapping_observation_is_told_at_most_every_10_s() {
        let t = origin();
        let mut c = client(t);
        let mut told = 0;
        for s in 0..60u64 {
            let endpoint = addr(if s % 2 == 0 { "203.0.113.9:4000" } else { "203.0.113.10:4000" });
            let learned = c.handle(t + Duration::from_secs(s), &BeaconMessage::DiscoverReply { endpoint });
            told += usize::from(learned != Learned::Nothing);
        }
        assert!((2..=6).contains(&told), "told {told}");
    }

    #[test]
    fn one_punch_request_is_outstanding_and_its_answer_names_the_node() {
        let t = origin();
        let mut c = client(t);
        drain(&mut c, t);
        c.request_punch(8);
        c.request_punch(8);
        c.request_punch(9);
        let ask = |target| BeaconSend::Message(BeaconMessage::PunchRequest { requester: 7, target });
        assert_eq!(drain(&mut c, t), vec![ask(8)]);
        let endpoint = addr("203.0.113.9:4000");
        assert_eq!(c.handle(t, &BeaconMessage::PunchCommand { endpoint }), Learned::Candidate { node: 8, endpoint });
        assert_eq!(drain(&mut c, t), vec![ask(9), BeaconSend::Punch(endpoint)]);
        let later = t + PUNCH_ANSWER_WAIT;
        drain(&mut c, later);
        assert_eq!(c.handle(later, &BeaconMessage::PunchCommand { endpoint }), Learned::Nothing);
    }

    #[test]
    fn implausible_endpoints_are_not_punched() {
        let t = origin();
        let mut c = client(t);
        drain(&mut c, t);
        for bad in [
            "0.0.0.0:4000",
            "224.0.0.1:4000",
            "255.255.255.255:1",
            "203.0.113.9:0",
            "127.0.0.1:22",
            "198.51.100.1:9001",
            "[::]:1",
            "[ff02::1]:1",
        ] {
            c.handle(t, &BeaconMessage::PunchCommand { endpoint: addr(bad) });
        }
        assert_eq!(
            drain(&mut c, t + Duration::from_millis(600)),
            vec![BeaconSend::Message(BeaconMessage::Discover { node: 7 })]
        );
    }

    #[test]
    fn a_flood_of_commands_keeps_the_queue_bounded() {
        let t = origin();
        let mut c = client(t);
        for port in 1..5_000 {
            c.handle(t, &BeaconMessage::PunchCommand { endpoint: SocketAddr::new(addr("203.0.113.9:1").ip(), port) });
            c.request_punch(u32::from(port));
        }
        assert!(c.punches.len() <= PUNCHES_WAITING);
        assert!(c.waiting.len() <= PUNCH_QUEUE);
    }
}
