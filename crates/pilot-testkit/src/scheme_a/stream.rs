//! One stream as February kept it (02 §5, §10 to §20), reduced to what a peer can see on a path without loss of
//! its own making: fixed segments, cumulative ACK, timer-driven repeats, the faulty close.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use pilot_wire::packet::{Flags, Header, protocol};
use pilot_wire::sack::Blocks;
use pilot_wire::{Address, SocketAddress};

/// Largest segment February cuts (02 §13).
const SEGMENT: usize = 4096;
/// Segments it advertises (02 §18).
const WINDOW: u16 = 512;
/// Bytes it keeps in flight at most; its congestion window starts at ten segments and grows (02 §16).
const IN_FLIGHT: usize = 64 * SEGMENT;
/// Delay of a lone ACK (02 §14).
const DELAYED_ACK: Duration = Duration::from_millis(40);
/// First retransmission time-out (02 §16), also of a SYN (02 §12).
const FIRST_RTO: Duration = Duration::from_millis(500);
/// Sends of one segment before the stream is reset (02 §17).
const MAX_SENDS: u32 = 8;

/// Where a stream stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// SYN sent.
    SynSent,
    /// Both ends know.
    Established,
    /// Closed by either side with FIN; answers every FIN with FIN|ACK.
    TimeWait,
    /// Reset or abandoned.
    Closed,
}

struct Segment {
    seq: u32,
    data: Vec<u8>,
    sent: Instant,
    sends: u32,
}

/// One stream.
pub struct Conn {
    /// Own end.
    pub local: SocketAddress,
    /// Peer's end.
    pub remote: SocketAddress,
    /// Where it stands.
    pub state: State,
    /// In-order bytes not yet read by the script.
    pub received: Vec<u8>,
    /// Bytes received since the start.
    pub total_received: usize,
    /// FIN and FIN|ACK packets received.
    pub fins_received: u32,
    /// Whether bytes were missing when the peer's FIN came: February loses them.
    pub fin_ahead_of_data: bool,
    next_seq: u32,
    expected: u32,
    last_ack: u32,
    peer_window: usize,
    unsent: VecDeque<u8>,
    flight: VecDeque<Segment>,
    out_of_order: BTreeMap<u32, Vec<u8>>,
    ack_due: Option<Instant>,
    unacked: u32,
    syn_at: Instant,
    syn_sends: u32,
    rto: Duration,
}

fn after(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) > 0
}

/// A packet to send: header without checksum, payload.
pub type Out = (Header, Vec<u8>);

impl Conn {
    fn new(now: Instant, local: SocketAddress, remote: SocketAddress, state: State) -> Self {
        Self {
            local,
            remote,
            state,
            received: Vec::new(),
            total_received: 0,
            fins_received: 0,
            fin_ahead_of_data: false,
            next_seq: 0,
            expected: 0,
            last_ack: 0,
            peer_window: usize::from(WINDOW) * SEGMENT,
            unsent: VecDeque::new(),
            flight: VecDeque::new(),
            out_of_order: BTreeMap::new(),
            ack_due: None,
            unacked: 0,
            syn_at: now,
            syn_sends: 1,
            rto: FIRST_RTO,
        }
    }

    /// Active open: the stream and its SYN.
    pub fn dial(now: Instant, local: SocketAddress, remote: SocketAddress, out: &mut Vec<Out>) -> Self {
        let conn = Self::new(now, local, remote, State::SynSent);
        out.push((conn.header(Flags::SYN, 0, 0), Vec::new()));
        conn
    }

    /// Passive open: the stream and its SYN|ACK. Established at once, without the third packet.
    pub fn accept(now: Instant, local: Address, syn: &Header, out: &mut Vec<Out>) -> Self {
        let mut conn = Self::new(now, SocketAddress::new(local, syn.dst.port), syn.src, State::Established);
        conn.expected = syn.seq.wrapping_add(1);
        conn.peer_window = usize::from(syn.window) * SEGMENT;
        out.push((conn.header(Flags::SYN | Flags::ACK, 0, conn.expected), Vec::new()));
        conn.next_seq = 1;
        conn
    }

    fn header(&self, flags: Flags, seq: u32, ack: u32) -> Header {
        let mut h = Header::new(protocol::STREAM, flags, self.local, self.remote);
        h.seq = seq;
        h.ack = ack;
        h.window = if flags.contains(Flags::FIN) || flags.contains(Flags::RST) { 0 } else { WINDOW };
        h
    }

    fn push_ack(&mut self, out: &mut Vec<Out>) {
        self.ack_due = None;
        self.unacked = 0;
        let mut payload = Vec::new();
        if !self.out_of_order.is_empty() {
            let mut blocks: Vec<pilot_wire::sack::Block> = Vec::new();
            for (&seq, data) in &self.out_of_order {
                let end = seq.wrapping_add(data.len() as u32);
                match blocks.last_mut() {
                    Some(b) if seq <= b.right => b.right = b.right.max(end),
                    _ => blocks.push(pilot_wire::sack::Block { left: seq, right: end }),
                }
            }
            blocks.truncate(pilot_wire::sack::MAX_BLOCKS);
            Blocks::from_slice(&blocks).emit(&mut payload);
        }
        out.push((self.header(Flags::ACK, self.next_seq, self.expected), payload));
    }

    /// Queues bytes; they leave with the next [`Conn::tick`].
    pub fn write(&mut self, data: &[u8]) {
        self.unsent.extend(data);
    }

