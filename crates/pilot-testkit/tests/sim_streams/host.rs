//! One end of a stream with an application on top and a thin frame layer below, as a host of the simulated network.
//!
//! The frame layer stands in for the tunnel: a counter, a check against damage, and a check against replays. Besides
//! the packets of the stream it carries numbered messages, each of which must arrive at most once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pilot_proto::profile::PeerProfile;
use pilot_proto::stream::{CloseReason, Connection, ReadError, State, StreamEvent, WriteError};
use pilot_testkit::sim::SimHost;
use pilot_wire::packet::{Flags, Header, Packet};

/// Kinds of frames.
const STREAM: u8 = 1;
const MESSAGE: u8 = 2;
/// Counter, kind, check.
const FRAME_OVERHEAD: usize = 8 + 1 + 8;
/// Counters remembered for the replay check.
const REPLAY_WINDOW: usize = 4096;

fn check(bytes: &[u8]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        hash = (hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23);
    }
    hash
}

/// What the application does and when.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    /// Everything it writes.
    pub(crate) data: Vec<u8>,
    /// Bytes per write and per read.
    pub(crate) write_chunk: usize,
    pub(crate) read_chunk: usize,
    /// Pause between two writes.
    pub(crate) write_pause: Duration,
    /// It does not read from the first to the second instant.
    pub(crate) stall: Option<(Duration, Duration)>,
    /// It closes only after it has read this much, besides having written everything.
    pub(crate) close_after_reading: usize,
    /// It resets the stream at this instant.
    pub(crate) reset_at: Option<Duration>,
    /// It learns this of its peer at these instants, latest first.
    pub(crate) learn: Vec<(Duration, PeerProfile)>,
    /// The path changes its largest payload at this instant.
    pub(crate) path_limit: Option<(Duration, usize)>,
    /// Messages sent beside the stream, one per 50 ms.
    pub(crate) messages: u64,
}

/// Makes a connection out of a SYN.
pub(crate) type Accept = Box<dyn Fn(Instant, &Header) -> Connection>;

/// The host.
pub(crate) struct StreamHost {
    pub(crate) conn: Option<Connection>,
    pub(crate) script: Script,
    /// What the other end writes.
    pub(crate) expected: Vec<u8>,
    pub(crate) received: usize,
    /// The first thing that was wrong.
    pub(crate) wrong: Option<String>,
    pub(crate) finished_at: Option<usize>,
    pub(crate) closed: Option<CloseReason>,
    pub(crate) read_end: Option<Result<(), CloseReason>>,
    pub(crate) packets_after_close: u64,
    /// For the end that accepts.
    pub(crate) accept: Option<Accept>,
    peer: SocketAddr,
    started: Instant,
    written: usize,
    next_write: Instant,
    write_blocked: bool,
    counter: u64,
    seen: BTreeSet<u64>,
    skip_replay_check: bool,
    messages_sent: u64,
    messages_seen: BTreeSet<u64>,
    /// Offsets the peer's windows have covered, in bytes, if it accounts bytes.
    window_edge: Option<u32>,
    /// The window in the SYN of the peer.
    syn_window: u16,
    pub(crate) trace: bool,
    name: &'static str,
}

impl StreamHost {
    pub(crate) fn new(
        name: &'static str,
        started: Instant,
        peer: SocketAddr,
        script: Script,
        expected: Vec<u8>,
    ) -> Self {
        Self {
            conn: None,
            script,
            expected,
            received: 0,
            wrong: None,
            finished_at: None,
            closed: None,
            read_end: None,
            packets_after_close: 0,
            accept: None,
            peer,
            started,
            written: 0,
            next_write: started,
            write_blocked: false,
            counter: 0,
            seen: BTreeSet::new(),
            skip_replay_check: false,
            messages_sent: 0,
            messages_seen: BTreeSet::new(),
            window_edge: None,
            syn_window: 0,
            trace: false,
            name,
        }
    }

    pub(crate) fn skip_replay_check(&mut self) {
        self.skip_replay_check = true;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.conn.as_ref().is_none_or(|c| c.is_forgotten() && c.poll_timeout().is_none())
            && self.closed.is_some()
            && self.read_end.is_some()
    }

