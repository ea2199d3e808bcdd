//! Packets: sealing, opening, and the frames the tunnel makes itself.

use std::time::{Duration, Instant};

use pilot_wire::packet::{Flags, HEADER_LEN, Header, VERSION, protocol};
use pilot_wire::tunnel::{Datagram, Nonce, SECURE_HEADER_LEN, SecureHeader, TAG_LEN};
use pilot_wire::{Address, SocketAddress};

use super::types::limits;
use super::window::{self, Verdict};
use super::{KeySend, OpenError, Opened, Outgoing, SchemeState, SealError, Sealed, Tunnel, TunnelEvent, Via};
use crate::crypto::Scheme;

/// Port of the tunnel's own control packets: source of probes, source and destination of Hello (rule H2).
pub const CONTROL_PORT: u16 = 0x504C;
/// Payload of a probe. The same text as the path probe of newer releases, which every version echoes (07 §6.2).
pub const PROBE_PAYLOAD: &[u8] = b"pathprobe.v1";

/// Packets up to this size are opened by way of a small stack buffer: segments of 1152 bytes and everything shorter.
const SMALL: usize = 1536;
/// The same for the 4096-byte segments of old peers.
const LARGE: usize = 4352;

/// The schemes to seal a packet with.
enum Variants {
    One(Scheme),
    /// B first, then A, the same nonce (07 rule 3).
    Both,
}

/// What the window says of a frame that opened.
struct Heard {
    prefix: [u8; 4],
    /// The prefix has opened frames before.
    known_prefix: bool,
    /// The counter is the highest of the prefix.
    newest: bool,
}

fn associated(scheme: Scheme, node: &[u8; 4]) -> &[u8] {
    match scheme {
        Scheme::A => &[],
        Scheme::B => node,
    }
}

/// Whether a live peer answers this packet by itself: a silence after it means something.
fn wants_answer(packet: &[u8]) -> bool {
    let Some(h) = Header::peek(packet) else { return false };
    match h.protocol {
        protocol::STREAM => packet.len() > HEADER_LEN || h.flags.contains(Flags::SYN) || h.flags.contains(Flags::FIN),
        protocol::DATAGRAM => true,
        _ => false,
    }
}

impl Tunnel {
    /// Encrypts the packet in `buf[frame_start + 20..]` in place; the 20 bytes before it are filled in and the tag is
    /// appended. While the peer's scheme is unknown a second frame follows (07 rule 3).
    ///
    /// # Errors
    /// [`SealError`]; the buffer is then unchanged.
    pub fn seal(&mut self, now: Instant, buf: &mut Vec<u8>, frame_start: usize) -> Result<Sealed, SealError> {
        let packet_at = frame_start.saturating_add(SECURE_HEADER_LEN);
        if buf.len() < packet_at + HEADER_LEN {
            return Err(SealError::Short);
        }
        let Some(id) = self.keys.current else {
            return Err(SealError::NoSession);
        };
        let wants = wants_answer(&buf[packet_at..]);
        let sealed = self.seal_under(now, id, buf, frame_start, true)?;
        self.stats.sealed += 1;
        if wants && self.awaiting.is_none() {
            self.awaiting = Some(now);
            if !self.keys.confirmed() {
                self.start(now);
            }
        }
        if wants {
            self.consider_proof(now);
        }
        self.consider_rekey(now);
        Ok(sealed)
    }

    /// Seals under a given session. `data` packets may alternate schemes, probes never do.
    fn seal_under(
        &mut self,
        now: Instant,
        id: u32,
        buf: &mut Vec<u8>,
        start: usize,
        data: bool,
    ) -> Result<Sealed, SealError> {
        let sure = self.keys.session(id).is_some_and(|s| s.confirmed.is_some());
        let variants = self.variants(now, data, sure);
        let hard = self.cfg.hard_frames;
        let Some(session) = self.keys.session_mut(id) else {
            return Err(SealError::NoSession);
        };
        if session.frames() >= hard || self.counter == u64::MAX {
            return Err(SealError::Exhausted);
        }
        session.sealed += 1;
        self.counter += 1;
        let header =
            SecureHeader { node: self.local.node, nonce: Nonce { prefix: self.prefix, counter: self.counter } };
        let nonce = header.nonce.to_bytes();
        let node = self.local.node.to_be_bytes();
        let at = start + SECURE_HEADER_LEN;
        let end = buf.len();
        buf[start..at].copy_from_slice(&header.to_bytes());
        let Some(session) = self.keys.session(id) else {
            return Err(SealError::NoSession);
        };
        let first = match variants {
            Variants::One(s) => s,
            Variants::Both => {
                // Room for the first tag, then a copy of the frame in clear, to be sealed below.
                buf.extend_from_slice(&[0; TAG_LEN]);
                buf.extend_from_within(start..end);
                Scheme::B
            }
        };
        let tag = session.key(first).seal(nonce, associated(first, &node), &mut buf[at..end])?;
        let Variants::Both = variants else {
            buf.extend_from_slice(&tag);
            return Ok(Sealed::One);
        };
        buf[end..end + TAG_LEN].copy_from_slice(&tag);
        let second = end + TAG_LEN;
        let tag =
            session.key(Scheme::A).seal(nonce, associated(Scheme::A, &node), &mut buf[second + SECURE_HEADER_LEN..])?;
        buf.extend_from_slice(&tag);
        Ok(Sealed::Twin { second })
    }

