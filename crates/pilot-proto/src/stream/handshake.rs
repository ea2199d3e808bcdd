//! SYN, SYN|ACK and the third packet (02 §10, §12, §27.4).

use std::time::Instant;

use pilot_wire::packet::Header;

use super::connection::{Connection, Phase};
use super::seq::{to_offset, to_wire};
use super::timers::Timer;
use super::{CloseReason, SynVerdict};
use crate::profile::WINDOW_UNIT;

/// Answers from an old connection of the peer that are met with RST and a new SYN, per dial (02 §27.4).
const MAX_STALE_ANSWERS: u32 = 3;

impl Connection {
    /// The window in a SYN or SYN|ACK. Zero there is no closed window (02 §27.8).
    pub(super) fn set_first_window(&mut self, window: u16) {
        self.peer_window = window.max(1);
        self.send_edge = u64::from(self.peer_window) * WINDOW_UNIT as u64;
    }

    pub(super) fn on_syn(&mut self, now: Instant, syn: &Header) {
        match self.phase {
            // Both ends dialled each other on the same ports (RFC 9293 §3.5).
            Phase::SynSent => {
                self.irs = syn.seq;
                self.set_first_window(syn.window);
                self.phase = Phase::SynReceived;
                self.due.syn = false;
                self.due.syn_ack = true;
            }
            _ if self.classify_syn(now, syn) == SynVerdict::Restart => {
                self.abandon(CloseReason::PeerRestarted);
            }
            // The original numbers, whatever has flowed since (07 §16 item 35).
            _ => self.due.syn_ack = true,
        }
    }

    pub(super) fn on_syn_ack(&mut self, now: Instant, header: &Header) {
        match self.phase {
            Phase::SynSent if header.ack != to_wire(self.isn, 0) => {
                // An old connection answered. RST makes the peer forget it; its number is the one the peer expects.
                self.stats.invalid += 1;
                if self.stale_answers < MAX_STALE_ANSWERS {
                    self.stale_answers += 1;
                    self.due.reset = Some(header.ack);
                    self.due.syn = true;
                }
            }
            Phase::SynSent => {
                self.irs = header.seq;
                self.set_first_window(header.window);
                if self.syns_sent == 1 {
                    self.rtt.sample(now.saturating_duration_since(self.syn_sent_at));
                }
                self.establish(now);
                self.ack.on_urgent(now);
            }
            Phase::SynReceived if header.seq == self.irs && header.ack == to_wire(self.isn, 0) => {
                self.establish(now);
                self.ack.on_urgent(now);
            }
            // Our third packet was lost.
            Phase::Open if header.seq == self.irs && to_offset(self.isn, 0, header.ack) == 0 => {
                self.ack.on_urgent(now);
            }
            _ => {}
        }
    }

    /// Both ends know each other's numbers.
    pub(super) fn establish(&mut self, now: Instant) {
        self.phase = Phase::Open;
        self.established_at = Some(now);
        self.last_heard = now;
        self.last_progress = now;
        self.due.syn = false;
        self.due.syn_ack = false;
        self.timers.stop(Timer::Handshake);
        self.timers.stop(Timer::HandshakeLimit);
        self.timers.set(Timer::Idle, now + self.cfg.keepalive);
        self.events.connected = true;
    }
}
