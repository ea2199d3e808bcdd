//! Replay windows: which counters of which nonce prefix have been opened (01 §11, §23 rules 10 and 11; 07 rule 10).
//!
//! A peer may draw a new prefix and start again at 1 under an unchanged key, so each prefix has a window of its own. A
//! prefix whose window was given up is never opened again while its key lives: otherwise its old frames would look new.
//! Windows are not split by scheme or by key: a frame sent twice (once per scheme, or once per key while keys change) has
//! the same prefix and counter both times and is delivered once.

/// Counters a window remembers behind its highest. Ours send in batches over several paths, hence far more than the 256 of
/// the reference; 1 KiB per window.
pub(super) const WINDOW: u64 = 8192;
/// Windows held at once. An official peer needs one, two while it re-derives.
pub(super) const MAX_LIVE: usize = 8;
/// Given-up prefixes remembered. Beyond this a new prefix is refused and a fresh key is asked for.
pub(super) const MAX_GONE: usize = 56;
/// Prefixes under one key after which a fresh key is asked for, well before any is refused.
pub(super) const REKEY_AT: usize = 24;

const WORDS: usize = (WINDOW / 64) as usize;

/// What a window says before a frame is opened. Nothing is recorded by asking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Not seen: try to open it.
    Fresh,
    /// Already opened. `newest`: it repeats the highest counter of its prefix, as the second copy of a doubled frame does.
    Replayed { newest: bool },
    /// Behind the window, or of a prefix that was given up.
    TooOld,
    /// No room for one more prefix under this key.
    Full,
}

struct Window {
    prefix: [u8; 4],
    max: u64,
    bits: Box<[u64; WORDS]>,
    /// Newest session a frame of this prefix was opened under.
    session: u32,
    used: u64,
}

impl Window {
    fn slot(counter: u64) -> (usize, u64) {
        let bit = counter % WINDOW;
        ((bit / 64) as usize, 1 << (bit % 64))
    }

    fn seen(&self, counter: u64) -> bool {
        let (word, mask) = Self::slot(counter);
        self.bits[word] & mask != 0
    }

    fn set(&mut self, counter: u64) {
        let (word, mask) = Self::slot(counter);
        self.bits[word] |= mask;
    }

    fn advance(&mut self, counter: u64) {
        let step = counter - self.max;
        if step >= WINDOW {
            self.bits.fill(0);
        } else {
            for gone in 1..=step {
                let (word, mask) = Self::slot(self.max.wrapping_add(gone));
                self.bits[word] &= !mask;
            }
        }
        self.max = counter;
    }
}

/// All windows of one peer.
#[derive(Default)]
pub(super) struct Windows {
    live: Vec<Window>,
    gone: Vec<([u8; 4], u32)>,
    clock: u64,
}

impl Windows {
    /// Judges a nonce.
    pub(super) fn check(&self, prefix: [u8; 4], counter: u64) -> Verdict {
        if let Some(w) = self.live.iter().find(|w| w.prefix == prefix) {
            return if counter > w.max {
                Verdict::Fresh
            } else if w.max - counter >= WINDOW {
                Verdict::TooOld
            } else if w.seen(counter) {
                Verdict::Replayed { newest: counter == w.max }
            } else {
                Verdict::Fresh
            };
        }
        if self.gone.iter().any(|(p, _)| *p == prefix) {
            return Verdict::TooOld;
        }
        if self.live.len() >= MAX_LIVE && self.gone.len() >= MAX_GONE { Verdict::Full } else { Verdict::Fresh }
    }

    /// Whether a prefix has opened frames before.
    pub(super) fn knows(&self, prefix: [u8; 4]) -> bool {
        self.live.iter().any(|w| w.prefix == prefix) || self.gone.iter().any(|(p, _)| *p == prefix)
    }

    /// Records a frame that was judged fresh and has opened. Returns whether it is the newest of its prefix.
    pub(super) fn record(&mut self, prefix: [u8; 4], counter: u64, session: u32) -> bool {
        self.clock += 1;
        let clock = self.clock;
        if let Some(w) = self.live.iter_mut().find(|w| w.prefix == prefix) {
            w.used = clock;
            w.session = w.session.max(session);
            let newest = counter > w.max;
            if newest {
                w.advance(counter);
            }
            w.set(counter);
            return newest;
        }
        if self.live.len() >= MAX_LIVE
            && let Some(oldest) = (0..self.live.len()).min_by_key(|i| self.live[*i].used)
        {
            let w = self.live.swap_remove(oldest);
            self.gone.push((w.prefix, w.session));
        }
        let mut w = Window { prefix, max: counter, bits: Box::new([0; WORDS]), session, used: clock };
        w.set(counter);
        self.live.push(w);
        true
    }

    /// Prefixes remembered, live and given up.
    pub(super) fn prefixes(&self) -> usize {
        self.live.len() + self.gone.len()
    }

    /// Forgets prefixes none of whose keys is left: their old frames cannot open any more.
    pub(super) fn forget_before(&mut self, oldest_session: u32) {
        self.live.retain(|w| w.session >= oldest_session);
        self.gone.retain(|(_, session)| *session >= oldest_session);
    }
}