    fn blame(&mut self, what: String) {
        self.wrong.get_or_insert(format!("{}: {what}", self.name));
    }

    /// The application does what it can.
    fn work(&mut self, now: Instant) {
        let since = now - self.started;
        let Some(conn) = &mut self.conn else { return };
        while let Some(event) = conn.poll_event() {
            if self.trace {
                eprintln!("{since:>12?} {} event {event:?}", self.name);
            }
            match event {
                StreamEvent::Writable => self.write_blocked = false,
                StreamEvent::Finished => self.finished_at = Some(self.received + conn.readable()),
                StreamEvent::Closed(reason) => self.closed = Some(reason),
                StreamEvent::Connected | StreamEvent::Readable | StreamEvent::Delivered => {}
            }
        }
        while let Some((_, profile)) = self.script.learn.pop_if(|l| l.0 <= since) {
            conn.set_profile(now, profile);
        }
        if let Some((_, limit)) = self.script.path_limit.take_if(|l| l.0 <= since) {
            conn.set_segment_limit(limit);
        }
        if self.script.reset_at.take_if(|at| *at <= since).is_some() {
            conn.reset(now);
        }
        while self.written < self.script.data.len() && !self.write_blocked && self.next_write <= now {
            let end = (self.written + self.script.write_chunk).min(self.script.data.len());
            match conn.write(now, &self.script.data[self.written..end]) {
                Ok(n) => self.written += n,
                Err(WriteError::Blocked) => self.write_blocked = true,
                Err(_) => {
                    self.script.data.truncate(self.written);
                }
            }
            if !self.script.write_pause.is_zero() {
                self.next_write = now + self.script.write_pause;
            }
        }
        self.script.stall.take_if(|stall| stall.1 <= since);
        let stalled = self.script.stall.is_some_and(|stall| stall.0 <= since);
        let mut buf = vec![0; self.script.read_chunk];
        let mut wrong = None;
        while !stalled && self.read_end.is_none() {
            match conn.read(now, &mut buf) {
                Ok(0) => self.read_end = Some(Ok(())),
                Ok(n) => {
                    let end = self.received + n;
                    if self.expected.get(self.received..end) != Some(&buf[..n]) {
                        wrong = Some(format!("bytes {}..{end} are not what was sent", self.received));
                    }
                    self.received = end;
                }
                Err(ReadError::Blocked) => break,
                Err(ReadError::Closed(reason)) => self.read_end = Some(Err(reason)),
            }
        }
        if self.written >= self.script.data.len()
            && self.received >= self.script.close_after_reading
            && !matches!(conn.state(), State::SynSent | State::SynReceived)
        {
            conn.close(now);
        }
        if let Some(wrong) = wrong {
            self.blame(wrong);
        }
        if let Some(at) = self.finished_at
            && at < self.expected.len()
            && self.script.close_after_reading == self.expected.len()
        {
            self.blame(format!("the end was reported at {at} of {} bytes", self.expected.len()));
        }
    }

    /// What must hold for every packet that leaves.
    fn inspect(&mut self, now: Instant, packet: &[u8]) {
        let parsed = match Packet::parse(packet) {
            Ok(p) => p,
            Err(e) => return self.blame(format!("emitted no packet: {e}")),
        };
        let h = parsed.header;
        if self.trace {
            eprintln!(
                "{:>12?} {} {:04b} seq {} ack {} win {} len {} {}",
                now - self.started,
                self.name,
                h.flags.bits(),
                h.seq,
                h.ack,
                h.window,
                parsed.payload.len(),
                self.conn.as_ref().map(|c| c.state().name()).unwrap_or_default(),
            );
        }
        if self.closed.is_some() {
            self.packets_after_close += 1;
        }
        if h.flags == Flags::SYN | Flags::ACK {
            let edge = h.seq.wrapping_add(1 + u32::from(self.syn_window) * 4096);
            self.window_edge.get_or_insert(edge);
        }
        let end = h.seq.wrapping_add(parsed.payload.len() as u32);
        // One byte beyond is a probe; ranges are no data and lie at the next byte to send.
        if let Some(edge) = self.window_edge
            && parsed.payload.len() > 37
            && end.wrapping_sub(edge) as i32 > 1
        {
            self.blame(format!("sent up to {end}, the peer allowed {edge}"));
        }
    }
}

