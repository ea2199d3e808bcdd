//! Two ends on a wire with virtual time, and one end against a script.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pilot_wire::addr::{Address, SocketAddress};
use pilot_wire::packet::{Flags, Header, Packet, protocol};

use crate::profile::PeerProfile;
use crate::stream::{Connection, State, StreamConfig, StreamEvent};

/// The one place where a test reads the clock: a starting point to count from.
#[allow(clippy::disallowed_methods)]
pub(super) fn start() -> Instant {
    Instant::now()
}

pub(super) fn address(node: u32, port: u16) -> SocketAddress {
    SocketAddress::new(Address::backbone(node), port)
}

pub(super) const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A packet as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) flags: Flags,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) payload: Vec<u8>,
}

impl Seen {
    fn of(bytes: &[u8]) -> Self {
        let p = Packet::parse(bytes).expect("we emit valid packets");
        let h = p.header;
        Self { flags: h.flags, seq: h.seq, ack: h.ack, window: h.window, payload: p.payload.to_vec() }
    }
}

/// One end.
pub(super) struct End {
    pub(super) conn: Connection,
    pub(super) events: Vec<StreamEvent>,
    pub(super) received: Vec<u8>,
    /// Reads as soon as something is readable.
    pub(super) reads: bool,
}

impl End {
    pub(super) fn new(conn: Connection) -> Self {
        Self { conn, events: Vec::new(), received: Vec::new(), reads: true }
    }

    pub(super) fn drain(&mut self, now: Instant) {
        while let Some(event) = self.conn.poll_event() {
            self.events.push(event);
        }
        let mut buf = [0; 16 * 1024];
        while self.reads {
            match self.conn.read(now, &mut buf) {
                Ok(n) if n > 0 => self.received.extend_from_slice(&buf[..n]),
                _ => break,
            }
        }
    }

    /// All packets that are ready.
    pub(super) fn packets(&mut self, now: Instant) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            let mut packet = Vec::new();
            if !self.conn.poll_transmit(now, &mut packet) {
                return out;
            }
            if !packet.is_empty() {
                out.push(packet);
            }
            assert!(out.len() < 100_000, "poll_transmit never ends");
        }
    }
}

/// Says of a packet of end `i` whether it is to be lost.
pub(super) type Fault = Box<dyn FnMut(usize, &Seen) -> bool>;

/// Two ends and the wire between them.
pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) started: Instant,
    pub(super) ends: [End; 2],
    pub(super) delay: Duration,
    wire: [VecDeque<(Instant, Vec<u8>)>; 2],
    /// Every packet sent: when, by which end, what.
    pub(super) log: Vec<(Duration, usize, Seen)>,
    /// Whether the packet is to be lost.
    pub(super) fault: Fault,
}

impl Pair {
    /// An established pair; end 0 dialled.
    pub(super) fn connected(profiles: [PeerProfile; 2], cfg: StreamConfig, delay: Duration) -> Self {
        let mut pair = Self::dialling(profiles, cfg, delay);
        pair.run(delay * 3);
        assert_eq!(pair.ends[0].conn.state(), State::Established);
        assert_eq!(pair.ends[1].conn.state(), State::Established);
        pair
    }

    /// A pair whose SYN has arrived. Profile `i` is what end `i` believes of the other.
    pub(super) fn dialling(profiles: [PeerProfile; 2], cfg: StreamConfig, delay: Duration) -> Self {
        let now = start();
        let cfg = Arc::new(cfg);
        let (a, b) = (address(1, 49152), address(2, 1000));
        let mut dialler = End::new(Connection::dial(now, &cfg, profiles[0], a, b, 0x1234_5678));
        let syn = dialler.packets(now).remove(0);
        let header = Packet::parse(&syn).expect("valid").header;
        let acceptor = End::new(Connection::accept(now, &cfg, profiles[1], b, a, &header, 0x7FFF_FF00));
        Self {
            now,
            started: now,
            ends: [dialler, acceptor],
            delay,
            wire: [VecDeque::new(), VecDeque::new()],
            log: Vec::new(),
            fault: Box::new(|_, _| false),
        }
    }

    fn flush(&mut self) {
        for i in 0..2 {
            self.ends[i].drain(self.now);
            for packet in self.ends[i].packets(self.now) {
                let seen = Seen::of(&packet);
                let lost = (self.fault)(i, &seen);
                self.log.push((self.now - self.started, i, seen));
                if !lost {
                    self.wire[1 - i].push_back((self.now + self.delay, packet));
                }
            }
            self.ends[i].drain(self.now);
        }
    }