    /// Which schemes to seal with. Under a key that has not opened anything (`sure` is false) even a known scheme is only a
    /// hint: the peer may have come back as another release (07 rule 2).
    fn variants(&mut self, now: Instant, data: bool, sure: bool) -> Variants {
        if !self.cfg.allow_scheme_a {
            return Variants::One(Scheme::B);
        }
        let hint = match self.scheme {
            SchemeState::Known(s) if sure => return Variants::One(s),
            SchemeState::Known(s) | SchemeState::Hinted(s) => Some(s),
            SchemeState::Unknown => None,
        };
        let since = *self.unsure_since.get_or_insert(now);
        let unsure = now.saturating_duration_since(since);
        if let Some(s) = hint
            && data
            && unsure < limits::HINT_TRUST
        {
            return Variants::One(s);
        }
        if !data || unsure < limits::DOUBLING {
            return Variants::Both;
        }
        // One variant per packet, in turn (07 rule 4).
        Variants::One(if self.counter.is_multiple_of(2) { Scheme::B } else { Scheme::A })
    }

    /// Opens a `PILS` frame in place, given whole. Order: window, decrypt, inner addresses, record (01 rules 11, 12).
    ///
    /// # Errors
    /// [`OpenError`]; the frame is then unchanged.
    pub fn open<'a>(&mut self, now: Instant, via: Via, frame: &'a mut [u8]) -> Result<Opened<'a>, OpenError> {
        let Some(Datagram::Secure(header)) = Datagram::parse(frame) else {
            return Err(OpenError::Malformed);
        };
        if header.node != self.peer {
            return Err(OpenError::WrongNode);
        }
        let Some(len) = frame.len().checked_sub(SECURE_HEADER_LEN + TAG_LEN).filter(|n| *n >= HEADER_LEN) else {
            return Err(OpenError::Malformed);
        };
        if header.nonce.counter == 0 {
            return Err(OpenError::Malformed);
        }
        if self.keys.sessions.is_empty() {
            self.note_unreadable(now, via, frame.len());
            return Err(OpenError::NoSession);
        }
        match self.windows.check(header.nonce.prefix, header.nonce.counter) {
            Verdict::Fresh => {}
            Verdict::Full => {
                self.begin_rekey(now);
                return Err(OpenError::Replayed);
            }
            verdict => {
                self.stats.replayed += 1;
                // The second copy of a doubled frame, or of one that came on two paths, is no alarm.
                if verdict != (Verdict::Replayed { newest: true }) {
                    self.replay_alarm(now, header.nonce.counter);
                }
                return Err(OpenError::Replayed);
            }
        }
        let newest = if len <= SMALL {
            let mut plain = [0u8; SMALL];
            self.open_by(now, via, header, frame, &mut plain[..len])?
        } else if len <= LARGE {
            self.open_large(now, via, header, frame, len)?
        } else {
            let mut plain = std::mem::take(&mut self.scratch);
            plain.resize(plain.len().max(len), 0);
            let result = self.open_by(now, via, header, frame, &mut plain[..len]);
            self.scratch = plain;
            result?
        };
        Ok(Opened { packet: &frame[SECURE_HEADER_LEN..SECURE_HEADER_LEN + len], newest })
    }

    // A frame of its own, so that the common case does not clear the large buffer.
    #[inline(never)]
    fn open_large(
        &mut self,
        now: Instant,
        via: Via,
        header: SecureHeader,
        frame: &mut [u8],
        len: usize,
    ) -> Result<bool, OpenError> {
        let mut plain = [0u8; LARGE];
        self.open_by(now, via, header, frame, &mut plain[..len])
    }

    /// Decrypts into `plain`, judges the packet, records it, and puts it into the frame. Returns whether it is newest.
    fn open_by(
        &mut self,
        now: Instant,
        via: Via,
        header: SecureHeader,
        frame: &mut [u8],
        plain: &mut [u8],
    ) -> Result<bool, OpenError> {
        let Some((id, scheme)) = self.try_keys(header, frame, plain) else {
            self.note_unreadable(now, via, frame.len());
            return Err(OpenError::Unreadable);
        };
        let Some(inner) = Header::peek(plain) else {
            return Err(OpenError::Malformed);
        };
        if let Err(e) = self.judge(&inner, plain.len()) {
            self.stats.misaddressed += 1;
            return Err(e);
        }
        if header.nonce.prefix == self.prefix {
            self.redraw_prefix();
        }
        let prefix = header.nonce.prefix;
        let known_prefix = self.windows.knows(prefix);
        let newest = self.windows.record(prefix, header.nonce.counter, id);
        self.opened(now, id, scheme, Heard { prefix, known_prefix, newest });
        frame[SECURE_HEADER_LEN..SECURE_HEADER_LEN + plain.len()].copy_from_slice(plain);
        Ok(newest)
    }

    /// Who speaks to whom (01 rule 12, 07 rules 17 to 19). A frame of our own that comes back fails here: under scheme A
    /// nothing else tells it from a frame of the peer.
    fn judge(&self, inner: &Header, len: usize) -> Result<(), OpenError> {
        if inner.version != VERSION {
            return Err(OpenError::Version);
        }
        // The keepalive of 1.9 to 1.12.0 (07 rule 18).
        let keepalive = inner.src.addr.node == 0
            && inner.protocol == protocol::CONTROL
            && inner.src.port == 0
            && inner.dst.port == 0
            && len == HEADER_LEN;
        if inner.src.addr.node != self.peer && !keepalive {
            return Err(OpenError::Source);
        }
        if inner.dst.addr.node != self.local.node {
            return Err(OpenError::Destination);
        }
        Ok(())
    }

    /// Tries the current session under the known scheme, then everything else, newest first (07 rule 2).
    fn try_keys(&self, header: SecureHeader, frame: &[u8], plain: &mut [u8]) -> Option<(u32, Scheme)> {
        let (ciphertext, tag) = frame[SECURE_HEADER_LEN..].split_at_checked(plain.len())?;
        let nonce = header.nonce.to_bytes();
        let node = header.node.to_be_bytes();
        let first = self.scheme.scheme().unwrap_or(Scheme::B);
        let current = self.keys.current();
        let others = self.keys.sessions.iter().rev().filter(|s| Some(s.id) != self.keys.current);
        for session in current.into_iter().chain(others) {
            for scheme in [first, first.other()] {
                if scheme == Scheme::A && !self.cfg.allow_scheme_a {
                    continue;
                }
                if session.key(scheme).open(nonce, associated(scheme, &node), ciphertext, tag, plain).is_ok() {
                    return Some((session.id, scheme));
                }
            }
        }
        None
    }

    /// A frame has opened and passed every check.
    fn opened(&mut self, now: Instant, id: u32, scheme: Scheme, heard: Heard) {
        self.stats.opened += 1;
        self.last_opened = Some(now);
        self.last_session = Some(id);
        self.unsure_since = None;
        self.unreadable.reset();
        // H7: one of ours speaks B. It doubles a probe of a new key, and the second copy may overtake the first.
        let overtaken = scheme == Scheme::A && heard.known_prefix && self.greeting.peer.is_some();
        if self.scheme != SchemeState::Known(scheme) && !overtaken {
            self.scheme = SchemeState::Known(scheme);
            self.event(TunnelEvent::Scheme(scheme));
        }
        let Some(session) = self.keys.session_mut(id) else { return };
        session.opened += 1;
        let first = session.confirmed.is_none();
        session.confirmed.get_or_insert(now);
        session.last = Some(now);
        session.prefix = Some(heard.prefix);
        let (own, identity, rank) = (session.own, session.identity, session.rank);
        let switch = match self.keys.current() {
            None => true,
            Some(current) if current.id == id => first,
            Some(current) if current.confirmed.is_none() => true,
            // A frame that others of its prefix have overtaken says nothing about what the peer uses now (T6). Where the two
            // sides hold different pairs for the newest, the leader's choice counts (T5). An older pair that goes on
            // opening while ours is not answered is what the peer really uses.
            Some(current) => {
                let silent = current.last.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
                let behind = self.behind_since.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
                let comparable = current.prefix == Some(heard.prefix);
                let follow = comparable && !self.keys.leads() && behind >= limits::FOLLOW;
                let deaf = silent >= limits::QUIET_KEY && self.in_doubt();
                heard.newest && (rank > current.rank || follow || deaf)
            }
        };
        if switch {
            self.switch(now, id, heard.known_prefix, identity.is_some());
        } else if heard.newest && self.keys.current != Some(id) {
            self.lagging(now, id);
        }
        if self.probing.as_ref().is_some_and(|p| p.session == id) {
            self.probing = None;
        }
        if self.keys.current == Some(id) {
            self.behind_since = None;
            self.awaiting = None;
            self.suspicion = self.suspicion.take().filter(|s| s.strict);
            if self.exchange.as_ref().is_some_and(|e| e.ends_with(own)) {
                self.exchange = None;
            }
        }
        if self.windows.prefixes() >= window::REKEY_AT {
            self.begin_rekey(now);
        }
    }

    /// The peer uses an older pair than we do: it is kept as long as that lasts, and the peer is shown the newer one (T7).
    fn lagging(&mut self, now: Instant, id: u32) {
        self.behind_since.get_or_insert(now);
        if let Some(expires) = self.keys.session_mut(id).and_then(|s| s.expires.as_mut()) {
            *expires = (*expires).max(now + limits::GRACE);
        }
        let rested = self.shown.is_none_or(|at| now.saturating_duration_since(at) >= limits::AUTH_INTERVAL);
        if let Some(current) = self.keys.current
            && rested
        {
            self.shown = Some(now);
            self.probe_session(now, current, KeySend::Current, limits::SHOW_PROBES);
        }
    }

    /// Seals under another session from now on, for a frame has opened under it.
    fn switch(&mut self, now: Instant, id: u32, known_prefix: bool, authenticated: bool) {
        self.keys.promote(now, id);
        self.generation += 1;
        self.proved = Some(now);
        let generation = self.generation;
        if generation == 1 {
            let scheme = self.scheme.scheme().unwrap_or(Scheme::B);
            self.event(TunnelEvent::Established { scheme, authenticated });
        } else {
            self.event(TunnelEvent::Rekeyed { generation });
        }
        // Ours keep their prefix over a rekey, official daemons their key over a new prefix: where both are new, another life
        // of the peer has begun (rule H6).
        let peer = self.keys.current().map(|s| s.peer);
        if authenticated && (self.greeting.key.is_none() || !known_prefix && self.greeting.key != peer) {
            self.greet(now, peer);
        }
    }

    /// Reports a replay, unless a key is so young that the peer still doubles its packets: then second copies overtake each
    /// other on any path that reorders (T10).
    fn replay_alarm(&mut self, now: Instant, counter: u64) {
        let doubling = |made: Instant| now.saturating_duration_since(made) < limits::DOUBLING;
        let rested =
            self.replay_event.is_none_or(|at| now.saturating_duration_since(at) >= limits::REPLAY_EVENT_INTERVAL);
        if rested && !self.keys.sessions.iter().any(|s| doubling(s.created)) {
            self.replay_event = Some(now);
            self.event(TunnelEvent::NonceReplay { counter });
        }
    }

    /// Appends the next frame of the tunnel's own (key exchange, probe, Hello) and says how to send it.
    pub fn poll_transmit(&mut self, now: Instant, out: &mut Vec<u8>) -> Option<KeySend> {
        while let Some(next) = self.outgoing.pop_front() {
            let start = out.len();
            match next {
                Outgoing::Auth { send } => {
                    if let Some(own) = self.keys.own.last_mut() {
                        own.sent = Some(now);
                        own.exchange.emit(out);
                        self.stats.auth_sent += 1;
                        return Some(send);
                    }
                }
                Outgoing::Probe { session, send } => {
                    if self.control(now, session, true, &[], out, send) {
                        return Some(send);
                    }
                }
                Outgoing::Hello { reply } => {
                    let mut hello = self.cfg.hello.clone();
                    hello.reply = reply;
                    let mut body = Vec::new();
                    hello.emit(&mut body);
                    if let Some(id) = self.keys.current
                        && self.control(now, id, false, &body, out, KeySend::Current)
                    {
                        return Some(KeySend::Current);
                    }
                }
                Outgoing::Bytes { frame, send } => {
                    out.extend_from_slice(&frame);
                    return Some(send);
                }
            }
            out.truncate(start);
        }
        None
    }

    /// Appends a sealed control packet: a probe, or a Hello with this body. False when its session is gone.
    fn control(
        &mut self,
        now: Instant,
        session: u32,
        probe: bool,
        body: &[u8],
        out: &mut Vec<u8>,
        send: KeySend,
    ) -> bool {
        let start = out.len();
        let own = Address::backbone(self.local.node);
        let peer = Address::backbone(self.peer);
        let (flags, port, payload) =
            if probe { (Flags::NONE, 0, PROBE_PAYLOAD) } else { (Flags::ACK, CONTROL_PORT, body) };
        let mut header = Header::new(
            protocol::CONTROL,
            flags,
            SocketAddress::new(own, CONTROL_PORT),
            SocketAddress::new(peer, port),
        );
        header.seq = self.counter as u32;
        out.resize(start + SECURE_HEADER_LEN, 0);
        if header.emit(payload, out).is_err() {
            return false;
        }
        match self.seal_under(now, session, out, start, false) {
            Ok(Sealed::One) => true,
            Ok(Sealed::Twin { second }) => {
                let frame = out.split_off(second);
                self.outgoing.push_front(Outgoing::Bytes { frame, send });
                true
            }
            Err(_) => false,
        }
    }
}