impl SimHost for StreamHost {
    fn handle_datagram(&mut self, now: Instant, _from: SocketAddr, datagram: &mut [u8]) {
        if datagram.len() < FRAME_OVERHEAD {
            return;
        }
        let (body, sum) = datagram.split_at(datagram.len() - 8);
        if check(body).to_be_bytes() != *sum {
            return;
        }
        let mut counter = [0; 8];
        counter.copy_from_slice(&body[..8]);
        let counter = u64::from_be_bytes(counter);
        let floor = self.seen.last().map_or(0, |last| last.saturating_sub(REPLAY_WINDOW as u64));
        if !self.skip_replay_check && (counter < floor || !self.seen.insert(counter)) {
            return;
        }
        while self.seen.len() > REPLAY_WINDOW {
            self.seen.pop_first();
        }
        let payload = &body[9..];
        match body[8] {
            MESSAGE => {
                let mut id = [0; 8];
                id.copy_from_slice(&payload[..8]);
                if !self.messages_seen.insert(u64::from_be_bytes(id)) {
                    self.blame("a message arrived twice".into());
                }
            }
            STREAM => {
                let Ok(packet) = Packet::parse(payload) else { return };
                let h = packet.header;
                if self.closed == Some(CloseReason::AcceptTimeout) {
                    // An endpoint would have dropped it; a new SYN starts anew.
                    self.conn = None;
                    self.closed = None;
                    self.read_end = None;
                }
                if self.conn.is_none()
                    && h.flags == Flags::SYN
                    && let Some(accept) = &self.accept
                {
                    self.conn = Some(accept(now, &h));
                } else if let Some(conn) = &mut self.conn {
                    conn.handle_segment(now, &h, packet.payload);
                }
                if h.flags == Flags::SYN {
                    self.syn_window = h.window;
                }
                // The field of a FIN says nothing.
                if h.flags.contains(Flags::ACK) && !h.flags.contains(Flags::FIN) {
                    let edge = h.ack.wrapping_add(u32::from(h.window) * 4096);
                    if self.window_edge.is_none_or(|e| edge.wrapping_sub(e) as i32 > 0) {
                        self.window_edge = Some(edge);
                    }
                }
            }
            _ => {}
        }
        self.work(now);
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some(conn) = &mut self.conn {
            conn.handle_timeout(now);
        }
        self.work(now);
    }

    fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<SocketAddr> {
        self.work(now);
        out.extend_from_slice(&self.counter.to_be_bytes());
        let due = self.started + Duration::from_millis(50) * self.messages_sent as u32;
        if self.messages_sent < self.script.messages && due <= now {
            out.push(MESSAGE);
            out.extend_from_slice(&self.messages_sent.to_be_bytes());
            self.messages_sent += 1;
        } else {
            out.push(STREAM);
            let before = out.len();
            loop {
                let more = self.conn.as_mut().is_some_and(|c| c.poll_transmit(now, out));
                if out.len() > before {
                    break;
                }
                if !more {
                    return None;
                }
            }
            let packet = out[before..].to_vec();
            self.inspect(now, &packet);
        }
        self.counter += 1;
        let sum = check(out).to_be_bytes();
        out.extend_from_slice(&sum);
        self.work(now);
        Some(self.peer)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let since = self.started;
        let mut next = self.conn.as_ref().and_then(|c| c.poll_timeout());
        let mut want = |at: Option<Instant>| next = [next, at].into_iter().flatten().min();
        if self.messages_sent < self.script.messages {
            want(Some(since + Duration::from_millis(50) * self.messages_sent as u32));
        }
        let Some(conn) = &self.conn else { return next };
        if conn.close_reason().is_none() {
            let s = &self.script;
            want(s.learn.last().map(|l| since + l.0));
            want(s.path_limit.as_ref().map(|l| since + l.0));
            want(s.reset_at.map(|at| since + at));
            if self.written < s.data.len() && !self.write_blocked && !s.write_pause.is_zero() {
                want(Some(self.next_write));
            }
        }
        // After a stall the application reads again, once.
        if self.read_end.is_none()
            && let Some((_, until)) = self.script.stall
        {
            want(Some(since + until));
        }
        next
    }
}
