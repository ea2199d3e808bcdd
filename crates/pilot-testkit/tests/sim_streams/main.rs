//! Streams on a bad network: random data both ways under random conditions, thousands of seeds per run.
//!
//! What arrives is a prefix of what was sent; everything arrives once conditions heal; both ends close cleanly and
//! leave nothing behind. That these checks would notice is shown by planting defects.

mod host;
mod scenario;

use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pilot_proto::stream::PlantedBug;
use pilot_testkit::sim::Faults;
use scenario::{Bug, Report, run};

/// Seeds of the normal run.
const SEEDS: u64 = 4_000;
/// Every kind of fault must have happened this often.
const MIN_FAULTS: u64 = 100;

fn seeds() -> u64 {
    std::env::var("PILOT_SIM_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(SEEDS)
}

/// Runs seeds on all cores until they are through or `stop` says so; the failures, smallest seed first.
fn sweep(count: u64, bug: Option<Bug>, stop_at_first: bool) -> (Report, Vec<(u64, String)>) {
    let next = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let total = Mutex::new((Report::default(), Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        break;
                    }
                    // A panic is a finding, too; its message has been printed.
                    let report = std::panic::catch_unwind(|| run(seed, bug, false))
                        .unwrap_or_else(|_| Report { wrong: Some("panicked".into()), ..Report::default() });
                    let mut total = total.lock().expect("no panic under the lock");
                    let (sum, failures) = &mut *total;
                    sum.faults += report.faults;
                    sum.bytes += report.bytes;
                    sum.datagrams += report.datagrams;
                    sum.virtual_time += report.virtual_time;
                    sum.retransmits += report.retransmits;
                    if let Some(wrong) = report.wrong {
                        failures.push((seed, wrong));
                        stop.store(stop_at_first || failures.len() >= 10, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (report, mut failures) = total.into_inner().expect("no panic under the lock");
    failures.sort();
    (report, failures)
}

fn replay_command(seed: u64) -> String {
    format!("PILOT_SIM_SEED={seed} cargo test -p pilot-testkit --test sim_streams replay -- --nocapture")
}

fn scarce(faults: &Faults) -> Vec<(&'static str, u64)> {
    faults.each().into_iter().filter(|f| f.1 < MIN_FAULTS).collect()
}

#[test]
fn random_streams_on_a_bad_network_lose_nothing_and_leave_nothing() {
    let count = seeds();
    let (report, failures) = sweep(count, None, false);
    // Past the capture of the test harness: how much was tried is part of the result.
    let tried = format!(
        "{count} seeds, {} bytes, {} datagrams, {} repeats, {:?} of virtual time\nfaults: {}\n",
        report.bytes, report.datagrams, report.retransmits, report.virtual_time, report.faults
    );
    std::io::stdout().write_all(tried.as_bytes()).expect("stdout takes a line");
    for (seed, wrong) in &failures {
        println!("seed {seed}: {wrong}\n    {}", replay_command(*seed));
    }
    assert!(failures.is_empty(), "{} seeds failed; the first: {}", failures.len(), replay_command(failures[0].0));
    if count >= SEEDS {
        let scarce = scarce(&report.faults);
        assert!(scarce.is_empty(), "these faults happened too rarely to prove anything: {scarce:?}");
    }
}

/// Replays the seed in `PILOT_SIM_SEED` with every packet printed; without it there is nothing to replay.
#[test]
fn replay() {
    let Some(seed) = std::env::var("PILOT_SIM_SEED").ok().and_then(|s| s.parse().ok()) else {
        println!("set PILOT_SIM_SEED to a seed to replay it");
        return;
    };
    let report = run(seed, None, true);
    println!("faults: {}", report.faults);
    assert_eq!(report.wrong, None, "{}", replay_command(seed));
}

#[test]
fn one_seed_gives_one_run() {
    let (a, b) = (run(77, None, false), run(77, None, false));
    assert_eq!((a.faults, a.datagrams, a.bytes, a.virtual_time), (b.faults, b.datagrams, b.bytes, b.virtual_time));
}

fn finds(bug: Bug) {
    let (_, failures) = sweep(SEEDS, Some(bug), true);
    let Some((seed, wrong)) = failures.first() else {
        panic!("{bug:?} was planted, and {SEEDS} seeds did not notice");
    };
    println!("{bug:?}: seed {seed}: {wrong}");
}

#[test]
fn a_skipped_check_against_repeats_is_found() {
    finds(Bug::ReplayCheckSkipped);
}

#[test]
fn a_fin_accepted_early_is_found() {
    finds(Bug::Stream(PlantedBug::FinAcceptedEarly));
}

#[test]
fn a_forgotten_retransmission_is_found() {
    finds(Bug::Stream(PlantedBug::RetransmissionForgotten));
}

#[test]
fn an_acknowledgement_beyond_what_was_received_is_found() {
    finds(Bug::Stream(PlantedBug::AckBeyondReceived));
}

#[test]
fn a_window_overrun_is_found() {
    finds(Bug::Stream(PlantedBug::WindowOverrun));
}
