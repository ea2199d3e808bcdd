//! Memory, descriptors and processor time over the run, and the judgement on their growth.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::process::Usage;

/// Growth that is allowed from the end of the warm-up to the end of the run: this share …
const GROWTH: f64 = 1.25;
/// … and this many KiB on top.
const SLACK: u64 = 8 * 1024;
/// No process may ever have more, KiB.
const MOST: u64 = 400 * 1024;

/// One process, from its start to its end.
#[derive(Clone, Debug, Default)]
pub(super) struct Life {
    /// Seconds and usage at each check, when nothing moved.
    pub(super) checks: Vec<(u64, Usage)>,
    /// Highest values ever seen.
    pub(super) most: Usage,
}

impl Life {
    /// The checks after the warm-up, which begins with the life.
    fn settled(&self, warm: u64) -> impl Iterator<Item = &(u64, Usage)> {
        let begin = self.checks.first().map_or(0, |(at, _)| *at);
        self.checks.iter().filter(move |(at, _)| *at >= begin + warm)
    }
}

/// All processes by name and process id.
#[derive(Default)]
pub(super) struct Figures {
    lives: BTreeMap<(String, u32), Life>,
    /// Processor time of those that ended, milliseconds.
    past_cpu: u64,
    last_cpu: BTreeMap<u32, u64>,
}

impl Figures {
    /// Notes how a process is doing. `at` in seconds, for a check when nothing moves.
    pub(super) fn note(&mut self, name: &str, pid: u32, usage: Usage, at: Option<u64>) {
        let life = self.lives.entry((name.to_owned(), pid)).or_default();
        life.most.rss = life.most.rss.max(usage.rss);
        life.most.fds = life.most.fds.max(usage.fds);
        life.most.cpu = life.most.cpu.max(usage.cpu);
        life.checks.extend(at.map(|at| (at, usage)));
    }

    /// Processor time of a process as of now, for the sum.
    pub(super) fn cpu(&mut self, pid: u32, usage: Usage) {
        self.last_cpu.insert(pid, usage.cpu);
    }

    /// Forgets processes that have ended, keeping what they used.
    pub(super) fn ended(&mut self, alive: impl Fn(u32) -> bool) {
        let past = &mut self.past_cpu;
        self.last_cpu.retain(|pid, cpu| {
            let keep = alive(*pid);
            *past += if keep { 0 } else { *cpu };
            keep
        });
    }

    /// All processor time so far, milliseconds.
    pub(super) fn total_cpu(&self) -> u64 {
        self.past_cpu + self.last_cpu.values().sum::<u64>()
    }

    /// What grew too much. `warm` is how long a process may grow, seconds.
    pub(super) fn judge(&self, warm: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        for ((name, pid), life) in &self.lives {
            if life.most.rss > MOST {
                wrong.push(format!("{name} (process {pid}) had {} KiB resident, more than {MOST}", life.most.rss));
            }
            let settled: Vec<_> = life.settled(warm).collect();
            if let [(_, first), .., (_, last)] = settled[..] {
                let bound = (first.rss as f64 * GROWTH) as u64 + SLACK;
                if last.rss > bound {
                    wrong.push(format!(
                        "{name} (process {pid}) grew from {} to {} KiB, more than {bound}",
                        first.rss, last.rss
                    ));
                }
            }
        }
        wrong
    }

    /// The table for people.
    pub(super) fn table(&self, warm: u64) -> String {
        let mut text = format!(
            "{:<22} {:>8} {:>9} {:>9} {:>9} {:>12} {:>7} {:>7} {:>7} {:>8}\n",
            "process", "pid", "RSS first", "last", "most", "trend KiB/m", "FD first", "last", "most", "CPU s"
        );
        for ((name, pid), life) in &self.lives {
            let (Some((_, first)), Some((_, last))) = (life.checks.first(), life.checks.last()) else { continue };
            let trend = slope(life.settled(warm).map(|(at, usage)| (*at as f64, usage.rss as f64)));
            let trend = trend.map_or("-".to_owned(), |per_second| format!("{:.1}", per_second * 60.0));
            let _ = writeln!(
                text,
                "{name:<22} {pid:>8} {:>9} {:>9} {:>9} {trend:>12} {:>7} {:>7} {:>7} {:>8.1}",
                first.rss,
                last.rss,
                life.most.rss,
                first.fds,
                last.fds,
                life.most.fds,
                life.most.cpu as f64 / 1000.0
            );
        }
        text
    }
}

/// Slope of the line that fits best, if there are enough points.
fn slope(points: impl Iterator<Item = (f64, f64)>) -> Option<f64> {
    let points: Vec<_> = points.collect();
    if points.len() < 3 {
        return None;
    }
    let n = points.len() as f64;
    let mean = |of: fn(&(f64, f64)) -> f64| points.iter().map(of).sum::<f64>() / n;
    let (x, y) = (mean(|p| p.0), mean(|p| p.1));
    let spread: f64 = points.iter().map(|p| (p.0 - x).powi(2)).sum();
    (spread > 0.0).then(|| points.iter().map(|p| (p.0 - x) * (p.1 - y)).sum::<f64>() / spread)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grown(rss: &[u64]) -> Vec<String> {
        let mut figures = Figures::default();
        for (i, rss) in rss.iter().enumerate() {
            figures.note("x", 1, Usage { rss: *rss, fds: 10, cpu: 0 }, Some(60 * i as u64));
        }
        figures.judge(120)
    }

    #[test]
    fn growth_after_the_warm_up_is_found() {
        assert!(grown(&[5_000, 30_000, 40_000, 41_000, 45_000]).is_empty());
        assert!(grown(&[5_000, 30_000, 40_000, 50_000, 60_000])[0].contains("grew from 40000 to 60000"));
        assert!(grown(&[5_000, 500_000, 40_000])[0].contains("500000 KiB resident"));
    }

    #[test]
    fn the_trend_is_the_slope() {
        assert_eq!(slope([(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)].into_iter()), Some(2.0));
        assert_eq!(slope([(0.0, 1.0), (1.0, 3.0)].into_iter()), None);
    }
}
