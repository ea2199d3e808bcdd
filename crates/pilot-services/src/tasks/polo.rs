//! What a worker earns for a task (05 §7.6), in 64-bit floating point, so that every implementation gets the same number.

/// The reward.
///
/// Computing time counts by its logarithm; time in which the task lay idle or staged lowers it. Never below 1.
pub fn reward(idle_ms: i64, staged_ms: i64, cpu_ms: i64) -> i64 {
    let cpu_minutes = cpu_ms as f64 / 60_000.0;
    let cpu_bonus = (1.0 + cpu_minutes).log2();
    let idle = (idle_ms as f64 / 1000.0 / 60.0 * 0.3).clamp(0.0, 0.3);
    let staged = (staged_ms as f64 / 1000.0 / 600.0 * 0.3).clamp(0.0, 0.3);
    let efficiency = (1.0 - idle - staged).max(0.4);
    let raw = (1.0 + cpu_bonus) * efficiency;
    // The cast cuts toward zero; what is no number becomes 0.
    if raw.is_finite() && raw >= 0.0 { ((raw + 0.5) as i64).max(1) } else { 1 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn the_worked_examples_hold() {
        for (idle, staged, cpu, expected) in [
            (0, 0, 0, 1),
            (0, 0, 60_000, 2),
            (0, 0, 600_000, 4),
            (0, 0, 1_800_000, 6),
            (30_000, 0, 180_000, 3),
            (30_000, 300_000, 600_000, 3),
            (60_000, 600_000, 0, 1),
            (60_000, 600_000, 420_000, 2),
            (5_000, 60_000, 1_860_000, 6),
            (0, 0, 24_852, 1),
            (0, 0, 24_853, 2),
            (0, 0, i64::MAX, 48),
            (0, 0, -60_000, 1),
            (0, 0, -120_000, 1),
            (i64::MAX, i64::MIN, 0, 1),
        ] {
            assert_eq!(reward(idle, staged, cpu), expected, "{idle} {staged} {cpu}");
        }
    }

    #[test]
    fn the_recorded_cases_hold() {
        let file: Value = serde_json::from_str(include_str!("../../tests/vectors/services-polo.json")).unwrap();
        let cases = file["cases"].as_array().unwrap();
        assert!(cases.len() >= 29);
        for case in cases {
            let time = |name: &str| case[name].as_i64().unwrap();
            let got = reward(time("time_idle_ms"), time("time_staged_ms"), time("time_cpu_ms"));
            assert_eq!(got, time("final_reward"), "{case}");
        }
    }
}