    /// Everything written has been acknowledged.
    pub fn is_flushed(&self) -> bool {
        self.unsent.is_empty() && self.flight.is_empty()
    }

    /// February's close: FIN at once, outstanding data or not, never repeated.
    pub fn close(&mut self, out: &mut Vec<Out>) {
        if self.state == State::Established {
            out.push((self.header(Flags::FIN, self.next_seq, 0), Vec::new()));
        }
        self.state = State::TimeWait;
    }

    /// One packet of this stream arrived.
    pub fn handle(&mut self, now: Instant, h: &Header, payload: &[u8], out: &mut Vec<Out>) {
        let f = h.flags;
        if f.contains(Flags::RST) {
            self.state = State::Closed;
        } else if f.contains(Flags::FIN) {
            self.fins_received += 1;
            if self.state == State::Established && after(h.seq, self.expected) {
                self.fin_ahead_of_data = true;
            }
            self.state = State::TimeWait;
            out.push((self.header(Flags::FIN | Flags::ACK, self.next_seq, h.seq.wrapping_add(1)), Vec::new()));
        } else if f.contains(Flags::SYN) && f.contains(Flags::ACK) {
            if self.state == State::SynSent {
                self.expected = h.seq.wrapping_add(1);
                self.peer_window = usize::from(h.window) * SEGMENT;
                self.next_seq = 1;
                self.state = State::Established;
                out.push((self.header(Flags::ACK, 1, self.expected), Vec::new()));
            }
        } else if f.contains(Flags::SYN) {
            out.push((self.header(Flags::SYN | Flags::ACK, self.next_seq.wrapping_sub(1), self.expected), Vec::new()));
        } else if f.contains(Flags::ACK) {
            self.handle_data(now, h, payload, out);
        }
    }

    fn handle_data(&mut self, now: Instant, h: &Header, payload: &[u8], out: &mut Vec<Out>) {
        // A window of 0 means "unlimited" to February (02 §18).
        self.peer_window = if h.window == 0 { usize::MAX } else { usize::from(h.window) * SEGMENT };
        if h.ack != 0 && after(h.ack, self.last_ack) {
            self.last_ack = h.ack;
            self.rto = FIRST_RTO;
            while let Some(s) = self.flight.front() {
                if after(s.seq.wrapping_add(s.data.len() as u32), h.ack) {
                    break;
                }
                self.flight.pop_front();
            }
        }
        if payload.is_empty() || Blocks::parse_lenient(payload).is_some() || self.state != State::Established {
            return;
        }
        if h.seq == self.expected {
            self.deliver(payload);
            while let Some(data) = self.out_of_order.remove(&self.expected) {
                self.deliver(&data);
            }
        } else if after(h.seq, self.expected) && self.out_of_order.len() < 128 {
            self.out_of_order.entry(h.seq).or_insert_with(|| payload.to_vec());
        }
        self.unacked += 1;
        if !self.out_of_order.is_empty() || self.unacked >= 2 {
            self.push_ack(out);
        } else if self.ack_due.is_none() {
            self.ack_due = Some(now + DELAYED_ACK);
        }
    }

    fn deliver(&mut self, data: &[u8]) {
        self.received.extend_from_slice(data);
        self.total_received += data.len();
        self.expected = self.expected.wrapping_add(data.len() as u32);
    }

    /// Timers, and as much unsent data as the window takes.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Out>) {
        if self.state == State::SynSent && now >= self.syn_at + self.rto {
            self.syn_at = now;
            self.syn_sends += 1;
            self.rto = (self.rto * 2).min(Duration::from_secs(8));
            if self.syn_sends > MAX_SENDS {
                self.state = State::Closed;
            } else {
                out.push((self.header(Flags::SYN, 0, 0), Vec::new()));
            }
        }
        if self.state != State::Established {
            return;
        }
        if self.ack_due.is_some_and(|due| now >= due) {
            self.push_ack(out);
        }
        self.repeat(now, out);
        let mut in_flight: usize = self.flight.iter().map(|s| s.data.len()).sum();
        while !self.unsent.is_empty() && in_flight < self.peer_window.min(IN_FLIGHT) {
            // Nagle: a short segment waits until nothing is in flight (02 §13).
            if self.unsent.len() < SEGMENT && !self.flight.is_empty() {
                break;
            }
            let n = self.unsent.len().min(SEGMENT);
            let data: Vec<u8> = self.unsent.drain(..n).collect();
            out.push((self.header(Flags::ACK, self.next_seq, self.expected), data.clone()));
            self.flight.push_back(Segment { seq: self.next_seq, data, sent: now, sends: 1 });
            self.next_seq = self.next_seq.wrapping_add(n as u32);
            in_flight += n;
            self.ack_due = None;
            self.unacked = 0;
        }
    }

    fn repeat(&mut self, now: Instant, out: &mut Vec<Out>) {
        let (rto, expected) = (self.rto, self.expected);
        let header = |seq| self.header(Flags::ACK, seq, expected);
        let Some(first) = self.flight.front() else { return };
        if now < first.sent + rto {
            return;
        }
        let h = header(first.seq);
        if let Some(first) = self.flight.front_mut() {
            first.sent = now;
            first.sends += 1;
            if first.sends > MAX_SENDS {
                let mut rst = h;
                rst.flags = Flags::RST;
                (rst.seq, rst.ack, rst.window) = (0, 0, 0);
                self.state = State::Closed;
                out.push((rst, Vec::new()));
                return;
            }
            out.push((h, first.data.clone()));
            self.rto = (rto * 2).min(Duration::from_secs(10));
        }
    }
}
