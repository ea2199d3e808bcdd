//! The order in which one client's requests are answered.
//!
//! There are no request ids. The official driver gives a reply to its oldest waiter for that opcode, and an Error to its
//! oldest waiter of any kind (03 §13). So that slow commands need not hold up quick ones, replies may overtake each other
//! under three rules: replies of one opcode keep their order; an Error leaves only when every earlier request has been
//! answered; an error of a command without reply (Send, SendTo) leaves only when nothing at all is waiting.

use std::collections::VecDeque;

/// Errors of Send and SendTo waiting for a quiet moment. More are dropped: they carry no promise (03 §4).
const LATE_ERRORS: usize = 64;

/// Names one waiting request of one client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket(u64);

#[derive(Debug)]
enum Reply {
    Success(Vec<u8>),
    Error(Vec<u8>),
}

#[derive(Debug)]
struct Waiting {
    ticket: Ticket,
    opcode: u8,
    reply: Option<Reply>,
}

/// The requests of one client that wait for their answers, oldest first. Frames are complete, prefix included.
#[derive(Debug, Default)]
pub(super) struct Replies {
    waiting: VecDeque<Waiting>,
    late: VecDeque<Vec<u8>>,
    next: u64,
}

impl Replies {
    /// Requests not yet answered.
    pub(super) fn outstanding(&self) -> usize {
        self.waiting.len()
    }

    /// A request with this opcode came in.
    pub(super) fn expect(&mut self, opcode: u8) -> Ticket {
        self.next += 1;
        let ticket = Ticket(self.next);
        self.waiting.push_back(Waiting { ticket, opcode, reply: None });
        ticket
    }

    /// The request succeeded; what may leave now is appended to `out`.
    pub(super) fn succeed(&mut self, ticket: Ticket, frame: Vec<u8>, out: &mut Vec<u8>) {
        self.answer(ticket, Reply::Success(frame), out);
    }

    /// The request failed; what may leave now is appended to `out`.
    pub(super) fn fail(&mut self, ticket: Ticket, frame: Vec<u8>, out: &mut Vec<u8>) {
        self.answer(ticket, Reply::Error(frame), out);
    }

    /// A command without reply failed.
    pub(super) fn late_error(&mut self, frame: Vec<u8>, out: &mut Vec<u8>) {
        if self.late.len() < LATE_ERRORS {
            self.late.push_back(frame);
        }
        self.release(out);
    }

    fn answer(&mut self, ticket: Ticket, reply: Reply, out: &mut Vec<u8>) {
        // Tickets rise through the queue.
        if let Ok(at) = self.waiting.binary_search_by_key(&ticket.0, |w| w.ticket.0)
            && let Some(entry) = self.waiting.get_mut(at)
        {
            entry.reply.get_or_insert(reply);
        }
        self.release(out);
    }

    fn release(&mut self, out: &mut Vec<u8>) {
        // The usual case: the oldest was answered.
        while let Some(Waiting { reply: Some(_), .. }) = self.waiting.front() {
            if let Some(Waiting { reply: Some(Reply::Success(frame) | Reply::Error(frame)), .. }) =
                self.waiting.pop_front()
            {
                out.extend_from_slice(&frame);
            }
        }
        let mut held = [false; 256];
        self.waiting.retain(|entry| {
            let opcode = usize::from(entry.opcode);
            match &entry.reply {
                // Not the oldest, so an earlier request is unanswered: only a success may pass it.
                Some(Reply::Success(frame)) if !held[opcode] => {
                    out.extend_from_slice(frame);
                    false
                }
                _ => {
                    held[opcode] = true;
                    true
                }
            }
        });
        if self.waiting.is_empty() {
            self.late.drain(..).for_each(|frame| out.extend_from_slice(&frame));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(out: &mut Vec<u8>) -> String {
        String::from_utf8(std::mem::take(out)).unwrap()
    }

    #[test]
    fn replies_of_one_opcode_keep_their_order() {
        let (mut replies, mut out) = (Replies::default(), Vec::new());
        let (first, second) = (replies.expect(3), replies.expect(3));
        replies.succeed(second, b"2".to_vec(), &mut out);
        assert_eq!(text(&mut out), "");
        replies.succeed(first, b"1".to_vec(), &mut out);
        assert_eq!(text(&mut out), "12");
        assert_eq!(replies.outstanding(), 0);
    }

    #[test]
    fn a_quick_command_overtakes_a_slow_one_of_another_kind() {
        let (mut replies, mut out) = (Replies::default(), Vec::new());
        let (dial, info) = (replies.expect(3), replies.expect(13));
        replies.succeed(info, b"info".to_vec(), &mut out);
        assert_eq!(text(&mut out), "info");
        replies.fail(dial, b"no".to_vec(), &mut out);
        assert_eq!(text(&mut out), "no");
    }

    #[test]
    fn an_error_waits_for_every_earlier_request() {
        let (mut replies, mut out) = (Replies::default(), Vec::new());
        let (dial, bind, info) = (replies.expect(3), replies.expect(1), replies.expect(13));
        replies.fail(bind, b"taken ".to_vec(), &mut out);
        replies.succeed(info, b"info ".to_vec(), &mut out);
        assert_eq!(text(&mut out), "info ");
        replies.succeed(dial, b"dialled ".to_vec(), &mut out);
        assert_eq!(text(&mut out), "dialled taken ");
    }

    #[test]
    fn a_success_behind_a_held_error_of_its_opcode_waits_too() {
        let (mut replies, mut out) = (Replies::default(), Vec::new());
        let (dial, bad, good) = (replies.expect(3), replies.expect(1), replies.expect(1));
        replies.fail(bad, b"bad ".to_vec(), &mut out);
        replies.succeed(good, b"good ".to_vec(), &mut out);
        assert_eq!(text(&mut out), "");
        replies.succeed(dial, b"dialled ".to_vec(), &mut out);
        assert_eq!(text(&mut out), "dialled bad good ");
    }

    #[test]
    fn an_error_of_a_send_waits_until_nothing_is_outstanding() {
        let (mut replies, mut out) = (Replies::default(), Vec::new());
        replies.late_error(b"at once ".to_vec(), &mut out);
        assert_eq!(text(&mut out), "at once ");
        let dial = replies.expect(3);
        for _ in 0..1000 {
            replies.late_error(b"x".to_vec(), &mut out);
        }
        assert_eq!(text(&mut out), "");
        replies.succeed(dial, b"dialled".to_vec(), &mut out);
        assert_eq!(text(&mut out), format!("dialled{}", "x".repeat(LATE_ERRORS)));
    }

    #[test]
    fn a_second_answer_changes_nothing() {
        let (mut replies, mut out) = (Replies::default(), Vec::new());
        let dial = replies.expect(3);
        replies.succeed(dial, b"1".to_vec(), &mut out);
        replies.fail(dial, b"2".to_vec(), &mut out);
        assert_eq!(text(&mut out), "1");
    }
}
