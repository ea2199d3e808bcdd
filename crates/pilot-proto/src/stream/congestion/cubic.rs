//! CUBIC (RFC 9438) with HyStart++ (RFC 9406).

use std::time::{Duration, Instant};

use super::{AckSample, Controller};

/// Window growth scale, segments per second cubed (RFC 9438 §5).
const C: f64 = 0.4;
/// Multiplicative decrease (RFC 9438 §4.6).
const BETA: f64 = 0.7;
/// Initial window in segments, and the segment size it is meant for (RFC 6928).
const INITIAL_SEGMENTS: u64 = 10;
const INITIAL_SEGMENT_SIZE: u64 = 1460;
/// HyStart++ (RFC 9406 §4.3): samples per round, bounds of the delay threshold, growth divisor, rounds.
const HYSTART_SAMPLES: u32 = 8;
const HYSTART_MIN: Duration = Duration::from_millis(4);
const HYSTART_MAX: Duration = Duration::from_millis(16);
const CSS_DIVISOR: u64 = 4;
const CSS_ROUNDS: u32 = 5;

/// The controller.
#[derive(Debug)]
pub(crate) struct Cubic {
    segment: u64,
    window: u64,
    threshold: u64,
    limit: u64,
    /// Window before the last reduction, bytes.
    w_max: f64,
    /// Start of the current congestion avoidance epoch.
    epoch: Option<Instant>,
    /// Seconds from the epoch until the window is back at `w_max`.
    k: f64,
    /// What Reno would have (RFC 9438 §4.3), bytes.
    w_est: f64,
    /// Bytes of growth not yet a whole byte.
    fraction: f64,
    round: Round,
}

/// Round-trip bookkeeping of HyStart++.
#[derive(Debug, Default)]
struct Round {
    /// Bytes to be delivered until the round ends.
    left: u64,
    samples: u32,
    current_min: Option<Duration>,
    last_min: Option<Duration>,
    /// Conservative slow start: the baseline that started it, and rounds spent in it.
    css: Option<(Duration, u32)>,
}

impl Cubic {
    pub(crate) fn new(segment: usize, limit: u64) -> Self {
        let segment = segment as u64;
        let window = (INITIAL_SEGMENTS * segment.min(INITIAL_SEGMENT_SIZE)).max(2 * segment).min(limit);
        Self {
            segment,
            window,
            threshold: u64::MAX,
            limit,
            w_max: 0.0,
            epoch: None,
            k: 0.0,
            w_est: 0.0,
            fraction: 0.0,
            round: Round::default(),
        }
    }

    fn floor(&self) -> u64 {
        2 * self.segment
    }

    /// Slow start with HyStart++: leaves it when a round's smallest delay has grown clearly.
    fn slow_start(&mut self, ack: &AckSample) {
        let growth = if self.round.css.is_some() { ack.bytes / CSS_DIVISOR } else { ack.bytes };
        self.window = (self.window + growth).min(self.limit);
        if let Some(sample) = ack.sample {
            self.round.samples += 1;
            self.round.current_min = Some(self.round.current_min.map_or(sample, |m| m.min(sample)));
        }
        if let (Some(current), Some(last)) = (self.round.current_min, self.round.last_min)
            && self.round.samples >= HYSTART_SAMPLES
        {
            match self.round.css {
                None if current >= last + (last / 8).clamp(HYSTART_MIN, HYSTART_MAX) => {
                    self.round.css = Some((current, 0));
                }
                // The delay fell back: it was noise.
                Some((baseline, _)) if current < baseline => self.round.css = None,
                _ => {}
            }
        }
        self.round.left = self.round.left.saturating_sub(ack.bytes);
        if self.round.left == 0 {
            self.round.left = ack.in_flight.max(self.segment);
            self.round.last_min = self.round.current_min.take().or(self.round.last_min);
            self.round.samples = 0;
            if let Some((_, rounds)) = &mut self.round.css {
                *rounds += 1;
                if *rounds >= CSS_ROUNDS {
                    self.threshold = self.window;
                }
            }
        }
    }

    /// Congestion avoidance (RFC 9438 §4.2 to §4.5).
    fn avoid(&mut self, ack: &AckSample) {
        let segment = self.segment as f64;
        let window = self.window as f64;
        let epoch = match self.epoch {
            Some(epoch) => epoch,
            None => {
                if self.w_max < window {
                    self.w_max = window;
                }
                self.k = ((self.w_max - window) / segment / C).cbrt();
                self.w_est = window;
                self.epoch = Some(ack.now);
                ack.now
            }
        };
        let rtt = ack.rtt.unwrap_or_default().as_secs_f64();
        let t = ack.now.saturating_duration_since(epoch).as_secs_f64() + rtt;
        let cubic = segment * C * (t - self.k).powi(3) + self.w_max;
        let target = cubic.clamp(window, 1.5 * window);
        // Reno-friendly region: alpha is 3 (1 − beta) / (1 + beta) until the old window is reached, then 1.
        let alpha = if self.w_est < self.w_max { 3.0 * (1.0 - BETA) / (1.0 + BETA) } else { 1.0 };
        self.w_est += alpha * segment * ack.bytes as f64 / window;
        let growth = if self.w_est > cubic {
            (self.w_est - window).max(0.0)
        } else {
            (target - window) * ack.bytes as f64 / window
        } + self.fraction;
        self.fraction = growth.fract();
        self.window = (self.window + growth as u64).min(self.limit);
    }