    /// Lets `time` pass.
    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        for _ in 0..5_000_000 {
            self.flush();
            let arrival = self.wire.iter().filter_map(|w| w.front().map(|p| p.0)).min();
            let timer = self.ends.iter().filter_map(|e| e.conn.poll_timeout()).min();
            let Some(next) = [arrival, timer].into_iter().flatten().min().filter(|at| *at <= end) else {
                self.now = end;
                return;
            };
            self.now = self.now.max(next);
            for i in 0..2 {
                while self.wire[i].front().is_some_and(|p| p.0 <= self.now) {
                    let (_, packet) = self.wire[i].pop_front().expect("checked");
                    let p = Packet::parse(&packet).expect("valid");
                    self.ends[i].conn.handle_segment(self.now, &p.header, p.payload);
                }
                if self.ends[i].conn.poll_timeout().is_some_and(|at| at <= self.now) {
                    self.ends[i].conn.handle_timeout(self.now);
                }
            }
        }
        panic!("the pair never comes to rest");
    }

    /// Writes all of `data` at end `i`, letting time pass when the buffer is full.
    pub(super) fn write_all(&mut self, i: usize, mut data: &[u8]) {
        while !data.is_empty() {
            match self.ends[i].conn.write(self.now, data) {
                Ok(n) => data = &data[n..],
                Err(_) => self.run(ms(10)),
            }
        }
    }

    pub(super) fn close(&mut self, i: usize) {
        self.ends[i].conn.close(self.now);
    }

    /// Packets of end `i` since the log was cleared.
    pub(super) fn sent_by(&self, i: usize) -> Vec<&Seen> {
        self.log.iter().filter(|l| l.1 == i).map(|l| &l.2).collect()
    }
}

/// One end against a script.
pub(super) struct Scripted {
    pub(super) now: Instant,
    pub(super) end: End,
    /// The peer's next sequence number.
    pub(super) seq: u32,
    /// What the peer has received.
    pub(super) ack: u32,
}

/// Sequence numbers of scripted connections: ours, and the peer's (official daemons start at 0).
pub(super) const OUR_ISN: u32 = 1000;

impl Scripted {
    /// A peer has dialled us and sent the third packet.
    pub(super) fn accepted(profile: PeerProfile, cfg: StreamConfig) -> Self {
        let mut s = Self::half_open(profile, cfg);
        s.pass(ms(0));
        s.give(Flags::ACK, 1, OUR_ISN + 1, 512, b"");
        s.seq = 1;
        s.ack = OUR_ISN + 1;
        assert!(s.take().is_empty());
        s
    }

    /// A peer has dialled us; the SYN|ACK waits to be polled.
    pub(super) fn half_open(profile: PeerProfile, cfg: StreamConfig) -> Self {
        let now = start();
        let mut syn = Header::new(protocol::STREAM, Flags::SYN, address(2, 5000), address(1, 7));
        syn.window = 512;
        let conn = Connection::accept(now, &Arc::new(cfg), profile, address(1, 7), address(2, 5000), &syn, OUR_ISN);
        let mut s = Self { now, end: End::new(conn), seq: 1, ack: OUR_ISN + 1 };
        let first = s.take();
        assert_eq!(first.len(), 1);
        assert_eq!((first[0].flags, first[0].seq, first[0].ack), (Flags::SYN | Flags::ACK, OUR_ISN, 1));
        s
    }

    /// We have dialled; the SYN has been taken.
    pub(super) fn dialling(profile: PeerProfile, cfg: StreamConfig) -> Self {
        let now = start();
        let conn = Connection::dial(now, &Arc::new(cfg), profile, address(1, 49152), address(2, 2000), OUR_ISN);
        let mut s = Self { now, end: End::new(conn), seq: 1, ack: OUR_ISN + 1 };
        let first = s.take();
        assert_eq!((first.len(), first[0].flags, first[0].seq), (1, Flags::SYN, OUR_ISN));
        s
    }

    /// The peer's packet arrives.
    pub(super) fn give(&mut self, flags: Flags, seq: u32, ack: u32, window: u16, payload: &[u8]) {
        let mut h = Header::new(protocol::STREAM, flags, self.end.conn.remote(), self.end.conn.local());
        (h.seq, h.ack, h.window) = (seq, ack, window);
        self.end.conn.handle_segment(self.now, &h, payload);
    }

    /// The peer sends the next data segment.
    pub(super) fn data(&mut self, payload: &[u8]) {
        self.give(Flags::ACK, self.seq, self.ack, 512, payload);
        self.seq = self.seq.wrapping_add(payload.len() as u32);
    }

    /// The peer acknowledges everything up to `ack`.
    pub(super) fn acks(&mut self, ack: u32) {
        self.ack = ack;
        self.give(Flags::ACK, self.seq, ack, 512, b"");
    }

    /// What we have to send now.
    pub(super) fn take(&mut self) -> Vec<Seen> {
        self.end.drain(self.now);
        let packets = self.end.packets(self.now).iter().map(|p| Seen::of(p)).collect();
        self.end.drain(self.now);
        packets
    }

    /// Lets `time` pass, firing timers, and collects what is sent.
    pub(super) fn pass(&mut self, time: Duration) -> Vec<(Duration, Seen)> {
        let (from, end) = (self.now, self.now + time);
        let mut out = Vec::new();
        for _ in 0..1_000_000 {
            let at = self.now - from;
            out.extend(self.take().into_iter().map(|p| (at, p)));
            match self.end.conn.poll_timeout().filter(|t| *t <= end) {
                Some(t) => {
                    self.now = self.now.max(t);
                    self.end.conn.handle_timeout(self.now);
                }
                None => {
                    self.now = end;
                    return out;
                }
            }
        }
        panic!("timers never come to rest: {:?}", self.end.conn);
    }

    pub(super) fn write(&mut self, data: &[u8]) {
        assert_eq!(self.end.conn.write(self.now, data), Ok(data.len()));
    }
}
