//! Our streams against February's, in virtual time: whatever the path loses, everything arrives, and a closed stream
//! is silent.
#![allow(clippy::disallowed_methods)] // a starting point for time that the test then counts itself

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_proto::profile::PeerProfile;
use pilot_proto::stream::{Connection, ReadError, StreamConfig, WriteError};
use pilot_testkit::scheme_a::stream::{Conn, Out, State};
use pilot_wire::packet::{Header, Packet};
use pilot_wire::{Address, SocketAddress};

/// One way, each way.
const DELAY: Duration = Duration::from_millis(3);
const STEP: Duration = Duration::from_millis(1);

/// Both ends and the path between them.
struct Pair {
    now: Instant,
    feb: Conn,
    ours: Connection,
    to_feb: BTreeMap<(Instant, u64), Vec<u8>>,
    to_ours: BTreeMap<(Instant, u64), (Header, Vec<u8>)>,
    noise: u64,
    /// One packet in so many is lost; 0 loses none.
    loss: u64,
    serial: u64,
    sent_by_us: u64,
    send: Vec<u8>,
    received: Vec<u8>,
}

impl Pair {
    /// February dials or we do.
    fn new(feb_dials: bool, loss: u64, seed: u64) -> Self {
        let now = Instant::now();
        let feb_at = SocketAddress::new(Address::backbone(1), 49_152);
        let our_at = SocketAddress::new(Address::backbone(2), 5000);
        let cfg = Arc::new(StreamConfig::default());
        let mut out = Vec::new();
        let (feb, ours) = if feb_dials {
            let feb = Conn::dial(now, feb_at, our_at, &mut out);
            let syn = out[0].0;
            (feb, Connection::accept(now, &cfg, PeerProfile::cautious(), our_at, feb_at, &syn, 0x1234_5678))
        } else {
            let mut ours = Connection::dial(now, &cfg, PeerProfile::cautious(), our_at, feb_at, 0x7FFF_FF00);
            let mut packet = Vec::new();
            ours.poll_transmit(now, &mut packet);
            let syn = Packet::parse(&packet).expect("SYN").header;
            (Conn::accept(now, feb_at.addr, &syn, &mut out), ours)
        };
        let mut pair = Self {
            now,
            feb,
            ours,
            to_feb: BTreeMap::new(),
            to_ours: BTreeMap::new(),
            noise: seed | 1,
            loss,
            serial: 0,
            sent_by_us: 0,
            send: Vec::new(),
            received: Vec::new(),
        };
        if !feb_dials {
            pair.enqueue(out);
        }
        pair
    }

    fn lost(&mut self) -> bool {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        self.loss != 0 && self.noise.is_multiple_of(self.loss)
    }

    /// When a packet that leaves now arrives: in order on a good path, jumbled by up to 2 ms on a bad one.
    fn arrival(&mut self) -> (Instant, u64) {
        let jitter = if self.loss == 0 { 0 } else { self.noise >> 20 & 1 };
        self.serial += 1;
        (self.now + DELAY + 2 * STEP * u32::try_from(jitter).unwrap_or(0), self.serial)
    }

    fn enqueue(&mut self, out: Vec<Out>) {
        for packet in out {
            if !self.lost() {
                let key = self.arrival();
                self.to_ours.insert(key, packet);
            }
        }
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        let mut out = Vec::new();
        while let Some((key, packet)) = self.to_feb.pop_first() {
            if key.0 > now {
                self.to_feb.insert(key, packet);
                break;
            }
            let packet = Packet::parse(&packet).expect("our packets parse");
            assert!(packet.payload.len() <= 1152, "a segment too large for the old wire");
            self.feb.handle(now, &packet.header, packet.payload, &mut out);
        }
        self.feb.tick(now, &mut out);
        self.enqueue(out);
        while let Some((key, (header, payload))) = self.to_ours.pop_first() {
            if key.0 > now {
                self.to_ours.insert(key, (header, payload));
                break;
            }
            self.ours.handle_segment(now, &header, &payload);
        }
        if self.ours.poll_timeout().is_some_and(|at| at <= now) {
            self.ours.handle_timeout(now);
        }
        self.application();
        let mut packet = Vec::new();
        loop {
            let more = self.ours.poll_transmit(now, &mut packet);
            if packet.is_empty() {
                break;
            }
            self.sent_by_us += 1;
            let packet = std::mem::take(&mut packet);
            if !self.lost() {
                let key = self.arrival();
                self.to_feb.insert(key, packet);
            }
            if !more {
                break;
            }
        }
    }

    /// Our application writes what it has and reads what there is.
    fn application(&mut self) {
        while self.ours.poll_event().is_some() {}
        match self.ours.write(self.now, &self.send) {
            Ok(n) => drop(self.send.drain(..n)),
            Err(WriteError::Blocked) => {}
            Err(e) => assert!(self.send.is_empty(), "write: {e}"),
        }
        let mut buf = [0; 16_384];
        loop {
            match self.ours.read(self.now, &mut buf) {
                Ok(0) | Err(ReadError::Blocked) => break,
                Ok(n) => self.received.extend_from_slice(&buf[..n]),
                Err(e) => panic!("read: {e}"),
            }
        }
    }

    fn run(&mut self, what: &str, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            assert!(
                self.now < end,
                "no {what} in {limit:?}: we received {}, February {} ({:?}); {:?}",
                self.received.len(),
                self.feb.total_received,
                self.feb.state,
                self.ours.state()
            );
            self.step();
        }
    }
}

fn pattern(len: usize, salt: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 509 + salt) as u8).collect()
}

fn exchange(feb_dials: bool, loss: u64, seed: u64) {
    let mut pair = Pair::new(feb_dials, loss, seed);
    let (up, down) = (pattern(300_000, 1), pattern(200_000, 2));
    pair.run("connection", Duration::from_secs(60), |p| p.feb.state == State::Established);
    pair.send = up.clone();
    pair.feb.write(&down);
    pair.run("data", Duration::from_secs(600), |p| {
        p.received.len() == down.len() && p.feb.total_received == up.len() && p.feb.is_flushed()
    });
    assert!(pair.received == down, "what February sent arrived changed");
    assert!(pair.feb.received == up, "what we sent arrived changed");

    pair.ours.close(pair.now);
    pair.run("end of the stream", Duration::from_secs(60), |p| p.feb.state == State::TimeWait);
    assert!(!pair.feb.fin_ahead_of_data, "our FIN overtook data");
    // February answers every FIN and FIN|ACK for ever; only we can end it.
    let end = pair.now + Duration::from_secs(40);
    let before = pair.sent_by_us;
    while pair.now < end {
        pair.step();
    }
    assert!(pair.sent_by_us - before <= 12, "{} packets after the close", pair.sent_by_us - before);
    assert!(pair.ours.is_forgotten(), "still in {:?}", pair.ours.state());
}

#[test]
fn both_directions_arrive_and_end_quietly() {
    exchange(true, 0, 1);
    exchange(false, 0, 1);
}

#[test]
fn both_directions_arrive_over_a_path_that_loses_packets() {
    for seed in 1..=6 {
        exchange(seed % 2 == 0, 50, seed * 77);
    }
}