    fn reduce(&mut self) {
        let window = self.window as f64;
        // Fast convergence (RFC 9438 §4.7).
        self.w_max = if window < self.w_max { window * (1.0 + BETA) / 2.0 } else { window };
        self.threshold = ((window * BETA) as u64).max(self.floor());
        self.epoch = None;
        self.fraction = 0.0;
        self.round.css = None;
    }
}

impl Controller for Cubic {
    fn on_ack(&mut self, ack: &AckSample) {
        if !ack.window_limited {
            return;
        }
        if self.in_slow_start() {
            self.slow_start(ack);
        } else {
            self.avoid(ack);
        }
    }

    fn on_loss(&mut self, _now: Instant) {
        self.reduce();
        self.window = self.threshold;
    }

    fn on_timeout(&mut self, _now: Instant) {
        self.reduce();
        self.window = self.segment;
    }

    fn on_idle(&mut self, now: Instant, idle: Duration) {
        if let Some(epoch) = &mut self.epoch {
            *epoch = (*epoch + idle).min(now);
        }
    }

    fn set_segment(&mut self, segment: usize) {
        let segment = segment as u64;
        let untouched = self.threshold == u64::MAX && self.round.left == 0;
        if untouched {
            *self = Self::new(segment as usize, self.limit);
        }
        self.segment = segment;
        self.window = self.window.max(segment);
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn threshold(&self) -> u64 {
        self.threshold
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEGMENT: u64 = 1000;

    #[allow(clippy::disallowed_methods)]
    fn start() -> Instant {
        Instant::now()
    }

    /// A window's worth of acknowledgements, `rtt` later.
    fn round(cubic: &mut Cubic, now: &mut Instant, rtt: Duration, sample: Duration) {
        *now += rtt;
        let mut left = cubic.window();
        while left > 0 {
            let bytes = left.min(SEGMENT);
            left -= bytes;
            cubic.on_ack(&AckSample {
                now: *now,
                bytes,
                rtt: Some(rtt),
                sample: Some(sample),
                window_limited: true,
                in_flight: cubic.window(),
            });
        }
    }

    #[test]
    fn slow_start_doubles_each_round_and_not_for_an_idle_application() {
        let mut cubic = Cubic::new(SEGMENT as usize, 1 << 30);
        let mut now = start();
        let rtt = Duration::from_millis(100);
        assert_eq!(cubic.window(), 10 * SEGMENT);
        for n in 1..6 {
            round(&mut cubic, &mut now, rtt, rtt);
            assert_eq!(cubic.window(), (10 * SEGMENT) << n);
        }
        let before = cubic.window();
        let ack =
            AckSample { now, bytes: SEGMENT, rtt: Some(rtt), sample: None, window_limited: false, in_flight: SEGMENT };
        cubic.on_ack(&ack);
        assert_eq!(cubic.window(), before);
    }

    #[test]
    fn growing_delay_ends_slow_start_without_a_loss() {
        let mut cubic = Cubic::new(SEGMENT as usize, 1 << 30);
        let mut now = start();
        let rtt = Duration::from_millis(40);
        for n in 0..12_u64 {
            round(&mut cubic, &mut now, rtt, rtt + Duration::from_millis(8 * n.saturating_sub(3)));
        }
        assert!(!cubic.in_slow_start());
        assert!(cubic.window() < 10_000 * SEGMENT, "{}", cubic.window());
    }

    #[test]
    fn the_curve_after_a_loss_is_flat_around_the_old_window_and_steep_beyond() {
        let mut cubic = Cubic::new(SEGMENT as usize, 1 << 30);
        let mut now = start();
        let rtt = Duration::from_millis(100);
        cubic.window = 1000 * SEGMENT;
        cubic.on_loss(now);
        assert_eq!(cubic.window(), 700 * SEGMENT);
        // K = cbrt(300 / 0.4), about 9.1 s, until the old window is back.
        let mut windows = Vec::new();
        for _ in 0..200 {
            round(&mut cubic, &mut now, rtt, rtt);
            windows.push(cubic.window() / SEGMENT);
        }
        // After 2, 6, 9, 12 and 20 s: W(t) = 0.4 (t - 9.1)^3 + 1000 segments.
        let curve = [windows[19], windows[59], windows[89], windows[119], windows[199]];
        for (got, want) in curve.into_iter().zip([857, 988, 1000, 1010, 1520]) {
            assert!(got.abs_diff(want) <= want / 40, "{curve:?}");
        }
        // A second loss below the old maximum lets go of more than its share (fast convergence).
        cubic.window = 800 * SEGMENT;
        cubic.w_max = 1000.0 * SEGMENT as f64;
        cubic.on_loss(now);
        assert_eq!(cubic.w_max as u64, 680 * SEGMENT);
    }

    #[test]
    fn a_time_out_starts_again_from_one_segment() {
        let mut cubic = Cubic::new(SEGMENT as usize, 1 << 30);
        cubic.window = 100 * SEGMENT;
        cubic.on_timeout(start());
        assert_eq!((cubic.window(), cubic.threshold()), (SEGMENT, 70 * SEGMENT));
        assert!(cubic.in_slow_start());
    }
}
